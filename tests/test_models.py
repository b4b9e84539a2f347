from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from video.models import Clip, Problem, VideoClipRequest, VideoClipResponse

KEYS = ["source", "success", "error", "clips", "seconds", "attempts", "backend", "reason"]
CLIP_KEYS = ["path", "start", "end", "score", "reasons", "width", "height", "frames", "bytes"]
CLIP_KEYS += ["mode", "reason", "spans"]


def a_response() -> VideoClipResponse:
    clip = Clip(
        path=Path("a-01.mp4"),
        start=1,
        end=2,
        score=0.5,
        reasons=["loud"],
        width=2,
        height=2,
        frames=9,
        bytes=7,
    )
    problem = Problem(type="ValueError", message="bad", traceback="Traceback ...")
    return VideoClipResponse(
        source="a.mp4", success=False, error=problem, clips=[clip], seconds=1.5, backend="thread",
        request=VideoClipRequest(source="a.mp4"),
    )  # fmt: skip


def test_the_two_spellings_are_one_field() -> None:
    one = VideoClipRequest(youtube_url="https://example.org/v", language="en", max_clip_length=60)
    two = VideoClipRequest(source="https://example.org/v", language="en", max_clip_length=60)
    assert one == two
    assert one.youtube_url == one.source == "https://example.org/v"


def test_a_path_is_a_source() -> None:
    assert VideoClipRequest(source=Path("a") / "b.mp4").source == str(Path("a") / "b.mp4")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"source": ""},
        {"source": "a", "count": 0},
        {"source": "a", "max_clip_length": 0},
        {"source": "a", "max_clip_length": float("inf")},
        {"source": "a", "min_clip_length": float("nan")},
        {"source": "a", "min_clip_length": 9, "max_clip_length": 3},
        {"source": "a", "mode": "smartest"},
        {"source": "a", "format": "exe"},
        {"source": "a", "max_clip_lenght": 9},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VideoClipRequest(**fields)  # type: ignore[arg-type]


def test_a_short_maximum_alone_lowers_the_minimum() -> None:
    assert VideoClipRequest(source="a", max_clip_length=1).min_clip_length == 1


def test_json_keys_are_stable() -> None:
    dumped = a_response().model_dump(mode="json")
    assert list(dumped) == KEYS
    assert list(dumped["clips"][0]) == CLIP_KEYS
    assert list(dumped["error"]) == ["type", "message", "traceback"]


def test_json_goes_both_ways() -> None:
    response, request = a_response(), VideoClipRequest(source="ä.mp4", count=7, mode="copy")
    assert VideoClipResponse.model_validate_json(response.model_dump_json()) == response
    assert VideoClipRequest.model_validate_json(request.model_dump_json()) == request


def test_a_problem_keeps_type_message_and_traceback() -> None:
    try:
        raise ValueError("no such thing")
    except ValueError as error:
        problem = Problem.of(error)
    assert (problem.type, problem.message) == ("ValueError", "no such thing")
    assert "test_models.py" in problem.traceback
