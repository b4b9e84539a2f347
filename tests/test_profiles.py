"""What is remembered of a task, and that nothing depends on it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tasks
from video import profiles, resources
from video.profiles import folder, key, load, save
from video.selector import Measured

MEASURED = Measured(
    wall=0.5, cpu=0.25, gil=0.5, bytes=1e6, carry=1e-3, pickles="no", memory=2e6, load=1.5, items=4
)
NAME = "0" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("VIDEO_NO_PROFILE", raising=False)
    return tmp_path / "cache"


def stored(cache: Path) -> Path:
    save(NAME, MEASURED)
    (path,) = (cache / "profiles").iterdir()
    return path


def compiled(source: str, name: str = "task", file: str = "one.py") -> Callable[..., Any]:
    """What a source defines under a name."""
    found: dict[str, Any] = {"__name__": "some_module"}
    exec(compile(source, file, "exec"), found)
    return found[name]


class Scale:
    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def method(self, x: int) -> int:
        return self.factor + x


class Opaque:
    """Not callable."""


# Remembering


def test_what_is_saved_is_loaded_and_says_that_it_was_remembered(cache: Path) -> None:
    assert load(NAME) is None
    save(NAME, MEASURED)
    assert load(NAME) == dataclasses.replace(MEASURED, source="remembered")
    assert load("f" * 32) is None


figures = st.floats(min_value=0, allow_infinity=False, allow_nan=False)


@given(
    measured=st.builds(
        Measured,
        wall=figures,
        cpu=figures,
        gil=st.floats(0, 1),
        bytes=figures,
        carry=figures,
        pickles=st.text(max_size=100),
        memory=figures,
        load=figures,
        items=st.integers(0, 2**53),
        source=st.sampled_from(["probe", "declared", "remembered", "watched"]),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_every_measured_comes_back_as_it_was(measured: Measured) -> None:
    save(NAME, measured)
    assert load(NAME) == dataclasses.replace(measured, source="remembered")


def test_a_later_save_replaces_an_earlier_one(cache: Path) -> None:
    path = stored(cache)
    save(NAME, dataclasses.replace(MEASURED, wall=3.0))
    found = load(NAME)
    assert found is not None
    assert found.wall == 3.0
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 20_000,
        b"{" + b" " * 100_000 + b"}",
        b"{}",
    ],
    ids=["empty", "cut", "a list", "null", "no text", "deep", "large", "no fields"],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(content: bytes, cache: Path) -> None:
    stored(cache).write_bytes(content)
    assert load(NAME) is None
    save(NAME, MEASURED)
    assert load(NAME) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (field.name, value)
            for field in dataclasses.fields(Measured)
            if field.name != "source"
            for value in (None, [], {}, "" if field.type != "str" else 1, float("nan"))
        ],
        *[(name, value) for name in ("wall", "cpu", "bytes") for value in (-1, True, float("inf"), 10**400)],
        ("gil", 1.5),
        ("items", 1.5),
        ("items", True),
        ("items", -1),
    ],
)
def test_a_field_that_cannot_be_makes_the_file_absent(field: str, value: object, cache: Path) -> None:
    path = stored(cache)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert load(NAME) is None


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Measured) if f.name != "source"])
def test_a_missing_field_makes_the_file_absent(field: str, cache: Path) -> None:
    path = stored(cache)
    found = json.loads(path.read_text())
    del found[field]
    path.write_text(json.dumps(found))
    assert load(NAME) is None


def test_what_is_older_than_the_limit_is_not_used(cache: Path) -> None:
    path = stored(cache)
    for days, used in ((profiles.MOST_DAYS - 1, True), (profiles.MOST_DAYS + 1, False)):
        then = time.time() - days * 86400
        os.utime(path, (then, then))
        assert (load(NAME) is not None) is used


def test_the_oldest_files_go_and_the_newest_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MOST_FILES", 10)
    monkeypatch.setattr(profiles, "LOOK_EVERY", 1)
    for number in range(15):
        save(f"{number:032x}", MEASURED)
        then = time.time() - 1000 + number
        os.utime(cache / "profiles" / f"{number:032x}.json", (then, then))
    save(NAME, MEASURED)
    left = sorted(path.stem for path in (cache / "profiles").iterdir())
    assert left == [NAME, *(f"{number:032x}" for number in range(6, 15))]


def test_what_a_killed_process_left_unfinished_goes_in_its_turn(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MOST_FILES", 1)
    monkeypatch.setattr(profiles, "LOOK_EVERY", 1)
    part = stored(cache).with_suffix(".1-1.part")
    part.write_text("{")
    os.utime(part, (1, 1))
    save(NAME, MEASURED)
    assert not part.exists()


@pytest.mark.parametrize(("value", "works"), [("1", False), ("no", False), ("0", True), ("", True)])
def test_a_variable_turns_it_off(
    value: str, works: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(cache)
    monkeypatch.setenv("VIDEO_NO_PROFILE", value)
    assert (load(NAME) is not None) is works
    path.unlink()
    save(NAME, MEASURED)
    assert path.exists() is works


def test_a_folder_that_cannot_be_made_means_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place keeps even a superuser from making it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDEO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    save(NAME, MEASURED)
    assert load(NAME) is None


def test_a_full_disk_means_no_memory_and_leaves_nothing(cache: Path) -> None:
    path = stored(cache)
    before = path.read_text()
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.symlink_to("/dev/full")
    save(NAME, dataclasses.replace(MEASURED, wall=3.0))
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_in_a_files_place_means_no_memory(cache: Path) -> None:
    path = stored(cache)
    path.unlink()
    path.mkdir()
    save(NAME, MEASURED)
    assert load(NAME) is None
    assert list(path.parent.iterdir()) == [path]


def test_the_folder_is_the_users_cache_where_no_variable_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIDEO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder().name == "parallel-video"
    if sys.platform == "linux":
        assert folder() == tmp_path / "parallel-video"


@pytest.mark.parametrize("found", [RuntimeError("no home"), Path("~/.cache/parallel-video")])
def test_without_a_home_nothing_is_remembered_anywhere(
    found: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    def user_cache_path(name: str) -> Path:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.delenv("VIDEO_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "asked anew")
    save(NAME, MEASURED)
    assert load(NAME) is None
    assert list(workplace.iterdir()) == []


# Names of tasks

SHOW_KEYS = """
import functools, sys
sys.path.insert(0, sys.argv[1])
from tests import tasks
from tests.test_profiles import Scale, compiled
from video.profiles import key
def local(x, known=frozenset({"a", "b", "c", "d"})):
    return x in {"mkv", "mp4", "mov", "webm"} or [y for y in x if y in {"one", "two", "three"}]
