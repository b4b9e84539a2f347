"""AUTO on real work: it chooses while the batch runs, and loses and doubles nothing on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import tasks
from tests.waiting import until
from video import ParallelConfig, Runner, calibrate, profiles, registry
from video import measure as measuring
from video.auto import Auto
from video.backends.process import ProcessBackend
from video.batch import Batch, Opened, Progress
from video.engines import EngineReplacedWarning
from video.errors import BackendUnavailable, BatchFailed, ItemCancelled
from video.events import Event, Kind
from video.measure import STRETCH_SECONDS, Probe, Reading, _Gauge, summary
from video.measure import _State as State
from video.outcome import Outcome
from video.plan import Choice
from video.selector import Asked, Measured

# What is chosen follows from measured work, and other programs may take the CPUs just then.
pytestmark = pytest.mark.flaky(reruns=2)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def noted(folder: Path, task: Callable[[int], Any], item: int) -> Any:
    """Leave a file for each run of an item."""
    with (folder / str(item)).open("a") as file:
        file.write("x")
    return task(item)


def steps(item: int) -> int:
    """Some 30 ms of pure Python."""
    return sum(range(item, item + 1_500_000)) * 0 + item


def sleeps(item: int) -> int:
    time.sleep(0.01)
    return item


def hasty(item: int) -> int:
    time.sleep(0.0003 * (item % 7))
    return item


def sleeps_then_steps(item: int) -> int:
    return sleeps(item) if item < 60 else steps(item)


def long_first(item: int) -> int:
    time.sleep(2.0 if item == 0 else 0.01)
    return item


def whole(outcomes: list[Outcome[Any]], count: int) -> None:
    assert [outcome.index for outcome in outcomes] == list(range(count))
    assert [outcome.unwrap() for outcome in outcomes] == list(range(count))


def ran_once(folder: Path, count: int) -> None:
    assert Counter({path.name: path.stat().st_size for path in folder.iterdir()}) == Counter(
        {str(item): 1 for item in range(count)}
    )


def chosen(runner: Runner) -> str:
    decision = runner.explain()
    assert decision is not None
    return decision.backend


def test_python_code_goes_to_processes(runner: Runner, tmp_path: Path) -> None:
    whole(runner.map(partial(noted, tmp_path, steps), range(60)), 60)
    assert chosen(runner) == "process"
    ran_once(tmp_path, 60)


def test_work_that_waits_goes_to_threads(runner: Runner, tmp_path: Path) -> None:
    whole(runner.map(partial(noted, tmp_path, sleeps), range(200)), 200)
    decision = runner.explain()
    assert decision is not None
    assert (decision.backend, decision.workers > 8) == ("thread", True)
    ran_once(tmp_path, 200)


def test_what_does_not_pickle_stays_here(runner: Runner) -> None:
    locks = [threading.Lock() for _ in range(40)]
    outcomes = runner.map(lambda lock: steps(1) and lock, locks)
    assert [outcome.unwrap() for outcome in outcomes] == locks
    decision = runner.explain()
    assert decision is not None
    assert "lock" in next(one.refusal for one in decision.candidates if one.backend == "process")


def test_a_result_that_does_not_pickle_keeps_the_batch_here(runner: Runner) -> None:
    outcomes = runner.map(lambda _: steps(1) and threading.Lock(), range(40))
    assert all(outcome.ok for outcome in outcomes)


def test_a_named_engine_is_always_honoured() -> None:
    with Runner(ParallelConfig(backend="serial")) as runner:
        runner.map(sleeps, range(10))
        assert chosen(runner) == "serial"
        runner.map(steps, range(10), backend="thread")
        assert chosen(runner) == "thread"


def test_what_is_declared_is_not_measured(runner: Runner) -> None:
    whole(runner.map(sleeps, range(200), kind="python", cost=0.5), 200)
    decision = runner.explain()
    assert decision is not None
    while decision.earlier is not None:  # it was not true, which may have been noticed
        decision = decision.earlier
    assert decision.measured is not None
    assert (decision.backend, decision.measured.source) == ("process", "declared")


def test_the_log_says_in_one_line_what_was_chosen(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it was measured, or a rule decided."""
    with caplog.at_level("INFO", logger="video"):
        runner.map(sleeps, range(30))
        runner.map(len, ["a", "bb"], backend="serial")
    lines = [record.getMessage() for record in caplog.records if record.name == "video"]
    assert [line.split(",")[0] for line in lines] == ["thread", "serial"]
    assert not any("\n" in line for line in lines)


