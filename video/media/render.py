"""Decode once, encode many: several files made of one source, each with filters and encoders of its own.

    source -> decoded -> upright, square pixels -> filters -> encoder -> file     of each output
                   |---> sound, from 0, no gaps -> filters -> encoder ->|

All of them go at the same pace, one picture at a time, so that memory holds a few pictures, and for each
output what its filters and its encoder look ahead.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video import scope
from video.errors import ConfigError, ItemCancelled
from video.events import logger
from video.media import base
from video.media.chain import Chain
from video.media.encode import CLIP, FORMATS, Encoding, Fit, PictureWriter, check, muxer
from video.media.probe import duration_seconds
from video.media.reencode import Span, read
from video.media.sound import SoundWriter
from video.media.transform import Timing


@dataclass(frozen=True, slots=True)
class Output:
    """One file that is to be made of a source."""

    path: str | os.PathLike[str]
    """Its extension, `.mp4`, `.mkv`, `.mov`, `.webm` or `.gif`, chooses the container. What is there is
    replaced."""
    pictures: str = ""
    """Filters, as libavfilter's syntax has them (see `video.media.chain`); "": none.

    They get pictures that are upright, in square pixels, with even sizes, in `encoding.pixels`; the first one
    at 0, in the source's ticks. They may change size, rate and times (`scale`, `fps`, `setpts`), and drop
    pictures. What they make is converted to `encoding.pixels` where the encoder takes that; where not (GIF),
    it must be of a format that the encoder takes. Of pictures that they put at one time, the first is kept.
    """
    sound: str | None = ""
    """Filters of the sound, alike; None: no sound. They get what the encoder takes, from 0, without gaps.

    Without filters each sample keeps its place. What filters make ends with the pictures: it is cut there, or
    filled up with silence. So `setpts=PTS/1.25` beside `atempo=1.25` stay together to the end.
    """
    encoding: Encoding = CLIP
    timing: Timing | None = None
    """What the filters make of the length, where that is known; None: what they give ends with its last
    picture, which is shown as long as the one before it."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One file that was written, as counted while it was."""

    path: Path
    width: int
    """Pixels, square ones."""
    height: int
    frames: int
    seconds: float
    """From 0 to the end of its last picture."""
    bytes: int
    start: float
    """Seconds in the source at which its first picture is shown."""
    end: float
    """Seconds in the source at which the last picture that was read ends."""
    source_frames: int
    """Pictures that were read of the source."""
    damaged: int
    """Pictures of the source that could not be decoded, or had absurd times, and were left out."""
    missing: float = 0.0
    """Seconds at the end of the source that its header promises and that are not there, as in a file that was
    cut short; 0 for less than a second."""


