"""A batch with a checkpoint goes on where a killed one stopped, on any engine."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import tasks
from tests.waiting import until
from video.config import ParallelConfig
from video.errors import CheckpointMismatch, ConfigError, StoreError
from video.policies.checkpoint import Checkpoint
from video.runner import Runner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

ROOT = Path(__file__).resolve().parents[1]
ITEMS = 120
KILLS = 8
IN_FLIGHT = 8
"""Items that two workers have: one that runs each, and what waits for them."""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def started(folder: Path, engine: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.killed", str(folder), engine, str(ITEMS)]
    return subprocess.Popen(command, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_nothing_is_lost_and_nothing_made_twice_however_often_the_program_is_killed(
    engine: str, tmp_path: Path
) -> None:
    chance = random.Random(engine)
    for number in range(KILLS):
        program = started(tmp_path, engine)
        until(lambda number=number: len(lines(tmp_path / "started")) > number)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.25))
        program.kill()
        program.wait(30)
    if engine == "process":  # its workers end by themselves, and are not to be heard of from then on
        time.sleep(1.0)
    before = len(lines(tmp_path / "effects"))
    assert started(tmp_path, engine).wait(60) == 0

    effects = Counter(lines(tmp_path / "effects"))
    assert set(effects) == {f"item-{number}" for number in range(ITEMS)}
    assert sum(effects.values()) <= ITEMS + KILLS * IN_FLIGHT
    handed: dict[str, set[str]] = {}
    for line in lines(tmp_path / "handed"):
        item, token, _ = line.split()
        handed.setdefault(item, set()).add(token)
    assert {item: len(tokens) for item, tokens in handed.items()} == dict.fromkeys(effects, 1)
    assert {item: (tmp_path / "out" / item).read_text() for item in handed} == {
        item: next(iter(tokens)) for item, tokens in handed.items()
    }

    assert started(tmp_path, engine).wait(60) == 0
    assert lines(tmp_path / "ended")[-1] == f"0 {ITEMS}"
    assert len(lines(tmp_path / "effects")) == sum(effects.values()) >= before


def batch(path: Path, task: Any = tasks.double, count: int = 50, **more: Any) -> tuple[Checkpoint, list[Any]]:
    with (
        Checkpoint(path / "jobs.sqlite", **more) as checkpoint,
        Runner(ParallelConfig(backend="thread")) as runner,
    ):
        return checkpoint, runner.map(task, range(count), checkpoint=checkpoint)


def test_a_finished_batch_runs_nothing_again_and_answers_the_same(tmp_path: Path) -> None:
    _, first = batch(tmp_path)
    checkpoint, second = batch(tmp_path)
    assert (checkpoint.begun, checkpoint.answered) == (0, 50)
    assert [one.value for one in second] == [one.value for one in first] == [2 * x for x in range(50)]
    assert {one.origin for one in second} == {"checkpoint"}


def test_what_failed_runs_again(tmp_path: Path) -> None:
    _, first = batch(tmp_path, tasks.fail_on_3)
    assert [one.index for one in first if not one.ok] == [3]
    checkpoint, second = batch(tmp_path, tasks.double)
    assert (checkpoint.begun, checkpoint.answered) == (1, 49)
    assert second[3].value == 6


def test_an_input_that_has_grown_runs_only_what_is_new(tmp_path: Path) -> None:
    batch(tmp_path, count=30)
    checkpoint, outcomes = batch(tmp_path, count=50)
    assert (checkpoint.begun, checkpoint.answered) == (20, 30)
    assert [one.value for one in outcomes] == [2 * x for x in range(50)]


def test_a_batch_that_is_left_early_goes_on_later(tmp_path: Path) -> None:
    with (
        Checkpoint(tmp_path / "jobs.sqlite") as checkpoint,
        Runner(ParallelConfig(backend="thread", chunk_size=1, max_workers=2)) as runner,
        runner.stream(tasks.double, range(50), checkpoint=checkpoint) as stream,
    ):
        assert next(stream).value == 0
    again, outcomes = batch(tmp_path)
    assert again.answered >= 1
    assert [one.value for one in outcomes] == [2 * x for x in range(50)]


def test_what_ended_while_nobody_asked_is_kept_when_the_batch_is_left(tmp_path: Path) -> None:
    ran: list[int] = []
    with (
        Checkpoint(tmp_path / "jobs.sqlite") as checkpoint,
        Runner(ParallelConfig(backend="thread", chunk_size=1, max_workers=2)) as runner,
        runner.stream(ran.append, range(50), checkpoint=checkpoint) as stream,
    ):
        handed = done = 0
        while done - handed < 3:  # a busy machine may give the engine its first items one by one
            next(stream)
            handed += 1
            time.sleep(0.1)
            done = len(ran)
    again, _ = batch(tmp_path, ran.append)
    assert again.answered >= done - 2


@pytest.mark.parametrize("wrong", ["jobs.sqlite", True])
def test_what_is_no_checkpoint_is_refused(wrong: Any) -> None:
    with Runner(ParallelConfig(backend="thread")) as runner, pytest.raises(ConfigError, match="Checkpoint"):
        runner.map(tasks.double, range(3), checkpoint=wrong)


def test_other_settings_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    batch(tmp_path, fingerprint={"crf": 20})
    with pytest.raises(CheckpointMismatch, match="crf"):
        batch(tmp_path, fingerprint={"crf": 23})
    checkpoint, _ = batch(tmp_path, fingerprint={"crf": 23}, fork=True)
    assert checkpoint.begun == 50


def test_a_retry_of_a_remembered_batch_counts_on(tmp_path: Path) -> None:
    tries: Counter[int] = Counter()

    def fail_at_first(x: int) -> int:
        tries[x] += 1
        if tries[x] == 1:
            raise ConnectionError("cut")
        return x

    config = ParallelConfig(backend="thread", max_retries=2, retry_delay_seconds=0.01)
    with Checkpoint(tmp_path / "jobs.sqlite") as checkpoint, Runner(config) as runner:
        outcomes = runner.map(fail_at_first, range(20), checkpoint=checkpoint)
    assert [one.attempts for one in outcomes] == [2] * 20
    again, remembered = batch(tmp_path, fail_at_first, 20)
    assert (again.begun, again.answered) == (0, 20)
    assert [one.attempts for one in remembered] == [2] * 20


def test_where_it_cannot_be_written_the_batch_ends_with_one_clear_error(tmp_path: Path) -> None:
    class Full(Checkpoint):
        """The disk is full from the tenth item on."""

        def begin_many(self, jobs: Any) -> Any:
            if any(job.index >= 10 for job in jobs):
                raise StoreError("the disk is full", subject="jobs.sqlite", cure="Make room.")
            return super().begin_many(jobs)

    ran: list[int] = []
    with (
        Full(tmp_path / "jobs.sqlite") as checkpoint,
        Runner(ParallelConfig(backend="serial", chunk_size=1)) as runner,
        pytest.raises(StoreError, match="full"),
    ):
        runner.map(ran.append, range(50), checkpoint=checkpoint)
    assert ran == list(range(10))
    again, _ = batch(tmp_path)
    assert again.answered == 10
