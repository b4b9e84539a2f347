"""The coarsest setting of an encoder that still looks as much like the source as is asked for.

Short samples of the video are encoded with a few settings, and measured by SSIM against what the encoder was
given. Between two settings the logarithm of what is missing to 1 is nearly a straight line, so few will do.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from video import scope
from video.errors import ConfigError, InvalidMedia
from video.media import base, codecs
from video.media.encode import Encoding
from video.media.pieces import picture_times
from video.media.quality import measure_quality
from video.media.render import Output, render
from video.media.seek import TOLERANCE_SECONDS

SAMPLES, SAMPLE_SECONDS = 3, 2
"""Spread evenly; of a video that is hardly longer, all is one sample. Where one picture stands still for
longer than a sample, what comes before is the sample."""
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
        lossless = replace(_LOSSLESS, pixels=encoding.pixels)
        spans: list[tuple[Fraction, Fraction]] = []
        damage: InvalidMedia | None = None
        for start, end in _spans(*_times(source)):
            try:
                _made(source, Output(place / f"{len(spans)}.mkv", filters, None, lossless), start, end)
                spans.append((start, end))
            except InvalidMedia as error:  # just there
                damage = error
        if not spans and damage is not None:
            raise damage

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
                f"an SSIM of {target:g} cannot be had: {used.encoder} with {used.setting(value)} has "
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


def _times(source: str) -> tuple[list[Fraction], Fraction]:
    """When its pictures are shown and the last one ends, in seconds, as players count."""
    with base.open_input(source) as container:
        video, zero = base.video_stream(container), base.origin(container)
        tick = base.fraction(video.time_base)
        times = [stamp * tick - zero for stamp in picture_times(container, video)[0]]
        return times, times[-1] + base.usual_step(video) * tick


def _spans(times: list[Fraction], finish: Fraction) -> list[tuple[Fraction, Fraction]]:
    """Of the samples; each has pictures."""
    duration = finish - times[0]
    if duration <= (SAMPLES + 1) * SAMPLE_SECONDS:
        return [(times[0], finish)]
    spans = []
    for at in range(SAMPLES):
        start = times[0] + duration * (2 * at + 1) / (2 * SAMPLES) - Fraction(SAMPLE_SECONDS, 2)
        next_ = bisect_left(times, start)
        end = start + SAMPLE_SECONDS
        if next_ == len(times) or times[next_] + TOLERANCE_SECONDS >= end:
            end = times[next_] if next_ < len(times) else finish
            start = max(times[0], times[next_ - 1] - SAMPLE_SECONDS)
        spans.append((start, end))
    return list(dict.fromkeys(spans))


def _made(source: str, output: Output, start: Fraction, end: Fraction) -> None:
    (done,) = render(source, [output], start=start, end=end)
    if isinstance(done, Exception):
        raise done
