"""What all processors share: a batch of requests becomes a batch of responses, errors inside.

A processor says how one request becomes a job (`prepare`, in the caller's process), what a worker does
with it (`task`), and how its outcome reads (`respond`). Everything else is here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError

from video.config import BackendType, ParallelConfig
from video.errors import ConfigError, VideoError
from video.events import Observer, logger
from video.models import Problem
from video.outcome import Outcome
from video.plan import Choice
from video.policies.base import Policy
from video.processors._names import Names
from video.runner import Runner
from video.selector import Decision
from video.sources.base import readable, redact

if TYPE_CHECKING:  # with SQLite, for those who use one
    from video.policies.checkpoint import Checkpoint, Command

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")
Item = TypeVar("Item")
Chosen = Choice | Decision
"""Which engine, and why: by a rule, or by what was measured."""


class Processor(ABC, Generic[Request, Response]):
    """Runs requests of one kind. Keeps its workers warm between batches; use it in a `with` block, or
    call `close`.

    :param config: how batches run; None: every choice is made for you.
    :param observers: called with each `video.events.Event`.
    """

    request_type: ClassVar[type[BaseModel]]
    isolate: ClassVar[bool] = True
    """Video work meets damaged files, and only a process of its own keeps a crashing decoder from taking the
    rest of the batch along."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that a worker needs for this work."""
    task: Callable[[Any], Any]
    """What a worker does with one job: a function at the top level of its module."""
    batch_name: ClassVar[str] = "default"
    """Of its batches in a checkpoint."""

    def __init__(self, config: ParallelConfig | None = None, *, observers: Iterable[Observer] = ()) -> None:
        config = config or ParallelConfig()
        self.config = dataclasses.replace(
            config,
            preload=(*config.preload, *self.preload),
            # A video is a long item, and one that fails at once is no measure of the others.
            chunk_size=config.chunk_size or 1,
        )
        self.validation_reasons: list[str | None] = []
        """For each request of the last `validate_batch`: None, or why it is not valid."""
        self.policies = self._policies()
        """Beside the standard ones. Whoever makes another runner gives it the same: one of them may be a
        cache in memory."""
        self.runner = Runner(self.config, observers=observers, policies=self.policies)
        self._error_handler: Callable[[BaseException, Any], Response | None] | None = None
        self._latest_names: Names | None = None

    def _policies(self) -> list[Policy]:
        from video.policies.twins import Twins

        this = weakref.proxy(self)  # so that one that is dropped is freed at once
        twins = Twins(lambda job: this._known_by(job))
        if not self.config.enable_caching:
            return [twins]
        from video.policies.cache import CachePolicy, CacheStore, MemoryCache, SqliteCache

        path = self.config.cache_path
        store: CacheStore = MemoryCache() if path is None else SqliteCache(path)
        # Not by `close`, after which the processor may be used again.
        weakref.finalize(self, store.close)
        return [
            CachePolicy(
                store,
                task=f"{type(self).__module__}.{type(self).__qualname__} {self.batch_name}",
                version=sys.modules["video"].__version__,  # another may choose other clips
                ttl=3600.0 * self.config.cache_ttl_hours,
                encode=self.plain,
                decode=self.value,
                inputs=self.inputs,
                outputs=self.outputs,
            ),
            twins,
        ]

    def set_error_handler(self, handler: Callable[[BaseException, Any], Response | None] | None) -> None:
        """Have `handler(error, request)` say what the response to a request that failed is.

        It is called in the caller's own process, once for each request that has failed for good, in input
        order, as its turn comes. What it returns stands in place of the usual response; None leaves that as
        it is, and so does a handler that raises, which is logged.

        :param handler: the request is as it was passed in; None: no handler any more.
        :raises ConfigError: if it cannot be called.
        """
        if handler is not None and not callable(handler):
            raise ConfigError(
                f"the error handler is {handler!r}", cure="It takes a function of an error and a request."
            )
        self._error_handler = handler

    def handled(self, error: BaseException, request: Any) -> Response | None:
        """What the error handler makes of a failure; None: nothing."""
        handler = self._error_handler
        try:
            return None if handler is None else handler(error, request)
        except Exception:  # noqa: BLE001  # the user's own, which must not end the batch
            logger.exception("the error handler failed over %s", readable(str(error)))
            return None

    def process_batch_parallel(
        self,
        requests: Iterable[Request | Mapping[str, Any] | str],
        backend: BackendType | str = BackendType.AUTO,
        *,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        order: str = "input",
    ) -> list[Response]:
        """One response for each request, in input order; what goes wrong stands inside it.

        :param requests: requests, or mappings of their fields, or just sources.
        :param backend: an engine for this batch; AUTO: the configured one.
        :param checkpoint: a file in which the batch writes down what is done, or what `open_checkpoint`
            gives. A batch that is run again, after a kill or with more requests, then runs only what is not
            done, or whose outputs have changed since.
        :param order: in which they run: "input", or by the size of their files "shortest" or "longest" first;
            the input is then read to its end first. Responses keep their places.
        :raises UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
        :raises StoreError: if the checkpoint cannot be used.
        """
        lists = self.stream_process(requests, backend=backend, checkpoint=checkpoint, order=order)
        return [one for batch in lists for one in batch]

    def open_checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        batch: str | None = None,
        settings: Mapping[str, Any] | None = None,
        fork: bool = False,
        command: Command | None = None,
    ) -> Checkpoint:
        """A checkpoint for batches of this processor; use it in a `with` block.

        :param batch: its name in the file; None: the processor's own.
        :param settings: plain data: a batch that was run with others is refused.
        :param fork: where it was run with others, begin a new one beside it.
        :param command: how to ask for it again without this program; see `Checkpoint`.
        :raises CheckpointMismatch: if it was run with other settings, and `fork` is not set.
        :raises StoreError: if the file cannot be used, or another process runs this batch.
        """
        from video.policies.checkpoint import Checkpoint

        return Checkpoint(
            path,
            batch=batch or self.batch_name,
            fingerprint=settings,
            key=self._known_by,
            encode=self.plain,
            decode=self.value,
            outputs=self.outputs,
            fork=fork,
            command=command,
        )

    def _known_by(self, job: Any) -> str:
        return f"refused: {job}" if isinstance(job, VideoError) else self.job_key(job)

    def job_key(self, job: Any) -> str:
        """What a job is known by in later runs, whatever its place in the batch; its inputs count, too."""
        from video.policies._content import content_key, file_stamp

        stamps = []
        for path in self.inputs(job):
            with contextlib.suppress(OSError):  # the job fails with that when it runs
                stamps.append(file_stamp(path))
        return content_key([job, stamps])

    def plain(self, value: Any) -> Any:
        """What a job returned, as plain data (what JSON can hold)."""
        return value

    def value(self, plain: Any) -> Any:
        """The way back from `plain`."""
        return plain

    def resource(self, job: Any) -> str:
        """What a job uses and others use too, such as a host, which may fail for all of them; "": nothing."""
        return ""

    def inputs(self, job: Any) -> Iterable[Path]:
        """Files on this machine that a job reads."""
        return ()

    def weight(self, job: Any) -> float:
        """By which jobs are ordered: bytes of its inputs; infinite where nobody knows yet."""
        if isinstance(job, VideoError):
            return 0.0
        sizes = []
        for path in self.inputs(job):
            with contextlib.suppress(OSError):
                sizes.append(path.stat().st_size)
        return float(sum(sizes)) if sizes else math.inf

    def outputs(self, value: Any) -> Iterable[Path]:
        """Files that a job has written."""
        return ()

    async def process_batch_async(
        self,
        requests: Iterable[Request | Mapping[str, Any] | str],
        backend: BackendType | str = BackendType.AUTO,
        *,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        order: str = "input",
    ) -> list[Response]:
        """`process_batch_parallel` for async callers; the event loop is never blocked."""
        batch, opened = _Batch(self, requests, backend, order), None
        if isinstance(checkpoint, str | os.PathLike):
            opened = checkpoint = await asyncio.to_thread(self.open_checkpoint, checkpoint)
        try:
            await asyncio.to_thread(self.before, batch.call, checkpoint)
            outcomes = self.runner.astream(**batch.call, checkpoint=checkpoint)
            return [batch.response(outcome) async for outcome in outcomes]
        finally:
            await asyncio.to_thread(batch.tidy)
            if opened is not None:
                await asyncio.to_thread(opened.close)

    def stream_process(
        self,
        requests: Iterable[Request | Mapping[str, Any] | str],
        batch_size: int | None = None,
        *,
        backend: BackendType | str = BackendType.AUTO,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        order: str = "input",
    ) -> Iterator[list[Response]]:
        """Responses in input order, in lists, for inputs of any length: only a bounded number of requests
        and responses is held.

        :param batch_size: length of the lists (the last may be shorter); None: whatever is ready.
        """
        batch = _Batch(self, requests, backend, order)
        lists = self._lists(batch, checkpoint)
        if batch_size is None:
            return lists
        return self.chunk_data(itertools.chain.from_iterable(lists), batch_size)

    def _lists(
        self, batch: _Batch[Request, Response], checkpoint: Checkpoint | str | os.PathLike[str] | None
    ) -> Iterator[list[Response]]:
        with contextlib.ExitStack() as stack:
            if isinstance(checkpoint, str | os.PathLike):
                checkpoint = stack.enter_context(self.open_checkpoint(checkpoint))
            stack.callback(batch.tidy)
            self.before(batch.call, checkpoint)
            rounds = stack.enter_context(
                contextlib.closing(self.runner.rounds(**batch.call, checkpoint=checkpoint))
            )
            for outcomes in rounds:
                yield list(map(batch.response, outcomes))

    def before(self, call: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """What is to be done before a batch begins.

        :param call: what the runner is about to be called with; `items`, its jobs, may be listed ahead.
        """

    def chunk_data(self, data: Iterable[Item], chunk_size: int = 1000) -> Iterator[list[Item]]:
        """`data` in lists of `chunk_size`, the last may be shorter; draws no further than asked.

        :raises ConfigError: if `chunk_size` is below 1.
        """
        if chunk_size < 1:
            raise ConfigError(f"chunk_size is {chunk_size}", cure="It takes a whole number of at least 1.")
        items = iter(data)
        return iter(lambda: list(itertools.islice(items, chunk_size)), [])

    def validate_batch(self, requests: Iterable[Request | Mapping[str, Any] | str]) -> list[bool]:
        """Whether each request can be tried, judged without running it; `validation_reasons` says why not."""
        self.validation_reasons = []
        for raw in requests:
            try:
                self.check(self.request(raw))
            except Exception as error:  # noqa: BLE001  # any reason is one to report
                self.validation_reasons.append(str(error) or type(error).__name__)
            else:
                self.validation_reasons.append(None)
        return [reason is None for reason in self.validation_reasons]

    def explain(
        self,
        requests: Iterable[Request | Mapping[str, Any] | str] | None = None,
        backend: BackendType | str = BackendType.AUTO,
    ) -> Decision | None:
        """Which engine a batch of these requests would run on, and why; nothing is run. `str()` of it is a
        table of every engine.

        :param requests: None: say it of the latest batch; None before one.
        """
        if requests is None:
            return self.runner.explain()
        total = len(requests) if isinstance(requests, Sized) else None
        task = functools.partial(_run, type(self).task)
        return self.runner.explain(task, total=total, backend=backend, isolate=self.isolate)

    def close(self) -> None:
        """End the workers. The processor can be used again; it then starts new ones."""
        self.runner.close()
        if self._latest_names is not None:
            self._latest_names.tidy()  # what a stopped batch had begun is gone only now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def request(cls, raw: Any) -> Request:
        """`raw` as a request.

        :raises ConfigError: naming each field that is wrong.
        """
        if isinstance(raw, cls.request_type):
            return raw  # type: ignore[return-value]  # request_type is the class of Request
        if isinstance(raw, str | os.PathLike):
            raw = {"source": os.fspath(raw)}
        try:
            return cls.request_type.model_validate(raw)  # type: ignore[return-value]  # as above
        except ValidationError as error:
            if any(one["type"] == "string_unicode" for one in error.errors()):
                raise ConfigError("its name is not UTF-8", subject=_source(raw), cure="Rename it.") from None
            wrong = "; ".join(
                ": ".join([*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")])
                for one in error.errors()
            )
            raise ConfigError(f"this request is not valid: {wrong}", subject=redact(_source(raw))) from None

    @abstractmethod
    def check(self, request: Request) -> None:
        """Raise if the request cannot work; cheap, and without touching the network."""

    @abstractmethod
    def prepare(self, request: Request, names: Names) -> Any:
        """The job that travels to a worker."""

    @abstractmethod
    def respond(
        self, source: str, request: Request | None, outcome: Outcome[Any], chosen: Chosen
    ) -> Response:
        """The response; `request` is None where it was not valid."""


class _Batch(Generic[Request, Response]):
    """One pass over an input: requests become jobs, and outcomes responses."""

    def __init__(
        self,
        processor: Processor[Request, Response],
        requests: Iterable[Any],
        backend: str,
        order: str,
    ) -> None:
        if isinstance(requests, str | bytes | os.PathLike | Mapping | BaseModel):
            raise ConfigError("requests is a single one", cure="Put it into a list.")
        total = len(requests) if isinstance(requests, Sized) else None
        task = functools.partial(_run, type(processor).task)
        choice = processor.runner.choose(task, total=total, backend=backend, isolate=processor.isolate)
        self.call: dict[str, Any] = {
            "task": task,
            "items": self._jobs(requests),
            "total": total,
            "backend": backend,
            "isolate": processor.isolate,
            "key": lambda job: "" if isinstance(job, VideoError) else processor.resource(job),
            "order": order,
        }
        if order != "input":
            self.call["cost"] = processor.weight
        self._processor = processor
        self._choice = choice
        self._asked: dict[int, tuple[Any, str, Request | None]] = {}
        """Each request as it was passed in, what it is about, and as it was understood."""
        self._names = processor._latest_names = Names()
        if isinstance(requests, Sequence):
            self._names.inputs.update(map(_real_path, requests))

    def _jobs(self, requests: Iterable[Any]) -> Iterator[Any]:
        for index, raw in enumerate(requests):
            self._names.inputs.add(_real_path(raw))
            try:
                request = self._processor.request(raw)
                job = self._processor.prepare(request, self._names)
            except VideoError as error:
                self._asked[index] = raw, _source(raw), None
                yield error
            else:
                self._asked[index] = raw, _source(request), request
                yield job

    def tidy(self) -> None:
        """Nothing is left of a batch that made nothing."""
        self._names.tidy()

    def response(self, outcome: Outcome[Any]) -> Response:
        raw, source, request = self._asked.pop(outcome.index)
        if request is None:
            outcome = dataclasses.replace(outcome, attempts=0, seconds=0.0)
        if outcome.error is not None:
            response = self._processor.handled(outcome.error, raw)
            if response is not None:
                return response
        # What it runs on by now: another engine may have had to take over.
        choice = self._processor.runner.explain() or self._choice
        return self._processor.respond(source, request, outcome, choice)


def facts(source: str, outcome: Outcome[Any], chosen: Chosen) -> dict[str, Any]:
    """What every response says of how its request went."""
    error = outcome.error
    if isinstance(error, VideoError) and error.subject is None:
        error.subject = redact(source)  # a time limit or a dead worker does not know what it was about
    return {
        "success": error is None,
        "error": None if error is None else Problem.of(error),
        "seconds": outcome.seconds,
        "attempts": outcome.attempts,
        "backend": chosen.backend,
        "reason": chosen.reason,
    }


def _run(task: Callable[[Any], Any], job: Any) -> Any:
    """A request that was refused travels as its error, so that its response comes in its turn."""
    if isinstance(job, VideoError):
        raise job
    return task(job)


def _source(raw: Any) -> str:
    """What a request, in whatever form, is about."""
    if isinstance(raw, Mapping):
        raw = raw.get("source", raw.get("youtube_url", raw))
    return readable(str(getattr(raw, "source", raw)))


def _real_path(raw: Any) -> str:
    return os.path.realpath(_source(raw))
