"""Where processes tell each other which circuits are open: a small SQLite file, times by the wall clock.

Nothing in it has to last: a file that is lost costs each process a few failures of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from video.errors import StoreError

MOST_ROWS = 1000
"""Rows that are read: those that opened last."""
FORGET_SECONDS = 86400.0
"""Rows that nobody has touched for so long are dropped."""

SLACK = 1.0
"""Seconds by which a time may lie further ahead than it should."""


class BreakerStore(Protocol):
    """What breakers share that have the same rules. It has a clock of its own, so times are passed as seconds
    from now. Any method may raise; the breakers then go on by themselves.
    """

    def read(self) -> dict[str, tuple[float, float, float]]:
        """Of each open key: seconds until it may be probed (0 or less: it may be), seconds since it last
        opened (after a probe, say), and seconds since it opened at first."""
        ...

    def open(self, key: str, seconds: float, since: float) -> None:
        """It opens now, is not to be probed for so many seconds, and opened at first `since` seconds ago."""
        ...

    def claim(self, key: str, seconds: float) -> bool:
        """Take the right to probe it, for so many seconds. False: another process has it, or it is not time
        yet."""
        ...

    def close(self, key: str) -> None:
        """All is well again."""
        ...


class SqliteBreakerStore:
    """A file that all processes of one machine name. It is created with mode 0600, its folder with 0700.

    :param wall: seconds since the epoch.
    :raises StoreError: if it cannot be opened, or is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], *, wall: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._wall = wall
        self._lock = threading.Lock()
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made here, since SQLite gives its files, and those beside it, the mode of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._file = sqlite3.connect(
                self.path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=OFF")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS circuits (key TEXT PRIMARY KEY, until REAL NOT NULL, "
                "opened REAL NOT NULL, since REAL NOT NULL) WITHOUT ROWID"
            )
            self._run("DELETE FROM circuits WHERE until < ?", self._wall() - FORGET_SECONDS)

    def read(self) -> dict[str, tuple[float, float, float]]:
        now = self._wall()
        found = {}
        for key, *times in self._run("SELECT * FROM circuits ORDER BY since DESC LIMIT ?", MOST_ROWS):
            until, opened, since = (one if isinstance(one, float) else None for one in times)
            if isinstance(key, str) and until is not None and opened is not None and since is not None:
                found[key] = until - now, max(now - opened, 0.0), max(now - since, 0.0)
        return found

    def open(self, key: str, seconds: float, since: float) -> None:
        now = self._wall()
        self._run(
            "INSERT INTO circuits VALUES (?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET until = excluded.until, opened = excluded.opened",
            key,
            now + seconds,
            now,
            now - since,
        )

    def claim(self, key: str, seconds: float) -> bool:
        now = self._wall()
        # What is not due for longer than it can be was written before the clock was put back.
        sql = "UPDATE circuits SET until = ? WHERE key = ? AND (until <= ? OR until > ?) RETURNING 1"
        return bool(self._run(sql, now + seconds, key, now, now + seconds + SLACK))

    def close(self, key: str) -> None:
        self._run("DELETE FROM circuits WHERE key = ?", key)

    def shut(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._file.close()

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._errors(), self._lock:
            return self._file.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"the breakers' store cannot be used ({error})",
                subject=str(self.path),
                cure="Name a file on a local disk that is this program's own, or delete this one.",
            ) from error
