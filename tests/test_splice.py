"""Smart cuts, decoded and compared with their source: right to the frame, whatever is copied."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import shared
from tests.media_files import (
    AUDIO_RATE,
    FLASH,
    decoded,
    decoding_times,
    heard,
    numbers,
    onset,
    shown,
    tone,
    write_video,
)
from video.media import base, index, nal, splice
from video.media.cut import Cut, cut
from video.media.judges import ssim
from video.media.probe import measure, probe

SIZE = (320, 240)
H264 = {"preset": "veryfast", "crf": "20"}
HEVC = "keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3:log-level=none:open-gop={open}"


def write_hevc(path: Path, *, open_gop: bool = False, gop: int = 12, **more: object) -> Path:
    options = {"preset": "superfast", "x265-params": HEVC.format(gop=gop, open=int(open_gop))}
    return write_video(path, codec="libx265", options=options, size=SIZE, **more)  # type: ignore[arg-type]


def write_h264(path: Path, **more: object) -> Path:
    return write_video(path, size=SIZE, b_frames=3, **more)  # type: ignore[arg-type]


@dataclass
class Checked:
    """A smart cut that was compared with its source."""

    cut: Cut
    copied: int
    """Frames that are the source's to the bit."""
    numbers: list[int]


def smart(
    source: Path, output: Path, start: float, end: float, mode: str = "smart", *, as_stored: bool = False
) -> Checked:
    """Cut, and compare every frame: copied ones to the bit, encoded ones by SSIM, all by their time."""
    with base.open_input(source) as container:
        video = base.video_stream(container)
        zero, tick = base.origin(container), base.fraction(video.time_base)
        span = zero + Fraction(start), zero + Fraction(end)
        job = splice.prepare(container, video, *span, as_stored=as_stored)
    assert job.plan.mode == mode
    clip = cut(source, output, start, end, "smart", as_stored=as_stored)
    assert clip.mode == mode, clip.reason
    assert clip.reason == job.plan.reason
    assert [(span.kind, span.frames) for span in clip.spans] == [
        (span.kind, span.frames) for span in job.plan.spans
    ]
    assert (clip.spans[0].start, clip.spans[-1].end) == (clip.start, clip.end)
    for before, after in itertools.pairwise(clip.spans):
        assert before.end == after.start
    stored = dict(decoded(source))
    frames = decoded(clip.path)
    assert len(frames) == clip.frames == len(job.times)
    rounding = Fraction(2, 1000)
    for (at, picture), pts in zip(frames, job.times, strict=True):
        assert abs(at - (pts - job.times[0]) * tick) <= rounding
        wanted = stored[min(stored, key=lambda one: abs(one - pts * tick))]
        if pts in job.copied:
            assert np.array_equal(picture, wanted)
        else:
            assert ssim(picture, wanted) > 0.97
    assert all(after > before for (before, _), (after, _) in itertools.pairwise(frames))
    dts = decoding_times(clip.path)
    assert all(after > before for before, after in itertools.pairwise(dts))
    assert clip.start == pytest.approx(float(job.times[0] * tick - zero), abs=1e-6)
    return Checked(clip, len(job.copied), numbers(clip.path))


# Key frames are at 0, 12, 24, ...; 25 frames a second.
SPANS = {
    "from before a key frame": (0.44, 2.04, 11, 50),
    "from a key frame": (0.48, 2.04, 12, 50),
    "from after a key frame": (0.52, 2.04, 13, 50),
    "to before a key frame": (0.48, 1.88, 12, 46),
    "to a key frame": (0.52, 1.92, 13, 47),
    "to after a key frame": (0.48, 1.96, 12, 48),
    "from between frames": (0.61, 2.19, 16, 54),
    "beyond the end": (0.5, 99.0, 13, 74),
    "the last group": (2.84, 3.0, 71, 74),
}


