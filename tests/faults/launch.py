"""Starts fault programs, with a bound on every wait, and ends whatever they leave running."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.faults.census import SHM, below, living, shared

Facts: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
FAULT_SECONDS = 60.0
"""A fault that takes longer hangs; its program is then made to say where its threads are."""


class Program:
    """A running program in a session, and with a temporary folder, of its own.

    :param over: once it is set, nobody waits for what the program says.
    """

    def __init__(self, engine: str, *arguments: str, over: threading.Event | None = None) -> None:
        self._over = over or threading.Event()
        self._room = Path(tempfile.mkdtemp(prefix="video-faults-"))
        temporary, marks = self._room / "tmp", self._room / "marks"
        temporary.mkdir()
        marks.mkdir()
        self.sign = {"TMPDIR": str(temporary)}
        """Is in the environment of all that descends from it."""
        self._errors = self._room / "errors"
        self._shared: Callable[[], list[str]] = list
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.program", engine, *arguments, "--folder", str(marks)],
                cwd=ROOT,
                env=os.environ | self.sign | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[Facts | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self, seconds: float) -> Facts | None:
        """What it says next; None: it has ended, or it says nothing for so long."""
        deadline = time.monotonic() + seconds
        while not self._over.is_set() and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=min(0.5, left))
        return None

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-6000:]

    def living(self) -> dict[int, str]:
        """Processes that descend from it, itself among them."""
        return living(self.sign)

    def look(self) -> None:
        """Keep in sight the /dev/shm that it has, which is its own where the system allows that.

        Call it while it runs: afterwards nobody knows which segments were its own.
        """
        seen = os.open(f"/proc/{self.process.pid}/root/dev/shm", os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, seen)
        own = os.fstat(seen).st_dev != SHM.stat().st_dev
        self._shared = functools.partial(shared, seen, None if own else {self.process.pid, *self.living()})

    def remains(self) -> dict[str, list[str]]:
        """What it holds of the system: processes, segments of shared memory and temporary files, by kind."""
        found = {
            "processes": [f"{pid} {words}" for pid, words in self.living().items()],
            "shared memory": self._shared(),
            "files": below(self.sign["TMPDIR"]),
        }
        return {kind: names for kind, names in found.items() if names}

    def close(self) -> str:
        """End it and all that descends from it, and say what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        while left := self.living():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        errors = self.errors()
        shutil.rmtree(self._room)
        return errors


@contextlib.contextmanager
def started(engine: str, *arguments: str, over: threading.Event | None = None) -> Iterator[Program]:
    program = Program(engine, *arguments, over=over)
    try:
        yield program
    finally:
        program.close()


def run(
    engine: str, faults: Sequence[str], repeats: int = 1, over: threading.Event | None = None
) -> dict[str, list[Facts]]:
    """Facts of each fault, as often as it is repeated. One that hangs, or ends its program, says so in its
    last facts, and the others run in another program.

    :param over: once it is set, no more is run.
    """
    over = over or threading.Event()
    facts: dict[str, list[Facts]] = {fault: [] for fault in faults}
    left = list(faults)
    while left and not over.is_set():
        program = Program(engine, *left, "--repeats", str(repeats), over=over)
        one = program.next(START_SECONDS)
        while left and one is not None:
            one = program.next(FAULT_SECONDS)
            if one is None:
                break
            facts[one["fault"]].append(one)
            if len(facts[left[0]]) == repeats:
                left.pop(0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(0 if left else START_SECONDS)
        code = program.process.poll()
        errors = program.close()
        if left:
            ending = "hangs" if code is None else f"has ended its program with exit code {code}"
            facts[left.pop(0)].append({"broken": f"{ending}\n{errors}"})
        elif code:
            facts[faults[-1]].append({"broken": f"its program ends with exit code {code}\n{errors}"})
    return facts
