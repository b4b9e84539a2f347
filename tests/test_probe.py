"""What a file says of itself, and what is in it."""

from __future__ import annotations

import json
import os
import random
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.conftest import shared
from tests.media_files import tone, write_audio, write_video
from video.errors import InvalidMedia, SourceError, SourceNotFound, UnsupportedMedia
from video.media import base
from video.media.probe import duration_seconds, measure, probe

VFR_TIMES = [Fraction(n * n, 250) for n in range(20)]


def test_a_header_tells_codec_size_rate_and_sound(tmp_path: Path) -> None:
    found = probe(write_video(tmp_path / "a.mp4", sound=tone(0, 2, 2)))
    assert found.video is not None
    assert (found.video.codec, found.video.width, found.video.height) == ("h264", 160, 120)
    assert found.video.rate_from_header == 25
    assert found.video.frames_from_header == 50
    assert found.duration_seconds_from_header == pytest.approx(2, abs=0.01)
    assert [(sound.codec, sound.sample_rate, sound.channels) for sound in found.audio] == [("aac", 48_000, 1)]
    assert found.size_bytes == (tmp_path / "a.mp4").stat().st_size


def test_measuring_reads_what_is_there(tmp_path: Path) -> None:
    found = measure(write_video(tmp_path / "a.mp4", gop=20, sound=tone(0, 2, 2)))
    assert (found.start_seconds, found.end_seconds, found.packets) == (0, 2, 50)
    assert found.key_frame_seconds == (0, 0.8, 1.6)
    assert not found.variable_frame_rate
    assert found.audio_start_seconds == pytest.approx(0, abs=0.025)
    assert found.audio_end_seconds == pytest.approx(2, abs=0.025)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_thirds_of_a_tick_are_not_a_variable_frame_rate(tmp_path: Path, name: str) -> None:
    assert not measure(write_video(tmp_path / name, rate=Fraction(30_000, 1001))).variable_frame_rate


def test_a_variable_frame_rate_is_noticed(tmp_path: Path) -> None:
    found = measure(write_video(tmp_path / "a.mkv", frames=20, times=VFR_TIMES))
    assert found.variable_frame_rate
    assert found.end_seconds > float(VFR_TIMES[-1])


def test_both_are_plain_json(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shape=Fraction(2, 3))
    said = json.loads(json.dumps(probe(path).as_dict()))
    assert said["video"]["sample_aspect_ratio"] == "2/3"
    assert json.loads(json.dumps(measure(path).as_dict()))["duration_seconds"] == 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_swaps_the_displayed_size(tmp_path: Path, degrees: int) -> None:
    video = probe(write_video(tmp_path / "a.mp4", rotation=degrees)).video
    assert video is not None
    assert video.rotation == degrees
    assert (video.displayed_width, video.displayed_height) == ((160, 120) if degrees == 180 else (120, 160))


def test_pixel_shape_changes_the_displayed_size(tmp_path: Path) -> None:
    video = probe(write_video(tmp_path / "a.mp4", shape=Fraction(2, 3))).video
    assert video is not None
    assert (video.width, video.displayed_width, video.displayed_height) == (160, 106, 120)


@pytest.mark.parametrize(
    ("width", "height", "shape", "rotation", "shown"),
    [
        (161, 121, None, 0, (160, 120)),
        (1, 1, None, 0, (2, 2)),
        (640, 360, Fraction(1280, 1281), 0, (640, 360)),
        (720, 576, Fraction(64, 45), 90, (576, 1024)),
        (640, 360, Fraction(0), 0, (640, 360)),
        (640, 360, Fraction(100_000), 0, (640, 360)),
    ],
)
def test_displayed_sizes_are_even_and_sane(
    width: int, height: int, shape: Fraction | None, rotation: int, shown: tuple[int, int]
) -> None:
    assert base.displayed_size(width, height, shape, rotation) == shown


@pytest.mark.parametrize(
    ("counter_clockwise", "clockwise"),
    [(0, 0), (-90, 90), (90, 270), (180, 180), (-180, 180), (-2_147_483_648, 0), (-89, 90)],
)
def test_a_garbage_rotation_is_none(counter_clockwise: int, clockwise: int) -> None:
    class Frame:
        rotation = counter_clockwise

    assert base.rotation(Frame()) == clockwise  # type: ignore[arg-type]


def test_a_file_without_duration_in_its_header_is_measured(tmp_path: Path) -> None:
    live = write_video(tmp_path / "a.mkv", container={"live": "1"})
    assert probe(live).duration_seconds_from_header is None
    assert duration_seconds(live) == pytest.approx(2, abs=0.002)
    bare = write_video(tmp_path / "a.h264")
    assert duration_seconds(bare) == pytest.approx(2, abs=0.002)


def test_a_truncated_file_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", container={"movflags": "+faststart"}, options={"crf": "1"})
    os.truncate(path, path.stat().st_size * 6 // 10)
    assert probe(path).duration_seconds_from_header == pytest.approx(2, abs=0.01)
    assert 0.5 < measure(path).duration_seconds < 1.7


def test_audio_only_has_no_video(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.mp3")
    assert probe(path).video is None
    assert len(probe(path).audio) == 1
    with pytest.raises(UnsupportedMedia, match=r"a\.mp3: has no video stream \(audio only\)\. "):
        measure(path)


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as out:
        cover = out.add_stream("png", rate=1, width=16, height=16, pix_fmt="rgb24")
        cover.disposition = av.stream.Disposition.attached_pic
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        out.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        out.mux(cover.encode(None))
        frame = av.AudioFrame("fltp", "mono", 1024)
        frame.planes[0].update(bytes(4096))
        frame.sample_rate, frame.pts = 48_000, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    assert probe(tmp_path / "a.m4a").video is None


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_what_is_not_media_is_refused_by_name(tmp_path: Path, size: int) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(random.Random(1).randbytes(size))
    with pytest.raises(InvalidMedia) as caught:
        probe(path)
    assert "noise.mp4: is " in str(caught.value)
    assert caught.value.cure


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    for name in ("none.mp4", "no/such.mp4", "null\0byte.mp4"):
        with pytest.raises(SourceNotFound, match="no such file"):
            probe(tmp_path / name)


def test_a_folder_or_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4"):
        with pytest.raises(SourceError, match=r"is (a folder|not a regular file)"):
            probe(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n"),
        ("list.txt", "ffconcat version 1.0\nfile 'secret.mp4'\n"),
        ("list.mpd", '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>'),
    ],
)
def test_playlists_cannot_open_other_files(tmp_path: Path, name: str, text: str) -> None:
    video = write_video(tmp_path / "secret.mp4", frames=5)
    (tmp_path / name).write_text(text.format(video=video))
    with pytest.raises((UnsupportedMedia, InvalidMedia)):
        probe(tmp_path / name)


NAMES = [
    "a b.mp4",
    "it's.mp4",
    'say "hi".mp4',
    "a:b.mp4",
    "50%d.mp4",
    "film 🎬.mp4",
    "-v.mp4",
    "http:..a.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_opens(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "plain.mp4", frames=5).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert measure(name).packets == 5


@pytest.mark.parametrize("name", ["talk.mp4", "cars.mp4", "hevc.mp4", "sar-2by3.mp4", "webvtt.mkv"])
def test_real_files_are_as_long_as_their_header_says(name: str) -> None:
    path = shared(name)
    found = measure(path)
    assert found.duration_seconds == pytest.approx(duration_seconds(path), abs=0.05)
    assert found.key_frame_seconds
