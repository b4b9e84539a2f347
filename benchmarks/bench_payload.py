"""What large items cost: 8 MB arrays there and back, against peers; by size, what shared memory is worth.

A segment of shared memory against the socket is compared twice: on the engine, where two workers and their
parent copy at the same time, and on one wire alone, where this process sends, another reads all of it and
answers with a word. The wire also says what a segment gains by being used again. `SEGMENT_BYTES` and
`MOST_LENT` of `video.backends._wire` are to be judged by these.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from _peers import Arrays, consume, mpire, standard_pool
from _tasks import nothing
from conftest import Side, Table, Versus, reported, timed

from video import ParallelConfig, Runner
from video.backends import _wire

WORKERS = 2
ARRAYS = 100
ARRAY_BYTES = 8 << 20
ARRAY_ROUNDS = 5

SIZES = [size << 10 for size in (16, 64, 256, 1024, 4096, 16384)]
MESSAGE_ROUNDS = 9
ROUND_BYTES = 32 << 20
"""Of the messages of one round together, within `FEWEST_MESSAGES` and `MOST_MESSAGES`."""
FEWEST_MESSAGES, MOST_MESSAGES = 8, 300
ANY_SIZE, NO_SIZE = 1, 1 << 62
"""For `SEGMENT_BYTES`: everything goes through a segment, or nothing does."""

READER = """
import socket, sys
import numpy as np
from video.backends._wire import Wire

wire = Wire(socket.socket(fileno=int(sys.argv[1])))
while True:
    try:
        _, _, buffers = wire.receive()
    except EOFError:
        break
    total = sum(int(np.frombuffer(buffer, np.uint64).sum()) for buffer in buffers)
    del buffers
    wire.send(b"a", total.to_bytes(16, "little"))
"""


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table("Payloads, warm: us for an array or a message", "us")


@pytest.mark.timeout(300)
def test_arrays(versus: Versus) -> None:
    """The task returns its array. Every side takes the results as they come, and lets them go."""
    import joblib

    arrays = Arrays(ARRAYS, ARRAY_BYTES)
    parallel = joblib.Parallel(WORKERS, return_as="generator")

    def on_joblib() -> None:
        consume(parallel(joblib.delayed(nothing)(array) for array in arrays))

    config = ParallelConfig(backend="process", max_workers=WORKERS)
    with (
        Runner(config) as runner,
        standard_pool(WORKERS) as pool,
        mpire(WORKERS, "echo", ARRAYS, ARRAY_BYTES) as run_mpire,
    ):

        def ours() -> None:
            consume(outcome.unwrap() for outcome in runner.stream(nothing, arrays))

        ours()
        on_joblib()
        versus(
            (f"{ARRAYS} arrays of 8 MB, there and back", timed(ours)),
            {
                "joblib, loky": timed(on_joblib),
                "mpire.imap": run_mpire,
                "ProcessPoolExecutor.map": timed(lambda: consume(pool.map(nothing, arrays))),
            },
            rounds=ARRAY_ROUNDS,
            items=ARRAYS,
            meter=reported,
            target=1.0,
        )


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Side]]:
    """Makes a side that sends arrays to our workers and back, with `SEGMENT_BYTES` as given."""
    runners: list[Runner] = []

    def make(size: int, segment_bytes: int) -> Side:
        arrays = Arrays(messages(size), size)
        runner = Runner(
            ParallelConfig(
                backend="process", max_workers=WORKERS, initializer=partial(set_segment_bytes, segment_bytes)
            )
        )
        runners.append(runner)

        def echo() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(_wire, "SEGMENT_BYTES", segment_bytes)
                consume(outcome.unwrap() for outcome in runner.stream(nothing, arrays))

        echo()
        return echo

    yield make
    for runner in runners:
        runner.close()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size >> 10} KB")
def test_segments_on_the_engine(versus: Versus, echoing: Callable[..., Side], size: int) -> None:
    versus(
        (f"{size >> 10} KB array there and back by segments", echoing(size, ANY_SIZE)),
        {"through the socket": echoing(size, NO_SIZE)},
        rounds=MESSAGE_ROUNDS,
        items=messages(size),
    )


def set_segment_bytes(count: int) -> None:
    """Of the process that calls it."""
    _wire.SEGMENT_BYTES = count


def messages(size: int) -> int:
    """So many in one round."""
    return max(FEWEST_MESSAGES, min(MOST_MESSAGES, ROUND_BYTES // size))


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Side]]:
    """Makes a side that sends messages of `size` bytes over a wire of its own, each answered, with the wire's
    constants as given."""
    with contextlib.ExitStack() as stack:

        def make(size: int, **constants: int) -> Side:
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-c", READER, str(theirs.fileno())]
            stack.enter_context(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
            theirs.close()
            wire = stack.enter_context(contextlib.closing(_wire.Wire(ours)))  # its end is the reader's, too
            payload = memoryview(np.ones(size // 8, np.uint64)).cast("B")
            answer = (size // 8).to_bytes(16, "little")

            def send() -> None:
                with monkeypatch.context() as patch:
                    for name, value in constants.items():
                        patch.setattr(_wire, name, value)
                    for _ in range(messages(size)):
                        wire.send(b"m", b"", [payload])
                        assert wire.receive()[1] == answer

            send()
            return send

        yield make


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size >> 10} KB")
def test_segments(versus: Versus, sending: Callable[..., Side], size: int) -> None:
    """A new segment is one for a single use, as all are while the receiver keeps `MOST_LENT` of them."""
    versus(
        (f"{size >> 10} KB in a segment used again", sending(size, SEGMENT_BYTES=ANY_SIZE)),
        {
            "through the socket": sending(size, SEGMENT_BYTES=NO_SIZE),
            "in a new segment": sending(size, SEGMENT_BYTES=ANY_SIZE, MOST_LENT=0),
        },
        rounds=MESSAGE_ROUNDS,
        items=messages(size),
    )
