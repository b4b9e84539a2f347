"""What deduplication promises, on real files."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

import video.policies._content as content
from video.dedup import HashBasedDeduplicator, Known, MediaDeduplicationStats
from video.errors import ConfigError, MissingDependency, SourceError
from video.policies._content import content_hash

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ["blake2b", *(["blake3"] if find_spec("blake3") else [])]


@pytest.fixture(params=ALGORITHMS)
def dedup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HashBasedDeduplicator]:
    with HashBasedDeduplicator(tmp_path / "cache" / "dedup.sqlite", algorithm=request.param) as made:
        yield made


def write(path: Path, data: bytes = b"some medium") -> Path:
    path.write_bytes(data)
    return path


# Hashes


def test_a_hash_names_algorithm_size_and_content(tmp_path: Path) -> None:
    data = os.urandom(3 * content.BLOCK + 17)
    path = write(tmp_path / "a", data)
    expected = hashlib.blake2b(data, digest_size=32).hexdigest()
    assert content_hash(path, "blake2b") == f"blake2b:{len(data)}:{expected}"


@pytest.mark.skipif(find_spec("blake3") is None, reason="blake3 is not installed")
def test_blake3_is_blake3_and_is_preferred(tmp_path: Path) -> None:
    # From the test vectors of its authors: the empty input.
    vector = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert content_hash(write(tmp_path / "a", b"")) == f"blake3:0:{vector}"


def test_without_blake3_it_says_so_and_takes_blake2b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    monkeypatch.setattr(content, "find_spec", lambda name: None)
    assert content_hash(write(tmp_path / "a")).startswith("blake2b:")
    with pytest.raises(MissingDependency, match=r"parallel-video\[fast\]"):
        HashBasedDeduplicator(tmp_path / "c", algorithm="blake3")


@pytest.mark.parametrize("size", [0, 1, content.BLOCK - 1, content.BLOCK, content.BLOCK + 1])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_files_of_every_length_are_hashed_whole(tmp_path: Path, size: int, name: str) -> None:
    path = write(tmp_path / "a", b"x" * size)
    digest = content.new_hash(name)
    digest.update(b"x" * size)
    assert content_hash(path, name) == f"{name}:{size}:{digest.hexdigest()}"


def test_a_huge_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 29)
    tracemalloc.start()
    try:
        assert content_hash(path).split(":")[1] == str(1 << 29)
        assert tracemalloc.get_traced_memory()[1] < 4 * content.BLOCK
    finally:
        tracemalloc.stop()


def test_what_is_no_regular_file_has_no_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path / "fifo", tmp_path, tmp_path / "none", Path(os.devnull)):
        with pytest.raises(OSError):
            content_hash(name)


class Meddler:
    """A hash during which something is done to the file that is read."""

    def __init__(self, meddle: Any) -> None:
        self.meddle = meddle

    def update(self, data: Any) -> None:
        self.meddle()

    def hexdigest(self) -> str:
        return "00"


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """In place, with the same size and time of change."""
    before = path.stat().st_mtime_ns
    changed = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed:  # the clock of a file system may tick every 4 ms only
        with path.open("r+b") as file:
            file.write(b"S")
        os.utime(path, ns=(before, before))


def replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("meddle", [grow, rewrite, replace, remove])
def test_a_file_that_changes_while_it_is_read_has_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Any
) -> None:
    path = write(tmp_path / "a")
    done: list[bool] = []

    def once() -> None:
        if not done:
            done.append(True)
            meddle(path)

    monkeypatch.setattr(content, "new_hash", lambda name: Meddler(once))
    with pytest.raises((SourceError, FileNotFoundError)):
        content_hash(path)
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake2b") as dedup:
        done.clear()
        write(path)
        assert dedup.remember(path, value=1) == ""
        assert len(dedup) == 0


# What is known


def test_the_same_content_under_another_name_is_known(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.mp4"), write(tmp_path / "wünsch \U0001f3ac.mp4")
    assert dedup.check(one) is None
    found = dedup.remember(one, value={"clips": 3})
    assert dedup.check(other) == Known("hash", found, str(one), {"clips": 3}, 11)
    assert dedup.stats == MediaDeduplicationStats(0, 1, 1, 11)
    assert dedup.stats.hit_rate() == 0.5


def test_the_same_id_with_another_content_is_not(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    dedup.remember(write(tmp_path / "a"), id="7")
    assert dedup.check(write(tmp_path / "b", b"another one"), id="7") is None


def test_files_that_differ_in_the_last_byte_are_told_apart(
    dedup: HashBasedDeduplicator, tmp_path: Path
) -> None:
    data = b"x" * (2 * content.BLOCK)
    dedup.remember(write(tmp_path / "a", data))
    assert dedup.check(write(tmp_path / "b", data[:-1] + b"y")) is None
    assert dedup.check(write(tmp_path / "c", data + b"x")) is None


def test_empty_files_are_of_one_content(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    dedup.remember(write(tmp_path / "a", b""), value="nothing in it")
    known = dedup.check(write(tmp_path / "b", b""))
    assert known is not None
    assert (known.value, known.size) == ("nothing in it", 0)


def test_before_a_download_the_id_tells(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    found = dedup.remember(path, id=17)
    assert dedup.check(id=17) == Known("id", found, str(path), None, 11)
    assert dedup.check(id="17") is None
    assert dedup.check(id=17, size=12) is None, "the origin says that it is another"
    assert dedup.check(id=17, size=11) is not None
    assert dedup.stats == MediaDeduplicationStats(2, 0, 1, 22)


def test_where_there_is_no_hash_the_id_stands_in(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    assert dedup.remember(tmp_path / "unreadable", id="x", size=5, value="v") == ""
    assert dedup.check(tmp_path / "unreadable", id="x") == Known("id", "", None, "v", 5)
    assert dedup.check(tmp_path / "unreadable") is None
    dedup.remember(id="x", size=5, value="w")
    assert dedup.stats.downloads == 1, "it was known"
    known = dedup.check(id="x")
    assert known is not None
    assert known.value == "w"


def test_a_file_that_may_not_be_read_has_no_hash(
    dedup: HashBasedDeduplicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a")
    dedup.remember(path, id="x")
    path.chmod(0)

    def refuse(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    if os.access(path, os.R_OK):  # the superuser may
        monkeypatch.setattr("video.policies._content.os.open", refuse)
    known = dedup.check(path, id="x")
    assert known is not None
    assert known.by == "id"


def test_an_id_under_which_two_contents_were_seen_tells_nothing_any_more(
    dedup: HashBasedDeduplicator, tmp_path: Path
) -> None:
    one = write(tmp_path / "a")
    dedup.remember(one, id="x")
    dedup.remember(write(tmp_path / "b", b"another one"), id="x")
    assert dedup.check(id="x") is None
    dedup.remember(one, id="x")
    assert dedup.check(id="x") is None
    assert dedup.check(one) is not None, "the content is known all the same"


def test_an_id_that_was_seen_with_two_sizes_tells_nothing_any_more(dedup: HashBasedDeduplicator) -> None:
    dedup.remember(id="x", size=5, value="v")
    dedup.remember(id="x", size=6, value="w")
    assert dedup.check(id="x") is None


def test_an_id_learns_its_content_later(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    dedup.remember(id="x", value="v")
    found = dedup.remember(write(tmp_path / "a"), id="x")
    dedup.remember(id="x", value="w")
    known = dedup.check(id="x")
    assert known is not None
    assert known.content == found


def test_a_remembered_file_that_is_gone_or_changed_is_no_answer(
    dedup: HashBasedDeduplicator, tmp_path: Path
) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    for spoil in (remove, grow):
        write(one)
        dedup.remember(one, id="x")
        spoil(one)
        assert dedup.check(other) is None
        assert dedup.check(id="x") is None
    found = dedup.remember(other, value="v")
    remove(other)
    assert dedup.check(write(one)) == Known("hash", found, None, "v", 11), "a value stands by itself"


def test_what_is_not_said_anew_stays(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    dedup.remember(one, value="v")
    dedup.remember(other, id="x")
    known = dedup.check(id="x")
    assert known is not None
    assert (known.path, known.value) == (str(one), "v")
    assert dedup.stats.downloads == 1


def test_a_file_that_changes_after_its_hash_is_not_taken_for_it(
    dedup: HashBasedDeduplicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a")

    def meddled(*arguments: Any) -> str:
        found = content_hash(*arguments)
        grow(path)
        return found

    monkeypatch.setattr("video.dedup.content_hash", meddled)
    dedup.remember(path)
    monkeypatch.undo()
    assert dedup.check(write(tmp_path / "b")) is None


def test_hashes_of_two_algorithms_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a")
    monkeypatch.setattr(
        content, "import_module", lambda name: hashlib
    )  # stands for blake3, wherever it is not
    monkeypatch.setattr(hashlib, "blake3", hashlib.sha256, raising=False)
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake3") as first:
        first.remember(path, id="x")
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake2b") as second:
        assert second.check(path) is None
        known = second.check(id="x")
        assert known is not None, "an id is an id"
        assert known.content.startswith("blake3:")
        second.remember(path, id="x")
        known = second.check(id="x")
        assert known is not None, "one content under two hashes is no contradiction"
        assert known.content.startswith("blake2b:")


def test_it_survives_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    with HashBasedDeduplicator(tmp_path / "c") as first:
        first.remember(path, id="x", value=[1])
    assert first.check(id="x") is None, "it is closed"
    with HashBasedDeduplicator(tmp_path / "c") as second:
        assert second.check(path) is not None
        assert second.check(id="x") is not None
        assert second.stats == MediaDeduplicationStats(1, 1, 0, 22)
        assert second.stats.hit_rate() == 1.0


def test_it_is_bounded_and_what_is_used_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    with HashBasedDeduplicator(tmp_path / "c", max_cache_size=20) as dedup:
        dedup.remember(path, id="mine")
        for number in range(100):
            dedup.remember(id=number, value=number)
            assert dedup.check(id="mine") is not None
            assert len(dedup) <= 20
        assert dedup.check(id=0) is None
        assert dedup.check(id=99) is not None


def test_a_damaged_file_is_said_once_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").write_bytes(b"no database" * 1000)
    with HashBasedDeduplicator(tmp_path / "c") as dedup:
        path = write(tmp_path / "a")
        assert dedup.check(path, id="x") is None
        assert dedup.remember(path, id="x").startswith(dedup.algorithm)
        assert dedup.check(path, id="x") is None
    assert len(caplog.records) == 1


def test_no_hits_and_no_downloads_are_a_rate_of_zero() -> None:
    assert MediaDeduplicationStats().hit_rate() == 0.0
    assert MediaDeduplicationStats(1, 2, 1, 0).hit_rate() == 0.75


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"path": 5},
        {"id": ""},
        {"id": True},
        {"id": 1.5},
        {"id": "x", "size": -1},
        {"id": "x", "size": 0.5},
    ],
)
def test_wrong_arguments_are_refused(dedup: HashBasedDeduplicator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dedup.check(**wrong)
    with pytest.raises(ConfigError):
        dedup.remember(**wrong)


def test_a_value_that_json_would_change_is_refused(dedup: HashBasedDeduplicator) -> None:
    for value in ((1,), object(), {1: 2}):
        with pytest.raises(ConfigError, match="plain data"):
            dedup.remember(id="x", value=value)


def test_an_unknown_algorithm_and_a_wrong_bound_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="md5"):
        HashBasedDeduplicator(tmp_path / "c", algorithm="md5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_entries"):
        HashBasedDeduplicator(tmp_path / "c", 0)
    assert not (tmp_path / "c").exists()


def test_names_that_are_no_utf8_and_ids_that_are_no_text_will_do(
    dedup: HashBasedDeduplicator, tmp_path: Path
) -> None:
    path = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")))
    dedup.remember(path, id="\udcff")
    known = dedup.check(id="\udcff")
    assert known is not None
    assert known.path == str(path)


class Media(RuleBasedStateMachine):
    """Against a model: a content is known from its first `remember` on as long as a value or a sound file
    stands for it; an id until it was seen with a second content."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.dedup = HashBasedDeduplicator(self.folder / "c", algorithm="blake2b")
        self.values: dict[int, int] = {}
        self.ids: dict[str, set[int]] = {}
        self.count = 0

    def medium(self, number: int) -> Path:
        """A new name each time."""
        self.count += 1
        return write(self.folder / f"{self.count}", b"x" * number)

    @rule(number=st.integers(0, 4), id=st.sampled_from([None, "a", "b"]))
    def remember(self, number: int, id: str | None) -> None:
        self.count += 1
        self.dedup.remember(self.medium(number), id=id, value=self.count)
        self.values[number] = self.count
        if id:
            self.ids.setdefault(id, set()).add(number)

    @rule(number=st.integers(0, 4), id=st.sampled_from([None, "a", "b"]))
    def check(self, number: int, id: str | None) -> None:
        known = self.dedup.check(self.medium(number), id=id)
        assert (known.value if known else None) == self.values.get(number)

    @rule(id=st.sampled_from(["a", "b"]))
    def check_id(self, id: str) -> None:
        seen, known = self.ids.get(id, set()), self.dedup.check(id=id)
        assert (known is not None) == (len(seen) == 1)
        if known is not None:
            assert known.value == self.values[min(seen)]

    @rule()
    def restart(self) -> None:
        self.dedup.close()
        self.dedup = HashBasedDeduplicator(self.folder / "c", algorithm="blake2b")

    def teardown(self) -> None:
        self.dedup.close()
        shutil.rmtree(self.folder)


