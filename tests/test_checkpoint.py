"""Promises of the checkpoint: what is done is not run again, whatever ended the run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.waiting import alive, until
from video.config import ParallelConfig
from video.errors import CheckpointMismatch, ConfigError, ItemCancelled, OutputError, StoreError
from video.outcome import Outcome
from video.policies import _checkpoint_store as store
from video.policies._sqlite import filesystem
from video.policies.base import Job
from video.policies.checkpoint import BatchInfo, Checkpoint, batch_info, forget, list_batches
from video.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
NEVER = 3600.0
"""An interval after which nothing commits by itself within a test."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def jobs(*items: Any) -> list[Job]:
    return [Job(index, item) for index, item in enumerate(items)]


def good(index: int, value: Any = None) -> Outcome[Any]:
    return Outcome(index, value, None)


def bad(index: int, error: BaseException | None = None) -> Outcome[Any]:
    return Outcome(index, None, error or ValueError("no"))


def run(checkpoint: Checkpoint, items: list[Any], task: Callable[[Any], Any] = str) -> list[Any]:
    """A batch as a runner would do it, in chunks of three: the values, in order."""
    outcomes: dict[int, Outcome[Any]] = {}
    every = jobs(*items)
    for first in range(0, len(every), 3):
        chunk = every[first : first + 3]
        known = checkpoint.begin_many(chunk)
        ran = {job.index: good(job.index, task(job.item)) for job in chunk if job.index not in known}
        ran |= checkpoint.done_many(ran.items())
        checkpoint.flush()
        outcomes |= known | ran
    return [outcomes[index].unwrap() for index in range(len(every))]


def crash(checkpoint: Checkpoint) -> None:
    """What a kill leaves: nothing more is committed."""
    checkpoint._closed.set()
    if checkpoint._thread is not None:
        checkpoint._thread.join()
    checkpoint._store.close()


def never(item: Any) -> Any:
    raise AssertionError(f"{item!r} ran again")


