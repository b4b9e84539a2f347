from __future__ import annotations

import dataclasses

import pytest

from video.config import BackendType, ParallelConfig
from video.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_workers", 0),
        ("max_workers", True),
        ("max_workers", 2.0),
        ("chunk_size", -1),
        ("lookahead", 0),
        ("threads_per_worker", 0),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", "5"),
        ("backend", ""),
        ("backend", 3),
        ("use_uvloop", "yes"),
        ("start_method", "fork"),
        ("preload", "numpy"),
        ("preload", (1,)),
        ("cache_path", ""),
        ("cache_path", 3),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ParallelConfig(**{field: value})  # type: ignore[arg-type]


def test_the_promised_spellings_are_accepted() -> None:
    config = ParallelConfig(
        max_workers=16, chunk_size=1000, timeout=60.0, backend=BackendType.PROCESS, use_uvloop=True
    )
    assert config.backend == "process"


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParallelConfig().timeout = 3  # type: ignore[misc]


def test_a_mapping_of_strings_is_read_as_the_fields_types() -> None:
    config = ParallelConfig.from_mapping(
        {
            "max_workers": "4",
            "timeout": "2.5",
            "use_uvloop": "no",
            "preload": "av, numpy",
            "backend": "thread",
        }
    )
    assert config == ParallelConfig(
        max_workers=4, timeout=2.5, use_uvloop=False, preload=("av", "numpy"), backend="thread"
    )
    assert ParallelConfig.from_mapping({"max_workers": "auto"}).max_workers is None


def test_a_mistyped_setting_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match='Did you mean "max_workers"'):
        ParallelConfig.from_mapping({"max_worker": 2})


@pytest.mark.parametrize(
    ("name", "text"), [("max_workers", "two"), ("timeout", "soon"), ("use_uvloop", "maybe")]
)
def test_a_string_that_is_not_of_the_fields_type_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ParallelConfig.from_mapping({name: text})


def test_the_environment_sets_fields_and_nothing_else() -> None:
    environ = {
        "VIDEO_MAX_WORKERS": "3",
        "VIDEO_BACKEND": "thread",
        "VIDEO_OTHER": "x",
        "HOME": "/",
        "VIDEO_TIMEOUT": "",
    }
    assert ParallelConfig.from_env(environ) == ParallelConfig(max_workers=3, backend="thread")
