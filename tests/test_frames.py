"""Right to the frame: sources of every kind that people have, cut in each way, and compared with the cuts.

Of a clip of n seconds: n times the frame rate of frames, the right ones, each at its time; timestamps rise;
copied pictures are the source's to the bit and encoded ones look like them; sound keeps its place to 5 ms.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.media_files import FLASH, decoded, decoding_times, onset, shown, tone, write_video
from video.media import base, splice
from video.media.cut import Cut, cut
from video.media.edges import Luma
from video.media.judges import ssim
from video.models import Mode

FRAMES = 72
FLASHES = 30
"""The frame that is all white."""
NTSC = Fraction(30_000, 1001)
UNEVEN = [Fraction(at, 100) for at in itertools.accumulate([2, 3, 7, 4, 1, 9, 4, 3, 2, 5] * 8, initial=4)]


@dataclass
class Kind:
    """A kind of source: how it is written, and what is particular about it."""

    name: str = "a.mp4"
    more: dict[str, Any] = field(default_factory=dict)
    times: Sequence[Fraction] = ()
    """Of each frame; empty: 25 a second."""
    late: float = 0.0
    """Seconds by which the sound that belongs to the flash is heard after it."""
    sound: tuple[float, float] | None = (0.0, 3.0)
    """(when its sound begins, its length) in seconds."""
    baked: bool = False
    """Its pictures cannot be copied, unless they may stay as stored."""
    first: int = 0
    """Frames before this one are hidden."""


def rates(rate: Fraction) -> list[Fraction]:
    return [number / rate for number in range(FRAMES)]


HEVC = {"codec": "libx265", "b_frames": 3}
KINDS = {
    "mp4": Kind(),
    "mkv": Kind("a.mkv"),
    "mov": Kind("a.mov", {"b_frames": 0}),
    "29.97": Kind(times=rates(NTSC)),
    "29.97 in mkv": Kind("a.mkv", times=rates(NTSC)),
    "59.94": Kind(times=rates(2 * NTSC), sound=(0, 2)),
    "variable": Kind(times=UNEVEN[:FRAMES]),
    "variable in mkv": Kind("a.mkv", times=UNEVEN[:FRAMES]),
    "edit list": Kind(times=[Fraction(number - 5, 25) for number in range(FRAMES)], first=5),
    "hevc": Kind(more=HEVC),
    "hevc in mkv": Kind("a.mkv", HEVC),
    "turned": Kind(more={"rotation": 90}, baked=True),
    "ten bits": Kind(more={"pixels": "yuv420p10le"}, baked=True),
    "hevc of ten bits": Kind(more={**HEVC, "pixels": "yuv420p10le"}, baked=True),
    "silent": Kind(sound=None),
    "sound too short": Kind(sound=(0, 1.6)),
    "sound too long": Kind(sound=(0, 7)),
    "sound that starts late": Kind(sound=(0.5, 2)),
    "sound that starts early": Kind("a.mkv", sound=(-0.25, 3)),
    "sound behind the picture": Kind(late=0.2),
    "opus": Kind("a.mkv", {"sound_codec": "libopus"}),
}
SPANS = {
    "from before a key frame": (23, 50),
    "from a key frame": (24, 48),
    "from after a key frame, to before one": (25, 47),
    "one frame": (FLASHES, FLASHES + 1),
    "all": (0, FRAMES),
}
"""(first frame, the one after the last); key frames are at 0, 12, 24, ..."""


def write(folder: Path, kind: Kind) -> Path:
    numbers = [FLASH if number == FLASHES else number for number in range(FRAMES)]
    more: dict[str, Any] = {"size": (128, 96), **kind.more}
    if more.get("codec") == "libx265":
        depth = more.pop("b_frames")
        params = f"keyint=12:min-keyint=12:scenecut=0:bframes={depth}:log-level=none:open-gop=0"
        more["options"] = {"preset": "superfast", "x265-params": params}
    if kind.sound is not None:
        begins, seconds = kind.sound
        flash = float(times_of(kind)[FLASHES]) + kind.late
        more |= {"sound": tone(flash - begins, 0.1, seconds), "sound_start": Fraction(begins)}
    return write_video(folder / kind.name, frames=numbers, times=kind.times or None, **more)


def times_of(kind: Kind) -> Sequence[Fraction]:
    return kind.times or [Fraction(number, 25) for number in range(FRAMES)]


@dataclass
class Source:
    """A file of a kind, and what is in it."""

    kind: Kind
    path: Path
    frames: list[Luma]
    """In the order shown, without hidden ones."""
    times: list[float]
    """When each of them is shown, from where players start."""
    delay: float | None
    """Seconds from the flash to its sound."""


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    kind: Kind = request.param
    path = write(tmp_path_factory.mktemp("in"), kind)
    found = decoded(path)
    with base.open_input(path) as container:
        zero = base.origin(container)
    delay = None
    if kind.sound is not None:
        delay = delay_in(path)
        assert delay == pytest.approx(kind.late, abs=0.03)
    assert len(found) == FRAMES - kind.first
    return Source(kind, path, [picture for _, picture in found], [float(at - zero) for at, _ in found], delay)


def delay_in(path: Path) -> float:
    """Seconds from the flash to its sound."""
    flash = next(frame.seconds for frame in shown(path) if frame.number == FLASH)
    return onset(path) - float(flash)


@pytest.fixture(autouse=True)
def always_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splice small clips too, which are cheaper to encode."""
    monkeypatch.setattr(splice.smart, "usual_costs", lambda *_, **__: splice.smart.Costs(1, 1, 1000, 1, 1))


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("mode", ["exact", "smart"])
def test_a_clip_is_right_to_the_frame(
    source: Source, tmp_path: Path, span: tuple[int, int], mode: Mode
) -> None:
    clip = checked(source, tmp_path, span, mode)
    if mode == "smart":
        assert (clip.mode == "exact") == (source.kind.baked or span == SPANS["one frame"]), clip.reason


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_pictures_that_may_stay_as_stored_are_copied(
    tmp_path: Path, source: Source, span: tuple[int, int]
) -> None:
    if source.kind.baked:
        clip = checked(source, tmp_path, span, "smart", as_stored=True)
        assert (clip.mode == "exact") == (span == SPANS["one frame"]), clip.reason


