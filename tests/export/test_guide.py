"""The lines for diffusers name what a user can load: a hub id, a folder, or a single file."""

from dataclasses import replace
from pathlib import Path

import pytest

from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.converters.write import Written
from pivotune.pipeline.export.guide import Files, guide_text
from pivotune.pipeline.export.script import Base, diffusers_lines
from pivotune.pipeline.recipe.model import ModelSpec


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


def test_quotes_in_names_do_not_break_out():
    text = diffusers_lines(families()["sdxl"], files(), Base(spec(base="x/y'); import os; ('"), Path("x")))
    assert not any(line.strip().startswith("import os") for line in text.splitlines())
    compile(text, "load.py", "exec")


def test_the_guide_says_where_and_what_to_type():
    text = guide_text(programs()["comfyui"], files("../run.safetensors"))
    assert "models/embeddings" in text
    assert "models/loras" in text


def test_a_bundle_says_what_to_type():
    text = guide_text(programs()["a1111"], Files({}, "run.safetensors", ("<my cat>", "dog")))
    assert "type  <lora:run:1> <my cat> dog" in text
