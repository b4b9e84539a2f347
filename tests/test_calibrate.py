"""What engines cost on this machine: that it is measured, kept, and never in the way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until
from video import calibrate, registry, resources
from video.backends.base import Executor
from video.backends.serial import SerialBackend
from video.backends.thread import ThreadBackend
from video.config import ParallelConfig
from video.errors import BackendUnavailable, MissingDependency, UnknownName, VideoError
from video.selector import Cost

COST = Cost(start=0.5, call=1e-3, item=1e-6, byte=1e-9)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Cost | Exception]:
    """What `measure` finds or raises for each engine, without measuring."""
    found: dict[str, Cost | Exception] = {}

    def measure(name: str) -> Cost:
        what = found.get(name, COST)
        if isinstance(what, BaseException):
            raise what
        return what

    monkeypatch.setattr(calibrate, "measure", measure)
    return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], str]:
    """Registers an engine for this test."""

    def register(kind: type) -> str:
        monkeypatch.setitem(registry.backends._registered, "mine", kind)
        return "mine"

    return register


def children() -> set[str]:
    here = Path(f"/proc/{os.getpid()}/task")
    if not here.exists():
        pytest.skip("there is no /proc here")
    return {pid for one in here.iterdir() for pid in (one / "children").read_text().split()}


# Measuring


@pytest.mark.parametrize(
    "name",
    [
        "serial",
        "thread",
        "async",
        "process",
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("dask", marks=pytest.mark.slow),
    ],
)
def test_an_engine_is_measured(name: str, cache: Path) -> None:
    if name in ("joblib", "dask"):
        pytest.importorskip({"dask": "distributed"}.get(name, name))
    cost = calibrate.measure(name)
    assert all(math.isfinite(value) for value in dataclasses.astuple(cost))
    assert cost.start > 0
    assert cost.call > 0
    assert cost.item >= 0
    assert cost.byte >= 0
    assert cost.byte == 0 or registry.backends.get(name).traits.pickles
    assert not cache.exists(), "nothing is stored by measuring one"


@pytest.mark.parametrize("name", ["serial", "thread", "async", "process"])
def test_nothing_is_left_running(name: str) -> None:
    threads, before = set(threading.enumerate()), children()
    calibrate.measure(name)
    until(lambda: set(threading.enumerate()) <= threads)
    until(lambda: children() <= before)


def test_one_cpu_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "usable_cpus", lambda: 1)
    assert calibrate.measure("thread").call > 0


def test_an_engine_with_fewer_workers_than_asked_for_is_measured(
    engine: Callable[[type], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(ThreadBackend):
        def open(self, workers: int) -> Any:
            return super().open(1)

    monkeypatch.setattr(calibrate, "SETTLE_SECONDS", 0.01)
    assert calibrate.measure(engine(Lazy)).start >= 0


def test_an_engine_that_fails_in_the_middle_is_closed_and_named(engine: Callable[[type], str]) -> None:
    closed = []

    class Broken(SerialBackend):
        def open(self, workers: int) -> Any:
            executor = super().open(workers)
            submit, executor.shutdown = executor.submit, lambda **_: closed.append(1)

            def fail(fn: Any, *args: Any) -> Future[Any]:
                if args:
                    raise OSError("no more of it")
                return submit(fn, *args)

            executor.submit = fail
            return executor

    with pytest.raises(BackendUnavailable, match=r"'mine'.*OSError: no more of it"):
        calibrate.measure(engine(Broken))
    assert closed == [1]


def test_an_engine_that_never_answers_is_given_up(
    engine: Callable[[type], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(SerialBackend):
        def open(self, workers: int) -> Any:
            executor = super().open(workers)
            executor.submit = lambda *_: Future()
            return executor

    monkeypatch.setattr(calibrate, "PATIENCE", 0.01)
    with pytest.raises(BackendUnavailable, match="TimeoutError"):
        calibrate.measure(engine(Silent))


def test_there_is_no_engine_of_another_name(given: object) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'process'"):
        calibrate.calibrate(["serial", "proces"])
    assert not calibrate.stored()


# Storing


def test_what_was_measured_is_stored_for_this_machine(given: dict[str, Any], cache: Path) -> None:
    given["process"] = Cost(1 / 3, 1e-5, 1e-7, 1e-10)
    assert not calibrate.stored()
    found = calibrate.calibrate(["serial", "process"])
    assert found == {"serial": COST, "process": given["process"]}
    assert calibrate.stored()
    assert calibrate.costs(["process", "serial"]) == found
    assert [path.name for path in cache.iterdir()] == ["constants.json"]


def test_real_engines_are_stored(cache: Path) -> None:
    found = calibrate.calibrate(["serial", "thread"])
    assert calibrate.remembered() == found


def test_by_default_all_that_are_installed_are_measured_but_not_dask(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"joblib": "it is not installed"}
    monkeypatch.setattr(registry.backends, "why_unavailable", missing.get)
    assert list(calibrate.calibrate()) == ["serial", "thread", "process", "async"]
    monkeypatch.setattr(registry.backends, "why_unavailable", lambda name: None)
    assert list(calibrate.calibrate()) == ["serial", "thread", "process", "joblib", "async"]


def test_progress_says_what_is_measured_and_what_is_left_out(given: dict[str, Any]) -> None:
    given |= {"process": BackendUnavailable("cannot start"), "joblib": MissingDependency("is not here")}
    told: list[tuple[str, Cost | VideoError | None]] = []
    found = calibrate.calibrate(["process", "serial", "joblib"], lambda *news: told.append(news))
    assert found == {"serial": COST}
    assert told == [
        ("process", None),
        ("process", given["process"]),
        ("serial", None),
        ("serial", COST),
        ("joblib", None),
        ("joblib", given["joblib"]),
    ]
    assert calibrate.remembered() == found


def test_figures_of_other_engines_stay(given: dict[str, Any]) -> None:
    calibrate.calibrate(["serial", "thread"])
    given["thread"] = Cost(9.0, 9.0, 9.0, 9.0)
    calibrate.calibrate(["thread"])
    assert calibrate.remembered() == {"serial": COST, "thread": given["thread"]}


def test_ctrl_c_leaves_what_was_stored(given: dict[str, Any]) -> None:
    calibrate.calibrate(["serial", "thread"])
    given |= {"serial": Cost(9.0, 9.0, 9.0, 9.0), "thread": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate(["serial", "thread"])
    assert calibrate.remembered() == {"serial": COST, "thread": COST}


@pytest.mark.parametrize(
    "name", ["video.__version__", "sys.version", "platform.node", "video.resources.usable_cpus"]
)
def test_figures_of_another_version_or_machine_count_as_absent(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate.calibrate(["serial"])
    new: Any = {"platform.node": lambda: "other", "video.resources.usable_cpus": lambda: 97}.get(name, "99.0")
    monkeypatch.setattr(name, new)
    assert not calibrate.stored()
    assert calibrate.costs(["serial"])["serial"] != COST
    calibrate.calibrate(["thread"])
    assert calibrate.remembered() == {"thread": COST}, "and are not taken along"


def test_a_new_file_is_read_at_once(given: dict[str, Any]) -> None:
    """What is kept in memory is good only for the file that it was read from."""
    calibrate.calibrate(["serial"])
    assert calibrate.remembered()["serial"] == COST
    text = calibrate.file().read_text()
    calibrate.file().write_text(text.replace("0.5", "0.25"))
    assert calibrate.remembered()["serial"].start == 0.25
    calibrate.file().unlink()
    assert not calibrate.stored()


def test_what_is_handed_out_can_be_changed_without_harm(given: dict[str, Any]) -> None:
    calibrate.calibrate(["serial"])
    calibrate.remembered().clear()
    calibrate.costs(["serial"]).clear()
    assert calibrate.stored()


def broken(text: str, change: Callable[[dict[str, Any]], object]) -> str:
    found = json.loads(text)
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("versions"),
        lambda found: found.pop("engines"),
        lambda found: found.update(versions=[]),
        lambda found: found.update(engines=[]),
        lambda found: found["engines"].update(serial=None),
        lambda found: found["engines"]["serial"].pop("start"),
        *[
            lambda found, value=value: found["engines"]["serial"].update(call=value)
            for value in (-1, None, "1", True, float("nan"), float("inf"), 1e9, 10**400, [])
        ],
    ],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(
    change: Callable[[dict[str, Any]], object], given: dict[str, Any]
) -> None:
    calibrate.calibrate(["serial"])
    calibrate.file().write_text(broken(calibrate.file().read_text(), change))
    assert not calibrate.stored()
    assert calibrate.costs(["serial"])["serial"].call == SerialBackend.traits.call
    calibrate.calibrate(["serial"])
    assert calibrate.remembered() == {"serial": COST}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_file_of_something_else_counts_as_absent(content: bytes, given: dict[str, Any]) -> None:
    calibrate.calibrate(["serial"])
    calibrate.file().write_bytes(content)
    assert not calibrate.stored()


def test_a_folder_that_cannot_be_made_is_no_failure(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDEO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert calibrate.calibrate(["serial"]) == {"serial": COST}
    assert not calibrate.stored()


# What is assumed


def test_without_figures_the_traits_say_it_and_nothing_is_measured(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "measure", None)
    found = calibrate.costs(["serial", "process", "async"])
    for name, cost in found.items():
        traits = registry.backends.get(name).traits
        assert (cost.start, cost.call) == (traits.start, traits.call)
        assert (cost.byte > 0) is traits.pickles
        assert cost.item > 0
    assert list(found) == ["serial", "process", "async"]
    assert not cache.exists()


def test_engines_that_cannot_be_loaded_cost_nothing_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.backends._registered, "mine", "no_such_package:Engine")
    assert list(calibrate.costs(["mine", "serial", "no such engine"])) == ["serial"]


def test_an_engine_of_another_package_can_be_measured_too(engine: Callable[[type], str]) -> None:
    class Mine(SerialBackend):
        def __init__(self, config: ParallelConfig) -> None:
            super().__init__(config)
            assert config.backend == "mine"

        def open(self, workers: int) -> Executor:
            return super().open(workers)

    name = engine(Mine)
    assert list(calibrate.calibrate([name])) == [name]
    assert calibrate.stored()
