"""Videos into clips: find the highlights of each, and cut them out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from video import scope
from video.errors import UnsupportedMedia
from video.models import Clip, Format, Mode, VideoClipRequest, VideoClipResponse
from video.outcome import Outcome
from video.processors._files import FileProcessor
from video.processors._names import Names
from video.processors._sources import absolute, local_file
from video.processors.base import Chosen, facts


@dataclass(frozen=True, slots=True)
class ClipJob:
    """What a worker needs to know of one request. Paths are absolute: a worker has a folder of its own."""

    source: str
    stem: str
    """Clips are called `stem-01.mp4` and so on; no two videos share a stem in one folder, nor do two jobs of
    a batch."""
    output_dir: Path
    count: int
    min_length: float
    max_length: float
    mode: Mode
    format: Format
    preview: bool = False
    """Only choose the clips, and write nothing."""


def make_clips(job: ClipJob) -> list[Clip]:
    """Do one job: all its clips appear in the output folder, or none."""
    # Imported here, in the worker: whoever only sends requests needs no codec library.
    from video.media.cut import cut
    from video.media.highlights import choose, measure_signals

    clips: list[Clip] = []
    # Beside the clips: it may be large, and a system's temporary folder is often small.
    downloads = Path(tempfile.gettempdir()) if job.preview else job.output_dir
    with local_file(job.source, downloads) as path, contextlib.ExitStack() as together:
        scope.report(0.0, "looking for highlights")
        signals = measure_signals(path)
        highlights = choose(signals, job.count, job.min_length, job.max_length)
        for done, one in enumerate(highlights):
            scope.report((done + 0.5) / (len(highlights) + 0.5), f"clip {done + 1} of {len(highlights)}")
            start, end = one.start, one.end
            if job.mode == "copy":
                free = clips[-1].end if clips else 0.0
                span = from_key_frame(start, end, free, signals.key_times, signals.duration, job.min_length)
                if span is None:
                    continue
                start, end = span
            output = job.output_dir / f"{job.stem}-{len(clips) + 1:02d}.{job.format}"
            facts: dict[str, Any] = dict.fromkeys(("width", "height", "frames", "bytes"), 0)
            facts |= {"path": output, "start": start, "end": end}
            if not job.preview:
                written = cut(path, output, start, end, mode=job.mode)
                together.enter_context(scope.unfinished(output, keep=True))
                facts = asdict(written)
            clips.append(Clip.model_validate(facts | {"score": one.score, "reasons": list(one.reasons)}))
        if not clips:
            raise UnsupportedMedia(
                "has no key frame that a clip could be copied from", subject=str(path), cure="Use mode exact."
            )
    return clips


def from_key_frame(
    start: float, end: float, free: float, keys: Sequence[float], duration: float, min_length: float
) -> tuple[float, float] | None:
    """The span for a copied clip: as long as asked, from the key frame nearest to `start`.

    Copying can begin at key frames only. Taking the nearest one that is free keeps clips from overlapping
    and from growing; None where none is left.

    :param free: seconds; before it, other clips have what there is.
    """
    least = min(min_length, duration)
    open_keys = [key for key in keys if key >= free - 1e-3 and key + least <= duration + 1e-3]
    if not open_keys:
        return None
    key = min(open_keys, key=lambda one: abs(one - start))
    return key, min(key + end - start, duration)


class VideoClipProcessor(FileProcessor[VideoClipRequest, VideoClipResponse]):
    """Cuts the highlights out of videos.

    >>> with VideoClipProcessor() as processor:                                # doctest: +SKIP
    ...     for response in processor.process_batch_parallel(["talk.mp4"]):
    ...         print(response.success, [clip.path for clip in response.clips])
    """

    request_type = VideoClipRequest
    preload = ("video.processors.clip", "video.media.cut", "video.media.highlights")
    task = staticmethod(make_clips)
    batch_name = "clips"
    made = Clip

    def job_key(self, job: ClipJob) -> str:
        # Its clips may have another name where another batch has other videos of that name.
        return super().job_key(replace(job, stem=""))

    def outputs(self, value: list[Clip]) -> Iterator[Path]:
        return (clip.path for clip in value)

    def prepare(self, request: VideoClipRequest, names: Names) -> ClipJob:
        folder = Path(os.path.abspath(request.output_dir))

        def files(name: str) -> Iterator[str]:
            return (f"{name}-{number:02d}.{request.format}" for number in range(1, request.count + 1))

        return ClipJob(
            source=absolute(request.source),
            stem=names.stem(request, folder, files, keep=self.keep_names, apart=True),
            output_dir=folder,
            count=request.count,
            min_length=request.min_clip_length,
            max_length=request.max_clip_length,
            mode=request.mode,
            format=request.format,
        )

    def respond(
        self,
        source: str,
        request: VideoClipRequest | None,
        outcome: Outcome[list[Clip]],
        chosen: Chosen,
    ) -> VideoClipResponse:
        return VideoClipResponse(
            source=source, clips=outcome.value or [], request=request, **facts(source, outcome, chosen)
        )


class ClipPreview(VideoClipProcessor):
    """Chooses the clips as `VideoClipProcessor` does, and writes nothing: sizes in its responses are 0."""

    keep_names = False

    def prepare(self, request: VideoClipRequest, names: Names) -> ClipJob:
        return replace(super().prepare(request, names), preview=True)
