"""LoRA modules renamed to kohya's layout, which most programs read: names change, no number does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from struct import pack
from typing import Any

from .errors import ConvertError
from .families import Family
from .lora_modules import modules_of, split_name
from .stored import Stored
from .tensor import RawTensor

FACTS = "lora_adapter_metadata"  # diffusers: JSON of PEFT's configurations, each key after `unet.` or `text_encoder.`
_TAILS = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight", "dora": "dora_scale"}
# Prefixes of a U-Net's modules, longest first; a bare name of a block has none.
_UNET = re.compile(
    r"(?:unet\.base_model\.model\.|base_model\.model\.|unet\.|diffusion_model\.|lycoris_|lora_unet_|oft_unet_)?"
    r"((?:down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks|conv_in|conv_out|time_embed"
    r"|time_embedding|add_embedding|label_emb|out)[._].+|conv_in|conv_out)"
)
_TEXT = re.compile(
    r"(?:(text_encoder|text_encoder_2)\.|text_encoders\.(clip_l|clip_g|clip_h)\.transformer\.|lora_te(1|2)?_)"
    r"(?:text_model[._])?(encoder[._].+|text_projection)"
)
_SECOND = ("text_encoder_2", "clip_g", "2")


def renamed_layout(file: Stored, family: Family) -> dict[str, RawTensor] | None:
    """All tensors under kohya's names, None if a name cannot be changed or all have them already.

    Only U-Nets: the names of other models' modules differ in more than spelling, for kohya's layers join several.
    """
    if family.denoiser_module != "unet":
        return None
    try:
        renamed = to_kohya(file.tensors, file.metadata, family)
    except ConvertError:
        return None
    return renamed if renamed.keys() != file.tensors.keys() else None


def to_kohya(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], family: Family) -> dict[str, RawTensor]:
    """The tensors of a LoRA (embeddings are kept as they are) with kohya's names.

    PEFT scales by lora_alpha / rank from its configuration, kohya by a tensor `alpha`, which is added where the two
    differ. Raises ConvertError for a module or configuration that kohya's layout cannot express.
    """
    renamed: dict[str, RawTensor] = {}
    facts = peft_facts(metadata)
    for name, tensor in tensors.items():
        found = None if name.startswith("bundle_emb.") else split_name(name)
        if found is None:
            renamed[name] = tensor
            continue
        module, part = _module(found[0], family), found[1]
        key = f"{module}.{_TAILS.get(part, part)}"
        if key in renamed:
            raise ConvertError(f"two tensors would be called {key[:80]!r}")
        renamed[key] = _column(tensor) if part == "dora" else tensor
    for found_module in modules_of(tensors):
        alpha = _alpha(found_module.name, facts) if found_module.kind == "LoRA" else None
        key = f"{_module(found_module.name, family)}.alpha" if alpha is not None else ""
        if alpha is not None and key not in renamed:
            renamed[key] = RawTensor("F32", (), pack("<f", alpha))
    return renamed


def _module(name: str, family: Family) -> str:
    name = re.sub(r"\.processor\.(to_[qkv])$", r".\1", re.sub(r"\.processor\.to_out$", ".to_out.0", name))
    if match := _TEXT.fullmatch(name):
        number = ("2" if (match[1] or match[2] or match[3]) in _SECOND else "1") if len(family.encoders) > 1 else ""
        path = match[4] if match[4] == "text_projection" else f"text_model_{match[4]}"
        return f"lora_te{number}_{path.replace('.', '_')}"
    if match := _UNET.fullmatch(name):
        return "lora_unet_" + match[1].replace(".", "_")
    raise ConvertError(f"{name[:80]!r} is no module of {family.title} with a name in kohya's layout")


def _column(tensor: RawTensor) -> RawTensor:
    """DoRA's magnitudes as kohya has them: (out, 1) for PEFT's (out,)."""
    return RawTensor(tensor.dtype, (*tensor.shape, 1), tensor.stored) if len(tensor.shape) == 1 else tensor


def peft_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(metadata.get(FACTS, "{}"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ConvertError(f"its {FACTS} is not the JSON that diffusers writes")
    for key, value in facts.items():
        if value and key.rpartition(".")[2] in ("use_rslora", "rank_pattern", "alpha_pattern"):
            raise ConvertError(f"kohya's layout cannot express {key} of its {FACTS}")
    return facts


def _alpha(module: str, facts: Mapping[str, Any]) -> float | None:
    """The alpha by which PEFT scales a module, None if its rank is the same (or nothing says)."""
    prefix = module.partition(".")[0]
    alpha, rank = facts.get(f"{prefix}.lora_alpha"), facts.get(f"{prefix}.r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int | float):
        return None
    return float(alpha) if alpha != rank else None
