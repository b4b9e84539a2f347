"""Thumbnails and contact sheets: the right pictures, upright, in their true shape, whole or not at all."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import shared
from tests.media_files import number_in, write_audio, write_video
from video.errors import ConfigError, InvalidMedia, OutputError, SourceNotFound, UnsupportedMedia
from video.media import stills
from video.media.sample import write_sample
from video.media.stills import contact_sheet, contact_sheet_of_clips, side_by_side, thumbnail


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def number(image: Image.Image) -> int:
    return number_in(np.asarray(image.convert("L")))


def tiles(sheet: Image.Image, size: tuple[int, int], columns: int, top: int = 8) -> list[Image.Image]:
    """The cells of an untitled sheet that hold a picture."""
    wide, high = size
    cells = []
    for y in range(top, sheet.height - high + 1, high + 8):
        for x in range(8, 8 + columns * (wide + 8), wide + 8):
            cell = sheet.crop((x, y, x + wide, y + high))
            if len(cell.getcolors(100_000)) > 1:
                cells.append(cell)
    return cells


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 numbered frames in 4 s with a key frame at each 0.5 s (frames 0, 12, 25 or so: every 12th)."""
    return write_video(tmp_path_factory.mktemp("stills") / "n.mp4", frames=100, gop=12)


@pytest.mark.parametrize(("at", "frame"), [(0, 0), (0.47, 0), (0.48, 12), (1.0, 24), (99, 96), (-3, 0)])
def test_a_thumbnail_is_the_key_frame_at_or_before(
    numbered: Path, tmp_path: Path, at: float, frame: int
) -> None:
    picture = opened(thumbnail(numbered, tmp_path / "t.png", at=at, width=160))
    assert picture.size == (160, 120)
    assert number(picture) == frame


def test_times_count_from_the_first_timestamp(tmp_path: Path) -> None:
    late = write_video(
        tmp_path / "late.mkv", frames=50, times=[10 + Fraction(n, 25) for n in range(50)], gop=25
    )
    assert number(opened(thumbnail(late, tmp_path / "t.png", at=1.2))) == 25


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_gives_an_upright_picture(tmp_path: Path, turn: int) -> None:
    source = write_video(tmp_path / "v.mp4", frames=range(200, 205), rotation=turn)
    picture = opened(thumbnail(source, tmp_path / "t.png", at=0, width=96))
    assert number(picture) == 200
    assert picture.size == ((96, 72) if turn == 180 else (96, 128))


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=5, shape=Fraction(2))
    assert opened(thumbnail(source, tmp_path / "t.png", width=160)).size == (160, 60)


def test_the_default_thumbnail_is_not_the_black_beginning(tmp_path: Path) -> None:
    # Number 0 is a plain picture: nothing to see in it.
    source = write_video(tmp_path / "v.mp4", frames=[0] * 80 + [1234] * 20, gop=20)
    assert number(opened(thumbnail(source, tmp_path / "t.png"))) == 1234


def test_a_sheet_shows_key_frames_evenly_in_order_of_time(numbered: Path, tmp_path: Path) -> None:
    sheet = opened(contact_sheet(numbered, tmp_path / "s.png", count=6, columns=3, width=160))
    assert sheet.size == (8 + 3 * 168, 8 + 2 * 128)
    # The time in the corner hides blocks, so a tile is compared with the thumbnail above that corner.
    for n, tile in enumerate(tiles(sheet, (160, 120), 3)):
        whole = opened(thumbnail(numbered, tmp_path / "t.png", at=(n + 0.5) * 4 / 6, width=160))
        box = (0, 0, 160, 90)
        assert tile.crop(box).tobytes() == whole.crop(box).tobytes()
        assert tile.tobytes() != whole.tobytes()
    assert n == 5


