"""What a video is like, and how near it comes to the one it was made from; all in one pass over each.

    file      -> pictures -> black, frozen, blur -> scaled to the reference -> SSIM, PSNR, XPSNR
                        \\-> small and grey ------> perceptual hash
              -> sound ---> loudness, true peak
    reference -> the picture that is shown at the same time

Sources: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (SSIM), IEEE TIP 13(4), 2004; Helmrich et
al.: XPSNR, ICASSP 2020; ITU-R BS.1770 and EBU R 128 (loudness); Crete et al.: The blur effect, SPIE 2007;
Zauner: Implementation and benchmarking of perceptual image hash functions, 2010 (the hash by cosines);
FFmpeg's documentation of its filters ssim, psnr, xpsnr, blackdetect, freezedetect, blurdetect, ebur128.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from video import scope
from video.errors import ConfigError, InvalidMedia, UnsupportedMedia
from video.media import base
from video.media.encode import Fit
from video.media.seek import FrameDecoder

TICK = Fraction(1, 1_000_000)
SAMPLE_SECONDS = 1.0
"""From one picture whose hash and blur are looked at to the next: to find the edges of each one would take
twenty times as long as all else (11 ms at 720p)."""
HASH_SIDE, HASH_WAVES = 32, 8
ROUNDING_SECONDS = 0.002
"""Containers that count in milliseconds round times by so much."""
BLACK = "d=0.1:pix_th=0.1:pic_th=0.98"
"""A span of 0.1 s in which 98 of 100 pixels are darker than a tenth of full."""
FROZEN = "n=-60dB:d=0.5"
"""A span of 0.5 s whose pictures differ by less than a thousandth of full."""

JUDGES = (("ssim", None), ("psnr", None), ("xpsnr", None))
SSIM_SIDE = 15
"""SSIM looks at blocks of 8 x 8, of colour too, which has half the picture's sides."""
XPSNR_PIXELS = 45 * 45
"""Below it, the side of the blocks that XPSNR weighs, 4 * round(32 * sqrt(pixels / (3840 * 2160))), is 0, by
which FFmpeg's filter divides: that ends the process."""

Hash = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near a video comes to its reference, over all of its pictures."""

    ssim: float
    """Structural similarity, mean over the pictures and all planes; 1 is the same."""
    ssim_worst: float
    """Of the worst picture."""
    psnr: float
    """dB, from the mean square error over all pictures and planes; infinite where they are the same."""
    xpsnr: float | None
    """dB, of brightness, with errors weighted by how visible they are; infinite where they are the same; None
    for pictures of fewer than 2025 pixels, which have no blocks to weigh."""
    hash_distance: float
    """Bits of 64 by which the perceptual hashes differ, mean over one picture each second: a few are the same
    scene, about 32 are different ones."""
    frames: int
    """Pictures that were compared."""
    unmatched: int
    """Pictures of the video at whose time the reference had ended."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a video is like. Times in seconds from where players start to count."""

    frames: int
    seconds: float
    """Until the last picture is shown."""
    blur: float
    """Mean width of edges, in pixels: about 2 to 5 where it is sharp."""
    black: tuple[tuple[float, float], ...]
    """Spans (start, end) without a picture to see."""
    frozen: tuple[tuple[float, float], ...]
    """Spans (start, end) in which nothing moves."""
    loudness: float | None
    """LUFS, of the first sound as a whole; None without sound, or where it is silent."""
    true_peak: float | None
    """dBTP, of that sound; None as for `loudness`."""
    likeness: Likeness | None = None
    """To the reference; None without one."""


def measure_quality(
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    *,
    offset: float = 0.0,
    speed: float = 1.0,
    lead: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> Quality:
    """What a video is like, and how near it comes to `reference`.

    Both are compared as players show them, upright and in square pixels, at the reference's size; each
    picture with the one that the reference shows at that time.

    :param offset: seconds of the reference at which the video begins, for a part of it.
    :param speed: seconds of the reference that pass in each second of the video.
    :param lead: seconds for which the video's first picture stands before it goes on.
    :param progress: told the time of each picture of the video, in seconds, once it is measured.
    :raises ConfigError: for an `offset` or a `lead` that is no time, or a `speed` that is none.
    :raises SourceNotFound, SourceError: a file cannot be read.
    :raises InvalidMedia, UnsupportedMedia: it has no picture that can be decoded, or no two to compare, or
        those of the reference have a side below 15.
    :raises ItemCancelled: this item has been given up.
    """
    for name, value in (("offset", offset), ("lead", lead)):
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} is {value!r}", cure="It takes seconds, 0 or more.")
    if not (isinstance(speed, int | float) and math.isfinite(speed) and speed > 0):
        raise ConfigError(f"speed is {speed!r}", cure="It takes a number above 0.")
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(base.open_input(path))
        shown: _Shown | None = None
        if reference is not None:
            shown = _Shown(stack.enter_context(base.open_input(reference)), offset, speed, lead)
        pictures, sound = _Pictures(shown), _Sound(container)
        for time, frame in _frames(container, sound):
            pictures.add(time, frame)
            if progress is not None:
                progress(time)
        if not pictures.frames:
            name = base.source_name(container)
            raise InvalidMedia(
                "has no picture that can be decoded", subject=name, cure="Download or copy it again."
            )
        pictures.finish()
        likeness = None
        if shown is not None:
            likeness = pictures.likeness(base.source_name(container), shown.name)
        return Quality(
            frames=pictures.frames,
            seconds=pictures.end,
            blur=pictures.blur,
            black=pictures.black.spans(pictures.end),
            frozen=pictures.frozen.spans(pictures.end),
            loudness=sound.loudness,
            true_peak=sound.true_peak,
            likeness=likeness,
        )