def render(
    source: str | os.PathLike[str],
    outputs: Sequence[Output],
    *,
    start: float | Fraction = 0,
    end: float | Fraction | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Rendered | Exception]:
    """Make all `outputs` of one source, decoding it once.

    Each is upright with square pixels (rotation and pixel shape are baked in), keeps the source's distances
    in time and its colour tags unless filters change them, and starts at 0, its sound at the same instant.
    Each appears whole or not at all, and is checked: streams, number of frames, length.

    What goes wrong with one output stands in its place, and stops no other:

    - ConfigError: filters that cannot be used, or leave no picture; an unknown extension; the source's own
      path, or that of another output; settings that the encoder refuses.
    - UnsupportedMedia: there is no such encoder, or its container cannot hold what it makes.
    - OutputError: it cannot be written: no permission, a full disk, a failed check.

    :param source: a local video file.
    :param outputs: at least one; memory grows with their number.
    :param start, end: seconds, as players count: only pictures that begin at or after `start` and before
        `end`, and the sound of that time. None: to the end.
    :param progress: told the share of the source that is done, 0 to 1, never less than before; such as
        `video.scope.report`.
    :return: for each output what was written, or its error.
    :raises ConfigError: nothing begins in that span; or it is no span, such as one from NaN on.
    :raises SourceNotFound, SourceError: `source` cannot be read.
    :raises InvalidMedia, UnsupportedMedia: it is damaged, or has no pictures, so that no output can be made.
    :raises ItemCancelled: this item has been given up; no output is left.
    """
    name = os.fspath(source)
    for which, value in (("start", start), ("end", end or 0)):
        if not -_MOST_SECONDS < float(value) < _MOST_SECONDS:  # NaN neither
            cause = f"must be a number of seconds below {_MOST_SECONDS}, not {value}"
            raise ConfigError(cause, subject=which)
    length = None
    if progress is not None:
        length = duration_seconds(name) if end is None else float(end)
    with base.open_input(name) as container, contextlib.ExitStack() as files:
        zero = base.origin(container)
        video = base.video_stream(container)
        audio = base.audio_stream(container) if any(_wants_sound(one) for one in outputs) else None
        made = [_Rendition(name, one, video, audio, len(outputs), files) for one in outputs]
        fan = _Fan(video, made, progress, None if length is None else length - float(start))
        for at, one in enumerate(made):
            one.attempt(one.begin, [other.path for other in made[:at]])
        last = zero + Fraction(_FOR_EVER if end is None else end)
        # What goes wrong with an output does not come as far as here: the rest is about the source.
        with contextlib.suppress(_AllFailed), base.media_errors(name):
            fan.check()
            span = read(container, video, audio, zero + Fraction(start), last, fan)
            missing = _missing(video, span, last)
            if missing:
                ends, short = float(span.end - zero), os.path.basename(name)
                logger.warning("%r ends after %.1f s, %.1f s before its header says", short, ends, missing)
            return [one.error or one.rendered(span, zero, missing) for one in made]
        return [one.error for one in made if one.error is not None]


def _missing(video: VideoStream, span: Span, last: Fraction) -> float:
    """See `Rendered`."""
    if not video.duration:
        return 0.0
    begins, tick = video.start_time or 0, base.fraction(video.time_base)
    promised = min(last, (begins + video.duration) * tick)
    missing = promised - span.end
    return float(missing) if missing > max(Fraction(1), video.duration * tick * MOST_MISSING) else 0.0


MOST_MISSING = Fraction(1, 20)
"""Headers are not exact: a smaller share of what they promise may be missing."""
_FOR_EVER = 2**40
_MOST_SECONDS = 2**31
"""A time that all time bases can tell."""


class _AllFailed(Exception):
    """There is nobody left to read for."""


