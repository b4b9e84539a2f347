"""Which transformations a variant has: by a named strategy, drawn from a seed.

| strategy | how many | which |
|---|---|---|
| standard | 16 to 24 | any |
| seven_layer | 9 to 16 | at least one of each of the seven layers |
| enhanced_metrics | up to 16 | those with which the picture stays near its source, as measured |

A draw depends on the seed, the strategy, the variant's number, and what the source is like; never on the
machine, the engine or the other variants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from video.errors import ConfigError
from video.media import catalogue
from video.media.fuse import CONVERSION_COST
from video.media.transform import LAYERS, Chosen, Facts, Transformation

Strategy = Literal["standard", "seven_layer", "enhanced_metrics"]
COUNTS: Mapping[Strategy, tuple[int, int]] = {
    "standard": (16, 24),
    "seven_layer": (9, 16),
    "enhanced_metrics": (9, 16),
}
"""How many transformations are drawn, least and most."""
BUDGET = 8.0
"""Milliseconds of CPU time for a 720p frame that the filters of one variant take at most, about what decoding
and encoding do: what would go beyond is passed over, as long as there are enough others."""
SOFTER = 0.5
"""What is too strong is tried at this share of its strength, and again at this share of that."""
TRIES = 3


def choose(
    strategy: str,
    facts: Facts,
    seed: int,
    number: int,
) -> tuple[Chosen, ...]:
    """The transformations of one variant, as drawn: those of `enhanced_metrics` are still to be measured.

    A silent video has none of the audio layer.

    :param number: of the variant, which makes it another than its neighbours.
    :raises ConfigError: for an unknown strategy.
    """
    if strategy not in get_args(Strategy):
        names = ", ".join(get_args(Strategy))
        raise ConfigError(f"is {strategy!r}", subject="strategy", cure=f"Use one of: {names}.")
    least, most = COUNTS[strategy]  # type: ignore[index]  # it is one of them
    dice = random.Random(f"{seed}/{strategy}/{number}")  # noqa: S311  # it hides nothing
    choice = [one for one in catalogue.available().values() if one.suits(facts)]
    count = dice.randint(least, most)
    dice.shuffle(choice)
    families: dict[str, Transformation] = {}

    def take(one: Transformation) -> None:
        row = [one, *families.values()]
        turned = 2 * CONVERSION_COST if any(each.space == "rgb" for each in row) else 0.0
        if turned + sum(each.cost for each in row) <= BUDGET:
            families.setdefault(_family(one), one)

    if strategy == "seven_layer":
        for layer in LAYERS:
            for one in choice:
                if one.layer == layer and not any(other.layer == layer for other in families.values()):
                    take(one)
    for one in choice:
        if len(families) < count:
            take(one)
    for one in sorted(choice, key=lambda one: one.cost):  # a silent video has fewer that cost nothing
        if len(families) < least:
            families.setdefault(_family(one), one)
    return tuple(one.draw(dice, facts) for one in families.values())


def keep_near(
    drawn: Iterable[Chosen], floor: float, likeness: Callable[[tuple[Chosen, ...]], float]
) -> tuple[Chosen, ...]:
    """Those of a list, softened where they must be, with which the picture stays near its source.

    One after the other is added; one with which `likeness` falls below the floor is tried softer, and left
    out if that does not help.

    :param likeness: of a list of transformations: how near the picture comes to its source with them, 1 is
        the same.
    """
    kept: tuple[Chosen, ...] = ()
    for one in drawn:
        if not _changes_pictures(one):
            kept = (*kept, one)
            continue
        softer: Chosen | None = one
        share = 1.0
        for _ in range(TRIES):
            if softer is None:
                break
            if likeness((*kept, softer)) >= floor:
                kept = (*kept, softer)
                break
            share *= SOFTER
            softer = one.softened(share)
    return kept


def softer(chosen: Iterable[Chosen]) -> tuple[Chosen, ...]:
    """All of them at half their strength; of those that change the picture, what has no strength goes."""
    soft = [one.softened(SOFTER) if _changes_pictures(one) else one for one in chosen]
    return tuple(one for one in soft if one is not None)


def unchanged(chosen: Iterable[Chosen]) -> tuple[Chosen, ...]:
    """Those that leave pictures as they are."""
    return tuple(one for one in chosen if not _changes_pictures(one))


def _changes_pictures(one: Chosen) -> bool:
    return bool(one.of.picture) and one.of.place != "time"


def _family(one: Transformation) -> str:
    return one.family or one.name
