"""docs/adding-a-model.md, followed to the letter: the models of that page keep their contracts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ("item2vec", "dcn")  # in the order of the page
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text()


def block(language: str, number: int = 0) -> str:
    found: str = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the page's package in it, as pip installs one."""
    project = tomllib.loads(block("toml", 2))["project"]
    name, version = project["name"], project["version"]
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    for number, model in enumerate(MODELS):
        (tmp_path / name / f"{model}.py").write_text(block("python", number))
    info = tmp_path / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]" for group in project["entry-points"]]
    lines += [f"{k} = {v}" for k, v in project["entry-points"]["headrace.models"].items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(installed: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout


def contract(
    installed: Path, chosen: str, file: str = "test_model_contract", *, fails: bool = False
) -> str:
    file = f"tests/trainers/{file}.py"
    return run(
        *(installed, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", file, "-k", chosen),
        fails=fails,
    )


def test_the_model_of_the_page_keeps_the_contract(installed: Path) -> None:
    told = contract(installed, "item2vec")
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None, told
    assert int(passed[1]) > 25


def test_the_ranker_of_the_page_keeps_the_contract_of_rankers(installed: Path) -> None:
    told = contract(installed, "dcn", "test_ranker_contract")
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None, told
    assert int(passed[1]) > 25


def test_what_a_model_says_it_cannot_keep_it_must_not_keep(installed: Path) -> None:
    test = "test_predicting_gives_no_row_to_any_id"
    file = installed / "tastes" / "item2vec.py"
    reads, table = '    reads = ("item_id", "history")\n', '        table = self.tables["item"]\n'
    text = file.read_text().replace(reads, f'{reads}    skips = {{"{test}": "it is careless"}}\n')
    file.write_text(text)
    told = contract(installed, f"item2vec and {test}", fails=True)
    assert "[XPASS(strict)] it is careless" in told
    file.write_text(text.replace(table, f"{table}        table.training = True\n"))
    assert "1 xfailed" in contract(installed, f"item2vec and {test}")


@pytest.mark.parametrize(
    ("number", "told"), [(0, "tastes.item2vec history=5"), (1, "tastes.dcn space=entire")]
)
def test_a_recipe_names_it_as_the_page_does(
    installed: Path, tmp_path: Path, number: int, told: str
) -> None:
    (tmp_path / "recipe.toml").write_text(block("toml", number))
    option = told.split()[1].partition("=")[0]
    program = """
import sys
from infra.recipe import load_recipe
from trainers.trainer import Trainer
*_, config = load_recipe(sys.argv[1]).trainers.values()
model = Trainer(config, "page").model
print(type(model).__module__, f"{sys.argv[2]}={getattr(model.config, sys.argv[2])}")
"""
    found = run(installed, "-c", program, str(tmp_path / "recipe.toml"), option)
    assert found.strip() == told


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_the_file_would_pass_the_house_rules(tmp_path: Path, number: int) -> None:
    file = tmp_path / f"{MODELS[number]}.py"
    file.write_text(block("python", number))
    ruff = Path(sys.executable).parent / "ruff"
    config = str(ROOT / "pyproject.toml")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [str(ruff), *command, "--config", config, str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
