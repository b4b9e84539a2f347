"""What the cache promises, with real files and processes, and against a model where there is a law."""

from __future__ import annotations

import enum
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from pydantic import BaseModel, Field, SecretStr

from tests.waiting import until
from video.config import ParallelConfig
from video.errors import ConfigError
from video.models import VideoClipRequest
from video.outcome import Outcome
from video.policies._cache_store import KEPT_SHARE, MOST_FAILURES, MOST_USES, weight
from video.policies._content import is_json
from video.policies.base import Job
from video.policies.cache import CachePolicy, CacheStore, Entry, MemoryCache, SqliteCache, content_key
from video.runner import Runner

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """Seconds since the epoch, as a test says."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheStore]:
    made: CacheStore = MemoryCache() if request.param == "memory" else SqliteCache(tmp_path / "cache.sqlite")
    yield made
    made.close()


def policy(store: CacheStore, **how: Any) -> CachePolicy:
    return CachePolicy(store, **{"task": "cut", **how})


def ask(cache: CachePolicy, item: Any) -> Outcome[Any] | None:
    answer = cache.admit(Job(7, item), 0.0)
    assert answer is None or isinstance(answer, Outcome)
    return answer


def run(cache: CachePolicy, item: Any, value: Any, **how: Any) -> None:
    """A miss, then an attempt that gives a value."""
    job = Job(3, item)
    assert cache.admit(job, 0.0) is None
    assert cache.settle(job, Outcome(3, value, how.pop("error", None), 1, 0.5, **how), 0.0) is None


# Keys


class Shade(enum.StrEnum):
    RED = "red"


class Bit(enum.IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Clip:
    name: str
    start: float = 0.0
    note: str = field(default="", compare=False)


@dataclass
class Other:
    name: str
    start: float = 0.0


class Model(BaseModel):
    name: str
    hidden: str = Field(default="", exclude=True)
    parts: set[str] = set()


class Secret(BaseModel):
    token: SecretStr


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("$ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, width=16)
    | st.text("ab$", max_size=2)
    | st.binary(max_size=2)
    | st.sampled_from([Shade.RED, "red", Bit.ONE, Path("a"), Fraction(1, 2), date(2026, 1, 1), Point(1, 2)])
    | st.builds(Clip, st.text("ab", max_size=1))
    | st.builds(Other, st.text("ab", max_size=1)),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.text("a$", max_size=1) | st.integers(0, 1) | st.none(), inner, max_size=2)
        | st.frozensets(st.integers(0, 2) | st.text("a", max_size=1), max_size=2)
    ),
    max_leaves=4,
)


def strict(value: Any) -> Any:
    """Equal for values of equal types and content only."""
    kind = type(value)
    if isinstance(value, Clip | Other):
        return kind, value.name, strict(value.start)
    if isinstance(value, list | tuple):
        return kind, [strict(one) for one in value]
    if isinstance(value, dict):
        return kind, sorted((repr(strict(name)), strict(one)) for name, one in value.items()) if value else []
    if isinstance(value, frozenset):
        return kind, sorted(repr(strict(one)) for one in value)
    return kind, repr(value)


@given(anything, anything)
@settings(max_examples=300, deadline=None)
def test_items_have_one_key_if_and_only_if_their_types_and_content_are_the_same(one: Any, other: Any) -> None:
    assert (content_key(one) == content_key(other)) == (repr(strict(one)) == repr(strict(other)))


@given(plain)
@settings(deadline=None)
def test_what_counts_as_json_comes_back_from_json_as_the_very_same(value: Any) -> None:
    assert is_json(value)
    assert strict(json.loads(json.dumps(value))) == strict(value)


@pytest.mark.parametrize("value", [(1,), {1: 2}, [Shade.RED], {"a": Bit.ONE}, b"", Path("a"), OrderedDict()])
def test_what_json_would_change_does_not_count_as_json(value: Any) -> None:
    assert not is_json(value)


def test_the_order_of_a_dict_does_not_matter_and_what_a_dataclass_does_not_compare_neither() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key(Clip("x", note="1")) == content_key(Clip("x", note="2"))


def test_a_model_differs_by_what_it_hides_too() -> None:
    assert content_key(Model(name="a", hidden="x")) != content_key(Model(name="a", hidden="y"))


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from video.policies.cache import content_key\n"
        "from video.models import VideoClipRequest\n"
        "print(content_key([{'a', 'b', 'c', 'd'}, VideoClipRequest(source='x'), {'k': 1, 'j': (2,)}]))"
    )
    found = set()
    for seed in ("0", "1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True,
                              text=True, timeout=60, check=True)  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_what_has_no_key_says_so() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for item in (object(), loop, float("nan"), [lambda: 0], Secret(token=SecretStr("x"))):
        with pytest.raises(ConfigError, match="has no key"):
            content_key(item)


# The policy


def test_an_equal_item_is_answered_without_an_attempt(store: CacheStore) -> None:
    cache = policy(store)
    run(cache, VideoClipRequest(source="a.mp4"), {"clips": [1, 2]})
    assert ask(cache, VideoClipRequest(source="a.mp4")) == Outcome(
        7, {"clips": [1, 2]}, None, 0, 0.0, "cache"
    )
    assert ask(cache, VideoClipRequest(source="b.mp4")) is None
    assert cache.counts()["hits"] == 1
    assert cache.counts()["misses"] == 2
    assert cache.hit_rate() == pytest.approx(1 / 3)


def test_failures_are_not_kept(store: CacheStore) -> None:
    cache = policy(store)
    run(cache, "a", None, error=ValueError("no"))
    assert ask(cache, "a") is None


def test_a_value_of_none_is_an_answer_too(store: CacheStore) -> None:
    cache = policy(store)
    run(cache, "a", None)
    assert ask(cache, "a") == Outcome(7, None, None, 0, 0.0, "cache")


def test_what_another_policy_answered_does_not_get_young_again(store: CacheStore) -> None:
    cache = policy(store)
    run(cache, "a", 1, origin="checkpoint")
    assert ask(cache, "a") is None


@pytest.mark.parametrize(
    "other", [{"task": "join"}, {"version": "2"}, {"settings": {"crf": 20}}, {"settings": {"crf": "19"}}]
)
def test_another_task_version_or_setting_never_answers(store: CacheStore, other: dict[str, Any]) -> None:
    same = {"task": "cut", "version": "1", "settings": {"crf": 19}}
    run(policy(store, **same), "a", 1)
    assert ask(policy(store, **{**same, **other}), "a") is None
    assert ask(policy(store, **same), "a") is not None


def test_a_key_function_says_what_is_equal(store: CacheStore) -> None:
    cache = policy(store, key=lambda item: item["id"])
    run(cache, {"id": "1", "at": 10}, "x")
    assert ask(cache, {"id": "1", "at": 20}) is not None
    assert ask(cache, {"id": "2", "at": 10}) is None


def test_an_item_without_a_key_is_not_cached_and_fails_nothing(
    store: CacheStore, caplog: pytest.LogCaptureFixture
) -> None:
    cache = policy(store)
    for _ in range(3):
        run(cache, object(), 1)
    broken = policy(store, key=lambda item: item["none"])
    run(broken, "a", 1)
    assert cache.counts()["unkeyed"] == 3
    assert cache.counts()["stored"] == broken.counts()["stored"] == 0
    assert len(caplog.records) == 2, "each says it once"


def test_a_value_lives_for_its_ttl(store: CacheStore) -> None:
    clock = Clock()
    cache = policy(store, ttl=10, wall=clock)
    run(cache, "a", 1)
    clock.now += 9.9
    assert ask(cache, "a") is not None
    clock.now += 0.2
    assert ask(cache, "a") is None
    assert cache.counts()["expired"] == 1
    assert store.totals() == (0, 0)


def test_a_clock_that_is_put_back_keeps_nothing_for_ever(store: CacheStore) -> None:
    clock = Clock()
    for ttl in (10.0, None):
        cache = policy(store, ttl=ttl, wall=clock)
        run(cache, "a", 1)
        clock.now -= 3600
        assert ask(cache, "a") is None
        assert store.totals() == (0, 0)


def test_of_a_shared_entry_each_reader_says_how_old_it_may_be(store: CacheStore) -> None:
    clock = Clock()
    run(policy(store, ttl=10, wall=clock), "a", 1)
    clock.now += 60
    assert ask(policy(store, ttl=100, wall=clock), "a") is not None
    assert ask(policy(store, ttl=None, wall=clock), "a") is not None


def test_encode_and_decode_carry_other_types(store: CacheStore) -> None:
    cache = policy(store, encode=lambda clip: [clip.name, clip.start], decode=lambda plain: Clip(*plain))
    run(cache, "a", Clip("x", 1.5))
    answer = ask(cache, "a")
    assert answer is not None
    assert answer.value == Clip("x", 1.5)


def test_a_decode_that_raises_is_a_miss(store: CacheStore) -> None:
    run(policy(store), "a", 1)
    cache = policy(store, encode=lambda value: value, decode=lambda plain: plain["x"])
    assert ask(cache, "a") is None
    assert cache.counts()["unreadable"] == 1


def test_one_caller_cannot_change_what_another_is_given(store: CacheStore) -> None:
    cache = policy(store)
    values: dict[str, dict[str, Any]] = {"json": {"parts": [1]}, "object": {"parts": [1], "at": (1, 2)}}
    for item, value in values.items():
        run(cache, item, value)
        value["parts"].append(2)
        for _ in range(2):
            answer = ask(cache, item)
            if answer is not None:
                assert answer.value is not None
                assert answer.value["parts"] == [1]
                answer.value["parts"].append(3)


def test_memory_keeps_objects_as_they_are_and_a_file_does_without() -> None:
    for value in ((1, 2), Clip("x"), {1: 2}, b"bytes", datetime.now(UTC)):
        cache = policy(MemoryCache())
        run(cache, "a", value)
        answer = ask(cache, "a")
        assert answer is not None
        assert type(answer.value) is type(value)
        assert answer.value == value
    with tempfile.TemporaryDirectory() as folder:
        cache = policy(SqliteCache(Path(folder) / "c"))
        run(cache, "a", (1, 2))
        assert ask(cache, "a") is None
        assert cache.counts()["unkept"] == 1


def test_a_value_that_cannot_be_copied_is_not_kept(store: CacheStore) -> None:
    cache = policy(store)
    run(cache, "a", threading.Lock())
    assert ask(cache, "a") is None
    assert cache.counts()["unkept"] == 1


def test_an_input_that_changes_is_another_item(store: CacheStore, tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    path.write_text("one")
    cache = policy(store, inputs=lambda item: item)
    run(cache, str(path), 1)
    assert ask(cache, str(path)) is not None
    path.write_text("other")
    assert ask(cache, str(path)) is None


def test_a_value_whose_input_changed_while_it_was_made_is_not_kept(store: CacheStore, tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    path.write_text("one")
    cache, job = policy(store, inputs=lambda item: [item]), Job(0, str(path))
    assert cache.admit(job, 0.0) is None
    path.write_text("other")
    cache.settle(job, Outcome(0, 1, None), 0.0)
    assert store.totals() == (0, 0)


def gone(path: Path) -> None:
    path.unlink()


def shorter(path: Path) -> None:
    path.write_text("a")


def touched(path: Path) -> None:
    path.write_text("txt2")
    os.utime(path, ns=(0, 0))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [gone, shorter, touched, a_folder])
@pytest.mark.parametrize("hashed", [False, True])
def test_an_output_that_is_gone_or_changed_makes_the_item_run_again(
    store: CacheStore, tmp_path: Path, change: Callable[[Path], None], hashed: bool
) -> None:
    one, other = tmp_path / "uñ\udce9.mp4", tmp_path / "2.mp4"
    one.write_text("text")
    other.write_text("text")
    cache = policy(store, outputs=lambda value: [one, os.fsencode(other)], hash_outputs=hashed)
    run(cache, "a", "done")
    assert ask(cache, "a") is not None
    change(one)
    assert ask(cache, "a") is None
    assert cache.counts()["changed"] == 1
    assert store.totals() == (0, 0)


def test_hashed_outputs_are_told_by_content_whatever_their_times_say(
    store: CacheStore, tmp_path: Path
) -> None:
    path = tmp_path / "1.mp4"
    path.write_text("text")
    when = path.stat().st_mtime_ns
    cache = policy(store, outputs=lambda value: path, hash_outputs=True)
    run(cache, "a", "done")
    os.utime(path, ns=(0, 0))
    assert ask(cache, "a") is not None
    path.write_text("TEXT")
    os.utime(path, ns=(when, when))
    assert ask(cache, "a") is None


def test_a_value_whose_output_is_not_there_is_not_kept(store: CacheStore, tmp_path: Path) -> None:
    cache = policy(store, outputs=lambda value: value)
    for named in ([str(tmp_path / "none")], [str(tmp_path)], 5):
        run(cache, "a", named)
    assert cache.counts()["unkept"] == 3
    assert store.totals() == (0, 0)


def test_an_entry_whose_outputs_nobody_looked_at_is_no_answer_where_they_count(store: CacheStore) -> None:
    run(policy(store), "a", [])
    assert ask(policy(store, outputs=lambda value: value), "a") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": ""},
        {"version": 1},
        {"ttl": 0},
        {"ttl": True},
        {"ttl": float("inf")},
        {"encode": str},
        {"decode": str},
        {"settings": {"x": object()}},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        policy(MemoryCache(), **wrong)


@pytest.mark.parametrize("bound", [0, -1, 1.5, True])
def test_wrong_bounds_are_refused(tmp_path: Path, bound: Any) -> None:
    for name in ("max_entries", "max_bytes"):
        with pytest.raises(ConfigError, match=name):
            MemoryCache(**{name: bound})
        with pytest.raises(ConfigError, match=name):
            SqliteCache(tmp_path / "c", **{name: bound})


def double(item: int) -> int:
    return 2 * item


@pytest.mark.parametrize("engine", ["serial", "process"])
def test_a_second_batch_is_answered_whole(store: CacheStore, engine: str) -> None:
    cache = policy(store)
    with Runner(ParallelConfig(backend=engine, max_workers=2), policies=[cache]) as runner:
        first = runner.map(double, range(20))
        second = runner.map(double, range(20))
    assert [one.unwrap() for one in first] == [one.unwrap() for one in second] == [2 * n for n in range(20)]
    assert {one.origin for one in first} == {"run"}
    assert {(one.origin, one.attempts, one.seconds) for one in second} == {("cache", 0, 0.0)}


# Laws


NAMES = st.sampled_from("abcdefgh")


class Bounded:
    """A model of a store: what was used last stands last; where a bound is passed, it is cut back to a share
    of both, oldest first, but never the latest. With a share below 1, uses count while it was more than half
    full when it was last written to."""

    def __init__(self, most: int, size: int, share: float) -> None:
        self.most, self.size, self.share = most, size, share
        self.kept: OrderedDict[str, Entry] = OrderedDict()
        self.half_full = False

    def taken(self) -> int:
        return sum(entry.size(key) for key, entry in self.kept.items())

    def get(self, key: str) -> Entry | None:
        if key in self.kept and (self.half_full or self.share == 1):
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def look(self) -> None:
        self.half_full = 2 * len(self.kept) > self.most or 2 * self.taken() > self.size

    def put(self, key: str, entry: Entry) -> bool:
        self.kept.pop(key, None)
        if entry.size(key) > self.size:
            return False
        self.kept[key] = entry
        self.look()
        if len(self.kept) > self.most or self.taken() > self.size:
            most, size = int(self.most * self.share), int(self.size * self.share)
            while (len(self.kept) > most or self.taken() > size) and len(self.kept) > 1:
                self.kept.popitem(last=False)
        return True


class Stores(RuleBasedStateMachine):
    """Both stores, which must do as their models do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.memory = MemoryCache(5, 120)
        self.file = SqliteCache(self.folder / "c", 5, 120)
        self.models = Bounded(5, 120, 1.0), Bounded(5, 120, KEPT_SHARE)
        self.time = 0.0

    def sides(self) -> list[tuple[Any, Bounded]]:
        return [(self.memory, self.models[0]), (self.file, self.models[1])]

    @rule(key=NAMES, length=st.integers(0, 130))
    def put(self, key: str, length: int) -> None:
        self.time += 1
        entry = Entry(self.time, "x" * length)
        for store, model in self.sides():
            assert store.put(key, entry) == model.put(key, entry)

    @rule(key=NAMES)
    def get(self, key: str) -> None:
        for store, model in self.sides():
            assert store.get(key) == model.get(key)

    @rule(key=NAMES, newer=st.booleans())
    def drop(self, key: str, newer: bool) -> None:
        for store, model in self.sides():
            entry = model.kept.get(key)
            store.drop(key, -1.0 if entry is None or newer else entry.created)
            if not newer:
                model.kept.pop(key, None)

    @rule(key=NAMES)
    def update(self, key: str) -> None:
        before = self.models[1].kept.get(key)
        self.file.update(key, lambda found: None if found == before else Entry(0.0, "wrong"))

    @rule()
    def clear(self) -> None:
        for store, model in self.sides():
            store.clear()
            model.kept.clear()

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = SqliteCache(self.folder / "c", 5, 120)
        self.models[1].look()

    def check(self) -> None:
        for store, model in self.sides():
            assert store.totals() == (len(model.kept), model.taken())
            assert len(model.kept) <= 5
            assert model.taken() <= 120

    def teardown(self) -> None:
        self.check()
        assert self.file.errors == 0
        self.file.close()
        shutil.rmtree(self.folder)


