"""How a batch should run: one flat, frozen, checked dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from video import resources
from video.errors import ConfigError


class BackendType(StrEnum):
    """The built-in engines. Wherever one is named, its string or a registered name will do as well."""

    AUTO = "auto"
    SERIAL = "serial"
    THREAD = "thread"
    PROCESS = "process"
    JOBLIB = "joblib"
    DASK = "dask"
    ASYNC = "async"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Settings of a batch; None means "decide for me".

    :raises ConfigError: on construction, naming the field, its value and what it may be.
    """

    backend: BackendType | str = BackendType.AUTO
    max_workers: int | None = None
    """Workers at once, at least 1. None: the usable CPUs (64 on the async engine, 1 on serial)."""
    chunk_size: int | None = None
    """Items that travel together at most; the planner adapts below it. None: up to 1024."""
    timeout: float | None = None
    """Seconds that one item may run, from its own start. Engines that cannot kill give the item up."""
    lookahead: int | None = None
    """Items drawn from the input and not yet handed out at most. None: four chunks for each worker, and at
    least 64 items for each."""
    threads_per_worker: int | None = None
    """Native (codec) threads of one item. None: usable CPUs / workers. Fix it for byte-equal encodes."""
    use_uvloop: bool = True
    """Run the async engine on uvloop where it is installed."""
    use_numba: bool = True
    """Let numba compile in worker processes. False: its functions run there as plain Python."""
    start_method: str | None = None
    """Of worker processes: "forkserver" or "spawn". None: forkserver on Linux, spawn elsewhere."""
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports once, so that each worker has them from its start."""
    initializer: Callable[[], object] | None = None
    """Called once in each worker before its first item; one that raises makes the engine unavailable."""
    finalizer: Callable[[], object] | None = None
    """Called once in each worker that leaves in peace; one that raises is logged."""
    max_items_per_worker: int | None = None
    """A worker process that has run this many items is replaced, between two items (process engine only)."""
    max_worker_memory_mb: float | None = None
    """A worker process that holds more MiB (resident) after a call (an item, or a chunk of short ones)
    is replaced (process engine only)."""
    fail: str = "isolate"
    """"isolate": an item that fails costs itself; "fast": the first failure ends the batch."""
    max_kills: int = 1
    """Workers that one item may kill. Below that it is run again, alone; then it is quarantined: it fails."""
    max_memory_kills: int = 2
    """The same for deaths for want of memory, which may be the fault of its neighbours."""
    max_retries: int = 0
    """How often an item is tried again that failed for a reason which may pass."""
    retry_delay_seconds: float = 1.0
    """Before the first retry at most; the wait is drawn at random from 0 up to that."""
    exponential_backoff: bool = True
    """Twice that before the second, and so on, up to a minute. False: the same before each."""
    retry_deadline_seconds: float | None = None
    """No retry begins later than so many seconds after the item's first attempt began."""
    circuit_breaker_enabled: bool = False
    """Leave a host or service alone (`key`) that fails again and again, until a probe succeeds."""
    failure_threshold: int = 5
    """Failures in a row that open its circuit."""
    recovery_timeout_seconds: float = 60.0
    """For how long it is left alone before it is probed."""
    rate_limit_rpm: float | None = None
    """Items that may begin in any minute, for each `key` (a host, a service) by itself. None: no limit."""
    memory_limit_gb: float | None = None
    """GB (of 2^30 bytes) that this program, its workers and their children may hold together: items wait for
    room, and a worker process that overruns it is ended. See `video.policies.memory`. None: no limit."""
    memory_limit_fraction: float | None = None
    """The same as a share, up to 1, of what the machine, or the control group, has."""
    enable_garbage_collection: bool = True
    """Collect garbage, here and in worker processes, where little of the memory limit is left."""
    enable_caching: bool = False
    """Processors: a request that was answered before, and whose input and outputs have not changed since, is
    answered again without being run."""
    cache_ttl_hours: float = 24.0
    """For how long that holds."""
    cache_path: str | os.PathLike[str] | None = None
    """A file in which answers are kept, so that they outlast the program and other programs share them; made
    where there is none, for its owner only. None: they are kept in memory."""
    spot_check: int = 0
    """So many random items are also run in the caller's own process at the end, and compared."""
    strict: bool = False
    """An engine that cannot start is an error, instead of a warning and the next simpler engine."""
    cluster: Any = None
    """For dask: a scheduler's address, the path of a scheduler file, or a `distributed.Client`. None: what
    DASK_SCHEDULER_ADDRESS names, else a cluster on this machine that starts and ends with the engine."""

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_COUNTS:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"{name} is {value!r}", cure=f"It takes a whole number of at least {least}."
                )
        for name, unit, optional in _MEASURES:
            value = getattr(self, name)
            if optional and value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                more = ", or None" if optional else ""
                raise ConfigError(f"{name} is {value!r}", cure=f"It takes {unit} above 0{more}.")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}", cure="It takes True or False.")
        if not isinstance(self.backend, str) or not self.backend:
            raise ConfigError(f"backend is {self.backend!r}", cure="It takes a BackendType or a name.")
        if self.start_method not in (None, "forkserver", "spawn"):
            raise ConfigError(
                f"start_method is {self.start_method!r}", cure='It takes "forkserver", "spawn" or None.'
            )
        if not isinstance(self.preload, tuple) or not all(isinstance(name, str) for name in self.preload):
            raise ConfigError(f"preload is {self.preload!r}", cure="It takes a tuple of module names.")
        for name in ("initializer", "finalizer"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}", cure="It takes a function of no arguments, or None."
                )
        if self.memory_limit_fraction is not None:
            if self.memory_limit_fraction > 1:
                raise ConfigError(
                    f"memory_limit_fraction is {self.memory_limit_fraction!r}",
                    cure="It takes a share above 0, up to 1; memory_limit_gb takes GB.",
                )
            if self.memory_limit_gb is not None:
                raise ConfigError(
                    "memory_limit_gb and memory_limit_fraction are both set", cure="Set one of them."
                )
            if self.memory_limit_bytes == float("inf"):
                raise ConfigError(
                    "nobody knows here how much memory there is", cure="Use memory_limit_gb instead."
                )
        if self.cache_path is not None and (
            not isinstance(self.cache_path, str | os.PathLike) or not os.fspath(self.cache_path)
        ):
            raise ConfigError(f"cache_path is {self.cache_path!r}", cure="It takes a path, or None.")
        if self.fail not in ("isolate", "fast"):
            raise ConfigError(f"fail is {self.fail!r}", cure='It takes "isolate" or "fast".')

    @property
    def memory_limit_bytes(self) -> float | None:
        """What the two memory limits come to here; None: no limit."""
        if self.memory_limit_gb is not None:
            return self.memory_limit_gb * 2**30
        if self.memory_limit_fraction is not None:
            return self.memory_limit_fraction * resources.usable_memory()
        return None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ParallelConfig:
        """From names and values, such as a parsed settings file; strings are read as the field's type."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        settings: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f'Did you mean "{near[0]}"?' if near else f"There are: {', '.join(fields)}."
                raise ConfigError(f'no setting is called "{name}"', cure=hint)
            settings[name] = _read(name, value, str(fields[name].type)) if isinstance(value, str) else value
        return cls(**settings)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "VIDEO_") -> ParallelConfig:
        """From variables such as VIDEO_MAX_WORKERS and VIDEO_TIMEOUT; others are left alone."""
        environ = os.environ if environ is None else environ
        named = {field.name: environ.get(prefix + field.name.upper()) for field in dataclasses.fields(cls)}
        return cls.from_mapping({name: value for name, value in named.items() if value})


_COUNTS = {
    "max_workers": 1,
    "chunk_size": 1,
    "lookahead": 1,
    "threads_per_worker": 1,
    "max_items_per_worker": 1,
    "max_kills": 1,
    "max_memory_kills": 1,
    "max_retries": 0,
    "failure_threshold": 1,
    "spot_check": 0,
}
"""Settings that are whole numbers, each with the least it may be."""
_OPTIONAL_COUNTS = ("max_workers", "chunk_size", "lookahead", "threads_per_worker", "max_items_per_worker")

_MEASURES = (
    ("timeout", "seconds", True),
    ("max_worker_memory_mb", "MiB", True),
    ("retry_delay_seconds", "seconds", False),
    ("retry_deadline_seconds", "seconds", True),
    ("recovery_timeout_seconds", "seconds", False),
    ("rate_limit_rpm", "items a minute", True),
    ("memory_limit_gb", "GB", True),
    ("memory_limit_fraction", "a share", True),
    ("cache_ttl_hours", "hours", False),
)
"""Settings that are figures above 0: each with its unit, and whether it may be None."""
_SWITCHES = (
    "use_uvloop",
    "use_numba",
    "exponential_backoff",
    "circuit_breaker_enabled",
    "enable_garbage_collection",
    "enable_caching",
    "strict",
)

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _read(name: str, text: str, kind: str) -> Any:
    """The value that `text` stands for in a field whose annotation is `kind`."""
    if "None" in kind and text.lower() in ("none", "auto"):
        return None
    try:
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}", cure="It takes a number.") from None
    if kind == "bool":
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{name} is {text!r}", cure=f"It takes one of {', '.join(_TRUE + _FALSE)}.")
        return text.lower() in _TRUE
    if kind.startswith("tuple"):
        return tuple(part for part in text.replace(",", " ").split() if part)
    return text
