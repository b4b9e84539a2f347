"""Sample videos, drawn and played from nothing, for `video demo` and the tests.

Each has several scenes with hard cuts between them, motion in every frame, and a tune whose loudness
differs from scene to scene, one of them all but silent: something for a cut, a thumbnail and a highlight
score to find. The same seed gives the same pictures and sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from video import scope
from video.errors import ConfigError
from video.media import base
from video.media.encode import muxer

FPS = 25
SAMPLE_RATE = 48_000
"""Hz."""
BEAT = 0.25
"""Seconds from one note to the next."""

Size = tuple[int, int]
"""Width and height in pixels."""
Colours = tuple[str, ...]
Picture = Callable[[float], Image.Image]
"""Seconds since its scene began -> an RGB picture of the video's size."""
Painter = Callable[[Size, Colours, np.random.Generator], Picture]
Floats = npt.NDArray[np.float64]


def write_sample(
    folder: Path,
    index: int = 0,
    *,
    seconds: float = 20.0,
    size: Size = (640, 360),
    seed: int = 0,
) -> Path:
    """Write the sample video of number `index` into `folder`, made if missing, and return its path.

    H.264 and AAC in MP4, 25 frames a second, a key frame at every cut and at least every two seconds.
    0 to 3 are `coast.mp4`, `city.mp4`, `fair.mp4` and `space.mp4`; 4 is `coast-2.mp4`, with shapes and
    a tune of its own, and so on.

    :param seconds: length of the video, rounded to whole frames.
    :param size: width and height in pixels, both even.
    :raises ConfigError: a number is out of range.
    :raises OutputError: the folder cannot be written.
    """
    width, height = size
    if index < 0 or width < 32 or height < 32 or width % 2 or height % 2:
        raise ConfigError(f"index={index}, size={size}: index from 0; width and height even, from 32 pixels")
    sample = SAMPLES[index % len(SAMPLES)]
    if not len(sample.scenes) <= seconds * FPS < math.inf:
        raise ConfigError(f"seconds={seconds:g}: not enough for {len(sample.scenes)} scenes, or no number")
    lap = index // len(SAMPLES) + 1
    path = folder / (f"{sample.name}.mp4" if lap == 1 else f"{sample.name}-{lap}.mp4")
    _write(path, sample, seconds, size, np.random.default_rng([seed, index]))
    return path


