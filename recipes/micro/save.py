"""Writes the trained parts as a StableDiffusionPipeline's folder, in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from .build import build_scheduler
from .tokenizer import save_tokenizer

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_model(
    vae: AutoencoderKL, encoder: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """The folder that `StableDiffusionPipeline.from_pretrained` loads."""
    for name, module in {"vae": vae, "text_encoder": encoder, "unet": unet}.items():
        for parameter in module.parameters():  # rows in order again, for the file's bytes
            parameter.data = parameter.data.contiguous()
        module.to(torch.float16).save_pretrained(folder / name)
        module.to(torch.float32)
    build_scheduler().save_pretrained(folder / "scheduler")
    save_tokenizer(tokenizer, folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
    prefix_keys(folder / "text_encoder" / "model.safetensors")
    for file in folder.rglob("*"):
        if file.is_file():
            tidy(file)


def prefix_keys(file: Path) -> None:
    """Spell the text encoder's keys as they were before transformers 5.6; old and new read that."""
    tensors = load_file(file)
    if not any(key.startswith("text_model.") for key in tensors):
        tensors = {f"text_model.{key}": tensor for key, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def tidy(file: Path) -> None:
    """Readable by everyone, without the path it was built at, and of one data type in memory.

    Where a config names the type of its file, transformers loads that, and diffusers float32 beside it.
    """
    file.chmod(0o644)
    if file.name.endswith("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
