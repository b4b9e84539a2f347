"""Many transformations into one chain of filters for the picture, one for the sound, and one encoding.

A pure plan over values: in which order, in which kind of pixels, at what cost. The order of a list is no part
of its meaning; the chain's own is: what leaves fewer or smaller pictures, then work in YUV, then work in RGB,
and last what needs the final length. So each costly filter sees as little as possible, and pixels are turned
into RGB and back once at most.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from video.errors import ConfigError
from video.media.catalogue import PLACE_IN_CHAIN, SPEED_AND_PITCH, TRANSFORMATIONS
from video.media.encode import CLIP, Encoding
from video.media.transform import PLACES, Chosen, Facts, timing

REFERENCE_PIXELS = 1280 * 720
# Not planar RGB: where a width is no multiple of 16, libswscale leaves up to 8 of its columns black.
RGB, YUV = "format=rgb24", "format=yuv420p"
CONVERSION_COST = 1.3
"""Milliseconds for a 720p frame, one way (benchmarks/measure_transformations.py)."""

_TITLES = {
    "time": "time",
    "crop": "crop",
    "rate": "fewer frames",
    "downscale": "downscale",
    "work": "work in yuv",
    "rgb": "work in rgb",
    "last": "at both ends",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Transformations that stand together in a chain."""

    title: str
    chosen: tuple[Chosen, ...]
    cost: float
    """Milliseconds of CPU time for each frame of the source, as far as its pictures go."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What a list of transformations comes to for one source; `str()` of it is the plan."""

    facts: Facts
    stages: tuple[Stage, ...]
    picture: str
    """Filters for the picture, "" for none."""
    sound: str
    encoding: Encoding
    conversions: int
    """How often pixels are turned from YUV into RGB or back."""
    seconds: float
    """That the result lasts."""

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """In the order of the chain."""
        return tuple(one for stage in self.stages for one in stage.chosen)

    @property
    def cost(self) -> float:
        """Milliseconds of CPU time for each frame of the source, but for decoding and encoding."""
        return sum(stage.cost for stage in self.stages)

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"{facts.name or 'a video'}, {facts.width}x{facts.height}, {facts.seconds:.2f} s -> "
            f"{len(self.chosen)} transformations, {self.seconds:.2f} s, {self.conversions} conversions, "
            f"about {self.cost:.1f} ms a frame"
        ]
        lines += [
            f"  {stage.title:<13}{stage.cost:6.1f} ms  {', '.join(map(str, stage.chosen))}"
            for stage in self.stages
        ]
        lines += [f"  picture: {self.picture or 'as it is'}", f"  sound:   {self.sound or 'as it is'}"]
        settings = [f"{name}={value}" for name, value in _settings(self.encoding).items()]
        lines.append(f"  encoder: {self.encoding.video} {' '.join(settings)}")
        return "\n".join(lines)


def fuse(chosen: Iterable[Chosen], facts: Facts, encoding: Encoding = CLIP) -> Fused:
    """Plan a list of transformations as one graph.

    :param encoding: what those of the container layer change.
    :raises ConfigError: two are of one family, or leave nothing of the video.
    """
    row = sorted(chosen, key=_place)
    for family, some in itertools.groupby(sorted(row, key=_family), _family):
        names = [one.name for one in some]
        if len(names) > 1:
            raise ConfigError(
                f"are both of the family {family}", subject=" and ".join(names), cure="Take one."
            )
    end = timing(tuple(row)).seconds(facts.seconds)
    if end <= 0:
        raise ConfigError(f"nothing is left of its {facts.seconds:g} s", subject=facts.name or "the video")

    pictures = [one for one in row if one.of.picture]
    stages, texts, conversions = [], [], 0
    share = facts.width * facts.height / REFERENCE_PIXELS
    for title, some in itertools.groupby(pictures, _stage):
        members, cost = list(some), 0.0
        if title == "rgb":
            conversions = 2
            cost = share * CONVERSION_COST * conversions
            texts.append(RGB)
        for one in members:
            texts.append(one.text(one.of.picture, facts, end))
            cost += share * one.of.cost
            share *= one.kept
        if title == "rgb":
            texts.append(YUV)
        stages.append(Stage(_TITLES[title], tuple(members), cost))
    sounds = _one_tempo([one for one in row if one.of.sound]) if facts.sample_rate else []
    only_sound = tuple(one for one in row if one.of.sound and not one.of.picture)
    settings = tuple(one for one in row if one.of.encoding)
    stages += [
        Stage(title, members, 0.0)
        for title, members in (("sound", only_sound), ("container", settings))
        if members
    ]
    return Fused(
        facts=facts,
        stages=tuple(stages),
        picture=",".join(texts),
        sound=",".join(one.text(one.of.sound, facts, end) for one in sounds),
        encoding=_encoding(settings, facts, end, encoding),
        conversions=conversions,
        seconds=end,
    )


def _one_tempo(row: list[Chosen]) -> list[Chosen]:
    """`atempo` moves what it takes apart by up to a part of its window, and two of them by twice that: where
    there would be two, there is one."""
    named = {one.name: one for one in row}
    speed, pitch = named.get("speed"), named.get("pitch")
    if speed is None or pitch is None:
        return row
    texts = speed.of.sound, pitch.of.sound
    if texts != (TRANSFORMATIONS["speed"].sound, TRANSFORMATIONS["pitch"].fallback):
        return row  # another filter, or the caller's own
    both = Chosen(SPEED_AND_PITCH, speed.values + pitch.values)
    return [both if one is speed else one for one in row if one is not pitch]


def _place(one: Chosen) -> tuple[int, bool, int, str]:
    of = one.of
    return (
        PLACES.index(of.place),
        of.space == "rgb",
        PLACE_IN_CHAIN.get(of.name, len(PLACE_IN_CHAIN)),
        of.name,
    )


def _stage(one: Chosen) -> str:
    return "rgb" if one.of.place == "work" and one.of.space == "rgb" else one.of.place


def _family(one: Chosen) -> str:
    return one.of.family or one.name


def _encoding(chosen: tuple[Chosen, ...], facts: Facts, end: float, plain: Encoding) -> Encoding:
    options, fields = dict(plain.options), {}
    for one in chosen:
        for name, template in one.of.encoding:
            text = one.text(template, facts, end)
            if name in _FIELDS:
                fields[name] = _FIELDS[name](text)
            else:
                options[name] = text

    return dataclasses.replace(plain, options=options, **fields)


_FIELDS: dict[str, Any] = {"key_seconds": Fraction, "audio_bit_rate": lambda text: round(float(text))}
"""Settings that are not options of the encoder, each with how its text is read."""


def _settings(encoding: Encoding) -> dict[str, object]:
    known: dict[str, object] = dict(encoding.options)
    known |= {name: getattr(encoding, name) for name in _FIELDS if getattr(encoding, name) is not None}
    return known
