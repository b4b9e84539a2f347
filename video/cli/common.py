"""What the commands share: exit codes, where people and machines read, how errors look."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.markup import escape

from video.config import ParallelConfig
from video.errors import ConfigError, UnknownName

SOME_FAILED_EXIT, USAGE_EXIT, STOPPED_EXIT = 1, 2, 130

Command = TypeVar("Command", bound=Callable[..., Any])


def people() -> Console:
    """Progress, notes and errors: standard error, so that output can be piped."""
    return Console(stderr=True, highlight=False)


def machine_reads(json: bool) -> bool:
    """Whether to print JSON lines: on request, or when nobody sees the output."""
    return json or not sys.stdout.isatty()


def fail(words: str, code: int) -> NoReturn:
    people().print(
        f"[red]error:[/red] {escape(words)}" if code != STOPPED_EXIT else escape(words), soft_wrap=True
    )
    sys.exit(code)


def on_terminate() -> None:
    """Let SIGTERM and a closed terminal clean up as Ctrl-C does: workers end and unfinished files go."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), stop)


def engine_options(command: Command) -> Command:
    """--backend, --workers and --timeout."""
    for option in reversed(
        [
            click.option("--backend", default="auto", show_default=True, metavar="NAME",
                         help="auto, serial, thread, process, async, or a plugin's (see `video backends`)."),
            click.option("--workers", type=click.IntRange(min=1), metavar="N",
                         help="Videos at once.  [default: the usable CPUs]"),
            click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                         help="Longest time for one video."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def config_of(backend: str, workers: int | None, timeout: float | None) -> ParallelConfig:
    """The options as settings; a wrong one is wrong usage."""
    from video.registry import backends

    try:
        if backend != "auto":
            backends.get(backend)
        return ParallelConfig(backend=backend, max_workers=workers, timeout=timeout)
    except (UnknownName, ConfigError) as error:
        raise click.UsageError(str(error)) from None
