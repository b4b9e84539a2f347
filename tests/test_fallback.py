"""An engine that cannot start is replaced by a simpler one, with one warning that says why."""

from __future__ import annotations

import dataclasses
import pickle
import socket
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tests import tasks
from video import ParallelConfig, Runner, registry
from video.engines import EngineReplacedWarning
from video.errors import BackendUnavailable, ConfigError
from video.events import Event, Kind


def replace(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], open_: Callable[[str, Any], Any]
) -> None:
    """The executors of these engines are what `open_` makes of a name and its engine."""
    whole = registry.backends.get

    def get(name: str) -> Any:
        engine = whole(name)
        if name not in names:
            return engine

        class Backend:
            traits = dataclasses.replace(engine.traits, kills=False)

            def __init__(self, config: ParallelConfig) -> None:
                pass

            def open(self, workers: int) -> Any:
                return open_(name, engine)

        return Backend

    monkeypatch.setattr(registry.backends, "get", get)


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Engines of these names cannot start, as where no process, thread or memory is to be had."""

    def open_(name: str, engine: Any) -> Any:
        raise BackendUnavailable(f"no {name} is to be had")

    replace(monkeypatch, names, open_)


@pytest.mark.parametrize(
    ("asked", "refused", "used"),
    [
        ("dask", {"dask"}, "process"),
        ("joblib", {"joblib"}, "process"),
        ("process", {"process"}, "thread"),
        ("thread", {"thread"}, "serial"),
        ("dask", {"dask", "process"}, "thread"),
        ("joblib", {"joblib", "process", "thread"}, "serial"),
    ],
)
def test_the_next_simpler_engine_that_starts_does_the_work_with_one_warning(
    asked: str, refused: set[str], used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"dask": "distributed"}.get(asked, "joblib"))
    refuse(monkeypatch, *refused)
    events: list[Event] = []
    with Runner(ParallelConfig(backend=asked, max_workers=2), observers=[events.append]) as runner:
        with pytest.warns(EngineReplacedWarning) as caught:
            assert [one.value for one in runner.map(tasks.double, range(9))] == [2 * n for n in range(9)]
        assert len(caught) == 1
        for name in refused:
            assert f"no {name} is to be had" in str(caught[0].message)
        decision = runner.explain()
        assert decision is not None
        assert decision.backend == used
        told = [one.message for one in events if one.kind is Kind.ENGINE_REPLACED]
        assert len(told) == len(refused)
        with warnings.catch_warnings():  # it is said once
            warnings.simplefilter("error")
            assert len(runner.map(tasks.double, range(3))) == 3


def test_a_strict_runner_takes_no_simpler_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "process")
    with (
        Runner(ParallelConfig(backend="process", strict=True)) as runner,
        pytest.raises(BackendUnavailable, match="no process is to be had"),
    ):
        runner.map(tasks.double, range(3))


def test_no_engine_that_cannot_hold_the_time_limit_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "thread")
    with (
        Runner(ParallelConfig(backend="thread", timeout=5)) as runner,
        pytest.raises(BackendUnavailable, match="no thread is to be had"),
    ):
        runner.map(tasks.double, range(3))


def test_a_cluster_that_nobody_serves_leaves_the_work_to_processes() -> None:
    pytest.importorskip("distributed")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        config = ParallelConfig(backend="dask", cluster=address, max_workers=2)
        with Runner(config) as runner, pytest.warns(EngineReplacedWarning, match="process is used instead"):
            assert [one.value for one in runner.map(tasks.double, range(4))] == [0, 2, 4, 6]


@pytest.mark.parametrize("engine", ["serial", "thread", "process", "async", "joblib"])
def test_each_worker_that_was_set_up_is_put_away(engine: str, tmp_path: Path) -> None:
    """A finalizer runs once for each initializer, when the runner is left."""
    pytest.importorskip("joblib")

    def note(name: str) -> Callable[[], None]:
        return lambda: (tmp_path / f"{name}-{uuid.uuid4()}").touch()

    def count(name: str) -> int:
        return len(list(tmp_path.glob(f"{name}-*")))

    config = ParallelConfig(backend=engine, max_workers=2, initializer=note("in"), finalizer=note("out"))
    with Runner(config) as runner:
        assert len(runner.map(tasks.double, range(20))) == 20
        assert count("in") >= 1
        assert count("out") == 0
    assert count("out") == count("in")


class Breaking:
    """Runs so many calls, and has then broken down for good."""

    def __init__(self, calls: int, pickles: bool) -> None:
        self.left = calls
        self.pickles = pickles

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.left > 0:
            self.left -= 1
            if self.pickles:
                fn, args = pickle.loads(cloudpickle.dumps((fn, args)))
            future.set_result(fn(*args))
        else:
            future.set_exception(BackendUnavailable("it has run out of calls", cure="Wait."))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def breaks(monkeypatch: pytest.MonkeyPatch, *names: str, calls: int = 3) -> None:
    replace(monkeypatch, names, lambda name, engine: Breaking(calls, engine.traits.pickles))


@pytest.mark.parametrize(
    ("asked", "broken", "used"),
    [
        ("joblib", {"joblib"}, "process"),
        ("thread", {"thread"}, "serial"),
    ],
)
@pytest.mark.parametrize("calls", [0, 3])
def test_a_batch_whose_engine_breaks_down_goes_on_with_a_simpler_one(
    asked: str, broken: set[str], used: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One outcome an item, in order, and no item twice."""
    pytest.importorskip("joblib")
    breaks(monkeypatch, *broken, calls=calls)
    events: list[Event] = []
    config = ParallelConfig(backend=asked, max_workers=2, chunk_size=2)
    with Runner(config, observers=[events.append]) as runner:
        with pytest.warns(EngineReplacedWarning, match="has broken down"):
            found = runner.map(tasks.double, range(40))
        assert [(one.index, one.value, one.attempts) for one in found] == [(n, 2 * n, 1) for n in range(40)]
        told = [one.message for one in events if one.kind is Kind.ENGINE_REPLACED]
        assert len(told) == len(broken)
        assert f"{used} is used instead: it has run out of calls. Wait." in told[-1]
        assert [one.value for one in runner.map(tasks.double, range(4))] == [0, 2, 4, 6]


