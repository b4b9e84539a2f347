"""What a rate limiter promises: the law in simulated time, and among real processes that are killed."""

from __future__ import annotations

import contextlib
import heapq
import importlib.util
import json
import math
import os
import pickle
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import until
from video.errors import (
    CircuitOpen,
    ConfigError,
    MissingDependency,
    NotPicklable,
    RateLimited,
    StoreError,
)
from video.outcome import Outcome
from video.policies import _rate_gcra as gcra
from video.policies import rate as rates
from video.policies._rate_file import SIZE, FileStore
from video.policies._rate_gcra import INFINITE, State, Ticket
from video.policies._rate_stores import MemoryStore, SqliteStore, pack, unpack
from video.policies.base import Job
from video.policies.rate import DistributedRateLimiter, RatePolicy


class Time:
    """A clock, and a sleep that moves it on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def limiter(clock: Time, **about: Any) -> DistributedRateLimiter:
    return DistributedRateLimiter(**({"clock": clock, "sleep": clock.sleep} | about))


def fullest(times: list[float], window: float = 60.0) -> int:
    """Most of them in any window, both ends included."""
    times = sorted(times)
    first = most = 0
    for last, at in enumerate(times):
        while times[first] < at - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def job(index: int = 0, key: str = "") -> Job:
    return Job(index, f"item {index}", key=key)


def failed(error: BaseException) -> Outcome[Any]:
    return Outcome(0, None, error)


def ended(error: BaseException | None = None) -> Outcome[Any]:
    return Outcome(0, "value" if error is None else None, error)


# The law, in simulated time.

LIMITS = st.sampled_from([1, 2, 3, 7, 10, 19, 40, 60, 300, 1000, 2.5])
HEADROOMS = st.sampled_from([1.0, 0.99, 0.95, 0.8, 0.5])
BURSTS = st.sampled_from([None, 1, 3, 1000])


def crowd(
    state: State,
    chance: random.Random,
    *,
    seconds: float,
    waiters: int,
    late: float,
    idle: float = 0.0,
    dies: float = 0.0,
    gives_back: float = 0.0,
    look: float = INFINITE,
    disturb: Callable[[State, float], float] | None = None,
) -> list[tuple[float, int]]:
    """Callers who ask, sleep, wake up late, die in their sleep, give back; who was permitted when.

    Nobody sleeps longer than `look`. `disturb` is called before each step and says by how much the clock
    jumps then.
    """
    granted: list[tuple[float, int]] = []
    now, off, number = 0.0, state.last, 0
    agenda: list[tuple[float, int, int, Ticket]] = []
    for waiter in range(waiters):
        heapq.heappush(agenda, (chance.uniform(0, idle), waiter, waiter, Ticket()))
        number += 1
    while agenda:
        now, _, waiter, ticket = heapq.heappop(agenda)
        if now > seconds:
            break
        if disturb is not None:
            off += disturb(state, now)
        wait = gcra.claim(state, now + off, ticket, INFINITE if waiter % 4 else 0.0)
        if ticket.granted:
            if chance.random() < gives_back:
                gcra.observe(state, now + off)
                gcra.undo(state, ticket)
            else:
                granted.append((now, waiter))
            ticket, wait = Ticket(), chance.uniform(0, idle)
        elif chance.random() < dies:
            ticket = Ticket()
        number += 1
        heapq.heappush(agenda, (now + min(wait, look) + chance.expovariate(1) * late, number, waiter, ticket))
    return granted


@settings(deadline=None, max_examples=150)
@given(
    LIMITS,
    HEADROOMS,
    BURSTS,
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.01, 0.3, 20.0]),
    st.sampled_from([0.0, 0.5, 30.0]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.2]),
)
def test_no_minute_ever_holds_more_than_the_limit(
    limit: float,
    headroom: float,
    burst: int | None,
    seed: int,
    waiters: int,
    late: float,
    idle: float,
    dies: float,
    gives_back: float,
) -> None:
    chance = random.Random(seed)
    state = State(0.0, gcra.figures(limit, headroom, burst, None, None))

    def disturb(state: State, now: float) -> float:
        gcra.observe(state, now)
        what = chance.random()
        if what < 0.002:
            gcra.penalize(state, chance.uniform(0, 20))
        elif what < 0.006:
            gcra.push_back(state, now - chance.uniform(0, 5))
        elif what < 0.5:
            gcra.succeed(state)
        return 0.0

    granted = crowd(
        state,
        chance,
        seconds=200 if limit < 500 else 90,
        waiters=waiters,
        late=late,
        idle=idle,
        dies=dies,
        gives_back=gives_back,
        disturb=disturb,
    )
    assert fullest([at for at, _ in granted]) <= math.floor(limit)


@settings(deadline=None, max_examples=60)
@given(LIMITS, LIMITS, HEADROOMS, st.integers(0, 2**32))
def test_a_minute_with_a_change_of_rate_holds_no_more_than_the_larger_limit(
    one: float, other: float, headroom: float, seed: int
) -> None:
    chance = random.Random(seed)
    state = State(0.0, gcra.figures(one, headroom, None, None, None))
    at = chance.uniform(20, 100)

    def disturb(state: State, now: float) -> float:
        if now >= at:
            gcra.observe(state, now)
            gcra.configure(state, gcra.figures(other, headroom, None, None, None))
        return 0.0

    times = [at for at, _ in crowd(state, chance, seconds=200, waiters=5, late=0.1, disturb=disturb)]
    assert fullest(times) <= max(one, other)
    assert fullest([time for time in times if time < at]) <= one
    assert fullest([time for time in times if time > at]) <= other


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([60, 300]),
    st.integers(0, 2**32),
    st.floats(1.0, 1e7),
    st.booleans(),
    st.sampled_from([3, 6, 60]),
)
def test_one_jump_of_the_clock_breaks_nothing(
    limit: int, seed: int, far: float, forward: bool, waiters: int
) -> None:
    chance = random.Random(seed)
    state = State(1e8, gcra.figures(limit, 0.95, None, None, None))
    at = chance.uniform(10, 80)
    jumps = [far if forward else -far]

    def disturb(state: State, now: float) -> float:
        return jumps.pop() if jumps and now >= at else 0.0

    granted = crowd(state, chance, seconds=120, waiters=waiters, late=0.01, look=1.0, disturb=disturb)
    times = [time for time, _ in granted]
    assert not jumps
    assert fullest(times) <= limit
    # Nobody waits for a clock that was put back, nor pays for one that was put forward.
    assert len(times) >= 0.95 * limit * 0.95 * 120 / 60


def test_a_jump_forward_hands_out_no_second_burst() -> None:
    state = State(0.0, gcra.figures(300, 0.95, None, None, None))
    tickets = [Ticket() for _ in range(60)]
    granted: list[float] = []

    def ask(now: float, off: float, which: list[Ticket]) -> None:
        for ticket in which:
            gcra.claim(state, now + off, ticket, INFINITE)
            if ticket.granted:
                granted.append(now)
                tickets[tickets.index(ticket)] = Ticket()

    late, jump = 30.0, 34.0
    for step in range(1960):
        now = step / 20
        if not late <= now < jump:
            ask(now, 1000.0 if now >= jump else 0.0, list(tickets))
        else:  # all whose turn it is come late, while the others look on
            ask(now, 0.0, [ticket for ticket in tickets if ticket.slot > now])
        if step == jump * 20 - 1:
            ask(now, 0.0, list(tickets))
    assert sum(at == jump - 0.05 for at in granted) > 5, "nothing was caught up with"
    assert fullest(granted) <= 300


@pytest.mark.parametrize("headroom", [1.0, 0.95])
@pytest.mark.parametrize("limit", [300, 6000, 60000])
def test_more_than_99_percent_of_the_rate_is_used_under_load(limit: int, headroom: float) -> None:
    state = State(0.0, gcra.figures(limit, headroom, None, None, None))
    seconds = 120.0 if limit < 10000 else 20.0
    granted = crowd(state, random.Random(1), seconds=seconds, waiters=10, late=0.002)
    assert len(granted) >= 0.99 * limit * headroom * seconds / 60


def test_who_dies_in_its_sleep_costs_one_interval_at_most() -> None:
    clock = Time()
    one = limiter(clock, burst=1)
    assert one.acquire_permission()
    assert one.ask(one.ticket(), INFINITE) > 0  # and is never heard of again
    started = clock()
    for _ in range(100):
        assert one.wait_for_availability()
    assert clock() - started <= 101 * 60 / 285 + 1e-6


def test_who_waits_is_served_in_turn() -> None:
    clock = Time()
    one = limiter(clock, burst=1)
    assert one.acquire_permission()
    tickets = [one.ticket() for _ in range(5)]
    waits = [one.ask(ticket, INFINITE) for ticket in tickets]
    assert waits == sorted(waits)
    assert not one.acquire_permission()
    clock.sleep(waits[0])
    assert not one.acquire_permission(), "a newcomer goes before those who wait"
    assert [one.ask(ticket, INFINITE) == 0 for ticket in tickets] == [True, False, False, False, False]
    clock.sleep(waits[4])
    assert all(one.ask(ticket, INFINITE) == 0 for ticket in reversed(tickets[1:]))


def test_a_burst_is_as_large_as_asked_and_paid_for() -> None:
    for burst, headroom, allowed in (
        (1, 0.95, 1),
        (4, 0.95, 4),
        (None, 0.95, 5),
        (1000, 0.95, 7),
        (9, 1.0, 2),
    ):
        one = limiter(Time(), burst=burst, headroom=headroom)
        assert sum(one.acquire_permission() for _ in range(50)) == allowed


def test_an_hour_of_rest_gives_one_burst_and_no_more() -> None:
    clock = Time()
    one = limiter(clock)
    while one.acquire_permission():
        pass
    clock.sleep(3600)
    assert sum(one.acquire_permission() for _ in range(50)) == 5


# The limiter.


def test_a_wait_ends_with_a_permit() -> None:
    clock = Time()
    one = limiter(clock)
    assert all(one.wait_for_availability("w") for _ in range(285))
    assert 58 < clock() - 1000 < 60


def test_a_timeout_is_kept_and_leaves_no_place_behind() -> None:
    clock = Time()
    one = limiter(clock, rate_limit_rpm=60, burst=1)
    assert one.wait_for_availability(timeout=0)
    before = clock()
    assert not one.wait_for_availability(timeout=0.5)
    assert clock() - before == pytest.approx(0.5)
    assert one.wait_for_availability(timeout=0.6), "the wait before it has left a place in the queue"


def test_an_interrupted_wait_gives_its_place_back() -> None:
    clock = Time()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    one = limiter(clock, burst=1, sleep=interrupted)
    assert one.acquire_permission()
    with pytest.raises(KeyboardInterrupt):
        one.wait_for_availability()
    clock.sleep(60 / 285)
    assert one.acquire_permission()


def test_workers_share_one_budget_or_have_one_each() -> None:
    shared, independent = limiter(Time(), burst=1), limiter(Time(), burst=1, mode="independent")
    assert [shared.acquire_permission(worker) for worker in (1, 2)] == [True, False]
    assert [independent.acquire_permission(worker) for worker in (1, 2, 1)] == [True, True, False]


def test_a_penalty_stops_everybody_until_it_is_over() -> None:
    clock = Time()
    one = limiter(clock)
    waiting = [one.ticket() for _ in range(20)]
    for ticket in waiting:
        one.ask(ticket, INFINITE)
    clock.sleep(0.5)
    one.penalize(30)
    assert one.state().penalty_seconds == 30
    clock.sleep(29.9)
    assert not any(one.ask(ticket, INFINITE) == 0 for ticket in waiting if not ticket.granted)
    clock.sleep(0.2)
    left = [ticket for ticket in waiting if not ticket.granted]
    assert sum(one.ask(ticket, INFINITE) == 0 for ticket in left) == 1, "they come evenly after it"
    assert one.wait_for_availability()


def test_a_shorter_penalty_does_not_end_a_longer_one() -> None:
    one = limiter(Time())
    one.penalize(30)
    one.penalize(1)
    assert one.state().penalty_seconds == 30


def test_a_push_back_halves_the_rate_and_successes_bring_it_back_evenly() -> None:
    clock = Time()
    one = limiter(clock)
    one.push_back()
    assert one.state().factor == 0.5
    started = clock()
    while one.state().factor < 1.0:
        assert one.wait_for_availability()
        one.succeed()
    assert clock() - started == pytest.approx(120, rel=0.05)  # a quarter of the rate each minute


def test_what_was_under_way_at_a_push_back_does_not_count_again() -> None:
    clock = Time()
    one = limiter(clock)
    tickets = [one.ticket() for _ in range(5)]
    for ticket in tickets:
        assert one.ask(ticket, INFINITE) == 0
    clock.sleep(1)
    for ticket in tickets:
        one.end(ticket, refused=True)
    assert one.state().factor == 0.5
    assert one.wait_for_availability()
    late = one.ticket()
    clock.sleep(1)
    assert one.ask(late, INFINITE) == 0
    one.end(late, refused=True)
    assert one.state().factor == 0.25


def test_the_rate_is_never_cut_to_nothing() -> None:
    one = limiter(Time())
    for _ in range(100):
        one.push_back()
    assert one.state().permits_per_minute == pytest.approx(2.85)


def test_who_waits_hears_of_another_rate() -> None:
    clock = Time()
    one = limiter(clock, rate_limit_rpm=1)
    assert one.wait_for_availability()
    slept = []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        slept.append(seconds)
        if len(slept) == 3:
            one.set_rate(6000)

    one._sleep = sleep
    assert one.wait_for_availability()
    assert sum(slept) < 6


def test_a_day_has_its_quota_by_utc() -> None:
    clock, wall = Time(), Time(86400.0 * 20000 + 86000)
    one = limiter(clock, per_day=3, store=MemoryStore(wall=wall))
    assert sum(one.acquire_permission() for _ in range(10)) == 3
    assert one.state().used_today == 3
    assert one.ask(one.ticket(), 0.0) == pytest.approx(400)
    wall.now -= 86400  # put back into yesterday: nothing anew
    clock.sleep(60)
    assert not one.acquire_permission()
    wall.sleep(86400 + 400)
    assert one.acquire_permission()
    assert one.state().used_today == 1


def test_a_day_far_ahead_was_an_error_and_stalls_nothing() -> None:
    clock, wall = Time(), Time(86400.0 * 20000)
    one = limiter(clock, per_day=1, store=MemoryStore(wall=wall))
    wall.sleep(86400 * 365)
    assert one.acquire_permission()
    wall.now -= 86400 * 365
    clock.sleep(60)
    assert not one.acquire_permission()
    wall.sleep(86400)
    assert one.acquire_permission()


def test_no_more_are_in_flight_than_allowed() -> None:
    clock = Time()
    one = limiter(clock, rate_limit_rpm=60000, max_in_flight=2)
    assert [one.acquire_permission() for _ in range(3)] == [True, True, False]
    assert not one.wait_for_availability(timeout=1)
    assert one.state().in_flight == 2
    one.release()
    assert one.wait_for_availability(timeout=1)
    one.release()
    one.release()
    one.release()  # once too often
    with one.permit():
        assert one.state().in_flight == 1
    assert one.state().in_flight == 0


def test_threads_take_each_permit_once() -> None:
    clock = Time()
    one = limiter(clock, rate_limit_rpm=6000, headroom=0.5, burst=500)
    granted: list[bool] = []

    def work() -> None:
        granted.extend([one.acquire_permission() for _ in range(200)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(granted) == 500


@pytest.mark.parametrize(
    ("about", "word"),
    [
        ({"rate_limit_rpm": 0}, "rate_limit_rpm"),
        ({"rate_limit_rpm": math.nan}, "rate_limit_rpm"),
        ({"headroom": 1.1}, "headroom"),
        ({"headroom": 0}, "headroom"),
        ({"mode": "both"}, "mode"),
        ({"per_day": 0}, "per_day"),
        ({"max_in_flight": 1.5}, "max_in_flight"),
        ({"burst": 0}, "burst"),
        ({"store": ""}, "store"),
        ({"store": 7}, "store"),
    ],
)
def test_wrong_arguments_are_named(about: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        DistributedRateLimiter(**about)


def test_a_url_that_is_not_known_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="postgres") as caught:
        DistributedRateLimiter(store="postgres://me:secret@host/0")
    assert "secret" not in str(caught.value)


# Stores of files.


@pytest.fixture(params=["file", "sqlite"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "state" / ("limit" if request.param == "file" else "limit.sqlite")


def test_limiters_of_one_file_share_its_budget(path: Path) -> None:
    clock = Time()
    one, other = limiter(clock, store=path, burst=2), limiter(clock, store=str(path), burst=2)
    assert one.acquire_permission()
    assert other.acquire_permission()
    assert not one.acquire_permission()
    assert not other.acquire_permission()
    one.close()
    other.close()
    assert not limiter(clock, store=path, burst=2).acquire_permission()
    one.set_rate(60000, 0.5)
    assert other.state().permits_per_minute == 30000


def test_names_and_workers_have_budgets_of_their_own_in_one_store(path: Path) -> None:
    clock = Time()
    names = [limiter(clock, store=path, burst=1, name=name) for name in ("", "a", "b")]
    assert all(one.acquire_permission() for one in names)
    workers = limiter(clock, store=path, burst=1, mode="independent")
    assert all(workers.acquire_permission(worker) for worker in ("a", "b/../c", "\udcff"))
    assert not workers.acquire_permission("a")


def test_files_are_for_their_owner_only(path: Path) -> None:
    one = DistributedRateLimiter(store=path, mode="independent")
    assert one.acquire_permission("w")
    files = list(path.parent.iterdir())
    assert files
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_of_somebody_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    for words in ("a film, or a letter", "a long letter" * 5000):
        path.write_text(words)
        with pytest.raises(StoreError, match="limit"):
            DistributedRateLimiter(store=path).acquire_permission()
        assert path.read_text() == words


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        DistributedRateLimiter(store=tmp_path / "link").acquire_permission()
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_was_deleted_is_made_anew(path: Path) -> None:
    one = DistributedRateLimiter(store=path, burst=1)
    assert one.acquire_permission()
    if path.suffix:
        one.close()
    for file in path.parent.iterdir():
        file.unlink()
    other = DistributedRateLimiter(store=path, burst=1)
    assert [other.acquire_permission(), one.acquire_permission()] == [True, False]


def test_a_file_that_was_cut_off_kills_nobody(tmp_path: Path) -> None:
    one = DistributedRateLimiter(store=tmp_path / "limit")
    assert one.acquire_permission()
    os.truncate(tmp_path / "limit", 0)
    assert one.acquire_permission()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_torn_write_is_as_if_it_had_not_been(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    file = tmp_path_factory.mktemp("torn") / "limit"
    clock = Time()
    one = limiter(clock, store=file, burst=7, headroom=0.8)
    had = data.draw(st.integers(1, 5))
    assert sum(one.acquire_permission() for _ in range(had)) == had
    before = file.read_bytes()
    assert one.acquire_permission()
    after = file.read_bytes()
    changed = [place for place in range(SIZE) if before[place] != after[place]]
    # Of all that changed, at least the last byte is not written.
    upto = changed[data.draw(st.integers(0, 1_000_000)) * (len(changed) - 1) // 1_000_000]
    file.write_bytes(after[:upto] + before[upto:])
    other = limiter(clock, store=FileStore(file, clock=clock), burst=7, headroom=0.8)
    assert sum(other.acquire_permission() for _ in range(20)) == 7 - had


def test_a_file_that_is_damaged_all_over_permits_nothing_for_a_minute(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Time()
    one = limiter(clock, store=path)
    for _ in range(3):
        assert one.acquire_permission()
    one.close()
    if path.suffix:
        import sqlite3

        with contextlib.closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE budgets SET state = ?", (b"\0" * 136,))
    else:
        whole = bytearray(path.read_bytes())
        for place in (80, SIZE // 2 + 80):
            whole[place : place + 100] = random.Random(1).randbytes(100)
        path.write_bytes(whole)
    assert limiter(clock, store=path).ask(one.ticket(), 0.0) == pytest.approx(60)
    clock.sleep(60.1)
    assert limiter(clock, store=path).acquire_permission()


def test_a_clock_put_back_stalls_no_store(path: Path) -> None:
    clock = Time(1e6)
    one = limiter(clock, store=path)
    while one.acquire_permission():
        pass
    clock.now -= 9e5
    assert not one.acquire_permission()
    clock.sleep(0.3)
    assert one.acquire_permission()


def test_a_restart_of_the_machine_is_known_and_gives_nothing_away() -> None:
    state = State(5000.0, gcra.figures(300, 0.95, 1, None, 2))
    state.boot, state.wall = 1.0, 1e9
    ticket = Ticket()
    assert gcra.claim(state, 5000.0, ticket, INFINITE, (42, 7)) == 0
    gcra.penalize(state, 100.0)
    state = unpack(pack(state)) or pytest.fail("it cannot be read")
    gcra.started(state, 30.0, 1e9 + 40.0, 2.0)  # off for 40 s by the wall, and up for 30 of these
    gcra.observe(state, 30.0)
    assert gcra.look(state)[2] == pytest.approx(60.0)
    assert state.holders == {}
    gcra.started(state, 10.0, 1e9 - 5e6, 3.0)  # the wall went back: nothing is known to have passed
    gcra.observe(state, 10.0)
    assert gcra.look(state)[2] == pytest.approx(60.0)


@given(st.binary(max_size=300))
def test_no_bytes_make_a_state_that_is_none(data: bytes) -> None:
    state = unpack(data)
    if state is not None:
        wait = gcra.claim(state, 0.0, Ticket(), 0.0)
        assert math.isfinite(wait)


def test_a_limiter_of_a_file_crosses_to_a_worker_and_one_of_memory_does_not(path: Path) -> None:
    one = DistributedRateLimiter(60, 0.9, "independent", path, name="n", per_day=5, burst=1)
    other = pickle.loads(pickle.dumps(one))
    assert one.acquire_permission("w")
    assert not other.acquire_permission("w")
    with pytest.raises(NotPicklable, match="Give it a store"):
        pickle.dumps(DistributedRateLimiter())


def test_a_forked_process_opens_its_own(path: Path) -> None:
    code = f"""
