"""Sample videos: different scenes, motion, sound with a quiet stretch, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests.media_files import heard
from video import scope
from video.errors import ConfigError, ItemCancelled, OutputError
from video.media.sample import FPS, write_sample

SMALL = {"seconds": 3.0, "size": (64, 36)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("samples")
    return [write_sample(folder, index, **SMALL) for index in range(4)]


def luma(path: Path) -> np.ndarray:
    """(frames, height, width)"""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(int)


def test_four_videos_have_the_asked_length_and_size(samples: list[Path]) -> None:
    assert [path.name for path in samples] == ["coast.mp4", "city.mp4", "fair.mp4", "space.mp4"]
    for path in samples:
        assert luma(path).shape == (3 * FPS, 36, 64)
        with av.open(str(path)) as container:
            assert container.streams.audio[0].codec_context.name == "aac"


def test_every_frame_moves_and_some_cut_hard(samples: list[Path]) -> None:
    for path in samples:
        steps = np.abs(np.diff(luma(path), axis=0)).mean((1, 2))
        assert np.median(steps) > 0
        assert (steps > 20).sum() >= 3


def test_each_video_looks_different(samples: list[Path]) -> None:
    means = np.stack([luma(path).mean(0) for path in samples])
    for one in range(4):
        for other in range(one):
            assert np.abs(means[one] - means[other]).mean() > 10


def test_loud_and_all_but_silent_stretches_are_heard(samples: list[Path]) -> None:
    for path in samples:
        _, sound = heard(path)
        blocks = sound[: len(sound) // 4800 * 4800].reshape(-1, 4800)
        levels = 20 * np.log10(np.sqrt((blocks**2).mean(1)) + 1e-9)
        assert levels.max() - levels.min() > 25
        assert np.abs(sound).max() <= 1


def test_a_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    one, same, other = (
        write_sample(tmp_path / name, 1, seed=seed, **SMALL) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


def test_a_fifth_video_has_a_name_and_pictures_of_its_own(samples: list[Path], tmp_path: Path) -> None:
    fifth = write_sample(tmp_path, 4, **SMALL)
    assert fifth.name == "coast-2.mp4"
    assert np.abs(luma(fifth) - luma(samples[0])).mean() > 5


def test_progress_rises_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "REPORT_SECONDS", 0)
    shares: list[float] = []
    with scope.entered(scope.Slot(listener=lambda share, _: shares.append(share))):
        write_sample(tmp_path, seconds=1, size=(32, 32))
    assert shares == sorted(shares)
    assert len(shares) == FPS
    assert shares[-1] == 1


def test_cancelling_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "REPORT_SECONDS", 0)

    def cancel_midway(share: float, _: str) -> None:
        if share > 0.5:
            slot.cancelled.set()

    slot = scope.Slot(listener=cancel_midway)
    with scope.entered(slot), pytest.raises(ItemCancelled):
        write_sample(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_sample(tmp_path / "file", **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [{"index": -1}, {"size": (63, 36)}, {"size": (16, 16)}, {"seconds": 0.1}, {"seconds": float("nan")}],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        write_sample(tmp_path, **wrong)