class Policies(RuleBasedStateMachine):
    """A cache on either store, with files and a clock: it answers what, and only what, the model answers."""

    TTL = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.path = self.folder / "cache.sqlite"
        self.stores: list[Any] = [MemoryCache(), SqliteCache(self.path)]
        self.caches = [self.cache(store) for store in self.stores]
        self.model: dict[str, tuple[int, float, int]] = {}
        """Of each item: value, when it was made, and which version of its output."""
        self.versions: dict[str, int] = dict.fromkeys("abcd", 0)
        """0: there is no output."""
        self.count = 0

    def cache(self, store: CacheStore) -> CachePolicy:
        return policy(store, ttl=self.TTL, wall=self.clock, outputs=lambda value: self.folder / value["name"])

    def expected(self, item: str) -> int | None:
        if item not in self.model:
            return None
        value, made, version = self.model[item]
        age = self.clock.now - made
        if not -1.0 <= age < self.TTL or version != self.versions[item]:
            del self.model[item]
            return None
        return value

    def write(self, item: str) -> None:
        self.count += 1
        (self.folder / item).write_text("x" * self.count)  # no two of one size
        self.versions[item] = self.count

    @rule(item=st.sampled_from("abcd"), fails=st.booleans())
    def work(self, item: str, fails: bool) -> None:
        expected = self.expected(item)
        jobs = [Job(0, item) for _ in self.caches]
        answers = [cache.admit(job, 0.0) for cache, job in zip(self.caches, jobs, strict=True)]
        for answer in answers:
            if expected is None:
                assert answer is None
            else:
                value = {"name": item, "value": expected}
                assert answer == Outcome(0, value, None, 0, 0.0, "cache")
        if expected is not None:
            return
        self.write(item)
        value = {"name": item, "value": self.count}
        error = ValueError("no") if fails else None
        for cache, job in zip(self.caches, jobs, strict=True):
            cache.settle(job, Outcome(0, value, error), 0.0)
        if not fails:
            self.model[item] = self.count, self.clock.now, self.count

    @rule(item=st.sampled_from("abcd"))
    def change(self, item: str) -> None:
        self.write(item)

    @rule(item=st.sampled_from("abcd"))
    def remove(self, item: str) -> None:
        (self.folder / item).unlink(missing_ok=True)
        self.versions[item] = 0

    @rule(seconds=st.sampled_from([0.5, 30.0, 99.0, 100.0, -0.5, -2.0, -500.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def restart(self) -> None:
        self.stores[1].close()
        self.stores[1] = SqliteCache(self.path)
        self.caches[1] = self.cache(self.stores[1])

    def teardown(self) -> None:
        self.stores[1].close()
        shutil.rmtree(self.folder)


TestStores = Stores.TestCase
TestPolicies = Policies.TestCase
TestStores.settings = TestPolicies.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_uses_are_in_the_file_after_so_many_of_them(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "c", max_entries=2 * MOST_USES)
    for number in range(2 * MOST_USES):
        cache.put(str(number), Entry(0.0, "1"))
    for number in range(MOST_USES):
        cache.get(str(number))
    other = SqliteCache(tmp_path / "c", max_entries=2 * MOST_USES)
    other.put("new", Entry(0.0, "1"))
    assert other.get("0") is not None, "it was used, by an object that is still open"
    assert other.get(str(MOST_USES)) is None
    cache.close()
    other.close()


def test_weight_counts_what_an_object_holds() -> None:
    assert weight(b"x" * 10_000) >= 10_000
    assert weight([Clip("x" * 5_000), {"a": b"y" * 5_000}]) >= 10_000
    shared = "x" * 10_000
    assert weight([shared] * 100) < 20_000
    assert weight([str(number) * 10 for number in range(50_000)]) > 50_000 * 50
    loop: list[Any] = []
    loop.append(loop)
    assert weight(loop) < 1_000


def test_memory_is_bounded_by_what_objects_weigh() -> None:
    cache = MemoryCache(max_bytes=50_000)
    for number in range(20):
        assert cache.put(str(number), Entry(0.0, None, "", b"x" * 10_000))
    assert cache.totals()[0] == 4
    assert not cache.put("large", Entry(0.0, None, "", b"x" * 60_000))


def test_a_memory_cache_keeps_its_bounds_among_threads() -> None:
    cache = MemoryCache(max_entries=50, max_bytes=2_000)

    def work(name: int) -> None:
        for number in range(2_000):
            cache.put(f"{number * 7 % 90}", Entry(float(number), "x" * (number % 40)))
            cache.get(f"{(number + name) % 90}")
            cache.drop(f"{number % 13}", float(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    entries, taken = cache.totals()
    assert 0 < entries <= 50
    assert taken == sum(entry.size(key) for key, (entry, _) in cache._entries.items()) <= 2_000


def test_closed_stores_keep_and_find_nothing(store: CacheStore) -> None:
    store.put("a", Entry(0.0, "1"))
    store.close()
    store.close()
    assert not store.put("b", Entry(0.0, "1"))
    assert store.get("a") is None
    assert store.totals() == (0, 0)


# The file


def test_a_file_is_its_owners_only(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "new" / "c.sqlite")
    cache.put("a", Entry(0.0, "1"))
    files = sorted(one.name for one in (tmp_path / "new").iterdir())
    assert files == ["c.sqlite", "c.sqlite-shm", "c.sqlite-wal"]
    for name in files:
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    cache.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096 + 100])


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE entries (key, text)")
    db.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def scrambled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(byte ^ 0x5A for byte in data[4096:])
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, cut, foreign, newer, folder, scrambled])
def test_a_file_of_no_use_is_said_once_and_no_batch_fails_for_it(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c"
    before = SqliteCache(path)
    for number in range(500):
        before.put(f"{number}", Entry(0.0, "x" * 200))
    before.close()
    damage(path)
    store = SqliteCache(path)
    cache = policy(store)
    with Runner(ParallelConfig(backend="serial"), policies=[cache]) as runner:
        for _ in range(2):
            assert [one.unwrap() for one in runner.map(double, range(20))] == [2 * n for n in range(20)]
    store.totals()
    assert not store.usable
    assert store.errors >= 1
    said = [one.getMessage() for one in caplog.records if str(path) in one.getMessage()]
    assert len(said) == 1
    assert "goes on without" in said[0]
    assert "Move it away" in said[0]


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c"
    SqliteCache(path).close()
    foreign(path)
    before = path.read_bytes()
    SqliteCache(path).put("a", Entry(0.0, "1"))
    assert path.read_bytes() == before


def test_changed_bytes_in_a_value_are_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "c"
    cache = policy(SqliteCache(path))
    run(cache, "a", "the very answer")
    cache.store.close()
    data = path.read_bytes()
    assert b"the very answer" in data
    path.write_bytes(data.replace(b"the very answer", b"the fair answer"))
    again = policy(SqliteCache(path))
    run(again, "a", "anew")
    answer = ask(again, "a")
    assert answer is not None
    assert answer.value == "anew"
    again.store.close()


def test_a_file_that_stays_locked_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.policies._cache_store.BUSY_SECONDS", 0.01)
    cache = SqliteCache(tmp_path / "c")
    cache.put("a", Entry(0.0, "1"))
    locker = sqlite3.connect(tmp_path / "c", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    assert not cache.put("b", Entry(0.0, "1"))
    assert cache.get("a") is not None, "it can be read"
    for _ in range(MOST_FAILURES - 1):
        assert cache.usable
        assert not cache.put("b", Entry(0.0, "1"))
    assert not cache.usable
    locker.close()


def test_a_full_disk_costs_the_entry_alone(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path / "c")
    assert cache._db is not None
    cache.put("a", Entry(0.0, "1"))
    cache._db.execute("PRAGMA max_page_count = 1")  # it sets the present size, and there is no room beyond
    assert not cache.put("large", Entry(0.0, "x" * 1_000_000))
    assert cache.get("a") == Entry(0.0, "1")
    assert cache.errors == 1
    cache.close()


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = "import sys, os\nfrom video.policies.cache import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


WRITER = """
store = SqliteCache(sys.argv[1])
number = 0
while True:
    if store.put(f"{sys.argv[2]}-{number}", Entry(1.0, str(number) * 50)):
        os.write(1, f"{number}\\n".encode())
        number += 1
    store.get(f"{sys.argv[2]}-{number // 2}")
"""


def test_a_kill_costs_nothing_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "c"
    kept: dict[str, str] = {}
    for turn in range(3):
        writers = [script(WRITER, path, f"{turn}-{name}") for name in range(2)]
        for writer in writers:
            assert writer.stdout is not None
            for _ in range(20):  # both are at it
                assert writer.stdout.readline()
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for name, writer in enumerate(writers):
            rest = writer.communicate(timeout=30)[0].split("\n")[:-1]
            last = int(rest[-1]) if rest else 19
            kept |= {f"{turn}-{name}-{number}": str(number) * 50 for number in range(last + 1)}
    store = SqliteCache(path)
    assert store._db is not None
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for key, text in kept.items():
        assert store.get(key) == Entry(1.0, text)
    size = store._db.execute("SELECT count(*), sum(size) FROM entries").fetchone()
    assert store.totals() == size
    store.close()


CROWD = """
store = SqliteCache(sys.argv[1], max_entries=100)
for number in range(300):
    key = f"{number % 150}"
    store.put(key, Entry(1.0, key * 10))
    found = store.get(f"{number * 7 % 150}")
    assert found is None or found.text == f"{number * 7 % 150}" * 10
    assert store.totals()[0] <= 100
store.close()
print(store.errors)
"""


def test_many_processes_use_one_file_from_its_very_start(tmp_path: Path) -> None:
    crowd = [script(CROWD, tmp_path / "c") for _ in range(4)]
    for one in crowd:
        assert one.communicate(timeout=60)[0] == "0\n"
        assert one.returncode == 0
    store = SqliteCache(tmp_path / "c")
    assert store._db is not None
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert store.totals() == store._db.execute("SELECT count(*), sum(size) FROM entries").fetchone()
    store.close()


FORKS = """
store = SqliteCache(sys.argv[1])
store.put("parent", Entry(1.0, "1"))
child = os.fork()
if not child:
    found = store.get("parent")
    store.put("child", Entry(1.0, "2"))
    os._exit(0 if found and store.errors == 0 else 1)
status = os.waitpid(child, 0)[1]
print(status, store.get("child") is not None, store.put("after", Entry(1.0, "3")), store.errors)
"""


def test_a_forked_child_opens_the_file_for_itself(tmp_path: Path) -> None:
    assert script(FORKS, tmp_path / "c").communicate(timeout=60)[0] == "0 True True 0\n"


def test_a_change_is_one_step_among_processes(tmp_path: Path) -> None:
    count = """
store = SqliteCache(sys.argv[1])
for _ in range(100):
    store.update("count", lambda found: Entry(1.0, str(int(found.text if found else 0) + 1)))
"""
    crowd = [script(count, tmp_path / "c") for _ in range(3)]
    for one in crowd:
        one.communicate(timeout=60)
        assert one.returncode == 0
    store = SqliteCache(tmp_path / "c")
    assert store.get("count") == Entry(1.0, "300")
    store.close()


def test_what_is_open_elsewhere_can_be_read_at_once(tmp_path: Path) -> None:
    one, other = SqliteCache(tmp_path / "c"), SqliteCache(tmp_path / "c")
    one.put("a", Entry(0.0, "1"))
    until(lambda: other.get("a") == Entry(0.0, "1"), 5)
    one.close()
    other.close()
