"""The clip processor, on every engine."""

from __future__ import annotations

import asyncio
import itertools
import shutil
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
from tests.http_server import File, serve, write_streams
from tests.media_files import numbers, tone, write_audio, write_video
from video import (
    ParallelConfig,
    Runner,
    VideoClipProcessor,
    VideoClipRequest,
    VideoClipResponse,
    create_high_performance_processor,
)
from video.errors import ConfigError, SourceNotFound
from video.events import Event, Kind
from video.media import base
from video.media.cut import cut
from video.media.probe import measure, probe
from video.processors._book import BOOK
from video.processors.clip import ClipPreview, from_key_frame

ENGINES = ["serial", "thread", "process", "async"]


def ask(source: Any, out: Path, **more: Any) -> VideoClipRequest:
    return VideoClipRequest(source=source, output_dir=out, **{"count": 2, "max_clip_length": 3, **more})


def files(folder: Path) -> list[str]:
    """What is in it, but for the list of who has which name."""
    return sorted(path.name for path in folder.rglob("*") if path.name != BOOK) if folder.exists() else []


@pytest.fixture(scope="module")
def processor() -> Iterator[VideoClipProcessor]:
    with VideoClipProcessor(ParallelConfig(max_workers=2)) as processor:
        yield processor


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_file_costs_only_itself_and_order_is_kept(
    engine: str, processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    sources = [samples[0], tmp_path / "noise.mp4", tmp_path / "missing.mp4", samples[1]]
    out = tmp_path / "out"
    responses = processor.process_batch_parallel([ask(source, out) for source in sources], backend=engine)
    assert [response.source for response in responses] == list(map(str, sources))
    assert [response.success for response in responses] == [True, False, False, True]
    assert [response.error.type for response in responses if response.error] == [
        "InvalidMedia",
        "SourceNotFound",
    ]
    assert all("noise.mp4" in str(r.error) for r in responses[1:2])
    assert {response.backend for response in responses} == {engine}
    clips = [clip.path.name for response in responses for clip in response.clips]
    assert files(out) == sorted(clips) == ["city-01.mp4", "city-02.mp4", "coast-01.mp4", "coast-02.mp4"]


def test_a_response_tells_what_is_in_the_file(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    request = ask(samples[0], tmp_path)
    response = processor.process_batch_parallel([request])[0]
    assert response.request == request
    assert response.seconds > 0
    assert response.attempts == 1
    last = 0.0
    for clip in response.clips:
        assert clip.path.is_absolute()
        assert clip.bytes == clip.path.stat().st_size
        measured = measure(clip.path)
        assert clip.frames == measured.packets
        assert clip.end - clip.start == pytest.approx(measured.duration_seconds, abs=0.002)
        video = probe(clip.path).video
        assert video is not None
        assert (clip.width, clip.height) == (video.width, video.height) == (160, 90)
        assert clip.reasons
        assert 0 <= clip.score <= 1
        assert clip.mode == "smart"
        assert clip.reason.endswith("frames can be copied")
        assert {span.kind for span in clip.spans} == {"copy", "encode"}
        assert sum(span.frames for span in clip.spans) == clip.frames
        assert (clip.spans[0].start, clip.spans[-1].end) == (clip.start, clip.end)
        assert last <= clip.start < clip.end <= 9.001
        assert clip.end - clip.start <= 3.001
        last = clip.end


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_every_engine_gives_the_same_bytes(engine: str, samples: list[Path], tmp_path: Path) -> None:
    """With the number of codec threads fixed, as the documentation asks."""
    results = []
    for name in ("serial", engine):
        config = ParallelConfig(backend=name, max_workers=2, threads_per_worker=1)
        with VideoClipProcessor(config) as processor:
            out = tmp_path / name
            responses = processor.process_batch_parallel([ask(source, out) for source in samples])
        clips = [clip for response in responses for clip in response.clips]
        results.append([(clip.path.name, clip.start, clip.path.read_bytes()) for clip in clips])
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_decoders_and_encoders_of_a_worker_have_its_share_of_threads(
    engine: str, samples: list[Path], tmp_path: Path
) -> None:
    def work(source: Path) -> int:
        with base.open_input(source) as container:
            decoder: int = base.video_stream(container).codec_context.thread_count
        cut(source, tmp_path / "out.mp4", 0, 0.5)
        return decoder

    with Runner(ParallelConfig(backend=engine, max_workers=2, threads_per_worker=3)) as runner:
        assert runner.map(work, samples[:1])[0].unwrap() == 3
    assert (
        b" threads=3 " in (tmp_path / "out.mp4").read_bytes()
    )  # x264 writes its settings into what it makes


def test_two_inputs_of_one_name_do_not_share_outputs(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    twin, shout = tmp_path / "coast.mp4", tmp_path / "COAST.mp4"
    shutil.copy(samples[1], twin)
    shutil.copy(samples[1], shout)
    out = tmp_path / "out"
    sources = [samples[0], twin, samples[0], shout]
    responses = processor.process_batch_parallel([ask(source, out, count=1) for source in sources])
    paths = [response.clips[0].path for response in responses]
    assert [path.name for path in paths] == [
        "coast-01.mp4",
        "coast-2-01.mp4",
        "coast-01.mp4",
        "COAST-3-01.mp4",
    ]
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_request_that_comes_twice_in_a_batch_runs_once_and_both_have_its_clips(
    engine: str, processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    first, other, again = processor.process_batch_parallel(
        [ask(samples[0], tmp_path), ask(samples[0], tmp_path, count=1), ask(samples[0], tmp_path)], engine
    )
    assert (first.attempts, other.attempts, again.attempts) == (1, 1, 0)
    assert again.clips == first.clips
    assert files(tmp_path) == sorted(clip.path.name for clip in (*first.clips, *other.clips))


def test_a_failure_that_is_the_videos_own_is_shared_by_a_request_that_comes_twice(
    processor: VideoClipProcessor, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 1000)
    first, again = processor.process_batch_parallel([ask(broken, tmp_path / "out")] * 2)
    assert not first.success
    assert not again.success
    assert again.error == first.error


@pytest.mark.parametrize("order", ["shortest", "longest"])
def test_videos_run_by_the_size_of_their_files_and_keep_their_places(
    order: str, samples: list[Path], tmp_path: Path
) -> None:
    sources = sorted(samples, key=lambda one: one.stat().st_size, reverse=order == "shortest")
    ended: list[int | None] = []

    def watch(event: Event) -> None:
        if event.kind is Kind.ITEM_FINISHED:
            ended.append(event.index)

    with VideoClipProcessor(ParallelConfig(backend="serial"), observers=[watch]) as processor:
        responses = processor.process_batch_parallel([ask(one, tmp_path) for one in sources], order=order)
    assert [response.source for response in responses] == list(map(str, sources))
    assert ended == list(range(len(sources)))[::-1]


def test_a_later_batch_with_a_namesake_leaves_the_earlier_clips_alone(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    out, monday, tuesday = tmp_path / "out", tmp_path / "monday" / "a.mp4", tmp_path / "tuesday" / "a.mp4"
    for sample, path in zip(samples, (monday, tuesday), strict=True):
        path.parent.mkdir()
        shutil.copy(sample, path)

    def clips(source: Path, **how: Any) -> dict[str, bytes]:
        (response,) = processor.process_batch_parallel([ask(source, out, **how)])
        return {clip.path.name: clip.path.read_bytes() for clip in response.clips}

    first = clips(monday)
    assert sorted(clips(tuesday)) == ["a-2-01.mp4", "a-2-02.mp4"]
    assert {name: (out / name).read_bytes() for name in first} == first
    assert sorted(clips(monday, count=1)) == ["a-01.mp4"]
    assert sorted(clips(tuesday)) == ["a-2-01.mp4", "a-2-02.mp4"]


def test_a_preview_says_the_names_that_a_run_would_give_and_keeps_none(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    out, twin = tmp_path / "out", tmp_path / "coast.mp4"
    shutil.copy(samples[1], twin)
    processor.process_batch_parallel([ask(samples[0], out)])
    before = (out / BOOK).read_bytes()
    with ClipPreview(ParallelConfig(max_workers=1)) as preview:
        (response,) = preview.process_batch_parallel([ask(twin, out)])
        preview.process_batch_parallel([ask(twin, tmp_path / "none")])
    assert [clip.path.name for clip in response.clips] == ["coast-2-01.mp4", "coast-2-02.mp4"]
    assert (out / BOOK).read_bytes() == before
    assert not (tmp_path / "none").exists()


def test_a_folder_whose_names_cannot_be_written_down_gets_no_clips(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.write_text("mine")
    (out / BOOK).symlink_to(outside)
    (response,) = processor.process_batch_parallel([ask(samples[0], out)])
    assert response.error is not None
    assert response.error.type == "OutputError"
    assert BOOK in response.error.message
    assert files(out) == []
    assert outside.read_text() == "mine"


def test_names_with_awkward_signs_work(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    names = [
        "two words.mp4",
        'it\'s "so".mp4',
        "a:b.mp4",
        "100%d.mp4",
        "film 🎬 é.mp4",
        "-dash.mp4",
        "[x]*?.mp4",
    ]
    for name in names:
        shutil.copy(samples[0], tmp_path / name)
    out = tmp_path / "out"
    responses = processor.process_batch_parallel([ask(tmp_path / name, out, count=1) for name in names])
    assert [response.error for response in responses] == [None] * len(names)
    assert [response.clips[0].path.name for response in responses] == [
        f"{name[:-4]}-01.mp4" for name in names
    ]


def test_an_output_name_never_leaves_the_output_folder(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    with serve() as server:
        address = server.add("/x/..%2F..%2Fevil.mp4", samples[0].read_bytes())
        out = tmp_path / "a" / "b"
        response = processor.process_batch_parallel([ask(address, out, count=1)])[0]
    assert response.success, response.error
    assert [path.parent for path in tmp_path.rglob("*.mp4")] == [out]


def test_a_relative_path_means_the_callers_folder(samples: list[Path], workplace: Path) -> None:
    """Even if the caller moves on after the workers were started."""
    with VideoClipProcessor(ParallelConfig(max_workers=1)) as processor:
        assert processor.process_batch_parallel([ask(samples[0], workplace / "warm", count=1)])[0].success
        (workplace / "deeper").mkdir()
        shutil.copy(samples[0], workplace / "deeper" / "here.mp4")
        import os

        os.chdir(workplace / "deeper")
        request = VideoClipRequest(source="here.mp4", output_dir="out", count=1, max_clip_length=3)
        response = processor.process_batch_parallel([request])[0]
    assert response.success, response.error
    assert response.clips[0].path == workplace / "deeper" / "out" / "here-01.mp4"


def test_requests_may_be_mappings_or_just_sources(
    processor: VideoClipProcessor, samples: list[Path], workplace: Path
) -> None:
    responses = processor.process_batch_parallel(
        [
            str(samples[0]),
            {"youtube_url": str(samples[1]), "count": 1, "max_clip_length": 2, "output_dir": "b"},
        ]
    )
    assert [response.success for response in responses] == [True, True]
    assert (workplace / "clips").is_dir()
    assert files(workplace / "b") == ["city-01.mp4"]


def test_a_request_that_makes_no_sense_fails_alone_and_never_runs(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    requests = [{"source": "a.mp4", "count": 0}, ask(samples[0], tmp_path, count=1), 7]
    responses = processor.process_batch_parallel(requests)  # type: ignore[arg-type]
    assert [response.success for response in responses] == [False, True, False]
    assert responses[0].attempts == responses[2].attempts == 0
    assert responses[0].error is not None
    assert responses[0].error.type == "ConfigError"
    assert "count" in responses[0].error.message
    assert responses[0].source == "a.mp4"


def test_validate_batch_says_yes_or_no_and_keeps_the_reasons(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    requests = [
        ask(samples[0], tmp_path),
        ask(tmp_path / "gone.mp4", tmp_path),
        {"source": str(samples[0]), "max_clip_length": -1},
        ask("https://example.org/a.mp4", tmp_path),
    ]
    assert processor.validate_batch(requests) == [True, False, False, True]
    reasons = processor.validation_reasons
    assert reasons[0] is reasons[3] is None
    assert "gone.mp4" in str(reasons[1])
    assert "max_clip_length" in str(reasons[2])


def test_async_callers_get_the_same_responses(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    requests = [ask(samples[0], tmp_path, count=1), ask(tmp_path / "no.mp4", tmp_path)]
    responses = asyncio.run(processor.process_batch_async(requests))
    assert [response.success for response in responses] == [True, False]


def test_an_async_batch_goes_on_from_its_checkpoint(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    requests = [ask(one, tmp_path, count=1, max_clip_length=1) for one in samples]
    place = tmp_path / "jobs.sqlite"
    first, second = (asyncio.run(processor.process_batch_async(requests, checkpoint=place)) for _ in range(2))
    assert all(one.success for one in first)
    assert [one.clips for one in second] == [one.clips for one in first]
    with processor.open_checkpoint(place) as checkpoint:
        asyncio.run(processor.process_batch_async(requests, checkpoint=checkpoint))
        assert (checkpoint.answered, checkpoint.begun) == (2, 0)


def test_stream_process_takes_an_endless_input(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    endless = (ask(tmp_path / f"no-{n}.mp4", tmp_path) for n in itertools.count())
    batches = processor.stream_process(endless, batch_size=3)
    first, second = next(batches), next(batches)
    assert [Path(one.source).name for one in first + second] == [f"no-{n}.mp4" for n in range(6)]
    close = getattr(batches, "close", None)
    if close:
        close()


def test_chunk_data_is_lazy_and_keeps_everything(processor: VideoClipProcessor) -> None:
    drawn = itertools.count()
    chunks = processor.chunk_data((next(drawn) for _ in iter(int, 1)), 4)
    assert [next(chunks), next(chunks)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert next(drawn) == 8
    assert list(processor.chunk_data(range(5), chunk_size=2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ConfigError, match="chunk_size"):
        processor.chunk_data([], 0)


def test_copy_mode_says_where_its_clips_really_start(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    response = processor.process_batch_parallel([ask(samples[0], tmp_path, mode="copy", format="mkv")])[0]
    keys = measure(samples[0]).key_frame_seconds
    assert response.clips
    for clip in response.clips:
        assert min(abs(clip.start - key) for key in keys) < 0.002
        assert clip.path.suffix == ".mkv"


def test_copied_clips_neither_overlap_nor_outgrow_the_limit(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    """But for the few pictures that stored ones after them need."""
    requests = [ask(samples[0], tmp_path, mode="copy", count=count, max_clip_length=length)
                for count, length in ((8, 1), (3, 2), (2, 5))]  # fmt: skip
    for request, response in zip(requests, processor.process_batch_parallel(requests), strict=True):
        assert response.clips
        last = 0.0
        for clip in response.clips:
            assert clip.start >= last - 1e-3
            assert clip.end - clip.start <= request.max_clip_length + 0.25
            last = clip.end


@given(
    keys=st.lists(st.floats(0, 60), min_size=1, max_size=12).map(lambda keys: sorted({0.0, *keys})),
    start=st.floats(0, 50),
    length=st.floats(0.5, 10),
    free=st.floats(0, 60),
)
def test_a_copied_span_starts_at_a_free_key_frame(
    keys: list[float], start: float, length: float, free: float
) -> None:
    span = from_key_frame(start, start + length, free, keys, 60.0, 0.5)
    if span is None:
        assert not any(key >= free and key + 0.5 <= 60 for key in keys)
    else:
        assert span[0] in keys
        assert span[0] >= free - 1e-3
        assert span[1] - span[0] <= length + 1e-9
        assert span[1] <= 60


def test_a_video_that_fails_for_no_reason_of_its_own_is_named(samples: list[Path], tmp_path: Path) -> None:
    with VideoClipProcessor(ParallelConfig(max_workers=1, timeout=0.01)) as processor:
        response = processor.process_batch_parallel([ask(samples[0], tmp_path)])[0]
    assert response.error is not None
    assert response.error.type == "ItemTimeout"
    assert "coast.mp4" in response.error.message


def test_a_cached_answer_holds_while_input_and_outputs_are_as_they_were(
    samples: list[Path], tmp_path: Path
) -> None:
    video = shutil.copy(samples[0], tmp_path / "in.mp4")
    request = ask(video, tmp_path / "out")
    with VideoClipProcessor(ParallelConfig(backend="thread", enable_caching=True)) as one:

        def attempts() -> int:
            (response,) = one.process_batch_parallel([request])
            assert response.success
            return response.attempts

        assert [attempts(), attempts()] == [1, 0]
        next((tmp_path / "out").glob("*.mp4")).unlink()
        assert [attempts(), attempts()] == [1, 0]
        shutil.copy(samples[1], video)
        assert [attempts(), attempts()] == [1, 0]


CACHED = """
import sys
from video import ParallelConfig, VideoClipProcessor
path, source, out = sys.argv[1:]
config = ParallelConfig(backend="serial", enable_caching=True, cache_path=path)
request = {"source": source, "output_dir": out, "count": 1, "max_clip_length": 1}
with VideoClipProcessor(config) as processor:
    (response,) = processor.process_batch_parallel([request])
print(response.attempts, response.clips[0].path)
"""


def test_a_cache_in_a_file_answers_another_program(samples: list[Path], tmp_path: Path) -> None:
    def program() -> list[str]:
        words = [sys.executable, "-c", CACHED, tmp_path / "cache" / "answers", samples[0], tmp_path / "out"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=100).stdout.split()

    clip = str(tmp_path / "out" / "coast-01.mp4")
    assert [program(), program()] == [["1", clip], ["0", clip]]
    assert (tmp_path / "cache" / "answers").stat().st_mode & 0o077 == 0


def test_a_cache_file_of_no_use_costs_no_batch(samples: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"no database at all" * 100)
    config = ParallelConfig(backend="serial", enable_caching=True, cache_path=tmp_path / "cache")
    with VideoClipProcessor(config) as one:
        for _ in range(2):
            (response,) = one.process_batch_parallel([ask(samples[0], tmp_path / "out", count=1)])
            assert (response.success, response.attempts) == (True, 1)


def test_an_error_handler_says_what_the_response_to_a_failure_is(samples: list[Path], tmp_path: Path) -> None:
    asked: list[tuple[BaseException, object]] = []

    def handler(error: BaseException, request: object) -> VideoClipResponse:
        asked.append((error, request))
        return VideoClipResponse(source="replaced", success=False)

    requests = [{"source": str(samples[0]), "output_dir": tmp_path}, "missing.mp4", {"source": 3}]
    with VideoClipProcessor(ParallelConfig(backend="thread")) as one:
        one.set_error_handler(handler)
        responses = one.process_batch_parallel(requests)
        assert [response.source for response in responses] == [str(samples[0]), "replaced", "replaced"]
        assert [request for _, request in asked] == ["missing.mp4", {"source": 3}]
        assert isinstance(asked[0][0], SourceNotFound)
        one.set_error_handler(None)
        assert one.process_batch_parallel(["missing.mp4"])[0].source == "missing.mp4"


@pytest.mark.parametrize("how", ["raises", "returns nothing"])
def test_an_error_handler_that_fails_breaks_nothing(
    how: str, samples: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def handler(error: BaseException, request: object) -> None:
        if how == "raises":
            raise ZeroDivisionError

    with VideoClipProcessor(ParallelConfig(backend="thread")) as one:
        one.set_error_handler(handler)
        (response,) = one.process_batch_parallel(["missing.mp4"])
    assert not response.success
    assert response.error is not None
    assert response.source == "missing.mp4"
    assert ("error handler failed" in caplog.text) == (how == "raises")


def test_an_error_handler_that_cannot_be_called_is_refused(processor: VideoClipProcessor) -> None:
    with pytest.raises(ConfigError, match="error handler"):
        processor.set_error_handler("log")  # type: ignore[arg-type]


def test_a_single_request_instead_of_a_list_is_refused(
    processor: VideoClipProcessor, samples: list[Path]
) -> None:
    for single in (str(samples[0]), samples[0], ask(samples[0], Path("x")), {"source": "a"}):
        with pytest.raises(ConfigError, match="list"):
            processor.process_batch_parallel(single)  # type: ignore[arg-type]


def test_a_job_that_fails_half_way_leaves_none_of_its_clips(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    processor.process_batch_parallel([ask(samples[0], out)])  # its name is "coast" from now on
    (out / "coast-02.mp4").unlink()
    (out / "coast-02.mp4").mkdir()
    response = processor.process_batch_parallel([ask(samples[0], out)])[0]
    assert not response.success
    assert response.error is not None
    assert "coast-02.mp4" in response.error.message
    assert files(out) == ["coast-02.mp4"]


def test_an_output_folder_that_cannot_be_is_one_clear_error(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    response = processor.process_batch_parallel([ask(samples[0], tmp_path / "file" / "out")])[0]
    assert response.error is not None
    assert response.error.type == "OutputError"
    assert "output folder" in response.error.message


def test_audio_only_is_one_clear_error(processor: VideoClipProcessor, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "song.m4a")
    response = processor.process_batch_parallel([ask(path, tmp_path / "out")])[0]
    assert response.error is not None
    assert response.error.type == "UnsupportedMedia"
    assert "no video" in response.error.message
    assert files(tmp_path / "out") == []


ODD_BUT_SOUND: dict[str, dict[str, Any]] = {
    "video only": {},
    "odd size": {"size": (161, 121), "pixels": "yuv444p"},
    "turned by 90": {"rotation": 90},
    "turned by 270": {"rotation": 270},
    "wide pixels": {"shape": Fraction(4, 3)},
    "variable rate": {"times": [Fraction(n * n, 600) for n in range(50)]},
    "before zero": {"times": [Fraction(n - 5, 25) for n in range(50)]},
    "ten bits": {"pixels": "yuv420p10le"},
    "sound too short": {"sound": tone(0.1, 0.2, 0.5)},
    "sound too long": {"sound": tone(0.1, 0.2, 4)},
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_odd_but_sound_videos_give_clips_that_hold_all_their_frames(
    processor: VideoClipProcessor, suffix: str, tmp_path: Path
) -> None:
    """Each is shorter than the shortest clip asked for, so its clip is the whole video."""
    for name, how in ODD_BUT_SOUND.items():
        write_video(tmp_path / f"{name}.{suffix}", **{"frames": 50, **how})
    sources = [tmp_path / f"{name}.{suffix}" for name in ODD_BUT_SOUND]
    requests = [ask(source, tmp_path / "out", min_clip_length=10, max_clip_length=60) for source in sources]
    for source, response in zip(sources, processor.process_batch_parallel(requests), strict=True):
        assert response.success, response.error
        (clip,) = response.clips
        hidden = 5 if source.name == "before zero.mp4" else 0  # by the edit list that such an mp4 gets
        assert numbers(clip.path) == list(range(hidden, 50)), source.name
        assert clip.width % 2 == clip.height % 2 == 0
        assert (clip.width < clip.height) == ("turned" in source.name)


def test_what_a_player_would_have_to_turn_is_encoded_upright_and_says_so(
    processor: VideoClipProcessor, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "turned.mp4", rotation=90, frames=100)
    (response,) = processor.process_batch_parallel([ask(source, tmp_path / "out", count=1)])
    (clip,) = response.clips
    assert (clip.mode, clip.reason) == ("exact", "players have to turn its pictures by 90 degrees")
    assert [span.kind for span in clip.spans] == ["encode"]


def test_a_header_without_a_duration_is_no_obstacle(processor: VideoClipProcessor, tmp_path: Path) -> None:
    source = tmp_path / "live.mkv"
    write_video(tmp_path / "whole.mkv", frames=50, container={"live": "1"}).rename(source)
    assert probe(source).duration_seconds_from_header is None
    response = processor.process_batch_parallel([ask(source, tmp_path / "out", max_clip_length=60)])[0]
    assert response.success, response.error
    assert numbers(response.clips[0].path) == list(range(50))


def test_a_clip_longer_than_the_video_ends_with_it(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    request = ask(samples[0], tmp_path, count=5, min_clip_length=60, max_clip_length=600)
    response = processor.process_batch_parallel([request])[0]
    assert [(clip.start, clip.end) for clip in response.clips] == [(0.0, pytest.approx(9, abs=0.01))]
    assert "the whole video" in response.clips[0].reasons[0]


def test_a_playlist_on_the_web_is_cut_like_a_file(processor: VideoClipProcessor, tmp_path: Path) -> None:
    pytest.importorskip("yt_dlp", reason="the extra `download` is not installed")
    (tmp_path / "made").mkdir()
    with serve() as server:
        for name, data in write_streams(tmp_path / "made" / "v.m3u8", seconds=3).items():
            kind = "application/vnd.apple.mpegurl" if name.endswith(".m3u8") else "video/mp2t"
            server.add(f"/films/{name}", File(data, type=kind))
        address = f"http://{server.host}/films/v.m3u8"
        response = processor.process_batch_parallel([ask(address, tmp_path / "out", max_clip_length=9)])[0]
    assert response.success, response.error
    assert sum(clip.frames for clip in response.clips) == 30
    assert files(tmp_path / "out") == [clip.path.name for clip in response.clips]


def test_a_preview_writes_nothing(samples: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ClipPreview(ParallelConfig(max_workers=1)) as preview, VideoClipProcessor(preview.config) as real:
        shown = preview.process_batch_parallel([ask(samples[0], out)])[0]
        assert not out.exists()
        done = real.process_batch_parallel([ask(samples[0], out)])[0]
    assert [clip.path for clip in shown.clips] == [clip.path for clip in done.clips]
    for planned, made in zip(shown.clips, done.clips, strict=True):
        assert (planned.start, planned.end) == pytest.approx((made.start, made.end), abs=0.041)


def test_a_url_is_fetched_and_its_download_removed(
    processor: VideoClipProcessor, samples: list[Path], tmp_path: Path
) -> None:
    with serve() as server:
        address = server.add("/films/coast.mp4", samples[0].read_bytes())
        response = processor.process_batch_parallel([ask(address, tmp_path, count=1)])[0]
        gone = processor.process_batch_parallel([ask(f"{address}.nothing.mp4", tmp_path)])[0]
    assert response.success, response.error
    assert files(tmp_path) == ["coast-01.mp4"]
    assert gone.error is not None
    assert gone.error.type == "DownloadFailed"
    assert "404" in gone.error.message


def test_a_url_in_preview_leaves_nothing_anywhere(samples: list[Path], tmp_path: Path) -> None:
    with serve() as server, ClipPreview(ParallelConfig(backend="serial")) as preview:
        address = server.add("/films/coast.mp4", samples[0].read_bytes())
        response = preview.process_batch_parallel([ask(address, tmp_path / "out")])[0]
    assert response.success, response.error
    assert not (tmp_path / "out").exists()


def test_the_preset_takes_any_setting_and_refuses_unknown_ones(samples: list[Path], tmp_path: Path) -> None:
    with create_high_performance_processor(max_workers=2, timeout=120.0) as processor:
        assert processor.config.timeout == 120
        assert processor.process_batch_parallel([ask(samples[0], tmp_path, count=1)])[0].success
    with pytest.raises(ConfigError, match="max_worker"):
        create_high_performance_processor(max_worker=2)


def test_clips_of_natural_videos_begin_and_end_with_the_sources_frames(
    processor: VideoClipProcessor, tmp_path: Path
) -> None:
    """First and last frames are what the source shows at the stated times, and no neighbours of it."""
    sources = [shared("talk.mp4"), shared("cars.mp4")]
    responses = processor.process_batch_parallel(
        [ask(source, tmp_path, count=3, max_clip_length=8) for source in sources]
    )
    assert [len(response.clips) for response in responses] == [3, 3], [
        response.error for response in responses
    ]
    for source, response in zip(sources, responses, strict=True):
        times, pictures = decoded(source)
        for clip in response.clips:
            _, own = decoded(clip.path)
            first = int(np.abs(times - clip.start).argmin())
            assert times[first] == pytest.approx(clip.start, abs=1e-3)
            assert len(own) == clip.frames
            assert np.abs(own[0] - pictures[first]).mean() < 3
            assert np.abs(own[-1] - pictures[first + clip.frames - 1]).mean() < 3
            near = range(max(0, first - 2), first + 3)
            moving = any(np.abs(pictures[n] - pictures[first]).mean() > 1 for n in near)
            if moving:
                assert min(near, key=lambda n: np.abs(own[0] - pictures[n]).mean()) == first


def decoded(path: Path) -> tuple[Any, list[Any]]:
    """(frames,) seconds from the start, and each frame as a small gray picture."""
    times, pictures = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base))
            small = frame.reformat(width=192, height=108, format="gray").to_ndarray()
            pictures.append(small.astype(np.int16))
    return np.array(times) - times[0], pictures