import os
from video.policies.rate import DistributedRateLimiter
one = DistributedRateLimiter(store={str(path)!r}, burst=2, max_in_flight=2)
assert one.acquire_permission()
pid = os.fork()
if pid == 0:
    os._exit(0 if one.acquire_permission() and not one.acquire_permission() else 1)
assert os.waitpid(pid, 0)[1] == 0
assert one.state().in_flight == 1
assert not one.acquire_permission()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_a_killed_process_has_in_flight_is_given_back(path: Path) -> None:
    code = f"""
import time
from video.policies.rate import DistributedRateLimiter
one = DistributedRateLimiter(60000, store={str(path)!r}, max_in_flight=2)
print([one.wait_for_availability(timeout=20) for _ in range(2)], flush=True)
time.sleep(60)
"""
    one = DistributedRateLimiter(60000, store=path, max_in_flight=2)
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "[True, True]\n"
        assert not one.wait_for_availability(timeout=0.2)
        holder.kill()
        assert one.wait_for_availability(timeout=20)
        assert one.state().in_flight == 1
    finally:
        holder.kill()
        holder.communicate()


# Real processes.

SPEED = 20.0
"""Their clocks run this much faster, so that a minute takes three seconds."""

RUN = """
import json, os, sys, time
from video.policies._rate_file import FileStore
from video.policies._rate_stores import SqliteStore
from video.policies.rate import DistributedRateLimiter

kind, where, seconds, speed = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
clock = lambda: time.clock_gettime(time.CLOCK_MONOTONIC) * speed
if kind == "redis":
    from video.policies import _rate_redis as theirs
    usual = "tonumber(time[2]) / 1e6\\nif"
    assert usual in theirs._SCRIPT
    theirs._SCRIPT = theirs._SCRIPT.replace(usual, usual[:-2] + f"now = now * {speed}\\nif")
    store = theirs.RedisStore(where)
else:
    store = (FileStore if kind == "file" else SqliteStore)(where, clock=clock)
one = DistributedRateLimiter(300, store=store, clock=clock, sleep=lambda s: time.sleep(s / speed))
times, real = [], one.ask
def ask(ticket, longest, now=None):
    wait = real(ticket, longest, now)
    if ticket.granted:
        times.append(ticket.at)
    return wait
one.ask = ask
one.state()
print("ready", flush=True)
sys.stdin.readline()
end = clock() + seconds
while clock() < end and one.wait_for_availability(timeout=max(0.0, end - clock())):
    pass
print(json.dumps(times), flush=True)
"""


