"""What users ask for and what they get back: requests and responses (pydantic v2, JSON both ways)."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

Mode = Literal["exact", "copy", "smart"]
"""`exact` re-encodes and is right to the frame; `smart` is, too, and shows the same, but copies what it can
and encodes only the edges; `copy` starts at the key frame before the asked start."""
Format = Literal["mp4", "mkv", "mov"]
"""Container of the clips that are written."""

EncodingFormat = Literal["mp4", "mkv", "webm", "gif", "hls"]
"""What videos are encoded to; `hls` is a folder with a master playlist."""
Codec = Literal["h264", "hevc", "av1", "vp9"]
Preset = Literal["low", "medium", "high"]
CODECS_OF: dict[str, tuple[Codec, ...]] = {
    "mp4": ("h264", "hevc", "av1", "vp9"),
    "mkv": ("h264", "hevc", "av1", "vp9"),
    "webm": ("vp9", "av1"),
    "gif": (),
    "hls": ("h264", "hevc", "av1"),
}
"""For each format the codecs that it may have, the usual one first; GIF is its own."""

LEAST_SIDE, MOST_SIDE = 16, 8640
"""Pixels of the shorter side of a rendition."""
MOST_RUNGS = 12
"""Renditions of a ladder."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number of seconds")
    return value


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Seconds = Annotated[float, AfterValidator(_finite)]


class VideoClipRequest(BaseModel):
    """One video to cut into clips.

    `youtube_url` and `source` are two spellings of one field: a path, a direct media URL, or a page
    that yt-dlp knows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    source: Annotated[str, BeforeValidator(_text)] = Field(
        min_length=1, validation_alias=AliasChoices("source", "youtube_url")
    )
    language: str = "en"
    """BCP 47 tag of the speech; for transcription and captions, not for the choice of clips."""
    max_clip_length: Seconds = Field(default=60.0, gt=0)
    """Longest clip, in seconds."""
    min_clip_length: Seconds = Field(default=3.0, gt=0)
    """Shortest clip, in seconds; shorter only where the whole video is."""
    count: int = Field(default=3, ge=1, le=1000)
    """How many clips at most; a short video gives fewer."""
    output_dir: Path = Path("clips")
    mode: Mode = "smart"
    format: Format = "mp4"

    @model_validator(mode="before")
    @classmethod
    def _fit_minimum(cls, data: Any) -> Any:
        # A caller who only says max_clip_length=2 means clips of up to 2 s, not an error about a default.
        if isinstance(data, dict) and "min_clip_length" not in data:
            longest = data.get("max_clip_length")
            if isinstance(longest, int | float) and 0 < longest < cls.model_fields["min_clip_length"].default:
                return {**data, "min_clip_length": longest}
        return data

    @model_validator(mode="after")
    def _check_lengths(self) -> VideoClipRequest:
        if self.min_clip_length > self.max_clip_length:
            raise ValueError(
                f"min_clip_length ({self.min_clip_length:g} s) is over max_clip_length "
                f"({self.max_clip_length:g} s)"
            )
        return self

    @property
    def youtube_url(self) -> str:
        return self.source

    if TYPE_CHECKING:  # pydantic's own signature knows one spelling only

        def __init__(
            self,
            *,
            source: str | os.PathLike[str] = ...,
            youtube_url: str | os.PathLike[str] = ...,
            language: str = ...,
            max_clip_length: float = ...,
            min_clip_length: float = ...,
            count: int = ...,
            output_dir: str | Path = ...,
            mode: Mode = ...,
            format: Format = ...,
        ) -> None: ...


class VideoEncodingRequest(BaseModel):
    """One video to encode."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    source: Annotated[str, BeforeValidator(_text)] = Field(min_length=1)
    """A path, or an address as for clips."""
    output_dir: Path = Path("encoded")
    format: EncodingFormat = "mp4"
    codec: Codec | None = None
    """None: the usual one of the format."""
    quality: Preset | Annotated[float, Field(gt=0.5, lt=1)] = "high"
    """A preset; or a target: the SSIM that samples of the video shall have at least, such as 0.97."""
    ladder: tuple[Annotated[int, Field(ge=LEAST_SIDE, le=MOST_SIDE)], ...] = Field(
        default=(), max_length=MOST_RUNGS
    )
    """Renditions: pixels of the shorter side of each. One that is larger than the video is as large as the
    video. Empty: one, as large as the video."""
    hardware: bool = True
    """Use an encoder of this machine's hardware where one works."""
    sound: bool = True
    """False: without."""
    chunk_seconds: Annotated[float, AfterValidator(_finite), Field(ge=1)] | None = None
    """Encode in pieces of at least so many seconds, each from one scene to another where that can be, several
    at once; those that a killed run had finished are not done again. None: in one go."""

    @model_validator(mode="after")
    def _check_codec(self) -> VideoEncodingRequest:
        known = CODECS_OF[self.format]
        if self.codec is not None and self.codec not in known:
            takes = f"takes {', '.join(known)}" if known else "has its own: leave the codec out"
            raise ValueError(f"{self.format} cannot have the codec {self.codec}; it {takes}")
        if self.format == "gif" and isinstance(self.quality, float):
            raise ValueError("gif has no target; its quality is low, medium or high")
        if self.format == "gif" and self.chunk_seconds is not None:
            raise ValueError("gif is made in one go: leave the chunks out")
        return self

    if TYPE_CHECKING:  # pydantic's own signature knows no paths

        def __init__(
            self,
            *,
            source: str | os.PathLike[str] = ...,
            output_dir: str | Path = ...,
            format: EncodingFormat = ...,
            codec: Codec | None = ...,
            quality: Preset | float = ...,
            ladder: Sequence[int] = ...,
            hardware: bool = ...,
            sound: bool = ...,
            chunk_seconds: float | None = ...,
        ) -> None: ...


