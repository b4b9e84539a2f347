"""What the system lets this process use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from video import resources


def machine(root: Path, cgroup: str, **files: str) -> str:
    """A root folder with this /proc/self/cgroup and these files below /sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_there_is_at_least_one_cpu() -> None:
    assert 1 <= resources.usable_cpus() <= (os.cpu_count() or 1)


def test_a_quota_of_version_2_counts_even_where_a_parent_has_it(tmp_path: Path) -> None:
    files = {"a__cpu.max": "150000 100000\n", "a__b__cpu.max": "max 100000\n"}
    assert resources._cgroup_quota(machine(tmp_path, "0::/a/b\n", **files)) == 1.5


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    files = {"cpu__x__cpu.cfs_quota_us": "50000\n", "cpu__x__cpu.cfs_period_us": "100000\n"}
    assert resources._cgroup_quota(machine(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n", **files)) == 0.5


def test_no_limit_and_no_control_groups_are_no_quota(tmp_path: Path) -> None:
    files = {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}
    assert resources._cgroup_quota(machine(tmp_path / "one", "3:cpu:/\n0::/\n", **files)) is None
    assert resources._cgroup_quota(str(tmp_path / "none")) is None


MEMINFO = "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 80 kB\n"
STAT = "anon 5\ninactive_file 3000\nactive_file 2000\ntotal_inactive_file 30\ntotal_active_file 20\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "free", "usable"),
    [
        pytest.param("0::/\n", {}, 80 * 1024, 100 * 1024, id="no limit"),
        pytest.param(
            "0::/user/job\n",
            {
                "user__memory.max": "50000\n",
                "user__memory.current": "30000\n",
                "user__memory.stat": STAT,
                "user__job__memory.max": "max\n",
            },
            25_000,
            50_000,
            id="version 2, of a group above",
        ),
        pytest.param(
            "4:memory:/docker/a\n0::/\n",
            {
                "memory__docker__a__memory.limit_in_bytes": "40000\n",
                "memory__docker__a__memory.usage_in_bytes": "30000\n",
                "memory__docker__a__memory.stat": STAT,
                "memory__memory.limit_in_bytes": f"{2**63 - 4096}\n",
            },
            10_050,
            40_000,
            id="version 1",
        ),
        pytest.param(
            "0::/elsewhere\n",
            {"memory.max": "70000\n", "memory.current": "69000\n", "memory.stat": STAT},
            6_000,
            70_000,
            id="a container that sees its own group as the top",
        ),
        pytest.param("0::/\n", {"memory.max": "many\n"}, 80 * 1024, 100 * 1024, id="no number"),
    ],
)
def test_memory_is_what_the_control_groups_leave_and_files_that_can_be_dropped_are_free(
    tmp_path: Path, cgroup: str, files: dict[str, str], free: int, usable: int
) -> None:
    root = machine(tmp_path, cgroup, **files)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    assert resources.free_memory(root) == free
    assert resources.usable_memory(root) == usable


def test_a_quota_lowers_the_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_cgroup_quota", lambda: 0.2)
    resources._quota_lately.cache_clear()
    assert resources.usable_cpus() == 1