@contextlib.contextmanager
def crew(count: int, kind: str, where: str, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that stand ready, and take permits for so long once they are told to."""
    words = [sys.executable, "-c", RUN, kind, where, str(seconds), str(SPEED)]
    members = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for member in members:
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"
        yield members
    finally:
        for member in members:
            member.kill()
        for member in members:
            member.communicate()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    if importlib.util.find_spec("redis") is None:
        pytest.skip("the package redis is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([program, *words], stdout=log, stderr=log)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        until(answers)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.flaky(reruns=2)  # no store can be fair to processes that get no CPU for seconds
@pytest.mark.parametrize("kind", ["file", "sqlite", "redis"])
def test_ten_processes_keep_the_limit_and_share_it_fairly_though_one_is_killed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue("redis_url") if kind == "redis" else str(tmp_path / "limit")
    seconds = 80.0
    with crew(11, kind, where, seconds) as members:
        for member in members:
            assert member.stdin is not None
            member.stdin.write("\n")
            member.stdin.flush()
        time.sleep(1.0)
        members[0].send_signal(signal.SIGKILL)  # most likely in its sleep, with a place in the queue
        answers = [json.loads(member.communicate(timeout=60)[0]) for member in members[1:]]
    times = [at for answer in answers for at in answer]
    assert fullest(times) <= 300
    assert len(times) >= 0.75 * 285 * seconds / 60  # a bound against stalls
    first = min(times) + 15.0  # by then all have been told to start, and none has come to its end
    counts = [sum(first < at < first + 60.0 for at in answer) for answer in answers]
    mean = sum(counts) / 10
    assert all(abs(count - mean) <= 0.15 * mean for count in counts), counts


def test_no_kill_at_any_moment_damages_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""
from video.policies.rate import DistributedRateLimiter
one = DistributedRateLimiter(6e6, store={str(tmp_path / "limit")!r}, max_in_flight=5)
print(flush=True)
while True:
    one.acquire_permission()
    one.release()
"""
    chance = random.Random(7)
    one = DistributedRateLimiter(6e6, store=tmp_path / "limit", max_in_flight=5)
    for _ in range(6):
        members = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for member in members:
                assert member.stdout is not None
                member.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.03))
        finally:
            for member in members:
                member.kill()
            for member in members:
                member.communicate()
        assert one.wait_for_availability(timeout=10)
        one.release()
    assert one.state().in_flight == 0
    assert one.state().penalty_seconds == 0
    assert not caplog.records


