"""What the benchmarks' own tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As the benchmarks run, and so that no test waits for cores that others use."""
    torch.set_num_threads(1)
