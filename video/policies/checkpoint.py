"""The policy that remembers: what an earlier run finished is not run again, and a killed one is taken up.

What it promises: effects at least once, results exactly once.

- Before an item runs, the file says that it has begun; once it has ended, the file says how. After a kill the
  items that had begun and not ended run again, as do those whose end was not committed yet: their effects may
  have happened before. No other item runs twice.
- An item has one result for ever. That holds to the letter for a caller who is handed an outcome only after
  its row is committed (`flush` returns): what anybody has seen is then what every later run answers. Without
  that, a result that was handed out within the last `interval` before a kill may be made a second time.
- The end of a task's output must be one step (write beside, then rename): then a killed item leaves either a
  whole output or none.

    begin_many ---- commit ----> the items run ----> done_many --+
                                                                 | a group, each `interval` or 1,000 rows
         handed to the caller <---- flush <------ commit <-------+
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from video.errors import ConfigError, ItemCancelled, OutputError, StoreError, VideoError, described
from video.outcome import Outcome
from video.policies._checkpoint_store import (
    BEGUN,
    DONE,
    FAILED,
    BatchInfo,
    Command,
    Row,
    Slot,
    Store,
    batch_info,
    forget,
    list_batches,
    pending_commands,
)
from video.policies._content import content_key
from video.policies.base import Job, Verdict

__all__ = [
    "BatchInfo",
    "Checkpoint",
    "Command",
    "batch_info",
    "forget",
    "list_batches",
    "pending_commands",
]

GROUP_ROWS = 1000
"""A commit of so many costs some 3 us a row (benchmarks/bench_checkpoint.py); more gain nothing."""
GROUP_SECONDS = 0.05
WHOLE_BYTES = 8 << 20
"""Hashing so much takes about 10 ms."""
PIECES = 8
LONGEST_ERROR = 1000
"""Characters of a failed item's error that are kept."""

_log = logging.getLogger(__name__)


