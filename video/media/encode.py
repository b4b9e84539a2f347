"""Encoding one clip: pictures fitted to what players show, sound to the sample, both starting at 0."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video import scope
from video.errors import InvalidMedia, UnsupportedMedia
from video.media import base, mp4, probe
from video.media.seek import stamp_seconds

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""FFmpeg's name of the container for each extension that can be written."""

# veryfast costs 0.4 of medium's CPU for files of about the same size; crf 20 is hard to tell from the source
# (SSIM 0.985 and up at 720p).
_X264 = {"preset": "veryfast", "crf": "20"}

RUN_UP_SECONDS = Fraction(1, 2)
"""Audio before a cut that is decoded and dropped: a decoder's first packets sound of nothing before them."""

_LONGEST_PACKET_SECONDS = 1

_RGB, _BT709 = 0, 1  # AVColorSpace
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


@contextlib.contextmanager
def muxer(part: Path, source: str) -> Iterator[OutputContainer]:
    """An output container at `part`, of the kind that its extension says; whole when the block ends well.

    :param source: named where its streams turn out not to fit this container.
    """
    kind = CONTAINERS[part.suffix.lower()]
    # The index goes to the front, so that a player on the web can start before it has everything.
    options = {} if kind == "matroska" else {"movflags": "+faststart"}
    out = av.open(base.url(part), "w", format=kind, container_options=options)
    try:
        yield out
        out.close()
    except BaseException as error:
        # Closing rewrites the file to place its index, and fails again on a full disk: no use now.
        scope.remove(str(part))
        with contextlib.suppress(Exception):
            out.close()
        if isinstance(error, ArgumentError):  # FFmpeg's only word for it, at the header or the trailer
            raise UnsupportedMedia(
                f"has streams that {part.suffix} cannot hold",
                subject=source,
                cure="Write .mkv, or use mode exact.",
            ) from error
        if isinstance(error, InvalidDataError):  # decoding is elsewhere: these are copied packets
            raise InvalidMedia(
                f"is damaged: {part.suffix} cannot hold its packets ({error.strerror})",
                subject=source,
                cure="Use mode exact.",
            ) from error
        raise


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a cut, in timestamps of the source in seconds."""

    first: Fraction
    """When the first frame is shown."""
    last: Fraction
    """When the last frame is shown."""
    end: Fraction
    """When it ends."""
    size: tuple[int, int]
    """(width, height) as shown."""
    frames: int
    sound: bool
    """Whether it has any."""


_FITTING = ("yuv420p", "yuvj420p")


def misfit(container: InputContainer, video: VideoStream) -> str:
    """Why `Fit` would change the pictures of a stream, in words; empty if it would not.

    Only what the headers and the first frame say. Moves the reading position.
    """
    context = video.codec_context
    turned = 0
    if not mp4.surely_upright(base.source_name(container)):
        frame = probe.first_frame(container, video)
        context.flush_buffers()  # so that it can decode from another place
        turned = 0 if frame is None else base.rotation(frame)
    size, shape = (context.width, context.height), base.fraction(video.sample_aspect_ratio)
    if turned:
        return f"players have to turn its pictures by {turned} degrees"
    if size[0] % 2 or size[1] % 2:
        return f"its pictures have an odd size ({size[0]}x{size[1]})"
    if base.displayed_size(*size, shape, 0) != size:
        return f"its pixels are not square ({shape.numerator}:{shape.denominator})"
    if context.pix_fmt not in _FITTING:
        return f"its pixel format, {context.pix_fmt}, is not one that every player shows"
    return ""


class Fit:
    """Turns decoded frames into what the encoder takes: upright, square pixels, even sizes, 8 bits 4:2:0.

    Frames that are so already pass untouched. A source that changes its size midway is scaled to its first.
    """

    def __init__(self, first: VideoFrame, video: VideoStream) -> None:
        self._rotation = base.rotation(first)
        shape = base.fraction(video.sample_aspect_ratio)
        self.width, self.height = base.displayed_size(first.width, first.height, shape, self._rotation)
        self._stored = base.displayed_size(first.width, first.height, shape, 0)
        self.pixels = "yuvj420p" if first.format.name == "yuvj420p" else "yuv420p"
        self._graphs: dict[tuple[int, int, str], Graph] = {}

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        width, height, pixels = frame.width, frame.height, frame.format.name
        if self._rotation == 0 and pixels == self.pixels and (width, height) == self._stored:
            return frame
        graph = self._graphs.get((width, height, pixels))
        if graph is None:
            graph = self._graphs[width, height, pixels] = self._build(frame)
        graph.vpush(frame)
        return graph.vpull()

    def _build(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = scope.native_threads()
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base=str(frame.time_base),
                pixel_aspect="1/1",
                colorspace=str(frame.colorspace),
                range=str(frame.color_range),
            )
        ]
        width, height = self._stored
        lost = (frame.width - width, frame.height - height)
        if lost != (0, 0) and lost[0] in (0, 1) and lost[1] in (0, 1):
            nodes.append(graph.add("crop", f"{width}:{height}:0:0"))
        elif lost != (0, 0) or frame.format.name != self.pixels:
            matrix = ":out_color_matrix=bt709" if frame.colorspace == _RGB else ""
            nodes.append(graph.add("scale", f"{width}:{height}{matrix}"))
        nodes.append(graph.add("format", self.pixels))
        turns = {90: ["transpose=clock"], 180: ["hflip", "vflip"], 270: ["transpose=cclock"]}
        for turn in turns.get(self._rotation, []):
            name, _, direction = turn.partition("=")
            nodes.append(graph.add(name, direction or None))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph


def _x264_options(width: int) -> dict[str, str]:
    unsafe = avx512_is_unsafe(width)
    return {**_X264, "x264-params": "asm=AVX2"} if unsafe else _X264


def avx512_is_unsafe(width: int) -> bool:
    """Whether x264 is to be held to AVX2 for pictures of this width, in pixels."""
    # Where a row is not a multiple of 8 macroblocks, x264's AVX-512 code reads memory that it never wrote, so
    # that the same input gives other bytes each time (seen with MALLOC_PERTURB_). AVX2 costs 11 % more CPU.
    return -(-width // 16) % 8 != 0 and _has_avx512()


@functools.cache
def _has_avx512() -> bool:
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


class PictureWriter:
    """Encodes frames to H.264, keeping their own distances in time; the first is shown at 0."""

    def __init__(self, out: OutputContainer, video: VideoStream, first: VideoFrame) -> None:
        self.frames = 0
        self.fit = Fit(first, video)
        self._out = out
        self._tick = base.fraction(video.time_base)
        self._held: tuple[int, VideoFrame] | None = None
        stream = out.add_stream(
            "libx264",
            rate=base.frame_rate(video) or 25,
            options=_x264_options(self.fit.width),
            time_base=self._tick,
            width=self.fit.width,
            height=self.fit.height,
        )
        context = stream.codec_context
        context.pix_fmt = self.fit.pixels
        context.sample_aspect_ratio = Fraction(1)
        context.thread_count = scope.native_threads()
        context.thread_type = "FRAME"  # PyAV's default, slices, costs quality
        context.color_range = first.color_range
        context.colorspace = _BT709 if first.colorspace == _RGB else first.colorspace
        context.color_primaries = first.color_primaries
        context.color_trc = first.color_trc
        self._stream = stream

    def write(self, pts: int, frame: VideoFrame) -> None:
        """:param pts: in ticks of the source, from the clip's first frame."""
        # One frame is held back: how long it lasts is known once the next is there.
        if self._held is not None:
            self._encode(*self._held, pts - self._held[0])
        self._held = (pts, frame)

    def finish(self, end: int) -> None:
        """Write what is left; the last frame ends at `end`, in ticks from the clip's first frame."""
        if self._held is not None:
            self._encode(*self._held, end - self._held[0])
        self._out.mux(self._stream.encode(None))

    def _encode(self, pts: int, frame: VideoFrame, duration: int) -> None:
        frame.time_base = self._tick
        fitted = self.fit(frame)
        fitted.pts = pts
        fitted.time_base = self._tick
        fitted.duration = duration
        fitted.pict_type = 0  # else x264 repeats the source's choice of key frames
        self._out.mux(self._stream.encode(fitted))
        self.frames += 1


