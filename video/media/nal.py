"""The units that H.264 and HEVC streams are made of, and the numbers of their parameter sets.

A clip whose edges are encoded anew holds pictures of two encoders, so two kinds of parameter sets. Both go
into the header of the file, which every player reads, under numbers that do not collide; so nothing is left
to how a player takes sets that change in midstream. Browsers stop at a header that changes there (GStreamer's
smart encoder, merge request 1249 of its base plugins), and `avc1` and `hvc1`, which players know best, allow
sets nowhere else.

Sources: ITU-T H.264 (7.3, 7.4.1), ITU-T H.265 (7.3, 7.4.2), ISO/IEC 14496-15 (avcC, hvcC).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

START = b"\0\0\0\1"

_H264_IDR, _H264_SPS, _H264_PPS, _H264_SPS_EXTENSION = 5, 7, 8, 13
_HEVC_CRA, _HEVC_BLA = 21, 18
_HEVC_VPS, _HEVC_SPS, _HEVC_PPS = 32, 33, 34
_HEVC_FIRST_UNSPECIFIED = 48
_NINE_BITS = range(15, 31)
"""Numbers of nine bits, where 0 has one: put in place of 0, they move all that follows by a whole byte."""


class Unspliceable(Exception):
    """This stream cannot be cut by copying a part of it; the text says why."""


def numbers_of(codec: str) -> tuple[range, ...]:
    """What our own parameter sets may be numbered with: sequence sets, picture sets, video sets (HEVC)."""
    if codec == "h264":
        return (range(31, -1, -1), range(31, -1, -1), range(0))
    return (range(15, 16), range(30, 14, -1), range(15, -1, -1))


@dataclass(slots=True)
class Sets:
    """Parameter sets of one stream, whole units without start codes."""

    codec: str
    units: list[bytes] = field(default_factory=list)
    _known: set[bytes] = field(default_factory=set)

    def add(self, unit: bytes) -> None:
        if unit not in self._known:
            self._known.add(unit)
            self.units.append(unit)

    def __contains__(self, unit: bytes) -> bool:
        return unit in self._known

    def numbers(self) -> tuple[set[int], set[int], set[int]]:
        """Taken ones: of sequence sets, picture sets, and video sets."""
        taken: tuple[set[int], set[int], set[int]] = (set(), set(), set())
        for unit in self.units:
            kind, body = kind_of(self.codec, unit), unescaped(unit)
            if self.codec == "h264":
                if kind == _H264_SPS:
                    taken[0].add(_number(body, 4 * 8))
                elif kind == _H264_PPS:
                    taken[1].add(_number(body, 1 * 8))
            elif kind == _HEVC_VPS:
                taken[2].add(body[2] >> 4)
            elif kind == _HEVC_SPS:
                taken[0].add(_number(body, _hevc_sps_number_at(body)))
            elif kind == _HEVC_PPS:
                taken[1].add(_number(body, 2 * 8))
        return taken

    def free(self) -> tuple[int, int, int]:
        """A number for each kind of our own sets, in the order of `numbers`.

        :raises Unspliceable: they are all taken.
        """
        chosen: list[int] = []
        try:
            taken = self.numbers()
        except IndexError:
            raise Unspliceable("its parameter sets cannot be read") from None
        if self.codec == "h264":  # x264 gives both kinds one number
            taken = (taken[0] | taken[1], taken[0] | taken[1], taken[2])
        for wanted, gone in zip(numbers_of(self.codec), taken, strict=True):
            number = next((one for one in wanted if one not in gone), None)
            if number is None and wanted:
                raise Unspliceable("it has no number left for further parameter sets")
            chosen.append(number or 0)
        return chosen[0], chosen[1], chosen[2]

    def joined(self) -> bytes:
        """All of them with start codes, as FFmpeg takes a stream's header; video sets first."""
        order = {_HEVC_VPS: 0, _HEVC_SPS: 1, _HEVC_PPS: 2, _H264_SPS: 1, _H264_SPS_EXTENSION: 2, _H264_PPS: 3}
        return joined(sorted(self.units, key=lambda unit: order.get(kind_of(self.codec, unit), 9)))


