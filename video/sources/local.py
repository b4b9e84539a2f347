"""Files on this machine: paths, `~`, and `file:` addresses."""

from __future__ import annotations

import difflib
import itertools
import os
import stat
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from video.errors import SourceError, SourceNotFound
from video.sources.base import Fetched, display_name, is_url


class LocalSource:
    """Takes whatever is no address of another scheme, so that a mistyped path is said to be missing."""

    takes: ClassVar[str] = "paths and file: addresses"

    def claims(self, source: str) -> bool:
        return source.startswith("file:") or not is_url(source)

    def fetch(self, source: str, folder: Path) -> Fetched:
        """Find the file; nothing is copied.

        :raises SourceNotFound: it is not there; with the nearest name that is.
        :raises SourceError: it is no regular file, or may not be read.
        """
        path = Path(source)
        try:
            path = _path(source)
            kind = path.stat().st_mode
            if stat.S_ISDIR(kind):
                cure = "Name the files in it, as in folder/*.mp4."
                raise SourceError("is a folder", subject=source, cure=cure, fault="input")
            if not stat.S_ISREG(kind):
                cure = "Copy it to a file first."
                raise SourceError("is not a regular file", subject=source, cure=cure, fault="input")
            path.open("rb").close()
        except SourceError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise SourceNotFound("is a link to a file that does not exist", subject=source) from None
            raise SourceNotFound("does not exist", subject=source, cure=_cure(path)) from None
        except PermissionError:
            cure = "Check its permissions."
            raise SourceError("may not be read", subject=source, cure=cure, fault="account") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise SourceError(getattr(error, "strerror", None) or str(error), subject=source) from None
        return Fetched(path, display_name(str(path)), temporary=False)


def _path(source: str) -> Path:
    if not source.startswith("file:"):
        return Path(os.path.expanduser(source))
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(
            f"is on another machine ({parts.netloc})", subject=source, cure="Copy it here first."
        )
    return Path(unquote(parts.path))


def _cure(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}."
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, 10_000)]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {near[0]}?" if near else None
