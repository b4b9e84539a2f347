"""What a no-op item costs in a batch of a million, against one of ten thousand: a cost that grows with the
batch would be a list that is searched, or a record that is kept for each item.

The small batch runs many times in a row, so that both sides run long enough to be timed.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable

import pytest
from _tasks import nothing
from conftest import Table, Versus, reported

from video import ParallelConfig, Runner

WORKERS = 2
MANY, FEW = 1_000_000, 10_000
REPEATS = 10
"""Of the small batch."""
ROUNDS = 5


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"A no-op item in a batch of {MANY:,} and of {FEW:,}, {WORKERS} workers, warm: us", "us")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "way"),
    [
        ("process", "stream"),
        ("process", "map"),
        ("process", "map without garbage collection"),
        ("thread", "stream"),
    ],
)
def test_growth(versus: Versus, backend: str, way: str) -> None:
    """A stream is read and let go. `map` keeps all outcomes, so Python's garbage collector has ever more to
    walk; the row without it shows what is left."""
    collecting = "without" not in way
    with Runner(ParallelConfig(backend=backend, max_workers=WORKERS)) as runner:

        def cost(count: int, repeats: int) -> float:
            """Seconds for each item."""
            if not collecting:
                gc.disable()
            start = time.perf_counter()
            for _ in range(repeats):
                if way == "stream":
                    deque(runner.stream(nothing, iter(range(count))), maxlen=0)
                else:
                    runner.map(nothing, range(count))
            end = time.perf_counter()
            gc.enable()
            return (end - start) / (count * repeats)

        cost(FEW, 1)
        versus(
            (f"{backend}, {way}, {MANY:,} items", lambda: cost(MANY, 1)),
            {f"{FEW:,} items": lambda: cost(FEW, REPEATS)},
            rounds=ROUNDS,
            meter=reported,
            target=1.2 if collecting else None,
        )
