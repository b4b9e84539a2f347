"""What a transformation is: data, from which filter text is made, and never a function that touches a frame.

A text names parameters, and facts of the source, in braces, with simple arithmetic: `trim=end={seconds-cut}`.
Sizes are left to FFmpeg's own expressions (`iw`, `ih`), since earlier filters may have changed them.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

from video.errors import ConfigError

Layer = Literal["geometry", "colour", "texture", "time", "frame", "audio", "container"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
Space = Literal["yuv", "rgb", "any"]
"""The kind of pixels that a filter takes; `any` takes them as they come."""
Place = Literal["time", "crop", "rate", "downscale", "work", "last"]
"""Where in a chain a transformation belongs: first what leaves less to do, last what needs the final
length."""
PLACES: tuple[Place, ...] = get_args(Place)

_FIELD = re.compile(r"{([^{}]*)}")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Facts(NamedTuple):
    """Of a source, what texts may name."""

    width: int
    """Pixels as shown, upright and square."""
    height: int
    rate: Fraction
    """Frames a second."""
    seconds: float
    """Until its last picture ends."""
    sample_rate: int
    """Of its sound; 0 without."""
    name: str = ""
    """What people call it."""


@dataclass(frozen=True, slots=True)
class Range:
    """What one parameter may be."""

    low: float
    high: float
    neutral: float | None = None
    """The value at which it changes nothing; None: it says where or which, not how much."""
    digits: int = 3
    """Decimals that are drawn, so that texts are the same on every machine."""
    length_share: float | None = None
    """The parameter is a time in seconds: whole frames, and at most this share of the source's length."""
    least: float = 0.0
    """How far from `neutral` it is at least, so that it is seen or heard: nothing nearer is drawn, and what
    would be softened to less is left out."""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ConfigError(
                f"a range goes from {self.low:g} to {self.high:g}", cure="Give the low end first."
            )
        if not self.parts:
            raise ConfigError(
                f"nothing from {self.low:g} to {self.high:g} is {self.least:g} away from {self.neutral:g}",
                cure="Give a wider range.",
            )

    @property
    def parts(self) -> list[tuple[float, float]]:
        """What of it may be drawn: that below `neutral`, and that above."""
        if self.neutral is None:
            return [(self.low, self.high)]
        ends = (
            (self.low, min(self.high, self.neutral - self.least)),
            (max(self.low, self.neutral + self.least), self.high),
        )
        return [(low, high) for low, high in ends if low <= high]

    def changes(self, value: float) -> bool:
        """Whether the value is far enough from `neutral`."""
        if self.neutral is None:
            return True
        return abs(value - self.neutral) >= max(self.least, 10.0**-self.digits) - 1e-9

    @property
    def usual(self) -> float:
        """Halfway from what changes nothing to what changes most; the middle where nothing is neutral."""
        if self.neutral is None:
            return round((self.low + self.high) / 2, self.digits)
        far = max(self.high, self.low, key=lambda end: abs(end - self.neutral))  # type: ignore[operator]
        return round(min(self.high, max(self.low, (self.neutral + far) / 2)), self.digits)

    def fits(self, facts: Facts) -> bool:
        """A time is one frame at least."""
        if self.length_share is None:
            return True
        return min(self.low, self.length_share * facts.seconds) * facts.rate >= 1

    def draw(self, dice: random.Random, facts: Facts) -> float:
        at = dice.uniform(0.0, sum(high - low for low, high in self.parts))
        for low, high in self.parts:
            value = low + min(at, high - low)
            if at <= high - low:
                break
            at -= high - low
        if self.length_share is not None:
            value = min(value, self.length_share * facts.seconds)
            return float(int(value * facts.rate) / facts.rate)
        return round(value, self.digits)


@dataclass(frozen=True, slots=True)
class Timing:
    """What becomes of the length of a video."""

    start: float = 0.0
    """Seconds that go at its start."""
    cut: float = 0.0
    """Seconds that go at its end."""
    speed: float = 1.0
    lead: float = 0.0
    """Seconds that its first picture stands."""

    def seconds(self, before: float) -> float:
        """The length afterwards."""
        return (before - self.start - self.cut) / self.speed + self.lead


TIMINGS = ("start", "cut", "speed", "lead")


