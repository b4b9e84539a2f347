"""Worker processes, one pipe and one parent thread each.

    submit -> [queue] -> seat's thread --pipe--> its child
                                       <-------- result, or the end of the pipe: the child is dead
                         its board     <-------- (shared memory) which item it is on, what has finished

A pipe of its own for each child means that a kill can corrupt nothing that others use. A child that dies
fails the call that it was on, which says the item that it ran and keeps what its chunk had finished; the
seat starts another child for the next. On Linux the children are forked by a small server (`_nursery`);
elsewhere, or on request, each is a new interpreter. Neither imports the user's `__main__` again, so a
script needs no `if __name__ == "__main__"`. What a seat's thread does is in `_processes`, starting and
killing in `_children`, the child's own half in `_worker`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar

from video import resources
from video.backends import _nursery
from video.backends.base import Traits
from video.config import ParallelConfig
from video.errors import BackendUnavailable

if TYPE_CHECKING:
    from video.backends._processes import ProcessExecutor


class ProcessBackend:
    traits: ClassVar[Traits] = Traits(
        start=0.075,
        call=5.5e-5,
        own_gil=True,
        pickles=True,
        coroutines=False,
        kills=True,
        remote=False,
        exact=True,
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> ProcessExecutor:
        if sys.platform == "win32":
            raise BackendUnavailable("needs Linux or macOS", subject="process", cure="Use the thread engine.")
        config = self._config
        threads = config.threads_per_worker or max(1, resources.usable_cpus() // workers)
        method = config.start_method or ("forkserver" if sys.platform == "linux" else "spawn")
        launched = None
        try:
            if method == "forkserver":
                launched = _nursery.Launched(config.preload, threads, config.use_numba)
            # Imported here, while the fork server starts.
            from video.backends import _board
            from video.backends._processes import ProcessExecutor

            _board.check()
            return ProcessExecutor(workers, threads, config, launched)
        except BaseException as error:
            if launched is not None:
                launched.end()
            if isinstance(error, OSError):
                raise BackendUnavailable(f"it cannot start here ({error})", subject="process") from error
            raise
