"""The loaders of programs, each with stand-ins for what it imports: `python -m real_loaders PROGRAM SOURCE FOLDER`.

Reads the sample files in FOLDER and prints JSON: sample to the number of modules that the loader takes, and its error.
Models exist without weights (on torch's meta device): a loader looks at names and shapes alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import real_comfyui
import real_invokeai
import real_kohya
import real_models
import real_onetrainer
from real_comfyui import comfyui
from real_common import patched, print_answers, stand_in_for_management
from real_invokeai import invokeai
from real_kohya import kohya
from real_models import CLIP_NAMES, flux, native_unet, unet, unet_config
from real_onetrainer import onetrainer
from real_webuis import UNETS, a1111, forge, forge_neo, sdnext
from safetensors.torch import load_file

from pivotune.converters.families import all_families


def main(program: str, source: str, folder: str) -> None:
    """Print what the loader of `program` makes of each sample."""
    print_answers(
        LOADERS[program],
        source,
        folder,
        lambda drive, path: drive(_family(program, path), load_file(path), path),
        nothing=0,
    )


def _family(program: str, path: Path) -> str:
    family = path.stem.partition("_")[0]
    if family not in RUNS[program] or ("_T5_" in path.stem and program not in WITH_T5):
        raise NotImplementedError
    if "_fused_" in path.stem and program in SPLITTERS:
        raise NotImplementedError
    return family


def reforge(source: Path):
    stand_in_for_management()
    from ldm_patched.modules import lora, lora_convert, utils

    def drive(family, tensors, _):
        unet, text = _unet_and_clip(family, utils)
        keys = lora.model_lora_keys_clip(text, lora.model_lora_keys_unet(unet, {}))
        return patched(lora.load_lora(lora_convert.convert_lora(tensors), keys))

    return drive


def fooocus(source: Path):
    stand_in_for_management()
    from ldm_patched.modules import lora, utils
    from modules.lora import match_lora

    def drive(family, tensors, _):
        if family != "sdxl":
            raise NotImplementedError
        unet, text = _unet_and_clip(family, utils)
        in_unet, loose = match_lora(
            tensors, lora.model_lora_keys_unet(unet, {}) | {name: name for name in unet.state_dict()}
        )
        in_text, loose = match_lora(
            loose, lora.model_lora_keys_clip(text, {}) | {name: name for name in text.state_dict()}
        )
        return 0 if len(loose) > 12 else patched(in_unet | in_text)

    return drive


def _unet_and_clip(family, utils):
    """Two models with the names of a U-Net's weights and of those of the CLIP text encoders."""
    if family == "flux":
        raise NotImplementedError
    names = dict.fromkeys([f"diffusion_model.{name}" for name in native_unet(family, utils)])
    text = dict.fromkeys([name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")])
    config = SimpleNamespace(unet_config=unet_config(family))
    return SimpleNamespace(state_dict=lambda: names, model_config=config), SimpleNamespace(state_dict=lambda: text)


def diffusers(_: Path):
    import diffusers
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin  # noqa: F401

    def of_transformer(family, tensors, pipeline):
        denoiser = real_models.transformer(family)
        found = pipeline.lora_state_dict(dict(tensors))
        state = found[0] if isinstance(found, tuple) else found
        kind = any if issubclass(pipeline, diffusers.loaders.FluxLoraLoaderMixin) else all
        if not kind("lora" in key for key in state):
            raise ValueError("Invalid LoRA checkpoint")
        if any(key.startswith("transformer.") for key in state):
            denoiser.load_lora_adapter(state, prefix="transformer", adapter_name="x", low_cpu_mem_usage=True)
        return sum(hasattr(layer, "lora_A") for _, layer in denoiser.named_modules())

    def drive(family, tensors, _):
        name = all_families()[family].pipeline
        pipeline = getattr(diffusers, name)
        if family in real_models.TRANSFORMERS | real_models.OTHERS:
            return of_transformer(family, tensors, pipeline)
        denoiser = flux() if family == "flux" else unet(family)
        kwargs = {"unet_config": denoiser.config} if family == "sdxl" else {}
        found = pipeline.lora_state_dict(dict(tensors), return_alphas=True) if family == "flux" else (
            pipeline.lora_state_dict(dict(tensors), **kwargs))  # fmt: skip
        state, alphas = found
        if not (any if family == "flux" else all)("lora" in key for key in state):
            raise ValueError("Invalid LoRA checkpoint")
        part = "transformer" if family == "flux" else "unet"
        if any(key.startswith(f"{part}.") for key in state):
            denoiser.load_lora_adapter(
                state, prefix=part, network_alphas=alphas, adapter_name="x", low_cpu_mem_usage=True
            )
        layers = sum(hasattr(layer, "lora_A") for _, layer in denoiser.named_modules())
        text = {key.split(".lora")[0].split("_lora")[0] for key in state if key.startswith("text_encoder")}
        return layers + len(text)

    return drive


DIFFUSERS = ("flux2-klein-4b", "flux2-klein-9b", "flux2-dev", "krea2", "lumina2", "anima")
RUNS = {
    "comfyui": (*UNETS, *real_comfyui.BODIES),
    "forge": (*UNETS, "flux"),
    "forge-neo": (*UNETS, "flux", "chroma", "qwen-image", "z-image"),
    "a1111": (*UNETS, "sd3"),
    "sdnext": (
        *UNETS,
        "flux",
        "sd3",
        "chroma",
        "z-image",
        "flux2-klein-4b",
        "flux2-klein-9b",
        "flux2-dev",
        "krea2",
        "anima",
    ),
    "diffusers": (*UNETS, "flux", *real_models.TRANSFORMERS, *DIFFUSERS),
    "invokeai": tuple(real_invokeai.CONFIGS),
    "reforge": UNETS,
    "fooocus": ("sdxl",),
    "kohya": tuple(real_kohya.NETWORKS),
    "onetrainer": tuple(real_onetrainer.CLASSES),
}
SPLITTERS = ("diffusers", "sdnext")  # which split joined layers, and then have more than the file
WITH_T5 = ("comfyui", "invokeai", "kohya", "onetrainer")  # whose drivers have text encoders other than CLIP
LOADERS = {
    loader.__name__.replace("_", "-"): loader
    for loader in (
        comfyui, forge, forge_neo, a1111, sdnext, kohya, diffusers, invokeai, onetrainer, reforge, fooocus
    )
}  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
