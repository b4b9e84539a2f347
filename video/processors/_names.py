"""What outputs are called, so that none replaces an input, another video's output, or anybody else's file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from video.processors._book import Book, folded, numberless
from video.sources.base import display_name, is_url


class Names:
    """Names of the outputs of one batch.

    :param inputs: paths of the batch's own.
    """

    def __init__(self, inputs: Iterable[str] = ()) -> None:
        self.inputs = set(map(os.path.realpath, inputs))
        """Real paths, as far as they are known."""
        self._books: dict[str, Book] = {}
        """By real path of their folder."""
        self._made: dict[str, set[str]] = {}
        """The same: files that are to be made, as they are compared; and after a `/` those with a `*` that
        would stand for them."""

    def stem(
        self,
        request: Any,
        folder: Path,
        files: Callable[[str], Iterable[str]],
        *,
        keep: bool,
        apart: bool = False,
    ) -> str:
        """What outputs of this request are called: a name that no other video has in that folder.

        :param request: with a `source` and an `output_dir`.
        :param files: that are to be made in the folder for a name; each begins with it. `*` stands for a
            number that is not known yet, the last one before its type.
        :param keep: as for `Book`.
        :param apart: files of unlike names are never the same, so that none need be held in mind.
        :raises OutputError: if it cannot be written down.
        """
        real, book = self._open(folder, keep=keep)
        made = self._made.setdefault(real, set())

        def clash(name: str) -> bool:
            return any(
                not made.isdisjoint((folded(file), f"/{folded(file)}", *numberless(file)))
                or self._is_input(real, file)
                for file in files(name)
            )

        def foreign(name: str, known: Set[str]) -> bool:
            return any(any(standing(real, file)) for file in files(name) if file[len(name) :] not in known)

        found = book.name(
            display_name(request.source),
            _identity(request.source),
            request.model_dump_json(exclude={"source", "output_dir"}),
            clash=clash,
            there=lambda name: foreign(name, set()),
            endings=[file.removeprefix("x") for file in files("x")],
            foreign=foreign,
        )
        for file in () if apart else files(found):
            made.update((folded(file), *(f"/{one}" for one in numberless(file))))
        return found

    def variants(
        self, source: str, folder: Path, count: int, format: str, *, keep: bool = True
    ) -> list[Path]:
        """Where so many variants of a source belong.

        :param source: a path.
        :param keep: as for `Book`.
        :raises OutputError: the names cannot be written down.
        """
        real, book = self._open(folder, keep=keep)
        owner = os.path.realpath(source)

        def there(file: str) -> bool:
            return os.path.lexists(os.path.join(real, f"{file}.{format}"))

        def clash(file: str) -> bool:
            return os.path.join(real, f"{file}.{format}") in self.inputs

        def files(name: str) -> list[str]:
            return [f"{name}-variant-{number:02d}" for number in range(1, count + 1)]

        name = book.name(
            display_name(source), owner, "variants",
            clash=lambda name: any(map(clash, files(name))),
            there=lambda name: any(map(there, files(name))),
        )  # fmt: skip
        # And each file by itself: of a name that an earlier run has had, others may stand here since.
        mine = [
            book.name(file, owner, f"variant {format}", clash=clash, there=there, endings=[f".{format}"])
            for file in files(name)
        ]
        return [folder / f"{file}.{format}" for file in mine]

    def tidy(self) -> None:
        """After the batch: leave nothing where nothing has come of it."""
        for book in self._books.values():
            book.tidy()

    def _open(self, folder: Path, *, keep: bool) -> tuple[str, Book]:
        real = os.path.realpath(folder)
        if real not in self._books:
            self._books[real] = Book(Path(real), keep=keep)
        return real, self._books[real]

    def _is_input(self, folder: str, file: str) -> bool:
        return os.path.join(folder, file) in self.inputs or any(
            path in self.inputs for path in standing(folder, file)
        )


def standing(folder: str | os.PathLike[str], file: str) -> Iterator[str]:
    """Paths of what is in the folder under that name, in which `*` stands for any number."""
    if "*" not in file:
        path = os.path.join(folder, file)
        return iter([path] if os.path.lexists(path) else [])
    any_number = re.compile(r"\d+".join(map(re.escape, file.split("*"))))
    with contextlib.suppress(OSError):
        return (os.path.join(folder, one) for one in os.listdir(folder) if any_number.fullmatch(one))
    return iter(())


def _identity(source: str) -> str:
    """What a source is known by in any folder: two paths to one file are one source."""
    if is_url(source) and not source.startswith("file:"):
        return source
    with contextlib.suppress(ValueError):  # no address, or no path: it fails with that when it runs
        path = unquote(urlsplit(source).path) if source.startswith("file:") else os.path.expanduser(source)
        return os.path.realpath(path)
    return source
