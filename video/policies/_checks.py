"""Checks of arguments that several policies make."""

from __future__ import annotations

from video.errors import ConfigError

INFINITE = float("inf")


def number(
    name: str, value: object, *, above: float | None = None, most: float = INFINITE, whole: bool = False
) -> None:
    """
    :param above: it must be larger; None: it may be 0 or larger.
    :param most: it may be no larger; infinite, any finite number will do.
    :raises ConfigError: naming the argument, its value and what it takes.
    """
    kinds = int if whole else int | float
    sound = isinstance(value, kinds) and not isinstance(value, bool) and value < INFINITE and value <= most
    if not sound or not (value >= 0 if above is None else value > above):  # type: ignore[operator]
        least = "of at least 0" if above is None else f"above {above:g}"
        up_to = "" if most == INFINITE else f", up to {most:g}"
        raise ConfigError(
            f"{name} is {value!r}", cure=f"It takes a {'whole ' if whole else ''}number {least}{up_to}."
        )
