"""What a worker does to encode a video: all its files appear in the output folder, or none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from av import VideoFormat

from video import scope
from video.errors import OutputError, UnsupportedMedia, VideoError
from video.media import base, codecs, hls, pieces, target
from video.media.encode import Encoding
from video.media.probe import VideoInfo, probe
from video.media.render import Output, Rendered, render
from video.models import Encoded
from video.processors._sources import local_file
from video.processors.encoding import EncodingJob, PieceJob
from video.sources.base import readable

SETTINGS = "settings.json"
PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
"""A palette for each picture; one for all would have to hold all of them in memory."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One rendition, as it is to be made."""

    width: int
    height: int
    filters: str
    encoding: Encoding
    setting: str
    ssim: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        return f"{min(self.width, self.height)}p"


def encode_video(job: EncodingJob) -> list[Encoded]:
    """Do one job."""
    if job.preview:
        return _preview(job)
    with local_file(job.source, job.output_dir) as path:
        work = job.output_dir / f".{job.stem[:40]}-{secrets.token_hex(6)}.encoding"
        with scope.unfinished(work):
            with base.output_errors(work):
                work.mkdir(parents=True)
            scope.report(0.0, "looking at it")
            rungs = rungs_of(str(path), job)
            outputs = outputs_of(rungs, job, work)
            try:
                if job.chunk_seconds is None:
                    made = _in_one_go(str(path), outputs)
                else:
                    made = _in_pieces(str(path), job, outputs)
                for one in made:
                    _check(one, job)
                found = _place(job, rungs, made, work)
            except VideoError as error:
                hidden = [work] if job.chunk_seconds is None else [work, job.pieces]
                if (error.subject or "").startswith(tuple(map(str, hidden))):  # nobody knows of those
                    error.subject = str(job.output_dir / job.stem)
                raise
        if job.chunk_seconds is not None:
            scope.remove(str(job.pieces))
        return found


def _preview(job: EncodingJob) -> list[Encoded]:
    with local_file(job.source, Path(tempfile.gettempdir())) as path:
        rungs = _rungs(_about(str(path)), job)
    found = []
    for one in rungs:
        told = {"encoder": one.encoding.video, "setting": one.setting}
        if not isinstance(job.quality, str):
            told["setting"] = f"SSIM {job.quality:g}"
        size = {"width": one.width, "height": one.height, "frames": 0, "seconds": 0.0, "bytes": 0}
        found.append(Encoded.model_validate(told | size | _places(job, one)))
    return found


def _places(job: EncodingJob, rung: Rung) -> dict[str, Path]:
    """Where a rendition belongs."""
    if job.format == "hls":
        folder = job.output_dir / job.stem
        return {"path": folder / f"{rung.name}.m4s", "playlist": folder / f"{rung.name}.m3u8"}
    end = f"-{rung.name}" if job.ladder else ""
    return {"path": job.output_dir / f"{job.stem}{end}.{job.format}"}


def plan_pieces(job: EncodingJob) -> list[PieceJob]:
    """The pieces of a video; what is to be found out for all of them is found out here."""
    rungs_of(job.source, job)
    return [PieceJob(job, piece) for piece in _planned(job.source, job)]


def _planned(source: str, job: EncodingJob) -> list[pieces.Piece]:
    assert job.chunk_seconds is not None
    scope.report(0.0, "looking for scenes")
    return pieces.planned(source, job.chunk_seconds, job.pieces)


def encode_piece(one: PieceJob) -> None:
    """Do one piece, unless it is done."""
    outputs = outputs_of(rungs_of(one.job.source, one.job), one.job, one.job.pieces)

    def tell(share: float) -> None:
        scope.report(share, f"piece {one.piece.number + 1}")

    pieces.encode(one.job.source, one.piece, outputs, one.job.pieces, tell)


def rungs_of(source: str, job: EncodingJob) -> list[Rung]:
    """The renditions of a video. Of one in pieces, what was found out once holds for all pieces.

    :raises UnsupportedMedia: it has no pictures.
    """
    rungs = _rungs(_about(source), job)
    if isinstance(job.quality, str):
        return rungs
    kept = job.pieces / SETTINGS
    if job.chunk_seconds is not None:
        try:
            rows = json.loads(kept.read_text())
            return [replace(one, **_settings(one, row)) for one, row in zip(rungs, rows, strict=True)]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not found out yet
    rows = []
    for one in rungs:
        scope.report(0.0, f"looking for the setting of {one.name}")
        used = codecs.tool(job.encodes, hardware=job.hardware)
        found = target.find(source, job.quality, one.encoding, used, one.filters, job.output_dir)
        told = {"options": used.options(found.value), "setting": used.setting(found.value)}
        rows.append({**told, "ssim": found.ssim, "note": str(found)})
    if job.chunk_seconds is not None:
        with base.writing(kept) as part:
            part.write_text(json.dumps(rows))
    return [replace(one, **_settings(one, row)) for one, row in zip(rungs, rows, strict=True)]


def _about(source: str) -> VideoInfo:
    about = probe(source).video
    if about is None:
        raise UnsupportedMedia("has no video stream", subject=source, cure="Give a file with pictures.")
    return about


def _settings(one: Rung, row: dict[str, Any]) -> dict[str, Any]:
    encoding = replace(one.encoding, options={**one.encoding.options, **row["options"]})
    return {"encoding": encoding, **{name: row[name] for name in ("setting", "ssim", "note")}}