# Redis.


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingDependency, match="pip install"):
        DistributedRateLimiter(store="redis://127.0.0.1:1/0")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    pytest.importorskip("redis", reason="the package redis is not installed")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1") as caught:
        DistributedRateLimiter(store="redis://me:secret@127.0.0.1:1/0").acquire_permission()
    assert "secret" not in str(caught.value)


def test_the_script_of_the_server_is_the_same_algorithm(redis_url: str) -> None:
    from video.policies._rate_redis import RedisStore

    clock = Time(100.0)
    for seed in range(12):
        chance = random.Random(seed)
        here = MemoryStore(wall=clock)
        there = RedisStore(redis_url, prefix=f"same{seed}", clock=clock)
        figures = gcra.figures(
            chance.choice([3, 60, 300]), chance.choice([1.0, 0.9]), None, chance.choice([None, 40]), None
        )
        if seed % 3 == 0:
            figures = figures._replace(most=3.0)
        pairs: list[tuple[Ticket, Ticket]] = []
        for _ in range(120):
            clock.now += chance.choice([0.0, 0.01, 0.1, 1.0, 20.0, -0.5, -30.0, 50000.0 * (seed == 5)])
            clock.now = max(clock.now, 1.0)
            what = chance.random()
            if what < 0.5 or not pairs:
                if what < 0.3 or not pairs:
                    pairs.append((Ticket("k"), Ticket("k")))
                pair = chance.choice(
                    [pair for pair in pairs if not pair[0].granted] or [(Ticket(), Ticket())]
                )
                longest = chance.choice([0.0, 1.0, INFINITE])
                waits = [
                    store.claim("k", figures, clock.now, ticket, longest)
                    for store, ticket in zip((here, there), pair, strict=True)
                ]
                assert waits[0] == waits[1]
                one, other = (dict(vars(ticket)) for ticket in pair)
                assert one.get("granted", False) == other.get("granted", False)
                assert one.get("slot") == other.get("slot")
                assert pair[0].moved == pair[1].moved
                continue
            if what < 0.75:
                pair = pairs.pop(chance.randrange(len(pairs)))
                if what < 0.6 or not pair[0].granted:
                    for store, ticket in zip((here, there), pair, strict=True):
                        store.undo("k", figures, clock.now, ticket)
                else:
                    for store, ticket in zip((here, there), pair, strict=True):
                        store.apply("k", figures, clock.now, "release", ticket.lease)
            else:
                step, *values = chance.choice(
                    [("penalize", 5.0), ("push_back", clock.now - 1), ("succeed",), ("configure",)]
                )
                if step == "configure":
                    figures = gcra.figures(chance.choice([30, 300]), 0.95, None, None, None)._replace(
                        per_day=figures.per_day, most=figures.most
                    )
                    values = [figures]
                for store in (here, there):
                    store.apply("k", figures, clock.now, step, *values)
            mine, its = (store.apply("k", figures, clock.now, "look") for store in (here, there))
            assert mine == pytest.approx(its)
        there.close()


