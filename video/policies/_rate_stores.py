"""Where budgets are kept: in this process, or in a SQLite file; `_rate_file` and `_rate_redis` hold two more.

A store applies one step of `_rate_gcra` to one budget at a time, whoever else asks. Those that are shared
have a clock of their own, the same for all who share them, so answers are seconds from now.

On one machine that is the clock since its start, suspended time included, which nobody can set
(CLOCK_BOOTTIME; elsewhere than on Linux, the monotonic clock). The number of that start is kept beside it, so
that a budget that outlives a restart is known for such.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from video.errors import ConfigError, StoreError
from video.policies import _rate_gcra as gcra
from video.policies._rate_gcra import INFINITE, NUMBERS, Figures, Holder, State, Ticket
from video.policies._rate_machine import birth, boot_number, bury, machine_clock

Clock = Callable[[], float]

_SQLITE = (".sqlite", ".sqlite3", ".db")
_WAIT_SECONDS = 30.0
"""How long SQLite waits for other processes."""


class Store(Protocol):
    """Keeps budgets by name. Each method is one step; `now` is used by a store without a clock of its own.

    A budget that is not there, or is lost, is made with the figures that come with each step.
    """

    def claim(self, key: str, figures: Figures, now: float, ticket: Ticket, longest: float) -> float: ...

    def undo(self, key: str, figures: Figures, now: float, ticket: Ticket) -> None: ...

    def apply(self, key: str, figures: Figures, now: float, step: str, *values: Any) -> Any:
        """One of `penalize`, `push_back`, `succeed`, `look`, `configure`, with what each takes; or `release`,
        with the `Ticket.lease` that has ended."""
        ...

    def close(self) -> None: ...


def open_store(where: str | os.PathLike[str] | Store | None, clock: Clock | None = None) -> Store:
    """
    :param where: None: memory; a path: a file there for each budget, or all in one SQLite file where it ends
        in .sqlite, .sqlite3 or .db; redis://, rediss:// or unix://: that server; or a store.
    :param clock: of a file, in place of the machine's; for tests.
    """
    if where is None:
        return MemoryStore()
    if isinstance(where, str | os.PathLike):
        text = os.fspath(where)
        if text.startswith(("redis://", "rediss://", "unix://")):
            from video.policies._rate_redis import RedisStore

            return RedisStore(text)
        if not text or "://" in text:
            scheme = text.partition("://")[0]  # the rest may hold a password
            raise ConfigError(
                f"store begins with {scheme!r}" if text else "store is ''",
                cure="It takes a path, redis://host:port/0, None for memory, or a store.",
            )
        if text.endswith(_SQLITE):
            return SqliteStore(text, clock=clock)
        from video.policies._rate_file import FileStore

        return FileStore(text, clock=clock)
    if not all(callable(getattr(where, name, None)) for name in ("claim", "undo", "apply", "close")):
        raise ConfigError(
            f"store is {where!r}", cure="It takes a path, redis://host:port/0, None for memory, or a store."
        )
    return where


class MemoryStore:
    """In this process only, by the caller's clock."""

    def __init__(self, *, wall: Clock = time.time) -> None:
        self._wall = wall
        self._lock = threading.RLock()
        self._states: dict[str, State] = {}

    def claim(self, key: str, figures: Figures, now: float, ticket: Ticket, longest: float) -> float:
        with self._lock:
            state = self._states.get(key) or self._new(key, figures, now)
            if state.per_day != INFINITE:
                state.wall = self._wall()
            return gcra.claim(state, now, ticket, longest)

    def undo(self, key: str, figures: Figures, now: float, ticket: Ticket) -> None:
        self.apply(key, figures, now, "undo", ticket)

    def apply(self, key: str, figures: Figures, now: float, step: str, *values: Any) -> Any:
        with self._lock:
            state = self._states.get(key) or self._new(key, figures, now)
            gcra.observe(state, now)
            state.wall = self._wall()
            return _STEPS[step](state, *(() if step == "release" else values))

    def close(self) -> None:
        """There is nothing to let go of."""

    def _new(self, key: str, figures: Figures, now: float) -> State:
        self._states[key] = state = State(now, figures)
        return state


