"""What the Dask engine promises, on a cluster of its own and on clusters that others run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tasks
from tests.waiting import alive, until
from video import scope
from video.backends import dask as engine
from video.backends._pickling import Shipped
from video.backends.base import ChunkLost, Executor, Ran, run_chunk
from video.config import ParallelConfig
from video.engines import EngineReplacedWarning
from video.errors import (
    BackendUnavailable,
    ConfigError,
    NotPicklable,
    RemoteTraceback,
    VideoError,
    WorkerDied,
)
from video.outcome import Outcome
from video.runner import Runner

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 30.0
"""Against hangs."""


def opened(cluster: Any = None, **more: Any) -> engine.DaskExecutor:
    return engine.DaskBackend(ParallelConfig(backend="dask", cluster=cluster, **more)).open(2)


@contextlib.contextmanager
def executor(cluster: Any = None, **more: Any) -> Iterator[engine.DaskExecutor]:
    one = opened(cluster, **more)
    try:
        yield one
    finally:
        one.shutdown(cancel_futures=True)


def send(executor: Executor, task: Callable[[Any], Any], *items: Any) -> Any:
    """Submit a chunk, as the runner does."""
    return executor.submit(run_chunk, Shipped(task), list(items), 1)


def values(executor: Executor, task: Callable[[Any], Any], *items: Any) -> list[Any]:
    ran: Ran = send(executor, task, *items).result(SECONDS)
    return ran.values


def until_running(one: Any, *futures: Any) -> None:
    def all_run() -> bool:
        for future in futures:
            if future.done():
                future.result()
        return all(one.running(future) for future in futures)

    until(all_run)


def failure(future: Any) -> BaseException:
    error = future.exception(SECONDS)
    assert error is not None
    return error  # type: ignore[no-any-return]  # of `Any`


def session_of(executor: Executor) -> int:
    """That of a worker, and for a local cluster, of all its processes."""
    session: int = values(executor, lambda _: os.getsid(0), 0)[0]
    return session


def living(session: int) -> list[int]:
    def belongs(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.getsid(pid) == session and alive(pid)
        return False

    return [pid for pid in psutil.pids() if belongs(pid)]


class Cluster:
    """Scheduler and workers, started as a user starts them, on loopback.

    :param environ: of the scheduler and the workers.
    """

    def __init__(self, folder: Path, *, workers: int = 2, nanny: bool = True, **environ: str) -> None:
        self.file = folder / "scheduler.json"
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        self._log = open(folder / "log", "wb")  # noqa: SIM115  # closed in `close`
        self._folder = folder
        self.processes = [self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-show")]
        try:
            self._begin(workers, nanny)
        except BaseException:
            self.close()
            raise

    def _begin(self, workers: int, nanny: bool) -> None:
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"))  # written in steps
        self.address: str = json.loads(self.file.read_text())["address"]
        if workers:
            self.processes.append(
                self._start("worker", "--nworkers", str(workers), "--nthreads", "1", "--host", "127.0.0.1")
                if nanny
                else self._start("worker", "--no-nanny", "--nthreads", "1", "--host", "127.0.0.1")
            )
            with distributed.Client(self.address, set_as_default=False) as client:
                client.wait_for_workers(workers if nanny else 1, timeout=SECONDS)

    @property
    def scheduler(self) -> int:
        return self.processes[0].pid

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "dask", *words, "--scheduler-file", str(self.file)),
                *("--dashboard-address", "127.0.0.1:0", "--no-dashboard"),
            ],
            cwd=self._folder,
            env=self._environ,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def kill(self, number: int) -> None:
        """Kill the scheduler (0) or the workers (1), with all theirs. The resource tracker ends by itself."""
        for pid in living(self.processes[number].pid):
            with contextlib.suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self.processes[number].wait()

    def close(self) -> None:
        for number in reversed(range(len(self.processes))):
            self.kill(number)
        self._log.close()


@contextlib.contextmanager
def running_cluster(folder: Path, **more: Any) -> Iterator[Cluster]:
    cluster = Cluster(folder, **more)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def clusters() -> Iterator[list[engine.DaskExecutor]]:
    found: list[engine.DaskExecutor] = []
    yield found
    for one in found:
        one.shutdown(cancel_futures=True)


@pytest.fixture
def local(clusters: list[engine.DaskExecutor]) -> engine.DaskExecutor:
    """On a cluster of its own, which tests may kill workers of. Dask was seen to start no other worker for
    20 s after that; the next test must not fail for it."""
    if clusters and not is_whole(clusters[-1]):
        clusters.pop().shutdown(cancel_futures=True)
    if not clusters:
        clusters.append(opened())
    return clusters[-1]


def is_whole(one: engine.DaskExecutor) -> bool:
    """Whether both of its workers are there, within seconds."""

    async def workers() -> int:
        return len(await one._client.nthreads())

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if asyncio.run_coroutine_threadsafe(workers(), one._loop).result(SECONDS) == 2:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def timed() -> Iterator[engine.DaskExecutor]:
    with executor(timeout=60) as one:
        yield one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run by others."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as one:
        yield one


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters are given up sooner than in earnest."""
    monkeypatch.setattr(engine, "LOST_SECONDS", 2.0)
    monkeypatch.setattr(engine, "NO_WORKER_SECONDS", 2.0)
    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.2)


