"""Encoding pictures: fitted to what players show, each at its time, in files that are whole or not there."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.filter import Graph
from av.packet import Packet
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from video import scope
from video.errors import ConfigError, InvalidMedia, OutputError, UnsupportedMedia
from video.media import base, mp4, probe
from video.media.chain import picture_source

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""FFmpeg's name of the container for each extension that a clip can be written to."""

FORMATS = {**CONTAINERS, ".webm": "webm", ".gif": "gif"}
"""The same, for all that can be written."""

_ROUNDING_SECONDS = Fraction(3, 1000)
"""Matroska rounds to milliseconds, both of two timestamps."""

LOOKED_AT = 20
"""Packets of a finished file that whoever checks it may look at."""

_RGB, _BT709 = 0, 1  # AVColorSpace
_HEVC = {"libx265", "hevc_nvenc", "hevc_qsv", "hevc_vaapi", "hevc_videotoolbox", "hevc_amf"}
_APPLE = {"mp4", "mov"}
HVC1 = "hvc1"
"""The tag of HEVC in mp4 that Apple's players take; the default they refuse."""


def _clip_options() -> dict[str, str]:
    # veryfast costs 0.4 of medium's CPU for files of about the same size; crf 20 is hard to tell from the
    # source (SSIM 0.985 and up at 720p).
    return {"preset": "veryfast", "crf": "20"}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Which encoders an output has, and how they are set. The container is that of its extension."""

    video: str = "libx264"
    """FFmpeg's name of an encoder."""
    options: Mapping[str, str] = field(default_factory=_clip_options)
    """Of that encoder."""
    pixels: str = "yuv420p"
    """Format of the pictures. `yuvj420p`, the same in full range, stays so where the encoder takes it."""
    audio: str = "aac"
    audio_options: Mapping[str, str] = field(default_factory=dict)
    audio_bit_rate: int = 64_000
    """Bits a second of each channel; 96 000 for all of them at least."""
    key_seconds: Fraction | None = None
    """A key frame at the first picture of each such span; None: where the encoder wants them."""

    def accepts(self, pixels: str) -> bool:
        """Whether the encoder takes pictures of this format.

        :raises UnsupportedMedia: there is no such encoder here.
        """
        known = _formats(self.video)
        return not known or pixels in known

    @property
    def keeps_full_range(self) -> bool:
        return self.pixels == "yuv420p" and self.accepts("yuvj420p")


@functools.cache
def _formats(encoder: str) -> frozenset[str]:
    try:
        codec = av.Codec(encoder, "w")
    except ValueError:
        raise UnsupportedMedia(
            "there is no such encoder in this FFmpeg", subject=encoder, cure="Choose another codec."
        ) from None
    return frozenset(one.name for one in codec.video_formats or ())


CLIP = Encoding()
"""Of clips that are encoded anew: H.264 and AAC."""


@contextlib.contextmanager
def muxer(part: Path, source: str, cure: str = "Write .mkv, or use mode exact.") -> Iterator[OutputContainer]:
    """An output container at `part`, of the kind that its extension says; whole when the block ends well.

    :param source: named where its streams turn out not to fit this container.
    :param cure: what to do then.
    """
    kind = FORMATS[part.suffix.lower()]
    # The index goes to the front, so that a player on the web can start before it has everything.
    options = {"movflags": "+faststart"} if kind in _APPLE else {}
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
                cure=cure,
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
    """Turns decoded frames into what an encoder takes: upright, square pixels, even sizes, its pixel format.

    Frames that are so already pass untouched. A source that changes its size midway is scaled to its first.
    """

    def __init__(self, first: VideoFrame, video: VideoStream, encoding: Encoding = CLIP) -> None:
        self._rotation = base.rotation(first)
        shape = base.fraction(video.sample_aspect_ratio)
        self.width, self.height = base.displayed_size(first.width, first.height, shape, self._rotation)
        self._stored = base.displayed_size(first.width, first.height, shape, 0)
        full = first.format.name == "yuvj420p" and encoding.keeps_full_range
        self.pixels = "yuvj420p" if full else encoding.pixels
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
        nodes = [picture_source(graph, frame)]
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


def x265_threads(threads: int) -> str:
    """Parameters that hold x265 to so many threads; its own would be as many as there are CPUs."""
    return "pools=none:frame-threads=1" if threads == 1 else f"pools={threads}"


def own_options(encoding: Encoding, width: int, threads: int) -> dict[str, str]:
    """Options of the encoder, with what this machine and this slot ask of it."""
    if encoding.video == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # else it writes its settings to standard error, each time
    own = {
        "libx264": ("x264-params", "asm=AVX2" if avx512_is_unsafe(width) else ""),
        "libx265": ("x265-params", f"{x265_threads(threads)}:log-level=none"),
        "libsvtav1": ("svtav1-params", f"lp={threads}"),
    }
    name, more = own.get(encoding.video, ("", ""))
    return merged(encoding.options, {name: more} if more else {})


