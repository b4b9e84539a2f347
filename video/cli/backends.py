"""`video backends`: the engines there are."""

from __future__ import annotations

import dataclasses
import json as json_module

import click

from video.cli.common import machine_reads, output, say

EXAMPLES = """\b
Examples:
  video backends
  video backends --json | jq -r .name
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", is_flag=True, help="One JSON object an engine.  [default when piped]")
def backends(json: bool) -> None:
    """List the engines, what each can do, and why one is not available."""
    from video.registry import backends as registry
    from video.telemetry.tables import table

    rows, reasons = [], []
    for name in registry.names():
        reason = registry.why_unavailable(name)
        traits = None if reason else dataclasses.asdict(registry.get(name).traits)
        if machine_reads(json):
            click.echo(
                json_module.dumps(
                    {"name": name, "available": reason is None, "reason": reason, "traits": traits}
                )
            )
        elif traits is None:
            rows.append([name, *[""] * 7, "missing"])
            reasons.append(f"{reason}")
        else:
            flags = ["own_gil", "kills", "coroutines", "pickles", "remote"]
            rows.append(
                [name, f"{1e3 * traits['start']:g} ms", f"{1e6 * traits['call']:g} us"]
                + ["yes" if traits[flag] else "-" for flag in flags]
                + ["ready"]
            )
    if rows:
        columns = ["engine", "start", "a call", "own GIL", "kills", "async", "pickles", "remote", "state"]
        output().print(table(columns, rows, right=["start", "a call"], whole=columns))
    for reason in reasons:
        say(output(), reason, "not available:")
