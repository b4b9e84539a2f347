"""What the benchmarks share: `versus`, which times our side and its peers in turns, and the table of ratios.

A figure alone says little on a machine that others use too, a ratio of two figures taken in turns does.
So each round runs every peer once (in pytest-benchmark's untimed setup) and then our side, and what is
compared are medians over the rounds.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from _media import make_source
from pytest_benchmark.fixture import BenchmarkFixture

Side = Callable[[], object]
Meter = Callable[[Side], float]

UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}


def wall_seconds(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def reported_seconds(side: Side) -> float:
    """For a side that measures itself, such as a program that says how long it took to its first answer."""
    seconds = side()
    assert isinstance(seconds, float)
    return seconds


@dataclass
class Row:
    """One comparison of the table."""

    ours: str
    peer: str
    our_figure: float
    peer_figure: float
    spread: tuple[float, float]
    """Lowest and highest ratio of a single round."""
    fastest: float | None
    """The ratio of the fastest rounds: other work on the machine only ever adds time."""
    ratio: float


@dataclass
class Table:
    """The comparisons of one file; set up by its fixture `table`."""

    title: str
    unit: str
    ratio: str = "ours / peer"
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        scale = UNITS[self.unit]
        cells = [("ours", self.unit, "peer", self.unit, self.ratio, "rounds from..to", "fastest")]
        cells += [
            (
                row.ours,
                f"{row.our_figure * scale:.2f}",
                row.peer,
                f"{row.peer_figure * scale:.2f}",
                f"{row.ratio:.2f}",
                f"{row.spread[0]:.2f}..{row.spread[1]:.2f}",
                "" if row.fastest is None else f"{row.fastest:.2f}",
            )
            for row in self.rows
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(7)]
        right = (False, True, False, True, True, True, True)
        text = [
            "  ".join(
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in cells
        ]
        return [*text, *(f"  {note}" for note in self.notes)]


class Versus:
    """Compares one side of ours with its peers and puts the ratios into the file's table."""

    def __init__(self, benchmark: BenchmarkFixture, table: Table) -> None:
        self._benchmark = benchmark
        self._table = table

    def __call__(
        self,
        ours: tuple[str, Side],
        peers: Mapping[str, Side],
        *,
        rounds: int,
        items: int = 1,
        meter: Meter = wall_seconds,
        statistic: Callable[[list[float]], float] = statistics.median,
        upside_down: bool = False,
    ) -> None:
        """
        :param ours: what the table calls our side, and the side.
        :param peers: the same for those it is compared with.
        :param items: what one round is divided by.
        :param meter: what is compared; pytest-benchmark's own table always shows the wall time of our side.
        :param statistic: of the rounds of one side, for the table.
        :param upside_down: the ratio is peer / ours, for speed-ups.
        """
        name, side = ours
        times: dict[str, list[float]] = {one: [] for one in ("", *peers)}

        def run_peers() -> None:
            for peer, run in peers.items():
                times[peer].append(meter(run) / items)

        self._benchmark.pedantic(
            lambda: times[""].append(meter(side) / items), setup=run_peers, rounds=rounds, iterations=1
        )

        def ratio(our: float, their: float) -> float:
            return their / our if upside_down else our / their

        for peer in peers:
            ratios = [ratio(our, their) for our, their in zip(times[""], times[peer], strict=True)]
            our_figure, peer_figure = statistic(times[""]), statistic(times[peer])
            row = Row(
                name,
                peer,
                our_figure,
                peer_figure,
                (min(ratios), max(ratios)),
                ratio(min(times[""]), min(times[peer])) if statistic is statistics.median else None,
                ratio(our_figure, peer_figure),
            )
            self._table.rows.append(row)
            self._benchmark.extra_info[peer] = {"seconds": row.peer_figure, "ratio": row.ratio}


_tables = pytest.StashKey[list[Table]]()


@pytest.fixture(scope="session")
def new_table(request: pytest.FixtureRequest) -> Callable[..., Table]:
    """Makes a table that is printed when the run has ended."""

    def new(title: str, unit: str, **more: str) -> Table:
        table = Table(title, unit, **more)
        request.config.stash.setdefault(_tables, []).append(table)
        return table

    return new


@pytest.fixture
def versus(benchmark: BenchmarkFixture, table: Table) -> Versus:
    return Versus(benchmark, table)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video that is cut."""
    return make_source(tmp_path_factory.mktemp("source"))


def pytest_report_header() -> str:
    return _load("before the run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    write = partial(terminalreporter.write_line)
    for table in config.stash.get(_tables, []):
        terminalreporter.section(table.title, sep="-")
        for line in table.lines():
            write(line)
    write("")
    write(_load("after the run"))


def _load(when: str) -> str:
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load average {when}: {loads}"
