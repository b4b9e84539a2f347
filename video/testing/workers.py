"""What a worker is: its share of the machine, how it starts, and what crosses to it."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from typing import Any

from video import resources
from video.testing import tasks
from video.testing.base import Bench, expect, folder, heard, holds, promise


@promise(8)
def workers_share_the_cpus(bench: Bench) -> None:
    """Workers times their native threads are no more than the usable CPUs, or than one each."""
    most = max(1, resources.usable_cpus() // 2)
    with bench.runner(threads_per_worker=None) as runner:
        shares = {one.unwrap() for one in runner.map(tasks.threads, range(8))}
    inline = runner.choose(tasks.threads, total=8).workers == 1  # it has all CPUs to itself
    for threads, variable in shares:
        holds(inline or threads <= most, f"each of 2 workers may use {threads} native threads, not {most}")
        if bench.traits.pickles and "OMP_NUM_THREADS" not in os.environ:
            holds(
                variable is not None and int(variable) <= most,
                f"OMP_NUM_THREADS is {variable} in a worker, which may use {most} native threads",
            )


@promise(8)
def a_runner_inside_a_worker_runs_inline(bench: Bench) -> None:
    """Our own runner inside a worker runs inline, so that workers do not multiply."""
    with bench.runner() as runner:
        expect(
            runner.map(tasks.nested, range(3)),
            [("serial", [0, 2]), ("serial", [2, 4]), ("serial", [4, 6])],
        )


@promise(9, "pickles")
def workers_are_no_copies_of_the_program(bench: Bench) -> None:
    """A worker is no bare fork: it holds nothing of its parent's memory, with the locks of other threads."""
    tasks.parent_was_here = True
    try:
        with bench.runner() as runner:
            found = [one.unwrap() for one in runner.map(tasks.saw_parent, range(8))]
    finally:
        tasks.parent_was_here = False
    holds(tasks.being() not in [worker for worker, _ in found], "items run in the caller's own process")
    holds(not any(saw for _, saw in found), "a worker was forked from the program itself")


@promise(9)
def each_worker_is_initialized_once(bench: Bench) -> None:
    """The initializer is called once in each worker, before its first item."""
    with bench.runner(initializer=tasks.initialize) as runner:
        found = [one.unwrap() for one in runner.map(tasks.how_often_initialized, range(20))]
    counts = {process if bench.traits.pickles else thread for process, thread in found}
    holds(counts == {1}, f"items found their worker initialized {sorted(counts)} times")


@promise(9)
def no_item_runs_where_the_initializer_failed(bench: Bench) -> None:
    """An initializer that raises fails the batch; no item runs in a worker that is not set up."""
    with (
        heard("concurrent.futures"),  # which logs it, too
        folder() as place,
        bench.runner(initializer=tasks.fail_to_initialize) as runner,
    ):
        found: list[Any] | None = None
        with contextlib.suppress(Exception):  # as well, if it is said before anything runs
            found = runner.map(functools.partial(tasks.note, str(place)), range(4))
        ran = sorted(tasks.marks(place))
    holds(not ran, f"items {ran} ran in a worker that is not set up")
    if found is not None:
        expect(found, range(4), dict.fromkeys(range(4), Exception))


@promise(10)
def large_buffers_cross_whole(bench: Bench) -> None:
    """Large bytes and arrays arrive whole, alone and in lists, in both directions."""
    blob = random.Random(7).randbytes(5_000_000)  # noqa: S311  # no secret
    with bench.runner() as runner:
        values = [one.unwrap() for one in runner.map(tasks.reverse, [blob, blob[:70_000], b""])]
        holds(values == [blob[::-1], blob[69_999::-1], b""], "large bytes do not arrive as they were")
        try:
            import numpy as np
        except ImportError:
            return
        frame = np.arange(720 * 1280 * 3, dtype="f4").reshape(720, 1280, 3)
        items: list[Any] = [frame, frame[::2, ::-1], [frame[0], frame[1]], np.zeros((0, 3))]
        for one, item in zip(runner.map(tasks.halve, items), items, strict=True):
            value = one.unwrap()
            parts = zip(value, item, strict=True) if isinstance(item, list) else [(value, item)]
            for got, sent in parts:
                same = got.dtype == sent.dtype and np.array_equal(got, sent / 2)
                holds(same, f"an array of shape {sent.shape} does not arrive as it was")
