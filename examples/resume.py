"""Go on after a kill: this batch is ended in the middle, and the next one does only what is left.

python examples/resume.py
"""

import os
import subprocess
import sys
from pathlib import Path

from video import Checkpoint, ParallelConfig, Runner

FILE = Path("batch.sqlite")


def work(number: int) -> int:
    if number == 5 and "killed" in sys.argv:
        os._exit(1)  # as if the power had gone: this engine runs items in the program itself
    return number**2


if "killed" not in sys.argv:  # the first run, in a program of its own
    FILE.unlink(missing_ok=True)
    subprocess.run([sys.executable, __file__, "killed"], check=False)

config = ParallelConfig(backend="serial", chunk_size=1)
with Runner(config) as runner, Checkpoint(FILE, batch="squares") as checkpoint:
    values = [outcome.value for outcome in runner.map(work, range(8), checkpoint=checkpoint)]
print(values)
print(f"{checkpoint.answered} were done by the run that was killed, {checkpoint.begun} ran now")