def test_rules_need_no_measuring(runner: Runner) -> None:
    runner.map(tasks.double, [1])
    assert chosen(runner) == "serial"
    runner.map(tasks.double, range(3), isolate=True)
    assert chosen(runner) == "process"
    runner.map(tasks.double_later, range(3))
    assert chosen(runner) == "async"
    assert runner.explain().candidates == ()  # type: ignore[union-attr]  # there is one


def test_nothing_is_explained_before_the_first_batch(runner: Runner) -> None:
    assert runner.explain() is None


def test_a_long_first_item_does_not_hold_up_the_others(runner: Runner) -> None:
    order = [outcome.index for outcome in runner.stream(long_first, range(50), ordered=False)]
    assert sorted(order) == list(range(50))
    assert order.index(0) > 40


def test_a_short_batch_runs_in_the_callers_own_thread(runner: Runner) -> None:
    """To start another would take as long as the batch."""
    outcomes = runner.map(lambda _: threading.get_ident(), range(100))
    assert {outcome.unwrap() for outcome in outcomes} == {threading.get_ident()}
    assert chosen(runner) == "serial"


def test_many_tiny_items_stay_in_the_callers_thread(runner: Runner) -> None:
    """Threads would only take turns, since to be called takes the lock."""
    whole(runner.map(lambda item: item, range(10_000)), 10_000)
    assert chosen(runner) == "serial"


def test_while_the_callers_thread_is_in_a_long_item_the_others_run(runner: Runner) -> None:
    """The item ends only when another one has run, in another thread."""
    ran = threading.Event()

    def first_waits(item: int) -> tuple[bool, int]:
        if item == 0:
            return ran.wait(60), threading.get_ident()
        ran.set()
        return True, threading.get_ident()

    outcomes = [outcome.unwrap() for outcome in runner.map(first_waits, list(range(40)))]
    assert all(good for good, _ in outcomes)
    assert outcomes[0][1] == threading.get_ident()
    assert {ident for _, ident in outcomes[1:]}.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("what", ["observed", "unordered", "initializer", "drawn"])
