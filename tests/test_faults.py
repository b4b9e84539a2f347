"""The fault table: what must not go wrong when workers die, hang, overrun, or are given what cannot travel.

Each fault runs on every engine whose traits allow it, in a program of its own (`tests/faults`), which says
what happened and what there is more of than before: processes, threads, descriptors, shared memory, temporary
files. The faults of one engine share a program, each with a runner of its own; only the selected ones run.
A few programs run side by side, for most of what they do is wait, and each counts what is its own.

    pytest tests/test_faults.py                                    each fault once
    pytest tests/test_faults.py -m "not slow"                      without the loop of kills and slow engines
    FAULT_REPEATS=50 pytest tests/test_faults.py -k "process and not spawn"     each of those 50 times

Every repeat is a test of its own. An engine's name may be followed by a variant: "spawn", how its workers
start, or "coroutines", where the tasks are `async def`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.launch import Facts, Program, run, started
from tests.faults.program import AT, COUNT, FAULTS, IN_CHUNK, LIMIT
from video import registry
from video.backends import _memory
from video.backends.base import Traits

REPEATS = int(os.environ.get("FAULT_REPEATS", "1"))
ORPHAN_SECONDS = 5.0
SLACK_SECONDS = 8.0
"""How long after a deadline a batch may end, on a busy machine and with another worker to start: far below
the minute for which an item hangs that can be killed."""
SIDE_BY_SIDE = min(4, (os.cpu_count() or 1) + 1)
"""Programs at a time: one more than the CPUs can run, since they wait for deaths, starts, and time limits."""
SLOW_START = 0.2
"""Seconds that an engine takes to start from which on its tests are slow ones."""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the programs count in /proc"),
    pytest.mark.timeout(600 * REPEATS),  # of which most is never used: every wait has a bound of its own
]


class Engine(NamedTuple):
    name: str
    variant: str
    traits: Traits

    def __str__(self) -> str:
        return f"{self.name}:{self.variant}" if self.variant else self.name


def _engines() -> Iterator[Engine]:
    for name in registry.backends.builtin:
        if registry.backends.why_unavailable(name) is None:
            traits = registry.backends.get(name).traits
            yield Engine(name, "", traits)
            if traits.coroutines:
                yield Engine(name, "coroutines", traits)
            if name == "process":
                yield Engine(name, "spawn", traits)


ENGINES = list(_engines())

# Which engines a fault is for


def everywhere(engine: Engine) -> bool:
    return engine.variant != "spawn"  # how workers start makes no difference to what is said of items


def timed(engine: Engine) -> bool:
    return everywhere(engine) and not engine.traits.inline


def pickling(engine: Engine) -> bool:
    return everywhere(engine) and engine.traits.pickles


def processes(engine: Engine) -> bool:
    return engine.traits.pickles  # with "spawn", since another parent hears of a death there


def killing(engine: Engine) -> bool:
    return engine.traits.kills


def exact(engine: Engine) -> bool:
    return everywhere(engine) and engine.traits.exact


def exact_processes(engine: Engine) -> bool:
    return engine.traits.exact


def coroutines(engine: Engine) -> bool:
    return engine.variant == "coroutines"


def ours(engine: Engine) -> bool:
    """Where calls cross by shared memory."""
    return str(engine) == "process"


# How the programs are run


class Case(NamedTuple):
    """What a test wants to know; a program that serves it alone, or others too, finds it out.

    :param apart: it changes its process for good, or takes long: a program of its own each time.
    :param alone: no other program may run beside it.
    """

    engine: Engine
    fault: str
    repeat: int
    apart: bool = False
    alone: bool = False


class Holding(NamedTuple):
    """A program of items that hang, and what is to be seen of its end; that fails as a test does."""

    engine: Engine
    way: str
    repeat: int
    see: Callable[[Program], None]


def fault(
    name: str,
    where: Callable[[Engine], bool],
    *,
    apart: bool = False,
    alone: bool = False,
    slow: bool = False,
) -> Callable[[Callable[[Facts], None]], Any]:
    """A test of what a fault does, on each engine of some kind."""
    assert name in FAULTS
    cases = []
    for engine in filter(where, ENGINES):
        marks = [pytest.mark.slow] if slow or engine.traits.start > SLOW_START else []
        for repeat in range(REPEATS):
            label = str(engine) if REPEATS == 1 else f"{engine}-{repeat}"
            cases.append(pytest.param(Case(engine, name, repeat, apart, alone), marks=marks, id=label))

    def decorate(check: Callable[[Facts], None]) -> Any:
        def test(case: Case, programs: Programs) -> None:
            facts = programs.facts(case)
            sound(facts)
            check(facts | {"engine": case.engine})

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return pytest.mark.parametrize("case", cases)(test)

    return decorate


class Programs:
    """Starts what the selected tests ask for, a few programs at a time; each test waits for its own.

    The faults of one engine share a program, but for those that are apart.
    """

    def __init__(self, cases: list[Case | Holding]) -> None:
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._waited: dict[Any, Future[Any]] = {}
        self._cases = cases
        # Engines that start slowly take longest, and would be waited for at the end.
        for case in sorted(cases, key=lambda case: -case.engine.traits.start):
            if isinstance(case, Holding):
                self._waited[case] = self._threads.submit(self._hold, case)
            elif not case.alone and self._key(case) not in self._waited:
                self._waited[self._key(case)] = self._threads.submit(self._run, case)

    def _key(self, case: Case) -> Any:
        return case if case.apart else str(case.engine)

    def _run(self, case: Case) -> dict[str, list[Facts]]:
        if case.apart:
            return run(str(case.engine), [case.fault], over=self._over)
        together = {
            other.fault: None
            for other in self._cases
            if isinstance(other, Case) and not other.apart and other.engine == case.engine
        }
        return run(str(case.engine), list(together), REPEATS, self._over)

    def _hold(self, case: Holding) -> None:
        with started(str(case.engine), "--hold", case.way, over=self._over) as program:
            said = program.next(60)
            assert said == {"fault": "holding"}, program.errors()
            case.see(program)

    def facts(self, case: Case) -> Facts:
        if case.alone:
            wait(self._waited.values())
            return self._run(case)[case.fault][0]
        found: list[Facts] = self._waited[self._key(case)].result()[case.fault]
        if case.apart:
            return found[0]
        return found[min(case.repeat, len(found) - 1)]  # those after one that broke its program have not run

    def seen(self, case: Holding) -> None:
        """Raises what was raised where its end was looked at."""
        self._waited[case].result()

    def close(self) -> None:
        """End what runs, where a session is cut short."""
        self._over.set()
        self._threads.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    cases = []
    for item in request.session.items:
        case = (
            item.callspec.params.get("case")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        left_out = any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail"))
        if isinstance(case, Case | Holding) and not left_out:
            cases.append(case)
    programs = Programs(cases)
    yield programs
    programs.close()


def sound(facts: Facts) -> None:
    """What holds whatever happens: one outcome for each item in order, a runner that works on, no leak."""
    if "skipped" in facts:
        pytest.skip(facts["skipped"])
    assert "broken" not in facts, facts["broken"]
    assert [one["index"] for one in facts["outcomes"]] == list(range(facts["count"]))
    assert all(one["attempts"] >= 0 for one in facts["outcomes"])
    assert facts.get("again", True), "the runner does not work on"
    assert not facts.get("grown"), f"more than before the fault: {facts['grown']}"
    assert not facts["left"], f"more than before the runner: {facts['left']}"


def failed(facts: Facts) -> dict[int, str]:
    return failures(facts["outcomes"])


def failures(outcomes: list[Facts]) -> dict[int, str]:
    return {one["index"]: one["error"] for one in outcomes if one["error"] is not None}


def wrong(facts: Facts) -> list[int]:
    """Items that came to something else than twice their number."""
    return [one["index"] for one in facts["outcomes"] if one["value"] != 2 * one["index"]]


def culprit(facts: Facts) -> Facts:
    """The outcome of the one item at which something happened, when all the others are as ever."""
    assert wrong(facts) == [AT]
    if facts["engine"].traits.exact:
        assert {one["attempts"] for one in facts["outcomes"] if one["index"] != AT} == {1}
    outcome: Facts = facts["outcomes"][AT]
    return outcome


# A worker dies


@fault("kill", processes)
def test_a_worker_killed_in_an_item_costs_that_item_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["error"] == "WorkerDied"
    if facts["engine"].traits.exact:
        assert (outcome["exitcode"], outcome["attempts"]) == (-signal.SIGKILL, 1)


@fault("segfault", pickling)
def test_a_segmentation_fault_costs_its_item_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["error"] == "WorkerDied"
    if facts["engine"].traits.exact:
        assert (outcome["exitcode"], outcome["attempts"]) == (-signal.SIGSEGV, 1)


@fault("leave", pickling)
def test_os_exit_in_an_item_costs_that_item_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["error"] == "WorkerDied"
    if facts["engine"].traits.exact:
        assert (outcome["exitcode"], outcome["attempts"]) == (7, 1)


@fault("kill idle workers", processes)
def test_workers_killed_while_idle_cost_nothing(facts: Facts) -> None:
    assert wrong(facts) == []


@fault("kill every worker", processes)
def test_all_workers_killed_at_once_cost_at_most_what_they_ran(facts: Facts) -> None:
    assert set(wrong(facts)) == set(failed(facts)) <= set(facts["struck"])
    assert set(failed(facts).values()) <= {"WorkerDied"}
    if facts["engine"].traits.exact:
        assert sorted(failed(facts)) == sorted(facts["struck"])


@fault("kill loop", pickling, apart=True, slow=True)
def test_every_item_has_its_outcome_while_workers_are_killed_all_the_time(facts: Facts) -> None:
    assert facts["in order"]
    assert facts["odd"] == []
    assert facts["ran"] > facts["kills"] > 5
    assert {kind for _, kind, _ in facts["failed"]} <= {"WorkerDied", "Quarantined"}
    assert facts["ran"] <= facts["attempts"]
    assert facts["starts"] <= facts["attempts"]
    if facts["engine"].traits.exact:
        # A kill costs one attempt at most, and that one may have come to nothing before its task began.
        assert facts["attempts"] <= facts["ran"] + facts["kills"]
        assert facts["attempts"] <= facts["starts"] + facts["kills"]
        # Two that were killed while they ran it, or three before any had begun it.
        assert {attempts for _, kind, attempts in facts["failed"] if kind == "Quarantined"} <= {2}
        assert {attempts for _, kind, attempts in facts["failed"] if kind == "WorkerDied"} <= {0, 1}


@fault("death in a chunk", exact)
def test_a_death_in_a_chunk_reruns_nothing_that_had_begun(facts: Facts) -> None:
    assert failed(facts) == {IN_CHUNK: "WorkerDied"}
    assert wrong(facts) == [IN_CHUNK]
    assert Counter(facts["starts"]) == dict.fromkeys(range(400), 1)
    assert {one["attempts"] for one in facts["outcomes"]} == {1}


@fault("deaths in a chunk", exact)
def test_an_item_that_kills_three_workers_is_quarantined_and_nobody_else_runs_twice(facts: Facts) -> None:
    assert failed(facts) == {IN_CHUNK: "Quarantined"}
    assert wrong(facts) == [IN_CHUNK]
    assert Counter(facts["starts"]) == dict.fromkeys(range(400), 1) | {IN_CHUNK: 3}
    assert {one["index"]: one["attempts"] for one in facts["outcomes"] if one["attempts"] != 1} == {
        IN_CHUNK: 3
    }


@fault("overrun in a chunk", exact)
def test_an_overrun_in_a_chunk_reruns_nothing_that_had_begun(facts: Facts) -> None:
    assert failed(facts) == {IN_CHUNK: "ItemTimeout"}
    assert wrong(facts) == [IN_CHUNK]
    in_time(facts)
    assert Counter(facts["starts"]) == dict.fromkeys(range(400), 1)
    assert {one["attempts"] for one in facts["outcomes"]} == {1}


# An item raises


@fault("exit", everywhere)
def test_sys_exit_in_an_item_costs_that_item_alone(facts: Facts) -> None:
    assert culprit(facts)["error"] == "SystemExit"


@fault("memory", everywhere)
def test_a_memory_error_costs_its_item_alone(facts: Facts) -> None:
    assert culprit(facts)["error"] == "MemoryError"


@fault("odd exceptions", everywhere)
def test_what_is_seldom_raised_fails_alone_too(facts: Facts) -> None:
    assert wrong(facts) == [1, 2, 3, 4, 5]
    stop = "RuntimeError" if facts["engine"].variant == "coroutines" else "StopIteration"  # as Python has it
    speechless = "RemoteError" if facts["engine"].traits.pickles else "Speechless"
    assert failed(facts) == {
        1: stop,
        2: "GeneratorExit",
        3: speechless,
        4: "ExceptionGroup",
        5: "PicklingError",
    }
    assert {one["attempts"] for one in facts["outcomes"]} == {1}


@fault("cancels itself", coroutines)
def test_a_coroutine_that_is_cancelled_by_others_fails_alone(facts: Facts) -> None:
    assert culprit(facts)["error"] in ("CancelledError", "ItemCancelled")


# An item hangs


@fault("spin", timed)
def test_an_endless_loop_ends_by_its_time_limit_and_costs_nobody_else(facts: Facts) -> None:
    overran(facts)


@fault("sleep", timed)
def test_a_sleeping_item_ends_by_its_time_limit_and_costs_nobody_else(facts: Facts) -> None:
    overran(facts)


@fault("sleep softly", coroutines)
def test_a_waiting_coroutine_ends_by_its_time_limit_and_costs_nobody_else(facts: Facts) -> None:
    overran(facts)


@fault("hold the lock", killing)
def test_a_c_call_that_keeps_the_lock_ends_by_its_time_limit_and_costs_nobody_else(facts: Facts) -> None:
    overran(facts)


def overran(facts: Facts) -> None:
    outcome = culprit(facts)
    assert (outcome["error"], outcome["attempts"]) == ("ItemTimeout", 1)
    assert outcome["seconds"] >= LIMIT
    in_time(facts)


def in_time(facts: Facts) -> None:
    """The batch ended by its item's deadline, and not long after, as when what hangs ends by itself."""
    assert facts["batch seconds"] < LIMIT + SLACK_SECONDS