# Calls and what crosses


def test_chunks_run_in_other_processes_and_return_what_each_item_returned(local: Executor) -> None:
    futures = [send(local, tasks.double, *range(start, start + 5)) for start in range(0, 50, 5)]
    assert [value for future in futures for value in future.result(SECONDS).values] == list(range(0, 100, 2))
    assert os.getpid() not in values(local, tasks.pid, 0)


def test_an_item_that_raises_costs_itself_and_arrives_with_its_traceback(local: Executor) -> None:
    ran = send(local, tasks.fail_on_3, 2, 3, 4).result(SECONDS)
    assert ran.values == [2, None, 4]
    [(place, error, text)] = ran.errors
    assert (place, str(error)) == (1, "three is 3")
    assert isinstance(error, ValueError)
    assert "fail_on_3" in text


def test_a_call_that_raises_fails_with_its_error_and_the_workers_traceback(local: Executor) -> None:
    error = failure(local.submit(tasks.fail_on_3, 3))
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "fail_on_3" in str(error.__cause__)


def test_tasks_may_be_lambdas_and_closures(local: Executor) -> None:
    factor = 3
    assert values(local, lambda x: factor * x, 1, 2) == [3, 6]


def test_a_result_that_cannot_be_pickled_fails_alone(local: Executor) -> None:
    ran = send(local, tasks.unpicklable_on_3, 2, 3).result(SECONDS)
    assert ran.values[0]() == 2
    [(place, error, _)] = ran.errors
    assert place == 1
    assert isinstance(error, NotPicklable)


def test_an_error_that_does_not_unpickle_arrives_as_another(local: Executor) -> None:
    [(_, error, text)] = send(local, tasks.unloadable_on_3, 3).result(SECONDS).errors
    assert "Unloadable" in str(error) + text


def test_an_argument_that_cannot_be_pickled_fails_its_call(local: Executor) -> None:
    assert isinstance(failure(send(local, tasks.double, tasks.Stubborn())), NotPicklable)
    assert values(local, tasks.double, 2) == [4]


class HomeOnly:
    """Does not unpickle in another process, in whichever way it is sent."""

    def __reduce__(self) -> Any:
        return int_at_home, (os.getpid(),)


def int_at_home(pid: int) -> int:
    if os.getpid() != pid:
        raise RuntimeError("not at home")
    return pid


def test_an_argument_that_does_not_unpickle_there_fails_its_call_and_says_why(local: Executor) -> None:
    error = failure(local.submit(tasks.double, HomeOnly()))
    assert isinstance(error, NotPicklable)
    assert "not at home" in str(error)


def test_large_arguments_and_results_cross_without_a_warning(local: Executor) -> None:
    frames = [np.full((1080, 1920, 3), number, "u1") for number in range(3)]
    ran = send(local, lambda frame: frame + 1, *frames).result(SECONDS)
    assert [int(frame[5, 5, 0]) for frame in ran.values] == [1, 2, 3]
    blob = bytes(12 << 20)  # from 10 MiB on, distributed warns of large graphs
    assert local.submit(len, blob).result(SECONDS) == len(blob)


def test_a_future_lets_go_of_what_it_sent(local: Executor) -> None:
    future = local.submit(len, bytes(1 << 16))
    assert future.result(SECONDS) == 1 << 16
    assert all(len(pickle.dumps(value)) < 1000 for value in (future.call, future.packed))  # type: ignore[attr-defined]


def test_callbacks_may_block_without_stopping_the_clusters_loop(local: Executor) -> None:
    done = threading.Event()
    first = send(local, tasks.double, 1)
    first.add_done_callback(lambda _: done.wait(SECONDS))
    second = send(local, lambda _: time.sleep(0.2), 1)
    until(lambda: local.running(second) or second.done())  # its events are heard meanwhile
    done.set()
    assert second.result(SECONDS).values == [None]


