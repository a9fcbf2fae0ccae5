"""OneTrainer's LoRA loader, with its own models of each family; see real_loaders.py.

What is counted are modules of the file whose names, after its conversion, are modules of the model. That its trainer
also asks for all layers that its user has chosen, and none else, depends on settings and not on the file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import real_models
import real_trainers
import torch
from real_models import clip, t5

# Family to OneTrainer's model, its type, the module with its loader, and the text encoders that are there
CLASSES = {
    "sd1": ("StableDiffusion", "STABLE_DIFFUSION_15", "stableDiffusion.StableDiffusion", {"text_encoder": "clip"}),
    "sdxl": ("StableDiffusionXL", "STABLE_DIFFUSION_XL_10_BASE", "stableDiffusionXL.StableDiffusionXL",
             {"text_encoder_1": "clip", "text_encoder_2": "clip"}),
    "sd3": ("StableDiffusion3", "STABLE_DIFFUSION_3", "stableDiffusion3.StableDiffusion3",
            {"text_encoder_1": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"}),
    "flux": ("Flux", "FLUX_DEV_1", "flux.Flux", {"text_encoder_1": "clip", "text_encoder_2": "t5"}),
    "chroma": ("Chroma", "CHROMA_1", "chroma.Chroma", {"text_encoder": "t5"}),
    "pixart": ("PixArtAlpha", "PIXART_SIGMA", "pixartAlpha.PixArtAlpha", {"text_encoder": "t5"}),
    "sana": ("Sana", "SANA", "sana.Sana", {"text_encoder": "nothing"}),
    "hidream": ("HiDream", "HI_DREAM_FULL", "hiDream.HiDream", {
        "text_encoder_1": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"}),
    "hunyuan-video": ("HunyuanVideo", "HUNYUAN_VIDEO", "hunyuanVideo.HunyuanVideo", {"text_encoder_2": "clip"}),
    "qwen-image": ("Qwen", "QWEN", "qwen.Qwen", {"text_encoder": "nothing"}),
    "krea2": ("Krea2", "KREA_2", "krea2.Krea2", {}),
    "cascade": ("Wuerstchen", "STABLE_CASCADE_1", "wuerstchen.Wuerstchen", {"prior_text_encoder": "clip"}),
    "z-image": ("ZImage", "Z_IMAGE", "ZImage", {}),
    "anima": ("Anima", "ANIMA", "Anima", {}),
    "flux2-dev": ("Flux2", "FLUX_2", "Flux2", {}),
    "flux2-klein-4b": ("Flux2", "FLUX_2", "Flux2", {}),
    "flux2-klein-9b": ("Flux2", "FLUX_2", "Flux2", {}),
}  # fmt: skip
REAL = ("modules.model", "modules.modelLoader", "modules.util.load_lora_util", "modules.util.convert_util",
        "modules.util.ModelNames", "modules.util.enum", "modules.util.factory")  # fmt: skip


def onetrainer(source: Path):
    """`_to_canonical` of each family's loader."""
    import diffusers.pipelines.pipeline_utils  # noqa: F401 - before torchvision is only a stand-in

    real_models.transformer("sana"), clip(), t5()
    files = {".".join(path.relative_to(source).with_suffix("").parts) for path in (source / "modules").rglob("*.py")}
    packages = {name.rpartition(".")[0] for name in files}
    real_trainers.stand_in("torchvision", "torchvision.transforms", *sorted(
        name for name in files - packages if not name.startswith(REAL)))  # fmt: skip
    types = import_module("modules.util.enum.ModelType").ModelType
    made: dict = {}

    def drive(family, tensors, _):
        if any("lora_mid" in name for name in tensors):
            raise NotImplementedError  # lora_mid is refused later, by the strict load of a module
        if family not in made:
            made[family] = _model(family, types)
        loader, model = made[family]
        found = loader._to_canonical(model, dict(tensors))
        names = _names(loader, model)
        return len({name for name in names if any(key.startswith(f"{name}.") for key in found)})

    return drive


def _model(family, types):
    kind, of_type, place, encoders = CLASSES[family]
    model = getattr(import_module(f"modules.model.{kind}Model"), f"{kind}Model")(types[of_type])
    encoder = {"clip": clip, "t5": t5, "nothing": torch.nn.Module}
    for name, encoder_kind in encoders.items():
        setattr(model, name, encoder[encoder_kind]())
    part = {"cascade": "prior_prior", "sd1": "unet", "sdxl": "unet"}.get(family, "transformer")
    setattr(model, part, real_models.unet(family) if part == "unet" else real_models.transformer(family))
    module = f"{place}LoRALoader" if "." in place else f"{place}ModelLoader"
    loader = getattr(import_module(f"modules.modelLoader.{module}"), f"{kind}LoRALoader")()
    return loader, model


def _names(loader, model):
    """All modules of the model's parts, and those that are several of them joined."""
    from modules.util.enum.ModelFormat import ModelFormat
    from modules.util.load_lora_util import collapse_fusion_groups, lora_module_names

    part = model.model_type.denoising_model_part()
    layers = lora_module_names(loader._denoising_module(model))
    names = {f"{part}.{name}" for name in layers | collapse_fusion_groups(layers, loader._fusion_groups(model))}
    for module, prefixes in model.lora_text_encoders():
        names |= {f"{prefixes[ModelFormat.DIFFUSERS_LORA]}.{name}" for name in lora_module_names(module)}
    return names
