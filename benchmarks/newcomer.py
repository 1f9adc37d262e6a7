"""What a newcomer waits for: an empty clone, `make run` to the first good answer, `make test`.

The clone has no environment and pip no cache. A good answer is ten movies chosen by the model for
a visitor who has just rated one. Then `make run` once more, and all the tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._service import Service, free_port

ROOT = Path(__file__).parents[1]
PROMISES = {
    "second_make_run_to_ready_s": (0.0, 60.0),
    "make_test_s": (0.0, 900.0),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Seconds of wall time."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "headrace"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        report("make run, from an empty clone ...")
        first = _make_run(clone, _first_good_answer)
        report(f"  the first good answer after {first:.0f} s; make run again ...")
        second = _make_run(clone, lambda service: service.wait_until_ready())
        report(f"  ready after {second:.0f} s; make test ...")
        begun = time.perf_counter()
        done = subprocess.run(
            ["make", "test"], cwd=clone, env=_environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        report(done.stdout.strip().splitlines()[-1])
        if done.returncode != 0:
            raise RuntimeError(f"make test failed:\n{done.stdout[-5_000:]}{done.stderr[-2_000:]}")
        return {
            "make_run_to_first_good_answer_s": first,
            "second_make_run_to_ready_s": second,
            "make_test_s": time.perf_counter() - begun,
        }


def _make_run(clone: Path, until: Callable[[Service], None]) -> float:
    """Seconds from `make run` until something came about; then Ctrl-C."""
    port = free_port()
    output = clone.with_name("make-run.out")
    begun = time.perf_counter()
    with output.open("wb") as out:
        process = subprocess.Popen(
            ["make", "run"],
            cwd=clone,
            env={**_environment(), "HEADRACE_PORT": str(port)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    service = Service(port, process, output)
    try:
        until(service)
        return time.perf_counter() - begun
    finally:
        service.close()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def _first_good_answer(service: Service) -> None:
    service.wait_until_ready(timeout_s=1_800)
    service.wait_for(lambda: service.get("/v1/items?search=matrix")["items"])
    service.post_events({"kind": "rate", "user_id": "newcomer", "item_id": "2571", "value": 5})

    def good() -> bool:
        answer = service.get("/v1/recommend?user_id=newcomer&k=10")
        found = len(answer["items"]) == 10 and answer["known_actions"] == 1
        return found and any(item["source"] == "two_tower" for item in answer["items"])

    service.wait_for(good)


def _environment() -> dict[str, str]:
    """This environment without what a newcomer would not have."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "VIRTUAL_ENV"))}
    return {**own, "PIP_NO_CACHE_DIR": "1"}
