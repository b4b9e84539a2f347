"""What is measured of a video agrees with what was made, and with other tools."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from tests.media_files import AUDIO_RATE, tone, write_audio, write_video
from tests.test_cli import ENVIRONMENT
from video.errors import ConfigError, InvalidMedia, SourceNotFound, UnsupportedMedia
from video.media.cut import cut
from video.media.hashing import perceptual_hash
from video.media.judges import similarity, ssim
from video.media.quality import measure_quality
from video.media.render import Output, render


def reencoded(source: Path, target: Path, crf: int, *, size: tuple[int, int] | None = None) -> Path:
    """The same pictures, with losses."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        video = container.streams.video[0]
        stream = out.add_stream("libx264", rate=video.average_rate, options={"crf": str(crf)})
        stream.width, stream.height = size or (video.width, video.height)
        stream.pix_fmt = "yuv420p"
        for frame in container.decode(video):
            fitted = frame.reformat(stream.width, stream.height, "yuv420p")
            fitted.pict_type = 0
            out.mux(stream.encode(fitted))
        out.mux(stream.encode(None))
    return target


def planes(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="yuv420p").astype(float) for frame in container.decode(video=0)]


def made(path: Path, pictures: list[np.ndarray], rate: int = 25) -> Path:
    """A video of these grey pictures, without losses."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        for grey in pictures:
            out.mux(stream.encode(VideoFrame.from_ndarray(grey, "gray").reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return path


def test_a_video_is_the_same_as_itself(samples: list[Path]) -> None:
    likeness = measure_quality(samples[0], samples[0]).likeness
    assert likeness is not None
    assert (likeness.ssim, likeness.ssim_worst, likeness.hash_distance) == (1.0, 1.0, 0.0)
    assert (likeness.psnr, likeness.xpsnr) == (math.inf, math.inf)
    assert (likeness.frames, likeness.unmatched) == (len(planes(samples[0])), 0)


@pytest.mark.parametrize(("size", "xpsnr"), [((16, 16), None), ((46, 44), None), ((64, 32), "inf")])
def test_pictures_too_small_for_the_blocks_of_xpsnr_are_measured_without(
    size: tuple[int, int], xpsnr: str | None, tmp_path: Path
) -> None:
    write_video(tmp_path / "tiny.mp4", frames=5, size=size)
    # In a process of its own, which FFmpeg's filter would end.
    program = (
        "from video.media.quality import measure_quality as measure;"
        "likeness = measure('tiny.mp4', 'tiny.mp4').likeness; print(likeness.ssim, likeness.xpsnr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout.split()) == (0, ["1.0", str(xpsnr)]), found.stderr


def test_pictures_too_small_for_the_blocks_of_ssim_are_refused(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.mp4", frames=5, size=(64, 14))
    assert measure_quality(small).frames == 5
    with pytest.raises(UnsupportedMedia, match="64x14"):
        measure_quality(small, small)


def test_the_errors_are_those_that_the_pixels_have(samples: list[Path], tmp_path: Path) -> None:
    worse = reencoded(samples[0], tmp_path / "worse.mp4", 38)
    pairs = zip(planes(samples[0]), planes(worse), strict=True)
    expected = 10 * math.log10(255**2 / np.mean([np.mean((one - other) ** 2) for one, other in pairs]))
    likeness = measure_quality(worse, samples[0]).likeness
    assert likeness is not None
    assert likeness.psnr == pytest.approx(expected, abs=0.01)
    assert likeness.ssim_worst < likeness.ssim < 1


def test_ssim_is_what_the_ffmpeg_command_says(samples: list[Path], tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    worse = reencoded(samples[0], tmp_path / "worse.mp4", 38)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        worse,
        "-i",
        samples[0],
        "-lavfi",
        "ssim",
        "-f",
        "null",
        "-",
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    found = re.search(r"SSIM .* All:([\d.]+)", said)
    assert found is not None
    likeness = measure_quality(worse, samples[0]).likeness
    assert likeness is not None
    assert likeness.ssim == pytest.approx(float(found[1]), abs=1e-4)


def test_what_is_encoded_worse_is_less_like_its_source_but_shows_the_same(
    samples: list[Path], tmp_path: Path
) -> None:
    found = [
        measure_quality(reencoded(samples[0], tmp_path / f"{crf}.mp4", crf), samples[0]).likeness
        for crf in (20, 30, 40)
    ]
    assert all(found)
    for measure in ("ssim", "psnr", "xpsnr"):
        values: list[float] = [getattr(one, measure) for one in found]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 3
    assert max(one.hash_distance for one in found if one) < 10


def test_another_scene_has_another_hash_and_another_size_has_not(samples: list[Path], tmp_path: Path) -> None:
    small = reencoded(samples[0], tmp_path / "small.mp4", 20, size=(96, 54))
    same, other = (measure_quality(one, samples[0]).likeness for one in (small, samples[1]))
    assert same is not None
    assert other is not None
    assert same.hash_distance < 6
    assert other.hash_distance > 15


def test_a_part_is_compared_with_the_time_that_it_was_cut_from(samples: list[Path], tmp_path: Path) -> None:
    cut(samples[0], tmp_path / "part.mp4", 3.0, 5.0)
    right = measure_quality(tmp_path / "part.mp4", samples[0], offset=3.0).likeness
    wrong = measure_quality(tmp_path / "part.mp4", samples[0]).likeness
    assert right is not None
    assert wrong is not None
    assert right.ssim > 0.97 > wrong.ssim


def test_pictures_are_compared_by_time_where_rates_differ(tmp_path: Path) -> None:
    """Each one of 50 a second with the one of 25 that is shown then."""
    pictures = [np.full((64, 64), 16 + 4 * number, np.uint8) for number in range(40)]
    slow = made(tmp_path / "slow.mp4", pictures)
    fast = made(tmp_path / "fast.mp4", [one for one in pictures for _ in range(2)], rate=50)
    likeness = measure_quality(fast, slow).likeness
    assert likeness is not None
    assert likeness.psnr == math.inf
    assert (likeness.frames, likeness.unmatched) == (80, 0)


@pytest.mark.parametrize(
    ("picture", "times"),
    [("setpts=round(PTS/1.05)", {"speed": 1.05}), ("setpts='PTS+gt(N,0)*round(0.4/TB)'", {"lead": 0.4})],
    ids=["speed", "lead"],
)
def test_each_picture_is_compared_with_the_one_it_was_made_from_at_other_times(
    picture: str, times: dict[str, float], samples: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.mp4"
    render(samples[0], [Output(other, picture, None)])
    right, wrong = (measure_quality(other, samples[0], **one).likeness for one in (times, {}))
    assert right is not None
    assert wrong is not None
    assert right.unmatched == 0
    assert right.ssim_worst > 0.9 > wrong.ssim_worst


@pytest.mark.parametrize("times", [{"speed": 0.0}, {"speed": math.nan}, {"lead": -1.0}])
def test_times_that_make_no_sense_are_refused(times: dict[str, float], samples: list[Path]) -> None:
    with pytest.raises(ConfigError, match=next(iter(times))):
        measure_quality(samples[0], samples[0], **times)


def test_ssim_is_one_for_the_same_and_little_for_others() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (120, 160)).astype(np.uint8)
    assert ssim(noise, noise) == pytest.approx(1)
    assert ssim(noise, noise[::-1]) < 0.1
    assert ssim(noise, np.clip(noise.astype(int) + 2, 0, 255).astype(np.uint8)) > 0.97


def test_similarity_is_that_of_the_pairs() -> None:
    dice = np.random.default_rng(3)
    one, other = (
        VideoFrame.from_ndarray(dice.integers(0, 255, (64, 64), np.uint8), "gray").reformat(format="yuv420p")
        for _ in range(2)
    )
    assert similarity([(one, one)] * 3) == 1.0
    assert similarity([(one, one), (one, other)]) == pytest.approx((1 + similarity([(one, other)])) / 2)
    with pytest.raises(ConfigError, match="no pair"):
        similarity([])


def test_pictures_beyond_the_end_of_the_reference_are_counted(tmp_path: Path) -> None:
    pictures = [np.full((64, 64), 16 + 4 * number, np.uint8) for number in range(40)]
    long, short = made(tmp_path / "long.mp4", pictures), made(tmp_path / "short.mp4", pictures[:30])
    likeness = measure_quality(long, short).likeness
    assert likeness is not None
    assert (likeness.frames, likeness.unmatched) == (30, 10)
    assert likeness.psnr == math.inf
    with pytest.raises(InvalidMedia, match="no picture at whose time"):
        measure_quality(long, short, offset=60)


def test_black_and_frozen_spans_are_found_and_others_are_not(tmp_path: Path) -> None:
    """A second of each: moving, black, moving, frozen, and moving again; black does not move either."""
    chance = np.random.default_rng(1)
    noise = [chance.integers(60, 200, (64, 96), np.uint8) for _ in range(75)]
    black, still = np.zeros((64, 96), np.uint8), noise[60]
    pictures = [*noise[:25], *[black] * 25, *noise[25:50], *[still] * 25, *noise[50:75]]
    found = measure_quality(made(tmp_path / "spans.mp4", pictures))
    assert [(round(start, 2), round(end, 2)) for start, end in found.black] == [(1.0, 2.0)]
    assert [(round(start, 2), round(end, 2)) for start, end in found.frozen] == [(1.0, 2.0), (3.0, 4.0)]


def test_a_span_that_lasts_to_the_end_ends_there(tmp_path: Path) -> None:
    found = measure_quality(made(tmp_path / "black.mp4", [np.zeros((64, 96), np.uint8)] * 50))
    assert found.black == ((0.0, pytest.approx(2.0)),)
    assert found.frozen == ((0.0, pytest.approx(2.0)),)
    assert (found.frames, found.seconds, found.blur) == (50, pytest.approx(2.0), 0.0)


def test_a_blurred_picture_has_wider_edges(samples: list[Path], tmp_path: Path) -> None:
    small = reencoded(samples[0], tmp_path / "small.mp4", 10, size=(40, 22))
    blurred = reencoded(small, tmp_path / "blurred.mp4", 10, size=(160, 90))
    assert measure_quality(blurred).blur > 1.2 * measure_quality(samples[0]).blur


def test_loudness_is_that_of_the_standard(tmp_path: Path) -> None:
    """BS.1770: a tone of 1 kHz in one channel has -3.01 LUFS at full scale; this one is half as high."""
    path = write_video(tmp_path / "tone.mkv", frames=100, sound=tone(0, 4, 4), sound_codec="pcm_s16le")
    found = measure_quality(path)
    assert found.loudness == pytest.approx(-3.01 + 20 * math.log10(0.5), abs=0.3)
    assert found.true_peak == pytest.approx(20 * math.log10(0.5), abs=0.5)


def test_silence_and_no_sound_have_no_loudness(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.mp4", sound=np.zeros(2 * AUDIO_RATE, np.float32))
    for path in (silent, write_video(tmp_path / "none.mp4")):
        found = measure_quality(path)
        assert (found.loudness, found.true_peak) == (None, None)


def test_pictures_that_an_edit_list_hides_are_decoded_for_those_that_need_them(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", frames=60, gop=50)
    part = tmp_path / "part.mp4"
    with av.open(str(whole)) as source, av.open(str(part), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        shift = round(Fraction(1, 2) / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.dts is not None:  # a player starts half a second in
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    with av.open(str(part)) as container:
        shown = sum(1 for _ in container.decode(video=0))
    assert 0 < shown < 60
    found = measure_quality(part, whole, offset=60 / 25 - shown / 25)
    assert found.frames == shown
    assert found.likeness is not None
    assert found.likeness.psnr == math.inf


def test_a_truncated_file_is_measured_as_far_as_it_goes(samples: list[Path], tmp_path: Path) -> None:
    whole = reencoded(samples[0], tmp_path / "whole.mkv", 23)
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = measure_quality(part, samples[0])
    assert found.likeness is not None
    assert 0 < found.frames < len(planes(whole))


def test_damaged_sound_is_passed_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=75, sound=tone(0, 3, 3))
    with av.open(str(path)) as container:
        places = [(one.pos, one.size) for one in container.demux(audio=0) if one.size]
    data = bytearray(path.read_bytes())
    for number, (place, size) in enumerate(places[20:60]):
        data[place : place + size] = bytes([7 * number % 256]) * size
    path.write_bytes(data)
    found = measure_quality(path)
    assert found.frames == 75
    assert found.loudness is not None


@pytest.mark.parametrize("which", ["path", "reference"])
def test_files_that_cannot_be_measured_are_named(which: str, samples: list[Path], tmp_path: Path) -> None:
    sound = write_audio(tmp_path / "sound.wav")
    (tmp_path / "text.mp4").write_text("no video at all" * 100)
    (tmp_path / "empty.mp4").touch()
    for path, error in [
        (tmp_path / "none.mp4", SourceNotFound),
        (tmp_path / "text.mp4", InvalidMedia),
        (tmp_path / "empty.mp4", InvalidMedia),
        (sound, UnsupportedMedia),
    ]:
        with pytest.raises(error, match=path.name):
            measure_quality(**{"path": samples[0], "reference": samples[0], which: path})


@pytest.mark.parametrize("offset", [-1, math.nan, math.inf, "3"])
def test_an_offset_that_is_no_time_is_refused(offset: float, samples: list[Path]) -> None:
    with pytest.raises(ConfigError, match="offset is"):
        measure_quality(samples[0], samples[0], offset=offset)


def test_a_hash_knows_a_picture_again_when_it_is_brighter() -> None:
    chance = np.random.default_rng(2)
    small = chance.integers(40, 160, (6, 8), np.uint8)
    grey = np.kron(small, np.ones((20, 20), np.uint8))
    one, brighter, other = (
        perceptual_hash(VideoFrame.from_ndarray(array, "gray"))
        for array in (grey, grey + 40, np.ascontiguousarray(grey[:, ::-1]))
    )
    assert one.shape == (64,)
    assert np.count_nonzero(one != brighter) <= 2
    assert np.count_nonzero(one != other) > 15
