"""`video clips`: the main job."""

from __future__ import annotations

import contextlib
import json as json_module
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from rich.console import Console

from video.cli.common import (
    CHECKPOINT,
    SOME_FAILED_EXIT,
    STOPPED_EXIT,
    batch_options,
    config_of,
    counted,
    engine_options,
    go_on,
    how_to_go_on,
    length_of_time,
    machine_reads,
    output,
    people,
    say,
)
from video.cli.inputs import expand
from video.models import Format, Mode, VideoClipRequest, VideoClipResponse, VideoEncodingResponse
from video.sources.base import is_url, readable, redact

if TYPE_CHECKING:  # with SQLite, for those who use one
    from video.policies.checkpoint import Command

EXAMPLES = """\b
Examples:
  video clips talk.mp4 --out clips
  video clips films/ "more/*.mkv" --count 5 --max-length 30
  video clips films/ --resume --retries 3
  video clips @urls.txt --set rate_limit_rpm=60 --set circuit_breaker_enabled=true
  video clips @list.txt --workers 4 --timeout 600 --json > clips.jsonl
  video clips https://example.org/talk.mp4 --mode copy
  find . -name '*.mp4' | video clips - --dry-run
"""


ORDERS = {
    "input": "as they are named",
    "shortest": "shortest first, by the size of the files",
    "longest": "longest first, by the size of the files",
}
"""In words."""


class Run(BaseModel):
    """What a run is for. A checkpoint keeps it, so that `video jobs resume` can go on without being told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[Any]
    """Text, though not always in UTF-8: the names of files need not be."""
    out: Any
    retries: int = Field(ge=0, le=100)
    backend: str
    workers: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=None, gt=0)
    order: Literal["input", "shortest", "longest"] = "input"
    more: dict[str, str] = Field(default_factory=dict)
    """Settings by their names, as text."""

    @field_validator("sources")
    @classmethod
    def _some_text(cls, sources: list[Any]) -> list[Any]:
        if not sources or not all(isinstance(one, str) and one for one in sources):
            raise ValueError("must be names")
        return sources

    @field_validator("out")
    @classmethod
    def _a_text(cls, out: Any) -> str:
        if not isinstance(out, str) or not out:
            raise ValueError("must be the name of a folder")
        return out


class Asked(Run):
    """What a run of `video clips` is for."""

    count: int = Field(ge=1, le=1000)
    min_length: float | None = None
    max_length: float
    mode: Mode
    format: Format

    @model_validator(mode="after")
    def _as_a_request(self) -> Self:
        VideoClipRequest.model_validate({"source": "any", **self.settings})
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Of each request, but for the output folder: what an earlier run must have had, too."""
        settings: dict[str, Any] = {
            "count": self.count,
            "mode": self.mode,
            "format": self.format,
            "max_clip_length": self.max_length,
        }
        if self.min_length is not None:
            settings["min_clip_length"] = self.min_length
        return settings


