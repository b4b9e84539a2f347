"""A batch with a checkpoint, to be killed and started again: `python -m tests.killed FOLDER ENGINE COUNT`.

It leaves three traces: `effects` has a line for each run of an item, `handed` one for each outcome that the
caller was handed, and `out` the outputs. No two results are alike, so that a second one shows.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

from video.config import ParallelConfig
from video.policies.checkpoint import Checkpoint
from video.runner import Runner


def append(path: Path, line: str) -> None:
    """In one write, so that a kill leaves a whole line or none."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def work(folder: Path, item: str) -> dict[str, str]:
    append(folder / "effects", item)
    token = os.urandom(8).hex()
    time.sleep(0.01)
    path = folder / "out" / item
    part = path.with_name(f"{item}.{token}.part")
    part.write_text(token)
    os.replace(part, path)
    return {"token": token, "path": str(path)}


def main(folder: Path, engine: str, count: int) -> None:
    (folder / "out").mkdir(exist_ok=True)
    with (
        Checkpoint(folder / "jobs.sqlite", outputs=lambda value: [value["path"]]) as checkpoint,
        Runner(ParallelConfig(backend=engine, max_workers=2, chunk_size=1)) as runner,
    ):
        append(folder / "started", engine)
        items = [f"item-{number}" for number in range(count)]
        for outcome in runner.stream(functools.partial(work, folder), items, checkpoint=checkpoint):
            append(folder / "handed", f"{items[outcome.index]} {outcome.unwrap()['token']} {outcome.origin}")
        append(folder / "ended", f"{checkpoint.begun} {checkpoint.answered}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
