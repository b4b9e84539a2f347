"""What is stored around a span of a video: an index of its packets, read without decoding a picture."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from av.container import InputContainer
from av.video.stream import VideoStream

from video.media import base, nal
from video.media.nal import Unspliceable
from video.media.seek import packets_from, stored_times_only

_MOST_REORDERED = 33
"""Packets: neither codec lets a picture wait for more than 16 others."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One packet: one picture, in the order stored. Times are in ticks of its stream."""

    pts: int
    """When it is shown."""
    key: bool = False
    """Nothing stored from here on needs anything before, but for pictures that are shown before this one."""
    size: int = 0
    """Bytes."""
    hidden: bool = False
    """Decoded but never shown, as an edit list wants it."""
    dts: int | None = None
    duration: int = 0


def read(container: InputContainer, video: VideoStream, first: int, stop: int) -> list[Stored]:
    """Packets in the order stored, from the key frame at or before `first` to where no picture before `stop`
    can follow.

    Takes about 10 ms for a minute of video, which is read from disk.

    :param first, stop: ticks.
    :raises Unspliceable: it is of a kind that cannot be spliced, whatever the plan.
    """
    codec = video.codec_context.name
    if codec not in ("h264", "hevc"):
        raise Unspliceable(f"only H.264 and HEVC can be spliced, not {codec}")
    if stored_times_only(container):
        raise Unspliceable("it does not say when its pictures are shown")
    _, length = nal.header_of(codec, video.codec_context.extradata)
    found: list[Stored] = []
    late = 0
    tick = base.fraction(video.time_base)
    for packet in packets_from(container, video, None, Fraction(first) * tick):
        if packet.pts is None:
            raise Unspliceable("it has no timestamps")
        if packet.is_corrupt:
            raise Unspliceable("it is damaged")
        key = packet.is_keyframe and nal.starts_anew(codec, nal.split(bytes(packet), length))
        found.append(
            Stored(packet.pts, key, packet.size, packet.is_discard, packet.dts, packet.duration or 0)
        )
        late += packet.pts >= stop
        if late > _MOST_REORDERED or (packet.dts is not None and packet.dts >= stop and packet.pts >= stop):
            break
    return found
