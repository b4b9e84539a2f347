"""A batch against a service that limits, fails, cuts and stalls: all succeed, with few requests more."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

import pytest

from tests.http_server import File, Server, serve
from video.config import ParallelConfig
from video.events import Event, Kind
from video.runner import Runner
from video.sources.http import HttpSource

ITEMS = 80
BODY = bytes(range(256)) * 400


def fetch(url: str) -> int:
    """Once: what fails is the batch's to try again."""
    with tempfile.TemporaryDirectory() as folder:
        return HttpSource(tries=1, timeout=0.5).fetch(url, Path(folder)).path.stat().st_size


def flaky(server: Server, seed: int) -> tuple[list[str], int]:
    """Its addresses, and how many requests it takes to have all files."""
    chance = random.Random(seed)
    urls, needed = [], 0
    for number in range(ITEMS):
        file = File(BODY)
        for trouble in chance.choices(
            ["", "429", "429 later", "503", "cut", "stall"], [12, 2, 1, 2, 2, 1], k=2
        ):
            if trouble.startswith("429"):
                file.statuses.append(429)
                file.headers = {"Retry-After": "1"} if trouble == "429 later" else file.headers
            elif trouble == "503":
                file.statuses.append(503)
            elif trouble == "cut":
                file.cuts.append(1000)
            elif trouble == "stall":
                file.stalls.append(1000)
        needed += 1 + len(file.statuses) + len(file.cuts) + len(file.stalls)
        urls.append(server.add(f"/{number}.mp4", file))
    return urls, needed


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_all_items_succeed_and_no_request_is_wasted(backend: str) -> None:
    config = ParallelConfig(
        backend=backend,
        max_workers=4,
        max_retries=5,
        retry_delay_seconds=0.05,
        circuit_breaker_enabled=True,
        recovery_timeout_seconds=0.5,
    )
    with serve() as server, Runner(config) as runner:
        urls, needed = flaky(server, 7)
        outcomes = runner.map(fetch, urls, key=lambda url: url.split("/")[2])
        assert [type(one.error) for one in outcomes if not one.ok] == []
        assert {one.value for one in outcomes} == {len(BODY)}
        assert len(server.asked) <= 1.1 * needed
        assert sum(one.attempts for one in outcomes) == len(server.asked)


def test_what_no_retry_can_help_is_asked_for_once() -> None:
    config = ParallelConfig(backend="thread", max_retries=5, retry_delay_seconds=0.05)
    with serve() as server, Runner(config) as runner:
        urls = [
            server.add("/missing.mp4", File(statuses=[404] * 9)),
            server.add("/forbidden.mp4", File(statuses=[403] * 9)),
            server.add("/page.mp4", File(b"<!doctype html><p>hello", type="text/html")),
        ]
        outcomes = runner.map(fetch, urls)
    assert [one.ok for one in outcomes] == [False] * 3
    assert [one.attempts for one in outcomes] == [1, 1, 1]


def test_a_dead_host_does_not_stop_the_others() -> None:
    config = ParallelConfig(
        backend="thread",
        max_workers=4,
        circuit_breaker_enabled=True,
        failure_threshold=3,
        recovery_timeout_seconds=0.3,
    )
    events: list[Event] = []
    with serve() as alive, serve() as dead, Runner(config, observers=[events.append]) as runner:
        good = [alive.add(f"/{number}.mp4", BODY) for number in range(60)]
        bad = [dead.add(f"/{number}.mp4", File(statuses=[503] * 99)) for number in range(60)]
        urls = list(itertools.chain.from_iterable(zip(bad, good, strict=True)))
        outcomes = runner.map(fetch, urls, key=lambda url: url.split("/")[2])
        assert [one.ok for one in outcomes] == [False, True] * 60
        assert len(alive.asked) == 60
        assert len(dead.asked) < 60
    changes = [event.message for event in events if event.kind is Kind.BREAKER_CHANGED]
    assert changes[0].startswith(f"{dead.host}: closed -> open")
    assert not any(alive.host in change for change in changes)


def test_what_becomes_of_a_rate_is_an_event_and_stands_in_the_counts() -> None:
    events: list[Event] = []
    config = ParallelConfig(
        backend="thread", max_workers=2, max_retries=3, retry_delay_seconds=0.05, rate_limit_rpm=60_000
    )
    with serve() as server, Runner(config, observers=[events.append]) as runner:
        urls = [
            server.add("/halved.mp4", File(BODY, statuses=[429])),
            server.add("/later.mp4", File(BODY, statuses=[429], headers={"Retry-After": "1"})),
        ]
        host = urls[0].split("/")[2]
        assert all(one.ok for one in runner.map(fetch, urls, key=lambda url: url.split("/")[2]))
        counts = runner.counts()["rate"]
    told = " | ".join(one.message for one in events if one.kind is Kind.RATE_CHANGED)
    assert f"{host}: the service refuses" in told
    assert "half the rate" in told
    assert "nothing for 1 s" in told
    assert counts[host]["refusals"] == 2
    assert 0 < counts[host]["factor"] < 1
    assert events[-1].counts["rate"][host]["refusals"] == 2
