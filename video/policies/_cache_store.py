"""Where a cache keeps its entries: in memory, or in a SQLite file that many processes use at once.

Neither reads a clock; what is too old is the policy's affair. Both are bounded by entries and by bytes, and
drop what has gone longest without use; the file counts uses from when it is half full. It is safe against a
kill at any instant: SQLite's log (WAL) holds each change whole or not at all; a loss of power may cost the
last changes, never the file (https://www.sqlite.org/wal.html). It is worth nothing that could not be made
again, so whatever is wrong with it, nothing here raises: the cache goes on without.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from zlib import crc32

from video.errors import StoreError
from video.events import logger
from video.policies._checks import number
from video.policies._sqlite import filesystem, is_network, transaction

APPLICATION = 0x76634361
"""SQLite's `application_id`: other programs' databases are left alone."""
VERSION = 1
BUSY_SECONDS = 2.0
"""That a change waits for other processes; one that waits longer is let go."""
MOST_FAILURES = 3
"""In a row, after which the file is left alone: a full disk, a file that another program keeps locked."""
KEPT_SHARE = 0.9
"""Of a bound, that is left when it is passed: a tenth at once costs a tenth of one at a time."""
MOST_USES = 256
"""Uses that are noted in one change: each by itself would make a hit as slow as a put."""
MOST_PARTS = 10_000
"""Of an object, that are weighed."""
TRIES = 100
CACHE_KB = 16_000
"""Of memory for pages at most: SQLite's own 2 MB hold some 3,000 entries of 600 bytes."""

T = TypeVar("T")

SCHEMA = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, files TEXT NOT NULL, created REAL NOT NULL,
    size INTEGER NOT NULL, used INTEGER NOT NULL, sum INTEGER NOT NULL
);
CREATE INDEX by_use ON entries (used, size);
CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON entries BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + new.size; END;
CREATE TRIGGER dropped AFTER DELETE ON entries BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - old.size; END;
CREATE TRIGGER replaced AFTER UPDATE OF size ON entries BEGIN
    UPDATE totals SET bytes = bytes - old.size + new.size; END
"""
GET = "SELECT text, files, created, sum FROM entries WHERE key = ?"
PUT = """
INSERT INTO entries (key, text, files, created, size, sum, used) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET text = excluded.text, files = excluded.files, created = excluded.created,
    size = excluded.size, sum = excluded.sum, used = excluded.used
"""


class Entry(NamedTuple):
    """What a cache keeps under a key."""

    created: float
    """When the value was made: seconds since the epoch, by the clock of the day."""
    text: str | None = None
    """The value as JSON; None: it is kept as an object."""
    files: str = ""
    """The output files that it stands for, as JSON; "": none."""
    value: Any = None
    """The object, where it is kept as one. It is never written to a disk."""

    def size(self, key: str) -> int:
        """Bytes that it counts for."""
        kept = weight(self.value) if self.text is None else len(self.text)
        return len(key) + kept + len(self.files)


class CacheStore(Protocol):
    """Where entries are kept. Methods may be called from any thread, and never raise for the store's sake."""

    objects: bool
    """Whether it keeps objects too, or JSON only."""

    def get(self, key: str) -> Entry | None:
        """What is kept under a key, which counts as a use of it."""
        ...

    def put(self, key: str, entry: Entry) -> bool:
        """Keep it in place of what was there. False: it is not kept, nor is what was there."""
        ...

    def drop(self, key: str, created: float) -> None:
        """Remove it, unless a newer one has taken its place."""
        ...

    def totals(self) -> tuple[int, int]:
        """Entries, and bytes that they count for."""
        ...

    def clear(self) -> None:
        """Remove all of it."""
        ...

    def close(self) -> None:
        """Let go of what it holds; it keeps and finds nothing afterwards."""
        ...


class MemoryCache:
    """Entries of this process, for as long as it lives.

    :param max_entries: that are kept at most.
    :param max_bytes: that their keys and values may take together. JSON counts one for each character; an
        object what `weight` says.
    :raises ConfigError: if a bound is no whole number above 0.
    """

    objects = True

    def __init__(self, max_entries: int = 10_000, max_bytes: int = 64 << 20) -> None:
        number("max_entries", max_entries, above=0, whole=True)
        number("max_bytes", max_bytes, above=0, whole=True)
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self._bytes = 0
        self._closed = False

    def get(self, key: str) -> Entry | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: str, entry: Entry) -> bool:
        size = entry.size(key)
        with self._lock:
            self._remove(key)
            if self._closed or size > self.max_bytes:
                return False
            self._entries[key] = entry, size
            self._bytes += size
            while self._bytes > self.max_bytes or len(self._entries) > self.max_entries:
                self._remove(next(iter(self._entries)))
            return True

    def drop(self, key: str, created: float) -> None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found[0].created == created:
                self._remove(key)

    def totals(self) -> tuple[int, int]:
        with self._lock:
            return len(self._entries), self._bytes

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def close(self) -> None:
        self._closed = True
        self.clear()

    def _remove(self, key: str) -> None:
        if found := self._entries.pop(key, None):
            self._bytes -= found[1]


