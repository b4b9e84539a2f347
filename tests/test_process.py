"""What the process engine promises when workers die, hang, or are given things that cannot travel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tasks
from tests.waiting import alive, until
from video import ParallelConfig, Runner
from video.backends._nursery import THREAD_VARIABLES
from video.backends.process import ProcessBackend
from video.errors import DownloadFailed, ItemTimeout, NotPicklable, RemoteError, RemoteTraceback, WorkerDied

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the process engine needs POSIX")


def processes(**more: Any) -> Runner:
    return Runner(ParallelConfig(backend="process", max_workers=2, **more))


@pytest.fixture(scope="module", params=["forkserver", "spawn"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "forkserver" and sys.platform != "linux":
        pytest.skip("the fork server is for Linux")
    with processes(start_method=request.param) as runner:
        yield runner


@pytest.mark.parametrize(
    ("task", "words", "code"),
    [(tasks.kill_on_3, "SIGKILL", -9), (tasks.leave_on_3, "exit code 7", 7)],
)
def test_a_dead_worker_costs_the_item_that_it_ran(runner: Runner, task: Any, words: str, code: int) -> None:
    outcomes = runner.map(task, range(40))
    assert [one.index for one in outcomes if not one.ok] == [3]
    error = outcomes[3].error
    assert isinstance(error, WorkerDied)
    assert words in str(error)
    assert error.exitcode == code
    assert len(runner.map(tasks.double, range(10))) == 10


def test_a_real_segmentation_fault_costs_its_item(runner: Runner) -> None:
    outcomes = runner.map(lambda x: __import__("ctypes").string_at(0) if x == 1 else x, range(4))
    assert [one.value for one in outcomes] == [0, None, 2, 3]
    assert "SIGSEGV" in str(outcomes[1].error)


def test_a_worker_killed_while_idle_costs_nothing(runner: Runner) -> None:
    for pid in {one.value for one in runner.map(tasks.pid, range(50))}:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
    assert [one.value for one in runner.map(tasks.double, range(50))] == list(range(0, 100, 2))


def test_an_executor_that_nobody_waits_for_ends_when_its_last_call_has() -> None:
    executor = ProcessBackend(ParallelConfig()).open(1)
    call = executor.submit(tasks.pid, 0)
    executor.shutdown(wait=False)
    pid = call.result(20)
    until(lambda: not alive(pid))
    nursery = executor._nursery
    until(lambda: nursery is None or nursery.lost)


def test_a_killed_fork_server_is_replaced() -> None:
    with processes(start_method="forkserver") as runner:
        before = {one.value for one in runner.map(tasks.pid, range(50))}
        server = int(Path(f"/proc/{next(iter(before))}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in before if pid))
        assert [one.value for one in runner.map(tasks.double, range(50))] == list(range(0, 100, 2))


def test_a_result_that_cannot_be_pickled_fails_alone(runner: Runner) -> None:
    outcomes = runner.map(tasks.unpicklable_on_3, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]
    assert isinstance(outcomes[3].error, NotPicklable)


def test_an_item_that_cannot_be_pickled_fails_alone(runner: Runner) -> None:
    items = [1, tasks.Stubborn(), 3, threading.Lock(), 5]
    outcomes = runner.map(lambda x: x, items)
    assert [one.index for one in outcomes if not one.ok] == [1, 3]
    assert all(isinstance(outcomes[n].error, NotPicklable) for n in (1, 3))


def test_a_task_that_cannot_be_pickled_is_refused_at_once(runner: Runner) -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match="task"):
        runner.map(lambda _: lock, [1])


def test_what_an_error_came_of_does_not_keep_it_from_crossing() -> None:
    # In workers of its own: they are not the same after it.
    with Runner(ParallelConfig(backend="process", max_workers=1)) as runner:
        (outcome,) = runner.map(tasks.fail_beside_tblib, [1])
    assert isinstance(outcome.error, DownloadFailed)
    assert outcome.error.status == 404


def test_an_error_that_does_not_unpickle_arrives_by_name(runner: Runner) -> None:
    outcomes = runner.map(tasks.unloadable_on_3, range(6))
    error = outcomes[3].error
    assert isinstance(error, RemoteError)
    assert error.kind == "Unloadable"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in unloadable_on_3" in str(error.__cause__)
    assert [one.index for one in outcomes if not one.ok] == [3]


def test_errors_of_the_script_itself_arrive_as_themselves(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        from video import ParallelConfig, Runner

        class Mine(Exception):
            pass

        def main(n):  # a name that the worker's own __main__ must not answer to
            if n == 1:
                raise Mine("mine", n)
            return n

        with Runner(ParallelConfig(backend="process", max_workers=2)) as runner:
            outcomes = runner.map(lambda item: item[0](item[1]), [(main, 0), (main, 1)])
        try:
            outcomes[1].unwrap()
        except Mine as error:
            print(outcomes[0].value, error.args)
        """,
    )
    out = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, env=environment(), check=True
    )
    assert out.stdout == "0 ('mine', 1)\n"


