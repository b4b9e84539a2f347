"""The contract, asked of every engine there is; and that the suite finds engines that break it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from tests import pool_engine
from video import ParallelConfig, Runner, register_backend
from video.backends import _pickling
from video.backends.base import Ran, Traits
from video.errors import BackendUnavailable, ConfigError, ItemCancelled, UnknownName
from video.registry import backends
from video.testing import PROMISES, State, backend_checks, base, check_backend, contract_table, results
from video.testing.suite import MARKED

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = (ROOT / "docs" / "contract.md").read_text("utf-8")
HERE = [name for name in backends.builtin if backends.why_unavailable(name) is None]
SLOW = ("joblib", "dask")
"""Their workers take a second to start."""


def cases() -> list[Any]:
    found = []
    for name in HERE:
        for check in backend_checks(name):
            marks = [pytest.mark.slow] if name in SLOW else []
            found.append(pytest.param(check, id=f"{name}-{check.__name__}", marks=marks))
    return found


@pytest.mark.parametrize("check", cases())
def test_an_engine_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


# The whole suite at once


class Done(NamedTuple):
    code: int
    states: dict[str, str]
    """Of each check, where the command was asked."""
    errors: str


SPAWNED = """
from video.testing import check_backend
check_backend("process", start_method="spawn", strict=True)
"""
WHOLE = {
    "spawned": ["-c", SPAWNED],
    "plugin": ["-m", "video", "check-backend", "pool"],
    "without initializer": ["-m", "video", "check-backend", "tests.test_contract:ThreadsBackend"],
    "honest": ["-m", "video", "check-backend", "tests.test_contract:Honest"],
}
"""Programs that ask one engine for everything."""


def asks(name: str) -> Any:
    """Gives the test what came of a program of `WHOLE`."""

    def decorate(test: Any) -> Any:
        # The time limit is for all the programs, and against hanging.
        for mark in (pytest.mark.parametrize("whole", [name], indirect=True), pytest.mark.timeout(300)):
            test = mark(test)
        return pytest.mark.slow(test)

    return decorate


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an engine is that a distribution of its own brings along by an entry point, as "pool"."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "plugin_pool-1.0.dist-info"
    info.mkdir()
    (folder / "plugin_pool.py").write_text(Path(pool_engine.__file__).read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin_pool\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[video.backends]\npool = plugin_pool:PoolBackend\n")
    return folder


@pytest.fixture(scope="module")
def wholes(request: pytest.FixtureRequest, plugin: Path) -> dict[str, Done]:
    """What came of the programs that the selected tests ask for. They run side by side, since they wait for
    time limits mostly, and all have ended before a check in this process counts what belongs to it."""
    names = {
        item.callspec.params["whole"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "whole" in item.callspec.params
    }
    path = os.pathsep.join([str(plugin), str(ROOT), *sys.path])

    def run(name: str) -> Done:
        done = subprocess.run(
            [sys.executable, *WHOLE[name]],
            capture_output=True, text=True, timeout=250, cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return Done(done.returncode, {line["name"]: line["state"] for line in lines}, done.stderr)

    with ThreadPoolExecutor(len(WHOLE)) as threads:
        return dict(zip(names, threads.map(run, names), strict=True))


@pytest.fixture
def whole(request: pytest.FixtureRequest, wholes: dict[str, Done]) -> Done:
    return wholes[request.param]


def named(done: Done, state: State) -> set[str]:
    return {name for name, one in done.states.items() if one == state}


@asks("spawned")
def test_spawned_processes_keep_the_contract(whole: Done) -> None:
    assert whole.code == 0, whole.errors


@asks("plugin")
def test_an_engine_of_another_distribution_keeps_the_contract(whole: Done) -> None:
    assert named(whole, State.BROKEN) == set()
    held = named(whole, State.HELD)
    assert {"a_crash_in_native_code_costs_its_item", "workers_end_with_their_program"} <= held
    assert "closing_kills_what_runs" not in held
    assert whole.code == 0, whole.errors


@asks("honest")
def test_an_honest_engine_of_threads_passes(whole: Done) -> None:
    """So what is found below is found because of the one thing that is wrong."""
    assert named(whole, State.BROKEN) == set()
    assert "each_worker_is_initialized_once" in named(whole, State.HELD)
    assert whole.code == 0, whole.errors


@asks("without initializer")
def test_the_command_gives_a_line_for_each_check_and_an_exit_code(whole: Done) -> None:
    assert list(whole.states) == [marked.name for marked in MARKED]
    # It knows of no initializer; all else it keeps.
    assert named(whole, State.BROKEN) == {
        "each_worker_is_initialized_once",
        "no_item_runs_where_the_initializer_failed",
    }
    assert whole.code == 1, whole.errors


# Engines that break it


class ThreadsBackend:
    """Keeps the contract; others break it in one way each."""

    traits: ClassVar[Traits] = Traits(
        start=1e-3, call=1e-4, own_gil=False, pickles=False, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None: ...

    def open(self, workers: int) -> Any:
        return Threads(workers)


class Threads(ThreadPoolExecutor):
    """Calls with a change in what they answer."""

    def answer(self, fn: Any, args: Any) -> Any:
        return self.change(fn(*args))

    def change(self, ran: Ran) -> Ran:
        return ran

    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        return super().submit(self.answer, fn, args)


class Honest(ThreadsBackend):
    """Breaks nothing."""

    def __init__(self, config: ParallelConfig) -> None:
        self.config = config

    def open(self, workers: int) -> Any:
        return Threads(workers, initializer=self.config.initializer)


unanswered: list[Future[Any]] = []
held_open: list[Any] = []
release = threading.Event()


class Loser(Threads):
    """Never answers for one item."""

    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        if 7 not in args[1]:
            return super().submit(fn, *args)
        unanswered.append(Future())
        return unanswered[-1]


class Doubler(Threads):
    """Answers for one item twice; the batch then waits for items that there are not."""

    def change(self, ran: Ran) -> Ran:
        return ran._replace(values=[*ran.values, ran.values[-1]], seconds=[*ran.seconds, 0.0])


class Repeater(Threads):
    """Runs what it is given twice."""

    def answer(self, fn: Any, args: Any) -> Any:
        fn(*args)
        return fn(*args)


class Shuffler(Threads):
    """Answers in the wrong order."""

    def change(self, ran: Ran) -> Ran:
        return ran._replace(values=ran.values[::-1])


class Swallower(Threads):
    """Lets nobody know of errors."""

    def change(self, ran: Ran) -> Ran:
        return ran._replace(errors=[])


class Hasty(Threads):
    """Runs what it is given, and only then looks whether its workers are set up."""

    def answer(self, fn: Any, args: Any) -> Any:
        fn(*args)
        raise BackendUnavailable("the initializer failed")


class ThreadLeaker(Threads):
    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        threading.Thread(target=release.wait, name="forgotten", daemon=True).start()
        return super().submit(fn, *args)


class FileLeaker(Threads):
    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        held_open.append(open(os.devnull))  # noqa: SIM115  # that is the point
        return super().submit(fn, *args)


class Choosy(Threads):
    """Takes functions that have a name, and nothing else."""

    def answer(self, fn: Any, args: Any) -> Any:
        if not getattr(args[0], "__name__", "<lambda>").isidentifier():
            raise TypeError("this is no function of a module")
        return super().answer(fn, args)


class Referring(Threads):
    """Sends results by plain pickle, which knows only what can be imported."""

    def change(self, ran: Ran) -> Ran:
        return pickle.loads(pickle.dumps(ran))


class Rounding(Threads):
    """Keeps fewer digits than there are."""

    def change(self, ran: Ran) -> Ran:
        return ran._replace(values=[(round(one[0], 9), one[1]) if one else one for one in ran.values])


class Truncating(Threads):
    """Sends no more than 64 KB of anything."""

    def change(self, ran: Ran) -> Ran:
        return ran._replace(values=[one[: 1 << 16] if isinstance(one, bytes) else one for one in ran.values])


class Greedy(Threads):
    """Each of its workers takes all the threads that there are."""

    def answer(self, fn: Any, args: Any) -> Any:
        return super().answer(fn, (*args[:2], 64))


class Forgetting(Threads):
    """Its items do not know that they run in a worker."""

    def answer(self, fn: Any, args: Any) -> Any:
        task = args[0]
        return super().answer(fn, (lambda item: contextvars.Context().run(task, item), *args[1:]))


class Racing(Threads):
    """Has room for one call to be sent, and looks at it later."""

    box: Any = None

    def answer(self, fn: Any, args: Any) -> Any:
        Racing.box = fn, args
        time.sleep(0.002)
        return super().answer(*Racing.box)


class Shared(ThreadsBackend):
    """All runners have one executor, and the first that leaves closes it."""

    executor: Any = None

    def open(self, workers: int) -> Any:
        if Shared.executor is None or Shared.executor._shutdown:
            Shared.executor = Threads(workers)
        return Shared.executor


class Lingering(ThreadsBackend):
    """The program cannot end before a thread of its own does."""

    def open(self, workers: int) -> Any:
        threading.Thread(target=time.sleep, args=(20,)).start()
        return Threads(workers)


class Imagining(ThreadsBackend):
    """Items run in the program itself, and it says that they do elsewhere."""

    traits = dataclasses.replace(ThreadsBackend.traits, pickles=True)

    def open(self, workers: int) -> Any:
        return Imagined(Threads(workers))


class Imagined:
    """Says that it sees to the pickling, and sees to that of the task alone."""

    packs = True

    def __init__(self, threads: Threads) -> None:
        self.threads, self.shutdown = threads, threads.shutdown

    def submit(self, fn: Any, task: Any, *args: Any) -> Future[Any]:
        return self.threads.submit(fn, _pickling.loads(_pickling.dumps(task)), *args)


class Chattering(Imagining):
    """Says all that its items say, and once more."""

    def open(self, workers: int) -> Any:
        return Imagined(Repeater(workers))


class Guessing(Imagining):
    """Blames no item for a death, though it says that it knows which one it was."""

    traits = dataclasses.replace(Imagining.traits, exact=True)

    def open(self, workers: int) -> Any:
        return Imagined(Dying(workers))


class Dying(Threads):
    """Loses a call with an item of that number, as if its worker had died."""

    def answer(self, fn: Any, args: Any) -> Any:
        if 33 in args[1]:
            raise BrokenExecutor("somebody died")
        return super().answer(fn, args)


class Heedless(ThreadsBackend):
    """Lets coroutines run to their end, whatever the limit."""

    traits = dataclasses.replace(ThreadsBackend.traits, coroutines=True)

    def open(self, workers: int) -> Any:
        return self

    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        # A daemon, which nobody has to wait for.
        threading.Thread(target=lambda: future.set_result(self.run(fn, args)), daemon=True).start()
        return future

    def run(self, fn: Any, args: Any) -> Ran:
        ran: Ran = asyncio.run(fn(*args)) if asyncio.iscoroutinefunction(fn) else fn(*args)
        return ran

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Boasting(Heedless):
    """Stops nothing, though it says that it kills."""

    traits = dataclasses.replace(ThreadsBackend.traits, kills=True)

    def kill(self, future: Future[Any]) -> None: ...


class Hushing(Heedless):
    """Lets nobody know of what coroutines raise."""

    def run(self, fn: Any, args: Any) -> Ran:
        def hand(ran: Ran) -> None:
            args[-1](ran._replace(errors=[]))

        return super().run(fn, (*args[:-1], hand))._replace(errors=[])


class Refusing(ThreadsBackend):
    """Will have no time limits, though its calls do not run in the caller's thread."""

    def __init__(self, config: ParallelConfig) -> None:
        if config.timeout is not None:
            raise ConfigError("no time limits here")

    def open(self, workers: int) -> Any:
        return Threads(workers)


