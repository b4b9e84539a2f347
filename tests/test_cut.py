"""Clips hold the frames and the sound that were asked for, whole, or there is no clip."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import shared
from tests.media_files import (
    FLASH,
    Shown,
    heard,
    numbers,
    onset,
    pixels,
    shown,
    tone,
    write_audio,
    write_video,
)
from video import scope
from video.errors import (
    ConfigError,
    InvalidMedia,
    ItemCancelled,
    OutputError,
    SourceNotFound,
    UnsupportedMedia,
)
from video.media.cut import Cut, cut
from video.media.probe import measure, probe

NTSC = Fraction(30_000, 1001)
VFR_STEPS = [1, 1, 3, 1, 2, 5, 1, 1, 8, 2]
VFR_TIMES = [Fraction(ticks, 50) for ticks in itertools.accumulate(VFR_STEPS * 4, initial=0)]


def played(clip: Cut, *, last_seconds: float = 0.003) -> list[Shown]:
    """The frames of a clip, after checking that it is what it says it is.

    :param last_seconds: how far its end may be off: Matroska does not store how long its last frame lasts.
    """
    frames = shown(clip.path)
    assert len(frames) == clip.frames
    assert {frame.size for frame in frames} == {(clip.width, clip.height)}
    assert clip.bytes == clip.path.stat().st_size
    assert frames[0].seconds == 0
    found = measure(clip.path)
    assert found.end_seconds == pytest.approx(clip.end - clip.start, abs=last_seconds)
    return frames


def in_folder(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Exact


# Key frames are at 0, 12, 24, ...; 25 frames a second.
SPANS = {
    "from before a key frame": (0.44, 0.84, 11, 20),
    "from a key frame": (0.48, 0.96, 12, 23),
    "from after a key frame": (0.52, 1.00, 13, 24),
    "one frame": (0.60, 0.64, 15, 15),
    "one key frame": (0.96, 1.00, 24, 24),
    "from between frames": (0.61, 0.79, 16, 19),
    "the whole file": (0.0, 2.0, 0, 49),
    "beyond the end": (1.5, 99.0, 38, 49),
    "longer than the file": (0.0, 99.0, 0, 49),
    "the last frame": (1.96, 2.0, 49, 49),
}


@pytest.fixture(scope="module", params=["a.mp4", "a.mkv", "a.mov"])
def numbered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames with B-frames and sound."""
    return write_video(tmp_path_factory.mktemp("in") / request.param, b_frames=3, sound=tone(0, 2, 2))


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_exact_keeps_the_frames_that_begin_in_the_span_and_no_other(
    numbered: Path, tmp_path: Path, span: tuple[float, float, int, int]
) -> None:
    start, end, first, last = span
    clip = cut(numbered, tmp_path / f"o{numbered.suffix}", start, end)
    frames = played(clip)
    assert [frame.number for frame in frames] == list(range(first, last + 1))
    assert clip.start == pytest.approx(first / 25, abs=1e-6)
    assert clip.end == pytest.approx((last + 1) / 25, abs=1e-6)
    for at, frame in enumerate(frames):
        assert frame.seconds == pytest.approx(at / 25, abs=0.001)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rate", [NTSC, Fraction(24_000, 1001), Fraction(60)])
def test_exact_is_right_at_fractional_rates_for_rounded_times(
    tmp_path: Path, name: str, rate: Fraction
) -> None:
    source = write_video(tmp_path / name, rate=rate, frames=60)
    for first, last in [(7, 7), (12, 30), (29, 58)]:
        start, end = round(float(first / rate), 4), round(float((last + 1) / rate), 4)
        clip = cut(source, tmp_path / "o.mp4", start, end)
        assert [frame.number for frame in played(clip)] == list(range(first, last + 1))


