"""`video sheet`: one picture of what a video shows."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import click

from video.cli.common import SOME_FAILED_EXIT, go_on, people, say
from video.cli.inputs import expand
from video.errors import VideoError

EXAMPLES = """\b
Examples:
  video sheet talk.mp4                       writes talk-sheet.jpg here
  video sheet films/ --out sheets --count 20 --columns 5
"""


@click.command(epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), metavar="FOLDER", help="Where they go."
)
@click.option(
    "--count", type=click.IntRange(1, 1000), default=12, show_default=True, help="Pictures of each."
)
@click.option("--columns", type=click.IntRange(1, 100), default=4, show_default=True, help="In a row.")
@click.option(
    "--width", type=click.IntRange(16, 8192), default=320, show_default=True, help="Pixels of each."
)
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def sheet(files: tuple[str, ...], out: Path, count: int, columns: int, width: int, debug: bool) -> int:
    """Write a contact sheet of each video: key frames, evenly spread, each with its time.

    It is called NAME-sheet.jpg; of namesakes of one run each has its own, one of an earlier run is replaced.
    A video that is named twice has one.
    """
    from video.media.stills import contact_sheet

    sources, notes = expand(files)
    failed = bool(notes)
    for note in notes:
        say(people(), note, "failed:")
    given: set[str] = set()
    made: dict[str, Path] = {}
    for file in sources:
        go_on()
        real = os.path.realpath(file)
        if real in made:
            click.echo(made[real])
            continue
        stem = Path(file).stem
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        name = next(one for one in names if one.casefold() not in given)
        given.add(name.casefold())
        try:
            made[real] = contact_sheet(
                file, out / f"{name}-sheet.jpg", count, columns, width, title=Path(file).name
            )
            click.echo(made[real])
        except VideoError as error:
            if debug:
                raise
            failed = True
            say(people(), str(error), "failed:")
    return SOME_FAILED_EXIT if failed else 0
