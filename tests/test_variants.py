"""Variants of files: reproducible, isolated, in time, and whole or not there."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest

from tests.conftest import shared
from tests.media_files import FLASH, onset, shown, tone, write_video
from tests.test_cli import ENVIRONMENT, VIDEO, run, run_in_terminal
from tests.waiting import until
from video import (
    ConcurrentTransformationEngine,
    Encoded,
    FFmpegTransformationService,
    VideoEncodingResponse,
    VideoProcessingManager,
    scope,
)
from video.cli.variants import preview
from video.errors import ConfigError, ItemTimeout, SourceNotFound, UnknownName
from video.events import Event, Kind
from video.media import catalogue, fuse, strategies
from video.media.probe import measure
from video.media.sample import write_sample
from video.media.transform import LAYERS, Chosen, Transformation
from video.media.variants import Made, Wanted, facts_of, make
from video.processors.service import worker_count
from video.processors.variants import VARIANT_SECONDS, Task, make_variants, sizes, together

KEYS = {
    "variant_id", "status", "processing_time", "file_size", "output_path", "input_path", "strategy", "seed",
    "transformations", "measures", "attempts", "backend", "reason", "error", "error_type", "traceback",
}  # fmt: skip
LINE = {
    "source", "success", "error", "outputs", "number", "strategy", "seed", "seconds", "attempts", "backend",
    "reason",
}  # fmt: skip
FRAME = 1 / 25


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with sound."""
    return write_sample(tmp_path_factory.mktemp("clip"), seconds=3, size=(160, 90))


