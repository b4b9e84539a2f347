"""Every error that this package raises, each also the built-in kind that a caller would catch.

    VideoError                      Exception
     ├─ ConfigError                 ValueError          a setting or an argument is wrong
     ├─ UnknownName                 LookupError         no backend or source of that name
     ├─ MissingDependency           ImportError         an optional package is not installed
     ├─ BackendUnavailable          RuntimeError        an engine cannot start or has broken down
     ├─ BatchFailed                 RuntimeError        an item failed where one failure is to end the batch
     ├─ TaskError                                       one item failed for a reason outside its own code
     │   ├─ ItemTimeout             TimeoutError        it ran longer than `timeout`
     │   ├─ ItemCancelled           RuntimeError        it was cancelled, or its batch was left
     │   ├─ WorkerDied              RuntimeError        its worker died (signal or exit code)
     │   │   ├─ WorkerOutOfMemory   MemoryError         it was ended for want of memory
     │   │   └─ Quarantined                             it has killed worker after worker
     │   ├─ MemoryExceeded          MemoryError         the memory budget has no room for it
     │   ├─ NotPicklable            TypeError           it cannot cross to or from a worker
     │   ├─ RemoteError             RuntimeError        stands for an error that cannot cross
     │   ├─ CircuitOpen             ConnectionError     what it uses fails too often to be tried
     │   └─ RateLimited             ConnectionError     a service takes no more requests for now
     ├─ StoreError                  OSError             a checkpoint, cache or limiter's store is out of order
     │   └─ CheckpointMismatch      ValueError          it belongs to another batch
     ├─ SourceError                 OSError             an input cannot be had
     │   ├─ SourceNotFound          FileNotFoundError
     │   └─ DownloadFailed          ConnectionError
     ├─ MediaError                  ValueError          an input is not what the job needs
     │   ├─ InvalidMedia                                empty, truncated, or not a media file
     │   └─ UnsupportedMedia                            fine, but this job cannot use it
     └─ OutputError                 OSError             a result cannot be written

A message reads `subject: cause. cure`: what it is about (mostly a file), what happened, what to do.
All of them survive pickling, with their attributes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # a worker process starts faster without these
    from collections.abc import Sequence
    from typing import Any


class VideoError(Exception):
    """Base of all errors here.

    :param cause: what happened, in a few words.
    :param subject: the file, URL or name that it happened to.
    :param cure: what the reader can do about it, as a sentence.
    """

    def __init__(self, cause: str = "", *, subject: str | None = None, cure: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.subject = subject
        self.cure = cure

    def __str__(self) -> str:
        text = self.cause if self.subject is None else f"{self.subject}: {self.cause}"
        return text if self.cure is None else f"{text.rstrip('.')}. {self.cure}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Built without __init__, so that a subclass may take any arguments and still cross a process border.
        return _rebuild, (type(self), self.args, self.__dict__)


def described(error: BaseException) -> str:
    """Kind and words of any error; what a user's own says of itself may fail."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001  # whatever its `__str__` raises
        words = ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _rebuild(kind: type[VideoError], args: tuple[Any, ...], state: dict[str, Any]) -> VideoError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(VideoError, ValueError):
    """A setting or an argument is wrong."""


class UnknownName(VideoError, LookupError):
    """No backend or source is registered under that name."""


class MissingDependency(VideoError, ImportError):
    """An optional package is not installed; the message holds the line that installs it."""


class BackendUnavailable(VideoError, RuntimeError):
    """An engine cannot start here, or has broken down for good.

    :param begun: what it had may have begun, and so is not for another engine to run; but for the items of a
        chunk, of which nobody knows which had.
    """

    def __init__(self, cause: str = "", *, begun: bool = False, **about: str | None) -> None:
        super().__init__(cause, **about)
        self.begun = begun


class BatchFailed(VideoError, RuntimeError):
    """With `fail="fast"`: an item failed. Its error is the `__cause__`.

    :param failed: position of that item in the input.
    :param outcomes: what had finished and was not yet handed out; from `map`, all that had finished.
    :param done: positions of all items that had finished, handed out or not.
    :param running: positions of those that were running, and were given up.
    :param waiting: positions of those that were drawn from the input and never started.
    """

    def __init__(
        self,
        cause: str = "",
        *,
        failed: int = -1,
        outcomes: Sequence[Any] = (),
        done: Sequence[int] = (),
        running: Sequence[int] = (),
        waiting: Sequence[int] = (),
        **about: str | None,
    ) -> None:
        super().__init__(cause, **about)
        self.failed = failed
        self.outcomes = list(outcomes)
        self.done = done
        self.running = list(running)
        self.waiting = list(waiting)