def test_few_key_frames_give_few_pictures(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", frames=range(1, 51), gop=25)
    sheet = opened(contact_sheet(source, tmp_path / "s.png", count=12, columns=4, width=160))
    assert sheet.size == (8 + 2 * 168, 8 + 128)


def test_every_tile_of_a_sample_is_a_picture_of_its_own(tmp_path: Path) -> None:
    source = write_sample(tmp_path, 2, seconds=8, size=(160, 90))
    sheet = opened(contact_sheet(source, tmp_path / "s.jpg", count=6, columns=3, width=160, title="a title"))
    head = sheet.height - 2 * 98 - 8
    pictures = [np.asarray(tile).astype(int) for tile in tiles(sheet, (160, 90), 3, head + 8)]
    assert len(pictures) >= 5
    assert all(picture.mean() > 20 for picture in pictures)
    for one, two in itertools.pairwise(pictures):
        assert np.abs(one - two).mean() > 3
    assert np.asarray(sheet.crop((0, 0, sheet.width, head))).max() > 200  # the title


def test_a_sheet_of_clips_has_a_tile_and_a_caption_for_each(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", frames=[700] * 5)
    tall = write_video(tmp_path / "tall.mp4", frames=[700] * 5, rotation=90)
    clips = [(wide, "first"), (tall, "second " * 40), (wide, "")]
    sheet = opened(contact_sheet_of_clips(clips, tmp_path / "s.png", columns=2, width=160, title="clips"))
    assert sheet.width == 8 + 2 * 168
    ground = sheet.getpixel((0, sheet.height - 1))
    # The cell of the third clip is filled, the fourth is not; the long caption stays inside its cell.
    lower = np.asarray(sheet.crop((0, sheet.height // 2, sheet.width, sheet.height)))
    assert (lower[:, :168] != ground).any()
    assert (lower[:, 176:] == ground).all()
    assert (np.asarray(sheet)[:, -8:] == ground).all()


def test_captions_keep_what_the_font_can_draw() -> None:
    font = stills._font(20)
    assert stills._fitting("naïve — 1\n2 😀", font, 1000) in {"naive - 1 2 ?", "naïve - 1 2 ?"}
    short = stills._fitting("a long caption that does not fit", font, 120)
    assert short.endswith("...")
    assert font.getlength(short) <= 120


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (61.25, "1:01.2"), (3723.4, "1:02:03.4")]
)
def test_times_read_as_a_clock(seconds: float, text: str) -> None:
    assert stills._clock(seconds) == text


def test_the_extension_decides_the_format(numbered: Path, tmp_path: Path) -> None:
    for name, kind in (("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.png", "PNG")):
        with Image.open(thumbnail(numbered, tmp_path / name)) as image:
            assert image.format == kind


def test_another_extension_is_refused_with_the_list(numbered: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.jpg, \.jpeg, \.png"):
        contact_sheet(numbered, tmp_path / "s.webp")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"columns": 0}, {"width": 3}, {"count": 9, "width": 50_000}])
def test_arguments_out_of_range_are_refused(numbered: Path, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        contact_sheet(numbered, tmp_path / "s.png", **wrong)


def test_a_sheet_too_large_for_a_picture_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="pixels"):
        stills._sheet([Image.new("RGB", (20, 20))] * 3000, [], 1, None)


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        contact_sheet_of_clips([], tmp_path / "s.png")


def test_bad_input_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (noise := inputs / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    sound = write_audio(inputs / "sound.m4a")
    for source, error in (
        (noise, InvalidMedia),
        (sound, UnsupportedMedia),
        (inputs / "none.mp4", SourceNotFound),
    ):
        with pytest.raises(error, match=source.name):
            contact_sheet(source, tmp_path / "out" / "s.png")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_leaves_nothing(numbered: Path, tmp_path: Path) -> None:
    (tmp_path / "s.png").mkdir()
    with pytest.raises(OutputError):
        contact_sheet(numbered, tmp_path / "s.png")
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_natural_video_of_other_codecs_and_shapes_is_shown(tmp_path: Path) -> None:
    assert opened(thumbnail(shared("hevc.mp4"), tmp_path / "h.jpg")).size == (320, 180)
    assert opened(thumbnail(shared("sar-2by3.mp4"), tmp_path / "s.jpg")).size == (320, 270)
    sheet = opened(contact_sheet(shared("cars.mp4"), tmp_path / "c.jpg", count=12))
    assert len(tiles(sheet, (320, 180), 4)) == 7


def test_side_by_side_shows_the_very_pictures_of_each_time(numbered: Path, tmp_path: Path) -> None:
    """Of 100 frames and of the last 50 of them, key frames apart."""
    part = write_video(tmp_path / "part.mp4", frames=range(50, 100), gop=7)
    picture = opened(side_by_side(part, numbered, tmp_path / "both.png", count=2, width=160, offset=2.0))
    top = picture.height - 2 * (120 + 8)
    cells = [picture.crop((x, y, x + 160, y + 120)) for y in (top, top + 128) for x in (8, 176)]
    assert [number(cell) for cell in cells] == [62, 62, 87, 87]


def test_side_by_side_needs_a_time_that_both_have(numbered: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the reference 4\.000 s long"):
        side_by_side(numbered, numbered, tmp_path / "both.png", offset=9)
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_of_fewer_pictures_than_asked_for_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = write_video(tmp_path / "few.mp4", frames=50, gop=25)
    contact_sheet(video, tmp_path / "s.png", count=2)
    assert caplog.messages == []
    contact_sheet(video, tmp_path / "s.png", count=12)
    assert caplog.messages == ["'few.mp4' has key frames for 2 of 12 pictures"]
