"""Keeps Feast from moving the figures of the whole process into files.

When Feast is imported it asks Prometheus' client, by two variables of the environment, to keep all
figures in files of a folder that it makes, as servers of many processes need it; here every process
tells its own. They would cost more, and the folders of processes that are killed would stay. Who
set the variables himself gets what he asked for.
"""

from __future__ import annotations

import os

import prometheus_client  # noqa: F401 - it decides where figures are kept when it is imported

_FEAST, _CLIENT = "PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"
_asked_for = _FEAST in os.environ or _CLIENT in os.environ
if not _asked_for:
    os.environ[_FEAST] = ""  # so that it makes no folder


def restore() -> None:
    """The environment as it was, for the processes that are started from here."""
    if not _asked_for:
        os.environ.pop(_FEAST, None)
        os.environ.pop(_CLIENT, None)