class TaskError(VideoError):
    """One item failed for a reason outside its own code."""


class ItemTimeout(TaskError, TimeoutError):
    """The item ran longer than `timeout` seconds, counted from its own start."""


class ItemCancelled(TaskError, RuntimeError):
    """The item was cancelled, or stopped because its batch was left."""


class WorkerDied(TaskError, RuntimeError):
    """The worker that ran the item died.

    :param exitcode: the exit code; negative, a signal's number (as in :mod:`subprocess`); None, unknown.
    """

    def __init__(self, cause: str = "", *, exitcode: int | None = None, **about: str | None) -> None:
        super().__init__(cause, **about)
        self.exitcode = exitcode


class WorkerOutOfMemory(WorkerDied, MemoryError):
    """The system, or the memory guard, ended the worker for want of memory; the item was the one that it
    ran."""


class MemoryExceeded(TaskError, RuntimeError, MemoryError):  # with MemoryError alone it could not be rebuilt
    """The memory budget has no room for the item, although nothing else runs; it was not begun."""


class Quarantined(WorkerDied):
    """The item has killed its worker again and again, and is not run any more.

    :param kills: how many workers it has killed.
    """

    def __init__(
        self, cause: str = "", *, kills: int = 0, exitcode: int | None = None, **about: str | None
    ) -> None:
        super().__init__(cause, exitcode=exitcode, **about)
        self.kills = kills


class NotPicklable(TaskError, TypeError):
    """A task, item, result or error cannot be pickled, so it cannot cross to or from a worker."""


class RemoteError(TaskError, RuntimeError):
    """Stands for a worker's error that cannot cross the border; `kind` is its class name."""

    def __init__(self, cause: str = "", *, kind: str = "", **about: str | None) -> None:
        super().__init__(cause, **about)
        self.kind = kind


class CircuitOpen(TaskError, ConnectionError):
    """The item was not tried, since what it uses has failed too often of late.

    :param retry_after: seconds until it is tried again; None, not before somebody says so.
    """

    def __init__(self, cause: str = "", *, retry_after: float | None = None, **about: str | None) -> None:
        super().__init__(cause, **about)
        self.retry_after = retry_after


class RateLimited(TaskError, ConnectionError):
    """A service refuses, or would refuse, more requests for now.

    :param retry_after: seconds that it asked to be left alone; None, it did not say.
    """

    def __init__(self, cause: str = "", *, retry_after: float | None = None, **about: str | None) -> None:
        super().__init__(cause, **about)
        self.retry_after = retry_after


class StoreError(VideoError, OSError):
    """A store of a policy (checkpoint, cache, rate limiter) cannot be read or written."""


class CheckpointMismatch(StoreError, ValueError):
    """A checkpoint belongs to a batch with other settings or another task."""


class SourceError(VideoError, OSError):
    """An input cannot be had.

    :param fault: a word of `video.policies.faults.Fault`, where more is known than that.
    """

    def __init__(self, cause: str = "", *, fault: str | None = None, **about: str | None) -> None:
        super().__init__(cause, **about)
        if fault is not None:
            self.fault = fault


class SourceNotFound(SourceError, FileNotFoundError):
    """The input does not exist."""


class DownloadFailed(SourceError, ConnectionError):
    """A download failed.

    :param status: the HTTP status, where the server gave one.
    :param retry_after: seconds, or the date, after which the server asks to be tried again.
    :param final: another try would end in the same way, whatever the status.
    """

    def __init__(
        self,
        cause: str = "",
        *,
        status: int | None = None,
        retry_after: str | None = None,
        final: bool = False,
        **about: str | None,
    ) -> None:
        super().__init__(cause, fault="input" if final else None, **about)
        self.status = status
        self.retry_after = retry_after


class MediaError(VideoError, ValueError):
    """An input is not what the job needs."""


class InvalidMedia(MediaError):
    """Empty, truncated, damaged, or not a media file at all."""


class UnsupportedMedia(MediaError):
    """A sound file that this job cannot use: no video stream, a codec without a decoder, and so on."""


class OutputError(VideoError, OSError):
    """A result cannot be written: no permission, a full disk, a failed check."""


class RemoteTraceback(Exception):
    """Carries a worker's traceback as text; stands as the `__cause__` of the error that it belongs to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"
