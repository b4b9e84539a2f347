"""What people name on the command line, turned into a list of sources."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import click

from video.sources.base import is_url

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg"),
    *(".vob", ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".3g2", ".mxf", ".f4v"),
)
"""What counts as a video in a folder; a file that is named itself is tried whatever it is called."""


class Inputs(NamedTuple):
    sources: list[str]
    notes: list[str]
    """What was named but holds nothing that can be tried, and why."""


def expand(names: Iterable[str], leave_out: Path | None = None) -> Inputs:
    """Files, folders (all videos below them), globs, `@list.txt`, URLs, and `-` (names on standard input).

    Lists hold one name a line, of any of these but other lists. A name that fits nothing stays as it is, so
    that it is reported like any input that fails.

    :param leave_out: a folder that is not looked into, since it is where clips go.
    :raises click.UsageError: for a list that cannot be read.
    """
    inputs = Inputs([], [])
    for name in names:
        for one in _lines(name):
            _add(one, inputs, leave_out)
    return inputs


def _lines(name: str) -> list[str]:
    if name == "-":
        # Names of files need not be text in the locale's encoding.
        return _names(os.fsdecode(sys.stdin.buffer.read()))
    if name.startswith("@") and not os.path.exists(name):
        try:
            return _names(os.fsdecode(Path(name[1:]).read_bytes()).removeprefix("\ufeff"))
        except OSError as error:
            raise click.UsageError(f"the list {name[1:]} cannot be read: {error.strerror}") from None
    return [name]


def _names(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _add(name: str, inputs: Inputs, leave_out: Path | None) -> None:
    if is_url(name):
        inputs.sources.append(name)
    elif os.path.isdir(name):
        found = _videos_below(name, inputs.notes, leave_out)
        inputs.sources.extend(found)
        if not found and not inputs.notes:
            inputs.notes.append(f"there is no video in the folder {name}")
    elif os.path.lexists(name) or not glob.has_magic(name):
        inputs.sources.append(name)
    else:
        found = sorted(glob.glob(name, recursive=True))
        inputs.sources.extend(found)
        if not found:
            inputs.notes.append(f"nothing fits {name}")


def _videos_below(folder: str, notes: list[str], leave_out: Path | None) -> list[str]:
    def unreadable(error: OSError) -> None:
        notes.append(f"the folder {error.filename} cannot be read: {error.strerror}")

    found = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (leave_out and _same(os.path.join(place, name), leave_out))
        )
        found += [
            os.path.join(place, name)
            for name in sorted(files)
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".") and ".part." not in name
        ]
    return found


def _same(one: str, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
