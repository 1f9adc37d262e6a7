"""docs/adding-a-model.md, followed to the letter: the model of that page keeps the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text()


def block(language: str, number: int = 0) -> str:
    found: str = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the page's package in it, as pip installs one."""
    project = tomllib.loads(block("toml", 1))["project"]
    name, version = project["name"], project["version"]
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "item2vec.py").write_text(block("python"))
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


def contract(installed: Path, chosen: str, *, fails: bool = False) -> str:
    file = "tests/trainers/test_model_contract.py"
    return run(
        *(installed, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", file, "-k", chosen),
        fails=fails,
    )


def test_the_model_of_the_page_keeps_the_contract(installed: Path) -> None:
    told = contract(installed, "item2vec")
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


def test_a_recipe_names_it_as_the_page_does(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(block("toml", 0))
    program = """
import sys
from infra.recipe import load_recipe
from trainers.trainer import Trainer
trainer = Trainer(load_recipe(sys.argv[1]).trainer, "page")
print(type(trainer.model).__module__, trainer.model.config.history)
"""
    told = run(installed, "-c", program, str(tmp_path / "recipe.toml"))
    assert told.split() == ["tastes.item2vec", "5"]


def test_the_file_would_pass_the_house_rules(tmp_path: Path) -> None:
    file = tmp_path / "item2vec.py"
    file.write_text(block("python"))
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
