"""Names lead to strings, strings to imports on first use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from video.errors import BackendUnavailable, ConfigError, MissingDependency, SourceError, UnknownName
from video.registry import Registry, backends, sources


def table(group: str = "video.test", **builtin: tuple[str, str | None]) -> Registry:
    return Registry("backend", group, builtin, BackendUnavailable)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a real distribution: a module, its metadata and its entry points, on `sys.path`."""

    def install(name: str, code: str, points: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[video.test]\n{points}\n")
        monkeypatch.syspath_prepend(str(site))

    yield install
    for module in [m for m in sys.modules if m.startswith("plugin_")]:
        del sys.modules[module]


def test_importing_the_registry_loads_no_entry_points_and_no_family():
    code = (
        "import sys, video.registry as r; r.sources.get('local');"
        "print([m for m in ('importlib.metadata', 'httpx2', 'yt_dlp', 'av', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_built_in_names_are_there():
    assert backends.names()[:6] == ["serial", "thread", "process", "joblib", "dask", "async"]
    assert sources.names()[:3] == ["local", "http", "ytdlp"]


def test_a_name_gives_what_its_string_points_to():
    assert table(x=("collections:OrderedDict.fromkeys", None)).get("x") is not None


def test_an_unknown_name_lists_what_there_is_and_the_nearest():
    with pytest.raises(UnknownName) as caught:
        table(serial=("a:b", None), process=("a:b", None)).get("proces")
    assert "serial, process" in str(caught.value)
    assert "Did you mean 'process'?" in str(caught.value)


def test_a_missing_dependency_says_the_line_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "plugin_needy.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependency) as caught:
        table(x=("plugin_needy:X", "download")).get("x")
    assert 'pip install "parallel-video[download]"' in str(caught.value)


def test_a_hole_in_the_package_itself_is_no_missing_dependency():
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        table(x=("video.no_such_family:X", "download")).get("x")


def test_a_missing_attribute_is_said():
    with pytest.raises(BackendUnavailable, match="no_such_thing"):
        table(x=("json:no_such_thing", None)).get("x")


def test_registered_objects_and_strings_are_found_and_may_be_registered_again():
    registry = table()
    registry.register("mine", dict)
    registry.register("mine", list)
    registry.register("text", "json:dumps")
    assert registry.get("mine") is list
    assert registry.get("text")(1) == "1"
    assert registry.names() == ["mine", "text"]


def test_a_built_in_cannot_be_replaced():
    with pytest.raises(ConfigError, match="built in"):
        backends.register("serial", dict)


def test_a_string_of_another_form_is_refused_at_once():
    with pytest.raises(ConfigError, match="module:Attribute"):
        table().register("x", "json.dumps")


def test_a_plugin_of_another_distribution_is_found_by_its_entry_point(distribution):
    distribution("plugin_good", "class Ray: pass", "ray = plugin_good:Ray")
    registry = table(serial=("json:dumps", None))
    assert registry.names() == ["serial", "ray"]
    assert "plugin_good" not in sys.modules
    assert registry.get("ray").__module__ == "plugin_good"


def test_a_broken_plugin_is_an_error_only_for_who_asks_for_it(distribution):
    distribution("plugin_bad", "1 / 0", "bad = plugin_bad:X")
    registry = table(good=("json:dumps", None))
    assert registry.names() == ["good", "bad"]
    assert registry.why_unavailable("good") is None
    assert "plugin_bad 1.0" in registry.why_unavailable("bad")
    with pytest.raises(BackendUnavailable, match="ZeroDivisionError"):
        registry.get("bad")


def test_a_plugin_that_lacks_a_package_names_it_without_guessing_what_to_install(distribution):
    distribution("plugin_lame", "import no_such_module_anywhere", "lame = plugin_lame:X")
    with pytest.raises(MissingDependency, match="needs no_such_module_anywhere") as caught:
        table().get("lame")
    assert "pip install" not in str(caught.value)


def test_a_plugin_under_a_built_in_name_is_ignored_aloud(distribution):
    distribution("plugin_thief", "class X: pass", "serial = plugin_thief:X")
    registry = table(serial=("json:dumps", None))
    with pytest.warns(RuntimeWarning, match="plugin_thief"):
        assert registry.names() == ["serial"]
    assert registry.get("serial")(1) == "1"


def test_why_unavailable_tells_an_unknown_name_too():
    assert "none of that name" in sources.why_unavailable("htp")
    assert "Did you mean 'http'?" in sources.why_unavailable("htp")


def test_a_source_that_cannot_be_loaded_is_a_source_error():
    registry = Registry("source", "video.test", {"x": ("json:nothing", None)}, SourceError)
    with pytest.raises(SourceError):
        registry.get("x")
