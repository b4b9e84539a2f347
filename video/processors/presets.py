"""Processors with settings that suit most batches."""

from __future__ import annotations

from typing import Any

from video.config import ParallelConfig
from video.errors import ConfigError
from video.processors.clip import VideoClipProcessor

ITEM_SECONDS = 1800.0
"""No clip job of an ordinary video takes half an hour; one that does has hung."""


def create_high_performance_processor(**settings: Any) -> VideoClipProcessor:
    """A clip processor on all usable CPUs, in worker processes, with a limit of 30 minutes a video.

    :param settings: any field of `ParallelConfig`, in place of the preset's; `enable_gc` stands for
        `enable_garbage_collection`.
    :raises ConfigError: for a setting that does not exist, or a value that does not fit.
    """
    if "enable_gc" in settings:
        if "enable_garbage_collection" in settings:
            raise ConfigError(
                "enable_gc and enable_garbage_collection are both set", cure="They are the same: set one."
            )
        settings["enable_garbage_collection"] = settings.pop("enable_gc")
    return VideoClipProcessor(ParallelConfig.from_mapping({"timeout": ITEM_SECONDS, **settings}))
