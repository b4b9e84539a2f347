"""The documentation cannot lag: its code runs, and its lists are complete."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from video import Clip, Encoded, ParallelConfig, VideoClipResponse, VideoEncodingResponse, registry
from video.cli import COMMANDS, cli
from video.testing import State
from video.testing.suite import MARKED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
ENVIRONMENT = dict(os.environ) | {"PYTHONPATH": str(ROOT)}


MEDIA = (ROOT / "docs" / "media.md").read_text("utf-8")
RESILIENCE = (ROOT / "docs" / "resilience.md").read_text("utf-8")


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_readmes_python_runs(number: int, samples: list[Path], tmp_path: Path) -> None:
    shutil.copy(samples[0], tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"broken")
    (tmp_path / "block.py").write_text(blocks("python")[number])
    out = run("block.py", cwd=tmp_path)
    assert out.count("\n") >= 2
    if number == 0:
        assert "a-01.mp4" in out
        assert "b.mp4 failed: " in out


@pytest.mark.parametrize("number", range(len(blocks("python", RESILIENCE))))
def test_the_recipes_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(blocks("python", RESILIENCE)[number])
    assert run("block.py", cwd=tmp_path).strip()


@pytest.mark.parametrize("number", range(len(blocks("python", GUIDE))))
def test_the_guides_python_runs(number: int, samples: list[Path], tmp_path: Path) -> None:
    shutil.copy(samples[0], tmp_path / "a.mp4")
    (tmp_path / "block.py").write_text(blocks("python", GUIDE)[number])
    assert run("block.py", cwd=tmp_path).strip()


@pytest.mark.parametrize("number", range(len(blocks("python", MEDIA))))
def test_the_python_about_media_runs(number: int, samples: list[Path], tmp_path: Path) -> None:
    shutil.copy(samples[0], tmp_path / "a.mp4")
    (tmp_path / "block.py").write_text(blocks("python", MEDIA)[number])
    assert run("block.py", cwd=tmp_path).strip()


def test_every_reason_to_encode_all_is_documented() -> None:
    """Those that a source gives; what a check finds wrong has a sentence of its own."""
    said = " ".join(MEDIA.split())
    for path in ("smart", "index", "splice", "edges", "nal", "encode"):
        text = (ROOT / "video" / "media" / f"{path}.py").read_text("utf-8")
        for reason in re.findall(r'(?:Unspliceable|as_exact)\(\s*f?"([^"]+)"', text):
            words = re.split(r"\{.*?\}|: ", reason)[0].strip()
            assert words in said or words.startswith("the check failed"), reason


def test_the_guide_names_every_setting_and_key() -> None:
    settings = GUIDE.split("## Settings")[1].split("\n## ")[0]
    for field in dataclasses.fields(ParallelConfig):
        assert re.search(rf"^\| .*`{field.name}`.* \|", settings, re.MULTILINE), field.name
    keys = " ".join(name for name in VideoClipResponse.model_fields if name != "request")
    inner = f"clips[{' '.join(Clip.model_fields)}]"
    assert keys.replace("clips", inner) in GUIDE


def test_the_text_about_encoding_names_every_key() -> None:
    keys = " ".join(name for name in VideoEncodingResponse.model_fields if name != "request")
    inner = f"outputs[{' '.join(Encoded.model_fields)}]"
    assert keys.replace("outputs", inner) in (ROOT / "docs" / "encoding.md").read_text("utf-8")


def test_the_readme_has_exactly_two_set_up_commands_and_ci_runs_both() -> None:
    section = README.split("## Set up")[1].split("\n## ")[0]
    commands = [line.split("#")[0].strip() for line in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    tests = 'pip install -e ".[dev]" && pytest -n 2 --dist loadfile'
    assert commands == ["pip install . && video demo", tests]
    ci = (ROOT / ".ci" / "run").read_text()
    assert '".[dev]" && pytest -n 2 --dist loadfile' in ci
    assert "video" in ci
    assert "demo" in ci


def test_the_readmes_table_has_every_engine() -> None:
    table = README.split("## Engines")[1]
    for name in registry.backends.builtin:
        assert f"| `{name}` |" in table


def test_every_option_that_the_readme_shows_exists() -> None:
    for block in blocks("sh") + blocks("sh", GUIDE):
        for line in block.splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["video"]:
                command = cli.get_command(click.Context(cli), words[1])
                assert command is not None, line
                options = {option for parameter in command.params for option in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= options, line


def test_every_command_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert all(f"`{name}`" in changelog or f"`video {name}`" in changelog for name in COMMANDS)


def test_every_developer_command_is_documented() -> None:
    tasks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poe"]["tasks"]
    contributing = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    assert all(f"`poe {name}`" in contributing for name in tasks)


def test_every_room_is_in_the_architecture() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rooms = {path.stem for path in (ROOT / "video").iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert all(f"`{room}`" in architecture or f"`{room}/`" in architecture for room in rooms)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENGINE = ROOT / "examples" / "custom_backend.py"
each = pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path != ENGINE], ids=lambda path: path.stem
)


@each
def test_every_example_runs(path: Path, samples: list[Path], tmp_path: Path) -> None:
    takes = re.search(r"^python examples/\w+\.py(.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert takes is not None
    words = [samples[0], 2.5, 5][: 3 if "2.5 5" in takes[1] else 1] if takes[1] else []
    assert run(path, *words, cwd=tmp_path).strip()


@pytest.mark.slow
@each
def test_every_example_runs_on_a_video_of_its_own(path: Path, tmp_path: Path) -> None:
    assert run(path, cwd=tmp_path).strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_named_in_the_readme(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 40
    assert f"`{path.stem}`" in README.split("## More")[1]


def test_the_example_of_an_engine_runs_and_keeps_the_contract(tmp_path: Path) -> None:
    first, *lines = run(ENGINE, cwd=tmp_path).splitlines()
    assert first.endswith(" s")
    assert len(lines) == len(MARKED)
    assert [line for line in lines if State.BROKEN in line.split()] == []
