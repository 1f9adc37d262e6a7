"""What the command line says of what is wrong."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from infra import cli
from infra.doctor_command import show
from infra.doctor_findings import fail


def test_a_sentence_keeps_its_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[trainer]\nmodel = "[archive]"\n')
    monkeypatch.setattr("sys.argv", ["headrace", "run", str(recipe), "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "[archive]" in capsys.readouterr().err


def test_findings_keep_their_brackets() -> None:
    out = StringIO()
    show([fail("recipe", "[archive] is off", "set [archive] enabled")], Console(file=out, width=99))
    assert "[archive] is off; set [archive] enabled" in out.getvalue()
