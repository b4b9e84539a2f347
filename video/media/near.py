"""How near a picture stays to its source under transformations, judged by a few small pictures in memory:
about 10 ms a judgement, so that lists can be tried one by one before anything is encoded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from av.video.frame import VideoFrame

from video.errors import ConfigError, InvalidMedia
from video.media import base, seek
from video.media.chain import Chain
from video.media.encode import Fit
from video.media.fuse import fuse
from video.media.judges import similarity
from video.media.transform import Chosen, Facts

PICTURES = 12
"""Neighbours, since some transformations look at several."""
HEIGHT = 360
"""Lines; larger ones are scaled down."""


class _Taken(NamedTuple):
    pts: int
    tick: Fraction
    frame: VideoFrame


class Sample:
    """Neighbouring pictures from the middle of a video.

    :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: as `base.open_input`; or it has none.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Facts) -> None:
        high = min(HEIGHT, facts.height)
        wide = max(2, 2 * round(facts.width * high / facts.height / 2))
        self._facts = facts._replace(width=wide, height=high)
        self._taken = list(itertools.islice(_pictures(path, facts, wide, high), PICTURES))
        if not self._taken:
            raise InvalidMedia(
                "has no picture that can be decoded",
                subject=os.fspath(path),
                cure="Download or copy it again.",
            )

    def likeness(self, chosen: tuple[Chosen, ...]) -> float:
        """Mean SSIM of the pictures with these transformations to those without; 1 is the same, and 0 what
        leaves nothing to compare. What only changes times is left out."""
        text = fuse((one for one in chosen if one.of.place != "time"), self._facts).picture
        if not text:
            return 1.0
        pairs = []
        try:
            for one in self._taken:  # which the comparison before this one has numbered anew
                one.frame.pts, one.frame.time_base = one.pts, one.tick
            chain: Chain[VideoFrame] = Chain(text, self._taken[0].frame, "yuv420p")
            for frame in (*(one.frame for one in self._taken), None):
                pairs += [(changed, self._shown(changed)) for changed in chain.push(frame)]
            return similarity(pairs)
        except ConfigError:  # not for pictures like these, or none came out
            return 0.0

    def _shown(self, changed: VideoFrame) -> VideoFrame:
        """What the source shows at the time of a picture."""
        time = (changed.pts or 0) * base.fraction(changed.time_base)
        before = [one.frame for one in self._taken if one.pts * one.tick <= time + seek.TOLERANCE_SECONDS]
        return (before or [self._taken[0].frame])[-1]


def _pictures(path: str | os.PathLike[str], facts: Facts, wide: int, high: int) -> Iterator[_Taken]:
    with base.open_input(path) as container:
        video, zero = base.video_stream(container), base.origin(container)
        tick = base.fraction(video.time_base)
        start = zero + Fraction(facts.seconds) / 2
        decoder = seek.FrameDecoder(container, video, seek.ticks(start, tick))
        fit: Fit | None = None
        for packet in itertools.chain(seek.packets_from(container, video, None, start), [None]):
            for pts, frame in decoder.decode(packet):
                if fit is None:
                    fit = Fit(frame, video)
                frame.time_base = tick
                small = fit(frame).reformat(wide, high, "yuv420p")
                yield _Taken(pts - round(zero / tick), tick, small)
