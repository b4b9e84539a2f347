"""The encoding processor: formats, ladders, targets and pieces; and that one bad video costs only itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import shared
from tests.http_server import serve
from tests.media_files import decoding_times, heard, numbers, onset, shown, tone, write_audio, write_video
from tests.waiting import until
from video import (
    Clip,
    Encoded,
    ParallelConfig,
    VideoClipProcessor,
    VideoClipRequest,
    VideoEncodingProcessor,
    VideoEncodingRequest,
    VideoEncodingResponse,
    scope,
)
from video.errors import ConfigError, OutputError, UnsupportedMedia
from video.media import codecs, pieces
from video.media.probe import probe
from video.media.quality import measure_quality
from video.media.render import Output
from video.media.target import search
from video.models import CODECS_OF
from video.processors._book import BOOK
from video.processors._encode import sizes

VFR_STEPS = [1, 1, 3, 1, 2, 5, 1, 1, 8, 2]
VFR_TIMES = [Fraction(ticks, 50) for ticks in itertools.accumulate(VFR_STEPS * 6, initial=0)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s of 25 frames, a key frame every 12, with B-frames, and sound at 1 s."""
    folder = tmp_path_factory.mktemp("in")
    return write_video(folder / "a.mp4", frames=150, b_frames=3, sound=tone(1, 0.5, 6))


@pytest.fixture(scope="module")
def serial() -> Iterator[VideoEncodingProcessor]:
    with VideoEncodingProcessor(ParallelConfig(backend="serial", max_workers=1)) as processor:
        yield processor


def encoded(processor: VideoEncodingProcessor, source: Path, out: Path, **wants: Any) -> list[Encoded]:
    """The files of one video, which must succeed."""
    (response,) = processor.process_batch_parallel([{"source": source, "output_dir": out, **wants}])
    assert response.success, response.error
    return response.outputs


def files(folder: Path) -> set[str]:
    """What is in it, but for the list of who has which name."""
    return {path.name for path in folder.iterdir() if path.name != BOOK} if folder.exists() else set()


# Formats and codecs

CODECS = [("mp4", "h264"), ("mp4", "hevc"), ("mkv", "av1"), ("webm", "vp9"), ("webm", "av1"), ("mkv", "h264")]


@pytest.mark.parametrize(("format", "codec"), CODECS)
def test_every_format_holds_every_frame_at_its_time_and_the_sound(
    format: str, codec: str, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "a.mkv", frames=len(VFR_TIMES), times=VFR_TIMES, sound=tone(1, 0.5, 3))
    (one,) = encoded(serial, source, tmp_path / "out", format=format, codec=codec)
    assert one.path.name == f"a.{format}"
    assert one.frames == len(VFR_TIMES)
    found = shown(one.path)
    assert [frame.number for frame in found] == list(range(len(VFR_TIMES)))
    for frame, at in zip(found, VFR_TIMES, strict=True):
        assert frame.seconds == pytest.approx(at, abs=0.0011)
    assert onset(one.path) == pytest.approx(1, abs=0.005)
    about = probe(one.path)
    assert about.video is not None
    assert {"libdav1d": "av1"}.get(about.video.codec, about.video.codec) == codec
    assert about.audio[0].codec == ("opus" if format == "webm" else "aac")


def test_a_quality_is_a_size(serial: VideoEncodingProcessor, samples: list[Path], tmp_path: Path) -> None:
    for codec in ("h264", "hevc", "av1", "vp9"):
        bytes_ = [
            encoded(serial, samples[0], tmp_path / quality, codec=codec, quality=quality, sound=False)[
                0
            ].bytes
            for quality in ("low", "medium", "high")
        ]
        assert bytes_[0] < bytes_[1] < bytes_[2]


