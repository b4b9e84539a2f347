"""Variants of one source: chosen, fused, decoded once and encoded many, measured where that is asked for."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from video import scope
from video.errors import ConfigError, ItemTimeout, OutputError
from video.media import base, probe, strategies
from video.media.fuse import Fused, fuse
from video.media.near import Sample
from video.media.quality import Quality, measure_quality
from video.media.render import Output, Rendered, render
from video.media.transform import Chosen, Facts, timing
from video.models import Problem

USUAL_RATE = Fraction(25)
"""Frames a second of a source that does not say."""
RENDERED = 0.75
"""Share of the work on a measured variant that is done once it is written."""
ROUNDS = 3
"""How often a variant that falls below its floor is made again: twice softer, then with its picture as it
is."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One variant that is to be made."""

    output: Path
    strategy: str = "standard"
    seed: int = 0
    number: int = 1
    """With the seed, what its draw depends on."""
    chosen: tuple[Chosen, ...] | None = None
    """Its transformations, where the caller chose them."""
    floor: float | None = None
    """SSIM to the source that its picture must keep, at most 1; None: it is not measured."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one variant."""

    chosen: tuple[Chosen, ...] = ()
    """Its transformations, in the order of their chain."""
    measures: dict[str, Any] = field(default_factory=dict)
    """`frames width height seconds`, and of one that was measured `ssim ssim_worst psnr xpsnr hash_distance
    loudness true_peak`, in the units of `video.media.quality`; None where there is no such figure."""
    bytes: int = 0
    seconds: float = 0.0
    """Wall time; what several have done together counts for each by an equal part."""
    error: Problem | None = None


def facts_of(path: str | os.PathLike[str]) -> Facts:
    """What plans depend on of a source.

    :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: as `base.open_input`.
    """
    with base.open_input(path) as container:
        video = base.video_stream(container)
        frame = probe.first_frame(container, video)
        turned = 0 if frame is None else base.rotation(frame)
        shape = base.fraction(video.sample_aspect_ratio)
        width, height = base.displayed_size(
            video.codec_context.width, video.codec_context.height, shape, turned
        )
        audio = base.audio_stream(container)
        sample_rate = 0
        if audio is not None:
            rate = audio.codec_context.sample_rate
            sample_rate = rate if rate in (av.Codec("aac", "w").audio_rates or []) else 48_000
        rate_of_frames = base.frame_rate(video) or USUAL_RATE
    # Not from the header: many name the length of the whole alone, and sound may go on after the pictures.
    seconds = probe.measure(path).duration_seconds
    return Facts(width, height, rate_of_frames, seconds, sample_rate, os.path.basename(path))


def make(source: str, wanted: Sequence[Wanted], limit: float | None = None) -> list[Made]:
    """Make variants of one source together, by one decoder; what goes wrong with one is in its place.

    :param limit: seconds that all may take together, looked at with every picture; None: no limit.
    :raises ItemTimeout: they took longer; those that are not whole leave nothing.
    :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: the source is of no use to any.
    :raises ItemCancelled: this item has been given up; no variant is left.
    """
    began = time.perf_counter()
    facts = facts_of(source)
    work = _Work(source, facts, wanted, limit, began)
    with contextlib.ExitStack() as stack:
        for number in range(len(wanted)):
            work.plan(number, stack)
        for again in range(ROUNDS + 1):
            if not work.plans:
                break
            work.render()
            work.judge(again)
    seconds = (time.perf_counter() - began) / len(wanted)
    return [replace(work.made[number], seconds=seconds) for number in range(len(wanted))]


