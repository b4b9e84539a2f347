"""One end of the socket between a worker and its parent: messages of a tag, a body, and large buffers.

A small message is one `send`, and mostly one `recv`. What is large (arrays by pickle protocol 5, long
bodies) goes through a segment of shared memory instead, whose descriptor travels with the message: one
copy in, none out, since the receiver maps it and what it unpickles lives in the mapping. When that is
garbage, the segment's token goes back with the next message, and the sender uses the segment again; a new
one costs up to a third more, for the kernel must clear it (benchmarks/bench_payload.py).

Segments have no names, so nothing is left behind however a process ends, and they do not depend on the
size of /dev/shm. Where there is no memory for one, the message takes the socket.

    head    tag, number of buffers, number of tokens, whether there is a segment, length of the body
    table   the segment's token and size; (length, offset) of the body and each buffer; returned tokens
    then    what is not in the segment (offset -1): the body, the buffers
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SEGMENT_BYTES = 1 << 18
"""From here on the segment is faster than the socket, by a third at 1 MB (benchmarks/bench_payload.py)."""
READ_BYTES = 1 << 16
MOST_LENT = 8
"""Segments that one receiver may keep before more are for a single use: each is an open descriptor."""
MOST_FREE = 4
"""Segments kept for use again; more would only hold memory."""
MOST_MAPPED = 64
"""Segments that this process maps at a time; what comes then is copied out of its segment, since each mapping
holds a descriptor for as long as somebody keeps what was unpickled from it."""

_HEAD = struct.Struct("<cBIIQ")
_PAIR = struct.Struct("<qq")
_TOKEN = struct.Struct("<q")
_FD_BYTES = socket.CMSG_SPACE(4 * 4)


class Wire:
    """Both ends have one. Not safe for two threads that send at once, or that receive at once."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._data = b""
        self._fds: list[int] = []
        self._lender = _Lender()
        self._returned: list[int] = []
        """Tokens of the other side's segments that nothing here refers to any more."""

    def send(self, tag: bytes, body: bytes, buffers: Sequence[memoryview] = ()) -> None:
        """:raises OSError: if the other end is gone."""
        size = len(body)
        if not buffers and size < SEGMENT_BYTES and not self._returned:
            self._socket.sendall(_HEAD.pack(tag, 0, 0, 0, size) + body)
            return
        tokens = [self._returned.pop() for _ in range(min(len(self._returned), 1000))]
        frames = [memoryview(body), *buffers]
        offsets, fd, segment = [-1] * len(frames), -1, (0, 0)
        large = [number for number, frame in enumerate(frames) if frame.nbytes >= SEGMENT_BYTES]
        if large and (lent := self._lender.put([frames[number] for number in large])):
            fd, segment, places = lent
            for number, place in zip(large, places, strict=True):
                offsets[number] = place
        parts: list[Any] = [_HEAD.pack(tag, 1 + (fd >= 0), len(buffers), len(tokens), size)]
        parts.append(_PAIR.pack(*segment))
        parts += [_PAIR.pack(frame.nbytes, place) for frame, place in zip(frames, offsets, strict=True)]
        parts += [_TOKEN.pack(token) for token in tokens]
        try:
            self._send_all(
                [b"".join(parts), *(frame for frame, at in zip(frames, offsets, strict=True) if at < 0)], fd
            )
        finally:
            if fd >= 0 and segment[0] == 0:
                os.close(fd)

    def _send_all(self, parts: list[Any], fd: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        sent = self._socket.sendmsg(parts[:1], rights)
        self._socket.sendall(memoryview(parts[0])[sent:])
        for part in parts[1:]:
            self._socket.sendall(part)

    def receive(self) -> tuple[bytes, Any, list[memoryview]]:
        """The next message: tag, body, buffers. What is unpickled from the buffers may be kept.

        :raises EOFError: the other end is gone.
        """
        tag, kind, count, returned, size = _HEAD.unpack(self._take(_HEAD.size))
        if not kind:
            return tag, self._take(size), []
        token, length = _PAIR.unpack(self._take(_PAIR.size))
        table = self._take(_PAIR.size * (1 + count) + _TOKEN.size * returned)
        places = list(_PAIR.iter_unpack(table[: _PAIR.size * (1 + count)]))
        self._lender.take_back(one for (one,) in _TOKEN.iter_unpack(table[_PAIR.size * (1 + count) :]))
        segment = self._map(token, length) if kind == 2 else None
        frames = [
            self._take(nbytes) if at < 0 or segment is None else segment[at : at + nbytes]
            for nbytes, at in places
        ]
        # Arrays that could be written to before can be after.
        return (
            tag,
            frames[0],
            [memoryview(bytearray(frame) if type(frame) is bytes else frame) for frame in frames[1:]],
        )

    def close(self) -> None:
        self._socket.close()
        self._lender.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _take(self, size: int) -> Any:
        """The next `size` bytes."""
        if not size:
            return b""
        data = self._data
        if not data and size <= READ_BYTES:
            data = self._data = self._read()
        if len(data) >= size:
            self._data = data[size:]
            return data if len(data) == size else data[:size]
        whole = bytearray(size)
        view = memoryview(whole)
        view[: len(data)] = data
        self._data, filled = b"", len(data)
        while filled < size:
            if size - filled >= READ_BYTES:
                got = self._socket.recv_into(view[filled:])  # long frames carry no descriptors
                if not got:
                    raise EOFError
                filled += got
            else:
                data = self._read()
                use = min(len(data), size - filled)
                view[filled : filled + use] = data[:use]
                self._data, filled = data[use:], filled + use
        return whole

    def _read(self) -> bytes:
        data, rights, _, _ = self._socket.recvmsg(READ_BYTES, _FD_BYTES)
        for _, _, packed in rights:
            self._fds += array.array("i", packed[: len(packed) - len(packed) % 4])
        if not data:
            raise EOFError
        return data

    def _map(self, token: int, size: int) -> memoryview:
        """The segment whose descriptor came with the message."""
        if not self._fds:  # there was no room for another descriptor here; what follows makes no sense
            raise EOFError
        fd, returned = self._fds.pop(0), self._returned
        try:
            if len(_mapped) >= MOST_MAPPED:
                copy = memoryview(bytearray(size))
                read = 0
                while read < size:  # 2 GiB at a time, at most
                    read += os.preadv(fd, [copy[read:]], read)
                if token:
                    returned.append(token)
                return copy
            memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        finally:
            os.close(fd)

        def unmapped(reference: Any) -> None:
            _mapped.discard(reference)
            if token:
                returned.append(token)

        _mapped.add(weakref.ref(memory, unmapped))
        return memoryview(memory)


_mapped: set[weakref.ref[mmap.mmap]] = set()


class _Lender:
    """The segments of one sender."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []
        """(descriptor, size)"""
        self._lent: dict[int, tuple[int, int]] = {}
        self._last = 0

    def put(self, frames: Sequence[memoryview]) -> tuple[int, tuple[int, int], list[int]] | None:
        """Copy the frames into a segment.

        :return: its descriptor, (token or 0 for a single use, size), the place of each frame; or None if
            there is no memory for it. A single-use descriptor is the caller's to close.
        """
        places, size = [], 0
        for frame in frames:
            places.append(size)
            size += -(-frame.nbytes // 64) * 64
        fd, room = -1, 0
        try:
            fd, room = self._segment(size)
            for frame, place in zip(frames, places, strict=True):
                _write(fd, frame.cast("B") if frame.nbytes else frame, place)
        except OSError:
            if fd >= 0:
                os.close(fd)
            return None
        if len(self._lent) >= MOST_LENT:
            return fd, (0, room), places
        self._last += 1
        self._lent[self._last] = fd, room
        return fd, (self._last, room), places

    def _segment(self, size: int) -> tuple[int, int]:
        for number, (_, room) in enumerate(self._free):
            if size <= room <= 4 * size:
                return self._free.pop(number)
        if not hasattr(os, "memfd_create"):
            raise OSError("no segments without names here")
        fd = os.memfd_create("video-segment", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd, size

    def take_back(self, tokens: Any) -> None:
        for token in tokens:
            segment = self._lent.pop(token, None)
            if segment is not None:
                self._free.append(segment)
                if len(self._free) > MOST_FREE:
                    os.close(self._free.pop(0)[0])

    def close(self) -> None:
        for fd, _ in (*self._free, *self._lent.values()):
            os.close(fd)
        self._free.clear()
        self._lent.clear()


def _write(fd: int, frame: memoryview, place: int) -> None:
    """Written, not mapped: where memory runs out, this is an error and not a fatal signal."""
    while frame.nbytes:
        written = os.pwrite(fd, frame, place)
        frame, place = frame[written:], place + written