def test_what_may_not_wait_for_the_callers_thread_gets_another(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes in any order, progress, inputs with code of their own, workers that are to be prepared."""
    monkeypatch.setenv("VIDEO_NO_PROFILE", "1")  # or only the first of these would be measured

    def where(item: int) -> int:
        time.sleep(0.02)  # too long in all for the caller's thread to be chosen in the end
        return threading.get_ident()

    config = ParallelConfig(initializer=int if what == "initializer" else None)
    observers: list[Callable[[Event], None]] = [lambda event: None] if what == "observed" else []
    with Runner(config, observers=observers) as runner:
        items = iter(range(20)) if what == "drawn" else range(20)
        rounds = runner.rounds(where, items, ordered=what != "unordered")
        idents = {outcome.unwrap() for outcomes in rounds for outcome in outcomes}
    assert threading.get_ident() not in idents


def test_ctrl_c_in_the_callers_thread_ends_the_batch_and_the_runner_works_on(runner: Runner) -> None:
    def interrupted(item: int) -> int:
        time.sleep(0.05)  # by now somebody else drives
        if item == 0:
            signal.raise_signal(signal.SIGINT)
        return item

    with pytest.raises(KeyboardInterrupt):
        runner.map(interrupted, range(20))
    whole(runner.map(hasty, range(20)), 20)


def test_what_goes_wrong_while_another_thread_drives_is_the_callers(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Auto, now: float, progress: Progress) -> Opened | None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the pilot broke")
        return None

    monkeypatch.setenv("VIDEO_NO_PROFILE", "1")  # or it would not be measured
    monkeypatch.setattr(Auto, "steer", broken)
    with pytest.raises(RuntimeError, match="the pilot broke"):
        runner.map(sleeps, range(20))


def test_a_batch_moves_to_a_better_engine_on_its_way(tmp_path: Path) -> None:
    """Items that waited begin to compute: the rest moves, and each item still runs once."""
    seen: list[Event] = []
    with Runner(observers=[seen.append]) as runner:
        whole(runner.map(partial(noted, tmp_path, sleeps_then_steps), range(300)), 300)
        decision = runner.explain()
    assert decision is not None
    assert decision.backend == "process"
    assert decision.earlier is not None
    assert decision.earlier.backend == "thread"
    moves = [event.backend for event in seen if event.kind is Kind.ENGINE_CHOSEN]
    assert moves == ["thread", "process"]
    ran_once(tmp_path, 300)


class Restless:
    """A pilot that moves to another engine each time it is asked."""

    eager = True
    check_at = 0.0

    def __init__(self, engines: list[Opened]) -> None:
        self._engines = itertools.cycle(engines)
        self.moves = 0

    def steer(self, now: float, progress: Progress) -> Opened | None:
        self.moves += 1
        return next(self._engines)

    def close(self) -> None: ...


@pytest.mark.parametrize("ordered", [True, False])
def test_a_batch_that_never_stays_loses_and_doubles_nothing(tmp_path: Path, ordered: bool) -> None:
    with Runner() as runner:
        engines = [
            runner._engines.open(Choice(name, workers, 1, "it is its turn"))
            for name, workers in [("thread", 1), ("process", 2), ("thread", 3), ("serial", 1)]
        ]
        pilot = Restless(engines)
        task = partial(noted, tmp_path, hasty)
        batch = Batch(runner, task, range(400), 400, engines[0], ParallelConfig(), ordered, (), pilot=pilot)
        outcomes = [outcome for some in batch.rounds() for outcome in some]
    if not ordered:
        outcomes.sort(key=lambda outcome: outcome.index)
    whole(outcomes, 400)
    ran_once(tmp_path, 400)
    assert pilot.moves > 20


def test_a_task_that_does_not_pickle_stays_here(runner: Runner) -> None:
    """Not its items do not, but what it holds."""
    lock = threading.Lock()

    def locked(item: int) -> int:
        with lock:
            return steps(item)

    for how in ({}, {"kind": "python", "cost": 0.5}):
        whole(runner.map(locked, range(40), **how), 40)  # type: ignore[arg-type]  # a mapping of How
        decision = runner.explain()
        assert decision is not None
        assert decision.backend == "thread"
        assert "lock" in next(one.refusal for one in decision.candidates if one.backend == "process")


def test_a_busy_probe_holds_up_no_other_batch(runner: Runner) -> None:
    release = threading.Event()
    with runner.stream(lambda item: release.wait(30) if item == 0 else item, range(1, -1, -1)) as first:
        busy = threading.Thread(target=lambda: list(first))
        busy.start()
        whole(runner.map(sleeps, range(20)), 20)
        assert busy.is_alive()
        release.set()
        busy.join(30)


def test_batches_of_many_sizes_leave_few_engines(runner: Runner) -> None:
    for total in range(3, 30):
        runner.map(sleeps, range(total))
    assert len(runner._engines._open) <= 4


def test_the_users_number_of_workers_holds_while_it_chooses(tmp_path: Path) -> None:
    for most in (1, 2):
        at_once = Gauge()
        with Runner(ParallelConfig(max_workers=most)) as runner:
            assert all(one.ok for one in runner.map(at_once.half, range(12)))
        assert at_once.most <= most


class Gauge:
    """How many items ran at once. Half of each computes, half of it waits: nothing but trying tells."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0

    def half(self, item: int) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        steps(item)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        return item


def test_items_that_fail_are_no_measure_of_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(profiles, "save", lambda key, measured: kept.append(measured))
    with Runner() as runner:
        assert not any(one.ok for one in runner.map(fails, range(500)))
        assert kept == []
        stream = runner.stream(sleeps, range(1000))
        next(iter(stream))
        stream.close()
    assert all(one.items for one in kept)


def fails(item: int) -> int:
    raise ConnectionError("nobody is there")


def test_items_that_did_not_pickle_once_may_do_so_later(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Measured(0.03, 0.03, 1.0, pickles="it held a lock", items=9, source="remembered")
    monkeypatch.setattr(profiles, "load", lambda key: known)
    with Runner() as runner:
        whole(runner.map(steps, range(60)), 60)
        assert chosen(runner) == "process"


@pytest.mark.parametrize("strict", [False, True])
def test_an_engine_that_cannot_start_is_not_chosen_again(
    monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    def broken(self: ProcessBackend, workers: int) -> Any:
        raise BackendUnavailable("no process is to be had")

    monkeypatch.setattr(ProcessBackend, "open", broken)
    seen: list[Event] = []
    with warnings.catch_warnings(), Runner(ParallelConfig(strict=strict), observers=[seen.append]) as runner:
        warnings.simplefilter("ignore", EngineReplacedWarning)
        whole(runner.map(steps, range(60)), 60)
        decision = runner.explain()
    assert decision is not None
    assert (decision.backend, decision.earlier) == ("thread", None)
    assert next(one.refusal for one in decision.candidates if one.backend == "process")
    assert [event.backend for event in seen if event.kind is Kind.ENGINE_CHOSEN] == ["thread"]


def test_a_batch_goes_back_to_an_engine_rather_than_end() -> None:
    """It left threads; what is left proves too long for the caller's own, and processes are out."""
    seen: list[Choice] = []

    def opened(choice: Choice, own: bool) -> Opened:
        seen.append(choice)
        backend = registry.backends.get(choice.backend)
        return Opened(choice, backend(ParallelConfig()).open(choice.workers), backend.traits)

    with Runner() as runner:
        auto = Auto(runner._eligible, Asked(left=100), 2, None, opened, lambda _: None, lambda: "no")
        auto._before["thread"] = "was left for another one before"
        auto._take(time.monotonic(), Progress(0, 0.0, 100), Measured(0.1, 0.1, 0.0))
    assert [choice.backend for choice in seen] == ["thread"]


@pytest.mark.parametrize("total", [0, 1, 2, 3, 17])
def test_odd_sizes_lose_nothing(runner: Runner, total: int) -> None:
    whole(runner.map(sleeps, range(total)), total)


def test_an_input_without_a_length_is_measured_too(runner: Runner) -> None:
    whole(runner.map(steps, iter(range(60))), 60)
    assert chosen(runner) == "process"


def test_an_endless_input_is_drawn_little_ahead(runner: Runner) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    with runner.stream(sleeps, endless()) as stream:
        for _ in range(100):
            assert next(stream).ok
        assert drawn < 100 + 64 * 32 + 32


def test_items_that_fail_do_so_alone(runner: Runner) -> None:
    outcomes = runner.map(tasks.fail_on_3, range(200))
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [3]


def test_an_input_that_fails_comes_after_its_outcomes(runner: Runner) -> None:
    def broken() -> Iterator[int]:
        yield from range(100)
        raise OSError("the disk is gone")

    stream = iter(runner.stream(sleeps, broken()))
    assert [next(stream).index for _ in range(100)] == list(range(100))
    with pytest.raises(OSError, match="disk is gone"):
        next(stream)


def test_the_first_failure_may_end_it() -> None:
    with Runner(ParallelConfig(fail="fast")) as runner, pytest.raises(BatchFailed) as caught:
        runner.map(tasks.fail_on_3, range(1000))
    assert caught.value.failed == 3


def test_leaving_it_early_leaves_nothing(runner: Runner) -> None:
    before = threading.active_count()
    with runner.stream(steps, range(1000)) as stream:
        next(stream)
    runner.close()
    until(lambda: threading.active_count() <= before)


def test_closing_ends_a_batch_that_still_chooses(runner: Runner) -> None:
    """Wherever it is, and no engine is opened after that."""
    for wait in (0.0, 0.01, 0.03, 0.06, 0.1):
        stream = runner.stream(steps, range(10_000))
        closing = threading.Timer(wait, runner.close)
        closing.start()
        with pytest.raises(ItemCancelled):
            list(stream)
        closing.join()
        assert runner._engines._open == {}


def test_many_batches_at_once_each_get_their_own(runner: Runner) -> None:
    results: dict[int, list[Outcome[int]]] = {}

    def go(number: int) -> None:
        results[number] = runner.map(sleeps if number % 2 else steps, range(30))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(4):
        whole(results[number], 30)


def test_an_event_loop_goes_on_while_it_probes(runner: Runner) -> None:
    async def main() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        count = sum([1 async for _ in runner.astream(sleeps, range(100))])
        ticking.cancel()
        return count, ticks

    count, ticks = asyncio.run(main())
    assert count == 100
    assert ticks > 3


def test_it_says_beforehand_what_it_knows(runner: Runner) -> None:
    """By the rules, and by what is declared; nothing runs."""
    guess = runner.explain(tasks.exit_on_3, total=10)
    assert guess is not None
    assert guess.backend == "thread"
    declared = runner.explain(steps, total=1000, kind="python", cost=0.5)
    assert declared is not None
    assert (declared.backend, len(declared.candidates)) == ("process", 5)
    isolated = runner.explain(steps, total=10, isolate=True)
    assert isolated is not None
    assert isolated.backend == "process"
    assert "may crash" in next(one.refusal for one in isolated.candidates if one.backend == "thread")
    assert runner.explain() is None


def test_a_start_that_was_measured_on_a_busy_machine_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEO_CACHE_DIR", str(tmp_path))
    slow = dataclasses.replace(calibrate.measure("process"), start=60.0)
    monkeypatch.setattr(calibrate, "measure", lambda _: slow)
    calibrate.calibrate(["process"])
    with Runner(ParallelConfig(max_workers=2)) as runner:
        runner.map(time.sleep, [0.02] * 40, kind="python", cost=10.0)
        assert (decision := runner.explain()) is not None
        assert decision.backend == "process"
    assert 0 < calibrate.remembered()["process"].start < 30.0


def test_an_item_that_ends_elsewhere_is_no_start_of_the_engine(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first item still ran where it was measured when the others went to worker processes."""
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(calibrate, "started", lambda *told: seen.append(told))

    def opened(choice: Choice, own: bool) -> Opened:
        return runner._engines.open(choice, own=own)

    auto = Auto(runner._eligible, Asked(left=9), 2, None, opened, lambda _: None, lambda: "")
    auto._decide(began := time.monotonic(), Progress(0, 0.0, 9), Measured(5.0, 5.0, 1.0))
    auto.steer(began, Progress(1, 5.0, 8))
    assert seen == []
    auto.steer(began, Progress(2, 5.5, 7, answer=(began + 0.75, 0.5)))
    assert seen == [("process", pytest.approx(0.25))]


@pytest.mark.parametrize("goes_on", [True, False])
def test_little_that_is_left_is_not_looked_at(runner: Runner, goes_on: bool) -> None:
    """To choose an engine for it would take longer than any could save."""
    auto = Auto(runner._eligible, Asked(left=1000), 2, None, lambda *_: opened, lambda _: None, lambda: "")
    opened = runner._engines.open(Choice("serial", 1, 1, ""))
    auto.first()
    probe = auto._probe
    assert probe is not None
    probe.run(abs, range(10), 1)
    auto.check_at = time.monotonic()
    assert auto.steer(auto.check_at, Progress(10, 0.0, 90)) is None
    assert not probe.looks
    if goes_on:
        probe.run(abs, range(10), 1)
        assert auto.steer(auto.check_at, Progress(20, 0.0, 80)) is None
        assert not probe.looks
        probe.run(abs, range(10), 1)
    auto.steer(auto.check_at, Progress(30, 0.0, 70))
    assert probe.looks, "it has not ended by then: the others may be longer"
    auto.close()


def test_a_long_item_after_a_brief_one_does_not_hold_up_the_others() -> None:
    """Where they do not travel with it."""
    with Runner(ParallelConfig(chunk_size=1)) as runner:
        outcomes = runner.map(brief_first, range(4))
    _, (_, end), *others = [outcome.value for outcome in outcomes if outcome.value is not None]
    assert len(others) == 2
    assert all(began < end for began, _ in others), "they waited for the first long one to end"


def brief_then_long(item: int) -> int | None:
    if item < 5:
        return None
    time.sleep(0.03)
    return threading.get_ident()


def fail_then_wait(item: int) -> int | None:
    if item == 0:
        raise ValueError("broken")
    return brief_then_long(item + 5)


@pytest.mark.parametrize("task", [brief_then_long, fail_then_wait])
def test_long_items_in_a_chunk_that_was_sized_by_brief_ones_go_to_the_others(
    task: Callable[[int], int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEO_NO_PROFILE", "1")
    with Runner() as runner:
        outcomes = runner.map(task, range(25))
    assert [outcome.index for outcome in outcomes] == list(range(25))
    assert all(outcome.attempts == 1 for outcome in outcomes)
    mine = [outcome.value for outcome in outcomes].count(threading.get_ident())
    assert mine <= 4, "this thread was left with more than it had begun"


def test_what_has_not_begun_is_given_back() -> None:
    probe, begun, go = Probe(), threading.Event(), threading.Event()

    def wait(item: int) -> int:
        begun.set()
        assert go.wait(60)
        return item

    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(probe.run, wait, [1, 2, 3], 1)
        assert begun.wait(60)
        probe.give_back()
        go.set()
        assert ran.result(60).values == [1]


def brief_first(item: int) -> tuple[float, float]:
    """When it began and ended."""
    began = time.monotonic()
    time.sleep(2.0 if item else 0.0005)
    return began, time.monotonic()


@pytest.mark.parametrize(("cpu", "gil"), [(0.001, 0.5), (0.0, 0.0)])
def test_where_nothing_was_heard_what_computes_may_hold_the_lock(cpu: float, gil: float) -> None:
    """Python items of a millisecond that travel alone let go of it between each other."""
    reading = Reading(1, 0.001, cpu, late=0.0, heard=0.0)
    measured = summary([reading] * 3, None, listened=True)
    assert measured is not None
    assert measured.gil == pytest.approx(gil)


@pytest.mark.parametrize(
    ("ended", "runs", "wall", "cpu"),
    [
        ([(1, 0.01)], (1, 0.009), 0.01, 0.01),
        ([(1, 0.01)], (1, 0.05), 0.055, 0.03),
        ([(1, 0.01)], (4, 0.039), 0.01, 0.01),
        ([(1, 0.01)], (4, 0.08), 0.055, 0.03),
        ([], (1, 0.003), 0.006, 0.003),
    ],
    ids=["like the others", "longer", "a chunk like the others", "a chunk with a long one", "the first"],
)
def test_what_runs_on_counts_once_it_is_past_the_others_and_twice(
    ended: list[tuple[int, float]], runs: tuple[int, float], wall: float, cpu: float
) -> None:
    """It computes for half of its time, the others for all of theirs."""
    items, seconds = runs
    readings = [Reading(count, taken, taken, late=0.0, heard=0.0) for count, taken in ended]
    readings.append(Reading(items, seconds, seconds / 2, late=0.0, heard=0.0, running=True))
    measured = summary(readings, None)
    assert measured is not None
    assert (measured.wall, measured.cpu) == pytest.approx((wall, cpu))
    assert measured.items == len(ended)


def test_beside_those_that_failed_only_what_runs_counts() -> None:
    failed = Reading(20, 0.001, 0.001, late=0.0, heard=0.0, failed=True)
    measured = summary([failed, Reading(1, 0.25, 0.25, late=0.0, heard=0.0, running=True)], None)
    assert measured is not None
    assert measured.wall == pytest.approx(0.5)


def test_what_has_only_just_begun_tells_nothing() -> None:
    assert summary([Reading(1, 0.0, 0.0, late=0.0, heard=0.0, running=True)], None) is None


def test_who_drives_a_batch_is_known_before_its_first_item(runner: Runner) -> None:
    """One thread makes a stream, another reads it: whose CPU time is no item's must be known by then."""
    opened = runner._engines.open(Choice("serial", 1, 1, ""))
    auto = Auto(runner._eligible, Asked(left=40), 2, None, lambda *_: opened, lambda _: None, lambda: "")
    auto.first()
    probe = auto._probe
    assert probe is not None
    assert auto.check_at <= time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(auto.steer, time.monotonic(), Progress(0, 0.0, 40)).result() is None
        assert probe.driver == pool.submit(threading.get_native_id).result()
    assert not probe.looks
    auto.close()


@pytest.mark.parametrize(
    ("cpu", "workers", "bounded", "gradual"),
    [(0.1, None, False, True), (0.0, None, False, False), (0.1, 2, True, True), (0.0, 2, True, False)],
    ids=["computes", "waits", "computes, as many as asked for", "waits, as many as asked for"],
)
def test_what_is_measured_takes_room_on_the_next_engine_where_there_is_none_for_both(
    runner: Runner, cpu: float, workers: int | None, bounded: bool, gradual: bool
) -> None:
    def open_(choice: Choice, own: bool) -> Opened:
        return runner._engines.open(choice, own=own)

    known, asked = Measured(0.1, cpu, 0.0), Asked(workers=workers, left=40)
    opened = Auto(runner._eligible, asked, 2, None, open_, lambda _: None, lambda: "", known).first()
    assert opened.choice.backend == "thread"
    assert (opened.bounded, opened.gradual) == (bounded, gradual)


def test_by_the_look_after_the_first_enough_is_heard(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.auto.HEAR_SECONDS", 60.0)
    opened = runner._engines.open(Choice("serial", 1, 1, ""))
    auto = Auto(runner._eligible, Asked(left=40), 2, None, lambda *_: opened, lambda _: None, lambda: "")
    auto.first()
    probe = auto._probe
    assert probe is not None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(probe.run, time.sleep, [0.2], 1)
        until(lambda: probe.began is not None)
        assert not probe.looks
        auto.steer(time.monotonic() + 0.001, Progress(0, 0.0, 39))
        assert probe.looks
        assert auto.check_at - time.monotonic() > 30
    auto.close()


# What is measured


def measure(task: Callable[[int], Any], items: range = range(4)) -> Any:
    probe = Probe()
    probe.look()
    thread = threading.Thread(target=lambda: [probe.run(task, [item], 1) for item in items])
    thread.start()
    thread.join(60)
    measured = probe.measured()
    probe.close()
    assert measured is not None
    return measured


@pytest.mark.parametrize(("heard", "counts"), [(0.9 * STRETCH_SECONDS, False), (1.1 * STRETCH_SECONDS, True)])
def test_what_runs_briefly_is_not_heard(heard: float, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No nap can end too late in it: it would seem to leave the lock free."""
    probe = Probe()
    nothing = State(*[0.0] * len(State._fields))
    states = iter([nothing._replace(heard=at) for at in (5.0, 5.0 + heard)])
    monkeypatch.setattr(Probe, "looks", True)
    monkeypatch.setattr(probe, "state", lambda *_, **__: next(states)._replace(now=1.0))
    gauge = _Gauge(probe, [0])
    gauge._began = gauge._began._replace(now=0.0)
    assert (gauge.read(1).heard > 0) is counts


def test_nothing_is_heard_while_the_one_who_listens_has_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what holds the lock meanwhile would seem to leave it free."""
    probe = Probe()
    probe.look()
    ticker = probe._ticker
    assert ticker is not None
    time.sleep(0.1)
    monkeypatch.setattr(measuring, "_schedule", lambda _: (0.0, time.monotonic() - ticker.began))
    assert probe.state(probe.driver, closely=False).heard < 0.05
    probe.close()


@pytest.mark.parametrize("ready", [True, False])
def test_nothing_is_heard_while_the_one_who_listens_waits_for_a_cpu_just_now(
    ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has counted that yet: it would look like the lock."""
    probe = Probe()
    probe.look()
    ticker = probe._ticker
    assert ticker is not None
    ticker.stopped = True
    ticker.join(60)
    time.sleep(0.1)
    monkeypatch.setattr(measuring, "_ready", lambda _: ready)
    state = probe.state(probe.driver, closely=False)
    assert (state.heard < 0.05) is ready
    assert (state.late < 0.05) is ready


@pytest.mark.parametrize(
    ("others", "computed", "waited", "wall", "cpu"),
    [
        (False, 0.0, 0.0, 0.004, 0.0),
        (True, 0.0, 0.0, 0.004, 0.001),
        (False, 0.001, 0.002, 0.002, 0.002),
        (True, 0.001, 0.002, 0.002, 0.002),
    ],
    ids=["waits", "waits for a child", "had no CPU for a while", "had no CPU for a while, on a busy machine"],
)
def test_an_item_that_computed_and_waits_since_is_taken_to_wait(
    others: bool, computed: float, waited: float, wall: float, cpu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless others compute, of which one may be its child."""
    nothing = State(*[0.0] * len(State._fields))
    looked = nothing._replace(now=1.001, cpu=0.001)
    then = nothing._replace(now=1.004, cpu=0.001 + computed, waited=waited)
    states = iter([nothing._replace(now=1.0), looked, then])
    probe = Probe()
    monkeypatch.setattr(probe, "state", lambda *_, **__: next(states))
    monkeypatch.setattr(measuring, "_others_run", lambda: others)
    gauge = _Gauge(probe, [0])
    gauge.look()
    reading = gauge.read()
    assert reading.wall == pytest.approx(wall)
    assert reading.cpu == pytest.approx(cpu)


def test_python_code_holds_the_lock() -> None:
    measured = measure(steps)
    assert measured.gil > 0.6
    assert measured.cpu == pytest.approx(measured.wall, rel=0.5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of other threads")
def test_what_another_cpu_computes_just_now_counts() -> None:
    """Its clock is up to 4 ms behind, of which an item that is looked at early has not many."""
    data, behind, began = bytes(400 << 20), [], []

    def digest(_: int) -> int:
        began.append(time.thread_time())
        return len(hashlib.sha256(data).digest())

    probe = Probe()
    probe.look()
    thread = threading.Thread(target=probe.run, args=(digest, [0], 1))
    thread.start()
    assert thread.native_id is not None
    clock = ~thread.native_id << 3 | 6  # as pthread_getcpuclockid(3) has it
    while thread.is_alive() and len(behind) < 30:
        time.sleep(0.0013)
        gauges = list(probe._open.values())
        with contextlib.suppress(OSError):
            if gauges and began:
                reading = gauges[0].read()
                behind.append(time.clock_gettime(clock) - began[0] - reading.cpu)
    thread.join(60)
    probe.close()
    assert -0.005 < statistics.median(behind) < 0.0004


def test_waiting_takes_no_cpu_and_no_lock() -> None:
    measured = measure(lambda _: time.sleep(0.05))
    assert measured.gil < 0.3
    assert measured.cpu < 0.5 * measured.wall


def test_a_first_item_that_loads_something_is_kept_apart() -> None:
    measured = measure(lambda item: time.sleep(0.5 if item == 0 else 0.01))
    assert measured.load > 0.3
    assert measured.wall < 0.1
    assert measured.items == 3


def test_what_crosses_is_weighed() -> None:
    measured = measure(lambda _: bytes(3_000_000))
    assert 3_000_000 <= measured.bytes < 3_010_000
    assert measured.pickles == ""
    assert measure(lambda _: threading.Lock()).pickles


@pytest.mark.skipif(sys.platform == "win32", reason="nobody says there how much it was at most")
def test_memory_of_an_item_at_which_nobody_could_look_is_seen() -> None:
    """It holds the lock from its begin to its end."""
    probe = Probe()
    more = 200_000_000 + max(0, int(measuring._peak() - measuring._memory()))
    probe.run(lambda _: len(bytearray(b"x") * more), [0], 1)
    measured = probe.measured()
    assert measured is not None
    assert measured.memory > 150_000_000


def test_a_look_that_comes_while_an_item_begins_does_not_spoil_its_clocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it began with would be nothing, and all that the process ever took would seem to be the item's."""
    probe, state = Probe(), Probe.state

    def and_look(self: Probe, thread: int, *, closely: bool) -> State:
        clocks = state(self, thread, closely=closely)
        if not self.looks:
            self.look()
        return clocks

    monkeypatch.setattr(Probe, "state", and_look)
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)  # a child that has taken time
    reading = _Gauge(probe, [0]).read(1)
    probe.close()
    assert reading.memory < 10_000_000
    assert reading.cpu < 0.02


def test_memory_that_grows_is_seen() -> None:
    kept: list[bytearray] = []
    measured = measure(lambda item: kept.append(bytearray(b"x") * 100_000_000), range(2))
    assert measured.memory > 80_000_000
