"""Variants of files: grouped so that an input is decoded as rarely as workers and memory allow, run as a
batch, and told of as plain dicts."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from video import resources
from video.config import BackendType, ParallelConfig
from video.errors import ConfigError, ItemCancelled, VideoError
from video.events import Observer, logger
from video.models import Problem
from video.outcome import Outcome
from video.processors._memory import MEMORY_SHARE, USUAL_PIXELS, VARIANT
from video.processors._monitor import ResourceMonitor
from video.processors._names import Names
from video.processors._watch import Progress, Watch
from video.runner import Runner

if TYPE_CHECKING:  # with FFmpeg, which is only needed once there is something to do
    from video.media.transform import Facts
    from video.media.variants import Made, Wanted

VARIANT_SECONDS = 300.0
"""How long one variant may take; several that are made together, so many times as long."""
MOST_TOGETHER = 4
"""Variants that share a decoder: that takes 0.9 of what four alone would, of which a fifth would save little
more, and hold as much memory as each before it (benchmarks/bench_variants.py)."""
SSIM_FLOOR = 0.9
FORMATS = ("mp4", "mkv", "mov")


class Task(NamedTuple):
    """Variants of one source that are made together."""

    source: str
    wanted: tuple[Wanted, ...]
    limit: float | None = None
    """Seconds for all of them."""


def make_variants(task: Task) -> list[Made]:
    """Do one task, in a worker."""
    from video.media.variants import make

    return make(*task)


def survey(source: str) -> Facts:
    """What a source is like, found in a worker, since its header may be damaged."""
    from video.media.variants import facts_of

    return facts_of(source)


def sizes(variants: int, workers: int, most: int) -> list[int]:
    """How many variants of one input each task makes: few tasks, so that it is decoded rarely, but one for
    each worker where there is enough, and none of more than `most`; all about alike.

    >>> sizes(8, workers=2, most=4), sizes(5, workers=1, most=4), sizes(2, workers=8, most=4)
    ([4, 4], [3, 2], [1, 1])
    """
    tasks = max(math.ceil(variants / most), min(variants, workers))
    small, larger = divmod(variants, tasks)
    return [small + (place < larger) for place in range(tasks)]


def together(pixels: int, workers: int, memory: float) -> int:
    """Variants that a task may make at once, at least 1.

    :param pixels: of a picture.
    :param workers: that share the memory.
    :param memory: bytes for all of them.
    """
    return int(min(MOST_TOGETHER, VARIANT.outputs(memory / workers, pixels)))


class VideoProcessingManager:
    """Makes variants of files on a number of workers, within a share of the memory.

    :param max_workers: tasks at once; None: as many as the CPUs and the memory have room for.
    :param memory_limit: share of the memory that is free now, above 0, up to 1, which this program and its
        workers may fill. Tasks wait for room; a worker that overruns it is ended, and its variants run again
        alone.
    :param backend: the engine; AUTO: worker processes.
    :param timeout: seconds that one variant may take; None: no limit.
    :param observers: told of every event of a batch, in which each variant is an item.
    :raises ConfigError: for a value that does not fit.
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
        if not isinstance(memory_limit, int | float) or not 0 < memory_limit <= 1:
            raise ConfigError(f"memory_limit is {memory_limit!r}", cure="It takes a share above 0, up to 1.")
        self.memory_bytes = memory_limit * resources.free_memory()
        """That this program and its workers may fill; infinite where nobody knows what is free."""
        fits = VARIANT.workers(self.memory_bytes, USUAL_PIXELS)
        self.max_workers = max_workers or int(min(resources.usable_cpus(), fits))
        if backend == BackendType.SERIAL:
            self.max_workers = 1
        self._timeout = timeout
        self._observers = tuple(observers)
        self._config = ParallelConfig(
            backend=backend,
            max_workers=self.max_workers if max_workers is None else max_workers,
            memory_limit_gb=None if math.isinf(self.memory_bytes) else self.memory_bytes / 2**30,
            chunk_size=1,
            # Encoders that share their work among other numbers of threads write other bytes.
            threads_per_worker=1,
            preload=("video.media.variants",),
            # Nobody can end what runs in this thread; but tasks look at the clock themselves.
            timeout=None if backend == BackendType.SERIAL else timeout,
        )

    def process_variants_parallel(
        self,
        input_files: Iterable[str | os.PathLike[str]],
        output_dir: str | os.PathLike[str],
        variants_per_file: int = 5,
        strategy: str = "standard",
        *,
        seed: int = 0,
        progress_callback: Progress | None = None,
        ssim_floor: float = SSIM_FLOOR,
        format: str = "mp4",
    ) -> list[dict[str, Any]]:
        """Make variants of each input, in `output_dir`, called `NAME-variant-01.mp4` and so on.

        The same seed gives the same variants on every engine; the numbers of variants make them differ. Those
        that an earlier call has made of the same input, in that folder, are replaced.

        :param input_files: local videos.
        :param strategy: see `video.media.strategies`.
        :param progress_callback: told the percentage that is done.
        :param ssim_floor: of `enhanced_metrics`: SSIM to the source, between 0 and 1, that each variant keeps
            in the mean of its pictures; single ones may be below.
        :param format: mp4, mkv or mov.
        :return: a dict for each variant, in order: `variant_id`, `status` ("completed" or "failed"),
            `processing_time` (seconds; of what was made together, an equal part), `file_size` (bytes),
            `output_path`, `input_path`, `strategy`, `seed`, `transformations` (dicts of `name`, `layer`,
            `parameters`), `measures`, `attempts` (how often it has run), `backend` (the engine), `reason`
            (why that one), `error` (None, or its words), `error_type` and `traceback`. One that failed stops
            no other.
        :raises ConfigError: for an argument that does not fit.
        :raises OutputError: the names of the outputs cannot be written down.
        """
        if isinstance(input_files, str | bytes | os.PathLike):
            raise ConfigError("input_files is a single one", cure="Put it into a list.")
        inputs = [os.path.abspath(one) for one in input_files]
        _check(inputs, variants_per_file, strategy, seed, ssim_floor, format)
        from video.media.variants import Wanted

        floor = ssim_floor if strategy == "enhanced_metrics" else None
        folder = Path(os.path.abspath(output_dir))
        names = Names(inputs)
        row = []
        try:
            for source in inputs:
                outputs = names.variants(source, folder, variants_per_file, format)
                row += [
                    (source, Wanted(path, strategy, seed, number, floor=floor))
                    for number, path in enumerate(outputs, 1)
                ]
            return self.run(row, progress_callback)
        finally:
            names.tidy()

    def facts(self, sources: Sequence[str]) -> list[Outcome[Facts]]:
        """What plans depend on of each source, looked at in workers that a damaged one may end."""
        with Runner(self._timed(1)) as runner:
            found = runner.map(survey, sources, isolate=True)
        for source, one in zip(sources, found, strict=True):
            _name(one.error, source)
        return found

    def run(
        self, row: Sequence[tuple[str, Wanted]], progress_callback: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Make variants that are chosen already.

        :param row: the source of each, and what is wanted of it; those of one source stand together. One that
            comes twice is made once.
        :return: as `process_variants_parallel`.
        :raises ConfigError: two different ones have one output.
        """
        twins = _twins(row)
        watch = Watch(len(row), self._observers, progress_callback)
        places: dict[str, list[int]] = {}
        for place, (source, _) in enumerate(row):
            if place not in twins:
                places.setdefault(source, []).append(place)
        made: dict[int, Made] = {}
        tries: Counter[int] = Counter()
        with Runner(self._timed(self._largest(places)), observers=[watch]) as runner:
            surveys = runner.map(survey, list(places), isolate=True)
            groups: list[list[int]] = []
            for (source, mine), found in zip(places.items(), surveys, strict=True):
                if found.error is not None:
                    made.update((place, _lost(found.error, source)) for place in mine)
                    watch.give_up(mine, found.error)
                else:
                    assert found.value is not None
                    groups += self._groups(mine, found.value, len(places))
            alone = self._batch(runner, row, groups, made, tries, watch, again=True)
            decision = runner.explain()
        if alone:
            with Runner(self._timed(1), observers=[watch]) as runner:
                self._batch(runner, row, alone, made, tries, watch, again=False)
        for place, first in twins.items():
            made[place] = made[first]
            watch.one(place, made[first].error is not None)
        watch.end()
        engine = ("", "") if decision is None else (decision.backend, decision.reason)
        return [
            _told(source, wanted, made[place], tries[place], *engine)
            for place, (source, wanted) in enumerate(row)
        ]

    def _batch(
        self,
        runner: Runner,
        row: Sequence[tuple[str, Wanted]],
        groups: list[list[int]],
        made: dict[int, Made],
        tries: Counter[int],
        watch: Watch,
        *,
        again: bool,
    ) -> list[list[int]]:
        """Run groups of variants; what they came to goes to `made`, and how often each has run to `tries`.

        :param again: a group that is lost as a whole is no failure of its members.
        :return: those, each in a group of its own.
        """
        watch.begin(groups)
        tasks = [
            Task(row[group[0]][0], tuple(row[place][1] for place in group), self._limit(len(group)))
            for group in groups
        ]
        alone: list[list[int]] = []
        for outcome in runner.stream(make_variants, tasks, ordered=False, isolate=True):
            group = groups[outcome.index]
            tries.update(dict.fromkeys(group, outcome.attempts))
            if outcome.error is None:
                assert outcome.value is not None
                made.update(zip(group, outcome.value, strict=True))
                watch.tell(group, outcome)
            elif again and len(group) > 1 and not isinstance(outcome.error, ItemCancelled):
                logger.warning("%d variants run again, each alone: %s", len(group), outcome.error)
                alone += [[place] for place in group]
            else:
                source = row[group[0]][0]
                made.update((place, _lost(outcome.error, source, outcome.seconds)) for place in group)
                watch.give_up(group, outcome.error)
        watch.begin([])
        return alone

    def _timed(self, largest: int) -> ParallelConfig:
        """The engine's own limit is one for all groups, the largest one's: it ends what hangs, where tasks
        cannot look at the clock themselves.

        :param largest: size that a group may have.
        """
        config = self._config
        return config if config.timeout is None else replace(config, timeout=self._limit(largest))

    def _limit(self, size: int) -> float | None:
        """Seconds that a group of this size has."""
        return None if self._timeout is None else self._timeout * size

    def _largest(self, places: Mapping[str, Sequence[int]]) -> int:
        each = math.ceil(self.max_workers / max(1, len(places)))
        return max((max(sizes(len(mine), each, MOST_TOGETHER)) for mine in places.values()), default=1)

    def _groups(self, places: Sequence[int], facts: Facts, inputs: int) -> Iterator[list[int]]:
        """The variants of one input, as they are made together.

        :param inputs: that share the workers.
        """
        most = together(facts.width * facts.height, self.max_workers, self.memory_bytes)
        left = iter(places)
        for size in sizes(len(places), math.ceil(self.max_workers / inputs), most):
            yield [next(left) for _ in range(size)]

    def resource_monitor(self) -> ResourceMonitor:
        """A context manager that looks at CPU and memory of this program and its workers, and at their peaks;
        leaving it collects what the block has left."""
        return ResourceMonitor()


def _twins(row: Sequence[tuple[str, Wanted]]) -> dict[int, int]:
    """The places of those that have come before, each with the first of its kind.

    :raises ConfigError: two different ones have one output.
    """
    firsts: dict[str, int] = {}
    twins = {}
    for place, (source, wanted) in enumerate(row):
        # Not where a link leads that stands there itself: what is written takes its place.
        path = os.path.join(os.path.realpath(wanted.output.parent), wanted.output.name)
        first = firsts.setdefault(path, place)
        if first == place:
            continue
        other, before = row[first]
        if os.path.realpath(other) != os.path.realpath(source) or before != wanted:
            raise ConfigError("is asked for twice", subject=path, cure="Give each output its own name.")
        twins[place] = first
    return twins


def _check(inputs: Sequence[str], count: int, strategy: str, seed: int, floor: float, format: str) -> None:
    from video.media.strategies import COUNTS

    if not inputs:
        raise ConfigError("there are no input files", cure="Give one at least.")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1000:
        raise ConfigError(f"the number of variants is {count!r}", cure="It takes 1 to 1000.")
    if not isinstance(strategy, str) or strategy not in COUNTS:
        raise ConfigError(f"is {strategy!r}", subject="strategy", cure=f"Use one of: {', '.join(COUNTS)}.")
    if not isinstance(seed, int):
        raise ConfigError(f"seed is {seed!r}", cure="It takes a whole number.")
    if not isinstance(floor, int | float) or not 0 < floor < 1:
        raise ConfigError(f"ssim_floor is {floor!r}", cure="It takes a number above 0 and below 1.")
    if format not in FORMATS:
        raise ConfigError(f"is {format!r}", subject="format", cure=f"Use one of: {', '.join(FORMATS)}.")


def _lost(error: BaseException, source: str, seconds: float = 0.0) -> Made:
    """What became of a variant whose task has failed."""
    from video.media.variants import Made

    _name(error, source)
    return Made(error=Problem.of(error), seconds=seconds)


def _name(error: BaseException | None, source: str) -> None:
    if isinstance(error, VideoError) and error.subject is None:
        error.subject = source  # a time limit or a dead worker does not know what it was about


def _told(
    source: str, wanted: Wanted, made: Made, attempts: int, backend: str, reason: str
) -> dict[str, Any]:
    return {
        "variant_id": wanted.output.stem,
        "status": "completed" if made.error is None else "failed",
        "processing_time": made.seconds,
        "file_size": made.bytes,
        "output_path": str(wanted.output),
        "input_path": source,
        "strategy": wanted.strategy,
        "seed": wanted.seed,
        "transformations": [one.as_dict() for one in made.chosen],
        "measures": made.measures,
        "attempts": attempts,
        "backend": backend,
        "reason": reason,
        "error": None if made.error is None else made.error.message,
        "error_type": None if made.error is None else made.error.type,
        "traceback": "" if made.error is None else made.error.traceback,
    }
