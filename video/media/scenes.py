"""Scene changes: how much each picture differs from the one before, and with which one a new scene begins."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from video.media import base
from video.media.edges import decoded
from video.media.seek import packets_from

KEY_SPACING = 0.25
"""Seconds: key frames nearer than this to the one before are not decoded, so that a video of nothing but
key frames (ProRes, MJPEG) costs no more than four pictures a second."""
THUMB = (64, 36)
"""Width and height in pixels at which pictures are compared."""
SCENE_CHANGE = 0.08
"""Change from picture to picture that can be a new scene."""
OVER_USUAL = 2.5
"""It is one if it is so many times the usual change: all pictures of lively ones differ."""
TRIES = 2
"""Pairs of key frames between which all pictures are looked at, at most."""


class Pictures:
    """The timestamps of pictures, and how much each differs from the one before."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.change: list[float] = []
        """One for each of `stamps`, 0 to 1: mean absolute difference in brightness, after taking off the mean
        difference (a camera that sets its exposure anew shows no new scene); first 0."""
        self._last: npt.NDArray[np.int16] | None = None
        self._scaler = VideoReformatter()

    def add(self, frames: Sequence[VideoFrame]) -> None:
        for frame in frames:
            pts = frame.dts if frame.pts is None else frame.pts  # AVI stores no pts
            if pts is None or (self.stamps and pts <= self.stamps[-1]):
                continue
            # In libswscale: 0.05 ms, where to_ndarray("gray") of a 720p frame takes 1.3 ms.
            small = self._scaler.reformat(frame, *THUMB, "gray", interpolation=Interpolation.AREA, threads=1)
            picture = small.to_ndarray().astype(np.int16)
            step = picture - (picture if self._last is None else self._last)
            self.change.append(float(np.abs(step - step.mean()).mean()) / 255)
            self.stamps.append(pts)
            self._last = picture


def begins(
    container: InputContainer,
    video: VideoStream,
    keys: Sequence[int],
    first: Fraction,
    last: Fraction,
    longest: Fraction,
) -> int | None:
    """The first picture of a new scene, where one begins clearly; None: nowhere.

    Key frames are compared first; then all pictures, but only between the two that differ most, and if no
    scene begins there, between the two that come next.

    :param keys: of all key frames, rising.
    :param first, last: the picture is one of these, or between them.
    :param longest: key frames further apart are left out: all between them would have to be decoded.
    :return: like all of these in ticks.
    """
    near = keys[max(0, bisect_left(keys, first) - 1) : bisect_left(keys, last) + 1]
    if len(near) < 2:
        return None
    seen = _key_pictures(container, video, near)
    steps = zip(seen.change[1:], itertools.pairwise(seen.stamps), strict=True)
    for change, (begin, end) in sorted(steps, reverse=True)[:TRIES]:
        if change < SCENE_CHANGE:
            break
        if end - begin <= longest:
            found = _sharpest(container, video, (begin, end), first, last)
            if found is not None:
                return found
    return None


def _key_pictures(container: InputContainer, video: VideoStream, keys: Sequence[int]) -> Pictures:
    """Of the first of these to the last."""
    context, tick = video.codec_context, base.fraction(video.time_base)
    context.skip_frame = "NONKEY"
    pictures, asked = Pictures(), -math.inf
    for packet in packets_from(container, video, None, keys[0] * tick):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or stamp > keys[-1]:
            break
        spaced = (stamp - asked) * tick >= KEY_SPACING or stamp == keys[-1]
        if packet.is_keyframe and spaced:
            asked = stamp
            pictures.add(base.decoded(video, packet))
    pictures.add(base.decoded(video, None))
    context.flush_buffers()  # so that it can decode from another place
    context.skip_frame = "DEFAULT"
    return pictures


def _sharpest(
    container: InputContainer, video: VideoStream, span: tuple[int, int], first: Fraction, last: Fraction
) -> int | None:
    """The picture from `first` to `last` that differs most from the one before, if that is a new scene."""
    pictures = Pictures()
    for pts, frame in decoded(container, video, span[0], span[1] + 1):
        frame.pts = pts
        pictures.add([frame])
    steps = list(zip(pictures.change, pictures.stamps, strict=True))[1:]
    change, stamp = max(((one, at) for one, at in steps if first <= at <= last), default=(0.0, 0))
    usual = float(np.median([one for one, _ in steps])) if steps else 0.0
    return stamp if change >= max(SCENE_CHANGE, OVER_USUAL * usual) else None
