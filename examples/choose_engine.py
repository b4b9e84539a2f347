"""Which engine runs a batch: the one that is measured to be best, or the one that you name.

python examples/choose_engine.py [talk.mp4 ...]
"""

import sys
import time
from pathlib import Path

from video import ParallelConfig, Runner
from video.media.probe import measure
from video.media.sample import write_sample

sources = sys.argv[1:] or [write_sample(Path("samples"), seconds=5)]


def wait(number: int) -> int:
    time.sleep(0.005)  # as for an answer of some service
    return number


with Runner() as runner:  # AUTO
    print("expected:", runner.explain(wait, total=400).line)
    runner.map(wait, range(400))
    print("measured:", runner.explain(), sep="\n")

for name in ("serial", "thread", "process"):
    with Runner(ParallelConfig(backend=name, max_workers=2)) as runner:
        began = time.perf_counter()
        frames = [outcome.unwrap().packets for outcome in runner.map(measure, list(sources) * 4)]
        print(f"{name}: {frames} frames in {time.perf_counter() - began:.2f} s")