def merged(options: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Options with more of them; those that are lists themselves (`x265-params`) become longer."""
    result = {**options, **more}
    for name in options.keys() & more.keys():
        if name.endswith("-params"):
            result[name] = f"{options[name]}:{more[name]}"
    return result


def new_stream(out: OutputContainer, encoder: str, **settings: Any) -> Stream:
    """A stream of this output, of an encoder that is not open yet.

    :raises UnsupportedMedia: there is no such encoder here, or its container cannot hold what it makes.
    """
    try:
        return out.add_stream(encoder, **settings)
    except ValueError as error:
        raise UnsupportedMedia(
            f"cannot be used ({error})", subject=encoder, cure="Choose another codec, or another container."
        ) from error


def open_encoder(stream: VideoStream | AudioStream, options: Mapping[str, str]) -> None:
    """Open the encoder of a stream, all of whose settings are made.

    :raises ConfigError: it refuses them, or does not know one.
    """
    context, name = stream.codec_context, stream.codec_context.name
    cure = "Check its options, and the size and format of the pictures."
    try:
        context.open()
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        words = f"refuses its settings, or cannot run on this machine ({error.strerror})"
        raise ConfigError(words, subject=name, cure=cure) from error
    if unknown := sorted(options.keys() & context.options.keys()):
        raise ConfigError(f"has no option {unknown[0]!r}", subject=name, cure=cure)


class PictureWriter:
    """Encodes pictures, keeping their own distances in time."""

    def __init__(
        self,
        out: OutputContainer,
        encoding: Encoding,
        first: VideoFrame,
        rate: Fraction | int,
        threads: int | None = None,
    ) -> None:
        """
        :param first: what pictures are like; its time base and colour tags count for all.
        :param rate: usual pictures a second; only encoders' guesses and some headers depend on it.
        :param threads: of the encoder; None: this slot's share.
        """
        self.frames = 0
        self.first: int | None = None
        """When the first picture is shown, in ticks, as for `last`."""
        self.last = 0
        self._out = out
        assert first.time_base is not None
        self.tick = first.time_base
        self._held: tuple[int, VideoFrame] | None = None
        self._durations: dict[int, int] = {}
        """Of pictures that the encoder still has, by their times."""
        self._key_seconds = encoding.key_seconds
        self._next_key = Fraction(0)
        threads = scope.native_threads() if threads is None else threads
        stream = new_stream(
            out,
            encoding.video,
            rate=rate,
            options=own_options(encoding, first.width, threads),
            time_base=self.tick,
            width=first.width,
            height=first.height,
        )
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.pix_fmt = first.format.name
        context.sample_aspect_ratio = Fraction(1)
        context.thread_count = threads
        context.thread_type = "FRAME"  # PyAV's default, slices, costs quality
        if encoding.video in _HEVC and out.format.name in _APPLE:
            context.codec_tag = HVC1
        context.color_range = first.color_range
        context.colorspace = _BT709 if first.colorspace == _RGB else first.colorspace
        context.color_primaries = first.color_primaries
        context.color_trc = first.color_trc
        open_encoder(stream, encoding.options)
        self._stream = stream

    def write(self, pts: int, frame: VideoFrame) -> None:
        """:param pts: in ticks of the first picture's time base, rising."""
        # One frame is held back: how long it lasts is known once the next is there.
        if self._held is not None:
            self._encode(*self._held, pts - self._held[0])
        self._held = (pts, frame)

    def finish(self, end: int) -> None:
        """Write what is left; the last picture ends at `end`."""
        if self._held is not None:
            self._encode(*self._held, end - self._held[0])
        self._mux(None)

    def _mux(self, frame: VideoFrame | None) -> None:
        packets = self._stream.encode(frame)
        for packet in packets:
            # Encoders leave it out, and the muxer's guess from the rate is wrong where that varies.
            packet.duration = self._durations.pop(packet.pts or 0, packet.duration or 0)
        self._out.mux(packets)

    def _encode(self, pts: int, frame: VideoFrame, duration: int) -> None:
        # All of it each time: several encoders may have the same frame.
        frame.pts = pts
        frame.time_base = self.tick
        frame.duration = duration
        frame.pict_type = PictureType.NONE  # else x264 repeats the source's choice of key frames
        if self._key_seconds is not None and pts * self.tick >= self._next_key:
            frame.pict_type = PictureType.I
            self._next_key = (pts * self.tick // self._key_seconds + 1) * self._key_seconds
        self._durations[pts] = duration
        self._mux(frame)
        self.first = pts if self.first is None else self.first
        self.last = pts
        self.frames += 1


def check(part: Path, output: Path, *, frames: int, seconds: Fraction, has_audio: bool) -> None:
    """Refuse to call a file a result unless it reads back as what was written. See `problem`.

    :raises OutputError: it does not.
    """
    if found := problem(part, frames=frames, seconds=seconds, has_audio=has_audio):
        raise OutputError(f"failed the check after writing: {found}", subject=str(output), cure="Try again.")


def problem(
    part: Path,
    *,
    frames: int,
    seconds: Fraction,
    has_audio: bool,
    look: Callable[[VideoStream, Sequence[Packet[Any]]], str] | None = None,
) -> str:
    """Why a file does not read back as what was written; empty if all is well.

    :param seconds: from the first picture shown to the last.
    :param look: says what else is wrong with its first pictures; empty if nothing is.
    """
    with base.open_input(part, header_only=True) as container:
        video = base.video_stream(container)
        tick = base.fraction(video.time_base)
        stamps: list[Fraction] = []
        first: list[Packet[Any]] = []
        for packet in base.packets(container, video):
            if packet.pts is not None:
                stamps.append(packet.pts * tick)
            if len(first) < LOOKED_AT:
                first.append(packet)
        if len(stamps) != frames:
            return f"{len(stamps)} frames came out where {frames} were written"
        if abs(max(stamps) - min(stamps) - seconds) > max(_ROUNDING_SECONDS, tick):
            lasts = float(max(stamps) - min(stamps))
            return f"it lasts {lasts:.3f} s where {float(seconds):.3f} s were written"
        if len(set(stamps)) != len(stamps):
            return "some of its frames have one time"
        if has_audio and not container.streams.audio:
            return "its audio is missing"
        return "" if look is None else look(video, first)
