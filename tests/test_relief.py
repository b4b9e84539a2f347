"""Who drives a batch while the caller's thread runs an item."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.waiting import until
from video import relief
from video.relief import PATIENCE, Relief


def nothing() -> None: ...


def test_what_is_short_is_driven_by_nobody() -> None:
    driven: list[Relief] = []
    for _ in range(200):
        Relief(driven.append, nothing).end()
    time.sleep(20 * PATIENCE)
    assert len(driven) < 20  # unless this machine was busy elsewhere for a millisecond


def test_what_is_long_is_driven_in_another_thread_until_it_ends() -> None:
    woken, drivers = threading.Event(), []

    def drive(one: Relief) -> None:
        drivers.append(threading.get_ident())
        woken.wait(60)
        assert one.over
        time.sleep(0.05)
        drivers.append(threading.get_ident())

    one = Relief(drive, woken.set)
    until(lambda: bool(drivers))
    one.end()
    assert len(drivers) == 2  # it had come back
    assert threading.get_ident() not in drivers


def test_what_the_driver_raises_is_raised_at_the_end() -> None:
    began = threading.Event()

    def drive(_: Relief) -> None:
        began.set()
        raise ValueError("broken")

    one = Relief(drive, nothing)
    assert began.wait(60)
    with pytest.raises(ValueError, match="broken"):
        one.end()


def test_many_at_once_are_each_driven() -> None:
    began = [threading.Event() for _ in range(20)]
    reliefs = [Relief(lambda _, event=event: event.set(), nothing) for event in began]  # type: ignore[misc]
    assert all(event.wait(60) for event in began)
    for one in reliefs:
        one.end()


def test_the_watcher_ends_when_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "IDLE_SECONDS", 0.05)
    watcher = relief._Watcher()
    monkeypatch.setattr(relief, "_watcher", watcher)
    for _ in range(3):
        began = threading.Event()
        one = Relief(lambda _, event=began: event.set(), nothing)  # type: ignore[misc]
        assert began.wait(60)
        one.end()
        until(lambda: not watcher._runs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_waits_for_no_driver_and_has_its_own() -> None:
    began = threading.Event()
    release = threading.Event()

    def drive(_: Relief) -> None:
        began.set()
        release.wait(60)

    one = Relief(drive, nothing)
    assert began.wait(60)
    child = os.fork()
    if child == 0:
        good = 1
        try:
            one.end()  # its driver is the parent's
            again = threading.Event()
            two = Relief(lambda _: again.set(), nothing)
            good = 0 if again.wait(30) else 2
            two.end()
        finally:
            os._exit(good)
    release.set()
    one.end()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