class SoundWriter:
    """Encodes audio to AAC from one instant of the source to another, to the sample.

    Sound that starts late, and gaps, become silence; so audio too starts at 0 and keeps its place.
    """

    def __init__(
        self,
        out: OutputContainer,
        audio: AudioStream,
        packets: deque[Packet[Any]],
        zero: Fraction,
        *,
        fast: bool = False,
    ) -> None:
        """:param packets: where the reader of the source puts audio packets; taken out once encoded.
        :param zero: the source's timestamp, in seconds, that becomes 0.
        :param fast: half the CPU time and the same size, with noise that is lower but less well hidden.
        """
        self._out = out
        self._audio = audio
        self._zero = zero
        self._packets = packets
        self._resampler = AudioResampler()
        self._kind: tuple[str, str, int] | None = None
        self._stop: Fraction | None = None
        self._next = Fraction(0)
        self._tick = base.fraction(audio.time_base)
        context = audio.codec_context
        rates = av.Codec("aac", "w").audio_rates or []
        layout = _LAYOUTS.get(context.channels, "stereo")
        self._stream = out.add_stream(
            "aac",
            rate=context.sample_rate if context.sample_rate in rates else 48_000,
            bit_rate=max(96_000, 64_000 * av.AudioLayout(layout).nb_channels),
            layout=layout,
            options={"aac_coder": "fast"} if fast else None,
        )

    def write_until(self, seconds: Fraction) -> None:
        """Encode what is held up to this timestamp of the source, or up to a second less."""
        while self._packets and stamp_seconds(self._packets[0]) <= seconds - _LONGEST_PACKET_SECONDS:
            self._decode(self._packets.popleft())

    def finish(self, end: Fraction) -> None:
        """Write what is left, up to this timestamp of the source; there is silence if there was nothing."""
        self._stop = end
        while self._packets:
            self._decode(self._packets.popleft())
        self._decode(None)
        if self._kind is None:
            self._encode(self._silence(end))
        for frame in self._resampler.resample(None):
            self._out.mux(self._stream.encode(frame))
        self._out.mux(self._stream.encode(None))

    def _silence(self, end: Fraction) -> AudioFrame:
        """The last 1024 samples before `end`; what comes before them is filled up like any gap."""
        silence = AudioFrame("fltp", self._stream.layout, 1024)
        for plane in base.sound_planes(silence):
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate = self._stream.sample_rate
        silence.pts = max(0, round((end - self._zero) * silence.sample_rate) - 1024)
        return silence

    def _decode(self, packet: Packet[Any] | None) -> None:
        if packet is not None and stamp_seconds(packet) < self._zero - RUN_UP_SECONDS:
            return
        try:
            frames = self._audio.codec_context.decode(packet)
        except FFmpegError as error:  # what is missing becomes silence
            if isinstance(error, MemoryError):
                raise
            return
        for frame in frames:
            at = self._next if frame.pts is None else frame.pts * self._tick
            self._next = at + Fraction(frame.samples, frame.sample_rate)
            first = round((at - self._zero) * frame.sample_rate)
            skip = max(0, -first)
            keep = frame.samples
            if self._stop is not None:
                keep = min(keep, round((self._stop - at) * frame.sample_rate))
            if skip < keep:
                whole = skip == 0 and keep == frame.samples
                piece = frame if whole else _slice(frame, skip, keep)
                piece.pts = first + skip
                self._encode(piece)

    def _encode(self, frame: AudioFrame) -> None:
        """Encode a frame whose pts counts its samples from 0."""
        frame.time_base = Fraction(1, frame.sample_rate)
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:
            rate = self._stream.sample_rate
            done = 0 if self._kind is None else round(Fraction(frame.pts or 0, frame.sample_rate) * rate)
            for rest in self._resampler.resample(None):
                self._out.mux(self._stream.encode(rest))
            self._kind = kind
            self._resampler = AudioResampler(
                format=self._stream.format,
                layout=self._stream.layout,
                rate=rate,
                frame_size=1024,  # AAC's; without it PyAV lets fitting frames pass and ignores the options
                # Fill and trim by timestamps, without stretching; and expect the first sample at `done`.
                options={"async": "1", "first_pts": str(done)},
            )
        for resampled in self._resampler.resample(frame):
            self._out.mux(self._stream.encode(resampled))


def _slice(frame: AudioFrame, start: int, stop: int) -> AudioFrame:
    """Samples `start` to `stop` of a frame, as a frame."""
    width = frame.format.bytes * (1 if frame.format.is_planar else frame.layout.nb_channels)
    piece = AudioFrame(frame.format.name, frame.layout, stop - start)
    for old, new in zip(base.sound_planes(frame), base.sound_planes(piece), strict=True):
        wanted = bytes(memoryview(old)[start * width : stop * width])
        new.update(wanted.ljust(new.buffer_size, b"\0"))
    piece.sample_rate = frame.sample_rate
    return piece
