"""What the joblib engine promises when workers die, hang, or are given things that cannot travel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tasks
from tests.test_process import HANGING, environment, script
from tests.waiting import alive, until
from video import ParallelConfig, Runner
from video.backends.base import run_chunk
from video.backends.joblib import JoblibBackend
from video.errors import BackendUnavailable, ItemTimeout, NotPicklable, RemoteTraceback, WorkerDied

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the boards of loky's workers need /proc")


def loky(**more: Any) -> Runner:
    return Runner(ParallelConfig(backend="joblib", max_workers=2, **more))


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with loky() as runner:
        yield runner


def test_results_come_in_order(runner: Runner) -> None:
    assert [one.value for one in runner.map(lambda x: 2 * x, range(500))] == list(range(0, 1000, 2))


def test_an_item_that_raises_fails_alone_with_its_traceback(runner: Runner) -> None:
    outcomes = runner.map(tasks.fail_on_3, range(8))
    assert [one.index for one in outcomes if not one.ok] == [3]
    assert isinstance(outcomes[3].error, ValueError)
    assert isinstance(outcomes[3].error.__cause__, RemoteTraceback)


@pytest.mark.parametrize("task", [tasks.kill_on_3, tasks.leave_on_3])
def test_a_dead_worker_costs_the_item_that_it_ran(runner: Runner, task: Any) -> None:
    outcomes = runner.map(task, [*[0] * 50, 3, *[0] * 50])
    assert [one.index for one in outcomes if not one.ok] == [50]
    assert isinstance(outcomes[50].error, WorkerDied)
    assert outcomes[50].error.exitcode is not None
    assert [one.value for one in runner.map(tasks.double, range(10))] == list(range(0, 20, 2))


def test_only_what_may_have_been_running_is_run_again(tmp_path: Path) -> None:
    """Of a chunk, what had finished is kept: at most the items of both workers run twice."""
    ran = tmp_path / "ran"

    def task(x: int) -> int:
        with open(ran, "a") as file:
            file.write(f"{x}\n")
        if x == 90:
            os._exit(1)
        return x

    with loky(chunk_size=64) as runner:
        outcomes = runner.map(task, range(200))
    assert [one.index for one in outcomes if not one.ok] == [90]
    counts = [ran.read_text().split().count(str(n)) for n in range(200)]
    assert counts[90] == 2
    assert sum(counts) <= 200 + 2
    assert [one.attempts for one in outcomes] == counts


def test_what_cannot_be_pickled_fails_alone(runner: Runner) -> None:
    outcomes = runner.map(tasks.unpicklable_on_3, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]
    outcomes = runner.map(lambda x: x, [1, threading.Lock(), 3])
    assert [one.index for one in outcomes if not one.ok] == [1]
    assert isinstance(outcomes[1].error, NotPicklable)


def test_a_stuck_item_is_given_up_and_its_worker_ends(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with loky(timeout=1.0) as runner:
        runner.map(tasks.double, range(4))
        outcomes = runner.map(
            lambda x: tasks.child_then_hang(str(pid)) if x == 2 else time.sleep(0.01) or x, range(12)
        )
        assert [one.index for one in outcomes if not one.ok] == [2]
        assert isinstance(outcomes[2].error, ItemTimeout)
        until(lambda: not alive(int(pid.read_text())))
        assert [one.value for one in runner.map(tasks.double, range(4))] == [0, 2, 4, 6]


def test_waiting_for_a_worker_is_not_charged(runner: Runner) -> None:
    with loky(timeout=1.5) as limited:
        assert all(one.ok for one in limited.map(lambda _: time.sleep(0.2), range(20)))


def test_two_runners_do_not_disturb_each_other() -> None:
    with loky() as one, loky() as other:
        slow = other.stream(lambda x: time.sleep(0.01) or x, range(100))
        assert next(slow).value == 0
        one.map(tasks.kill_on_3, range(6))
        assert [outcome.value for outcome in slow] == list(range(1, 100))


def test_a_worker_killed_while_idle_costs_nothing(runner: Runner) -> None:
    for pid in {one.value for one in runner.map(tasks.pid, range(50))}:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not alive(pid))
        break
    assert [one.value for one in runner.map(tasks.double, range(50))] == list(range(0, 100, 2))


def test_native_libraries_get_their_share_of_threads() -> None:
    with loky(threads_per_worker=3) as runner:
        assert runner.map(lambda _: __import__("os").environ["OMP_NUM_THREADS"], [1])[0].value == "3"


def test_an_initializer_runs_in_each_worker_and_a_finalizer_when_it_leaves(tmp_path: Path) -> None:
    def note(name: str) -> Any:
        return lambda: (tmp_path / f"{name}-{os.getpid()}").touch()

    with loky(initializer=note("in"), finalizer=note("out")) as runner:
        pids = {one.value for one in runner.map(tasks.pid, range(20))}
        assert all((tmp_path / f"in-{pid}").exists() for pid in pids)
    until(lambda: all((tmp_path / f"out-{pid}").exists() for pid in pids))


def test_an_initializer_that_fails_makes_the_engine_unavailable() -> None:
    with loky(initializer=lambda: 1 / 0) as runner:
        outcomes = runner.map(tasks.double, range(3))
    assert all(isinstance(one.error, BackendUnavailable) for one in outcomes)
    assert "ZeroDivisionError" in str(outcomes[0].error)


def test_leaving_ends_every_process_and_file(tmp_path: Path) -> None:
    def use() -> set[int | None]:
        with loky() as mine:
            mine.map(tasks.kill_on_3, range(5))
            return {one.value for one in mine.map(tasks.pid, range(50))}

    use()
    before = len(os.listdir("/proc/self/fd"))
    pids = use()
    until(lambda: not any(alive(pid) for pid in pids if pid))
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_nothing_can_be_submitted_after_shutdown() -> None:
    executor = JoblibBackend(ParallelConfig()).open(1)
    assert executor.submit(run_chunk, tasks.double, [4], 1).result(60).values == [8]
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(run_chunk, tasks.double, [4], 1)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    text = HANGING.replace('backend="process"', 'backend="joblib"').replace(", start_method=sys.argv[1]", "")
    program = subprocess.Popen(
        [sys.executable, script(tmp_path, text), "-", *map(str, files)],
        env=environment(), stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: all(file.exists() and file.read_text() for file in files))
    workers = [int(file.read_text()) for file in files]
    program.kill()
    program.wait()
    until(lambda: not any(alive(worker) for worker in workers), seconds=5)


def test_a_program_that_ends_with_calls_waiting_does_end() -> None:
    """loky takes no more calls by then; those that are left say so instead of waiting for ever."""
    code = (
        "import time, video\n"
        "if __name__ == '__main__':\n"
        "    pool = video.executor(backend='joblib', max_workers=1)\n"
        "    for _ in range(4):\n"
        "        pool.submit(time.sleep, 0.2)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