def _frames(container: InputContainer, sound: _Sound | None = None) -> Iterator[tuple[float, VideoFrame]]:
    """(seconds, picture as shown) of a file; what is read of its sound goes to `sound`."""
    video, zero = base.video_stream(container), base.origin(container)
    tick = base.fraction(video.time_base)
    decoder = FrameDecoder(container, video, -(2**62))
    audio = None if sound is None else sound.stream
    fit: Fit | None = None

    def upright(decoded: Iterator[tuple[int, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
        nonlocal fit
        for pts, frame in decoded:
            fit = fit or Fit(frame, video)
            frame.time_base = tick
            yield float(pts * tick - zero), fit(frame)

    for packet in base.packets(container, *((video,) if audio is None else (video, audio))):
        if packet.stream_index == video.index:
            yield from upright(decoder.decode(packet))
        elif sound is not None:
            sound.add(packet)
    yield from upright(decoder.decode(None))


class _Shown:
    """The picture of a file that is shown at a time; times must rise."""

    def __init__(
        self, container: InputContainer, offset: float, speed: float = 1.0, lead: float = 0.0
    ) -> None:
        self.name = base.source_name(container)
        self._frames = _frames(container)
        self._offset, self._speed, self._lead = offset, speed, lead
        # What is rounded must not show the one before; and new times are rounded to the ticks of their file.
        self._slack = float(TICK) if (offset, speed, lead) == (0, 1, 0) else ROUNDING_SECONDS
        self._now: VideoFrame | None = None
        self._next: tuple[float, VideoFrame] | None = next(self._frames, None)
        video = base.video_stream(container)
        self._last, self._step = 0.0, float(base.usual_step(video) * base.fraction(video.time_base))

    def at(self, time: float) -> VideoFrame | None:
        """None: it has ended."""
        time = self._offset + self._speed * max(0.0, time - self._lead) + self._slack
        while self._next is not None and self._next[0] <= time:
            if self._now is not None:
                self._step = self._next[0] - self._last
            self._last = self._next[0]
            self._now, self._next = self._next[1], next(self._frames, None)
        if self._now is None and self._next is not None:  # before the first
            return self._next[1]
        if self._next is None and time > self._last + self._step - ROUNDING_SECONDS:
            return None
        return self._now


class _Spans:
    """Spans of time from what a filter says of their starts and ends."""

    def __init__(self, start: str, end: str) -> None:
        self._keys = start, end
        self._found: list[tuple[float, float]] = []
        self._open: float | None = None

    def hear(self, words: dict[str, str]) -> None:
        start, end = (words.get(key) for key in self._keys)
        if start is not None:
            self._open = float(start)
        if end is not None and self._open is not None:
            self._found.append((self._open, float(end)))
            self._open = None

    def spans(self, end: float) -> tuple[tuple[float, float], ...]:
        last = [] if self._open is None else [(self._open, end)]
        return tuple(self._found + last)


class _Pictures:
    """What the filters say of the pictures of a video, beside those of its reference."""

    def __init__(self, reference: _Shown | None) -> None:
        self.frames = 0
        self.end = 0.0
        self._blurs: list[float] = []
        self.black = _Spans("lavfi.black_start", "lavfi.black_end")
        self.frozen = _Spans("lavfi.freezedetect.freeze_start", "lavfi.freezedetect.freeze_end")
        self._reference = reference
        self._spans = _Chain(("blackdetect", BLACK), ("freezedetect", FROZEN))
        self._edges = _Chain(("blurdetect", None))
        self._beside: _Chain | None = None
        self._unmatched = 0
        self._ssim: list[float] = []
        self._square = 0.0
        self._xpsnr: list[float] = []
        self._distances: list[int] = []
        self._sample_at = -math.inf
        self._last = 0.0

    def add(self, time: float, frame: VideoFrame) -> None:
        self.frames += 1
        self.end = time + (time - self._last if self.frames > 1 else 0.0)
        self._last = time
        frame.pts, frame.time_base = round(time / TICK), TICK
        for words in self._spans.push(frame):
            self._hear(words)
        sampled = time >= self._sample_at
        if sampled:
            self._sample_at = time + SAMPLE_SECONDS
            self._blurs += [float(words["lavfi.blur"]) for words in self._edges.push(frame)]
        if self._reference is not None:
            self._compare(frame, self._reference.at(time), sampled=sampled)

    def _compare(self, frame: VideoFrame, other: VideoFrame | None, *, sampled: bool) -> None:
        if other is None:
            self._unmatched += 1
            return
        if sampled:
            self._distances.append(int(np.count_nonzero(perceptual_hash(frame) != perceptual_hash(other))))
        if self._beside is None:
            if min(other.width, other.height) < SSIM_SIDE:
                assert self._reference is not None
                raise UnsupportedMedia(
                    f"has pictures of {other.width}x{other.height}",
                    subject=self._reference.name, cure=f"Compare such with sides of {SSIM_SIDE} or more.",
                )  # fmt: skip
            self._beside = _Chain(*JUDGES)
        other.pts, other.time_base = frame.pts, TICK
        for words in self._beside.push(frame, other):
            self._judge(words)

    def finish(self) -> None:
        for words in self._spans.finish():
            self._hear(words)
        self._blurs += [float(words["lavfi.blur"]) for words in self._edges.finish()]
        if self._beside is not None:
            for words in self._beside.finish():
                self._judge(words)

    @property
    def blur(self) -> float:
        sharp = [one for one in self._blurs if math.isfinite(one)]  # a plain picture has no edges
        return sum(sharp) / len(sharp) if sharp else 0.0

    def likeness(self, name: str, reference: str) -> Likeness:
        if not self._ssim:
            raise InvalidMedia(
                f"has no picture at whose time {reference} has one",
                subject=name,
                cure="Choose a smaller offset, or the video that it was made from.",
            )
        count = len(self._ssim)
        square = self._square / count
        # Means of decibels would hide the worst, and of infinite ones there is none: by way of the errors.
        weighted = [0.0 if math.isinf(one) else 10 ** (-one / 10) for one in self._xpsnr]
        return Likeness(
            ssim=sum(self._ssim) / count,
            ssim_worst=min(self._ssim),
            psnr=_decibels(square / 255**2),
            xpsnr=_decibels(sum(weighted) / len(weighted)) if weighted else None,
            hash_distance=sum(self._distances) / len(self._distances),
            frames=count,
            unmatched=self._unmatched,
        )

    def _hear(self, words: dict[str, str]) -> None:
        self.black.hear(words)
        self.frozen.hear(words)

    def _judge(self, words: dict[str, str]) -> None:
        self._ssim.append(float(words["lavfi.ssim.All"]))
        self._square += float(words["lavfi.psnr.mse_avg"])
        if (weighted := words.get("lavfi.xpsnr.xpsnr.y")) is not None:
            self._xpsnr.append(float(weighted))


class _Chain:
    """Filters that say something of each picture, or, where they are given two, of the first beside the
    second.

    :param filters: (name, arguments) of each.
    """

    def __init__(self, *filters: tuple[str, str | None]) -> None:
        self._filters = filters
        self._graph: Graph | None = None
        self._shape: tuple[Any, ...] = ()
        self._sources: list[FilterContext] = []
        self._sink: FilterContext | None = None

    def push(self, *frames: VideoFrame) -> Iterator[dict[str, str]]:
        shape = tuple((frame.width, frame.height, frame.format.name) for frame in frames)
        if shape != self._shape:
            yield from self.finish()
            self._shape = shape
            self._build(frames)
        for source, frame in zip(self._sources, frames, strict=True):
            source.push(frame)
        yield from self._pull()

    def finish(self) -> Iterator[dict[str, str]]:
        """What is left."""
        if self._graph is not None:
            for source in self._sources:
                source.push(None)
            yield from self._pull()
            self._graph = None

    def _pull(self) -> Iterator[dict[str, str]]:
        assert self._sink is not None
        while True:
            try:
                frame = self._sink.pull()
            except (BlockingIOError, EndOfStream):
                return
            yield dict(frame.metadata)

    def _build(self, frames: tuple[VideoFrame, ...]) -> None:
        self._graph = graph = Graph()
        graph.threads = scope.native_threads()
        self._sources = [
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base=str(TICK),
                pixel_aspect="1/1",
            )
            for frame in frames
        ]
        self._sink = graph.add("buffersink")
        pixels = frames[-1].width * frames[-1].height
        filters = [graph.add(*one) for one in self._filters if one[0] != "xpsnr" or pixels >= XPSNR_PIXELS]
        if len(frames) == 1:
            graph.link_nodes(self._sources[0], *filters, self._sink).configure()
            return
        reference = frames[1]
        # Both to one format as well: a picture of full range would else differ all over.
        size = f"{reference.width}:{reference.height}:out_range=tv"
        twins = []
        for source in self._sources:
            scaled, planes = graph.add("scale", size), graph.add("format", "yuv420p")
            source.link_to(scaled)
            scaled.link_to(planes)
            twins.append(planes)
        split = graph.add("split", str(len(filters)))
        twins[1].link_to(split)
        last = twins[0]
        for place, judge in enumerate(filters):
            last.link_to(judge, 0, 0)
            split.link_to(judge, place, 1)
            last = judge
        last.link_to(self._sink)
        graph.configure()


def similarity(pairs: Iterable[tuple[VideoFrame, VideoFrame]]) -> float:
    """Mean SSIM of pictures, each to the other of its pair at the other's size; 1 is the same.

    :raises ConfigError: there are none.
    """
    chain, found = _Chain(("ssim", None)), []
    for number, (frame, other) in enumerate(pairs):
        frame.pts = other.pts = number
        frame.time_base = other.time_base = TICK
        found += [float(words["lavfi.ssim.All"]) for words in chain.push(frame, other)]
    found += [float(words["lavfi.ssim.All"]) for words in chain.finish()]
    if not found:
        raise ConfigError("there is no pair of pictures", cure="Give one at least.")
    return sum(found) / len(found)


class _Sound:
    """The loudness of the first sound of a file."""

    def __init__(self, container: InputContainer) -> None:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        self.stream = streams[0] if streams else None
        self._graph: Graph | None = None
        self._shape: tuple[Any, ...] = ()
        self._words: dict[str, str] = {}

    @property
    def loudness(self) -> float | None:
        """LUFS."""
        value = float(self._words.get("lavfi.r128.I", "nan"))
        # -70 is the gate below which nothing counts.
        return value if math.isfinite(value) and value > -70 else None

    @property
    def true_peak(self) -> float | None:
        """dBTP."""
        value = float(self._words.get("lavfi.r128.true_peak", "nan"))
        return 20 * math.log10(value) if self.loudness is not None and value > 0 else None

    def add(self, packet: Any) -> None:
        assert self.stream is not None
        try:
            for frame in self.stream.codec_context.decode(packet):
                self._push(frame)
        except FFmpegError as error:  # a damaged place, for which decoders have many words, is passed over
            if isinstance(error, MemoryError):
                raise

    def _push(self, frame: Any) -> None:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._graph is None:
            self._shape = shape
            self._graph = Graph()
            source = self._graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name
            )
            loud, sink = self._graph.add("ebur128", "metadata=1:peak=true"), self._graph.add("abuffersink")
            self._graph.link_nodes(source, loud, sink).configure()
        if shape != self._shape:
            return  # what changes its kind midway is judged by its beginning
        frame.pts = None
        self._graph.push(frame)
        with contextlib.suppress(BlockingIOError, EndOfStream):
            while True:
                self._words = dict(self._graph.pull().metadata) or self._words


def perceptual_hash(frame: VideoFrame) -> Hash:
    """64 bits of what a picture shows, which scaling, noise and another codec leave mostly as they are.

    The lowest 8 x 8 cosine waves of the picture at 32 x 32 grey pixels, each above or below their median.

    :return: shape (64,), bool.
    """
    grey = frame.reformat(HASH_SIDE, HASH_SIDE, "gray", interpolation=Interpolation.AREA).to_ndarray()
    waves = _WAVES @ grey.astype(np.float64) @ _WAVES.T
    low = waves.ravel()
    bits: Hash = low > np.median(low[1:])  # but for the first, which is only how bright it is
    return bits


def _cosines() -> npt.NDArray[np.float64]:
    """Shape (8, 32): rows are waves (DCT-II)."""
    wave = np.arange(HASH_WAVES)[:, None] * (2 * np.arange(HASH_SIDE) + 1) * math.pi / (2 * HASH_SIDE)
    return np.cos(wave)


_WAVES = _cosines()


def _decibels(share: float) -> float:
    """Of a mean square error, as a share of full."""
    return -10 * math.log10(share) if share > 0 else math.inf
