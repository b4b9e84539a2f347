"""Who owns which name in an output folder, so that namesakes never write over each other's clips.

A folder keeps a small file of names, `.video-names`, to which a line is added for each name that is given:

    ["talk-2", <digest of its source>, <digest of what was wanted of it>, [".mp4"]]

and another one when its source is given it for other files; what comes after the name in them ends the line.
The first whole line of a name says whose it is. So a line that a kill or a full disk has cut short is
nothing, two programs that add to the file at once agree on who was first, and no name ever changes hands.
Nothing in the file is used as a path: names are made from the source's own and only compared with what the
file says.
A batch of which nothing has come takes the file away again where nobody else has written in it, and the
folder where it has made that; so whoever has opened the file looks whether it still is the one in the folder.
Sources are kept as digests, since an address may hold a password.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

BOOK = ".video-names"
LOCK_SECONDS = 2.0
TRIES = 100
"""Of opening it, while other batches that come to nothing take its folder away."""


class Claim(NamedTuple):
    """A name that somebody has."""

    owner: str
    wants: str


class Book:
    """The names of one output folder, as one batch sees and gives them.

    :param keep: write down what is given; False: for a preview, which leaves nothing behind.
    """

    def __init__(self, folder: Path, *, keep: bool = True) -> None:
        self._path = folder / BOOK
        self._keep = keep
        self._claims: dict[str, Claim] = {}
        self._owned: dict[str, list[str]] = {}
        """The names of each owner, as they are compared."""
        self._used: set[str] = set()
        """Given in this batch: a source that comes twice for two things has two names."""
        self._given: dict[tuple[str, Claim], str] = {}
        """The same, for each thing: one that is asked for again is the same, and so is its name."""
        self._endings: dict[tuple[str, str], frozenset[str]] = {}
        """What comes after a name in the files that it was given to its owner for."""
        self._alike: dict[frozenset[str], frozenset[str]] = {}
        """The same, each set once: most names have the same endings."""
        self._numbers: dict[str, int] = {}
        """The last number that was tried for each name."""
        self._file: tuple[int, int] = (0, 0)
        self._read_to = 0
        self._written = 0
        """Bytes of the file that this batch has added."""
        self._made: list[Path] = []
        """Folders that were made for it, the innermost first."""

    def name(
        self,
        stem: str,
        source: str,
        wants: str,
        *,
        clash: Callable[[str], bool],
        there: Callable[[str], bool],
        endings: Collection[str] = (),
        foreign: Callable[[str, Set[str]], bool] | None = None,
    ) -> str:
        """`stem`, or `stem-2` and so on: the name that this source has had before, else the first that is
        free. Blind to case, as some file systems are.

        :param wants: what is wanted of the source. One that comes twice in a batch, for two things, has the
            same name for each of them whatever their order.
        :param clash: whether a name may not be given to anybody.
        :param there: whether there are files of a name. One that nobody owns is then somebody else's.
        :param endings: what comes after the name in the files that are meant to be made.
        :param foreign: whether there are files of a name, but for those with endings that this source had it
            for: somebody has put them there since. None: there are none.
        :raises OutputError: if it cannot be written down.
        """
        mine = Claim(_digest(source), _digest(wants))
        if (given := self._given.get((stem, mine))) is not None:
            return given
        with self._open() as file:
            self._read(file)
            found = self._had(stem, mine, clash, foreign)
            if found is not None and not self._endings_of(found, mine).issuperset(endings):
                self._add(file, found, mine, endings)
            while found is None:
                found = self._next(stem, clash, there)
                self._add(file, found, mine, endings)
                if self._claims[folded(found)].owner != mine.owner:  # another program was quicker
                    found = None
        self._used.add(folded(found))
        self._given[stem, mine] = found
        return found

    def tidy(self) -> None:
        """After the batch: take the file away if all that it says is of this batch, of which nothing stands
        in the folder; and then each folder that was made for it and holds nothing. Never raises."""
        with contextlib.suppress(OSError):
            if self._written and not self._stands():
                file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    # Without a lock another program might be about to write in it.
                    if _lock(file) and self._is(file) and os.fstat(file).st_size == self._written:
                        os.unlink(self._path)
                finally:
                    os.close(file)
            for folder in self._made:
                folder.rmdir()

    def _stands(self) -> bool:
        """Whether something in the folder has a name that this batch has given, or is on its way there."""
        listed = os.listdir(self._path.parent)
        forms = {form for one in listed for form in (folded(one), *numberless(one))}
        hidden = tuple(folded(f".{name[:40]}") for name in self._given.values())
        return any(folded(one).startswith(hidden) for one in listed) or any(
            f"{key}{folded(ending)}" in forms
            for (key, _), endings in self._endings.items()
            if key in self._used
            for ending in endings
        )

    def _endings_of(self, name: str, mine: Claim) -> frozenset[str]:
        return self._endings.get((folded(name), mine.owner), frozenset())

    def _had(
        self,
        stem: str,
        mine: Claim,
        clash: Callable[[str], bool],
        foreign: Callable[[str, Set[str]], bool] | None,
    ) -> str | None:
        """A name that it has and this batch has not used yet; rather one that was given for the same."""
        had: list[tuple[bool, int, str]] = []
        for key in self._owned.get(mine.owner, ()):
            number = key.removeprefix(f"{folded(stem)}-") if key != folded(stem) else "1"
            if not number.isdecimal() or len(number) > 9:
                continue  # of another stem: it is called otherwise now
            name = _numbered(stem, int(number))
            if folded(name) != key or key in self._used or clash(name):
                continue
            other = self._claims[key].wants != mine.wants
            if not (other and foreign is not None and foreign(name, self._endings_of(name, mine))):
                had.append((other, int(number), name))
        return min(had)[2] if had else None

    def _next(self, stem: str, clash: Callable[[str], bool], there: Callable[[str], bool]) -> str:
        while True:
            number = self._numbers[folded(stem)] = self._numbers.get(folded(stem), 0) + 1
            name = _numbered(stem, number)
            if folded(name) not in self._claims and not clash(name) and not there(name):
                return name

    # The file

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """The file, locked; -1 for a preview where there is none.

        :raises OutputError: if it cannot be used.
        """
        file = -1
        try:
            file = self._opened()
            while file >= 0:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(0, "it is no regular file")
                _lock(file)
                if self._is(file):
                    break
                os.close(file)  # another batch has just taken it away
                file = -1
                file = self._opened()
            yield file
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            from video.media.base import output_errors  # with FFmpeg, which who gives names does not need

            with output_errors(self._path):
                raise (error if isinstance(error, OSError) else OSError(0, str(error))) from None
        finally:
            if file >= 0:
                os.close(file)

    def _opened(self) -> int:
        # A link or a pipe of that name could lead anywhere, or hold up the batch.
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if not self._keep:
            with contextlib.suppress(OSError):
                return os.open(self._path, flags | os.O_RDONLY)
            return -1
        for _ in range(TRIES):
            missing = itertools.takewhile(lambda one: not one.exists(), self._path.parents)
            self._made += [one for one in missing if one not in self._made]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return os.open(self._path, flags | os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except FileNotFoundError:
                continue  # another batch has just taken its folder away
            except PermissionError as refused:
                # Another user's: then what is there decides, and nobody's files are replaced either.
                try:
                    file = os.open(self._path, flags | os.O_RDONLY)
                except FileNotFoundError:
                    raise refused from None  # no files can be made in this folder at all
                self._keep = False
                return file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _is(self, file: int) -> bool:
        """Whether the file that is open is the one in the folder."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file), os.lstat(self._path))
        return False

    def _read(self, file: int) -> None:
        """What was added since it was read last."""
        if file < 0:
            return
        about = os.fstat(file)
        if (about.st_dev, about.st_ino) != self._file or about.st_size < self._read_to:
            # Another one stands in its place. What this batch has given stays given: see `_used`.
            self._file, self._read_to, self._written = (about.st_dev, about.st_ino), 0, 0
            self._claims = {key: claim for key, claim in self._claims.items() if key in self._used}
            self._owned = {}
            for key, claim in self._claims.items():
                self._owned.setdefault(claim.owner, []).append(key)
        while more := os.pread(file, max(1 << 16, about.st_size - self._read_to), self._read_to):
            whole = more[: more.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.splitlines():
                self._heed(line)
            if len(whole) < len(more):
                return

    def _heed(self, line: bytes) -> None:
        try:
            name, owner, wants, *more = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return  # cut short, or no such line at all
        if isinstance(name, str) and isinstance(owner, str) and isinstance(wants, str):
            endings = more[0] if more and isinstance(more[0], list) else ()
            self._take(name, Claim(owner, wants), [one for one in endings if isinstance(one, str)])

    def _take(self, name: str, claim: Claim, endings: Iterable[str]) -> None:
        key = folded(name)
        all_ = self._endings_of(name, claim).union(endings)
        self._endings[key, claim.owner] = self._alike.setdefault(all_, all_)
        if key not in self._claims:
            self._claims[key] = claim
            self._owned.setdefault(claim.owner, []).append(key)

    def _add(self, file: int, name: str, mine: Claim, endings: Collection[str]) -> None:
        """Write that a name is taken, and read back who was first."""
        if not self._keep:
            self._take(name, mine, endings)
            return
        line = json.dumps([name, *mine, *([sorted(endings)] if endings else [])]).encode() + b"\n"
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # its last line was cut short
            line = b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written += len(line)
        self._read(file)
        self._take(name, mine, endings)  # where it has been removed at this very moment


def _lock(file: int) -> bool:
    """Whether it could be locked; only so that fewer names are tried, since without a lock the first line of
    a name counts. So a file system that has none will do, and nobody who can read the file can hold up a
    batch for long."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return False
        else:
            return True
    return False


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def folded(name: str) -> str:
    """A name as it is compared: blind to case and to ways of writing an accent, as some file systems are."""
    return unicodedata.normalize("NFC", name).casefold()


def numberless(file: str) -> list[str]:
    """The name with a `*` for its last number, if it has one, as it is compared."""
    number = re.search(r"\d+(?=\D*\.\w+$)", file)
    return [] if number is None else [folded(f"{file[: number.start()]}*{file[number.end() :]}")]


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
