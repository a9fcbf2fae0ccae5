"""LoRA files that we bundled and unbundled, in the loaders that others wrote: diffusers and LyCORIS."""

import pytest
import torch
from tiny import tiny_sd2

from pivotune.pipeline.tensors import to_raw

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_" + ATTENTION.replace(".", "_")


@pytest.fixture
def weights():
    """Tensors of a LoRA for one layer of the tiny model, in kohya's names."""
    torch.manual_seed(3)
    made = {"lora_down.weight": torch.randn(4, 32), "lora_up.weight": torch.randn(16, 4), "alpha": torch.tensor(2.0)}
    return {f"{KOHYA}.{name}": tensor for name, tensor in made.items()}


@pytest.fixture
def files(run, saved, rows, weights):
    """The LoRA with an embedding in it, and split again."""
    saved("plain.safetensors", {name: to_raw(tensor) for name, tensor in weights.items()})
    saved("embedding.safetensors", {"emb_params": rows(2, 1024)})
    for command in (
        ("bundle", "plain.safetensors", "embedding.safetensors", "--out", "both.safetensors", "--family", "sd2"),
        ("unbundle", "both.safetensors", "--out", "apart", "--family", "sd2"),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.exception
    return "both.safetensors", "apart/both.safetensors"


def test_diffusers_refuses_a_lora_with_embeddings_and_loads_it_without(files, weights):
    pipe = tiny_sd2()
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights(".", weight_name=files[0], local_files_only=True)
    pipe.load_lora_weights("apart", weight_name="both.safetensors", local_files_only=True, adapter_name="mine")
    layer = pipe.unet.get_submodule(ATTENTION)
    assert torch.equal(layer.lora_A["mine"].weight, weights[f"{KOHYA}.lora_down.weight"])
    assert torch.equal(layer.lora_B["mine"].weight, weights[f"{KOHYA}.lora_up.weight"])
    assert layer.scaling["mine"] == 2 / 4


def test_lycoris_loads_a_lora_with_embeddings_and_without(files, weights):
    """Through the loader that kohya's sd-scripts take for `network_module = "lycoris.kohya"`."""
    kohya = pytest.importorskip("lycoris.kohya", reason="pip install lycoris-lora")
    only = {"enable_conv": False, "unet_target_module": ["Transformer2DModel"], "unet_target_name": []}
    kohya.LycorisNetworkKohya.apply_preset(only)
    for file in files:
        network, _ = kohya.create_network_from_weights(1.0, file, None, None, tiny_sd2().unet)
        (module,) = network.unet_loras
        assert torch.equal(module.lora_down.weight, weights[f"{KOHYA}.lora_down.weight"])
        assert torch.equal(module.lora_up.weight, weights[f"{KOHYA}.lora_up.weight"])
        assert module.scale == 2 / 4
