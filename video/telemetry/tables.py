"""Responses and facts as tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from video.models import VideoClipResponse


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; columns named in `right` hold figures."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        result.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in right, overflow="fold"
        )
    for row in rows:
        result.add_row(*map(escape, row))
    return result


def clip_table(responses: Iterable[VideoClipResponse], *, written: bool = True) -> Table:
    """A row for each clip."""
    columns = ["clip", "from", "to", "seconds", "score", "why"]
    figures = ["from", "to", "seconds", "score"]
    if written:
        columns[4:4] = ["frames", "size"]
        figures += ["frames", "size"]
    rows = []
    for response in responses:
        for clip in response.clips:
            row = [clip.path.name, clock(clip.start), clock(clip.end), f"{clip.end - clip.start:.2f}"]
            if written:
                row += [str(clip.frames), size(clip.bytes)]
            rows.append([*row, f"{clip.score:.2f}", "; ".join(clip.reasons)])
    return table(columns, rows, right=figures)


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


def shorten(path: Path) -> str:
    """A path from the current folder, if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
