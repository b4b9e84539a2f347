"""Plans of smart cuts: each frame once, copies from key frames on, never dearer than exact."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video.media.index import Stored
from video.media.smart import Costs, Plan, plan, usual_costs
from video.media.splice import decoding_times

COSTS = usual_costs("h264", 1280, 720)


@st.composite
def indexes(draw: st.DrawFn) -> list[Stored]:
    """Groups of 1 to 12 pictures, each of whose key frames may have leading pictures, at uneven distances."""
    order: list[tuple[int, bool]] = []  # (place in the order shown, whether it is a key)
    place = 0
    for _ in range(draw(st.integers(1, 6))):
        leading = draw(st.integers(0, 3)) if order and draw(st.booleans()) else 0
        key, place = place + leading, place + leading + 1
        order.append((key, draw(st.integers(0, 9)) > 0 or not order))
        order += [(key - back, False) for back in draw(st.permutations(range(1, leading + 1)))]
        for _ in range(draw(st.integers(0, 4))):  # one picture, and those between it and the one before
            between = draw(st.integers(0, 3))
            order.append((place + between, False))
            order += [(place + at, False) for at in draw(st.permutations(range(between)))]
            place += between + 1
    steps = draw(st.lists(st.integers(1, 9), min_size=place, max_size=place))
    times = list(itertools.accumulate(steps))
    hidden = draw(st.integers(0, 2))  # an edit list hides the beginning
    return [Stored(times[at], key, 1000, at < hidden) for at, key in order]


costs = st.builds(
    Costs,
    decode=st.floats(0.1, 5),
    encode=st.floats(1, 60),
    exact=st.floats(1, 20),
    copy=st.floats(0.01, 0.1),
    splice=st.floats(0, 50),
)


def times_of(found: Plan, stored: list[Stored], first: int, stop: int) -> list[int]:
    """When the frames that a plan covers are shown, in its order."""
    times: list[int] = []
    for span in found.spans:
        inside = [one for one in stored[slice(*span.packets)] if span.first <= one.pts < span.stop]
        if span.kind == "copy":  # all that is copied is shown
            kept = [one for one in stored[slice(*span.packets)] if one.pts >= span.first]
            assert sorted(one.pts for one in kept) == sorted(one.pts for one in inside)
        shown = [one.pts for one in inside if first <= one.pts < stop and not one.hidden]
        assert len(shown) == span.frames
        times += sorted(shown)
    return times


@settings(max_examples=400, deadline=None)
@given(indexes(), costs, st.data())
def test_a_plan_holds_each_frame_once_in_order_and_copies_from_key_frames(
    stored: list[Stored], price: Costs, data: st.DataObject
) -> None:
    end = max(one.pts for one in stored) + 5
    first = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(first + 1, end + 1))
    found = plan(stored, first, stop, price)
    wanted = sorted(one.pts for one in stored if first <= one.pts < stop and not one.hidden)
    assert times_of(found, stored, first, stop) == wanted
    assert found.frames == len(wanted)
    assert found.cost <= found.exact_cost
    copies = [span for span in found.spans if span.kind == "copy"]
    assert len(copies) == (0 if found.mode == "exact" else 1)
    for span in copies:
        begin = stored[span.packets[0]]
        assert begin.key
        assert begin.pts == span.first
    for before, after in itertools.pairwise(found.spans):
        assert before.stop == after.first
    assert (found.mode == "copy") == ([span.kind for span in found.spans] == ["copy"])
    assert found.reason
    assert found.mode in str(found)


@settings(max_examples=200, deadline=None)
@given(indexes(), st.integers(1, 9))
def test_decoding_times_rise_and_are_never_after_the_picture_is_shown(
    stored: list[Stored], step: int
) -> None:
    order = [one.pts for one in stored]
    times = decoding_times(order, step)
    assert all(after > before for before, after in itertools.pairwise(times))
    assert all(dts <= pts for dts, pts in zip(times, order, strict=True))


def closed(groups: int, size: int) -> list[Stored]:
    """Groups of pictures a tick apart, stored in the order shown."""
    return [Stored(at, at % size == 0) for at in range(groups * size)]


def test_a_request_from_key_frame_to_key_frame_is_copied() -> None:
    found = plan(closed(4, 50), 50, 150, COSTS)
    assert (found.mode, found.copied, found.frames) == ("copy", 100, 100)


def test_only_the_head_is_encoded_where_pictures_are_stored_in_the_order_shown() -> None:
    found = plan(closed(4, 50), 30, 170, COSTS, tick=Fraction(1, 25))
    assert [(span.kind, span.frames) for span in found.spans] == [("encode", 20), ("copy", 120)]
    assert found.cost < 0.3 * found.exact_cost
    assert str(found).splitlines()[:3] == [
        "smart: 120 of 140 frames can be copied",
        "  encode      1.200 s to     2.000 s     20 frames",
        "  copy        2.000 s to     6.800 s    120 frames",
    ]


def test_pictures_that_need_one_beyond_the_end_are_encoded() -> None:
    # Shown 0 1 2 3 4, stored 0 4 1 2 3: up to 3, only 0 can be copied.
    stored = [
        Stored(pts, pts % 40 == 0) for at in range(0, 40, 4) for pts in (at + 4, at + 1, at + 2, at + 3)
    ]
    stored = [Stored(0, True), *stored]
    found = plan(stored, 0, 39, COSTS)
    assert [(span.kind, span.frames) for span in found.spans] == [("copy", 37), ("encode", 2)]


def test_pictures_before_an_open_key_frame_are_encoded() -> None:
    stored = [*closed(1, 10), Stored(12, True), Stored(10), Stored(11), *(Stored(at) for at in range(13, 60))]
    found = plan(stored, 8, 60, COSTS)
    assert [(span.kind, span.first, span.frames) for span in found.spans] == [
        ("encode", 8, 4),
        ("copy", 12, 48),
    ]


@pytest.mark.parametrize(
    ("stored", "first", "stop", "reason"),
    [
        (closed(1, 50), 60, 70, "no frame begins there"),
        (closed(1, 250), 10, 60, "no key frame that a copy could begin at"),
        (closed(2, 50), 2, 51, "copying 1 of 49 frames would save nothing"),
        ([*closed(2, 10), Stored(5)], 0, 20, "two pictures have the same time"),
        ([Stored(at, at % 5 == 0, hidden=at == 7) for at in range(20)], 0, 20, "an edit list hides pictures"),
    ],
)
def test_what_cannot_or_need_not_be_copied_is_encoded(
    stored: list[Stored], first: int, stop: int, reason: str
) -> None:
    dear = Costs(decode=1, encode=9, exact=9, copy=0.05, splice=30)
    found = plan(stored, first, stop, dear)
    assert found.mode == "exact"
    assert reason in found.reason
    assert found.cost == found.exact_cost