@click.command(epilog=EXAMPLES)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path())
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("clips"),
    show_default=True,
    metavar="DIR",
    help="Folder for the clips; made if it is missing.",
)
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Clips of each video, at most.",
)
@click.option(
    "--min-length",
    type=length_of_time(),
    metavar="SECONDS",
    help="Shortest clip.  [default: 3, or --max-length if that is less]",
)
@click.option(
    "--max-length",
    type=length_of_time(),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest clip.",
)
@click.option(
    "--mode",
    type=click.Choice(["smart", "exact", "copy"]),
    default="smart",
    show_default=True,
    help="smart: right to the frame, re-encoded at its ends only where that can be, else as exact; exact: "
    "right to the frame, all re-encoded; copy: as it is, from the key frame before.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["mp4", "mkv", "mov"]),
    default="mp4",
    show_default=True,
    help="Container of the clips.",
)
@batch_options("clips")
@engine_options
@click.option(
    "--json",
    is_flag=True,
    help="One JSON object a video, as soon as it is done, in input order.  [default when piped]",
)
@click.option("--explain", is_flag=True, help="Say which engine runs the batch, and why.")
@click.option("--dry-run", is_flag=True, help="Choose the clips and show them, but write nothing.")
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def clips(
    inputs: tuple[str, ...], out: Path, count: int, min_length: float | None, max_length: float,
    mode: str, format_: str, resume: bool, checkpoint: Path | None, batch: str | None, fork: bool,
    retries: int, backend: str, workers: int | None, timeout: float | None, order: str,
    more: tuple[str, ...], json: bool, explain: bool, dry_run: bool, debug: bool,
) -> int:  # fmt: skip
    """Cut the highlights out of videos.

    INPUT is a file, a folder, a glob in quotes, @FILE (a list, one name a line), a URL, or - (a list on
    standard input). Put -- before names that start with a dash.
    """
    sources, notes = expand(inputs, leave_out=out)
    if not sources:
        raise click.UsageError("; ".join(notes) or "the list names no video")
    try:
        asked = Asked.model_validate({
            "sources": sources, "out": str(out), "count": count, "min_length": min_length,
            "max_length": max_length, "mode": mode, "format": format_, "retries": retries,
            "backend": backend, "workers": workers, "timeout": timeout, "order": order,
            "more": settings_of(more),
        })  # fmt: skip
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    place = place_of(out, checkpoint, resume=resume, batch=batch, fork=fork, dry_run=dry_run)
    return run_clips(
        asked, notes, json, explain, dry_run, debug, place=place, batch=batch, fork=fork,
        command=None if place is None else kept_as(asked, inputs, place),
    )  # fmt: skip


def place_of(
    out: Path, checkpoint: Path | None, *, resume: bool, batch: str | None, fork: bool, dry_run: bool
) -> Path | None:
    """Where a batch is written down; None: nowhere.

    :raises UsageError: for options that do not go together.
    """
    resume = resume or checkpoint is not None or batch is not None
    if resume and dry_run:
        raise click.UsageError("--dry-run writes nothing that could be resumed")
    if fork and not resume:
        raise click.UsageError("--fork needs --resume")
    return (checkpoint or folder_of(out) / CHECKPOINT) if resume else None


def settings_of(words: tuple[str, ...]) -> dict[str, str]:
    """Of `NAME=VALUE` each; paths are those of the current folder, wherever the batch is resumed."""
    settings: dict[str, str] = {}
    for one in words:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set takes NAME=VALUE, not {one!r}")
        settings[name] = os.path.abspath(value) if name == "cache_path" and value else value
    return settings


def run_clips(
    asked: Asked, notes: Sequence[str] = (), json: bool = False, explain: bool = False, dry_run: bool = False,
    debug: bool = False, *, place: Path | None = None, batch: str | None = None, fork: bool = False,
    command: Command | None = None,
) -> int:  # fmt: skip
    """Do what is asked for, and tell of it.

    :param place: the checkpoint; None: without one.
    :return: the exit code.
    """
    from video.processors.clip import ClipPreview, VideoClipProcessor
    from video.telemetry.progress import ProgressBars

    console, lines, sources, out = people(), machine_reads(json), asked.sources, Path(asked.out)
    requests = [{"source": source, "output_dir": out, **asked.settings} for source in sources]
    responses: list[VideoClipResponse] = []
    processor_type = ClipPreview if dry_run else VideoClipProcessor
    config = config_of(asked.backend, asked.workers, asked.timeout, asked.retries, asked.more)
    names = [redact(source) if is_url(source) else readable(os.path.basename(source)) for source in sources]
    try:
        with (
            ProgressBars("videos", names, console) as bars,
            processor_type(config, observers=[bars]) as processor,
            contextlib.ExitStack() as stack,
        ):
            kept = None
            if place is not None:
                kept = processor.open_checkpoint(
                    place, batch=batch, settings=asked.settings, fork=fork, command=command
                )
                stack.enter_context(kept)
            if explain:
                say(console, str(processor.explain(requests, asked.backend)))
                say(console, f"order            {ORDERS[asked.order]}")
            for ready in processor.stream_process(requests, checkpoint=kept, order=asked.order):
                go_on()
                responses += ready
                if lines:
                    for response in ready:
                        click.echo(as_line(response, debug))
            go_on()
            if kept is not None and all(response.success for response in responses):
                kept.carried_out()
            if kept is not None and kept.answered:
                rest = f"{kept.begun} left to do" if kept.begun else "nothing left to do"
                say(console, f"{counted(kept.answered, 'video')} done by an earlier run, {rest}")
    except KeyboardInterrupt:
        done = sum(response.success for response in responses)
        more = "" if place is None else how_to_go_on(place)
        stay = f"; clips stay in {out}" if done else ""
        say(console, f"stopped after {counted(done, 'video')} of {len(sources)}{stay}{more}")
        return STOPPED_EXIT
    if not lines:
        show(responses, output(), out, dry_run)
    complain(responses, notes, console, debug)
    return 0 if not notes and all(response.success for response in responses) else SOME_FAILED_EXIT


