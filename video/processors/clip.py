"""Videos into clips: find the highlights of each, and cut them out."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from video import scope
from video.errors import UnsupportedMedia, VideoError
from video.models import Clip, Format, Mode, Problem, VideoClipRequest, VideoClipResponse
from video.outcome import Outcome
from video.processors._names import Book
from video.processors.base import Chosen, Names, Processor
from video.sources.base import display_name, is_url, redact, resolve


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
    with _video(job) as path, contextlib.ExitStack() as together:
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


@contextlib.contextmanager
def _video(job: ClipJob) -> Iterator[Path]:
    """The job's video as a file on this machine, for as long as the block runs."""
    from video.media.base import output_errors

    source = resolve(job.source)
    if not is_url(job.source):
        yield source.fetch(job.source, job.output_dir).path
        return
    # Beside the clips: it may be large, and a system's temporary folder is often small.
    parent = Path(tempfile.gettempdir()) if job.preview else job.output_dir
    folder = parent / f".download-{secrets.token_hex(6)}"
    with scope.unfinished(folder):
        with output_errors(folder):
            folder.mkdir(parents=True)
        yield source.fetch(job.source, folder).path


class VideoClipProcessor(Processor[VideoClipRequest, VideoClipResponse]):
    """Cuts the highlights out of videos.

    >>> with VideoClipProcessor() as processor:                                # doctest: +SKIP
    ...     for response in processor.process_batch_parallel(["talk.mp4"]):
    ...         print(response.success, [clip.path for clip in response.clips])
    """

    request_type = VideoClipRequest
    preload = ("video.processors.clip", "video.media.cut", "video.media.highlights")
    task = staticmethod(make_clips)
    batch_name = "clips"
    keep_names: ClassVar[bool] = True
    """Write down in the output folder whose clips have which name."""

    def check(self, request: VideoClipRequest) -> None:
        source = resolve(request.source)
        if not is_url(request.source):
            source.fetch(request.source, request.output_dir)

    def plain(self, value: list[Clip]) -> list[Any]:
        return [clip.model_dump(mode="json") for clip in value]

    def value(self, plain: list[Any]) -> list[Clip]:
        return [Clip.model_validate(one) for one in plain]

    def resource(self, job: ClipJob) -> str:
        return (urlsplit(job.source).hostname or "") if is_url(job.source) else ""

    def job_key(self, job: ClipJob) -> str:
        # Its clips may have another name where another batch has other videos of that name.
        return super().job_key(replace(job, stem=""))

    def inputs(self, job: ClipJob) -> list[Path]:
        if is_url(job.source):
            return []
        try:
            return [resolve(job.source).fetch(job.source, job.output_dir).path]
        except VideoError:  # it fails with that when it runs
            return []

    def outputs(self, value: list[Clip]) -> Iterator[Path]:
        return (clip.path for clip in value)

    def prepare(self, request: VideoClipRequest, names: Names) -> ClipJob:
        folder = Path(os.path.abspath(request.output_dir))
        return ClipJob(
            source=absolute(request.source),
            stem=_stem(request, folder, names, keep=self.keep_names),
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
        error = outcome.error
        if isinstance(error, VideoError) and error.subject is None:
            error.subject = redact(source)  # a time limit or a dead worker does not know what it was about
        return VideoClipResponse(
            source=source,
            success=error is None,
            error=None if error is None else Problem.of(error),
            clips=outcome.value or [],
            seconds=outcome.seconds,
            attempts=outcome.attempts,
            backend=chosen.backend,
            reason=chosen.reason,
            request=request,
        )


def absolute(source: str) -> str:
    """`source` as it is understood in any folder."""
    return source if is_url(source) or source.startswith(("file:", "~")) else os.path.abspath(source)


class ClipPreview(VideoClipProcessor):
    """Chooses the clips as `VideoClipProcessor` does, and writes nothing: sizes in its responses are 0."""

    keep_names = False

    def prepare(self, request: VideoClipRequest, names: Names) -> ClipJob:
        return replace(super().prepare(request, names), preview=True)


def _stem(request: VideoClipRequest, folder: Path, names: Names, *, keep: bool) -> str:
    """What clips of this request are called: a name that no other video has in that folder, and that makes
    no clip replace an input of the batch.

    :raises OutputError: if it cannot be written down.
    """
    real = os.path.realpath(folder)
    if real not in names.books:
        names.books[real] = Book(Path(real), keep=keep)

    def clips(name: str) -> Iterator[str]:
        numbers = range(1, request.count + 1)
        return (os.path.join(real, f"{name}-{number:02d}.{request.format}") for number in numbers)

    wants = request.model_dump_json(exclude={"source", "output_dir"})
    return names.books[real].name(
        display_name(request.source),
        _identity(request.source),
        wants,
        clash=lambda name: any(clip in names.inputs for clip in clips(name)),
        there=lambda name: any(map(os.path.lexists, clips(name))),
    )


def _identity(source: str) -> str:
    """What a source is known by in any folder: two paths to one file are one source."""
    if is_url(source) and not source.startswith("file:"):
        return source
    with contextlib.suppress(ValueError):  # no address, or no path: it fails with that when it runs
        path = unquote(urlsplit(source).path) if source.startswith("file:") else os.path.expanduser(source)
        return os.path.realpath(path)
    return source