@dataclass(frozen=True, slots=True)
class Transformation:
    """One way to change a video.

    Its texts may name its parameters, the fields of `Facts`, `end` (seconds that the result lasts) and
    `tempo_lag`.

    :raises ConfigError: on construction, if it does nothing, or its texts name what is not there.
    """

    name: str
    layer: Layer
    ranges: tuple[tuple[str, Range], ...] = ()
    """Its parameters; those called `start`, `cut`, `speed` or `lead`, of the time layer, are those of
    `Timing`."""
    picture: str = ""
    """Filters for the picture."""
    sound: str = ""
    """Filters for the sound."""
    encoding: tuple[tuple[str, str], ...] = ()
    """Settings of the encoder or the container, by name."""
    space: Space = "any"
    cost: float = 0.0
    """Milliseconds of CPU time for each 720p frame (benchmarks/measure_transformations.py)."""
    geometry: bool = False
    """Pixels change their places."""
    place: Place = "work"
    keeps: tuple[str, ...] = ()
    """Parameters whose product is the share of pixels, or of frames, that is left."""
    family: str = ""
    """A variant has one of a family at most; "": it is its own."""
    fallback: str = ""
    """The same with filters that every build has, where this build lacks one of `picture` or `sound`."""

    def __post_init__(self) -> None:
        if not (self.picture or self.sound or self.encoding):
            raise ConfigError("does nothing", subject=self.name, cure="Give it a filter or a setting.")
        if self.fallback and self.picture and self.sound:
            raise ConfigError("has one fallback for two texts", subject=self.name, cure="Split it.")
        known = {*(name for name, _ in self.ranges), *Facts._fields, "end", "tempo_lag"}
        texts = (self.picture, self.sound, self.fallback, *(value for _, value in self.encoding))
        for field in (field for text in texts for field in _FIELD.findall(text)):
            if unknown := {one.id for one in ast.walk(ast.parse(field)) if isinstance(one, ast.Name)} - known:
                raise ConfigError(
                    f"its text names {min(unknown)}", subject=self.name, cure="Give it a range."
                )

    def draw(self, dice: random.Random, facts: Facts) -> Chosen:
        """It, with parameters drawn from their ranges."""
        return Chosen(self, tuple((name, one.draw(dice, facts)) for name, one in self.ranges))

    def at(self, **values: float) -> Chosen:
        """It, with these parameters.

        :raises ConfigError: if one is missing, unknown, or out of its range.
        """
        ranges = dict(self.ranges)
        if values.keys() != ranges.keys():
            names = ", ".join(ranges) or "no parameters"
            raise ConfigError(f"has no value for each parameter: {names}", subject=self.name)
        for name, value in values.items():
            ends = [ranges[name].low, ranges[name].high, ranges[name].neutral]
            ends += [0.0] if ranges[name].length_share is not None else []  # a short video has shorter ones
            least, most = (pick(end for end in ends if end is not None) for pick in (min, max))
            if not least <= value <= most:
                raise ConfigError(f"{name} is {value:g}", subject=self.name, cure=f"{least:g} to {most:g}.")
        return Chosen(self, tuple(values.items()))

    def suits(self, facts: Facts) -> bool:
        """Whether it does anything to a video like this: one of sound does not to a silent one, nor one that
        takes time to one that is too short, nor one that takes pixels to one that has hardly any."""
        if self.layer == "audio" and not facts.sample_rate:
            return False
        if self.geometry and self.keeps and min(facts.width, facts.height) < 4:
            return False
        return all(span.fits(facts) for _, span in self.ranges)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A transformation with its parameters."""

    of: Transformation
    values: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        return self.of.name

    def softened(self, share: float) -> Chosen | None:
        """The same, with `share` of its strength; None: it is all or nothing, or too little is left."""
        ranges = dict(self.of.ranges)
        if all(ranges[name].neutral is None for name, _ in self.values):
            return None
        softer = []
        for name, value in self.values:
            neutral, digits = ranges[name].neutral, ranges[name].digits
            less = value if neutral is None else round(neutral + share * (value - neutral), digits)
            if not ranges[name].changes(less):
                return None
            softer.append((name, less))
        return Chosen(self.of, tuple(softer))

    def text(self, template: str, facts: Facts, end: float) -> str:
        """:param end: seconds that the result lasts."""
        lag = tempo_lag(facts.sample_rate)
        known = {**facts._asdict(), "end": end, "tempo_lag": lag, **dict(self.values)}
        return _FIELD.sub(
            lambda field: _number(_value(ast.parse(field[1], mode="eval").body, known)), template
        )

    @property
    def kept(self) -> float:
        """Share of the pixels, over all frames, that is left to those after it."""
        share, values = 1.0, dict(self.values)
        for name in self.of.keeps:
            share *= values[name]
        return share

    def as_dict(self) -> dict[str, object]:
        """Plain data: name, layer, parameters."""
        return {"name": self.name, "layer": self.of.layer, "parameters": dict(self.values)}

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={_number(value)}" for name, value in self.values)])


def tempo_lag(sample_rate: int) -> float:
    """Milliseconds by which FFmpeg's `atempo` moves sound forward: it leaves out half of its first window."""
    window = 1 << max(0, sample_rate // 24 - 1).bit_length()
    return 1000 * window / 2 / sample_rate if sample_rate else 0.0


def timing(chosen: tuple[Chosen, ...]) -> Timing:
    """What they make of the length together."""
    values = {
        name: value
        for one in chosen
        if one.of.layer == "time"
        for name, value in one.values
        if name in TIMINGS
    }
    return Timing(**values)


def _value(node: ast.expr, known: Mapping[str, object]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return float(known[name])  # type: ignore[arg-type]  # only `name` is none, and no text takes that
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, known), _value(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known)
    raise ConfigError(
        f"a text has {ast.unparse(node)} in braces", cure="It takes numbers, names and + - * /."
    )


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
