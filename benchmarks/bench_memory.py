"""What a long stream costs the process that reads it: how much its peak memory grows from ten thousand no-op
items to a million, with the same workers. The bound stands in for a peer.

Each size has a process of its own, since a peak never falls again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Table, Versus, reported

WORKERS = 2
MANY, FEW = 1_000_000, 10_000
BOUND_MB = 64.0
ROUNDS = 3

PROGRAM = """
import pathlib, resource, sys
from video import ParallelConfig, Runner
import _tasks

backend, count = sys.argv[1], int(sys.argv[2])
task, workers = (_tasks.nothing_async, None) if backend == "async" else (_tasks.nothing, {workers})
with Runner(ParallelConfig(backend=backend, max_workers=workers)) as runner:
    done = sum(outcome.ok for outcome in runner.stream(task, iter(range(count))))
assert done == count
if sys.platform == "linux":  # what `getrusage` says there includes the process that started this one
    line = next(line for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM:"))
    print(int(line.split()[1]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"Peak memory of the reader, {MANY:,} items over {FEW:,}: MB", "MB", ratio="share of it")


def peak(backend: str, count: int) -> float:
    """In MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(workers=WORKERS), backend, str(count)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return float(done.stdout) / 1e6


@pytest.mark.parametrize("backend", ["process", "thread", "async"])
def test_streamed(versus: Versus, table: Table, backend: str) -> None:
    peaks: list[tuple[float, float]] = []

    def growth() -> float:
        peaks.append((peak(backend, FEW), peak(backend, MANY)))
        return max(0.0, peaks[-1][1] - peaks[-1][0])

    versus(
        (f"{backend}, growth", growth),
        {"its bound": lambda: BOUND_MB},
        rounds=ROUNDS,
        meter=reported,
        target=1.0,
    )
    few, many = max(peaks)
    table.notes.append(f"{backend}: {few:.1f} MB at {FEW:,} items, {many:.1f} MB at {MANY:,}")
