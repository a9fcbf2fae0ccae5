"""FLUX.2 dev has a processor as its tokenizer: only the tokenizer in it is loaded, which needs no torchvision."""

from __future__ import annotations

import json

import torch
from tiny_llm import tiny_flux2

from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.model import ModelSpec


def test_the_tokenizer_of_a_processor_is_loaded_with_its_template(tmp_path):
    pipe = tiny_flux2()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (tmp_path / "model_index.json").write_text(json.dumps(index), "utf-8")
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    (tmp_path / "tokenizer" / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    model = load_model(ModelSpec(str(tmp_path), "flux2-dev", "float32", None, None, None), torch.device("cpu"))
    assert model.pipe.tokenizer.chat_template
    encode = DENOISERS["flux2_transformer"].encode
    pipe.text_encoder.eval()
    with torch.no_grad():
        found, wanted = (encode(one, ["a red ring"]).states for one in (model.pipe, pipe))
    torch.testing.assert_close(found, wanted)