class Mortal(pool_engine.PoolBackend):
    """Its first death is its end."""

    def open(self, workers: int) -> Any:
        return super().open(workers).pool


class Orphaning(pool_engine.PoolBackend):
    """Its workers outlive their program, as those of the standard library do."""

    def open(self, workers: int) -> Any:
        pool = super().open(workers)
        pool.pool = pool_engine.ProcessPoolExecutor(
            workers, pool_engine.multiprocessing.get_context("forkserver")
        )
        return pool


class Forking(pool_engine.PoolBackend):
    """Its workers are copies of their parent."""

    def open(self, workers: int) -> Any:
        return pool_engine.ProcessPoolExecutor(workers, pool_engine.multiprocessing.get_context("fork"))


class Hoarding(base.Bench):
    """Its runners draw as far ahead as they like."""

    def config(self, **more: Any) -> ParallelConfig:
        return super().config(**more | {"lookahead": None})


class Forgiving(base.Bench):
    """Its runners go on after a failure."""

    def config(self, **more: Any) -> ParallelConfig:
        return super().config(**more | {"fail": "isolate", "max_workers": 8})


class Silent(base.Bench):
    """Its runners tell observers nothing."""

    def runner(self, *, observers: Any = (), **more: Any) -> Runner:
        return super().runner(**more)


