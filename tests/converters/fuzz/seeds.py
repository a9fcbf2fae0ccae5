"""One sound file for every dialect, each made key by key in the shape of its program's writer."""

import json
import random
import struct
from dataclasses import dataclass, field
from functools import cache

from fuzz import images, torch_seeds

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
XTI = [*(f"IN0{n}" for n in (1, 2, 4, 5, 7, 8)), "MID", *(f"OUT{n:02}" for n in range(3, 12))]
SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Seed:
    """`kind` is safetensors, zip, stream or image; `parts` is what a pickle's file is put together from."""

    name: str
    kind: str
    data: bytes = field(repr=False)
    parts: torch_seeds.Parts | None = field(default=None, repr=False)


def safetensors(shapes, metadata=None, dtype="F32"):
    """A safetensors file of tensors with these shapes."""
    source, header, data = random.Random(7), {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, shape in sorted(shapes.items()):
        count = 1
        for size in shape:
            count *= size
        code = {"F32": "f", "F16": "e"}.get(dtype)
        numbers = [source.uniform(-0.1, 0.1) for _ in range(count)]
        packed = struct.pack(f"<{count}{code}", *numbers) if code else source.randbytes(count * SIZES[dtype])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _safetensors_seeds():
    one, g, h, t5, lora = (1, 768), (1, 1280), (1, 1024), (1, 4096), {LORA: (4, 768)}
    bundle = {"ss_network_module": "networks.lora", "sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x0",
              "sshs_legacy_hash": "00000000", "modelspec.architecture": "stable-diffusion-v1/lora"}  # fmt: skip
    toolkit = {"string_to_token": '{"*": 265}', "name": "x", "step": "5", "string_to_param": '{"*": "emb_params"}'}
    yield "kohya", {"emb_params": one}, {"modelspec.title": "x"}
    yield "kohya, SD 2", {"emb_params": h}, None
    yield "ai-toolkit", {"emb_params": one}, toolkit
    yield "extended textual inversion", dict.fromkeys(XTI, one), None
    yield "OneTrainer", {"emp_params": one}, None
    yield "OneTrainer, output", {"emp_params": one, "emp_params_out": one}, None
    yield "LyCORIS", {"*": one}, None
    yield "HCP, joined", {"emb_params": (1, 2048)}, None
    yield "SDXL", {"clip_l": one, "clip_g": g}, None
    yield "SDXL, output", {"clip_l": one, "clip_g": g, "clip_l_out": one, "clip_g_out": g}, None
    yield "SD 3", {"clip_l": one, "clip_g": g, "t5": t5}, None
    yield "FLUX", {"clip_l": one, "t5": t5}, None
    yield "FLUX of 2024", {"clip_g": one, "t5": t5}, None
    yield "FLUX, ComfyUI", {"clip_l": one, "t5xxl": t5}, None
    yield "PixArt", {"t5": t5}, None
    yield "Sana", {"gemma": (1, 2304)}, None
    yield "HiDream", {"clip_l": one, "clip_g": g, "t5": t5, "llama": t5}, None
    yield "Hunyuan Video", {"clip_l": one, "llama": t5}, None
    yield "cog-sdxl", {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, None
    yield "diffusers", {"<cat>": (2, 768)}, {"format": "pt"}
    yield "diffusers, one vector", {"<cat>": (768,)}, {"format": "pt"}
    yield "diffusers, several", {"<a>": one, "<b>": (2, 768)}, None
    yield "ours", {"<cat>": (2, 96)}, {"pivotune.embedding": "<cat>"}
    yield "cloneofsimo", {"unet:0:up": (8, 4), "unet:0:down": (4, 8), "<s1>": (768,)}, {
        "unet": '["CrossAttention"]', "unet:0:rank": "4", "<s1>": "<embed>"}  # fmt: skip
    yield "bundle", {**lora, "bundle_emb.mr. cat.clip_l": one, "bundle_emb.dog.clip_l": one}, bundle
    yield "bundle, old", {**lora, "bundle_emb.cat.string_to_param.*": one}, None
    yield "bundle, SDXL", {LORA: (4, 2048), "bundle_emb.cat.clip_l": one, "bundle_emb.cat.clip_g": g}, bundle
    yield "LoRA", {**lora, LORA.replace("down.w", "up.w"): (8, 4)}, bundle
    yield "LoRA of ai-toolkit", {**lora, "emb_params": one}, None
    yield "LoKr", {LORA.replace("lora_down.weight", "lokr_w1"): (4, 4), LORA.replace("lora_down.weight", "lokr_w2"): (
        4, 192)}, {"ss_v2": "True"}  # fmt: skip
    yield "model", {"model.diffusion_model.x.weight": (4, 8)}, None


@cache
def seeds():
    """All seeds; the same bytes at each call and in each process."""
    found = [Seed(name, "safetensors", safetensors(*rest)) for name, *rest in _safetensors_seeds()]
    found.append(Seed("half", "safetensors", safetensors({"clip_l": (1, 768)}, dtype="F16")))
    found.append(Seed("bfloat16", "safetensors", safetensors({"t5": (1, 4096)}, dtype="BF16")))
    found += [Seed(parts.name, parts.form, parts.file(), parts) for parts in torch_seeds.all_parts()]
    found += [Seed(name, "image", data) for name, data in images.all_images().items()]
    return tuple(found)
