"""The policy that answers an item from what the same item gave before.

    item --- key + inputs ---+
    task, version, settings --+--> digest --> store --> too old? outputs changed? --> the answer

What it promises: an answer equals what the task returned for an item of the same content, under the same
task, version and settings, at most `ttl` seconds ago; and the files that the answer names are as they were.
Whatever is wrong with its store, or with a value that cannot be kept, no batch fails for it.
"""

from __future__ import annotations

import copy
import json
import marshal
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any

from video.errors import ConfigError, VideoError, described
from video.events import logger
from video.outcome import Outcome
from video.policies._cache_store import CacheStore, Entry, MemoryCache, SqliteCache
from video.policies._checks import INFINITE
from video.policies._content import content_hash, content_key, file_stamp, is_json
from video.policies.base import Job, Verdict

__all__ = ["CachePolicy", "CacheStore", "Entry", "MemoryCache", "SqliteCache", "content_key", "fresh"]

DAY = 86400.0
SLACK = 1.0
"""Seconds by which an entry may lie ahead of the clock; one that lies further was made before the clock was
put back, and nobody knows how old it is."""

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class CachePolicy:
    """Keeps the values of items that ended well, and answers equal items with them.

    It stands before what is spent on an attempt (retry, breaker, rate). Its answers have the origin "cache",
    no attempts and no seconds.

    :param store: a `MemoryCache` or a `SqliteCache`; several policies may share one.
    :param task: what the task is called in every program that shares the store. Two tasks of one name would
        answer for each other.
    :param version: of the task; another one never answers.
    :param settings: what else changes what items give, by name, as plain data: another value never answers.
    :param key: what an item is known by; None: `content_key`. An item that has no key is not cached.
    :param ttl: seconds that a value is good for, by the clock of the day; None: for ever.
    :param encode: a value as plain data (what JSON can hold); None: it is plain data.
    :param decode: the way back.
    :param inputs: files that an item stands for. Their sizes and times of change are part of its key, so that
        a changed file is another item. None: none.
    :param outputs: files that a value stands for. Their sizes and times of change are kept; where one is gone
        or changed, the item runs again. None: none.
    :param hash_outputs: keep and compare their hashes instead of their times of change, which sees every
        change and reads each file whole at each hit.
    :param wall: seconds since the epoch.
    :raises ConfigError: if an argument is wrong.

    Every hit is a value of its own, so that no caller can change another's: plain data is read anew (from
    JSON; in memory from `marshal`, which is quicker), an object that only memory can hold is copied
    (`copy.deepcopy`) on its way in and out. Values that JSON would change (a tuple, keys that are no strings)
    count as objects. What cannot be kept (an object in a file, one that cannot be copied) is not kept, and
    counted.
    """

    name = "cache"
    answers = True

    def __init__(
        self,
        store: CacheStore,
        *,
        task: str,
        version: str = "",
        settings: Mapping[str, Any] | None = None,
        key: Callable[[Any], str] | None = None,
        ttl: float | None = DAY,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        inputs: Callable[[Any], Paths] | None = None,
        outputs: Callable[[Any], Paths] | None = None,
        hash_outputs: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(task, str) or not task:
            raise ConfigError(f"task is {task!r}", cure="It takes a name that other tasks do not have.")
        if not isinstance(version, str):
            raise ConfigError(f"version is {version!r}", cure="It takes a string.")
        sound = isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl < INFINITE
        if ttl is not None and not sound:
            raise ConfigError(f"ttl is {ttl!r}", cure="It takes seconds above 0, or None.")
        if (encode is None) != (decode is None):
            given = "encode" if decode is None else "decode"
            raise ConfigError(f"only {given} is given", subject="encode, decode", cure="Give both or none.")
        scope = content_key([task, version, dict(settings or {})])
        self.store, self.ttl = store, ttl
        self._scope = blake2b(scope.encode(), digest_size=32).digest()
        self._key = key or content_key
        self._encode, self._decode = encode, decode
        self._inputs, self._outputs, self._hash_outputs = inputs, outputs, hash_outputs
        self._wall = wall
        self._note = f"{self.name}:{id(self)}"
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._warned = False

    def admit(self, job: Job, now: float) -> Verdict:
        key = job.notes.get(self._note)
        first = key is None
        if first or self._inputs is not None:  # they may have changed while it waited
            key = job.notes[self._note] = self._digest(job.item)
        if not key:
            return None
        entry = self.store.get(key)
        if entry is not None:
            if why := self._outdated(entry):
                self.store.drop(key, entry.created)
                self._count(why)
            else:
                try:
                    value = self._value(entry)
                except Exception as error:  # noqa: BLE001  # a user's `decode` raises what it likes
                    logger.debug("a cached value cannot be read: %s", described(error))
                    self.store.drop(key, entry.created)
                    self._count("unreadable")
                else:
                    self._count("hits")
                    return Outcome(job.index, value, None, 0, 0.0, self.name)
        if first:  # not when it comes again after a wait
            self._count("misses")
        return None

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        # What another policy answered is not new, and would be young again.
        key = job.notes.get(self._note) if outcome.error is None and outcome.origin == "run" else None
        if not key:
            return None
        if self._inputs is not None and self._digest(job.item) != key:
            self._count("unkept")  # an input has changed since: nobody knows which one was read
            return None
        try:
            entry = self._entry(outcome.value)
        except Exception as error:  # noqa: BLE001  # a user's functions and values raise what they like
            logger.debug("the value of item %d cannot be cached: %s", job.index, described(error))
            entry = None
        kept = entry is not None and self.store.put(key, entry)
        self._count("stored" if kept else "unkept")
        return None

    def withdraw(self, job: Job, now: float) -> None:
        """It takes nothing."""

    def idle(self, now: float) -> bool:
        return False

    def passed(self, count: int, now: float) -> None:
        """Never called: it is never idle."""

    def counts(self) -> dict[str, int]:
        """So far: `hits` and `misses`; of the misses, entries that were `expired`, `changed` (an output) or
        `unreadable`, and items that were `unkeyed`; values `stored`, and those `unkept`."""
        names = ("hits", "misses", "expired", "changed", "unreadable", "unkeyed", "stored", "unkept")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def hit_rate(self) -> float:
        """Hits among all items that were looked up, 0 to 1; 0 where there were none."""
        counts = self.counts()
        return counts["hits"] / max(1, counts["hits"] + counts["misses"])

    # Keys

    def _digest(self, item: Any) -> str:
        """Its key among all tasks and settings; "": it has none."""
        try:
            text = self._key(item)
            if self._inputs is not None:
                paths = [os.path.abspath(path) for path in _paths(self._inputs(item))]
                text = json.dumps([text, [[path, *_stamp(path)] for path in paths]])
            return blake2b(text.encode("utf-8", "surrogatepass"), key=self._scope, digest_size=16).hexdigest()
        except Exception as error:  # noqa: BLE001  # a user's functions raise what they like
            with self._lock:
                self._counts["unkeyed"] += 1
                # A request that is not valid travels as its error, and tells nothing of the others.
                told = self._warned or isinstance(item, VideoError)
                self._warned = self._warned or not told
            if not told:
                logger.warning("a %s is not cached, nor are others of its kind: %s",
                               type(item).__qualname__, described(error))  # fmt: skip
            return ""

    # Values

    def _entry(self, value: Any) -> Entry | None:
        """None: it cannot be kept."""
        files = "" if self._outputs is None else self._files(value)
        created = float(self._wall())
        plain = value if self._encode is None else self._encode(value)
        if is_json(plain):
            if self.store.objects:
                return Entry(created, None, files, _Plain(marshal.dumps(plain, _NO_REFERENCES)))
            return Entry(created, json.dumps(plain), files)
        # An object: JSON would make something else of it, and a file cannot hold it.
        return Entry(created, None, files, fresh(value)) if self.store.objects else None

    def _value(self, entry: Entry) -> Any:
        if entry.text is not None:
            plain = _read_json(entry.text)
        elif type(entry.value) is _Plain:
            plain = marshal.loads(entry.value)  # noqa: S302  # of this process's own making
        else:
            return fresh(entry.value)
        return plain if self._decode is None else self._decode(plain)

    def _files(self, value: Any) -> str:
        """
        :raises OSError: if one is not there.
        """
        assert self._outputs is not None
        found = []
        for path in _paths(self._outputs(value)):
            size, changed = file_stamp(path)
            mark = content_hash(path) if self._hash_outputs else changed
            found.append([os.path.abspath(path), size, mark])
        return json.dumps(found)

    def _outdated(self, entry: Entry) -> str:
        """Why it is good no more; empty: it is."""
        age = self._wall() - entry.created
        if not age >= -SLACK or (self.ttl is not None and age >= self.ttl):
            return "expired"
        if not entry.files:
            return "" if self._outputs is None else "changed"  # they were not looked at when it was made
        try:
            for path, size, mark in json.loads(entry.files):
                found, changed = file_stamp(path)
                if found != size:
                    return "changed"
                if isinstance(mark, str):  # a hash says by which algorithm it was made
                    changed = content_hash(path, mark.partition(":")[0])  # type: ignore[assignment]
                elif self._hash_outputs:
                    return "changed"
                if changed != mark:
                    return "changed"
        except Exception:  # noqa: BLE001  # gone, unreadable, or a foreign row
            return "changed"
        return ""

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


class _Plain(bytes):
    """Plain data in a store that never leaves this process: a copy of it is made in a third of the time that
    JSON takes, which is most of a hit (benchmarks/bench_cache.py)."""


_NO_REFERENCES = 2
"""The last version of `marshal` that makes two lists of one that stands in two places, as JSON does."""


def _read_json(text: str) -> Any:
    # Pydantic's parser takes a third of the time, a fifth of a hit; it refuses half a surrogate pair, and
    # what is nested two hundred deep.
    from pydantic_core import from_json

    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def fresh(value: Any) -> Any:
    """The same value, which nobody else can change.

    :raises Exception: whatever `copy.deepcopy` does with an object that cannot be copied.
    """
    return value if type(value) in _IMMUTABLE else copy.deepcopy(value)


_IMMUTABLE = frozenset((str, bytes, int, float, bool, type(None), complex))


def _paths(named: Paths) -> list[str]:
    """One path, or several."""
    one = isinstance(named, str | bytes | os.PathLike)
    return [os.fsdecode(path) for path in ((named,) if one else named)]  # type: ignore[arg-type,union-attr]


def _stamp(path: str) -> tuple[int, int] | tuple[()]:
    try:
        return file_stamp(path)
    except OSError:  # the task will meet it too
        return ()
