"""What is large crosses to worker processes and back whole, through shared memory or without it."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.waiting import until
from video import ParallelConfig, Runner
from video.backends import _pickling
from video.backends._wire import MOST_LENT, MOST_MAPPED, SEGMENT_BYTES, Wire

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the process engine needs POSIX")

SIZES = [0, 1, 100, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 1_000_000]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(ParallelConfig(backend="process", max_workers=2)) as runner:
        yield runner


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    one, other = map(Wire, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def cross(one: Wire, other: Wire, value: Any) -> Any:
    packed = _pickling.pack(value)
    one.send(b"x", packed.body, packed.buffers)
    tag, body, buffers = other.receive()
    assert tag == b"x"
    return _pickling.loads(body, buffers=buffers)


@pytest.mark.parametrize("size", SIZES)
def test_arrays_and_bytes_of_any_size_cross(runner: Runner, size: int) -> None:
    items = [np.arange(size, dtype=np.uint8), os.urandom(size), bytearray(os.urandom(size)), "x" * size]
    outcomes = runner.map(lambda x: x, items)
    assert [type(one.value) for one in outcomes] == [type(item) for item in items]
    assert all(np.array_equal(one.value, item) for one, item in zip(outcomes, items, strict=True))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_an_array_can_be_written_to_on_either_side(runner: Runner, size: int) -> None:
    def negate(array: Any) -> Any:
        array *= -1
        return array

    value = runner.map(negate, [np.ones(size)])[0].unwrap()
    value += 3
    assert value.sum() == 2 * size


def test_a_read_only_array_stays_so(runner: Runner) -> None:
    array = np.ones(100_000)
    array.flags.writeable = False
    assert not runner.map(lambda x: x, [array])[0].unwrap().flags.writeable


def test_results_that_are_kept_are_never_overwritten(runner: Runner) -> None:
    """More of them than the worker may have lent out at a time."""
    outcomes = runner.map(lambda n: np.full(50_000, n), range(2 * MOST_MAPPED))
    assert [int(one.unwrap().min()) for one in outcomes] == list(range(2 * MOST_MAPPED))
    assert [int(one.unwrap().max()) for one in outcomes] == list(range(2 * MOST_MAPPED))


def test_many_frames_of_mixed_sizes_keep_their_order(ends: tuple[Wire, Wire]) -> None:
    arrays = [np.full(size, number) for number, size in enumerate([1, 80_000, 0, 9, 200_000, 30])]
    got = cross(*ends, (arrays, "end"))
    assert got[1] == "end"
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(arrays, got[0], strict=True))


def test_messages_that_arrive_together_are_told_apart(ends: tuple[Wire, Wire]) -> None:
    one, other = ends
    for number in range(5):
        packed = _pickling.pack(np.full(50_000, number))
        one.send(b"a", packed.body, packed.buffers)
        one.send(b"b", bytes([number]))
    for number in range(5):
        _, body, buffers = other.receive()
        assert _pickling.loads(body, buffers=buffers).max() == number
        assert other.receive()[1] == bytes([number])


def test_a_segment_is_used_again_when_nothing_refers_to_it(ends: tuple[Wire, Wire]) -> None:
    one, other = ends
    cross(one, other, np.zeros(100_000))
    gc.collect()
    other.send(b"y", b"")  # carries the token back
    one.receive()
    before = open_files()
    for _ in range(10):
        assert cross(one, other, np.ones(100_000)).sum() == 100_000
        gc.collect()
        other.send(b"y", b"")
        one.receive()
    assert open_files() == before


def test_segments_cost_a_bounded_number_of_descriptors(ends: tuple[Wire, Wire]) -> None:
    one, other = ends
    before = open_files()
    kept = [cross(one, other, np.full(50_000, number)) for number in range(2 * MOST_MAPPED)]
    assert open_files() <= before + MOST_LENT + MOST_MAPPED
    assert [int(array[0]) for array in kept] == list(range(2 * MOST_MAPPED))


@pytest.mark.parametrize("call", ["memfd_create", "pwrite", "ftruncate"])
def test_without_memory_for_a_segment_the_socket_takes_it(
    ends: tuple[Wire, Wire], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    one, other = ends
    before = open_files()
    array = np.random.default_rng(1).random(500_000)
    packed = _pickling.pack(array)
    sender = threading.Thread(target=one.send, args=(b"x", packed.body, packed.buffers))
    sender.start()
    _, body, buffers = other.receive()
    sender.join(20)
    assert np.array_equal(_pickling.loads(body, buffers=buffers), array)
    assert open_files() == before


def test_200_mb_cross_both_ways(runner: Runner) -> None:
    blob = bytes(200_000_000)
    assert runner.map(lambda x: x, [blob])[0].value == blob


def test_any_number_of_buffers_crosses(runner: Runner) -> None:
    many = [np.full(3, number) for number in range(70_000)]
    value = runner.map(lambda x: x, [many])[0].unwrap()
    assert len(value) == 70_000
    assert value[-1][0] == 69_999


def test_nothing_is_left_open_after_a_batch_of_arrays() -> None:
    def use() -> None:
        with Runner(ParallelConfig(backend="process", max_workers=2)) as mine:
            assert all(one.ok for one in mine.map(lambda x: 2 * x, [np.ones(50_000)] * 20))

    use()
    before = open_files()
    use()
    gc.collect()
    until(lambda: open_files() <= before)
