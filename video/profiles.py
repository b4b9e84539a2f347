"""What items of a task took, remembered from batch to batch: one small JSON file for each task.

All of it may be lost at any time. A folder that cannot be made, read or written, a full disk, a damaged file:
each means that nothing is remembered, and none is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from video import resources
from video.selector import Measured

MOST_DAYS = 30
"""What is older may no longer be true of the files that the task works on, and is not used."""
MOST_FILES = 500
LOOK_EVERY = 64
"""Saves of this process from one look at the number of files to the next."""
LARGEST_BYTES = 1 << 16
"""A file of ours is never so large."""
LONGEST_REASON = 1000
"""Characters of `Measured.pickles` that are kept."""

_saves = itertools.count()


def folder() -> Path:
    """The user's cache folder of this project, which need not exist: VIDEO_CACHE_DIR in the environment, else
    where the platform keeps such things (`~/.cache/parallel-video` on Linux). Where no home is known, it is
    one in which nothing can be."""
    if named := os.environ.get("VIDEO_CACHE_DIR"):
        return Path(os.path.abspath(named))
    return _usual_folder(*map(os.environ.get, ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")))


@functools.lru_cache(maxsize=1)
def _usual_folder(*_: str | None) -> Path:
    """
    :param _: of the environment, all that it may depend on. AUTO asks before every batch, and to find it anew
        takes longer than a short batch should notice.
    """
    import platformdirs  # 10 ms that most programs never need

    try:
        found = platformdirs.user_cache_path("parallel-video")
    except RuntimeError:  # it knows no home; earlier ones gave a relative path, which is nobody's cache
        found = Path()
    return found if found.is_absolute() else Path(os.devnull)


def key(task: Any) -> str | None:
    """The name under which a task is remembered: 32 hexadecimal digits, equal in every process.

    It changes with the task's code, and that of the functions that it holds (its closure, its defaults, what
    a `functools.partial` binds), with the versions of this package and of Python, and with the number of
    usable CPUs; not with where the code stands.

    :return: None if there is no code to tell it by, or if VIDEO_NO_PROFILE is set.
    """
    if _is_off():
        return None
    try:
        about = repr((_described(task, {}), versions()))
    except Exception:  # noqa: BLE001  # foreign objects raise what they like when they are looked at
        return None
    return hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def load(key: str) -> Measured | None:
    """What is remembered, with `source="remembered"`; None if nothing is, or if VIDEO_NO_PROFILE is set."""
    if _is_off():
        return None
    path = _path(key)
    try:
        if abs(time.time() - path.stat().st_mtime) > MOST_DAYS * 86400:
            return None
        return _measured(read(path))
    except (OSError, ValueError):
        return None


def save(key: str, measured: Measured) -> None:
    """Remember it, unless VIDEO_NO_PROFILE is set. Never raises because it cannot be written."""
    if _is_off():
        return
    path = _path(key)
    reason = measured.pickles[:LONGEST_REASON]
    write(path, dataclasses.asdict(dataclasses.replace(measured, pickles=reason)))
    if next(_saves) % LOOK_EVERY == 0:
        _drop_oldest(path.parent)


def versions() -> dict[str, str | int]:
    """What figures hold for: another version or another number of CPUs makes them worthless."""
    return {
        # It is loaded whenever this module is; to import it from here would point upward.
        "package": sys.modules["video"].__version__,
        "python": sys.version,
        "cpus": resources.usable_cpus(),
    }


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    :raises OSError: if it cannot be read.
    :raises ValueError: if it holds anything else, or is larger than any of ours.
    """
    with path.open("rb") as file:
        text = file.read(LARGEST_BYTES + 1)
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"{path} is too large")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object")
    return found


def write(path: Path, what: Mapping[str, Any]) -> bool:
    """Write a JSON file whole or not at all, and its folder if need be.

    :return: False if it cannot be written.
    """
    text = json.dumps(what)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: after a power cut the file may be empty, which counts as absent.
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            part.unlink()  # it is still there if something failed, Ctrl-C too
    return True


