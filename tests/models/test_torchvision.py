"""A torchvision that cannot be imported is as if it were absent: check and run go through, in fresh processes."""

import os
import subprocess
import sys

import pytest
from projects import make_project

from pivotune.converters.families import families
from pivotune.pipeline import effnet, torchvision_problem
from pivotune.pipeline.models.modular import package_problem

BROKEN = {
    "ImportError": "libjpeg.so.8: cannot open shared object file",
    "RuntimeError": "operator torchvision::nms does not exist",
}


def broken_torchvision(folder, error):
    (folder / "torchvision").mkdir(parents=True)
    text = f"import torchvision.ops\nraise {error}({BROKEN[error]!r})\n"
    (folder / "torchvision" / "__init__.py").write_text(text, "utf-8")
    (folder / "torchvision" / "ops.py").write_text("", "utf-8")


@pytest.fixture
def own_modules(monkeypatch):
    """The state of torchvision's modules is that from before the test when it ends."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    del sys.modules["torchvision"]
    monkeypatch.setattr(torchvision_problem, "_reason", "")


@pytest.mark.parametrize("error", BROKEN)
def test_check_and_run_with_a_broken_torchvision(tmp_path, error):
    recipe = make_project(tmp_path, export="targets = []")
    broken_torchvision(tmp_path / "path", error)
    paths = [str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    for command in (["check", str(recipe)], ["run", str(recipe), "--out", str(tmp_path / "run")]):
        done = subprocess.run(
            [sys.executable, "-m", "pivotune", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("error", BROKEN)
def test_the_reason_is_kept_for_models_that_need_it(tmp_path, monkeypatch, own_modules, error):
    broken_torchvision(tmp_path, error)
    monkeypatch.syspath_prepend(tmp_path)
    torchvision_problem.hide_broken_torchvision()
    torchvision_problem.hide_broken_torchvision()
    assert not any(name.startswith("torchvision.") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        __import__("torchvision")
    assert torchvision_problem.hidden_because() == BROKEN[error]
    assert f"torchvision cannot be imported ({BROKEN[error]})" in str(effnet.torchvision_problem())
    expected = f"Anima needs torchvision, which cannot be imported ({BROKEN[error]}); install the one for your torch"
    assert package_problem(families()["anima"], None) == expected


def test_a_sound_torchvision_stays(tmp_path, monkeypatch, own_modules):
    (tmp_path / "torchvision.py").write_text("sound = True\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    torchvision_problem.hide_broken_torchvision()
    assert sys.modules["torchvision"].sound
    assert torchvision_problem.hidden_because() == ""
