"""What people name on the command line, turned into a list of sources."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from video.sources.base import is_url

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg"),
    *(".vob", ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".3g2", ".mxf", ".f4v"),
)
"""What counts as a video in a folder; a file that is named itself is tried whatever it is called."""


def expand(names: Iterable[str]) -> list[str]:
    """Files, folders (all videos below them), globs, `@list.txt`, URLs, and `-` (names on standard input).

    A name that fits nothing stays as it is, so that it is reported like any input that fails.

    :raises click.UsageError: for a list that cannot be read, or a folder without videos.
    """
    return [source for name in names for source in _expand(name)]


def _expand(name: str) -> Iterator[str]:
    if name == "-":
        yield from _lines(sys.stdin)
    elif name.startswith("@") and not os.path.exists(name):
        try:
            with open(name[1:], encoding="utf-8-sig") as file:
                lines = list(_lines(file))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise click.UsageError(f"the list {name[1:]} cannot be read: {reason}") from None
        yield from lines
    elif is_url(name):
        yield name
    elif os.path.isdir(name):
        found = list(_videos_below(Path(name)))
        if not found:
            raise click.UsageError(f"there is no video in the folder {name}")
        yield from found
    elif os.path.lexists(name) or not glob.has_magic(name):
        yield name
    else:
        yield from sorted(glob.glob(name, recursive=True)) or [name]


def _lines(file: Iterable[str]) -> Iterator[str]:
    """One name a line; empty lines and lines that start with # are left out."""
    for line in file:
        name = line.strip("\r\n")
        if name.strip() and not name.startswith("#"):
            yield name


def _videos_below(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".") and ".part." not in name:
                yield os.path.join(place, name)