def files(folder: Path) -> list[str]:
    """All that is in a folder but for the list of names."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".video-names")


@dataclass(frozen=True)
class Trap(Chosen):
    """A transformation that does something else in the worker that plans it."""

    deed: str = ""

    def text(self, template: str, facts: Any, end: float) -> str:
        if self.deed == "die":
            os._exit(9)
        if self.deed == "sleep":
            time.sleep(60)
        return super().text(template, facts, end)


def trap(deed: str) -> Trap:
    plain = catalogue.get("hue").at(degrees=2.0)
    return Trap(plain.of, plain.values, deed)


BROKEN = Transformation("broken", "colour", picture="nosuchfilter")


# What comes out


def test_variants_are_what_their_results_say(clip: Path, tmp_path: Path) -> None:
    found = VideoProcessingManager(2).process_variants_parallel([clip], tmp_path / "out", 2, seed=3)
    assert files(tmp_path / "out") == ["coast-variant-01.mp4", "coast-variant-02.mp4"]
    for one in found:
        assert set(one) == KEYS
        assert one["status"] == "completed", one["error"]
        path = Path(one["output_path"])
        frames = shown(path)
        assert one["file_size"] == path.stat().st_size
        assert one["measures"]["frames"] == len(frames)
        assert frames[0].size == (one["measures"]["width"], one["measures"]["height"])
        assert 16 <= len(one["transformations"]) <= 24
        assert one["processing_time"] > 0
        json.dumps(one, allow_nan=False)


@pytest.mark.parametrize("strategy", ["seven_layer", "enhanced_metrics"])
@pytest.mark.parametrize(
    "engines",
    [
        ("serial", "thread", "process"),
        pytest.param(("serial", "joblib", "dask", "async"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_the_same_seed_gives_the_same_bytes_on_every_engine(
    engines: tuple[str, ...], strategy: str, clip: Path, tmp_path: Path
) -> None:
    results, bytes_of = {}, {}
    for backend in engines:
        manager = VideoProcessingManager(2, backend=backend)
        found = manager.process_variants_parallel([clip], tmp_path / backend, 3, strategy, seed=5)
        assert [one["error"] for one in found] == [None] * 3
        results[backend] = [(one["transformations"], one["measures"]) for one in found]
        bytes_of[backend] = [Path(one["output_path"]).read_bytes() for one in found]
        assert bytes_of[backend] == bytes_of["serial"]
        assert results[backend] == results["serial"]
    assert len(set(bytes_of["serial"])) == 3


def test_a_variant_can_be_made_again_from_its_result(clip: Path, tmp_path: Path) -> None:
    (first,) = VideoProcessingManager(1, backend="thread").process_variants_parallel(
        [clip], tmp_path / "a", 1
    )
    said = json.loads(json.dumps(first["transformations"]))
    engine = ConcurrentTransformationEngine(1, backend="thread")
    (again,) = engine.run(clip, {tmp_path / "again.mp4": said})
    assert Path(again["output_path"]).read_bytes() == Path(first["output_path"]).read_bytes()


def test_seven_layer_says_the_layers(clip: Path, tmp_path: Path) -> None:
    manager = VideoProcessingManager(1, backend="thread")
    (one,) = manager.process_variants_parallel([clip], tmp_path, 1, "seven_layer")
    assert {each["layer"] for each in one["transformations"]} == set(LAYERS)


@pytest.mark.parametrize("floor", [0.9, 0.97])
def test_enhanced_metrics_keeps_its_floor_and_reports(clip: Path, tmp_path: Path, floor: float) -> None:
    manager = VideoProcessingManager(2, backend="thread")
    found = manager.process_variants_parallel(
        [clip], tmp_path, 2, "enhanced_metrics", seed=1, ssim_floor=floor
    )
    for one in found:
        assert one["error"] is None
        measures = one["measures"]
        assert measures["ssim"] >= floor
        assert measures["psnr"] > 15
        assert 0 <= measures["hash_distance"] <= 64
        assert -60 < measures["loudness"] < 0
        assert len(one["transformations"]) >= 3
    assert len(files(tmp_path)) == 2


def test_a_floor_that_no_encoder_keeps_fails_and_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    manager = VideoProcessingManager(1, backend="thread")
    (one,) = manager.process_variants_parallel([clip], tmp_path, 1, "enhanced_metrics", ssim_floor=0.99999)
    assert one["status"] == "failed"
    assert "even with its picture as it is" in one["error"]
    assert files(tmp_path) == []


TIMES: dict[str, dict[str, float]] = {
    "trim_start": {"start": 0.4},
    "trim_end": {"cut": 0.52},
    "speed": {"speed": 1.05},
    "hold_first": {"lead": 0.32},
}


@pytest.mark.parametrize(
    "row", [*([name] for name in TIMES), [*TIMES, "frame_rate", "echo", "pitch"]], ids="+".join
)
def test_picture_and_sound_end_where_the_plan_says(row: list[str], tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=100, sound=tone(2.0, 0.5, 4.0))
    said = [{"name": name, "parameters": TIMES[name]} if name in TIMES else name for name in row]
    engine = ConcurrentTransformationEngine(1, backend="thread")
    (plan,) = engine.plan(source, [said]).groups[0]
    (one,) = engine.run(source, {tmp_path / "out.mp4": said})
    assert one["error"] is None
    found = measure(tmp_path / "out.mp4")
    assert found.start_seconds == 0
    assert found.end_seconds == pytest.approx(plan.seconds, abs=1.5 * FRAME)
    assert found.audio_start_seconds == pytest.approx(0, abs=0.001)
    assert found.audio_end_seconds == pytest.approx(found.end_seconds, abs=FRAME)
    # The tone that began with frame 50 still does.
    wanted = {name: TIMES[name] for name in row if name in TIMES}
    start = wanted.get("trim_start", {}).get("start", 0.0)
    speed = wanted.get("speed", {}).get("speed", 1.0)
    lead = wanted.get("hold_first", {}).get("lead", 0.0)
    assert onset(tmp_path / "out.mp4") == pytest.approx((2.0 - start) / speed + lead, abs=0.015)
    if "frame_rate" not in row:
        frame = next(float(one.seconds) for one in shown(tmp_path / "out.mp4") if one.number == 50)
        assert frame == pytest.approx((2.0 - start) / speed + lead, abs=0.002)


@pytest.mark.parametrize("row", [*([name] for name in TIMES), ["frame_rate"], ["gamma"]], ids="+".join)
def test_a_last_picture_that_stands_still_does_so_in_a_variant_too(row: list[str], tmp_path: Path) -> None:
    """As at the end of a recorded screen: it is shown for 5 s, and there is sound meanwhile."""
    source = stood(
        write_video(tmp_path / "in.mp4", frames=50, sound=tone(0, 7, 7)), tmp_path / "still.mp4", 5
    )
    said = [{"name": name, "parameters": TIMES[name]} if name in TIMES else name for name in row]
    engine = ConcurrentTransformationEngine(1, backend="thread")
    (plan,) = engine.plan(source, [said]).groups[0]
    (one,) = engine.run(source, {tmp_path / "out.mp4": said})
    assert one["error"] is None
    assert plan.seconds > 6
    found = measure(tmp_path / "out.mp4")
    assert found.end_seconds == pytest.approx(plan.seconds, abs=FRAME)
    assert found.audio_end_seconds == pytest.approx(plan.seconds, abs=FRAME)
    assert one["measures"]["seconds"] == pytest.approx(plan.seconds, abs=FRAME)


def stood(source: Path, target: Path, seconds: int) -> Path:
    """The same, but that its last picture is shown so long."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        streams = {one.index: out.add_stream_from_template(one) for one in container.streams}
        packets = [one for one in container.demux() if one.size]
        last = max((one for one in packets if one.stream.type == "video"), key=lambda one: one.pts or 0)
        last.duration = round(seconds / last.time_base)
        for one in packets:
            one.stream = streams[one.stream_index]
            out.mux(one)
    return target