class SqliteCache:
    """Entries in a file, for this process and those after it; any number of processes may use it at once.

    The file is made with mode 0600, and its folder with 0700. One that cannot be used (damaged, of another
    program, not to be written to) is said so once, by a warning in the log; then nothing is kept or found.

    :param max_entries: that are kept at most.
    :param max_bytes: that their keys and values may take together; the file is somewhat larger.
    :raises ConfigError: if a bound is no whole number above 0.
    """

    objects = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_entries: int = 100_000,
        max_bytes: int = 256 << 20,
    ) -> None:
        number("max_entries", max_entries, above=0, whole=True)
        number("max_bytes", max_bytes, above=0, whole=True)
        self.path = Path(os.path.abspath(path))
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.errors = 0
        """Times that the file could not be read or written."""
        self._lock = threading.Lock()
        self._used: dict[str, None] = {}
        """Keys whose use is not noted in the file yet, the latest last."""
        self._half_full = True
        """So it was when it was last written to. While it is not, nothing is about to be dropped, and no use
        has to be noted, which would make hits slower."""
        self._failures = 0
        self._warned = False
        self._db: sqlite3.Connection | None = None
        self._open()
        _stores.add(self)

    @property
    def usable(self) -> bool:
        """False: it is closed, or its file is of no use, and nothing is kept or found."""
        return self._db is not None

    def get(self, key: str) -> Entry | None:
        def look(db: sqlite3.Connection) -> Entry | None:
            found = _entry(db.execute(GET, (key,)).fetchone())
            if found is not None and self._half_full:
                self._used.pop(key, None)
                self._used[key] = None
                if len(self._used) >= MOST_USES:
                    with transaction(db):
                        self._note_uses(db)
            return found

        return self._with(look, None, reads=True)

    def put(self, key: str, entry: Entry) -> bool:
        def write(db: sqlite3.Connection) -> bool:
            with transaction(db):
                return self._put(db, key, entry)

        return self._with(write, False)

    def update(self, key: str, change: Callable[[Entry | None], Entry | None]) -> None:
        """Put in place of what is there what `change` makes of it (None: leave it), in one step among all
        threads and processes. It must not use this store."""

        def write(db: sqlite3.Connection) -> None:
            with transaction(db):
                entry = change(_entry(db.execute(GET, (key,)).fetchone()))
                if entry is not None:
                    self._put(db, key, entry)

        self._with(write, None)

    def drop(self, key: str, created: float) -> None:
        def remove(db: sqlite3.Connection) -> None:
            self._used.pop(key, None)
            db.execute("DELETE FROM entries WHERE key = ? AND created = ?", (key, created))

        self._with(remove, None)

    def totals(self) -> tuple[int, int]:
        return self._with(_totals, (0, 0), reads=True)

    def clear(self) -> None:
        def remove(db: sqlite3.Connection) -> None:
            self._used.clear()
            db.execute("DELETE FROM entries")

        self._with(remove, None)

    def close(self) -> None:
        def note(db: sqlite3.Connection) -> None:
            if self._used:
                with transaction(db):
                    self._note_uses(db)

        self._with(note, None)
        self._let_go()

    def _put(self, db: sqlite3.Connection, key: str, entry: Entry) -> bool:
        assert entry.text is not None
        size = entry.size(key)
        self._used.pop(key, None)
        if size > self.max_bytes:
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            return False
        count = self._note_uses(db)
        check = _sum(entry.text, entry.files, entry.created)
        db.execute(PUT, (key, entry.text, entry.files, entry.created, size, check, count))
        self._evict(db, key)
        return True

    def _note_uses(self, db: sqlite3.Connection) -> int:
        """Write down what was used since the last time.

        :return: the next number of a use. They count uses rather than seconds, so no clock can upset them.
        """
        (last,) = db.execute("SELECT max(used) FROM entries").fetchone()
        count = (last or 0) + 1
        if self._used:
            pairs = [(count + place, key) for place, key in enumerate(self._used)]
            db.executemany("UPDATE entries SET used = ? WHERE key = ?", pairs)
            self._used.clear()
            count += len(pairs)
        return count

    def _evict(self, db: sqlite3.Connection, latest: str) -> None:
        """Where a bound is passed, drop the least used until a tenth of it is free, but never the latest."""
        entries, taken = _totals(db)
        self._half_full = 2 * entries > self.max_entries or 2 * taken > self.max_bytes
        if entries <= self.max_entries and taken <= self.max_bytes:
            return
        most_entries, most_bytes = int(self.max_entries * KEPT_SHARE), int(self.max_bytes * KEPT_SHARE)
        gone = []
        for key, size in db.execute("SELECT key, size FROM entries ORDER BY used, key"):
            if entries <= most_entries and taken <= most_bytes:
                break
            if key != latest:
                gone.append((key,))
                entries, taken = entries - 1, taken - size
        db.executemany("DELETE FROM entries WHERE key = ?", gone)

    # The file

    def _open(self) -> None:
        try:
            self._db = _connect(self.path)
            entries, taken = _totals(self._db)
            self._half_full = 2 * entries > self.max_entries or 2 * taken > self.max_bytes
        except (OSError, sqlite3.Error) as error:
            self.errors += 1
            self._give_up(error)

    def _with(self, work: Callable[[sqlite3.Connection], T], otherwise: T, *, reads: bool = False) -> T:
        """Do it; where the file does not let us, say so once and go on without."""
        with self._lock:
            if self._db is None:
                return otherwise
            try:
                answer = work(self._db)
            except (OSError, sqlite3.Error) as error:
                self.errors += 1
                self._failures += 1
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or self._failures >= MOST_FAILURES:
                    self._give_up(error)
                return otherwise
            if not reads:  # that it can be read says nothing of whether it can be written
                self._failures = 0
            return answer

    def _give_up(self, error: Exception) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if not self._warned:
            self._warned = True
            words = " ".join(str(error).split())
            logger.warning("%s: the cache goes on without it (%s). Move it away to start anew",
                           self.path, words)  # fmt: skip

    def _let_go(self) -> None:
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()

    def _forked(self) -> None:
        """In a child: it must not use, nor close, what its parent has open
        (https://www.sqlite.org/howtocorrupt.html, section 2.6)."""
        self._lock = threading.Lock()
        if self._db is not None:
            _left.append(self._db)
            self._db = None
            self._used.clear()
            self._open()


