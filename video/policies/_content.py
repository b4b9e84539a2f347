"""What things are known by: items by their content as canonical text, files by a hash of theirs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

from video.errors import ConfigError, MissingDependency, SourceError, described

BLOCK = 1 << 20
"""Bytes that are read at a time: larger ones are no faster (benchmarks/bench_cache.py)."""
MARK = "$"
"""Key of the one-key objects by which `content_key` tells other types from plain data."""

_ATOMS = frozenset((str, int, float, bool, type(None)))
_WORDED = frozenset((Fraction, Decimal, UUID, date, datetime, time, timedelta, complex, range))
"""Types whose `repr` is the same for equal values in every process, and for those only."""


def content_key(item: Any) -> str:
    """An item's content as one line of JSON, equal in every process.

    Takes plain data (dicts in any order), tuples, sets, bytes, paths, enumerations, dataclasses, pydantic
    models, dates and exact numbers, nested in each other. Items of unlike types or content have unlike keys:
    `(1,)` is not `[1]`, `1` is not `True`, `"a"` is not `Path("a")`. What a path names is not looked at.

    :raises ConfigError: if there is anything else in it, or it holds itself.
    """
    if type(item) is str:
        return _text(item)
    try:
        return _text(_plain(item))
    except Exception as error:
        raise ConfigError(
            f"a {type(item).__qualname__} has no key by which it would be known again ({described(error)})",
            cure="Give a function `key(item) -> str`",
        ) from error


def is_json(value: Any) -> bool:
    """Whether JSON gives back the very same: exact plain types only, and string keys.

    :raises RecursionError: if it is nested too deeply, or holds itself.
    """
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is list:
        return all(map(is_json, value))
    return (
        kind is dict and all(type(name) is str for name in value) and all(is_json(one) for one in value.values())
    )


def file_stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a regular file.

    :raises OSError: if there is none, or it cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError("is not a regular file", subject=os.fsdecode(path), cure="Name a file.")
    return found.st_size, found.st_mtime_ns


def algorithm() -> str:
    """Name of the hash that `content_hash` uses here: "blake3" where that package is installed (extra
    `fast`), else "blake2b" of the standard library, a fifth as fast."""
    from importlib.util import find_spec

    return "blake3" if find_spec("blake3") is not None else "blake2b"


def content_hash(path: str | os.PathLike[str], name: str | None = None) -> str:
    """What a file holds, as `algorithm:size:hash` (256 bits, hexadecimal), whatever it is called.

    Read in blocks of 1 MiB on one thread, without the interpreter lock. Of a file that is being written to
    while it is read, there is no hash: size and time of change are compared before and after.

    :param name: "blake3" or "blake2b"; None: `algorithm()`.
    :raises OSError: if it cannot be read, is no regular file, or changes meanwhile (SourceError).
    :raises MissingDependency: if blake3 is asked for and not installed.
    """
    name = name or algorithm()
    digest = _digest(name)
    # Non-blocking, so that a FIFO in its place is refused rather than waited for.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise SourceError("is not a regular file", subject=os.fsdecode(path), cure="Name a file.")
        block, size = memoryview(bytearray(min(BLOCK, before.st_size + 1))), 0
        with os.fdopen(handle, "rb", buffering=0, closefd=False) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
                size += count
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if not _same(before, after) or size != after.st_size or not _same(after, os.stat(path)):
        raise SourceError(
            "has changed while it was read", subject=os.fsdecode(path), cure="Wait until it is written."
        )
    return f"{name}:{size}:{digest.hexdigest()}"


def _digest(name: str) -> Any:
    if name == "blake2b":
        from hashlib import blake2b

        return blake2b(digest_size=32)
    if name != "blake3":
        raise ConfigError(f"algorithm is {name!r}", cure='It takes "blake3", "blake2b" or None.')
    try:
        import blake3
    except ImportError as error:
        raise MissingDependency(
            "is not installed", subject="blake3", cure="Run: pip install 'parallel-video[fast]'"
        ) from error
    return blake3.blake3()


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return os.path.samestat(one, other) and (one.st_size, one.st_mtime_ns, one.st_ctime_ns) == (
        other.st_size,
        other.st_mtime_ns,
        other.st_ctime_ns,
    )


_text: Callable[[Any], str] = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _plain(value: Any) -> Any:
    """Plain data that stands for it, and for nothing else."""
    kind = type(value)
    if kind in _ATOMS:
        # Nobody can say whether one NaN is another.
        if kind is float and math.isnan(value):
            raise ValueError("NaN is not equal to itself")
        return value
    if kind is list:
        return [one if type(one) is str else _plain(one) for one in value]
    if kind is dict:
        if all(type(name) is str for name in value) and MARK not in value:
            return {name: one if type(one) is str else _plain(one) for name, one in value.items()}
        return {MARK: ["dict", sorted([_text(_plain(name)), _plain(one)] for name, one in value.items())]}
    return {MARK: _marked(value, kind)}


def _marked(value: Any, kind: type) -> list[Any]:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is tuple:
        return ["tuple", [_plain(one) for one in value]]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind in (set, frozenset):
        return [kind.__name__, sorted(_text(_plain(one)) for one in value)]
    if kind in _WORDED:
        return [name, repr(value)]
    if isinstance(value, PurePath):
        return ["path", str(value)]
    if isinstance(value, Enum):
        return [name, value.name]
    if dataclasses.is_dataclass(value):
        shown = [field.name for field in dataclasses.fields(value) if field.compare]
        return [name, {one: _plain(getattr(value, one)) for one in shown}]
    if isinstance(getattr(kind, "model_fields", None), dict):  # pydantic, which is not imported for this
        return [name, value.model_dump_json()]
    raise TypeError(f"a {name} is no plain data")
