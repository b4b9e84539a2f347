"""Damages media files as disks, networks and malice do: the same damage for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

BOXES = re.compile(
    rb"(?:moov|trak|tkhd|mdia|mdhd|minf|stbl|stsd|stts|ctts|stss|stsc|stsz|stco|edts|elst|mdat|avc1|avcC"
    rb"|hvc1|hev1|hvcC|mp4a|esds|mvhd)"
)
"""Names of boxes of an mp4 file: the four bytes before each are its length."""

ELEMENTS = re.compile(
    rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x1c\x53\xbb\x6b|\xae|\xe0|\xe1|\x63\xa2|\xa3|\xe7"
)
"""What elements of Matroska begin with: a byte or more of length follows."""


def mutated(sources: Sequence[bytes], seed: int) -> bytes:
    """One of `sources`, damaged in one or two ways."""
    chance = random.Random(seed)
    data = bytearray(sources[seed % len(sources)])
    for _ in range(chance.choice((1, 1, 2))):
        data = WAYS[chance.randrange(len(WAYS))](data, sources, chance)
    return bytes(data)


Way = Callable[[bytearray, Sequence[bytes], random.Random], bytearray]


def flip_bits(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 3, 10, 100))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def truncate(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data) + 1)]


def zero(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    size = chance.choice((4, 64, 1024))
    at = chance.randrange(max(1, len(data)))
    data[at : at + size] = bytes(len(data[at : at + size]))
    return data


def join_halves(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    other = sources[chance.randrange(len(sources))]
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other)) :]


def repeat(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    at, size = chance.randrange(max(1, len(data))), chance.choice((1, 16, 2048))
    return data[: at + size] + data[at:]


def lie_about_a_length(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    """Of a box or an element; of a table in a box, too, whose count stands eight bytes after its name."""
    if data[4:8] == b"ftyp":
        found = [one.start() for one in BOXES.finditer(data)]
        if found:
            at = chance.choice(found) + chance.choice((-4, -4, 8))
            sizes = (0, 1, 7, 2**31 - 1, 2**32 - 1, chance.randrange(2**32), chance.randrange(4096))
            data[max(0, at) : at + 4] = chance.choice(sizes).to_bytes(4, "big")
        return data
    ends = [one.end() for one in ELEMENTS.finditer(data)]
    at = chance.choice(ends or [0])
    data[at : at + 1] = bytes([chance.choice((0x01, 0x08, 0x10, 0x40, 0x80, 0xFF, chance.randrange(256)))])
    return data


def write_over_a_field(data: bytearray, sources: Sequence[bytes], chance: random.Random) -> bytearray:
    """Four bytes near the beginning or the end, where headers are, become an extreme number."""
    near = min(len(data), 1500)
    at = chance.randrange(max(1, near))
    at = at if chance.random() < 0.5 else max(0, len(data) - 1 - at)
    data[at : at + 4] = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, "big")
    return data


WAYS: tuple[Way, ...] = (
    flip_bits,
    flip_bits,
    truncate,
    zero,
    join_halves,
    repeat,
    lie_about_a_length,
    lie_about_a_length,
    write_over_a_field,
)
