"""A run's LoRA with embeddings in it serves the commands like any other: it says of its embeddings what their own files
do.
"""

import json
from functools import partial
from pathlib import Path

import projects
import pytest
from click.testing import CliRunner
from projects import make_project, run_project
from tiny import tiny_sd2

from pivotune.converters.inspection import inspect
from pivotune.pipeline.cli.convert import COMMANDS

MORE = '[[embedding]]\nplaceholder = "a dog"\ninitial_text = "blue"\n'
EXPORT = 'targets = ["a1111", "onetrainer"]\n'


def called(command, *args):
    result = CliRunner().invoke(COMMANDS[command], [str(arg) for arg in args])
    assert result.exit_code == 0, result.exception or result.output


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd2-as-wide-as-real-ones", "sdxl"])
def test_a_bundle_of_a_run_is_inspected_unbundled_and_bundled_again(tmp_path, family, monkeypatch):
    monkeypatch.setitem(projects.BUILD, "sd2-as-wide-as-real-ones", partial(tiny_sd2, width=1024))
    recipe = make_project(
        tmp_path, family, captions="a photo of <cat> and a dog", more=MORE, export=EXPORT, train="lora = { rank = 2 }"
    )
    family = family.partition("-")[0]
    exports = run_project(recipe, tmp_path / "run").folder / "exports"
    bundle, own = exports / "a1111/tiny.safetensors", exports / "onetrainer"
    facts, alone = inspect(bundle), inspect(exports / "tiny_embeddings/cat.safetensors")
    assert (facts["family"], facts["programs"]["a1111"]["loads"]) == (family, "yes")
    assert alone["family"] == family
    assert facts["embeddings"][0] == {**alone["embeddings"][0], "name": "<cat>"}
    assert json.loads(facts["metadata"]["pivotune.embeddings"])["a dog"]["pivotune.initial_text"] == "blue"

    apart, other = tmp_path / "apart", tmp_path / "other"
    called("unbundle", bundle, "--out", apart, "--for", "onetrainer")
    called("retarget", bundle, "--out", other, "--for", "onetrainer", "--family", family)
    embeddings = [Path("cat.safetensors"), Path("a dog.safetensors")]
    for embedding in embeddings:
        exported = (own / embedding).read_bytes()
        assert (apart / embedding).read_bytes() == (other / embedding).read_bytes() == exported
    again = tmp_path / "again.safetensors"
    called("bundle", apart / "tiny.safetensors", *(apart / embedding for embedding in embeddings), "--out", again)
    assert again.read_bytes() == bundle.read_bytes()
