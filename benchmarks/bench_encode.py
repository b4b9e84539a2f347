"""What a ladder of four renditions costs: CPU seconds against four `ffmpeg` commands, and peak memory.

Both sides encode with libx264 and AAC at the settings of quality "medium", with the same scaler, to MP4 with
its index in front. Ours decodes the video once. Its process is new each time; what its start and imports cost
is in the notes, as for cuts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _media import FFMPEG, make_source
from bench_cut import frames, run_counted, x264_settings
from conftest import Table, Versus, reported

SECONDS = 6
LADDER = (1080, 720, 480, 360)
SMALLER = (720, 540, 360, 240)
ROUNDS = 2
TARGET = 0.85
BOUND_MB = 600.0
"""Of a process with four outputs at 720p."""

PROGRAM = """
import json, pathlib, resource, sys, time
started = time.process_time()
from video import ParallelConfig, VideoEncodingProcessor
import video.processors._encode
imported = time.process_time() - started
source, out, ladder, codec = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
request = {"source": source, "output_dir": out, "ladder": ladder, "codec": codec, "quality": "medium"}
before = time.process_time()
with VideoEncodingProcessor(ParallelConfig(backend="serial", max_workers=1)) as processor:
    (response,) = processor.process_batch_parallel([request])
spent = time.process_time() - before
assert response.success, response.error
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if sys.platform == "linux":  # what `getrusage` says there includes the process that started this one
    line = next(line for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM:"))
    peak = int(line.split()[1]) * 1024
print(json.dumps([spent, started + imported, peak]))
"""


@pytest.fixture
def table(new_table: Callable[..., Table], request: pytest.FixtureRequest) -> Table:
    if request.function is test_peak_memory:
        return new_table("Peak memory of a process with 4 outputs at 720p: MB", "MB", ratio="share of it")
    return new_table(f"A ladder of {len(LADDER)} from {SECONDS} s at 1080p: CPU seconds", "s")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"), seconds=SECONDS, height=1080)


def ours(source: Path, out: Path, ladder: tuple[int, ...], codec: str = "h264") -> tuple[float, float, float]:
    """CPU seconds of the work, those of its process's start and imports, and peak bytes."""
    line = [sys.executable, "-c", PROGRAM, str(source), str(out), json.dumps(ladder), codec]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    spent, start, peak = json.loads(done.stdout)
    return spent, start, peak


@pytest.mark.timeout(900)
def test_a_ladder(versus: Versus, table: Table, source: Path, tmp_path: Path) -> None:
    starts: list[float] = []

    def mine() -> float:
        spent, start, _ = ours(source, tmp_path, LADDER)
        starts.append(start)
        return spent

    def commands() -> float:
        return sum(run_counted(command_line(source, tmp_path, height)) for height in LADDER)

    versus(
        ("ladder, decoded once", mine),
        {"ffmpeg, 4 commands": commands},
        rounds=ROUNDS,
        meter=reported,
        target=TARGET,
    )
    table.notes.append(f"start and imports of our process: {max(starts):.2f} s")
    for height in LADDER:
        made, peer = tmp_path / f"source-{height}p.mp4", tmp_path / f"ffmpeg-{height}.mp4"
        unlike = {
            name
            for name, value in x264_settings(made)[1].items()
            if x264_settings(peer)[1].get(name) != value
        }
        sizes = f"{made.stat().st_size >> 10}/{peer.stat().st_size >> 10} kB"
        words = f"x264 settings that differ: {', '.join(sorted(unlike)) or 'none'}"
        table.notes.append(f"{height}p: {frames(made)}/{frames(peer)} frames, {sizes}, {words}")


@pytest.mark.timeout(900)
def test_peak_memory(versus: Versus, table: Table, tmp_path: Path) -> None:
    source = make_source(tmp_path, seconds=SECONDS // 2)
    for codec in ("h264", "hevc", "av1", "vp9"):
        peak = ours(source, tmp_path / codec, SMALLER, codec)[2] / 1e6
        table.notes.append(f"{codec}: {peak:.0f} MB")
    versus(
        ("h264", lambda: ours(source, tmp_path / "o", SMALLER)[2] / 1e6),
        {"its bound": lambda: BOUND_MB},
        rounds=1,
        meter=reported,
        target=1.0,
    )


def command_line(source: Path, folder: Path, height: int) -> list[str]:
    """The usual command for one rendition."""
    encoding = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-c:a", "aac", "-b:a", "128k"]
    scaled = [] if height == LADDER[0] else ["-vf", f"scale=-2:{height}"]
    return [
        *(FFMPEG, "-v", "error", "-nostdin", "-y", "-i", str(source)),
        *(*scaled, *encoding, "-movflags", "+faststart", str(folder / f"ffmpeg-{height}.mp4")),
    ]