def test_neighbouring_clips_share_no_frame_and_miss_none(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", rate=NTSC, frames=60)
    times = [0, 0.31, 0.73, 1.0010, 1.5, 3]
    found = [
        number
        for start, end in itertools.pairwise(times)
        for number in numbers(cut(source, tmp_path / "o.mp4", start, end).path)
    ]
    assert found == list(range(60))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_exact_keeps_the_distances_of_a_variable_frame_rate(tmp_path: Path, name: str) -> None:
    source = write_video(tmp_path / name, frames=len(VFR_TIMES), times=VFR_TIMES)
    clip = cut(source, tmp_path / f"o{name[1:]}", 0.2, 1.4)
    wanted = [(at, number) for number, at in enumerate(VFR_TIMES) if 0.2 <= at < 1.4]
    frames = played(clip, last_seconds=0.1)
    assert [frame.number for frame in frames] == [number for _, number in wanted]
    for frame, (at, _) in zip(frames, wanted, strict=True):
        assert frame.seconds == pytest.approx(float(at - wanted[0][0]), abs=0.0021)


def test_a_picture_that_stands_still_ends_where_the_clip_was_to_end(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=4, times=[Fraction(at) for at in (0, 1, 2, 9)])
    clip = cut(source, tmp_path / "o.mp4", 1, 4)
    assert (clip.frames, clip.start) == (2, 1.0)
    assert clip.end == pytest.approx(4, abs=0.35)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_time_counts_from_where_the_file_starts(tmp_path: Path, name: str) -> None:
    times = [10 + Fraction(number, 25) for number in range(50)]
    source = write_video(tmp_path / name, times=times, sound=tone(1, 0.1, 2), sound_start=10)
    clip = cut(source, tmp_path / "o.mp4", 0.5, 1.2)
    first = clip.start - measure(source).start_seconds
    assert played(clip)[0].number == round(first * 25)
    assert clip.start == pytest.approx(0.5, abs=0.04)


def test_a_negative_first_timestamp_is_no_trouble(tmp_path: Path) -> None:
    times = [Fraction(number - 5, 25) for number in range(50)]
    source = write_video(tmp_path / "a.mp4", times=times, sound=tone(1, 0.1, 2), sound_start=Fraction(-1, 5))
    assert numbers(source)[0] == 5, "players, too, begin where the edit list says"
    clip = cut(source, tmp_path / "o.mp4", 0, 0.4)
    assert [frame.number for frame in played(clip)] == list(range(5, 15))


@pytest.mark.parametrize("name", ["a.ts", "a.flv", "a.avi", "a.h264", "live.mkv"])
def test_exact_reads_files_without_an_index(tmp_path: Path, name: str) -> None:
    sound = None if name.endswith("h264") else tone(0, 3, 3)
    options = {"live": "1"} if name.startswith("live") else {}
    source = write_video(tmp_path / name, frames=75, b_frames=0, sound=sound, container=options)
    zero = measure(source).start_seconds
    clip = cut(source, tmp_path / "o.mp4", 1.5, 2.3)
    found = [frame.number for frame in played(clip)]
    assert found == list(range(found[0], found[0] + 20))
    assert found[0] == pytest.approx((clip.start - zero) * 25, abs=2)


@pytest.mark.parametrize("pixels_in", ["yuv420p10le", "yuv444p", "yuvj420p"])
def test_exact_writes_what_every_player_can_show(tmp_path: Path, pixels_in: str) -> None:
    source = write_video(tmp_path / "a.mp4", pixels=pixels_in, frames=10)
    clip = cut(source, tmp_path / "o.mp4", 0, 1)
    assert [frame.number for frame in played(clip)] == list(range(10))
    video = probe(clip.path).video
    assert video is not None
    assert video.pixel_format in ("yuv420p", "yuvj420p")


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_exact_turns_the_picture_upright(tmp_path: Path, rotation: int) -> None:
    clip = cut(write_video(tmp_path / "a.mp4", rotation=rotation), tmp_path / "o.mp4", 0.4, 0.8)
    assert (clip.width, clip.height) == ((160, 120) if rotation == 180 else (120, 160))
    assert [frame.number for frame in played(clip)] == list(range(10, 20))
    video = probe(clip.path).video
    assert video is not None
    assert video.rotation == 0


def test_exact_makes_pixels_square(tmp_path: Path) -> None:
    clip = cut(write_video(tmp_path / "a.mp4", shape=Fraction(2, 3)), tmp_path / "o.mp4", 0, 0.4)
    assert (clip.width, clip.height) == (106, 120)
    assert [frame.number for frame in played(clip)] == list(range(10))
    video = probe(clip.path).video
    assert video is not None
    assert video.sample_aspect_ratio == 1


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", size=(161, 121), codec="ffv1", pixels="yuv444p")
    clip = cut(source, tmp_path / "o.mp4", 0, 0.4)
    assert (clip.width, clip.height) == (160, 120)
    assert [frame.number for frame in played(clip)] == list(range(10))


def test_the_same_cut_gives_the_same_bytes_whatever_was_in_memory(
    samples: list[Path], tmp_path: Path
) -> None:
    source = samples[1]  # motion, and rows of ten macroblocks
    code = "import sys; from video.media.cut import cut; cut(sys.argv[1], sys.argv[2], 2, 5)"
    clips = []
    for rubbish in ("7", "170"):  # with what glibc fills memory that it gives out
        output = tmp_path / f"{rubbish}.mp4"
        dirty = {"MALLOC_PERTURB_": rubbish, "MALLOC_MMAP_THRESHOLD_": "1000000000"}
        subprocess.run([sys.executable, "-c", code, source, output], env=os.environ | dirty, check=True)
        clips.append(output.read_bytes())
    assert clips[0] == clips[1]


def test_damage_in_the_middle_costs_only_some_frames(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", options={"crf": "1"}, size=(320, 240))
    data = bytearray(source.read_bytes())
    noise = random.Random(1)
    for _ in range(40):
        data[noise.randrange(len(data) // 3, len(data) * 2 // 3)] ^= 0xFF
    source.write_bytes(data)
    clip = cut(source, tmp_path / "o.mp4", 0, 2)
    assert 10 < clip.frames <= 50


# Sound


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("start", "mode"), [(0.37, "exact"), (0.48, "exact"), (0.5, "copy")])
def test_a_beep_stays_with_its_flash(tmp_path: Path, suffix: str, start: float, mode: str) -> None:
    frames = [FLASH if 25 <= number < 28 else number for number in range(50)]
    source = write_video(tmp_path / f"a.{suffix}", frames=frames, sound=tone(1, 0.1, 2))

    def delay(path: Path) -> float:
        flash = next(frame.seconds for frame in shown(path) if frame.number == FLASH)
        return onset(path) - float(flash)

    clip = cut(source, tmp_path / f"o.{suffix}", start, 1.6, mode)  # type: ignore[arg-type]
    assert delay(clip.path) == pytest.approx(delay(source), abs=0.005)


def test_sound_is_as_long_as_the_pictures(numbered: Path, tmp_path: Path) -> None:
    first, samples = heard(cut(numbered, tmp_path / "o.mp4", 0.3, 1.3).path)
    assert first == 0
    assert len(samples) / 48_000 == pytest.approx(1.0, abs=0.022)


def test_sound_that_starts_at_the_cut_is_not_faded_in(numbered: Path, tmp_path: Path) -> None:
    _, samples = heard(cut(numbered, tmp_path / "o.mp4", 0.48, 1.3).path)  # 0.48 s is a key frame
    assert abs(samples[:256]).max() > 0.4


@pytest.mark.parametrize(("start", "end", "from_second"), [(1, 3, 1.0), (2.2, 3, 0.0), (0, 1, None)])
def test_sound_that_starts_late_or_ends_early_keeps_its_place(
    tmp_path: Path, start: float, end: float, from_second: float | None
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=100, sound=tone(0, 0.5, 1), sound_start=2)
    path = cut(source, tmp_path / "o.mp4", start, end).path
    assert heard(path)[0] == 0
    if from_second is None:
        assert abs(heard(path)[1]).max() < 0.01
    else:
        assert onset(path) == pytest.approx(from_second, abs=0.005)


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_silent_video_stays_silent(tmp_path: Path, mode: str) -> None:
    clip = cut(write_video(tmp_path / "a.mp4"), tmp_path / "o.mp4", 0.48, 1, mode)  # type: ignore[arg-type]
    assert probe(clip.path).audio == ()
    assert played(clip)[0].number == 12


@pytest.mark.parametrize(
    ("codec", "layout"), [("pcm_s16le", "stereo"), ("flac", "stereo"), ("ac3", "5.1"), ("aac", "7.1")]
)
def test_other_audio_codecs_become_aac(tmp_path: Path, codec: str, layout: str) -> None:
    source = write_video(tmp_path / "a.mkv", sound=tone(1, 0.1, 2), sound_codec=codec, layout=layout)
    clip = cut(source, tmp_path / "o.mp4", 0.6, 1.6)
    (audio,) = probe(clip.path).audio
    assert (audio.codec, audio.layout) == ("aac", layout)
    assert onset(clip.path) == pytest.approx(1 - clip.start, abs=0.005)


# Copy


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0.7, 1.5, 12, 37), (0.48, 1.0, 12, 24), (0.96, 0.98, 24, 24), (0, 99, 0, 49), (1.99, 2.5, 48, 49)],
)
def test_copy_gives_the_stored_frames_from_the_key_frame_on(
    tmp_path: Path, suffix: str, b_frames: int, start: float, end: float, first: int, last: int
) -> None:
    source = write_video(tmp_path / f"a.{suffix}", b_frames=b_frames, sound=tone(0, 2, 2))
    clip = cut(source, tmp_path / f"o.{suffix}", start, end, "copy")
    # FFmpeg guesses that Matroska files of one or two pictures start with the first audible sample, at 21 ms.
    found = [frame.number for frame in played(clip, last_seconds=0.025)]
    assert found[0] == first
    assert last <= found[-1] <= last + b_frames
    assert found == list(range(found[0], found[-1] + 1)), "a hole"
    assert [data for _, data in pixels(clip.path)] == [data for _, data in pixels(source)][first:][
        : len(found)
    ]
    assert (clip.start, clip.end) == pytest.approx((found[0] / 25, (found[-1] + 1) / 25), abs=0.001)


