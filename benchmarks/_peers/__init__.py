"""What Headrace is compared with: the same job done by other libraries, each in its own process.

`python -m benchmarks._peers NAME --batch 4096 --seconds 5` prints one line of JSON; `ask` does so
from another process. A process of its own gives each peer its allocator settings, its threads and
its own thread pools.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

ABSENT = 3  # the exit code of a peer whose library is not installed
_ROOT = Path(__file__).parents[2]


def ask(name: str, batch: int, seconds: float, threads: int = 2) -> dict[str, float] | None:
    """The figures of one run of a peer; None where its library is not installed.

    Raises:
        RuntimeError: the peer failed; with the end of what it wrote.
    """
    options = {"batch": batch, "seconds": seconds, "threads": threads}
    command = [sys.executable, "-m", "benchmarks._peers", name]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode == ABSENT:
        return None
    if done.returncode:
        end = done.stderr.strip()[-1000:]
        raise RuntimeError(f"peer {name} at batch {batch} exits with {done.returncode}: {end}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times theirs ours is, round by round: only what ran side by side compares."""
    return median(own / other for own, other in zip(ours, theirs, strict=True))
