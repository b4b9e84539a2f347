"""Worker processes seen from their parent: started, heard of, killed; what they run is not known here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from typing import Protocol

from video.backends import _nursery, _worker
from video.backends._guard import Guard
from video.backends._wire import Wire

LEAVE_SECONDS = 2.0
"""How long an idle child, or the fork server, may take to leave before it is killed."""
BIRTH_SECONDS = 1.0
"""How long a fork may take before the fork server itself is ended: a preloaded module may never return."""


class Child(Protocol):
    """One worker process, seen from its parent."""

    wire: Wire

    @property
    def pid(self) -> int:
        """0: it is not born yet."""

    def dismiss(self) -> None:
        """Close the pipe, which tells it to leave."""

    def kill(self) -> None:
        """SIGKILL it and all its children."""

    def exit_code(self, timeout: float) -> int | None:
        """Wait for its end; negative: the signal that ended it; None: it still runs, or nobody knows."""


class Nursery:
    """The parent's side of a fork server."""

    def __init__(self, launched: _nursery.Launched) -> None:
        self._process = launched.process
        self._control = launched.control
        self._asking = threading.Lock()
        self._born: list[NurseryChild] = []
        self._children: dict[int, NurseryChild] = {}
        self.lost = False
        """It has ended, because of `close` or by itself."""
        self._listener = threading.Thread(target=self._listen, name="video-nursery", daemon=True)
        self._listener.start()

    def fork(self, board_fd: int) -> NurseryChild:
        ours, theirs = socket.socketpair()
        child = NurseryChild(self, ours)
        with self._asking, theirs:
            if self.lost:
                child.ended(None)
            else:
                self._born.append(child)
                with contextlib.suppress(OSError):  # the listener sees its end and tells every child
                    record = _nursery.RECORD.pack(_nursery.FORK, 0, 0)
                    socket.send_fds(self._control, [record], [theirs.fileno(), board_fd])
        return child

    def kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # gone, and its children with it
            self._control.sendall(_nursery.RECORD.pack(_nursery.KILL, pid, 0))

    def abort(self) -> None:
        """End the server and its children at once."""
        self._process.kill()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:  # still busy with a preloaded module
            self.abort()
            self._process.wait()
        self._listener.join()
        self._control.close()

    def _listen(self) -> None:
        while True:
            try:
                record = self._control.recv(_nursery.RECORD.size, socket.MSG_WAITALL)
            except OSError:
                record = b""
            if len(record) < _nursery.RECORD.size:
                break
            letter, pid, status = _nursery.RECORD.unpack(record)
            if letter == _nursery.BORN:
                child = self._children[pid] = self._born.pop(0)
                child.born(pid)
            elif letter == _nursery.UNBORN:
                self._born.pop(0).ended(None)
            else:
                self._children.pop(pid).ended(os.waitstatus_to_exitcode(status))
        with self._asking:
            self.lost = True
        for pid, child in self._children.items():
            # Normally they are dead; but where the server itself was killed, they have nobody else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            child.ended(None)
        for child in self._born:
            child.ended(None)


class NurseryChild:
    def __init__(self, nursery: Nursery, end: socket.socket) -> None:
        self._nursery = nursery
        self._socket = end
        self.wire = Wire(end.dup())
        self._born = threading.Event()
        self._ended = threading.Event()
        self._pid = 0
        self._exit_code: int | None = None

    @property
    def pid(self) -> int:
        return self._pid

    def born(self, pid: int) -> None:
        self._pid = pid
        self._born.set()

    def ended(self, exit_code: int | None) -> None:
        self._exit_code = exit_code
        self._born.set()
        self._ended.set()
        # Even if a grandchild holds the other end: whoever reads our end sees what was sent, then the end.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.wire.close()

    def kill(self) -> None:
        if not self._born.wait(BIRTH_SECONDS):
            self._nursery.abort()
        elif not self._ended.is_set():
            self._nursery.kill(self._pid)

    def exit_code(self, timeout: float) -> int | None:
        self._ended.wait(timeout)
        return self._exit_code


class SpawnedChild:
    """A worker with an interpreter of its own, a thread that waits for its end, and a guard for the case that
    this process is killed."""

    def __init__(self, threads: int, numba: bool, board_fd: int) -> None:
        self._socket, theirs = socket.socketpair()
        self.wire = Wire(self._socket.dup())
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                _worker.command(_nursery.import_path(), theirs.fileno(), board_fd),
                env=dict(os.environ) | _nursery.worker_environment(threads, numba, dict(os.environ)),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), board_fd],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._reaping = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="video-child-watch", daemon=True)
        self._watcher.start()

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.wire.close()

    def kill(self) -> None:
        with self._reaping:  # while it is not reaped, its number is not given to another
            if self._process.returncode is None:
                _nursery.kill_tree(self._process.pid)

    def exit_code(self, timeout: float) -> int | None:
        self._watcher.join(timeout)
        return self._process.returncode

    def _watch(self) -> None:
        guard = Guard([self._process.pid], _worker.__name__)
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:  # macOS before Python 3.13: reaped first, so what the worker left may have to be left
            self._process.wait()
        with self._reaping:
            self._kill_group()  # what the worker left behind
            self._process.wait()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        guard.dismiss()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
