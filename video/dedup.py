"""What has been fetched or made already, told by content: so that the same medium is not had twice.

    a file here ----> size + hash ----+
                                      +----> what is known of that content
    an id elsewhere --> its content --+

The content decides wherever it can be read. An id (of a message, a post, a remote file) stands in only where
there is no hash to be had: before a download, or for a file that cannot be read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from video.errors import ConfigError
from video.policies._checks import number
from video.policies._content import algorithm as usual_algorithm
from video.policies._content import content_hash, file_stamp, is_json, new_hash
from video.policies.cache import Entry, SqliteCache

MAX_BYTES = 1 << 30


@dataclass(slots=True)
class MediaDeduplicationStats:
    """What deduplication has brought so far."""

    id_based_hits: int = 0
    hash_based_hits: int = 0
    downloads: int = 0
    """Media that nothing was known of, and that had to be had in full."""
    bytes_saved: int = 0
    """Sizes of the hits together, as far as they are known."""

    def hit_rate(self) -> float:
        """Hits among hits and downloads, 0 to 1; 0 where there were none."""
        hits = self.id_based_hits + self.hash_based_hits
        return hits / max(1, hits + self.downloads)


@dataclass(frozen=True, slots=True)
class Known:
    """A medium that was had before."""

    by: Literal["hash", "id"]
    """What it was known by."""
    content: str
    """`algorithm:size:hash`; "": there was none to be had."""
    path: str | None
    """A file with that content; None: there was none, or it is gone or changed."""
    value: Any
    """What was remembered of it."""
    size: int | None
    """In bytes; None: not known."""


class HashBasedDeduplicator:
    """Remembers media by size and hash of what they hold (blake3 with the extra `fast`, else blake2b; the two
    never meet), and by ids. It lasts in a SQLite file, which any number of threads and processes may use. A
    file that cannot be used is said so once in the log; then nothing is known.

        known = dedup.check(id=message.id)                   # before a download
        known = dedup.check(path)                            # once there is a file
        dedup.remember(path, id=message.id, value=answer)    # what was new

    :param cache_path: the file; it is made where there is none, for its owner only.
    :param max_cache_size: contents and ids, counted together, that are kept at most; those that have gone
        longest without use are dropped, a tenth at a time.
    :param algorithm: "blake3" or "blake2b"; None: the better one that is installed.
    :raises ConfigError: if an argument is wrong.
    :raises MissingDependency: if blake3 is asked for and not installed.
    """

    def __init__(
        self,
        cache_path: str | os.PathLike[str],
        max_cache_size: int = 10_000,
        *,
        algorithm: Literal["blake3", "blake2b"] | None = None,
    ) -> None:
        self.algorithm = algorithm or usual_algorithm()
        new_hash(self.algorithm)
        self._store = SqliteCache(cache_path, max_cache_size, MAX_BYTES)
        self._lock = threading.Lock()
        self._stats = MediaDeduplicationStats()

    @property
    def stats(self) -> MediaDeduplicationStats:
        """So far, of this object: a copy that does not change any more."""
        with self._lock:
            return dataclasses.replace(self._stats)

    def check(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        id: str | int | None = None,
        size: int | None = None,
    ) -> Known | None:
        """What is known of a medium; None: nothing.

        A file is told by its content alone, whatever its name and id are. By its id a medium is told only if
        no path is given, or the file cannot be read or is being written to.

        :param size: in bytes, as its origin says; what is known under the id with another size is not it.
        :raises ConfigError: if neither path nor id is given, or one is of the wrong kind.
        """
        key = _id_key(path, id, size)
        content = self._hash(path)
        known = self._by_id(key, size) if content is None and key else self._by_hash(content, "hash")
        if known is not None:
            with self._lock:
                if known.by == "hash":
                    self._stats.hash_based_hits += 1
                else:
                    self._stats.id_based_hits += 1
                self._stats.bytes_saved += known.size or 0
        return known

    def remember(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        id: str | int | None = None,
        size: int | None = None,
        value: Any = None,
    ) -> str:
        """Keep that a medium was had. A file that is remembered is an answer itself, for as long as it stays
        as it is; a value is one for ever. What was known of the same content is kept where nothing new is
        said.

        An id under which two contents were seen tells nothing any more, and never hits again.

        :param size: in bytes, where there is no file.
        :param value: plain data (what JSON can hold), such as what a task made of it.
        :return: its content as `algorithm:size:hash`; "": there was none to be had, and it is known by id.
        :raises ConfigError: if neither path nor id is given, or an argument is of the wrong kind.
        """
        key = _id_key(path, id, size)
        if not is_json(value):
            raise ConfigError(f"value is a {type(value).__qualname__}", cure="It takes plain data.")
        file = _described(path)  # before the hash, so that a file which changes between is not taken for it
        content = self._hash(path)
        known = content is not None and self._keep(content, file, value)
        if key:
            seen = self._learn(key, content, size, value)
            known = known or (content is None and seen)
        if not known:
            with self._lock:
                self._stats.downloads += 1
        return content or ""

    def close(self) -> None:
        """Let go of the file; nothing is known afterwards."""
        self._store.close()

    def __len__(self) -> int:
        """Contents and ids that are kept."""
        return self._store.totals()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hash(self, path: str | os.PathLike[str] | None) -> str | None:
        if path is None:
            return None
        try:
            return content_hash(path, self.algorithm)
        except OSError:
            return None

    def _by_hash(self, content: str | None, by: Literal["hash", "id"]) -> Known | None:
        entry = None if content is None else self._store.get(content)
        if entry is None or content is None:
            return None
        row = _row(entry)
        path = _unchanged(row.get("file"))
        if path is None and row.get("value") is None:
            self._store.drop(content, entry.created)
            return None
        return Known(by, content, path, row.get("value"), _size(content))

    def _by_id(self, key: str, size: int | None) -> Known | None:
        entry = self._store.get(key)
        row = {} if entry is None else _row(entry)
        if not row or row.get("ambiguous") or not _agree(size, row.get("size")):
            return None
        if content := row.get("content"):
            return self._by_hash(content, "id")
        return Known("id", "", None, row.get("value"), row.get("size"))

    def _keep(self, content: str, file: list[Any] | None, value: Any) -> bool:
        """A content, with what is new of it.

        :return: whether it was known.
        """
        known = False

        def change(entry: Entry | None) -> Entry:
            nonlocal known
            old = {} if entry is None else _row(entry)
            still_there = _unchanged(old.get("file")) is not None
            known = still_there or old.get("value") is not None
            row = {
                "file": old["file"] if still_there else file,
                "value": old.get("value") if value is None else value,
            }
            return _entry(row)

        self._store.update(content, change)
        return known

    def _learn(self, key: str, content: str | None, size: int | None, value: Any) -> bool:
        """That a medium has this id.

        :return: whether the id was known, and for nothing else.
        """
        new: dict[str, Any] = {"content": content, "size": size, "value": value}
        if content is not None:
            new.update(size=_size(content), value=None)
        known = False

        def change(entry: Entry | None) -> Entry | None:
            nonlocal known
            if entry is None:
                return _entry(new)
            old = _row(entry)
            if old.get("ambiguous"):
                return None
            known = _agree(new["size"], old.get("size")) and self._may_be_one(content, old.get("content"))
            if not known:
                return _entry({"ambiguous": True})
            return None if content is None and old.get("content") else _entry(new)

        self._store.update(key, change)
        return known

    def _may_be_one(self, content: str | None, old: str | None) -> bool:
        """Hashes by two algorithms cannot be compared."""
        return None in (content, old) or content == old or not str(old).startswith(f"{self.algorithm}:")


def _id_key(path: object, id: object, size: object) -> str:
    """What an id is kept under; "": there is none.

    :raises ConfigError: if there is no path either, or one is of the wrong kind.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path is {path!r}", cure="It takes a path, or None.")
    if size is not None:
        number("size", size, whole=True)
    if id is None:
        if path is None:
            raise ConfigError("neither path nor id is given", cure="Give one of them, or both.")
        return ""
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise ConfigError(f"id is {id!r}", cure="It takes a string or a whole number.")
    return f"id:{json.dumps(id)}"


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(time.time(), json.dumps(row))


def _row(entry: Entry) -> dict[str, Any]:
    try:
        row = json.loads(entry.text or "{}")
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _size(content: str) -> int:
    return int(content.split(":")[1])


def _agree(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def _described(path: str | os.PathLike[str] | None) -> list[Any] | None:
    if path is None:
        return None
    try:
        return [os.path.abspath(os.fsdecode(path)), *file_stamp(path)]
    except OSError:
        return None


def _unchanged(file: list[Any] | None) -> str | None:
    """Path of a file that is still as it was described."""
    return file[0] if file is not None and _described(file[0]) == file else None