def _threads_each(outputs: int, encoder: str) -> int:
    """Threads of an encoder beside others: together as many as this slot has; but two, if it has them, since
    with one an encoder works while the others wait.

    SVT-AV1 works on while others do, and each step of its threads costs memory: of four outputs at 720p two
    take 577 MB, and one 456, with the same bytes and no less speed.
    """
    threads = scope.native_threads()
    fair = max(1, threads // max(1, outputs))
    return fair if encoder == "libsvtav1" else max(min(2, threads), fair)


def _wants_sound(output: Output) -> bool:
    return output.sound is not None and Path(output.path).suffix.lower() != ".gif"


class _Fan:
    """Gives what is read to all outputs that have not failed."""

    def __init__(
        self,
        video: VideoStream,
        made: list[_Rendition],
        progress: Callable[[float], None] | None,
        seconds: float | None,
    ) -> None:
        self._video = video
        self._made = made
        self._fits: dict[tuple[str, bool], Fit] = {}
        self._progress = progress
        self._ticks = max(1.0, (seconds or 0.0) / float(base.fraction(video.time_base)))
        self._done = 0.0

    def check(self) -> list[_Rendition]:
        """Those that have not failed.

        :raises _AllFailed: all have.
        """
        left = [one for one in self._made if one.error is None]
        if not left:
            raise _AllFailed
        return left

    def picture(self, pts: int, frame: VideoFrame) -> None:
        fitted: dict[tuple[str, bool], VideoFrame] = {}
        for one in self.check():
            # Outputs of one pixel format share the picture; nothing but its times is changed in it.
            if one.kind not in fitted:
                if one.kind not in self._fits:
                    self._fits[one.kind] = Fit(frame, self._video, one.output.encoding)
                fitted[one.kind] = self._fits[one.kind](frame)
            one.attempt(one.picture, pts, fitted[one.kind])
        if self._progress is not None:
            self._done = max(self._done, min(1.0, pts / self._ticks))
            self._progress(self._done)

    def sound(self, frame: AudioFrame) -> None:
        for one in self.check():
            one.attempt(one.sound, frame)

    def ended(self, end: int) -> None:
        for one in self.check():
            one.attempt(one.ended, end)

    def finish(self) -> None:
        for one in self.check():
            one.attempt(one.finish)
        if self._progress is not None:
            self._progress(1.0)


class _Rendition:
    """One output while it is made."""

    def __init__(
        self,
        source: str,
        output: Output,
        video: VideoStream,
        audio: AudioStream | None,
        outputs: int,
        files: contextlib.ExitStack,
    ) -> None:
        """:param outputs: how many are made together."""
        self.output = output
        self.path = Path(output.path)
        self.error: Exception | None = None
        self.kind = (output.encoding.pixels, False)
        self._source = source
        self._tick = base.fraction(video.time_base)
        self._rate = base.frame_rate(video) or Fraction(25)
        self._audio = audio if _wants_sound(output) else None
        self._threads = _threads_each(outputs, output.encoding.video)
        # Both are left with the error if reading ends in one, so that nothing unfinished stays.
        self._place = files.enter_context(contextlib.ExitStack())
        self._file = files.enter_context(contextlib.ExitStack())
        self._part = self.path
        self._out: OutputContainer | None = None
        self._chain: Chain[VideoFrame] | None = None
        self._times: list[int] = []
        """Of the source's first two pictures."""
        self._last = 0
        """Of its last."""
        self._waiting: VideoFrame | None = None
        """The first filtered picture, until the second tells their rate."""
        self._pictures: PictureWriter | None = None
        self._early: deque[AudioFrame] = deque()
        """Sound, until there are pictures: what an encoder makes can only be written once all are open."""
        self._sound: SoundWriter | None = None
        self._step = 0
        self._newest = 0
        """Time of the newest filtered picture, and its distance from the one before."""
        self._size = (0, 0)
        self._bytes = 0
        self._length = self._filtered_length = Fraction(0)

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step, unless this output has failed; if the step fails, so has the output: nothing stays."""
        if self.error is not None:
            return
        try:
            step(*arguments)
        except ItemCancelled:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no reason for the others to end
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        try:
            with self._place, self._file:
                raise error
        except Exception as told:  # noqa: BLE001  # explained on its way
            self.error = told
        self._chain = self._pictures = self._sound = self._waiting = None  # their memory
        self._early.clear()

    def begin(self, taken: list[Path]) -> None:
        """Open the file."""
        name = str(self.path)
        if self.path.suffix.lower() not in FORMATS:
            known = ", ".join(FORMATS)
            raise ConfigError(
                f"unknown extension {self.path.suffix!r}", subject=name, cure=f"Use one of: {known}."
            )
        if os.path.realpath(name) == os.path.realpath(self._source):
            raise ConfigError("is the source itself", subject=name, cure="Choose another output name.")
        if os.path.realpath(name) in map(os.path.realpath, taken):
            raise ConfigError("is asked for twice", subject=name, cure="Give each output its own name.")
        encoding = self.output.encoding
        self.kind = (encoding.pixels, encoding.keeps_full_range)
        self._part = self._place.enter_context(base.writing(self.path))
        out = muxer(self._part, self._source, "Choose another codec, or write .mkv.")
        self._out = self._file.enter_context(out)

    def picture(self, pts: int, frame: VideoFrame) -> None:
        if len(self._times) < 2:
            self._times.append(pts)
        self._last = pts
        if not self.output.pictures:
            self._take(pts, frame)
            return
        if self._chain is None:
            wanted = frame.format.name if self.output.encoding.accepts(frame.format.name) else None
            self._chain = Chain(self.output.pictures, frame, wanted)
        for filtered in self._chain.push(frame):
            self._take_filtered(filtered)

    def sound(self, frame: AudioFrame) -> None:
        if self._audio is None:
            return
        if self._sound is None:
            self._early.append(frame)
        else:
            self._sound.write(frame)

    def ended(self, end: int) -> None:
        self._length = self._filtered_length = end * self._tick
        tick = self._tick
        if self.output.pictures:
            for filtered in self._chain.push(None) if self._chain is not None else ():
                self._take_filtered(filtered)
            if self._waiting is not None:
                self._write_waiting()
            if self._pictures is None:
                raise ConfigError(
                    "these filters leave no picture", subject=self.output.pictures, cure="Check their times."
                )
            tick = self._pictures.tick
            if self.output.timing is not None:
                seconds = self.output.timing.seconds(float(self._length))
                end = max(self._newest + 1, round(Fraction(seconds) / tick))
            elif self._newest * tick == self._last * self._tick:
                end = round(self._length / tick)
            else:
                end = self._newest + (self._step or max(1, round(1 / self._rate / tick)))
            self._filtered_length = end * tick
        assert self._pictures is not None
        self._pictures.finish(end)

    def finish(self) -> None:
        assert self._pictures is not None
        if self._sound is not None:
            self._sound.finish(self._length, self._filtered_length)
        self._file.close()
        pictures = self._pictures
        assert pictures.first is not None
        check(
            self._part,
            self.path,
            frames=pictures.frames,
            seconds=(pictures.last - pictures.first) * pictures.tick,
            has_audio=self._sound is not None,
        )
        self._bytes = self._part.stat().st_size
        self._place.close()

    def rendered(self, span: Span, zero: Fraction, missing: float) -> Rendered:
        assert self._pictures is not None
        return Rendered(
            path=self.path,
            width=self._size[0],
            height=self._size[1],
            frames=self._pictures.frames,
            seconds=float(self._filtered_length),
            bytes=self._bytes,
            start=float(span.first - zero),
            end=float(span.end - zero),
            source_frames=span.frames,
            damaged=span.damaged,
            missing=missing,
        )

    def _take_filtered(self, frame: VideoFrame) -> None:
        if self._pictures is None and self._waiting is None:
            self._waiting = frame
            return
        if self._waiting is not None:
            self._write_waiting(frame.pts)
        assert frame.pts is not None
        self._take(frame.pts, frame)

    def _write_waiting(self, following: int | None = None) -> None:
        """Write the first filtered picture; the rate is the source's, as far as the filters leave it."""
        first, self._waiting = self._waiting, None
        assert first is not None
        assert first.pts is not None
        assert first.time_base is not None
        if following is not None and following > first.pts and len(self._times) == 2:
            step = (following - first.pts) * first.time_base
            tick_rate = 1 / first.time_base
            if first.time_base != self._tick and tick_rate <= _MOST_RATE:
                self._rate = tick_rate  # filters that make a steady rate count in it
            else:
                self._rate *= (self._times[1] - self._times[0]) * self._tick / step
        self._take(first.pts, first)

    def _take(self, pts: int, frame: VideoFrame) -> None:
        """Write a picture; one that filters put at the time of the one before, or earlier, is left out."""
        if self._pictures is None:
            self._open(frame)
        elif pts <= self._newest:
            return
        else:
            self._step = pts - self._newest
        self._newest = pts
        assert self._pictures is not None
        self._pictures.write(pts, frame)

    def _open(self, first: VideoFrame) -> None:
        assert self._out is not None
        encoding = self.output.encoding
        self._size = (first.width, first.height)
        rate = self._rate.limit_denominator(1001)
        self._pictures = PictureWriter(self._out, encoding, first, rate, self._threads)
        if self._audio is not None:
            self._sound = SoundWriter(self._out, self._audio, encoding, self.output.sound or "")
        while self._early:
            self.sound(self._early.popleft())


_MOST_RATE = 240
"""Pictures a second; finer time bases are no rates."""
