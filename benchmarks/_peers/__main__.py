"""Runs one peer and prints its figures as one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks._peers import ABSENT, gemm, id_maps, mmoe, own
from benchmarks._peers.two_tower import fbgemm_tables, measure, torch_tables, torchrec_tables


@dataclass(frozen=True)
class Peer:
    """What measures (batch size, seconds) -> figures, and what must be in its environment."""

    measure: Callable[[int, float], dict[str, float]]
    environment: Mapping[str, str] = field(default_factory=dict)


# glibc gives large blocks back to the system at once, and each step pays for fresh pages.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
JEMALLOC = Path("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")  # Debian's libjemalloc2
PRELOAD_JEMALLOC = {
    "LD_PRELOAD": str(JEMALLOC),
    "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
}
PEERS = {
    "headrace": Peer(own.measure, KEEP_MEMORY),
    "headrace_fp32": Peer(partial(own.measure, precision="float32"), KEEP_MEMORY),
    "headrace_untuned": Peer(own.measure),
    "torchrec": Peer(partial(measure, torchrec_tables)),
    "torch": Peer(partial(measure, torch_tables)),
    "torch_tuned": Peer(partial(measure, torch_tables), KEEP_MEMORY),
    "fbgemm": Peer(partial(measure, fbgemm_tables)),
    "fbgemm_tuned": Peer(partial(measure, fbgemm_tables), KEEP_MEMORY),
    "fbgemm_jemalloc": Peer(partial(measure, fbgemm_tables), PRELOAD_JEMALLOC),
    "gemm": Peer(gemm.measure),
    "mmoe": Peer(mmoe.measure, KEEP_MEMORY),
    "mmoe_fp32": Peer(partial(mmoe.measure, precision="float32"), KEEP_MEMORY),
    "mmoe_trainer": Peer(mmoe.measure_trainer, KEEP_MEMORY),
    "mmoe_torch": Peer(mmoe.measure_torch, KEEP_MEMORY),
    "mmoe_torch_adam": Peer(partial(mmoe.measure_torch, adam=True), KEEP_MEMORY),
    "mmoe_rechub": Peer(mmoe.measure_rechub, KEEP_MEMORY),
    "mmoe_rechub_sparse": Peer(partial(mmoe.measure_rechub, sparse=True), KEEP_MEMORY),
    "mch": Peer(id_maps.measure_mch),
    "dict": Peer(id_maps.measure_dict),
    "typed_dict": Peer(id_maps.measure_typed_dict),
}


def main() -> int:
    parser = ArgumentParser(prog="python -m benchmarks._peers", description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    peer = PEERS[options.name]
    if "LD_PRELOAD" in peer.environment and not JEMALLOC.exists():
        print(f"peer {options.name} needs {JEMALLOC}, Debian's libjemalloc2", file=sys.stderr)  # noqa: T201
        return ABSENT
    if not peer.environment.items() <= os.environ.items():  # glibc reads it at the start only
        again = [sys.executable, "-m", "benchmarks._peers", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **peer.environment})  # noqa: S606
    warnings.simplefilter("ignore")  # the libraries' own, about each other
    torch.set_num_threads(options.threads)
    try:
        figures = peer.measure(options.batch, options.seconds)
    except ModuleNotFoundError as error:
        print(f"peer {options.name} needs {error.name}: `make peers` installs it", file=sys.stderr)  # noqa: T201
        return ABSENT
    print(json.dumps(figures))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
