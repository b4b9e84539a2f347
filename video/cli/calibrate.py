"""`video calibrate`: what every engine costs on this machine."""

from __future__ import annotations

import dataclasses
import json as json_module
from typing import TYPE_CHECKING

import click

from video.cli.common import (
    SOME_FAILED_EXIT,
    STOPPED_EXIT,
    go_on,
    machine_reads,
    output,
    people,
    say,
)
from video.errors import UnknownName, VideoError

if TYPE_CHECKING:
    from video.selector import Cost

EXAMPLES = """\b
Examples:
  video calibrate
  video calibrate --engines process,dask
  video calibrate --show --json | jq -r '[.name, .start] | @tsv'
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--engines",
    metavar="NAMES",
    help="Measure only these, separated by commas.  [default: all that are installed, but not dask]",
)
@click.option("--show", is_flag=True, help="Measure nothing; show what is stored, or assumed.")
@click.option("--json", is_flag=True, help="One JSON object an engine, in seconds.  [default when piped]")
def calibrate(engines: str | None, show: bool, json: bool) -> int:
    """Measure what the engines cost on this machine, and store it for the choice of an engine.

    A cold start, a call of one item, an item of a large chunk, a byte that crosses a process border: each is
    the least of several rounds, so other work on the machine hardly matters. All of it takes some seconds.
    Ctrl-C leaves what was stored before as it was. It is stored in the user's cache folder, or in the one
    that VIDEO_CACHE_DIR names.

    Exit codes: 0 all were measured, 1 some could not start or nothing could be stored.
    """
    from video import calibrate as room
    from video.registry import backends

    names = None if engines is None else [name.strip() for name in engines.split(",") if name.strip()]
    if names is not None:
        try:
            if not names:
                raise click.UsageError("--engines names none; see `video backends`.")
            for name in names:
                if name not in backends.names():
                    backends.get(name)
        except UnknownName as error:
            raise click.UsageError(str(error)) from None
    if show:
        found = room.costs(names or backends.names())
        known = room.remembered()
        _show(found, {name: "stored" if name in known else "assumed" for name in found}, json)
        if not machine_reads(json):
            say(output(), f"stored in {room.file()}" if known else "nothing is stored: run video calibrate")
        return 0
    console = people()
    left_out: list[VideoError] = []
    try:
        with console.status("", refresh_per_second=5) as status:

            def progress(name: str, news: Cost | VideoError | None) -> None:
                go_on()
                if news is None:
                    status.update(f"measuring {name}")
                elif isinstance(news, VideoError):
                    left_out.append(news)

            found = room.calibrate(names, progress)
    except KeyboardInterrupt:
        say(console, "stopped; what was stored before is as it was")
        return STOPPED_EXIT
    _show(found, dict.fromkeys(found, "measured"), json)
    for reason in left_out:
        say(console, str(reason), "left out:")
    kept = all(room.remembered().get(name) == cost for name, cost in found.items())
    if not kept:
        say(
            console,
            f"{room.file()}: the figures cannot be stored there. Make its folder writable, or set "
            "VIDEO_CACHE_DIR to one that is.",
            "error:",
        )
    elif found and not machine_reads(json):
        say(output(), f"stored in {room.file()}")
    return SOME_FAILED_EXIT if left_out or not kept else 0


def _show(found: dict[str, Cost], origins: dict[str, str], json: bool) -> None:
    if machine_reads(json):
        for name, cost in found.items():
            fields = {"name": name, **dataclasses.asdict(cost), "origin": origins[name]}
            click.echo(json_module.dumps(fields))
        return
    from video.telemetry.tables import table

    rows = [
        [
            name,
            f"{_figure(1e3 * cost.start)} ms",
            f"{_figure(1e6 * cost.call)} us",
            f"{_figure(1e6 * cost.item)} us",
            f"{_figure(1e9 * cost.byte)} ns" if cost.byte else "-",
            origins[name],
        ]
        for name, cost in found.items()
    ]
    columns = ["engine", "start", "a call", "an item", "a byte", ""]
    output().print(table(columns, rows, right=columns[1:5], whole=columns))


def _figure(amount: float) -> str:
    return f"{amount:.3g}" if amount < 1000 else f"{amount:.0f}"
