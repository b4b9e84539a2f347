"""Run any function on every item: what raises, hangs or dies costs its own item only.

python examples/any_function.py
"""

import os
import time

from video import ParallelConfig, Runner


def work(item: int) -> str:
    if item == 2:
        raise ValueError("a bad item")
    if item == 4:
        time.sleep(60)  # stopped by the time limit below
    if item == 6:
        os._exit(1)  # as a crash in native code would do
    return f"item {item} done"


with Runner(ParallelConfig(backend="process", max_workers=2, timeout=1)) as runner:
    for outcome in runner.stream(work, range(8)):
        print(
            outcome.index, outcome.value if outcome.ok else f"{type(outcome.error).__name__}: {outcome.error}"
        )
