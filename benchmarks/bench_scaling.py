"""How much two workers gain over one: 8 exact cuts, one codec thread each, on warm workers.

The bare processes do the same cuts in two plain processes side by side: what the machine gives at best
at that moment. On a machine with other work both fall; then compare ours with the bare one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _media import spans
from conftest import Table, Versus

from video import ParallelConfig, Runner

CUTS = spans(8, seconds=1.0, step=6.0)
ROUNDS = 5
TARGET = 1.8
"""On two idle CPUs; where others use them, the bare processes miss it as well."""

Job = tuple[str, str, float, float]

BARE = """
import json, sys
from video import scope
from video.media.cut import cut
print("ready", flush=True)
for line in sys.stdin:
    with scope.entered(scope.Slot(1)):
        for call in json.loads(line):
            cut(*call)
    print("done", flush=True)
"""


def cut_one(job: Job) -> int:
    from video.media.cut import cut

    return cut(*job).frames


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"{len(CUTS)} exact cuts, one codec thread: s", "s", ratio="speed-up")


@pytest.fixture(scope="module")
def jobs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    folder = tmp_path_factory.mktemp("scaling")
    return [(str(source), str(folder / f"{number}.mp4"), *span) for number, span in enumerate(CUTS)]


@pytest.fixture
def cutting(jobs: list[Job]) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Makes a side that cuts all on warm workers."""
    runners: list[Runner] = []

    def make(backend: str, workers: int) -> Callable[[], None]:
        runner = Runner(ParallelConfig(backend=backend, max_workers=workers, threads_per_worker=1))
        runners.append(runner)

        def run(some: list[Job] = jobs) -> None:
            for outcome in runner.map(cut_one, some):
                outcome.unwrap()

        run([(source, output, start, start + 0.2) for source, output, start, _ in jobs[: 2 * workers]])
        return run

    yield make
    for runner in runners:
        runner.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["process", "thread"])
def test_scaling(
    versus: Versus, table: Table, cutting: Callable[[str, int], Callable[[], None]], backend: str
) -> None:
    compare(versus, table, backend, cutting(backend, 2), cutting(backend, 1), TARGET)


@pytest.mark.timeout(300)
def test_bare(versus: Versus, table: Table, jobs: list[Job]) -> None:
    """Two processes that each know their half from the start, so nothing is dispatched at all."""
    command = [sys.executable, "-c", BARE]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second,
    ):

        def ask(process: subprocess.Popen[str], some: list[Job]) -> None:
            print(json.dumps(some), file=process.stdin, flush=True)

        def wait(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            assert process.stdout.readline() in ("ready\n", "done\n")

        def two() -> None:
            ask(first, jobs[::2])
            ask(second, jobs[1::2])
            wait(first)
            wait(second)

        def one() -> None:
            ask(first, jobs)
            wait(first)

        wait(first)
        wait(second)
        compare(versus, table, "bare processes", two, one)


def compare(
    versus: Versus,
    table: Table,
    name: str,
    two: Callable[[], None],
    one: Callable[[], None],
    target: float | None = None,
) -> None:
    versus((f"{name}, two", two), {"one": one}, rounds=ROUNDS, upside_down=True, target=target)
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    table.notes.append(f"load average after {name}: {loads}")
