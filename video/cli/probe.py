"""`video probe`: what a file holds."""

from __future__ import annotations

import json as json_module
from typing import Any

import click

from video.cli.common import SOME_FAILED_EXIT, machine_reads, output, people, say
from video.cli.inputs import expand
from video.errors import VideoError
from video.sources.base import readable

EXAMPLES = """\b
Examples:
  video probe talk.mp4 films/
  video probe --json *.mkv | jq .measured.duration_seconds
"""


@click.command(epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--json", is_flag=True, help="One JSON object a file.  [default when piped]")
@click.option("--debug", is_flag=True, help="Show tracebacks of what fails.")
def probe(files: tuple[str, ...], json: bool, debug: bool) -> int:
    """Show what a file's header says, and apart from it what its packets really hold."""
    from video.media.probe import measure
    from video.media.probe import probe as read_header

    sources, notes = expand(files)
    failed = bool(notes)
    for note in notes:
        say(people(), note, "failed:")
    for file in sources:
        try:
            header = read_header(file)
            facts: dict[str, Any] = {"header": header.as_dict()}
            facts["measured"] = None if header.video is None else measure(file).as_dict()
        except VideoError as error:
            if debug:
                raise
            failed = True
            say(people(), str(error), "failed:")
            continue
        if machine_reads(json):
            click.echo(readable(json_module.dumps(facts, ensure_ascii=False)))
        else:
            _show(file, facts)
    return SOME_FAILED_EXIT if failed else 0


def _show(file: str, facts: dict[str, Any]) -> None:
    from video.telemetry.tables import table

    rows = [[place, name, _words(value)] for place, part in facts.items() for name, value in _leaves(part)]
    console = output()
    say(console, file)
    console.print(table(["from", "field", "value"], rows))


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) for everything in nested mappings and lists of mappings."""
    if isinstance(value, dict):
        pairs = [(f"{name}.{key}" if name else key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        pairs = [(f"{name}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return [(name, value)]
    return [leaf for key, inner in pairs for leaf in _leaves(inner, key)]


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = ", ".join(map(_words, value[:12]))
        return f"{shown}, … ({len(value)} in all)" if len(value) > 12 else shown
    return "-" if value is None else str(value)