def program(*args: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.resumed", *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


# Resuming


def test_a_finished_batch_runs_nothing_again_and_gives_the_same_values(path: Path) -> None:
    items = ["a", "b", "c", "d"]
    with Checkpoint(path) as first:
        values = run(first, items, str.upper)
        assert (first.resumed, first.begun, first.answered) == (False, 4, 0)
    with Checkpoint(path) as second:
        assert run(second, items, never) == values == ["A", "B", "C", "D"]
        assert (second.resumed, second.begun, second.answered) == (True, 0, 4)


def test_a_remembered_outcome_says_where_it_comes_from_and_what_it_took(path: Path) -> None:
    with Checkpoint(path) as first:
        first.begin_many(jobs("a"))
        first.done_many([(0, Outcome(0, [1, None, "ü"], None, attempts=3, seconds=1.5))])
    with Checkpoint(path) as second:
        answers = second.begin_many([Job(7, "b"), Job(8, "a")])
    assert answers == {8: Outcome(8, [1, None, "ü"], None, attempts=3, seconds=1.5, origin="checkpoint")}


def test_a_reordered_and_extended_input_runs_only_what_is_new(path: Path) -> None:
    ran: list[str] = []
    with Checkpoint(path) as first:
        run(first, ["a", "b", "c"], str.upper)
    with Checkpoint(path) as second:
        assert run(second, ["c", "x", "a", "b"], lambda item: ran.append(item) or "X") == ["C", "X", "A", "B"]
    assert ran == ["x"]


def test_equal_items_are_told_apart_by_counting_them(path: Path) -> None:
    with Checkpoint(path) as first:
        first.begin_many(jobs("a", "a", "a"))
        first.done_many([(0, good(0, "first")), (2, good(2, "third"))])
    with Checkpoint(path) as second:
        answers = second.begin_many(jobs("a", "a", "a", "a"))
    assert {index: outcome.value for index, outcome in answers.items()} == {0: "first", 2: "third"}


def test_a_failed_item_runs_again_and_counts_as_the_same_item_when_tried_again(path: Path) -> None:
    job = Job(0, "a")
    with Checkpoint(path) as first:
        assert first.admit(job, 0.0) is None
        assert first.settle(job, bad(0), 0.0) is None
        first.flush()
        assert batch_info(path, "default").failures == ((0, "ValueError: no"),)
        assert first.admit(job, 0.0) is None
        assert first.settle(job, bad(0), 0.0) is None
    with Checkpoint(path) as second:
        assert second.admit(job, 0.0) is None
        assert batch_info(path, "default").begun == 1
        second.settle(job, good(0, "fine"), 0.0)
    info = batch_info(path, "default")
    assert (info.done, info.failed, info.begun, info.failures) == (1, 0, 0, ())


def test_the_intent_is_in_the_file_before_the_item_runs_and_the_result_when_flush_returns(path: Path) -> None:
    with Checkpoint(path, interval=NEVER) as checkpoint:
        checkpoint.begin_many(jobs("a", "b"))
        assert batch_info(path, "default").begun == 2
        checkpoint.done_many([(0, good(0))])
        assert batch_info(path, "default").done == 0
        checkpoint.flush()
        assert batch_info(path, "default").done == 1


def test_a_result_is_committed_within_the_interval_or_with_a_thousand_others(path: Path) -> None:
    with Checkpoint(path, interval=0.01) as checkpoint:
        checkpoint.begin_many(jobs("a"))
        checkpoint.done_many([(0, good(0))])
        until(lambda: batch_info(path, "default").done == 1)
    with Checkpoint(path, batch="large", interval=NEVER) as checkpoint:
        checkpoint.begin_many(jobs(*range(1000)))
        checkpoint.done_many((index, good(index)) for index in range(1000))
        assert batch_info(path, "large").done == 1000


def test_an_attempt_that_was_withdrawn_leaves_no_trace(path: Path) -> None:
    job = Job(0, "a")
    with Checkpoint(path) as checkpoint:
        checkpoint.admit(job, 0.0)
        checkpoint.withdraw(job, 0.0)
        checkpoint.flush()
        assert batch_info(path, "default").begun == 0
        checkpoint.admit(job, 0.0)
        checkpoint.settle(job, good(0, 1), 0.0)
    with Checkpoint(path) as checkpoint:
        assert checkpoint.begin_many([job])[0].value == 1


def test_a_cancelled_item_is_no_failure_but_shows_as_begun_if_it_ran(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        checkpoint.begin_many(jobs("ran", "waited"))
        gone = ItemCancelled("left")
        checkpoint.done_many(
            [(0, Outcome(0, None, gone, attempts=1)), (1, Outcome(1, None, gone, attempts=0))]
        )
    info = batch_info(path, "default")
    assert (info.begun, info.failed, info.done) == (1, 0, 0)


def test_an_item_ends_once_and_only_after_it_has_begun(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        checkpoint.begin_many(jobs("a", "b"))
        checkpoint.done_many([(0, good(0, "first"))])
        with pytest.raises(ConfigError, match=r"items \[0, 9\]: have not begun, or are done"):
            checkpoint.done_many([(0, good(0, "second")), (1, good(1, "kept")), (9, good(9))])
    with Checkpoint(path) as checkpoint:
        answers = checkpoint.begin_many(jobs("a", "b"))
    assert [answers[0].value, answers[1].value] == ["first", "kept"]


def test_many_threads_may_use_one_checkpoint(path: Path) -> None:
    with Checkpoint(path, interval=0.001) as checkpoint:

        def some(part: int) -> None:
            for index in range(part, 400, 4):
                job = Job(index, index % 50)
                assert checkpoint.admit(job, 0.0) is None
                assert checkpoint.settle(job, good(index, index), 0.0) is None

        threads = [threading.Thread(target=some, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert batch_info(path, "default").done == 400
    with Checkpoint(path) as checkpoint:
        answers = checkpoint.begin_many([Job(index, index % 50) for index in range(400)])
    assert sorted(outcome.value for outcome in answers.values()) == list(range(400))


def test_ten_thousand_items_in_bulk_are_done_once(path: Path) -> None:
    every = jobs(*range(10_000))
    with Checkpoint(path, total=10_000) as checkpoint:
        for first in range(0, 10_000, 1024):
            chunk = every[first : first + 1024]
            assert checkpoint.begin_many(chunk) == {}
            checkpoint.done_many((job.index, good(job.index, {"of": job.index})) for job in chunk)
    assert batch_info(path, "default").complete
    with Checkpoint(path) as checkpoint:
        answers = checkpoint.begin_many(every)
    assert [answers[index].value["of"] for index in range(10_000)] == list(range(10_000))


def test_a_policy_that_is_never_idle_hears_of_every_item(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        assert not checkpoint.idle(0.0)


def test_a_clock_that_jumps_changes_nothing_but_what_is_shown(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (2e9, 1.0, 4e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with Checkpoint(path) as checkpoint:
            run(checkpoint, ["a", "b"], str.upper if now == 2e9 else never)
            info = batch_info(path, "default")
            assert info.created <= info.updated
            assert info.done == 2


# Keys


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Cut:
    source: Path
    spans: tuple[float, ...]
    colour: Colour = Colour.RED
    seen: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass
class Paste:
    source: Path
    spans: tuple[float, ...]
    colour: Colour = Colour.RED


@pytest.mark.parametrize("item", [object(), lambda: 0, [object()]])
def test_an_item_without_a_key_is_a_clear_error_that_asks_for_a_key_function(path: Path, item: Any) -> None:
    with Checkpoint(path) as checkpoint, pytest.raises(ConfigError, match=r"has no key.*Checkpoint\(key="):
        checkpoint.begin_many(jobs(item))
    assert batch_info(path, "default").begun == 0


def test_a_key_function_that_fails_or_gives_no_string_is_a_clear_error(path: Path) -> None:
    for key in (lambda item: 5, lambda item: 1 / 0):
        with (
            Checkpoint(path, key=key) as checkpoint,
            pytest.raises(ConfigError, match="of type str: has no key"),
        ):  # type: ignore[arg-type]
            checkpoint.begin_many(jobs("a"))


@pytest.mark.parametrize(
    "item", ["ä/日本語/🎬.mp4", "e\u0301", "\x00", "'; DROP TABLE items; --", "\udcff", ""]
)
def test_any_text_is_a_key_and_a_value(path: Path, item: str) -> None:
    with Checkpoint(path, batch="日本 'x'", fingerprint={"ä": "ö"}) as first:
        run(first, [item, "other"], lambda one: {one: one})
    with Checkpoint(path, batch="日本 'x'", fingerprint={"ä": "ö"}) as second:
        assert run(second, [item, "other"], never)[0] == {item: item}


# Values


def test_a_value_that_is_no_json_fails_its_item_alone_with_a_clear_error(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        checkpoint.begin_many(jobs("a", "b"))
        instead = checkpoint.done_many([(0, good(0, object())), (1, good(1, "fine"))])
    assert list(instead) == [0]
    error = instead[0].error
    assert isinstance(error, ConfigError)
    assert "item 0: its value, a object, cannot be kept as JSON" in str(error)
    assert "Return plain data, or give `encode` and `decode`" in str(error)
    info = batch_info(path, "default")
    assert (info.done, info.failed) == (1, 1)


def test_encode_and_decode_keep_values_of_any_kind(path: Path) -> None:
    def opened() -> Checkpoint:
        return Checkpoint(path, encode=lambda cut: [str(cut.source), *cut.spans], decode=read)

    def read(data: Any) -> Cut:
        return Cut(Path(data[0]), tuple(data[1:]))

    cut = Cut(Path("a"), (1.0, 2.0))
    with opened() as first:
        run(first, ["x"], lambda _: cut)
    with opened() as second:
        assert run(second, ["x"], never) == [cut]


def test_a_value_that_decode_cannot_read_is_made_again(path: Path) -> None:
    with Checkpoint(path) as first:
        run(first, ["x"])
    with Checkpoint(path, encode=str, decode=lambda data: data["no such"]) as second:
        assert run(second, ["x"], lambda _: "again") == ["again"]


def test_nothing_of_the_file_is_ever_unpickled() -> None:
    for module in ("checkpoint", "_checkpoint_store"):
        assert "pickle" not in (ROOT / f"video/policies/{module}.py").read_text("utf-8")


# Outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def writing(folder: Path, ran: list[str]) -> Callable[[str], list[str]]:
    def write(item: str) -> list[str]:
        ran.append(item)
        path = folder / f"{item}.mp4"
        path.write_bytes(item.encode() * 1000)
        return [str(path)]

    return write


@pytest.mark.parametrize("whole_bytes", [None, 1 << 20, 100])
@pytest.mark.parametrize("harm", ["gone", "longer", "cut off", "other bytes", "a folder"])
def test_an_output_that_is_missing_or_changed_is_made_again(
    folder: Path, path: Path, harm: str, whole_bytes: int | None
) -> None:
    ran: list[str] = []
    task = writing(folder, ran)
    with Checkpoint(path, outputs=list, whole_bytes=whole_bytes) as first:
        run(first, ["a", "b"], task)
    file = folder / "a.mp4"
    if harm == "longer":
        file.write_bytes(file.read_bytes() + b"a")
    elif harm == "other bytes":
        file.write_bytes(b"x" * 1000)
    elif harm == "cut off":
        os.truncate(file, 999)
    else:
        file.unlink()
        if harm == "a folder":
            file.mkdir()
    with Checkpoint(path, outputs=list, whole_bytes=whole_bytes) as second:
        if harm == "a folder":
            assert 0 not in second.begin_many(jobs("a", "b"))
            return
        run(second, ["a", "b"], task)
    assert ran == ["a", "b", "a"]
    with Checkpoint(path, outputs=list, whole_bytes=whole_bytes) as third:
        run(third, ["a", "b"], never)


def test_pieces_of_a_large_output_reach_from_its_first_byte_to_its_last(folder: Path, path: Path) -> None:
    file = folder / "large"
    file.write_bytes(bytes(100_000))
    with Checkpoint(path, outputs=lambda _: [file], whole_bytes=800) as first:
        run(first, ["x"])
    for place in (0, 99, 99_900, 99_999):
        changed = bytearray(100_000)
        changed[place] = 1
        file.write_bytes(changed)
        with Checkpoint(path, outputs=lambda _: [file], whole_bytes=800) as again:
            assert again.begin_many(jobs("x")) == {}
        file.write_bytes(bytes(100_000))
        with Checkpoint(path, outputs=lambda _: [file], whole_bytes=800) as mended:
            run(mended, ["x"])


def test_a_folder_with_its_checkpoint_and_outputs_may_be_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with Checkpoint(old / "jobs.sqlite", outputs=list) as first:
        run(first, ["a"], writing(old, []))
    old.rename(new)
    with Checkpoint(new / "jobs.sqlite", outputs=list) as second:
        run(second, ["a"], never)


def test_an_output_outside_the_base_is_found_where_it_was(tmp_path: Path, folder: Path) -> None:
    with Checkpoint(tmp_path / "other" / "jobs.sqlite", outputs=list) as first:
        run(first, ["a"], writing(folder, []))
    with Checkpoint(tmp_path / "other" / "jobs.sqlite", outputs=list) as second:
        run(second, ["a"], never)


def test_an_item_whose_outputs_are_not_there_has_failed(folder: Path, path: Path) -> None:
    with Checkpoint(path, outputs=lambda value: [folder / value]) as checkpoint:
        job = Job(0, "a")
        checkpoint.admit(job, 0.0)
        verdict = checkpoint.settle(job, good(0, "missing.mp4"), 0.0)
    assert isinstance(verdict, Outcome)
    assert isinstance(verdict.error, OutputError)
    assert "missing.mp4: is named as an output and cannot be read" in str(verdict.error)
    assert batch_info(path, "default").failed == 1


def test_an_outputs_function_that_fails_fails_the_item_alone(path: Path) -> None:
    with Checkpoint(path, outputs=lambda value: value["paths"]) as checkpoint:
        checkpoint.begin_many(jobs("a"))
        instead = checkpoint.done_many([(0, good(0, {}))])
    assert "its outputs cannot be told (KeyError" in str(instead[0].error)


# Batches and settings


def test_other_settings_are_refused_with_what_differs_and_both_ways_out(path: Path) -> None:
    with Checkpoint(path, batch="talks", fingerprint={"count": 3, "format": "mp4", "old": None}) as first:
        run(first, ["a"])
    with pytest.raises(CheckpointMismatch) as caught:
        Checkpoint(path, batch="talks", fingerprint={"count": 5, "format": "mp4", "mode": "copy"})
    words = str(caught.value)
    assert "batch 'talks': was made with other settings" in words
    assert 'count is 5 and was 3; mode is "copy" and was not set; old is not set and was null' in words
    assert "format" not in words
    assert "--fork" in words
    assert "video jobs forget" in words
    with Checkpoint(path, batch="talks", fingerprint={"old": None, "format": "mp4", "count": 3}) as again:
        run(again, ["a"], never)


def test_a_fork_is_a_new_batch_beside_the_old_one_and_is_found_again(path: Path) -> None:
    with Checkpoint(path, batch="talks", fingerprint={"count": 3}) as first:
        run(first, ["a"])
    for task in (str, never):
        with Checkpoint(path, batch="talks", fingerprint={"count": 5}, fork=True) as fork:
            assert fork.batch == "talks-2"
            run(fork, ["a"], task)
    with Checkpoint(path, batch="talks", fingerprint={"count": 7}, fork=True) as another:
        assert another.batch == "talks-3"
    with Checkpoint(path, batch="talks", fingerprint={"count": 3}, fork=True) as same:
        assert same.batch == "talks"
        run(same, ["a"], never)


def test_batches_of_one_file_do_not_know_of_each_other(path: Path) -> None:
    with Checkpoint(path, batch="one", total=2) as one, Checkpoint(path, batch="two") as two:
        run(one, ["a", "b"], str.upper)
        run(two, ["a"], str.title)
        two.begin_many([Job(5, "x"), Job(6, "y")])
        two.done_many([(5, bad(5, ValueError("bad luck")))])
        two.flush()
        one_info, two_info = list_batches(path)
        assert (one_info.batch, one_info.done, one_info.total, one_info.complete) == ("one", 2, 2, True)
        assert (two_info.batch, two_info.done, two_info.failed, two_info.begun) == ("two", 1, 1, 1)
        assert (two_info.total, two_info.complete, two_info.pid) == (None, False, os.getpid())
        assert batch_info(path, "two").failures == ((5, "ValueError: bad luck"),)
        two.set_total(3)
    assert batch_info(path, "two").total == 3
    assert {info.pid for info in list_batches(path)} == {None}


def test_a_forgotten_batch_starts_anew_and_leaves_the_others(path: Path) -> None:
    for name in ("one", "two"):
        with Checkpoint(path, batch=name) as checkpoint:
            run(checkpoint, ["a", "b"])
            with pytest.raises(StoreError, match=rf"is being run by process {os.getpid()}"):
                forget(path, name)
    assert forget(path, "one") == 2
    assert [info.batch for info in list_batches(path)] == ["two"]
    with Checkpoint(path, batch="one", fingerprint={"other": 1}) as checkpoint:
        assert not checkpoint.resumed
    with Checkpoint(path, batch="two") as checkpoint:
        run(checkpoint, ["a", "b"], never)


def test_asking_for_what_is_not_there_says_so_and_makes_nothing(path: Path) -> None:
    for ask in (list_batches, lambda path: batch_info(path, "x"), lambda path: forget(path, "x")):
        with pytest.raises(StoreError, match="there is no such checkpoint"):
            ask(path)
    assert not path.exists()
    Checkpoint(path, batch="here").close()
    for ask in (batch_info, forget):
        with pytest.raises(StoreError, match=r"has no batch 'x'\. It has 'here'"):
            ask(path, "x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": ""}, "batch: is ''"),
        ({"batch": "a\nb"}, "batch: is 'a\\\\nb'"),
        ({"total": -1}, "total: is -1"),
        ({"interval": 0}, "interval: is 0"),
        ({"whole_bytes": -1}, "whole_bytes: is -1"),
        ({"encode": str}, "only encode is given"),
        ({"decode": str}, "only decode is given"),
        ({"fingerprint": {"task": object()}}, "fingerprint: holds what is no plain data"),
    ],
)
def test_a_wrong_argument_is_named_before_a_file_is_made(path: Path, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Checkpoint(path, **settings)
    assert not path.exists()


def test_files_and_folders_of_ours_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with Checkpoint(folder / "jobs.sqlite") as checkpoint:
        run(checkpoint, ["a"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in folder.iterdir()}
        assert len(modes) == 4, "the database, its log, the log's index, the lock"
        assert set(modes.values()) == {0o600}
    assert [entry.name for entry in folder.iterdir()] == ["jobs.sqlite"]


# What can be wrong with a file


def filled(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        run(checkpoint, list(range(300)))


@pytest.mark.parametrize("harm", ["text", "cut off", "a page of zeros", "header only"])
def test_a_damaged_file_is_a_clear_error(path: Path, harm: str) -> None:
    filled(path)
    whole = path.read_bytes()
    assert len(whole) > 5 * 4096
    path.write_bytes(
        {
            "text": b"no database at all" * 100,
            "cut off": whole[: len(whole) // 2 + 17],
            "a page of zeros": whole[:8192] + bytes(8192) + whole[16384:],
            "header only": whole[:100],
        }[harm]
    )
    for use in (Checkpoint, list_batches):
        with pytest.raises(StoreError, match=r"jobs.sqlite: is damaged.*Move it away"):
            use(path)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is a database of another program"):
        Checkpoint(path)
    assert path.read_bytes() == before


def test_a_file_of_a_later_layout_is_refused(path: Path) -> None:
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="layout 99, this one reads 1"):
        Checkpoint(path)


def test_a_path_that_cannot_be_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "jobs.sqlite"):
        with pytest.raises(StoreError, match="cannot be opened"):
            Checkpoint(path)


def test_odd_characters_in_a_path_are_no_options(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory#b %20 'ü.sqlite"
    filled(path)
    assert list_batches(path)[0].done == 300
    assert path.stat().st_size > 0


def test_where_the_log_does_not_work_there_is_a_journal_and_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "filesystem", lambda path: "nfs4")
    with pytest.warns(RuntimeWarning, match=r"write-ahead logging does not work on its file system \(nfs4\)"):
        first = Checkpoint(path)
    run(first, ["a", "b"])
    assert not path.with_name("jobs.sqlite-wal").exists()
    crash(first)
    with pytest.warns(RuntimeWarning, match="commit takes longer"), Checkpoint(path) as second:
        run(second, ["a", "b"], never)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are listed on Linux only")
def test_the_kind_of_a_file_system_is_found() -> None:
    assert filesystem(Path("/proc/self/status")) == "proc"


@pytest.mark.parametrize("durable", [False, True])
def test_durable_has_each_commit_wait_for_the_disk(path: Path, durable: bool) -> None:
    with Checkpoint(path, durable=durable) as checkpoint:
        run(checkpoint, ["a"])
        (level,) = checkpoint._store._db.execute("PRAGMA synchronous").fetchone()
    assert level == (2 if durable else 1)


# A full disk


def test_a_full_disk_is_a_clear_error_and_what_waits_is_committed_once_there_is_space(path: Path) -> None:
    checkpoint = Checkpoint(path, interval=NEVER)
    checkpoint.begin_many(jobs(*range(200)))
    db = checkpoint._store._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + 5}")
    committed = 0

    def end_all() -> None:
        nonlocal committed
        for index in range(200):
            assert checkpoint.done_many([(index, good(index, "x" * 1000))]) == {}
            checkpoint.flush()
            committed += 1

    with pytest.raises(
        StoreError, match=r"the disk is full\. Free some space and go on: all that was committed"
    ):
        end_all()
    assert 0 < committed < 200
    assert batch_info(path, "default").done == committed
    with pytest.raises(StoreError, match="the disk is full"):
        checkpoint.begin_many([Job(500 + index, "new" * 3000) for index in range(200)])
    checkpoint.done_many([(committed + 1, good(committed + 1, "y"))])
    db.execute("PRAGMA max_page_count = 100000")
    checkpoint.begin_many([Job(500 + index, "new" * 3000) for index in range(200)])
    checkpoint.close()
    info = batch_info(path, "default")
    assert (info.done, info.begun) == (committed + 2, 400 - committed - 2)


@pytest.mark.parametrize("then", ["go on", "die"])
def test_a_file_that_may_grow_no_further_costs_nothing_that_was_committed(tmp_path: Path, then: str) -> None:
    with ended(program("full", tmp_path)) as process:
        assert process.stdout is not None
        committed = int(process.stdout.readline())
        words = process.stdout.readline()
        _, errors = process.communicate(f"{then}\n", timeout=60)
        assert process.returncode == (0 if then == "go on" else -signal.SIGKILL), errors
    assert "jobs.sqlite: " in words
    assert "all that was committed is kept" in words
    assert 0 < committed < 1000
    assert batch_info(tmp_path / "jobs.sqlite", "default").done == committed + (then == "go on")


def test_a_close_that_cannot_commit_says_so_and_lets_go_of_the_batch(path: Path) -> None:
    checkpoint = Checkpoint(path, interval=NEVER)
    checkpoint.begin_many(jobs("a"))
    db = checkpoint._store._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    checkpoint.done_many([(0, good(0, "x" * 100_000))])
    with pytest.raises(StoreError, match="the disk is full"):
        checkpoint.close()
    checkpoint.close()
    with Checkpoint(path) as second:
        assert second.begin_many(jobs("a")) == {}


# Several processes, and kills


def test_a_second_process_on_the_same_batch_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with ended(program("hold", tmp_path, "mine")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"batch 'mine' is being run by process {process.pid}"):
            Checkpoint(path, batch="mine")
        assert batch_info(path, "mine").pid == process.pid
        Checkpoint(path, batch="another").close()
        process.kill()
        process.wait(20)
        with Checkpoint(path, batch="mine") as checkpoint:
            assert batch_info(path, "mine").begun == 1
            assert checkpoint.begin_many(jobs("held")) == {}


def test_the_batch_of_a_killed_parent_is_free_though_a_child_that_it_forked_lives(path: Path) -> None:
    code = f"""
import os, time
from video.policies.checkpoint import Checkpoint
checkpoint = Checkpoint({str(path)!r})
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stdout is not None
        child = int(process.stdout.readline())
        time.sleep(0.2)  # the child closes its copy as its first act
        process.kill()
        process.wait(20)
        try:
            assert alive(child)
            Checkpoint(path).close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_its_holder_removes_just_now_is_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = store.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        if not calls:
            store._lock_path(path, "mine").unlink()
        calls.append(handle)
        real(handle, how)

    monkeypatch.setattr(store.fcntl, "flock", flock)
    with store.held(path, "mine"):
        assert len(calls) == 2
        with pytest.raises(StoreError, match="is being run"), store.held(path, "mine"):
            pass


def test_a_file_that_another_process_writes_to_just_now_gets_its_log_all_the_same(path: Path) -> None:
    Checkpoint(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN IMMEDIATE")
        later = threading.Timer(0.3, other.execute, ["COMMIT"])
        later.start()
        with Checkpoint(path) as checkpoint:
            (mode,) = checkpoint._store._db.execute("PRAGMA journal_mode").fetchone()
        later.join(20)
    assert mode == "wal"


def test_processes_with_batches_of_their_own_share_a_file_from_its_first_moment(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    with contextlib.ExitStack() as together:
        running = [together.enter_context(ended(program("many", tmp_path, name, 2000))) for name in names]
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert not errors
    infos: list[BatchInfo] = list_batches(tmp_path / "jobs.sqlite")
    assert sorted((info.batch, info.done) for info in infos) == sorted((name, 2000) for name in names)


def traces(folder: Path, name: str) -> list[tuple[int, str, str]]:
    """Run, item, and what else a line says."""
    path = folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), item, more) for number, item, more in ((*line.split(), "")[:3] for line in lines)]


def check_batch(folder: Path, window: int, count: int) -> int:
    """No item lost, no result twice, nothing but what was in flight repeated; how many were."""
    effects, handed = traces(folder, "effects"), traces(folder, "handed")
    results: dict[str, set[str]] = {}
    for _, item, token in handed:
        results.setdefault(item, set()).add(token)
    outputs = {path.name: path.read_text() for path in (folder / "out").iterdir()}
    assert len(outputs) == count, "an output for each item, and no unfinished ones"
    assert results == {item: {token} for item, token in outputs.items()}, "an item had two results"

    first_handed: dict[str, int] = {}
    for number, item, _ in handed:
        first_handed.setdefault(item, number)
    assert not [one for one in effects if one[0] > first_handed[one[1]]], "what was handed out ran again"
    runs = Counter((number, item) for number, item, _ in effects)
    assert max(runs.values()) == 1, "an item ran twice in one run"
    cut_short = Counter(number for number, item, _ in effects if first_handed[item] > number)
    assert all(lost <= window for lost in cut_short.values())
    return len(effects) - count


def test_a_program_killed_at_a_hundred_instants_loses_nothing_and_repeats_only_what_was_in_flight(
    tmp_path: Path,
) -> None:
    from tests import resumed

    seed = random.randrange(1 << 30)
    with ended(program("lab", tmp_path, 100, seed)) as process:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    report = tmp_path / "errors"
    assert not report.exists(), f"seed {seed}: {report.read_text()}"
    batches = sorted(tmp_path.glob("batch-*"))
    kills = sum(len((folder / "killed").read_text().split()) for folder in batches)
    assert kills >= 100
    repeated = 0
    for folder in batches:
        repeated += check_batch(folder, resumed.WINDOW, resumed.ITEMS)
        info = batch_info(folder / "jobs.sqlite", "default")
        assert info.complete
        assert (info.failed, info.begun, info.pid) == (0, 0, None)
    assert 0 < repeated <= kills * resumed.WINDOW


def test_a_finished_program_started_again_does_nothing(tmp_path: Path) -> None:
    for number in (1, 2):
        with ended(program("run", tmp_path, number, 20)) as process:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    assert {number for number, _, _ in traces(tmp_path, "effects")} == {1}
    assert len(traces(tmp_path, "handed")) == 40
    assert check_batch(tmp_path, 0, 20) == 0


# Any order of events


class AnyRuns(RuleBasedStateMachine):
    """Runs over shuffled inputs with equal items in them, ended well or by a crash, against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.sqlite"
        self.written: dict[tuple[str, int], Any] = {}
        """What a crash leaves: ("done", value), ("failed", None) or ("begun", None) of each item."""
        self.queued: dict[tuple[str, int], Any] = {}
        self.results = 0
        self.checkpoint: Checkpoint | None = None

    @initialize()
    def first_run(self) -> None:
        self.start(["a", "b", "a", "c"])

    def start(self, items: list[str]) -> None:
        self.items = items
        self.seen: Counter[str] = Counter()
        self.drawn = 0
        self.running: dict[int, tuple[str, int]] = {}
        self.failed: dict[int, tuple[str, int]] = {}
        self.queued = {}
        self.checkpoint = Checkpoint(self.path, interval=NEVER)

    def commit(self) -> None:
        for slot, state in self.queued.items():
            if state is None:
                self.written.pop(slot, None)
            else:
                self.written[slot] = state
        self.queued = {}

    @precondition(lambda self: self.drawn < len(self.items))
    @rule(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        assert self.checkpoint is not None
        chunk = [Job(index, self.items[index]) for index in range(self.drawn, len(self.items))][:count]
        self.drawn += len(chunk)
        answers = self.checkpoint.begin_many(chunk)
        expected, began = {}, False
        for job in chunk:
            slot = (job.item, self.seen[job.item])
            self.seen[job.item] += 1
            state, value = self.written.get(slot, ("", None))
            if state == "done":
                expected[job.index] = value
            else:
                began = True
                self.running[job.index] = slot
                self.queued[slot] = ("begun", None)
        assert {index: outcome.value for index, outcome in answers.items()} == expected
        if began:
            self.commit()

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def try_again(self, data: st.DataObject) -> None:
        assert self.checkpoint is not None
        index = data.draw(st.sampled_from(sorted(self.failed)))
        self.running[index] = slot = self.failed.pop(index)
        assert self.checkpoint.admit(Job(index, self.items[index]), 0.0) is None
        self.queued[slot] = ("begun", None)
        self.commit()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["done", "done", "failed", "withdrawn", "cancelled"]))
    def end(self, data: st.DataObject, how: str) -> None:
        assert self.checkpoint is not None
        index = data.draw(st.sampled_from(sorted(self.running)))
        slot, job = self.running.pop(index), Job(index, self.items[index])
        self.results += 1
        if how == "done":
            assert self.checkpoint.settle(job, good(index, self.results), 0.0) is None
            self.queued[slot] = ("done", self.results)
            return
        self.failed[index] = slot
        if how == "failed":
            self.checkpoint.settle(job, bad(index), 0.0)
            self.queued[slot] = ("failed", None)
        elif how == "withdrawn":
            self.checkpoint.withdraw(job, 0.0)
            self.queued[slot] = None
        else:
            self.checkpoint.settle(job, bad(index, ItemCancelled("left")), 0.0)

    @rule()
    def flush(self) -> None:
        assert self.checkpoint is not None
        self.checkpoint.flush()
        self.commit()

    @rule(items=st.lists(st.sampled_from("abcd"), max_size=8), crashes=st.booleans())
    def resume(self, items: list[str], crashes: bool) -> None:
        assert self.checkpoint is not None
        if crashes:
            crash(self.checkpoint)
        else:
            self.checkpoint.close()
            self.commit()
        self.start(items)

    @invariant()
    def the_file_holds_what_was_committed(self) -> None:
        if self.checkpoint is None:
            return
        info = batch_info(self.path, "default")
        states = Counter(state for state, _ in self.written.values())
        assert (info.done, info.failed, info.begun) == (states["done"], states["failed"], states["begun"])

    def teardown(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.close()
        self.folder.cleanup()


TestAnyRuns = AnyRuns.TestCase
TestAnyRuns.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_one_that_is_closed_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "jobs.sqlite", batch="mine")
    checkpoint.close()
    for use in (lambda: checkpoint.begin_many(jobs("a")), checkpoint.flush, checkpoint.carried_out):
        with pytest.raises(ConfigError, match=r"mine.*closed.*(.|\n)*open it again"):
            use()
    with Runner(ParallelConfig(backend="serial")) as runner, pytest.raises(ConfigError, match="closed"):
        runner.map(never, ["a"], checkpoint=checkpoint)


def test_the_total_is_known_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with Checkpoint(path) as checkpoint, Runner(ParallelConfig(backend="serial")) as runner:
        outcomes = runner.stream(abs, range(5000), checkpoint=checkpoint)
        next(iter(outcomes))
        outcomes.close()
    (info,) = list_batches(path)
    assert info.total == 5000
    assert not info.complete
