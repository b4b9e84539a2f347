"""What processors do with the source of a request: a path, or an address."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from video import scope
from video.sources.base import is_url, resolve


def absolute(source: str) -> str:
    """`source` as it is understood in any folder."""
    return source if is_url(source) or source.startswith(("file:", "~")) else os.path.abspath(source)


@contextlib.contextmanager
def local_file(source: str, downloads: Path) -> Iterator[Path]:
    """A source as a file on this machine, for as long as the block runs.

    :param downloads: where one that is an address is put meanwhile; made if it is missing.
    """
    from video.media.base import output_errors

    found = resolve(source)
    if not is_url(source):
        yield found.fetch(source, downloads).path
        return
    folder = downloads / f".download-{secrets.token_hex(6)}"
    with scope.unfinished(folder):
        with output_errors(folder):
            folder.mkdir(parents=True)
        yield found.fetch(source, folder).path
