"""The `video` command, as people and scripts use it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from tests.waiting import alive, until
from video.cli import COMMANDS, cli
from video.cli.inputs import expand
from video.models import VideoClipResponse

VIDEO = [sys.executable, "-m", "video"]
ENVIRONMENT = dict(os.environ) | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "100",
    "TERM": "xterm",
}


def run(*words: object, cwd: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command with its output piped."""
    return subprocess.run(
        [*VIDEO, *map(str, words)],
        cwd=cwd, input=text, capture_output=True, text=True, timeout=100, env=ENVIRONMENT,
    )  # fmt: skip


def run_in_terminal(*words: object, cwd: Path) -> tuple[int, str]:
    """The command at a terminal: its exit code, and all that it drew."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(sys.executable, [*VIDEO, *map(str, words)], ENVIRONMENT)
    drawn = b""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 1)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            drawn += data
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), drawn.decode("utf-8", "replace")


@pytest.fixture
def films(samples: list[Path], tmp_path: Path) -> Path:
    """A folder with a good film, a bad one, and something else."""
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(samples[0], folder / "coast.mp4")
    (folder / "deep" / "bad.MP4").write_bytes(b"nothing of the kind" * 100)
    (folder / "notes.txt").write_text("not a film")
    (folder / ".hidden.mp4").write_text("not seen")
    return folder


SHORT = ("--count", "2", "--max-length", "3")


def test_piped_output_is_one_json_object_a_video_in_order(films: Path, tmp_path: Path) -> None:
    done = run("clips", films, *SHORT, "--out", "out", cwd=tmp_path)
    lines = [VideoClipResponse.model_validate_json(line) for line in done.stdout.splitlines()]
    assert [Path(one.source).name for one in lines] == ["coast.mp4", "bad.MP4"]
    assert [one.success for one in lines] == [True, False]
    assert done.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["coast-01.mp4", "coast-02.mp4"]
    assert "bad.MP4" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_all_well_is_exit_code_0_and_silence_on_standard_error(films: Path, tmp_path: Path) -> None:
    done = run("clips", films / "coast.mp4", *SHORT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "clips" / "coast-01.mp4").exists()


def test_debug_shows_the_traceback(films: Path, tmp_path: Path) -> None:
    done = run("clips", films / "deep", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert "Traceback" in json.loads(done.stdout)["error"]["traceback"]


def test_a_terminal_gets_progress_and_a_table(films: Path, tmp_path: Path) -> None:
    code, drawn = run_in_terminal("clips", films, *SHORT, cwd=tmp_path)
    assert code == 1
    assert "coast-01.mp4" in drawn
    assert "videos" in drawn
    assert "failed" in drawn
    assert "process engine" in drawn
    assert "Traceback" not in drawn
    assert '{"source"' not in drawn


def test_json_can_be_asked_for_at_a_terminal(films: Path, tmp_path: Path) -> None:
    _, drawn = run_in_terminal("clips", films / "coast.mp4", *SHORT, "--json", cwd=tmp_path)
    assert '{"source"' in drawn


def test_a_dry_run_shows_the_clips_and_writes_nothing(films: Path, tmp_path: Path) -> None:
    done = run("clips", films / "coast.mp4", *SHORT, "--dry-run", cwd=tmp_path)
    clips = json.loads(done.stdout)["clips"]
    assert len(clips) == 2
    assert clips[0]["end"] > clips[0]["start"]
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_it_says_which_engine_it_takes_and_why(films: Path, tmp_path: Path) -> None:
    done = run("clips", films / "coast.mp4", *SHORT, "--dry-run", "--explain", cwd=tmp_path)
    assert done.returncode == 0
    assert "process, 2 workers: an item that crashes must not take the program along" in done.stderr
    assert "thread" in done.stderr
    assert "order            as they are named" in done.stderr
    other = run("clips", films, *SHORT, "--dry-run", "--explain", "--order", "longest", cwd=tmp_path)
    assert "order            longest first, by the size of the files" in other.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clips"], "INPUT"),
        (["clips", "a.mp4", "--count", "0"], "--count"),
        (["clips", "a.mp4", "--mode", "magic"], "--mode"),
        (["clips", "a.mp4", "--max-length", "-1"], "'--max-length': '-1' is no length of time"),
        (["clips", "a.mp4", "--max-length", "inf"], "'--max-length': 'inf' is no length of time"),
        (["clips", "a.mp4", "--timeout", "10m"], "'--timeout': '10m' is no length of time. Give seconds"),
        (["clips", "a.mp4", "--timeout", "nan"], "'--timeout': 'nan' is no length of time"),
        (["clips", "a.mp4", "--timeout", "0"], "above 0, such as 600"),
        (["encode", "a.mp4", "--timeout", "inf"], "'--timeout': 'inf' is no length of time"),
        (["variants", "a.mp4", "--timeout", "-3"], "'--timeout': '-3' is no length of time"),
        (["clips", "a.mp4", "--min-length", "9", "--max-length", "3"], "min_clip_length (9 s)"),
        (["clips", "a.mp4", "--min-length", "nan"], "'nan' is no length of time"),
        (["clips", "a.mp4", "--backend", "proces"], "process"),
        (["clips", "a.mp4", "--workers", "0"], "--workers"),
        (["clips", "a.mp4", "--timeout", "0"], "--timeout"),
        (["clips", "a.mp4", "--timeout", "5", "--backend", "serial"], "--timeout"),
        (["clips", "@no-such-list.txt"], "no-such-list.txt"),
        (["clips", "."], "no video"),
        (["clips", "a.mp4", "--unknown"], "--unknown"),
        (["nonsense"], "nonsense"),
        (["probe"], "FILE"),
        (["sheet"], "FILE"),
        (["compare", "a.mp4"], "REFERENCE"),
        (["compare", "a.mp4", "b.mp4", "--offset", "-1"], "offset is -1"),
        (["completion", "csh"], "csh"),
        (["calibrate", "--engines", "proces"], "process"),
        (["calibrate", "--engines", ","], "--engines"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(words: list[str], says: str, tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_item_that_failed(tmp_path: Path) -> None:
    done = run("clips", "nowhere.mp4", cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere.mp4" in done.stderr


def test_names_come_from_standard_input_and_lists(films: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"\n{films / 'coast.mp4'}\n")
    done = run("clips", "-", "@list.txt", "--dry-run", cwd=tmp_path, text=f"{films / 'deep' / 'bad.MP4'}\n")
    assert [Path(json.loads(line)["source"]).name for line in done.stdout.splitlines()] == [
        "bad.MP4",
        "coast.mp4",
    ]


def sources(*names: object, leave_out: Path | None = None) -> list[str]:
    return expand(map(str, names), leave_out).sources


def test_inputs_expand_as_documented(films: Path, workplace: Path) -> None:
    (films / "[x].mp4").write_text("")
    (workplace / "@odd.mp4").write_text("")
    every = [str(films / name) for name in ("[x].mp4", "coast.mp4", "deep/bad.MP4")]
    assert sources(films) == every
    assert sources(films / "**" / "*.[mM][pP]4") == every
    assert sources(films / "[x].mp4") == [str(films / "[x].mp4")]
    assert sources("https://example.org/a.mp4?x=[1]", "@odd.mp4") == [
        "https://example.org/a.mp4?x=[1]",
        "@odd.mp4",
    ]
    assert sources(films, leave_out=films / "deep") == every[:2]


def test_a_list_holds_names_folders_and_globs_and_drops_none(films: Path, workplace: Path) -> None:
    (workplace / "list.txt").write_bytes(f"\ufeff#1.mp4\r\n\n{films}\n{films}/c*.mp4\n@no-list\n".encode())
    every = [str(films / "coast.mp4"), str(films / "deep" / "bad.MP4")]
    assert sources("@list.txt") == ["#1.mp4", *every, every[0], "@no-list"]


def test_what_holds_nothing_is_noted_and_costs_nobody_else(films: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("clips", "empty", "no*.mp4", films / "coast.mp4", "--dry-run", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "empty" in done.stderr
    assert "no*.mp4" in done.stderr


def test_a_name_that_is_not_text_costs_only_itself(films: Path, tmp_path: Path) -> None:
    shutil.copy(films / "coast.mp4", os.fsencode(films) + b"/caf\xe9.mp4")
    done = run("clips", films, *SHORT, cwd=tmp_path)
    assert [json.loads(line)["success"] for line in done.stdout.splitlines()] == [False, True, False]
    assert "caf" in done.stderr
    assert "Traceback" not in done.stderr
    code, drawn = run_in_terminal("clips", films, *SHORT, cwd=tmp_path)
    assert code == 1
    assert "Traceback" not in drawn


def test_names_that_look_like_markup_are_shown_as_they_are(films: Path, tmp_path: Path) -> None:
    for name in ("[/red].mp4", "a[b]c.mp4", "take:a:1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
        _, drawn = run_in_terminal("clips", name, cwd=tmp_path)
        assert name in drawn
        assert name in run("probe", name, cwd=tmp_path).stderr
    shutil.copy(films / "coast.mp4", tmp_path / "take:a:2[x].mp4")
    _, drawn = run_in_terminal("clips", "take:a:2[x].mp4", *SHORT, cwd=tmp_path)
    assert "take:a:2[x]-01.mp4" in drawn


def test_clips_never_replace_an_input_and_are_not_cut_again(films: Path, tmp_path: Path) -> None:
    shutil.copy(films / "coast.mp4", tmp_path / "a.mp4")
    shutil.copy(films / "coast.mp4", tmp_path / "a-01.mp4")
    before = (tmp_path / "a-01.mp4").read_bytes()
    done = run("clips", "a.mp4", "a-01.mp4", *SHORT, "--out", ".", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "a-01.mp4").read_bytes() == before
    assert (tmp_path / "a-2-01.mp4").exists()
    run("clips", "films", *SHORT, "--out", "films/clips", cwd=tmp_path)
    again = run("clips", "films", *SHORT, "--out", "films/clips", cwd=tmp_path)
    assert len(again.stdout.splitlines()) == 2


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_an_output_that_cannot_be_written_is_no_traceback(
    redirection: str, films: Path, tmp_path: Path
) -> None:
    command = " ".join(map(str, [*VIDEO, "clips", films / "coast.mp4", "--dry-run", redirection]))
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=60
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in redirection else 0)


def test_a_time_limit_names_the_video(films: Path, tmp_path: Path) -> None:
    done = run("clips", films / "coast.mp4", "--timeout", "0.01", cwd=tmp_path)
    assert done.returncode == 1
    assert "coast.mp4: ran longer" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*.part*")) == []


def test_probe_tells_header_and_measured_values_apart(films: Path, tmp_path: Path) -> None:
    done = run("probe", films / "coast.mp4", films / "deep" / "bad.MP4", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert facts["header"]["duration_seconds_from_header"] == pytest.approx(9, abs=0.1)
    assert facts["measured"]["packets"] == 225
    assert done.returncode == 1
    assert "bad.MP4" in done.stderr
    _, drawn = run_in_terminal("probe", films / "coast.mp4", cwd=tmp_path)
    assert "duration_seconds_from_header" in drawn


def test_compare_measures_and_shows_both(films: Path, tmp_path: Path) -> None:
    film = films / "coast.mp4"
    done = run("compare", film, film, "--sheet", "both.png", "--count", "3", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert (facts["likeness"]["ssim"], facts["likeness"]["psnr"], facts["frames"]) == (1.0, None, 225)
    with Image.open(tmp_path / "both.png") as sheet:
        left, right = (
            np.asarray(sheet.convert("L").crop((x, sheet.height // 2, x + 480, sheet.height)))
            for x in (8, 496)
        )
    assert np.array_equal(left, right)
    code, drawn = run_in_terminal("compare", film, film, cwd=tmp_path)
    assert code == 0
    assert "the same" in drawn
    failed = run("compare", film, films / "deep" / "bad.MP4", cwd=tmp_path)
    assert failed.returncode == 1
    assert "bad.MP4" in failed.stderr


def test_sheet_writes_one_picture_of_each_video(films: Path, tmp_path: Path) -> None:
    done = run("sheet", films, "--out", "sheets", "--count", "4", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.MP4" in done.stderr
    assert done.stdout.split() == ["sheets/coast-sheet.jpg"]
    shutil.copy(films / "coast.mp4", films / "deep" / "coast.mp4")
    shutil.copy(films / "coast.mp4", films / "deep" / "coast-2.mp4")
    again = run("sheet", films, "--out", "more", "--count", "1", cwd=tmp_path)
    assert len(again.stdout.split()) == len(list((tmp_path / "more").iterdir())) == 3
    with Image.open(tmp_path / "sheets" / "coast-sheet.jpg") as sheet:
        assert sheet.width > 4 * 300


def test_a_video_that_is_named_twice_has_one_sheet(films: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(films)
    words = (
        "sheet",
        films / "coast.mp4",
        "way/coast.mp4",
        "films/coast.mp4",
        "--out",
        "sheets",
        "--count",
        "2",
    )
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.split() == ["sheets/coast-sheet.jpg"] * 3
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["coast-sheet.jpg"]


def test_backends_lists_every_engine(tmp_path: Path) -> None:
    names = [json.loads(line)["name"] for line in run("backends", cwd=tmp_path).stdout.splitlines()]
    assert names[:6] == ["serial", "thread", "process", "joblib", "dask", "async"]
    _, drawn = run_in_terminal("backends", cwd=tmp_path)
    assert all(name in drawn for name in names)


def test_backends_says_why_one_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose own package is broken: a real distribution on the import path."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[video.backends]\nbroken = brokenplugin:X\n")
    (tmp_path / "brokenplugin.py").write_text("import no_such_package_here\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    facts = [json.loads(line) for line in run("backends", cwd=tmp_path).stdout.splitlines()]
    assert {one["name"]: one["available"] for one in facts}["broken"] is False
    code, drawn = run_in_terminal("backends", cwd=tmp_path)
    assert code == 0
    assert "not available: " in drawn.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert "needs no_such_package_here" in drawn


def test_calibrate_measures_shows_and_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "VIDEO_CACHE_DIR", str(tmp_path / "cache"))

    def shown() -> dict[str, dict[str, Any]]:
        lines = run("calibrate", "--show", cwd=tmp_path).stdout.splitlines()
        return {fields.pop("name"): fields for fields in map(json.loads, lines)}

    assert {fields["origin"] for fields in shown().values()} == {"assumed"}
    assert not (tmp_path / "cache").exists()
    done = run("calibrate", "--engines", "serial,thread", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["name"] for one in measured] == ["serial", "thread"]
    assert set(measured[0]) == {"name", "start", "call", "item", "byte", "origin"}
    after = shown()
    assert [name for name, fields in after.items() if fields["origin"] == "stored"] == ["serial", "thread"]
    assert after["serial"]["start"] == measured[0]["start"]
    code, drawn = run_in_terminal("calibrate", "--show", cwd=tmp_path)
    assert code == 0
    assert all(word in drawn for word in ("a byte", "process", "stored", "assumed", "constants.json"))
    code, drawn = run_in_terminal("calibrate", "--engines", "process", cwd=tmp_path)
    assert code == 0
    assert "measuring process" in drawn
    assert "measured" in drawn


def test_calibrate_says_what_cannot_start_or_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(ENVIRONMENT, "VIDEO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    done = run("calibrate", "--engines", "serial", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["name"] == "serial"
    assert "VIDEO_CACHE_DIR" in done.stderr
    monkeypatch.setitem(ENVIRONMENT, "VIDEO_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "joblib.py").write_text("raise ImportError('broken', name='joblib')")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    done = run("calibrate", "--engines", "serial,joblib", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["name"] == "serial"
    assert "joblib" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "cache" / "constants.json").exists()


def test_ctrl_c_in_calibrate_leaves_the_old_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "VIDEO_CACHE_DIR", str(tmp_path / "cache"))
    # A plugin's engine that says when it is being measured, and then keeps us waiting.
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "from video.backends.serial import SerialBackend\n"
        "class Slow(SerialBackend):\n"
        " def open(self, workers):\n"
        "  pathlib.Path('begun').touch()\n"
        "  time.sleep(100)\n"
    )
    info = tmp_path / "slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[video.backends]\nslow = slow:Slow\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    assert run("calibrate", "--engines", "serial", cwd=tmp_path).returncode == 0
    before = (tmp_path / "cache" / "constants.json").read_bytes()
    command = subprocess.Popen(
        [*VIDEO, "calibrate", "--engines", "serial,slow"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until((tmp_path / "begun").exists)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (130, "")
    assert "stopped" in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["constants.json"]
    assert (tmp_path / "cache" / "constants.json").read_bytes() == before


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, tmp_path: Path) -> None:
    assert "_VIDEO_COMPLETE" in run("completion", shell, cwd=tmp_path).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_help_and_version(tmp_path: Path) -> None:
    assert "Examples:" in run("--help", cwd=tmp_path).stdout
    assert "Examples:" in run("clips", "--help", cwd=tmp_path).stdout


def many(films: Path, tmp_path: Path) -> list[str]:
    """Two hundred videos: one that came so often by its own name would run once."""
    links = [tmp_path / f"coast-{number}.mp4" for number in range(200)]
    for link in links:
        link.hardlink_to(films / "coast.mp4")
    return list(map(str, links))


def interrupt(films: Path, tmp_path: Path, number: int, *more: str) -> tuple[int, str]:
    """Send a signal in the middle of a long batch; the exit code and what was said."""
    out = tmp_path / "out"
    program = subprocess.Popen(
        [*VIDEO, "clips", *many(films, tmp_path), "--out", str(out), "--count", "1", *more],
        cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: len(list(out.glob("*.mp4"))) > 2 or program.poll() is not None, 60)
        family = children_of(program.pid)
        program.send_signal(number)
        _, said = program.communicate(timeout=30)
    finally:
        program.kill()
        program.communicate()
    until(lambda: not any(alive(pid) for pid in family), 10)
    assert [path.name for path in out.iterdir() if ".part" in path.name] == []
    assert len(list(out.glob("*.mp4"))) < 200
    return program.returncode, said


def children_of(pid: int) -> list[int]:
    try:
        own = [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
               for word in (task / "children").read_text().split()]  # fmt: skip
    except OSError:
        return []
    return own + [inner for child in own for inner in children_of(child)]


@pytest.mark.parametrize("engine", ["process", "thread", "serial"])
def test_ctrl_c_leaves_no_process_and_no_unfinished_file(engine: str, films: Path, tmp_path: Path) -> None:
    code, said = interrupt(films, tmp_path, signal.SIGINT, "--backend", engine)
    assert code == 130
    assert "stopped" in said
    assert "Traceback" not in said


def test_ctrl_c_while_the_program_still_imports_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "video", "clips", "a.mp4"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as program:
        assert program.stderr is not None
        while not program.stderr.readline().endswith(" click.globals\n"):  # so early that much is to come
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        said = [line for line in program.stderr if not line.startswith("import time:")]
    assert (program.returncode, said) == (130, ["stopped\n"])


def test_ctrl_c_that_python_cannot_raise_is_not_told(tmp_path: Path) -> None:
    """As in the callbacks that imports have: the flag is what counts then."""
    program = """if True:
        import os, signal, weakref
        from video import scope
        from video.cli.common import stop_on_signals
        class Thing: pass
        stop_on_signals()
        thing = Thing()
        gone = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
        print(scope.stopping.is_set())
        other = Thing()
        bad = weakref.ref(other, lambda _: 1 / 0)
        del other
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "True\n"
    assert "KeyboardInterrupt" not in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_to_stop_clean_up_as_ctrl_c_does(number: int, films: Path, tmp_path: Path) -> None:
    assert interrupt(films, tmp_path, number)[0] == 130


