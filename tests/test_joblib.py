"""What the joblib engine promises when workers die, hang, or are given things that cannot travel."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from tests import tasks
from tests.test_process import HANGING, environment, script
from tests.waiting import alive, until
from video import ParallelConfig, Runner, scope
from video.backends.base import run_chunk
from video.backends.joblib import JoblibBackend, JoblibExecutor
from video.errors import (
    BackendUnavailable,
    ItemTimeout,
    NotPicklable,
    RemoteError,
    RemoteTraceback,
    WorkerDied,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc for what is left behind")


def loky(workers: int = 2, **more: Any) -> Runner:
    return Runner(ParallelConfig(backend="joblib", max_workers=workers, **more))


def opened(workers: int, **more: Any) -> JoblibExecutor:
    return JoblibBackend(ParallelConfig(**more)).open(workers)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with loky() as runner:
        yield runner


def failed(outcomes: list[Any]) -> list[int]:
    return [one.index for one in outcomes if not one.ok]


def workers_of(pid: int) -> set[int]:
    """loky's workers below a process."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"popen_loky" in (folder / "cmdline").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                pass
    return found


def test_results_come_in_order(runner: Runner) -> None:
    assert [one.value for one in runner.map(lambda x: 2 * x, range(500))] == list(range(0, 1000, 2))


def test_an_item_that_raises_fails_alone_with_its_traceback(runner: Runner) -> None:
    outcomes = runner.map(tasks.fail_on_3, range(8))
    assert failed(outcomes) == [3]
    assert isinstance(outcomes[3].error, ValueError)
    assert isinstance(outcomes[3].error.__cause__, RemoteTraceback)
    assert "in fail_on_3" in str(outcomes[3].error.__cause__)


def test_an_error_that_does_not_unpickle_arrives_by_name(runner: Runner) -> None:
    outcomes = runner.map(tasks.unloadable_on_3, range(6))
    assert failed(outcomes) == [3]
    assert isinstance(outcomes[3].error, RemoteError)
    assert "in unloadable_on_3" in str(outcomes[3].error.__cause__)


def test_a_large_argument_and_result_cross(runner: Runner) -> None:
    blob = os.urandom(30_000_000)
    assert runner.map(lambda x: x[::-1], [blob])[0].value == blob[::-1]


# Deaths


@pytest.mark.parametrize(
    ("task", "words", "code"),
    [
        (tasks.kill_on_3, "SIGKILL", -9),
        (tasks.leave_on_3, "exit code 7", 7),
        (lambda x: ctypes.string_at(0) if x == 3 else x, "SIGSEGV", -11),
    ],
)
def test_a_dead_worker_costs_the_item_that_it_ran(runner: Runner, task: Any, words: str, code: int) -> None:
    outcomes = runner.map(task, [*[0] * 50, 3, *[0] * 50])
    assert failed(outcomes) == [50]
    error = outcomes[50].error
    assert isinstance(error, WorkerDied)
    assert words in str(error)
    assert error.exitcode == code
    assert outcomes[50].attempts == 1
    assert [one.value for one in runner.map(tasks.double, range(10))] == list(range(0, 20, 2))


def test_only_what_ran_beside_a_dead_worker_is_run_again(tmp_path: Path) -> None:
    """What the chunks had finished is kept, be it small, slow or large: on the board or behind it."""
    ran = tmp_path / "ran"

    def task(x: int) -> Any:
        with open(ran, "a") as file:
            file.write(f"{x}\n")
        if x == 90:
            os._exit(1)
        if x % 10 == 5:
            time.sleep(0.004)
        return bytes(20_000) if x % 10 == 7 else x

    with loky(chunk_size=64) as runner:
        outcomes = runner.map(task, range(200))
    assert failed(outcomes) == [90]
    values = [bytes(20_000) if x % 10 == 7 else x for x in range(200)]
    assert [one.value for one in outcomes if one.ok] == values[:90] + values[91:]
    counts = [ran.read_text().split().count(str(n)) for n in range(200)]
    assert counts[90] == 1
    assert sum(counts) <= 200 + 1


