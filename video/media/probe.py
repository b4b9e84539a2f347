"""What a media file says of itself (`probe`), and what is really in it (`measure`).

Headers lie: a truncated file still claims its old length, a live recording claims none. So the two are
kept apart, and fields that repeat a header's claim end in `_from_header`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.errors import InvalidMedia, UnsupportedMedia
from video.media import base

# Bare streams have no header; FFmpeg guesses their duration from the bit rate, often wrong by half.
_GUESSED_DURATION = {"h263", "h264", "hevc", "vvc", "m4v", "obu", "mpegvideo", "mjpeg"}

_FIRST_PACKETS = 100

LONGEST_SECONDS = 30 * 86_400
"""A header that claims more than a month is taken to be damaged."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The first video stream, as its header and its first frame describe it."""

    codec: str
    width: int
    """Stored pixels, before rotation."""
    height: int
    displayed_width: int
    """Square pixels as shown: after pixel shape and rotation, an even number."""
    displayed_height: int
    rotation: int
    """Degrees clockwise that a player turns the picture by: 0, 90, 180 or 270."""
    sample_aspect_ratio: Fraction
    """Width of a stored pixel by its height."""
    pixel_format: str | None
    rate_from_header: Fraction | None
    """Frames per second; None where missing or absurd."""
    frames_from_header: int | None
    bit_rate_from_header: int | None
    """Bits per second."""
    duration_seconds_from_header: float | None


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """One audio stream, as its header describes it."""

    codec: str
    sample_rate: int
    """Samples per second and channel."""
    channels: int
    layout: str
    duration_seconds_from_header: float | None


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file's header says."""

    path: str
    format: str
    """FFmpeg's name of the container, such as `matroska,webm`."""
    size_bytes: int
    duration_seconds_from_header: float | None
    start_seconds_from_header: float
    """The timestamp that players show as 0:00."""
    video: VideoInfo | None
    """None: no moving pictures."""
    audio: tuple[AudioInfo, ...]
    subtitles: int
    """How many subtitle streams."""

    def as_dict(self) -> dict[str, Any]:
        """Only values that JSON knows; ratios as text such as `30000/1001`."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found by reading every packet, in seconds from the start that players show."""

    start_seconds: float
    """When the first video frame is shown."""
    end_seconds: float
    """When the last video frame ends."""
    packets: int
    """Video packets: frames, for all common codecs."""
    key_frame_seconds: tuple[float, ...]
    variable_frame_rate: bool
    """Frames differ in length by more than timestamp rounding explains."""
    audio_start_seconds: float | None
    """Of the first audio stream; None without one."""
    audio_end_seconds: float | None

    @property
    def duration_seconds(self) -> float:
        """From the first video frame to the end of the last."""
        return self.end_seconds - self.start_seconds

    def as_dict(self) -> dict[str, Any]:
        """Only values that JSON knows."""
        plain = {name: _plain(value) for name, value in asdict(self).items()}
        return {**plain, "duration_seconds": self.duration_seconds}


def probe(path: str | os.PathLike[str]) -> Probe:
    """Read a file's header, and its first frame for the rotation. Takes milliseconds, whatever the length.

    :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: as `base.open_input`.
    """
    with base.open_input(path) as container:
        try:
            video: VideoInfo | None = _video_info(container, base.video_stream(container))
        except UnsupportedMedia:
            video = None
        return Probe(
            path=os.fspath(path),
            format=container.format.name,
            size_bytes=container.size,
            duration_seconds_from_header=_sane(_container_seconds(container)),
            start_seconds_from_header=float(base.origin(container)),
            video=video,
            audio=tuple(_audio_info(stream) for stream in container.streams.audio),
            subtitles=len(container.streams.subtitles),
        )


def _video_info(container: InputContainer, stream: VideoStream) -> VideoInfo:
    frame = first_frame(container, stream)
    turned = 0 if frame is None else base.rotation(frame)
    context = stream.codec_context
    shape = base.fraction(stream.sample_aspect_ratio) or Fraction(1)
    wide, high = base.displayed_size(context.width, context.height, shape, turned)
    return VideoInfo(
        codec=context.name,
        width=context.width,
        height=context.height,
        displayed_width=wide,
        displayed_height=high,
        rotation=turned,
        sample_aspect_ratio=shape,
        pixel_format=context.pix_fmt,
        rate_from_header=base.frame_rate(stream),
        frames_from_header=stream.frames or None,
        bit_rate_from_header=stream.bit_rate,
        duration_seconds_from_header=_sane(_stream_seconds(stream)),
    )


