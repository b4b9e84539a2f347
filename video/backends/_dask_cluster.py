"""A Dask cluster on this machine, in a process of its own: its logs, its environment and its workers'
start-up touch neither the caller's process nor his `__main__`. `Cluster` starts it, `main` is it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import video.scope as scope
from video.backends._dask_call import GRACE_SECONDS, kill_tree
from video.backends._nursery import worker_environment
from video.errors import BackendUnavailable, described

START_SECONDS = 60.0
"""How long a local cluster may take to start, on a busy machine."""
LEAVE_SECONDS = 5.0
"""How long each step of closing may take before the next is tried all the same."""
ORPHAN_SECONDS = 1.5
"""How long the calls of a killed program may take to end, and to remove their unfinished files; and how long
the cluster then may take to close: nothing is to be left of it 5 s after the kill, on a busy machine too."""
ORPHAN_LOOK_SECONDS = 0.25

PROGRAM = "__import__('sys').path[:] = __import__('json').loads(__import__('sys').argv[1]); "
PROGRAM += "__import__('video.backends._dask_cluster', fromlist=['main']).main()"
"""A `__main__` without a file: the workers have nothing to import again."""
ADDRESS_FILE = "cluster.json"
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}
"""From the first import on: `silence_logs` begins later, and ends before the cluster does."""
FORKSERVER = sys.platform == "linux"
"""A worker then starts in a few hundredths of a second, also after a kill."""


class Cluster:
    """The process that holds a local cluster, seen from ours."""

    def __init__(self, workers: int, threads: int, numba: bool) -> None:
        try:
            self._folder = tempfile.mkdtemp(prefix="video-dask-")
        except OSError as error:
            raise BackendUnavailable(f"the cluster cannot start ({error})", subject="dask") from error
        path = [os.path.abspath(entry) for entry in sys.path]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [
                    sys.executable,
                    "-c",
                    PROGRAM,
                    json.dumps(path),
                    self._folder,
                    str(workers),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                env=os.environ | worker_environment(threads, numba, dict(os.environ)) | QUIET,
                start_new_session=True,  # Ctrl-C is ours to handle; and so the whole can be killed at once
            )
        except OSError as error:
            scope.remove(self._folder)
            raise BackendUnavailable(f"the cluster cannot start ({error})", subject="dask") from error

    async def address(self) -> str:
        """Once all workers are there."""
        place = Path(self._folder, ADDRESS_FILE)
        deadline = time.monotonic() + START_SECONDS
        while not place.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BackendUnavailable(
                    "the local cluster does not start", subject="dask", cure="Use the process engine."
                )
            await asyncio.sleep(0.005)
        told = json.loads(place.read_text("utf-8"))
        if "error" in told:
            raise BackendUnavailable(
                f"the local cluster does not start ({told['error']})",
                subject="dask",
                cure="Use the process engine.",
            )
        return str(told["address"])

    def end(self) -> None:
        """End all its processes, at the latest after a few seconds by force."""
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"q")  # the pipe's end alone would not do: a forked child may hold it open
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(LEAVE_SECONDS + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._kill_rest()
        scope.remove(self._folder)

    def _kill_rest(self) -> None:
        """What is left of its session."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):  # there is no such group any more
                if self._process.returncode != 0:
                    os.killpg(self._process.pid, 0)
                    time.sleep(GRACE_SECONDS)  # Python's resource tracker cleans up after what was killed
                os.killpg(self._process.pid, signal.SIGKILL)


def main() -> None:
    """Of the process that holds a local cluster."""
    folder, workers, parent = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if FORKSERVER:
        # Started first, so that it imports what the workers need while this process does.
        multiprocessing.set_forkserver_preload(
            ["distributed", "distributed.nanny", "video.backends._dask_call"]
        )
        importlib.import_module("multiprocessing.forkserver").ensure_running()
    try:
        asyncio.run(_hold_cluster(folder, workers, parent))
    except Exception as error:  # noqa: BLE001  # the parent says it
        _publish(folder, error=described(error))
    if os.getppid() != parent:
        scope.remove(str(folder))


def _publish(folder: Path, **told: str) -> None:
    draft = folder / "draft.json"
    draft.write_text(json.dumps(told), "utf-8")
    draft.rename(folder / ADDRESS_FILE)  # whole or not at all


async def _hold_cluster(folder: Path, workers: int, parent: int) -> None:
    loop = asyncio.get_running_loop()
    ordered: asyncio.Future[bool] = loop.create_future()

    def leave(by_order: bool) -> None:
        if not ordered.done():
            ordered.set_result(by_order)

    def then(wait: Callable[[], bool]) -> None:
        by_order = wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(leave, by_order)
        if not by_order:  # whatever the loop is at, which may have to start first, or may be stuck
            time.sleep(2 * ORPHAN_SECONDS)
            _leave_at_once(folder)

    for wait in (_read_order, functools.partial(_await_orphanhood, parent)):
        threading.Thread(target=then, args=(wait,), daemon=True).start()
    importlib.import_module("dask").config.set(
        {
            "temporary-directory": str(folder),  # the scheduler's too, which leaves a folder of locks behind
            "distributed.comm.timeouts.connect": "5s",  # a worker that has just died is tried for as long
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.scheduler.http.routes": [],
            "distributed.worker.http.routes": [],
            "distributed.worker.daemon": False,  # items may use multiprocessing
            "distributed.worker.profile.enabled": False,
            "distributed.worker.multiprocessing-method": "forkserver" if FORKSERVER else "spawn",
        }
    )
    distributed = importlib.import_module("distributed")
    local = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    worker = local | {
        "nthreads": 1,
        "memory_limit": 0,  # what the items hold is not Dask's to judge
        "local_directory": str(folder),
        "silence_logs": logging.CRITICAL,
    }
    cluster = await distributed.SpecCluster(
        scheduler={"cls": distributed.Scheduler, "options": local | {"port": 0}},
        workers={number: {"cls": distributed.Nanny, "options": worker} for number in range(workers)},
        asynchronous=True,
        silence_logs=logging.CRITICAL,
    )
    try:
        _publish(folder, address=cluster.scheduler_address)
        if not await ordered:
            # The scheduler has seen its client go, and withdrawn the calls.
            await asyncio.sleep(ORPHAN_SECONDS)
    finally:
        for nanny in cluster.workers.values():
            nanny.close_gracefully()  # it shall not start another
            if nanny.pid:
                kill_tree(nanny.pid)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(cluster.close(), LEAVE_SECONDS)


def _leave_at_once(folder: Path) -> None:
    """With all processes but the resource tracker, which ends with this one, once it has cleaned up."""
    psutil = importlib.import_module("psutil")
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                kill_tree(child.pid)
    scope.remove(str(folder))
    os._exit(1)


def _read_order() -> bool:
    """Whether we are ordered to leave: any byte is that order. The pipe's end comes when the program has
    ended; for a moment it is our parent even so."""
    return bool(sys.stdin.buffer.read(1))


def _await_orphanhood(parent: int) -> bool:
    """Where a process that the program forked holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_LOOK_SECONDS)
    return False
