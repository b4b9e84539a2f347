"""Subtitles of a clip: what is to be read within its time, from its first frame on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle

from video.errors import InvalidMedia
from video.media import base
from video.media.seek import stamp_seconds

_RUN_UP_SECONDS = 30
"""How long before a clip a text may have appeared that is still to be read when it begins."""

_INTERLEAVE_SECONDS = 1
"""How much later than its picture a text is looked for in a file."""

_TEXTS = {"mov_text", "subrip", "srt", "webvtt", "ass", "ssa", "text"}
_WRITTEN_AS = {"matroska": "subrip", "mp4": "mov_text", "mov": "mov_text"}
"""What texts become that a container cannot hold as they are."""
_HELD = {"matroska": _TEXTS - {"mov_text"}, "mp4": {"mov_text"}, "mov": {"mov_text"}}

_MILLISECOND = Fraction(1, 1000)
_EMPTY_MOV_TEXT = 2
"""Bytes: its length alone. Stands in mp4 for the time without a text."""
_LONGEST = 2**16 - 1
"""Bytes that mov_text can hold."""


@dataclass(slots=True)
class _Track:
    source: SubtitleStream
    stream: Any
    """Of the clip."""
    written_as: str
    copied: bool
    latest: int = -1
    """Milliseconds: when the last text written appears."""


def carry(container: InputContainer, out: OutputContainer, zero: Fraction, end: Fraction) -> None:
    """Write the texts that are shown from `zero` on and before `end`; those that began earlier begin with it.

    All at once, so every other stream of `out` must be there before. Pictures of texts (DVD, Blu-ray) are
    left out, and so is what is damaged: no clip fails for its subtitles.

    :param zero: the source's timestamp, in seconds, that becomes 0.
    :param end: the same, of the clip's end.
    """
    if not container.streams.subtitles:
        return
    # Another reading position: texts are stored where they begin, which may be long before the clip does.
    with base.open_input(base.source_name(container), header_only=True) as source:
        tracks = {
            stream.index: track
            for stream in source.streams.subtitles
            if (track := _track(out, stream)) is not None
        }
        if tracks:
            _write_all(source, out, tracks, zero, end)


def _track(out: OutputContainer, stream: SubtitleStream) -> _Track | None:
    context = stream.codec_context
    if context is None or context.name not in _TEXTS:
        return None
    copied = context.name in _HELD[out.format.name]
    written_as = context.name if copied else _WRITTEN_AS[out.format.name]
    try:
        if copied:
            made: Any = out.add_stream_from_template(stream, opaque=True)
        else:
            context.open(strict=False)  # only then it has a header
            made = out.add_stream(written_as)
            made.codec_context.time_base = _MILLISECOND
            made.codec_context.subtitle_header = context.subtitle_header
    except (FFmpegError, ValueError):
        return None
    made.metadata.update(
        {name: stream.metadata[name] for name in ("language", "title") if name in stream.metadata}
    )
    made.disposition = stream.disposition
    return _Track(stream, made, written_as, copied)


def _write_all(
    source: InputContainer, out: OutputContainer, tracks: dict[int, _Track], zero: Fraction, end: Fraction
) -> None:
    for packet in _packets(source, tracks, zero, end):
        track = tracks[packet.stream_index]
        start = stamp_seconds(packet)
        stop = min(end, start + (packet.duration or 0) * base.fraction(packet.time_base))
        start = max(start, zero)
        if start < stop and (made := _made(track, packet)) is not None:
            _write(out, track, made, round((start - zero) * 1000), round((stop - zero) * 1000))


def _packets(
    source: InputContainer, tracks: dict[int, _Track], zero: Fraction, end: Fraction
) -> Iterator[Packet[Any]]:
    """Those of the texts, up to where the file has come to the clip's end."""
    video = base.video_stream(source)
    with contextlib.suppress(FFmpegError):
        source.seek(max(0, round((zero - _RUN_UP_SECONDS) * 1_000_000)))
    with contextlib.suppress(InvalidMedia):
        for packet in base.packets(source, video, *(track.source for track in tracks.values())):
            if packet.stream_index in tracks:
                yield packet
            elif packet.dts is not None and stamp_seconds(packet) > end + _INTERLEAVE_SECONDS:
                return


def _made(track: _Track, packet: Packet[Any]) -> Packet[Any] | None:
    """The packet as the clip holds it, or None if there is nothing to be read."""
    if track.copied:
        empty = packet.size <= _EMPTY_MOV_TEXT and track.source.codec_context.name == "mov_text"
        return None if empty else packet
    with contextlib.suppress(FFmpegError):
        found = track.source.codec_context.decode2(packet)
        words = b"\n".join(_plain(one.dialogue) for one in found or () if isinstance(one, AssSubtitle))
        if words:
            return Packet(words if track.written_as == "subrip" else len(words).to_bytes(2, "big") + words)
    return None


def _plain(words: bytes) -> bytes:
    """Without the marks that FFmpeg's decoders put there for fonts, colours and places."""
    return re.sub(rb"\{\\[^}]*\}", b"", words).replace(rb"\N", b"\n").replace(rb"\h", b" ").strip()[:_LONGEST]


def _write(out: OutputContainer, track: _Track, packet: Packet[Any], start: int, stop: int) -> None:
    """:param start, stop: milliseconds of the clip."""
    start = max(start, track.latest + 1)  # two texts at one time are an error in mp4
    track.latest = start
    packet.stream = track.stream
    packet.time_base = _MILLISECOND
    packet.pts = packet.dts = start
    packet.duration = max(1, stop - start)
    out.mux(packet)
