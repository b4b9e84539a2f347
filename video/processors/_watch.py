"""Who watches a batch of variants hears of each of them, though the runner only knows of groups."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from video.events import Event, Kind, Observer, emit, logger
from video.outcome import Outcome

if TYPE_CHECKING:  # with FFmpeg
    from video.media.variants import Made

Progress = Callable[[float], object]
"""Told how much is done, in percent: 0 to 100, never less than before."""


class Watch:
    """Hears of groups from the runner, and tells of variants: observers, and who asked for percentages."""

    def __init__(self, total: int, observers: tuple[Observer, ...], progress: Progress | None) -> None:
        self._total = total
        self._observers = observers
        self._progress = progress
        self._groups: list[list[int]] = []
        self._done = [0.0] * total
        self._told = -1.0
        self._lock = threading.Lock()

    def begin(self, groups: list[list[int]]) -> None:
        """What the items of the next batch are."""
        self._groups = groups

    def __call__(self, event: Event) -> None:
        if event.kind is not Kind.ITEM_PROGRESS or event.index is None or event.index >= len(self._groups):
            return
        for place in self._groups[event.index]:
            self._done[place] = max(self._done[place], min(1.0, event.fraction or 0.0))
            # What is made again, softer, begins anew; who watches sees it stand meanwhile.
            emit(self._observers, replace(event, index=place, fraction=self._done[place]))
        self._percent()

    def tell(self, group: Sequence[int], outcome: Outcome[list[Made]]) -> None:
        """A group has ended."""
        for place, made in zip(group, outcome.value or (), strict=True):
            self.one(place, made.error is not None)

    def give_up(self, group: Sequence[int], error: BaseException) -> None:
        for place in group:
            self.one(place, failed=True)

    def end(self) -> None:
        """All is done."""
        self._done = [1.0] * self._total
        self._percent()

    def one(self, place: int, failed: bool) -> None:
        """A variant has ended."""
        kind = Kind.ITEM_FAILED if failed else Kind.ITEM_FINISHED
        self._done[place] = 1.0
        emit(self._observers, Event(kind, "", self._total, index=place))
        self._percent()

    def _percent(self) -> None:
        with self._lock:  # workers report at the same time
            if self._progress is None:
                return
            percent = min(100.0, 100.0 * sum(self._done) / max(1, self._total))
            if percent <= self._told:
                return
            self._told = percent
            try:
                self._progress(percent)
            except Exception:  # noqa: BLE001  # the caller's own, which must not end the batch
                logger.exception("progress_callback failed at %.0f %%, and is told no more", percent)
                self._progress = None
