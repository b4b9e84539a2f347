"""What a rate limiter costs, and how well it uses the rate. Run it: `python benchmarks/bench_rate.py`.

Printed are the cost of a permit for each store; 20,000 items through a limiter of 20,000 a second, which take
1.0 s at best; and the share of the allowed rate that ten processes use on one store, with how even it is
among them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from video.outcome import Outcome
from video.policies.base import Job
from video.policies.rate import DistributedRateLimiter, RatePolicy

ROUNDS = 7
ENDLESS = 1e10
"""Permits a minute, so that none is waited for."""
PER_SECOND = 20_000

CHILD = """
import json, sys, time
from video.policies.rate import DistributedRateLimiter
where, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
limiter = DistributedRateLimiter(rate, store=where)
limiter.state()
print("ready", flush=True)
sys.stdin.readline()
start, times = time.monotonic(), []
end = start + 1.5 + seconds
while time.monotonic() < end and limiter.wait_for_availability(timeout=max(0.0, end - time.monotonic())):
    times.append(time.monotonic())
print(json.dumps(times), flush=True)
"""


def best_us(work: Callable[[int], None], count: int) -> float:
    """Microseconds for each, in the fastest round: other work on the machine only ever adds time."""
    figures = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work(count)
        figures.append((time.perf_counter() - start) / count * 1e6)
    return min(figures)


def permits(limiter: DistributedRateLimiter) -> Callable[[int], None]:
    def work(count: int) -> None:
        for _ in range(count):
            limiter.acquire_permission()

    return work


def admit_us(count: int) -> tuple[float, float]:
    """An `admit`, and a `settle`."""
    policy = RatePolicy(DistributedRateLimiter(ENDLESS))
    outcome = Outcome(0, None, None)
    admits, settles = [], []
    for _ in range(ROUNDS):
        jobs = [Job(index, index) for index in range(count)]
        start = time.perf_counter()
        for job in jobs:
            policy.admit(job, start)
        middle = time.perf_counter()
        for job in jobs:
            policy.settle(job, outcome, start)
        admits.append((middle - start) / count * 1e6)
        settles.append((time.perf_counter() - middle) / count * 1e6)
    return min(admits), min(settles)


def through() -> float:
    """Seconds for 20,000 items through a limiter of 20,000 a second."""
    limiter = DistributedRateLimiter(PER_SECOND * 60, headroom=1.0)
    start = time.perf_counter()
    for _ in range(PER_SECOND):
        limiter.wait_for_availability()
    return time.perf_counter() - start


def crew(where: str, per_minute: float, seconds: float, processes: int = 10) -> tuple[float, float]:
    """The share of the allowed rate that they use together, and by how much one of them is off the mean."""
    words = [sys.executable, "-c", CHILD, where, str(per_minute), str(seconds)]
    members = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for member in members:
        assert member.stdout is not None
        member.stdout.readline()
    for member in members:
        assert member.stdin is not None
        member.stdin.write("\n")
        member.stdin.flush()
    times = [json.loads(member.communicate()[0]) for member in members]
    start = min(at for mine in times for at in mine) + 1.0  # all of them are under way, and to the end
    counts = [sum(start <= at < start + seconds for at in mine) for mine in times]
    mean = statistics.mean(counts)
    share = sum(counts) / (per_minute * 0.95 / 60 * seconds)
    return share, max(abs(count - mean) for count in counts) / mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", help="a URL; without it, Redis is left out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run of ten processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stores = {"memory": None, "file": str(Path(folder, "limit")), "sqlite": str(Path(folder, "a.sqlite"))}
        if given.redis:
            stores["redis"] = given.redis
        for name, where in stores.items():
            limiter = DistributedRateLimiter(ENDLESS, store=where, name="cost")
            count = 20_000 if where is None else 1_000
            print(f"a permit, {name:8} {best_us(permits(limiter), count):8.2f} us")
            limiter.close()
        admit, settle = admit_us(20_000)
        print(f"the policy, in memory: admit {admit:.2f} us, settle {settle:.2f} us")
        print(f"20,000 items at 20,000/s: {', '.join(f'{through():.3f}' for _ in range(3))} s")
        for name, where in stores.items():
            for per_minute in (3000.0, 30000.0):
                if where is None:
                    continue
                place = where if "://" in where else where.replace("limit", f"l{per_minute:.0f}")
                share, uneven = crew(place, per_minute, given.seconds)
                print(
                    f"ten processes, {name:8} {per_minute:6.0f}/min: {share:7.1%} of the allowed rate, "
                    f"uneven by {uneven:.1%}"
                )


if __name__ == "__main__":
    main()
