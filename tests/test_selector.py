"""The selector's formula, with plain numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video.backends.base import Traits
from video.errors import ConfigError
from video.selector import (
    DRIFT,
    HORIZON_SECONDS,
    MARGIN,
    WAITING_WIDTH,
    Asked,
    Candidate,
    Cost,
    Decision,
    Engine,
    Machine,
    Measured,
    Seen,
    at_best,
    decide,
    declared,
    foresee,
    off_course,
    paired,
    predict,
    referee,
    refusal,
    revise,
    width,
)

IN_PLACE = Traits(
    start=0, call=0, own_gil=False, pickles=False, coroutines=False, kills=False, remote=False, inline=True
)
THREADS = dataclasses.replace(IN_PLACE, inline=False)
PROCESSES = dataclasses.replace(THREADS, own_gil=True, pickles=True, kills=True)

SERIAL = Engine("serial", IN_PLACE, Cost(0, 0, 0))
THREAD = Engine("thread", THREADS, Cost(0, 0, 0))
PROCESS = Engine("process", PROCESSES, Cost(0.1, 0, 0))
DASK = Engine("dask", PROCESSES, Cost(2.0, 1e-3, 0))
ENGINES = [SERIAL, THREAD, PROCESS, DASK]
TWO = Machine(cpus=2)

PYTHON = Measured(wall=0.1, cpu=0.1, gil=1.0)
NATIVE = Measured(wall=0.1, cpu=0.1, gil=0.0)
WAITS = Measured(wall=0.1, cpu=0.0, gil=0.0)


def seconds(engine: Engine, measured: Measured, left: int = 100, machine: Machine = TWO) -> float:
    return predict(engine, measured, Asked(left=left), machine).seconds


def taken(measured: Measured, left: int | None = 100, machine: Machine = TWO, **asked: str) -> str:
    wish = Asked(left=left, **asked)  # type: ignore[arg-type]
    return decide([predict(engine, measured, wish, machine) for engine in ENGINES])[0].backend


# The formula


def test_threads_share_the_lock() -> None:
    assert seconds(THREAD, PYTHON) == pytest.approx(10.0)
    assert seconds(THREAD, NATIVE) == pytest.approx(5.0)


def test_processes_share_only_the_cpus() -> None:
    assert seconds(PROCESS, PYTHON) == pytest.approx(0.1 + 5.0)
    assert seconds(PROCESS, PYTHON, machine=Machine(cpus=1)) == pytest.approx(0.1 + 10.0)


def test_items_that_wait_overlap() -> None:
    assert seconds(THREAD, WAITS) == pytest.approx(math.ceil(100 / WAITING_WIDTH) * 0.1)


def test_native_code_with_threads_of_its_own_leaves_nothing_to_gain() -> None:
    busy = Measured(wall=0.1, cpu=0.2, gil=0.0)
    assert seconds(THREAD, busy) == pytest.approx(10.0)
    assert taken(busy, left=4) == "thread"


def test_a_warm_engine_has_no_start() -> None:
    warm = dataclasses.replace(PROCESS, warm=frozenset({2}))
    assert seconds(PROCESS, PYTHON) - seconds(warm, PYTHON) == pytest.approx(0.1)


def test_new_workers_load_what_the_first_item_loaded() -> None:
    assert seconds(PROCESS, dataclasses.replace(PYTHON, load=1.0)) == pytest.approx(0.1 + 1.0 + 5.0)


def test_what_crosses_costs_by_the_byte_and_by_its_pickling() -> None:
    engine = dataclasses.replace(PROCESS, cost=Cost(0.1, 0, 0, byte=1e-9))
    heavy = dataclasses.replace(NATIVE, bytes=1e7, carry=0.005)
    assert seconds(engine, heavy) - seconds(engine, NATIVE) == pytest.approx(100 * (0.01 + 0.01))
    assert seconds(THREAD, heavy) == seconds(THREAD, NATIVE)


def test_short_items_share_a_call() -> None:
    short = Measured(wall=1e-6, cpu=1e-6, gil=1.0)
    engine = dataclasses.replace(THREAD, cost=Cost(0, 1e-3, 0))
    assert seconds(engine, short, left=10_000) == pytest.approx(0.01 + 10_000 * 1e-3 / 1024)


def test_the_last_round_of_long_items_is_not_full() -> None:
    assert seconds(THREAD, NATIVE, left=3) == pytest.approx(0.2)


def test_the_last_round_counts_the_same_on_every_engine() -> None:
    """Threads have smaller chunks than processes, and no fewer rounds for that."""
    warm = dataclasses.replace(PROCESS, warm=frozenset([2]))
    native = Measured(0.03, 0.03, 0.0)
    assert seconds(THREAD, native, 5) == pytest.approx(seconds(warm, native, 5)) == pytest.approx(0.09)


def test_memory_bounds_the_workers() -> None:
    hungry = dataclasses.replace(WAITS, memory=2e9)
    machine = Machine(cpus=8, memory=10e9)
    assert width(THREAD, hungry, Asked(left=100), machine) == 4
    assert width(PROCESS, hungry, Asked(left=100), machine) == 4
    assert width(THREAD, hungry, Asked(left=100), Machine(cpus=8, memory=1)) == 1


def test_an_item_that_still_waits_is_not_judged_by_what_it_computed_first() -> None:
    """Its CPU time is known, and how long it waits is not."""
    asking = Measured(wall=0.002, cpu=0.0003, gil=0.1)
    assert width(THREAD, asking, Asked(left=100), TWO) == WAITING_WIDTH
    ended = dataclasses.replace(asking, items=1)
    assert width(THREAD, ended, Asked(left=100), TWO) < WAITING_WIDTH
    computing = dataclasses.replace(asking, cpu=0.001)
    assert width(THREAD, computing, Asked(left=100), TWO) < WAITING_WIDTH


def test_the_users_number_of_workers_stands() -> None:
    assert width(THREAD, WAITS, Asked(workers=3, left=100), TWO) == 3
    assert width(PROCESS, PYTHON, Asked(workers=3, left=100), TWO) == 3


def test_an_input_of_unknown_length_is_taken_to_last() -> None:
    assert predict(SERIAL, WAITS, Asked(), TWO).refusal
    assert predict(THREAD, PYTHON, Asked(), TWO).seconds == pytest.approx(HORIZON_SECONDS)


# What it leads to


@pytest.mark.parametrize(
    ("measured", "left", "backend"),
    [
        (PYTHON, 100, "process"),
        (PYTHON, 1, "thread"),
        (NATIVE, 100, "thread"),
        (NATIVE, 10_000, "thread"),
        (WAITS, 100, "thread"),
        (Measured(1e-6, 1e-6, 1.0), 10_000, "serial"),
        (dataclasses.replace(PYTHON, pickles="no"), 100, "thread"),
        (PYTHON, None, "process"),
    ],
)
def test_each_kind_of_work_gets_its_engine(measured: Measured, left: int | None, backend: str) -> None:
    assert taken(measured, left) == backend


def test_a_cluster_is_not_worth_it_on_one_machine() -> None:
    assert taken(PYTHON, 100_000) == "process"


def test_two_at_once_settle_what_the_lock_leaves_open() -> None:
    half = Measured(wall=0.1, cpu=0.1, gil=0.5)
    near = [Candidate("thread", 2, 5.0), Candidate("process", 2, 5.5)]
    assert referee(near, half)
    assert not referee(near, PYTHON)
    assert not referee(near, NATIVE)
    assert not referee([Candidate("thread", 2, 9.0), Candidate("process", 2, 5.5)], half)
    assert not referee([near[0], Candidate("process", 2, math.inf, "no")], half)
    assert paired(half, 1.0).gil == 1.0
    assert paired(half, 1.95).gil == 0.0


@pytest.mark.parametrize(
    ("kind", "cost", "gil"), [("python", 0.5, 1.0), ("native", 0.5, 0.0), ("io", 0.5, 0.0)]
)
def test_what_is_declared_is_taken_as_measured(kind: str, cost: float, gil: float) -> None:
    measured = declared(kind, cost)
    assert measured is not None
    assert (measured.wall, measured.gil, measured.source) == (0.5, gil, "declared")
    assert (measured.cpu > 0) == (kind != "io")


def test_half_a_declaration_is_measured_all_the_same() -> None:
    assert declared("python", None) is None
    assert declared(None, 2.0) is None


@pytest.mark.parametrize(
    ("kind", "cost"), [("fast", 1.0), ("io", 0.0), ("io", -1.0), ("io", math.inf), ("io", True)]
)
def test_a_wrong_declaration_is_refused(kind: str, cost: float) -> None:
    with pytest.raises(ConfigError, match=r"kind|cost"):
        declared(kind, cost)


# Laws

times = st.floats(1e-7, 1e3)
work = st.builds(
    Measured,
    wall=times,
    cpu=st.floats(0, 1e3),
    gil=st.floats(0, 1),
    bytes=st.floats(0, 1e9),
    carry=st.floats(0, 1),
    pickles=st.sampled_from(["", "it holds a lock"]),
    memory=st.floats(0, 1e10),
    load=st.floats(0, 10),
)
wishes = st.builds(
    Asked,
    workers=st.none() | st.integers(1, 64),
    chunk=st.integers(1, 1024),
    kills=st.sampled_from(["", "a time limit"]),
    isolated=st.sampled_from(["", "they may crash"]),
    left=st.none() | st.integers(1, 10**6),
)
machines = st.builds(Machine, cpus=st.integers(1, 128), memory=st.floats(1e6, 1e12))
candidates = st.lists(
    st.builds(
        Candidate,
        backend=st.sampled_from(["serial", "thread", "process", "dask"]),
        workers=st.integers(1, 8),
        seconds=st.floats(1e-6, 1e6),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one.backend,
)
ORDER = ["serial", "thread", "process", "dask"]


@given(candidates)
def test_a_cheaper_prediction_is_preferred(every: list[Candidate]) -> None:
    """Nothing simpler is as cheap as what is taken, and nothing at all is cheaper by more than the margin."""
    best, _ = decide(every)
    for other in every:
        simpler = ORDER.index(other.backend) < ORDER.index(best.backend)
        assert other.seconds >= best.seconds * (1 - MARGIN) or other is best
        assert not (simpler and other.seconds <= best.seconds)


@given(candidates, st.floats(0.01, 0.8))
def test_a_prediction_that_falls_is_never_left_for_it(every: list[Candidate], factor: float) -> None:
    """What is taken stays taken when it alone gets cheaper."""
    best, _ = decide(every)
    cheaper = [
        dataclasses.replace(one, seconds=one.seconds * factor) if one is best else one for one in every
    ]
    assert decide(cheaper)[0].backend == best.backend


@given(work, wishes, machines)
def test_refusals_always_hold(measured: Measured, asked: Asked, machine: Machine) -> None:
    """An engine that must not be taken has no time, and is not taken."""
    predictions = [predict(engine, measured, asked, machine) for engine in ENGINES]
    for engine, one in zip(ENGINES, predictions, strict=True):
        assert one.refusal == refusal(engine, measured, asked)
        assert math.isinf(one.seconds) == bool(one.refusal)
    if all(one.refusal for one in predictions):
        with pytest.raises(ValueError, match="serial"):
            decide(predictions)
        return
    best, _ = decide(predictions)
    traits = next(engine.traits for engine in ENGINES if engine.name == best.backend)
    assert not best.refusal
    assert not (asked.kills and not traits.kills)
    assert not (asked.isolated and not traits.pickles)
    assert not (measured.pickles and traits.pickles)


@given(work, wishes, machines)
def test_widths_stay_in_bounds(measured: Measured, asked: Asked, machine: Machine) -> None:
    for engine in ENGINES:
        workers = width(engine, measured, asked, machine)
        assert 1 <= workers <= max(asked.workers or 0, machine.cpus, WAITING_WIDTH)
        assert asked.workers is None or workers <= asked.workers


@given(work, wishes, machines, st.floats(1.1, 10))
def test_longer_items_are_never_predicted_to_be_done_sooner(
    measured: Measured, asked: Asked, machine: Machine, ratio: float
) -> None:
    asked = dataclasses.replace(asked, left=asked.left or 100, workers=2, chunk=1)
    for engine in (THREAD, PROCESS):
        one = predict(engine, measured, asked, machine)
        more = predict(engine, measured.scaled(ratio), asked, machine)
        assert more.seconds >= one.seconds or one.refusal


# Watching


def test_what_goes_as_predicted_is_left_alone() -> None:
    seen = Seen(items=10, seconds=0.5, work=1.0, running=(0.05, 0.02))
    assert off_course(seen, 0.05, PYTHON) == ""


def test_slow_progress_is_noticed() -> None:
    assert "progress" in off_course(Seen(items=10, seconds=1.0, work=1.0), 0.05, PYTHON)


def test_items_that_drift_are_noticed() -> None:
    longer = Seen(items=10, seconds=0.1, work=10 * 0.1 * DRIFT * 1.1)
    assert "as long" in off_course(longer, 0.05, PYTHON)
    assert "as long" in off_course(dataclasses.replace(longer, work=0.1), 0.05, PYTHON)


def test_an_item_that_does_not_end_is_noticed() -> None:
    assert off_course(Seen(items=0, seconds=3.0, work=0.0, running=(3.0,)), 0.05, PYTHON)


def test_a_start_that_takes_its_time_is_no_slowness() -> None:
    assert off_course(Seen(items=0, seconds=0.0, work=0.0), 0.05, PYTHON) == ""


def test_longer_items_elsewhere_are_longer_items() -> None:
    new = revise(PYTHON, Seen(items=10, seconds=2.0, work=4.0))
    assert (new.wall, new.cpu, new.source) == (pytest.approx(0.4), pytest.approx(0.4), "watched")


def test_items_that_find_the_lock_held_take_turns() -> None:
    new = revise(NATIVE, Seen(items=10, seconds=1.0, work=2.0, cpu=1.0, locked=0.95))
    assert (new.wall, new.gil) == (pytest.approx(0.1), pytest.approx(1.0))
    assert taken(new) == "process"


def test_items_that_find_it_free_do_not() -> None:
    new = revise(NATIVE, Seen(items=10, seconds=2.0, work=4.0, cpu=4.0, locked=0.02))
    assert (new.wall, new.gil) == (pytest.approx(0.4), 0.0)


def test_items_that_wait_for_busy_neighbours_are_as_they_were() -> None:
    new = revise(NATIVE, Seen(items=10, seconds=2.0, work=4.0, cpu=1.0, locked=0.02))
    assert (new.wall, new.cpu, new.gil) == (pytest.approx(0.1), pytest.approx(0.1), 0.0)


def test_items_without_cpu_wait() -> None:
    new = revise(PYTHON, Seen(items=10, seconds=2.0, work=4.0, cpu=0.1, locked=0.02))
    assert (new.wall, new.cpu) == (pytest.approx(0.4), pytest.approx(0.01))


def test_items_that_waited_and_now_compute_are_told_while_they_run() -> None:
    waited = dataclasses.replace(WAITS, wall=0.01)
    seen = Seen(items=0, seconds=0.75, work=0.0, running=(0.7,) * 25, cpu=0.75, locked=0.98)
    assert taken(revise(waited, seen), left=200) == "process"


# How it is said


def test_what_was_never_measured_has_no_time() -> None:
    able = foresee(THREAD, None, Asked(left=5), TWO)
    assert math.isnan(able.seconds)
    assert "not measured yet" in str(Decision("thread", 2, 1, "a guess", (able,)))
    assert foresee(THREAD, None, Asked(left=5, kills="a time limit"), TWO).refusal
    assert foresee(THREAD, NATIVE, Asked(left=5), TWO) == predict(THREAD, NATIVE, Asked(left=5), TWO)


def test_a_decision_says_everything() -> None:
    every = tuple(predict(engine, PYTHON, Asked(left=50), TWO) for engine in ENGINES)
    best, reason = decide(every)
    first = Decision("thread", 2, 1, "a first guess")
    text = str(Decision(best.backend, 2, 1, reason, every, PYTHON, TWO, 50, 0.2, first))
    for words in (
        "process, 2 workers",
        "0.1 s of CPU",
        "100%",
        "<- taken",
        "2 CPUs",
        "50 items",
        "before that",
    ):
        assert words in text
    for one in every:
        assert one.backend in text
        assert one.refusal in text


@given(wall=st.floats(1e-7, 10), left=st.integers(1, 10**6))
def test_what_is_at_best_is_predicted_no_slower(wall: float, left: int) -> None:
    """So an engine that loses even then need not be measured for."""
    real = Measured(wall=wall, cpu=wall, gil=1.0, bytes=1e6, carry=1e-3)
    for engine in (THREAD, PROCESS, DASK):
        assert seconds(engine, at_best(real), left) <= seconds(engine, real, left) * (1 + 1e-9)


def test_tiny_items_gain_nothing_by_threads_even_at_best() -> None:
    tiny = at_best(Measured(wall=1e-6, cpu=0.0, gil=0.0))
    assert decide([predict(one, tiny, Asked(left=10_000), TWO) for one in ENGINES])[0].backend == "serial"
