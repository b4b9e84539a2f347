"""Runs batches of video jobs in parallel, on whichever engine suits them, and loses none of them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # a worker process starts faster without typing
    from typing import Any

    from video.config import BackendType, ParallelConfig
    from video.dedup import HashBasedDeduplicator, MediaDeduplicationStats
    from video.futures import ParallelExecutor, executor
    from video.models import (
        Clip,
        Encoded,
        VideoClipRequest,
        VideoClipResponse,
        VideoEncodingRequest,
        VideoEncodingResponse,
    )
    from video.outcome import Outcome
    from video.policies.checkpoint import Checkpoint
    from video.policies.rate import DistributedRateLimiter
    from video.processors.clip import VideoClipProcessor
    from video.processors.encoding import VideoEncodingProcessor
    from video.processors.presets import create_high_performance_processor
    from video.processors.service import FFmpegTransformationService
    from video.processors.transformations import ConcurrentTransformationEngine
    from video.processors.variants import VideoProcessingManager
    from video.registry import register_backend
    from video.runner import Runner

__version__ = "0.1.0"

_HOMES = {
    "BackendType": "video.config",
    "Clip": "video.models",
    "Checkpoint": "video.policies.checkpoint",
    "ConcurrentTransformationEngine": "video.processors.transformations",
    "DistributedRateLimiter": "video.policies.rate",
    "Encoded": "video.models",
    "FFmpegTransformationService": "video.processors.service",
    "HashBasedDeduplicator": "video.dedup",
    "MediaDeduplicationStats": "video.dedup",
    "Outcome": "video.outcome",
    "ParallelExecutor": "video.futures",
    "ParallelConfig": "video.config",
    "Runner": "video.runner",
    "VideoClipProcessor": "video.processors.clip",
    "VideoClipRequest": "video.models",
    "VideoClipResponse": "video.models",
    "VideoEncodingProcessor": "video.processors.encoding",
    "VideoEncodingRequest": "video.models",
    "VideoEncodingResponse": "video.models",
    "VideoProcessingManager": "video.processors.variants",
    "create_high_performance_processor": "video.processors.presets",
    "executor": "video.futures",
    "register_backend": "video.registry",
}
"""Where each public name lives; imported on first use, so that `import video` stays light."""

__all__ = [
    "BackendType",
    "Checkpoint",
    "Clip",
    "ConcurrentTransformationEngine",
    "DistributedRateLimiter",
    "Encoded",
    "FFmpegTransformationService",
    "HashBasedDeduplicator",
    "MediaDeduplicationStats",
    "Outcome",
    "ParallelConfig",
    "ParallelExecutor",
    "Runner",
    "VideoClipProcessor",
    "VideoClipRequest",
    "VideoClipResponse",
    "VideoEncodingProcessor",
    "VideoEncodingRequest",
    "VideoEncodingResponse",
    "VideoProcessingManager",
    "create_high_performance_processor",
    "executor",
    "register_backend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'video' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