def test_an_item_is_not_to_blame_for_the_deaths_of_another_batchs(runner: Runner, tmp_path: Path) -> None:
    """Not even the second time, when it runs alone as far as its own batch goes."""

    def patient(_: int) -> int:
        with open(tmp_path / "begun", "a") as file:
            file.write("x")
        until(lambda: (tmp_path / "end").exists())
        return 1

    def begun() -> int:
        return len((tmp_path / "begun").read_text()) if (tmp_path / "begun").exists() else 0

    outcomes: list[Any] = []
    batch = threading.Thread(target=lambda: outcomes.extend(runner.map(patient, [0])))
    batch.start()
    for times in range(1, 4):
        until(lambda times=times: begun() == times)
        assert failed(runner.map(lambda _: os._exit(4), [0])) == [0]
    (tmp_path / "end").touch()
    batch.join()
    assert [(one.value, one.attempts) for one in outcomes] == [(1, 4)]


_when_unpickled: list[Callable[[], object]] = []


class Telling:
    """Runs code of the caller's where it is unpickled."""

    def __init__(self) -> None:
        self.state = 1

    def __setstate__(self, _: object) -> None:
        for act in _when_unpickled:
            act()


def telling(_: int) -> Telling:
    return Telling()


def test_a_results_own_code_may_use_the_stream_that_it_comes_by(runner: Runner) -> None:
    stream = runner.stream(telling, range(4))
    _when_unpickled.append(lambda: stream.cancel(3))
    outcomes: list[Any] = []
    caller = threading.Thread(target=lambda: outcomes.extend(stream), daemon=True)
    caller.start()
    caller.join(30)
    _when_unpickled.clear()
    assert len(outcomes) == 4


def test_many_deaths_cost_no_more_than_their_own_items(runner: Runner) -> None:
    outcomes = runner.map(lambda x: os._exit(4) if x % 7 == 3 else x, range(25))
    assert failed(outcomes) == [3, 10, 17, 24]


def test_a_worker_killed_while_idle_costs_nothing(runner: Runner) -> None:
    pid = runner.map(tasks.pid, range(50))[0].value
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert [one.value for one in runner.map(tasks.double, range(50))] == list(range(0, 100, 2))


def test_a_worker_killed_in_the_middle_of_a_large_result_holds_up_nobody() -> None:
    """In loky's own pipe, the rest of the result would be waited for without end."""

    def task(x: int) -> bytes:
        if x == 1:
            from video.backends import _loky

            def write(fd: int, data: bytes, at: int) -> int:
                os.pwrite(fd, data[:65536], at)
                os._exit(9)

            _loky.write = write
        return bytes(3_000_000)

    with loky(chunk_size=1) as runner:
        outcomes = runner.map(task, range(4))
    assert failed(outcomes) == [1]
    assert isinstance(outcomes[1].error, WorkerDied)


def test_workers_killed_before_they_read_large_arguments_hold_up_nobody() -> None:
    def feeders() -> int:
        return [one.name for one in threading.enumerate()].count("QueueFeederThread")

    big, before = bytes(20_000_000), feeders()
    with loky(chunk_size=1) as runner:
        pids = {one.value for one in runner.map(lambda _: time.sleep(0.05) or os.getpid(), range(6))}

        def kill() -> None:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

        killer = threading.Timer(0.03, kill)
        killer.start()
        outcomes = runner.map(len, [big] * 6)
        killer.join()
    assert [one.value for one in outcomes if one.ok] == [len(big)] * len([one for one in outcomes if one.ok])
    assert len(failed(outcomes)) <= len(pids)
    until(lambda: feeders() <= before)


def test_a_death_is_seen_though_a_child_of_the_worker_lives_on(runner: Runner) -> None:
    """A forked child holds the pipe open by whose end loky would see it."""

    def task(x: int) -> int:
        if x == 2:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert failed(runner.map(task, range(6))) == [2]


