"""An estimate of the GPU memory that a recipe takes, part by part. Nothing here was measured on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ...converters.families import EncoderSpec, Family
from ..models.full_size import shapes_of
from ..models.load import Model
from ..models.offload import blocks_of, offloaded
from ..models.quantized import PartSize, part_key, part_size
from ..recipe.defaults import DENOISER, QUANTIZED
from ..recipe.model import ModelSpec, Recipe
from ..recipe.options import TrainOptions
from ..tensors import DTYPES
from .memory import CHECKPOINTED, VALUE, Needs, StageNeeds, count_needs, trained_bytes

CUDA = round(0.6e9)  # bytes of the context and of kernels
RECOMPUTED = 0.05  # share of the denoiser's activations that one block has, of twenty or more
# Values that a layer of a text encoder keeps for the backward pass, per token and unit of width: the tensors that
# autograd saves are 14 in CLIP, 17 to 27 in Llama, Qwen3, Mistral and Gemma 2.
ENCODER_VALUES = 25
# Values per pixel: four tensors of the widest layer at full size, of 256 channels in decoders and 128 in encoders.
DECODED, ENCODED = 4 * 256, 4 * 128
DECODER = round(3.2e9)  # bytes of the decoder of Stable Cascade in 16 bit
CLIP_TOKENS = 77


@dataclass(frozen=True)
class Part:
    """A model of the pipeline: its key in `model.weights` and `model.offload`, its size and those of its blocks."""

    key: str
    size: PartSize
    blocks: tuple[PartSize, ...]


@dataclass(frozen=True)
class Sizes:
    """What estimates need to know of a recipe's model; `well_known`: sizes are those of its family's usual model.

    `needs` has what each train stage trains, `layers` the number of layers of each text encoder that prompts use.
    """

    family: Family
    parts: tuple[Part, ...]
    needs: Needs
    edge: int
    layers: Mapping[str, int]
    well_known: bool


def sizes_of(recipe: Recipe) -> Sizes:
    """Sizes of the model of a recipe. StageError for an unknown family, or a LoRA that fits no layer."""
    model, well_known = shapes_of(recipe.model)
    denoiser = model.family.denoiser_module
    components = sorted(model.pipe.components.items(), key=lambda item: item[0] != denoiser)
    parts = tuple(
        Part(
            part_key(model.family, name) or name, part_size(part), tuple(part_size(block) for block in blocks_of(part))
        )
        for name, part in components if hasattr(part, "parameters")
    )  # fmt: skip
    vectors = {
        one.placeholder: dict.fromkeys(model.family.widths, one.tokens or len(one.initial_text.split()) or 1)
        for one in recipe.embeddings
    }
    needs = count_needs(recipe, model, vectors)  # adds LoRAs, so the parts are measured before
    layers = {one.key: _layers(model, one) for one in model.family.encoders if hasattr(model.pipe, one.module)}
    return Sizes(model.family, parts, needs, model.resolution, layers, well_known)


def _layers(model: Model, encoder: EncoderSpec) -> int:
    config = getattr(model.pipe, encoder.module).config.get_text_config()
    count, last = int(config.num_hidden_layers), encoder.last_state
    return count if last is None else min(count, (last if last >= 0 else count + 1 + last) + 1)


def gpu_memory(recipe: Recipe, sizes: Sizes, stage: StageNeeds) -> dict[str, int]:
    """Bytes by part in a train stage: weights, what is trained, CUDA, and the larger of a step and of images."""
    spec = recipe.model
    rows: dict[str, int] = {}
    for part in sizes.parts:
        rows[part.key] = rows.get(part.key, 0) + _weights(recipe, part)
    if spec.decoder is not None:
        rows["decoder"] = DECODER * DTYPES[spec.dtype].itemsize // 2
    packed = [one.size.largest for one in sizes.parts if spec.weights.get(one.key) in QUANTIZED]
    if packed:
        rows["an unpacked layer"] = max(packed) * DTYPES[spec.dtype].itemsize
    rows["trained weights and optimizer"] = _trained(stage, copies=spec.dtype != "float32")
    options = dict(recipe.stages_with(TrainOptions))[stage.stage]
    step, images = step_bytes(recipe, sizes, options), image_bytes(recipe, sizes, options)
    rows["activations" if step >= images else "VAE and sample images"] = max(step, images)
    rows["CUDA"] = CUDA
    return rows


def _trained(stage: StageNeeds, *, copies: bool) -> int:
    """Bytes of what a stage trains and of LoRAs of earlier ones; `copies`: fine-tuned weights have float32 copies."""
    trained = tuple(replace(one, copied=copies and one.name.startswith("finetune.")) for one in stage.trained)
    return trained_bytes(replace(stage, trained=trained)) + VALUE * stage.frozen


def _weights(recipe: Recipe, part: Part) -> int:
    """Bytes of a part's weights on the GPU: offloaded blocks are away, but for two."""
    spec = recipe.model
    kind, dtype = spec.weights.get(part.key), _vae_dtype(spec) if part.key == "vae" else DTYPES[spec.dtype]
    stored, scale = part.size.bytes(kind, dtype), 1.0
    if part.key == DENOISER and str(spec.denoiser).lower().endswith(".gguf") and os.path.isfile(str(spec.denoiser)):
        scale = os.path.getsize(str(spec.denoiser)) / stored
    at_rest = offloaded(len(part.blocks), spec.offload.get(part.key, 0.0))
    resting = sorted(part.blocks[at].bytes(kind, dtype) for at in at_rest)
    return round(scale * (stored - sum(resting[:-2])))


