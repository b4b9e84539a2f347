"""What a person sees of a batch."""

from __future__ import annotations

import io

from rich.console import Console

from video.events import Event, Kind
from video.telemetry.progress import ProgressBars


def test_a_batch_is_never_more_than_all_done_though_what_was_given_up_still_reports() -> None:
    bars = ProgressBars("videos", ["a", "b"], Console(file=io.StringIO(), force_terminal=True))
    for kind, index, fraction in [
        (Kind.ITEM_PROGRESS, 0, 0.5),
        (Kind.ITEM_FAILED, 0, None),
        (Kind.ITEM_PROGRESS, 0, 0.6),
        (Kind.ITEM_PROGRESS, 1, 1.5),
        (Kind.ITEM_FINISHED, 1, None),
        (Kind.ITEM_FINISHED, 1, None),
        (Kind.ITEM_PROGRESS, 1, 1.0),
    ]:
        bars(Event(kind, "thread", index=index, fraction=fraction))
        assert bars._progress.tasks[0].completed <= 2
    (batch,) = bars._progress.tasks  # and no row of an item
    assert batch.completed == 2
    assert batch.fields["state"] == "2/2, [red]1 failed[/red]"


def test_the_next_batch_begins_at_nothing() -> None:
    bars = ProgressBars("sizes", ["a"], Console(file=io.StringIO(), force_terminal=True))
    bars(Event(Kind.ITEM_FINISHED, "thread", index=0))
    bars.begin("videos", ["a", "b"])
    bars(Event(Kind.ITEM_PROGRESS, "thread", index=0, fraction=0.5))
    assert (bars._progress.tasks[0].completed, bars._progress.tasks[0].total) == (0.5, 2)