def test_children_end_with_their_worker(tmp_path: Path) -> None:
    """Whether it dies or leaves in peace."""

    def task(path: str) -> None:
        Path(path).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        if path.endswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)

    paths = [str(tmp_path / "die"), str(tmp_path / "leave")]
    with loky() as runner:
        assert failed(runner.map(task, paths)) == [0]
    until(lambda: not any(alive(int(Path(path).read_text())) for path in paths))


def test_a_dead_worker_leaves_no_unfinished_file(tmp_path: Path) -> None:
    def task(path: str) -> None:
        with scope.unfinished(Path(path)):
            Path(path).write_text("half")
            os._exit(1)

    path = tmp_path / "clip.part.mp4"
    with loky() as runner:
        assert failed(runner.map(task, [str(path)])) == [0]
        until(lambda: not path.exists())


def test_two_runners_do_not_disturb_each_other() -> None:
    with loky() as one, loky() as other:
        slow = other.stream(lambda x: time.sleep(0.01) or x, range(100))
        assert next(slow).value == 0
        one.map(tasks.kill_on_3, range(6))
        rest = list(slow)
    assert [outcome.value for outcome in rest] == list(range(1, 100))
    assert {outcome.attempts for outcome in rest} == {1}


def test_workers_that_never_come_up_make_the_engine_unavailable() -> None:
    with loky(initializer=lambda: os._exit(3)) as runner:
        outcomes = runner.map(tasks.double, range(3))
    assert all(isinstance(one.error, BackendUnavailable) for one in outcomes)
    assert "before they are ready" in str(outcomes[0].error)


# What cannot travel


def test_what_cannot_be_pickled_fails_alone(runner: Runner) -> None:
    outcomes = runner.map(tasks.unpicklable_on_3, range(6))
    assert failed(outcomes) == [3]
    assert isinstance(outcomes[3].error, NotPicklable)
    outcomes = runner.map(lambda x: x, [1, threading.Lock(), 3])
    assert failed(outcomes) == [1]
    assert isinstance(outcomes[1].error, NotPicklable)


def test_a_task_that_workers_cannot_import_breaks_nothing(runner: Runner) -> None:
    runner.map(tasks.double, range(4))
    before = workers_of(os.getpid())
    module = types.ModuleType("nowhere")
    exec("def task(x):\n    return x\n", module.__dict__)
    sys.modules["nowhere"] = module
    try:
        outcomes = runner.map(module.task, range(3))
    finally:
        del sys.modules["nowhere"]
    assert all(isinstance(one.error, NotPicklable) for one in outcomes)
    assert "No module named 'nowhere'" in str(outcomes[0].error)
    assert workers_of(os.getpid()) == before


# Time limits


def test_a_stuck_item_is_given_up_and_soon_dead_with_its_child(tmp_path: Path) -> None:
    pid, child = tmp_path / "pid", tmp_path / "child"

    def task(x: int) -> int:
        if x == 2:
            pid.write_text(str(os.getpid()))
            tasks.child_then_hang(str(child))
        time.sleep(0.01)
        return x

    with loky(timeout=1.0) as runner:
        outcomes = runner.map(task, range(12))
        assert failed(outcomes) == [2]
        assert isinstance(outcomes[2].error, ItemTimeout)
        until(lambda: not alive(int(pid.read_text())))
        until(lambda: not alive(int(child.read_text())))
        assert [one.value for one in runner.map(tasks.double, range(4))] == [0, 2, 4, 6]


def test_a_stuck_item_leaves_no_unfinished_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.part.mp4"
    with loky(timeout=0.5) as runner:
        outcomes = runner.map(tasks.write_then_hang, [str(path)])
        assert isinstance(outcomes[0].error, ItemTimeout)
        until(lambda: not path.exists())


