"""Hundreds of damaged files: each ends in an error of ours or in a clip that decodes, and none hangs."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from tests.media_files import tone, write_video
from tests.mutations import mutated
from video import ParallelConfig, Runner
from video.errors import VideoError
from video.media import base, codecs, pieces, smart, strategies
from video.media.cut import cut
from video.media.fuse import fuse
from video.media.highlights import find_highlights
from video.media.probe import measure, probe
from video.media.quality import measure_quality
from video.media.render import Output, render
from video.media.stills import contact_sheet
from video.media.variants import facts_of
from video.models import Mode

FILES = 500
SILENT_SECONDS = 10.0
"""Longest time without progress; all that is done with a sound file takes a tenth of a second."""
PATIENCE_SECONDS = 60
"""For one file, with which something goes on and on."""
SIZE = (64, 48)


def write_sources(folder: Path) -> list[Path]:
    """Small ones of the kinds that people have: two seconds of pictures and sound each."""
    sound = {"sound": tone(0, 2, 2), "frames": 32, "rate": 16, "size": SIZE}
    hevc = {"x265-params": "keyint=8:min-keyint=8:scenecut=0:log-level=none"}
    return [
        write_video(folder / "h264.mp4", gop=8, **sound),
        write_video(folder / "h264.mkv", gop=8, **sound),
        write_video(folder / "hevc.mp4", codec="libx265", options=hevc, **sound),
        write_video(
            folder / "vp9.webm", codec="libvpx-vp9", options={"cpu-used": "8"}, sound_codec="libopus", **sound
        ),
    ]


def frames_of(path: Path) -> list[float]:
    """Seconds of each frame that comes out of a file, whatever is wrong with the others."""
    found: list[float] = []
    with base.open_input(path) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.FFmpegError):
                found += [float((frame.pts or 0) * (frame.time_base or 0)) for frame in packet.decode()]
    return found


def progressed(_: float = 0.0) -> None:
    """Something is done. Where that is not said again in time, the worker says where it stands, and ends."""
    faulthandler.dump_traceback_later(SILENT_SECONDS, exit=True, file=sys.__stderr__)


WELL = "well"
VARIED = 4
"""Of so many files, one has a variant too."""
SMALL = codecs.encoding("webm", "vp9", "low")[0]


class Trial:
    """Damages a file by a number, and does everything with it that we do with files."""

    def __init__(self, sources: list[Path], folder: Path) -> None:
        self.sources = sources
        self.folder = folder

    def __call__(self, seed: int) -> dict[str, str]:
        """What became of each job: "well", or the kind of its error."""
        # In this worker only: small clips, which are cheaper to encode, are to be spliced too.
        smart.usual_costs = lambda *_, **__: smart.Costs(1, 1, 1000, 1, 1)  # type: ignore[misc]
        source = self.folder / f"{seed}{self.sources[seed % len(self.sources)].suffix}"
        source.write_bytes(mutated([path.read_bytes() for path in self.sources], seed))
        jobs: dict[str, Callable[[], Any]] = {
            "probe": lambda: probe(source).as_dict(),
            "measure": lambda: measure(source).as_dict(),
            "highlights": lambda: find_highlights(source, count=1, min_length=0.5, max_length=1),
            "pieces": lambda: pieces.plan(str(source), 0.5),
            "quality": lambda: measure_quality(
                source, self.sources[seed % len(self.sources)], progress=progressed
            ),
            "sheet": lambda: contact_sheet(source, source.with_suffix(".png"), count=2, width=32),
            "smart": lambda: self.clip(source, 0.3, 1.7, "smart"),
            "copy": lambda: self.clip(source, 0.3, 1.7, "copy"),
            "exact": lambda: self.clip(source, 0.3, 0.8, "exact"),
            "encode": lambda: self.clip(source, 0, 3600, "exact"),
        }
        if seed // len(self.sources) % VARIED == 0:  # some of each kind
            jobs["variant"] = lambda: self.variant(source, seed)
        found = {}
        for name, job in jobs.items():
            progressed()
            try:
                done = job()
                found[name] = done if isinstance(done, str) else WELL
            except VideoError as error:
                found[name] = type(error).__name__
        faulthandler.cancel_dump_traceback_later()
        source.unlink()
        source.with_suffix(".png").unlink(missing_ok=True)
        return found

    def variant(self, source: Path, seed: int) -> str:
        """A variant, and the same pictures in another codec, by one decoder.

        :raises AssertionError: it says that all is well, and that is not so.
        """
        facts = facts_of(source)
        plan = fuse(strategies.choose("standard", facts, seed, 1), facts)
        mp4, webm = (self.folder / f"{source.stem}-variant{kind}" for kind in (".mp4", ".webm"))
        outputs = [Output(mp4, plan.picture, plan.sound, plan.encoding), Output(webm, encoding=SMALL)]
        try:
            for result in render(source, outputs, progress=progressed):
                if isinstance(result, Exception):
                    raise result
                assert len(frames_of(result.path)) == result.frames
        finally:
            mp4.unlink(missing_ok=True)
            webm.unlink(missing_ok=True)
        return WELL

    def clip(self, source: Path, start: float, end: float, mode: Mode) -> str:
        """How it was made.

        :raises AssertionError: it says that all is well, and that is not so.
        """
        output = self.folder / f"{source.stem}-clip.mp4"
        clip = cut(source, output, start, end, mode)
        found = len(frames_of(output))
        output.unlink()
        wanted = clip.frames
        if clip.mode != "exact":  # what is copied is as good as it was, and no worse
            with base.open_input(source) as container:
                zero = float(base.origin(container)) - 0.001
            times = frames_of(source)
            in_order = times == sorted(times)  # else nobody can say which of them belong into the clip
            wanted = sum(zero + clip.start <= at < zero + clip.end for at in times) if in_order else 1
        assert found >= max(1, min(wanted, clip.frames)), f"{clip.mode}: {found} of {wanted} frames decode"
        return clip.mode


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_damaged_files_end_in_an_error_of_ours_or_in_clips_that_decode(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "sound").mkdir()
    trial = Trial(write_sources(tmp_path / "sound"), work)
    config = ParallelConfig(backend="process", max_workers=2, timeout=PATIENCE_SECONDS)
    with Runner(config) as runner:
        outcomes = runner.map(trial, range(FILES))
    wrong = {seed: repr(outcome.error) for seed, outcome in enumerate(outcomes) if not outcome.ok}
    assert not wrong
    ends = collections.Counter(item for outcome in outcomes for item in outcome.unwrap().items())
    for name, well in (
        ("probe", WELL),
        ("highlights", WELL),
        ("quality", WELL),
        ("smart", "smart"),
        ("copy", "copy"),
        ("encode", "exact"),
        ("variant", WELL),
    ):
        files = FILES / VARIED if name == "variant" else FILES
        assert files / 10 < ends[name, well] < files * 0.9, "damage that spoils nothing, or all, tests little"
    assert not list(work.iterdir())
