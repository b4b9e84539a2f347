"""What an item's code logs, prints and warns in a worker is told where the caller sees it.

In a worker, `Forwarding` catches it as notes: plain tuples, the kind first. `replay` tells a note in the
caller's process: through its loggers, its `sys.stdout` and `sys.stderr`, its warning filters.
"""

from __future__ import annotations

import io
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:  # a worker process starts faster without these
    import logging
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
        self._tell = tell
        self._levels = levels
        self._before: tuple[Any, ...] = ()
        self._handlers: list[logging.Handler] | None = None
        self._awaited: _WhenImported | None = None

    def start(self) -> None:
        self._before = sys.stdout, sys.stderr, warnings.showwarning
        sys.stdout, sys.stderr = _Printed("out", self._tell), _Printed("err", self._tell)
        warnings.showwarning = self._show_warning
        if "logging" in sys.modules:
            self._catch_logs()
        else:  # 8 ms that a worker's first item need not wait for
            self._awaited = _WhenImported("logging", self._catch_logs)
            sys.meta_path.insert(0, self._awaited)

    def flush(self) -> None:
        """Send lines that are not ended yet."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Printed):
                stream.flush()

    def stop(self) -> None:
        if not self._before:
            return
        sys.stdout, sys.stderr, warnings.showwarning = self._before
        if self._awaited in sys.meta_path:
            sys.meta_path.remove(self._awaited)
        if self._handlers is not None:
            import logging

            logging.getLogger().handlers[:] = self._handlers

    def _catch_logs(self) -> None:
        import logging

        root = logging.getLogger()
        self._handlers = root.handlers[:]
        root.handlers[:] = [_log_handler(self._tell)]
        for name, level in self._levels.items():
            logging.getLogger(name or None).setLevel(level)

    def _show_warning(
        self, message: Any, category: type, filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        self._tell(("warning", str(message), category.__module__, category.__qualname__, filename, lineno))


class _WhenImported:
    """On `sys.meta_path`: calls `then` once a module has been imported."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute, then = spec.loader.exec_module, self._then

            def exec_module(module: Any) -> None:
                execute(module)
                then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


def _log_handler(tell: Callable[[Note], None]) -> logging.Handler:
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
    """Tell a worker's note in this process. Never raises: a handler may, which must not break a batch."""
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
    except Exception:  # see above
        logging.getLogger("video").debug("a worker's note could not be told", exc_info=True)
