"""Feast, once imported, leaves the figures of a process where they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOOK = """
import os, tempfile
import features.store
import feast.metrics
from prometheus_client import Counter, values
print(values.ValueClass.__name__, os.listdir(tempfile.gettempdir()))
print(sorted(name for name in os.environ if name.startswith("PROMETHEUS_MULTIPROC")))
"""


def look(folder: Path, **environment: str) -> list[str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_MULTIPROC")}
    given |= {"TMPDIR": str(folder), **environment}
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], env=given, capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()


def test_figures_stay_in_memory_and_no_folder_is_made(tmp_path: Path) -> None:
    assert look(tmp_path) == ["MutexValue []", "[]"]


def test_who_wants_them_in_files_has_them_there(tmp_path: Path) -> None:
    kept, names = look(tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert kept.startswith("MmapedValue")
    assert "PROMETHEUS_MULTIPROC_DIR" in names