def test_native_libraries_are_held_to_their_share() -> None:
    with executor(threads_per_worker=3) as one:
        assert values(one, lambda name: os.environ[name], "OMP_NUM_THREADS", "MKL_NUM_THREADS") == ["3", "3"]
        assert local_memory_limit(one) == 0


def local_memory_limit(one: Executor) -> int:
    limit: int = values(
        one, lambda _: __import__("distributed").get_worker().memory_manager.memory_limit or 0, 0
    )[0]
    return limit


def test_items_may_start_processes_of_their_own(local: Executor) -> None:
    def start(x: int) -> int:
        import multiprocessing

        child = multiprocessing.get_context("spawn").Process(target=print, args=("",))
        child.start()
        child.join()
        return child.exitcode or 0

    assert values(local, start, 1) == [0]


# When calls run


def test_a_call_runs_from_when_its_worker_says_so(timed: Executor) -> None:
    before = time.monotonic()
    first = [send(timed, lambda _: time.sleep(0.5), 0) for _ in range(2)]
    behind = send(timed, tasks.double, 1)
    until(lambda: all(timed.running(one) for one in first))  # type: ignore[attr-defined]
    assert timed.running(behind) is None  # type: ignore[attr-defined]
    position, _ = timed.running(first[0])  # type: ignore[attr-defined]
    assert position == 0
    until(lambda: timed.running(first[0])[1] < time.monotonic())  # type: ignore[attr-defined]
    assert before < timed.running(first[0])[1]  # type: ignore[attr-defined]
    assert first[0].running()
    assert not first[0].cancel()
    for one in (*first, behind):
        one.result(SECONDS)
        assert timed.running(one) is None  # type: ignore[attr-defined]


def test_what_an_item_imports_is_not_on_its_time(timed: Executor) -> None:
    future = timed.submit(len, Slow())
    until(lambda: timed.running(future))  # type: ignore[attr-defined]
    assert timed.running(future)[1] > time.monotonic()  # type: ignore[attr-defined]
    assert future.result(SECONDS) == 1


class Slow:
    """Takes a while to unpickle."""

    def __reduce__(self) -> Any:
        return slowly, ()


def slowly() -> list[int]:
    time.sleep(0.5)
    return [0]


def test_progress_is_passed_on(local: Any) -> None:
    def work(_: int) -> None:
        time.sleep(0.3)
        scope.report(0.25, "a quarter")

    heard: list[tuple[float, str]] = []
    future = send(local, work, 0)
    local.watch(future, lambda fraction, words: heard.append((fraction, words)))
    future.result(SECONDS)
    assert heard == [(0.25, "a quarter")]


def test_a_listener_that_raises_costs_nothing(local: Any) -> None:
    def work(_: int) -> None:
        time.sleep(0.3)
        scope.report(0.25)

    future = send(local, work, 0)
    local.watch(future, lambda fraction, words: 1 / 0)
    assert future.result(SECONDS).values == [None]
    assert values(local, tasks.double, 1) == [2]


def test_a_call_that_waits_can_be_cancelled_and_never_runs(local: Any, tmp_path: Path) -> None:
    busy = [send(local, lambda _: time.sleep(0.5), 0) for _ in range(2 * engine.SENT_EACH)]
    until_running(local, *busy[:2])
    waiting = send(local, lambda place: Path(place).touch(), str(tmp_path / "ran"))
    assert waiting.cancel()
    assert not concurrent.futures.wait([waiting], SECONDS).not_done
    assert [one.result(SECONDS).values for one in busy] == [[None]] * len(busy)
    assert values(local, tasks.double, 1, 2) == [2, 4]
    assert not (tmp_path / "ran").exists()


# Kills and deaths


def begin_stuck(one: Any, task: Callable[[str], Any], place: Path) -> Any:
    future = send(one, task, str(place))
    until(lambda: place.exists() and place.read_text())
    until_running(one, future)
    return future


def stuck(place: str) -> None:
    Path(place).write_text(str(os.getpid()))
    time.sleep(600)


