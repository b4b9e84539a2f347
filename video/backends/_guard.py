"""Ends workers whose parent is gone, from a process of its own.

A worker that watches its parent itself (`_worker.die_with`) cannot do so while a C call keeps its
interpreter's lock. The kernel's own way, PR_SET_PDEATHSIG, would kill it at once and alone: its unfinished
files and its children would stay. The fork server needs no guard, since it outlives its parent.
"""

from __future__ import annotations

import contextlib
import subprocess

SCRIPT = """word=$1; shift
read -r dismissed && exit
sleep 2.5
for pid; do grep -qs -e "$word" "/proc/$pid/cmdline" && kill -s KILL -- "-$pid"; done"""
"""Later than the workers themselves, and only what is still a worker: the number may be another's by then."""


class Guard:
    """A small process that waits for the end of ours.

    :param pids: workers, each the leader of a process group.
    :param word: stands in the command line of each of them, and in hardly any other.
    """

    def __init__(self, pids: list[int], word: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        # Without one, workers still see to it themselves. RuntimeError: the interpreter is about to end.
        with contextlib.suppress(OSError, RuntimeError):
            self._process = subprocess.Popen(  # noqa: S603  # our own words
                ["/bin/sh", "-c", SCRIPT, "sh", word, *map(str, pids)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def dismiss(self) -> None:
        """The workers have ended."""
        if self._process is not None:
            self._process.communicate(b"\n")
