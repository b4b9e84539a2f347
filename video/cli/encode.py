"""`video encode`: videos in another format, codec or size."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import click
from pydantic import ValidationError, model_validator

from video.cli.clips import Run, as_line, complain, kept_as, place_of, settings_of
from video.cli.common import (
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
    share,
)
from video.cli.inputs import expand
from video.models import (
    LEAST_SIDE,
    MOST_RUNGS,
    MOST_SIDE,
    Codec,
    EncodingFormat,
    Preset,
    VideoEncodingRequest,
    VideoEncodingResponse,
)
from video.sources.base import is_url, readable, redact

if TYPE_CHECKING:  # with SQLite, for those who use one
    from video.policies.checkpoint import Command

EXAMPLES = """\b
Examples:
  video encode talk.mov                             encoded/talk.mp4
  video encode films/ --format webm --quality medium --out small
  video encode talk.mp4 --target 0.97 --codec hevc  as small as it can be and look like that
  video encode talk.mp4 --ladder 1080,720,480,360 --format hls
  video encode film.mkv --codec av1 --chunk 60 --resume
  video encode films/ --ladder 720,360 --dry-run
"""


class Asked(Run):
    """What a run of `video encode` is for."""

    format: EncodingFormat
    codec: Codec | None
    quality: Preset | float
    ladder: tuple[int, ...]
    hardware: bool
    sound: bool
    chunk_seconds: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """Of each request, but for the output folder: what an earlier run must have had, too."""
        names = ("format", "codec", "quality", "ladder", "hardware", "sound", "chunk_seconds")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _as_a_request(self) -> Self:
        VideoEncodingRequest.model_validate({"source": "any", **self.settings})
        return self


def _sides(ctx: click.Context, option: click.Parameter, words: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        sides = tuple(map(int, words.split(","))) if words else ()
    except ValueError:
        sides = (0,)
    if len(sides) > MOST_RUNGS or not all(LEAST_SIDE <= one <= MOST_SIDE for one in sides):
        cure = (
            f"Give up to {MOST_RUNGS} whole numbers from {LEAST_SIDE} to {MOST_SIDE}, such as 1080,720,480."
        )
        raise click.BadParameter(f"{words!r} names no sizes of renditions. {cure}", ctx, option)
    return sides


@click.command(epilog=EXAMPLES)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path())
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("encoded"),
    show_default=True,
    metavar="DIR",
    help="Folder for the files; made if it is missing.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(get_args(EncodingFormat)),
    default="mp4",
    show_default=True,
    help="hls: a folder with a master playlist for each video.",
)
@click.option(
    "--codec",
    type=click.Choice(get_args(Codec)),
    help="[default: h264; vp9 in webm]",
)
@click.option(
    "--quality",
    type=click.Choice(get_args(Preset)),
    help="low is small and quick, high is hard to tell from the source.  [default: high]",
)
@click.option(
    "--target",
    type=share(0.5),
    metavar="SSIM",
    help="Instead: how much like the source it must look, such as 0.97; samples are measured.",
)
@click.option(
    "--ladder",
    default="",
    callback=_sides,
    show_default=False,
    metavar="N,N,...",
    help="Renditions, by pixels of the shorter side; none is larger than the video, and each video is "
    "decoded once.",
)
@click.option(
    "--chunk",
    type=length_of_time(1),
    metavar="SECONDS",
    help="Encode long videos in pieces of at least so many seconds, each from one scene to another where "
    "that can be, several at once; those that a killed run had finished are not done again.",
)
@click.option("--no-hardware", is_flag=True, help="Never use an encoder of the machine's hardware.")
@click.option("--no-sound", is_flag=True, help="Pictures only.")
@batch_options("encodings")
@engine_options
@click.option(
    "--json",
    is_flag=True,
    help="One JSON object a video, as soon as it is done, in input order.  [default when piped]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, but write nothing.")
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def encode(
    inputs: tuple[str, ...], out: Path, format_: str, codec: str | None, quality: str | None,
    target: float | None, ladder: tuple[int, ...], chunk: float | None, no_hardware: bool, no_sound: bool,
    resume: bool, checkpoint: Path | None, batch: str | None, fork: bool, retries: int,
    order: str, backend: str, workers: int | None, timeout: float | None, more: tuple[str, ...],
    json: bool, dry_run: bool, debug: bool,
) -> int:  # fmt: skip
    """Encode videos anew, in another format, codec or size.

    INPUT is a file, a folder, a glob in quotes, @FILE (a list, one name a line), a URL, or - (a list on
    standard input). Put -- before names that start with a dash.
    """
    sources, notes = expand(inputs, leave_out=out)
    if not sources:
        raise click.UsageError("; ".join(notes) or "the list names no video")
    if quality is not None and target is not None:
        raise click.UsageError("--quality and --target are two ways to say one thing: give one")
    try:
        asked = Asked.model_validate({
            "sources": sources, "out": str(out), "format": format_, "codec": codec,
            "quality": target or quality or "high", "ladder": ladder, "hardware": not no_hardware,
            "sound": not no_sound, "chunk_seconds": chunk, "retries": retries, "backend": backend,
            "workers": workers, "timeout": timeout, "order": order, "more": settings_of(more),
        })  # fmt: skip
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    place = place_of(out, checkpoint, resume=resume, batch=batch, fork=fork, dry_run=dry_run)
    command = None if place is None else kept_as(asked, inputs, place, "encode")
    return run_encode(
        asked, notes, json, dry_run, debug, place=place, batch=batch, fork=fork, command=command
    )


def run_encode(
    asked: Asked, notes: Sequence[str] = (), json: bool = False, dry_run: bool = False, debug: bool = False,
    *, place: Path | None = None, batch: str | None = None, fork: bool = False,
    command: Command | None = None,
) -> int:  # fmt: skip
    """Do what is asked for, and tell of it.

    :param place: the checkpoint; None: without one.
    :return: the exit code.
    """
    from video.processors.encoding import EncodingPreview, VideoEncodingProcessor
    from video.telemetry.progress import ProgressBars

    console, lines, sources, out = people(), machine_reads(json), asked.sources, Path(asked.out)
    config = config_of(asked.backend, asked.workers, asked.timeout, asked.retries, asked.more)
    processor_type = EncodingPreview if dry_run else VideoEncodingProcessor
    names = [redact(source) if is_url(source) else readable(os.path.basename(source)) for source in sources]
    requests = [{"source": source, "output_dir": out, **asked.settings} for source in sources]
    responses: list[VideoEncodingResponse] = []
    try:
        with (
            ProgressBars("videos", names, console) as bars,
            processor_type(config, observers=[bars]) as processor,
            contextlib.ExitStack() as stack,
        ):
            processor.announce = bars.begin
            if asked.workers is None and not dry_run:
                processor.widen(sources)
            kept = None
            if place is not None:
                settings = asked.settings
                kept = processor.open_checkpoint(
                    place, batch=batch, settings=settings, fork=fork, command=command
                )
                stack.enter_context(kept)
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
        stay = f"; files stay in {out}" if done else ""
        say(console, f"stopped after {counted(done, 'video')} of {len(sources)}{stay}{more}")
        return STOPPED_EXIT
    if not lines:
        show(responses, out, dry_run)
    complain(responses, notes, console, debug)
    return 0 if not notes and all(response.success for response in responses) else SOME_FAILED_EXIT


def show(responses: list[VideoEncodingResponse], out: Path, dry_run: bool) -> None:
    from video.telemetry.tables import encoding_table

    console = output()
    count = sum(len(response.outputs) for response in responses)
    if count:
        console.print(encoding_table(responses, written=not dry_run))
    for one in (one for response in responses for one in response.outputs if one.note):
        say(console, f"{readable(one.path.name)}: {one.note}")
    done = counted(sum(response.success for response in responses), "video")
    verb = "would be written to" if dry_run else "in"
    say(console, f"{counted(count, 'file')} of {done} {verb} {out} ({responses[0].backend} engine)")