def test_a_lease_on_the_server_ends_by_itself(redis_url: str) -> None:
    from video.policies._rate_redis import RedisStore

    clock = Time(5000.0)
    store = RedisStore(redis_url, prefix="lease", lease_seconds=30, clock=clock)
    one = limiter(clock, store=store, max_in_flight=1)
    assert one.acquire_permission()
    clock.sleep(10)
    assert not one.acquire_permission()
    clock.sleep(21)
    assert one.acquire_permission()
    one.release()
    assert one.state().in_flight == 0
    one.close()


def test_limiters_of_one_server_share_its_budget_by_its_clock(redis_url: str) -> None:
    one = DistributedRateLimiter(store=redis_url, name="shared", burst=2)
    other = pickle.loads(pickle.dumps(one))
    assert one.acquire_permission()
    assert other.acquire_permission()
    assert not one.acquire_permission()
    assert other.wait_for_availability(timeout=20)
    one.close()
    other.close()


# The policy.


def test_a_job_whose_turn_has_not_come_keeps_its_place() -> None:
    policy = RatePolicy(limiter(Time(), burst=1))
    first, second, third = job(0), job(1), job(2)
    assert policy.admit(first, 0.0) is None
    wait = policy.admit(second, 0.0)
    assert wait == pytest.approx(60 / 285)
    assert policy.admit(third, 0.0) == pytest.approx(2 * 60 / 285)
    assert policy.admit(second, 0.1) == pytest.approx(wait - 0.1)
    assert policy.admit(third, wait) == pytest.approx(wait), "it goes before the one that asked first"
    assert policy.admit(second, wait) is None
    assert policy.admit(third, 2 * wait) is None


