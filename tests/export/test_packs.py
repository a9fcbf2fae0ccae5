"""Embeddings exported together: programs that can use such files do; split gives the files each embedding would have
had.
"""

import json
import runpy

import pytest
from click.testing import CliRunner
from projects import make_project, run_project

from pivotune.converters.errors import ConvertError
from pivotune.converters.programs import programs
from pivotune.converters.read import own_embeddings, read
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.cli.convert import split
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export import packs
from pivotune.pipeline.recipe.load import load_recipe

MORE = "".join(
    f'[[embedding]]\nplaceholder = "{name}"\ninitial_text = "blue"\nstop_after = "2 own steps"\n'
    for name in ("dog", "a red bird")
)
CAPTIONS = "a photo of <cat>, dog and a red bird"
EXPORT = 'targets = ["a1111", "diffusers"]\n'


def project(folder, family="sd1", export=EXPORT, **parts):
    folder.mkdir(exist_ok=True)
    return make_project(folder, family, captions=CAPTIONS, more=MORE, export=export, **parts)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_packs_are_used_by_their_programs_and_split_into_the_files_of_each_embedding(tmp_path, family):
    recipe = project(tmp_path / "p", family)
    each = run_project(load_recipe(recipe, ['export.targets=["a1111", "comfyui"]']), tmp_path / "each").folder
    run = run_project(load_recipe(recipe, ["export.files='pack'", "export.pack_size=2"]), tmp_path / "run").folder
    plain = run / "exports/tiny_embeddings"
    assert sorted(files(plain)) == ["tiny_embeddings-0001.safetensors", "tiny_embeddings-0002.safetensors"]
    out = tmp_path / "apart"
    result = CliRunner().invoke(split, [str(plain), "--out", str(out), "--for", "a1111", "--for", "comfyui"])
    assert result.exit_code == 0, result.output
    assert files(out) == {name: data for name, data in files(each / "exports").items() if "tiny_emb" not in name}
    script = run / "exports/diffusers/load.py"
    assert str(tmp_path) not in script.read_text("utf-8")
    runpy.run_path(str(script))
    assert (script.parent / "try.png").is_file()
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    rows = [row for row in manifest["artefacts"] if row["kind"] == "pack"]
    assert len(rows) == (8 if family == "sdxl" else 6) == manifest["proofs"]["exports_verified"]
    assert {row["program"]: row["embeddings"] for row in rows if "0002" in row["path"]}["a1111"] == ["a red bird"]
    assert manifest["proofs"]["embeddings"] == {"declared": 3, "exported": 3, "verified": 3}
    how_to = (run / "exports/a1111/HOW-TO.txt").read_text("utf-8")
    put = "Put tiny_embeddings-0001.safetensors into models/Lora and type  <lora:tiny_embeddings-0001:1> <cat>"
    assert f"2 embeddings, <cat> to dog: {put}" in how_to


def test_one_file_has_all_embeddings_and_each_its_own_metadata(tmp_path):
    recipe = load_recipe(project(tmp_path), ["export.files='one'", "export.targets=[]", "samples.prompts=['dog']"])
    run = run_project(recipe, tmp_path / "run").folder
    found = read(run / "exports/tiny_embeddings/tiny_embeddings.safetensors")
    assert [embedding.name for embedding in own_embeddings(found)] == [
        "<cat>",
        "a red bird",
        "dog",
    ]  # in the order of the file
    assert {embedding.metadata["pivotune.initial_text"] for embedding in own_embeddings(found)} == {"red ring", "blue"}
    assert sorted(files(run / "exports")) == ["tiny_embeddings/tiny_embeddings.safetensors"]


def test_with_a_lora_embeddings_are_bundled_or_separate(tmp_path):
    recipe = project(tmp_path, train="lora = { rank = 2 }", export='files = "one"\ntargets = ["a1111", "sdnext"]')
    run = run_project(recipe, tmp_path / "run").folder
    found = sorted(name for name in files(run / "exports") if "/" in name)
    assert found == ["a1111/tiny.safetensors", "sdnext/tiny.safetensors", "tiny_embeddings/tiny_embeddings.safetensors"]
    assert check_errors(recipe, ["export.bundle=false"]) == ["SD.Next"]


def check_errors(recipe, overrides):
    """The programs of which the check says that packs are nothing for them."""
    found = [problem.text for problem in check_recipe(recipe, overrides).problems if problem.severity == "error"]
    assert all("pivotune split --for" in text for text in found)
    return [text.partition(" loads one embedding")[0] for text in found]


def test_packs_for_programs_without_packs_are_refused(tmp_path):
    recipe = project(tmp_path)
    titles = {name: program.title for name, program in programs().items() if "sd1" in program.layouts}
    every = json.dumps(list(titles))
    for files in ("one", "pack"):
        refused = check_errors(recipe, [f"export.files='{files}'", f"export.targets={every}"])
        assert set(refused) == set(titles.values()) - {titles["a1111"], titles["diffusers"]}
    assert check_errors(recipe, [f"export.targets={every}"]) == []


def test_a_dot_is_refused_where_the_pack_is_for_a1111(tmp_path):
    recipe = project(tmp_path)
    recipe.write_text(recipe.read_text("utf-8").replace('"dog"', '"mr. dog"'), "utf-8")
    for overrides, count in (([], 0), (["export.files='one'"], 1), (["export.files='one'", "export.targets=[]"], 0)):
        found = [one.text for one in check_recipe(recipe, overrides).problems if "has a dot" in one.text]
        assert len(found) == count


def test_a_pack_that_its_program_reads_differently_is_refused(tmp_path, monkeypatch):
    recipe = load_recipe(project(tmp_path), ["export.files='one'"])
    monkeypatch.setattr(packs, "reads_lora", lambda *_: packs.reads("a1111", *_[1:]))
    with pytest.raises((ConvertError, StageError), match="tiny_embeddings"):
        run_project(recipe, tmp_path / "run")
    assert not list((tmp_path / "run/exports/a1111").glob("*.safetensors"))