TestMedia = Media.TestCase
TestMedia.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


# Threads and processes


def test_threads_share_one(dedup: HashBasedDeduplicator, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}", b"x" * (number % 5)) for number in range(40)]
    hits: list[Known] = []

    def work() -> None:
        for path in paths:
            known = dedup.check(path)
            if known is None:
                dedup.remember(path, value=path.stat().st_size)
            else:
                hits.append(known)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(known.value == known.size for known in hits)
    assert len(dedup) == 5
    assert dedup.stats.downloads == 5
    assert dedup.stats.hash_based_hits == len(hits)


WRITER = """
import os, sys
from pathlib import Path
from video.dedup import HashBasedDeduplicator
folder, name, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dedup = HashBasedDeduplicator(folder / "c", algorithm="blake2b")
for number in range(most):
    path = folder / f"{name}-{number}"
    path.write_text(str(number))
    dedup.remember(path, id=f"{name}-{number}", value=number)
    dedup.remember(path, id=f"shared-{number}")
    os.write(1, f"{number}\\n".encode())
    assert dedup.check(id=f"{name}-{number // 2}").value == number // 2
"""


def writer(folder: Path, name: str, most: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(most)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_see_what_each_other_had(tmp_path: Path) -> None:
    both = [writer(tmp_path, name, 100) for name in "ab"]
    for one in both:
        one.communicate(timeout=60)
        assert one.returncode == 0
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake2b") as dedup:
        assert len(dedup) == 100 + 300, "contents, and ids"
        for number in range(100):
            known = [dedup.check(id=f"{name}-{number}") for name in ("a", "b", "shared")]
            assert all(one is not None and one.value == number for one in known)


def test_a_kill_costs_nothing_that_was_remembered(tmp_path: Path) -> None:
    one = writer(tmp_path, "a", 100_000)
    assert one.stdout is not None
    for _ in range(30):
        assert one.stdout.readline()
    one.send_signal(signal.SIGKILL)
    last = [29, *map(int, one.communicate(timeout=30)[0].split("\n")[:-1])][-1]
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake2b") as dedup:
        for number in range(last + 1):
            known = dedup.check(id=f"a-{number}")
            assert known is not None
            assert known.value == number
            assert dedup.check(tmp_path / f"a-{number}") is not None


def test_processes_that_see_an_id_with_two_contents_at_once_agree_that_it_tells_nothing(
    tmp_path: Path,
) -> None:
    code = """
import sys
from pathlib import Path
from video.dedup import HashBasedDeduplicator
folder, name = Path(sys.argv[1]), sys.argv[2]
dedup = HashBasedDeduplicator(folder / "c", algorithm="blake2b")
path = folder / name
path.write_text(name)
for number in range(50):
    dedup.remember(path, id=number)
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in "ab"]
    for one in both:
        assert one.wait(60) == 0
    with HashBasedDeduplicator(tmp_path / "c", algorithm="blake2b") as dedup:
        assert [dedup.check(id=number) for number in range(50)] == [None] * 50
