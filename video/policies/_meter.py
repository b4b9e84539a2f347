"""What this process and its children hold."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any, NamedTuple

REFRESH_SECONDS = 0.5
"""From one search for child processes to the next."""
EXACT_SHARE = 0.05
"""Of the time, at most so much is spent on finding out which pages children share."""


class Held(NamedTuple):
    """Bytes that are held."""

    own: float
    """By this process."""
    others: float
    """By its children, and theirs."""


class Meter:
    """Looks at what this process and its children hold.

    A page that several children share counts once among them: what a fork server had loaded before it
    forked them, until one of them writes there. Files, and memory that they share with this process, do not
    count for them.

    Sources: `statm` and `smaps_rollup` of proc(5).
    """

    def __init__(self) -> None:
        import psutil  # only a batch with a limit spends the time

        self._psutil = psutil
        self._self = psutil.Process()
        self._children: list[Any] = []
        self._shared: dict[int, float] = {}
        """Of a child's own pages, bytes that count for others."""
        self._search_at = self._exact_at = -math.inf

    def __call__(self, now: float) -> Held:
        """
        :param now: `time.monotonic()`.
        :raises OSError, psutil.Error: if it cannot be known now.
        """
        if now >= self._search_at:
            self._search_at = now + REFRESH_SECONDS
            known = {child.pid: child for child in self._children}
            found = self._self.children(recursive=True)
            self._children = [known.get(child.pid, child) for child in found]
            if now >= self._exact_at:
                began = time.perf_counter()
                self._shared = {
                    child.pid: self._private(child) - self._exact(child) for child in self._children
                }
                self._exact_at = now + (time.perf_counter() - began) / EXACT_SHARE
        others = (max(0.0, self._private(one) - self._shared.get(one.pid, 0.0)) for one in self._children)
        return Held(self._self.memory_info().rss, sum(others))

    def tree(self, pid: int) -> float:
        """Bytes that a child and its own children hold; 0 if there is none."""
        with contextlib.suppress(self._psutil.Error):
            child = self._psutil.Process(pid)
            return self._exact(child) + sum(map(self._exact, child.children(recursive=True)))
        return 0.0

    def _private(self, process: Any) -> float:
        """Bytes of pages that are no file's, nor shared on purpose; 0 if it has ended."""
        try:
            info = process.memory_info()
        except self._psutil.Error:
            return 0.0
        return float(info.rss - getattr(info, "shared", 0))

    def _exact(self, process: Any) -> float:
        """The same, where a page that several have counts for each by its share."""
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"/proc/{process.pid}/smaps_rollup", "rb") as file,
        ):
            for line in file:
                if line.startswith(b"Pss_Anon:"):
                    return float(int(line.split()[1]) * 1024)
        return self._private(process)
