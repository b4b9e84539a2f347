"""What cutting costs: CPU seconds for 10 clips of 5 or 20 s, against the `ffmpeg` command line and moviepy.

All encode with libx264 and AAC at the same settings (a note says what x264 itself wrote of them), and write
the same times of the same file to MP4 with its index in front. Ours cuts all clips in one warm process, as a
worker does, and so does moviepy, whose ffmpeg processes count; the ffmpeg command line is a loop of one
command for each clip, as people write it. A round is one clip on either side. What our process costs beside
its cuts, once, is in the notes. moviepy is left out where it is not installed (`pip install ".[peers]"`).
"""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import av
import pytest
from _media import FFMPEG, make_source, spans
from conftest import Table, Versus, reported

CLIPS = spans(10, seconds=5.0, step=5.5)
LONG_CLIPS = spans(10, seconds=20.0, step=3.9)
"""They overlap, which is no matter: each is cut alone."""
SPARSE_KEYS = [0, 10, 12, 20, 25, 35, 38, 48, 50, 60]
"""Seconds: groups of 2 to 10 s, as recorders and websites write them."""
EXACT_PASSES = 1
COPY_PASSES = 5
TARGETS = {"exact": 1.0, "copy": 0.6, "smart": 0.15, "cheaper plan": 1.05, "sheet": 0.15}
PICTURES = 12

WORKER = """
import json, sys, time
started = time.process_time()
from video import resources, scope
from video.media import smart, splice
from video.media.cut import cut
from video.media.stills import contact_sheet
usual = smart.usual_costs
def dear(*kind, **more):
    costs = usual(*kind, **more)
    return smart.Costs(costs.decode, costs.encode, 1e9, costs.copy, costs.splice)
print(json.dumps([started, time.process_time() - started]), flush=True)
for line in sys.stdin:
    threads, job, *call = json.loads(line)
    smart.usual_costs = usual
    if call[-1] == "splice at any price":
        smart.usual_costs, call[-1] = dear, "smart"
    before = time.process_time()
    with scope.entered(scope.Slot(threads or resources.usable_cpus())):
        {"cut": cut, "sheet": contact_sheet}[job](*call)
    print(json.dumps(time.process_time() - before), flush=True)
"""
"""`time.process_time` counts all threads of the process."""

MOVIEPY = """
import json, os, sys, time
started = time.process_time()
from moviepy import VideoFileClip
print(json.dumps([started, time.process_time() - started]), flush=True)
for line in sys.stdin:
    source, output, start, end = json.loads(line)
    before = sum(os.times()[:4])
    with VideoFileClip(source) as film, film.subclipped(start, end) as clip:
        clip.write_videofile(
            output, codec="libx264", preset="veryfast", audio_codec="aac", audio_bitrate="128k",
            logger=None, temp_audiofile_path=os.path.dirname(output),
            ffmpeg_params=["-crf", "20", "-movflags", "+faststart"],
        )
    print(json.dumps(sum(os.times()[:4]) - before), flush=True)
"""
"""Its own processes count from when they have ended, which they have when a clip is written."""


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"Cutting {len(CLIPS)} clips from a 720p video: CPU seconds", "s")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "threads", "passes"),
    [
        ("exact", 1, EXACT_PASSES),
        ("exact", None, EXACT_PASSES),
        ("copy", None, COPY_PASSES),
        ("smart", None, EXACT_PASSES),
    ],
    ids=["exact, 1 thread", "exact, default threads", "copy", "smart, 20 s each"],
)
def test_cut(
    versus: Versus,
    table: Table,
    request: pytest.FixtureRequest,
    source: Path,
    tmp_path: Path,
    mode: str,
    threads: int | None,
    passes: int,
) -> None:
    """The peer of `smart` encodes anew, as whoever needs exact frames does.

    :param threads: of each codec; None: by default, which is the usable CPUs here and auto there.
    """
    name = request.node.callspec.id
    mine, theirs = tmp_path / "mine.mp4", tmp_path / "theirs.mp4"
    clips = LONG_CLIPS if mode == "smart" else CLIPS
    my_clips, their_clips = cycle(clips), cycle(clips)
    theirs_is = "exact" if mode == "smart" else mode

    def command() -> float:
        return run_counted(command_line(source, theirs, *next(their_clips), theirs_is, threads))

    peers: dict[str, Callable[[], float]] = {"ffmpeg": command}
    with ExitStack() as stack:
        work, started, imported = stack.enter_context(worker(WORKER))
        if mode == "exact" and threads is None and importlib.util.find_spec("moviepy"):
            film, _, _ = stack.enter_context(worker(MOVIEPY))
            film_clips = cycle(clips)
            peers["moviepy"] = lambda: film(str(source), str(tmp_path / "film.mp4"), *next(film_clips))
        versus(
            (name, lambda: work(threads, "cut", str(source), str(mine), *next(my_clips), mode)),
            peers,
            rounds=passes * len(CLIPS),
            meter=reported,
            statistic=ten_clips,
            target={"ffmpeg": TARGETS[mode]},
        )
    row = next(row for row in table.rows if (row.ours, row.peer) == (name, "ffmpeg"))
    whole = (started + imported + row.our_figure) / row.peer_figure
    table.notes.append(
        f"{name}: {whole:.2f} with the interpreter's start ({started:.2f} s) "
        f"and the imports ({imported:.2f} s) of one worker"
    )
    table.notes.append(f"{name}: {difference(mine, theirs)}")


