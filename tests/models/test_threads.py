"""The number of CPU threads, from the size of the model and the limits of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.pipeline import device as threads
from pivotune.pipeline.device import SMALL, cgroup_cores, choose_threads


def group(root: Path, own: str, **files: str) -> tuple[Path, Path]:
    """A folder of control groups with these files, and what /proc says of this process."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (root / "self").write_text(own, "utf-8")
    return root, root / "self"


def test_a_small_model_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "cgroup_cores", lambda: None)
    assert (choose_threads(SMALL - 1), choose_threads(SMALL)) == (1, 8)


@pytest.mark.parametrize(("limit", "expected"), [(2.5, 2), (0.5, 1), (64.0, 8)])
def test_a_container_limits_the_threads(monkeypatch: pytest.MonkeyPatch, limit: float, expected: int) -> None:
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "cgroup_cores", lambda: limit)
    assert choose_threads(SMALL) == expected


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    made = group(tmp_path, "0::/user/job\n", user__cpu_max="150000 100000\n", user__job__cpu_max="max 100000\n")
    assert cgroup_cores(*made) == 1.5


def test_limits_of_version_1(tmp_path: Path) -> None:
    files = {"cpu,cpuacct__job__cpu_cfs_quota_us": "300000\n", "cpu,cpuacct__job__cpu_cfs_period_us": "100000\n"}
    assert cgroup_cores(*group(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job\n", **files)) == 3.0


@pytest.mark.parametrize("text", ["max 100000", "junk", "-1 100000", "", "1 0", "5"])
def test_no_limit_where_none_is_set_or_it_cannot_be_read(tmp_path: Path, text: str) -> None:
    assert cgroup_cores(*group(tmp_path, "0::/\n", cpu_max=text)) is None
    assert cgroup_cores(tmp_path / "none", tmp_path / "none") is None