for task in (tasks.double, functools.partial(pow, 2), Scale(), Scale().method, len, str.upper, lambda x: x,
             local, int, Scale):
    print(key(task))
"""


def test_a_key_is_the_same_in_every_process() -> None:
    """Also where sets of strings, and addresses, come in another order."""
    root = str(Path(__file__).parents[1])
    outs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SHOW_KEYS, root],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        outs.append(done.stdout.split())
    assert outs[0] == outs[1]
    assert len(set(outs[0])) == len(outs[0])
    assert all(len(one) == 32 for one in outs[0])
    assert outs[0][0] == key(tasks.double)


SOURCES = [
    "def task(x): return x + 1",
    "def task(x): return x + 2",
    "def task(x): return x - 1",
    "def task(x): return one(x)",
    "def task(x): return two(x)",
    "def task(x): return [y + 1 for y in x]",
    "def task(x): return [y + 2 for y in x]",
    "def task(x): return x in {1, 2}",
    "def task(x): return x in {1, 3}",
    "def task(x, y=1): return x + 1",
    "def task(x, y=2): return x + 1",
    "def task(x, *, y=2): return x + 1",
    "def task(x): return 1",
    "def task(x): return 1.0",
    "def task(x): return True",
    "def task(x):\n def inner(): return lambda: 1\n return inner",
    "def task(x):\n def inner(): return lambda: 2\n return inner",
]


def test_a_key_changes_with_the_code() -> None:
    keys = [key(compiled(source)) for source in SOURCES]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_a_key_does_not_change_with_where_the_code_stands() -> None:
    for source in SOURCES:
        assert key(compiled(source)) == key(compiled("\n\n" + source, file="other.py"))


def test_running_does_not_change_a_key() -> None:
    """The interpreter rewrites the code of functions that run often."""
    task = compiled("def task(x): return x + 1 if x else len('abc')")
    before = key(task)
    for number in range(1000):
        task(number)
    assert key(task) == before


def test_functions_of_one_code_but_another_name_differ() -> None:
    assert key(compiled("def task(x): return x")) != key(compiled("def other(x): return x", "other"))


def test_what_a_partial_binds_counts() -> None:
    def bound(*args: Any, **named: Any) -> str | None:
        return key(functools.partial(tasks.double, *args, **named))

    keys = [
        bound(),
        bound(1),
        bound(2),
        bound(1.0),
        bound(True),
        bound("1"),
        bound(None),
        bound(x=1),
        bound(x=2),
    ]
    keys += [bound(tasks.double), bound(tasks.fail_on_3), bound([]), bound(()), bound(b"")]
    assert len(set(keys)) == len(keys)
    assert bound([1, 2]) == bound([3]), "only the type of what may be large"
    assert bound(x=1, y=2) == bound(y=2, x=1)
    assert key(functools.partial(tasks.fail_on_3, 1)) != bound(1)


def test_what_a_closure_holds_counts() -> None:
    source = "def make(held):\n def task(x): return held\n return task"
    make = compiled(source, "make")
    inner = [compiled(f"def inner(x): return {number}", "inner") for number in (1, 2)]
    keys = [key(make(held)) for held in (1, 2, "a", [], *inner, functools.partial(inner[0], 1))]
    assert len(set(keys)) == len(keys)


def test_a_decorated_function_is_known_by_its_own_code() -> None:
    source = (
        "import functools\n"
        "def around(f):\n"
        " @functools.wraps(f)\n"
        " def wrapper(x): return f(x)\n"
        " return wrapper\n"
        "@around\n"
        "def task(x): return x + {}\n"
    )
    assert key(compiled(source.format(1))) != key(compiled(source.format(2)))
    cached = [functools.cache(compiled(SOURCES[number])) for number in (0, 1)]
    assert key(cached[0]) != key(cached[1])


def test_a_function_that_holds_itself_has_a_key() -> None:
    source = "def make():\n def task(x): return task(x - 1) if x else 0\n return task"
    assert key(compiled(source, "make")()) is not None


def test_methods_objects_and_classes_are_known_by_their_code() -> None:
    other = compiled(
        "class Scale:\n def __call__(self, x): return x\n def method(self, x): return x", "Scale"
    )
    found = [key(one) for kind in (Scale, other) for one in (kind, kind(), kind().method)]
    assert None not in found
    assert len(set(found)) == len(found)
    assert key(Scale(1)) == key(Scale(2)), "by its class's code, whatever it holds"


def test_builtins_are_known_by_name() -> None:
    keys = [key(one) for one in (len, abs, str.upper, str.lower, "".join, [].append, int, str)]
    assert None not in keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("task", [Opaque(), 3, None, types.SimpleNamespace()])
def test_what_has_no_code_has_no_key(task: object) -> None:
    assert key(task) is None


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_what_cannot_even_be_looked_at_has_no_key() -> None:
    assert key(Hostile()) is None


def test_a_key_changes_with_versions_and_with_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key(tasks.double)}
    with monkeypatch.context() as patch:
        patch.setattr(resources, "usable_cpus", lambda: 97)
        keys.add(key(tasks.double))
    with monkeypatch.context() as patch:
        patch.setattr("video.__version__", "99.0")
        keys.add(key(tasks.double))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "9.9")
        keys.add(key(tasks.double))
    assert len(keys) == 4
