"""What this program and its workers take of the machine, while a block runs."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from types import TracebackType
from typing import Any, Self

from video.policies._meter import Meter

LOOK_SECONDS = 0.2
"""From one look to the next; a look takes a few milliseconds."""


class ResourceMonitor:
    """Looks at CPU and memory of this process and its children; use it in a `with` block. What it saw can be
    read meanwhile and afterwards."""

    def __init__(self) -> None:
        self.cpu_percent = 0.0
        """Of one CPU, so that two busy ones are 200; at the last look, as for `memory_bytes`."""
        self.peak_cpu_percent = 0.0
        self.memory_bytes = 0.0
        """What a page that several processes share counts once."""
        self.peak_memory_bytes = 0.0
        self.seconds = 0.0
        """Since the block began."""
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="video-resources", daemon=True)

    def as_dict(self) -> dict[str, Any]:
        names = ("cpu_percent", "peak_cpu_percent", "memory_bytes", "peak_memory_bytes", "seconds", "looks")
        return {name: getattr(self, name) for name in names}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        gc.collect()  # what results and tracebacks of the block hold

    def _watch(self) -> None:
        import psutil

        meter, own = Meter(), psutil.Process()
        began = before = time.monotonic()
        used: dict[int, float] = {}
        while True:
            with contextlib.suppress(OSError, psutil.Error):  # a worker has ended just now
                now = time.monotonic()
                held = meter(now)
                spent = {one.pid: _cpu_seconds(one) for one in (own, *own.children(recursive=True))}
                if self.looks and now > before:
                    busy = sum(max(0.0, cpu - used.get(pid, 0.0)) for pid, cpu in spent.items())
                    self.cpu_percent = 100 * busy / (now - before)
                    self.peak_cpu_percent = max(self.peak_cpu_percent, self.cpu_percent)
                self.memory_bytes = held.own + held.others
                self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory_bytes)
                self.seconds, self.looks = now - began, self.looks + 1
                used, before = spent, now
            if self._stop.wait(LOOK_SECONDS):
                return


def _cpu_seconds(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