def first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first frame that decodes within the first packets, or None. Moves the reading position."""
    frames: list[VideoFrame] = []
    with contextlib.suppress(InvalidMedia):  # a damaged beginning is no reason to refuse the header
        for packet in itertools.islice(base.packets(container, stream), _FIRST_PACKETS):
            with contextlib.suppress(FFmpegError):
                frames = stream.decode(packet)
            if frames:
                return frames[0]
    with contextlib.suppress(FFmpegError):
        frames = stream.decode(None)
    return frames[0] if frames else None


def _audio_info(stream: AudioStream) -> AudioInfo:
    context: AudioCodecContext | None = stream.codec_context  # None where there is no decoder
    if context is None:
        return AudioInfo("unknown", 0, 0, "", None)
    return AudioInfo(
        codec=context.name,
        sample_rate=context.sample_rate,
        channels=context.channels,
        layout=context.layout.name,
        duration_seconds_from_header=_sane(_stream_seconds(stream)),
    )


def _container_seconds(container: InputContainer) -> Fraction | None:
    if container.duration is None or container.format.name in _GUESSED_DURATION:
        return None
    return Fraction(container.duration, 1_000_000)


def _stream_seconds(stream: VideoStream | AudioStream) -> Fraction | None:
    return None if stream.duration is None else stream.duration * base.fraction(stream.time_base)


def _sane(seconds: Fraction | None) -> float | None:
    return float(seconds) if seconds is not None and 0 < seconds < LONGEST_SECONDS else None


def duration_seconds(path: str | os.PathLike[str]) -> float:
    """How long the video is, in seconds: from the header where it says so credibly, else measured.

    A truncated file is believed; only `measure` finds that out, at the price of reading all of it.

    :raises InvalidMedia: it has no video frames.
    :raises UnsupportedMedia: it has no video stream.
    """
    with base.open_input(path) as container:
        stream = base.video_stream(container)
        if container.format.name not in _GUESSED_DURATION:
            said = _sane(_stream_seconds(stream)) or _sane(_container_seconds(container))
            if said is not None:
                return said
        return _measure(container, stream).duration_seconds


def measure(path: str | os.PathLike[str]) -> Measured:
    """Read every packet of a file, decoding none: about 10 ms for a minute of video.

    A truncated file is measured as far as it goes.

    :raises InvalidMedia: it has no video frames.
    :raises UnsupportedMedia: it has no video stream.
    """
    with base.open_input(path) as container:
        return _measure(container, base.video_stream(container))


def _measure(container: InputContainer, video: VideoStream) -> Measured:
    zero = base.origin(container)
    audio = container.streams.audio[0] if container.streams.audio else None
    tick = base.fraction(video.time_base)
    step = base.usual_step(video)
    stamps: list[int] = []
    keys: list[int] = []
    last, last_duration = -(2**63), 0
    audio_start: int | None = None
    audio_end = 0
    for packet in base.packets(container, *((video,) if audio is None else (video, audio))):
        pts = packet.dts if packet.pts is None else packet.pts
        if packet.is_discard:  # these precede what an edit list shows
            continue
        if pts is None:  # bare streams have no timestamps at all
            pts = last + step if stamps else 0
        if packet.stream_index != video.index:
            audio_start = pts if audio_start is None else min(audio_start, pts)
            audio_end = max(audio_end, pts + (packet.duration or 0))
            continue
        stamps.append(pts)
        if packet.is_keyframe:
            keys.append(pts)
        if pts > last:
            last, last_duration = pts, packet.duration or 0
    if not stamps:
        name = base.source_name(container)
        raise InvalidMedia("has no video frames", subject=name, cure="Download or copy it again.")

    stamps.sort()
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps) if later > earlier)
    usual = steps[len(steps) // 2] if steps else step

    def shown(pts: int, tick: Fraction = tick) -> float:
        return float(pts * tick - zero)

    sound = base.fraction(audio.time_base) if audio is not None else tick
    return Measured(
        start_seconds=shown(stamps[0]),
        end_seconds=shown(last + (last_duration or usual)),
        packets=len(stamps),
        key_frame_seconds=tuple(shown(pts) for pts in sorted(keys)),
        # Two ticks are rounding (33, 34, 33 ms); up to a twentieth of a frame, the recorder's own rounding.
        variable_frame_rate=bool(steps) and steps[-1] - steps[0] > max(2, usual / 20),
        audio_start_seconds=None if audio_start is None else shown(audio_start, sound),
        audio_end_seconds=None if audio_start is None else shown(audio_end, sound),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Fraction) else value
