"""A renamed embedding is what its user types: the file is called like it, and where it is not, a warning says so."""

import json
import os

import pytest

from pivotune.converters import safetensors_file
from pivotune.converters.read import read

METADATA = {"pivotune.embedding": "cat", "note": "kept"}


def listed(path="."):
    return sorted(os.listdir(path))


def typed(run, path):
    programs = json.loads(run("inspect", path, "--json").output)["programs"]
    return {name: verdict["prompt"] for name, verdict in programs.items()}


def test_the_file_is_named_after_the_embedding_in_the_same_folder(run, rows, saved):
    saved("cat.safetensors", {"emb_params": rows(1, 768)}, METADATA)
    result = run("rename", "cat.safetensors", "new-name")
    assert result.output.startswith(
        "new-name.safetensors  type: new-name (a1111, forge, forge-neo, sdnext, kohya, reforge), embedding:new-"
    )
    assert listed() == ["cat.safetensors", "new-name.safetensors"]
    assert safetensors_file.read("new-name.safetensors")[1] == {"note": "kept", "pivotune.embedding": "new-name"}
    prompts = typed(run, "new-name.safetensors")
    assert (prompts["a1111"], prompts["comfyui"], prompts["invokeai"]) == (
        "new-name",
        "embedding:new-name",
        "<new-name>",
    )
    assert "already exists" in str(run("rename", "cat.safetensors", "new-name").exception)


@pytest.mark.parametrize(
    ("name", "file"), [("<kitty>", "kitty"), ("a.b/../c", "a.b_.._c"), ("AND", "AND_"), ("(x:1.2)", "x_1.2")]
)
def test_out_may_be_a_folder_and_the_name_is_made_safe(name, file, run, rows, saved):
    saved("cat.safetensors", {"emb_params": rows(1, 768)}, METADATA)
    assert run("rename", "cat.safetensors", name, "--out", "new/folder.v2").exit_code == 0
    assert listed("new/folder.v2") == [f"{file}.safetensors"]
    assert [embedding.name for embedding in read(f"new/folder.v2/{file}.safetensors").embeddings] == [name]


def test_the_prompt_of_each_program_for_another_file_name_is_printed(run, rows, saved):
    saved("cat.safetensors", {"emb_params": rows(1, 768)}, METADATA)
    result = run("rename", "cat.safetensors", "new-name", "--out", "other.safetensors", "--json")
    [file] = json.loads(result.output)["written"]
    prompts = typed(run, "other.safetensors")
    assert file["prompts"] == {name: prompt for name, prompt in prompts.items() if prompt}
    assert (file["prompts"]["a1111"], file["prompts"]["comfyui"]) == ("other", "embedding:other")


def test_programs_in_which_the_name_cannot_be_typed_are_named(run, rows, saved):
    saved("cat.safetensors", {"emb_params": rows(1, 768)})
    result = run("rename", "cat.safetensors", "my cat")
    assert result.exit_code == 0
    assert (
        "prompts of ComfyUI, kohya sd-scripts, SwarmUI, Draw Things cannot contain the name of this file"
        in result.stderr
    )
    assert "my cat (a1111, forge, forge-neo, sdnext, reforge), <my cat> (invokeai)" in result.stdout
    assert "something would be lost" in str(run("rename", "cat.safetensors", "a cat", "--strict").exception)
    assert "--out FILE" in str(run("rename", "cat.safetensors", "<>").exception)
    assert listed() == ["cat.safetensors", "my cat.safetensors"]


def test_a_lora_keeps_its_file_name_and_is_changed_in_place_only_if_asked(run, rows, saved, lora):
    saved("l.safetensors", lora(768, cat={"clip_l": rows(2, 768)}, dog={"clip_l": rows(2, 768)}))
    result = run("rename", "l.safetensors", "fox")
    assert "has 2 embeddings; choose one with OLD=NEW: 'cat', 'dog'" in str(result.exception)
    assert "already exists" in str(run("rename", "l.safetensors", "cat=fox").exception)
    assert "type: <lora:l:1> fox dog (a1111, sdnext)" in run("rename", "l.safetensors", "cat=fox", "--out", "o").output
    before = read("l.safetensors").embeddings[0].vectors["clip_l"].data.tobytes()
    assert run("rename", "l.safetensors", "cat=fox", "--overwrite").exit_code == 0
    after = {
        embedding.name: embedding.vectors["clip_l"].data.tobytes() for embedding in read("l.safetensors").embeddings
    }
    assert after["fox"] == before
    assert listed() == ["l.safetensors", "o"]


def test_both_files_of_an_sdxl_embedding_for_diffusers_are_renamed(run, rows, saved):
    saved("cat.safetensors", {"<cat>": rows(2, 768)})
    saved("cat_2.safetensors", {"<cat>": rows(2, 1280)})
    assert run("rename", "cat.safetensors", "<fox>").exit_code == 0
    assert listed() == ["cat.safetensors", "cat_2.safetensors", "fox.safetensors", "fox_2.safetensors"]
    assert [list(safetensors_file.read(path)[0]) for path in listed()[2:]] == [["<fox>"], ["<fox>"]]
