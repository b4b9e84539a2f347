"""What a video is like, and how near it comes to the one it was made from; all in one pass over each.

    file      -> pictures -> black, frozen, blur -> scaled to the reference -> SSIM, PSNR, XPSNR
                        \\-> small and grey ------> perceptual hash
              -> sound ---> loudness, true peak
    reference -> the picture that is shown at the same time

Sources: Crete et al.: The blur effect, SPIE 2007; FFmpeg's documentation of its filters blackdetect,
freezedetect and blurdetect; for the others see `judges`, `hashing` and `loudness`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame

from video.errors import ConfigError, InvalidMedia, UnsupportedMedia
from video.media import base
from video.media.encode import Fit
from video.media.hashing import perceptual_hash
from video.media.judges import TICK, Judges
from video.media.loudness import Loudness
from video.media.seek import FrameDecoder

SAMPLE_SECONDS = 1.0
"""From one picture whose hash and blur are looked at to the next: to find the edges of each one would take
twenty times as long as all else (11 ms at 720p)."""
ROUNDING_SECONDS = 0.002
"""Containers that count in milliseconds round times by so much."""
BLACK = "d=0.1:pix_th=0.1:pic_th=0.98"
"""A span of 0.1 s in which 98 of 100 pixels are darker than a tenth of full."""
FROZEN = "n=-60dB:d=0.5"
"""A span of 0.5 s whose pictures differ by less than a thousandth of full."""

JUDGES = (("ssim", None), ("psnr", None), ("xpsnr", None))
SSIM_SIDE = 15
"""SSIM looks at blocks of 8 x 8, of colour too, which has half the picture's sides."""


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
    """Spans (start, end) in which one picture stands still; they adjoin where another follows it."""
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
        pictures, sound = _Pictures(shown), Loudness(container)
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


def _frames(container: InputContainer, sound: Loudness | None = None) -> Iterator[tuple[float, VideoFrame]]:
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
        self._spans = Judges(("blackdetect", BLACK), ("freezedetect", FROZEN))
        self._edges = Judges(("blurdetect", None))
        self._beside: Judges | None = None
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
            self._beside = Judges(*JUDGES)
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


def _decibels(share: float) -> float:
    """Of a mean square error, as a share of full."""
    return -10 * math.log10(share) if share > 0 else math.inf
