"""What an item's code logs, prints and warns in a worker is told where the caller sees it.

In a worker, `Forwarding` catches it as notes: plain tuples, the kind first. `replay` tells a note in the
caller's process: through its loggers, its `sys.stdout` and `sys.stderr`, its warning filters.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

Note = tuple[Any, ...]


def levels() -> dict[str, int]:
    """The caller's loggers that have a level of their own, so that workers drop what nobody would see."""
    import logging

    found = {"": logging.getLogger().level}
    for name, logger in logging.getLogger().manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and logger.level:
            found[name] = logger.level
    return found


class Forwarding:
    """Catches logs, prints and warnings of this process.

    :param tell: called with each note, in the thread that it came from.
    :param levels: of the caller's loggers.
    """

    def __init__(self, tell: Callable[[Note], None], levels: dict[str, int]) -> None:
        import logging

        self._tell = tell
        self._before: tuple[Any, ...] | None = None
        self._levels = levels
        self._handler = _Handler(tell)
        self._root = logging.getLogger()

    def start(self) -> None:
        import logging

        self._before = sys.stdout, sys.stderr, warnings.showwarning, self._root.handlers[:]
        sys.stdout, sys.stderr = _Printed("out", self._tell), _Printed("err", self._tell)
        warnings.showwarning = self._show_warning
        self._root.handlers[:] = [self._handler]
        for name, level in self._levels.items():
            logging.getLogger(name or None).setLevel(level)

    def flush(self) -> None:
        """Send lines that are not ended yet."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Printed):
                stream.flush()

    def stop(self) -> None:
        self.flush()
        if self._before is not None:
            sys.stdout, sys.stderr, warnings.showwarning, self._root.handlers[:] = self._before

    def _show_warning(
        self, message: Any, category: type, filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        self._tell(("warning", str(message), category.__module__, category.__qualname__, filename, lineno))


def _Handler(tell: Callable[[Note], None]) -> Any:  # noqa: N802  # a class, made once logging is imported
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                text = record.exc_text
                if record.exc_info and not text:
                    text = logging.Formatter().formatException(record.exc_info)
                state = {
                    key: value
                    for key, value in record.__dict__.items()
                    if isinstance(value, str | int | float | None)
                }
                state |= {"msg": record.getMessage(), "args": None, "exc_info": None, "exc_text": text}
                tell(("log", state))
            except Exception:  # noqa: BLE001  # a record that cannot be told must not fail the item
                self.handleError(record)

    return Handler()


class _Printed(io.TextIOBase):
    """Sends what is printed, by lines."""

    def __init__(self, kind: str, tell: Callable[[Note], None]) -> None:
        self._kind = kind
        self._tell = tell
        self._waiting = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._waiting += text
        if "\n" in text:
            whole, _, self._waiting = self._waiting.rpartition("\n")
            self._tell((self._kind, whole + "\n"))
        return len(text)

    def flush(self) -> None:
        if self._waiting:
            text, self._waiting = self._waiting, ""
            self._tell((self._kind, text))

    def fileno(self) -> int:
        return 1 if self._kind == "out" else 2

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here
        return "utf-8"


def replay(note: Note) -> None:
    """Tell a worker's note in this process. Never raises: a handler or filter may, which must not break a batch."""
    import logging

    try:
        kind, *rest = note
        if kind == "log":
            record = logging.makeLogRecord(rest[0])
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        elif kind == "warning":
            text, module, name, filename, lineno = rest
            category = getattr(sys.modules.get(module), name, UserWarning)
            warnings.warn_explicit(text, category, filename, lineno)
        else:
            stream = sys.stdout if kind == "out" else sys.stderr
            if stream is not None:
                stream.write(rest[0])
                stream.flush()
    except Exception:  # noqa: BLE001  # see above
        logging.getLogger("video").debug("a worker's note could not be told", exc_info=True)
