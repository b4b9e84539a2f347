"""Circuit breakers: what a call costs through a closed one, and how many probes a half-open one lets through.

    python benchmarks/bench_breaker.py [--rounds 9] [--threads 50]

Peers that are not installed are left out (pip install pybreaker circuitbreaker interlock-cb purgatory). All
have the same settings: five failures open, and one probe is to go through. Costs are medians over rounds
taken in turns, and hold the call of a function that does nothing, whose own cost stands in the first line.
Ours is measured as a batch uses it: a job, `admit`, `settle` and an outcome; a chunk that passes an idle
policy by costs two calls in all. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from video.outcome import Outcome
from video.policies.base import Job
from video.policies.breaker import BreakerPolicy, BreakerRules

CALLS = 20_000
CHUNK = 256
RECOVERY = 1.0
"""Seconds; some peers take whole ones only."""
PROBE = 0.5
"""Seconds that a probe takes: long enough for every thread to ask while it runs."""

Call = Callable[[Callable[[], object]], object]
"""Calls a function through a breaker."""


def ours() -> Call:
    policy = BreakerPolicy(BreakerRules(recovery_timeout_seconds=RECOVERY), on_open="reject")

    def call(function: Callable[[], object]) -> None:
        job = Job(0, None, key="host")
        verdict = policy.admit(job, time.monotonic())
        if isinstance(verdict, Outcome):
            verdict.unwrap()
        error = None
        try:
            function()
        except ConnectionError as failure:
            error = failure
        policy.settle(job, Outcome(0, None, error), time.monotonic())

    return call


def bare() -> Call:
    return lambda function: function()


def pybreaker() -> Call:
    import pybreaker

    return pybreaker.CircuitBreaker(fail_max=5, reset_timeout=RECOVERY).call


def circuitbreaker() -> Call:
    import circuitbreaker

    return circuitbreaker.CircuitBreaker(failure_threshold=5, recovery_timeout=RECOVERY).call


def interlock() -> Call:
    import interlock

    config = interlock.Config(
        window_size=5,
        minimum_number_of_calls=5,
        failure_rate_threshold=1.0,
        wait_duration_in_open=RECOVERY,
        permitted_calls_in_half_open=1,
    )
    return interlock.CircuitBreaker(name="host", config=config).call


def purgatory() -> Call:
    import purgatory

    factory = purgatory.SyncCircuitBreakerFactory(default_threshold=5, default_ttl=RECOVERY)

    def call(function: Callable[[], object]) -> None:
        with factory.get_breaker("host"):
            function()

    return call


SIDES: dict[str, tuple[str, Callable[[], Call]]] = {
    "no breaker": ("", bare),
    "ours": ("", ours),
    "pybreaker": ("pybreaker", pybreaker),
    "circuitbreaker": ("circuitbreaker", circuitbreaker),
    "interlock": ("interlock-cb", interlock),
    "purgatory": ("purgatory", purgatory),
}
"""By name: the package, and what makes one."""


def nothing() -> None:
    pass


def cost(call: Call, count: int = CALLS) -> float:
    """Microseconds of a call that goes well, of this thread's CPU time: nothing here waits."""
    start = time.thread_time()
    for _ in range(count):
        call(nothing)
    return (time.thread_time() - start) / count * 1e6


def idle_cost() -> float:
    """Microseconds of an item in a chunk that passes by."""
    policy, rounds = BreakerPolicy(), CALLS
    start = time.thread_time()
    for _ in range(rounds):
        if policy.idle(0.0):
            policy.passed(CHUNK, 0.0)
    return (time.thread_time() - start) / rounds / CHUNK * 1e6


def probes(make: Callable[[], Call], threads: int) -> int:
    """How many of so many threads run at once what a half-open breaker guards."""
    call, lock, barrier = make(), threading.Lock(), threading.Barrier(threads)
    running = most = 0

    def fail() -> None:
        raise ConnectionError("down")

    def probe() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(PROBE)
        with lock:
            running -= 1

    def ask() -> None:
        barrier.wait(30)
        with contextlib.suppress(Exception):  # each has an error of its own for "not now"
            call(probe)

    for _ in range(6):
        with contextlib.suppress(Exception):
            call(fail)
    time.sleep(RECOVERY + 0.1)
    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(threads * PROBE + 30)  # a peer may hold a lock while the probe runs
    return most


def installed() -> dict[str, tuple[str, Callable[[], Call]]]:
    """Title and maker of each side that can be had."""
    found = {}
    for name, (package, make) in SIDES.items():
        try:
            title = f"{name} {importlib.metadata.version(package)}" if package else name
            make()
        except ImportError:  # PackageNotFoundError is one
            print(f"{name} is left out: it is not installed", file=sys.stderr)
            continue
        found[name] = title, make
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=50)
    arguments = parser.parse_args()
    sides = installed()
    calls = {name: make() for name, (_, make) in sides.items()}
    costs: dict[str, list[float]] = {name: [] for name in calls}
    idle = []
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            costs[name].append(cost(call))
        idle.append(idle_cost())
    through = f"probes at once of {arguments.threads}"
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
    print(f"{'':24}{'us a call':>10}{'from..to':>16}{through:>24}")

    def line(title: str, figures: list[float], count: Any) -> None:
        spread = f"{min(figures):.3g}..{max(figures):.3g}"
        print(f"{title:24}{statistics.median(figures):>10.3g}{spread:>16}{count:>24}")

    for name, (title, make) in sides.items():
        line(title, costs[name], probes(make, arguments.threads) if name != "no breaker" else "")
    line(f"ours, chunks of {CHUNK}", idle, "")


if __name__ == "__main__":
    main()