@pytest.mark.timeout(900)
def test_a_smart_cut_takes_the_cheaper_plan(versus: Versus, table: Table, tmp_path: Path) -> None:
    """Clips of 5 s, many of them with no key frame or one near their end, against the better of two plans."""
    source = make_source(tmp_path, keys=SPARSE_KEYS)
    my_clips, their_clips = cycle(CLIPS), cycle(CLIPS)
    taken: list[str] = []
    with worker(WORKER) as (work, _, _):

        def plans() -> float:
            clip = next(their_clips)
            figures = {
                mode: work(None, "cut", str(source), str(tmp_path / "theirs.mp4"), *clip, mode)
                for mode in ("exact", "splice at any price")
            }
            taken.append(min(figures, key=figures.__getitem__))
            return min(figures.values())

        versus(
            (
                "smart, sparse key frames",
                lambda: work(None, "cut", str(source), str(tmp_path / "mine.mp4"), *next(my_clips), "smart"),
            ),
            {"cheaper plan": plans},
            rounds=len(CLIPS),
            meter=reported,
            statistic=ten_clips,
            target=TARGETS["cheaper plan"],
        )
    table.notes.append(f"smart, sparse key frames: to encode all was cheaper {taken.count('exact')} times")


def test_contact_sheet(versus: Versus, table: Table, source: Path, tmp_path: Path) -> None:
    """Twelve pictures of a minute; the peer decodes it all, as its usual command does."""
    sheet = [
        "-vf",
        f"fps={PICTURES}/60,scale=320:-2,tile=4x3",
        "-frames:v",
        "1",
        str(tmp_path / "theirs.png"),
    ]
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", "-i", str(source), *sheet]
    with worker(WORKER) as (work, _, _):
        versus(
            (
                f"contact sheet, {PICTURES} pictures of 60 s",
                lambda: work(None, "sheet", str(source), str(tmp_path / "mine.png"), PICTURES),
            ),
            {"ffmpeg": lambda: run_counted(command)},
            rounds=5,
            meter=reported,
            target=TARGETS["sheet"],
        )


def ten_clips(times: list[float]) -> float:
    size = len(CLIPS)
    return statistics.median(sum(times[at : at + size]) for at in range(0, len(times), size))


@contextmanager
def worker(program: str) -> Iterator[tuple[Callable[..., float], float, float]]:
    """A process that works; each call returns its CPU seconds. Beside it: those of its start and imports."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def work(*call: object) -> float:
            print(json.dumps(call), file=into, flush=True)
            return float(json.loads(out.readline()))

        started, imported = json.loads(out.readline())
        yield work, started, imported


def run_counted(line: list[str]) -> float:
    """Run a command; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def command_line(
    source: Path, output: Path, start: float, end: float, mode: str, threads: int | None
) -> list[str]:
    """The usual command for a clip. Its x264 and AAC settings are those of `video.media.encode`."""
    limit = [] if threads is None else ["-threads", str(threads)]
    filters = [] if threads is None else ["-filter_threads", str(threads)]
    codecs = ["-c", "copy"]
    if mode == "exact":
        codecs = [
            "-c:v",
            "libx264",
            "-preset",
            "veryfast",
            "-crf",
            "20",
            "-c:a",
            "aac",
            "-b:a",
            "128k",
            *limit,
        ]
    times = ["-ss", f"{start:.3f}", "-t", f"{end - start:.3f}"]
    return [
        *(FFMPEG, "-v", "error", "-nostdin", "-y"),
        *(*filters, *limit, *times, "-i", str(source)),
        *(*codecs, "-movflags", "+faststart", str(output)),
    ]


def difference(mine: Path, theirs: Path) -> str:
    """What differs between two clips that should be alike, ours first."""
    (my_build, my_settings), (their_build, their_settings) = x264_settings(mine), x264_settings(theirs)
    names = sorted(my_settings.keys() | their_settings.keys())
    unlike = [
        f"{name} {my_settings.get(name)}/{their_settings.get(name)}"
        for name in names
        if my_settings.get(name) != their_settings.get(name)
    ]
    sizes = f"{mine.stat().st_size >> 10}/{theirs.stat().st_size >> 10} kB"
    text = f"{frames(mine)}/{frames(theirs)} frames, {sizes}"
    if not my_settings and not their_settings:  # a copy has them only where it holds the first frame
        return text
    settings = f"differ in {', '.join(unlike)}" if unlike else "are the same"
    return f"{text}, x264 build {my_build}/{their_build}, its settings {settings}"


def x264_settings(clip: Path) -> tuple[str, dict[str, str]]:
    """Build and settings, as x264 writes them into its first frame."""
    found = re.search(rb"x264 - core (\d+).*?options: ([ -~]+)", clip.read_bytes(), re.DOTALL)
    if found is None:
        return "unknown", {}
    pairs = [setting.partition("=") for setting in found[2].decode().split()]
    return found[1].decode(), {name: value for name, _, value in pairs}


def frames(clip: Path) -> int:
    with av.open(str(clip)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
