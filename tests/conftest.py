from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from video.media.sample import write_sample

SHARED = Path(__file__).resolve().parents[2] / "shared" / "media"


def pytest_configure(config: pytest.Config) -> None:
    """What tests and their programs remember goes to a folder of its own, never to the user's."""
    folder = tempfile.TemporaryDirectory(prefix="video-cache-")
    os.environ["VIDEO_CACHE_DIR"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small videos of 9 s with scenes and sound; read only."""
    folder = tmp_path_factory.mktemp("samples")
    return [write_sample(folder, index, seconds=9, size=(160, 90)) for index in range(2)]


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """An empty current folder."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def shared(name: str) -> Path:
    """A natural video; skips the test where the folder of them is absent."""
    if not (SHARED / name).exists():
        pytest.skip(f"{name} of the shared media folder is not here")
    return SHARED / name


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