class LocalStore(ABC):
    """What the stores have in common that processes of one machine share.

    A process that was forked opens its own: locks and connections that it inherits are its parent's.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock | None = None, wall: Clock = time.time
    ) -> None:
        self.path = Path(path)
        self._wall = wall
        self._clock = clock or machine_clock
        self._boot = 0.0 if clock else boot_number()
        self._pid = 0
        self._lock = threading.Lock()
        self._holder: Holder = (0, 0)

    def claim(self, key: str, figures: Figures, now: float, ticket: Ticket, longest: float) -> float:
        with self._budget(key, figures) as (state, at):
            if state.holders and sum(state.holders.values()) >= state.most:
                bury(state)
            return gcra.claim(state, at, ticket, longest, self._holder)

    def undo(self, key: str, figures: Figures, now: float, ticket: Ticket) -> None:
        with self._budget(key, figures) as (state, at):
            gcra.observe(state, at)
            gcra.undo(state, ticket, self._holder)

    def apply(self, key: str, figures: Figures, now: float, step: str, *values: Any) -> Any:
        with self._budget(key, figures) as (state, at):
            gcra.observe(state, at)
            if step == "look":
                bury(state)
            return _STEPS[step](state, *((self._holder,) if step == "release" else values))

    def close(self) -> None:
        """Let go of the files; they are opened again if they are needed."""
        with self._lock:
            if self._pid == os.getpid():
                self._shut()
            self._pid = 0

    @contextlib.contextmanager
    def _budget(self, key: str, figures: Figures) -> Iterator[tuple[State, float]]:
        """One budget, alone: it is read, and written once the step is done. Its time is read while nobody
        else can write, so it never goes back."""
        pid = os.getpid()
        if pid != self._pid:
            if self._pid:
                self._lock = threading.Lock()
                self._forget()
            self._pid, self._holder = pid, (pid, birth(pid))
        with self._lock, self._errors(), self._alone(key) as kept:
            now, wall = self._clock(), self._wall()
            if isinstance(kept, State):
                state = kept
                gcra.started(state, now, wall, self._boot)
            else:
                state = State(now, figures)
                state.boot = self._boot
                if kept:  # it is lost: any number may have been had in the last minute
                    gcra.penalize(state, gcra.WINDOW)
            state.wall = wall
            yield state, now
            self._keep(key, pack(state))

    @abstractmethod
    def _alone(self, key: str) -> contextlib.AbstractContextManager[State | bool]:
        """Keep others out. The budget; False: there is none yet; True: it is damaged."""

    @abstractmethod
    def _keep(self, key: str, data: bytes) -> None:
        """Write the budget."""

    @abstractmethod
    def _shut(self) -> None:
        """Let go of the files."""

    @abstractmethod
    def _forget(self) -> None:
        """As `_shut`, for what was inherited: it must not be touched."""

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, sqlite3.Error) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"the rate limiter's store cannot be used ({error})",
                subject=str(self.path),
                cure="Name a file on a local disk that is this program's own, or delete this one.",
            ) from error


class SqliteStore(LocalStore):
    """All budgets in one file. A budget that was lost with it begins anew."""

    _file: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[State | bool]:
        file = self._file or self._open()
        file.execute("BEGIN IMMEDIATE")
        try:
            row = file.execute("SELECT state FROM budgets WHERE key = ?", (key_bytes(key),)).fetchone()
            if row is None:
                yield False
            else:
                yield (unpack(row[0]) if isinstance(row[0], bytes) else None) or True
        except BaseException:
            file.execute("ROLLBACK")
            raise
        file.execute("COMMIT")

    def _keep(self, key: str, data: bytes) -> None:
        assert self._file is not None
        self._file.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?)", (key_bytes(key), data))

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made here, since SQLite gives its files, and those beside it, the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        file = sqlite3.connect(
            self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=OFF")  # a machine that fails starts anew, and so do its clocks
            file.execute(
                "CREATE TABLE IF NOT EXISTS budgets (key BLOB PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID"
            )
        except BaseException:
            file.close()
            raise
        self._file = file
        return file

    def _shut(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _forget(self) -> None:
        self._inherited = self._file  # closing it here would drop the parent's locks
        self._file = None


_STEPS: dict[str, Callable[..., Any]] = {
    name: getattr(gcra, name)
    for name in ("undo", "release", "penalize", "push_back", "succeed", "configure", "look")
}
_HEAD = struct.Struct(f"<{len(NUMBERS)}d")
_HOLDER = struct.Struct("<QQQ")
_numbers = attrgetter(*NUMBERS)


def key_bytes(key: str) -> bytes:
    """Of any text, also such as file names may be."""
    return key.encode("utf-8", "surrogatepass")


def pack(state: State) -> bytes:
    head = _HEAD.pack(*_numbers(state))
    if not state.holders:
        return head
    return head + b"".join(_HOLDER.pack(*holder, count) for holder, count in state.holders.items())


def unpack(data: bytes) -> State | None:
    """None: these bytes are no budget."""
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _HOLDER.size:
        return None
    state = State.__new__(State)
    for name, value in zip(NUMBERS, _HEAD.unpack_from(data), strict=True):
        setattr(state, name, value)
    needed = state.interval + state.tolerance + state.burst + state.tat + state.tail + state.last
    needed += state.factor + state.generation + state.used + state.wall + state.boot
    others = state.per_day + state.most, state.until, state.cut, state.day
    if not math.isfinite(needed) or any(other != other for other in others) or state.until == INFINITE:
        return None
    if state.interval <= 0 or not 0 < state.factor <= 1:
        return None
    holders = _HOLDER.iter_unpack(data[_HEAD.size :]) if len(data) > _HEAD.size else ()
    state.holders = {(pid, born): count for pid, born, count in holders}
    return state
