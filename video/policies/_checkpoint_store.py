"""The file behind a checkpoint: a SQLite database with the batches and how far each of their items came.

Safe against a kill of the process at any instant: SQLite's log (WAL) holds each committed group whole or not
at all. Against a loss of power too with `durable`, since each commit then waits for the disk; without, what
is lost are the groups of the last moments, never the file (https://www.sqlite.org/wal.html). One process at a
time runs a batch, and holds a lock that the system itself frees when the process ends, however it ends.
Several processes may run several batches of one file: SQLite has them write in turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from video.errors import CheckpointMismatch, StoreError
from video.policies._sqlite import filesystem, is_network, transaction

APPLICATION = 0x76634B70
"""SQLite's `application_id`: other programs' databases are left alone."""
VERSION = 1
CACHE_KB = 16_000
"""Holds the index of some 400,000 items, which are looked up at random; SQLite's own 2 MB hold a tenth."""
TRIES = 100
BUSY_SECONDS = 30.0
"""That a commit waits for other processes which write to the same file."""
STAMP_SECONDS = 1.0
MOST_FAILURES = 20
"""Shown of each batch."""
BEGUN, DONE, FAILED = 0, 1, 2

Slot = tuple[bytes, int]
"""An item of a batch: the digest of its key, and which of the items with that key it is, from 0."""
Row = tuple[int, int, int, float, str | None, str | None, str | None]
"""State, position in the input, attempts, seconds; value, error and outputs as text."""


class Command(NamedTuple):
    """What was asked for by a run that can be asked for again without its program (`video jobs resume`)."""

    name: str
    """Of what was asked for: a later run of that name takes the place of this one."""
    arguments: dict[str, Any]
    """Plain data. It is stored as it is, in a file for its owner only."""


SCHEMA = f"""
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL,
    total INTEGER, created REAL NOT NULL, updated REAL NOT NULL
);
CREATE TABLE items (
    batch INTEGER NOT NULL REFERENCES batches(id), key BLOB NOT NULL, nth INTEGER NOT NULL,
    state INTEGER NOT NULL, place INTEGER NOT NULL, attempts INTEGER NOT NULL, seconds REAL NOT NULL,
    value TEXT, error TEXT, outputs TEXT, UNIQUE (batch, key, nth)
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
COMMANDS = """
CREATE TABLE IF NOT EXISTS commands (
    batch INTEGER NOT NULL REFERENCES batches(id), name TEXT NOT NULL, arguments TEXT NOT NULL,
    UNIQUE (batch, name)
)
"""
"""Of runs that have not been carried out. Beside the schema, since files of the same layout lack it."""
PUT = """
INSERT INTO items (batch, key, nth, state, place, attempts, seconds, value, error, outputs)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (batch, key, nth) DO UPDATE SET
    state = excluded.state, place = excluded.place, attempts = excluded.attempts, seconds = excluded.seconds,
    value = excluded.value, error = excluded.error, outputs = excluded.outputs
"""
ONE = "batch = ? AND key = ? AND nth = ? AND state = ?"
TAKE_BACK = f"DELETE FROM items WHERE {ONE}"  # noqa: S608  # constants only
FIND = f"SELECT attempts, seconds, value, outputs FROM items WHERE {ONE}"  # noqa: S608


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What a checkpoint holds of one batch. Times are seconds since 1970 by the clock of the day, for people
    to read: nothing is decided by them."""

    batch: str
    fingerprint: dict[str, Any]
    done: int
    failed: int
    begun: int
    """Items that were running at the last commit. If nothing runs the batch, they were cut short."""
    total: int | None
    """Length of the input; None while it is not known."""
    created: float
    updated: float
    pid: int | None
    """The process that runs the batch; None: none does."""
    failures: tuple[tuple[int, str], ...] = ()
    """Position and error of the first few failed items; only `batch_info` fills it."""
    commands: int = 0
    """How many runs can be asked for again (`pending_commands`), since not all that they were for is done."""

    @property
    def known(self) -> int | None:
        """Items of the batch, as far as any run has told: one may be run with several inputs. None: nobody
        has said how many there are."""
        return None if self.total is None else max(self.total, self.done + self.failed + self.begun)

    @property
    def complete(self) -> bool:
        return not self.commands and self.total is not None and self.done >= self.total


