"""What a checkpoint costs: microseconds for an item that begins and ends, with its value committed.

In groups as the runner has them (a chunk begins in one transaction, and its results are committed before they
are handed out), and one by one, where each item waits for two commits. Taking up a finished batch is one more
row. The peer is SQLite as people write it, a row and a commit for each state; the bound is what an item of a
group may cost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Table, Versus, wall_seconds

from video.outcome import Outcome
from video.policies.base import Job
from video.policies.checkpoint import Checkpoint

ITEMS = 10_240
FEW = 1_000
ROUNDS = 7
BOUND_SECONDS = 30e-6
VALUE = {"path": "/videos/out/talk-01.mp4", "start": 12.5, "end": 42.0, "score": 0.73}

numbers = itertools.count()


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table("A checkpoint: begin, end and commit of an item", "us")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


JOBS = [Job(index, f"https://example.org/videos/{index}.mp4") for index in range(ITEMS)]
PAIRS = [(index, Outcome(index, VALUE, None)) for index in range(ITEMS)]


def in_groups(path: Path, size: int, *, durable: bool = False) -> None:
    with Checkpoint(path, durable=durable) as checkpoint:
        for first in range(0, ITEMS, size):
            checkpoint.begin_many(JOBS[first : first + size])
            checkpoint.done_many(PAIRS[first : first + size])
            checkpoint.flush()


def one_by_one(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        for job, (_, outcome) in zip(JOBS[:FEW], PAIRS, strict=False):
            checkpoint.admit(job, 0.0)
            checkpoint.settle(job, outcome, 0.0)
            checkpoint.flush()


def again(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        for first in range(0, ITEMS, 1024):
            chunk = JOBS[first : first + 1024]
            assert len(checkpoint.begin_many(chunk)) == len(chunk)


def plain_sqlite(path: Path, count: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE items (key TEXT PRIMARY KEY, state INTEGER, value TEXT)")
        for job in JOBS[:count]:
            with db:
                db.execute("INSERT INTO items VALUES (?, 0, NULL)", (job.item,))
            with db:
                db.execute(
                    "UPDATE items SET state = 1, value = ? WHERE key = ?", (json.dumps(VALUE), job.item)
                )


def fresh(folder: Path) -> Path:
    return folder / f"{next(numbers)}.sqlite"


@pytest.mark.parametrize("size", [1024, 64])
def test_in_groups(versus: Versus, folder: Path, size: int) -> None:
    peers = {"plain SQLite": lambda: plain_sqlite(fresh(folder), ITEMS), "its bound": bound}

    def seconds(side: Callable[[], object]) -> float:
        return BOUND_SECONDS * ITEMS if side is bound else wall_seconds(side)

    versus(
        (f"groups of {size}", lambda: in_groups(fresh(folder), size)),
        peers,
        rounds=ROUNDS,
        items=ITEMS,
        meter=seconds,
        target={"its bound": 1.0},
    )


def bound() -> None:
    """Stands for what an item may cost."""


def test_durable_groups(versus: Versus, folder: Path) -> None:
    versus(
        ("durable, groups of 1024", lambda: in_groups(fresh(folder), 1024, durable=True)),
        {"not durable": lambda: in_groups(fresh(folder), 1024)},
        rounds=ROUNDS,
        items=ITEMS,
    )


def test_one_by_one(versus: Versus, folder: Path) -> None:
    versus(
        ("one by one", lambda: one_by_one(fresh(folder))),
        {"plain SQLite": lambda: plain_sqlite(fresh(folder), FEW)},
        rounds=ROUNDS,
        items=FEW,
    )


def test_taken_up_again(versus: Versus, folder: Path) -> None:
    path = fresh(folder)
    in_groups(path, 1024)
    versus(
        ("all done already", lambda: again(path)),
        {"the first run": lambda: in_groups(fresh(folder), 1024)},
        rounds=ROUNDS,
        items=ITEMS,
    )
