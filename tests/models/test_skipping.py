"""Layers that no prompt needs are not computed, and the states of prompts are the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from projects import BUILD, family_name
from tiny_llm import tiny_klein

from pivotune.converters.families import families
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.skipping import skip_unused

CASES = {"flux2-klein-4b": 28, "flux2-dev": 31, "hunyuan-video": 3}  # layers that are needed


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_layers_after_the_last_used_state_are_not_computed(name: str) -> None:
    family = families()[family_name(name)]
    pipe: Any = tiny_klein(layers=36) if name == "flux2-klein-4b" else BUILD[name]()
    encode, encoder = DENOISERS[family.denoiser_kind].encode, pipe.text_encoder
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    before = encode(pipe, ["a red ring"]).states
    skip_unused(encoder, family.encoders[0].last_state)
    computed: Counter[str] = Counter()
    for layer in encoder.get_decoder().layers:
        layer.mlp.register_forward_hook(lambda *_: computed.update(["layer"]))
    assert torch.equal(encode(pipe, ["a red ring"]).states, before)
    assert computed["layer"] == CASES[name]


@torch.no_grad()
def test_the_head_of_a_language_model_makes_no_logits_and_keeps_its_weights() -> None:
    pipe = tiny_klein()
    keys = pipe.text_encoder.state_dict().keys()
    skip_unused(pipe.text_encoder, None)
    output = pipe.text_encoder(input_ids=torch.tensor([[1, 2, 3]]))
    assert output.logits.shape == (1, 3, 0)
    assert pipe.text_encoder.state_dict().keys() == keys


def test_buffers_and_weights_that_a_model_keeps_in_float32_stay_so(tmp_path) -> None:
    """In bfloat16 rotary positions would be rounded, and Wan's time embedding."""
    from pivotune.pipeline.models.load import load_model
    from pivotune.pipeline.recipe.model import ModelSpec

    for name, part, names in (
        ("wan", "transformer", ["condition_embedder.time_embedder.linear_1.weight"]),
        ("z-image", "text_encoder", ["rotary_emb.inv_freq"]),
    ):
        BUILD[name]().save_pretrained(tmp_path / name)
        model = load_model(ModelSpec(str(tmp_path / name), name, "bfloat16", None, None, None), torch.device("cpu"))
        module = getattr(model.pipe, part)
        found = dict(module.named_parameters()) | dict(module.named_buffers())
        assert {found[one].dtype for one in names} == {torch.float32}
        assert torch.bfloat16 in {one.dtype for one in module.parameters()}