class Store:
    """One batch of a checkpoint's file, opened for running it. Methods may be called from any thread.

    :param fork: where `batch` was made with another fingerprint, use `batch-2` and so on beside it: the first
        with this fingerprint, or a new one.
    :raises StoreError: if the file cannot be used, or another process runs this batch.
    :raises CheckpointMismatch: if the batch was made with another fingerprint.
    """

    def __init__(
        self,
        path: Path,
        batch: str,
        fingerprint: Mapping[str, Any],
        *,
        fork: bool = False,
        total: int | None = None,
        durable: bool = False,
        command: Command | None = None,
    ) -> None:
        self.path = path
        self._command = command
        self._guard = threading.Lock()
        self._next_stamp = 0.0
        with explained(path):
            self._db = connect(path, create=True, durable=durable)
        self._hold = contextlib.ExitStack()
        try:
            with explained(path):
                self.batch = _chosen(self._db, batch, fingerprint) if fork else batch
                self._hold.enter_context(held(path, self.batch))
                self._id = self._enter(dict(fingerprint), total)
                found = self._db.execute("SELECT 1 FROM items WHERE batch = ? LIMIT 1", (self._id,))
                self.resumed = found.fetchone() is not None
                """An earlier run has left something."""
        except BaseException:
            self.close()
            raise

    def _enter(self, fingerprint: dict[str, Any], total: int | None) -> int:
        """The batch's number in the file; makes it where it is new."""
        with transaction(self._db):
            number = self._find_or_make(fingerprint, total)
            if self._command is not None:
                name, arguments = self._command
                self._db.execute(
                    "INSERT OR REPLACE INTO commands VALUES (?, ?, ?)", (number, name, json.dumps(arguments))
                )
            return number

    def _find_or_make(self, fingerprint: dict[str, Any], total: int | None) -> int:
        row = self._db.execute("SELECT id, fingerprint FROM batches WHERE name = ?", (self.batch,)).fetchone()
        if row is None:
            now, text = time.time(), json.dumps(fingerprint, sort_keys=True)
            added = self._db.execute(
                "INSERT INTO batches (name, fingerprint, total, created, updated) VALUES (?, ?, ?, ?, ?)",
                (self.batch, text, total, now, now),
            )
            assert added.lastrowid is not None
            return added.lastrowid
        if words := _differences(json.loads(row[1]), fingerprint):
            raise CheckpointMismatch(
                f"was made with other settings: {words}",
                subject=f"{self.path}, batch {self.batch!r}",
                cure="Set them back; or run a new batch beside it (--fork, fork=True); "
                "or give up what it holds (video jobs forget, forget(path, batch))",
            )
        if total is not None:
            self._db.execute("UPDATE batches SET total = ? WHERE id = ?", (total, row[0]))
        return int(row[0])

    def done(self, slots: Sequence[Slot]) -> list[tuple[int, float, str | None, str | None] | None]:
        """For each slot: attempts, seconds, value and outputs if it is done; else None."""
        with self._guard, explained(self.path):
            cursor = self._db.cursor()  # one for all of them, which spares a third of the time
            return [cursor.execute(FIND, (self._id, *slot, DONE)).fetchone() for slot in slots]

    def commit(self, rows: Mapping[Slot, Row | None], total: int | None = None) -> None:
        """Write all of it in one transaction, or nothing. None takes back an item that was only begun.

        :raises StoreError: if it cannot be written; all that was committed before stays.
        """
        number = self._id
        puts = [(number, *slot, *row) for slot, row in rows.items() if row is not None]
        backs = [(number, *slot, BEGUN) for slot, row in rows.items() if row is None]
        with self._guard, explained(self.path), transaction(self._db):
            self._db.executemany(PUT, puts)
            if backs:
                self._db.executemany(TAKE_BACK, backs)
            if total is not None or time.monotonic() >= self._next_stamp:
                self._stamp(total)

    def _stamp(self, total: int | None = None) -> None:
        """Note the time, about once a second: it takes as long as a row."""
        self._next_stamp = time.monotonic() + STAMP_SECONDS
        self._db.execute(
            "UPDATE batches SET updated = ?, total = coalesce(?, total) WHERE id = ?",
            (time.time(), total, self._id),
        )

    def carried_out(self) -> None:
        """All that the command was for is done: it is not to be resumed any more."""
        if self._command is not None:
            with self._guard, explained(self.path), transaction(self._db):
                self._db.execute(
                    "DELETE FROM commands WHERE batch = ? AND name = ?", (self._id, self._command.name)
                )

    def close(self) -> None:
        """Let go of the file and the batch; does nothing the second time."""
        with self._guard, contextlib.suppress(sqlite3.Error):  # a full disk: the log stays beside the file
            self._db.close()
        self._hold.close()


def list_batches(path: str | os.PathLike[str]) -> list[BatchInfo]:
    """The batches of a checkpoint's file, the one made first in front.

    :raises StoreError: if there is no such file, or it cannot be read.
    """
    with _reading(path) as (where, db):
        return [_info(where, db, row) for row in db.execute("SELECT * FROM batches ORDER BY id").fetchall()]


