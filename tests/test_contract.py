"""The contract, asked of every engine there is; and that the suite finds engines that break it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests import pool_engine
from video import ParallelConfig, register_backend
from video.backends.base import Ran, Traits
from video.errors import BackendUnavailable, ConfigError, UnknownName
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


@pytest.mark.slow
def test_spawned_processes_keep_the_contract() -> None:
    check_backend("process", start_method="spawn", strict=True)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an engine that a distribution of its own brings along by an entry point."""
    info = tmp_path / "plugin_pool-1.0.dist-info"
    info.mkdir()
    (tmp_path / "plugin_pool.py").write_text(Path(pool_engine.__file__).read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin_pool\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[video.backends]\npool = plugin_pool:PoolBackend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(backends, "_found", None)  # what was installed before
    yield "pool"
    sys.modules.pop("plugin_pool", None)


@pytest.mark.slow
def test_an_engine_of_another_distribution_keeps_the_contract(plugin: str) -> None:
    found = check_backend(plugin)
    assert [one for one in found if one.state is State.BROKEN] == []
    asked = {one.name for one in found if one.state is State.HELD}
    assert {"a_crash_in_native_code_costs_its_item", "workers_end_with_their_program"} <= asked
    assert "closing_kills_what_runs" not in asked


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
    (Mortal, "a_worker_that_exits_costs_its_item", "BrokenProcessPool"),
    (Orphaning, "workers_end_with_their_program", "workers run on"),
    (Forking, "workers_are_no_copies_of_the_program", "forked from the program itself"),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What does not come is not waited for as long as in earnest."""
    monkeypatch.setattr(base, "WAIT_SECONDS", 2.0)
    monkeypatch.setattr(base, "STUCK_SECONDS", 6.0)
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
def test_the_suite_finds_an_engine_that(kind: Any, name: str, words: str, impatient: None) -> None:
    register_backend("broken", executor_of(kind))
    bench = base.Bench("broken", backends.get("broken").traits)
    marked = next(one for one in MARKED if one.name == name)
    assert marked.why_not(bench) is None
    result = base.Check(marked, bench, limit=2 if kind in (Loser, Doubler) else 60).result()
    assert result.state is State.BROKEN
    assert re.search(words, result.message), result.message


@pytest.mark.slow
def test_the_suite_finds_an_engine_that_ignores_a_kill(impatient: None) -> None:
    class Boaster(ThreadsBackend):
        traits = dataclasses.replace(ThreadsBackend.traits, kills=True)

    register_backend("broken", Boaster)
    check = next(
        one for one in backend_checks("broken") if one.__name__.startswith("a_time_limit_ends_the_function")
    )
    with pytest.raises(AssertionError, match="the worker process of an item that timed out runs on"):
        check()


@pytest.mark.slow
def test_an_honest_engine_of_threads_passes() -> None:
    """So what is found above is found because of the one thing that is wrong."""

    class Honest(ThreadsBackend):
        def open(self, workers: int) -> Any:
            return Threads(workers, initializer=self.config.initializer)

        def __init__(self, config: ParallelConfig) -> None:
            self.config = config

    register_backend("honest", Honest)
    check_backend("honest", strict=True)


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


@pytest.mark.slow
def test_the_command_gives_a_line_for_each_check_and_an_exit_code() -> None:
    done = command("tests.test_contract:ThreadsBackend")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == [marked.name for marked in MARKED]
    # It knows of no initializer; all else it keeps.
    broken = {line["name"] for line in lines if line["state"] == "broken"}
    assert broken == {"each_worker_is_initialized_once", "no_item_runs_where_the_initializer_failed"}
    assert done.returncode == 1


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


def test_every_check_and_test_that_the_page_names_exists() -> None:
    code = Path(__file__).read_text()
    for path, name in re.findall(r"`(tests/\w+\.py)::(\w+)", CONTRACT):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
    named = re.findall(r"^\| \| `(\w+)` \|", CONTRACT, re.MULTILINE)
    assert named == [marked.name for marked in MARKED]
    assert "def test_an_engine_keeps_the_contract(" in code
