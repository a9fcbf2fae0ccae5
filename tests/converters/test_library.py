"""The commands from Python, as recipes/converting.md shows them."""

import ast
import inspect as source
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pivotune.converters import library
from pivotune.converters.tensor import RawTensor

GUIDE = (Path(__file__).resolve().parents[2] / "recipes" / "converting.md").read_text("utf-8")
EXAMPLE = re.search(r"```python\n(from pivotune import bundle.*?)```", GUIDE, re.S)[1]


@pytest.fixture
def files(saved, rows, lora, tmp_path, monkeypatch):
    """The files of the guide: an embedding of another program, and a LoRA with two embeddings in it."""
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch")
    embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 1}
    torch.save(embedding, "embedding.pt")
    saved("lora.safetensors", lora(768, cat={"clip_l": rows(2, 768)}, dog={"clip_l": rows(1, 768)}))


def test_the_guides_example_runs_and_does_what_it_says(files, same):
    exec(compile(EXAMPLE, "converting.md", "exec"), {})
    assert sorted(os.listdir("embeddings")) == ["comfyui", "diffusers"]
    assert sorted(os.listdir("apart")) == ["cat.safetensors", "dog.safetensors", "lora.safetensors"]
    before = {embedding.name: embedding.vectors for embedding in library.read("lora.safetensors").embeddings}
    (cat,) = library.read("both.safetensors").embeddings
    assert same(cat.vectors, before["cat"])


def test_embeddings_are_written_merged_and_renamed(files, tmp_path):
    (embedding,) = library.read("embedding.pt").embeddings
    (file,) = library.write([embedding], "onetrainer", tmp_path / "o", family="sd1")
    assert (file.path.name, file.trigger) == ("embedding.safetensors", "embedding")
    library.rename(file.path, "ring", "ring.safetensors")
    library.merge(["ring.safetensors", file.path], "all.safetensors")
    assert {embedding.name for embedding in library.read("all.safetensors").embeddings} == {"ring", "embedding"}


def test_what_fails_leaves_nothing_behind(files):
    Path("there.safetensors").write_bytes(b"mine")
    with pytest.raises(library.ConvertError, match="already exists"):
        library.rename("lora.safetensors", "cat=fox", "there.safetensors")
    with pytest.raises(library.ConvertError, match=r"must end in \.safetensors"):
        library.rename("lora.safetensors", "cat=fox", "embedding.pt")
    with pytest.raises(library.ConvertError, match="would be lost"):
        library.bundle("lora.safetensors", ["embedding.pt"], "out.safetensors", ["comfyui"], strict=True)
    with pytest.raises(library.ConvertError, match="'sd9' is not a family"):
        library.retarget("embedding.pt", "new", ["a1111"], family="sd9")
    assert Path("there.safetensors").read_bytes() == b"mine"
    assert sorted(os.listdir(".")) == ["embedding.pt", "lora.safetensors", "there.safetensors"]


def test_it_is_typed_documented_and_light(tmp_path, saved, rows):
    for name in set(library.__all__) - {"ConvertError", "Written"}:
        function = getattr(library, name)
        assert source.getdoc(function), name
        annotations = source.get_annotations(function)
        assert annotations.keys() == {*source.signature(function).parameters, "return"}, name
    saved("x.safetensors", {"emb_params": RawTensor("F32", (1, 768), bytes(rows(1, 768).data))})
    code = (
        "import sys; from pivotune.converters import library as l; l.inspect('x.safetensors'); "
        "l.retarget('x.safetensors', 'o', ['comfyui']); print([m for m in sys.modules if m in ('torch', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ast.literal_eval(done.stdout) == []
