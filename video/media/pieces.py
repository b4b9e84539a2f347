"""Long videos in pieces: planned by scene, encoded one by one, and joined without encoding them again.

A piece is done once its facts are written beside it, which happens last: so what a killed run has finished is
whole, and is not done again. The plan lies there, too: all who encode pieces or join them go by the same one.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from av import Codec
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from video import scope
from video.errors import InvalidMedia, OutputError
from video.media import base, scenes
from video.media.encode import HVC1, check, muxer
from video.media.render import Output, Rendered, render
from video.media.seek import stamp_seconds, stored_times_only
from video.media.sound import SoundReader, SoundWriter
from video.media.splice import decoding_times

PLAN = "plan.json"
_FACTS = ("start", "end", "frames", "bytes", "width", "height", "source_frames", "damaged")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a video."""

    number: int
    start: Fraction
    """Seconds, as players count."""
    end: Fraction | None
    """None: the end of the video."""
    frames: int
    """Stored pictures that are shown in it."""

    @property
    def row(self) -> list[Any]:
        """What makes it this piece, as plain data."""
        return [str(self.start), None if self.end is None else str(self.end), self.frames]

    def file(self, folder: Path, output: int) -> Path:
        return folder / f"{self.number:05d}-{output}.mp4"

    def facts(self, folder: Path) -> Path:
        return folder / f"{self.number:05d}.json"


def planned(source: str, seconds: float, folder: Path) -> list[Piece]:
    """The pieces as they were planned into this folder before; else a new plan, which is left there.

    :param folder: as for `encode`; its name stands for this source and these seconds, too.
    :raises InvalidMedia, UnsupportedMedia, OutputError: as `plan` says; it cannot be written.
    """
    kept = folder / PLAN
    try:
        rows = json.loads(kept.read_text())
        return [
            Piece(number, Fraction(start), None if end is None else Fraction(end), frames)
            for number, (start, end, frames) in enumerate(rows)
        ]
    except (OSError, ValueError, TypeError):
        found = plan(source, seconds)  # not planned yet
    with base.writing(kept) as part:
        part.write_text(json.dumps([piece.row for piece in found]))
    return found


def plan(source: str, seconds: float) -> list[Piece]:
    """Pieces of at least so many seconds. The last may be shorter.

    Each but the first begins with a scene, up to half as long again after it might begin (see
    `scenes.begins`); where no scene clearly does, with the first key frame. A scene may begin anywhere: then
    the pictures from the key frame before it are decoded twice.

    Reads all packets, and decodes a few pictures for each piece: about 0.4 CPU seconds for a minute of 720p
    in pieces of a minute, 2.5 in pieces of 10 s, where encoding that minute takes about 50.

    :raises InvalidMedia, UnsupportedMedia: it has no pictures.
    """
    with base.open_input(source) as container:
        video, zero = base.video_stream(container), base.origin(container)
        tick = base.fraction(video.time_base)
        stamps, keys = picture_times(container, video)
        length = Fraction(seconds) / tick
        latest = stamps[-1] - length / 2  # a rest of less than half a piece goes with the one before
        cuts = [stamps[0]]
        while (first := cuts[-1] + length) <= latest:
            cut = None
            if not stored_times_only(container):  # else decoded pictures have other times than stored ones
                cut = scenes.begins(container, video, keys, first, min(first + length / 2, latest), length)
            if cut is None or stamps[bisect_left(stamps, cut)] != cut:  # damage can make it one of no packet
                at = bisect_left(keys, first)
                if at == len(keys) or keys[at] > latest:
                    break
                cut = keys[at]
            cuts.append(cut)
    times: list[Fraction | None] = [Fraction(0), *(cut * tick - zero for cut in cuts[1:]), None]
    ends = [*cuts[1:], stamps[-1] + 1]
    pieces, at = [], 0
    for number, end in enumerate(ends):
        begin = at
        while at < len(stamps) and stamps[at] < end:
            at += 1
        start = times[number]
        assert start is not None
        pieces.append(Piece(number, start, times[number + 1], at - begin))
    return pieces


