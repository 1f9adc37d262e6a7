"""`headrace serve`: what it refuses, in one sentence."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks._service import free_port
from infra.cli import app
from streaming.errors import ConfigError


def refused(home: Path, *arguments: str, port: int | None = None) -> Any:
    """`headrace serve` with options that keep it from starting."""
    command = ["serve", "--home", str(home), "--port", str(port or free_port()), *arguments]
    error: Any = CliRunner().invoke(app, command).exception
    raise error


@pytest.mark.parametrize("how", [[], ["--ray"]])
def test_there_must_be_a_run_to_follow(tmp_path: Path, how: list[str]) -> None:
    with pytest.raises(ConfigError, match="nothing has run in .*: start with `headrace run`"):
        refused(tmp_path / "home", *how)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("how", [[], ["--ray"]])
def test_a_port_that_is_taken_is_named(tmp_path: Path, how: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {taken} on 127.0.0.1 cannot be used"):
            refused(tmp_path, *how, port=taken)


def test_there_are_at_most_as_many_replicas_as_at_least_or_more(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max-replicas = 2 is less than replicas = 3"):
        refused(tmp_path, "--ray", "--replicas", "3", "--max-replicas", "2")