@fault("child", killing)
def test_a_time_limit_ends_the_children_of_a_worker_too(facts: Facts) -> None:
    assert wrong(facts) == [3]
    assert failed(facts) == {3: "ItemTimeout"}
    in_time(facts)
    assert not facts["child lives"]


@fault("child with its own session", exact_processes)
def test_a_time_limit_ends_children_that_have_left_the_session_too(facts: Facts) -> None:
    assert wrong(facts) == [3]
    assert failed(facts) == {3: "ItemTimeout"}
    in_time(facts)
    assert not facts["child lives"]


# Something cannot travel


@fault("argument", pickling)
def test_an_argument_that_cannot_be_pickled_fails_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert (outcome["error"], outcome["attempts"]) == ("NotPicklable", 0)


@fault("stubborn argument", pickling)
def test_an_argument_that_raises_when_pickled_fails_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert (outcome["error"], outcome["attempts"]) == ("NotPicklable", 0)
    assert "stubborn" in outcome["words"]


@fault("argument that does not unpickle", pickling)
def test_an_argument_that_does_not_unpickle_fails_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["error"] == "NotPicklable"
    assert "a trap" in outcome["words"]


@fault("result", pickling)
def test_a_result_that_cannot_be_pickled_fails_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert (outcome["error"], outcome["attempts"]) == ("NotPicklable", 1)


