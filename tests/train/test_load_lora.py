"""A LoRA that was loaded from a file equals the trained one."""

import pytest
import torch
from tiny import tiny_pixart

from pivotune.converters.families import families
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export.lora_layouts import peft
from pivotune.pipeline.recipe.options import LoraOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.tensors import from_raw, to_raw
from pivotune.pipeline.train.lora import add_lora, has_lora, load_lora, lora_tensors, remove_lora

LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def answer(pipe) -> torch.Tensor:
    states = torch.ones(1, 3, 32)
    with torch.no_grad():
        return pipe.transformer(
            LATENTS, encoder_hidden_states=states, encoder_attention_mask=torch.ones(1, 3), timestep=torch.tensor([5]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
def test_a_loaded_lora_predicts_the_same_as_the_trained_one(dora: bool) -> None:
    pipe = tiny_pixart()
    plain = answer(pipe)
    options = options_of(LoraOptions, rank=3, alpha=2.0, dora=dora, targets="attention+feed-forward")
    for name, parameter in add_lora("denoiser", pipe.transformer, options, 0).items():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    trained = answer(pipe)
    tensors = {name: to_raw(one) for name, one in lora_tensors(pipe.transformer, "lora_transformer").items()}
    remove_lora(pipe.transformer)
    assert torch.equal(answer(pipe), plain)
    named = {name: from_raw(raw) for name, raw in peft(tensors, families()["pixart"], pipe).items()}
    load_lora(pipe.transformer, {name.removeprefix("transformer."): one for name, one in named.items()})
    torch.testing.assert_close(answer(pipe), trained, rtol=1e-5, atol=1e-5)
    assert (trained - plain).abs().max() > 1e-3
    remove_lora(pipe.transformer)
    assert not has_lora(pipe.transformer)
    assert torch.equal(answer(pipe), plain)


def test_a_lora_for_other_layers_is_an_error() -> None:
    pipe = tiny_pixart()
    with pytest.raises((StageError, ValueError), match="no_such_layer"):
        load_lora(pipe.transformer, {"no_such_layer.lora_A.weight": torch.ones(2, 24)})
