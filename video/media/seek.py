"""Getting to a time in a file: packets from the right key frame on, and the time of each decoded frame."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NoReturn

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.errors import ConfigError, InvalidMedia
from video.media import base
from video.media.probe import measure

TOLERANCE_SECONDS = Fraction(1, 2000)
"""A frame this little before an asked time counts as at it: containers round times to milliseconds, and
callers write 0.033 for a thirtieth."""

_INTERLEAVE_SECONDS = 10
"""How much later than its picture sound is looked for in a file."""

_FAR_SECONDS, _VERY_FAR_SECONDS = 60, 3600
"""From one picture to the next, where that is also far beyond the length that the header has; and where it
has none. A few damaged bytes can put a picture centuries ahead, and who fills the time up would never end."""

_SKIPS_WELL = {"h264", "hevc"}
"""Decoders tested to lose nothing else when frames that no other frame needs are skipped."""


def ticks(seconds: Fraction, tick: Fraction) -> int:
    """The first timestamp, in units of `tick` seconds, that counts as at or after `seconds`."""
    return math.ceil((seconds - TOLERANCE_SECONDS) / tick)


def packets_from(
    container: InputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: Fraction,
    *,
    before_seconds: float = 0.0,
) -> Iterator[Packet[Any]]:
    """Packets from the last video key frame at or before `start` on; from the first one where none is.

    :param start: a timestamp of the file, in seconds.
    :param before_seconds: audio packets from this much earlier come too, for decoders that need a run-up.
    """
    tick = base.fraction(video.time_base)
    streams = (video,) if audio is None else (video, audio)
    target = math.floor((start + TOLERANCE_SECONDS) / tick)
    if stored_times_only(container):
        target -= base.usual_step(video) * video.codec_context.reorder_depth
    # Formats without an index may land after the target: then try from further back.
    for back in (before_seconds, before_seconds + 10):
        goal = target - round(back / tick)
        if goal <= (video.start_time or 0):
            break
        try:
            container.seek(goal, stream=video)
        except FFmpegError:
            break
        source = base.packets(container, *streams)
        held = _until_passed(source, video, target)
        if held is not None:
            yield from itertools.chain(held, source)
            return
    # From the start, in a container that no failed seek has left anywhere else.
    with base.open_input(base.source_name(container)) as fresh:
        source = base.packets(fresh, *(fresh.streams.get(stream.index)[0] for stream in streams))
        yield from _until_passed(source, video, target, anywhere=True) or ()
        yield from source


def stored_times_only(container: InputContainer) -> bool:
    """AVI: it tells in which order pictures are stored, but not when they are shown."""
    return container.format.name == "avi"


def _until_passed(
    source: Iterator[Packet[Any]], video: VideoStream, target: int, *, anywhere: bool = False
) -> list[Packet[Any]] | None:
    """Read until no better key frame can come; what was read, less the pictures before the best key frame.

    None: the reading began after the target's key frame, and `anywhere` is not good enough.
    """
    held: list[Packet[Any]] = []
    found = False
    for packet in source:
        held.append(packet)
        if packet.stream_index != video.index:
            continue
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or stamp > target:
            break
        if packet.is_keyframe:
            found = True
            held = [one for one in held if one is packet or one.stream_index != video.index]
    return held if found or anywhere else None


class FrameDecoder:
    """Decodes video packets from a key frame on, with a trustworthy timestamp for each frame.

    Damaged packets and frames are skipped.
    """

    def __init__(self, container: InputContainer, video: VideoStream, wanted: int, stop: int = 2**62) -> None:
        """
        :param wanted: frames before this timestamp need not be given, if leaving them out is cheaper.
        :param stop: frames from this one on are not asked for, but may have to be decoded, too.
        """
        self.damaged = 0
        """Damaged ones from `wanted` on and before `stop`; with several threads a decoder may tell so late
        that a few at either end are counted there or not."""
        self.failed = False
        """Whether anything at all was damaged."""
        self._video = video
        self._wanted, self._stop = wanted, stop
        self._stored_only = stored_times_only(container)
        self._skips = video.codec_context.name in _SKIPS_WELL
        self._step = base.usual_step(video)
        self._far, self._reach = _reach(container, video)
        self._last_pts = self._last_dts = self._last = -(2**62)
        self._faulty_pts = self._faulty_dts = 0

    def decode(self, packet: Packet[Any] | None) -> Iterator[tuple[int, VideoFrame]]:
        """(timestamp, frame) in the order shown, always rising; None as packet gives what is left."""
        context = self._video.codec_context
        if self._skips and packet is not None and packet.pts is not None:
            context.skip_frame = "NONREF" if packet.pts < self._wanted else "DEFAULT"
        try:
            frames = context.decode(packet)
        except FFmpegError as error:  # decoders have many words for what is damaged
            if isinstance(error, MemoryError):
                raise
            self._count(None if packet is None else packet.pts)
            return
        for frame in frames:
            pts = self._time(frame)
            if self._last > -(2**62) and pts - self._last > self._far and pts > self._reach:
                self._count(None)
            elif pts > self._last:
                self._last = pts
                yield pts, frame

    def _count(self, pts: int | None) -> None:
        self.failed = True
        self.damaged += pts is None or self._wanted <= pts < self._stop

    def _time(self, frame: VideoFrame) -> int:
        # FFmpeg's own rule (guess_correct_pts in libavcodec), which PyAV does not pass on: of the two, trust
        # the one that has risen more steadily.
        pts, dts = (None if self._stored_only else frame.pts), frame.dts
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        if pts is not None and (dts is None or self._faulty_pts <= self._faulty_dts):
            return pts
        if dts is not None:
            return dts
        return self._last + self._step if self._last > -(2**62) else 0


def _reach(container: InputContainer, video: VideoStream) -> tuple[int, int]:
    """(how much later than the one before, and how late) a picture must be to count as damaged, in ticks."""
    tick = base.fraction(video.time_base)
    if container.duration is None or container.duration <= 0:
        return round(_VERY_FAR_SECONDS / tick), -(2**62)
    seconds = base.origin(container) + 2 * (Fraction(container.duration, 1_000_000) + _FAR_SECONDS)
    return round(_FAR_SECONDS / tick), round(seconds / tick)


def stamp_seconds(packet: Packet[Any]) -> Fraction:
    """A packet's timestamp in seconds."""
    return (packet.pts if packet.pts is not None else packet.dts or 0) * base.fraction(packet.time_base)