class Blocking(base.Bench):
    """Its runners take an async caller's loop for their own work."""

    def runner(self, **more: Any) -> Runner:
        return BlockingRunner(self.config(**more))


class BlockingRunner(Runner):
    async def astream(self, *args: Any, **more: Any) -> Any:
        for number, one in enumerate(self.stream(*args, **more)):
            if number % 4 == 3:
                await asyncio.sleep(0)
            yield one


class Smothering(base.Bench):
    """Its runners take an input that fails for one that ends."""

    def runner(self, **more: Any) -> Runner:
        return SmotheringRunner(self.config(**more))


class SmotheringRunner(Runner):
    def stream(self, task: Any, items: Any, **more: Any) -> Any:
        def quiet() -> Iterator[Any]:
            with contextlib.suppress(OSError):
                yield from items

        return super().stream(task, quiet(), **more)


class Yielding(base.Bench):
    """Its runners give what they have when they are closed, as if that were all."""

    def runner(self, **more: Any) -> Runner:
        return YieldingRunner(self.config(**more))


class YieldingRunner(Runner):
    def map(self, *args: Any, **more: Any) -> Any:
        with contextlib.suppress(ItemCancelled):
            return super().map(*args, **more)


WRONG_RUNNERS = [
    (Hoarding, "an_endless_input_is_drawn_little_ahead", "items were drawn ahead, not 12"),
    (Hoarding, "results_that_wait_for_their_turn_are_bounded", "items were drawn ahead, not 12"),
    (Smothering, "an_input_that_fails_comes_after_its_outcomes", "the error of the input is lost"),
    (Yielding, "closing_ends_a_batch_that_runs", "the batch ended with a list"),
    (Blocking, "async_callers_are_not_blocked", "the event loop came round"),
    (Silent, "observers_break_nothing", "the observers heard of {}"),
    (Forgiving, "the_first_failure_can_end_a_batch", "the batch went on"),
]

