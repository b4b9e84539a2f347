"""A file comes to its place whole or not at all, and it is said how, and what was written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from video.errors import ConfigError, ItemCancelled, OutputError, SourceError, SourceNotFound
from video.media import place as rooms
from video.media.place import Placed, place

DATA = bytes(range(256)) * 4096


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "süß %d:a.mp4"
    path.write_bytes(DATA)
    os.chmod(path, 0o640)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def closed(monkeypatch: pytest.MonkeyPatch, *ways: str) -> None:
    """These ways are not open here, as between two file systems."""

    def refuse(here: Path, part: Path) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for way in ways:
        monkeypatch.setattr(rooms, f"_{way}", refuse)


def stray(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part*")]


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize(
    ("how", "shut", "way", "written"),
    [
        ("move", [], "rename", 0),
        ("move", ["rename", "reflink"], "copy_file_range", len(DATA)),
        ("link", [], "hardlink", 0),
        ("link", ["hardlink", "reflink", "copy_file_range"], "copy", len(DATA)),
        ("copy", ["reflink"], "copy_file_range", len(DATA)),
        ("copy", ["reflink", "copy_file_range"], "copy", len(DATA)),
    ],
)
def test_each_way_gives_the_same_file_and_says_what_was_written(
    how: Any,
    shut: list[str],
    way: Any,
    written: int,
    there_before: bool,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "copy_file_range" and not hasattr(os, "copy_file_range"):
        pytest.skip("only Linux has it")
    closed(monkeypatch, *shut)
    target = source.parent / "new" / "folder" / "b.mp4"
    if there_before:
        target.parent.mkdir(parents=True)
        target.write_text("old")
    assert place(source, target, how) == Placed(way, written)
    assert target.read_bytes() == DATA
    about = target.stat()
    assert (about.st_mode & 0o777, about.st_mtime) == (0o640, 1_000_000_000)
    assert source.exists() == (how != "move")
    assert stray(source.parent) == []


def test_a_copy_does_not_change_with_its_source(source: Path) -> None:
    target = source.parent / "b.mp4"
    placed = place(source, target)
    assert placed.way in ("reflink", "copy_file_range", "copy")
    with source.open("r+b") as file:
        file.write(b"other")
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("how", ["move", "copy", "link"])
def test_a_file_that_is_there_already_stays_as_it_is(how: Any, source: Path) -> None:
    assert place(source, source, how) == Placed("nothing", 0)
    assert source.read_bytes() == DATA


def test_a_move_onto_another_name_of_the_same_file_takes_the_first_one_away(source: Path) -> None:
    target = source.parent / "b.mp4"
    os.link(source, target)
    place(source, target, "move")
    assert not source.exists()
    assert target.read_bytes() == DATA
    assert stray(source.parent) == []


def test_a_file_that_cannot_be_moved_into_its_place_is_not_lost(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(here: Path, there: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rooms, "_rename", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        place(source, source.parent / "b.mp4", "move")
    assert source.read_bytes() == DATA


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may remove everything")
def test_a_source_that_cannot_be_removed_is_said(source: Path, tmp_path: Path) -> None:
    folder = source.parent / "closed"
    folder.mkdir()
    kept = folder / "a.mp4"
    os.link(source, kept)
    folder.chmod(0o500)
    try:
        with pytest.raises(SourceError, match=r"was copied, but cannot be removed"):
            place(kept, source.parent / "b.mp4", "move")
    finally:
        folder.chmod(0o700)
    assert (source.parent / "b.mp4").read_bytes() == DATA


def test_a_copy_onto_another_name_of_the_same_file_parts_them(source: Path) -> None:
    target = source.parent / "b.mp4"
    os.link(source, target)
    place(source, target)
    assert not os.path.samefile(source, target)
    assert target.read_bytes() == source.read_bytes() == DATA


@pytest.mark.parametrize("how", ["move", "link"])
def test_of_a_symbolic_link_its_file_is_taken(how: Any, source: Path) -> None:
    link, target = source.parent / "link.mp4", source.parent / "b.mp4"
    link.symlink_to(source)
    place(link, target, how)
    assert not target.is_symlink()
    assert target.read_bytes() == DATA
    assert source.read_bytes() == DATA


def test_an_empty_file_has_its_place_too(tmp_path: Path) -> None:
    (tmp_path / "a.srt").touch()
    assert place(tmp_path / "a.srt", tmp_path / "b.srt").bytes_written == 0
    assert (tmp_path / "b.srt").read_bytes() == b""


def test_wrong_arguments_are_said(source: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such file"):
        place(source.parent / "none", source.parent / "b")
    with pytest.raises(SourceError, match="is a folder"):
        place(source.parent, source.parent / "b")
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        place(source, source.parent)
    with pytest.raises(ConfigError, match="how is 'steal'"):
        place(source, source.parent / "b", "steal")  # type: ignore[arg-type]
    assert source.read_bytes() == DATA


def test_what_grows_while_it_is_copied_is_not_taken_for_whole(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(monkeypatch, "reflink", "copy_file_range")
    whole = rooms.shutil.copyfile

    def copyfile(here: Path, part: Path) -> None:
        whole(here, part)
        with source.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(rooms.shutil, "copyfile", copyfile)
    with pytest.raises(SourceError, match="changed while it was copied"):
        place(source, source.parent / "b.mp4")
    assert not (source.parent / "b.mp4").exists()
    assert stray(source.parent) == []


@pytest.mark.parametrize("shut", [["rename", "reflink"], ["rename", "reflink", "copy_file_range"]])
def test_a_source_that_changes_while_it_is_moved_is_kept(
    shut: list[str], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(monkeypatch, *shut)
    whole = rooms._to_disk

    def write_more(path: Path) -> None:
        whole(path)
        with source.open("r+b") as file:
            file.write(b"other")

    monkeypatch.setattr(rooms, "_to_disk", write_more)
    with pytest.raises(SourceError, match="changed while it was copied"):
        place(source, source.parent / "b.mp4", "move")
    assert source.read_bytes()[:5] == b"other"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts, on Linux")
@pytest.mark.parametrize("twin", [False, True])
def test_a_folder_that_is_mounted_twice_loses_nothing(twin: bool, source: Path) -> None:
    folder, again = source.parent / "folder", source.parent / "again"
    folder.mkdir()
    again.mkdir()
    place(source, folder / "a.mp4", "copy")
    if twin:
        os.link(folder / "a.mp4", folder / "twin.mp4")
    try:
        subprocess.run(["mount", "--bind", folder, again], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    try:
        place(folder / "a.mp4", again / "a.mp4", "move")
        assert (folder / "a.mp4").read_bytes() == DATA
    finally:
        subprocess.run(["umount", again], check=True)


@pytest.mark.parametrize("how", ["copy", "move"])
def test_a_link_to_the_source_becomes_a_file_of_its_own(how: Any, source: Path) -> None:
    link = source.parent / "link.mp4"
    link.symlink_to(source)
    place(source, link, how)
    assert not link.is_symlink()
    assert link.read_bytes() == DATA
    assert source.exists() == (how == "copy")


def test_a_copy_that_is_given_up_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "copy_file_range"):
        pytest.skip("only Linux has it")
    closed(monkeypatch, "reflink")

    def stop() -> None:
        raise ItemCancelled("it was given up")

    monkeypatch.setattr(rooms.scope, "check_cancelled", stop)
    with pytest.raises(ItemCancelled):
        place(source, source.parent / "b.mp4")
    assert not (source.parent / "b.mp4").exists()
    assert stray(source.parent) == []


@pytest.mark.skipif(sys.platform != "linux", reason="files are limited as Linux does")
@pytest.mark.parametrize("how", ["copy", "move"])
def test_where_there_is_no_room_nothing_is_left_and_the_source_stays(how: str, source: Path) -> None:
    """A limit on the size of files, which holds for a whole process, stands for a disk that is full."""
    code = (
        "import resource, signal, sys\n"
        "from video.media import place as rooms\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def refuse(here, part): raise OSError(18, 'another file system')\n"
        "rooms._rename = rooms._reflink = refuse\n"
        "rooms.place(*sys.argv[1:])\n"
    )
    target = source.parent / "b.mp4"
    ran = subprocess.run(
        [sys.executable, "-c", code, source, target, how], capture_output=True, text=True, timeout=60
    )
    assert "OutputError" in ran.stderr
    assert "larger than the file system allows" in ran.stderr
    assert not target.exists()
    assert stray(source.parent) == []
    assert source.read_bytes() == DATA
