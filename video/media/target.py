"""The coarsest setting of an encoder that still looks as much like the source as is asked for.

Short samples of the video are encoded with a few settings, and measured by SSIM against what the encoder was
given. Between two settings the logarithm of what is missing to 1 is nearly a straight line, so few will do.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from video import scope
from video.errors import ConfigError
from video.media import base, codecs
from video.media.encode import Encoding
from video.media.probe import duration_seconds
from video.media.quality import measure_quality
from video.media.render import Output, render

SAMPLES, SAMPLE_SECONDS = 3, 2.0
"""Spread evenly; of a video that is hardly longer, all is one sample."""
MOST_ROUNDS = 6
NEAR_ENOUGH = 0.002
"""SSIM above the target at which a coarser setting is not looked for."""

_LOSSLESS = Encoding("ffv1", {})


@dataclass(frozen=True, slots=True)
class Found:
    """A setting, and all that was measured."""

    value: int
    """Of the encoder's scale (crf, mostly)."""
    ssim: float
    """Mean over all planes of the samples' pictures, as encoded with it."""
    measured: Mapping[int, float]
    """SSIM by setting."""

    def __str__(self) -> str:
        rows = ", ".join(f"{value}: {ssim:.4f}" for value, ssim in sorted(self.measured.items()))
        return f"SSIM {self.ssim:.4f} of samples (measured {rows})"


def find(
    source: str, target: float, encoding: Encoding, used: codecs.Tool, filters: str, folder: Path
) -> Found:
    """The coarsest setting whose samples have at least this SSIM.

    :param target: above 0, below 1.
    :param filters: of the pictures; what they make is the reference.
    :param folder: where samples are put meanwhile; it must be there.
    :raises ConfigError: not even the finest setting has it.
    """
    place = folder / f".samples-{secrets.token_hex(6)}"
    with scope.unfinished(place), base.output_errors(place):
        place.mkdir()
        spans = _spans(duration_seconds(source))
        lossless = replace(_LOSSLESS, pixels=encoding.pixels)
        for at, (start, end) in enumerate(spans):
            _made(source, Output(place / f"{at}.mkv", filters, None, lossless), start, end)

        def measure(value: int) -> float:
            found = 0.0
            for at, (start, end) in enumerate(spans):
                coded = place / f"{at}-{value}.mkv"
                _made(source, Output(coded, filters, None, codecs.at(encoding, used, value)), start, end)
                likeness = measure_quality(coded, place / f"{at}.mkv").likeness
                assert likeness is not None
                found += likeness.ssim / len(spans)
                scope.remove(str(coded))
            return found

        first = [used.presets[preset][0] for preset in ("high", "low")]
        value, measured = search(measure, target, first, used.finest, used.coarsest)
        if measured[value] < target:
            raise ConfigError(
                f"an SSIM of {target:g} cannot be had: {used.encoder} with {used.scale} {value} has "
                f"{measured[value]:.4f}",
                subject=source,
                cure="Ask for less, or choose a quality by name.",
            )
        return Found(value, measured[value], measured)


def search(
    measure: Callable[[int], float], target: float, first: list[int], finest: int, coarsest: int
) -> tuple[int, dict[int, float]]:
    """The coarsest setting that meets the target, or the finest there is; and SSIM by setting.

    :param measure: SSIM of a setting; falls as settings rise.
    :param first: settings to begin with.
    """
    measured: dict[int, float] = {}
    guess = first[0]
    for round_ in range(MOST_ROUNDS):
        measured[guess] = measure(guess)
        good = max((value for value, ssim in measured.items() if ssim >= target), default=finest - 1)
        bad = min((value for value, ssim in measured.items() if ssim < target), default=coarsest + 1)
        if bad - good <= 1 or (good in measured and measured[good] - target < NEAR_ENOUGH):
            break
        guess = first[1] if round_ == 0 and good < first[1] < bad else _between(measured, target, good, bad)
    return (good if good in measured else min(measured)), measured


def _between(measured: dict[int, float], target: float, good: int, bad: int) -> int:
    """Where the line through the two nearest measured settings meets the target; between both bounds."""
    near = sorted(measured, key=lambda value: abs(measured[value] - target))[:2]
    if len(near) < 2:
        return (good + bad) // 2
    (one, two), (here, there) = sorted(near), [math.log(max(1e-6, 1 - measured[v])) for v in sorted(near)]
    wanted, slope = math.log(1 - target), (there - here) / (two - one)
    guess = one + (wanted - here) / slope if slope > 0 else (good + bad) / 2
    return max(good + 1, min(bad - 1, math.floor(guess)))


def _spans(duration: float) -> list[tuple[float, float]]:
    if duration <= (SAMPLES + 1) * SAMPLE_SECONDS:
        return [(0.0, duration)]
    starts = [duration * (at + 0.5) / SAMPLES - SAMPLE_SECONDS / 2 for at in range(SAMPLES)]
    return [(start, start + SAMPLE_SECONDS) for start in starts]


def _made(source: str, output: Output, start: float, end: float) -> None:
    (done,) = render(source, [output], start=Fraction(start), end=Fraction(end))
    if isinstance(done, Exception):
        raise done
