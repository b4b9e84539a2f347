"""`FFmpegTransformationService`: variants of files in one call, and how many workers suit this machine."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from video import resources, scope
from video.config import ParallelConfig
from video.errors import ConfigError
from video.processors._memory import MEMORY_SHARE, USUAL_PIXELS, VARIANT
from video.processors._watch import Progress
from video.processors.variants import SSIM_FLOOR, VARIANT_SECONDS, VideoProcessingManager
from video.runner import Runner

START_SECONDS = 0.5
"""Until a worker has loaded FFmpeg and begins: one that saves less work than that is not worth its start."""
TRIED_SECONDS = 0.5
"""Of an input that is encoded to find out what a frame costs."""
ABOUT_AS_FAST = 1.05
"""Of two numbers of workers that differ by less, the smaller is recommended."""


class FFmpegTransformationService:
    """Makes variants of files. All of it can be called on the class as well as on an instance.

    >>> FFmpegTransformationService.create_multiple_variants_fast("in.mp4", "out/", 5)   # doctest: +SKIP
    """

    @classmethod
    def create_multiple_variants_fast(
        cls,
        input_path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        num_variants: int = 5,
        strategy: str = "standard",
        max_workers: int | None = None,
        progress_callback: Progress | None = None,
        *,
        seed: int = 0,
        ssim_floor: float = SSIM_FLOOR,
        format: str = "mp4",
        timeout: float | None = VARIANT_SECONDS,
        backend: str = "auto",
    ) -> list[dict[str, Any]]:
        """Variants of one file; arguments, results and errors are those of
        `VideoProcessingManager.process_variants_parallel`.

        :param max_workers: None: as many as the CPUs and the memory have room for.
        :param timeout: seconds for each variant.
        """
        manager = VideoProcessingManager(max_workers, backend=backend, timeout=timeout)
        return manager.process_variants_parallel(
            [input_path], output_dir, num_variants, strategy,
            seed=seed, progress_callback=progress_callback, ssim_floor=ssim_floor, format=format,
        )  # fmt: skip

    @classmethod
    def create_variants_batch_optimized(
        cls,
        input_files: Iterable[str | os.PathLike[str]],
        output_base_dir: str | os.PathLike[str],
        variants_per_file: int = 3,
        strategy: str = "standard",
        max_workers: int | None = None,
        *,
        progress_callback: Progress | None = None,
        seed: int = 0,
        ssim_floor: float = SSIM_FLOOR,
        format: str = "mp4",
        timeout: float | None = VARIANT_SECONDS,
        backend: str = "auto",
    ) -> list[dict[str, Any]]:
        """Variants of many files as one batch; all of them go to `output_base_dir`.

        :return: the dicts of all variants, in the order of the files (`input_path` says which).
        """
        manager = VideoProcessingManager(max_workers, backend=backend, timeout=timeout)
        return manager.process_variants_parallel(
            input_files, output_base_dir, variants_per_file, strategy,
            seed=seed, progress_callback=progress_callback, ssim_floor=ssim_floor, format=format,
        )  # fmt: skip

    @classmethod
    def benchmark_processing_speed(
        cls,
        input_path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        test_variants: int = 3,
    ) -> dict[str, Any]:
        """Make `test_variants` variants with one worker, two, four, and so on up to the CPUs, and time it.
        What is made goes again.

        :return: `recommended_workers`, `best_time` (seconds), `variants`, `input_path`, and `rows`: for each
            number of workers a dict of `workers`, `seconds` and `variants_per_minute`.
        :raises ConfigError: a variant failed, so that times would mean nothing.
        """
        most = max(1, min(resources.usable_cpus(), test_variants))
        counts = sorted({*(2**power for power in range(most.bit_length()) if 2**power < most), most})
        rows = []
        place = Path(output_dir)
        missing = list(itertools.takewhile(lambda one: not one.exists(), [place, *place.parents]))
        with contextlib.ExitStack() as stack:
            for one in reversed(missing):
                stack.callback(_remove_if_empty, one)
            folder = stack.enter_context(scope.unfinished(place / f".speed-{secrets.token_hex(4)}"))
            for count in counts:
                began = time.perf_counter()
                found = VideoProcessingManager(count).process_variants_parallel(
                    [input_path], folder / str(count), test_variants
                )
                seconds = time.perf_counter() - began
                failed = next((one["error"] for one in found if one["error"] is not None), None)
                if failed is not None:
                    raise ConfigError(f"cannot be timed: {failed}", subject=os.fspath(input_path))
                rows.append(
                    {
                        "workers": count,
                        "seconds": seconds,
                        "variants_per_minute": 60 * test_variants / seconds,
                    }
                )
        best = min(row["seconds"] for row in rows)
        recommended = next(row["workers"] for row in rows if row["seconds"] <= ABOUT_AS_FAST * best)
        return {
            "recommended_workers": recommended,
            "best_time": best,
            "variants": test_variants,
            "input_path": os.fspath(input_path),
            "rows": rows,
        }

    @classmethod
    def get_optimal_worker_count(
        cls, input_path: str | os.PathLike[str] | None = None, num_variants: int = 1
    ) -> int:
        """How many workers suit this machine: not more than usable CPUs, than fit into most of its free
        memory, or than there is work for.

        :param input_path: a video, of which half a second is encoded to find out what a frame costs; None: a
            long one of 720p is meant.
        :param num_variants: of it that are to be made.
        :raises ConfigError: `num_variants` is no whole number of at least 1.
        :raises SourceNotFound, SourceError, InvalidMedia, UnsupportedMedia: it cannot be used.
        """
        if not isinstance(num_variants, int) or num_variants < 1:
            raise ConfigError(f"num_variants is {num_variants!r}", cure="It takes 1 or more.")
        pixels, work = USUAL_PIXELS, math.inf
        if input_path is not None:
            with Runner(ParallelConfig(threads_per_worker=1, timeout=VARIANT_SECONDS)) as runner:
                (found,) = runner.map(seconds_of_a_variant, [os.path.abspath(input_path)], isolate=True)
            if found.error is not None:
                raise found.error
            assert found.value is not None
            pixels, work = found.value[0], found.value[1] * num_variants
        return worker_count(resources.usable_cpus(), MEMORY_SHARE * resources.free_memory(), pixels, work)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def worker_count(cpus: int, memory: float, pixels: int, work: float) -> int:
    """Workers for work that keeps a CPU busy; at least 1.

    :param memory: bytes that they may fill.
    :param pixels: of a picture.
    :param work: seconds that all of it takes one CPU.

    >>> worker_count(8, memory=1e9, pixels=1280 * 720, work=60.0)
    5
    """
    worth = max(1.0, work / START_SECONDS)
    return int(min(cpus, VARIANT.workers(memory, pixels), worth))


def seconds_of_a_variant(path: str) -> tuple[int, float]:
    """Pixels of a picture of a video, and the CPU seconds that a variant of it takes, found out in a worker
    by making the beginning of one."""
    from video.media import fuse, strategies
    from video.media.render import Output, render
    from video.media.variants import facts_of

    facts = facts_of(path)
    fused = fuse.fuse(strategies.choose("standard", facts, 0, 1), facts)
    with scope.unfinished(Path(tempfile.mkdtemp(prefix="video-tried-"))) as folder:
        output = Output(folder / "tried.mp4", fused.picture, fused.sound, fused.encoding)
        began = time.process_time()
        (result,) = render(path, [output], end=TRIED_SECONDS)
        spent = time.process_time() - began
    if isinstance(result, Exception):
        raise result
    return facts.width * facts.height, spent * facts.seconds / min(TRIED_SECONDS, facts.seconds)
