"""The doctor's look at the machine: disk, memory, processors, the port, and Ray."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from infra.doctor_findings import Finding, fail, ok, warn
from infra.serving import check_port
from streaming.errors import ConfigError

_GB = 1_000_000_000
_OBJECT_STORE = 0.1 * _GB


def disk(home: Path, least: float = 1 * _GB, enough: float = 5 * _GB) -> Iterator[Finding]:
    """Cuts and versions are written beside the old ones before these go."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    told, mend = f"{free / _GB:,.1f} GB are free at {place}", "free some, or move the home"
    if free < least:
        yield fail("disk", told, mend)
    elif free < enough:
        yield warn("disk", told, mend)
    else:
        yield ok("disk", told)


def memory(least: float = 0.5 * _GB, enough: float = 2 * _GB) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    told = f"{available / _GB:,.1f} GB are available"
    mend = "stop something else, take a larger machine, or serve from another one"
    if available < least:
        yield fail("memory", told, mend)
    elif available < enough:
        yield warn("memory", told, mend)
    else:
        yield ok("memory", told)


def processors() -> Iterator[Finding]:
    """Every process of Headrace uses one thread of torch: more would spin on others' cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > (cores or 1):
        yield warn("processors", f"OMP_NUM_THREADS = {threads} and there are {cores} cores",
                   "unset it: threads that wait spin on the cores that others need")  # fmt: skip
    elif (cores or 1) < 2:
        yield warn("processors", f"{cores} core for serving, joining and learning",
                   "give it two at least, or answers wait for the trainer")  # fmt: skip
    else:
        yield ok("processors", f"{cores} cores")


def port(host: str, number: int) -> Iterator[Finding]:
    """Free, or taken by a Headrace that answers."""
    try:
        check_port(host, number)
    except ConfigError as error:
        if _is_headrace(host, number):
            yield ok("port", f"a Headrace answers at {host}:{number}")
        else:
            yield fail("port", str(error))
    else:
        yield ok("port", f"{host}:{number} is free")


def ray() -> Iterator[Finding]:
    """The cluster of RAY_ADDRESS, or room for Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        host, _, number = address.rpartition("://")[2].rpartition(":")
        try:
            socket.create_connection((host, int(number)), timeout=3).close()
        except (OSError, ValueError) as error:
            yield fail("ray", f"RAY_ADDRESS = {address} does not answer ({error})",
                       "start that cluster, or unset RAY_ADDRESS for one machine")  # fmt: skip
        else:
            yield ok("ray", f"{address} answers")
        return
    places = [place for place in (Path("/dev/shm"), Path(tempfile.gettempdir())) if place.exists()]  # noqa: S108
    for place in places:
        free = shutil.disk_usage(place).free
        if free < _OBJECT_STORE:
            yield fail("ray", f"{free / _GB:,.2f} GB are free in {place}, where Ray keeps its"
                       " objects", "free some; in a container, give --shm-size=256m")  # fmt: skip
            return
    yield ok("ray", "there is room for it on this machine")


def _is_headrace(host: str, number: int) -> bool:
    import http.client

    there = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104
    connection = http.client.HTTPConnection(there, number, timeout=3)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().read() == b'{"status":"ok"}'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