@pytest.mark.parametrize("name", ["talk.mp4", "cars.mp4", "hevc.mp4", "sar-2by3.mp4"])
def test_copy_is_bit_identical_for_natural_video(tmp_path: Path, name: str) -> None:
    source = shared(name)
    clip = cut(source, tmp_path / "o.mp4", 1.2, 2.0, "copy")
    found = measure(source)
    before = [at for at in found.key_frame_seconds if at <= 1.2]
    assert clip.start == pytest.approx(before[-1], abs=0.001)
    copied = [data for _, data in pixels(clip.path)]
    stored = [data for at, data in pixels(source, until=clip.end) if clip.start <= at + 0.0005 < clip.end]
    assert copied == stored


@pytest.mark.parametrize("rotation", [90, 270])
def test_copy_keeps_the_rotation(tmp_path: Path, rotation: int) -> None:
    clip = cut(write_video(tmp_path / "a.mp4", rotation=rotation), tmp_path / "o.mp4", 0.5, 1, "copy")
    assert (clip.width, clip.height) == (120, 160)
    video = probe(clip.path).video
    assert video is not None
    assert video.rotation == rotation


def test_copy_keeps_the_pixel_shape(tmp_path: Path) -> None:
    clip = cut(write_video(tmp_path / "a.mp4", shape=Fraction(2, 3)), tmp_path / "o.mp4", 0, 1, "copy")
    assert (clip.width, clip.height) == (106, 120)