def _rungs(about: VideoInfo, job: EncodingJob) -> list[Rung]:
    deep = VideoFormat(about.pixel_format or "yuv420p").components[0].bits > 8
    quality = job.quality if isinstance(job.quality, str) else "medium"
    encoding, used = codecs.encoding(
        job.format,
        job.encodes,
        quality,
        deep=deep,
        hardware=job.hardware,
        pieces=job.chunk_seconds is not None,
    )
    full = (about.displayed_width, about.displayed_height)
    ladder, first, setting = job.ladder, "", used.setting(used.presets[quality][0])
    if job.format == "gif":
        rate, side = codecs.GIFS[quality]
        ladder = ladder or (side,)
        # Of a video that is shorter than one picture lasts at that rate, the filter would leave none.
        lasts = about.duration_seconds_from_header or 1.0
        thinned = (about.rate_from_header or 1000) > rate and lasts * rate >= 1
        first = f"fps={rate}," if thinned else ""
        setting = f"{rate} pictures a second at most"
    rungs = []
    for width, height in sizes(*full, ladder):
        filters = "" if (width, height) == full else f"scale={width}:{height}"
        if job.format == "gif":
            filters = f"{first}scale={width}:{height},{PALETTE}"
        rungs.append(Rung(width, height, filters, encoding, setting))
    return rungs


def sizes(width: int, height: int, ladder: Sequence[int]) -> list[tuple[int, int]]:
    """(width, height) of each rendition: even numbers, the largest first, none larger than the video.

    :param ladder: pixels of the shorter sides; empty: the video's own.
    """
    short = min(width, height)
    sides = sorted({min(side // 2 * 2, short) for side in ladder or (short,)}, reverse=True)
    return list(dict.fromkeys((_scaled(width, side, short), _scaled(height, side, short)) for side in sides))


def _scaled(length: int, side: int, short: int) -> int:
    return max(2, 2 * round(length * side / short / 2))


def outputs_of(rungs: Sequence[Rung], job: EncodingJob, folder: Path) -> list[Output]:
    end = "mp4" if job.format == "hls" else job.format
    sound = "" if job.sound else None
    return [Output(folder / f"{one.name}.{end}", one.filters, sound, one.encoding) for one in rungs]


def _in_one_go(source: str, outputs: Sequence[Output]) -> list[Rendered]:
    def tell(share: float) -> None:
        scope.report(share, "encoding")

    made = []
    for one in render(source, outputs, progress=tell):
        if isinstance(one, Exception):
            raise one
        made.append(one)
    return made


def _in_pieces(source: str, job: EncodingJob, outputs: Sequence[Output]) -> list[Rendered]:
    """Make the pieces that are not made yet, and join them all."""
    planned = _planned(source, job)
    total, done = sum(one.frames for one in planned), 0

    def telling(piece: pieces.Piece) -> Callable[[float], None]:
        words = f"piece {piece.number + 1} of {len(planned)}"
        return lambda share: scope.report((done + share * piece.frames) / total, words)

    for piece in planned:
        pieces.encode(source, piece, outputs, job.pieces, telling(piece))
        done += piece.frames
    scope.report(1.0, "joining")
    return [pieces.join(source, planned, at, one, job.pieces) for at, one in enumerate(outputs)]


def _check(made: Rendered, job: EncodingJob) -> None:
    """That no picture was lost; a GIF may have fewer by intent."""
    if job.format != "gif" and made.frames != made.source_frames:
        raise OutputError(
            f"failed the check after writing: {made.frames} frames came out of {made.source_frames}",
            subject=str(made.path),
            cure="Try again.",
        )


def _place(job: EncodingJob, rungs: Sequence[Rung], made: Sequence[Rendered], work: Path) -> list[Encoded]:
    """Put what was made where it belongs."""
    if job.format == "hls":
        return _place_hls(job, rungs, made, work)
    found = []
    with contextlib.ExitStack() as together:
        for rung, one in zip(rungs, made, strict=True):
            place = _places(job, rung)
            with base.output_errors(place["path"]):
                os.replace(one.path, place["path"])
            together.enter_context(scope.unfinished(place["path"], keep=True))
            found.append(_encoded(rung, one, **place))
    return found


def _place_hls(
    job: EncodingJob, rungs: Sequence[Rung], made: Sequence[Rendered], work: Path
) -> list[Encoded]:
    final, packed = job.output_dir / job.stem, work / "hls"
    found = []
    with base.output_errors(final):
        packed.mkdir()
        hls.package({rung.name: one.path for rung, one in zip(rungs, made, strict=True)}, packed)
        for rung, one in zip(rungs, made, strict=True):
            size = (packed / f"{rung.name}.m4s").stat().st_size
            found.append(_encoded(rung, one, bytes=size, **_places(job, rung)))
        if final.exists():
            _refuse_foreign(final)
            os.replace(final, work / "before")
        os.replace(packed, final)
    return found


def _refuse_foreign(folder: Path) -> None:
    """That nothing is replaced but what an earlier run has made.

    :raises OutputError: there are files of others in it.
    """
    held = os.listdir(folder)
    ours = re.compile(rf"{re.escape(hls.MASTER)}|\d+p\.(m3u8|m4s)")
    foreign = sorted(one for one in held if not ours.fullmatch(one))
    if foreign or (held and hls.MASTER not in held):
        raise OutputError(
            f"holds what no earlier run has made ({readable((foreign or held)[0])})",
            subject=str(folder),
            cure="Move that away, or choose another output folder.",
        )


def _encoded(rung: Rung, one: Rendered, **more: Any) -> Encoded:
    about = {name: value for name, value in asdict(one).items() if name in Encoded.model_fields}
    lost = f"{one.damaged} of its pictures were damaged and left out" if one.damaged else ""
    short = f"its source ends {one.missing:.1f} s before its header says" if one.missing else ""
    note = "; ".join(filter(None, (rung.note, lost, short)))
    told = {"encoder": rung.encoding.video, "setting": rung.setting, "ssim": rung.ssim, "note": note}
    return Encoded.model_validate(about | told | more)