def _write(path: Path, sample: Sample, seconds: float, size: Size, rng: np.random.Generator) -> None:
    lengths = _scene_lengths(round(seconds * FPS), len(sample.scenes), rng)
    total = sum(lengths)
    width, height = size
    corner = (width // 24, height - height // 6)
    to_yuv = partial(VideoReformatter().reformat, format="yuv420p", threads=1)
    with base.writing(path) as part, muxer(part, str(path)) as output:
        # Half of veryfast's CPU, for pictures that nobody will keep.
        video = output.add_stream("libx264", FPS, options={"preset": "superfast", "crf": "23"})
        video.width, video.height = width, height
        video.pix_fmt = "yuv420p"
        video.gop_size = 2 * FPS
        # One thread: the same bytes on every machine, and 20 % less CPU for pictures this small.
        video.codec_context.thread_count = 1
        audio = output.add_stream("aac", SAMPLE_RATE, layout="mono")

        sound = np.concatenate(
            [_tune(scene, n / FPS, rng) for scene, n in zip(sample.scenes, lengths, strict=True)]
        )
        block = SAMPLE_RATE // FPS
        done = 0
        for scene, length in zip(sample.scenes, lengths, strict=True):
            picture = scene.painter(size, scene.colours, rng)
            title = _title(height, scene.title)
            for n in range(length):
                scope.check_cancelled()
                image = picture(n / FPS)
                image.paste("black", (corner[0] + 1, corner[1] + 1), title)
                image.paste("white", corner, title)
                # Here, because the encoder's own conversion starts threads.
                frame = to_yuv(av.VideoFrame.from_ndarray(np.asarray(image), "rgb24"))
                frame.pts, frame.time_base = done, Fraction(1, FPS)
                output.mux(video.encode(frame))

                samples = av.AudioFrame.from_ndarray(
                    sound[None, done * block : (done + 1) * block], "fltp", "mono"
                )
                samples.sample_rate = SAMPLE_RATE
                samples.pts, samples.time_base = done * block, Fraction(1, SAMPLE_RATE)
                output.mux(audio.encode(samples))
                done += 1
                scope.report(done / total, scene.title)
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def _scene_lengths(frames: int, scenes: int, rng: np.random.Generator) -> list[int]:
    """Split `frames` into unequal scenes of at least one frame each."""
    weights = rng.uniform(0.6, 1.4, scenes)
    edges = np.cumsum(weights) / weights.sum() * (frames - scenes)
    return [int(n) + 1 for n in np.diff(np.round(edges), prepend=0)]


# Painters: each prepares what does not change once, so that a frame costs about a millisecond.


def _hills(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """A sun over rows of hills; the nearer a row, the faster it passes."""
    width, height = size
    sky = _sky(size, colours[0], colours[1])
    sun = _ball(height // 7, colours[2], shade=0)
    x = np.arange(2 * width)
    rows = []
    for depth, colour in enumerate(colours[3:]):
        # Whole periods in the strip's width: its end meets its beginning.
        k = np.array([[2], [3], [5], [9 + 4 * depth]])
        waves = (np.sin(2 * np.pi * (k * x / len(x) + rng.random(k.shape))) / k).sum(0)
        top = height * (0.45 + 0.17 * depth) + waves * height * 0.05
        ceiling = int(top.min())
        rows.append(
            (_below(top - ceiling, height - ceiling), colour, ceiling, width * 0.1 * (depth + 1) ** 1.5)
        )

    def picture(t: float) -> Image.Image:
        image = sky.copy()
        image.paste(sun[0], (int(width * 0.62 - 12 * t), int(height * (0.12 + 0.015 * t))), sun[1])
        for strip, colour, ceiling, speed in rows:
            image.paste(colour, (0, ceiling), _window(strip, int(speed * t), width))
        return image

    return picture


def _skyline(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """Rows of houses with lit windows, passing by under a few stars."""
    width, height = size
    sky = _sky(size, colours[0], colours[1])
    draw = ImageDraw.Draw(sky)
    for x, y in rng.random((60, 2)):
        draw.point((x * width, y * height * 0.6), "#ffffff")
    lamp = colours[2]
    rows = []
    unit = max(2, width // 80)
    for depth, colour in enumerate(colours[3:]):
        strip = Image.new("RGB", (2 * width, height), colour)
        houses = Image.new("L", strip.size)
        paint, shape = ImageDraw.Draw(strip), ImageDraw.Draw(houses)
        x = 0
        while x < 2 * width:
            wide = unit * int(rng.integers(5, 10))
            top = int(height * (rng.uniform(0.25, 0.6) + 0.15 * depth))
            shape.rectangle((x, top, x + wide - unit, height), 255)
            for wx in range(x + unit, x + wide - 2 * unit, 2 * unit):
                for wy in range(top + unit, height, 3 * unit):
                    if rng.random() < 0.35:
                        paint.rectangle((wx, wy, wx + unit - 1, wy + unit), lamp)
            x += wide
        rows.append((strip, houses, width * 0.12 * (depth + 1)))

    def picture(t: float) -> Image.Image:
        image = sky.copy()
        for strip, houses, speed in rows:
            shift = int(speed * t)
            image.paste(_window(strip, shift, width), (0, 0), _window(houses, shift, width))
        return image

    return picture


def _balls(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """Balls that bounce off the four walls."""
    width, height = size
    ground = _sky(size, colours[0], colours[1])
    balls = []
    for colour in colours[2:] * 3:
        radius = int(rng.uniform(0.05, 0.13) * height)
        balls.append((*_ball(radius, colour), rng.random(2) * 2, rng.uniform(-0.6, 0.6, 2), 2 * radius))

    def picture(t: float) -> Image.Image:
        image = ground.copy()
        for ball, mask, start, speed, wide in balls:
            # A triangle wave is a path between two walls.
            x, y = abs((start + speed * t) % 2 - 1)
            image.paste(ball, (int(x * (width - wide)), int(y * (height - wide))), mask)
        return image

    return picture


def _tunnel(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """A flight through a twisted tunnel: a still picture under a turning palette."""
    x, y = _grid(size)
    radius = np.hypot(x, y) + 0.02
    twist = int(rng.integers(2, 5)) * np.arctan2(y, x) / (2 * np.pi)
    return _cycling(np.log(radius) * 0.8 + twist, colours, speed=0.6)


def _plasma(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """Slow clouds of colour: sums of sines under a turning palette."""
    x, y = _grid(size)
    a, b, c = rng.uniform(2, 4, 3)
    waves = np.sin(a * x) + np.sin(b * y + 1) + np.sin(c * (x + y)) + np.sin(3 * np.hypot(x + 0.5, y - 0.3))
    return _cycling(waves / 4, colours, speed=0.35)


def _stars(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """A flight through stars."""
    width, height = size
    sky = _sky(size, colours[0], colours[1])
    place = rng.uniform(-1, 1, (260, 2))
    depth = rng.random(260)

    def picture(t: float) -> Image.Image:
        image = sky.copy()
        draw = ImageDraw.Draw(image)
        near = (depth + 0.25 * t) % 1
        spot = place * (0.12 / (1.02 - near))[:, None] * (width, width) + (width / 2, height / 2)
        for (x, y), size, star in zip(
            spot.tolist(), (near**2 * width / 100).tolist(), range(260), strict=True
        ):
            draw.ellipse((x - size, y - size, x + size, y + size), colours[2 + star % (len(colours) - 2)])
        return image

    return picture


def _zoom(size: Size, colours: Colours, rng: np.random.Generator) -> Picture:
    """A slow zoom into a painting of translucent discs."""
    width, height = size
    painting = Image.new("RGB", (2 * width, 2 * height), colours[0])
    draw = ImageDraw.Draw(painting, "RGBA")
    for n, (x, y, r) in enumerate(rng.random((90, 3)).tolist()):
        x, y, r = x * 2 * width, y * 2 * height, (0.03 + 0.25 * r**3) * 2 * height
        draw.ellipse((x - r, y - r, x + r, y + r), f"{colours[1 + n % (len(colours) - 1)]}b0")
    towards = rng.uniform(0.2, 0.8, 2)

    def picture(t: float) -> Image.Image:
        scale = 0.45 + 0.5 * math.exp(-0.25 * t)
        w, h = 2 * width * scale, 2 * height * scale
        left, top = (2 * width - w) * towards[0], (2 * height - h) * towards[1]
        return painting.resize(size, Image.Resampling.BILINEAR, (left, top, left + w, top + h))

    return picture


def _sky(size: Size, top: str, bottom: str) -> Image.Image:
    column = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), column)


def _ball(radius: int, colour: str, shade: float = 0.6) -> tuple[Image.Image, Image.Image]:
    """A ball lit from the upper left and its mask, both 2 x `radius` pixels wide and high."""
    x, y = _grid((2 * radius, 2 * radius))
    light = 1 + shade * (0.4 - np.hypot(x + 0.35, y + 0.35))
    rgb = np.array(Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
    ball = np.clip(light[..., None] * rgb, 0, 255).astype(np.uint8)
    mask = np.clip((1 - np.hypot(x, y)) * radius, 0, 1) * 255
    return Image.fromarray(ball), Image.fromarray(mask.astype(np.uint8))


def _below(top: Floats, height: int) -> Image.Image:
    """Mask of all that lies below a line, its edge smooth; `top` holds a y for each column, in pixels."""
    cover = np.clip(np.arange(height)[:, None] - top[None, :], 0, 1) * 255
    return Image.fromarray(cover.astype(np.uint8))


def _window(strip: Image.Image, shift: int, width: int) -> Image.Image:
    """`width` columns of an endless strip (at least that wide) from column `shift` on."""
    shift %= strip.width
    end = shift + width
    window = strip.crop((shift, 0, end, strip.height))
    if end > strip.width:
        window.paste(strip.crop((0, 0, end - strip.width, strip.height)), (strip.width - shift, 0))
    return window


def _grid(size: Size) -> tuple[Floats, Floats]:
    """x and y of each pixel, shape (height, width); -1 to 1 along the shorter side."""
    width, height = size
    short = min(size)
    y, x = np.mgrid[:height, :width]
    return (2 * x + 1 - width) / short, (2 * y + 1 - height) / short


def _cycling(phase: Floats, colours: Colours, speed: float) -> Picture:
    """`phase` in turns, shape (height, width), seen through a palette that turns `speed` times a second."""
    image = Image.fromarray((phase % 1 * 256).astype(np.uint8))
    stops = np.array([Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in (*colours, colours[0])])
    at = np.linspace(0, 256, len(stops))
    palette = np.stack([np.interp(np.arange(256), at, stops[:, k]) for k in range(3)], 1).astype(np.uint8)

    def picture(t: float) -> Image.Image:
        image.putpalette(np.roll(palette, int(-256 * speed * t), 0).tobytes())
        return image.convert("RGB")

    return picture


def _title(height: int, text: str) -> Image.Image:
    """The text as a mask, for a video of that height in pixels."""
    font = ImageFont.load_default(height // 12)
    mask = Image.new("L", (math.ceil(font.getlength(text)), height // 9))
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    return mask


def _tune(scene: Scene, seconds: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Plucked notes of the scene's chord over its quiet drone: mono samples within -1 to 1."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    note = (t / BEAT).astype(int)
    steps = rng.choice(np.array(CHORDS[scene.chord]), note[-1] + 1)
    pitch = 220 * 2 ** (steps[note] / 12)
    # The phase restarts with each note, where the sound has faded, so that it does not click.
    since = t - note * BEAT
    pluck = np.exp(-6 * since) * np.minimum(1, since / 0.005)
    phase = 2 * np.pi * pitch * since
    sound = pluck * (np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase))
    sound += 0.25 * np.sin(2 * np.pi * 110 * t)
    ends = np.minimum(1, np.minimum(t, seconds - t) / 0.02)
    level = 10 ** (scene.peak / 20)
    return np.asarray(sound * ends * level / 1.85, np.float32)


CHORDS = {
    "major": (0, 4, 7, 12, 16),
    "minor": (0, 3, 7, 12, 15),
    "open": (0, 7, 12, 19),
    "seventh": (0, 4, 7, 10, 14),
}
"""Semitones over A3."""


@dataclass(frozen=True, slots=True)
class Scene:
    title: str
    painter: Painter
    colours: Colours
    chord: str
    peak: float
    """Loudest sample, in dB below full scale."""


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    scenes: tuple[Scene, ...]


SAMPLES = (
    Sample(
        "coast",
        (
            Scene(
                "Dawn",
                _hills,
                ("#2b3a67", "#f6a57a", "#fff1c1", "#a0596b", "#5d3a5c", "#2a2140"),
                "major",
                -14,
            ),
            Scene("Open water", _plasma, ("#04364a", "#176b87", "#64ccc5", "#dafffb"), "open", -20),
            Scene(
                "No wind",
                _hills,
                ("#7fb7e6", "#d8efff", "#fffbe0", "#6b8f71", "#3f6b4f", "#1f3d2b"),
                "open",
                -52,
            ),
            Scene("Regatta", _balls, ("#0a4d8c", "#7fd1ff", "#ffffff", "#ff5a5f", "#ffd166"), "major", -3),
            Scene(
                "Dusk",
                _hills,
                ("#1b1036", "#c44569", "#ff9f68", "#50235a", "#2d1440", "#120722"),
                "minor",
                -12,
            ),
        ),
    ),
    Sample(
        "city",
        (
            Scene(
                "Night bus", _skyline, ("#05081a", "#27305f", "#ffc857", "#171c3a", "#0b0e20"), "minor", -16
            ),
            Scene("Underpass", _tunnel, ("#0b0c10", "#1f2833", "#c5962b", "#f4d58d"), "seventh", -8),
            Scene("Rooftops", _skyline, ("#5c2a4d", "#f2785c", "#fff3b0", "#5a2a55", "#2b1330"), "open", -48),
            Scene("Neon", _plasma, ("#12002f", "#ff2e93", "#240046", "#00e5ff"), "minor", -3),
            Scene(
                "Last train", _stars, ("#000000", "#10182b", "#ffc857", "#ffffff", "#ff6b6b"), "seventh", -13
            ),
        ),
    ),
    Sample(
        "fair",
        (
            Scene(
                "Balloons",
                _balls,
                ("#fff3d6", "#ffd29d", "#e63946", "#2a9d8f", "#457b9d", "#f4a261"),
                "major",
                -9,
            ),
            Scene("Carousel", _tunnel, ("#ffbe0b", "#fb5607", "#ff006e", "#8338ec", "#3a86ff"), "major", -3),
            Scene(
                "Mosaic",
                _zoom,
                ("#fefae0", "#e76f51", "#2a9d8f", "#e9c46a", "#264653", "#f4a261"),
                "open",
                -22,
            ),
            Scene(
                "Lunch",
                _hills,
                ("#a8e6cf", "#fdfdc9", "#ffd3b6", "#8bc34a", "#558b2f", "#33691e"),
                "seventh",
                -50,
            ),
            Scene(
                "Fireworks",
                _stars,
                ("#0d0221", "#3c096c", "#ff4d6d", "#ffd60a", "#4cc9f0", "#80ed99"),
                "major",
                -6,
            ),
        ),
    ),
    Sample(
        "space",
        (
            Scene("Lift off", _stars, ("#000005", "#0b1133", "#ffffff", "#9db4ff", "#ffe8c2"), "open", -6),
            Scene("Wormhole", _tunnel, ("#000000", "#3a0ca3", "#4cc9f0", "#f72585"), "minor", -3),
            Scene("Drift", _zoom, ("#03001e", "#7303c0", "#ec38bc", "#240b36", "#5b86e5"), "open", -54),
            Scene("Moons", _balls, ("#00010a", "#1b1f3b", "#c9cbd3", "#8d99ae", "#e0aa3e"), "minor", -18),
            Scene("Aurora", _plasma, ("#001219", "#0a9396", "#94d2bd", "#001219", "#6a4c93"), "seventh", -10),
        ),
    ),
)