def figure(value: object, most: float = sys.float_info.max) -> float:
    """A number from a file.

    :raises ValueError: if it is none, or not from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number from 0 to {most}")
    return float(value)


def _is_off() -> bool:
    return os.environ.get("VIDEO_NO_PROFILE", "") not in ("", "0")


def _path(key: str) -> Path:
    return folder() / "profiles" / f"{key}.json"


def _measured(found: dict[str, Any]) -> Measured:
    """
    :raises ValueError: if a field is missing or not what it should be.
    """
    pickles, items = found.get("pickles"), found.get("items")
    if not isinstance(pickles, str) or not isinstance(items, int):
        raise ValueError("foreign fields")
    return Measured(
        wall=figure(found.get("wall")),
        cpu=figure(found.get("cpu")),
        gil=figure(found.get("gil"), 1.0),
        bytes=figure(found.get("bytes")),
        carry=figure(found.get("carry")),
        pickles=pickles,
        memory=figure(found.get("memory")),
        load=figure(found.get("load")),
        items=int(figure(items, 1 << 53)),
        source="remembered",
    )


def _drop_oldest(profiles: Path) -> None:
    """Keep the newest files; those that a killed process left unfinished grow old as well."""
    try:
        with os.scandir(profiles) as entries:
            files = list(entries)
        if len(files) <= MOST_FILES:
            return
        files.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    except OSError:  # another process drops them as well
        return
    for one in files[MOST_FILES:]:
        with contextlib.suppress(OSError):
            os.unlink(one)


def _described(task: Any, seen: dict[int, Any]) -> Any:
    """The code of something callable as nested plain values, whose `repr` is equal in every process.

    :raises ValueError: if there is nothing to tell it by.
    """
    if id(task) in seen:
        return "again"  # a function that holds itself
    seen[id(task)] = task  # kept, or its number might become another's
    if isinstance(task, types.FunctionType):
        return (
            _named(task),
            _code(task.__code__),
            _values(task.__defaults__ or (), seen),
            _values(task.__kwdefaults__ or {}, seen),
            _values([_content(cell) for cell in task.__closure__ or ()], seen),
        )
    if isinstance(task, functools.partial):
        return "partial", _described(task.func, seen), _values(task.args, seen), _values(task.keywords, seen)
    if isinstance(task, types.MethodType):
        return "method", _value(task.__self__, seen), _described(task.__func__, seen)
    if isinstance(task, type):
        # Not what the class inherits from C, such as the `__init__` of `object`.
        makers = [getattr(task, name) for name in ("__new__", "__init__")]
        return "class", _named(task), [_described(one, seen) for one in makers if _has_code(one)]
    kind = type(task)
    call = kind.__call__
    if _has_code(call):
        return "object", _named(kind), _described(call, seen)
    if hasattr(task, "__wrapped__"):  # a cache, or what Numba compiles
        return "wrapper", _named(kind), _described(task.__wrapped__, seen)
    if isinstance(getattr(task, "__name__", None), str):
        owner = getattr(task, "__self__", None)
        of = None if owner is None or isinstance(owner, types.ModuleType) else _value(owner, seen)
        return "builtin", _named(kind), _named(task), of
    raise ValueError(f"{kind.__qualname__} has no code")


def _named(thing: Any) -> tuple[str, str]:
    return str(getattr(thing, "__module__", "")), str(getattr(thing, "__qualname__", thing.__name__))


def _has_code(thing: Any) -> bool:
    return isinstance(thing, types.FunctionType)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _values(values: Any, seen: dict[int, Any]) -> Any:
    if isinstance(values, dict):
        return [(name, _value(value, seen)) for name, value in sorted(values.items())]
    return [_value(value, seen) for value in values]


def _value(value: Any, seen: dict[int, Any]) -> Any:
    """Plain values as they are, functions by their code, others by their type: what they hold may be large,
    or of another order in each process."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        return _described(value, seen)
    return _named(value) if isinstance(value, type) else ("a", *_named(type(value)))


def _code(code: types.CodeType) -> Any:
    return code.co_code, code.co_names, [_constant(one) for one in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return tuple(_constant(one) for one in value)
    if isinstance(value, frozenset):  # in another order in each process
        return "frozenset", sorted(repr(_constant(one)) for one in value)
    return value
