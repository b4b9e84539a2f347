"""What says something of pictures, by themselves or beside others: FFmpeg's filters, and SSIM of arrays.

Sources: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (SSIM), IEEE TIP 13(4), 2004; Helmrich et
al.: XPSNR, ICASSP 2020; FFmpeg's documentation of its filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from av.error import EOFError as EndOfStream
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

from video import scope
from video.errors import ConfigError
from video.media.edges import Luma

TICK = Fraction(1, 1_000_000)
XPSNR_PIXELS = 45 * 45
"""Below it, the side of the blocks that XPSNR weighs, 4 * round(32 * sqrt(pixels / (3840 * 2160))), is 0, by
which FFmpeg's filter divides: that ends the process."""
_BLOCK = 8


class Judges:
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
    judges, found = Judges(("ssim", None)), []
    for number, (frame, other) in enumerate(pairs):
        frame.pts = other.pts = number
        frame.time_base = other.time_base = TICK
        found += [float(words["lavfi.ssim.All"]) for words in judges.push(frame, other)]
    found += [float(words["lavfi.ssim.All"]) for words in judges.finish()]
    if not found:
        raise ConfigError("there is no pair of pictures", cure="Give one at least.")
    return sum(found) / len(found)


def ssim(one: Luma, other: Luma) -> float:
    """Structural similarity of two pictures, -1 to 1: the mean over blocks of 8 by 8 pixels.

    Why this one beside `similarity`, whose filter weighs colour in and takes 8 bits only: a check of a splice
    must not let good colours make up for a wrong picture, and has it as an array of whatever depth and size.
    """
    peak = 255.0 if one.dtype == np.uint8 else 1023.0
    blocks = [_blocks(picture) for picture in (one, other)]
    (a, b), count = blocks, _BLOCK * _BLOCK
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    square_a, square_b = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b)
    both = np.einsum("ij,ij->i", a, b) / count - mean_a * mean_b
    spread = (square_a + square_b) / count - mean_a**2 - mean_b**2
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    likeness /= (mean_a**2 + mean_b**2 + c1) * (spread + c2)
    return float(likeness.mean())


def _blocks(picture: Luma) -> Any:
    """(height, width) -> (blocks, 64) float32; what is left over at the right and below is left out."""
    height, width = (max(1, length // _BLOCK) for length in picture.shape)
    if min(picture.shape) < _BLOCK:
        return picture.reshape(1, -1).astype(np.float32)
    cut = picture[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    return cut.swapaxes(1, 2).reshape(height * width, _BLOCK * _BLOCK).astype(np.float32)