class Checkpoint:
    """Keeps the state of one batch in a file. Use it in a `with` block, or call `close`.

    :param path: the file; it may hold other batches too. It is made where there is none, for its owner only.
    :param batch: name of the batch in that file.
    :param fingerprint: settings that change what items give, by name, as plain data; no secrets, since they
        are stored and shown. A batch that was made with others is refused.
    :param key: what an item is known by in later runs, whatever its place in the input; None: `content_key`.
        Equal items are told apart by counting them.
    :param encode: a value as plain data (what JSON can hold); None: it is plain data.
    :param decode: the way back. JSON turns tuples into lists and the keys of a dict into strings.
    :param outputs: files that a value stands for. Their sizes and hashes are kept, and an item whose files
        are missing or changed runs again. None: none.
    :param base: a folder; outputs inside it are known by their place in it, so that it may be moved. None:
        the checkpoint's own.
    :param fork: where the batch was made with other settings, run a new one beside it.
    :param total: length of the input, where it is known.
    :param durable: what is committed also survives a loss of power (a few ms more for each commit). Without,
        a loss of power may cost the last groups; a kill costs nothing either way.
    :param whole_bytes: larger outputs are hashed by eight pieces, evenly spread from first to last byte, that
        make up so much together. That finds what was cut off, exchanged or never filled; it may not find a
        few changed bytes. None: always whole; 0: sizes only.
    :param interval: seconds after which a result is committed at the latest, unless `flush` does so before.
    :param command: how to ask for this run again without the program that made it: kept until `carried_out`
        is called.
    :raises ConfigError: if an argument is wrong.
    :raises StoreError: if the file cannot be used, or another process runs this batch.
    :raises CheckpointMismatch: if the batch was made with another fingerprint, and `fork` is not set.

    Memory: about 150 bytes for each item of the run, by which equal items are counted.
    """

    name = "checkpoint"
    answers = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch: str = "default",
        fingerprint: Mapping[str, Any] | None = None,
        key: Callable[[Any], str] | None = None,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outputs: Callable[[Any], Iterable[str | os.PathLike[str]]] | None = None,
        base: str | os.PathLike[str] | None = None,
        fork: bool = False,
        total: int | None = None,
        durable: bool = False,
        whole_bytes: int | None = WHOLE_BYTES,
        interval: float = GROUP_SECONDS,
        command: Command | None = None,
    ) -> None:
        _check_name(batch)
        if (encode is None) != (decode is None):
            given = "encode" if decode is None else "decode"
            raise ConfigError(f"only {given} is given", subject="encode, decode", cure="Give both or none")
        for name, value, least in (
            ("whole_bytes", whole_bytes, 0),
            ("total", total, 0),
            ("interval", interval, 1e-3),
        ):
            if value is not None and not least <= value:
                raise ConfigError(f"is {value!r}", subject=name, cure=f"It is at least {least:g}")
        self.path = Path(os.path.realpath(path))
        self.base = Path(os.path.realpath(self.path.parent if base is None else base))
        self.answered = 0
        """Items of this run that an earlier one had done."""
        self.begun = 0
        """Items of this run that had to run. 0 at the end: there was nothing to do."""
        self._key = key or content_key
        self._encode, self._decode, self._outputs = encode, decode, outputs
        self._whole_bytes = whole_bytes
        self._interval = interval
        self._total: int | None = None
        self._lock = threading.Lock()
        """Of all that follows; never held while the file is written."""
        self._seen: Counter[bytes] = Counter()
        self._slots: dict[int, Slot] = {}
        """Of items that have begun, or failed and may be tried again, by position."""
        self._queue: dict[Slot, Row | None] = {}
        """What is not committed yet; later rows of an item replace earlier ones."""
        self._committing = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._store = Store(
            self.path,
            batch,
            _plain_fingerprint(fingerprint or {}),
            fork=fork,
            total=total,
            durable=durable,
            command=command,
        )

    @property
    def batch(self) -> str:
        """Name of the batch; another than was asked for where it is a fork."""
        return self._store.batch

    @property
    def resumed(self) -> bool:
        """An earlier run has left something."""
        return self._store.resumed

    # For whole chunks

    def begin_many(self, jobs: Sequence[Job]) -> dict[int, Outcome[Any]]:
        """Before items run: the outcomes of those that are done, by position. That the others begin is in the
        file when this returns.

        :raises ConfigError: if an item has no key, or the checkpoint is closed.
        :raises StoreError: if it cannot be written; then none of them may run.
        """
        self._check_open()
        digests = [self._digest(job.item) for job in jobs]
        slots: list[Slot] = []
        fresh = 0
        with self._lock:
            for job, digest in zip(jobs, digests, strict=True):
                slot = self._slots.get(job.index)  # there is one if it is tried again
                if slot is None:
                    self._slots[job.index] = slot = (digest, self._seen[digest])
                    self._seen[digest] += 1
                    fresh += 1
                slots.append(slot)
        answers = self._answers(jobs, slots) if self._store.resumed else {}
        begins: dict[Slot, Row | None] = {
            slot: (BEGUN, job.index, job.attempts, 0.0, None, None, None)
            for job, slot in zip(jobs, slots, strict=True)
            if job.index not in answers
        }
        if begins:
            self._commit(begins)
        with self._lock:
            for index in answers:
                del self._slots[index]
            self.answered += len(answers)
            self.begun += fresh - len(answers)
        return answers

    def done_many(self, pairs: Iterable[tuple[int, Outcome[Any]]]) -> dict[int, Outcome[Any]]:
        """After items have run, with the positions that they began with. Queues what is to be committed, and
        never raises for the file's sake: `flush` and the next `begin_many` do.

        :return: by position, outcomes that take the place of those given: of items whose value cannot be kept
            or whose outputs are not there, which counts as failed.
        :raises ConfigError: if an item has not begun, or is done.
        """
        instead: dict[int, Outcome[Any]] = {}
        rows: list[tuple[int, Outcome[Any], Row | None]] = []
        for index, outcome in pairs:
            row = None
            try:
                if outcome.error is None:
                    row = self._done_row(index, outcome)
            except VideoError as error:
                outcome = dataclasses.replace(outcome, value=None, error=error)
                instead[index] = outcome
            rows.append((index, outcome, row))
        unknown = []
        with self._lock:
            for index, outcome, row in rows:
                slot = self._slots.get(index)
                if slot is None:
                    unknown.append(index)
                elif row is not None:
                    del self._slots[index]
                    self._queue[slot] = row
                elif not isinstance(outcome.error, ItemCancelled):
                    self._queue[slot] = _failed_row(index, outcome)
                elif not outcome.attempts:  # else it stays begun: it has run for a while
                    self._queue[slot] = None
            full = len(self._queue) >= GROUP_ROWS
            if self._thread is None and self._queue and not self._closed.is_set():
                self._thread = threading.Thread(target=self._keep_committing, name="checkpoint", daemon=True)
                self._thread.start()
        if full:
            self._try_commit()
        if unknown:
            raise ConfigError(
                "have not begun, or are done",
                subject=f"items {unknown}",
                cure="Begin an item, then end it once",
            )
        return instead

    def flush(self) -> None:
        """Commit what is queued; when this returns, it may be handed to the caller.

        :raises StoreError: if it cannot be written. Nothing is lost: it stays queued, and `flush` may be
            called again once there is space.
        :raises ConfigError: if the checkpoint is closed.
        """
        self._check_open()
        self._commit({})

    def set_total(self, total: int) -> None:
        """The length of the input, once it is known; committed with the next group."""
        with self._lock:
            self._total = total

    def carried_out(self) -> None:
        """Say that all that `command` was for is done, so that it is not to be resumed.

        :raises StoreError: if it cannot be written.
        """
        self.flush()
        self._store.carried_out()

    def close(self) -> None:
        """Commit what is queued and let go of the file; does nothing the second time.

        :raises StoreError: if it cannot be written. The file is let go all the same, and the items whose ends
            are not in it run again next time.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._commit({})
        finally:
            self._store.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConfigError(
                "the checkpoint is closed",
                subject=f"{self.path}, batch {self.batch!r}",
                cure="Use it within its `with` block; to go on later, open it again: Checkpoint(path, ...)",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The protocol of policies: one item at a time

    def admit(self, job: Job, now: float) -> Verdict:
        return self.begin_many([job]).get(job.index)

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        return self.done_many([(job.index, outcome)]).get(job.index)

    def withdraw(self, job: Job, now: float) -> None:
        with self._lock:
            if slot := self._slots.get(job.index):
                self._queue[slot] = None

    def idle(self, now: float) -> bool:
        return False

    def passed(self, count: int, now: float) -> None:
        """Never called: it is never idle."""

    # What is done

    def _digest(self, item: Any) -> bytes:
        try:
            return blake2b(self._key(item).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        except Exception as error:
            raise ConfigError(
                f"has no key by which later runs would know it ({described(error)})",
                subject=f"an item of type {type(item).__qualname__}",
                cure="Give Checkpoint(key=...) a function of an item that returns a string.",
            ) from error

    def _answers(self, jobs: Sequence[Job], slots: Sequence[Slot]) -> dict[int, Outcome[Any]]:
        answers = {}
        for job, found in zip(jobs, self._store.done(slots), strict=True):
            if found is None:
                continue
            attempts, seconds, value, outputs = found
            try:
                if outputs is not None and (words := self._changed(json.loads(outputs))):
                    _log.warning("item %d is done, but %s: it runs again", job.index, words)
                    continue
                plain = json.loads(value or "null")
                kept = plain if self._decode is None else self._decode(plain)
            except Exception as error:  # noqa: BLE001  # a user's `decode` raises what it likes
                _log.warning("item %d is done, but what is kept of it cannot be read (%s): it runs again",
                             job.index, described(error))  # fmt: skip
                continue
            answers[job.index] = Outcome(job.index, kept, None, attempts, seconds, self.name)
        return answers

    def _done_row(self, index: int, outcome: Outcome[Any]) -> Row:
        """
        :raises VideoError: if its value cannot be kept, or an output is not there.
        """
        value, files = outcome.value, None
        try:
            text = json.dumps(value if self._encode is None else self._encode(value))
        except Exception as error:
            raise ConfigError(
                f"its value, a {type(value).__qualname__}, cannot be kept as JSON ({described(error)})",
                subject=f"item {index}",
                cure="Return plain data, or give `encode` and `decode`",
            ) from error
        if self._outputs is not None:
            try:
                paths = [os.fsdecode(path) for path in self._outputs(value)]
            except Exception as error:
                raise ConfigError(
                    f"its outputs cannot be told ({described(error)})",
                    subject=f"item {index}",
                    cure="`outputs` takes a value and returns paths",
                ) from error
            files = json.dumps([self._described(path) for path in paths])
        return DONE, index, outcome.attempts, outcome.seconds, text, None, files

    def _described(self, path: str) -> tuple[str, int, str]:
        """
        :raises OutputError: if it cannot be read.
        """
        whole = os.path.abspath(path)
        try:
            size, digest = _hashed(whole, self._whole_bytes)
        except OSError as error:
            raise OutputError(
                f"is named as an output and cannot be read ({error.strerror})",
                subject=whole,
                cure="See what the task writes and what `outputs` returns",
            ) from error
        inside = os.path.realpath(whole).startswith(f"{str(self.base).rstrip(os.sep)}{os.sep}")
        return os.path.relpath(os.path.realpath(whole), self.base) if inside else whole, size, digest

    def _changed(self, files: list[list[Any]]) -> str:
        """Why an item's outputs are no longer what they were; empty: they are."""
        for place, size, digest in files:
            path = os.path.join(self.base, place)
            try:
                if os.stat(path).st_size != size or _hashed(path, self._whole_bytes)[1] != digest:
                    return f"{path} has changed"
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"
        return ""

    # Commits

    def _commit(self, more: Mapping[Slot, Row | None]) -> None:
        """Write what is queued and `more`; on failure the former stays queued."""
        with self._committing:
            with self._lock:
                taken, self._queue = self._queue, {}
                total, self._total = self._total, None
            if not taken and not more and total is None:
                return
            try:
                self._store.commit({**taken, **more} if taken else more, total)
            except BaseException:
                with self._lock:
                    self._queue = {**taken, **self._queue}
                    self._total = total if self._total is None else self._total
                raise

    def _try_commit(self) -> None:
        try:
            self._commit({})
        except StoreError as error:  # whoever begins or flushes next is told
            _log.warning("%s", error)

    def _keep_committing(self) -> None:
        while not self._closed.wait(self._interval):
            self._try_commit()