def test_jobs_that_are_never_asked_for_again_cost_little() -> None:
    policy = RatePolicy(limiter(Time(), burst=1))
    for index in range(500):
        policy.admit(job(index), 0.0)
    newcomer, now = job(500), 0.0
    while (wait := policy.admit(newcomer, now)) is not None:
        now += wait
    assert now <= 2 * rates.AHEAD_SECONDS


def test_a_batch_of_jobs_goes_at_the_rate() -> None:
    policy = RatePolicy(limiter(Time(), rate_limit_rpm=6000))
    waiting = [(0.0, index, job(index)) for index in range(1000)]
    times: list[float] = []
    while waiting:
        now, index, one = heapq.heappop(waiting)
        wait = policy.admit(one, now)
        if wait is None:
            times.append(now)
            policy.settle(one, ended(), now)
        else:
            assert isinstance(wait, float)
            heapq.heappush(waiting, (now + wait, index, one))
    assert max(times) == pytest.approx(1000 / 95, rel=0.02)


def test_a_permit_that_is_not_used_goes_back() -> None:
    policy = RatePolicy(limiter(Time(), burst=1, per_day=10, store=MemoryStore(wall=Time())))
    first, second = job(0), job(1)
    assert policy.admit(first, 0.0) is None
    policy.withdraw(first, 0.0)
    assert policy.admit(second, 0.0) is None
    reserved, last = job(2), job(3)
    wait = policy.admit(reserved, 0.0)
    policy.withdraw(reserved, 0.0)
    assert policy.admit(last, 0.0) == wait
    policy.withdraw(job(4), 0.0)  # it had nothing


