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
from pytest_benchmark.fixture import BenchmarkFixture

Side = Callable[[], object]
Meter = Callable[[Side], float]

UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0, "MB": 1.0}


def wall_seconds(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def reported(side: Side) -> float:
    """For a side that measures itself, such as a program that says how long it took to its first answer."""
    figure = side()
    assert isinstance(figure, float)
    return figure


def timed(side: Side) -> Callable[[], float]:
    """The same side for a comparison with one that measures itself."""
    return lambda: wall_seconds(side)


def worded(ratio: float) -> str:
    return f"{ratio:.3f}" if 0 < ratio < 0.1 else f"{ratio:.2f}"


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
    target: float | None = None
    """What the ratio is to be: at most, or at least where `upside_down`."""
    upside_down: bool = False

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.ratio >= self.target if self.upside_down else self.ratio <= self.target

    @property
    def wanted(self) -> str:
        if self.target is None:
            return ""
        return f"{'at least' if self.upside_down else 'at most'} {worded(self.target)}"


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
        heads = (
            "ours",
            self.unit,
            "peer",
            self.unit,
            self.ratio,
            "rounds from..to",
            "fastest",
            "target",
            "met",
        )
        cells = [heads]
        cells += [
            (
                row.ours,
                f"{row.our_figure * scale:.2f}",
                row.peer,
                f"{row.peer_figure * scale:.2f}",
                worded(row.ratio),
                f"{worded(row.spread[0])}..{worded(row.spread[1])}",
                "" if row.fastest is None else worded(row.fastest),
                row.wanted,
                "" if row.target is None else "yes" if row.met else "NO",
            )
            for row in self.rows
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
        right = (False, True, False, True, True, True, True, True, False)
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
        target: float | Mapping[str, float] | None = None,
    ) -> None:
        """
        :param ours: what the table calls our side, and the side.
        :param peers: the same for those it is compared with.
        :param items: what one round is divided by.
        :param meter: what is compared; pytest-benchmark's own table always shows the wall time of our side.
        :param statistic: of the rounds of one side, for the table.
        :param upside_down: the ratio is peer / ours, for speed-ups.
        :param target: what the ratio is to be at most (at least, if `upside_down`), to every peer or by peer.

        A peer that raises TimeoutError is left out from then on, and a note says so.
        """
        name, side = ours
        times: dict[str, list[float]] = {one: [] for one in ("", *peers)}
        hung: set[str] = set()

        def run_peers() -> None:
            for peer, run in peers.items():
                if peer not in hung:
                    try:
                        times[peer].append(meter(run) / items)
                    except TimeoutError as error:
                        hung.add(peer)
                        self._table.notes.append(
                            f"{name}: {peer} was left out after {len(times[peer])} rounds: {error}"
                        )

        self._benchmark.pedantic(
            lambda: times[""].append(meter(side) / items), setup=run_peers, rounds=rounds, iterations=1
        )

        def ratio(our: float, their: float) -> float:
            return their / our if upside_down else our / their

        for peer in peers:
            if not times[peer]:
                continue
            ratios = [
                ratio(our, their) for our, their in zip(times[""], times[peer], strict=peer not in hung)
            ]
            our_figure, peer_figure = statistic(times[""]), statistic(times[peer])
            row = Row(
                name,
                peer,
                our_figure,
                peer_figure,
                (min(ratios), max(ratios)),
                ratio(min(times[""]), min(times[peer])) if statistic is statistics.median else None,
                ratio(our_figure, peer_figure),
                target.get(peer) if isinstance(target, Mapping) else target,
                upside_down,
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
    from _media import make_source  # only the cuts need FFmpeg's command line

    return make_source(tmp_path_factory.mktemp("source"))


def pytest_report_header() -> str:
    return _load("before the run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    write = partial(terminalreporter.write_line)
    for table in config.stash.get(_tables, []):
        terminalreporter.section(table.title, sep="-")
        for line in table.lines():
            write(line)
    rows = [row for table in config.stash.get(_tables, []) for row in table.rows if row.target is not None]
    if rows:
        missed = [row for row in rows if not row.met]
        terminalreporter.section(f"Targets: {len(rows) - len(missed)} of {len(rows)} met", sep="-")
        for row in missed:
            write(f"missed: {row.ours} / {row.peer}: {worded(row.ratio)}, {row.wanted}")
    write("")
    write(_load("after the run"))


def _load(when: str) -> str:
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load average {when}: {loads}"