def kind_of(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def is_set(codec: str, unit: bytes) -> bool:
    kind = kind_of(codec, unit)
    if codec == "h264":
        return kind in (_H264_SPS, _H264_PPS, _H264_SPS_EXTENSION)
    return kind in (_HEVC_VPS, _HEVC_SPS, _HEVC_PPS)


def header_of(codec: str, header: bytes | None) -> tuple[Sets, int]:
    """(parameter sets, bytes of the length before each unit; 0 where start codes are used) of a stream.

    :param header: FFmpeg's extradata: avcC, hvcC, or units with start codes.
    :raises Unspliceable: it cannot be read, or has none.
    """
    sets = Sets(codec)
    if not header or len(header) < 7:
        raise Unspliceable("its header has no parameter sets")
    try:
        if header[0] != 1:
            length, units = 0, iter(split(header, 0))
        elif codec == "h264":
            length = (header[4] & 3) + 1
            units = _units_of_avcc(header)
        else:
            length = (header[21] & 3) + 1
            units = _units_of_hvcc(header)
        for unit in units:
            if is_set(codec, unit):
                sets.add(unit)
    except IndexError:
        raise Unspliceable("its parameter sets cannot be read") from None
    if not sets.units:
        raise Unspliceable("its header has no parameter sets")
    return sets, length


def _units_of_avcc(header: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count, at = header[at] & mask, at + 1
        for _ in range(count):
            size = header[at] << 8 | header[at + 1]
            yield header[at + 2 : at + 2 + size]
            at += 2 + size


def _units_of_hvcc(header: bytes) -> Iterator[bytes]:
    at = 23
    for _ in range(header[22]):
        count, at = header[at + 1] << 8 | header[at + 2], at + 3
        for _ in range(count):
            size = header[at] << 8 | header[at + 1]
            yield header[at + 2 : at + 2 + size]
            at += 2 + size


def split(data: bytes, length: int) -> list[bytes]:
    """The units of a packet.

    :param length: bytes of the length before each; 0 where start codes are used.
    """
    if length == 0:
        units = [unit.rstrip(b"\0") for unit in data.split(b"\0\0\1")[1:]]
        return [unit for unit in units if unit]
    units, at = [], 0
    while at + length < len(data):
        size = int.from_bytes(data[at : at + length], "big")
        if size:
            units.append(data[at + length : at + length + size])
        at += length + size
    if at != len(data):
        raise Unspliceable("its packets cannot be read")
    return units


def joined(units: Iterable[bytes]) -> bytes:
    """The units with start codes."""
    return b"".join(START + unit for unit in units)


def starts_anew(codec: str, units: Iterable[bytes]) -> bool:
    """Whether no picture from this packet on, in the order stored, needs one before it, but for pictures that
    are shown before it.

    :raises Unspliceable: it has layers or data that our own pictures would lack.
    """
    if codec == "h264":  # a new sequence set may begin at an IDR picture only (7.4.1.2.1)
        return any(kind_of(codec, unit) == _H264_IDR for unit in units)
    found = False
    for unit in units:
        kind = kind_of(codec, unit)
        if unit[0] & 1 or unit[1] >> 3:
            raise Unspliceable("it has more than one layer")
        if kind >= _HEVC_FIRST_UNSPECIFIED:
            raise Unspliceable(
                "it has data for each picture that only its own encoder makes, as Dolby Vision"
            )
        found = found or 16 <= kind <= _HEVC_CRA
    return found


def broken_link(unit: bytes) -> bytes:
    """A CRA picture's unit as a BLA one's: what the standard (8.1.3) calls a CRA picture after a splice."""
    if kind_of("hevc", unit) != _HEVC_CRA:
        return unit
    return bytes([unit[0] & 0x81 | _HEVC_BLA << 1]) + unit[1:]


def renumbered(unit: bytes, numbers: tuple[int, int, int]) -> bytes:
    """A unit that x265 wrote, which numbers all sets 0, with other numbers.

    :param numbers: as `Sets.free` gives them.
    :raises Unspliceable: it is not as x265 is known to write it.
    """
    sequence, picture, video = numbers
    kind = kind_of("hevc", unit)
    ends_padded = unit.endswith(b"\0\0\3")
    body = bytearray(unescaped(unit))
    if kind == _HEVC_VPS:
        body[2] = video << 4 | body[2] & 15
    elif kind == _HEVC_SPS:
        at = _hevc_sps_number_at(body)
        body[2] = video << 4 | body[2] & 15
        _widen(body, at, sequence)
    elif kind == _HEVC_PPS:
        _widen(body, 17, sequence)
        _widen(body, 16, picture)
    elif kind < 32:
        _widen(body, 18 if 16 <= kind <= 23 else 17, picture)
    else:
        return unit
    written = re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", bytes(body))
    return written + b"\3" if ends_padded else written


def _widen(body: bytearray, at: int, number: int) -> None:
    """Put a number of nine bits in place of 0 at this bit."""
    byte, bit = divmod(at, 8)
    if number not in _NINE_BITS or not body[byte] >> (7 - bit) & 1:
        raise Unspliceable("our own encoder numbers its parameter sets in another way than is known")
    before, after = body[byte] >> (8 - bit), body[byte] & (1 << 7 - bit) - 1
    body[byte : byte + 1] = (before << 16 - bit | number + 1 << 7 - bit | after).to_bytes(2, "big")


def unescaped(unit: bytes) -> bytes:
    """Without the bytes that keep start codes out of a unit."""
    return unit.replace(b"\0\0\3", b"\0\0")


def _hevc_sps_number_at(body: bytes | bytearray) -> int:
    """The bit where the number of a sequence set is; it follows the profiles of each temporal layer."""
    layers = body[2] >> 1 & 7
    at = (2 + 1 + 12) * 8
    if layers:
        flags = int.from_bytes(body[15:17], "big")
        at += 16
        for layer in range(layers):
            profile, level = flags >> 15 - 2 * layer & 1, flags >> 14 - 2 * layer & 1
            at += 88 * profile + 8 * level
    return at


def _number(body: bytes | bytearray, at: int) -> int:
    """The Exp-Golomb number at this bit (9.1)."""
    zeros = 0
    while not body[at + zeros >> 3] >> (7 - (at + zeros & 7)) & 1:
        zeros += 1
    value = 0
    for bit in range(at + zeros, at + 2 * zeros + 1):
        value = value << 1 | body[bit >> 3] >> (7 - (bit & 7)) & 1
    return value - 1
