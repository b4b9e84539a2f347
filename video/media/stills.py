"""Still pictures of a video: one thumbnail, a contact sheet of one file, or one of several clips.

Only key frames are decoded: a sheet of 12 pictures costs about a twelfth of what FFmpeg's `fps` filter
takes for a minute of video, in exchange for pictures that may stand some seconds before the asked time.
Pictures are shown as players show them, with rotation and pixel shape applied.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from video import scope
from video.errors import ConfigError, InvalidMedia
from video.media import base, probe, seek

logger = logging.getLogger("video")

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
LARGEST = 65_500
"""Pixels a side: what JPEG can hold."""
CANDIDATES = 5
"""How many key frames are compared where the caller leaves the choice to us."""

_PLAIN = str.maketrans("\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}", "---")
_GROUND, _INK, _GAP = "#14161a", "#e8eaed", 8
_UPRIGHT = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


def thumbnail(
    source: str | os.PathLike[str], output: str | os.PathLike[str], at: float | None = None, width: int = 320
) -> Path:
    """Write one picture of a video as JPEG or PNG, by the extension of `output`; returns its path.

    :param at: seconds; the key frame at or before that time is taken. None: the most detailed of a few.
    :param width: of the picture, in pixels; its height follows from the video's shape.
    :raises ConfigError: an argument is out of range, or the extension is not in FORMATS.
    :raises SourceNotFound, SourceError: the video cannot be read.
    :raises InvalidMedia, UnsupportedMedia: it has no picture that can be decoded.
    :raises OutputError: the picture cannot be written.
    """
    target = _checked(output, width)
    if at is not None and not math.isfinite(at):
        raise ConfigError(f"at={at}: must be a number of seconds")
    with base.open_input(source) as container:
        video = base.video_stream(container)
        if at is None:
            shot = _telling(container, video, probe.duration_seconds(source), width)
        else:
            shot = _shot(container, video, at, width)
        if shot is None:
            raise _no_picture(container)
    return _save(shot.image, target)


def contact_sheet(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    count: int = 12,
    columns: int = 4,
    width: int = 320,
    title: str | None = None,
) -> Path:
    """Write one picture that shows `count` key frames of a video, evenly spread, each with its time.

    A video with fewer key frames gives fewer pictures, and a warning in the log "video" says so.

    :param width: of each small picture, in pixels.
    :param title: a line over the pictures.
    :raises ConfigError, SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia, OutputError:
        as in `thumbnail`.
    """
    target = _checked(output, width, count, columns)
    shots: dict[float, Image.Image] = {}
    with base.open_input(source) as container:
        video = base.video_stream(container)
        duration = probe.duration_seconds(source)
        for n in range(count):
            shot = _shot(container, video, (n + 0.5) * duration / count, width)
            if shot is not None:
                shots[shot.seconds] = shot.image
        if not shots:
            raise _no_picture(container)
    if len(shots) < count:
        name = os.path.basename(source)
        logger.warning("%r has key frames for %d of %d pictures", name, len(shots), count)
    tiles = [_stamped(image, _clock(seconds)) for seconds, image in sorted(shots.items())]
    return _save(_sheet(tiles, [], columns, title), target)


def contact_sheet_of_clips(
    clips: Sequence[tuple[str | os.PathLike[str], str]],
    output: str | os.PathLike[str],
    columns: int = 4,
    width: int = 320,
    title: str | None = None,
) -> Path:
    """Write one picture that shows the most detailed key frame of each clip, its caption below.

    :param clips: (path, caption) of each clip; a caption too long for its picture is cut short.
    :raises ConfigError, SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia, OutputError:
        as in `thumbnail`; a clip that cannot be shown fails the sheet.
    """
    target = _checked(output, width, len(clips), columns)
    tiles = []
    for path, _ in clips:
        with base.open_input(path) as container:
            video = base.video_stream(container)
            duration = probe.duration_seconds(path)
            shot = _telling(container, video, duration, width)
            if shot is None:
                raise _no_picture(container)
            tiles.append(_stamped(shot.image, f"{duration:.1f} s"))
    return _save(_sheet(tiles, [caption for _, caption in clips], columns, title), target)


def side_by_side(
    video: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    output: str | os.PathLike[str],
    count: int = 4,
    width: int = 480,
    offset: float = 0.0,
) -> Path:
    """Write one picture in which each row shows what both videos show at a time, `reference` on the left.

    Not key frames but the very pictures of those times, `count` of them, evenly spread over the shorter one.

    :param width: of each small picture, in pixels.
    :param offset: seconds of the reference at which the video begins.
    :raises ConfigError, SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia, OutputError:
        as in `thumbnail`; and if the reference has ended at `offset`.
    """
    target = _checked(output, width, count)
    seconds = min(probe.duration_seconds(video), probe.duration_seconds(reference) - offset)
    if seconds <= 0:
        cause = f"offset is {offset:g} s, and the reference {probe.duration_seconds(reference):.3f} s long"
        raise ConfigError(cause, subject=os.fspath(reference), cure="Choose a smaller one.")
    tiles = []
    for n in range(count):
        time = (n + 0.5) * seconds / count
        for path, at in ((reference, time + offset), (video, time)):
            with base.open_input(path) as container:
                tiles.append(_stamped(_shown_at(container, at, width), _clock(at)))
    title = f"{Path(reference).name} | {Path(video).name}"
    return _save(_sheet(tiles, [], 2, title), target)


def _shown_at(container: InputContainer, seconds: float, width: int) -> Image.Image:
    """The picture that is shown at `seconds`, or the first one after that."""
    video = base.video_stream(container)
    start = Fraction(seconds) + base.origin(container)
    wanted = seek.ticks(start, base.fraction(video.time_base))
    # All of them: the one that is wanted may be the last before that time, which no other frame needs.
    decoder = seek.FrameDecoder(container, video, -(2**62))
    found: VideoFrame | None = None
    for packet in itertools.chain(seek.packets_from(container, video, None, start), [None]):
        for pts, frame in decoder.decode(packet):
            if found is not None and pts > wanted:
                return _upright(found, video, width)
            found = frame
    if found is None:
        raise _no_picture(container)
    return _upright(found, video, width)


def _no_picture(container: InputContainer) -> InvalidMedia:
    return InvalidMedia(
        "has no key frame that can be decoded",
        subject=base.source_name(container),
        cure="Download or copy it again, or repair it.",
    )


class _Shot(NamedTuple):
    seconds: float
    image: Image.Image


def _shot(container: InputContainer, video: VideoStream, seconds: float, width: int) -> _Shot | None:
    """The key frame at or before `seconds`, or the next one that decodes; None: there is none."""
    scope.check_cancelled()
    zero = base.origin(container)
    for packet in seek.packets_from(container, video, None, Fraction(seconds) + zero):
        if not packet.is_keyframe:
            continue
        try:
            # The end of input makes the decoder give the picture now, not when later ones have come.
            video.codec_context.flush_buffers()
            frames = [*video.decode(packet), *video.decode(None)]
        except FFmpegError:
            continue  # damaged; the next may be whole
        for frame in frames:
            shown = seek.stamp_seconds(packet) - zero
            return _Shot(float(shown), _upright(frame, video, width))
    return None


def _telling(container: InputContainer, video: VideoStream, duration: float, width: int) -> _Shot | None:
    """The most detailed of a few key frames; black, blank and blurred ones have little detail."""
    shots = [_shot(container, video, (n + 0.5) * duration / CANDIDATES, width) for n in range(CANDIDATES)]
    return max(filter(None, shots), key=lambda shot: _detail(shot.image), default=None)


def _detail(image: Image.Image) -> float:
    """Mean step of brightness from one pixel to the next, on a small copy so that noise does not count."""
    pixels = np.asarray(image.convert("L").resize((96, 96))).astype(np.int16)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean())


def _upright(frame: VideoFrame, video: VideoStream, width: int) -> Image.Image:
    """The frame as shown, `width` pixels wide."""
    turn = base.rotation(frame)
    shape = base.fraction(video.sample_aspect_ratio)
    wide, high = base.displayed_size(frame.width, frame.height, shape, turn)
    height = max(1, round(width * high / wide))
    stored = (height, width) if turn in (90, 270) else (width, height)
    small = frame.reformat(*stored, "rgb24", interpolation=Interpolation.AREA, threads=1)
    image = Image.fromarray(small.to_ndarray())
    return image.transpose(_UPRIGHT[turn]) if turn else image


def _sheet(tiles: list[Image.Image], captions: list[str], columns: int, title: str | None) -> Image.Image:
    """The tiles in rows from left to right, each centred in a cell as large as the largest tile."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    wide, high = (max(tile.size[side] for tile in tiles) for side in (0, 1))
    font, heading = _font(wide / 22), _font(wide / 16)
    line = 2 * round(font.size) if captions else 0
    head = 2 * round(heading.size) if title else 0
    size = (_GAP + columns * (wide + _GAP), _GAP + head + rows * (high + line + _GAP))
    if max(size) > LARGEST:
        raise ConfigError(f"a sheet of {size[0]} x {size[1]} pixels is over {LARGEST} a side: ask for less")
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, head / 2), _fitting(title, heading, size[0] - 2 * _GAP), _INK, heading, "lm")
    for n, tile in enumerate(tiles):
        left = _GAP + n % columns * (wide + _GAP)
        top = _GAP + head + n // columns * (high + line + _GAP)
        sheet.paste(tile, (left + (wide - tile.width) // 2, top + (high - tile.height) // 2))
        if captions:
            draw.text((left, top + high + line / 2), _fitting(captions[n], font, wide), _INK, font, "lm")
    return sheet


def _stamped(image: Image.Image, text: str) -> Image.Image:
    """The picture with a few words in its lower right corner, on a dark ground."""
    font = _font(image.width / 22)
    wide, high = font.getlength(text) + font.size, 1.5 * font.size
    left, top = image.width - wide, image.height - high
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rectangle((left, top, image.width, image.height), (0, 0, 0, 215))
    draw.text((left + wide / 2, top + high / 2), text, _INK, font, "mm")
    return image


def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(9.0, size))  # type: ignore[return-value]  # plain only without FreeType


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of the text as fits, in signs that the font has."""
    text = " ".join(text.translate(_PLAIN).split())
    text = "".join(_drawable(sign, font) for sign in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _drawable(sign: str, font: ImageFont.FreeTypeFont) -> str:
    """The sign, or its base letter, or "?": Pillow's own font has few signs beyond English."""
    for candidate in (sign, unicodedata.normalize("NFKD", sign)[0]):
        if candidate == " " or bytes(font.getmask(candidate)) != bytes(font.getmask("\U0010ffff")):
            return candidate
    return "?" if unicodedata.category(sign)[0] != "M" else ""


def _clock(seconds: float) -> str:
    """1:02:03.4, without the hour where it is 0."""
    tenths = round(max(0.0, seconds) * 10)
    hours, minutes = tenths // 36_000, tenths // 600 % 60
    rest = f"{tenths % 600 / 10:04.1f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def _checked(output: str | os.PathLike[str], width: int, count: int = 1, columns: int = 1) -> Path:
    target = Path(output)
    if target.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"pictures are not written as {target.suffix or 'files without an extension'!r}",
            subject=str(target),
            cure=f"End the name in one of {', '.join(FORMATS)}.",
        )
    if not 16 <= width <= 8192 or count < 1 or columns < 1:
        raise ConfigError(
            f"width={width}, count={count}, columns={columns}: 16 to 8192 pixels, from 1, from 1"
        )
    return target


def _save(image: Image.Image, output: Path) -> Path:
    with base.writing(output) as part:
        image.save(part, FORMATS[output.suffix.lower()], quality=88)
    return output
