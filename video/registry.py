"""Names for backends and sources: a table of strings, imported on first use.

Other distributions add to it by entry points, in their own `pyproject.toml`:

    [project.entry-points."video.backends"]
    ray = "my_package.ray:RayBackend"
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from video.errors import (
    BackendUnavailable,
    ConfigError,
    MissingDependency,
    SourceError,
    UnknownName,
    VideoError,
    described,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Registry:
    """One table of names.

    :param kind: what is named, as a word for messages.
    :param group: the entry-point group that plugins use.
    :param builtin: name -> ("module:Attribute", the extra that it needs or None).
    :param broken: the error for an entry that is there but cannot be loaded.
    """

    def __init__(
        self, kind: str, group: str, builtin: Mapping[str, tuple[str, str | None]], broken: type[VideoError]
    ) -> None:
        self.kind = kind
        self.group = group
        self.builtin = builtin
        self._broken = broken
        self._registered: dict[str, Any] = {}
        self._found: dict[str, EntryPoint] | None = None

    def register(self, name: str, target: Any) -> None:
        """Add a name; `target` is the object itself or a "module:Attribute" string.

        A name registered before is replaced, so that a notebook cell may run twice.

        :raises ConfigError: for a built-in name or a string of another form.
        """
        if name in self.builtin:
            raise ConfigError("is built in and cannot be replaced", subject=f"{self.kind} {name!r}")
        if isinstance(target, str) and not all(target.partition(":")):
            raise ConfigError(
                f"{target!r} is not of the form 'module:Attribute'", subject=f"{self.kind} {name!r}"
            )
        self._registered[name] = target

    def names(self) -> list[str]:
        """All names, built-in ones first; nothing is imported."""
        return list(dict.fromkeys([*self.builtin, *self._registered, *sorted(self._plugins())]))

    def get(self, name: str) -> Any:
        """What `name` stands for, imported now if it was not yet.

        :raises UnknownName: with the names there are, and the nearest one.
        :raises MissingDependency: it needs a package that is not installed; says the line that installs it.
        :raises BackendUnavailable: (a backend) or SourceError (a source): it is there but cannot be loaded.
        """
        if name in self.builtin:
            target, extra = self.builtin[name]
            return self._load(name, target, extra)
        if name in self._registered:
            target = self._registered[name]
            return self._load(name, target) if isinstance(target, str) else target
        plugins = self._plugins()
        if name in plugins:
            return self._load(name, plugins[name].value, origin=_distribution(plugins[name]))
        names = self.names()
        near = difflib.get_close_matches(name.lower(), names, n=1)
        raise UnknownName(
            f"there is none of that name, only {', '.join(names)}",
            subject=f"{self.kind} {name!r}",
            cure=f"Did you mean {near[0]!r}?" if near else None,
        )

    def why_unavailable(self, name: str) -> str | None:
        """Why `get(name)` would fail, or None if it works. Imports it to find out."""
        try:
            self.get(name)
        except VideoError as error:
            return str(error)
        return None

    def _plugins(self) -> dict[str, EntryPoint]:
        if self._found is None:
            from importlib.metadata import entry_points  # some 30 ms that most runs never need

            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                if point.name in self.builtin or point.name in found:
                    owner = "a built-in" if point.name in self.builtin else _distribution(found[point.name])
                    warnings.warn(
                        f"{self.kind} {point.name!r} of {_distribution(point)} is ignored: taken by {owner}",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                else:
                    found[point.name] = point
            self._found = found
        return self._found

    def _load(self, name: str, target: str, extra: str | None = None, origin: str | None = None) -> Any:
        subject = f"{self.kind} {name!r}" + (f" of {origin}" if origin else "")
        module, _, attribute = target.partition(":")
        try:
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except ImportError as error:
            # A hole in the entry's own package is no missing dependency: no `pip install` would mend it.
            missing = (error.name or "").partition(".")[0]
            if missing not in ("", "video", module.partition(".")[0]):
                # Outside our own extras the package may be called otherwise than the module: no guesses.
                line = (
                    f'pip install "parallel-video[{extra}]"' if extra else "Install the package that has it."
                )
                raise MissingDependency(
                    f"needs {missing}, which cannot be imported ({error})", subject=subject, cure=line
                ) from error
            raise self._cannot_load(subject, error, origin) from error
        except Exception as error:
            raise self._cannot_load(subject, error, origin) from error
        return found

    def _cannot_load(self, subject: str, error: Exception, origin: str | None) -> VideoError:
        return self._broken(
            f"cannot be loaded: {described(error)}",
            subject=subject,
            cure=f"Update or uninstall {origin}." if origin else None,
        )


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


backends = Registry(
    "backend",
    "video.backends",
    {
        "serial": ("video.backends.serial:SerialBackend", None),
        "thread": ("video.backends.thread:ThreadBackend", None),
        "process": ("video.backends.process:ProcessBackend", None),
        "joblib": ("video.backends.joblib:JoblibBackend", "joblib"),
        "dask": ("video.backends.dask:DaskBackend", "dask"),
        "async": ("video.backends.loop:LoopBackend", None),
    },
    BackendUnavailable,
)

sources = Registry(
    "source",
    "video.sources",
    {
        "local": ("video.sources.local:LocalSource", None),
        "http": ("video.sources.http:HttpSource", None),
        "ytdlp": ("video.sources.ytdlp:YtdlpSource", "download"),
    },
    SourceError,
)


def register_backend(name: str, target: Any) -> None:
    """Give an engine a name, for this program.

    Worker processes and other programs do not know it; a distribution's entry point is known to all.

    :param target: the class, or a "module:Class" string that is imported on first use; see
        `video.backends.base.Backend` for what it has.
    :raises ConfigError: for a built-in name or a string of another form.
    """
    backends.register(name, target)
