"""A rate limiter's file store: one small file for each budget, mapped into memory, changed under `flock`.

The lock goes when its holder dies, so no kill leaves it behind. A file has two halves, each with a number and
a checksum, and a step writes the older one: what was torn by a kill is not valid, and the other half is the
budget as it was before that step, which nobody has been told of. Where both are damaged, nothing is permitted
for one window of 60 s, since nobody knows what was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from video.errors import StoreError
from video.policies._rate_gcra import State
from video.policies._rate_stores import LocalStore, key_bytes, unpack

logger = logging.getLogger("video")

SIZE = 16384
_MAGIC = b"video rate 1\n\0\0\0"
_HALVES = (64, 64 + (SIZE - 64) // 2)
_ROOM = (SIZE - 64) // 2
_HEAD = struct.Struct("<QIIQ")
"""Number, length, checksum of all but itself, and zero."""


class _Open(NamedTuple):
    fd: int
    map: mmap.mmap
    turn: list[int]
    """The number to write next, and the half that it goes to."""


class FileStore(LocalStore):
    """Budgets in files: `path` itself, and `path.<hash>` for each further key.

    They are created with mode 0600, their folder with 0700. All processes that share one must see each
    other's process ids (one machine, one container). At most 300 processes may hold permits in flight.
    """

    def __init__(self, path: str | os.PathLike[str], **about: object) -> None:
        super().__init__(path, **about)  # type: ignore[arg-type]  # the base says what they are
        self._open: dict[str, _Open] = {}

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[State | bool]:
        while True:
            file = self._open.get(key)
            if file is None:
                self._open[key] = file = self._map(key)
            fcntl.flock(file.fd, fcntl.LOCK_EX)
            about = os.fstat(file.fd)
            # Deleted or cut off under us: to write to that would share nothing, or end this process.
            if about.st_nlink and about.st_size >= SIZE:
                break
            self._drop(self._open.pop(key))
        try:
            yield self._read(file, key)
        finally:
            fcntl.flock(file.fd, fcntl.LOCK_UN)

    def _read(self, file: _Open, key: str) -> State | bool:
        data = file.map
        if data[: len(_MAGIC)] != _MAGIC:
            if data[: len(_MAGIC)].strip(b"\0"):
                raise StoreError(
                    "it is not a rate limiter's file", subject=self._name(key), cure="Name another file."
                )
            data[: len(_MAGIC)] = _MAGIC
        found: list[tuple[int, int, bytes]] = []
        empty = True
        for half, start in enumerate(_HALVES):
            number, length, check, _ = _HEAD.unpack_from(data, start)
            empty = empty and not (number or length or check)
            if not 0 < length <= _ROOM - _HEAD.size:
                continue
            body = data[start + _HEAD.size : start + _HEAD.size + length]
            if _check(number, body) == check:
                found.append((number, half, body))
        found.sort(reverse=True)
        for number, half, body in found:
            if (state := unpack(body)) is not None:
                file.turn[:] = [number + 1, 1 - half]
                return state
        file.turn[:] = [1, 0]
        if not empty:
            logger.warning("%s was damaged: nothing is permitted for a minute", self._name(key))
        return not empty

    def _keep(self, key: str, data: bytes) -> None:
        file = self._open[key]
        number, half = file.turn
        if len(data) > _ROOM - _HEAD.size:
            raise OSError(errno.ENOSPC, "too many processes hold permits in flight")
        start = _HALVES[half]
        head = _HEAD.pack(number, len(data), _check(number, data), 0)
        file.map[start : start + _HEAD.size + len(data)] = head + data

    def _map(self, key: str) -> _Open:
        name = self._name(key)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if 0 < os.fstat(fd).st_size < SIZE and os.pread(fd, len(_MAGIC), 0) != _MAGIC:
                raise StoreError("it is not a rate limiter's file", subject=name, cure="Name another file.")
            if os.fstat(fd).st_size < SIZE:
                if hasattr(os, "posix_fallocate"):  # on a full disk this fails, where a write to a map kills
                    os.posix_fallocate(fd, 0, SIZE)
                else:
                    os.ftruncate(fd, SIZE)
            fcntl.flock(fd, fcntl.LOCK_UN)
            return _Open(fd, mmap.mmap(fd, SIZE), [1, 0])
        except BaseException:
            os.close(fd)
            raise

    def _name(self, key: str) -> str:
        if not key:
            return str(self.path)
        return f"{self.path}.{hashlib.sha256(key_bytes(key)).hexdigest()[:32]}"

    def _shut(self) -> None:
        for file in self._open.values():
            self._drop(file)
        self._open.clear()

    _forget = _shut
    """Closing an inherited file leaves the parent's lock alone: it goes with the last copy."""

    @staticmethod
    def _drop(file: _Open) -> None:
        file.map.close()
        os.close(file.fd)


def _check(number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<QI", number, len(body))))
