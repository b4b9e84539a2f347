"""Responses and facts as tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from video.models import VideoClipResponse, VideoEncodingResponse


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """A plain table; columns in `right` hold figures, and cells of those in `whole` keep to one line."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        one_line = column in (*right, *whole)
        # Its own width, or a narrow terminal would cut figures without a mark.
        width = max(len(row[columns.index(column)]) for row in (columns, *rows)) if one_line else None
        result.add_column(column, justify=justify, no_wrap=one_line, overflow="fold", min_width=width)
    for row in rows:
        result.add_row(*map(escape, row))
    return result


def clip_table(responses: Iterable[VideoClipResponse], *, written: bool = True) -> Table:
    """A row for each clip, with its two foremost reasons."""
    files = ["frames", "size", "mode"] if written else []
    rows = []
    for response in responses:
        for clip in response.clips:
            facts = [str(clip.frames), size(clip.bytes), clip.mode or ""] if written else []
            span = [clock(clip.start), clock(clip.end)]
            rows.append([clip.path.name, *span, *facts, f"{clip.score:.2f}", "; ".join(clip.reasons[:2])])
    columns = ["clip", "from", "to", *files, "score", "why"]
    return table(columns, rows, right=columns[1:-1], whole=["clip"])


def encoding_table(responses: Iterable[VideoEncodingResponse], *, written: bool = True) -> Table:
    """A row for each file."""
    more = ["frames", "length", "bytes"] if written else []
    rows = []
    for response in responses:
        for one in response.outputs:
            name = one.path.name if one.playlist is None else f"{one.path.parent.name}/{one.path.name}"
            facts = [str(one.frames), clock(one.seconds), size(one.bytes)] if written else []
            likeness = "" if one.ssim is None else f", SSIM {one.ssim:.3f}"
            pixels = f"{one.width}x{one.height}"
            rows.append([name, pixels, *facts, f"{one.encoder}, {one.setting}{likeness}"])
    columns = ["file", "size", *more, "encoder"]
    return table(columns, rows, right=columns[1:-1], whole=["file"])


def variant_table(found: Iterable[Mapping[str, Any]]) -> Table:
    """A row for each variant that was made.

    :param found: as `VideoProcessingManager.process_variants_parallel` gives them.
    """
    made = [one for one in found if one["error"] is None]
    measured = any("ssim" in one["measures"] for one in made)
    rows = []
    for one in made:
        measures = one["measures"]
        figures = [f"{measures['width']}x{measures['height']}", str(measures["frames"])]
        figures += [clock(measures["seconds"]), size(one["file_size"]), str(len(one["transformations"]))]
        rows.append([one["variant_id"], *figures, *([f"{measures['ssim']:.3f}"] if measured else [])])
    columns = ["variant", "size", "frames", "length", "bytes", "transformations", *["SSIM"][:measured]]
    return table(columns, rows, right=columns[1:], whole=["variant"])


def clock(seconds: float) -> str:
    """Seconds as a player shows them: 1:02:03.45."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest // 100:02d}.{rest % 100:02d}"


def size(count: int) -> str:
    """Bytes in the largest unit that fits: 1.4 MB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")