def test_the_time_that_a_large_result_takes_to_cross_is_not_charged(runner: Runner) -> None:
    with processes(timeout=0.4, start_method=runner.config.start_method) as limited:
        outcome = limited.map(tasks.slow_to_cross, [7])[0]
    assert outcome.value == 7, outcome.error


def test_a_fork_that_fails_costs_no_running_item(tmp_path: Path) -> None:
    """The server is short of processes for a moment: it tries again, and the others run on."""
    (tmp_path / "short.py").write_text(
        "import os\n"
        "real, left = os.fork, [0, 1, 1, 0, 0]\n"
        "def fork():\n"
        "    if left and left.pop(0):\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return real()\n"
        "os.fork = fork\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with Runner(ParallelConfig(backend="process", max_workers=3, preload=("short",))) as runner:
            outcomes = runner.map(tasks.double, range(300))
    finally:
        sys.path.remove(str(tmp_path))
    assert [one.value for one in outcomes] == list(range(0, 600, 2))


def test_a_large_argument_and_result_cross(runner: Runner) -> None:
    blob = os.urandom(30_000_000)
    assert runner.map(lambda x: x[::-1], [blob])[0].value == blob[::-1]


def test_a_time_limit_kills_the_worker_and_its_children(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with processes(timeout=1.0, start_method=runner.config.start_method) as limited:
        outcomes = limited.map(tasks.child_then_hang, [str(path)])
    assert isinstance(outcomes[0].error, ItemTimeout)
    until(lambda: not alive(int(path.read_text())))


def test_the_cold_start_of_a_worker_is_not_charged_to_its_item(runner: Runner, tmp_path: Path) -> None:
    """Nor is the time that the task's own module takes to import: here longer than the limit."""
    (tmp_path / "slowmodule.py").write_text(
        "import time\ntime.sleep(1.5)\ndef double(x):\n    return 2 * x\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import slowmodule  # type: ignore[import-not-found]  # made above

        with processes(timeout=1.0, start_method=runner.config.start_method) as limited:
            assert [one.value for one in limited.map(slowmodule.double, range(4))] == [0, 2, 4, 6]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("slowmodule", None)


def test_a_killed_worker_leaves_no_unfinished_file(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clip.part.mp4"
    with processes(timeout=0.5, start_method=runner.config.start_method) as limited:
        outcomes = limited.map(tasks.write_then_hang, [str(path)])
    assert isinstance(outcomes[0].error, ItemTimeout)
    assert not path.exists()


def test_leaving_ends_every_process(runner: Runner) -> None:
    with processes(start_method=runner.config.start_method) as mine:
        pids = {one.value for one in mine.map(tasks.pid, range(50))}
    assert pids
    until(lambda: not any(alive(pid) for pid in pids if pid))


def test_file_descriptors_do_not_leak(runner: Runner) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        with processes(start_method=runner.config.start_method) as mine:
            mine.map(tasks.kill_on_3, range(5))

    use()
    before = count()
    use()
    use()
    assert count() <= before


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


def environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}


def test_a_program_that_ends_in_a_hurry_leaves_no_unfinished_file(tmp_path: Path) -> None:
    """As after a second Ctrl-C: it does not wait for the threads that clear away after killed workers."""
    path = script(
        tmp_path,
        """
        import os, sys, time
        from pathlib import Path
        from video import ParallelConfig, Runner, scope
        from video.backends._processes import ProcessExecutor

        def work(name):
            with scope.unfinished(Path(name)):
                Path(name).touch()
                time.sleep(60)

        ProcessExecutor._bury = lambda self, seat: time.sleep(60)
        runner = Runner(ParallelConfig(backend="process", max_workers=1, chunk_size=1))
        stream = runner.stream(work, [sys.argv[1]], prefetch=False)
        import threading
        threading.Thread(target=lambda: next(stream), daemon=True).start()
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        time.sleep(0.3)
        (executor, _), = runner._engines._open.values()
        for seat in executor._seats:
            executor.stop(seat)
        runner._engines._open.clear()
        """,
    )
    part = tmp_path / "a.part.mp4"
    subprocess.run([sys.executable, path, part], env=environment(), timeout=60, check=True)
    assert not part.exists()


def test_a_script_needs_no_main_guard_and_its_own_classes_travel(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        from video import ParallelConfig, Runner

        class Point:
            def __init__(self, x):
                self.x = x

        def move(point):
            return Point(point.x + 1)

        print("started")
        with Runner(ParallelConfig(backend="process", max_workers=2)) as runner:
            outcomes = runner.map(move, [Point(n) for n in range(5)])
        print([one.value.x for one in outcomes], all(type(one.value) is Point for one in outcomes))
        """,
    )
    out = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, env=environment(), check=True
    )
    assert out.stdout.splitlines() == ["started", "[1, 2, 3, 4, 5] True"]


HANGING = """
    import os, sys, time
    from video import ParallelConfig, Runner

    def hang(path):
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(100)

    with Runner(ParallelConfig(backend="process", max_workers=2, start_method=sys.argv[1])) as runner:
        runner.map(hang, sys.argv[2:])
    """


def start_hanging(tmp_path: Path, method: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A program with two workers in the middle of an item, and the workers' process ids."""
    files = [tmp_path / "one", tmp_path / "two"]
    program = subprocess.Popen(
        [sys.executable, script(tmp_path, HANGING), method, *map(str, files)],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return program, [int(file.read_text()) for file in files]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, method: str) -> None:
    program, workers = start_hanging(tmp_path, method)
    assert all(alive(worker) for worker in workers)
    program.kill()
    program.communicate(timeout=20)
    until(lambda: not any(alive(worker) for worker in workers), seconds=5)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ctrl_c_ends_the_batch_and_its_workers(tmp_path: Path, method: str) -> None:
    program, workers = start_hanging(tmp_path, method)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=20)
    assert program.returncode in (1, 130, -signal.SIGINT)
    assert errors.count("Traceback") == 1, errors
    until(lambda: not any(alive(worker) for worker in workers), seconds=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the fork server is for Linux")
def test_a_preloaded_module_is_imported_once_before_workers_are_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preloaded.py").write_text("import os\nimporter = os.getpid()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def ask(_: int) -> tuple[int, bool]:
        module = sys.modules["preloaded"]
        return os.getpid(), module.importer == os.getppid()

    with processes(preload=("preloaded",), max_items_per_worker=1, chunk_size=1) as runner:
        found = dict(one.unwrap() for one in runner.map(ask, range(3)))
    assert len(found) == 3
    assert set(found.values()) == {True}


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_native_libraries_of_a_worker_are_told_its_share(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # what the user has set stands
    others = [name for name in THREAD_VARIABLES if name != "OMP_NUM_THREADS"]
    for name in others:
        monkeypatch.delenv(name, raising=False)
    with processes(threads_per_worker=3, start_method=method) as mine:
        found = mine.map(lambda name: os.environ.get(name), ["OMP_NUM_THREADS", *others])
    assert [one.unwrap() for one in found] == ["7", *["3"] * len(others)]


def test_a_module_that_starts_threads_is_not_forked(tmp_path: Path) -> None:
    """The fork server drops its preloaded modules rather than fork a process with threads."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with processes(preload=("threaded", "no_such_module")) as runner:
            loaded = runner.map(lambda _: "threaded" in __import__("sys").modules, [1])[0]
    finally:
        sys.path.remove(str(tmp_path))
    assert loaded.value is False


def test_workers_do_not_share_random_numbers() -> None:
    with processes(preload=("numpy.random",)) as runner:
        draws = runner.map(
            lambda _: (
                __import__("time").sleep(0.2),
                __import__("os").getpid(),
                __import__("numpy").random.random(),
                __import__("random").random(),
            ),
            range(2),
        )
    values = [one.value for one in draws]
    assert values[0] is not None
    assert values[1] is not None
    assert values[0][1] != values[1][1], "both items ran in one worker"
    assert values[0][2:] != values[1][2:]
    assert values[0][2] != values[1][2]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_numba_compiles_in_workers_unless_it_is_not_to(method: str) -> None:
    for use, variable in ((True, None), (False, "1")):
        config = ParallelConfig(backend="process", max_workers=1, start_method=method, use_numba=use)
        with Runner(config) as runner:
            assert (
                runner.map(lambda name: os.environ.get(name), ["NUMBA_DISABLE_JIT"])[0].unwrap() == variable
            )