def test_a_fade_ends_with_the_pictures_though_sound_goes_on(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", frames=[FLASH] * 50, sound=tone(0, 20, 20))
    engine = ConcurrentTransformationEngine(1, backend="thread")
    said = {"name": "fade_out", "parameters": {"fade": 0.6}}
    (one,) = engine.run(source, {tmp_path / "out.mp4": [said]})
    assert one["error"] is None
    with av.open(str(tmp_path / "out.mp4")) as container:
        light = [float(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    assert len(light) == 50
    assert min(light[:30]) > 200
    assert light[-1] < 50


def test_what_is_turned_and_has_long_pixels_is_upright(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=20, size=(160, 90), rotation=90)
    engine = ConcurrentTransformationEngine(1, backend="thread")
    (one,) = engine.run(source, {tmp_path / "out.mp4": ["gamma"]})
    assert (one["measures"]["width"], one["measures"]["height"]) == (90, 160)
    assert [frame.number for frame in shown(tmp_path / "out.mp4")] == list(range(20))


def test_a_silent_video_stays_silent(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=30)
    (one,) = VideoProcessingManager(1, backend="thread").process_variants_parallel(
        [source], tmp_path / "out", 1
    )
    assert one["error"] is None
    assert not any(each["layer"] == "audio" for each in one["transformations"])


@pytest.mark.parametrize("frames", [1, 2, 12])
@pytest.mark.parametrize("strategy", ["standard", "enhanced_metrics"])
def test_a_video_of_a_moment_has_variants_too(frames: int, strategy: str, tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=frames, sound=tone(0.0, 0.02, frames * FRAME))
    manager = VideoProcessingManager(1, backend="thread")
    for one in manager.process_variants_parallel([source], tmp_path / "out", 4, strategy):
        assert one["error"] is None
        assert one["measures"]["frames"] >= 1
        assert one["measures"]["seconds"] == pytest.approx(frames * FRAME, rel=0.25, abs=FRAME)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 3)])
