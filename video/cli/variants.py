"""`video variants`: versions of videos that differ in many small ways."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from video.cli.common import (
    SOME_FAILED_EXIT,
    STOPPED_EXIT,
    config_of,
    counted,
    engine_options,
    go_on,
    machine_reads,
    output,
    people,
    say,
    share,
)
from video.cli.inputs import expand
from video.sources.base import readable

EXAMPLES = """\b
Examples:
  video variants talk.mp4                          five variants in variants/
  video variants films/ --count 3 --strategy seven_layer --workers 2
  video variants talk.mp4 --strategy enhanced_metrics --ssim-floor 0.95
  video variants talk.mp4 --seed 7 --dry-run       shows the plans, writes nothing
  video variants talk.mp4 --count 8 --json > variants.jsonl
"""


@click.command(epilog=EXAMPLES)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path())
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("variants"),
    show_default=True,
    metavar="DIR",
    help="Folder for the variants; made if it is missing.",
)
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="Variants of each video.",
)
@click.option(
    "--strategy",
    type=click.Choice(["standard", "seven_layer", "enhanced_metrics"]),
    default="standard",
    show_default=True,
    help="standard: 16 to 24 random transformations; seven_layer: 9 to 16, some of each of seven layers; "
    "enhanced_metrics: those with which the picture stays near its source, as measured.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="The same seed, the same variants."
)
@click.option(
    "--ssim-floor",
    type=share(0.0),
    default=0.9,
    show_default=True,
    metavar="SSIM",
    help="Of enhanced_metrics: how near each variant stays, in the mean of its pictures; 1 is the same.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["mp4", "mkv", "mov"]),
    default="mp4",
    show_default=True,
    help="Container of the variants.",
)
@engine_options
@click.option(
    "--json",
    is_flag=True,
    help="One JSON object a variant, in order, once all are done.  [default when piped]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done to each, and write nothing.")
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def variants(
    inputs: tuple[str, ...], out: Path, count: int, strategy: str, seed: int, ssim_floor: float, format_: str,
    backend: str, workers: int | None, timeout: float | None, json: bool, dry_run: bool, debug: bool,
) -> int:  # fmt: skip
    """Make variants of videos, for tests of what people like best, other formats, or training data.

    INPUT is a file, a folder, a glob in quotes, @FILE (a list, one name a line), or - (a list on standard
    input). --timeout is that of one variant; without it, five minutes.
    """
    sources, notes = expand(inputs, leave_out=out)
    if not sources:
        raise click.UsageError("; ".join(notes) or "the list names no video")
    # What is wrong there is said at once. Variants look at the clock themselves where an engine cannot.
    config_of(backend, workers, None if backend == "serial" else timeout)
    for note in notes:
        say(people(), note, "failed:")
    if dry_run:
        lines = machine_reads(json)
        code = preview(sources, out, count, strategy, seed, workers, backend, timeout, format_, lines, debug)
        return max(code, SOME_FAILED_EXIT if notes else 0)

    from video.processors.variants import VARIANT_SECONDS, VideoProcessingManager
    from video.telemetry.progress import ProgressBars

    console = people()
    names = [
        f"{readable(Path(source).name)} {number}" for source in sources for number in range(1, count + 1)
    ]
    try:
        with ProgressBars("variants", names, console) as bars:
            manager = VideoProcessingManager(
                workers, backend=backend, timeout=timeout or VARIANT_SECONDS, observers=[bars]
            )
            found = manager.process_variants_parallel(
                sources, out, count, strategy, seed=seed, ssim_floor=ssim_floor, format=format_
            )
            go_on()
    except KeyboardInterrupt:
        stay = f"; variants that were whole stay in {out}" if out.exists() else ""
        say(console, f"stopped{stay}")
        return STOPPED_EXIT
    if machine_reads(json):
        for place, one in enumerate(found):
            click.echo(as_line(sources[place // count], place % count + 1, one, debug))
    else:
        show(found, output(), out)
    failed = [one for one in found if one["error"] is not None]
    for one in failed:
        say(console, f"{one['variant_id']}: {one['error']}", "failed:")
        if debug and one["traceback"]:
            say(console, one["traceback"])
    return SOME_FAILED_EXIT if failed or notes else 0


def as_line(source: str, number: int, one: Mapping[str, Any], debug: bool) -> str:
    """A variant as JSON on one line, in which things are called as in those of `video clips` and
    `video encode`; tracebacks are for --debug.

    :param one: as `VideoProcessingManager.process_variants_parallel` gives it.
    """
    error, outputs = None, []
    if one["error"] is not None:
        traceback = one["traceback"] if debug else ""
        error = {"type": one["error_type"], "message": one["error"], "traceback": traceback}
    else:
        about = {"bytes": one["file_size"], "transformations": one["transformations"]}
        outputs = [{"path": one["output_path"], **one["measures"], **about}]
    line = {"source": source, "success": error is None, "error": error, "outputs": outputs}
    line |= {"number": number, "strategy": one["strategy"], "seed": one["seed"]}
    line |= {"seconds": one["processing_time"], "attempts": one["attempts"]}
    return json_module.dumps(line | {"backend": one["backend"], "reason": one["reason"]})


def preview(
    sources: Sequence[str], out: Path, count: int, strategy: str, seed: int, workers: int | None = None,
    backend: str = "auto", timeout: float | None = None, format_: str = "mp4", lines: bool = False,
    debug: bool = False,
) -> int:  # fmt: skip
    """Print the plan of each variant; the exit code.

    :param lines: as JSON, as a run would print it, but with the plan in place of what is measured.
    """
    from video.errors import VideoError
    from video.media import fuse, strategies
    from video.models import Problem
    from video.processors._names import Names
    from video.processors.variants import VARIANT_SECONDS, VideoProcessingManager

    code = 0
    manager = VideoProcessingManager(workers, backend=backend, timeout=timeout or VARIANT_SECONDS)
    folder, names = Path(os.path.abspath(out)), Names(sources)
    told = {"strategy": strategy, "seed": seed, "processing_time": 0.0, "file_size": 0, "attempts": 0}
    told |= {"backend": "", "reason": "", "error": None}
    for source, found in zip(sources, manager.facts(sources), strict=True):
        try:
            facts = found.unwrap()
            for number, path in enumerate(names.variants(source, folder, count, format_, keep=False), 1):
                chosen = strategies.choose(strategy, facts, seed, number)
                plan = str(fuse.fuse(chosen, facts))
                if lines:
                    made: dict[str, Any] = {"output_path": str(path), "measures": {"plan": plan}}
                    made |= {"transformations": [one.as_dict() for one in chosen]}
                    click.echo(as_line(source, number, told | made, debug))
                else:
                    click.echo(f"variant {number}: {plan}")
        except VideoError as error:
            say(people(), str(error), "failed:")
            code = SOME_FAILED_EXIT
            problem = Problem.of(error)
            lost = {"error": problem.message, "error_type": problem.type, "traceback": problem.traceback}
            for number in range(1, count + 1) if lines else ():
                click.echo(as_line(source, number, told | lost, debug))
    if strategy == "enhanced_metrics":
        say(
            people(), "these are as drawn: what harms the picture is softened or left out when it is measured"
        )
    return code


def show(found: Sequence[dict[str, Any]], console: Console, out: Path) -> None:
    """A table for a person."""
    from video.telemetry.tables import variant_table

    done = sum(one["error"] is None for one in found)
    if done:
        console.print(variant_table(found))
    say(console, f"{counted(done, 'variant')} of {len(found)} in {out} ({found[0]['backend']} engine)")
