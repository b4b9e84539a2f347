"""The cache: microseconds of a hit, a miss and a put in either store, and how fast files are hashed.

    python benchmarks/bench_cache.py [--rounds 9] [--entries 5000] [--megabytes 256]

Each figure is what a batch pays for one item: a job, `admit`, and for a put `settle` with an outcome; the
request is that of a clip, the value about 500 bytes of JSON. Figures are medians over rounds, in CPU time of
one thread. Hashing is of a file in the page cache; blake3 is left out where it is not installed. Nothing here
asserts anything.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from video.dedup import HashBasedDeduplicator
from video.models import VideoClipRequest
from video.outcome import Outcome
from video.policies import _content
from video.policies._content import content_hash, content_key
from video.policies.base import Job
from video.policies.cache import CachePolicy, CacheStore, MemoryCache, SqliteCache
from video.policies.twins import Twins

VALUE = {
    "source": "videos/interview.mp4",
    "clips": [
        {
            "path": f"clips/interview-{number}.mp4",
            "start": 12.5 * number,
            "end": 12.5 * number + 9,
            "score": 0.87,
        }
        for number in range(5)
    ],
    "warnings": [],
    "seconds": 12.345,
}
OBJECT = (1, 2, "three")
"""JSON would make a list of it, so that memory keeps it as it is."""


def requests(count: int) -> list[VideoClipRequest]:
    return [VideoClipRequest(source=f"videos/{number:06}.mp4") for number in range(count)]


def plain(count: int) -> list[dict[str, Any]]:
    return [{"source": f"videos/{number:06}.mp4", "count": 3, "mode": "exact"} for number in range(count)]


def each(function: Callable[[Any], object], items: list[Any]) -> float:
    """Microseconds of one, of this thread's CPU time: the machine may be busy, and nothing here waits."""
    start = time.thread_time()
    for item in items:
        function(item)
    return (time.thread_time() - start) / len(items) * 1e6


class Side:
    """One cache, and what an item costs in it."""

    def __init__(self, store: CacheStore, value: Any = VALUE, **how: Any) -> None:
        self.store, self.value = store, value
        self.cache = CachePolicy(store, task="clips", **how)

    def admit(self, item: Any) -> object:
        return self.cache.admit(Job(0, item), 0.0)

    def put(self, item: Any) -> None:
        job = Job(0, item)
        self.cache.admit(job, 0.0)
        self.cache.settle(job, Outcome(0, self.value, None), 0.0)

    def round(self, items: list[Any]) -> tuple[float, float, float]:
        """Miss, put (with the miss before it), hit."""
        self.store.clear()
        missed = each(self.admit, items)
        put = each(self.put, items)
        hit = each(self.admit, items)
        assert self.cache.counts()["hits"]
        return missed, put, hit


def line(title: str, figures: list[float], unit: str) -> None:
    print(f"{title:44}{statistics.median(figures):>10.4g} {unit:12}{min(figures):>10.4g}..{max(figures):.4g}")


def costs(folder: Path, rounds: int, entries: int) -> None:
    output = folder / "clip.mp4"
    output.write_bytes(b"clip")
    sides: dict[str, tuple[Side, list[Any]]] = {
        "memory, plain request": (Side(MemoryCache(entries * 2)), plain(entries)),
        "memory, VideoClipRequest": (Side(MemoryCache(entries * 2)), requests(entries)),
        "memory, object": (Side(MemoryCache(entries * 2), OBJECT), plain(entries)),
        "memory, one output file": (
            Side(MemoryCache(entries * 2), outputs=lambda value: output),
            plain(entries),
        ),
        "sqlite, plain request": (Side(SqliteCache(folder / "a")), plain(entries)),
        "sqlite, VideoClipRequest": (Side(SqliteCache(folder / "b")), requests(entries)),
        "sqlite, full (it evicts)": (Side(SqliteCache(folder / "c", entries // 2)), plain(entries)),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (side, items) in sides.items():
            found[name].append(side.round(items))
    for name, figures in found.items():
        missed, put, hit = zip(*figures, strict=True)
        line(f"hit, {name}", list(hit), "us")
        line(f"miss, {name}", list(missed), "us")
        line(f"miss and put, {name}", list(put), "us")
    for side, _ in sides.values():
        side.store.close()


def parts(rounds: int, entries: int) -> None:
    line("content_key, plain request", [each(content_key, plain(entries)) for _ in range(rounds)], "us")
    line("content_key, VideoClipRequest", [each(content_key, requests(entries)) for _ in range(rounds)], "us")
    twins = Twins()

    def lead(item: Any) -> None:
        job = Job(0, item)
        twins.admit(job, 0.0)
        twins.settle(job, Outcome(0, VALUE, None), 0.0)

    line("twins, an item that has none", [each(lead, plain(entries)) for _ in range(rounds)], "us")


def hashing(folder: Path, rounds: int, megabytes: int) -> None:
    path = folder / "large"
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(block)
    usual = _content.BLOCK
    for name in ("blake3", "blake2b"):
        if find_spec(name) is None and name == "blake3":
            print("blake3 is left out: it is not installed (pip install blake3)")
            continue
        for size in (1 << 16, 1 << 18, 1 << 20, 1 << 23):
            _content.BLOCK = size
            speeds = []
            for _ in range(max(3, rounds // 3)):
                start = time.thread_time()
                content_hash(path, name)
                speeds.append(megabytes / (time.thread_time() - start))
            line(f"hash, {name}, blocks of {size >> 10} KiB", speeds, "MiB/s")
    _content.BLOCK = usual
    small = [folder / f"small-{number}" for number in range(500)]
    for number, one in enumerate(small):
        one.write_bytes(block[: 50_000 + number])
    with HashBasedDeduplicator(folder / "dedup") as dedup:
        line("dedup, remember a file of 50 KB", [each(dedup.remember, small)], "us")
        line("dedup, check it", [each(dedup.check, small) for _ in range(rounds)], "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--entries", type=int, default=5000)
    parser.add_argument("--megabytes", type=int, default=256)
    arguments = parser.parse_args()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.2f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        parts(arguments.rounds, arguments.entries)
        costs(Path(folder), arguments.rounds, arguments.entries)
        hashing(Path(folder), arguments.rounds, arguments.megabytes)


if __name__ == "__main__":
    main()