def _plain(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, PurePath):
        return {"Path": str(value)}
    if isinstance(value, Enum):
        return {kind.__qualname__: value.value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare
        }
        return {kind.__qualname__: fields}
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return {kind.__qualname__: dump(mode="json")}
    raise TypeError(f"a {kind.__qualname__} is no plain data")


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain)


def _check_name(batch: str) -> None:
    if not isinstance(batch, str) or not batch or not batch.isprintable():
        raise ConfigError(f"is {batch!r}", subject="batch", cure="It takes a name of printable characters")


def _plain_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """
    :raises ConfigError: if it is not plain data.
    """
    try:
        return {str(name): json.loads(_encoder.encode(value)) for name, value in fingerprint.items()}
    except Exception as error:
        raise ConfigError(
            f"holds what is no plain data ({described(error)})",
            subject="fingerprint",
            cure="Give plain settings",
        ) from error


def _failed_row(index: int, outcome: Outcome[Any]) -> Row:
    assert outcome.error is not None
    words = described(outcome.error)[:LONGEST_ERROR].encode("utf-8", "replace").decode()
    return FAILED, index, outcome.attempts, outcome.seconds, None, words, None


def _hashed(path: str, whole_bytes: int | None) -> tuple[int, str]:
    """Size and hash of a file; of a larger one than `whole_bytes`, the hash of evenly spread pieces.

    :raises OSError: if it cannot be read.
    """
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if whole_bytes is None or size <= whole_bytes:
            while piece := file.read(1 << 20):
                digest.update(piece)
        else:
            length = whole_bytes // PIECES
            for number in range(PIECES):
                file.seek((size - length) * number // (PIECES - 1))
                digest.update(file.read(length))
    return size, digest.hexdigest()
