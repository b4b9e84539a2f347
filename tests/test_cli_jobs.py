"""`video clips --resume` and `video jobs`, as people and scripts use them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import video.cli
from tests.test_cli import ENVIRONMENT, VIDEO, run_in_terminal
from video.media.sample import write_sample
from video.outcome import Outcome
from video.policies.base import Job
from video.policies.checkpoint import Checkpoint, Command, batch_info, list_batches, pending_commands

SHORT = ("--count", "1", "--max-length", "1")
HERE = (*SHORT, "--resume", "--backend", "serial")
"""What is written down is the same on every engine, and this one needs no workers."""


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*words: object, cwd: Path, text: str = "") -> Ended:
    """The command with its output piped, in this process: what it keeps is in its files. Those tests that
    kill it have one of its own."""
    out, err, stdin = io.StringIO(), io.StringIO(), io.TextIOWrapper(io.BytesIO(text.encode()))
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd):
        patch.setattr(sys, "argv", ["video", *map(str, words)])
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(video.cli, "stop_on_signals", lambda: None)
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            video.cli.main()
    assert isinstance(end.value.code, int)
    return Ended(end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos that are cut in no time; read only."""
    folder = tmp_path_factory.mktemp("tiny")
    return [write_sample(folder, index, seconds=3, size=(64, 36)) for index in range(2)]


