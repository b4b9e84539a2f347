"""How much of the memory a worker takes, and so how many there is room for, and of outputs that each makes at
once. A guess beforehand: what is really held is watched by `video.policies.memory`."""

from __future__ import annotations

import math
from dataclasses import dataclass

USUAL_PIXELS = 1280 * 720
"""Of a picture, where nobody knows better."""
MEMORY_SHARE = 0.8
"""Of what is free, as much is for a batch unless its caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a worker holds."""

    always: float
    a_pixel: float
    """For each pixel of a picture, times its outputs at once."""

    def workers(self, memory: float, pixels: int) -> float:
        """How many, of one output each, so much memory has room for: a whole number, at least 1; or infinite
        where the memory is.

        :param memory: bytes.
        :param pixels: of a picture.
        """
        fits = memory / (self.always + self.a_pixel * pixels)
        return max(1, fits if math.isinf(fits) else int(fits))

    def outputs(self, memory: float, pixels: int) -> float:
        """How many one worker may make at once with so much memory, in the same way."""
        fits = (memory - self.always) / (self.a_pixel * max(1, pixels))
        return max(1, fits if math.isinf(fits) else int(fits))


VARIANT = Need(75e6, 130.0)
"""Measured by benchmarks/bench_variants.py."""
ENCODING = Need(0, (600 << 20) / USUAL_PIXELS)
"""With four renditions, which are as one output here; measured by benchmarks/bench_encode.py."""