def kept_as(asked: Run, inputs: Sequence[str], place: Path, word: str = "clips") -> Command:
    """What is asked of a command, as a checkpoint keeps it.

    Its paths hold in any folder, and an output folder at or below the checkpoint's moves with it. Its name
    stands for what was typed, so that a folder with more films in it is still the same.

    :param word: the command.
    """
    from video.policies.checkpoint import Command
    from video.processors._sources import absolute

    home, out = os.path.dirname(os.path.realpath(place)), os.path.realpath(asked.out)
    typed = [one[:1] + absolute(one[1:]) if one.startswith("@") else absolute(one) for one in inputs]
    if "-" in inputs:
        typed += asked.sources
    inside = os.path.commonpath([home, out]) == home
    arguments = asked.model_dump() | {
        "sources": list(map(absolute, asked.sources)),
        "out": os.path.relpath(out, home) if inside else out,
    }
    words = json_module.dumps([typed, out]).encode()
    return Command(f"{word} {blake2b(words, digest_size=8).hexdigest()}", arguments)


def folder_of(out: Path) -> Path:
    """The folder for the clips, made if it is missing.

    :raises OutputError: if it cannot be.
    """
    from video.media.base import output_errors

    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def as_line(response: VideoClipResponse | VideoEncodingResponse, debug: bool) -> str:
    """A response as JSON on one line; tracebacks are for --debug."""
    if response.error is not None and not debug:
        error = response.error.model_copy(update={"traceback": ""})
        response = response.model_copy(update={"error": error})
    return response.model_dump_json()


def show(responses: Sequence[VideoClipResponse], console: Console, out: Path, dry_run: bool) -> None:
    from video.telemetry.tables import clip_table

    count = sum(len(response.clips) for response in responses)
    if count:
        console.print(clip_table(responses, written=not dry_run))
    done = counted(sum(response.success for response in responses), "video")
    verb = "would be written to" if dry_run else "in"
    say(console, f"{counted(count, 'clip')} of {done} {verb} {out} ({responses[0].backend} engine)")


def complain(
    responses: Sequence[VideoClipResponse] | Sequence[VideoEncodingResponse],
    notes: Sequence[str],
    console: Console,
    debug: bool,
) -> None:
    """Say on standard error what failed."""
    failed = 0
    for note in notes:
        say(console, note, "failed:")
    for response in responses:
        if response.error is not None:
            failed += 1
            message, source = response.error.message, redact(response.source)
            say(console, message if source in message else f"{source}: {message}", "failed:")
            if debug:
                say(console, response.error.traceback)
    if failed and len(responses) > 1:
        say(console, f"{failed} of {counted(len(responses), 'video')} failed")