@pytest.fixture
def films(tiny: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        shutil.copy(tiny[number % 2], folder / f"film-{number}.mp4")
    return folder


def clips(films: Path, out: Path, *more: object) -> Ended:
    return run("clips", films, "--out", out, *HERE, *more, cwd=films.parent)


def killed(*words: object, cwd: Path, after: int = 1) -> list[dict[str, Any]]:
    """The responses that a run had given when SIGKILL ended it."""
    with subprocess.Popen(
        [*VIDEO, *map(str, words), "--workers", "1"],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        assert program.stdout is not None
        first = [json.loads(program.stdout.readline()) for _ in range(after)]
        os.kill(program.pid, signal.SIGKILL)
    return first


def test_a_killed_run_goes_on_where_it_stopped(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    first = killed("clips", films, "--out", out, *SHORT, "--resume", cwd=tmp_path)
    written = {clip["path"]: os.stat(clip["path"]).st_mtime_ns for one in first for clip in one["clips"]}

    ended = clips(films, out)
    assert ended.returncode == 0
    responses = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [Path(one["source"]).name for one in responses] == [f"film-{number}.mp4" for number in range(3)]
    assert [one["clips"] for one in responses[: len(first)]] == [one["clips"] for one in first]
    assert {path: os.stat(path).st_mtime_ns for path in written} == written, "a clip was made twice"
    assert "done by an earlier run" in ended.stderr
    assert not list(out.rglob("*.part*"))


def test_a_finished_run_does_nothing_and_says_so(films: Path, tmp_path: Path) -> None:
    first, again = clips(films, tmp_path / "clips"), clips(films, tmp_path / "clips")
    assert again.stdout == first.stdout
    assert "3 videos done by an earlier run, nothing left to do" in again.stderr


def test_a_clip_that_was_removed_is_made_again(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    gone = out / "film-1-01.mp4"
    size = gone.stat().st_size
    gone.unlink()
    assert "2 videos done by an earlier run, 1 left to do" in clips(films, out).stderr
    assert gone.stat().st_size == size


def test_a_video_that_was_replaced_is_another_one(films: Path, tiny: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    shutil.copy(tiny[1], films / "film-0.mp4")
    assert "2 videos done by an earlier run, 1 left to do" in clips(films, out).stderr


def test_a_video_is_known_whatever_its_clips_had_to_be_called(films: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    twin = shutil.copy(films / "film-1.mp4", other / "film-0.mp4")
    both = run("clips", films / "film-0.mp4", twin, "--out", "clips", *HERE, cwd=tmp_path)
    alone = run("clips", twin, "--out", "clips", *HERE, cwd=tmp_path)
    assert alone.stdout.splitlines() == both.stdout.splitlines()[1:]


def test_other_settings_are_refused_unless_a_new_batch_is_asked_for(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    clips(films, out)
    refused = clips(films, out, "--mode", "copy")
    assert refused.returncode == 2
    assert 'mode is "copy" and was "smart"' in refused.stderr
    assert "--fork" in refused.stderr
    assert clips(films, out, "--mode", "copy", "--fork").returncode == 0
    listed = run("jobs", "list", out, cwd=tmp_path)
    batches = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(one["batch"], one["done"], one["total"]) for one in batches] == [
        ("clips", 3, 3),
        ("clips-2", 3, 3),
    ]


def test_jobs_are_shown_and_forgotten(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    (films / "bad.mp4").write_bytes(b"nothing of the kind" * 100)
    clips(films, out)
    _, drawn = run_in_terminal("jobs", "list", out, cwd=tmp_path)
    assert "to be resumed" in drawn
    shown = json.loads(run("jobs", "show", out, "clips", cwd=tmp_path).stdout)
    assert (shown["done"], shown["failed"]) == (3, 1)
    assert "bad.mp4" in shown["failures"][0][1]
    assert run("jobs", "forget", out, "clips", cwd=tmp_path).returncode == 0
    assert run("jobs", "list", out, cwd=tmp_path).stdout == ""
    assert list(out.glob("*.mp4")), "its files stay"


def test_a_later_run_with_a_namesake_leaves_the_earlier_clips_alone(films: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    namesake = shutil.copy(films / "film-1.mp4", other / "film-0.mp4")
    out = tmp_path / "clips"
    clips(films, out)
    before = {path.name: path.read_bytes() for path in out.glob("*.mp4")}
    added = run("clips", namesake, "--out", out, *HERE, cwd=tmp_path)
    assert Path(json.loads(added.stdout)["clips"][0]["path"]).name == "film-0-2-01.mp4"
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "3 videos done by an earlier run, nothing left to do" in clips(films, out).stderr


# Several batches in one file


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A checkpoint with a batch of which one item failed, and one that is done."""
    path = tmp_path / "shared.sqlite"
    for name, items in ("day", 1), ("night", 0):
        with Checkpoint(path, batch=name, total=1 + items) as checkpoint:
            jobs = [Job(index, f"{name} {index}") for index in range(1 + items)]
            checkpoint.begin_many(jobs)
            good = Outcome(0, None, None, 1)
            bad = Outcome(1, None, ValueError("no good"), 1)
            checkpoint.done_many(enumerate([good, bad][: 1 + items]))
    return path


def test_batches_have_names_of_their_own_in_one_file(films: Path, tmp_path: Path) -> None:
    file = tmp_path / "shared.sqlite"
    for name, film in ("day", "film-0"), ("night", "film-1"):
        words = ("clips", films / f"{film}.mp4", "--checkpoint", file, "--batch", name)
        assert run(*words, *HERE, cwd=tmp_path).returncode == 0
    assert [(one.batch, one.done, one.total) for one in list_batches(file)] == [
        ("day", 1, 1),
        ("night", 1, 1),
    ]


def test_a_list_says_how_many_are_done_and_failed_of_how_many(shared: Path) -> None:
    _, drawn = run_in_terminal("jobs", "list", shared, cwd=shared.parent)
    rows = {line.split()[0]: line.split() for line in drawn.splitlines() if line.strip()}
    assert rows["day"][1:5] == ["1", "1", "0", "2"]
    assert rows["night"][1:5] == ["1", "0", "0", "1"]


def test_the_items_of_a_batch_that_was_run_with_several_inputs_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    for items in ("a", "b", "c"), ("d",):
        with Checkpoint(path, total=len(items)) as checkpoint:
            checkpoint.begin_many([Job(index, item) for index, item in enumerate(items)])
            checkpoint.done_many((index, Outcome(index, None, None, 1)) for index in range(len(items)))
    info = batch_info(path, "default")
    assert (info.done, info.known) == (4, 4)


@pytest.mark.parametrize("words", [("night",), ("--batch", "night")])
def test_a_batch_is_named_by_its_place_or_by_an_option(words: tuple[str, ...], shared: Path) -> None:
    shown = run("jobs", "show", shared, *words, cwd=shared.parent)
    assert json.loads(shown.stdout)["batch"] == "night"
    assert run("jobs", "forget", shared, *words, cwd=shared.parent).returncode == 0
    assert [one.batch for one in list_batches(shared)] == ["day"]
    assert json.loads(run("jobs", "show", shared, cwd=shared.parent).stdout)["batch"] == "day"


@pytest.mark.parametrize("words", [("show",), ("forget",), ("forget", "--batch", "dawn"), ("show", "dawn")])
def test_of_several_batches_none_is_guessed(words: tuple[str, ...], shared: Path) -> None:
    command, *more = words
    refused = run("jobs", command, shared, *more, cwd=shared.parent)
    assert refused.returncode == 2
    assert "day" in refused.stderr
    assert "night" in refused.stderr
    assert len(list_batches(shared)) == 2


def test_a_batch_is_not_forgotten_unless_it_is_named(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "jobs.sqlite", total=0):
        pass
    refused = run("jobs", "forget", "jobs.sqlite", cwd=tmp_path)
    assert (refused.returncode, "default" in refused.stderr) == (2, True)
    assert len(list_batches(tmp_path / "jobs.sqlite")) == 1


# Without its command


def test_a_killed_batch_goes_on_from_its_checkpoint_alone_and_from_any_folder(
    films: Path, tmp_path: Path
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    first = killed("clips", "films", "--out", "clips", *HERE, cwd=tmp_path)
    made = {
        clip["path"]: os.stat(tmp_path / clip["path"]).st_mtime_ns for one in first for clip in one["clips"]
    }

    ended = run("jobs", "resume", tmp_path / "clips", cwd=elsewhere)
    assert ended.returncode == 0, ended.stderr
    responses = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["source"] for one in responses] == [str(films / f"film-{number}.mp4") for number in range(3)]
    assert [one["clips"] for one in responses[: len(first)]] == [one["clips"] for one in first]
    assert {path: os.stat(path).st_mtime_ns for path in made} == made, "a clip was made twice"
    assert {Path(clip["path"]).parent for one in responses for clip in one["clips"]} == {tmp_path / "clips"}
    assert not list(elsewhere.iterdir())


def test_names_from_standard_input_are_resumed_too(films: Path, tmp_path: Path) -> None:
    names = "".join(f"films/film-{number}.mp4\n" for number in (0, 1)) + "films/late.mp4\n"
    assert run("clips", "-", *HERE, cwd=tmp_path, text=names).returncode == 1
    shutil.copy(films / "film-0.mp4", films / "late.mp4")
    ended = run("jobs", "resume", "clips", cwd=tmp_path)
    assert ended.returncode == 0
    assert "2 videos done by an earlier run, 1 left to do" in ended.stderr


def test_with_nothing_left_to_do_it_says_so(films: Path, tmp_path: Path) -> None:
    clips(films, tmp_path / "clips")
    ended = run("jobs", "resume", "clips", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "nothing to resume" in ended.stderr
    assert "clips complete" in ended.stderr


def test_of_several_batches_one_is_chosen(films: Path, tmp_path: Path) -> None:
    for more in (), ("--mode", "copy", "--fork"):
        missing = run("clips", films / "late.mp4", *HERE, *more, cwd=tmp_path)
        assert missing.returncode == 1
    shutil.copy(films / "film-0.mp4", films / "late.mp4")
    refused = run("jobs", "resume", "clips", cwd=tmp_path)
    assert refused.returncode == 2
    assert "clips, clips-2" in refused.stderr
    assert "--batch" in refused.stderr
    assert run("jobs", "resume", "clips", "--batch", "clips-2", cwd=tmp_path).returncode == 0
    file = tmp_path / "clips" / ".video-jobs.sqlite"
    assert [batch_info(file, name).complete for name in ("clips", "clips-2")] == [False, True]


def test_all_unfinished_commands_of_a_batch_are_resumed(films: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "film-0"):
        run("clips", films / f"{name}.mp4", *HERE, cwd=tmp_path)
    for name in ("a", "b"):
        shutil.copy(films / "film-1.mp4", films / f"{name}.mp4")
    ended = run("jobs", "resume", "clips", cwd=tmp_path)
    assert ended.returncode == 0
    sources = [Path(json.loads(line)["source"]).name for line in ended.stdout.splitlines()]
    assert sources == ["a.mp4", "b.mp4"]


def test_a_video_that_is_gone_fails_alone(films: Path, tmp_path: Path) -> None:
    (films / "film-2.mp4").rename(films / "gone")
    assert run("clips", films, films / "film-2.mp4", *HERE, cwd=tmp_path).returncode == 1
    ended = run("jobs", "resume", "clips", cwd=tmp_path)
    assert ended.returncode == 1
    assert [json.loads(line)["success"] for line in ended.stdout.splitlines()] == [True] * 2 + [False]
    assert f"{films / 'film-2.mp4'} does not exist" in ended.stderr.replace(": does", " does")


def test_a_folder_that_was_moved_gets_its_own_clips(films: Path, tmp_path: Path) -> None:
    (films / "film-2.mp4").rename(films / "gone")
    assert run("clips", films, films / "film-2.mp4", *HERE, cwd=tmp_path).returncode == 1
    (films / "gone").rename(films / "film-2.mp4")
    (tmp_path / "clips").rename(tmp_path / "moved")
    assert run("jobs", "resume", "moved", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "clips").exists()
    assert {path.name[:6] for path in (tmp_path / "moved").glob("*.mp4")} == {
        f"film-{number}" for number in range(3)
    }


def test_what_a_program_ran_only_that_program_resumes(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "jobs.sqlite", batch="mine", total=3):
        pass
    ended = run("jobs", "resume", "jobs.sqlite", cwd=tmp_path)
    assert ended.returncode == 2
    assert "checkpoint=Checkpoint(" in ended.stderr
    assert "mine" in ended.stderr


GOOD = {
    "sources": ["x.mp4"], "out": ".", "count": 1, "max_length": 3.0, "mode": "exact", "format": "mp4",
    "retries": 0, "backend": "auto",
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"out": "../outside"},
        {"format": "../../x.mp4"},
        {"sources": [["rm"]]},
        {"sources": []},
        {"more": 1},
        {"count": 10**9},
    ],
)
def test_a_checkpoint_can_have_nothing_run_that_is_no_batch_of_clips_in_its_folder(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    (home := tmp_path / "home").mkdir()
    with Checkpoint(home / "jobs.sqlite", batch="clips", command=Command("clips", GOOD | wrong)):
        pass
    ended = run("jobs", "resume", "home/jobs.sqlite", cwd=tmp_path)
    assert ended.returncode == 2
    assert "holds a command that cannot be run" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_checkpoint_that_others_can_write_is_not_obeyed(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "jobs.sqlite", batch="clips", command=Command("clips", GOOD)):
        pass
    (tmp_path / "jobs.sqlite").chmod(0o666)
    ended = run("jobs", "resume", "jobs.sqlite", cwd=tmp_path)
    assert ended.returncode == 2
    assert "another user" in ended.stderr


def test_a_command_is_kept_until_it_is_carried_out_and_forgotten_with_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    for name in ("a", "b", "a"):
        Checkpoint(path, total=0, command=Command(name, {"of": name})).close()
    assert [one.name for one in pending_commands(path, "default")] == ["b", "a"]
    with Checkpoint(path, total=0, command=Command("b", {})) as checkpoint:
        checkpoint.carried_out()
    assert [one.arguments for one in pending_commands(path, "default")] == [{"of": "a"}]
    assert not batch_info(path, "default").complete
    assert run("jobs", "forget", path, "default", cwd=tmp_path).returncode == 0
    Checkpoint(path, total=0).close()
    assert pending_commands(path, "default") == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clips", "x.mp4", "--resume", "--dry-run"], "writes nothing"),
        (["jobs", "resume", "."], "no such checkpoint"),
        (["clips", "x.mp4", "--fork"], "--resume"),
        (["jobs", "list", "."], "no such checkpoint"),
        (["jobs", "show", "missing", "clips"], "missing"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(words: list[str], says: str, tmp_path: Path) -> None:
    ended = run(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert says in ended.stderr


# Settings by name


def test_any_setting_can_be_given_by_its_name(films: Path, tmp_path: Path) -> None:
    """A cache in a file, say: the second run makes nothing anew."""
    words = ("clips", films, "--out", "out", *SHORT, "--backend", "serial")
    kept = ("--set", "enable_caching=true", "--set", "cache_path=answers.sqlite")
    assert run(*words, *kept, cwd=tmp_path).returncode == 0
    assert (tmp_path / "answers.sqlite").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    again = run(*words, *kept, cwd=tmp_path)
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == len(before) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_settings_by_name_are_resumed_with_the_batch(films: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / ".video-jobs.sqlite"
    killed(
        "clips", films, "--out", tmp_path / "out", *SHORT, "--resume", "--set", "max_kills=3", cwd=tmp_path
    )
    (command,) = pending_commands(place, "clips")
    assert command.arguments["more"] == {"max_kills": "3"}
    assert run("jobs", "resume", place, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("rate_limit_rmp=60", "rate_limit_rpm"),
        ("rate_limit_rpm=many", "rate_limit_rpm"),
        ("rate_limit_rpm", "NAME=VALUE"),
        ("backend=serial", "an option of its own"),
        ("preload=os", "--set takes no preload"),
    ],
)
def test_a_wrong_setting_is_wrong_usage(words: str, says: str, films: Path, tmp_path: Path) -> None:
    done = run("clips", films, "--set", words, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