def test_a_strict_batch_whose_engine_breaks_down_says_so_of_every_item_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch, "process")
    with Runner(ParallelConfig(backend="process", strict=True, chunk_size=1, max_workers=2)) as runner:
        found = runner.map(tasks.double, range(10))
    assert [one.value for one in found[:3]] == [0, 2, 4]
    assert all(isinstance(one.error, BackendUnavailable) for one in found[3:])


def test_a_batch_that_broke_down_with_warnings_as_errors_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, "thread")
    with Runner(ParallelConfig(backend="thread", max_workers=2)) as runner, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one.value for one in runner.map(tasks.double, range(10))] == [2 * n for n in range(10)]


def test_a_step_down_to_an_engine_that_cannot_start_raises_no_warning_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("joblib")
    refuse(monkeypatch, "process")
    breaks(monkeypatch, "joblib")
    config = ParallelConfig(backend="joblib", max_workers=2, chunk_size=1)
    with Runner(config) as runner, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one.value for one in runner.map(tasks.double, range(10))] == [2 * n for n in range(10)]
        decision = runner.explain()
        assert decision is not None
    assert (decision.backend, decision.reason) == ("thread", "joblib has broken down")


def test_an_engine_that_promises_to_kill_and_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its batches would wait for what nobody stops."""

    class Backend:
        traits = registry.backends.get("process").traits

        def __init__(self, config: ParallelConfig) -> None:
            pass

        def open(self, workers: int) -> Breaking:
            return Breaking(3, pickles=True)

    monkeypatch.setattr(registry.backends, "get", lambda name: Backend)
    with (
        Runner(ParallelConfig(backend="process")) as runner,
        pytest.raises(ConfigError, match="has no method `kill`"),
    ):
        runner.map(tasks.double, range(3))


def test_who_is_told_of_a_replacement_may_close_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "process")
    closed: list[Event] = []

    def close(event: Event) -> None:
        if event.kind is Kind.ENGINE_REPLACED:
            runner.close()
            closed.append(event)

    runner = Runner(ParallelConfig(backend="process", max_workers=2), observers=[close])
    with pytest.warns(EngineReplacedWarning):
        found = runner.map(tasks.double, range(3))
    assert len(found) == 3
    assert len(closed) == 1
    runner.close()


def test_where_even_the_last_engine_breaks_down_every_item_has_an_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch, "thread", "serial")
    with (
        Runner(ParallelConfig(backend="thread", max_workers=2, chunk_size=1)) as runner,
        pytest.warns(EngineReplacedWarning),
    ):
        found = runner.map(tasks.double, range(20))
    assert len([one for one in found if one.ok]) == 6
    assert all(isinstance(one.error, BackendUnavailable) for one in found if not one.ok)
