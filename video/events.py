"""What a batch tells whoever watches it: one frozen event, plain callables as observers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

logger = logging.getLogger("video")


class Kind(StrEnum):
    BATCH_STARTED = "batch_started"
    ITEM_PROGRESS = "item_progress"
    ITEM_FINISHED = "item_finished"
    ITEM_FAILED = "item_failed"
    ITEMS_RERUN = "items_rerun"
    BREAKER_CHANGED = "breaker_changed"
    RATE_CHANGED = "rate_changed"
    MEMORY_PRESSED = "memory_pressed"
    """A worker process was ended for the memory limit's sake."""
    SPOT_CHECK_DIFFERED = "spot_check_differed"
    ENGINE_CHOSEN = "engine_chosen"
    ENGINE_REPLACED = "engine_replaced"
    BATCH_FINISHED = "batch_finished"


@dataclass(frozen=True, slots=True)
class Event:
    """One change in a batch. Fields that do not apply are None."""

    kind: Kind
    backend: str
    total: int | None = None
    """Items in the batch, where the input has a length."""
    workers: int | None = None
    index: int | None = None
    seconds: float | None = None
    """Wall time: of the item in its worker, or of the whole batch."""
    fraction: float | None = None
    """Share of an item's work that is done, 0 to 1, as its task reports it."""
    error: BaseException | None = None
    message: str = ""
    values: tuple[Any, Any] | None = None
    """Of a spot check: what the engine gave, and what the caller's own process gave."""
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a finished batch: what each policy of its runner has counted by now, by name."""
    at: float = field(default_factory=time.time)
    """Seconds since the epoch."""


Observer = Callable[[Event], None]
"""Called in the thread that advances the batch, and with `ITEM_PROGRESS` in others at the same time."""


def emit(observers: Iterable[Observer], event: Event) -> None:
    """Tell every observer; one that raises is logged and can break nothing."""
    for observer in observers:
        try:
            observer(event)
        except Exception:  # an observer must never break a batch
            logger.exception("observer %r failed on %s", observer, event.kind)