@fault("result that does not unpickle", pickling)
def test_a_result_that_does_not_unpickle_fails_alone(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["error"] == "NotPicklable"
    assert "a trap" in outcome["words"]


@fault("trap in a chunk", pickling)
def test_a_result_that_does_not_unpickle_does_not_shift_others(facts: Facts) -> None:
    assert wrong(facts) == [IN_CHUNK]
    assert failed(facts) == {IN_CHUNK: "NotPicklable"}


@fault("exception", everywhere)
def test_an_exception_that_cannot_be_pickled_arrives_by_name(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["attempts"] == 1
    assert "with a lock" in outcome["words"]
    if facts["engine"].traits.pickles:
        assert (outcome["error"], outcome["kind"]) == ("RemoteError", "Locked")
        assert outcome["cause"] == "RemoteTraceback"
    else:
        assert outcome["error"] == "Locked"


@fault("exception that does not unpickle", everywhere)
def test_an_exception_that_does_not_unpickle_arrives_by_name(facts: Facts) -> None:
    outcome = culprit(facts)
    assert outcome["attempts"] == 1
    if facts["engine"].traits.pickles:
        assert (outcome["error"], outcome["kind"]) == ("RemoteError", "Unloadable")
        assert outcome["cause"] == "RemoteTraceback"
    else:
        assert outcome["error"] == "Unloadable"


@fault("large", everywhere)
def test_200_mb_go_and_come_back_whole(facts: Facts) -> None:
    assert facts["same"]
    assert failed(facts) == {}


# Little or no shared memory


@fault("little shared memory", ours, apart=True)
def test_large_values_cross_where_shared_memory_takes_only_small_ones(facts: Facts) -> None:
    assert facts["same"]
    assert failed(facts) == {}


@fault("shared memory runs full", ours, apart=True)
def test_large_values_cross_where_shared_memory_runs_full_on_the_way(facts: Facts) -> None:
    assert facts["same"]
    assert failed(facts) == {}


@fault("small /dev/shm", pickling, apart=True)
def test_large_values_cross_where_dev_shm_is_small(facts: Facts) -> None:
    assert facts["same"]
    assert failed(facts) == {}


@fault("no shared memory", ours, apart=True)
def test_without_shared_memory_threads_do_the_work_with_one_warning(facts: Facts) -> None:
    threads_do_the_work(facts)


@fault("no room for shared memory", ours, apart=True)
def test_without_room_for_a_board_threads_do_the_work_with_one_warning(facts: Facts) -> None:
    threads_do_the_work(facts)


def threads_do_the_work(facts: Facts) -> None:
    assert "shared memory" in facts["strict"]  # where nothing simpler is wanted, it is an error
    assert wrong(facts) == []
    ((kind, words),) = facts["warnings"]
    assert kind == "EngineReplacedWarning"
    assert "process" in words
    assert "thread" in words
    assert "shared memory" in words


# Alone: the kernel counts what it kills, and counts it for the groups above, too. A worker that dies in
# another program at that moment would be taken for one more that was killed for want of memory.
@fault("out of memory", ours, apart=True, alone=True)
def test_an_item_killed_for_want_of_memory_says_so_and_is_run_again_alone(facts: Facts) -> None:
    assert wrong(facts) == []
    assert {one["index"]: one["attempts"] for one in facts["outcomes"] if one["attempts"] != 1} == {AT: 2}
    spans = [(int(index), float(start), float(end)) for index, start, end, _ in facts["spans"]]
    _, start, end = [span for span in spans if span[0] == AT][-1]
    assert [index for index, began, ended in spans if began < end and ended > start and index != AT] == []

    assert failures(facts["first"]) == {AT: "WorkerOutOfMemory"}
    assert failures(facts["always"]) == {AT: "Quarantined"}
    assert facts["always"][AT]["cause"] == "WorkerOutOfMemory"
    assert facts["always"][AT]["attempts"] == 2
    for outcomes in (facts["first"], facts["always"]):
        assert [one["value"] for one in outcomes if one["index"] != AT] == [
            2 * index for index in range(COUNT) if index != AT
        ]


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


EVENTS = "low 0\nhigh 4\nmax 9\noom 2\noom_kill {}\noom_group_kill 7\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, 0, id="nothing counts"),
        pytest.param({"proc/vmstat": "nr_free_pages 5\noom_kill 3\n"}, 3, id="the whole machine"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/memory.events": EVENTS.format(2),
                "sys/fs/cgroup/user/memory.events": EVENTS.format(100),
                "proc/vmstat": "oom_kill 100\n",
            },
            2,
            id="cgroup v2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/cpu\n4:memory:/docker/a\n0::/\n",
                "sys/fs/cgroup/memory/docker/a/memory.oom_control": CONTROL.format(1),
                "sys/fs/cgroup/memory/memory.oom_control": CONTROL.format(100),
                "sys/fs/cgroup/memory/cpu/memory.oom_control": CONTROL.format(100),
                "proc/vmstat": "oom_kill 100\n",
            },
            1,
            id="cgroup v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/a\n",
                "sys/fs/cgroup/memory/memory.oom_control": CONTROL.format(4),
            },
            4,
            id="a container that sees its own group as the top",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
                "proc/vmstat": "oom_kill 3\n",
            },
            3,
            id="groups that do not count",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.oom_control": "oom_kill many\n",
            },
            0,
            id="no number",
        ),
    ],
)
def test_kills_for_want_of_memory_are_counted_in_the_own_group(
    tmp_path: Path, files: dict[str, str], count: int
) -> None:
    assert _memory.deaths(fake_root(tmp_path, files)) == count


