"""`ConcurrentTransformationEngine`: the caller says which transformations each output has; they are planned
as fused graphs, grouped so that the source is decoded rarely, and run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video.config import BackendType
from video.errors import ConfigError
from video.events import Observer
from video.processors._memory import MEMORY_SHARE
from video.processors._watch import Progress
from video.processors.variants import VARIANT_SECONDS, VideoProcessingManager, sizes, together

if TYPE_CHECKING:  # with FFmpeg, which is only needed once there is something to do
    from video.media.fuse import Fused
    from video.media.transform import Chosen

    Said = Chosen | str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What an engine would do; `str()` of it is for people."""

    source: str
    groups: tuple[tuple[Fused, ...], ...]
    """Outputs that one decoder makes together: each is one graph for its picture and one for its sound."""
    workers: int

    def __str__(self) -> str:
        count = sum(map(len, self.groups))
        times = f"times decoded {len(self.groups)}, workers {self.workers} at most"
        lines = [f"{self.source}: outputs {count}, {times}"]
        for number, group in enumerate(self.groups, 1):
            lines.append(f"group {number}: {len(group)} together")
            lines += [f"  {line}" for fused in group for line in str(fused).splitlines()]
        return "\n".join(lines)


class ConcurrentTransformationEngine:
    """Runs lists of transformations, each list as one fused graph, several outputs of a source together.

    A list holds names (then with usual parameters), dicts of `name` and `parameters` as results have
    them, or `video.media.transform.Chosen`. Its order is no part of its meaning: crops and downscales go
    first, then work in YUV, then work in RGB, with one way into RGB and back at most.

    :param max_workers, memory_limit, backend, timeout, observers: as of `VideoProcessingManager`.

    >>> engine = ConcurrentTransformationEngine(max_workers=2)                        # doctest: +SKIP
    >>> print(engine.plan("talk.mp4", [["vignette", "crop", "speed"]]))               # doctest: +SKIP
    """

    def __init__(
        self,
        max_workers: int | None = None,
        memory_limit: float = MEMORY_SHARE,
        *,
        backend: BackendType | str = BackendType.AUTO,
        timeout: float | None = VARIANT_SECONDS,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._manager = VideoProcessingManager(
            max_workers, memory_limit, backend=backend, timeout=timeout, observers=observers
        )

    def plan(self, source: str | os.PathLike[str], outputs: Iterable[Iterable[Said]]) -> EnginePlan:
        """What `run` would do; nothing is written.

        :param outputs: the transformations of each.
        :raises ConfigError, UnknownName, UnsupportedMedia: a list cannot be used.
        :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: the source cannot be.
        :raises WorkerDied, ItemTimeout: it has ended the worker that looked at it, or held it up.
        """
        from video.media.fuse import fuse

        lists = [_chosen(one) for one in outputs]
        (found,) = self._manager.facts([os.path.abspath(source)])
        facts = found.unwrap()
        fused = [fuse(one, facts) for one in lists]
        workers = self._manager.max_workers
        most = together(facts.width * facts.height, workers, self._manager.memory_bytes)
        left = iter(fused)
        groups = [
            tuple(next(left) for _ in range(size))
            for size in (sizes(len(fused), workers, most) if fused else ())
        ]
        return EnginePlan(os.fspath(source), tuple(groups), min(workers, max(1, len(groups))))

    def run(
        self,
        source: str | os.PathLike[str],
        outputs: Mapping[str | os.PathLike[str], Iterable[Said]],
        progress_callback: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Make all outputs of a source.

        :param outputs: the transformations of each, by its path, whose extension chooses the container.
        :param progress_callback: told the percentage that is done.
        :return: a dict for each, in order, as of `VideoProcessingManager.process_variants_parallel`; one that
            failed stops no other.
        :raises ConfigError, UnknownName, UnsupportedMedia: a list cannot be used, or two outputs are
            one file.
        """
        from video.media.variants import Wanted

        row = [
            (os.path.abspath(source), Wanted(Path(os.path.abspath(path)), "chosen", chosen=_chosen(said)))
            for path, said in outputs.items()
        ]
        return self._manager.run(row, progress_callback)


def _chosen(said: Iterable[Said]) -> tuple[Chosen, ...]:
    if isinstance(said, str | Mapping):
        raise ConfigError(f"the transformations are {said!r}", cure="Put them into a list.")
    return tuple(map(_one, said))


def _one(said: Said) -> Chosen:
    from video.media import catalogue
    from video.media.transform import Chosen

    if isinstance(said, Chosen):
        return said
    if isinstance(said, str):
        of = catalogue.get(said)
        return of.at(**{name: span.usual for name, span in of.ranges})
    if isinstance(said, Mapping) and "name" in said:
        return catalogue.get(said["name"]).at(**said.get("parameters", {}))
    raise ConfigError(
        f"a transformation is {said!r}", cure="Give its name, or a dict of name and parameters."
    )
