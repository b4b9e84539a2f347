"""`video compare`: how near a video comes to the one it was made from."""

from __future__ import annotations

import dataclasses
import json as json_module
import math
from pathlib import Path
from typing import Any

import click

from video.cli.common import SOME_FAILED_EXIT, machine_reads, output, people, say
from video.errors import ConfigError, VideoError
from video.sources.base import readable

EXAMPLES = """\b
Examples:
  video compare small.mp4 talk.mp4
  video compare talk-01.mp4 talk.mp4 --offset 61.5 --sheet both.png
  video compare --json small.mp4 talk.mp4 | jq .likeness.ssim
"""

WORDS = {
    "ssim": "structural similarity, 1 is the same",
    "ssim_worst": "of the worst picture",
    "psnr": "dB, over all pictures",
    "xpsnr": "dB, weighted by what is visible",
    "hash_distance": "bits of 64: a few are the same scene",
    "frames": "pictures compared",
    "unmatched": "pictures after the end of the reference",
}


@click.command(epilog=EXAMPLES)
@click.argument("video", type=click.Path())
@click.argument("reference", type=click.Path())
@click.option("--offset", type=float, default=0.0, metavar="SECONDS", help="Where VIDEO begins in REFERENCE.")
@click.option(
    "--sheet", type=click.Path(path_type=Path), metavar="FILE", help="Write both side by side, PNG or JPEG."
)
@click.option(
    "--count", type=click.IntRange(1, 100), default=4, show_default=True, help="Rows of the --sheet."
)
@click.option("--json", is_flag=True, help="One JSON object.  [default when piped]")
@click.option("--debug", is_flag=True, help="Show the traceback of what fails.")
def compare(
    video: str, reference: str, offset: float, sheet: Path | None, count: int, json: bool, debug: bool
) -> int:
    """Measure how near VIDEO comes to REFERENCE, and what it is like by itself.

    Each picture is compared with the one that REFERENCE shows at that time, upright and at its size.
    """
    from video.media.quality import measure_quality
    from video.media.stills import side_by_side

    try:
        if sheet is not None:  # first: what is wrong with it shows at once
            side_by_side(video, reference, sheet, count, offset=offset)
        facts = dataclasses.asdict(measure_quality(video, reference, offset=offset))
    except ConfigError:  # wrong usage
        raise
    except VideoError as error:
        if debug:
            raise
        say(people(), str(error), "failed:")
        return SOME_FAILED_EXIT
    if machine_reads(json):
        click.echo(readable(json_module.dumps(_plain(facts), ensure_ascii=False)))
    else:
        _show(facts)
    if sheet is not None:
        say(people(), f"wrote {sheet}")
    return 0


def _plain(value: Any) -> Any:
    """JSON has no word for what is infinite: null."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def _show(facts: dict[str, Any]) -> None:
    from video.telemetry.tables import table

    likeness = facts.pop("likeness")
    rows = [[name, _words(value), WORDS[name]] for name, value in likeness.items()]
    rows += [
        ["seconds", _words(facts["seconds"]), "of the video"],
        ["blur", _words(facts["blur"]), "pixels, mean width of edges: 2 to 5 is sharp"],
        ["black", _spans(facts["black"]), "seconds without a picture"],
        ["frozen", _spans(facts["frozen"]), "seconds in which one picture stands still"],
        ["loudness", _words(facts["loudness"]), "LUFS"],
        ["true_peak", _words(facts["true_peak"]), "dBTP"],
    ]
    output().print(table(["measure", "value", "meaning"], rows))


def _words(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return "the same" if math.isinf(value) else f"{value:.4g}"


def _spans(spans: tuple[tuple[float, float], ...]) -> str:
    shown = ", ".join(f"{start:.1f}-{end:.1f}" for start, end in spans[:6])
    return (f"{shown}, … ({len(spans)} in all)" if len(spans) > 6 else shown) or "none"
