"""LoRA files: layout, modules, rank and family by names, shapes and metadata; and writing one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import safetensors_file
from .families import Family, all_families
from .lora_modules import modules_of
from .safetensors_bytes import HASHES, LEGACY_HASH
from .tensor import RawTensor

# Layout to how all (or, for the last ones, some) of its names look; the first that matches counts.
LAYOUTS = {
    "cloneofsimo": r"^(unet|text_encoder):\d+:",
    "lycoris": r"hada_w|lokr_w|oft_|boft|^lycoris_|glora|\.[ab]1\.weight$|\.on_input$|\.[wb]_norm$",
    "onetrainer": r"^lora_transformer_",
    "kohya": r"^lora_",
    "comfyui": r"^diffusion_model\.|^text_encoders\.",
    "diffusers": r"^(unet|transformer|text_encoder(_\d)?|base_model|prior)\.|\.lora\.(up|down)\.|\.lora_[AB]\.",
}
PREDICTION = "modelspec.prediction_type"
# Endings of tensors whose second dimension is the input width of a layer; of _DOWN, the first is the rank.
_DOWN = ("lora_down.weight", ".lora.down.weight", ".lora_A.weight", ".lora_A.default.weight", ":down",
         "_lora.down.weight", "_lora1.down.weight", "_lora2.down.weight")  # fmt: skip
_INPUTS = (*_DOWN, ".hada_w1_b", ".diff", ".lokr_w1", ".a2.weight")
_CROSS = r"attn2[._](processor\.)?to_[kv]"
_UNET = r"(down|up)_blocks[._]\d+[._](?!\d+[._])|(mid_block|input_blocks|middle_block|output_blocks)[._]|\nunet[.:]"
_DOUBLE = re.compile(r"(?:double_blocks|(?<!single_)transformer_blocks)[._](\d+)[._]")
_SINGLE = re.compile(r"single(?:_transformer)?_blocks[._](\d+)[._]")
_TEXT = re.compile(r"lora_(prior_)?te\d?_|text_encoder|clip_|t5xxl\.|bundle_emb\.")


class LoraInfo(NamedTuple):
    """`ranks` are all that occur, smallest first; `families` those that the file may be for."""

    layout: str
    modules: int
    ranks: tuple[int, ...]
    families: tuple[str, ...]


def describe(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> LoraInfo:
    """What the tensors of a LoRA (without those of embeddings) show; metadata only where shapes leave it open."""
    names = "\n".join(tensors)
    layout = next((name for name, sign in LAYOUTS.items() if re.search(sign, names, re.M)), "other")
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if tensor.shape and name.endswith(_DOWN)}
    modules = [module for module in modules_of(tensors) if not module.name.startswith("bundle_emb.")]
    return LoraInfo(layout, len(modules), tuple(sorted(ranks)), tuple(lora_families(tensors, metadata)))


def lora_families(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> list[str]:
    """Families that a LoRA's blocks and the widths of its layers leave, else those its metadata names.

    A U-Net's blocks rule out all models without one, even if nothing else shows which U-Net it is. Where names fit
    several families, the one that the metadata names counts, else the one that has as many blocks as the LoRA.
    """
    names, kinds = "\n".join(("", *tensors)), all_families()
    unets = [name for name, family in kinds.items() if family.denoiser_module == "unet"]
    possible = unets if re.search(_UNET, names) else list(kinds)
    stated = [name for name in stated_families(metadata) if name in possible]
    if signed := [name for name in _signed(names, tensors) if name in possible]:
        like = [name for name in stated if kinds[name].signs.like in signed]
        return like or [name for name in stated if name in signed] or _of_all_blocks(signed, names) or signed
    if possible != unets and "transformer_blocks" in names:  # not within a block of a U-Net
        return stated
    cross = re.compile(rf"unet:|.*{_CROSS}").match
    inputs = {_input_width(name, tensors) for name in tensors if name.endswith(_INPUTS) and cross(name)}
    found = [name for name in unets if kinds[name].cross_attention in inputs]
    return found or stated or (unets if possible == unets else [])


def has_denoiser(tensors: Mapping[str, RawTensor]) -> bool:
    """Whether a LoRA has modules for more than text encoders."""
    return any(not _TEXT.match(name) for name in tensors)


def _signed(names: str, tensors: Mapping[str, RawTensor]) -> list[str]:
    """Families whose blocks the LoRA has, with a width of theirs and nothing that they do not have."""
    widths: set[int] | None = None
    found = []
    for name, family in all_families().items():
        signs = family.signs
        if not signs.blocks or not re.search(signs.blocks, names):
            continue
        if signs.widths:
            if widths is None:
                inputs = [key for key in tensors if key.endswith(_INPUTS) and not _TEXT.match(key)]
                widths = {_input_width(key, tensors) for key in inputs} - {0}
            if widths and widths.isdisjoint(signs.widths):
                continue
        if not (signs.without and re.search(signs.without, names)) and _has_room(family, names):
            found.append(name)
    return found


def _has_room(family: Family, names: str) -> bool:
    """Whether a family has blocks of all the numbers in these names; true where its number of blocks is not known."""
    return all(count <= have for count, have in _blocks(family, names))


def _of_all_blocks(possible: Sequence[str], names: str) -> list[str]:
    """Those families whose last block of each kind is the last one in these names."""
    pairs = {name: _blocks(all_families()[name], names) for name in possible}
    return [name for name in possible if pairs[name] and all(count == have for count, have in pairs[name])]


def _blocks(family: Family, names: str) -> list[tuple[int, int]]:
    """Highest number of a block in these names plus one, and how many blocks a family has, for each kind in both."""
    kinds = [(_DOUBLE, family.signs.double), (_SINGLE, family.signs.single)]
    last = [(max(map(int, sign.findall(names)), default=-1) + 1, have) for sign, have in kinds if have]
    return [(count, have) for count, have in last if count]


def _input_width(name: str, tensors: Mapping[str, RawTensor]) -> int:
    """Input width of a layer, by a tensor of LoRA, LoHa, LoKr, GLoRA or a full difference; 0 if it has none."""
    tensor = tensors[name]
    if len(tensor.shape) < 2:
        return 0
    if name.endswith(".a2.weight"):
        return tensor.shape[0]
    if not name.endswith(".lokr_w1"):
        return tensor.shape[1]
    second = tensors.get(name.removesuffix("1") + "2") or tensors.get(name.removesuffix("1") + "2_b")
    return tensor.shape[1] * second.shape[1] if second is not None and len(second.shape) > 1 else 0


def stated_families(metadata: Mapping[str, str]) -> list[str]:
    """Families that the metadata names, of a LoRA or an embedding, in ModelSpec's, kohya's or OneTrainer's way."""
    stated = re.sub(r"[^a-z0-9]+", "-", metadata.get("modelspec.architecture", "").lower())
    base = metadata.get("ss_base_model_version", "").lower() or ("sd_v2" if metadata.get("ss_v2") == "True" else "")
    signs = {name: family.signs for name, family in all_families().items()}
    return _by_longest_start(stated, {name: sign.architectures for name, sign in signs.items()}) or _by_longest_start(
        base, {name: sign.base_models for name, sign in signs.items()}
    )