def picture_times(container: InputContainer, video: VideoStream) -> tuple[list[int], list[int]]:
    """When the pictures are shown, and which of those are key frames: ticks, rising. Decodes none.

    :raises InvalidMedia: there are none.
    """
    step = base.usual_step(video)
    stamps, keys, last = [], [], -step
    for packet in base.packets(container, video):
        if not packet.is_discard:
            last = packet.pts if packet.pts is not None else packet.dts or last + step
            stamps.append(last)
            if packet.is_keyframe:
                keys.append(last)
    if not stamps:
        name = base.source_name(container)
        raise InvalidMedia("has no video frames", subject=name, cure="Download or copy it again.")
    return sorted(stamps), sorted(keys)


def is_done(piece: Piece, folder: Path) -> bool:
    """Whether an earlier run has finished it."""
    return _facts(piece, folder) is not None


def encode(
    source: str,
    piece: Piece,
    outputs: Sequence[Output],
    folder: Path,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Make a piece of each of these outputs, without sound; nothing if that is done.

    :param folder: of the pieces of this video, with these settings; made if it is missing.
    :raises VideoError: as `render` says; the first error of an output.
    """
    if is_done(piece, folder):
        return
    silent = [
        Output(piece.file(folder, at), one.pictures, None, one.encoding) for at, one in enumerate(outputs)
    ]
    made = render(source, silent, start=piece.start, end=piece.end, progress=progress)
    facts = []
    for one in made:
        if isinstance(one, Exception):
            raise one
        facts.append({"planned": piece.row, **{name: getattr(one, name) for name in _FACTS}})
    with base.writing(piece.facts(folder)) as part:
        part.write_text(json.dumps(facts))


def _facts(piece: Piece, folder: Path) -> list[dict[str, Any]] | None:
    """What is known of a piece that is done, and was planned like this: for each output a row."""
    try:
        rows = json.loads(piece.facts(folder).read_text())
        whole = all(
            row["planned"] == piece.row and piece.file(folder, at).stat().st_size == row["bytes"]
            for at, row in enumerate(rows)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rows if whole and rows else None


def join(source: str, pieces: Sequence[Piece], number: int, output: Output, folder: Path) -> Rendered:
    """One file of all pieces of an output, with the sound of the source in one piece.

    :param number: of the output, as it was given to `encode`.
    :raises OutputError: it cannot be written; or pieces are missing or do not fit, and are to be made again.
    """
    rows = []
    for piece in pieces:
        found = _facts(piece, folder)
        if found is None:
            raise OutputError("is missing", subject=str(piece.file(folder, number)), cure="Try again.")
        rows.append(found[number])
    path = Path(output.path)
    with base.open_input(source) as container, base.writing(path) as part:
        zero, tick = base.origin(container), base.fraction(base.video_stream(container).time_base)
        starts = [round((zero + Fraction(row["start"])) / tick) * tick for row in rows]
        end = round((zero + Fraction(rows[-1]["end"])) / tick) * tick
        audio = base.audio_stream(container) if output.sound is not None else None
        with muxer(part, source) as out:
            offsets = [start - starts[0] for start in starts]
            codec = Codec(output.encoding.video, "w").canonical_name
            pictures = _Joined(out, pieces, number, folder, offsets, codec)
            if audio is None:
                for _ in pictures.write():
                    scope.check_cancelled()
            else:
                writer = SoundWriter(out, audio, output.encoding)
                _with_sound(pictures.write(), container, audio, writer, starts[0], end)
        check(part, path, frames=pictures.frames, seconds=pictures.seconds, has_audio=audio is not None)
        size = part.stat().st_size
    return Rendered(
        path=path,
        width=rows[0]["width"],
        height=rows[0]["height"],
        frames=pictures.frames,
        seconds=float(end - starts[0]),
        bytes=size,
        start=float(starts[0] - zero),
        end=float(end - zero),
        source_frames=sum(row["source_frames"] for row in rows),
        damaged=sum(row["damaged"] for row in rows),
    )


def _with_sound(
    times: Iterator[Fraction],
    container: InputContainer,
    audio: AudioStream,
    writer: SoundWriter,
    first: Fraction,
    end: Fraction,
) -> None:
    """Encode the sound beside pictures that are written meanwhile.

    :param times: seconds from the first picture, of each that is written.
    :param first, end: timestamps of the source, in seconds.
    """
    source = base.packets(container, audio)
    held: deque[Packet[Any]] = deque()
    reader, read = SoundReader(audio, held, first), first - 1

    def read_until(seconds: Fraction) -> None:
        nonlocal read
        while read < seconds and (packet := next(source, None)) is not None:
            read = stamp_seconds(packet)
            held.append(packet)

    for time in times:
        read_until(first + time)
        for piece in reader.until(first + time):
            writer.write(piece)
    read_until(end)
    for piece in reader.rest(end):
        writer.write(piece)
    writer.finish(end - first)


class _Joined:
    """The pictures of all pieces in one stream; decoding times are made anew."""

    def __init__(
        self,
        out: OutputContainer,
        pieces: Sequence[Piece],
        number: int,
        folder: Path,
        offsets: Sequence[Fraction],
        codec: str,
    ) -> None:
        """
        :param offsets: seconds at which each piece begins.
        :param codec: that all of them must have.
        """
        self._out = out
        self._offsets = offsets
        self._files = [piece.file(folder, number) for piece in pieces]
        order: list[int] = []
        header: tuple[Any, ...] | None = None
        step = 1
        for at, piece in enumerate(pieces):
            rows = _facts(piece, folder)
            with base.open_input(self._files[at], header_only=True) as container:
                video = base.video_stream(container)
                known = video.codec_context.codec.canonical_name
                if known != codec:
                    scope.remove(str(piece.facts(folder)))
                    raise self._refusal(at, f"is {known}, not {codec}")
                found = (video.codec_context.extradata, video.time_base, video.width, video.height)
                if header is None:
                    header, step = found, base.usual_step(video)
                    self._stream = self._add(video)
                    self.tick = base.fraction(video.time_base)
                before = len(order)
                order += [pts for pts, _ in self._packets(at, container, video)]
            if found != header:  # nobody knows which of them is to blame
                for one in pieces:
                    scope.remove(str(one.facts(folder)))
                raise self._refusal(at, "does not fit the others")
            if rows is None or len(order) - before != rows[number]["frames"]:
                scope.remove(str(piece.facts(folder)))
                raise self._refusal(at, "has lost frames")
        self.frames = len(order)
        self.seconds = (max(order) - min(order)) * self.tick
        self._dts = decoding_times(order, step)

    def _refusal(self, at: int, words: str) -> OutputError:
        return OutputError(words, subject=str(self._files[at]), cure="Try again: it is made anew.")

    def _add(self, like: VideoStream) -> VideoStream:
        stream = self._out.add_stream_from_template(like, opaque=True)
        if like.codec_context.name == "hevc" and self._out.format.name != "matroska":
            stream.codec_context.codec_tag = HVC1
        stream.codec_context.framerate = base.frame_rate(like) or Fraction(25)
        return stream

    def _packets(
        self, at: int, container: InputContainer, video: VideoStream
    ) -> Iterator[tuple[int, Packet[Any]]]:
        offset = round(self._offsets[at] / self.tick)
        for packet in base.packets(container, video):
            assert packet.pts is not None
            yield packet.pts + offset, packet

    def write(self) -> Iterator[Fraction]:
        """Write all; gives the time of each picture, in seconds, before it is written."""
        dts = iter(self._dts)
        for at, file in enumerate(self._files):
            with base.open_input(file, header_only=True) as container:
                for pts, packet in self._packets(at, container, base.video_stream(container)):
                    yield pts * self.tick
                    packet.stream = self._stream
                    packet.pts, packet.dts = pts, next(dts)
                    packet.time_base = self.tick
                    self._out.mux(packet)
