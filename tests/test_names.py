"""Who owns which name in an output folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from video.errors import OutputError
from video.models import VideoClipRequest
from video.processors._book import BOOK, Book
from video.processors._names import Names


def name(book: Book, stem: str, source: str, wants: str = "", **how: Any) -> str:
    free = {"clash": lambda name: False, "there": lambda name: False}
    return book.name(stem, source, wants, **(free | how))


def run(folder: Path, *sources: str, stem: str = "a") -> list[str]:
    """The names that one batch gives to these sources."""
    book = Book(folder)
    return [name(book, stem, source) for source in sources]


def test_every_later_batch_gives_a_source_the_name_that_it_had(tmp_path: Path) -> None:
    assert run(tmp_path, "x", "y", "z") == ["a", "a-2", "a-3"]
    assert run(tmp_path, "z", "y") == ["a-3", "a-2"]
    assert run(tmp_path, "new", "x") == ["a-4", "a"]


def test_a_source_of_which_the_same_is_wanted_twice_keeps_its_name(tmp_path: Path) -> None:
    assert run(tmp_path, "x", "y", "x", "z") == ["a", "a-2", "a", "a-3"]
    assert run(tmp_path, "new", "x", "x") == ["a-4", "a", "a"]


def test_a_source_that_comes_twice_keeps_a_name_for_each_thing_that_is_wanted_of_it(tmp_path: Path) -> None:
    first, again = Book(tmp_path), Book(tmp_path)
    assert [name(first, "a", "x", "short"), name(first, "a", "x", "long")] == ["a", "a-2"]
    assert [name(again, "a", "x", "long"), name(again, "a", "x", "short")] == ["a-2", "a"]
    assert name(Book(tmp_path), "a", "x", "something else") == "a"


def test_names_are_told_apart_as_by_a_file_system_that_is_blind_to_case(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert [name(book, "a", "x"), name(book, "A", "y"), name(book, "a-2", "z")] == ["a", "A-2", "a-2-2"]
    assert name(book, "e\u0301", "x") == "e\u0301"
    assert name(book, "\u00e9", "y") == "\u00e9-2"


def test_files_that_nobody_owns_are_somebody_elses(tmp_path: Path) -> None:
    there = {"a", "a-2"}
    book = Book(tmp_path)
    assert name(book, "a", "x", there=lambda one: one in there) == "a-3"
    assert name(Book(tmp_path), "a", "x", there=lambda one: True) == "a-3", "these are its own"


def test_a_folder_that_takes_no_files_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Root may write anywhere, but for a file system that is read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() == 0:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a tmpfs is not allowed here")
    else:
        folder.chmod(0o555)
    try:
        with pytest.raises(OutputError, match=r"read-only|permission denied"):
            name(Book(folder), "a", "x")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)


def test_more_files_keep_the_name_unless_somebody_has_put_one_there_since(tmp_path: Path) -> None:
    def given(count: int) -> str:
        request = VideoClipRequest(source=tmp_path / "in" / "a.mp4", output_dir=tmp_path, count=count)
        numbers = range(1, count + 1)
        return Names().stem(request, tmp_path, lambda name: [f"{name}-{n}" for n in numbers], keep=True)

    assert given(2) == "a"
    for number in (1, 2):
        (tmp_path / f"a-{number}").touch()
    assert [given(1), given(3)] == ["a", "a"]
    (tmp_path / "a-4").touch()
    assert [given(4), given(3), given(4)] == ["a-2", "a", "a-2"]


def test_no_name_is_given_that_clashes_even_to_who_had_it(tmp_path: Path) -> None:
    assert name(Book(tmp_path), "a", "x") == "a"
    assert name(Book(tmp_path), "a", "x", clash=lambda one: one == "a") == "a-2"


def test_what_is_in_the_file_is_never_a_path(tmp_path: Path) -> None:
    run(tmp_path, "x")
    owner, wants = json.loads((tmp_path / BOOK).read_text())[1:]
    wild = ["../a", "/etc/a", "a-../../b", "a-999999999999", "a-٣", "a-02", "a-1", "a-x", "..", ""]
    (tmp_path / BOOK).write_text("".join(json.dumps([one, owner, wants]) + "\n" for one in wild))
    assert run(tmp_path, "x") == ["a"]


@pytest.mark.parametrize(
    "junk", [b"\0" * 100, b"[[[[[" * 20_000, b'["a"]\n{}\nnull\n[1, 2, 3]\n', b'["a", "b"', b"\xff\xfe\n"]
)
def test_junk_in_the_file_is_passed_over_and_names_go_on(junk: bytes, tmp_path: Path) -> None:
    assert run(tmp_path, "x", "y") == ["a", "a-2"]
    with (tmp_path / BOOK).open("ab") as file:
        file.write(junk)
    assert run(tmp_path, "z", "y") == ["a-3", "a-2"]
    assert run(tmp_path, "z", "y", "x") == ["a-3", "a-2", "a"]


def test_a_name_that_was_half_written_is_not_given(tmp_path: Path) -> None:
    run(tmp_path, "x", "y")
    whole = (tmp_path / BOOK).read_bytes()
    (tmp_path / BOOK).write_bytes(whole[:-10])
    assert run(tmp_path, "y") == ["a-2"]
    assert run(tmp_path, "x", "z") == ["a", "a-3"]


def test_a_batch_knows_what_it_has_given_when_the_file_is_removed_under_it(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert [name(book, "a", "x"), name(book, "a", "y")] == ["a", "a-2"]
    (tmp_path / BOOK).unlink()
    assert name(book, "a", "z") == "a-3"


def test_the_addresses_of_sources_are_not_in_the_file(tmp_path: Path) -> None:
    run(tmp_path, "https://user:secret@example.org/a.mp4")
    assert "secret" not in (tmp_path / BOOK).read_text()


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "beneath a file"])
def test_what_is_no_file_of_names_is_refused_with_its_name(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if what == "beneath a file":
        folder.write_text("a file")
    else:
        folder.mkdir()
    if what == "link":
        (folder / BOOK).symlink_to(tmp_path / "elsewhere")
    if what == "pipe":
        os.mkfifo(folder / BOOK)
    if what == "folder":
        (folder / BOOK).mkdir()
    with pytest.raises(OutputError, match=BOOK):
        run(folder, "x")
    assert not (tmp_path / "elsewhere").exists()


PROGRAM = """
import sys
from pathlib import Path
from video.processors._book import Book
folder, who = Path(sys.argv[1]), sys.argv[2]
book = Book(folder)
sys.stdin.readline()
for number in range(100):
    free = lambda name: False
    print(book.name("a", f"{who} {number}", "", clash=free, there=free))