def stuck_with_child(place: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(place).write_text(f"{os.getpid()} {child.pid}")
    child.wait()


def stuck_holding_the_gil(place: str) -> None:
    import ctypes

    Path(place).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def until_cancelled(place: str) -> None:
    Path(place).write_text(str(os.getpid()))
    while True:
        scope.check_cancelled()
        time.sleep(0.01)


def assert_given_up(future: Any) -> None:
    error = failure(future)
    assert isinstance(error, ChunkLost)
    assert isinstance(error.error, WorkerDied)
    assert error.certain


@pytest.mark.parametrize("task", [stuck, stuck_with_child, stuck_holding_the_gil])
def test_a_killed_call_dies_with_its_worker_and_costs_no_other(
    local: Any, tmp_path: Path, task: Callable[[str], Any]
) -> None:
    hung = begin_stuck(local, task, tmp_path / "pids")
    neighbour = send(local, lambda _: (time.sleep(1), os.getpid())[1], 0)
    until_running(local, neighbour)
    behind = [send(local, tasks.double, number) for number in range(4)]
    local.kill(hung)
    assert_given_up(hung)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(alive(pid) for pid in pids))
    assert neighbour.result(SECONDS).values[0] not in pids
    assert [one.result(SECONDS).values for one in behind] == [[0], [2], [4], [6]]


def test_a_killed_call_that_ends_by_itself_leaves_its_worker_alive(local: Any, tmp_path: Path) -> None:
    call = begin_stuck(local, until_cancelled, tmp_path / "pid")
    local.kill(call)
    assert_given_up(call)
    pid = int((tmp_path / "pid").read_text())
    busy = [send(local, lambda _: (time.sleep(0.3), os.getpid())[1], 0) for _ in range(2)]
    assert pid in {one.result(SECONDS).values[0] for one in busy}
    assert alive(pid)


def test_a_call_that_is_done_cannot_be_killed(local: Any) -> None:
    future = send(local, tasks.pid, 0)
    [pid] = future.result(SECONDS).values
    local.kill(future)
    assert values(local, tasks.double, 1) == [2]
    assert alive(pid)


def test_unfinished_files_of_a_killed_or_dead_call_are_removed(local: Any, tmp_path: Path) -> None:
    hung = begin_stuck(local, tasks.write_then_hang, tmp_path / "hung")
    local.kill(hung)
    until(lambda: not (tmp_path / "hung").exists())

    def die(place: str) -> None:
        with scope.unfinished(Path(place)):
            Path(place).write_text("half")
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

    failure(send(local, die, str(tmp_path / "dead")))
    until(lambda: not (tmp_path / "dead").exists())


def test_a_worker_that_dies_fails_its_call_alone_and_runs_it_once(local: Any, tmp_path: Path) -> None:
    def die(place: str) -> None:
        Path(place, str(os.getpid())).touch()
        time.sleep(0.1)
        os._exit(7)

    fatal = send(local, die, str(tmp_path))
    until_running(local, fatal)
    others = [send(local, tasks.double, number) for number in range(6)]
    error = failure(fatal)
    assert isinstance(error, ChunkLost)
    assert isinstance(error.error, WorkerDied)
    assert not error.certain
    assert [one.result(SECONDS).values for one in others] == [[2 * number] for number in range(6)]
    assert len(list(tmp_path.iterdir())) == 1


def die_at_once(place: str) -> None:
    Path(place, str(os.getpid())).touch()
    os._exit(0)


