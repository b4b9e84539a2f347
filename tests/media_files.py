"""Makes small media files, odd ones included, and reads back what is in them.

Every frame shows its own number: a grid of four by three light and dark blocks, one bit each, which survives
x264, scaling and turning. So a test can say which frames a clip holds, not only how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from video.media.edges import Luma, luma

COLUMNS, ROWS = 4, 3
FLASH = 2 ** (COLUMNS * ROWS) - 1
"""The number of an all white frame."""
AUDIO_RATE = 48_000


@dataclass(frozen=True, slots=True)
class Shown:
    """One decoded frame."""

    seconds: Fraction
    """From its file's timestamps, nothing subtracted."""
    number: int
    size: tuple[int, int]


def picture(number: int, width: int, height: int) -> np.ndarray:
    """(height, width) uint8: `number` as blocks."""
    bits = [(number >> bit) & 1 for bit in range(COLUMNS * ROWS)]
    grid = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 175 + 40
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return grid[rows][:, columns]


def number_in(gray: np.ndarray) -> int:
    """The number that a (height, width) picture shows."""
    height, width = gray.shape
    number = 0
    for bit in range(COLUMNS * ROWS):
        row, column = divmod(bit, COLUMNS)
        block = gray[
            (4 * row + 1) * height // (4 * ROWS) : (4 * row + 3) * height // (4 * ROWS),
            (4 * column + 1) * width // (4 * COLUMNS) : (4 * column + 3) * width // (4 * COLUMNS),
        ]
        number |= int(block.mean() > 128) << bit
    return number


def tone(start: float, seconds: float, total: float, *, hertz: float = 1000.0) -> np.ndarray:
    """(samples,) float32 at 48 kHz: silence for `total` seconds, but for a tone of `seconds` at `start`."""
    times = np.arange(round(total * AUDIO_RATE)) / AUDIO_RATE
    loud = (times >= start) & (times < start + seconds)
    return (0.5 * np.sin(2 * np.pi * hertz * times) * loud).astype(np.float32)


