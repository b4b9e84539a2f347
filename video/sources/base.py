"""What a source is: it turns what a user names (a path, an address) into a file on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from video.errors import SourceError, VideoError, described
from video.registry import sources


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here now."""

    path: Path
    title: str
    """A file-name stem worth naming clips after."""
    temporary: bool
    """True: it lies in the given folder and may be deleted after use. False: it is the user's own."""


class Source(Protocol):
    """One way to get at videos. A class that is built without arguments."""

    takes: ClassVar[str]
    """What it fetches, in a few words, for the message that nobody could."""

    def claims(self, source: str) -> bool:
        """Whether to try `fetch` on it. Looks at the text (and the disk) only, never at the network."""
        ...

    def fetch(self, source: str, folder: Path) -> Fetched:
        """Get it.

        `folder` exists and belongs to one fetch at a time. What a failed fetch leaves there lets a later
        one into the same folder go on; a caller who does not want that removes the folder.

        :raises SourceError: it cannot be had (also SourceNotFound, DownloadFailed).
        :raises OutputError: `folder` cannot be written.
        :raises ItemCancelled: the item was given up meanwhile.
        """
        ...


def resolve(source: str) -> Source:
    """The source that takes `source`. Asked in order: those of third parties, local, http, ytdlp.

    A plugin that cannot be loaded or fails is passed over, so that it costs nobody else a file.

    :raises SourceError: none takes it; the message has each one's reason.
    """
    reasons = []
    for name in sorted(sources.names(), key=lambda name: name in sources.builtin):
        try:
            found: Source = sources.get(name)()
            if found.claims(source):
                return found
            reasons.append(f"{name} takes {found.takes}")
        except VideoError as error:
            reasons.append(str(error).rstrip("."))
        except Exception as error:  # noqa: BLE001  # a plugin's bug must not break the other sources
            reasons.append(f"{name} failed on it: {described(error)}")
    raise SourceError(f"no source takes it: {'; '.join(map(redact, reasons))}", subject=redact(source))


def fetch(source: str, folder: Path) -> Fetched:
    """Get `source` with the one that takes it: `resolve(source).fetch(source, folder)`.

    :raises SourceError: as `resolve` and `Source.fetch` do; OutputError and ItemCancelled as the latter.
    """
    return resolve(source).fetch(source, folder)


_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def url(source: str) -> SplitResult | None:
    """The parts of an address `scheme://...`, or None if `source` is no such thing or a malformed one."""
    try:
        return urlsplit(source) if _URL.match(source) else None
    except ValueError:
        return None


def is_url(source: str) -> bool:
    """Whether it has the form of an address, sound or not."""
    return bool(_URL.match(source))


def display_name(source: str) -> str:
    """A file-name stem for clips of `source`, known before it is fetched: its base name without query."""
    if not is_url(source):
        return safe_stem(Path(source.removeprefix("file:")).stem)
    parts = url(source)
    if parts is None:
        return safe_stem("")
    return safe_stem(Path(unquote(parts.path)).stem or parts.hostname or "")


def safe_stem(text: str) -> str:
    """`text` as a file-name stem: one component, visible, at most 150 bytes, never empty."""
    text = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", text).strip().lstrip(".")
    # 150 leaves room below the 255 bytes of common file systems for an ending such as "-003.mp4.part".
    return os.fsencode(text)[:150].decode(errors="ignore").strip() or "video"


def readable(text: str) -> str:
    """`text` with what is no text, as in some file names, spelt out, so that it can be printed and stored."""
    return text.encode("utf-8", "backslashreplace").decode()


_SECRETS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]+://)"
    # A password with an unescaped "/", "?" or "#" is malformed, yet people paste them: up to the next "@",
    # unless what follows the colon is a port.
    r"(?:[^/?#\s]*@|[^/?#@\s]*:(?!\d*(?:[/?#\s]|$))[^@\s]*@)?"
    r"(?P<place>[^?#\s]*)(?P<query>\?[^#\s]*)?(?:\#\S*)?",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the user name, password, query values and fragment of every address in it taken out.

    The value of `v` stays: on watch pages it is the video's id, and a message without it helps nobody.
    """

    def without(found: re.Match[str]) -> str:
        query = re.sub(r"(?<=[?&;])(?!v=)([^=&;]*=)?[^&;]+", r"\1…", found["query"] or "")
        return found["scheme"] + found["place"] + query

    return _SECRETS.sub(without, text)