@pytest.mark.parametrize("which", ["local", "timed"])
def test_a_worker_that_dies_at_once_fails_its_call_and_runs_it_once(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    one = request.getfixturevalue(which)
    for number in range(5):
        (folder := tmp_path / str(number)).mkdir()
        assert isinstance(failure(one.submit(die_at_once, str(folder))), ChunkLost)
        assert len(list(folder.iterdir())) == 1
    assert values(one, tasks.double, 2) == [4]


def test_a_chunk_whose_result_dies_with_its_worker_is_lost_and_begins_once(
    local: Any, tmp_path: Path
) -> None:
    """The cluster would make it anew of its own accord, and nobody would count that."""

    def leave_when_fetched(name: str) -> None:
        from video.backends import _dask_call

        with (tmp_path / name).open("a") as file:
            file.write("started\n")
        _dask_call.Parcel.__reduce__ = lambda self: os._exit(3)  # type: ignore[method-assign]

    error = failure(send(local, leave_when_fetched, "one", "two"))
    assert isinstance(error, ChunkLost)
    assert not error.certain
    assert [(tmp_path / name).read_text().count("started") for name in ("one", "two")] == [1, 1]
    assert values(local, tasks.double, 2) == [4]


def test_a_worker_killed_from_outside_while_idle_costs_nothing(local: Executor) -> None:
    for pid in {values(local, tasks.pid, 0)[0] for _ in range(4)}:
        os.kill(pid, signal.SIGKILL)
    assert [values(local, tasks.double, number) for number in range(4)] == [[0], [2], [4], [6]]


def test_a_large_call_whose_data_dies_with_another_is_sent_again(local: Any, tmp_path: Path) -> None:
    hung = [begin_stuck(local, stuck, tmp_path / str(number)) for number in range(2)]
    large = [local.submit(len, bytes(3 << 20)) for _ in range(3)]
    time.sleep(0.3)  # until their data is there
    for one in hung:
        local.kill(one)
    assert [one.result(SECONDS) for one in large] == [3 << 20] * 3


# The engine's own cluster


def shared_memory(session: int) -> list[Path]:
    """Files in shared memory that the processes of a session map."""
    lines: list[str] = []
    for pid in living(session):
        with contextlib.suppress(OSError):  # it has ended since
            lines += Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [Path(line.split()[-1]) for line in lines if " /dev/shm/" in line]


def test_a_local_cluster_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environ, threads = dict(os.environ), set(threading.enumerate())
    one = opened()
    session = session_of(one)
    hung = begin_stuck(one, stuck_with_child, tmp_path / "pids")
    failure(one.submit(os._exit, 1))
    shared = shared_memory(session)
    assert list(tmp_path.glob("video-dask-*"))
    one.shutdown(cancel_futures=True)
    assert_given_up(hung)
    until(lambda: not living(session))
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert not list(tmp_path.glob("video-dask-*"))
    assert not [path for path in shared if path.exists()]
    assert set(threading.enumerate()) <= threads
    assert dict(os.environ) == environ
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError, match="closed"):
        send(one, tasks.double, 1)
    one.shutdown()


def test_shutdown_waits_for_calls_unless_told_to_cancel_them() -> None:
    one = opened()
    future = send(one, lambda _: time.sleep(0.3), 0)
    one.shutdown(wait=False)
    one.shutdown()
    assert future.result(0).values == [None]


def test_it_listens_on_loopback_only(local: Executor) -> None:
    session = session_of(local)
    listening = set()
    for pid in living(session):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            sockets = psutil.Process(pid).net_connections("inet")
            listening |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_neither_client_nor_cluster_becomes_the_default(local: Executor) -> None:
    with pytest.raises(ValueError, match=r"[Nn]o client"):
        distributed.default_client()
    with pytest.raises(ValueError, match=r"[Nn]o global client"):
        distributed.get_client()


def test_a_local_cluster_that_dies_fails_its_calls_and_is_replaced_for_the_next(local: Any) -> None:
    with executor() as one:
        [host] = values(one, lambda _: os.getsid(0), 0)
        future = send(one, time.sleep, 600)
        until_running(one, future)
        os.kill(host, signal.SIGKILL)
        assert isinstance(failure(future), BackendUnavailable)
        assert values(one, tasks.double, 2) == [4]
        until(lambda: not living(host))


SCRIPT = """
    import os, time
    from video.backends.base import run_chunk
    from video.backends.dask import DaskBackend
    from video.config import ParallelConfig

    def double(x):  # of __main__, which no worker imports
        return 2 * x

    one = DaskBackend(ParallelConfig()).open(2)
    assert one.submit(run_chunk, double, [1, 2], 1).result(30).values == [2, 4]
"""


def script(body: str, folder: Path) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(SCRIPT) + textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_needs_no_guard_and_its_terminal_stays_clean(tmp_path: Path) -> None:
    program = script(
        """
        hung = [one.submit(run_chunk, time.sleep, [600], 1) for _ in range(2)]
        while not all(one.running(call) for call in hung):
            time.sleep(0.01)
        one.kill(hung[0])
        time.sleep(1.5)
        assert one.submit(os._exit, 1).exception(30)
        one.shutdown(cancel_futures=True)
        """,
        tmp_path,
    )
    assert program.communicate(timeout=SECONDS) == ("", "")
    assert program.returncode == 0


def test_a_script_that_forgets_to_shut_down_leaves_nothing(tmp_path: Path) -> None:
    program = script("print(one.submit(os.getsid, 0).result(30))", tmp_path)
    out, err = program.communicate(timeout=SECONDS)
    assert err == ""
    until(lambda: not living(int(out)))
    until(lambda: not list(tmp_path.glob("video-dask-*")))


def assert_ends_with(program: subprocess.Popen[str], folder: Path) -> None:
    """The cluster, where the program is killed once it has printed a line."""
    assert program.stdout is not None
    program.stdout.readline()
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    session = os.getsid(pids[0])
    program.kill()
    until(lambda: not living(session), 5)
    assert not any(alive(pid) for pid in pids)
    until(lambda: not list(folder.glob("video-dask-*")))
    program.communicate()