# The input


@fault("input that raises", everywhere)
def test_an_input_that_raises_gives_its_outcomes_first_and_then_its_error(facts: Facts) -> None:
    assert wrong(facts) == []
    assert facts["raised"] == "the list ends badly"


@fault("endless input", everywhere)
def test_an_endless_input_is_left_early_and_drawn_no_further_than_lookahead(facts: Facts) -> None:
    assert wrong(facts) == []
    assert 0 <= facts["ahead"] <= 30
    assert not facts["still drawing"]


# Leaving


@fault("interrupt", everywhere)
def test_ctrl_c_ends_the_batch_and_the_runner_works_on(facts: Facts) -> None:
    assert facts["interrupted"]


def holding(
    where: Callable[[Engine], bool], *ways: str
) -> Callable[[Callable[[Program], None]], Callable[..., None]]:
    """A test of how a program ends, whose items hang in one of those ways."""

    def decorate(see: Callable[[Program], None]) -> Any:
        cases = []
        for engine in filter(where, ENGINES):
            for way in ways:
                marks = [pytest.mark.slow] if engine.traits.start > SLOW_START else []
                for repeat in range(REPEATS):
                    label = f"{engine}-{way}" if REPEATS == 1 else f"{engine}-{way}-{repeat}"
                    cases.append(pytest.param(Holding(engine, way, repeat, see), marks=marks, id=label))

        def test(case: Holding, programs: Programs) -> None:
            programs.seen(case)

        test.__name__, test.__doc__ = see.__name__, see.__doc__
        return pytest.mark.parametrize("case", cases)(test)

    return decorate


