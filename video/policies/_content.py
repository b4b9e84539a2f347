"""What things are known by: items by their content as canonical text, files by a hash of theirs."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from video.errors import ConfigError, MissingDependency, SourceError, described

BLOCK = 1 << 20
"""Bytes that are read at a time: larger ones are no faster (benchmarks/bench_cache.py)."""
MARK = "$"
"""Key of the one-key objects by which `content_key` tells other types from plain data."""

_STR = {str}
_WORDS = {True: "true", False: "false", None: "null"}
_ATOMS = frozenset((str, int, float, bool, type(None)))
_WORDED = frozenset((Fraction, Decimal, UUID, date, datetime, time, timedelta, complex, range))
"""Types whose `repr` is the same for equal values in every process, and for those only."""


def content_key(item: Any) -> str:
    """An item's content as one line of text, equal in every process.

    Takes plain data (dicts in any order), tuples, sets, bytes, paths, enumerations, dataclasses, pydantic
    models, dates and exact numbers, nested in each other. Items of unlike types or content have unlike keys:
    `(1,)` is not `[1]`, `1` is not `True`, `"a"` is not `Path("a")`. What a path names is not looked at.

    :raises ConfigError: if there is anything else in it, or it holds itself.
    """
    try:
        return _text(item)
    except Exception as error:
        raise ConfigError(
            f"a {type(item).__qualname__} has no key by which it would be known again ({described(error)})",
            cure="Give a function `key(item) -> str`",
        ) from error


def is_json(value: Any) -> bool:
    """Whether JSON gives back the very same: exact plain types only, string keys, not nested too deeply."""
    try:
        return _is_json(value)
    except RecursionError:
        return False


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is list:
        return all(map(_is_json, value))
    if kind is not dict:
        return False
    return all(type(name) is str for name in value) and all(map(_is_json, value.values()))


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
    digest = new_hash(name)
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


def new_hash(name: str) -> Any:
    """An empty hash, as in :mod:`hashlib`.

    :raises ConfigError: if no algorithm is called that.
    :raises MissingDependency: if it is blake3, and not installed.
    """
    if name == "blake2b":
        return blake2b(digest_size=32)
    if name != "blake3":
        raise ConfigError(f"algorithm is {name!r}", cure='It takes "blake3", "blake2b" or None.')
    try:
        return import_module("blake3").blake3()
    except ImportError as error:
        raise MissingDependency(
            "is not installed", subject="blake3", cure="Run: pip install 'parallel-video[fast]'"
        ) from error


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return os.path.samestat(one, other) and (one.st_size, one.st_mtime_ns, one.st_ctime_ns) == (
        other.st_size,
        other.st_mtime_ns,
        other.st_ctime_ns,
    )


def _text(value: Any) -> str:
    """JSON that stands for it, and for nothing else. (The `json` module takes three times as long, and would
    have to be given other objects than these.)"""
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is dict:
        if set(map(type, value)) <= _STR and MARK not in value:
            return "{" + ",".join([f"{_quoted(name)}:{_text(value[name])}" for name in sorted(value)]) + "}"
        pairs = sorted(f"[{_text(name)},{_text(one)}]" for name, one in value.items())
        return _marked("dict", *pairs)
    if kind is int:
        return repr(value)
    if kind is list:
        return "[" + ",".join(map(_text, value)) + "]"
    if kind is bool or value is None:
        return _WORDS[value]
    if kind is float:
        if math.isnan(value):
            raise ValueError("NaN is not equal to itself")
        return repr(value)
    if kind is tuple:
        return _marked("tuple", *map(_text, value))
    return _rare(value, kind)


def _rare(value: Any, kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is bytes:
        return _marked("bytes", f'"{value.hex()}"')
    if kind in (set, frozenset):
        return _marked(kind.__name__, *sorted(map(_text, value)))
    if kind in _WORDED:
        zone = getattr(value, "tzinfo", None)
        if zone is None or isinstance(zone, timezone | ZoneInfo):
            return _marked(name, _quoted(repr(value)))
    elif isinstance(value, PurePosixPath):
        return _marked("path", _quoted(str(value)))
    elif isinstance(value, Enum) and value.name is not None:
        return _marked(name, _quoted(value.name))
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _marked(name, *map(_text, value))
    elif dataclasses.is_dataclass(value):
        shown = [field.name for field in dataclasses.fields(value) if field.compare]
        return _marked(name, *[f"[{_quoted(one)},{_text(getattr(value, one))}]" for one in shown])
    elif isinstance(fields := getattr(kind, "model_fields", None), dict):  # pydantic, not imported for this
        # Not `model_dump`: it leaves out what a model hides, such as secrets, by which items may differ.
        parts = [f"[{_quoted(one)},{_text(getattr(value, one))}]" for one in fields]
        return _marked(name, *parts, _text(value.model_extra))
    raise TypeError(f"a {name} is no plain data")


def _marked(name: str, *texts: str) -> str:
    return f'{{"{MARK}":[{",".join((_quoted(name), *texts))}]}}'
