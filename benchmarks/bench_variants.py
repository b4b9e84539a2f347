"""What variants cost: one graph against one `ffmpeg` pass for each transformation; several outputs of one
decoder against several `ffmpeg` runs; two workers against one; and the memory of four outputs.

Both sides have the same transformations and the same x264 and AAC settings. Ours has one thread of each
codec and filter, as a worker has; `ffmpeg` has what it takes by default, and in a row of its own one as well.
A pass that only concerns the sound copies the picture, and the other way round, as a careful script would. A
round is one seed on either side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from _media import FFMPEG, make_source
from bench_cut import run_counted
from conftest import Table, Versus, reported, wall_seconds

from video import VideoProcessingManager
from video.media import fuse, strategies
from video.media.encode import CLIP, Encoding
from video.media.transform import Chosen, Facts
from video.media.variants import facts_of

pytestmark = pytest.mark.timeout(900)

SECONDS = 4
ROUNDS = 2
TOGETHER, BATCH = 4, 8
MOST_MB = 600.0

WORKER = """
import json, pathlib, sys, time
from video import scope
from video.media.catalogue import available
from video.media.variants import Wanted, make
available()
print(flush=True)
for line in sys.stdin:
    source, folder, seed, numbers = json.loads(line)
    wanted = [Wanted(pathlib.Path(folder, f"{n}.mp4"), "standard", seed, n) for n in numbers]
    before = time.process_time()
    with scope.entered(scope.Slot(1)):
        made = make(source, wanted)
    spent = time.process_time() - before
    assert not any(one.error for one in made), [one.error for one in made]
    line = next(line for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM:"))
    print(json.dumps([spent, int(line.split()[1]) * 1024 / 1e6]), flush=True)
"""
"""Makes variants together, in one warm process, which has found out what its FFmpeg can do; says CPU seconds,
and its peak of memory in MB."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("small"), seconds=SECONDS)


@pytest.fixture(scope="module")
def facts(small: Path) -> Facts:
    return facts_of(small)


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"Variants of {SECONDS} s at 720p: CPU seconds; wall seconds where it says so", "s")


@pytest.fixture(scope="module")
def memory(new_table: Callable[..., Table]) -> Table:
    return new_table("Peak memory of a process that makes variants at 720p: MB", "MB", ratio="share of it")