def write_video(
    path: Path,
    *,
    frames: int | Sequence[int] = 50,
    times: Sequence[Fraction] | None = None,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: int = 0,
    shape: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_start: Fraction | int = 0,
    sound_codec: str = "aac",
    layout: str = "mono",
) -> Path:
    """Write a numbered video.

    :param frames: how many, numbered from 0, or the numbers to show.
    :param times: when each is shown, in seconds; None, at `rate` from 0.
    :param size: (width, height) as stored.
    :param gop: frames from key frame to key frame, always the same.
    :param rotation: degrees clockwise that a player must turn it; the numbers are then upright.
    :param shape: sample aspect ratio.
    :param sound: (samples,) float32 at 48 kHz, or None for no audio.
    :param sound_start: seconds at which its first sample is heard.
    """
    numbers = list(range(frames)) if isinstance(frames, int) else list(frames)
    if times is None:
        times = [Fraction(number, 1) / Fraction(rate) for number in range(len(numbers))]
    width, height = size
    with av.open(str(path), "w", container_options=container or {}) as out:
        video = out.add_stream(codec, rate=Fraction(rate), time_base=Fraction(1, 90_000))
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.codec_context.thread_count = 1
        if shape is not None:
            video.codec_context.sample_aspect_ratio = shape
        if codec == "libx264":
            video.options = {
                "preset": "veryfast",
                "crf": "16",
                "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}:b-adapt=0",
                **(options or {}),
            }
        else:
            video.codec_context.gop_size = gop
            video.options = options or {}
        if rotation:
            video.set_display_rotation(-rotation)
        audio = None
        if sound is not None:
            audio = out.add_stream(sound_codec, rate=AUDIO_RATE, bit_rate=96_000, layout=layout)
        pieces = iter(_sound_frames(sound, Fraction(sound_start), layout) if sound is not None else ())
        for number, seconds in zip(numbers, times, strict=True):
            upright = picture(number, *((height, width) if rotation in (90, 270) else size))
            stored = np.ascontiguousarray(np.rot90(upright, rotation // 90))
            frame = VideoFrame.from_ndarray(stored, "gray").reformat(format=pixels)
            frame.pts, frame.time_base = round(seconds * 90_000), Fraction(1, 90_000)
            out.mux(video.encode(frame))
            if audio is not None and (piece := next(pieces, None)) is not None:
                out.mux(audio.encode(piece))
        if audio is not None:
            for piece in pieces:
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
        out.mux(video.encode(None))
    return path


def _sound_frames(samples: np.ndarray, start: Fraction, layout: str) -> Iterable[AudioFrame]:
    channels = av.AudioLayout(layout).nb_channels
    for at in range(0, len(samples), 1024):
        mono = samples[at : at + 1024]
        frame = AudioFrame("fltp", layout, len(mono))
        for plane in frame.planes[:channels]:  # PyAV counts more of them where there are eight
            plane.update(mono.tobytes().ljust(plane.buffer_size, b"\0"))
        frame.sample_rate = AUDIO_RATE
        frame.pts, frame.time_base = round(start * AUDIO_RATE) + at, Fraction(1, AUDIO_RATE)
        yield frame


def write_audio(path: Path, seconds: float = 2.0) -> Path:
    """Sound without pictures; the extension decides the format."""
    with av.open(str(path), "w") as out:
        codec = {".wav": "pcm_s16le", ".mp3": "mp3"}.get(path.suffix, "aac")
        audio = out.add_stream(codec, rate=AUDIO_RATE, bit_rate=96_000, layout="mono")
        for piece in _sound_frames(tone(0, seconds, seconds), Fraction(0), "mono"):
            out.mux(audio.encode(piece))
        out.mux(audio.encode(None))
    return path


def shown(path: Path) -> list[Shown]:
    """Every frame of the first video stream, in the order shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [
            Shown(
                frame.pts * stream.time_base,
                number_in(frame.to_ndarray(format="gray")),
                (frame.width, frame.height),
            )
            for frame in container.decode(stream)
        ]


def numbers(path: Path) -> list[int]:
    """The number of every frame, in the order shown."""
    return [frame.number for frame in shown(path)]


def decoded(path: Path) -> list[tuple[Fraction, Luma]]:
    """(seconds, brightness as (height, width)) of each frame, in the order shown."""
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, luma(frame)) for frame in container.decode(video=0)]


def decoding_times(path: Path) -> list[int]:
    """Of each stored picture, in ticks, in the order stored."""
    with av.open(str(path)) as container:
        return [one.dts for one in container.demux(video=0) if one.size and one.dts is not None]


def pixels(path: Path, *, until: float = 1e9) -> list[tuple[float, bytes]]:
    """(seconds, exact decoded luma) of the frames up to a time, in the order shown."""
    found: list[tuple[float, bytes]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time > until:
                break
            found.append((frame.time, bytes(frame.planes[0])))
    return found


def heard(path: Path) -> tuple[Fraction, np.ndarray]:
    """(seconds of the first sample, (samples,) float32 of the first channel); a gap in time is an error."""
    pieces: list[np.ndarray] = []
    first = expected = None
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            at = frame.pts * frame.time_base
            if first is None:
                first = expected = at
            assert abs(at - expected) < Fraction(3, 1000), f"audio jumps from {expected} s to {at} s"
            expected = at + Fraction(frame.samples, frame.sample_rate)
            if frame.format.is_planar:  # not all at once: see `video.media.base.sound_planes`
                pieces.append(np.frombuffer(memoryview(frame.planes[0]), "f4", frame.samples).copy())
            else:
                pieces.append(frame.to_ndarray()[0, :: len(frame.layout.channels)])
    assert first is not None
    return first, np.concatenate(pieces)


def onset(path: Path, *, rate: int = AUDIO_RATE) -> float:
    """Seconds at which the first loud sound is heard."""
    first, samples = heard(path)
    return float(first) + int(np.argmax(np.abs(samples) > 0.15)) / rate