BROKEN = [
    (Loser, "every_item_has_one_outcome_in_order", "no answer within 2 s"),
    (Doubler, "every_item_has_one_outcome_in_order", "answered for more items than it was given"),
    (Repeater, "no_item_runs_twice", "0: 2"),
    (Shuffler, "every_item_has_one_outcome_in_order", "item [0-9]+ gave"),
    (Swallower, "an_item_that_raises_fails_alone", "item 13 was to fail"),
    (Hasty, "no_item_runs_where_the_initializer_failed", r"items \[0, 1, 2, 3\] ran"),
    (ThreadLeaker, "leaving_leaves_nothing", "thread forgotten"),
    (FileLeaker, "leaving_leaves_nothing", "file descriptors .*/dev/null"),
    (Refusing, "a_time_limit_costs_the_stuck_item_alone", "refuses a time limit, but its trait `inline` is"),
    (Refusing, "waiting_is_not_charged", "refuses a time limit, but its trait `inline` is"),
    (Shuffler, "as_completed_loses_and_doubles_nothing", "item [0-9]+ gave"),
    (Shuffler, "odd_sizes_lose_nothing", "item [0-9]+ gave"),
    (Swallower, "an_item_that_exits_fails_alone", "item 13 was to fail"),
    (Swallower, "an_item_without_memory_fails_alone", "item 13 was to fail"),
    (Imagining, "an_argument_that_does_not_pickle_fails_alone", "item 10 was to fail"),
    (Imagining, "a_result_that_does_not_pickle_fails_alone", "item 13 was to fail"),
    (Imagining, "an_error_that_does_not_pickle_fails_alone", "item 13 failed with StubbornError"),
    (Guessing, "what_a_chunk_had_finished_is_kept", "item 33 failed with BrokenExecutor"),
    (
        Boasting,
        "a_time_limit_ends_the_function_and_its_children",
        "the worker process of an item that timed out runs on",
    ),
    (Boasting, "a_running_item_can_be_cancelled", "the worker process of a cancelled item runs on"),
    (Boasting, "closing_kills_what_runs", "the worker process of an item that ran runs on"),
    (Boasting, "a_killed_worker_leaves_no_unfinished_file", "its worker was not killed"),
    (Heedless, "a_time_limit_cancels_a_coroutine", "the coroutine was not cancelled"),
    (Hushing, "coroutine_functions_are_tasks", "item 5 was to fail"),
    (Lingering, "ctrl_c_ends_the_program_and_its_workers", "the program runs on"),
    (Choosy, "any_callable_is_a_task", "a lambda gave"),
    (Referring, "what_main_defines_travels", "PicklingError"),
    (Greedy, "workers_share_the_cpus", "64 native threads"),
    (Forgetting, "a_runner_inside_a_worker_runs_inline", r"item 0 gave \('process'"),
    (Threads, "each_worker_is_initialized_once", r"initialized \[0\] times"),
    (Truncating, "large_buffers_cross_whole", "large bytes do not arrive"),
    (Shared, "two_runners_side_by_side", "after shutdown|ItemCancelled"),
    (Racing, "eight_threads_share_a_runner", "a thread got something else|answered for"),
    (Rounding, "results_are_those_of_a_plain_loop", "a plain loop"),
    (Chattering, "what_workers_say_is_heard", "printed"),
    (Mortal, "a_worker_that_is_killed_costs_its_item", "BrokenProcessPool"),
    (Mortal, "a_crash_in_native_code_costs_its_item", "BrokenProcessPool"),
    (Mortal, "two_deaths_at_once_cost_two_items", "BrokenProcessPool"),
    (Mortal, "an_item_that_kills_again_is_given_up", "BrokenProcessPool"),
    (Mortal, "a_worker_that_exits_costs_its_item", "BrokenProcessPool"),
    (Orphaning, "workers_end_with_their_program", "workers run on"),
    (Forking, "workers_are_no_copies_of_the_program", "forked from the program itself"),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What does not come is not waited for as long as in earnest."""
    monkeypatch.setattr(base, "WAIT_SECONDS", 2.0)
    monkeypatch.setattr(base, "STUCK_SECONDS", 3.0)
    yield
    release.set()
    while unanswered:
        unanswered.pop().set_exception(RuntimeError("the test is over"))
    while held_open:
        held_open.pop().close()
    release.clear()


def executor_of(kind: Any) -> Any:
    """A backend of threads with that executor; a backend is left as it is."""
    if not issubclass(kind, Threads):
        return kind
    return type(kind.__name__, (ThreadsBackend,), {"open": lambda self, workers: kind(workers)})


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "name", "words"), BROKEN, ids=[f"{kind.__name__}-{name}" for kind, name, _ in BROKEN]
)
def test_the_suite_finds_an_engine_that(
    kind: Any, name: str, words: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_backend("broken", executor_of(kind))
    bench = base.Bench("broken", backends.get("broken").traits)
    marked = next(one for one in MARKED if one.name == name)
    assert marked.why_not(bench) is None
    if "another program" in marked.needs:
        monkeypatch.setattr(base, "WAIT_SECONDS", 6.0)  # in which that program starts, on a busy machine too
    result = base.Check(marked, bench, limit=2 if kind in (Loser, Doubler) else 60).result()
    assert result.state is State.BROKEN
    assert re.search(words, result.message), result.message


@pytest.mark.parametrize(
    ("bench", "name", "words"),
    WRONG_RUNNERS,
    ids=[f"{kind.__name__}-{name}" for kind, name, _ in WRONG_RUNNERS],
)
def test_the_suite_finds_a_runner_that(bench: Any, name: str, words: str, impatient: None) -> None:
    """Promises that no engine can break, since the runner keeps them for all."""
    marked = next(one for one in MARKED if one.name == name)
    result = base.Check(marked, bench("thread", backends.get("thread").traits), limit=20).result()
    assert result.state is State.BROKEN
    assert re.search(words, result.message), result.message


def test_each_check_is_seen_to_find_something() -> None:
    assert {name for _, name, _ in BROKEN + WRONG_RUNNERS} == {marked.name for marked in MARKED}


# The suite itself


def test_a_check_says_its_promise_and_its_number() -> None:
    for check in backend_checks("process"):
        assert check.__name__.isidentifier()
        assert check.__doc__
        assert check.__doc__.endswith(".")
        assert check.promise in PROMISES


def test_every_promise_has_a_check() -> None:
    assert {marked.promise for marked in MARKED} == set(PROMISES) == set(range(1, 15))
    names = [marked.name for marked in MARKED]
    assert len(names) == len(set(names))


def test_what_an_engine_does_not_claim_is_not_asked() -> None:
    asked = {check.__name__ for check in backend_checks("serial")}
    assert "a_worker_that_exits_costs_its_item" not in asked
    assert asked < {check.__name__ for check in backend_checks("process")} | {
        "a_time_limit_cancels_a_coroutine",
        "coroutine_functions_are_tasks",
    }


def test_an_engine_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(UnknownName, match="process"):
        backend_checks("proces")
    with pytest.raises(UnknownName):
        check_backend("proces")


def test_strict_names_all_that_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    register_backend("broken", executor_of(Swallower))
    monkeypatch.setattr("video.testing.suite.MARKED", [one for one in MARKED if one.promise == 2])
    with pytest.raises(AssertionError) as caught:
        check_backend("broken", strict=True)
    assert "the broken engine breaks 3 of 6 checks" in str(caught.value)
    assert "2. an_item_that_exits_fails_alone: item 13 was to fail" in str(caught.value)


def test_results_come_one_by_one() -> None:
    first = next(results("serial"))
    assert (first.promise, first.state, first.message) == (1, State.HELD, "")
    assert first.says.startswith("Each item ends in one outcome")


def test_what_was_not_asked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.testing.suite.MARKED", [one for one in MARKED if one.promise == 3])
    found = check_backend("serial")
    assert {one.state for one in found} == {State.NOT_ASKED}
    assert {one.message for one in found} == {"its trait `pickles` is false", "its trait `exact` is false"}


def test_importing_the_tasks_in_a_worker_is_light() -> None:
    code = "import sys, video.testing.tasks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {"asyncio", "typing", "logging", "subprocess"}.isdisjoint(done.stdout.split())


# The command


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "video", "check-backend", *words],
        capture_output=True, text=True, timeout=100, cwd=ROOT,
    )  # fmt: skip


def test_the_command_refuses_an_unknown_engine() -> None:
    done = command("proces")
    assert done.returncode == 2
    assert "Did you mean 'process'?" in done.stderr


# The page


def test_the_page_has_the_table_as_it_is_now() -> None:
    found = re.search(r"^\| \| promise and checks \| (.*) \|$", CONTRACT, re.MULTILINE)
    assert found is not None
    names = found[1].split(" | ")
    assert set(HERE) <= set(names), "put there what `contract_table()` gives"
    for name in set(names) - set(HERE):
        pytest.skip(f"{name} cannot be had here")
    assert contract_table() in CONTRACT, "put there what `contract_table()` gives"


def test_the_page_has_every_promise_in_words() -> None:
    for number, heading in PROMISES.items():
        assert f"### {number}. {heading}\n" in CONTRACT


def test_what_no_check_proves_names_its_test_or_says_that_there_is_none() -> None:
    _, _, said = CONTRACT.partition("## What else is said above")
    rows = re.findall(r"^\| ([0-9]+) \| (.+) \| (.+) \|$", said.partition("\n## ")[0], re.MULTILINE)
    assert rows
    for number, words, proof in rows:
        assert int(number) in PROMISES
        assert proof.startswith(("`tests/test_", "nothing")), words


def test_every_check_and_test_that_the_page_names_exists() -> None:
    code = Path(__file__).read_text()
    for path, name in re.findall(r"`(tests/\w+\.py)::(\w+)", CONTRACT):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
    named = re.findall(r"^\| \| `(\w+)` \|", CONTRACT, re.MULTILINE)
    assert named == [marked.name for marked in MARKED]
    assert "def test_an_engine_keeps_the_contract(" in code