@pytest.fixture(
    scope="module", params=["h264.mp4", "h264.mkv", "hevc.mp4", "hevc.mov", "open.mp4", "open.mkv"]
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 frames with B-frames and sound."""
    path = tmp_path_factory.mktemp("in") / request.param
    sound = tone(0, 3, 3)
    if path.stem == "h264":
        return write_h264(path, frames=75, sound=sound)
    return write_hevc(path, frames=75, sound=sound, open_gop=path.stem == "open")


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_a_smart_cut_is_right_to_the_frame(
    source: Path, tmp_path: Path, span: tuple[float, float, int, int]
) -> None:
    start, end, first, last = span
    planned = "copy" if copied_whole(source, start, end) else "smart"
    found = smart(source, tmp_path / f"o{source.suffix}", start, end, planned)
    assert found.numbers == list(range(first, last + 1))
    assert found.copied > 0
    first_sample, samples = heard(found.cut.path)
    assert first_sample == 0
    assert len(samples) / AUDIO_RATE == pytest.approx(len(found.numbers) / 25, abs=0.022)


@pytest.fixture(autouse=True)
def always_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splice small clips too, which are cheaper to encode."""
    usual = splice.smart.usual_costs

    def dear(*kind: object, **more: object) -> object:
        costs = usual(*kind, **more)  # type: ignore[arg-type]
        return type(costs)(costs.decode, costs.encode, 1000.0, costs.copy, costs.splice)

    monkeypatch.setattr(splice.smart, "usual_costs", dear)


def copied_whole(source: Path, start: float, end: float) -> bool:
    with base.open_input(source) as container:
        video = base.video_stream(container)
        zero = base.origin(container)
        return (
            splice.prepare(container, video, zero + Fraction(start), zero + Fraction(end)).plan.mode == "copy"
        )


def test_the_whole_file_is_copied(source: Path, tmp_path: Path) -> None:
    found = smart(source, tmp_path / f"o{source.suffix}", 0, 3, "copy")
    assert found.numbers == list(range(75))
    assert found.copied == 75


def test_one_frame_is_right(source: Path, tmp_path: Path) -> None:
    for frame in (12, 15, 23, 24):
        clip = cut(source, tmp_path / f"o{source.suffix}", frame / 25, (frame + 1) / 25, "smart")
        assert numbers(clip.path) == [frame]


def test_a_clip_between_key_frames_is_encoded(source: Path, tmp_path: Path) -> None:
    clip = cut(source, tmp_path / f"o{source.suffix}", 0.52, 0.72, "smart")
    assert (clip.mode, clip.reason) == ("exact", "no key frame that a copy could begin at")
    assert numbers(clip.path) == list(range(13, 18))


def test_hevc_with_open_groups_says_so_of_its_first_copied_picture(tmp_path: Path) -> None:
    source = write_hevc(tmp_path / "a.mp4", frames=75, open_gop=True)
    clip = smart(source, tmp_path / "o.mp4", 0.32, 2.52).cut
    assert 18 in kinds(clip.path), "a picture after a splice is a BLA one"
    assert 21 in kinds(source)
    assert 21 in kinds(clip.path), "later ones stay as they are"


def kinds(path: Path) -> set[int]:
    """The kinds of HEVC units in a file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        _, length = nal.header_of("hevc", stream.codec_context.extradata)
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    return {nal.kind_of("hevc", unit) for packet in packets for unit in nal.split(packet, length)}


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4"])
def test_both_encoders_parameter_sets_are_in_the_header_and_nowhere_else(tmp_path: Path, name: str) -> None:
    codec = name.partition(".")[0]
    write = write_h264 if codec == "h264" else write_hevc
    clip = smart(write(tmp_path / name, frames=75), tmp_path / "o.mp4", 0.32, 2.52).cut
    with av.open(str(clip.path)) as container:
        context = container.streams.video[0].codec_context
        assert context.codec_tag == ("avc1" if codec == "h264" else "hvc1")
        sets, length = nal.header_of(codec, context.extradata)
        sequence, picture, video = sets.numbers()
        assert (len(sequence), len(picture), len(video)) == (2, 2, 0 if codec == "h264" else 2)
        for packet in container.demux(video=0):
            assert not any(nal.is_set(codec, unit) for unit in nal.split(bytes(packet), length))


def test_h264_with_open_groups_is_encoded(tmp_path: Path) -> None:
    params = "keyint=12:min-keyint=12:scenecut=0:bframes=3:open-gop=1"
    source = write_h264(tmp_path / "a.mp4", frames=75, options={"x264-params": params})
    clip = cut(source, tmp_path / "o.mp4", 0.3, 2.5, "smart")
    assert (clip.mode, clip.reason) == ("exact", "no key frame that a copy could begin at")
    assert numbers(clip.path) == list(range(8, 63))


VFR_TIMES = [Fraction(at, 50) for at in itertools.accumulate([1, 1, 3, 1, 2, 5, 1, 1, 8, 2] * 6, initial=0)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_variable_frame_rate_keeps_its_distances(tmp_path: Path, name: str, codec: str) -> None:
    write = write_h264 if codec == "h264" else write_hevc
    source = write(tmp_path / name, frames=len(VFR_TIMES), times=VFR_TIMES)
    found = smart(source, tmp_path / f"o{name[1:]}", 0.2, 2.4)
    assert found.numbers == [number for number, at in enumerate(VFR_TIMES) if 0.2 <= at < 2.4]


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(60)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_fractional_rates_hold_seconds_times_rate_frames(tmp_path: Path, name: str, rate: Fraction) -> None:
    source = write_h264(tmp_path / name, rate=rate, frames=90)
    start, end = round(float(7 / rate), 4), round(float(82 / rate), 4)
    found = smart(source, tmp_path / f"o{name[1:]}", start, end)
    assert found.numbers == list(range(7, 82))
    assert len(found.numbers) == round((end - start) * rate)


def test_an_edit_list_stays_honoured(tmp_path: Path) -> None:
    times = [Fraction(number - 5, 25) for number in range(75)]
    source = write_h264(tmp_path / "a.mp4", times=times, frames=75, sound=tone(1, 0.1, 3))
    assert numbers(source)[0] == 5
    found = smart(source, tmp_path / "o.mp4", 0, 2.6)
    assert found.numbers == list(range(5, 70))


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_time_counts_from_where_the_file_starts(tmp_path: Path, name: str) -> None:
    times = [10 + Fraction(number, 25) for number in range(75)]
    source = write_h264(tmp_path / name, times=times, frames=75, sound=tone(1, 0.1, 3), sound_start=10)
    found = smart(source, tmp_path / "o.mp4", 0.5, 2.2)
    first = found.cut.start - measure(source).start_seconds
    assert found.numbers[0] == round(first * 25)
    assert found.numbers == list(range(found.numbers[0], found.numbers[0] + len(found.numbers)))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_the_rotation_is_kept_where_it_may_be(tmp_path: Path, rotation: int) -> None:
    source = write_h264(tmp_path / "a.mp4", frames=75, rotation=rotation)
    clip = smart(source, tmp_path / "o.mp4", 0.32, 2.52, as_stored=True).cut
    assert (clip.width, clip.height) == (SIZE if rotation == 180 else SIZE[::-1])
    video = probe(clip.path).video
    assert video is not None
    assert video.rotation == rotation


def test_the_pixel_shape_is_kept_where_it_may_be(tmp_path: Path) -> None:
    source = write_h264(tmp_path / "a.mp4", frames=75, shape=Fraction(2, 3))
    clip = smart(source, tmp_path / "o.mp4", 0.32, 2.52, as_stored=True).cut
    video = probe(clip.path).video
    assert video is not None
    assert video.sample_aspect_ratio == Fraction(2, 3)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuv444p"])
def test_the_pixel_format_is_kept_where_it_may_be(tmp_path: Path, pixels: str, codec: str) -> None:
    write = write_h264 if codec == "h264" else write_hevc
    source = write(tmp_path / "a.mp4", frames=75, pixels=pixels)
    clip = smart(source, tmp_path / "o.mp4", 0.32, 2.52, as_stored=True).cut
    video = probe(clip.path).video
    assert video is not None
    assert (video.codec, video.pixel_format) == (codec, pixels)


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("a.mp4", {"rotation": 90}, "players have to turn its pictures by 90 degrees"),
        ("a.mov", {"rotation": 180}, "players have to turn its pictures by 180 degrees"),
        ("a.mkv", {"rotation": 270}, "players have to turn its pictures by 270 degrees"),
        ("a.mp4", {"shape": Fraction(2, 3)}, "its pixels are not square (2:3)"),
        ("a.mkv", {"size": (161, 121), "pixels": "yuv444p"}, "its pictures have an odd size (161x121)"),
        ("a.mp4", {"pixels": "yuv420p10le"}, "its pixel format, yuv420p10le, is not one that every player"),
        ("a.mp4", {"pixels": "yuv422p"}, "its pixel format, yuv422p, is not one that every player shows"),
    ],
)
def test_what_players_would_have_to_change_is_encoded_as_exact_does_it(
    tmp_path: Path, name: str, more: dict[str, object], reason: str
) -> None:
    source = write_video(tmp_path / name, frames=75, **more)  # type: ignore[arg-type]
    clip = cut(source, tmp_path / "o.mp4", 0.32, 2.52, "smart")
    assert clip.mode == "exact"
    assert clip.reason.startswith(reason)
    assert [(span.kind, span.frames) for span in clip.spans] == [("encode", 55)]
    assert numbers(clip.path) == list(range(8, 63))
    assert clip.path.read_bytes() == cut(source, tmp_path / "e.mp4", 0.32, 2.52, "exact").path.read_bytes()
    video = probe(clip.path).video
    assert video is not None
    assert (video.rotation, video.sample_aspect_ratio, video.pixel_format) == (0, 1, "yuv420p")


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
def test_the_profile_is_kept(tmp_path: Path, profile: str) -> None:
    options = {"preset": "veryfast", "profile": profile}
    source = write_video(tmp_path / "a.mp4", size=SIZE, frames=75, b_frames=0, options=options)
    clip = smart(source, tmp_path / "o.mp4", 0.32, 2.52).cut
    with av.open(str(clip.path)) as container:
        sets, _ = nal.header_of("h264", container.streams.video[0].codec_context.extradata)
    profiles = {unit[1] for unit in sets.units if nal.kind_of("h264", unit) == 7}
    assert profiles == {{"baseline": 66, "main": 77, "high": 100}[profile]}


# Sound


@pytest.mark.parametrize("late", [0, 0.3, -0.2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_keeps_its_place(tmp_path: Path, late: float, suffix: str) -> None:
    frames = [FLASH if number == 40 else number for number in range(100)]
    source = write_h264(tmp_path / f"a.{suffix}", frames=frames, sound=tone(1.6 + late, 0.2, 4))

    def delay(path: Path) -> float:
        flash = next(frame.seconds for frame in shown(path) if frame.number == FLASH)
        return onset(path) - float(flash)

    clip = smart(source, tmp_path / f"o.{suffix}", 0.7, 3.1).cut
    assert delay(clip.path) == pytest.approx(delay(source), abs=0.005)


@pytest.mark.parametrize(("seconds", "begins"), [(1, 0), (6, 0), (1, 2), (2, -0.3)])
def test_sound_is_as_long_as_the_pictures(tmp_path: Path, seconds: float, begins: float) -> None:
    source = write_h264(
        tmp_path / "a.mp4", frames=100, sound=tone(0, seconds, seconds), sound_start=Fraction(begins)
    )
    clip = smart(source, tmp_path / "o.mp4", 0.5, 3.5).cut
    first, samples = heard(clip.path)
    assert first == 0
    if seconds + begins < 3.5:
        assert len(samples) / AUDIO_RATE <= 3.03
    else:
        assert len(samples) / AUDIO_RATE == pytest.approx(3, abs=0.022)


def test_sound_has_no_clicks_at_the_splices(tmp_path: Path) -> None:
    source = write_h264(tmp_path / "a.mp4", frames=100, sound=tone(0, 4, 4))
    clip = smart(source, tmp_path / "o.mp4", 0.3, 3.5).cut
    _, samples = heard(clip.path)
    middle = samples[4800:-4800]
    # A tone of 1 kHz at 0.5 moves by at most 0.5 * 2 * pi * 1000 / 48000 from sample to sample.
    assert np.abs(np.diff(middle)).max() < 0.5 * 2 * np.pi * 1000 / AUDIO_RATE * 1.1


# Natural video


@pytest.mark.parametrize(("start", "end"), [(3.3, 9.7), (4.0, 8.0), (5.96, 12.04)])
def test_a_talk_is_spliced(tmp_path: Path, start: float, end: float) -> None:
    found = smart(shared("talk.mp4"), tmp_path / "o.mp4", start, end, "copy" if start == 4 else "smart")
    assert found.copied > 0.6 * found.cut.frames


def test_cars_with_long_groups_are_spliced(tmp_path: Path) -> None:
    found = smart(shared("cars.mp4"), tmp_path / "o.mp4", 3.0, 12.0)
    assert found.cut.frames == round(9.0 * 12.5)


def test_natural_hevc_is_spliced(tmp_path: Path) -> None:
    """A part of the talk in HEVC: encoded pictures are like those of the source, as everywhere."""
    with av.open(str(shared("talk.mp4"))) as talk, av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.options = {"preset": "superfast", "x265-params": HEVC.format(gop=25, open=1)}
        for number, frame in zip(range(75), talk.decode(video=0), strict=False):
            small = frame.reformat(640, 360, "yuv420p")
            small.pts, small.time_base, small.pict_type = number, Fraction(1, 25), 0
            out.mux(stream.encode(small))
        out.mux(stream.encode(None))
    found = smart(tmp_path / "a.mp4", tmp_path / "o.mp4", 0.4, 2.9)
    assert found.cut.frames - found.copied > 15


# What cannot be spliced


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("a.mkv", {"codec": "ffv1"}, "only H.264 and HEVC can be spliced, not ffv1"),
        ("a.avi", {}, "it does not say when its pictures are shown"),
        ("a.mp4", {"options": {"x264-params": "keyint=12:tff=1"}}, "it is interlaced"),
        ("a.h264", {}, "it has no timestamps"),
    ],
)
def test_other_streams_are_encoded_with_a_reason(
    tmp_path: Path, name: str, more: dict[str, object], reason: str
) -> None:
    source = write_video(tmp_path / name, frames=75, b_frames=0, size=SIZE, **more)  # type: ignore[arg-type]
    clip = cut(source, tmp_path / "o.mp4", 0.3, 2.5, "smart")
    assert (clip.mode, clip.reason) == ("exact", reason)
    assert clip.frames == pytest.approx(55, abs=2)
    assert {path.name for path in tmp_path.iterdir()} == {name, "o.mp4"}


def test_parameters_that_change_midway_are_noticed(tmp_path: Path) -> None:
    one = write_h264(tmp_path / "one.h264", frames=36)
    other = write_h264(
        tmp_path / "other.h264", frames=36, options={"x264-params": "keyint=12:ref=4:8x8dct=0"}
    )
    with av.open(str(tmp_path / "a.ts"), "w") as out:
        stream = None
        at = itertools.count()
        for part in (one, other):
            with av.open(str(part)) as container:
                if stream is None:
                    stream = out.add_stream_from_template(container.streams.video[0], opaque=True)
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.time_base = Fraction(1, 25)
                        packet.dts = next(at)
                        packet.pts = packet.dts + 4
                        out.mux(packet)
    clip = cut(tmp_path / "a.ts", tmp_path / "o.mp4", 0.3, 2.5, "smart")
    assert clip.mode == "exact"


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("broken", ["copied", "encoded", "lost"])
def test_a_splice_that_fails_its_check_is_encoded_anew(
    tmp_path: Path, codec: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = splice._Pictures._write

    def damaged(self: splice._Pictures, pts: int, data: bytes, key: bool) -> None:
        hit = key and (pts in self._job.copied) == (broken == "copied")
        if hit and broken != "lost":
            half = len(data) // 2
            data = data[:half] + bytes(byte ^ 0x55 for byte in data[half:])
        elif hit:
            data = nal.joined([b"\x0c\xff\x80" if codec == "h264" else b"\x4c\x01\xff\x80"])  # only filler
        write(self, pts, data, key)

    source = (write_h264 if codec == "h264" else write_hevc)(tmp_path / "a.mp4", frames=75)
    monkeypatch.setattr(splice._Pictures, "_write", damaged)
    clip = cut(source, tmp_path / "o.mp4", 0.32, 2.52, "smart")
    assert clip.mode == "exact"
    assert "the check failed" in clip.reason
    assert numbers(clip.path) == list(range(8, 63))
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "o.mp4"}


def test_an_index_knows_where_groups_are_open(tmp_path: Path) -> None:
    for opened in (False, True):
        source = write_hevc(tmp_path / "a.mp4", frames=40, open_gop=opened)
        with base.open_input(source) as container:
            stored = index.read(container, base.video_stream(container), 0, 90_000 * 2)
        keys = [at for at, one in enumerate(stored) if one.key]
        assert [stored[at].pts // 3600 for at in keys] == [0, 12, 24, 36]
        assert (stored[keys[1] + 1].pts < stored[keys[1]].pts) == opened
