"""An engine of your own, in one class, and the proof that it keeps what it claims.

python examples/custom_backend.py [talk.mp4 ...]
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from video import ParallelConfig, Runner, register_backend
from video.backends.base import Traits
from video.media.probe import duration_seconds
from video.media.sample import write_sample
from video.testing import check_backend


class PoolBackend:
    """The standard library's threads. From its traits follow which checks are asked, and how batches run."""

    traits = Traits(
        start=1e-3, call=1e-4, own_gil=False, pickles=False, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self.config = config

    def open(self, workers: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers, "pool", initializer=self.config.initializer)


register_backend("pool", PoolBackend)
sources = sys.argv[1:] or [write_sample(Path("samples"), seconds=5)]

with Runner(ParallelConfig(backend="pool", max_workers=2)) as runner:
    for outcome in runner.stream(duration_seconds, sources):
        print(f"{sources[outcome.index]}: {outcome.unwrap():.2f} s")

for result in check_backend("pool"):
    print(f"{result.promise:2}  {result.state:9}  {result.name}  {result.message}")
