"""A program that runs a batch with a checkpoint, to be killed and started again.

    run FOLDER RUN COUNT     the batch, once
    lab FOLDER KILLS SEED    batch after batch, each killed at random instants and resumed until it ends
    hold FOLDER BATCH        keep a batch until killed
    full FOLDER              go on until a file may grow no further, then give it space again
    many FOLDER BATCH COUNT  a batch of nothing but rows

The batch leaves three traces: `effects` has a line for each run of an item, `handed` one for each outcome
that the caller was handed, and `out` the outputs. No two results are alike, so that a second one shows.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from video.errors import StoreError
from video.outcome import Outcome
from video.policies.base import Job
from video.policies.checkpoint import Checkpoint

WINDOW = 8
"""Items that are in flight at once."""
ITEMS = 40


def append(path: Path, line: str) -> None:
    """In one write, so that a kill leaves a whole line or none."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def work(folder: Path, run: int, item: str) -> dict[str, str]:
    append(folder / "effects", f"{run} {item}")
    token = os.urandom(8).hex()
    time.sleep(random.uniform(0, 0.002))
    path = folder / "out" / item
    part = path.with_name(f"{item}.part")
    part.write_text(token)
    os.replace(part, path)
    return {"token": token, "path": str(path)}


def batch(folder: Path, run: int, count: int) -> None:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    items = [f"item-{number}" for number in range(count)]
    random.shuffle(items)
    with (
        Checkpoint(folder / "jobs.sqlite", outputs=lambda value: [value["path"]], total=count) as checkpoint,
        ThreadPoolExecutor(3) as pool,
    ):
        jobs = [Job(index, item) for index, item in enumerate(items)]
        for first in range(0, count, WINDOW):
            window = jobs[first : first + WINDOW]
            outcomes = checkpoint.begin_many(window)
            mine = [job for job in window if job.index not in outcomes]
            values = pool.map(lambda job: work(folder, run, job.item), mine)
            ended = [
                (job.index, Outcome(job.index, value, None)) for job, value in zip(mine, values, strict=True)
            ]
            assert not checkpoint.done_many(ended)
            checkpoint.flush()
            for index, outcome in [*outcomes.items(), *ended]:
                append(folder / "handed", f"{run} {items[index]} {outcome.unwrap()['token']}")


def lab(folder: Path, kills: int, seed: int) -> None:
    """Fork a program, which is quicker than to start one, and kill it."""
    chance = random.Random(seed)
    number = 0
    while kills > 0:
        number += 1
        place, run, ended = folder / f"batch-{number}", 0, False
        place.mkdir()
        (place / "killed").touch()  # the last batch may well end before its first kill
        while not ended:
            run += 1
            child = os.fork()
            if child == 0:
                try:
                    random.seed(seed + 1000 * number + run)
                    batch(place, run, ITEMS)
                except BaseException as error:
                    append(folder / "errors", f"{place.name} run {run}: {error!r}")
                    os._exit(1)
                os._exit(0)
            if kills > 0:
                time.sleep(chance.uniform(0, 0.04))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            ended = status == 0
            if os.WIFSIGNALED(status):
                kills -= 1
                append(place / "killed", str(run))
            elif not ended:
                return


def hold(folder: Path, name: str) -> None:
    checkpoint = Checkpoint(folder / "jobs.sqlite", batch=name)
    checkpoint.begin_many([Job(0, "held")])
    print("held", flush=True)
    time.sleep(60)


def full(folder: Path) -> None:
    """Prints how many items were committed and how the error reads, before there is space again."""
    checkpoint = Checkpoint(folder / "jobs.sqlite", interval=60)
    checkpoint.begin_many([Job(index, index) for index in range(1000)])
    checkpoint.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    committed = 0
    try:
        for index in range(1000):
            checkpoint.done_many([(index, Outcome(index, f"{index:01000d}", None))])
            checkpoint.flush()
            committed += 1
    except StoreError as error:
        print(committed, flush=True)
        print(error, flush=True)
    if sys.stdin.readline().strip() == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoint.close()


def many(folder: Path, name: str, count: int) -> None:
    with Checkpoint(folder / "jobs.sqlite", batch=name, total=count) as checkpoint:
        for first in range(0, count, 50):
            indexes = range(first, min(first + 50, count))
            checkpoint.begin_many([Job(index, index) for index in indexes])
            checkpoint.done_many((index, Outcome(index, name, None)) for index in indexes)
            checkpoint.flush()


if __name__ == "__main__":
    _, what, where, *rest = sys.argv
    match what:
        case "run":
            batch(Path(where), int(rest[0]), int(rest[1]))
        case "lab":
            lab(Path(where), int(rest[0]), int(rest[1]))
        case "hold":
            hold(Path(where), rest[0])
        case "full":
            full(Path(where))
        case "many":
            many(Path(where), rest[0], int(rest[1]))