def test_when_the_parent_is_killed_its_cluster_ends(tmp_path: Path) -> None:
    program = script(
        f"""
        from tests import test_dask, tasks
        test_dask.begin_stuck(one, test_dask.stuck_with_child, test_dask.Path({str(tmp_path / "pids")!r}))
        test_dask.begin_stuck(one, tasks.write_until_cancelled, test_dask.Path({str(tmp_path / "half")!r}))
        print(flush=True)
        time.sleep(600)
        """,
        tmp_path,
    )
    assert_ends_with(program, tmp_path)
    assert not (tmp_path / "half").exists()


STUCK_LOOP = """
import asyncio, os, time

async def stick(parent):
    while os.getppid() == parent:
        await asyncio.sleep(0.01)
    time.sleep(600)

def dask_setup(scheduler):
    asyncio.get_running_loop().stuck = asyncio.ensure_future(stick(os.getppid()))
"""


def test_when_the_parent_is_killed_a_cluster_that_is_stuck_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stick.py").write_text(STUCK_LOOP)
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", str(tmp_path / "stick.py"))
    program = script(
        f"""
        from tests import test_dask
        test_dask.begin_stuck(one, test_dask.stuck_with_child, test_dask.Path({str(tmp_path / "pids")!r}))
        print(flush=True)
        time.sleep(600)
        """,
        tmp_path,
    )
    assert_ends_with(program, tmp_path)


def test_when_the_parent_is_killed_while_its_cluster_starts_that_ends_too(tmp_path: Path) -> None:
    program = script("", tmp_path)
    until(lambda: list(tmp_path.glob("video-dask-*")))
    until(lambda: psutil.Process(program.pid).children())
    session = psutil.Process(program.pid).children()[0].pid
    program.kill()
    assert living(session)
    until(lambda: not living(session), 5)
    until(lambda: not list(tmp_path.glob("video-dask-*")))
    program.communicate()


# Clusters of others


def test_a_cluster_is_named_by_address_by_file_or_by_the_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = {process.pid for process in cluster.processes}
    for named in (cluster.address, cluster.file, str(cluster.file)):
        with executor(named) as one:
            assert values(one, tasks.double, 1, 2) == [2, 4]
            assert session_of(one) in sessions
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
    with executor() as one:
        assert session_of(one) in sessions


def test_on_a_foreign_cluster_nothing_of_ours_stays(cluster: Cluster) -> None:
    threads = set(threading.enumerate())
    hook = cluster.file.parent / "left"
    one = opened(cluster.address, initializer=tuple, finalizer=lambda: hook.touch())
    assert values(one, tasks.double, 1) == [2]
    one.shutdown()
    assert set(threading.enumerate()) <= threads
    assert hook.exists()

    def remains(dask_scheduler: Any) -> Sequence[Any]:
        return (
            [name for name in dask_scheduler._broker._topics if name.startswith("video-")]
            + [name for name in dask_scheduler.worker_plugins if name.startswith("video-")]
            + list(dask_scheduler.tasks)
        )

    with distributed.Client(cluster.address, set_as_default=False) as client:
        until(lambda: not client.run_on_scheduler(remains))
        assert len(client.nthreads()) == 2


def test_a_users_client_is_used_and_stays_as_it_was(cluster: Cluster) -> None:
    with distributed.Client(cluster.address, set_as_default=False) as client:
        with executor(client) as one:
            assert values(one, tasks.double, 1, 2) == [2, 4]
            with pytest.raises(ValueError, match=r"[Nn]o client"):
                distributed.default_client()
        assert client.status == "running"
        assert not client._event_handlers.keys() & {one._topic}
        assert client.submit(tasks.double, 4).result(SECONDS) == 8


def test_two_engines_share_one_client(cluster: Cluster) -> None:
    with distributed.Client(cluster.address, set_as_default=False) as client, executor(client) as one:
        with executor(client) as other:
            assert values(other, tasks.double, 1) == [2]
        assert values(one, tasks.double, 2) == [4]


def test_a_client_that_its_user_closes_fails_the_calls(cluster: Cluster) -> None:
    client = distributed.Client(cluster.address, set_as_default=False)
    with executor(client) as one:
        future = send(one, time.sleep, 1)
        until_running(one, future)
        client.close()
        assert isinstance(failure(future), BackendUnavailable)
        with pytest.raises(BackendUnavailable):
            send(one, tasks.double, 1).result(SECONDS)