class _Work:
    """What is to be made of a source, and what has been; variants go by their place in the list."""

    def __init__(
        self, source: str, facts: Facts, wanted: Sequence[Wanted], limit: float | None, began: float
    ) -> None:
        self._source, self._facts, self._wanted = source, facts, wanted
        self._limit, self._began = limit, began
        self._sample: Sample | None = None
        measured = any(one.floor is not None for one in wanted)
        self._share = RENDERED if measured else 1.0
        self._parts: dict[int, Path] = {}
        self._written: dict[int, Rendered] = {}
        self.plans: dict[int, Fused] = {}
        """Of those that are still to be made."""
        self.made: dict[int, Made] = {}

    def _report(self, done: float, words: str) -> None:
        """:raises ItemTimeout: its time is up."""
        if self._limit is not None and time.perf_counter() - self._began > self._limit:
            raise ItemTimeout(
                f"ran longer than its limit of {self._limit:g} s",
                subject=self._source, cure="Raise `timeout`, or look at this input.",
            )  # fmt: skip
        scope.report(done, words)

    def plan(self, number: int, stack: contextlib.ExitStack) -> None:
        """Choose the transformations of a variant, and where it is written at first."""
        scope.check_cancelled()
        self._report(0.0, "choosing transformations")
        one = self._wanted[number]
        try:
            if os.path.exists(one.output) and os.path.samefile(one.output, self._source):
                raise ConfigError(
                    "is the source itself", subject=str(one.output), cure="Choose another name."
                )
            self.plans[number] = fuse(self._choose(one), self._facts)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the matter of this variant
            scope.check_cancelled()
            self.made[number] = Made(error=Problem.of(error))
        self._parts[number] = one.output
        if one.floor is not None:  # nobody is to see it before it has passed
            part = one.output.with_name(f".{one.output.stem[:40]}.{secrets.token_hex(4)}{one.output.suffix}")
            self._parts[number] = stack.enter_context(scope.unfinished(part))

    def _choose(self, one: Wanted) -> tuple[Chosen, ...]:
        if one.chosen is not None:
            return one.chosen
        drawn = strategies.choose(one.strategy, self._facts, one.seed, one.number)
        if one.floor is None:
            return drawn
        self._sample = self._sample or Sample(self._source, self._facts)
        return strategies.keep_near(drawn, one.floor, self._sample.likeness)

    def render(self) -> None:
        """Write what is planned."""
        outputs = [
            Output(self._parts[number], plan.picture, plan.sound, plan.encoding, timing(plan.chosen))
            for number, plan in self.plans.items()
        ]
        self._written = {}
        results = render(
            self._source, outputs, progress=lambda done: self._report(self._share * done, "encoding")
        )
        for number, result in zip(list(self.plans), results, strict=True):
            if isinstance(result, Exception):
                self._end(number, error=Problem.of(result))
            else:
                self._written[number] = result

    def judge(self, again: int) -> None:
        """Let those pass that are near enough, and plan the others anew."""
        less = strategies.unchanged if again == ROUNDS - 1 else strategies.softer
        for count, (number, written) in enumerate(self._written.items()):
            one, plan = self._wanted[number], self.plans[number]
            measures: dict[str, Any] = {
                name: getattr(written, name) for name in ("frames", "width", "height", "seconds")
            }
            if one.floor is None:
                self._end(number, measures=measures, bytes=written.bytes)
                continue

            def tell(seconds: float, done: int = count, length: float = written.seconds) -> None:
                share = (done + min(1.0, seconds / length)) / len(self._written)
                self._report(self._share + (1 - self._share) * share, "measuring")

            try:
                found = measures | measured(written.path, self._source, plan, tell)
                if found["ssim"] >= one.floor:
                    with base.output_errors(one.output):
                        os.replace(written.path, one.output)
                    self._end(number, measures=found, bytes=written.bytes)
                elif again < ROUNDS:
                    self.plans[number] = fuse(less(plan.chosen), self._facts)
                else:
                    raise OutputError(
                        f"has an SSIM of {found['ssim']:.3f} even with its picture as it is",
                        subject=str(one.output), cure=f"Choose a floor below {one.floor:g}.",
                    )  # fmt: skip
            except ItemTimeout:  # is about all of them
                raise
            except Exception as error:  # noqa: BLE001  # as in `plan`
                scope.check_cancelled()
                self._end(number, error=Problem.of(error))

    def _end(self, number: int, **found: Any) -> None:
        self.made[number] = Made(chosen=self.plans.pop(number).chosen, **found)


def measured(
    path: Path, source: str, plan: Fused, progress: Callable[[float], None]
) -> dict[str, float | None]:
    """How near a variant comes to its source, each picture to the one that it was made from, and how loud it
    is.

    :param progress: as of `measure_quality`.
    """
    times = timing(plan.chosen)
    quality: Quality = measure_quality(
        path, source, offset=times.start, speed=times.speed, lead=times.lead, progress=progress
    )
    assert quality.likeness is not None
    near = {
        name: getattr(quality.likeness, name)
        for name in ("ssim", "ssim_worst", "psnr", "xpsnr", "hash_distance")
    }
    heard = {"loudness": quality.loudness, "true_peak": quality.true_peak}
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in (near | heard).items()
    }
