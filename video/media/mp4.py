"""The one thing that FFmpeg tells only after decoding a frame, read from the header of an mp4 or mov file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

# ISO/IEC 14496-12: where the transformation matrix is in the payload of `tkhd` and `mvhd`, by version.
_MATRIX_AT = {b"tkhd": {0: 40, 1: 52}, b"mvhd": {0: 36, 1: 48}}
_UPRIGHT = (1 << 16, 0, 0, 1 << 16)
_MOST_BOXES = 10_000


def surely_upright(path: str | os.PathLike[str]) -> bool:
    """True where the header says that no track is turned or mirrored; False where it does not say so.

    Saves decoding a key frame (10 ms at 720p), most of the cost of copying a short clip.
    """
    found = 0
    try:
        with open(path, "rb") as file:
            for kind, size in _boxes(file, (b"moov", b"trak")):
                if kind in _MATRIX_AT:
                    payload = file.read(min(size, 128))
                    (a, b, _, c, d) = struct.unpack_from(">5i", payload, _MATRIX_AT[kind][payload[0]])
                    if (a, b, c, d) != _UPRIGHT:
                        return False
                    found += 1
    except (OSError, ValueError, struct.error, LookupError):  # a size may be beyond any file
        return False
    return found >= 2


def _boxes(file: BinaryIO, opened: tuple[bytes, ...]) -> Iterator[tuple[bytes, int]]:
    """(kind, size of payload) of each box, the file placed at the payload; `opened` ones are gone into."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        start = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", head, 8)
            start = 16
        if size < start:  # 0: up to the end of the file
            return
        if kind in opened:
            at += start
            continue
        file.seek(at + start)
        yield kind, size - start
        at += size
