"""How an error is classed: what may pass by itself, and what somebody has to put right first.

Errors of other packages are told by what they carry (`status`, `status_code`, `response`, `headers`,
`retry_after`), so that none of those packages is imported here. What such an error does when it is looked at
is its own affair: an attribute that raises counts as absent.
"""

from __future__ import annotations

import builtins
import errno
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any

from video import errors
from video.errors import ConfigError

logger = logging.getLogger("video")


class Fault(StrEnum):
    TRANSIENT = "transient"
    """It may pass by itself: a cut, a stall, an overloaded server, and whatever nobody knows better of."""
    LIMITED = "limited"
    """A service asks to be left alone for a while. It is in order, and so is the item."""
    INPUT = "input"
    """Fix your input: the item, or the code that works on it, fails in the same way every time."""
    ACCOUNT = "account"
    """Fix your account: a login, a payment or a permission is missing."""
    STOP = "stop"
    """Another try is pointless or does harm: a full disk, a wrong setting, an item that kills its workers, an
    open circuit, a cancelled item."""


Matches = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""Which errors are meant: a type, several types, or a function of the error."""

_STOP = (
    errors.ConfigError,
    errors.UnknownName,
    errors.MissingDependency,
    errors.BackendUnavailable,
    errors.BatchFailed,
    errors.ItemCancelled,
    errors.WorkerDied,  # the engine has its own count of the workers that an item may kill
    errors.CircuitOpen,
    errors.StoreError,
    errors.OutputError,
    MemoryError,
)
_INPUT = (
    errors.NotPicklable,
    errors.SourceNotFound,
    errors.MediaError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_STATUSES = {
    **dict.fromkeys((401, 402, 403, 407), Fault.ACCOUNT),
    **dict.fromkeys((408, 425), Fault.TRANSIENT),
    429: Fault.LIMITED,
    **dict.fromkeys((501, 505, 510, 511), Fault.INPUT),
}
"""RFC 9110 section 15, RFC 6585, RFC 8470. Others: 5xx is TRANSIENT, proxies' own too, the rest INPUT."""
_NUMBERS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), Fault.STOP),
    **dict.fromkeys((errno.EACCES, errno.EPERM), Fault.ACCOUNT),
    **dict.fromkeys(
        (
            errno.ENOENT,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
            errno.EINVAL,
            errno.ELOOP,
            errno.EXDEV,
        ),
        Fault.INPUT,
    ),
}

_OS_TYPES: tuple[tuple[type[OSError], Fault], ...] = (
    (PermissionError, Fault.ACCOUNT),
    (FileNotFoundError, Fault.INPUT),
    (FileExistsError, Fault.INPUT),
    (IsADirectoryError, Fault.INPUT),
    (NotADirectoryError, Fault.INPUT),
)


def classify(error: BaseException) -> Fault:
    """The class of an error. What it says of itself counts first (an attribute `fault`, one of the words of
    `Fault`), then an HTTP status, then its type, then its errno. Unknown kinds are TRANSIENT: who asks for
    retries wants them for such."""
    said = _get(error, "fault")
    if isinstance(said, str) and said in _WORDS:
        return Fault(said)
    if isinstance(error, _STOP) or not isinstance(error, Exception):  # Ctrl-C, an exit, a cancelled coroutine
        return Fault.STOP
    if isinstance(error, errors.RateLimited):
        return Fault.LIMITED
    if (code := status(error)) is not None:
        # GitHub is one of those that say 403 where others say 429, and add when to come back.
        if code == 403 and _header(error) is not None:
            return Fault.LIMITED
        return _STATUSES.get(code, Fault.TRANSIENT if code >= 500 else Fault.INPUT)
    if isinstance(error, _INPUT):
        return Fault.INPUT
    if isinstance(error, errors.RemoteError):
        kind = getattr(builtins, error.kind, None)
        return Fault.INPUT if isinstance(kind, type) and issubclass(kind, _INPUT) else Fault.TRANSIENT
    if isinstance(error, OSError) and error.errno is None:  # made with words alone: its type says it
        return next((fault for kind, fault in _OS_TYPES if isinstance(error, kind)), Fault.TRANSIENT)
    if isinstance(error, OSError) and not _numbered_otherwise(error):
        return _NUMBERS.get(error.errno or 0, Fault.TRANSIENT)
    return Fault.TRANSIENT


def status(error: BaseException) -> int | None:
    """The HTTP status (300 to 599) that an error carries, itself or in its `response`; None for none."""
    response = _get(error, "response")
    for owner in (error, response):
        for name in ("status", "status_code"):
            value = _get(owner, name)
            if isinstance(value, str) and value.isascii() and value.isdigit():
                value = int(value[:4])
            if isinstance(value, int) and 300 <= value <= 599:
                return int(value)
    return None


def retry_after(error: BaseException, now_epoch: float) -> float | None:
    """Seconds, at least 0, after which the error says that another try makes sense; None: it does not say.

    Read from its attribute `retry_after` (seconds or a timedelta), or from the header Retry-After of it or of
    its `response` (seconds or an HTTP date; RFC 9110 section 10.2.3).

    :param now_epoch: seconds since the epoch, for dates.
    """
    said = _seconds(_get(error, "retry_after"), now_epoch)
    return said if said is not None else _seconds(_header(error), now_epoch)


def matcher(name: str, what: Matches | None) -> Callable[[BaseException], bool] | None:
    """A test for errors, from an argument called `name`. A function that raises is logged and says no.

    :raises ConfigError: if it is neither types nor a function.
    """
    if what is None:
        return None
    kinds = what if isinstance(what, tuple) else (what,)
    if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        return lambda error: isinstance(error, kinds)  # type: ignore[arg-type]  # all of them are types
    if isinstance(what, tuple | type) or not callable(what):
        raise ConfigError(
            f"{name} is {what!r}", cure="It takes an error type, a tuple of them, or a function of the error."
        )

    def test(error: BaseException) -> bool:
        try:
            return bool(what(error))
        except Exception:  # a user's function must never break a batch
            logger.exception("%s failed on %s", name, type(error).__name__)
            return False

    return test


_WORDS = frozenset(Fault)


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001  # a foreign property raises what it likes
        return None


def _header(error: BaseException) -> Any:
    for owner in (error, _get(error, "response")):
        get = _get(_get(owner, "headers"), "get")
        if not callable(get):
            continue
        for name in ("Retry-After", "retry-after"):
            try:
                value = get(name)
            except Exception:  # noqa: BLE001, S112  # no mapping after all
                continue
            if value is not None:
                return value
    return None


def _seconds(value: Any, now_epoch: float) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        value = _number(value) if _number(value) is not None else _until(value, now_epoch)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return max(found, 0.0) if abs(found) < float("inf") else None


def _number(text: str) -> float | None:
    try:
        return float(text[:32])
    except ValueError:
        return None


def _until(text: str, now_epoch: float) -> float | None:
    from email.utils import mktime_tz, parsedate_tz  # only few servers send a date

    try:
        parts = parsedate_tz(text[:64])
        # Without a zone it means GMT, which is all that HTTP knows.
        return None if parts is None else mktime_tz((*parts[:9], parts[9] or 0)) - now_epoch
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _numbered_otherwise(error: OSError) -> bool:
    """Errors of name look-up and TLS carry numbers of their own in `errno`."""
    for module, name in (("socket", "gaierror"), ("socket", "herror"), ("ssl", "SSLError")):
        kind = getattr(sys.modules.get(module), name, None)  # whose module is not loaded raised nothing
        if isinstance(kind, type) and isinstance(error, kind):
            return True
    return False
