"""The fork server of one process executor: a small process without threads that forks its workers.

Why not `multiprocessing`'s: that one is shared by the whole program, imports the user's `__main__` again
in every worker, and leaves a killed worker's own children alive. Here

- a worker is the leader of a session of its own, and when it ends, however it ends, what is left of its
  process group is killed before it is reaped;
- when the parent goes away, even by SIGKILL, every worker is told to end, and a second later its group is
  killed, whether it holds the GIL or not;
- only this process signals workers, and it knows which are not reaped yet, so that a kill can never hit
  a process that has got the same number since.

Records, both ways, are `RECORD`: a letter, a process id, a wait status.

    parent -> nursery   FORK (with the worker's end of a socket pair, and its board) | KILL pid
    nursery -> parent   BORN pid | UNBORN: there was no memory or process to be had | DEAD pid status
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # it starts faster without
    from typing import NoReturn

GRACE_SECONDS = 1.0
"""How long workers may take to remove their unfinished files once their parent is gone."""
RECORD = struct.Struct("<cqi")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Read by native libraries when they are loaded; the same list as joblib's, so that users can compare."""
FORK, KILL, BORN, UNBORN, DEAD = b"F", b"K", b"B", b"U", b"D"


def worker_environment(threads: int, numba: bool, environ: dict[str, str]) -> dict[str, str]:
    """Variables that hold native libraries to `threads`, where the user set none himself, and that keep numba
    from compiling where it is not to."""
    variables = {name: str(threads) for name in THREAD_VARIABLES if name not in environ}
    return variables if numba else variables | {"NUMBA_DISABLE_JIT": "1"}


def import_path() -> list[str]:
    """`sys.path` for a process that starts elsewhere; "" means the current folder."""
    return [entry or os.getcwd() for entry in sys.path]


class Launched:
    """A fork server that is starting, and our end of its control socket. It takes orders at once, and
    carries them out when it is ready.

    :param preload: modules that it imports for all workers.
    :param threads: native threads of each worker.
    :param numba: whether it may compile there.
    :raises OSError: if there is no process to be had.
    """

    def __init__(self, preload: tuple[str, ...], threads: int, numba: bool = True) -> None:
        import subprocess  # not in the fork server itself

        self.control, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                    command(import_path(), ("video.backends._worker", *preload), theirs.fileno()),
                    env=dict(os.environ) | worker_environment(threads, numba, dict(os.environ)),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                self.control.close()
                raise

    def end(self) -> None:
        """It is not wanted after all."""
        self.control.close()
        self.process.wait()


PROGRAM = "__import__('sys').path[:] = __import__('sys').argv[3 + int(__import__('sys').argv[2]):]; "
PROGRAM += "__import__('video.backends._nursery', fromlist=['main']).main()"
"""Run by `python -c`, so that the parent's import path is in place before this package is looked for. It
binds no names: workers inherit this `__main__`, and a name of the user's script must not be found in it."""


def command(path: list[str], preload: tuple[str, ...], control_fd: int) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(control_fd), str(len(preload)), *preload, *path]


def main() -> None:
    control_fd, count = int(sys.argv[1]), int(sys.argv[2])
    preload, path = sys.argv[3 : 3 + count], sys.argv[3 + count :]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for name in preload:
        with contextlib.suppress(Exception):  # it will say so in the task that needs it
            __import__(name)
    if preload and len(os.listdir("/proc/self/task")) > 1:
        # A preloaded module has started threads, and a process with threads must not fork: do without.
        os.set_inheritable(control_fd, True)
        os.execv(sys.executable, command(path, (), control_fd))  # noqa: S606  # ourselves again
    _serve(socket.socket(fileno=control_fd))


def _serve(control: socket.socket) -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watched = [control.fileno(), woken]
    parent = -1
    # The control socket alone would do, but a process that the user forks may hold its other end open.
    with contextlib.suppress(OSError, AttributeError):  # Linux before 5.3 has no such thing
        parent = os.pidfd_open(os.getppid())
        watched.append(parent)
    alive: set[int] = set()
    try:
        while True:
            ready, _, _ = select.select(watched, [], [])
            if parent in ready:
                return
            if woken in ready:
                os.read(woken, 4096)
                _reap(control, alive)
            if control.fileno() in ready:
                record, fds, _, _ = socket.recv_fds(control, RECORD.size, 2)
                if len(record) < RECORD.size:
                    return
                letter, pid, _ = RECORD.unpack(record)
                if letter == FORK:
                    _fork(control, fds, alive)
                elif pid in alive:
                    kill_tree(pid)
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    finally:
        _end(alive)


def _end(alive: set[int]) -> None:
    """End all workers; they get a moment to remove their unfinished files."""
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and not all(_has_ended(pid) for pid in alive):
        time.sleep(0.02)
    for pid in alive:
        _kill_group(pid)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(control: socket.socket, fds: list[int], alive: set[int]) -> None:
    try:
        pid = os.fork()
    except OSError:
        _close(fds)
        control.sendall(RECORD.pack(UNBORN, 0, 0))
        return
    if pid == 0:
        _become_worker(control, fds)
    _close(fds)
    alive.add(pid)
    control.sendall(RECORD.pack(BORN, pid, 0))


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _become_worker(control: socket.socket, fds: list[int]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        if "numpy.random" in sys.modules:  # `random` reseeds itself after a fork, numpy does not
            sys.modules["numpy.random"].seed()
        from video.backends._worker import serve

        serve(socket.socket(fileno=fds[0]), fds[1])
        status = 0
    except BaseException:  # noqa: BLE001  # nothing may get past the fork
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _reap(control: socket.socket, alive: set[int]) -> None:
    for pid in list(alive):
        if not _has_ended(pid):
            continue
        _kill_group(pid)  # while it is not reaped, its number is not given to another
        _, status = os.waitpid(pid, 0)
        alive.discard(pid)
        control.sendall(RECORD.pack(DEAD, pid, status))


def kill_tree(pid: int) -> None:
    """Kill a worker, its group, and those of its descendants that have left the group."""
    family = _descendants(pid)
    _kill_group(pid)
    for one in family:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Processes below `pid`, by what /proc says of each one's parent; empty where it does not say."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                parents.setdefault(parent, []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its session yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    except PermissionError:  # it has become another user
        pass