class ClipSpan(BaseModel):
    """Neighbouring frames of a clip that were treated alike."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["copy", "encode"]
    start: float
    """Seconds in the source at which its first frame is shown."""
    end: float
    """Seconds in the source at which its last frame ends."""
    frames: int


class Clip(BaseModel):
    """One clip that was written, as measured in the file."""

    model_config = ConfigDict(frozen=True)

    path: Path
    start: float
    """Seconds in the source at which its first frame is shown."""
    end: float
    """Seconds in the source at which its last frame ends."""
    score: float
    """Highlight score, 0 to 1: a documented heuristic, not a prediction (see `video.media.highlights`)."""
    reasons: list[str]
    width: int
    """Pixels as shown, after rotation and pixel aspect ratio."""
    height: int
    frames: int
    bytes: int
    mode: Mode | None = None
    """How its pictures were written: of a smart cut, what that came to. None: nothing was written."""
    reason: str = ""
    """Why so, in words."""
    spans: list[ClipSpan] = Field(default_factory=list)
    """What of it was copied and what encoded, in the order shown."""


class Problem(BaseModel):
    """An error in a form that survives JSON."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        return cls(
            type=type(error).__name__,
            message=str(error) or type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
        )


class Encoded(BaseModel):
    """One file that was encoded, as counted while it was."""

    model_config = ConfigDict(frozen=True)

    path: Path
    width: int
    """Pixels, square ones, after rotation."""
    height: int
    frames: int
    seconds: float
    """To the end of its last picture."""
    bytes: int
    encoder: str
    """FFmpeg's name of it."""
    setting: str
    """Its quality, such as `crf 23`."""
    ssim: float | None = None
    """Of samples, as measured before; None where no target was asked for."""
    note: str = ""
    """What else was measured, or chosen, in words."""
    playlist: Path | None = None
    """Of HLS: where its segments are said; `path` holds them."""


class _Response(BaseModel):
    """What became of one request. Two are equal when their JSON is."""

    model_config = ConfigDict(frozen=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # equal by content, which holds a list


class VideoClipResponse(_Response):
    """What became of one request. Its JSON keys are stable.

    `request` is the live object for callers in Python; JSON carries its `source` only. Two responses
    are equal when their JSON is.
    """

    source: str
    success: bool
    error: Problem | None = None
    clips: list[Clip] = Field(default_factory=list)
    seconds: float = 0.0
    """Wall time of the last attempt, measured in the worker."""
    attempts: int = 1
    backend: str = ""
    """The engine that its batch ran on."""
    reason: str = ""
    """Why on that one."""
    request: VideoClipRequest | None = Field(default=None, exclude=True, repr=False)


class VideoEncodingResponse(_Response):
    """What became of one request, as for clips. Its JSON keys are stable."""

    source: str
    success: bool
    error: Problem | None = None
    outputs: list[Encoded] = Field(default_factory=list)
    """As the ladder has them, the largest first."""
    playlist: Path | None = None
    """Of HLS: the master playlist."""
    seconds: float = 0.0
    """Wall time of the last attempt, measured in the worker; of a video in pieces, of joining them."""
    attempts: int = 1
    backend: str = ""
    """The engine that its batch ran on."""
    reason: str = ""
    """Why on that one."""
    request: VideoEncodingRequest | None = Field(default=None, exclude=True, repr=False)
