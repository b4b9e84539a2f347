"""`video demo`: the main job on videos that it makes itself."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from video import resources
from video.cli.common import SOME_FAILED_EXIT, STOPPED_EXIT, counted, go_on, output, people, say
from video.models import VideoClipRequest, VideoClipResponse


class _Run(NamedTuple):
    responses: list[VideoClipResponse]
    seconds: float


EXAMPLES = """\b
Examples:
  video demo
  video demo --videos 8 --count 2 --workers 4 --out demo
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("video-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the samples, the clips and the contact sheet.",
)
@click.option(
    "--videos",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    metavar="N",
    help="Sample videos to make.",
)
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    metavar="N",
    help="Clips of each.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Videos at once.  [default: the usable CPUs]"
)
def demo(out: Path, videos: int, count: int, workers: int | None) -> int:  # fmt: skip
    """Make sample videos, cut their highlights out with several workers, and show what came of it.

    The same work is then done by one worker with one codec thread, to show the speed-up. Nothing is
    downloaded, and nothing outside DIR is touched.
    """

    workers = workers or resources.usable_cpus()
    notes = people()
    try:
        samples = _samples(out / "samples", videos, workers, notes)
        notes.print(f"cutting {counted(videos, 'video')} with {counted(workers, 'worker')} ...")
        run = _cut(samples, out / "clips", count, workers, notes)
        notes.print("cutting them again with one worker, to compare ...")
        alone = run if workers == 1 else _cut(samples, out / "clips", count, 1, notes)
        return _show(run, alone, out, workers)
    except KeyboardInterrupt:
        notes.print("stopped; no worker runs on, and no unfinished file is left")
        return STOPPED_EXIT


def _samples(folder: Path, count: int, workers: int, notes: Console) -> list[Path]:
    from video.config import ParallelConfig
    from video.media.sample import write_sample
    from video.runner import Runner
    from video.telemetry.progress import ProgressBars

    notes.print(f"making {counted(count, 'sample video')} ...")
    config = ParallelConfig(backend="process", max_workers=workers, preload=("video.media.sample",))
    names = [f"sample {number + 1}" for number in range(count)]
    with ProgressBars("samples", names, notes) as bars, Runner(config, observers=[bars]) as runner:
        return [outcome.unwrap() for outcome in runner.map(partial(write_sample, folder), range(count))]


def _cut(samples: list[Path], folder: Path, count: int, workers: int, notes: Console) -> _Run:
    from video.config import ParallelConfig
    from video.processors.clip import VideoClipProcessor
    from video.telemetry.progress import ProgressBars

    requests = [
        VideoClipRequest(source=sample, output_dir=folder, count=count, min_clip_length=3, max_clip_length=6)
        for sample in samples
    ]
    config = ParallelConfig(backend="process", max_workers=workers, threads_per_worker=1)
    names = [sample.name for sample in samples]
    with (
        ProgressBars("videos", names, notes) as bars,
        VideoClipProcessor(config, observers=[bars]) as processor,
    ):
        started = time.perf_counter()
        responses = processor.process_batch_parallel(requests)
        go_on()
        return _Run(responses, time.perf_counter() - started)


def _show(run: _Run, alone: _Run, out: Path, workers: int) -> int:
    from video.media.stills import contact_sheet_of_clips
    from video.telemetry.tables import clip_table, table

    console = output()
    responses = run.responses
    console.print(clip_table(responses))
    engine = responses[0].backend
    rows = [
        [engine, str(number), f"{seconds:.1f} s", f"{alone.seconds / seconds:.2f}x"]
        for number, seconds in {1: alone.seconds, workers: run.seconds}.items()
    ]
    console.print(
        table(["engine", "workers", "time", "speed-up"], rows, right=["workers", "time", "speed-up"])
    )

    clips = [(clip.path, clip.path.name) for response in responses for clip in response.clips]
    failed = [response.error for response in responses if response.error is not None]
    for problem in failed:
        say(people(), problem.message, "failed:")
    if clips:
        sheet = contact_sheet_of_clips(clips, out / "contact-sheet.png", title="video demo")
        say(console, f"clips:         {out / 'clips'}")
        say(console, f"contact sheet: {sheet}")
    return SOME_FAILED_EXIT if failed else 0