def test_a_client_on_the_callers_own_loop_is_refused(cluster: Cluster) -> None:
    async def use() -> None:
        async with distributed.Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(BackendUnavailable, match="event loop"):
                opened(client)

    asyncio.run(use())


def test_a_killed_call_on_a_foreign_cluster_is_not_run_again(cluster: Cluster, tmp_path: Path) -> None:
    def stay(place: str) -> None:
        Path(place, str(os.getpid())).touch()
        time.sleep(600)

    with executor(cluster.address) as one:
        hung = send(one, stay, str(tmp_path))
        until_running(one, hung)
        others = [send(one, lambda x: (time.sleep(0.2), x)[1], number) for number in range(4)]
        one.kill(hung)
        assert_given_up(hung)
        assert [other.result(SECONDS).values for other in others] == [[0], [1], [2], [3]]
        [started] = tmp_path.iterdir()
        until(lambda: not alive(int(started.name)))
        until(lambda: len(set(values(one, lambda x: (time.sleep(0.2), os.getpid())[1], 0))) == 1)
        assert len(list(tmp_path.iterdir())) == 1


def test_leaving_a_foreign_cluster_stops_what_runs_there(cluster: Cluster, tmp_path: Path) -> None:
    one = opened(cluster.address)
    begin_stuck(one, stuck, tmp_path / "pid")
    one.shutdown(cancel_futures=True)
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize(
    "named",
    [
        "tcp://127.0.0.1:{free}",
        "127.0.0.1:{free}",
        "tcp://127.0.0.1:{deaf}",
        "no address",
        "",
        "{folder}/none.json",
        "{folder}/empty.json",
    ],
)
def test_what_cannot_be_reached_is_unavailable_in_bounded_time(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1.0)
    (tmp_path / "empty.json").touch()
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as deaf, socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
        taken.close()
        place = named.format(free=free, deaf=deaf.getsockname()[1], folder=tmp_path)
        started = time.monotonic()
        with pytest.raises(BackendUnavailable) as caught:
            opened(place)
    assert time.monotonic() - started < SECONDS
    assert caught.value.subject
    assert caught.value.cause
    assert caught.value.cure
    assert set(threading.enumerate()) <= threads
    assert capfd.readouterr() == ("", "")


def test_what_is_no_cluster_at_all_is_an_error_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="address"):
        opened(5)


def test_a_closed_client_is_unavailable(cluster: Cluster) -> None:
    client = distributed.Client(cluster.address, set_as_default=False)
    client.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        opened(client)


@pytest.mark.slow
def test_a_cluster_that_loses_all_workers_fails_its_calls(tmp_path: Path, impatient: None) -> None:
    with running_cluster(tmp_path, nanny=False) as cluster, executor(cluster.address) as one:
        futures = [send(one, time.sleep, 600) for _ in range(2)]
        until(lambda: any(one.running(future) for future in futures))
        cluster.kill(1)
        for future in futures:
            error = failure(future)
            assert isinstance(error, BackendUnavailable)
            assert "no workers" in str(error)


@pytest.mark.slow
def test_a_cluster_that_never_has_workers_fails_its_calls(tmp_path: Path, impatient: None) -> None:
    with running_cluster(tmp_path, workers=0) as cluster, executor(cluster.address) as one:
        assert isinstance(failure(send(one, tasks.double, 1)), BackendUnavailable)
        assert isinstance(failure(one.submit(len, bytes(3 << 20))), BackendUnavailable)


@pytest.mark.slow
@pytest.mark.parametrize("of_user", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_scheduler_fails_calls_and_those_that_follow(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, of_user: bool
) -> None:
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1.0)
    with running_cluster(tmp_path) as cluster, contextlib.ExitStack() as stack:
        named: Any = cluster.address
        if of_user:
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # as this user wants it
            named = distributed.Client(cluster.address, set_as_default=False, timeout=2)
            stack.callback(named.close, timeout=5)
        one = stack.enter_context(executor(named))
        future = send(one, time.sleep, 600)
        until_running(one, future)
        os.kill(cluster.scheduler, how)
        large = one.submit(len, bytes(3 << 20))
        assert isinstance(failure(future), BackendUnavailable)
        assert isinstance(failure(large), BackendUnavailable)
        with pytest.raises(BackendUnavailable):
            send(one, tasks.double, 1).result(SECONDS)
        if how == signal.SIGSTOP:
            os.kill(cluster.scheduler, signal.SIGCONT)
            time.sleep(2.5)  # until it is asked again
            assert values(one, tasks.double, 1) == [2]