def _by_longest_start(text: str, starts: Mapping[str, Sequence[str]]) -> list[str]:
    """The names whose start of the text is the longest: `flux2_klein_4b` begins as `flux` and as `flux2`, too."""
    fitting = {
        name: max((len(one) for one in ones if text.startswith(one)), default=0) for name, ones in starts.items()
    }
    longest = max(fitting.values())
    return [name for name, length in fitting.items() if longest and length == longest]


def lora_metadata(
    family: Family, *, title: str, rank: int | str, alpha: float | str, dora: bool = False, prediction: str = ""
) -> dict[str, str]:
    """Metadata by which A1111, Forge, SD.Next and SwarmUI identify a LoRA's model, in kohya's and ModelSpec's fields.

    `rank` and `alpha` are `Dynamic` where they are not the same for all modules. `prediction` is a diffusion model's
    `prediction_type` in diffusers.

    The same for every run: without dates. `write_lora` adds hashes.
    """
    return {
        "ss_base_model_version": family.base_model_version,
        "ss_v2": str(family.base_model_version.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        **({"ss_network_args": '{"dora_wd": "True"}'} if dora else {}),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": f"{family.modelspec}/lora",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        **({PREDICTION: modelspec_prediction(prediction)} if prediction else {}),
    }


def modelspec_prediction(kind: str) -> str:
    """A `prediction_type` of diffusers in ModelSpec's spelling."""
    return {"v_prediction": "v"}.get(kind, kind)


def write_lora(
    path: Path | str, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a LoRA (with embeddings in it, if `bundle.tensors_of` made the tensors) with true hashes of its data."""
    fresh = dict.fromkeys((*HASHES, LEGACY_HASH), "")
    safetensors_file.write(path, tensors, {**metadata, **fresh}, overwrite=overwrite)
