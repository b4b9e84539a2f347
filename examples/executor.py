"""A library that takes a `concurrent.futures.Executor` runs on any engine, with its time limits.

python examples/executor.py
"""

from concurrent.futures import as_completed

import video


def work(number: int) -> int:
    if number == 3:
        raise ValueError("a bad item")
    return number**2


with video.executor(backend="process", max_workers=2, timeout=60) as pool:
    futures = {pool.submit(work, number): number for number in range(5)}
    for future in as_completed(futures):
        error = future.exception()
        print(futures[future], future.result() if error is None else f"failed: {error}")