@contextmanager
def worker() -> Iterator[Callable[..., list[float]]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def make(*call: object) -> list[float]:
            print(json.dumps(call), file=into, flush=True)
            found: list[float] = json.loads(out.readline())
            return found

        out.readline()
        yield make


def test_one_graph(versus: Versus, table: Table, small: Path, facts: Facts, tmp_path: Path) -> None:
    seeds, theirs = count(), count()
    passes: list[int] = []

    def one_pass_each() -> float:
        plan = fuse.fuse(strategies.choose("standard", facts, next(theirs), 1), facts)
        passes.append(len(plan.chosen))
        return sum(run_counted(line) for line in pass_for_each(plan, small, tmp_path))

    with worker() as make:
        versus(
            ("standard, 1 variant", lambda: make(str(small), str(tmp_path), next(seeds), [1])[0]),
            {"one pass each": one_pass_each},
            rounds=ROUNDS,
            meter=reported,
            target=0.15,
        )
    table.notes.append(f"transformations, each a pass of its own there: {', '.join(map(str, passes))}")


def test_decoded_once(versus: Versus, small: Path, facts: Facts, tmp_path: Path) -> None:
    seeds, theirs, theirs_alone = count(), count(), count()
    numbers = list(range(1, TOGETHER + 1))

    def one_run_each(threads: int | None, seeds: Iterator[int]) -> float:
        seed = next(seeds)
        plans = [fuse.fuse(strategies.choose("standard", facts, seed, number), facts) for number in numbers]
        return sum(run_counted(fused(plan, small, tmp_path / "theirs.mp4", threads)) for plan in plans)

    with worker() as make:
        versus(
            (
                f"standard, {TOGETHER} variants",
                lambda: make(str(small), str(tmp_path), next(seeds), numbers)[0],
            ),
            {
                "ffmpeg, same graphs": lambda: one_run_each(None, theirs),
                "the same, 1 thread": lambda: one_run_each(1, theirs_alone),
            },
            rounds=ROUNDS,
            meter=reported,
            target={"ffmpeg, same graphs": 0.9},
        )


def test_two_workers(versus: Versus, table: Table, small: Path, tmp_path: Path) -> None:
    def batch(workers: int) -> Callable[[], object]:
        return lambda: VideoProcessingManager(workers).process_variants_parallel([small], tmp_path, BATCH)

    versus(
        (f"{BATCH} variants, 2 workers, wall", batch(2)),
        {"1 worker, wall": batch(1)},
        rounds=1,
        target=0.55,
    )
    one, two = (wall_seconds(lambda busy=busy: spin(busy)) for busy in (1, 2))
    table.notes.append(
        f"two bare processes took {two / one:.2f} of the time of one with the same work just then"
    )


def spin(processes: int) -> None:
    """The same work, by so many processes."""
    line = [sys.executable, "-c", f"for _ in range({40_000_000 // processes}): pass"]
    for one in [subprocess.Popen(line) for _ in range(processes)]:
        one.wait()


@pytest.mark.parametrize("outputs", [1, TOGETHER])
def test_memory(benchmark: object, memory: Table, small: Path, tmp_path: Path, outputs: int) -> None:
    def peak() -> float:
        with worker() as make:
            return make(str(small), str(tmp_path), 0, list(range(1, outputs + 1)))[1]

    Versus(benchmark, memory)(  # type: ignore[arg-type]  # pytest-benchmark's fixture
        (f"{outputs} outputs", peak), {"its bound": lambda: MOST_MB}, rounds=1, meter=reported, target=1.0
    )


def command(
    source: Path, output: Path, picture: list[str], sound: list[str], threads: int | None = None
) -> list[str]:
    """:param threads: of each codec and filter; None: what it takes by default."""
    limit = [] if threads is None else ["-threads", str(threads)]
    filters = [] if threads is None else ["-filter_threads", str(threads)]
    return [
        *(FFMPEG, "-v", "error", "-nostdin", "-y", *filters, *limit, "-i", str(source)),
        *(*picture, *limit, *sound, "-movflags", "+faststart", str(output)),
    ]


def x264(encoding: Encoding) -> list[str]:
    options = [word for name, value in encoding.options.items() for word in (f"-{name}", value)]
    keys = encoding.key_seconds
    forced = [] if keys is None else ["-force_key_frames", f"expr:gte(t,n_forced*{float(keys):g})"]
    return ["-c:v", "libx264", *options, *forced]


def aac(encoding: Encoding) -> list[str]:
    return ["-c:a", "aac", "-b:a", str(max(96_000, 2 * encoding.audio_bit_rate))]


def fused(plan: fuse.Fused, source: Path, output: Path, threads: int | None) -> list[str]:
    """All of a plan in one run."""
    picture = ["-vf", plan.picture] if plan.picture else []
    sound = ["-af", plan.sound] if plan.sound else []
    return command(source, output, [*picture, *x264(plan.encoding)], [*sound, *aac(plan.encoding)], threads)


def pass_for_each(plan: fuse.Fused, source: Path, folder: Path) -> Iterator[list[str]]:
    """One run for each transformation of a plan, each on what the one before has written."""
    here = source
    for number, one in enumerate(plan.chosen):
        output = folder / f"pass-{number}.mp4"
        yield command(here, output, *single(one, plan))
        here = output


def single(one: Chosen, plan: fuse.Fused) -> tuple[list[str], list[str]]:
    alone = fuse.fuse([one], plan.facts._replace(seconds=plan.seconds))
    changes_sound = bool(one.of.sound) or any(name == "audio_bit_rate" for name, _ in one.of.encoding)
    changes_picture = (
        bool(one.of.picture) or alone.encoding.options != CLIP.options or alone.encoding.key_seconds
    )
    picture, sound = ["-c:v", "copy"], ["-c:a", "copy"]
    if changes_picture:
        picture = [*(["-vf", alone.picture] if alone.picture else []), *x264(alone.encoding)]
    if changes_sound:
        sound = [*(["-af", alone.sound] if alone.sound else []), *aac(alone.encoding)]
    return picture, sound
