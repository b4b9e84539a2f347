"""What people ask for (a format, a codec, a quality) as settings of encoders, and which encoders work here.

FFmpeg lists encoders of hardware that this machine has not; so nothing counts as there before it has encoded
two frames.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from av import Codec
from av.codec.context import CodecContext
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from video.errors import UnsupportedMedia
from video.media.encode import Encoding, merged, own_options
from video.models import CODECS_OF, Preset

Encodes = Literal["h264", "hevc", "av1", "vp9", "gif"]

SEGMENT_SECONDS = Fraction(4)
"""Of HLS, and between its key frames; as long in all renditions, so that players can change between them."""

TEST_SIDE = 256
"""Pixels of the test pictures: some hardware takes none below 145."""


@dataclass(frozen=True, slots=True)
class Tool:
    """An encoder, and how it is told what quality is wanted."""

    encoder: str
    presets: Mapping[str, tuple[int, Mapping[str, str]]]
    """For each quality a value of `scale`, and what goes with it."""
    scale: str = "crf"
    """The option by which finer steps are told; lower values are better."""
    also: tuple[str, ...] = ()
    """Options that are told the same."""
    worth: int = 1
    """How much of the option is one step; below 0 where more of it is better, and values are below 0, too."""
    finest: int = 10
    coarsest: int = 51
    pixels: str = "yuv420p"
    """What it takes, in 8 bits."""
    deep: bool = False
    """It takes 10 bits, and keeps them where the source has them."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Options without which it does not begin anew at the key frames that are asked for."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """Options without which its header depends on the number of its threads, so that pieces may not fit."""

    def options(self, value: float) -> dict[str, str]:
        """What tells it a value of its scale."""
        return dict.fromkeys((self.scale, *self.also), f"{value * self.worth:g}")

    def setting(self, value: float) -> str:
        """The same for people."""
        return f"{self.scale} {value * self.worth:g}"


def _hardware(
    encoder: str,
    scale: str,
    keys: str,
    pixels: str,
    values: tuple[int, int, int] = (32, 27, 22),
    options: Mapping[str, str] | None = None,
    **more: Any,
) -> Tool:
    presets = {preset: (value, options or {}) for preset, value in zip(get_args(Preset), values, strict=True)}
    return Tool(encoder, presets, scale, pixels=pixels, keys={keys: "1"} if keys else {}, **more)


def _speeds(scale: tuple[int, int, int], name: str, speeds: tuple[str, str, str], **more: str) -> Mapping[
    str, tuple[int, Mapping[str, str]]
]:  # fmt: skip
    found = zip(get_args(Preset), scale, speeds, strict=True)
    return {preset: (value, {name: speed, **more}) for preset, value, speed in found}


# Bytes and CPU of each are in docs/encoding.md.
SOFTWARE: Mapping[Encodes, Tool] = {
    "h264": Tool(
        "libx264",
        _speeds((28, 23, 19), "preset", ("veryfast", "veryfast", "fast")),
        keys={"forced-idr": "1"},
    ),
    "hevc": Tool(
        "libx265",
        _speeds((31, 27, 22), "preset", ("superfast", "veryfast", "fast")),
        deep=True,
        keys={"forced-idr": "1", "x265-params": "open-gop=0"},
        alike={"x265-params": "wpp=0:info=0"},
    ),
    "av1": Tool("libsvtav1", _speeds((50, 36, 24), "preset", ("10", "9", "8")), coarsest=63, deep=True),
    "vp9": Tool(
        "libvpx-vp9",
        _speeds((42, 33, 26), "cpu-used", ("6", "5", "4"), deadline="good", **{"row-mt": "1"}),
        coarsest=63,
    ),
    # Each picture has its own palette, but where one has the first picture's, FFmpeg would leave out what has
    # the same index in the picture before, whatever palette that has.
    "gif": Tool("gif", {preset: (0, {"gifflags": "0"}) for preset in get_args(Preset)}),
}

_NVENC, _AMF = {"rc": "vbr"}, {"usage": "transcoding", "rc": "cqp"}
# FFmpeg's quality of 1 to 100 is told in 118ths (FF_QP2LAMBDA), and counts with `qscale` only, which Intel's
# Macs refuse; its own distance of key frames is 12 pictures.
_APPLE, _APPLE_HEVC = {"flags": "+qscale", "g": "250"}, {"flags": "+qscale+cgop", "g": "250"}
_QUALITY = {"worth": -118, "finest": -100, "coarsest": -1}