def test_the_smallest_pictures_have_variants_too(size: tuple[int, int], tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", frames=5, size=size, codec="rawvideo")
    manager = VideoProcessingManager(1, backend="thread")
    found = manager.process_variants_parallel([source], tmp_path / "out", 8, seed=1)
    assert [one["error"] for one in found] == [None] * 8


# What goes wrong


def test_one_that_fails_costs_itself_only(clip: Path, tmp_path: Path) -> None:
    engine = ConcurrentTransformationEngine(1)
    found = engine.run(
        clip,
        {
            tmp_path / "a.mp4": ["hue"],
            tmp_path / "b.mp4": [Chosen(BROKEN)],
            tmp_path / "c.xyz": ["hue"],
            tmp_path / "d.mp4": [],
        },
    )
    assert [one["status"] for one in found] == ["completed", "failed", "failed", "completed"]
    assert "nosuchfilter" in found[1]["error"]
    assert files(tmp_path) == ["a.mp4", "d.mp4"]


def test_one_that_kills_its_worker_costs_itself_only(clip: Path, tmp_path: Path) -> None:
    engine = ConcurrentTransformationEngine(1)
    found = engine.run(
        clip, {tmp_path / "a.mp4": ["hue"], tmp_path / "b.mp4": [trap("die")], tmp_path / "c.mp4": ["tint"]}
    )
    assert [one["status"] for one in found] == ["completed", "failed", "completed"]
    assert "exit" in found[1]["error"]
    assert files(tmp_path) == ["a.mp4", "c.mp4"]


@pytest.mark.slow
def test_one_that_hangs_is_ended_at_its_time(clip: Path, tmp_path: Path) -> None:
    engine = ConcurrentTransformationEngine(1, timeout=3)
    began = time.monotonic()
    found = engine.run(clip, {tmp_path / "a.mp4": [trap("sleep")], tmp_path / "b.mp4": ["hue"]})
    assert time.monotonic() - began < 50
    assert [one["status"] for one in found] == ["failed", "completed"]
    assert "3 s" in found[0]["error"]
    assert files(tmp_path) == ["b.mp4"]


@pytest.mark.parametrize(("memory", "wanted"), [(8e9, [(2, 200)]), (1e6, [(1, 100), (1, 100)])])
def test_a_group_has_as_long_as_its_own_size_says(
    memory: float,
    wanted: list[tuple[int, float]],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watched(task: Task) -> list[Made]:
        seen.append((len(task.wanted), task.limit))
        return make_variants(task)

    monkeypatch.setattr("video.processors.variants.make_variants", watched)
    manager = VideoProcessingManager(1, backend="serial", timeout=100)
    manager.memory_bytes = memory
    found = manager.process_variants_parallel([clip], tmp_path, 2)
    assert [one["error"] for one in found] == [None, None]
    assert seen == wanted


def test_a_variant_ends_at_its_time_where_nobody_can_end_it(clip: Path, tmp_path: Path) -> None:
    manager = VideoProcessingManager(1, backend="serial", timeout=0.05)
    found = manager.process_variants_parallel([clip], tmp_path, 2, seed=1)
    assert [one["status"] for one in found] == ["failed", "failed"]
    assert "longer than its limit of 0.05 s" in found[0]["error"]
    assert files(tmp_path) == []


@pytest.mark.parametrize("limit", [None, 3])
def test_measuring_says_how_far_it_is_and_looks_at_the_clock(
    limit: int | None, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    def hear(share: float, words: str) -> None:
        if words == "measuring":
            told.append(share)
            time.sleep(limit or 0)

    monkeypatch.setattr(scope, "REPORT_SECONDS", 0.0)
    wanted = [Wanted(tmp_path / "a.mp4", "enhanced_metrics", floor=0.5)]
    with scope.entered(scope.Slot(1, listener=hear)):
        if limit is None:
            assert make(str(clip), wanted)[0].error is None
            assert len(set(told)) > 10
            assert told == sorted(told)
            assert told[-1] <= 1
            return
        with pytest.raises(ItemTimeout):
            make(str(clip), wanted, limit)
    assert files(tmp_path) == []


def test_a_variant_has_five_minutes() -> None:
    assert VARIANT_SECONDS == 300
    for call in (VideoProcessingManager, ConcurrentTransformationEngine):
        assert inspect.signature(call).parameters["timeout"].default == 300


def test_an_input_that_comes_twice_is_made_once_and_answered_twice(clip: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / clip.name
    link.parent.mkdir()
    link.symlink_to(clip)
    heard_of: list[Event] = []
    manager = VideoProcessingManager(2, backend="thread", observers=[heard_of.append])
    found = manager.process_variants_parallel([clip, link, clip], tmp_path / "out", 1)
    assert [one["input_path"] for one in found] == [str(clip), str(link), str(clip)]
    assert [one["error"] for one in found] == [None] * 3
    assert len({one["output_path"] for one in found}) == 1
    assert files(tmp_path / "out") == ["coast-variant-01.mp4"]
    assert sorted(one.index for one in heard_of if one.kind is Kind.ITEM_FINISHED) == [0, 1, 2]


def test_two_outputs_of_one_path_are_refused_before_anything_is_made(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "way").symlink_to("out")
    outputs = {tmp_path / "out" / "x.mp4": ["hue"], tmp_path / "way" / "x.mp4": ["tint"]}
    with pytest.raises(ConfigError, match="asked for twice"):
        ConcurrentTransformationEngine(2, backend="thread").run(clip, outputs)
    assert files(tmp_path / "out") == []


def test_a_bad_input_costs_its_own_variants_only(clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing of the kind" * 50)
    found = VideoProcessingManager(2, backend="thread").process_variants_parallel(
        [bad, clip], tmp_path / "out", 2
    )
    assert [one["status"] for one in found] == ["failed", "failed", "completed", "completed"]
    assert "bad.mp4" in found[0]["error"]
    assert len(files(tmp_path / "out")) == 2


def test_an_input_is_never_written_over(clip: Path, tmp_path: Path) -> None:
    mine = tmp_path / "talk-variant-01.mp4"
    shutil.copy(clip, mine)
    shutil.copy(clip, tmp_path / "talk.mp4")
    before = mine.read_bytes()
    VideoProcessingManager(1, backend="thread").process_variants_parallel(
        [tmp_path / "talk.mp4", mine], tmp_path, 1
    )
    assert mine.read_bytes() == before
    (one,) = ConcurrentTransformationEngine(1, backend="thread").run(mine, {mine: ["hue"]})
    assert "is the source itself" in one["error"]
    assert mine.read_bytes() == before


def test_another_run_replaces_its_own_variants_and_no_file_of_anybody_else(
    clip: Path, tmp_path: Path
) -> None:
    def names(count: int, seed: int) -> list[str]:
        manager = VideoProcessingManager(1, backend="thread")
        found = manager.process_variants_parallel([clip], tmp_path, count, seed=seed)
        return [Path(one["output_path"]).name for one in found]

    assert names(1, seed=0) == ["coast-variant-01.mp4"]
    before = (tmp_path / "coast-variant-01.mp4").read_bytes()
    (tmp_path / "coast-variant-02.mp4").write_bytes(b"of somebody else")
    for _ in range(2):  # and what it has got instead, it keeps
        assert names(2, seed=1) == ["coast-variant-01.mp4", "coast-variant-02-2.mp4"]
    assert (tmp_path / "coast-variant-01.mp4").read_bytes() != before
    assert (tmp_path / "coast-variant-02.mp4").read_bytes() == b"of somebody else"


def test_namesakes_have_names_of_their_own(clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / clip.name
    other.parent.mkdir()
    shutil.copy(clip, other)
    found = VideoProcessingManager(2, backend="thread").process_variants_parallel(
        [clip, other], tmp_path / "out", 1
    )
    assert len({one["output_path"] for one in found}) == 2
    assert len(files(tmp_path / "out")) == 2


def test_a_name_that_just_fits_leaves_room_for_those_of_variants(clip: Path, tmp_path: Path) -> None:
    source = tmp_path / f"{'x' * 247}.mp4"
    shutil.copy(clip, source)
    manager = VideoProcessingManager(1, backend="thread")
    (one,) = manager.process_variants_parallel([source], tmp_path / "out", 1)
    assert one["error"] is None
    assert files(tmp_path / "out") == [f"{'x' * 150}-variant-01.mp4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"variants_per_file": 0}, "1 to 1000"),
        ({"format": "avi"}, "format"),
        ({"ssim_floor": 1.5}, "ssim_floor"),
        ({"ssim_floor": None}, "ssim_floor"),
        ({"strategy": ["standard"]}, "strategy"),
        ({"seed": "x"}, "seed"),
        ({"input_files": []}, "no input files"),
        ({"input_files": "ab"}, "single"),
        ({"input_files": Path("ab.mp4")}, "single"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    clip: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        VideoProcessingManager(1).process_variants_parallel(
            **{"input_files": [clip], "output_dir": tmp_path / "out", **arguments}
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0, 1.5, "much"])
def test_a_memory_limit_is_a_share(share: Any) -> None:
    with pytest.raises(ConfigError, match="memory_limit"):
        VideoProcessingManager(1, share)


# How it runs


@pytest.mark.parametrize(
    ("variants", "workers", "most", "wanted"),
    [
        (8, 2, 4, [4, 4]),
        (8, 1, 4, [4, 4]),
        (3, 2, 4, [2, 1]),
        (1, 8, 4, [1]),
        (10, 2, 4, [4, 3, 3]),
        (5, 1, 1, [1] * 5),
    ],
)
def test_variants_are_made_together_without_leaving_a_worker_idle(
    variants: int, workers: int, most: int, wanted: list[int]
) -> None:
    assert sizes(variants, workers, most) == wanted


def test_memory_bounds_how_many_are_made_together() -> None:
    assert together(1280 * 720, workers=2, memory=8e9) == 4
    assert together(3840 * 2160, workers=2, memory=2.5e9) == 1
    assert together(1280 * 720, workers=1, memory=1e6) == 1


def test_progress_rises_to_a_hundred_and_not_beyond(clip: Path, tmp_path: Path) -> None:
    told: list[float] = []
    VideoProcessingManager(2).process_variants_parallel([clip], tmp_path, 3, progress_callback=told.append)
    assert told == sorted(set(told))
    assert told[0] >= 0
    assert told[-1] == 100


def test_a_callback_that_raises_stops_nothing(clip: Path, tmp_path: Path) -> None:
    def broken(percent: float) -> None:
        raise RuntimeError("no")

    (one,) = VideoProcessingManager(1, backend="thread").process_variants_parallel(
        [clip], tmp_path, 1, progress_callback=broken
    )
    assert one["status"] == "completed"


def test_observers_hear_of_each_variant(clip: Path, tmp_path: Path) -> None:
    heard_of: list[Event] = []
    manager = VideoProcessingManager(2, backend="thread", observers=[heard_of.append])
    manager.process_variants_parallel([clip], tmp_path, 3)
    ended = [event.index for event in heard_of if event.kind is Kind.ITEM_FINISHED]
    assert sorted(ended) == [0, 1, 2]
    assert {event.index for event in heard_of} == {0, 1, 2}


def test_a_monitor_sees_the_workers(clip: Path, tmp_path: Path) -> None:
    manager = VideoProcessingManager(max_workers=2, memory_limit=0.8)
    with manager.resource_monitor() as monitor:
        manager.process_variants_parallel([clip], tmp_path, 2)
    seen = monitor.as_dict()
    assert seen["peak_memory_bytes"] > 50e6
    assert seen["peak_cpu_percent"] > 10
    assert seen["looks"] >= 2
    before = monitor.looks
    time.sleep(0.5)
    assert monitor.looks == before


# The engine's plan


def test_a_plan_shows_groups_and_their_graphs(clip: Path) -> None:
    plan = ConcurrentTransformationEngine(2).plan(clip, [["vignette", "crop_wide", "curve"]] * 6)
    assert [len(group) for group in plan.groups] == [3, 3]
    text = str(plan)
    assert "outputs 6, times decoded 2, workers 2 at most" in text
    assert text.index("crop_wide") < text.index("vignette") < text.index("curve")


def test_whoever_plans_opens_no_source_itself(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header may end the process that reads it; workers do not see what is set here."""
    monkeypatch.setattr("video.media.variants.facts_of", lambda _: pytest.fail("opened here"))
    plan = ConcurrentTransformationEngine(1).plan(clip, [["hue"]])
    assert "hue" in str(plan)
    assert preview([str(clip)], Path("variants"), 1, "standard", 0) == 0
    assert "variant 1" in capsys.readouterr().out


def test_a_plan_of_nothing_is_empty(clip: Path) -> None:
    assert ConcurrentTransformationEngine(1).plan(clip, []).groups == ()


@pytest.mark.parametrize(
    ("said", "error"),
    [("hue", ConfigError), ([7], ConfigError), (["nosuch"], UnknownName), ([{"name": "hue"}], ConfigError)],
)
def test_what_is_no_list_of_transformations_is_refused(clip: Path, said: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ConcurrentTransformationEngine(1).plan(clip, [said])


# The promised calls


def test_the_calls_are_as_promised() -> None:
    service = FFmpegTransformationService
    assert list(inspect.signature(service.create_multiple_variants_fast).parameters)[:6] == [
        "input_path", "output_dir", "num_variants", "strategy", "max_workers", "progress_callback",
    ]  # fmt: skip
    assert list(inspect.signature(service.create_variants_batch_optimized).parameters)[:5] == [
        "input_files", "output_base_dir", "variants_per_file", "strategy", "max_workers",
    ]  # fmt: skip
    assert list(inspect.signature(service.benchmark_processing_speed).parameters) == [
        "input_path", "output_dir", "test_variants",
    ]  # fmt: skip


@pytest.mark.parametrize("service", [FFmpegTransformationService, FFmpegTransformationService()])
def test_the_service_works_as_a_class_and_as_an_object(service: Any, clip: Path, tmp_path: Path) -> None:
    told: list[float] = []
    (one,) = service.create_multiple_variants_fast(
        input_path=clip, output_dir=tmp_path / "one", num_variants=1, strategy="standard", max_workers=1,
        progress_callback=told.append, backend="thread",
    )  # fmt: skip
    assert one["status"] == "completed"
    assert told[-1] == 100
    many = service.create_variants_batch_optimized(
        input_files=[clip],
        output_base_dir=tmp_path / "many",
        variants_per_file=2,
        strategy="seven_layer",
        backend="thread",
    )
    assert [Path(one["output_path"]).exists() for one in many] == [True, True]


def test_a_benchmark_recommends_a_number_of_workers(clip: Path, tmp_path: Path) -> None:
    found = FFmpegTransformationService.benchmark_processing_speed(clip, tmp_path / "x", test_variants=2)
    workers = [row["workers"] for row in found["rows"]]
    assert workers == sorted(set(workers))
    assert found["recommended_workers"] in workers
    assert found["best_time"] == min(row["seconds"] for row in found["rows"])
    assert list(tmp_path.iterdir()) == []


def test_no_more_workers_than_cpus_memory_and_work_have_room_for() -> None:
    picture = 1280 * 720
    assert worker_count(4, 64e9, picture, float("inf")) == 4
    assert worker_count(64, 1e9, picture, float("inf")) == 5
    assert worker_count(64, 64e9, picture, 1.2) == 2
    assert worker_count(2, 1e3, picture, 0.1) == 1
    assert worker_count(3, float("inf"), picture, float("inf")) == 3


def test_an_input_says_how_many_workers_it_is_worth(clip: Path) -> None:
    assert FFmpegTransformationService.get_optimal_worker_count() >= 1
    assert FFmpegTransformationService.get_optimal_worker_count(clip) == 1
    with pytest.raises(SourceNotFound):
        FFmpegTransformationService.get_optimal_worker_count("nosuch.mp4")
    with pytest.raises(ConfigError, match="num_variants is 0"):
        FFmpegTransformationService.get_optimal_worker_count(clip, 0)


# The command


def test_the_command_makes_variants_and_says_so_in_json(clip: Path, tmp_path: Path) -> None:
    done = run("variants", clip, "--count", 2, "--seed", 4, "--workers", 2, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(line) for line in lines] == [LINE, LINE]
    assert set(VideoEncodingResponse.model_fields) - {"request", "playlist"} < LINE
    assert [(line["source"], line["number"], line["attempts"]) for line in lines] == [
        (str(clip), 1, 1),
        (str(clip), 2, 1),
    ]
    for line in lines:
        (one,) = line["outputs"]
        path = Path(one["path"])
        assert (path.name, one["bytes"]) == (f"coast-variant-0{line['number']}.mp4", path.stat().st_size)
        assert {"path", "width", "height", "frames", "seconds", "bytes"} <= set(one) & set(
            Encoded.model_fields
        )
        assert (line["success"], line["error"], line["backend"]) == (True, None, "process")
    assert files(tmp_path / "variants") == ["coast-variant-01.mp4", "coast-variant-02.mp4"]


def test_a_variant_has_its_time_limit_on_the_serial_engine_too(clip: Path, tmp_path: Path) -> None:
    engine = ("--backend", "serial", "--count", 1)
    assert run("variants", clip, *engine, "--timeout", 90, cwd=tmp_path).returncode == 0
    late = run("variants", clip, *engine, "--timeout", 0.001, "--out", "late", cwd=tmp_path)
    assert late.returncode == 1
    assert "ran longer than its limit of 0.001 s" in late.stderr
    assert not (tmp_path / "late").exists()


def test_a_dry_run_prints_the_plans_and_writes_nothing(clip: Path, tmp_path: Path) -> None:
    done = run("variants", clip, "--count", 2, "--seed", 4, "--dry-run", cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(line) for line in lines] == [LINE, LINE]
    plans = [line["outputs"][0] for line in lines]
    assert [Path(one["path"]).name for one in plans] == ["coast-variant-01.mp4", "coast-variant-02.mp4"]
    facts = facts_of(clip)
    chosen = [strategies.choose("standard", facts, 4, number) for number in (1, 2)]
    assert [one["plan"] for one in plans] == [str(fuse.fuse(one, facts)) for one in chosen]
    assert [one["transformations"] for one in plans] == [[it.as_dict() for it in one] for one in chosen]
    assert files(tmp_path) == []


def test_a_failure_is_exit_code_1_and_one_line(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    done = run("variants", "bad.mp4", clip, "--count", 1, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: bad-variant-01: ")
    assert "Traceback" not in done.stderr
    for more in ((), ("--dry-run",)):
        done = run("variants", "bad.mp4", clip, "--count", 1, *more, cwd=tmp_path)
        assert done.returncode == 1
        bad, good = map(json.loads, done.stdout.splitlines())
        assert set(bad) == set(good) == LINE
        assert (bad["source"], bad["success"], bad["outputs"]) == ("bad.mp4", False, [])
        assert (bad["error"]["type"], bad["error"]["traceback"]) == ("InvalidMedia", "")
        assert good["success"]


def test_a_terminal_gets_a_table_in_units_that_fit(clip: Path, tmp_path: Path) -> None:
    code, drawn = run_in_terminal("variants", clip, "--count", 1, "--backend", "serial", cwd=tmp_path)
    assert code == 0
    (made,) = (tmp_path / "variants").glob("*.mp4")
    assert made.stat().st_size < 1e6
    assert f" {made.stat().st_size / 1e3:.1f} kB " in drawn
    assert "1 variant of 1 in variants (serial engine)" in drawn


def test_ctrl_c_leaves_nothing_unfinished(tmp_path: Path) -> None:
    source = write_sample(tmp_path / "in", seconds=20, size=(640, 360))
    command = [*VIDEO, "variants", str(source), "--count", "4", "--out", "out"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        out = tmp_path / "out"
        until(lambda: any(out.glob("*.part*")), seconds=60)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped" in words
    assert not out.exists() or not any(".part" in name for name in files(out))


# The documentation

DOCS = (Path(__file__).parents[1] / "docs" / "variants.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL), ids=range(3))
def test_the_documentations_python_runs(block: str, clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "block.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "block.py"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_documentation_has_every_transformation_strategy_and_key() -> None:
    for layer in LAYERS:
        names = [f"`{name}`" for name, one in catalogue.TRANSFORMATIONS.items() if one.layer == layer]
        assert f"| {layer} | {', '.join(names)} |" in DOCS
    for strategy, (least, most) in strategies.COUNTS.items():
        words = f"up to {most}" if strategy == "enhanced_metrics" else f"{least} to {most}"
        assert f"| `{strategy}` | {words} |" in DOCS
    assert all(f"`{key}`" in DOCS for key in KEYS)
    (shown,) = [line for line in DOCS.splitlines() if line.startswith("    source success ")]
    assert set(re.sub(r"\[.*?\]", "", shown).split()) == LINE


@pytest.mark.slow
def test_natural_video_keeps_its_floor(tmp_path: Path) -> None:
    from video.media.cut import cut

    source = tmp_path / "cars.mp4"
    cut(shared("cars.mp4"), source, 2.0, 5.0)
    found = VideoProcessingManager(2).process_variants_parallel(
        [source], tmp_path / "out", 2, "enhanced_metrics"
    )
    assert all(one["measures"].get("ssim", 0) >= 0.9 for one in found), found
