"""The lines for diffusers name what a user can load: a hub id, a folder, or a single file."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.converters.write import Written
from pivotune.pipeline.export.guide import Files, guide_text
from pivotune.pipeline.export.packs import Pack
from pivotune.pipeline.export.script import BY_HAND, Base, diffusers_lines
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.text import fits_only


def spec(**changes):
    return replace(ModelSpec("base", "sdxl", "float32", None, None, None), **changes)


def files(lora=None, bundled=()):
    one = Written(Path("diffusers/my-cat.safetensors"), "diffusers", "diffusers", "<my cat>")
    two = Written(Path("diffusers/my-cat_2.safetensors"), "diffusers", "diffusers", "<my cat>")
    return Files({"<my cat>": (one, two)}, lora, bundled)


def test_a_hub_model_is_loaded_by_its_id():
    text = diffusers_lines(
        families()["sdxl"],
        files("../run.safetensors"),
        Base(spec(base="someone/some-model", variant="fp16"), Path("x")),
    )
    compile(text, "load.py", "exec")
    assert "from_pretrained('someone/some-model', variant='fp16', dtype=torch.float32)" in text
    assert "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2" in text
    assert "load_lora_weights(here / '..', weight_name='run.safetensors')" in text


@pytest.mark.parametrize("config", [None, "a/folder"])
def test_a_single_file_is_loaded_as_one(tmp_path, config):
    (tmp_path / "model.safetensors").touch()
    text = diffusers_lines(
        families()["sdxl"],
        files(),
        Base(spec(base=str(tmp_path / "model.safetensors"), config=config), tmp_path / "run/exports"),
    )
    compile(text, "load.py", "exec")
    assert "from_single_file(str(here / '../../model.safetensors')" in text
    assert str(tmp_path) not in text
    assert ("config='a/folder'" in text) == (config is not None)


def test_quotes_in_names_are_escaped():
    text = diffusers_lines(families()["sdxl"], files(), Base(spec(base="x/y'); import os; ('"), Path("x")))
    assert not any(line.strip().startswith("import os") for line in text.splitlines())
    compile(text, "load.py", "exec")


def test_load_py_packs_lower_case_names_with_several_vectors(tmp_path):
    """diffusers expands a token of several vectors in prompts only without upper-case letters."""
    stored = {"<tokA>": [[0.0], [1.0]], "<TokB>": [[2.0]], "<tokc>": [[3.0], [4.0]]}
    file = Written(tmp_path / "pack.safetensors", "diffusers", "diffusers", "<toka>")
    pack = Pack((file,), tuple(stored), ("clip_l",))
    text = diffusers_lines(families()["sd1"], Files({}, None, packs=(pack,)), Base(spec(base="x"), tmp_path))
    lines = text.splitlines()
    block = lines[lines.index(next(line for line in lines if line.startswith("embeddings = "))) :]
    loaded = []
    pipe = SimpleNamespace(
        text_encoder="encoder",
        tokenizer="tokenizer",
        load_textual_inversion=lambda states, **parts: loaded.append((states, parts)),
    )
    exec("\n".join(block[: block.index(")") + 1]), {"load_file": lambda _: stored, "here": tmp_path, "pipe": pipe})
    ((states, parts),) = loaded
    assert [name for state in states for name in state] == ["<toka>", "<TokB>", "<tokc>"]
    assert [vectors for state in states for vectors in state.values()] == list(stored.values())
    assert parts == {"text_encoder": "encoder", "tokenizer": "tokenizer"}
    assert "pipe(prompt='a photo of <toka>')" in text


def test_the_guide_names_folders_and_triggers():
    text = guide_text(programs()["comfyui"], files("../run.safetensors"))
    assert "Put my-cat.safetensors and my-cat_2.safetensors into models/embeddings and type  <my cat>" in text
    assert "Put ../run.safetensors into models/loras and choose it in a Load LoRA node." in text


def test_the_guide_of_a_bundle_names_triggers_and_standalone_files():
    alone = {"<my cat>": ("../run_embeddings/my cat.safetensors", "my cat")}
    bundled = Files({}, "run.safetensors", ("<my cat>", "dog"), alone=alone, fits="They fit little.", lost=["half"])
    assert (
        guide_text(programs()["a1111"], bundled)
        == """\
AUTOMATIC1111 web UI
They fit little.

The LoRA with bundled embeddings:
Put run.safetensors into models/Lora and type  <lora:run:1> <my cat> dog
The embeddings work while <lora:…> is in the prompt.
  note: half

The embeddings without the LoRA:
Put ../run_embeddings/my cat.safetensors into embeddings and type  my cat  (for <my cat>)
"""
    )


@pytest.mark.parametrize("program", programs())
def test_each_program_has_sentences_that_name_the_file_once(program):
    how = programs()[program].how
    assert {"embedding", "lora", "model"} <= how.keys() <= {"embedding", "lora", "model", "folder"}
    whole = Files(
        {"cat": (Written(Path("cat.safetensors"), program, "kohya", "cat!"),)}, "run.safetensors",
        model_file="../run_model.safetensors", model_folder="../run_model",
    )  # fmt: skip
    lines = guide_text(programs()[program], whole).splitlines()
    assert [sum(name in line for line in lines) for name in (" cat.safe", " run.safe", "cat!")] == [1, 1, 1]
    assert not any("{" in line or "any;" in line or "into import" in line for line in lines)
    for one, two in pairwise(lines):
        assert one or two  # no two empty lines


@pytest.mark.parametrize(("base", "says"), [("micro", "the micro model that ships"), ("a/tiny", "fit only tiny:")])
def test_files_of_a_small_model_say_that_they_fit_no_other(base, says):
    family = families()["sd1"]
    assert says in fits_only(base, family, {"clip_l": 96})
    assert fits_only(base, family, family.widths) == ""


def test_load_py_finds_placeholders_as_training_does():
    names: dict = {}
    exec("import re\n" + BY_HAND, names)
    tokenizer = names["WithEmbeddings"](None, {"cat": "[1]", "<my cat>": "[2]"})
    assert tokenizer.replaced("a category of Cat, my_cat, cats, <MY  cat>x") == "a category of [1], my_cat, cats, [2]x"
