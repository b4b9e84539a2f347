"""`video clips --resume` and `video jobs`, as people and scripts use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.test_cli import ENVIRONMENT, SHORT, VIDEO, run, run_in_terminal


@pytest.fixture
def films(samples: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(6):
        shutil.copy(samples[number % 2], folder / f"film-{number}.mp4")
    return folder


def clips(films: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run("clips", films, "--out", out, *SHORT, "--resume", *more, cwd=films.parent)


def test_a_killed_run_goes_on_where_it_stopped(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    command = [*VIDEO, "clips", str(films), "--out", str(out), *SHORT, "--resume", "--workers", "1"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        first = [json.loads(program.stdout.readline()) for _ in range(2)]
        os.kill(program.pid, signal.SIGKILL)
    written = {clip["path"]: os.stat(clip["path"]).st_mtime_ns for one in first for clip in one["clips"]}

    ended = clips(films, out)
    assert ended.returncode == 0
    responses = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [Path(one["source"]).name for one in responses] == [f"film-{number}.mp4" for number in range(6)]
    assert [one["clips"] for one in responses[:2]] == [one["clips"] for one in first]
    assert {path: os.stat(path).st_mtime_ns for path in written} == written, "a clip was made twice"
    assert "done by an earlier run" in ended.stderr
    assert not list(out.rglob("*.part*"))


def test_a_finished_run_does_nothing_and_says_so(films: Path, tmp_path: Path) -> None:
    first, again = clips(films, tmp_path / "clips"), clips(films, tmp_path / "clips")
    assert again.stdout == first.stdout
    assert "6 videos done by an earlier run, nothing left to do" in again.stderr


def test_a_clip_that_was_removed_is_made_again(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    gone = out / "film-3-01.mp4"
    size = gone.stat().st_size
    gone.unlink()
    assert "5 videos done by an earlier run, 1 left to do" in clips(films, out).stderr
    assert gone.stat().st_size == size


def test_a_video_that_was_replaced_is_another_one(films: Path, samples: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    shutil.copy(samples[1], films / "film-0.mp4")
    assert "5 videos done by an earlier run, 1 left to do" in clips(films, out).stderr


def test_a_video_is_known_whatever_its_clips_had_to_be_called(films: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    twin = shutil.copy(films / "film-1.mp4", other / "film-0.mp4")
    both = run("clips", films / "film-0.mp4", twin, "--out", "clips", *SHORT, "--resume", cwd=tmp_path)
    alone = run("clips", twin, "--out", "clips", *SHORT, "--resume", cwd=tmp_path)
    assert alone.stdout.splitlines() == both.stdout.splitlines()[1:]


def test_other_settings_are_refused_unless_a_new_batch_is_asked_for(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    refused = clips(films, out, "--mode", "copy")
    assert refused.returncode == 2
    assert 'mode is "copy" and was "exact"' in refused.stderr
    assert "--fork" in refused.stderr
    assert clips(films, out, "--mode", "copy", "--fork").returncode == 0
    listed = run("jobs", "list", out, cwd=tmp_path)
    batches = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(one["batch"], one["done"], one["total"]) for one in batches] == [
        ("clips", 6, 6),
        ("clips-2", 6, 6),
    ]


def test_jobs_are_shown_and_forgotten(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    (films / "bad.mp4").write_bytes(b"nothing of the kind" * 100)
    clips(films, out)
    _, drawn = run_in_terminal("jobs", "list", out, cwd=tmp_path)
    assert "to be resumed" in drawn
    shown = json.loads(run("jobs", "show", out, "clips", cwd=tmp_path).stdout)
    assert (shown["done"], shown["failed"]) == (6, 1)
    assert "bad.mp4" in shown["failures"][0][1]
    assert run("jobs", "forget", out, "clips", cwd=tmp_path).returncode == 0
    assert run("jobs", "list", out, cwd=tmp_path).stdout == ""
    assert list(out.glob("*.mp4")), "its files stay"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clips", "x.mp4", "--resume", "--dry-run"], "writes nothing"),
        (["clips", "x.mp4", "--fork"], "--resume"),
        (["jobs", "list", "."], "no such checkpoint"),
        (["jobs", "show", "missing", "clips"], "missing"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(words: list[str], says: str, tmp_path: Path) -> None:
    ended = run(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert says in ended.stderr