def checked(
    source: Source, folder: Path, span: tuple[int, int], mode: Mode, *, as_stored: bool = False
) -> Cut:
    """Cut, and compare with the source, frame by frame."""
    first, stop = max(0, span[0] - source.kind.first), span[1] - source.kind.first
    end = source.times[stop] if stop < len(source.times) else 3600
    output = folder / f"o{source.path.suffix}"
    clip = cut(source.path, output, source.times[first], end, mode, as_stored=as_stored)
    frames, times = decoded(clip.path), source.times[first:stop]
    copied = [span.kind == "copy" for span in clip.spans for _ in range(span.frames)]
    assert len(frames) == clip.frames == len(times) == len(copied)
    for number, (at, picture) in enumerate(frames):
        assert float(at) == pytest.approx(times[number] - times[0], abs=0.002)
        wanted = source.frames[first + number]
        if copied[number]:
            assert np.array_equal(picture, wanted), f"frame {number} was to be copied"
            continue
        if wanted.dtype != picture.dtype:  # ten bits have become eight
            wanted = (wanted >> 2).astype(np.uint8)
        if wanted.shape != picture.shape:  # it was turned
            wanted = np.ascontiguousarray(np.rot90(wanted, 3))
        assert ssim(picture, wanted) > 0.97, f"frame {number}"
    assert all(after > before for (before, _), (after, _) in itertools.pairwise(frames))
    assert all(after > before for before, after in itertools.pairwise(decoding_times(clip.path)))
    if source.delay is not None and clip.frames > 1:
        assert delay_in(clip.path) == pytest.approx(source.delay, abs=0.005)
    return clip