def test_a_permit_is_not_given_back_twice_where_others_came_after_it() -> None:
    policy = RatePolicy(limiter(Time(), burst=3))
    first, second = job(0), job(1)
    assert policy.admit(first, 0.0) is None
    assert policy.admit(second, 0.0) is None
    policy.withdraw(first, 0.0)
    assert [policy.admit(job(index), 0.0) is None for index in (2, 3)] == [True, False]


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("too many", retry_after=12.0),
        type("HTTPError", (Exception,), {"status": 429, "headers": {"Retry-After": "12"}})(),
        type(
            "HTTPError",
            (Exception,),
            {"response": SimpleNamespace(status_code=503, headers={"retry-after": "12"})},
        )(),
        type("HTTPError", (Exception,), {"status": 429, "retry_after": 12})(),
        type(
            "HTTPError",
            (Exception,),
            {"status": 503, "headers": {"Retry-After": "Sun, 06 Nov 1994 08:49:49 GMT"}},
        )(),
    ],
)
def test_a_service_that_says_how_long_is_left_alone_for_so_long(error: Exception) -> None:
    policy = RatePolicy(limiter(Time()), wall=lambda: 784111777.0)
    one = job()
    assert policy.admit(one, 0.0) is None
    assert policy.settle(one, failed(error), 1.0) is None
    assert policy.admit(job(1), 12.9) == pytest.approx(0.1)
    assert policy.admit(job(2), 13.0 + 60 / 285) is None