def batch_info(path: str | os.PathLike[str], batch: str) -> BatchInfo:
    """One batch, with its first failures.

    :raises StoreError: if there is no such file or batch, or it cannot be read.
    """
    with _reading(path) as (where, db):
        return _info(where, db, _row(where, db, batch), MOST_FAILURES)


def pending_commands(path: str | os.PathLike[str], batch: str) -> list[Command]:
    """What was asked for of a batch and is not all done, the oldest first; empty: nothing, or by a program
    that only itself can go on.

    :raises StoreError: if there is no such file or batch, or it cannot be read.
    """
    with _reading(path) as (where, db):
        rows = db.execute(
            "SELECT name, arguments FROM commands WHERE batch = ? ORDER BY rowid", _row(where, db, batch)[:1]
        ).fetchall()
        try:
            return [Command(name, dict(json.loads(arguments))) for name, arguments in rows]
        except (TypeError, ValueError) as error:
            raise _damaged(where, f"a command of batch {batch!r} is no JSON object") from error


def forget(path: str | os.PathLike[str], batch: str) -> int:
    """Remove all that is known of a batch; its output files stay.

    :return: how many items it had.
    :raises StoreError: if there is no such file or batch, it cannot be written, or a process runs the batch.
    """
    with _reading(path) as (where, db):
        number = _row(where, db, batch)[0]
        with held(where, batch), transaction(db):
            gone = db.execute("DELETE FROM items WHERE batch = ?", (number,)).rowcount
            db.execute("DELETE FROM commands WHERE batch = ?", (number,))
            db.execute("DELETE FROM batches WHERE id = ?", (number,))
        return gone


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[tuple[Path, sqlite3.Connection]]:
    where = Path(os.path.realpath(path))
    with explained(where), contextlib.closing(connect(where, create=False)) as db:
        yield where, db