_stores: weakref.WeakSet[SqliteCache] = weakref.WeakSet()
_left: list[sqlite3.Connection] = []
"""Connections of a parent process, held for ever since they may not be closed here."""


def _after_fork() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def weight(value: Any) -> int:
    """About how many bytes of memory an object takes, with what it holds. Of more than 10,000 parts, those
    that are looked at stand for the rest of their containers."""
    seen: set[int] = set()
    parts, whole = [value], 0
    while parts and len(seen) < MOST_PARTS:
        one = parts.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        whole += sys.getsizeof(one)
        if isinstance(one, dict):
            parts += [*one, *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            parts += one
        if (inner := getattr(one, "__dict__", None)) is not None:
            parts.append(inner)
        for kind in type(one).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if (inner := getattr(one, name, None)) is not None and name != "__dict__":
                    parts.append(inner)
    return whole if not parts else whole * (len(seen) + len(parts)) // len(seen)


def _entry(row: tuple[Any, ...] | None) -> Entry | None:
    """None too for a row that is not as it was written; SQLite itself sees no changed bytes in a value."""
    if row is None:
        return None
    text, files, created, check = row
    sound = isinstance(text, str) and isinstance(files, str) and isinstance(created, float)
    return Entry(created, text, files) if sound and _sum(text, files, created) == check else None


def _totals(db: sqlite3.Connection) -> tuple[int, int]:
    row = db.execute("SELECT entries, bytes FROM totals").fetchone()
    if row is None or not all(isinstance(one, int) for one in row):
        raise StoreError("it does not say how much it holds")
    return row[0], row[1]


def _sum(text: str, files: str, created: float) -> int:
    return crc32(f"{created!r}{files}\n{text}".encode("utf-8", "surrogatepass"))


def _connect(path: Path) -> sqlite3.Connection:
    """
    :raises OSError, sqlite3.Error: if it cannot be used.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made here, since SQLite gives the files beside it the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check(db)
        if not is_network(filesystem(path)):
            _use_log(db)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        db.execute("PRAGMA journal_size_limit = 4194304")
    except BaseException:
        db.close()
        raise
    return db


def _use_log(db: sqlite3.Connection) -> None:
    """Write-ahead logging, where it works."""
    for _ in range(TRIES):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return  # no shared memory there
            with transaction(db):  # unlike that, this waits for whoever opens the file just now
                pass


def _check(db: sqlite3.Connection) -> None:
    def numbers() -> tuple[int, int, int]:
        count = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        return count, application, db.execute("PRAGMA user_version").fetchone()[0]

    if numbers() == (0, 0, 0):
        with transaction(db):
            if numbers() == (0, 0, 0):  # still, and not made by a process that started at the same time
                marks = f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}"
                for statement in (*SCHEMA.split(";\n"), *marks):
                    db.execute(statement)
    if numbers()[1:] != (APPLICATION, VERSION):
        raise StoreError("it belongs to another program, or another version of this one")