def _vae_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype of the VAE; some compute in float32 beside a model in float16."""
    return DTYPES[spec.weights.get("vae", "float32" if spec.dtype == "float16" else spec.dtype)]


def step_bytes(recipe: Recipe, sizes: Sizes, options: TrainOptions) -> int:
    """Bytes of activations of a step: of the denoiser, and of the text encoders through which something is trained."""
    spec, itemsize = recipe.model, DTYPES[recipe.model.dtype].itemsize
    edge = options.resolution or sizes.edge
    whole = _kept(sizes, itemsize, edge) * options.batch_size
    # a LoRA keeps the inputs of its layers in float32: about as much as the other activations in 16 bit of FLUX, half
    # as much of UNets
    has_lora = any(DENOISER in table.parts for table in options.trained_loras)
    lora = _kept(sizes, 2, edge) * options.batch_size if has_lora else 0.0
    if options.gradient_checkpointing or DENOISER in spec.offload:
        total = whole * CHECKPOINTED + (whole + lora) * RECOMPUTED
    else:
        total = whole + lora
    for encoder in sizes.family.encoders:
        if encoder.key in sizes.layers and _trains_text(recipe, options, encoder.key):
            layers = sizes.layers[encoder.key]
            recomputed = options.gradient_checkpointing or encoder.key in spec.offload
            values = layers + ENCODER_VALUES if recomputed else layers * ENCODER_VALUES
            tokens = encoder.length or CLIP_TOKENS * spec.prompt_chunks
            total += values * tokens * encoder.width * itemsize * options.batch_size
    return round(total)


def _kept(sizes: Sizes, itemsize: int, edge: int) -> float:
    """Bytes that the denoiser keeps for the backward pass with one image; 0 for a model of an unusual size."""
    usual = sizes.family.step_activations_mib * 2**20 * itemsize / 2
    return usual * (edge / sizes.needs.edge) ** 2 if sizes.needs.activations else 0.0


def _trains_text(recipe: Recipe, options: TrainOptions, key: str) -> bool:
    """Whether a step has a backward pass through a text encoder."""
    if any(key in table.parts for _, _, table in options.weight_tables):
        return True
    rates = [
        options.learning_rate if one.learning_rate is None else one.learning_rate
        for one in recipe.trained.values() if options.embeddings and not one.output
    ]  # fmt: skip
    return any((rate.get(key, 1.0) if isinstance(rate, Mapping) else rate) > 0 for rate in rates)


def image_bytes(recipe: Recipe, sizes: Sizes, options: TrainOptions) -> int:
    """Bytes beside the weights while images are encoded for a stage, or drawn: by the denoiser or the VAE's decoder."""
    vae = _vae_dtype(recipe.model).itemsize
    encoding = ENCODED * vae * (options.resolution or sizes.edge) ** 2
    watched = options.watch is not None and options.watch.sample_every is not None
    if not recipe.samples.prompts and not watched:
        return encoding
    edge = recipe.samples.size or sizes.edge
    # two calls at once, with and without the prompt; a block's activations are given back before the next one's
    drawing = 2 * RECOMPUTED * _kept(sizes, DTYPES[recipe.model.dtype].itemsize, edge)
    return max(encoding, DECODED * vae * edge**2, round(drawing))