def nothing_remains(program: Program) -> None:
    """Of a program that has ended, within seconds. Its threads and descriptors have ended with it."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := program.remains()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"{ORPHAN_SECONDS:g} s after the program's end there is still: {left}"


@holding(processes, "sleep", "spin", "lock", "resist")
def test_no_worker_outlives_a_parent_that_was_killed(program: Program) -> None:
    """Whatever it does just then; and neither shared memory nor a temporary file is left."""
    assert len(program.living()) > 1
    program.look()
    program.process.kill()
    program.process.wait(10)
    nothing_remains(program)


@holding(lambda engine: True, "sleep")
def test_a_second_ctrl_c_is_immediate(program: Program) -> None:
    """Where leaving takes long, since a thread cannot be stopped, it cuts that short; nothing is left."""
    program.look()
    os.killpg(program.process.pid, signal.SIGINT)
    time.sleep(0.5)  # it is leaving, or has left
    if program.process.poll() is None:
        os.killpg(program.process.pid, signal.SIGINT)
    program.process.wait(10)  # far less than what it would wait for its threads
    nothing_remains(program)
    assert "KeyboardInterrupt" in program.errors()


# Others in the same process


@fault("fork", everywhere)
def test_a_fork_in_the_middle_of_a_batch_disturbs_neither_side(facts: Facts) -> None:
    assert facts["endings"] == [0, 0, 0]
    assert wrong(facts) == []


@fault("two runners", pickling)
def test_a_runner_does_not_notice_that_workers_of_another_die(facts: Facts) -> None:
    assert wrong(facts) == []
    assert {one["attempts"] for one in facts["outcomes"]} == {1}
    assert facts["apart"]
    assert facts["same workers"]
    assert failures(facts["other"]) == {AT: "WorkerDied"}
    assert facts["other again"]


@fault("eight threads", everywhere)
def test_eight_threads_share_a_runner_and_each_has_its_own_failure(facts: Facts) -> None:
    error = "WorkerDied" if facts["engine"].traits.exact else "SystemExit"
    for number, outcomes in enumerate(facts["batches"]):
        assert [one["index"] for one in outcomes] == list(range(COUNT))
        assert failures(outcomes) == {number: error}


@fault("nested", everywhere)
def test_a_runner_inside_a_worker_runs_inline(facts: Facts) -> None:
    assert [one["value"] for one in facts["outcomes"]] == [["serial", 2 * x, 2 * x + 2] for x in range(6)]


# Hooks and recycling


@fault("initializer fails", everywhere)
def test_an_initializer_that_fails_is_said_of_every_item(facts: Facts) -> None:
    words = [one["words"] for one in facts["outcomes"]] or [facts["refused"]]
    assert all("no licence for this codec" in one for one in words)
    assert set(failed(facts).values()) <= {"BackendUnavailable"}
    assert {one["attempts"] for one in facts["outcomes"]} <= {0}


@fault("recycle by items", exact_processes)
def test_a_worker_that_has_run_its_number_of_items_is_replaced(facts: Facts) -> None:
    assert failed(facts) == {}
    assert {one["attempts"] for one in facts["outcomes"]} == {1}
    assert facts["most"] < 2 * 5  # a chunk that it has begun, it ends


@fault("recycle by memory", exact)
def test_a_worker_that_holds_too_much_memory_is_replaced(facts: Facts) -> None:
    assert failed(facts) == {}
    assert {one["attempts"] for one in facts["outcomes"]} == {1}
    assert facts["most"] <= 4  # of 40 MB each, with 160 MB to have
