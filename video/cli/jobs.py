"""`video jobs`: what checkpoints hold."""

from __future__ import annotations

import dataclasses
import json as json_module
import time
from pathlib import Path

import click

from video.cli.common import CHECKPOINT, counted, machine_reads, output, people, say

EXAMPLES = """\b
Examples:
  video jobs list clips/                the batches that were run into a folder
  video jobs show clips/ clips          one of them, and what failed in it
  video jobs forget clips/ clips        run all of it again next time; its files stay
"""

place = click.argument("place", metavar="FILE", type=click.Path(exists=True, path_type=Path))
batch_name = click.argument("batch", metavar="BATCH")
as_json = click.option("--json", is_flag=True, help="One JSON object a batch.  [default when piped]")


@click.group(epilog=EXAMPLES)
def jobs() -> None:
    """See and forget what batches with --resume have written down.

    FILE is a checkpoint, or the folder in which `video clips --resume` keeps one. To go on with a batch that
    was stopped, give its command again: `video clips ... --resume`.
    """


@jobs.command("list")
@place
@as_json
def list_(place: Path, json: bool) -> None:
    """List the batches of a checkpoint, and how far each has come."""
    from video.policies.checkpoint import list_batches
    from video.telemetry.tables import table

    batches = list_batches(_file(place))
    if machine_reads(json):
        for one in batches:
            click.echo(json_module.dumps(_plain(one)))
        return
    columns = ["batch", "done", "failed", "cut short", "of", "last run", "state"]
    rows = [
        [
            one.batch,
            f"{one.done:,}",
            f"{one.failed:,}",
            "" if one.pid else f"{one.begun:,}",
            "" if one.total is None else f"{one.total:,}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.updated)),
            f"runs, process {one.pid}" if one.pid else "complete" if one.complete else "to be resumed",
        ]
        for one in batches
    ]
    output().print(table(columns, rows, right=columns[1:5], whole=columns))


@jobs.command()
@place
@batch_name
@as_json
def show(place: Path, batch: str, json: bool) -> None:
    """Show one batch: its settings, how far it has come, and the first items that failed."""
    from video.policies.checkpoint import batch_info

    info = batch_info(_file(place), batch)
    if machine_reads(json):
        click.echo(json_module.dumps(_plain(info)))
        return
    console = output()
    of = "" if info.total is None else f" of {info.total:,}"
    say(console, f"{info.batch}: {info.done:,}{of} done, {info.failed:,} failed")
    for name, value in info.fingerprint.items():
        say(console, f"  {name} {value}")
    for position, words in info.failures:
        say(console, f"  item {position}: {words}")


@jobs.command()
@place
@batch_name
def forget(place: Path, batch: str) -> None:
    """Forget one batch, so that all of it runs again next time. Its files stay."""
    from video.policies.checkpoint import forget as forget_batch

    say(people(), f"forgot {counted(forget_batch(_file(place), batch), 'item')} of {batch}")


def _file(place: Path) -> Path:
    return place / CHECKPOINT if place.is_dir() else place


def _plain(info: object) -> dict[str, object]:
    return dataclasses.asdict(info)  # type: ignore[call-overload,no-any-return]  # a BatchInfo