def read_sound(
    source: Iterator[Packet[Any]], video: VideoStream, sound: deque[Packet[Any]], end: Fraction
) -> None:
    """Read on until the sound up to `end`, a timestamp in seconds, is there, or is clearly missing."""
    for packet in source:
        if packet.stream_index == video.index:
            if stamp_seconds(packet) > end + _INTERLEAVE_SECONDS:
                return
        else:
            sound.append(packet)
            if stamp_seconds(packet) >= end:
                return


def refuse_empty(container: InputContainer, start: Fraction, end: Fraction, *, damaged: bool) -> NoReturn:
    """Say why nothing lies between `start` and `end`, timestamps in seconds."""
    name = base.source_name(container)
    found = measure(name)
    zero = base.origin(container)
    if start - zero >= Fraction(found.end_seconds):
        cause = f"start ({float(start - zero):g} s) is beyond the end of the video"
        raise ConfigError(cause, subject=name, cure=f"It is {found.end_seconds:.3f} s long.")
    if damaged:
        cure = "Download or copy it again, or repair it."
        raise InvalidMedia("has no frame that can be decoded there", subject=name, cure=cure)
    cause = f"no frame begins between {float(start - zero):g} s and {float(end - zero):g} s"
    raise ConfigError(cause, subject=name, cure="Choose a longer clip.")
