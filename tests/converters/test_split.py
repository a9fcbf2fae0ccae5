"""Files of many embeddings split again: bit for bit, no two on one file, all or none."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from pivotune.converters import safetensors_file
from pivotune.converters.atomic import batch
from pivotune.converters.embedding import Contents, Embedding
from pivotune.converters.embeddings import ConvertOptions
from pivotune.converters.operations import split
from pivotune.converters.read import own_embeddings, read
from pivotune.converters.tensor import RawTensor
from pivotune.converters.write import write_contents
from pivotune.pipeline.cli.convert import COMMANDS

MANY = 10_000


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("split", "pack.safetensors", …) in a folder of its own; gives click's result."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(COMMANDS[args[0]], [str(arg) for arg in args[1:]])


def sdxl(name, rows, **metadata):
    return Embedding(name, {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}, metadata)


def packed(path, embeddings, dialect="bundle"):
    with batch() as files:
        write_contents(files, Path(path), Contents(tuple(embeddings)), dialect)


def names(folder):
    return sorted(os.listdir(folder))


def test_ten_thousand_embeddings_are_unchanged(tmp_path):
    embeddings = [
        Embedding(f"<thing {n}>", {"clip_l": RawTensor("F32", (1, 768), n.to_bytes(4, "little") * 768)}, {"of": f"{n}"})
        for n in range(1, MANY + 1)
    ]
    packed(tmp_path / "pack.safetensors", embeddings)
    with batch() as files:
        written = split(
            files, [tmp_path / "pack.safetensors"], tmp_path / "apart", ("comfyui",), ConvertOptions(family="sd1")
        )
    assert len(written) == len(names(tmp_path / "apart")) == MANY
    for embedding, item in zip(
        sorted(embeddings, key=lambda one: f"bundle_emb.{one.name}.clip_l"), written, strict=True
    ):
        tensors, metadata = safetensors_file.read(item.path)
        assert bytes(tensors["emb_params"].data) == embedding.vectors["clip_l"].data
        assert (metadata["pivotune.embedding"], metadata["of"]) == (embedding.name, embedding.metadata["of"])


def test_split_and_merge_are_inverse(run, rows, same):
    embeddings = [sdxl("<cat>", rows, note="1"), sdxl("mr. smith", rows), sdxl("<dog>", rows, note="2")]
    packed("pack.safetensors", embeddings)
    result = run("split", "pack.safetensors", "--out", "apart")
    assert result.exit_code == 0, result.output
    assert names("apart") == ["cat.safetensors", "dog.safetensors", "mr._smith.safetensors"]
    for embedding, name in zip(embeddings, ("cat", "mr._smith", "dog"), strict=True):
        own = read(Path("apart") / f"{name}.safetensors")
        assert same(own.embeddings[0].vectors, embedding.vectors)
        assert own.embeddings[0].name == embedding.name
    os.remove("apart/mr._smith.safetensors")  # a dot: no bundle for A1111 can have it
    assert run("merge", "apart", "--out", "again.safetensors").exit_code == 0
    after = own_embeddings(read("again.safetensors"))
    assert {embedding.name: embedding.metadata.get("note") for embedding in after} == {"<cat>": "1", "<dog>": "2"}
    assert all(
        same(embedding.vectors, next(w for w in embeddings if w.name == embedding.name).vectors) for embedding in after
    )


def test_names_that_would_share_a_file_are_distinguished_over_all_packs(run, rows):
    packed("a.safetensors", [sdxl("<cat>", rows), sdxl("Cat", rows)])
    packed("b.safetensors", [sdxl("cat", rows)])
    assert run("split", "a.safetensors", "b.safetensors", "--out", "apart").exit_code == 0
    found = {read(path).embeddings[0].name for path in Path("apart").iterdir()}
    assert found == {"<cat>", "Cat", "cat"}
    assert len({name.casefold() for name in names("apart")}) == 3


def test_an_embedding_in_two_packs_is_refused_and_nothing_is_written(run, rows):
    packed("a.safetensors", [sdxl("<cat>", rows), sdxl("<dog>", rows)])
    packed("b.safetensors", [sdxl("<cat>", rows)])
    result = run("split", "a.safetensors", "b.safetensors", "--out", "apart")
    assert result.exit_code == 1
    assert "b.safetensors: has an embedding '<cat>', and so has a.safetensors" in str(result.exception)
    assert not os.path.exists("apart")


def test_each_program_gets_a_folder_and_dry_run_writes_nothing(run, rows):
    packed("pack.safetensors", [sdxl("<cat>", rows), sdxl("<dog>", rows)])
    asked = ("split", "pack.safetensors", "--out", "apart", "--for", "a1111", "--for", "diffusers")
    assert run(*asked, "--dry-run").exit_code == 0
    assert names(".") == ["pack.safetensors"]
    made = json.loads(run(*asked, "--json").output)["written"]
    assert len(made) == 6
    assert names("apart/diffusers") == ["cat.safetensors", "cat_2.safetensors", "dog.safetensors", "dog_2.safetensors"]
    assert run(*asked).exit_code == 1  # they are there now


def test_split_refuses_a_lora_with_embeddings(run, rows, saved):
    saved("lora.safetensors", {"lora_unet_x.lora_down.weight": rows(4, 768), "bundle_emb.cat.clip_l": rows(1, 768)})
    result = run("split", "lora.safetensors", "--out", "apart")
    assert result.exit_code == 1
    assert "unbundle" in str(result.exception)


def test_halves_of_many_embeddings_are_joined(run, rows, same):
    embeddings = [sdxl("<cat>", rows, note="1"), sdxl("<dog>", rows, note="2")]
    os.mkdir("packs")
    for key, name in (("clip_l", "packs/w.safetensors"), ("clip_g", "packs/w_2.safetensors")):
        packed(name, [Embedding(w.name, {key: w.vectors[key]}, w.metadata) for w in embeddings], "diffusers")
    for given, out in (("packs/w.safetensors", "one"), ("packs", "folder")):
        result = run("split", given, "--out", out, "--for", "comfyui")
        assert result.exit_code == 0, result.output
    for embedding in embeddings:
        own = read(f"folder/{embedding.name.strip('<>')}.safetensors").embeddings[0]
        assert same(own.vectors, embedding.vectors)
        assert own.metadata["note"] == embedding.metadata["note"]
        assert Path("one", f"{embedding.name.strip('<>')}.safetensors").is_file()