def test_the_neighbours_of_stuck_items_finish(tmp_path: Path) -> None:
    """One item runs on beside another that is given up, and one that is given up after it."""

    def task(x: int) -> int:
        time.sleep({0: 1.8, 1: 60, 2: 60}.get(x, 0))
        return x

    with loky(timeout=2.0) as runner:
        runner.map(tasks.double, range(4))  # warm
        outcomes = runner.map(task, range(8))
    assert failed(outcomes) == [1, 2]
    assert {one.attempts for one in outcomes} == {1}


def test_waiting_for_a_worker_is_not_charged() -> None:
    """Nor is the start of the workers, nor the import of what the task needs."""
    with loky(timeout=1.0) as limited:
        assert all(one.ok for one in limited.map(lambda _: time.sleep(0.2), range(12)))


def test_the_real_start_of_an_item_is_known() -> None:
    executor = opened(1)
    try:
        first = executor.submit(run_chunk, time.sleep, [1.0], 1)
        second = executor.submit(run_chunk, time.sleep, [0.1], 1)
        third = executor.submit(run_chunk, time.sleep, [0.1], 1)
        until(lambda: executor.running(first))
        at = executor.running(first)
        assert at is not None
        assert at[0] == 0
        assert executor.running(second) is None
        assert executor.running(third) is None
        until(second.done)
        assert executor.running(first) is None
    finally:
        executor.shutdown(cancel_futures=True)


# Starting and leaving


def test_native_libraries_get_their_share_of_threads() -> None:
    with loky(threads_per_worker=3) as runner:
        assert runner.map(lambda _: os.environ["OMP_NUM_THREADS"], [1])[0].value == "3"


def test_numba_is_kept_from_compiling() -> None:
    with Runner(ParallelConfig(backend="joblib", max_workers=1, use_numba=False)) as runner:
        assert runner.map(lambda name: os.environ.get(name), ["NUMBA_DISABLE_JIT"])[0].unwrap() == "1"


def test_a_worker_may_grow() -> None:
    """loky replaces workers that have grown by 300 MB; a few pictures are more than that."""

    def limit(_: int) -> Any:
        from joblib.externals.loky import process_executor

        return process_executor._MAX_MEMORY_LEAK_SIZE

    with loky() as runner:
        assert runner.map(limit, [1])[0].value == float("inf")


def test_an_initializer_runs_in_each_worker_and_a_finalizer_when_it_leaves(tmp_path: Path) -> None:
    def note(name: str) -> Any:
        return lambda: (tmp_path / f"{name}-{os.getpid()}").touch()

    with loky(initializer=note("in"), finalizer=note("out")) as runner:
        pids = {one.value for one in runner.map(tasks.pid, range(20))}
        assert all((tmp_path / f"in-{pid}").exists() for pid in pids)
    assert all((tmp_path / f"out-{pid}").exists() for pid in pids)


def test_an_initializer_that_fails_makes_the_engine_unavailable() -> None:
    with loky(initializer=lambda: 1 / 0) as runner:
        outcomes = runner.map(tasks.double, range(3))
    assert all(isinstance(one.error, BackendUnavailable) for one in outcomes)
    assert "ZeroDivisionError" in str(outcomes[0].error)


def test_leaving_ends_every_process_thread_and_file() -> None:
    def use() -> set[int | None]:
        with loky(timeout=0.5) as mine:
            mine.map(tasks.kill_on_3, range(4))
            mine.map(tasks.hang_on_3, range(4))
            return {one.value for one in mine.map(tasks.pid, range(50))}

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    use()
    before, threads = count(), threading.active_count()
    pids = use()
    until(lambda: not any(alive(pid) for pid in pids if pid))
    until(lambda: count() <= before)
    until(lambda: threading.active_count() <= threads)


def test_what_no_worker_has_taken_can_be_cancelled() -> None:
    executor = opened(1)
    calls = [executor.submit(run_chunk, time.sleep, [1.0], 1) for _ in range(4)]
    until(lambda: executor.running(calls[0]))
    assert [call.cancel() for call in calls] == [False, True, True, True]
    assert calls[0].result(60).values == [None]
    assert executor.submit(run_chunk, tasks.double, [4], 1).result(60).values == [8]
    executor.shutdown()
    with pytest.raises(CancelledError):
        calls[1].result()


