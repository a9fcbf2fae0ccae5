"""InvokeAI's import of LoRAs, its loader, and its search for modules in models; see real_loaders.py."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import real_models
import torch
from real_common import stand_in
from real_models import clip, t5, unet

NAMES = (
    "app", "app.services", "app.services.config", "app.services.config.config_default", "app.util",
    "app.util.misc", "backend.quantization", "backend.quantization.gguf",
    "backend.quantization.gguf.ggml_tensor", "backend.quantization.gguf.loaders",
    "backend.quantization.gguf.utils", "backend.quantization.sdnq", "backend.quantization.sdnq.detection",
    "backend.quantization.sdnq.loaders", "backend.quantization.sdnq.sdnq_tensor", "backend.util.logging",
)  # fmt: skip
# Family to the configuration that its import must find
CONFIGS = {"sd1": "SD1", "sdxl": "SDXL", "flux": "FLUX", "flux2-klein-4b": "Flux2", "flux2-klein-9b": "Flux2",
           "flux2-dev": "Flux2", "z-image": "ZImage", "qwen-image": "QwenImage", "krea2": "Krea2", "anima": "Anima",
           "wan": "Wan", "sd3": ""}  # fmt: skip


def invokeai(_: Path):
    """As it imports, loads and applies a file: how many of the file's modules find one of the model's."""
    import peft  # noqa: F401 - it looks for packages, of which there are only stand-ins below

    unet("sd1"), clip(), t5(), real_models.transformer("sana")
    stand_in(
        "blake3", "compel", "compel.embeddings_provider", "cv2", "deprecated", "gguf", "onnx", "onnxruntime",
        "picklescan", "picklescan.scanner", "spandrel", "torchvision", "torchvision.transforms",
        *(f"invokeai.{name}" for name in NAMES),
    )  # fmt: skip
    import invokeai.backend.model_manager.load  # noqa: F401 - first, for its modules import each other
    from invokeai.backend.model_manager.configs import lora as configs
    from invokeai.backend.model_manager.load.model_loaders import lora as loaders
    from invokeai.backend.model_manager.taxonomy import ModelFormat
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions.flux_bfl_peft_lora_conversion_utils import (
        convert_bfl_lora_patch_to_diffusers,
    )

    kinds = {name.removeprefix("LoRA_LyCORIS_").removesuffix("_Config"): kind for name, kind in vars(configs).items()
             if re.fullmatch(r"LoRA_LyCORIS_\w+_Config", name)}  # fmt: skip
    made: dict = {}

    def drive(family, tensors, path):
        on_disk = SimpleNamespace(path=path, load_state_dict=lambda *_: tensors, metadata=dict)
        found = {name for name, kind in kinds.items() if _matches(kind, on_disk)}
        if found != {CONFIGS[family]}:
            raise ValueError(f"the import finds {found}")
        base = kinds[CONFIGS[family]].model_fields["base"].default
        loader = SimpleNamespace(_model_base=base, _torch_dtype=torch.float32)
        config = SimpleNamespace(path=str(path), format=ModelFormat.LyCORIS, base=base)
        patch = loaders.LoRALoader._load_model(loader, config)
        layers = (convert_bfl_lora_patch_to_diffusers(patch) if CONFIGS[family] == "Flux2" else patch).layers
        if family not in made:
            made[family] = _models(family)
        flat = not any("." in name for name in layers)
        names = [name for name, layer in layers.items() for _ in range(len(getattr(layer, "lora_layers", (0,))))
                 if _found(LayerPatcher, made[family], name, flat)]  # fmt: skip
        if "_fused_" in path.stem:
            return len({re.sub(r"\.attn\.(to_[qkv]|add_[qkv]_proj)$", r".qkv", name) for name in names})
        return len(names)

    return drive


def _matches(kind, on_disk) -> bool:
    from invokeai.backend.model_manager.configs.identification_utils import NotAMatchError

    try:
        kind.from_model_on_disk(
            on_disk,
            {"hash": "", "path": str(on_disk.path), "file_size": 0, "name": "x", "source": "x", "source_type": "path"},
        )
    except NotAMatchError:
        return False
    return True


def _found(patcher, models, name: str, flat: bool) -> bool:
    """Whether the module of a layer is in the model that has its prefix."""
    for prefix, model in models.items():
        if name.startswith(prefix):
            try:
                patcher._get_submodule(model, name[len(prefix) :], flat)
            except AttributeError:
                continue
            return True
    return False


def _models(family: str) -> dict:
    """The models of a family by the prefix of their layers."""
    if family == "sd1":
        return {"lora_unet_": unet(family), "lora_te_": clip()}
    if family == "sdxl":
        return {"lora_unet_": unet(family), "lora_te1_": clip(), "lora_te2_": clip()}
    text = {"lora_clip-": clip(), "lora_t5-": t5()} if family == "flux" else {}
    own = {"flux": _flux, "anima": _anima}.get(family)
    return {"lora_transformer-": own() if own else real_models.transformer(family), **text}


def _flux():
    from invokeai.backend.flux.model import Flux, FluxParams

    params = FluxParams(in_channels=64, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
                        num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000,
                        qkv_bias=True, guidance_embed=True, out_channels=64)  # fmt: skip
    with torch.device("meta"):
        return Flux(params)


def _anima():
    from invokeai.backend.anima.anima_transformer import AnimaTransformer

    with torch.device("meta"):
        return AnimaTransformer(
            max_img_h=240, max_img_w=240, max_frames=1, in_channels=16, out_channels=16, patch_spatial=2,
            patch_temporal=1, model_channels=2048, num_blocks=1, num_heads=16, crossattn_emb_channels=1024,
            use_adaln_lora=True, adaln_lora_dim=256,
        )  # fmt: skip
