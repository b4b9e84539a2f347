"""What a program holds of the system: processes, threads, descriptors, shared memory, temporary files."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

SHM = Path("/dev/shm")
SETTLE_SECONDS = 15.0
"""How long what is on its way out (a thread that was given up, a dying process) may take."""
SEGMENT = "memfd:video-segment"

Census = dict[str, Counter[str]]


def own_shm(size: str = "1g") -> bool:
    """Give this process and its children a /dev/shm of their own; False where the system does not let us.

    Others write there at any time, and what they leave behind is not to be taken for ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, (1 << 18) | (1 << 14)  # CLONE_NEWNS; MS_PRIVATE | MS_REC
    if not SHM.is_dir() or not hasattr(libc, "unshare") or libc.unshare(new_namespace):
        return False
    if libc.mount(b"none", b"/", None, private, None):
        return False
    return not libc.mount(b"tmpfs", str(SHM).encode(), b"tmpfs", 0, f"size={size}".encode())


def census(*, shm_is_ours: bool) -> Census:
    """Counts by kind, and within a kind by what one would like to know of a leak."""
    gc.collect()
    pids = family(os.getpid(), {"TMPDIR": tempfile.gettempdir()})
    descriptors = Counter(map(_kind, _links()))
    segments = descriptors.pop(SEGMENT, 0)
    return {
        "processes": Counter(map(_said, pids)),
        "threads": Counter(thread.name.rstrip("0123456789") for thread in threading.enumerate())
        + Counter({"native": max(0, len(os.listdir("/proc/self/task")) - threading.active_count())}),
        "descriptors": descriptors,
        "segments": Counter({SEGMENT: segments}),
        "shared memory": Counter(shared(SHM, None if shm_is_ours else {os.getpid(), *pids})),
        "files": Counter(below(tempfile.gettempdir())),
    }


def growth(before: Census, kept: Mapping[str, int], *, shm_is_ours: bool) -> dict[str, dict[str, int]]:
    """What there is more of than before, once it has had time to go; empty: nothing.

    :param kept: of some kinds, so many more are kept for use again, and no leak.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        more: dict[str, dict[str, int]] = {}
        for kind, counts in census(shm_is_ours=shm_is_ours).items():
            allowed = before[kind].total() + kept.get(kind, 0)
            if counts.total() > allowed:  # all of a kind: a thread, say, may be replaced by another
                more[kind] = dict(counts - before[kind])
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.02)


def family(pid: int, sign: dict[str, str]) -> set[int]:
    """Processes below `pid`, dead ones that nobody has reaped among them, and all that carry `sign` in their
    environment, whoever their parent is by now."""
    words = [f"{name}={value}".encode() for name, value in sign.items()]
    parents: dict[int, list[int]] = {}
    found: set[int] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(name))
            environment = Path("/proc", name, "environ").read_bytes().split(b"\0")
            if all(word in environment for word in words):
                found.add(int(name))
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting += children
    return found - {pid}


def living(sign: dict[str, str]) -> dict[int, str]:
    """Processes that carry `sign`, and what they are; a dead one carries nothing."""
    return {pid: _said(pid) for pid in family(-1, sign) if pid != os.getpid()}


def _said(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words[:60].strip() or Path(f"/proc/{pid}/stat").read_text().partition(")")[0]
    except OSError:
        return "gone"


def _links() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def _kind(link: str) -> str:
    return link.partition(":[")[0].replace(" (deleted)", "").lstrip("/")


def shared(folder: Path | int, pids: set[int] | None) -> list[str]:
    """Names in a /dev/shm, of all that there are (None) or of those processes.

    Where others write too, only names that hold one of our numbers are surely ours.

    :param folder: or the descriptor of one.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    if pids is None:
        return names
    numbers = {str(pid) for pid in pids}  # whole ones: 123 is not ours for being a part of somebody's 51234
    return [name for name in names if numbers.intersection(re.findall("[0-9]+", name))]


def below(folder: str) -> list[str]:
    """All files and folders there. Not by `rglob`, which fails where one is removed meanwhile."""
    return [
        os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)
    ]
