"""Highlights: signals are measured from key frames and sound; clips are chosen from plain numbers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import shared
from tests.media_files import picture, tone, write_audio, write_video
from video import scope
from video.errors import ConfigError, InvalidMedia, ItemCancelled, UnsupportedMedia
from video.media import highlights, scenes
from video.media.highlights import SILENCE, WINDOW, Signals, choose, find_highlights, measure_signals
from video.media.sample import FPS, write_sample

CLOSE = 1e-6


def still(duration: float, loudness: tuple[float, ...] = ()) -> Signals:
    """A picture that never changes, with a key frame every 2 s."""
    times = tuple(np.arange(0, duration, 2.0).tolist())
    return Signals(duration, times, (0.0,) * len(times), (), loudness)


def with_cuts(duration: float, cuts: list[float], loudness: tuple[float, ...] = ()) -> Signals:
    """Scene changes off a grid of 2 s."""
    times = sorted({*np.arange(0, duration, 2.0).tolist(), *cuts})
    change = tuple(0.3 if time in cuts else 0.01 for time in times)
    return Signals(duration, tuple(times), change, tuple(cuts), loudness)


def loud_between(duration: float, start: float, end: float, quiet: float = -40.0) -> tuple[float, ...]:
    return tuple(-10.0 if start <= n * WINDOW < end else quiet for n in range(math.ceil(duration / WINDOW)))


@st.composite
def any_signals(draw: st.DrawFn) -> Signals:
    duration = draw(st.floats(0.05, 200))
    times = sorted(draw(st.sets(st.floats(0, duration), max_size=30)))
    change = draw(st.lists(st.floats(0, 1), min_size=len(times), max_size=len(times)))
    off_grid = tuple(time for time in times if draw(st.booleans()))
    windows = draw(st.sampled_from([0, math.ceil(duration / WINDOW)]))
    seed = draw(st.integers(0, 99))
    loudness = np.random.default_rng(seed).uniform(draw(st.floats(SILENCE, -1)), 0, windows)
    return Signals(duration, tuple(times), tuple(change), off_grid, tuple(loudness.tolist()))


requests = st.tuples(st.integers(1, 12), st.floats(0.1, 30), st.floats(0, 60)).map(
    lambda ask: (ask[0], ask[1], ask[1] + ask[2])
)


@settings(max_examples=200, deadline=None, database=None)
@given(any_signals(), requests)
def test_clips_keep_every_promise_for_any_signals(signals: Signals, ask: tuple[int, float, float]) -> None:
    count, shortest, longest = ask
    clips = choose(signals, *ask)
    assert clips == choose(signals, *ask)
    if signals.duration <= shortest:
        assert [(clip.start, clip.end) for clip in clips] == [(0, signals.duration)]
    else:
        assert len(clips) == min(count, math.floor(signals.duration / shortest))
    free = 0.0
    for clip in clips:
        assert free - CLOSE <= clip.start < clip.end <= signals.duration + CLOSE
        if signals.duration > shortest:
            assert shortest - CLOSE <= clip.end - clip.start <= longest + CLOSE
        assert 0 <= clip.score <= 1
        assert 0 <= clip.motion <= 1
        assert 0 <= clip.cuts <= 1
        assert (clip.loudness is None) == (not signals.loudness)
        assert clip.reasons
        assert all(clip.reasons)
        free = clip.end


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.floats(SILENCE, 0), min_size=1, max_size=60), st.data())
def test_a_louder_window_never_stands_out_less(levels: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(levels) - 1))
    louder = levels.copy()
    louder[at] = data.draw(st.floats(levels[at], 0))

    def score(values: list[float]) -> float:
        return float(highlights._standing_out(np.array(values), highlights.LOUDNESS_SPAN)[at])

    assert score(louder) >= score(levels) - CLOSE


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=10), st.integers(1, 3), st.integers(1, 3))
def test_no_other_choice_of_places_adds_up_to_more(scores: list[int], count: int, apart: int) -> None:
    def best(first: int, left: int) -> float:
        if left == 0:
            return 0
        rest = [scores[n] + best(n + apart, left - 1) for n in range(first, len(scores))]
        return max(rest, default=-math.inf)

    if (count - 1) * apart >= len(scores):
        return
    chosen = highlights._best_apart(np.array(scores, float), count, apart)
    assert all(later - earlier >= apart for earlier, later in itertools.pairwise(chosen))
    assert sum(scores[n] for n in chosen) == best(0, count)


def test_the_loud_stretch_is_chosen_and_says_so() -> None:
    (clip,) = choose(still(60, loud_between(60, 30, 38)), 1, 3, 8)
    assert (clip.start, clip.end) == (30, 38)
    assert clip.loudness == 1
    assert clip.reasons[0] == "loud: 30 dB over the video's median"


def test_the_stretch_with_scene_changes_is_chosen_and_counts_them() -> None:
    (clip,) = choose(with_cuts(60, [41.3, 43.1, 44.7]), 1, 3, 8)
    assert clip.start < 41.3
    assert clip.end > 44.7
    assert clip.cuts == 1
    assert "3 scene changes" in clip.reasons


def test_the_lively_stretch_is_chosen_and_says_so() -> None:
    times = tuple(float(n) for n in range(0, 60, 2))
    change = tuple(0.05 if 20 <= time <= 30 else 0.01 for time in times)
    (clip,) = choose(Signals(60, times, change, (), ()), 1, 3, 8)
    assert 18 <= clip.start < clip.end <= 30
    assert clip.reasons == ("lively: 5.0 times the video's usual motion",)


def test_a_change_of_scene_is_not_taken_for_motion_before_it() -> None:
    (clip,) = choose(with_cuts(60, [41.3]), 1, 3, 8)
    assert clip.motion == 0


def test_ends_move_to_scene_changes_and_pauses_nearby() -> None:
    loudness = list(loud_between(60, 29, 37))
    loudness[72] = SILENCE  # 36.0 to 36.5
    (clip,) = choose(with_cuts(60, [28.4, 30.6, 31.6, 32.6], tuple(loudness)), 1, 3, 8)
    assert (clip.start, clip.end) == (28.4, 36.25)
    assert {"starts at a scene change", "ends in a pause"} <= set(clip.reasons)


def test_a_still_silent_video_gives_evenly_spread_clips_and_admits_it() -> None:
    for loudness in ((), (SILENCE,) * 120, (-20.0,) * 120):
        clips = choose(still(60, loudness), 3, 3, 8)
        assert [(clip.start, clip.end) for clip in clips] == [(9, 17), (26, 34), (43, 51)]
        assert {clip.reasons for clip in clips} == {("nothing stands out: taken evenly",)}
        assert {clip.score for clip in clips} == {0}


def test_a_video_shorter_than_a_clip_is_one_clip() -> None:
    (clip,) = choose(still(2.5), 3, 3, 8)
    assert (clip.start, clip.end) == (0, 2.5)
    assert "whole video" in clip.reasons[0]


def test_only_as_many_clips_as_fit() -> None:
    assert len(choose(still(10), 5, 3, 8)) == 3


def test_clips_are_as_long_as_asked_where_the_video_has_room() -> None:
    assert {round(clip.end - clip.start, 6) for clip in choose(still(600), 3, 3, 60)} == {60}


def test_no_key_frame_at_all_is_no_obstacle() -> None:
    assert len(choose(Signals(10, (), (), (), ()), 2, 1, 3)) == 2


@pytest.mark.parametrize(
    "ask", [(0, 3, 8), (1, 0, 8), (1, 9, 8), (1, 3, math.inf), (1, math.nan, 8), (1, 3, math.nan)]
)
def test_requests_out_of_range_are_refused(ask: tuple[int, float, float]) -> None:
    with pytest.raises(ConfigError):
        choose(still(10), *ask)
    with pytest.raises(ConfigError):
        find_highlights("missing.mp4", *ask)


# Measuring


def test_loudness_is_measured_in_the_window_where_it_is_heard(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=100, sound=tone(1.5, 1.0, 4.0))
    signals = measure_signals(source)
    assert signals.duration == pytest.approx(4)
    assert len(signals.loudness) == 8
    assert [level > -20 for level in signals.loudness] == [False] * 3 + [True] * 2 + [False] * 3
    # A sine of amplitude 0.5 has an RMS of 0.354, -9.0 dBFS.
    assert signals.loudness[3] == pytest.approx(-9.0, abs=0.3)


@pytest.mark.parametrize(
    ("suffix", "codec", "layout"),
    [
        (".mp4", "aac", "stereo"),
        (".mov", "pcm_s16le", "stereo"),
        (".mkv", "flac", "mono"),
        (".avi", "pcm_u8", "mono"),
    ],
)
def test_loudness_is_the_same_in_every_sample_format(
    tmp_path: Path, suffix: str, codec: str, layout: str
) -> None:
    source = write_video(
        tmp_path / f"v{suffix}", frames=50, b_frames=0, sound=tone(0, 2, 2), sound_codec=codec, layout=layout
    )
    assert measure_signals(source).loudness[1:3] == pytest.approx((-9.0, -9.0), abs=0.3)


def test_loudness_of_eight_channels_is_measured(tmp_path: Path) -> None:
    """PyAV counts a ninth plane there, which is other memory."""
    source = write_video(tmp_path / "v.mkv", frames=50, sound=tone(0, 2, 2), layout="7.1")
    assert measure_signals(source).loudness[1:3] == pytest.approx((-9.0, -9.0), abs=2)  # AAC is coarse here


def test_change_is_zero_in_a_still_and_large_between_scenes(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=[1234] * 50 + [9999] * 50, gop=25)
    signals = measure_signals(source)
    assert signals.key_times == pytest.approx((0, 1, 2, 3))
    assert signals.change[2] > 0.1
    assert signals.change[0] == 0
    assert max(signals.change[1], signals.change[3]) < 0.01
    assert signals.off_grid == ()
    assert signals.loudness == ()


def test_a_darker_picture_is_no_change_of_scene() -> None:
    pictures = scenes.Pictures()
    bright = picture(1234, 160, 120)
    for pts, gray in enumerate((bright, bright - 40)):
        frame = av.VideoFrame.from_ndarray(gray, "gray")
        frame.pts = pts
        pictures.add([frame])
    assert pictures.change[1] < 0.01


def test_key_frames_at_cuts_stand_off_the_grid(tmp_path: Path) -> None:
    source = write_sample(tmp_path, 3, seconds=18, size=(160, 90))
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    steps = [np.abs(later - earlier).mean() for earlier, later in itertools.pairwise(frames)]
    cuts = [(n + 1) / FPS for n, step in enumerate(steps) if step > 25]
    assert len(cuts) == 4
    assert measure_signals(source).off_grid == pytest.approx(cuts)


def test_only_some_pictures_of_an_all_key_frame_video_are_compared(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=50, gop=1)
    signals = measure_signals(source)
    assert np.diff(signals.key_times).min() >= scenes.KEY_SPACING
    assert len(signals.key_times) <= 8


def test_times_count_from_the_first_timestamp(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "v.mkv",
        frames=50,
        times=[10 + Fraction(n, 25) for n in range(50)],
        gop=25,
        sound=tone(0.5, 0.5, 2),
        sound_start=10,
    )
    signals = measure_signals(source)
    assert signals.duration == pytest.approx(2, abs=0.01)
    assert signals.key_times == pytest.approx((0, 1), abs=0.01)
    assert int(np.argmax(signals.loudness)) == 1


def test_sound_longer_than_the_pictures_does_not_lengthen_the_video(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=25, sound=tone(0, 3, 3))
    signals = measure_signals(source)
    assert signals.duration == pytest.approx(1)
    assert len(signals.loudness) == 2


def test_one_absurd_timestamp_is_an_error_and_does_not_fill_the_memory(tmp_path: Path) -> None:
    times = [*(Fraction(n, 25) for n in range(20)), Fraction(10**13)]
    source = write_video(tmp_path / "v.mkv", frames=21, times=times)
    with pytest.raises(InvalidMedia, match=r"v\.mkv: has a picture at 10000000000000 s"):
        measure_signals(source)


def test_a_sample_video_gives_clips_with_reasons(tmp_path: Path) -> None:
    clips = find_highlights(write_sample(tmp_path, 0, seconds=20, size=(64, 36)), 3, 3, 8)
    assert len(clips) == 3
    text = " ".join(reason for clip in clips for reason in clip.reasons)
    assert "loud" in text
    assert "scene change" in text


def test_damaged_packets_are_passed_over(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=100, gop=25, sound=tone(0, 4, 4))
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(0)
    middle = range(len(data) // 3, len(data) // 2)
    for at in rng.choice(middle, 60):
        data[at] ^= 0xFF
    source.write_bytes(data)
    assert measure_signals(source).duration == pytest.approx(4)


def test_audio_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMedia, match="sound"):
        find_highlights(write_audio(tmp_path / "sound.m4a"))


def test_bytes_that_are_no_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "empty.mp4").touch()
    for name in ("noise.mp4", "empty.mp4"):
        with pytest.raises(InvalidMedia, match=name):
            find_highlights(tmp_path / name)


def test_cancelling_stops_the_reading(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=25)
    scope.enter(slot := scope.Slot())
    slot.cancelled.set()
    try:
        with pytest.raises(ItemCancelled):
            measure_signals(source)
    finally:
        scope._slot.set(None)


def test_natural_videos_give_three_clips_of_up_to_8_seconds() -> None:
    for name in ("talk.mp4", "cars.mp4"):
        clips = find_highlights(shared(name), 3, 3, 8)
        assert [3 <= clip.end - clip.start <= 8 + CLOSE for clip in clips] == [True] * 3
    # The speaker stops at 17 s.
    assert choose(measure_signals(shared("talk.mp4")), 1, 3, 8)[0].end < 17
