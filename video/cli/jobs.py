"""`video jobs`: what checkpoints hold, and how what they hold goes on."""

from __future__ import annotations

import dataclasses
import json as json_module
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from video.cli.common import CHECKPOINT, STOPPED_EXIT, counted, machine_reads, output, people, say
from video.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from video.cli.clips import Run
    from video.policies.checkpoint import BatchInfo, Command

EXAMPLES = """\b
Examples:
  video jobs list clips/                the batches that were run into a folder
  video jobs show clips/                one of them, and what failed in it
  video jobs resume clips/              go on with the one that was stopped
  video jobs forget clips/ clips        run all of it again next time; its files stay
"""

place = click.argument("place", metavar="FILE", type=click.Path(exists=True, path_type=Path))
named = click.argument("batch", metavar="[BATCH]", required=False)
option = click.option("--batch", "option", metavar="NAME", help="Which batch; the same as BATCH.")
as_json = click.option("--json", is_flag=True, help="One JSON object a batch.  [default when piped]")


@click.group(epilog=EXAMPLES)
def jobs() -> None:
    """See, resume and forget what batches with --resume have written down.

    FILE is a checkpoint, or the folder in which `--resume` keeps one.
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
            "" if one.known is None else f"{one.known:,}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.updated)),
            f"runs, process {one.pid}" if one.pid else "complete" if one.complete else "to be resumed",
        ]
        for one in batches
    ]
    output().print(table(columns, rows, right=columns[1:5], whole=columns))


@jobs.command()
@place
@named
@option
@as_json
def show(place: Path, batch: str | None, option: str | None, json: bool) -> None:
    """Show one batch: its settings, how far it has come, and the first items that failed. BATCH may be left
    out where there is only one."""
    from video.policies.checkpoint import batch_info, list_batches

    file, name = _file(place), _named(batch, option)
    if name is None:
        names = [one.batch for one in list_batches(file)]
        if len(names) != 1:
            raise _unsaid(names)
        name = names[0]
    info = batch_info(file, name)
    if machine_reads(json):
        click.echo(json_module.dumps(_plain(info)))
        return
    console = output()
    of = "" if info.known is None else f" of {info.known:,}"
    state = f", runs, process {info.pid}" if info.pid else f", {info.begun:,} cut short" if info.begun else ""
    say(console, f"{info.batch}: {info.done:,}{of} done, {info.failed:,} failed{state}")
    for name, value in info.fingerprint.items():
        say(console, f"  {name} {value}")
    for position, words in info.failures:
        say(console, f"  item {position}: {words}")


@jobs.command()
@place
@click.option("--batch", metavar="NAME", help="Which batch.  [default: the only one that is not complete]")
@click.option("--json", is_flag=True, help="One JSON object a video, as `video clips` prints.")
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def resume(place: Path, batch: str | None, json: bool, debug: bool) -> int:
    """Go on with a batch that was stopped, as it was asked for: the same as to give its command again.

    A batch that neither `video clips` nor `video encode` ran can only be resumed by its own program.
    """
    from video.policies.checkpoint import batch_info, list_batches, pending_commands

    file, console = _file(place), people()
    found = [batch_info(file, batch)] if batch else list_batches(file)
    left = [one for one in found if not one.complete]
    if not left:
        names = ", ".join(one.batch for one in found)
        say(console, f"nothing to resume in {file}: {names + ' complete' if names else 'it holds no batch'}")
        return 0
    if len(left) > 1:
        names = ", ".join(one.batch for one in left)
        raise click.UsageError(f"{len(left)} batches are not complete: {names}. Choose one by --batch NAME.")
    name = left[0].batch
    commands = pending_commands(file, name)
    if not commands:
        raise StoreError(
            "does not say how it was asked for, since a program of its own ran it",
            subject=f"{file}, batch {name!r}",
            cure=f"Run that program again with the same checkpoint: checkpoint=Checkpoint({str(file)!r}, "
            f"batch={name!r}), or checkpoint={str(file)!r} for a processor",
        )
    _check_owner(file)
    code = 0
    for command in commands:
        asked, run = _asked(file, name, command)
        videos = counted(len(asked.sources), "video")
        what = "files" if command.name.startswith("encode ") else "clips"
        say(console, f"going on with batch {name}: {videos}, {what} in {asked.out}")
        code = max(code, run(asked, json=json, debug=debug, place=file, batch=name, command=command))
        if code == STOPPED_EXIT:
            break
    return code


def _check_owner(file: Path) -> None:
    """What is to be done stands in the file: only who may run things as this user may have written it.

    :raises StoreError: if others may have.
    """
    folder = os.stat(file.parent)
    # Who may write there may put a file beside it that SQLite takes for a part of it.
    open_to_others = bool(folder.st_mode & 0o022) and not folder.st_mode & stat.S_ISVTX
    beside = [file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm", "-journal")]
    parts = [os.lstat(one) for one in (file, *beside) if os.path.lexists(one)]
    ours = all(
        one.st_uid == os.geteuid() and not one.st_mode & 0o022 and stat.S_ISREG(one.st_mode) for one in parts
    )
    if not ours or open_to_others:
        raise StoreError(
            "may have been written by another user, and says what is to be run",
            subject=str(file),
            cure="Give the batch's own command again; or, if you trust it, make it and its folder yours "
            "alone: chown, chmod go-w",
        )


def _asked(file: Path, batch: str, command: Command) -> tuple[Run, Callable[..., int]]:
    """What was asked for, and what does it.

    :raises StoreError: if the file does not hold what commands write there.
    """
    asked_type: type[Run]
    run: Callable[..., int]
    if command.name.startswith("encode "):
        from video.cli.encode import Asked as AskedToEncode
        from video.cli.encode import run_encode

        asked_type, run = AskedToEncode, run_encode
    else:
        from video.cli.clips import Asked, run_clips

        asked_type, run = Asked, run_clips
    home = os.path.dirname(os.path.realpath(file))
    try:
        asked = asked_type.model_validate(command.arguments)
        out = os.path.realpath(os.path.join(home, asked.out))
        if not os.path.isabs(asked.out) and os.path.commonpath([home, out]) != home:
            raise ValueError(f"its output folder leads out of {home}")
    except ValueError as error:  # pydantic's, too
        words = " ".join(str(error).split())
        raise StoreError(
            f"holds a command that cannot be run ({words})",
            subject=f"{file}, batch {batch!r}",
            cure="Give the command itself again, with --resume",
        ) from error
    return asked.model_copy(update={"out": out}), run


@jobs.command()
@place
@named
@option
def forget(place: Path, batch: str | None, option: str | None) -> None:
    """Forget one batch, which is to be named, so that all of it runs again next time. Its files stay."""
    from video.policies.checkpoint import forget as forget_batch
    from video.policies.checkpoint import list_batches

    file, name = _file(place), _named(batch, option)
    if name is None:
        raise _unsaid([one.batch for one in list_batches(file)])
    say(people(), f"forgot {counted(forget_batch(file, name), 'item')} of {name}")


def _named(batch: str | None, option: str | None) -> str | None:
    """
    :raises click.UsageError: for two names.
    """
    if batch and option and batch != option:
        raise click.UsageError(f"BATCH is {batch} and --batch is {option}: name one batch")
    return batch or option


def _unsaid(names: list[str]) -> click.UsageError:
    if not names:
        return click.UsageError("it holds no batch")
    return click.UsageError(f"which batch? There {'is' if len(names) == 1 else 'are'} {', '.join(names)}")


def _file(place: Path) -> Path:
    return place / CHECKPOINT if place.is_dir() else place


def _plain(info: BatchInfo) -> dict[str, object]:
    return {**dataclasses.asdict(info), "total": info.known}
