"""`video encode`, as people and scripts use it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.media_files import numbers, write_video
from tests.test_cli import ENVIRONMENT, VIDEO, children_of, run, run_in_terminal
from tests.test_encoding import files
from tests.waiting import alive, until


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s, with a key frame every 12 of 25 frames a second."""
    return write_video(tmp_path_factory.mktemp("in") / "film.mp4", frames=250, size=(320, 240))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s."""
    return write_video(tmp_path_factory.mktemp("in") / "film.mp4", frames=75, size=(320, 240))


def test_piped_output_is_one_json_object_a_video_in_order(short: Path, tmp_path: Path) -> None:
    words = ("--format", "webm", "--quality", "low", "--ladder", "240,60", "--out", "out")
    done = run("encode", short, "no.mp4", *words, cwd=tmp_path)
    assert done.returncode == 1
    first, second = map(json.loads, done.stdout.splitlines())
    assert [one["frames"] for one in first["outputs"]] == [75, 75]
    assert second["error"]["type"] == "SourceNotFound"
    assert files(tmp_path / "out") == {"film-240p.webm", "film-60p.webm"}
    assert "failed: " in done.stderr


def test_a_dry_run_shows_the_files_and_writes_nothing(short: Path, tmp_path: Path) -> None:
    words = ("encode", short, "--ladder", "720,120", "--codec", "av1", "--target", "0.95", "--dry-run",
             "--backend", "serial")  # fmt: skip
    done = run(*words, "--json", cwd=tmp_path)
    shown = [(Path(one["path"]).name, one["width"], one["encoder"], one["setting"])
             for one in json.loads(done.stdout)["outputs"]]  # fmt: skip
    assert shown == [("film-240p.mp4", 320, "libsvtav1", "SSIM 0.95"),
                     ("film-120p.mp4", 160, "libsvtav1", "SSIM 0.95")]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_progress_and_a_table(short: Path, tmp_path: Path) -> None:
    words = ("encode", short, "--quality", "low", "--chunk", "1", "--backend", "serial")
    code, drawn = run_in_terminal(*words, cwd=tmp_path)
    assert code == 0
    assert "film.mp4" in drawn
    assert "320x240" in drawn
    assert "1 file of 1 video in encoded (serial engine)" in drawn
    assert numbers(tmp_path / "encoded" / "film.mp4") == list(range(75))


def test_a_terminal_shows_what_is_noted_of_a_file(short: Path, tmp_path: Path) -> None:
    words = ("encode", short, "--target", "0.9", "--backend", "serial")
    code, drawn = run_in_terminal(*words, cwd=tmp_path)
    assert code == 0
    assert re.search(r"film\.mp4: SSIM 0\.\d+ of samples \(measured", drawn)


def test_a_run_with_resume_goes_on_where_it_stopped(short: Path, tmp_path: Path) -> None:
    words = ("encode", short, "--resume", "--backend", "serial")
    run(*words, "--quality", "low", cwd=tmp_path)
    before = (tmp_path / "encoded" / "film.mp4").stat().st_mtime_ns
    done = run(*words, "--quality", "low", cwd=tmp_path)
    assert done.returncode == 0
    assert "1 video done by an earlier run, nothing left to do" in done.stderr
    assert (tmp_path / "encoded" / "film.mp4").stat().st_mtime_ns == before
    other = run(*words, "--quality", "high", cwd=tmp_path)
    assert other.returncode == 2
    assert "quality" in other.stderr
    assert run(*words, "--quality", "high", "--fork", cwd=tmp_path).returncode == 0


def test_videos_are_encoded_in_the_order_of_their_sizes_where_that_is_asked_for(
    short: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").hardlink_to(short)
    (tmp_path / "b.mp4").write_bytes(short.read_bytes() + bytes(1000))
    run(
        "encode",
        "a.mp4",
        "b.mp4",
        "--quality",
        "low",
        "--backend",
        "serial",
        "--order",
        "longest",
        cwd=tmp_path,
    )
    made = sorted((tmp_path / "encoded").glob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in made] == ["b.mp4", "a.mp4"]


def test_jobs_resume_goes_on_with_what_was_asked_for(short: Path, tmp_path: Path) -> None:
    words = ("encode", "film.mp4", "late.mp4", "--codec", "hevc", "--quality", "low", "--ladder", "120",
             "--resume", "--backend", "serial", "--chunk", "1")  # fmt: skip
    (tmp_path / "film.mp4").hardlink_to(short)
    assert run(*words, cwd=tmp_path).returncode == 1  # the second is not there yet
    assert files(tmp_path / "encoded") == {".video-jobs.sqlite", "film-120p.mp4"}
    (tmp_path / "late.mp4").hardlink_to(short)
    done = run("jobs", "resume", tmp_path / "encoded", cwd="/")
    assert done.returncode == 0, done.stderr
    assert "going on with batch encodings: 2 videos, files in" in done.stderr
    assert "1 video done by an earlier run, 1 left to do" in done.stderr
    assert [json.loads(line)["outputs"][0]["encoder"] for line in done.stdout.splitlines()] == ["libx265"] * 2
    assert files(tmp_path / "encoded") == {".video-jobs.sqlite", "film-120p.mp4", "late-120p.mp4"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--quality", "low", "--target", "0.9"], "give one"),
        (["--format", "webm", "--codec", "h264"], "webm cannot have the codec h264"),
        (
            ["--ladder", "720,x"],
            "'--ladder': '720,x' names no sizes of renditions. Give up to 12 whole",
        ),
        (["--ladder", "2"], "'2' names no sizes of renditions"),
        (["--ladder", "720,99999"], "16 to 8640, such as 1080,720,480"),
        (["--ladder", "720,,360"], "'720,,360' names no sizes of renditions"),
        (["--ladder", ",".join(["100"] * 13)], "Give up to 12"),
        (["--chunk", "0.5"], "'--chunk': '0.5' is no length of time. Give seconds from 1 on"),
        (["--format", "gif", "--codec", "h264"], "has its own"),
        (["--fork"], "--resume"),
        (["--dry-run", "--resume"], "nothing that could be resumed"),
        (["--set", "nonsense=1"], "no setting is called"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(words: list[str], says: str, tmp_path: Path) -> None:
    done = run("encode", "a.mp4", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def start(film: Path, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """A run that takes a while, in pieces; returns once some of them are done."""
    program = subprocess.Popen(
        [*VIDEO, "encode", str(film), "--codec", "hevc", "--chunk", "1", *more],
        cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("encoded/.*.pieces/0*.json")) or program.poll() is not None, 60)
    return program


@pytest.mark.parametrize("engine", ["process", "serial"])
def test_ctrl_c_leaves_no_process_and_nothing_but_whole_pieces(
    engine: str, film: Path, tmp_path: Path
) -> None:
    program = start(film, tmp_path, "--backend", engine)
    family = children_of(program.pid)
    program.send_signal(signal.SIGINT)
    try:
        _, said = program.communicate(timeout=30)
    finally:
        program.kill()
    assert program.returncode == 130
    assert "stopped after 0 videos of 1" in said
    assert "Traceback" not in said
    until(lambda: not any(alive(pid) for pid in family), 10)
    (folder,) = (tmp_path / "encoded").glob(".*.pieces")
    assert files(tmp_path / "encoded") == {folder.name}
    assert [path for path in folder.iterdir() if ".part" in path.name] == []


def test_a_killed_run_goes_on_with_the_pieces_that_are_done(film: Path, tmp_path: Path) -> None:
    program = start(film, tmp_path)
    family = children_of(program.pid)
    program.kill()
    program.communicate(timeout=20)
    until(lambda: not any(alive(pid) for pid in family), 10)
    pieces = list(tmp_path.glob("encoded/.*.pieces/*-0.mp4"))
    kept = tmp_path / "kept"  # a second name for a piece: a new one would be another file
    kept.hardlink_to(pieces[0])
    again = start(film, tmp_path)
    until(
        lambda: len(list(tmp_path.glob("encoded/.*.pieces/0*.json"))) > len(pieces) or again.poll() == 0, 60
    )
    assert not pieces[0].exists() or pieces[0].samefile(kept)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert numbers(tmp_path / "encoded" / "film.mp4") == list(range(250))
    assert files(tmp_path / "encoded") == {"film.mp4"}


def test_ctrl_c_before_anything_is_made_leaves_no_folder(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", frames=500, size=(640, 480))
    program = subprocess.Popen(
        [*VIDEO, "encode", str(film), "--codec", "hevc", "--quality", "high", "--backend", "process"],
        cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("encoded/.*.encoding/*")) or program.poll() is not None, 60)
    program.send_signal(signal.SIGINT)
    try:
        _, said = program.communicate(timeout=30)
    finally:
        program.kill()
    assert program.returncode == 130, said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("words", [("encode", "--target", "nan"), ("variants", "--ssim-floor", "nan")])
def test_no_number_is_refused_as_a_share(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, "a.mp4", cwd=tmp_path)
    assert done.returncode == 2
    assert "'nan' is no number above" in done.stderr
