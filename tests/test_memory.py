"""The memory guard: items wait for room, and a budget holds where workers can be ended."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import video
from tests import tasks
from tests.waiting import until
from video import ParallelConfig, resources
from video.backends.base import run_chunk
from video.backends.process import ProcessBackend
from video.errors import ConfigError, MemoryExceeded, Quarantined, WorkerOutOfMemory
from video.events import Event, Kind
from video.outcome import Outcome
from video.policies._meter import Held, Meter
from video.policies.base import Job
from video.policies.memory import LOOK_SECONDS, PATIENCE_SECONDS, POLLED, MemoryPolicy
from video.runner import Runner

GB = 2.0**30
MB = 2.0**20


class Machine:
    """What is held, as a test says it."""

    def __init__(self, own: float = 0.0, others: float = 0.0) -> None:
        self.held = Held(own, others)

    def __call__(self, now: float) -> Held:
        return self.held


def guard(machine: Machine, limit: float = 4 * GB, free: float = 1e15) -> MemoryPolicy:
    return MemoryPolicy(limit, collect=False, look=machine, free=lambda: free)


def done(job: Job) -> Outcome[None]:
    return Outcome(job.index, None, None)


def test_items_begin_as_long_as_there_is_room_for_what_those_that_run_have_shown_to_need() -> None:
    machine = Machine(own=0.5 * GB)
    policy = guard(machine)
    jobs = [Job(index, None) for index in range(6)]
    assert policy.admit(jobs[0], 0.0) is None
    machine.held = Held(0.5 * GB, 1.0 * GB)
    assert [policy.admit(job, 1.0) for job in jobs[1:]] == [
        None,
        None,
        LOOK_SECONDS,
        LOOK_SECONDS,
        LOOK_SECONDS,
    ]
    assert policy.counts()["need_bytes"] == GB


def test_one_that_waits_begins_once_another_has_ended() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second = Job(0, None), Job(1, None)
    assert policy.admit(first, 0.0) is None
    machine.held = Held(0.0, 0.7 * GB)
    assert policy.admit(second, 1.0) == LOOK_SECONDS
    policy.settle(first, done(first), 2.0)
    machine.held = Held(0.0, 0.1 * GB)
    assert policy.admit(second, 2.0) is None


def test_those_that_wait_begin_before_those_that_come_later() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second, third = (Job(index, None) for index in range(3))
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 0.7 * GB)
    assert policy.admit(second, 1.0) == LOOK_SECONDS
    policy.settle(first, done(first), 1.5)
    machine.held = Held(0.0, 0.0)
    assert policy.admit(third, 2.0) == LOOK_SECONDS
    assert policy.admit(second, 2.0) is None


def test_an_item_that_is_not_wanted_any_more_holds_up_no_other() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second, third = (Job(index, None) for index in range(3))
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 0.7 * GB)
    policy.admit(second, 1.0)
    policy.withdraw(second, 1.0)
    policy.settle(first, done(first), 1.5)
    machine.held = Held(0.0, 0.0)
    assert policy.admit(third, 2.0) is None


def test_an_item_that_needs_more_than_there_is_begins_alone() -> None:
    """Whether what is there will do is for the engine to see: a prediction ends nothing."""
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second = Job(0, None), Job(1, None)
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 3 * GB)
    policy.watch(1.0, 1)
    policy.settle(first, done(first), 1.5)
    machine.held = Held(0.0, 0.5 * GB)
    assert policy.admit(second, 2.0) is None


def test_where_the_program_itself_holds_too_much_items_fail_after_a_while_and_say_so() -> None:
    policy = guard(Machine(own=2 * GB), limit=GB)
    job = Job(3, None)
    assert policy.admit(job, 0.0) == LOOK_SECONDS
    assert policy.admit(job, PATIENCE_SECONDS - 1) == LOOK_SECONDS
    verdict = policy.admit(job, PATIENCE_SECONDS + 1)
    assert isinstance(verdict, Outcome)
    assert isinstance(verdict.error, MemoryExceeded)
    assert isinstance(verdict.error, MemoryError)
    assert "2.00 GB in this process" in str(verdict.error)
    assert "Raise memory_limit_gb" in str(verdict.error)


def test_what_the_machine_has_left_counts_where_it_is_less() -> None:
    machine = Machine()
    policy = guard(machine, limit=100 * GB, free=0.0)
    policy.admit(Job(0, None), 0.0)
    machine.held = Held(0.0, GB)
    assert policy.admit(Job(1, None), 1.0) == LOOK_SECONDS


def test_a_worker_is_to_end_where_the_budget_is_overrun_and_the_next_one_only_when_its_memory_is_free() -> (
    None
):
    machine = Machine()
    policy = guard(machine, limit=GB)
    assert policy.watch(0.0, 1)[1] == ""
    machine.held = Held(0.2 * GB, 1.0 * GB)
    assert "1.20 GB were held together, and the limit is 1.00 GB" in policy.watch(1.0, 1)[1]
    assert policy.watch(1.2, 1)[1] == ""
    assert policy.watch(2.0, 1)[1] != ""


def test_no_worker_is_to_end_where_that_would_not_help() -> None:
    machine = Machine(own=2 * GB, others=0.1 * GB)
    assert guard(machine, limit=GB).watch(0.0, 1)[1] == ""


def test_whole_chunks_pass_only_where_there_is_room_for_many_items() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    assert not policy.idle(0.0)  # nothing is known yet
    policy.admit(Job(0, None), 0.0)
    machine.held = Held(0.0, 1 * MB)
    assert policy.idle(0.5)
    machine.held = Held(0.0, 0.1 * GB)
    assert not policy.idle(0.8)


def test_what_one_fat_item_needed_is_forgotten_while_thin_ones_end() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    now = 0.0
    for index, megabytes in enumerate([700] + [1] * 200):
        job = Job(index, None)
        now += 1.5 * LOOK_SECONDS
        assert policy.admit(job, now) is None
        machine.held = Held(0.0, megabytes * MB)
        now += 1.5 * LOOK_SECONDS
        policy.watch(now, 1)
        policy.settle(job, done(job), now)
        machine.held = Held(0.0, 0.0)
    assert policy.counts()["need_bytes"] < 2 * MB


def test_an_item_that_is_withdrawn_at_once_takes_no_room() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second, third = (Job(index, None) for index in range(3))
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 0.4 * GB)
    assert policy.admit(second, 0.5) is None
    assert policy.admit(third, 0.5) == LOOK_SECONDS
    policy.withdraw(second, 0.5)
    assert policy.admit(third, 0.5) is None


def test_what_a_batch_has_that_nobody_reads_holds_up_no_other() -> None:
    """`for outcome in stream: runner.map(...)`: what the stream began may have ended long ago."""
    machine = Machine()
    policy = guard(machine, limit=GB)
    policy.admit(Job(0, None, batch=1), 0.0)
    machine.held = Held(0.0, 0.6 * GB)
    other = Job(0, None, batch=2)
    assert policy.admit(other, 0.5) == LOOK_SECONDS
    assert policy.admit(other, 0.9) == LOOK_SECONDS
    assert policy.admit(other, 2.0) is None


def test_items_fail_at_once_where_others_have_waited_in_vain() -> None:
    policy = guard(Machine(own=2 * GB), limit=GB)
    policy.admit(Job(0, None), 0.0)
    assert isinstance(policy.admit(Job(0, None), PATIENCE_SECONDS + 1), Outcome)
    assert isinstance(policy.admit(Job(1, None), PATIENCE_SECONDS + 2), Outcome)


def test_one_whose_worker_was_ended_waits_before_all_others() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first, second, third = (Job(index, None) for index in range(3))
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 1.2 * GB)
    policy.admit(second, 0.5)
    policy.withdraw(first, 0.6)
    machine.held = Held(0.0, 1.1 * GB)
    first.attempts = 1
    assert policy.admit(first, 0.8) == LOOK_SECONDS
    machine.held = Held(0.0, 0.0)
    assert policy.admit(second, 1.0) == LOOK_SECONDS
    assert policy.admit(third, 1.0) == LOOK_SECONDS
    assert policy.admit(first, 1.0) is None


def test_the_more_wait_the_less_often_the_last_of_them_is_looked_at() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    policy.admit(Job(0, None), 0.0)
    machine.held = Held(0.0, 0.7 * GB)
    waits = [policy.admit(Job(index, None), 0.5) for index in range(1, 1001)]
    assert waits[:POLLED] == [LOOK_SECONDS] * POLLED
    assert sum(1 / wait for wait in waits if isinstance(wait, float)) < 0.3 * len(waits) / LOOK_SECONDS


def test_where_nothing_can_be_seen_what_was_seen_last_counts(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()

    def look(now: float) -> Held:
        if now > 1.0:
            raise OSError("no descriptor")
        return machine(now)

    policy = MemoryPolicy(GB, collect=False, look=look, free=lambda: 1e15)
    policy.admit(Job(0, None), 0.0)
    machine.held = Held(0.0, 0.7 * GB)
    assert policy.admit(Job(1, None), 0.5) == LOOK_SECONDS
    assert policy.admit(Job(1, None), 1.5) == LOOK_SECONDS
    assert policy.watch(2.0, 0)[1] == ""
    assert [record.message for record in caplog.records] == [
        "what memory is held cannot be seen (no descriptor)"
    ]


def test_those_that_wait_in_a_batch_that_nobody_reads_hold_up_no_other() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)
    first = Job(0, None, batch=1)
    policy.admit(first, 0.0)
    machine.held = Held(0.0, 0.7 * GB)
    for index in range(1, 5):
        assert policy.admit(Job(index, None, batch=1), 0.5) == LOOK_SECONDS
    policy.settle(first, done(first), 0.6)
    machine.held = Held(0.0, 0.0)
    other = Job(0, None, batch=2)
    assert policy.admit(other, 1.0) == LOOK_SECONDS
    assert policy.admit(other, 3.0) is None


def test_garbage_collection_that_ends_a_batch_meanwhile_does_not_stop_it() -> None:
    """A stream that was left in a circle gives back what it took wherever the collector happens to run."""
    machine = Machine()
    policy = guard(machine, limit=GB)
    job = Job(0, None)
    policy.admit(job, 0.0)

    def look(now: float) -> Held:
        policy.withdraw(job, now)
        policy.passed(1, now)
        return machine(now)

    policy._look = look
    done_by: list[float] = []
    thread = threading.Thread(target=lambda: done_by.append(policy.watch(1.0, 0)[0]), daemon=True)
    thread.start()
    thread.join(10)
    assert done_by


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_child_waits_for_nothing_that_its_parent_runs() -> None:
    machine = Machine(own=0.9 * GB)
    policy = guard(machine, limit=GB)
    policy.admit(Job(0, None), 0.0)
    with policy._lock:
        pid = os.fork()
        if pid == 0:  # only to leave it at once, whatever happens
            code = 1
            with contextlib.suppress(BaseException):
                code = int(policy.admit(Job(1, None), 0.01) is not None)
            os._exit(code)
    ended: list[int] = []
    until(lambda: ended or ((found := os.waitpid(pid, os.WNOHANG))[0] and not ended.append(found[1])))
    assert ended == [0]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "end", "withdraw", "grow", "shrink"]),
            st.integers(0, 9),
            st.floats(0.0, 2.0),
        ),
        max_size=60,
    )
)
def test_whatever_happens_every_item_can_begin_in_the_end(steps: list[tuple[str, int, float]]) -> None:
    """Admitted and ended items balance, and once all has ended, whoever waits is let on, first come first."""
    machine = Machine()
    policy = guard(machine, limit=GB)
    jobs = [Job(index, None) for index in range(10)]
    out, flying, now = set(range(10)), set(), 0.0
    for step, index, amount in steps:
        now += amount
        job = jobs[index]
        if step == "ask" and index in out:
            if policy.admit(job, now) is None:
                out.remove(index)
                flying.add(index)
        elif step == "end" and index in flying:
            policy.settle(job, done(job), now)
            flying.remove(index)
        elif step == "withdraw":
            policy.withdraw(job, now)
            if index in flying:
                flying.remove(index)
                out.add(index)
        elif step in ("grow", "shrink"):
            machine.held = Held(0.0, amount * GB if step == "grow" else 0.0)
    for index in flying:
        policy.settle(jobs[index], done(jobs[index]), now)
    machine.held = Held(0.0, 0.0)
    waiting = list(out)
    for _ in range(200):
        now += LOOK_SECONDS
        for index in list(waiting):
            if policy.admit(jobs[index], now) is None:
                waiting.remove(index)
                policy.settle(jobs[index], done(jobs[index]), now)
        if not waiting:
            break
    assert waiting == []
    assert not policy._flying
    assert not policy._waiting


# In batches


def limited(gigabytes: float, **settings: object) -> ParallelConfig:
    return ParallelConfig(memory_limit_gb=gigabytes, max_workers=3, **settings)  # type: ignore[arg-type]


def held_now() -> float:
    held = Meter()(time.monotonic())
    return held.own + held.others


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_batch_keeps_to_its_budget_and_loses_nothing(engine: str) -> None:
    """Twelve items of 200 MB, three at once; there is room for two."""
    limit = held_now() / GB + 0.5
    with Runner(limited(limit, backend=engine)) as runner:
        found = runner.map(tasks.hold, [200] * 12)
        counts = runner.counts()["memory"]
    assert [outcome.value for outcome in found] == [200] * 12
    assert counts["peak_bytes"] < limit * GB + 450 * MB  # three may begin before the first has shown its need
    assert counts["put_off"] > 0


@pytest.mark.slow
def test_an_item_that_overruns_the_budget_alone_fails_and_the_others_do_not() -> None:
    events: list[Event] = []
    limit = held_now() / GB + 0.4
    with Runner(limited(limit, backend="process"), observers=[events.append]) as runner:
        found = runner.map(tasks.hold, [50, 50, 1500, 50, 50, 50])
        counts = runner.counts()["memory"]
    assert [outcome.value for outcome in found if outcome.ok] == [50] * 5
    error = found[2].error
    assert isinstance(error, Quarantined)
    assert isinstance(error.__cause__, WorkerOutOfMemory)
    assert "Raise memory_limit_gb" in str(error)
    assert counts["ended"] >= 2
    assert [one for one in events if one.kind is Kind.MEMORY_PRESSED]


@pytest.mark.slow
def test_a_child_of_a_worker_counts_and_ends_with_it(tmp_path: Path) -> None:
    limit = held_now() / GB + 0.4
    with Runner(limited(limit, backend="process")) as runner:
        (found,) = runner.map(tasks.hold_in_a_child, [(str(tmp_path), 1500)])
    assert isinstance(found.error, Quarantined)
    assert not (tmp_path / "ended").exists()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what is shared")
def test_what_a_fork_server_had_loaded_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers that have 200 MB from it, and no copies of it."""
    (tmp_path / "large.py").write_text("held = bytearray(b'x') * (200 << 20)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = Meter()(time.monotonic()).others
    config = ParallelConfig(backend="process", max_workers=3, preload=("large",))
    with Runner(config) as runner:
        runner.map(time.sleep, [0.3] * 3)
        meter = Meter()
        held = meter(time.monotonic())
        pids = [child.pid for child in meter._children]
    assert len(pids) >= 4
    assert 200 * MB < held.others - before < 350 * MB


def test_a_batch_inside_an_item_does_not_wait_for_it() -> None:
    """The item holds its place until it has ended."""
    machine = Machine()
    policy = guard(machine, limit=GB)

    def outer(x: int) -> list[int]:
        machine.held = Held(0.0, 0.9 * GB)
        time.sleep(2 * LOOK_SECONDS)
        return [one.unwrap() for one in runner.map(tasks.double, [x, x + 1])]

    with Runner(ParallelConfig(backend="thread", max_workers=2), policies=[policy]) as runner:
        assert [one.value for one in runner.map(outer, [1, 2, 3])] == [[2, 4], [4, 6], [6, 8]]


def test_a_batch_inside_the_loop_over_a_stream_does_not_wait_for_that() -> None:
    machine = Machine()
    policy = guard(machine, limit=GB)

    def fat(x: int) -> int:
        machine.held = Held(0.0, 0.9 * GB)
        return x

    with Runner(ParallelConfig(backend="thread", max_workers=4), policies=[policy]) as runner:
        found = []
        with runner.stream(fat, [1, 2, 3]) as stream:
            for outcome in stream:
                time.sleep(2 * LOOK_SECONDS)
                found += [one.value for one in runner.map(tasks.double, [outcome.unwrap()])]
    assert found == [2, 4, 6]


def test_where_a_worker_has_to_end_one_that_runs_nothing_ends_first() -> None:
    executor = ProcessBackend(ParallelConfig()).open(2)
    try:
        idle, busy = (executor.submit(run_chunk, tasks.sleep_and_tell, [0.3], 1) for _ in range(2))
        pids = {future.result(20).values[0] for future in (idle, busy)}
        assert len(pids) == 2
        running = executor.submit(run_chunk, tasks.sleep_and_tell, [1.0], 1)
        until(lambda: executor.running(running) and executor.running(running)[1] <= time.monotonic())
        assert executor.relieve(lambda pid: 100.0, "for a test")
        assert running.result(20).values[0] in pids
    finally:
        executor.shutdown(cancel_futures=True)


def test_a_finished_batch_says_what_it_held_at_most() -> None:
    events: list[Event] = []
    with Runner(limited(64, backend="thread"), observers=[events.append]) as runner:
        runner.map(tasks.double, range(10))
    assert events[-1].kind is Kind.BATCH_FINISHED
    assert events[-1].counts["memory"]["peak_bytes"] > 10 * MB


def test_many_short_items_pass_in_whole_chunks() -> None:
    with Runner(limited(64, backend="process")) as runner:
        runner.map(tasks.double, range(3000))
        assert runner.map(tasks.double, range(5000))[-1].value == 9998
        assert runner.counts()["memory"]["put_off"] == 0


def test_a_worker_that_keeps_more_than_its_share_is_replaced() -> None:
    """The share of one of two is the half."""
    limit = held_now() / GB + 0.6
    with Runner(ParallelConfig(backend="process", max_workers=2, memory_limit_gb=limit)) as runner:
        pids = [runner.map(tasks.keep, [int(limit * 1024 * 0.55)])[0].value for _ in range(3)]
    assert len(set(pids)) == 3


# Settings


def test_the_limit_may_be_a_share_of_what_there_is() -> None:
    limit = ParallelConfig(memory_limit_fraction=0.5).memory_limit_bytes
    assert limit == 0.5 * resources.usable_memory()
    assert 0 < limit < float("inf")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory_limit_gb": 0}, "memory_limit_gb is 0"),
        ({"memory_limit_gb": True}, "memory_limit_gb is True"),
        ({"memory_limit_fraction": 1.5}, "memory_limit_fraction is 1.5"),
        ({"memory_limit_gb": 1, "memory_limit_fraction": 0.5}, "both set"),
        ({"enable_garbage_collection": 1}, "enable_garbage_collection is 1"),
    ],
)
def test_a_wrong_limit_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParallelConfig(**wrong)  # type: ignore[arg-type]


def test_the_limit_is_one_of_the_settings_of_the_package() -> None:
    assert video.ParallelConfig.from_mapping({"memory_limit_gb": "2.5"}).memory_limit_bytes == 2.5 * GB


def test_garbage_collection_goes_by_its_short_name_too() -> None:
    with video.create_high_performance_processor(memory_limit_gb=8, enable_gc=False) as processor:
        assert processor.config.enable_garbage_collection is False
    with pytest.raises(ConfigError, match="both set"):
        video.create_high_performance_processor(enable_gc=True, enable_garbage_collection=True)