def test_copy_of_a_stream_without_index_finds_its_key_frame(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.flv", frames=75, sound=tone(0, 3, 3))
    clip = cut(source, tmp_path / "o.mp4", 1.2, 2, "copy")
    found = [frame.number for frame in shown(clip.path)]
    assert found[0] == 24
    assert found == list(range(24, 24 + clip.frames))


def test_copy_says_which_container_cannot_hold_a_codec(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mov", codec="prores_ks", pixels="yuv422p10le", frames=5)
    with pytest.raises(UnsupportedMedia, match=r"a\.mov: its prores cannot be copied into mp4.*mode exact"):
        cut(source, tmp_path / "o.mp4", 0, 1, "copy")
    assert in_folder(tmp_path) == {"a.mov"}


def test_copy_of_pictures_that_no_decoder_takes_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    data = bytearray(source.read_bytes())
    at = data.index(b"avcC") + 4 + 8  # in the sequence set, after its kind
    data[at : at + 6] = b"\x64\x00\x1f\xff\xff\xff"
    source.write_bytes(data)
    with pytest.raises(InvalidMedia, match=r"a\.mp4: .*its first pictures cannot be decoded"):
        cut(source, tmp_path / "o.mp4", 0.5, 1, "copy")
    assert in_folder(tmp_path) == {"a.mp4"}


def test_copy_beyond_the_end_of_the_sound_is_silent(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=100, sound=tone(0, 1, 1))
    for suffix in ("mp4", "mkv"):
        assert cut(source, tmp_path / f"o.{suffix}", 2, 3, "copy").frames > 24


def test_copy_of_a_stream_without_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMedia, match="has no timestamps to copy"):
        cut(write_video(tmp_path / "a.h264"), tmp_path / "o.mp4", 0.5, 1, "copy")


# Arguments


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (1, 1, "end: must be after start"),
        (1, 0.5, "end: must be after start"),
        (-1, 1, "start: must not be negative"),
        (float("nan"), 1, "start: must be a finite number"),
        (0, float("inf"), "end: must be a finite number"),
        (2, 3, "is beyond the end of the video. It is 2.000 s long"),
        (99, 100, "is beyond the end of the video. It is 2.000 s long"),
    ],
)
@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_senseless_times_are_refused(
    numbered: Path, tmp_path: Path, start: float, end: float, words: str, mode: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        cut(numbered, tmp_path / "o.mp4", start, end, mode)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert not in_folder(tmp_path)


def test_an_unknown_mode_or_extension_lists_the_known_ones(numbered: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Use one of: exact, copy"):
        cut(numbered, tmp_path / "o.mp4", 0, 1, "fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Use one of: \.mp4, \.mkv, \.mov"):
        cut(numbered, tmp_path / "o.avi", 0, 1)


def test_the_source_is_never_written_over(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=5)
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for output in (source, tmp_path / "link.mp4", tmp_path / "." / "a.mp4"):
        with pytest.raises(ConfigError, match="is the source itself"):
            cut(source, output, 0, 0.1)
    assert source.read_bytes() == before


def test_a_span_between_two_frames_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=3, times=[Fraction(0), Fraction(1), Fraction(9)])
    with pytest.raises(ConfigError, match="no frame begins between 2 s and 3 s"):
        cut(source, tmp_path / "o.mp4", 2, 3)


# Bad input, bad output


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_bad_files_leave_nothing_and_are_named(tmp_path: Path, mode: str) -> None:
    whole = write_video(tmp_path / "whole.mp4", options={"crf": "1"}).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(random.Random(1).randbytes(50_000))
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    write_audio(tmp_path / "audio.mp3")
    before = in_folder(tmp_path)
    for name, kind in {
        "none.mp4": SourceNotFound,
        "empty.mp4": InvalidMedia,
        "noise.mp4": InvalidMedia,
        "truncated.mp4": InvalidMedia,
        "audio.mp3": UnsupportedMedia,
    }.items():
        with pytest.raises(kind, match=name) as caught:
            cut(tmp_path / name, tmp_path / "o.mp4", 0, 1, mode)  # type: ignore[arg-type]
        assert caught.value.cure
    assert in_folder(tmp_path) == before


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_truncated_file_gives_what_is_there(tmp_path: Path, mode: str) -> None:
    source = write_video(
        tmp_path / "a.mp4", options={"crf": "1"}, container={"movflags": "+faststart"}, sound=tone(0, 2, 2)
    )
    os.truncate(source, source.stat().st_size * 6 // 10)
    clip = cut(source, tmp_path / "o.mp4", 0, 2, mode)  # type: ignore[arg-type]
    assert 10 < clip.frames < 50
    assert [frame.number for frame in played(clip)][:10] == list(range(10))
    with pytest.raises(ConfigError, match="is beyond the end of the video"):
        cut(source, tmp_path / "o.mp4", 1.9, 2, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exact", "copy"])
@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_video_without_frames_is_invalid(tmp_path: Path, name: str, mode: str) -> None:
    source = tmp_path / name
    data = write_video(tmp_path / f"whole{name}").read_bytes()
    # Up to where the first picture is stored: Matroska's first cluster, AVI's data.
    source.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75" if name == "a.mkv" else b"movi") + 4])
    with pytest.raises(InvalidMedia, match=name):
        cut(source, tmp_path / "o.mp4", 0, 1, mode)  # type: ignore[arg-type]


def test_no_playlist_is_cut(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", frames=5)
    (tmp_path / "a.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(UnsupportedMedia, match="is of a kind that is not read here"):
        cut(tmp_path / "a.m3u8", tmp_path / "o.mp4", 0, 1)


@pytest.mark.parametrize("mode", ["exact", "copy"])
@pytest.mark.parametrize("name", ["a b", "it's", 'say "hi"', "a:b", "50%d", "film 🎬", "-v", "x" * 250])
def test_any_name_can_be_read_and_written(
    tmp_path: Path, name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "plain.mp4", frames=5, sound=tone(0, 0.2, 0.2)).rename(tmp_path / f"{name}.mp4")
    monkeypatch.chdir(tmp_path)
    clip = cut(f"{name}.mp4", Path("out") / f"{name}.mp4", 0, 1, mode)  # type: ignore[arg-type]
    assert clip.frames == 5
    assert in_folder(tmp_path / "out") == {f"{name}.mp4"}


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_an_output_that_cannot_be_written_says_why(numbered: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for output, words in {
        tmp_path / "file" / "o.mp4": "is a file, not a folder",
        Path("/proc/none/o.mp4"): "cannot be written",
        tmp_path / "folder.mp4": "a folder of that name is in the way",
        tmp_path / f"{'x' * 300}.mp4": "the name is too long",
    }.items():
        with pytest.raises(OutputError, match=words) as caught:
            cut(numbered, output, 0.1, 0.3, mode)  # type: ignore[arg-type]
        assert str(output) in str(caught.value)
        assert caught.value.cure
    assert in_folder(tmp_path) == {"file", "folder.mp4"}


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_folder_that_may_not_be_written_says_so(numbered: Path, tiny_disk: Path, mode: str) -> None:
    """A read-only file system, since permissions do not hold for root."""
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OutputError, match=r"read-only.*that you may write to"):
        cut(numbered, tiny_disk / "o.mp4", 0.1, 0.3, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_an_end_beyond_the_video_means_its_end(numbered: Path, tmp_path: Path, mode: str) -> None:
    clip = cut(numbered, tmp_path / "o.mp4", 0, 1000, mode)  # type: ignore[arg-type]
    assert clip.frames == len(numbers(numbered))
    assert clip.end == pytest.approx(clip.frames / 25, abs=0.001)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, tiny_disk: Path, mode: str, suffix: str
) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 10 * 48_000).astype(np.float32)
    source = write_video(tmp_path / "a.mp4", frames=250, sound=noise)  # 12 kB of sound a second
    with pytest.raises(OutputError, match=r"the disk is full\. Free some space"):
        cut(source, tiny_disk / f"o.{suffix}", 0, 10, mode)  # type: ignore[arg-type]
    assert not in_folder(tiny_disk)


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_cancelled_cut_leaves_no_file(numbered: Path, tmp_path: Path, mode: str) -> None:
    output = tmp_path / "o.mp4"
    output.write_text("the clip of yesterday")
    told: list[tuple[str, bool]] = []
    slot = scope.Slot(declare=lambda path, unfinished: told.append((path, unfinished)))
    slot.cancelled.set()
    scope.enter(slot)
    try:
        with pytest.raises(ItemCancelled):
            cut(numbered, output, 0, 2, mode)  # type: ignore[arg-type]
    finally:
        scope._slot.set(None)
    assert output.read_text() == "the clip of yesterday"
    assert in_folder(tmp_path) == {"o.mp4"}
    assert [unfinished for _, unfinished in told] == [True, False]


@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_a_cut_cancelled_midway_leaves_no_file(
    numbered: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def cancelled_at_the_fortieth_packet() -> None:
        if next(calls) == 40:
            raise ItemCancelled("given up")

    monkeypatch.setattr(scope, "check_cancelled", cancelled_at_the_fortieth_packet)
    with pytest.raises(ItemCancelled):
        cut(numbered, tmp_path / "o.mp4", 0, 2, mode)  # type: ignore[arg-type]
    assert not in_folder(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count open files")
def test_cuts_good_and_bad_leave_no_file_open(numbered: Path, tmp_path: Path) -> None:
    def attempt() -> int:
        cut(numbered, tmp_path / "o.mp4", 0.5, 0.7)
        cut(numbered, tmp_path / "o.mkv", 0.5, 0.7, "copy")
        with pytest.raises(ConfigError):
            cut(numbered, tmp_path / "o.mp4", 50, 60)
        with pytest.raises(OutputError):
            cut(numbered, Path("/proc/none/o.mp4"), 0.5, 0.7)
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    assert attempt() == attempt()


def test_a_clip_that_fails_its_check_is_not_delivered(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video.media import encode

    finish = encode.PictureWriter.finish

    def miscount(self: encode.PictureWriter, end: int) -> None:
        finish(self, end)
        self.frames += 1

    monkeypatch.setattr(encode.PictureWriter, "finish", miscount)
    with pytest.raises(OutputError, match="failed the check after writing: 20 frames came out where 21"):
        cut(numbered, tmp_path / "o.mp4", 0, 0.8)
    assert not in_folder(tmp_path)
