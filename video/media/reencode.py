"""Reading a span of a source once: its pictures and its sound, decoded, for whoever makes something of them.

The exact way of cutting is one of those: it keeps the frames asked for and encodes them anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.media import base, subtitles
from video.media.encode import CLIP, Fit, PictureWriter, Written
from video.media.seek import FrameDecoder, packets_from, read_sound, refuse_empty, ticks
from video.media.sound import RUN_UP_SECONDS, SoundReader, SoundWriter


class Taker(Protocol):
    """Is given what is in a span. Times count from its first picture, in ticks of the source's pictures."""

    def picture(self, pts: int, frame: VideoFrame) -> None:
        """As it was decoded; its time is in it, too."""

    def sound(self, frame: AudioFrame) -> None:
        """After pictures of the same time; its pts counts its samples."""

    def ended(self, end: int) -> None:
        """There are no more pictures; the last one ends then."""

    def finish(self) -> None:
        """There is no more sound either."""


@dataclass(frozen=True, slots=True)
class Span:
    """What was read, in timestamps of the source, in seconds."""

    first: Fraction
    """When the first picture is shown."""
    last: Fraction
    """When the last one is shown."""
    end: Fraction
    """When it ends."""
    frames: int
    damaged: int
    """Pictures that could not be decoded, or had absurd times, and were left out."""


def read(
    container: InputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: Fraction,
    end: Fraction,
    taker: Taker,
    begun: Callable[[Fraction], None] | None = None,
) -> Span:
    """Give the frames that begin from `start` on and before `end` to `taker`, and the sound of the same time.

    :param audio: None: no sound is wanted.
    :param start, end: timestamps of the source, in seconds.
    :param begun: is told when the first picture is shown, the same, once `taker` has it.
    """
    tick = base.fraction(video.time_base)
    first, stop = ticks(start, tick), ticks(end, tick)
    source = packets_from(container, video, audio, start, before_seconds=float(RUN_UP_SECONDS))
    decoder = FrameDecoder(container, video, first, stop)
    sound_packets: deque[Packet[Any]] = deque()
    sound: SoundReader | None = None
    zero = last = duration = count = 0
    following: int | None = None
    for pts, frame in _frames(source, video, decoder, sound_packets):
        if pts < first:
            continue
        if pts >= stop:
            following = pts
            break
        if count == 0:
            zero = pts
            if audio is not None:
                sound = SoundReader(audio, sound_packets, zero * tick)
        last, duration = pts, frame.duration
        count += 1
        frame.pts, frame.time_base = pts - zero, tick
        taker.picture(pts - zero, frame)
        if count == 1 and begun is not None:
            begun(zero * tick)
        if sound is not None:
            for piece in sound.until(pts * tick):
                taker.sound(piece)
    if count == 0:
        refuse_empty(container, start, end, damaged=decoder.failed)

    step = base.usual_step(video)
    finish = last + (duration or step) if following is None else following
    # A picture that stands still for longer than a usual frame ends where the clip was to end.
    finish = min(finish, max(stop, last + step))
    taker.ended(finish - zero)
    if sound is not None:
        read_sound(source, video, sound_packets, finish * tick)
        for piece in sound.rest(finish * tick):
            taker.sound(piece)
    taker.finish()
    return Span(zero * tick, last * tick, finish * tick, count, decoder.damaged)


def _frames(
    source: Iterator[Packet[Any]], video: VideoStream, decoder: FrameDecoder, others: deque[Packet[Any]]
) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames with their timestamps; packets of other streams are put aside."""
    for packet in source:
        if packet.stream_index == video.index:
            yield from decoder.decode(packet)
        else:
            others.append(packet)
    yield from decoder.decode(None)


def write(
    container: InputContainer,
    out: OutputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: Fraction,
    end: Fraction,
) -> Written:
    """Encode the frames that begin from `start` on and before `end`, and the sound of the same time.

    :param start, end: timestamps of the source, in seconds.
    """
    clip = _Clip(out, video, audio)

    def begun(zero: Fraction) -> None:
        subtitles.carry(container, out, zero, end)

    span = read(container, video, audio, start, end, clip, begun)
    assert clip.fit is not None
    assert clip.pictures is not None
    size = (clip.fit.width, clip.fit.height)
    return Written(span.first, span.last, span.end, size, clip.pictures.frames, audio is not None)


class _Clip:
    """A clip that is encoded anew; its first picture is shown at 0."""

    def __init__(self, out: OutputContainer, video: VideoStream, audio: AudioStream | None) -> None:
        self.fit: Fit | None = None
        self.pictures: PictureWriter | None = None
        self._out = out
        self._video = video
        self._audio = audio
        self._sound: SoundWriter | None = None
        self._length = Fraction(0)

    def picture(self, pts: int, frame: VideoFrame) -> None:
        self.fit = self.fit or Fit(frame, self._video)
        fitted = self.fit(frame)
        if self.pictures is None:
            rate = base.frame_rate(self._video) or 25
            self.pictures = PictureWriter(self._out, CLIP, fitted, rate)
            if self._audio is not None:
                self._sound = SoundWriter(self._out, self._audio, CLIP)
        self.pictures.write(pts, fitted)

    def sound(self, frame: AudioFrame) -> None:
        assert self._sound is not None
        self._sound.write(frame)

    def ended(self, end: int) -> None:
        assert self.pictures is not None
        self.pictures.finish(end)
        self._length = end * base.fraction(self._video.time_base)

    def finish(self) -> None:
        if self._sound is not None:
            self._sound.finish(self._length)