HARDWARE: Mapping[Encodes, tuple[Tool, ...]] = {
    "h264": (
        _hardware("h264_nvenc", "cq", "forced-idr", "yuv420p", options=_NVENC),
        _hardware("h264_qsv", "global_quality", "forced_idr", "nv12"),
        _hardware("h264_amf", "qp_i", "forced_idr", "nv12", options=_AMF, also=("qp_p", "qp_b")),
        _hardware("h264_videotoolbox", "global_quality", "", "yuv420p", (-53, -64, -73), _APPLE, **_QUALITY),
    ),
    "hevc": (
        _hardware("hevc_nvenc", "cq", "forced-idr", "yuv420p", options=_NVENC),
        _hardware("hevc_qsv", "global_quality", "forced_idr", "nv12"),
        _hardware("hevc_amf", "qp_i", "forced_idr", "nv12", options=_AMF, also=("qp_p",)),
        _hardware(
            "hevc_videotoolbox", "global_quality", "", "yuv420p", (-52, -60, -70), _APPLE_HEVC, **_QUALITY
        ),
    ),
    "av1": (
        _hardware("av1_nvenc", "cq", "forced-idr", "yuv420p", options=_NVENC),
        _hardware("av1_qsv", "global_quality", "forced_idr", "nv12"),
        # Its quantizers count to 255, where other encoders' count to 63.
        _hardware(
            "av1_amf",
            "qp_i",
            "forced_idr",
            "nv12",
            (50, 36, 24),
            _AMF,
            also=("qp_p", "qp_b"),
            worth=4,
            coarsest=63,
        ),
    ),
}
"""Tried in this order. Names and options are those of FFmpeg 8; none of them has been run on its hardware, so
that the values of their scales are guesses, by what others report."""

GIFS: Mapping[str, tuple[int, int]] = {"low": (8, 240), "medium": (12, 360), "high": (20, 480)}
"""For each quality pictures a second, and pixels of the shorter side at most."""


def tool(codec: Encodes, *, hardware: bool = True) -> Tool:
    """The encoder that works here: of hardware, where there is one and it may be.

    :raises UnsupportedMedia: there is none.
    """
    for one in HARDWARE.get(codec, ()) if hardware else ():
        value, more = one.presets["medium"]
        if works(one.encoder, (*more.items(), *one.keys.items(), *one.options(value).items()), one.pixels):
            return one
    one = SOFTWARE[codec]
    if not works(one.encoder):
        raise UnsupportedMedia(
            f"has no encoder that works here ({one.encoder} neither)",
            subject=codec,
            cure="Choose another codec.",
        )
    return one


@functools.cache
def works(encoder: str, options: tuple[tuple[str, str], ...] = (), pixels: str | None = None) -> bool:
    """Whether this process can encode with it: it has just encoded two frames, or did so before.

    :param options: settings that it must know, and take.
    :param pixels: the format that it must take; None: any.
    """
    try:
        codec = Codec(encoder, "w")
        context = CodecContext.create(codec, "w")
        if not isinstance(context, VideoCodecContext):
            return False
        formats = [one.name for one in codec.video_formats or ()]
        if pixels is None:
            pixels = formats[0] if formats else "yuv420p"
        context.width = context.height = TEST_SIDE
        context.pix_fmt, context.time_base, context.framerate = pixels, Fraction(1, 25), Fraction(25)
        context.thread_count = 1
        context.options = own_options(Encoding(encoder, dict(options)), TEST_SIDE, 1)
        made = []
        for at in range(2):
            frame = VideoFrame(TEST_SIDE, TEST_SIDE, pixels)
            for plane in frame.planes:
                plane.update(bytes([64 * at]) * plane.buffer_size)
            frame.pts = at
            made += context.encode(frame)
        made += context.encode(None)
    except (FFmpegError, ValueError):  # of all kinds: no driver, no device, no such encoder
        return False
    return len(made) == 2 and not context.options.keys() & dict(options).keys()


def codec_of(format: str, codec: str | None) -> Encodes:
    """The codec of a format: the one that is asked for, else its usual one."""
    if format == "gif":
        return "gif"
    return next(one for one in CODECS_OF[format] if codec in (one, None))


def encoding(
    format: str,
    codec: Encodes,
    quality: str,
    *,
    deep: bool = False,
    hardware: bool = True,
    pieces: bool = False,
) -> tuple[Encoding, Tool]:
    """Settings of the encoders for a quality.

    :param codec: as from `codec_of`.
    :param quality: "low", "medium" or "high".
    :param deep: the source has more than 8 bits.
    :param pieces: what is encoded is to be joined with others, perhaps of other numbers of threads.
    :raises UnsupportedMedia: there is no encoder that works.
    """
    used = tool(codec, hardware=hardware)
    value, more = used.presets[quality]
    options = dict(more) if codec == "gif" else {**more, **used.options(value)}
    key_seconds = None
    if format == "hls":
        key_seconds = SEGMENT_SECONDS
        options = merged(options, used.keys)
    if pieces:
        options = merged(options, used.alike)
    opus = format == "webm"
    return Encoding(
        used.encoder,
        options,
        pixels="yuv420p10le" if deep and used.deep else used.pixels,
        audio="libopus" if opus else "aac",
        audio_bit_rate={"low": 48_000, "medium": 64_000, "high": 80_000}[quality],
        key_seconds=key_seconds,
    ), used


def at(given: Encoding, used: Tool, value: float) -> Encoding:
    """The same with another step of its scale."""
    return replace(given, options={**given.options, **used.options(value)})
