"""The house rules on imports, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "video"

FLOORS = [
    ["errors", "outcome", "events", "resources", "scope"],
    ["config", "models", "registry"],
    ["backends", "policies", "sources", "media", "telemetry"],
    [
        "dedup",
        "plan",
        "selector",
        "profiles",
        "calibrate",
        "measure",
        "gate",
        "reducer",
        "spot",
        "relief",
        "batch",
        "auto",
        "engines",
        "runner",
        "bench",
    ],
    ["processors"],
    ["__init__", "futures", "testing", "demo", "cli", "web", "__main__"],
]
"""From the ground up. A module may import from floors below its own, and on its own floor from modules to
its left; families (folders) of one floor never import each other."""

FAMILIES = {"backends", "policies", "sources", "media", "telemetry", "processors"}


def place(room: str) -> tuple[int, int]:
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor, rooms.index(room)
    raise AssertionError(f"video/{room} stands on no floor: add it to FLOORS")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) for each import of our own package, lazy ones too; type-only ones are left out."""
    found = []
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full here"
            if node.module == "video":
                found += [(f"video.{alias.name}", node.lineno) for alias in node.names]
            elif node.module:
                found.append((node.module, node.lineno))
    return [(name, line) for name, line in found if name.split(".")[0] == "video"]


def arrows() -> list[tuple[str, str, str]]:
    every = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        every += [(parts[0], room_of(name), f"{path}:{line} imports {name}") for name, line in imports(path)]
    return every


def test_every_room_stands_on_a_floor() -> None:
    for path in ROOT.iterdir():
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py"))):
            place(path.stem)


def test_imports_point_only_downward() -> None:
    wrong = []
    for here, there, words in arrows():
        if here == there:
            continue
        (floor, left), (other_floor, other_left) = place(here), place(there)
        same_floor_families = floor == other_floor and (here in FAMILIES or there in FAMILIES)
        if (other_floor, other_left) >= (floor, left) or same_floor_families:
            wrong.append(words)
    assert not wrong, "\n".join(wrong)


def test_the_rule_finds_an_upward_arrow() -> None:
    assert place("errors") < place("config") < place("media") < place("runner") < place("cli")
    assert any(there == "errors" for _, there, _ in arrows()), "the walk over the trees finds nothing"


HEAVY = ("av", "numpy", "joblib", "dask", "numba", "pydantic", "PIL", "httpx2", "click", "rich", "asyncio")


def test_import_video_is_light() -> None:
    """`import video` loads no heavy package."""
    code = "import sys, video; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout.split() == []


def test_import_video_takes_under_100_ms() -> None:
    """The best of several tries, since the machine may be busy."""
    code = "import time; t = time.perf_counter(); import video; print(time.perf_counter() - t)"
    tries = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout)
        for _ in range(5)
    ]
    assert min(tries) < 0.1


def test_every_public_name_can_be_had() -> None:
    import video

    assert sorted(video.__all__) == sorted(video._HOMES)
    for name in video.__all__:
        assert getattr(video, name).__name__ == name
        assert name in dir(video)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import video

    with pytest.raises(AttributeError, match="NoSuchThing"):
        video.NoSuchThing  # noqa: B018