def test_workers_of_a_killed_program_remove_their_unfinished_files(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = subprocess.Popen(
        [*VIDEO, "clips", *many(films, tmp_path), "--out", str(out), "--count", "1"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: len(list(out.glob("*.mp4"))) > 2, 60)
    family = children_of(program.pid)
    program.kill()
    program.wait(20)
    until(lambda: not any(alive(pid) for pid in family), 10)
    assert [path.name for path in out.iterdir() if ".part" in path.name] == []


def test_a_reader_that_goes_away_is_no_traceback(films: Path, tmp_path: Path) -> None:
    command = " ".join(map(str, [*VIDEO, "clips", *[films / "coast.mp4"] * 6, "--dry-run", "| head -n 1"]))
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_makes_clips_and_a_contact_sheet(tmp_path: Path) -> None:
    from PIL import Image

    code, drawn = run_in_terminal("demo", "--videos", "2", "--count", "2", "--workers", "2", cwd=tmp_path)
    assert code == 0, drawn
    clips = sorted(path.name for path in (tmp_path / "video-demo" / "clips").glob("*.mp4"))
    assert clips == ["city-01.mp4", "city-02.mp4", "coast-01.mp4", "coast-02.mp4"]
    assert all(name in drawn for name in clips)
    assert "speed-up" in drawn
    with Image.open(tmp_path / "video-demo" / "contact-sheet.png") as sheet:
        assert sheet.width > 600
    assert [path.name for path in tmp_path.iterdir()] == ["video-demo"]


def test_the_module_and_the_script_are_one(tmp_path: Path) -> None:
    script: Any = shutil.which("video", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed here, only importable")
    out = subprocess.run([script, "backends"], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert out.stdout == run("backends", cwd=tmp_path).stdout


@pytest.mark.parametrize("command", ["clips", "encode", "variants"])
def test_a_run_in_which_all_fail_leaves_no_folder(command: str, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing of the kind" * 100)
    done = run(command, "bad.mp4", "no.mp4", "--out", "new/out", "--backend", "thread", cwd=tmp_path)
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mp4"]
    run(command, "bad.mp4", "--out", ".", "--backend", "thread", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mp4"]
