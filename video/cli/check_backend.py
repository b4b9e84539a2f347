"""`video check-backend`: whether an engine keeps the contract."""

from __future__ import annotations

import dataclasses
import json as json_module
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.text import Text

from video.cli.common import (
    SOME_FAILED_EXIT,
    STOPPED_EXIT,
    counted,
    go_on,
    machine_reads,
    output,
    people,
    say,
)

if TYPE_CHECKING:
    from video.testing import Result

EXAMPLES = """\b
Examples:
  video check-backend process
  video check-backend my_package.engine:Engine
  video check-backend ray --json | jq -r 'select(.state == "broken") | .name'
"""


@click.command(epilog=EXAMPLES)
@click.argument("name")
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="A check that takes longer is broken.",
)
@click.option("--json", is_flag=True, help="One JSON object a check, as it ends.  [default when piped]")
def check_backend(name: str, limit: float, json: bool) -> int:
    """Ask an engine for the contract: order, isolation, deaths, time limits, leaving, and so on.

    NAME is a built-in engine, one of an installed plugin (see `video backends`), or MODULE:CLASS. What is
    asked follows from what the engine claims by its traits. Workers are killed and crash for real.

    Exit codes: 0 all that was asked held, 1 something broke.
    """
    from video.backends.base import Traits
    from video.errors import ConfigError
    from video.registry import backends
    from video.testing import State, backend_checks, results

    if ":" in name:
        backends.register(name, name)
    if not isinstance(getattr(backends.get(name), "traits", None), Traits):
        raise ConfigError(
            "is no engine: it has no `traits`", subject=name, cure="Name a class that has them."
        )
    console, lines = people(), machine_reads(json)
    waiting = deque(check.__name__ for check in backend_checks(name))
    count = len(waiting)
    found: list[Result] = []
    try:
        with console.status("", refresh_per_second=5) as status:
            answers = results(name, limit=limit)
            while True:
                if waiting:
                    status.update(f"{count - len(waiting) + 1} of {count}: {waiting[0]}")
                result = next(answers, None)
                if result is None:
                    break
                go_on()
                found.append(result)
                asked = result.state is not State.NOT_ASKED
                if asked:
                    waiting.popleft()
                if lines:
                    fields = {"backend": name, **dataclasses.asdict(result)}
                    click.echo(json_module.dumps(fields, ensure_ascii=False))
                elif asked:
                    console.print(_line(result), soft_wrap=True)
    except KeyboardInterrupt:
        say(console, f"stopped after {len(found)} checks")
        return STOPPED_EXIT
    broken = [one for one in found if one.state is State.BROKEN]
    if not lines:
        _show(name, found)
        for one in broken:
            say(console, f"{one.says} {one.message}", f"{one.name}:")
    return SOME_FAILED_EXIT if broken else 0


def _line(result: Result) -> Text:
    state = (f"{result.state:6}", "red" if result.state == "broken" else "green")
    return Text.assemble(state, f" {result.seconds:6.2f} s  {result.name}")


def _show(name: str, found: Sequence[Result]) -> None:
    """A row for each promise: how many of its checks held, and why others were not asked."""
    from video.telemetry.tables import table
    from video.testing import PROMISES, State

    rows = []
    for number, heading in PROMISES.items():
        here = [one for one in found if one.promise == number]
        counts = {state: sum(one.state is state for one in here) for state in State}
        asked = len(here) - counts[State.NOT_ASKED]
        if counts[State.BROKEN]:
            state = f"{counts[State.BROKEN]} of {asked} broken"
        else:
            state = f"{asked} held" if asked else "not claimed"
        reasons = dict.fromkeys(one.message for one in here if one.state is State.NOT_ASKED)
        rows.append([str(number), heading, state, "; ".join(reasons)])
    console = output()
    columns = ["", "promise", "checks", "the rest is not asked, since"]
    console.print(table(columns, rows, right=[""], whole=["checks"]))
    broken = sum(one.state is State.BROKEN for one in found)
    asked = sum(one.state is not State.NOT_ASKED for one in found)
    verdict = (
        f"breaks {broken} of {counted(asked, 'check')}" if broken else f"keeps all {counted(asked, 'check')}"
    )
    say(console, f"{name} {verdict}")
