"""Leaving, in whatever way, leaves nothing behind."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from video.backends import _pickling
from video.errors import ItemCancelled, ItemTimeout
from video.testing import tasks
from video.testing.base import Belongings, Bench, alive, aside, ended, folder, holds, promise, until


@promise(6)
def leaving_leaves_nothing(bench: Bench) -> None:
    """Leaving by the end of the block, early or by an error ends all workers, and leaves no process, thread,
    descriptor or shared memory."""
    workers: set[tuple[str, int]] = set()

    def use() -> None:
        with contextlib.suppress(KeyError), bench.runner() as runner:
            workers.update(one.unwrap() for one in runner.map(tasks.who, range(20)))
            with runner.stream(tasks.who, itertools.count()) as stream:
                workers.update(one.unwrap() for one in itertools.islice(stream, 20))
            for one in runner.stream(tasks.who, itertools.count()):
                raise KeyError(one.index)

    use()  # what a library makes once for the whole program stays, and is no leak
    before = Belongings.now()
    use()
    use()
    workers.discard(tasks.being())
    until(lambda: not any(map(alive, workers)), lambda: f"workers run on: {[*filter(alive, workers)]}")
    until(
        lambda: not Belongings.now().beyond(before),
        lambda: f"still there: {Belongings.now().beyond(before)}",
    )


@promise(6)
def closing_ends_a_batch_that_runs(bench: Bench) -> None:
    """Closing a runner ends a batch that runs in another thread: it raises, rather than to give less."""
    with folder() as place:
        runner = bench.runner()
        task = functools.partial(tasks.wait_at, 0, str(place), bench.stuck_seconds)
        with aside(lambda: runner.map(task, range(4))) as raised:
            until(lambda: tasks.signed(place, "worker"), "the first item does not begin")
            runner.close()
    holds([type(error) for error in raised] == [ItemCancelled], f"the batch ended with {raised or 'a list'}")


@promise(6, "kills")
def closing_kills_what_runs(bench: Bench) -> None:
    """Closing ends items that are stuck, and the child processes that they wait for."""
    with folder() as place:
        runner = bench.runner()
        task = functools.partial(tasks.hang_at, 0, str(place), bench.stuck_seconds)
        with aside(lambda: runner.map(task, range(4))):
            until(lambda: tasks.signed(place, "worker"), "the first item does not begin")
            runner.close()
        ended(place, "an item that ran")


@promise(6, "kills")
def a_killed_worker_leaves_no_unfinished_file(bench: Bench) -> None:
    """A file that an item declared unfinished goes, if the item's worker is killed."""
    with folder() as place, bench.runner(timeout=1.0) as runner:
        task = functools.partial(tasks.write_and_hang, str(place), bench.stuck_seconds)
        found = runner.map(task, [0])
        holds(isinstance(found[0].error, ItemTimeout), f"the item ended otherwise: {found[0]}")
        holds(tasks.signed(place, "worker"), "the item timed out before it had begun")
        until(lambda: not (place / "clip.part").exists(), "its unfinished file is still there")
        holds(not (place / "ended").exists(), "its worker was not killed; the item came to its end")


@contextlib.contextmanager
def _program(bench: Bench) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], list[tuple[str, int]]]]]:
    """A program with two items that hang, once they have begun, and who runs them."""
    with folder() as place:
        plan = {
            "backend": bench.backend,
            "target": bench.target,
            "settings": {"max_workers": 2, **bench.settings},
            "folder": str(place),
            "seconds": bench.stuck_seconds,
        }
        code = (
            # Ctrl-C, which a shell without job control has what it starts in the background ignore.
            "import json, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "sys.path[:] = json.loads(sys.argv[1]);"
            "import video.testing.tasks as tasks; tasks.start_program(bytes.fromhex(sys.argv[2]))"
        )
        words = [json.dumps(sys.path), _pickling.dumps_by_value(plan).hex()]
        log = Path(place, "log")
        with log.open("wb") as out:
            started = subprocess.Popen(  # noqa: S603  # our own interpreter
                [sys.executable, "-c", code, *words], stdout=out, stderr=out, start_new_session=True
            )
        try:
            until(
                lambda: tasks.signed(place, "worker") or started.poll() is not None,
                "the program does not get as far as its first item",
            )
            worker = tasks.signed(place, "worker")
            holds(worker is not None, f"the program failed:\n{log.read_text(errors='replace')[-2000:]}")
            yield started, lambda: [worker] if worker is not None else []
        finally:
            with contextlib.suppress(OSError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@promise(6, "pickles", "posix", "another program")
def workers_end_with_their_program(bench: Bench) -> None:
    """If the program is killed by SIGKILL, its workers end within seconds."""
    with _program(bench) as (program, workers):
        program.kill()
        program.wait()
        until(lambda: not any(map(alive, workers())), f"workers run on: {workers()}")


@promise(6, "posix", "another program")
def ctrl_c_ends_the_program_and_its_workers(bench: Bench) -> None:
    """One Ctrl-C ends the batch, its workers and the program."""
    with _program(bench) as (program, workers):
        program.send_signal(signal.SIGINT)
        until(lambda: program.poll() is not None, "the program runs on")
        until(lambda: not any(map(alive, workers())), f"workers run on: {workers()}")