def _row(path: Path, db: sqlite3.Connection, batch: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute("SELECT * FROM batches WHERE name = ?", (batch,)).fetchone()
    if row is None:
        names = [name for (name,) in db.execute("SELECT name FROM batches ORDER BY id")]
        cure = f"It has {', '.join(map(repr, names))}" if names else "It has none"
        raise StoreError(f"has no batch {batch!r}", subject=str(path), cure=cure)
    return row


def _info(path: Path, db: sqlite3.Connection, row: tuple[Any, ...], failures: int = 0) -> BatchInfo:
    number, name, fingerprint, total, created, updated = row
    counts = dict(db.execute("SELECT state, count(*) FROM items WHERE batch = ? GROUP BY state", (number,)))
    failed = db.execute(
        "SELECT place, error FROM items WHERE batch = ? AND state = ? ORDER BY place LIMIT ?",
        (number, FAILED, failures),
    )
    (commands,) = db.execute("SELECT count(*) FROM commands WHERE batch = ?", (number,)).fetchone()
    return BatchInfo(
        batch=name,
        fingerprint=json.loads(fingerprint),
        done=counts.get(DONE, 0),
        failed=counts.get(FAILED, 0),
        begun=counts.get(BEGUN, 0),
        total=total,
        created=created,
        updated=max(created, updated),  # the clock may have been set back between
        pid=_holder(_lock_path(path, name)),
        failures=tuple(failed),
        commands=commands,
    )


def _chosen(db: sqlite3.Connection, batch: str, fingerprint: Mapping[str, Any]) -> str:
    """The first of `batch`, `batch-2`, ... that has this fingerprint or is free."""
    name, number = batch, 1
    while True:
        row = db.execute("SELECT fingerprint FROM batches WHERE name = ?", (name,)).fetchone()
        if row is None or not _differences(json.loads(row[0]), dict(fingerprint)):
            return name
        number += 1
        name = f"{batch}-{number}"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two fingerprints, in words; empty: nothing does."""

    def worded(side: dict[str, Any], name: str) -> str:
        return json.dumps(side[name], ensure_ascii=False, sort_keys=True) if name in side else "not set"

    new = json.loads(json.dumps(new))  # as it would come back from the file
    return "; ".join(
        f"{name} is {worded(new, name)} and was {worded(old, name)}"
        for name in sorted({*old, *new})
        if worded(old, name) != worded(new, name)
    )


# The file


def connect(path: Path, *, create: bool, durable: bool = False) -> sqlite3.Connection:
    """Open a checkpoint's file, after a look at whether it is one and is whole.

    :param create: make the file (mode 0600) and its folder (0700) where there are none.
    :param durable: each commit waits until the disk has it.
    :raises StoreError: if it is missing, damaged, or something else.
    """
    _find(path, create)
    address = f"{path.as_uri()}?mode=rw"
    # Autocommit, so that transactions stand where they are written; `Store` lets one thread in at a time.
    db = sqlite3.connect(
        address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        _check(db, path)
        _use_log(db, path)
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    except BaseException:
        db.close()
        raise
    return db


def _find(path: Path, create: bool) -> None:
    try:
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not path.is_file():
            raise StoreError(
                "there is no such checkpoint",
                subject=str(path),
                cure="Give the path that the batch was run with",
            )
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot be opened ({error.strerror})",
            subject=str(path),
            cure="Give a file that you may write to",
        ) from error


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file; refuse what is not ours or not whole."""

    def number(sql: str) -> int:
        return int(db.execute(sql).fetchone()[0])

    def is_new() -> bool:
        return not number("SELECT count(*) FROM sqlite_master") and not number("PRAGMA application_id")

    if is_new():
        with transaction(db):
            if is_new():  # still, and not made by a process that started at the same time
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
    application, version = number("PRAGMA application_id"), number("PRAGMA user_version")
    if application != APPLICATION:
        raise StoreError(
            "is a database of another program", subject=str(path), cure="Give the checkpoint another path"
        )
    if version != VERSION:
        raise StoreError(
            f"was written by another version of this package (layout {version}, this one reads {VERSION})",
            subject=str(path),
            cure="Use that version, or give the checkpoint another path",
        )
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _damaged(path, found)
    if not number("SELECT count(*) FROM sqlite_master WHERE name = 'commands'"):
        db.execute(COMMANDS)


def _use_log(db: sqlite3.Connection, path: Path) -> None:
    """Write-ahead logging, or a rollback journal where that does not work."""
    kind, mode = filesystem(path), ""
    if not is_network(kind):
        for _ in range(TRIES):
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break  # no shared memory there
                with transaction(db):  # unlike that, this waits for whoever opens the file just now
                    pass
    if mode != "wal":
        db.execute("PRAGMA journal_mode = TRUNCATE")
        warnings.warn(
            f"{path}: write-ahead logging does not work on its file system ({kind or 'unknown'}), so each "
            "commit takes longer. Keep the checkpoint on a disk of this machine",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, error) from error


def _told(path: Path, error: sqlite3.Error) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kept = "all that was committed is kept"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        cause, cure = "the disk is full", f"Free some space and go on: {kept}"
    elif code == sqlite3.SQLITE_IOERR:
        cause, cure = f"cannot be read or written ({error})", f"Look at the disk, its space and quota: {kept}"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        cause = f"another program has kept it locked for {BUSY_SECONDS:g} s"
        cure = f"End that program and go on: {kept}"
    else:
        cause, cure = f"cannot be used ({error})", "See whether the file and its folder may be written to"
    return StoreError(cause, subject=str(path), cure=cure)


def _damaged(path: Path, words: str) -> StoreError:
    return StoreError(
        f"is damaged, or no checkpoint ({' '.join(words.split())})",
        subject=str(path),
        cure=f"Move it away, with {path.name}-wal if there is one, and start anew: outputs stay, "
        "items run again",
    )


# Who runs a batch


@contextlib.contextmanager
def held(path: Path, batch: str) -> Iterator[None]:
    """The right to run a batch, for as long as the block runs. It ends with the process, however that ends.

    :raises StoreError: if another process, or another part of this one, has it.
    """
    lock = _lock_path(path, batch)
    handle = -1
    try:
        while handle < 0:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(handle, lock):  # its holder has just removed it
                os.close(handle)
                handle = -1
    except BlockingIOError as error:
        os.close(handle)
        pid = _holder(lock)
        raise StoreError(
            f"batch {batch!r} is being run by {'another process' if pid is None else f'process {pid}'}",
            subject=str(path),
            cure="Wait for it, end it, or give this batch another name",
        ) from error
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        raise StoreError(
            f"cannot be locked ({error.strerror})", subject=str(path), cure="Keep it on another file system"
        ) from error
    _handles.add(handle)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the number
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock)
        _handles.discard(handle)
        os.close(handle)


_handles: set[int] = set()


def _let_go() -> None:
    """In a forked child, which would keep a killed parent's locks."""
    for handle in _handles:
        with contextlib.suppress(OSError):
            os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_let_go)


def _lock_path(path: Path, batch: str) -> Path:
    digest = blake2b(batch.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return path.with_name(f"{path.name}-{digest}.lock")


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _holder(lock: Path) -> int | None:
    """The living process that a lock names."""
    try:
        pid = int(lock.read_text("ascii"))
        if pid > 0:
            os.kill(pid, 0)
    except PermissionError:
        return pid  # it lives, and is another user's
    except (OSError, ValueError, OverflowError):
        return None
    return pid if pid > 0 else None