def test_closing_finishes_what_was_submitted() -> None:
    executor = opened(2)
    calls = [executor.submit(run_chunk, tasks.double, [n], 1) for n in range(20)]
    executor.shutdown()
    assert [call.result(0).values for call in calls] == [[2 * n] for n in range(20)]


def test_closing_can_cancel_what_waits_and_kill_what_runs(tmp_path: Path) -> None:
    executor = opened(2)
    paths = [tmp_path / "one", tmp_path / "two"]
    calls = [executor.submit(run_chunk, tasks.child_then_hang, [str(path)], 1) for path in paths]
    waiting = [executor.submit(run_chunk, tasks.double, [1], 1) for _ in range(8)]
    until(lambda: all(path.exists() and path.read_text() for path in paths))
    executor.shutdown(cancel_futures=True)
    assert not any(alive(int(path.read_text())) for path in paths)
    assert all(call.exception(0) is not None for call in calls)
    assert all(call.cancelled() for call in waiting)


def test_nothing_can_be_submitted_after_shutdown() -> None:
    executor = opened(1)
    assert executor.submit(run_chunk, tasks.double, [4], 1).result(60).values == [8]
    executor.shutdown()
    executor.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(run_chunk, tasks.double, [4], 1)


def test_any_function_can_be_called() -> None:
    executor = opened(1)
    try:
        assert executor.submit(lambda x, y: x + y, 1, 2).result(60) == 3
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result(60)
        with pytest.raises(NotPicklable):
            executor.submit(lambda: threading.Lock()).result(60)
    finally:
        executor.shutdown()


def hanging(tmp_path: Path, how: str = "time.sleep(100)") -> tuple[subprocess.Popen[str], list[Path]]:
    """A program that runs two items without end, and where they write down their process ids."""
    files = [tmp_path / "one", tmp_path / "two"]
    text = HANGING.replace('backend="process"', 'backend="joblib"').replace(", start_method=sys.argv[1]", "")
    text = text.replace("time.sleep(100)", how)
    program = subprocess.Popen(
        [sys.executable, script(tmp_path, text), "-", *map(str, files)],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    return program, files


@pytest.mark.parametrize("how", ["time.sleep(100)", "__import__('ctypes').PyDLL(None).sleep(100)"])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, how: str) -> None:
    """Even if an item keeps the interpreter's lock, so that no thread of its worker can see to it."""
    program, files = hanging(tmp_path, how)
    until(lambda: all(file.exists() and file.read_text() for file in files))
    workers = [int(file.read_text()) for file in files]
    program.kill()
    program.communicate(timeout=20)
    until(lambda: not any(alive(worker) for worker in workers), seconds=5)


@pytest.mark.parametrize("early", [False, True])
def test_ctrl_c_ends_the_batch_and_its_workers(tmp_path: Path, early: bool) -> None:
    """From the terminal, which tells the whole process group; early: while the workers start."""
    program, files = hanging(tmp_path)
    if early:
        until(lambda: workers_of(program.pid))
        time.sleep(0.1)
    else:
        until(lambda: all(file.exists() and file.read_text() for file in files))
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=20)
    assert errors.count("Traceback") == 1, errors
    assert "resource_tracker" not in errors
    for file in files:
        if file.exists():
            until(lambda file=file: not alive(int(file.read_text() or 0)), seconds=5)


def test_a_program_with_deaths_and_stuck_items_ends_quietly(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import os, time
        from video import ParallelConfig, Runner

        def task(x):
            if x == 2:
                os._exit(1)
            if x == 5:
                time.sleep(60)
            return x

        runner = Runner(ParallelConfig(backend="joblib", max_workers=2, timeout=1.0))
        print([type(one.error).__name__ for one in runner.map(task, range(8)) if not one.ok])
        """,
    )
    out = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, env=environment(), check=True
    )
    assert out.stdout == "['WorkerDied', 'ItemTimeout']\n"
    assert out.stderr == ""


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