def test_a_service_that_asks_for_years_is_asked_again_in_an_hour() -> None:
    one = limiter(Time(0.0))
    policy = RatePolicy(one)
    first = job()
    assert policy.admit(first, 0.0) is None
    policy.settle(first, failed(RateLimited("no", retry_after=1e9)), 0.0)
    assert one.state().penalty_seconds == 3600
    assert policy.admit(job(1), 0.0) == rates.ASK_SECONDS


@pytest.mark.parametrize(
    "error", [RateLimited("too many"), type("HTTPError", (Exception,), {"status_code": 503})()]
)
def test_a_service_that_does_not_say_gets_half_the_rate_until_successes_come(error: Exception) -> None:
    one = limiter(Time(0.0))
    policy = RatePolicy(one)
    first = job()
    assert policy.admit(first, 0.0) is None
    policy.settle(first, failed(error), 0.0)
    assert one.state().factor == 0.5
    second = job(1)
    assert policy.admit(second, 1.0) is None
    policy.settle(second, ended(), 1.0)
    assert 0.5 < one.state().factor < 0.51


@pytest.mark.parametrize(
    ("error", "origin"),
    [
        (ValueError("bad input"), "run"),
        (CircuitOpen("open", retry_after=30.0), "breaker"),
        (CircuitOpen("open", retry_after=30.0), "run"),
        (RateLimited("remembered", retry_after=30.0), "cache"),
        (ConnectionResetError("cut"), "run"),
    ],
)
def test_other_failures_are_no_business_of_the_limiter(error: Exception, origin: str) -> None:
    one = limiter(Time(0.0))
    policy = RatePolicy(one)
    first = job()
    assert policy.admit(first, 0.0) is None
    assert policy.settle(first, Outcome(0, None, error, origin=origin), 0.0) is None
    assert one.state()[1:3] == (1.0, 0.0)


def test_what_is_in_flight_ends_with_its_outcome() -> None:
    policy = RatePolicy(limiter(Time(), rate_limit_rpm=60000, max_in_flight=1))
    first, second = job(0), job(1)
    assert policy.admit(first, 0.0) is None
    assert policy.admit(second, 1.0) == gcra.BUSY
    policy.settle(first, failed(ValueError()), 1.0)
    assert policy.admit(second, 1.1) is None
    policy.withdraw(second, 1.1)
    assert policy.admit(job(2), 1.2) is None


def test_each_key_has_its_limiter_made_once() -> None:
    made: list[str] = []

    def make(key: str) -> DistributedRateLimiter | None:
        made.append(key)
        return limiter(Time(), burst=1) if key else None

    policy = RatePolicy(make)
    assert policy.admit(job(0, "a"), 0.0) is None
    assert policy.admit(job(1, "b"), 0.0) is None
    assert policy.admit(job(2, "a"), 0.0) is not None
    assert all(policy.admit(job(index), 0.0) is None for index in range(50))
    assert sorted(made) == ["", "a", "b"]
    assert not policy.idle(0.0)


def test_one_limiter_tells_keys_apart_where_they_are_independent() -> None:
    policy = RatePolicy(limiter(Time(), burst=1, mode="independent"))
    assert [policy.admit(job(index, key), 0.0) is None for index, key in enumerate("aba")] == [
        True,
        True,
        False,
    ]


def test_only_without_any_limit_whole_chunks_pass_it_by() -> None:
    assert RatePolicy(None).idle(0.0)
    assert RatePolicy(None).admit(job(), 0.0) is None
    assert not RatePolicy(DistributedRateLimiter()).idle(0.0)
    with pytest.raises(ConfigError, match="limiter"):
        RatePolicy(300)  # type: ignore[arg-type]


class Broken(MemoryStore):
    """A store that works when it is told to."""

    works = False

    def claim(self, *about: Any) -> float:
        if not self.works:
            raise StoreError("it is gone")
        return super().claim(*about)

    def apply(self, key: str, figures: Any, now: float, step: str, *values: Any) -> Any:
        if not self.works:
            raise StoreError("it is gone")
        return super().apply(key, figures, now, step, *values)


def test_a_store_that_fails_is_waited_for_and_then_fails_the_job() -> None:
    store = Broken()
    policy = RatePolicy(limiter(Time(), store=store))
    one, other = job(0), job(1)
    assert policy.admit(one, 0.0) == 1.0
    assert policy.admit(other, 25.0) == 1.0
    last = policy.admit(one, 31.0)
    assert isinstance(last, Outcome)
    assert isinstance(last.error, StoreError)
    assert last.origin == "rate"
    store.works = True
    assert policy.admit(other, 40.0) is None
    store.works = False
    assert policy.settle(other, failed(RateLimited("no", retry_after=5)), 41.0) is None
    assert policy.admit(other, 100.0) == 1.0


def test_the_stores_say_how_they_are_chosen(tmp_path: Path) -> None:
    kinds = {None: MemoryStore, tmp_path / "a": FileStore, str(tmp_path / "a.db"): SqliteStore}
    for where, kind in kinds.items():
        assert type(DistributedRateLimiter(store=where)._store) is kind
