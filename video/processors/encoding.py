"""Videos encoded anew: another format, codec or size, or a ladder of sizes, each video decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video import resources
from video.config import BackendType, ParallelConfig
from video.errors import ConfigError, VideoError
from video.events import Observer
from video.models import Codec, Encoded, EncodingFormat, Preset, VideoEncodingRequest, VideoEncodingResponse
from video.outcome import Outcome
from video.processors._files import FileProcessor
from video.processors._memory import ENCODING, USUAL_PIXELS
from video.processors._names import Names, standing
from video.processors._sources import absolute
from video.processors.base import Chosen, facts
from video.runner import Runner
from video.sources.base import is_url, readable, redact

if TYPE_CHECKING:
    from video.media.pieces import Piece
    from video.policies.checkpoint import Checkpoint

LARGE_PIXELS = 4096 * 2304
"""Of pictures that few videos have; where there is room for those, nobody need look at sizes."""
LOOKED_AT = 20
"""Videos of a batch whose size is looked at before it begins."""


@dataclass(frozen=True, slots=True)
class EncodingJob:
    """What a worker needs to know of one request. Paths are absolute: a worker has a folder of its own."""

    source: str
    stem: str
    output_dir: Path
    format: EncodingFormat
    codec: Codec | None
    quality: Preset | float
    ladder: tuple[int, ...]
    hardware: bool
    sound: bool
    chunk_seconds: float | None
    preview: bool = False
    """Only say what would be written."""
    pieces: Path = Path()
    """Folder of its pieces, known by all that they depend on; there until they are joined."""

    @property
    def encodes(self) -> Any:
        from video.media.codecs import codec_of

        return codec_of(self.format, self.codec)


@dataclass(frozen=True, slots=True)
class PieceJob:
    """One piece of one video."""

    job: EncodingJob
    piece: Piece


def encode(job: EncodingJob) -> list[Encoded]:
    """Do one job: all its files appear in the output folder, or none."""
    # Imported here, in the worker: whoever only sends requests needs no codec library.
    from video.processors._encode import encode_video

    return encode_video(job)


def plan_ahead(job: EncodingJob) -> list[PieceJob]:
    """The pieces of a video that is long."""
    from video.processors._encode import plan_pieces

    return plan_pieces(job)


def encode_ahead(one: PieceJob) -> None:
    """Do one piece of a video, for whoever joins them."""
    from video.processors._encode import encode_piece

    encode_piece(one)


class VideoEncodingProcessor(FileProcessor[VideoEncodingRequest, VideoEncodingResponse]):
    """Encodes videos anew.

    >>> with VideoEncodingProcessor() as processor:                            # doctest: +SKIP
    ...     for response in processor.batch_encode_videos(["talk.mp4"], format="webm", quality=0.97):
    ...         print(response.success, [one.path for one in response.outputs])
    """

    request_type = VideoEncodingRequest
    preload = ("video.processors._encode",)
    task = staticmethod(encode)
    batch_name = "encodings"
    made = Encoded

    def __init__(self, config: ParallelConfig | None = None, *, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self.announce: Callable[[str, Sequence[str]], None] = _unheard
        """Called before each of its batches with what their items are, such as "pieces", and their names; for
        whoever draws progress. Long videos make a batch of their pieces first."""
        super().__init__(config, observers=self._observers)
        self._most = self.config.max_workers
        """As the user has set it; `widen` changes what the configuration says."""

    def batch_encode_videos(
        self,
        results: Iterable[Any],
        format: EncodingFormat = "mp4",
        quality: Preset | float = "high",
        parallel_workers: int | None = 8,
        *,
        codec: Codec | None = None,
        ladder: Sequence[int] = (),
        output_dir: str | os.PathLike[str] = "encoded",
        hardware: bool = True,
        sound: bool = True,
        chunk_seconds: float | None = None,
        backend: BackendType | str = BackendType.AUTO,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    ) -> list[VideoEncodingResponse]:
        """Encode videos, or the clips of clip responses; a response for each, in order, errors inside.

        :param results: paths, addresses, `VideoEncodingRequest` ones or mappings of their fields, or what
            clip processors give (the clips of each are encoded; one that failed is answered with its error).
        :param format: "mp4", "mkv", "webm", "gif" or "hls".
        :param quality: "low", "medium" or "high"; or the least SSIM, such as 0.97, that is to be kept.
        :param parallel_workers: at most; fewer where CPUs, memory or the configuration's `max_workers` are
            fewer, so that nothing is gained by asking for more. None: as many as fit.
        :param ladder: pixels of the shorter side of each rendition, such as (1080, 720, 480, 360).
        :param chunk_seconds: encode long videos in pieces of at least so many seconds, by scene.
        :param backend, checkpoint: as for `process_batch_parallel`.
        :raises ConfigError: for an argument that makes no sense.
        :raises StoreError: if the checkpoint cannot be used.
        """
        if isinstance(results, str | bytes | os.PathLike | Mapping):
            raise ConfigError("results is a single one", cure="Put it into a list.")
        if not isinstance(results, Iterable):
            raise ConfigError(f"results is {results!r}", cure="Give a list of paths or of responses.")
        if not isinstance(ladder, Iterable):
            raise ConfigError(f"ladder is {ladder!r}", cure="It takes a list, such as (720, 360).")
        settings = {
            "format": format, "quality": quality, "codec": codec, "ladder": tuple(ladder), "sound": sound,
            "output_dir": Path(output_dir), "hardware": hardware, "chunk_seconds": chunk_seconds,
        }  # fmt: skip
        self.request({"source": "any", **settings})  # what is wrong with all of them is said at once
        asked = [each for one in results for each in _asked(one, settings)]
        requests = [one for one in asked if not isinstance(one, VideoEncodingResponse)]
        self.widen(list(map(_source, requests)), parallel_workers)
        answers = iter(self.process_batch_parallel(requests, backend, checkpoint=checkpoint))
        return [one if isinstance(one, VideoEncodingResponse) else next(answers) for one in asked]

    def widen(self, sources: Sequence[str], most: int | None = None) -> int:
        """Have as many workers from now on as CPUs and free memory have room for, and say how many.

        :param sources: what is to be encoded. Where memory may be short, the size of the first ones is looked
            at, by a worker.
        :param most: None: as many as fit; there is at least one, and never more than the `max_workers` that
            the processor was given.
        :raises ConfigError: it is below 1.
        """
        if most is not None and not (isinstance(most, int) and most >= 1):
            raise ConfigError(f"parallel_workers is {most!r}", cure="It takes a whole number of at least 1.")
        cpus, memory = resources.usable_cpus(), resources.free_memory()
        fits = min(one for one in (cpus, most, self._most) if one is not None)
        if ENCODING.workers(memory, LARGE_PIXELS) < fits:
            looked_at = [absolute(one) for one in sources if not is_url(one)][:LOOKED_AT]
            self.announce("looking at sizes", list(map(_shown, looked_at)))
            sizes = self.runner.map(pixels_of, looked_at, isolate=self.isolate)
            pixels = max([USUAL_PIXELS, *(one.value or 0 for one in sizes)])
            fits = int(min(fits, ENCODING.workers(memory, pixels)))
        if fits != self.config.max_workers:
            self.close()
            self.config = replace(self.config, max_workers=fits)
            self.runner = Runner(self.config, observers=self._observers, policies=self.policies)
        return fits

    def before(self, call: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Encode the pieces of long videos, of all of them at once; their jobs then join what is there, and
        make what is missing."""
        if call["total"] is None:
            return
        jobs = call["items"] = list(call["items"])
        resumed = checkpoint is not None and checkpoint.resumed
        long = [
            job
            for job in jobs
            if isinstance(job, EncodingJob)
            and not self.config.enable_caching
            and job.chunk_seconds is not None
            # One that an earlier run has done has its outputs, and no pieces any more.
            and not (resumed and not job.pieces.exists() and _has_outputs(job))
        ]
        if long:
            self._encode_pieces(long, call)
        self.announce("videos", list(map(_name, jobs)))

    def _encode_pieces(self, long: list[EncodingJob], call: Mapping[str, Any]) -> None:
        how = {"backend": call["backend"], "isolate": call["isolate"]}
        self.announce("looking at long videos", list(map(_name, long)))
        pieces: list[PieceJob] = []
        for planned in self.runner.map(plan_ahead, long, **how):
            if planned.value is not None and len(planned.value) > 1:
                pieces += planned.value
        self.announce("pieces", [f"{_name(one.job)} {one.piece.number + 1}" for one in pieces])
        for _ in self.runner.rounds(encode_ahead, pieces, ordered=False, **how):
            pass  # what failed is tried again, and reported, by the job of its video

    def job_key(self, job: EncodingJob | PieceJob) -> str:
        if isinstance(job, PieceJob):
            return f"piece {job.piece.number} of {self.job_key(job.job)}"
        # Its files may have another name where another batch has other videos of that name.
        return super().job_key(replace(job, stem="", pieces=Path()))

    def outputs(self, value: list[Encoded]) -> Iterator[Path]:
        for one in value:
            yield one.path
            if one.playlist is not None:
                yield one.playlist
                yield _master(one.playlist)

    def prepare(self, request: VideoEncodingRequest, names: Names) -> EncodingJob:
        if request.chunk_seconds is not None and is_url(request.source):
            raise ConfigError(
                "only a file on this machine can be encoded in pieces",
                subject=request.source,
                cure="Download it first, or leave chunk_seconds out.",
            )
        folder = Path(os.path.abspath(request.output_dir))
        wanted = request.model_dump(exclude={"source", "output_dir"})
        job = EncodingJob(source=absolute(request.source), stem="", output_dir=folder, **wanted)
        name = names.stem(request, folder, lambda name: _files(replace(job, stem=name)), keep=self.keep_names)
        job = replace(job, stem=name)
        if job.chunk_seconds is None:
            return job
        known_by = blake2b(self.job_key(job).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return replace(job, pieces=folder / f".{name[:40]}-{known_by}.pieces")

    def respond(
        self,
        source: str,
        request: VideoEncodingRequest | None,
        outcome: Outcome[list[Encoded]],
        chosen: Chosen,
    ) -> VideoEncodingResponse:
        outputs = outcome.value or []
        playlist = outputs[0].playlist if outputs else None
        return VideoEncodingResponse(
            source=source,
            outputs=outputs,
            playlist=None if playlist is None else _master(playlist),
            request=request,
            **facts(source, outcome, chosen),
        )


def _unheard(title: str, names: Sequence[str]) -> None:
    """Nobody draws."""


def _name(job: Any) -> str:
    """Of a job, or of the error with which it was refused, for people."""
    return _shown(job.source if isinstance(job, EncodingJob) else getattr(job, "subject", None) or "refused")


def _shown(source: str) -> str:
    return redact(source) if is_url(source) else readable(os.path.basename(source))


class EncodingPreview(VideoEncodingProcessor):
    """Says what `VideoEncodingProcessor` would write, and writes nothing: frames and bytes are 0."""

    keep_names = False

    def before(self, call: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        pass

    def prepare(self, request: VideoEncodingRequest, names: Names) -> EncodingJob:
        return replace(super().prepare(request, names), preview=True)


def _master(playlist: Path) -> Path:
    from video.media.hls import MASTER

    return playlist.with_name(MASTER)


def _has_outputs(job: EncodingJob) -> bool:
    return any(any(standing(job.output_dir, file)) for file in _files(job))


def _files(job: EncodingJob) -> list[str]:
    """What a job makes in the output folder, as far as that is known before the video is looked at."""
    if job.format == "hls":
        return [job.stem]
    if not job.ladder:
        return [f"{job.stem}.{job.format}"]
    # A video that is smaller than its ladder gives a rendition of its own size.
    sides: list[Any] = [*dict.fromkeys(side // 2 * 2 for side in job.ladder), "*"]
    return [f"{job.stem}-{side}p.{job.format}" for side in sides]


def _asked(
    one: Any, settings: Mapping[str, Any]
) -> list[VideoEncodingRequest | Mapping[str, Any] | VideoEncodingResponse]:
    """What is asked for by one of the results of another processor, or by a path."""
    if isinstance(one, VideoEncodingRequest):
        return [one]
    if isinstance(one, str | os.PathLike):
        return [{**settings, "source": os.fspath(one)}]
    if isinstance(one, Mapping) and "source" in one:
        return [{**settings, **one}]
    clips = getattr(one, "clips", None)
    if clips is None and getattr(one, "path", None) is not None:
        clips = [one]
    if clips is None:
        raise ConfigError(
            f"cannot encode {type(one).__name__}", cure="Give paths, or the responses of a clip processor."
        )
    error = getattr(one, "error", None)
    if error is not None:
        return [VideoEncodingResponse(source=one.source, success=False, error=error, attempts=0)]
    return [{**settings, "source": os.fspath(clip.path)} for clip in clips]


def _source(request: VideoEncodingRequest | Mapping[str, Any]) -> str:
    return request.source if isinstance(request, VideoEncodingRequest) else str(request["source"])


def pixels_of(source: str) -> int:
    """Of one picture of a video; 0 for one that cannot be read, whose job then says why."""
    from video.media.probe import probe

    try:
        about = probe(source).video
    except VideoError:
        return 0
    return 0 if about is None else about.width * about.height
