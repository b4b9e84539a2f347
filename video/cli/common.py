"""What the commands share: exit codes, where people and machines read, how errors look, how to stop."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.text import Text

from video import scope
from video.config import ParallelConfig
from video.errors import ConfigError, UnknownName

CHECKPOINT = ".video-jobs.sqlite"
"""In an output folder: what its batches have written down."""
SOME_FAILED_EXIT, OUTPUT_EXIT, USAGE_EXIT, STOPPED_EXIT = 1, 1, 2, 130

Command = TypeVar("Command", bound=Callable[..., Any])


def length_of_time(least: float = 0.0) -> Callable[[Any], float]:
    """The type of an option that takes seconds.

    :param least: 0: anything above that.
    """

    def seconds(words: Any) -> float:
        found = _number(words)
        if not math.isfinite(found) or found < least or found <= 0:
            bound = f"from {least:g} on" if least else "above 0"
            raise click.BadParameter(f"{words!r} is no length of time. Give seconds {bound}, such as 600.")
        return found

    return seconds


def share(least: float) -> Callable[[Any], float]:
    """The type of an option that takes a number above `least` and below 1. NaN, which click's own range lets
    pass, is none."""

    def number(words: Any) -> float:
        found = _number(words)
        if not least < found < 1:
            raise click.BadParameter(f"{words!r} is no number above {least:g} and below 1, such as 0.97.")
        return found

    return number


def _number(words: Any) -> float:
    """NaN for what is none."""
    try:
        return float(words)
    except ValueError:
        return math.nan


def people() -> Console:
    """Progress, notes and errors: standard error, so that output can be piped."""
    return Console(stderr=True, highlight=False, emoji=False)


def output() -> Console:
    """Tables, for a person. Names of files are shown as they are, `:smile:` too."""
    return Console(highlight=False, emoji=False)


def say(console: Console, words: str, label: str = "") -> None:
    """One line as it is, whatever signs are in it, after a red label."""
    console.print(Text.assemble((f"{label} ", "red") if label else "", words), soft_wrap=True)


def counted(count: int, thing: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


def how_to_go_on(place: Path) -> str:
    """What to do after a batch was stopped.

    :param place: its checkpoint.
    """
    named = place.parent if place.name == CHECKPOINT else place
    return f"; the same command goes on from there, or video jobs resume {shlex.quote(str(named))}"


def machine_reads(json: bool) -> bool:
    """Whether to print JSON lines: on request, or when nobody sees the output."""
    return json or sys.stdout is None or not sys.stdout.isatty()


def fail(words: str, code: int) -> NoReturn:
    say(people(), words, "" if code == STOPPED_EXIT else "error:")
    sys.exit(code)


def stop_on_signals() -> None:
    """On Ctrl-C, SIGTERM or a closed terminal, workers end and unfinished files go."""

    def stop(*_: object) -> NoReturn:
        # The exception may be lost inside native code; the flag is not, and `go_on` looks at it.
        scope.stopping.set()
        raise KeyboardInterrupt

    show = sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            show(lost)

    sys.unraisablehook = unraisable
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), stop)


def go_on() -> None:
    """Raise the KeyboardInterrupt that a signal asked for, if it got lost on its way."""
    if scope.stopping.is_set():
        raise KeyboardInterrupt


def engine_options(command: Command) -> Command:
    """--backend, --workers and --timeout."""
    for option in reversed(
        [
            click.option("--backend", default="auto", show_default=True, metavar="NAME",
                         help="auto, serial, thread, process, joblib, dask, async, or a plugin's: see "
                              "`video backends`."),
            click.option("--workers", type=click.IntRange(min=1), metavar="N",
                         help="Videos at once.  [default: the usable CPUs]"),
            click.option("--timeout", type=length_of_time(), metavar="SECONDS",
                         help="Longest time for one video."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def batch_options(name: str) -> Callable[[Command], Command]:
    """What commands ask of a batch: --resume, --checkpoint, --batch, --fork, --retries, --order and --set.

    :param name: the batch's own in a checkpoint.
    """

    def add(command: Command) -> Command:
        for option in reversed(
            [
                click.option("--resume", is_flag=True,
                             help="Write down what is done, and go on where an earlier run with --resume "
                                  "stopped."),
                click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                             help=f"Where that is written down; implies --resume.  [default: {CHECKPOINT} "
                                  "in DIR]"),
                click.option("--batch", metavar="NAME",
                             help="Name of this batch where several share that file; implies --resume.  "
                                  f"[default: {name}]"),
                click.option("--fork", is_flag=True,
                             help="With other settings than the earlier run had: begin a new one."),
                click.option("--retries", type=click.IntRange(0, 100), default=0, show_default=True,
                             metavar="N",
                             help="Try a video again up to N times that failed for a reason which may pass."),
                click.option("--order", type=click.Choice(["input", "shortest", "longest"]), default="input",
                             show_default=True,
                             help="Which videos come first, by the size of their files: shortest, so that "
                                  "most are done soon, or longest, so that no worker ends with a long one."),
                click.option("--set", "more", multiple=True, metavar="NAME=VALUE",
                             help="Any other setting of the guide's table, such as rate_limit_rpm=60, "
                                  "memory_limit_gb=4, circuit_breaker_enabled=true, or enable_caching=true "
                                  "with cache_path=FILE. May be given again."),
            ]
        ):  # fmt: skip
            command = option(command)
        return command

    return add


NOT_SET = (
    "backend",
    "max_workers",
    "timeout",
    "max_retries",
    "preload",
    "initializer",
    "finalizer",
    "cluster",
)
"""Settings that have options of their own, or name code or machines: a checkpoint must not say those."""


def config_of(
    backend: str,
    workers: int | None,
    timeout: float | None,
    retries: int = 0,
    more: Mapping[str, str] | None = None,
) -> ParallelConfig:
    """The options as settings; a wrong one is wrong usage.

    :param more: settings by their names, as text.
    """
    from video.registry import backends

    try:
        if backend == "serial" and timeout is not None:
            raise ConfigError(
                f"--timeout {timeout:g} needs an engine that can stop a video", cure="Use --backend process."
            )
        if backend != "auto":
            backends.get(backend)
        if wrong := next((name for name in more or {} if name in NOT_SET), None):
            raise ConfigError(
                f"--set takes no {wrong}", cure="It has an option of its own, or is for programs."
            )
        settings = {"backend": backend, "max_workers": workers, "timeout": timeout, "max_retries": retries}
        return ParallelConfig.from_mapping({**(more or {}), **settings})
    except (UnknownName, ConfigError) as error:
        raise click.UsageError(str(error)) from None
