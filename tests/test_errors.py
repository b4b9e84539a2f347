from __future__ import annotations

import inspect
import pickle

import pytest

from video import errors
from video.errors import VideoError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, VideoError)]


@pytest.mark.parametrize("kind", TREE)
def test_an_error_survives_pickling(kind: type[VideoError]) -> None:
    error = kind("is damaged", subject="a.mp4", cure="Download it again.")
    error.extra = 7  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "a.mp4: is damaged. Download it again."
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    "kind", [kind for kind in TREE if kind not in (VideoError, errors.TaskError, errors.MediaError)]
)
def test_an_error_is_also_a_built_in_kind(kind: type[VideoError]) -> None:
    builtin = {ValueError, LookupError, ImportError, RuntimeError, TypeError, OSError}
    assert any(issubclass(kind, one) for one in builtin)


@pytest.mark.parametrize("kind", TREE)
def test_the_tree_in_the_docstring_names_every_error(kind: type[VideoError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_message_without_subject_or_cure_is_just_the_cause() -> None:
    assert str(VideoError("all is lost")) == "all is lost"
