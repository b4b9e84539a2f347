"""A file put in its place with as few bytes written as the file systems allow.

    move   rename ---- else ---> reflink -> copy_file_range -> copy, then the source is removed
    copy                         reflink -> copy_file_range -> copy
    link   hardlink -- else ---> reflink -> copy_file_range -> copy

A reflink shares the data until one of both files is changed (Btrfs, XFS); no byte is written, and yet the
files are independent. A hardlink is the same file under two names.

Sources: rename(2), link(2), ioctl_ficlone(2), copy_file_range(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from video import scope
from video.errors import ConfigError, SourceError
from video.media.base import check_file, output_errors, writing

How = Literal["move", "copy", "link"]
Way = Literal["nothing", "rename", "hardlink", "reflink", "copy_file_range", "copy"]

FICLONE = 0x40049409
"""The request of `ioctl_ficlone`, from linux/fs.h."""
PIECE_BYTES = 64 << 20
"""Between two looks whether to stop."""
_NOT_HERE = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.EBADF,
    errno.ETXTBSY,
}
"""That a way is not open here; whether the target can be written at all, the last one says."""


class Placed(NamedTuple):
    """How a file came to its place."""

    way: Way
    """"nothing": it was there already."""
    bytes_written: int
    """That were really copied, not linked or shared."""


def place(source: str | os.PathLike[str], target: str | os.PathLike[str], how: How = "copy") -> Placed:
    """Have `source` stand at `target`, whole or not at all; what was there is replaced. Missing folders are
    made. Mode and times of change go along, whichever way it takes.

    :param how: "move": the source is gone afterwards; "copy": both can be changed without harm to the other;
        "link": it may be the same file, for files that nobody changes.
    :raises ConfigError: for another `how`.
    :raises SourceNotFound: there is no such file.
    :raises SourceError: it cannot be read, is a folder or a device, or changed meanwhile; then it is kept.
    :raises OutputError: the target cannot be written: a full disk, no permission, a folder in the way.
    :raises ItemCancelled: this item has been given up.

    >>> place("no such file", "x")
    Traceback (most recent call last):
    video.errors.SourceNotFound: no such file: no such file. Check the path.
    """
    if how not in ("move", "copy", "link"):
        raise ConfigError(f"how is {how!r}", cure='It takes "move", "copy" or "link".')
    here, there = Path(source), Path(target)
    check_file(os.fspath(source), empty=True)
    same = _same(here, there)
    one_name = not there.is_symlink() and os.path.realpath(here) == os.path.realpath(there)
    if same and (how == "link" or one_name):
        return Placed("nothing", 0)
    if how == "move" and not here.is_symlink():  # the link would be moved, not the file
        twins = same and os.stat(here).st_nlink > 1
        way = _joined(here, there) if twins else _renamed(here, there)
        if way is not None:
            return Placed(way, 0)
    before = _state(here)
    with writing(there) as part:
        placed = _place(here, part, link=how == "link")
        if how == "move":
            _to_disk(part)  # it is to be the only one
    if how == "move":
        _remove(here, there, before)
    return placed


def _same(here: Path, there: Path) -> bool:
    """Two names of one file."""
    try:
        return os.path.samefile(here, there)
    except OSError:
        return False


def _renamed(here: Path, there: Path) -> Way | None:
    """Not by way of an unfinished file, which is removed where anything goes wrong: it is the only one."""
    with output_errors(there):
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            _rename(here, there)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            return None
    return "rename"


def _joined(here: Path, there: Path) -> Way:
    """Of two names of one file, the first goes: to rename it to the other does nothing. Unless they are one
    name by two ways, as of a folder that is mounted twice: then that would be the file's end."""
    aside = here.with_name(f".{secrets.token_hex(8)}{here.suffix}")
    with output_errors(here):
        os.rename(here, aside)
        if _same(aside, there):
            os.unlink(aside)
            return "rename"
        os.rename(aside, here)
    return "nothing"


def _remove(here: Path, there: Path, before: tuple[int, ...]) -> None:
    """Take a source away that has been copied, if it is still what it was."""
    try:
        if _state(here) == before:
            os.unlink(here)
            return
    except OSError as error:
        cause = f"was copied, but cannot be removed ({error.strerror})"
        cure = "Check the permissions of its folder."
        raise SourceError(cause, subject=str(here), cure=cure) from error
    if not _same(here, there):  # of a folder that is mounted twice, it may be the copy by now
        raise _changed(here)


def _state(path: Path) -> tuple[int, ...]:
    name, file = os.lstat(path), os.stat(path)
    return name.st_dev, name.st_ino, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _to_disk(path: Path) -> None:
    for one, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))):
        file = os.open(one, flags)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _rename(here: Path, there: Path) -> None:
    os.replace(here, there)


def _place(here: Path, part: Path, *, link: bool) -> Placed:
    ways: list[tuple[Way, Callable[[Path, Path], int]]] = [
        ("reflink", _reflink),
        ("copy_file_range", _copy_file_range),
    ]
    if link:
        ways.insert(0, ("hardlink", _hardlink))
    for way, go in ways:
        try:
            return Placed(way, go(here, part))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            scope.remove(str(part))
    return Placed("copy", _copy(here, part))


def _hardlink(here: Path, part: Path) -> int:
    os.link(os.path.realpath(here), part)
    return 0


def _reflink(here: Path, part: Path) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux has it")
    import fcntl

    with open(here, "rb") as source, open(part, "xb") as target:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    _check(here, part.stat().st_size)
    shutil.copystat(here, part)
    return 0


def _copy_file_range(here: Path, part: Path) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "only Linux has it")
    written = 0
    with open(here, "rb") as source, open(part, "xb") as target:
        size = os.fstat(source.fileno()).st_size
        while count := os.copy_file_range(source.fileno(), target.fileno(), PIECE_BYTES):
            written += count
            scope.check_cancelled()
            scope.report(min(1.0, written / max(1, size)), "copying")
    _check(here, written)
    shutil.copystat(here, part)
    return written


def _copy(here: Path, part: Path) -> int:
    shutil.copyfile(here, part)
    written = part.stat().st_size
    _check(here, written)
    shutil.copystat(here, part)
    return written


def _check(here: Path, written: int) -> None:
    if written != here.stat().st_size:
        raise _changed(here)


def _changed(here: Path) -> SourceError:
    return SourceError(
        "changed while it was copied", subject=str(here), cure="Wait until whoever writes it has finished."
    )