"""


def test_programs_side_by_side_never_give_two_sources_one_name(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    programs = [
        subprocess.Popen(
            [*words, f"program {number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    given = [program.communicate("go\n", timeout=100)[0].split() for program in programs]
    assert [len(names) for names in given] == [100] * 4
    assert len({one for names in given for one in names}) == 400
    again = [(who, number) for who in range(4) for number in range(100)]
    random.Random(1).shuffle(again)
    assert run(tmp_path, *(f"program {who} {number}" for who, number in again)) == [
        given[who][number] for who, number in again
    ]


def test_where_nothing_can_be_locked_the_first_line_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = Book(tmp_path), Book(tmp_path)
    run(tmp_path, "x")
    real = os.write

    def late(file: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", real)
        assert name(other, "a", "quick") == "a-2"
        return real(file, data)

    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    monkeypatch.setattr(os, "write", late)
    assert name(mine, "a", "slow") == "a-3"
    assert run(tmp_path, "slow", "quick", "x") == ["a-3", "a-2", "a"]


def used(folder: Path, *sources: str, made: Any = ()) -> list[str]:
    """The names that one batch gives, which then makes a file of some of them, and ends."""
    book = Book(folder)
    given = [name(book, "a", source, endings=["-1.mp4", "-*p.mp4", ""]) for source in sources]
    for file in made:
        (folder / file).touch()
    book.tidy()
    return given


def test_a_batch_that_makes_nothing_leaves_nothing(tmp_path: Path) -> None:
    used(tmp_path / "deep" / "er", "x", "y")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").touch()
    used(tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("file", ["a", "a-1.mp4", "A-360p.mp4", ".a-12ab.pieces"])
def test_names_stay_where_something_has_come_of_one_or_may_still(file: str, tmp_path: Path) -> None:
    used(tmp_path / "out", "x", "y", made=[file])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {BOOK, file}
    assert used(tmp_path / "out", "y", "z") == ["a-2", "a-3"]


def test_names_of_others_stay(tmp_path: Path) -> None:
    other = Book(tmp_path)
    assert name(other, "a", "x") == "a"
    assert used(tmp_path, "y") == ["a-2"]
    assert run(tmp_path, "x", "y") == ["a", "a-2"]


def test_who_has_opened_a_file_that_is_taken_away_writes_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "out", os.open
    book = Book(folder)
    name(book, "a", "x")

    def late(*words: Any, **more: Any) -> int:
        file = real(*words, **more)
        if folder.exists() and more == {} and words[1] & os.O_CREAT:
            monkeypatch.setattr(os, "open", real)
            book.tidy()
            assert not folder.exists()
        return file

    monkeypatch.setattr(os, "open", late)
    assert run(folder, "y") == ["a"]
    assert run(folder, "z", "y") == ["a-2", "a"]


def test_a_folder_that_is_taken_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "out", os.open
    book = Book(folder)
    name(book, "a", "x")

    def late(*words: Any, **more: Any) -> int:
        monkeypatch.setattr(os, "open", real)
        book.tidy()
        return real(*words, **more)

    monkeypatch.setattr(os, "open", late)
    assert run(folder, "y") == ["a"]
    assert (folder / BOOK).exists()


def test_where_nothing_can_be_locked_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    used(tmp_path, "x")
    assert (tmp_path / BOOK).exists()
