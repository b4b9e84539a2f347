"""What a picture shows, as a few bits that another size or codec leaves mostly as they are.

Source: Zauner: Implementation and benchmarking of perceptual image hash functions, 2010 (by cosines).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

Hash = npt.NDArray[np.bool_]
HASH_SIDE, HASH_WAVES = 32, 8


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