def test_a_gif_loops_and_keeps_the_time(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    (one,) = encoded(serial, numbered, tmp_path, format="gif", quality="medium")
    assert one.path.name == "a.gif"
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in one.path.read_bytes()  # for ever
    found = shown(one.path)
    assert len(found) == one.frames == 72  # 12 a second
    for at, frame in enumerate(found):
        assert frame.seconds == pytest.approx(at / 12, abs=0.011)
        assert frame.number == pytest.approx(at * 25 / 12, abs=1)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_video_of_a_moment_has_a_gif_too(
    frames: int, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=frames)
    (one,) = encoded(serial, source, tmp_path / "out", format="gif", quality="low")
    assert one.frames >= 1


def test_ten_bits_stay_in_hevc(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", pixels="yuv420p10le", frames=10)
    for codec, pixels in (("hevc", "yuv420p10le"), ("av1", "yuv420p10le"), ("h264", "yuv420p")):
        (one,) = encoded(serial, source, tmp_path / codec, codec=codec)
        with av.open(str(one.path)) as container:
            assert next(container.decode(video=0)).format.name == pixels


def test_sound_may_be_missing_or_left_out(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    silent = write_video(tmp_path / "s.mp4", frames=10)
    for source, wants in ((silent, {}), (numbered, {"sound": False})):
        (one,) = encoded(serial, source, tmp_path / "out", **wants)
        assert not probe(one.path).audio


# Streaming


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_hls_plays_every_frame_of_every_rendition(
    codec: str, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=260, size=(320, 240), sound=tone(1, 0.5, 10.4))
    request = {"source": source, "output_dir": tmp_path / "out", "format": "hls", "codec": codec,
               "ladder": (240, 120), "quality": "medium"}  # fmt: skip
    (response,) = serial.process_batch_parallel([request])
    assert response.playlist == tmp_path / "out" / "a" / "master.m3u8"
    assert files(tmp_path / "out") == {"a"}
    master = response.playlist.read_text()
    assert re.findall(r"RESOLUTION=(\d+x\d+)", master) == ["320x240", "160x120"]
    with av.open(str(response.playlist)) as container:
        assert len(container.streams.video) == len(container.streams.audio) == 2
    for one in response.outputs:
        assert one.playlist is not None
        assert one.playlist.name in master
        text = one.playlist.read_text()
        lengths = [float(found) for found in re.findall(r"#EXTINF:([\d.]+)", text)]
        assert lengths == pytest.approx([4, 4, 2.4], abs=0.05)
        assert sum(lengths) == pytest.approx(one.seconds, abs=0.001)
        assert "#EXT-X-ENDLIST" in text
        assert one.bytes == one.path.stat().st_size
        found = shown(one.playlist)
        assert [frame.number for frame in found] == list(range(260))
        with av.open(str(one.path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.is_keyframe and packet.size]
            keys = [float(packet.pts * packet.time_base) for packet in packets]
        assert {0, 4, 8} <= {round(key - keys[0], 2) for key in keys}
        assert onset(one.playlist) - float(found[0].seconds) == pytest.approx(1, abs=0.005)


def test_hls_of_pieces_plays_every_frame(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    wants = {"format": "hls", "ladder": (120, 60), "chunk_seconds": 2, "quality": "low"}
    for one in encoded(serial, numbered, tmp_path, **wants):
        assert one.playlist is not None
        found = shown(one.playlist)
        assert [frame.number for frame in found] == list(range(150))
        assert onset(one.playlist) - float(found[0].seconds) == pytest.approx(1, abs=0.005)
    assert files(tmp_path) == {"a"}


@pytest.mark.parametrize("name", ["100%v", "50%d%05d", "a%%b"])
def test_hls_goes_into_any_folder(
    name: str, serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    wants = {"format": "hls", "ladder": (120, 60), "quality": "low"}
    for one in encoded(serial, numbered, tmp_path / name, **wants):
        assert one.playlist is not None
        assert numbers(one.playlist) == list(range(150))
    assert files(tmp_path) == {name}


# Ladders


def test_a_ladder_is_decoded_once_and_never_upscales(
    serial: VideoEncodingProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video.media import render as module

    source = write_video(tmp_path / "a.mp4", frames=20, size=(320, 180))
    reads = []
    read = module.read
    monkeypatch.setattr(module, "read", lambda *words: reads.append(words) or read(*words))
    found = encoded(serial, source, tmp_path / "out", ladder=(1080, 720, 180, 90, 45))
    assert len(reads) == 1
    assert [(one.width, one.height) for one in found] == [(320, 180), (160, 90), (78, 44)]
    assert [one.path.name for one in found] == ["a-180p.mp4", "a-90p.mp4", "a-44p.mp4"]
    for one in found:
        assert {frame.size for frame in shown(one.path)} == {(one.width, one.height)}
        assert numbers(one.path) == list(range(20))


def test_sides_that_come_out_alike_are_one_rendition(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=5, size=(642, 362))
    found = encoded(serial, source, tmp_path / "out", ladder=(181, 180), quality="low")
    assert [one.path.name for one in found] == ["a-180p.mp4"]


def test_a_ladder_counts_the_shorter_side(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=5, size=(320, 180), rotation=90)
    (one,) = encoded(serial, source, tmp_path / "out", ladder=(90,))
    assert (one.width, one.height) == (90, 160)
    assert numbers(one.path) == list(range(5))


@given(
    st.integers(1, 4000).map(lambda half: 2 * half),
    st.integers(1, 4000).map(lambda half: 2 * half),
    st.lists(st.integers(16, 8640), max_size=5),
)
def test_sizes_are_even_in_proportion_and_no_larger(width: int, height: int, ladder: list[int]) -> None:
    found = sizes(width, height, ladder)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    for wide, high in found:
        assert wide % 2 == high % 2 == 0
        assert 2 <= wide <= width
        assert 2 <= high <= height
        share = min(wide, high) / min(width, height)
        assert abs(wide - width * share) <= 1
        assert abs(high - height * share) <= 1


# Targets


@given(st.integers(12, 45), st.floats(0.85, 0.999), st.floats(0.02, 0.2))
def test_the_search_finds_the_coarsest_setting_that_meets_the_target(
    middle: int, target: float, slope: float
) -> None:
    """On any curve whose logarithm is straight, as those of encoders nearly are."""

    def measure(value: int) -> float:
        calls.append(value)
        return 1 - (1 - target) * float(np.exp(slope * (value - middle)))

    calls: list[int] = []
    value, measured = search(measure, target, [19, 28], 10, 51)
    assert len(calls) == len(set(calls)) <= 6
    assert measured[value] >= target
    assert measured[value] - target < 0.002 or value + 1 in measured or value == 51 or len(calls) == 6
    assert abs(value - middle) <= 3 or measured[value] - target < 0.003


def test_a_target_is_reached_by_the_whole_video(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    source = shared("cars.mp4")
    found = {}
    for target in (0.9, 0.97):
        (one,) = encoded(serial, source, tmp_path / f"{target}", quality=target, ladder=(240,))
        assert one.ssim is not None
        assert one.ssim >= target
        assert re.search(rf"\b{one.setting.split()[1]}: 0\.9", one.note)
        found[target] = one.bytes
        likeness = measure_quality(one.path, source).likeness
        assert likeness is not None
        assert likeness.frames == one.frames
    assert found[0.9] < found[0.97]


@pytest.mark.parametrize(
    ("times", "sound_seconds"),
    [
        ([Fraction(at, 25) for at in range(50)], 20),
        ([*(Fraction(at, 25) for at in range(25)), Fraction(30)], 0),
        ([Fraction(at + 700 * (at // 25), 25) for at in range(50)], 0),
        ([Fraction(at, 25) + 10 for at in range(50)], 12),
        ([Fraction(0), Fraction(30)], 0),
    ],
    ids=["long sound", "still at the end", "still in the middle", "late start", "two stills"],
)
def test_samples_lie_where_pictures_are(
    times: list[Fraction], sound_seconds: float, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    sound = tone(1, 0.5, sound_seconds) if sound_seconds else None
    source = write_video(tmp_path / "a.mkv", frames=len(times), times=times, sound=sound)
    (one,) = encoded(serial, source, tmp_path / "out", quality=0.9)
    assert one.frames == len(times)
    assert one.ssim is not None
    assert one.ssim >= 0.9


def test_a_target_that_cannot_be_had_says_what_can(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    noise = tmp_path / "noise.mkv"
    with av.open(str(noise), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        for _ in range(10):
            picture = np.random.default_rng(1).integers(0, 255, (180, 160), np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, "yuv420p")))
        out.mux(video.encode(None))
    (response,) = serial.process_batch_parallel(
        [{"source": noise, "output_dir": tmp_path / "out", "quality": 0.9999}]
    )
    assert response.error is not None
    assert re.search(r"0\.9999 cannot be had: libx264 with crf 10 has 0\.99", response.error.message)
    assert files(tmp_path / "out") == set()


# Encoders


def test_an_encoder_counts_once_it_has_encoded_two_frames() -> None:
    assert codecs.works("libx264")
    assert codecs.works("libx264", (("crf", "20"),))
    assert not codecs.works("libx264", (("nosuch", "20"),))
    assert not codecs.works("h264_nosuch")
    assert not codecs.works("aac")


def test_hardware_is_taken_where_it_works_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of what there may be, whose second entry does exist."""
    absent = codecs.Tool("h264_nosuch", codecs.SOFTWARE["h264"].presets)
    there = codecs.Tool("libx265", codecs.SOFTWARE["hevc"].presets)
    monkeypatch.setattr(codecs, "HARDWARE", {"h264": (absent, there)})
    assert codecs.tool("h264") is there
    assert codecs.tool("h264", hardware=False).encoder == "libx264"
    monkeypatch.setattr(codecs, "HARDWARE", {"h264": (absent,)})
    assert codecs.tool("h264").encoder == "libx264"
    monkeypatch.setattr(codecs, "SOFTWARE", {"h264": absent})
    with pytest.raises(UnsupportedMedia, match="no encoder that works here"):
        codecs.tool("h264")


def test_every_encoder_of_hardware_is_taken_where_it_works_and_passed_over_where_not() -> None:
    for codec, tools in codecs.HARDWARE.items():
        for one in tools:
            value, more = one.presets["medium"]
            told = {**more, **one.keys, **one.options(value)}
            if codecs.works(one.encoder, tuple(told.items()), one.pixels):
                assert codecs.tool(codec) is one
                break
        else:
            assert codecs.tool(codec) is codecs.SOFTWARE[codec]


def test_a_step_of_a_scale_is_told_as_the_encoder_wants_it() -> None:
    tools = {one.encoder: one for tools in codecs.HARDWARE.values() for one in tools}
    for encoder, wanted in (
        ("h264_nvenc", {"cq": "22"}),
        ("h264_amf", {"qp_i": "22", "qp_p": "22", "qp_b": "22"}),
        ("av1_amf", {"qp_i": "96", "qp_p": "96", "qp_b": "96"}),
        ("hevc_videotoolbox", {"global_quality": "8260"}),  # 70 of 100
    ):
        used = tools[encoder]
        assert used.options(used.presets["high"][0]) == wanted
    apple = tools["h264_videotoolbox"]
    first = [apple.presets[preset][0] for preset in ("high", "low")]
    found, _ = search(lambda value: 1 - 0.2 * 0.97**-value, 0.97, first, apple.finest, apple.coarsest)
    assert found == -63
    assert apple.setting(found) == "global_quality 7434"


def test_a_scale_in_118ths_is_a_scale_like_others(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is told its quality by the same option as VideoToolbox."""
    presets = {name: (value, {"flags": "+qscale"}) for name, value in (("low", 20), ("high", 3))}
    presets["medium"] = presets["high"]
    stand_in = codecs.Tool(
        "prores_ks", presets, "global_quality", worth=118, finest=1, coarsest=31, pixels="yuv422p10le"
    )
    monkeypatch.setattr(codecs, "HARDWARE", {"h264": (stand_in,)})
    low, high = (
        encoded(serial, numbered, tmp_path / quality, quality=quality, format="mkv")[0]
        for quality in ("low", "high")
    )
    assert (low.setting, high.setting) == ("global_quality 2360", "global_quality 354")
    assert low.bytes < high.bytes
    (one,) = encoded(serial, numbered, tmp_path / "target", quality=0.98, format="mkv")
    assert re.fullmatch(r"global_quality \d+", one.setting)
    assert one.ssim is not None
    assert one.ssim >= 0.98


def test_what_hardware_takes_is_what_it_gets(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that stands for one of hardware, which takes but one format."""
    presets = {name: (30, {"preset": "ultrafast"}) for name in ("low", "medium", "high")}
    stand_in = codecs.Tool("libx264", presets, "qp", pixels="nv12")
    monkeypatch.setattr(codecs, "HARDWARE", {"h264": (stand_in,)})
    (one,) = encoded(serial, numbered, tmp_path)
    assert (one.encoder, one.setting) == ("libx264", "qp 30")
    assert numbers(one.path) == list(range(150))
    (other,) = encoded(serial, numbered, tmp_path, hardware=False)
    assert other.setting == "crf 19"


# Batches


async def _encoded_async(source: Path, out: Path) -> list[VideoEncodingResponse]:
    with VideoEncodingProcessor() as processor:
        return await processor.process_batch_async(
            [{"source": source, "output_dir": out, "chunk_seconds": 2}]
        )


def test_async_callers_get_the_same(numbered: Path, tmp_path: Path) -> None:
    (response,) = asyncio.run(_encoded_async(numbered, tmp_path))
    assert response.outputs[0].frames == 150


def test_an_address_is_fetched_and_its_file_goes_again(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    with serve() as server:
        address = server.add("/films/a.mp4", numbered.read_bytes())
        (response,) = serial.process_batch_parallel([{"source": address, "output_dir": tmp_path}])
    assert response.error is None
    assert files(tmp_path) == {"a.mp4"}
    assert numbers(tmp_path / "a.mp4") == list(range(150))


@pytest.mark.parametrize("engine", ["serial", "thread", "process", "async"])
def test_a_bad_video_costs_only_itself_and_order_is_kept(engine: str, numbered: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    sources = [
        numbered,
        tmp_path / "noise.mp4",
        tmp_path / "no.mp4",
        write_audio(tmp_path / "s.wav"),
        numbered,
    ]
    out = tmp_path / "out"
    with VideoEncodingProcessor() as processor:
        found = processor.batch_encode_videos(sources, "mkv", "low", 2, output_dir=out, backend=engine)
    assert [one.success for one in found] == [True, False, False, False, True]
    kinds = [one.error.type for one in found if one.error]
    assert kinds == ["InvalidMedia", "SourceNotFound", "UnsupportedMedia"]
    assert files(out) == {"a.mkv"}, "what is asked for twice is made once"
    assert {one.backend for one in found} == {engine}
    assert found[0].outputs[0].frames == 150


@pytest.mark.slow
def test_damaged_videos_are_encoded_or_refused_and_never_hang_or_crash(tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = [
        write_video(tmp_path / name, frames=40, sound=tone(0.5, 0.2, 1.6))
        for name in ("a.mp4", "b.mkv", "c.ts")
    ]
    sources = []
    for number in range(60):
        seed = whole[number % 3]
        data = bytearray(seed.read_bytes())
        if number % 4 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice([1, 5, 50])):
                data[chance.randrange(len(data))] = chance.randrange(256)
        sources.append(tmp_path / f"{number}{seed.suffix}")
        sources[-1].write_bytes(data)
    with VideoEncodingProcessor(ParallelConfig(max_workers=2, timeout=40)) as processor:
        wants = {"output_dir": tmp_path / "out", "ladder": (120, 60), "quality": "low", "codec": "h264"}
        found = processor.process_batch_parallel([{"source": one, **wants} for one in sources])
    good = [one for one in found if one.success]
    assert 10 < len(good) < 60
    kinds = {one.error.type for one in found if one.error is not None}
    # MemoryError: FFmpeg's own word where a damaged header asks for more than there can be.
    assert kinds <= {"InvalidMedia", "UnsupportedMedia", "SourceError", "ConfigError", "MemoryError"}
    assert files(tmp_path / "out") == {one.path.name for response in good for one in response.outputs}
    for response in good:
        for one in response.outputs:
            assert len(shown(one.path)) == one.frames


@pytest.mark.parametrize("chunk_seconds", [None, 1])
@pytest.mark.parametrize("damaged", [range(40, 80), range(25, 30), range(62, 70)])
def test_pictures_that_are_damaged_are_counted_once_in_the_note(
    damaged: range, chunk_seconds: float | None, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    """Be they in one piece, in several, or where one begins, which shows while the one before is read."""
    source = write_video(tmp_path / "a.mp4", frames=scenes_of(200, *CUTS))
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for at in damaged:
        place, size = packets[at]
        assert place is not None
        data[place + 4 : place + size] = b"\xff" * (size - 4)
    source.write_bytes(data)
    with scope.entered(scope.Slot(threads=1)):
        (one,) = encoded(serial, source, tmp_path / "out", quality="low", chunk_seconds=chunk_seconds)
    lost = len(damaged)
    assert (one.frames, one.note) == (200 - lost, f"{lost} of its pictures were damaged and left out")


def test_clips_of_another_processor_are_encoded(samples: list[Path], tmp_path: Path) -> None:
    ask = VideoClipRequest(source=samples[0], output_dir=tmp_path / "clips", count=2, max_clip_length=3)
    with VideoClipProcessor() as clipper:
        results = clipper.process_batch_parallel([ask, tmp_path / "missing.mp4"])
    with VideoEncodingProcessor() as processor:
        found = processor.batch_encode_videos(
            results, format="webm", quality="low", output_dir=tmp_path / "o"
        )
    assert [one.success for one in found] == [True, True, False]
    assert found[2].error == results[1].error
    assert files(tmp_path / "o") == {"coast-01.webm", "coast-02.webm"}
    assert [one.outputs[0].frames for one in found[:2]] == [clip.frames for clip in results[0].clips]


def test_namesakes_and_files_of_others_are_never_written_over(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.mkv").write_text("mine")
    (out / "a-90p.mp4").write_text("mine")
    twin = write_video(tmp_path / "a.mp4", frames=5)
    found = [
        encoded(serial, source, out, **wants)[0].path.name
        for wants in ({"format": "mkv"}, {"ladder": (120,)})
        for source in (numbered, twin, numbered)
    ]
    assert found[:3] == ["a-2.mkv", "a-3.mkv", "a-2.mkv"]  # the same video has the same name again
    assert (out / "a.mkv").read_text() == (out / "a-90p.mp4").read_text() == "mine"
    assert len(numbers(out / "a-2.mkv")) == 150


def test_files_that_were_put_there_since_are_never_written_over(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    """Under the name that the video has by now, but of formats and sizes that it had not."""
    encoded(serial, numbered, tmp_path)
    for name in ("a.mkv", "a/notes.txt", "a-60p.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    names = [
        encoded(serial, numbered, tmp_path, **wants)[0].path.relative_to(tmp_path).as_posix()
        for wants in ({"format": "mkv"}, {"format": "hls"}, {"ladder": (60,)}, {"quality": "low"}, {})
    ]
    assert names == ["a-2.mkv", "a-2/120p.m4s", "a-2-60p.mp4", "a.mp4", "a.mp4"]
    assert {(tmp_path / name).read_text() for name in ("a.mkv", "a/notes.txt", "a-60p.mp4")} == {"mine"}


def test_a_video_smaller_than_its_ladder_keeps_its_name(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    for ladder in ((720,), (720, 60), (1080,), (360, 61)):
        found = encoded(serial, numbered, tmp_path, ladder=ladder, quality="low")
        assert found[0].path.name == "a-120p.mp4"


def test_a_folder_of_segments_with_files_of_others_is_not_replaced(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    request = {"source": numbered, "output_dir": tmp_path, "format": "hls", "quality": "low"}
    for _ in range(2):
        assert serial.process_batch_parallel([request])[0].success
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (response,) = serial.process_batch_parallel([request])
    assert response.error is not None
    assert "notes.txt" in response.error.message
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert files(tmp_path) == {"a"}


@pytest.mark.parametrize("ladder", [(60,), (720,)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_rendition_never_has_the_name_of_another_videos_file(
    ladder: tuple[int, ...], turned: bool, serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    side = min(120, *ladder)
    (tmp_path / "q").mkdir()
    plain = {"source": write_video(tmp_path / "q" / f"talk-{side}p.mov", frames=5)}
    laddered = {"source": write_video(tmp_path / "talk.mov", frames=9), "ladder": ladder}
    requests = [
        {**one, "output_dir": tmp_path / "out", "quality": "low"}
        for one in ((laddered, plain) if turned else (plain, laddered))
    ]
    found = [one.outputs[0] for one in serial.process_batch_parallel(requests)]
    assert [len(shown(one.path)) for one in found] == [one.frames for one in found]
    assert {one.frames for one in found} == {5, 9}


def test_an_output_never_replaces_its_source(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=5)
    before = source.read_bytes()
    (one,) = encoded(serial, source, tmp_path)
    assert one.path.name == "a-2.mp4"
    assert source.read_bytes() == before


def test_a_full_disk_leaves_no_rendition(
    serial: VideoEncodingProcessor, tmp_path: Path, tiny_disk: Path
) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 10 * 48_000).astype(np.float32)
    source = write_video(tmp_path / "a.mp4", frames=250, sound=noise)
    for wants in ({"ladder": (120, 60)}, {"chunk_seconds": 2}, {"format": "hls"}):
        (response,) = serial.process_batch_parallel([{"source": source, "output_dir": tiny_disk, **wants}])
        assert response.error is not None
        assert "the disk is full" in response.error.message
        assert str(tiny_disk / "a") in response.error.message
        assert {name for name in files(tiny_disk) if not name.endswith(".pieces")} == set()
        for folder in tiny_disk.glob(".*.pieces"):
            shutil.rmtree(folder)


def test_a_rendition_that_cannot_be_placed_leaves_none(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    wants = {"ladder": (120, 60), "quality": "low"}
    for one in encoded(serial, numbered, tmp_path, **wants):
        one.path.unlink()
    (tmp_path / "a-60p.mp4").mkdir()  # the name is this video's by now
    (response,) = serial.process_batch_parallel([{"source": numbered, "output_dir": tmp_path, **wants}])
    assert response.error is not None
    assert response.error.type == "OutputError"
    assert "a-60p.mp4" in response.error.message
    assert files(tmp_path) == {"a-60p.mp4"}


def test_a_checkpoint_answers_for_what_is_done(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    wants = {"output_dir": tmp_path / "out", "ladder": (120, 60), "chunk_seconds": 2}
    request = VideoEncodingRequest(source=numbered, **wants)
    first = serial.process_batch_parallel([request], checkpoint=tmp_path / "jobs.sqlite")
    made = {one.path: one.path.stat().st_mtime_ns for one in first[0].outputs}
    again = serial.process_batch_parallel([request], checkpoint=tmp_path / "jobs.sqlite")
    assert again[0].outputs == first[0].outputs
    assert {path: path.stat().st_mtime_ns for path in made} == made
    next(iter(made)).unlink()
    assert serial.process_batch_parallel([request], checkpoint=tmp_path / "jobs.sqlite")[0].success
    assert all(path.exists() for path in made)


def test_a_response_survives_json(serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path) -> None:
    (response,) = serial.process_batch_parallel([{"source": numbered, "output_dir": tmp_path}])
    assert VideoEncodingResponse.model_validate_json(response.model_dump_json()) == response


@pytest.mark.parametrize(
    ("wants", "says"),
    [
        ({"format": "avi"}, "format"),
        ({"format": "webm", "codec": "h264"}, "webm cannot have the codec h264"),
        ({"format": "gif", "quality": 0.9}, "gif has no target"),
        ({"quality": "best"}, "quality"),
        ({"quality": 1.5}, "quality"),
        ({"ladder": (720, 0)}, "ladder"),
        ({"parallel_workers": 0}, "parallel_workers is 0"),
        ({"chunk_seconds": 0}, "chunk_seconds"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(wants: dict[str, Any], says: str) -> None:
    with VideoEncodingProcessor() as processor, pytest.raises(ConfigError, match=says):
        processor.batch_encode_videos(["a.mp4"], **wants)


def test_one_path_instead_of_a_list_is_refused() -> None:
    with VideoEncodingProcessor() as processor, pytest.raises(ConfigError, match="single one"):
        processor.batch_encode_videos("a.mp4")


def test_more_workers_than_fit_are_not_started(
    tmp_path: Path, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video import resources

    large = write_video(tmp_path / "l.mp4", size=(1920, 1080), frames=1)
    sources = [str(numbered), "missing.mp4"]
    monkeypatch.setattr(resources, "usable_cpus", lambda: 4)
    with VideoEncodingProcessor(ParallelConfig(backend="serial")) as processor:
        for gigabytes, named, most, wanted in (
            (64, [*sources, str(large)], 8, 4),
            (3, sources, 8, 4),
            (3, sources, 3, 3),
            (3, [*sources, str(large)], 8, 2),
            (0.1, sources, None, 1),
        ):
            monkeypatch.setattr(resources, "free_memory", lambda gigabytes=gigabytes: gigabytes * 2.0**30)
            assert processor.widen(named, most) == wanted
            assert processor.config.max_workers == wanted


def test_no_more_workers_are_started_than_the_configuration_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    from video import resources

    monkeypatch.setattr(resources, "usable_cpus", lambda: 4)
    monkeypatch.setattr(resources, "free_memory", lambda: 64 * 2.0**30)
    with VideoEncodingProcessor(ParallelConfig(backend="serial", max_workers=3)) as processor:
        assert [processor.widen([], most) for most in (8, 2, None)] == [3, 2, 3]


def test_a_cache_in_memory_outlives_another_number_of_workers(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video import resources

    monkeypatch.setattr(resources, "usable_cpus", lambda: 2)
    config = ParallelConfig(backend="serial", enable_caching=True)
    with VideoEncodingProcessor(config) as processor:
        for workers in (2, 1):
            (response,) = processor.batch_encode_videos(
                [numbered], "mkv", "low", workers, output_dir=tmp_path, backend="serial"
            )
            assert response.success
            assert processor.config.max_workers == workers
        assert processor.runner.counts()["cache"]["hits"] == 1


@pytest.mark.parametrize("caching", [False, True])
def test_each_batch_is_announced_before_it_runs(caching: bool, numbered: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = ParallelConfig(backend="thread", max_workers=1, enable_caching=caching)
    with VideoEncodingProcessor(config) as processor:
        processor.announce = lambda title, names: said.append(f"{title}: {', '.join(names)}")
        encoded(processor, numbered, tmp_path / "out", quality="low", sound=False)
    assert said == ["videos: a.mp4"]


def test_a_clip_by_itself_is_enough(serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path) -> None:
    facts = {
        "start": 0,
        "end": 1,
        "score": 1,
        "reasons": [],
        "width": 1,
        "height": 1,
        "frames": 1,
        "bytes": 1,
    }
    clip = Clip.model_validate({"path": numbered, **facts})
    (response,) = serial.batch_encode_videos([clip], "mkv", "low", output_dir=tmp_path, backend="serial")
    assert response.outputs[0].frames == 150


# Pieces


@pytest.mark.parametrize(("format", "codec"), CODECS[:4])
@pytest.mark.parametrize("steady", [True, False])
def test_pieces_make_the_same_video_as_one_go(
    format: str, codec: str, steady: bool, serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    source = numbered
    if not steady:
        sound = tone(1, 0.5, 3)
        source = write_video(tmp_path / "a.mkv", frames=len(VFR_TIMES), times=VFR_TIMES, sound=sound)
    wants = {"format": format, "codec": codec}
    (whole,) = encoded(serial, source, tmp_path / "whole", **wants)
    (joined,) = encoded(serial, source, tmp_path / "pieces", chunk_seconds=1, **wants)
    assert (joined.frames, joined.seconds) == (whole.frames, whole.seconds)
    left, right = shown(whole.path), shown(joined.path)
    assert [one.number for one in left] == [one.number for one in right] == list(range(whole.frames))
    assert [one.seconds for one in left] == pytest.approx([one.seconds for one in right], abs=0.0011)
    (first, samples), (second, others) = heard(whole.path), heard(joined.path)
    assert first == second
    assert np.array_equal(samples, others)
    assert files(tmp_path / "pieces") == {joined.path.name}


def scenes_of(frames: int, *cuts: int) -> list[int]:
    """Numbers that differ in one block from each to the next, but in four or more where a scene begins."""
    pattern = 0b1111 << 8
    return [(at ^ at >> 1) | pattern * (sum(at >= cut for cut in cuts) % 2) for at in range(frames)]


def begins(planned: list[pieces.Piece]) -> list[int]:
    """The first picture of each, as its place in the video."""
    return list(itertools.accumulate((one.frames for one in planned[:-1]), initial=0))


def test_where_no_scene_changes_pieces_begin_at_key_frames_and_hold_every_frame_once(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=scenes_of(150), b_frames=3)
    for seconds in (1, 1.5, 3, 60):
        planned = pieces.plan(str(source), seconds)
        assert sum(one.frames for one in planned) == 150
        assert planned[0].start == 0
        assert planned[-1].end is None
        for one, following in itertools.pairwise(planned):
            assert one.end == following.start
            assert one.end * 25 % 12 == 0
            assert one.end - one.start >= seconds
    assert len(pieces.plan(str(source), 60)) == 1


OPEN = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=1"
LATE = [Fraction(number, 25) + 10 for number in range(75)]


CUTS = (31, 67, 110, 160)
EVENLY = [Fraction(at, 25) for at in range(200)]
UNEVENLY = [Fraction(at // 2 * 2, 25) + Fraction(at % 2, 50) for at in range(200)]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"times": UNEVENLY}),
        ("a.mp4", {"options": {"x264-params": OPEN}}),
        ("a.mp4", {"codec": "libx265", "options": {"x265-params": f"{OPEN}:log-level=none"}}),
        ("a.ts", {}),
    ],
    ids=["closed groups", "uneven times", "open groups", "open groups of HEVC", "transport stream"],
)
def test_pieces_begin_with_scenes_and_make_the_same_video(
    name: str, how: dict[str, Any], serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    """Key frames are at 0, 12, 24...; at 110 a scene begins too late, so that a key frame is taken."""
    shows = scenes_of(200, *CUTS)
    source = write_video(
        tmp_path / name, frames=shows, times=how.pop("times", EVENLY), sound=tone(1, 0.5, 8), **how
    )
    planned = pieces.plan(str(source), 1)
    assert begins(planned) == [0, 31, 67, 96, 132, 160]
    assert [one.start for one in planned[1:]] == [one.end for one in planned[:-1]]
    assert sum(one.frames for one in planned) == 200
    wants = {"quality": "medium"}
    (whole,) = encoded(serial, source, tmp_path / "whole", **wants)
    (joined,) = encoded(serial, source, tmp_path / "pieces", chunk_seconds=1, **wants)
    left, right = shown(whole.path), shown(joined.path)
    assert [one.number for one in left] == [one.number for one in right] == shows
    assert [one.seconds for one in left] == [one.seconds for one in right]
    stored = decoding_times(joined.path)
    assert all(one < following for one, following in itertools.pairwise(stored))
    assert np.array_equal(heard(whole.path)[1], heard(joined.path)[1])


def test_scenes_are_found_wherever_key_frames_are(tmp_path: Path) -> None:
    """In nothing but key frames; in groups of more than a window; and at a key frame itself."""
    shows = scenes_of(200, *CUTS)
    every = write_video(tmp_path / "every.mkv", frames=shows, codec="mjpeg", pixels="yuvj420p", gop=1)
    assert begins(pieces.plan(str(every), 1))[1:3] == [31, 67]
    few = write_video(tmp_path / "few.mp4", frames=shows, gop=50)
    assert begins(pieces.plan(str(few), 2)) == [0, 67, 150]
    there = write_video(tmp_path / "there.mp4", frames=scenes_of(200, 36))
    assert begins(pieces.plan(str(there), 1))[1] == 36
    stored = write_video(tmp_path / "stored.avi", frames=shows)  # it does not say when pictures are shown
    assert all(at % 12 == 0 for at in begins(pieces.plan(str(stored), 1)))


def test_a_video_of_one_key_frame_is_one_piece(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=scenes_of(200, *CUTS), gop=300)
    assert len(pieces.plan(str(source), 1)) == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {"options": {"x264-params": OPEN}}),
        ("a.mp4", {"codec": "libx265", "options": {"x265-params": f"{OPEN}:log-level=none"}}),
        ("a.ts", {}),
        ("a.mp4", {"times": LATE, "sound_start": 10}),
        ("a.mkv", {"rate": Fraction(30_000, 1001)}),
        ("a.mkv", {"sound_start": Fraction(1, 2)}),
    ],
    ids=["open groups", "open groups of HEVC", "transport stream", "late start", "29.97", "late sound"],
)
def test_pieces_of_odd_sources_make_the_same_video(
    name: str, how: dict[str, Any], serial: VideoEncodingProcessor, tmp_path: Path
) -> None:
    source = write_video(tmp_path / name, frames=75, sound=tone(1, 0.5, 3), **how)
    wants = {"quality": "medium"}
    (whole,) = encoded(serial, source, tmp_path / "whole", **wants)
    (joined,) = encoded(serial, source, tmp_path / "pieces", chunk_seconds=1, **wants)
    left, right = shown(whole.path), shown(joined.path)
    assert [one.number for one in left] == [one.number for one in right] == list(range(75))
    assert [one.seconds for one in left] == [one.seconds for one in right]
    assert np.array_equal(heard(whole.path)[1], heard(joined.path)[1])


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_pieces_fit_however_many_threads_made_each(codec: Any, numbered: Path, tmp_path: Path) -> None:
    """As where a run is taken up with another number of workers."""
    output = Output(tmp_path / "o.mp4", encoding=codecs.encoding("mp4", codec, "high", pieces=True)[0])
    planned = pieces.plan(str(numbered), 1)
    for piece in planned:
        with scope.entered(scope.Slot(threads=1 + piece.number % 3)):
            pieces.encode(str(numbered), piece, [output], tmp_path / "pieces")
    assert pieces.join(str(numbered), planned, 0, output, tmp_path / "pieces").frames == 150
    assert numbers(tmp_path / "o.mp4") == list(range(150))


def test_pieces_that_do_not_fit_are_all_made_again(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = pieces.join
    monkeypatch.setattr(pieces, "join", lambda *words: (_ for _ in ()).throw(OSError("killed")))
    request = {"source": numbered, "output_dir": tmp_path, "chunk_seconds": 2}
    assert not serial.process_batch_parallel([request])[0].success
    monkeypatch.setattr(pieces, "join", join)
    (folder,) = tmp_path.glob(".*.pieces")
    foreign = write_video(tmp_path / "b.mp4", frames=48, size=(80, 60))
    (folder / "00001-0.mp4").write_bytes(foreign.read_bytes())
    facts = folder / "00001.json"
    facts.write_text(json.dumps([{**json.loads(facts.read_text())[0], "bytes": foreign.stat().st_size}]))
    (response,) = serial.process_batch_parallel([request])
    assert "does not fit the others" in str(response.error)
    (one,) = encoded(serial, numbered, tmp_path, chunk_seconds=2)
    assert numbers(one.path) == list(range(150))


def test_pieces_of_videos_of_long_names_alike_stay_apart(
    serial: VideoEncodingProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [(160, 120), (160, 90), (80, 60)]
    sources = [
        write_video(tmp_path / f"{'x' * 45}{at}.mp4", frames=60, size=size) for at, size in enumerate(sizes)
    ]
    wants = {"quality": "low", "chunk_seconds": 1, "output_dir": tmp_path / "out", "backend": "serial"}
    found = serial.batch_encode_videos(sources, "mp4", **wants)
    assert [(one.outputs[0].width, one.outputs[0].height) for one in found] == sizes
    assert "is not compared" not in caplog.text


def test_pieces_that_were_left_of_other_settings_or_of_a_changed_file_are_not_used(
    serial: VideoEncodingProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=60)
    request = {"source": source, "output_dir": tmp_path / "out", "chunk_seconds": 1, "quality": "low"}
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "join", lambda *words: (_ for _ in ()).throw(OSError("killed")))
        assert not serial.process_batch_parallel([request])[0].success
    (other,) = encoded(serial, source, tmp_path / "out", chunk_seconds=1, quality="low", codec="hevc")
    video = probe(other.path).video
    assert video is not None
    assert video.codec == "hevc"
    write_video(source, frames=60, size=(320, 240))
    (one,) = encoded(serial, source, tmp_path / "out", chunk_seconds=1, quality="low")
    assert (one.width, one.height) == (320, 240)


def test_a_plan_is_taken_up_only_for_the_same_seconds_and_the_same_file(
    serial: VideoEncodingProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=scenes_of(200, *CUTS))
    monkeypatch.setattr(pieces, "join", lambda *words: (_ for _ in ()).throw(OSError("killed")))
    planned = pieces.plan
    plans: list[int] = []
    monkeypatch.setattr(pieces, "plan", lambda *words: plans.append(1) or planned(*words))
    request = {"source": source, "output_dir": tmp_path / "out", "quality": "low"}
    for seconds, made in ((1, 1), (1, 1), (2, 2)):
        serial.process_batch_parallel([{**request, "chunk_seconds": seconds}])
        assert len(plans) == made
    write_video(source, frames=scenes_of(200, 31))
    serial.process_batch_parallel([{**request, "chunk_seconds": 1}])
    assert len(plans) == 3
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob(".*.pieces/plan.json")]
    assert sorted(map(len, found)) == [3, 6, 6]


def test_a_piece_of_another_codec_or_another_plan_is_not_joined(numbered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    planned = pieces.plan(str(numbered), 2)

    def output(codec: Any) -> Output:
        return Output(tmp_path / "o.mp4", encoding=codecs.encoding("mp4", codec, "low", pieces=True)[0])

    for piece in planned:
        pieces.encode(str(numbered), piece, [output("h264")], folder)
    with pytest.raises(OutputError, match="is h264, not hevc"):
        pieces.join(str(numbered), planned, 0, output("hevc"), folder)
    pieces.encode(str(numbered), planned[0], [output("h264")], folder)
    with pytest.raises(OutputError, match="is missing"):
        pieces.join(str(numbered), pieces.plan(str(numbered), 1), 0, output("h264"), folder)


def test_pieces_of_a_ladder_in_several_workers(numbered: Path, tmp_path: Path) -> None:
    told: list[tuple[str, list[str]]] = []
    with VideoEncodingProcessor(ParallelConfig(max_workers=2)) as processor:
        processor.announce = lambda title, names: told.append((title, list(names)))
        found = encoded(processor, numbered, tmp_path, ladder=(120, 60), chunk_seconds=2)
    for one in found:
        assert numbers(one.path) == list(range(150))
        assert onset(one.path) == pytest.approx(1, abs=0.002)
    assert [title for title, _ in told] == ["looking at long videos", "pieces", "videos"]
    assert told[1][1] == ["a.mp4 1", "a.mp4 2", "a.mp4 3"]
    assert files(tmp_path) == {"a-120p.mp4", "a-60p.mp4"}


def test_a_target_is_looked_for_once_for_all_pieces(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video.media import target

    calls = []
    find = target.find
    monkeypatch.setattr(target, "find", lambda *words: calls.append(words) or find(*words))
    (one,) = encoded(serial, numbered, tmp_path, quality=0.95, chunk_seconds=2)
    assert len(calls) == 1
    assert one.ssim is not None
    assert one.ssim >= 0.95


PROGRAM = """
import sys
from video import ParallelConfig, VideoEncodingProcessor
from video.media import pieces
made = pieces.render
def slowly(*words, **more):
    import time
    time.sleep(0.3)
    return made(*words, **more)
pieces.render = slowly
with VideoEncodingProcessor(ParallelConfig(backend=sys.argv[3], max_workers=2)) as processor:
    request = {"source": sys.argv[1], "output_dir": sys.argv[2], "chunk_seconds": 1, "ladder": (120, 60)}
    print(processor.process_batch_parallel([request])[0].success)
"""


def test_a_killed_run_goes_on_with_the_pieces_that_are_done(
    serial: VideoEncodingProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = scenes_of(200, *CUTS)
    source = write_video(tmp_path / "a.mp4", frames=shows)
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(source), str(out), "serial"]
    program = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
    until(lambda: len(list(out.glob(".*.pieces/0*.json"))) >= 2 or program.poll() is not None)
    program.send_signal(signal.SIGKILL)
    program.wait(20)
    (folder,) = out.glob(".*.pieces")
    done = {path.name for path in folder.glob("0*.json")}
    total = len(pieces.plan(str(source), 1))
    assert 2 <= len(done) < total
    monkeypatch.delattr(pieces, "plan")  # what was planned holds

    again = []
    encode = pieces.render
    monkeypatch.setattr(
        pieces, "render", lambda *words, **more: again.append(words) or encode(*words, **more)
    )
    found = encoded(serial, source, out, chunk_seconds=1, ladder=(120, 60))
    assert len(again) == total - len(done)
    for one in found:
        assert numbers(one.path) == shows
    assert not folder.exists()


def test_a_piece_that_was_damaged_meanwhile_is_made_again(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a loss of power may leave it: its facts are there, its end is not."""
    join = pieces.join
    monkeypatch.setattr(pieces, "join", lambda *words: (_ for _ in ()).throw(OSError("killed")))
    request = {"source": numbered, "output_dir": tmp_path, "chunk_seconds": 2}
    assert not serial.process_batch_parallel([request])[0].success
    monkeypatch.setattr(pieces, "join", join)
    (folder,) = tmp_path.glob(".*.pieces")
    part = folder / "00001-0.mp4"
    part.write_bytes(part.read_bytes()[:1000])
    facts = folder / "00002.json"
    rows = json.loads(facts.read_text())
    facts.write_text(json.dumps([{**rows[0], "frames": 1}]))
    assert not serial.process_batch_parallel([request])[0].success  # that lie shows when it is read
    (one,) = encoded(serial, numbered, tmp_path, chunk_seconds=2)
    assert numbers(one.path) == list(range(150))


def test_an_address_is_not_encoded_in_pieces(serial: VideoEncodingProcessor, tmp_path: Path) -> None:
    request = {"source": "http://127.0.0.1:9/a.mp4", "output_dir": tmp_path, "chunk_seconds": 2}
    (response,) = serial.process_batch_parallel([request])
    assert response.error is not None
    assert "only a file on this machine" in response.error.message


# The documentation

DOCS = Path(__file__).parents[1] / "docs" / "encoding.md"


@pytest.mark.parametrize("number", range(DOCS.read_text("utf-8").count("```python")))
def test_the_documentations_python_runs(number: int, samples: list[Path], tmp_path: Path) -> None:
    shutil.copy(samples[0], tmp_path / "a.mp4")
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[number]
    (tmp_path / "block.py").write_text(code)
    more = {"env": dict(os.environ) | {"PYTHONPATH": str(DOCS.parents[1])}, "timeout": 100}
    program = [sys.executable, "block.py"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_documentation_has_the_presets_and_codecs_as_they_are() -> None:
    text = DOCS.read_text("utf-8")
    rows = dict.fromkeys(("h264", "hevc", "av1", "vp9"), "")
    for codec in rows:
        rows[codec] = "".join(text.split(f"\n| `{codec}` | low")[1].splitlines(keepends=True)[:3])
        tool = codecs.SOFTWARE[codec]  # type: ignore[index]
        for value, more in tool.presets.values():
            speed = f"cpu-used {more['cpu-used']}" if codec == "vp9" else more["preset"]
            assert f"{speed}, {tool.scale} {value} |" in rows[codec]
    for name, known in CODECS_OF.items():
        assert f"| `{name}` | " + (", ".join(f"`{one}`" for one in known) or "its own") in text


def test_a_source_that_was_cut_short_is_said_to_be(
    serial: VideoEncodingProcessor, samples: list[Path], tmp_path: Path
) -> None:
    (whole,) = encoded(serial, samples[0], tmp_path / "whole", quality="low")
    assert whole.note == ""
    part = tmp_path / "part.mp4"
    part.write_bytes(whole.path.read_bytes()[: whole.bytes // 2])
    (found,) = encoded(serial, part, tmp_path / "out", quality="low")
    assert 0 < found.frames < whole.frames
    missing = float(re.fullmatch(r"its source ends (\S+) s before its header says", found.note)[1])  # type: ignore[index]
    assert missing == pytest.approx(whole.seconds - found.seconds, abs=0.2)


def test_a_request_may_be_a_mapping_of_its_fields(
    serial: VideoEncodingProcessor, numbered: Path, tmp_path: Path
) -> None:
    (response,) = serial.batch_encode_videos(
        [{"source": str(numbered), "quality": "low"}], format="mkv", output_dir=tmp_path
    )
    assert [one.path.suffix for one in response.outputs] == [".mkv"]
    assert response.request is not None
    assert response.request.quality == "low"


@pytest.mark.parametrize(
    ("results", "wrong", "says"),
    [
        (["a.mp4"], {"parallel_workers": "x"}, "parallel_workers is 'x'"),
        (["a.mp4"], {"ladder": 90}, "ladder is 90"),
        (None, {}, "results is None"),
    ],
)
def test_arguments_of_other_types_are_named(
    results: Any, wrong: dict[str, Any], says: str, serial: VideoEncodingProcessor
) -> None:
    with pytest.raises(ConfigError, match=says):
        serial.batch_encode_videos(results, **wrong)