@pytest.mark.slow
def test_a_batch_whose_scheduler_is_lost_goes_on_without_the_cluster(tmp_path: Path, impatient: None) -> None:
    """What it had begun may fail; all else runs on processes here."""
    with running_cluster(tmp_path) as cluster:
        config = ParallelConfig(backend="dask", cluster=cluster.address, max_workers=2, chunk_size=1)
        with Runner(config) as runner, runner.stream(doze, range(40)) as stream:
            found = [next(stream)]
            os.kill(cluster.scheduler, signal.SIGKILL)
            with pytest.warns(EngineReplacedWarning, match="dask engine has broken down, process is used"):
                found += stream
    assert [one.index for one in found] == list(range(40))
    failed = [one for one in found if not one.ok]
    assert len(failed) <= 4
    assert all(isinstance(one.error, BackendUnavailable) for one in failed)
    assert all(one.value == one.index for one in found if one.ok)


def doze(number: int) -> int:
    time.sleep(0.05)
    return number


@pytest.mark.slow
def test_a_batch_whose_scheduler_is_lost_ends_in_outcomes(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other engine may go on: one for each item, in bounded time, and what had finished is kept."""
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1.0)
    ended: queue.SimpleQueue[list[Outcome[int]]] = queue.SimpleQueue()

    def work(item: int) -> int:
        if item >= 4:
            (tmp_path / f"began.{item}").touch()
            time.sleep(600)
        return 2 * item

    def batch(address: str) -> None:
        settings = ParallelConfig(backend="dask", cluster=address, max_workers=2, chunk_size=1, strict=True)
        with Runner(settings) as runner:
            ended.put(runner.map(work, range(10)))

    with running_cluster(tmp_path) as cluster:
        threading.Thread(target=batch, args=(cluster.address,), daemon=True).start()
        until(lambda: len(list(tmp_path.glob("began.*"))) == 2)
        os.kill(cluster.scheduler, signal.SIGKILL)
        outcomes = ended.get(timeout=SECONDS)
    assert [one.index for one in outcomes] == list(range(10))
    assert [one.value for one in outcomes[:4]] == [0, 2, 4, 6]
    assert {type(one.error) for one in outcomes[4:]} == {BackendUnavailable}


def test_a_cluster_without_this_package_is_unavailable_and_says_so(tmp_path: Path) -> None:
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys; sys.modules['video'] = None\n")
    with (
        running_cluster(tmp_path, PYTHONPATH=str(tmp_path)) as cluster,
        pytest.raises(BackendUnavailable, match="Install"),
    ):
        opened(cluster.address)


def test_without_distributed_the_engine_cannot_be_imported() -> None:
    """So that the registry names the extra that has it."""
    program = "import sys; sys.modules['distributed'] = None; import video.backends.dask"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'distributed'"


# Initializer and finalizer


def test_hooks_run_once_in_each_worker_before_its_calls_and_when_it_leaves(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def enter() -> None:
        Path(folder, f"in-{os.getpid()}").touch(exist_ok=False)

    def leave() -> None:
        Path(folder, f"out-{os.getpid()}").touch(exist_ok=False)

    gone = tmp_path / "gone"

    def die(_: object) -> None:
        gone.write_text(str(os.getpid()))
        os._exit(0)

    with executor(initializer=enter, finalizer=leave) as one:
        futures = [send(one, lambda _: (time.sleep(0.1), os.getpid())[1], 0) for _ in range(6)]
        pids = {future.result(SECONDS).values[0] for future in futures}
        assert {path.name for path in tmp_path.iterdir()} == {f"in-{pid}" for pid in pids}
        failure(send(one, die, 0))
        pids.discard(int(gone.read_text()))
        futures = [send(one, lambda _: (time.sleep(0.2), os.getpid())[1], 0) for _ in range(6)]
        pids |= {future.result(SECONDS).values[0] for future in futures}
    assert {path.name for path in tmp_path.glob("out-*")} == {f"out-{pid}" for pid in pids}
    assert len(list(tmp_path.glob("in-*"))) == len(pids) + 1


def test_an_initializer_that_fails_makes_the_engine_unavailable() -> None:
    with executor(initializer=lambda: 1 / 0) as one:
        for _ in range(3):
            error = failure(send(one, tasks.double, 1))
            assert isinstance(error, BackendUnavailable)
            assert "ZeroDivisionError" in str(error)
            assert isinstance(error, VideoError)
