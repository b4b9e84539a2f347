"""Progress of a batch for a person at a terminal."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from video.events import Event, Kind

MOST_ROWS = 12
"""Rows of running items; a terminal of 24 lines still shows what was there before."""
REFRESH_HZ = 5
"""Rich at 10 Hz and 16 rows takes 7 % of a core; this is enough for the eye."""


class ProgressBars:
    """An observer that draws one bar for the batch and one for each running item. Use in a `with` block.

    :param title: what the items are, such as "videos".
    :param names: of the items, by index; others are called by number.
    :param console: where to draw; nothing is drawn if it is no terminal.
    """

    def __init__(self, title: str, names: Sequence[str], console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            # Rich would otherwise swallow what the program itself prints meanwhile.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._lock = threading.Lock()
        self._rows: dict[int, TaskID] = {}
        self.begin(title, names)

    def begin(self, title: str, names: Sequence[str]) -> None:
        """Another batch comes next: draw that one."""
        with self._lock:
            for row in self._progress.task_ids:
                self._progress.remove_task(row)
            self._names = names
            self._rows.clear()
            self._running: dict[int, float] = {}
            self._ended: set[int] = set()
            self._failed = 0
            self._total = len(names) or None
            self._batch = self._progress.add_task(title, total=self._total, state="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        index = event.index
        if index is None:
            return
        with self._lock:
            if index in self._ended:  # what was given up may still report
                return
            if event.kind is Kind.ITEM_PROGRESS:
                self._advance(index, event.fraction or 0.0, event.message)
            elif event.kind in (Kind.ITEM_FINISHED, Kind.ITEM_FAILED):
                self._end(index, failed=event.kind is Kind.ITEM_FAILED)

    def _advance(self, index: int, fraction: float, words: str) -> None:
        self._running[index] = min(1.0, max(0.0, fraction))
        if index in self._rows:
            self._progress.update(self._rows[index], completed=self._running[index], state=words)
        elif len(self._rows) < MOST_ROWS:
            name = self._names[index] if index < len(self._names) else f"item {index + 1}"
            short = escape(name if len(name) <= 32 else f"…{name[-31:]}")
            self._rows[index] = self._progress.add_task(f"  {short}", total=1.0, state=words)
        self._draw()

    def _end(self, index: int, *, failed: bool) -> None:
        self._ended.add(index)
        self._failed += failed
        self._running.pop(index, None)
        row = self._rows.pop(index, None)
        if row is not None:
            self._progress.remove_task(row)
        self._draw()

    def _draw(self) -> None:
        done = len(self._ended)
        state = f"{done}" if self._total is None else f"{done}/{self._total}"
        if self._failed:
            state += f", [red]{self._failed} failed[/red]"
        # Media time of running items counts, so that one long video does not look like a hang.
        self._progress.update(self._batch, completed=done + sum(self._running.values()), state=state)
