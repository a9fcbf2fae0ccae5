"""Goal 6: what embeddings cost beside a LoRA: the real SDXL counted without weights, a reduced one timed in turn.

Where the LoRA is alone its captions are encoded once and kept, as the trainer does it; with embeddings both text
encoders run forward and backward in every step, and the U-Net's gradient reaches the text.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import Row, in_fresh_process, in_turn, ratios
from rows_flops import count, flash_attention
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 9
MODES = ("LoRA + embeddings", "LoRA")
LENGTH = 77
# hidden size, layers, heads: of SDXL's two encoders, and of two that are to the U-Net below as those to SDXL's
REAL = ((768, 12, 12), (1280, 32, 20))
REDUCED = ((128, 2, 2), (256, 4, 4))
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 128, 256), "transformer_layers_per_block": (1, 2, 6), "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 384, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 64, "projection_class_embeddings_input_dim": 256 + 6 * 64,
}  # fmt: skip
RECIPE = """
name = "beside"
device = "cpu"
[model]
base = "reduced"
family = "sdxl"
[[concept]]
images = {images}
[[embedding]]
placeholder = "<my-emblem>"
tokens = 4
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = 100
lora = {{ rank = 16 }}
[data]
cache_latents = "memory"
"""


def rows() -> list[Row]:
    found: Any = in_fresh_process("rows_lora.py", keep_pages=True)
    share = found["encoders, reduced"] / found["steps, reduced"]
    of = "LoRA + embeddings, SDXL"
    return [
        Row(f"{of}: FLOPs, with both encoders", "<= 1.03 of a LoRA alone (text kept)", 1.03, [found["flops"]]),
        Row(f"{of}, reduced (encoders {share:.1%} of its FLOPs): CPU time of a step", "<= 1.10 of a LoRA alone", 1.10,
            found["times"]),
    ]  # fmt: skip


def encoder(size: tuple[int, int, int], projected: bool) -> Any:
    """A CLIP text encoder with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    hidden, layers, heads = size
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=hidden, max_position_embeddings=LENGTH, eos_token_id=49407,
        bos_token_id=49406, hidden_act="gelu" if projected else "quick_gelu",
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).requires_grad_(False).eval()


def encoder_flops(size: tuple[int, int, int], projected: bool) -> int:
    """Forward, and backward to the embeddings, of a caption; SDXL takes the states before the last layer."""
    with torch.device("meta"):
        module = encoder(size, projected)
        table = module.get_input_embeddings()
        table.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
        ids = torch.zeros(1, LENGTH, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, flash_attention():
            out = module(ids, output_hidden_states=True)
            last = [out.hidden_states[-2], *([out.text_embeds] if projected else [])]
            torch.autograd.backward(last, [torch.empty_like(one) for one in last])
    return counter.get_total_flops()


def reduced(folder: Path) -> None:
    """A model in the shape of SDXL with random weights, as a diffusers folder; VAE and tokenizers are the micro's."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    from pivotune.pipeline.models.load import load_model
    from pivotune.pipeline.recipe.load import load_recipe

    micro = load_model(load_recipe("quickstart").model, torch.device("cpu")).pipe
    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        vae=micro.vae, text_encoder=encoder(REDUCED[0], False), text_encoder_2=encoder(REDUCED[1], True),
        tokenizer=micro.tokenizer, tokenizer_2=micro.tokenizer, unet=UNet2DConditionModel(**UNET),
        scheduler=micro.scheduler,
    ).save_pretrained(folder)  # fmt: skip


def stepper(folder: Path, embeddings: bool) -> Any:
    """One whole training step, called again and again, put together as the train stage does it."""
    from pivotune.converters.embedding import Contents
    from pivotune.pipeline.embeddings.norms import norm_statistics
    from pivotune.pipeline.models.load import load_model
    from pivotune.pipeline.recipe.intervals import Clock
    from pivotune.pipeline.recipe.load import load_recipe
    from pivotune.pipeline.run import training as put_together
    from pivotune.pipeline.run.context import RunContext, RunState
    from pivotune.pipeline.stages.inject import inject
    from pivotune.pipeline.stages.tokenize import tokenize
    from pivotune.pipeline.train.guard import Guard
    from pivotune.pipeline.train.loop import one_step

    recipe = load_recipe(folder / "recipe.toml")
    model = load_model(recipe.model, torch.device("cpu"))
    statistics = {one.key: norm_statistics(one.table) for one in model.encoders}
    unused: Any = None
    context = RunContext(recipe, folder, model, statistics, unused, unused, lambda text: None)
    state = RunState(stage=2)
    tokenizing, injecting, options = (stage.options for stage in recipe.stages[:3])
    inject(context, state, tokenize(context, state, Contents(), tokenizing), injecting)
    options, guard = replace(options, embeddings=embeddings), Guard(options.guard, print)
    finished: Any = SimpleNamespace(recorded={})
    trainables = put_together.build_trainables(context, state, options, finished)
    objective = put_together.build_objective(context, state, options)
    dataset = put_together.build_dataset(context, state, options)
    training = put_together.build_training(context, state, trainables, objective, dataset, guard, options)
    return partial(one_step, training, Clock(1, 100, 10.0, 1.0))


def measured() -> dict[str, Any]:
    from pivotune.pipeline.recipe.document import shipped_folder

    counted = {mode: count(mode)["flops"] for mode in ("lora+embeddings", "lora")}
    embeddings = sum(encoder_flops(size, bool(number)) for number, size in enumerate(REAL))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reduced(folder / "reduced")
        images = json.dumps(str(shipped_folder() / "images/emblem"))
        (folder / "recipe.toml").write_text(RECIPE.format(images=images), "utf-8")
        modes = {mode: stepper(folder, mode != "LoRA") for mode in MODES}
        flops = {mode: _flops(step) for mode, step in modes.items()}
        seconds = in_turn(modes, ROUNDS, dict.fromkeys(modes, 2))
    return {
        "flops": (counted["lora+embeddings"] + embeddings) / counted["lora"],
        "encoders, reduced": sum(encoder_flops(size, bool(number)) for number, size in enumerate(REDUCED)),
        "steps, reduced": flops["LoRA + embeddings"],
        "times": ratios(*(seconds[mode] for mode in MODES)),
    }


def _flops(step: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured()))
