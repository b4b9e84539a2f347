"""What running code may know of its slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from video import scope
from video.errors import ItemCancelled


@pytest.mark.parametrize("keep", [False, True])
def test_an_unfinished_file_goes_unless_it_is_kept_or_renamed(tmp_path: Path, keep: bool) -> None:
    told: list[bool] = []
    slot = scope.Slot(declare=lambda _, unfinished: told.append(unfinished))
    with scope.entered(slot), scope.unfinished(tmp_path / "a", keep=keep) as path:
        path.mkdir()
        (path / "inner").write_text("x")
    assert path.exists() == keep
    assert told == [True, False]


def test_an_unfinished_file_goes_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    with pytest.raises(ZeroDivisionError), scope.unfinished(path, keep=True):
        raise ZeroDivisionError
    assert not path.exists()


def test_reports_that_follow_too_soon_are_dropped() -> None:
    heard: list[float] = []
    with scope.entered(scope.Slot(listener=lambda fraction, _: heard.append(fraction))):
        for n in range(1000):
            scope.report(n / 1000)
    assert heard[0] == 0
    assert len(heard) < 100


def test_only_a_slot_that_was_given_up_cancels() -> None:
    scope.check_cancelled()
    slot = scope.Slot()
    with scope.entered(slot):
        scope.check_cancelled()
        slot.cancelled.set()
        with pytest.raises(ItemCancelled):
            scope.check_cancelled()
    scope.check_cancelled()


def test_a_program_that_ends_gives_up_every_item() -> None:
    scope.stopping.set()
    try:
        with pytest.raises(ItemCancelled):
            scope.check_cancelled()
    finally:
        scope.stopping.clear()
