"""Where Pivotune leans on what a library does not document, it is listed here and tested by name.

A new version that renames one of these fails in this file, which says what to fix, and not in the middle of a run.
"""

from __future__ import annotations

import ast
from importlib import import_module, util
from pathlib import Path

import pytest

from pivotune.pipeline.recipe.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {
    "accelerate", "bitsandbytes", "diffusers", "filelock", "huggingface_hub", "peft", "prodigyopt",
    "prodigyplus", "pytorch_optimizer", "safetensors", "tokenizers", "torch", "transformers",
}  # fmt: skip
DOCUMENTED = {  # modules below the top level whose names the library's own reference gives
    "accelerate.tracking", "accelerate.utils", "bitsandbytes.optim", "diffusers.utils",
    "huggingface_hub.errors", "peft.tuners.lora", "peft.tuners.tuners_utils", "safetensors.torch",
    "torch.distributed", "torch.distributed.device_mesh", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils.checkpoint", "transformers.utils",
}  # fmt: skip
INNER = {  # (module, name): the rest, each with the file that leans on it
    ("accelerate.utils.dataclasses", "get_module_class_from_name"): "train/fsdp.py",
    ("accelerate.utils.fsdp_utils", "fsdp2_prepare_auto_wrap_policy"): "train/fsdp.py",
    ("diffusers.modular_pipelines.anima.encoders", "AnimaTextEncoderStep"): "models/video.py",
    ("diffusers.quantizers.gguf.utils", "GGML_QUANT_SIZES"): "models/quantized.py",
    ("diffusers.quantizers.gguf.utils", "dequantize_functions"): "models/quantized.py",
    ("prodigyplus.prodigy_plus_schedulefree", "ProdigyPlusScheduleFree"): "recipe/optimizers.py",
    ("torch._dynamo.exc", "TorchDynamoException"): "train/compute.py",
    ("transformers.modeling_layers", "GradientCheckpointingLayer"): "train/compute.py",
    ("torch._inductor.runtime.cache_dir_utils", "cache_dir"): "train/compute.py",
}
ATTRIBUTES = {
    "_blocks": "models/load.py",
    "_parameters": "models/offload.py", "_buffers": "models/offload.py",
    "_compiled_call_impl": "train/compute.py", "_keep_in_fp32_modules": "models/load.py",
    "_no_split_modules": "train/fsdp.py",
    "_pack_latents": "models/language_models.py", "_unpack_latents": "models/language_models.py",
    "_prepare_attention_mask": "models/flux.py", "_prepare_latent_image_ids": "models/flux.py",
    "_patchify_latents": "models/flux.py", "_unpatchify_latents": "models/flux.py",
    "_prepare_text_ids": "models/flux.py", "_prepare_latent_ids": "models/flux.py",
    "_lora_loadable_modules": "run/loras.py",
}  # fmt: skip
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}  # documented in spite of their names


def trees() -> list[tuple[str, ast.AST]]:
    return [
        (path.relative_to(ROOT / "pipeline").as_posix(), ast.parse(path.read_text("utf-8")))
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
    ]


def test_every_inner_import_is_listed() -> None:
    rows = {(row.module, row.name) for row in OPTIMIZERS.values() if "." in row.module}
    found = {row: "recipe/optimizers.py" for row in rows if row[0] not in DOCUMENTED}
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                if node.module.split(".")[0] in LIBRARIES and "." in node.module and node.module not in DOCUMENTED:
                    found |= {(node.module, alias.name): file for alias in node.names}
                assert node.module.split(".")[0] not in LIBRARIES or not any(
                    alias.name.startswith("_") and (node.module, alias.name) not in INNER for alias in node.names
                ), (file, node.lineno)
    assert found == INNER


def test_every_private_attribute_is_listed() -> None:
    found = {}
    for file, tree in trees():
        for node in ast.walk(tree):
            name = ""
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")
            ):
                name = node.attr
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
                name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if name.startswith("_") and not name.startswith("__") and name not in PUBLIC:
                found[name] = file
    assert found == ATTRIBUTES


@pytest.mark.parametrize(("module", "name"), INNER, ids=lambda part: part)
def test_the_library_still_has_it(module: str, name: str) -> None:
    if util.find_spec(module.split(".")[0]) is None:
        pytest.skip(f"{module.split('.')[0]} is not installed")
    assert hasattr(import_module(module), name)


def test_compile_sets_what_is_taken_back() -> None:
    import torch

    module = torch.nn.Linear(2, 2)
    assert module._compiled_call_impl is None
    module.compile()
    assert module._compiled_call_impl is not None


def test_modules_read_their_weights_from_the_tables_that_offload_fills() -> None:
    import torch

    module = torch.nn.BatchNorm1d(2)
    module._parameters["weight"] = torch.full((2,), 3.0)
    module._buffers["running_mean"] = torch.ones(2)
    assert module.eval()(torch.ones(1, 2)).tolist() == [[0.0, 0.0]]
    assert module.weight.tolist() == [3.0, 3.0]


def test_models_name_the_layers_that_fsdp_gathers() -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    assert "BasicTransformerBlock" in UNet2DConditionModel._no_split_modules
    assert "CLIPEncoderLayer" in CLIPTextModel._no_split_modules


def test_trackers_are_classes_that_say_whether_they_want_a_folder() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert LOGGER_TYPE_TO_CLASS["tensorboard"].requires_logging_directory is True
    assert LOGGER_TYPE_TO_CLASS["wandb"].requires_logging_directory is False


def test_pipelines_name_the_parts_whose_loras_they_load() -> None:
    from diffusers import FluxPipeline, StableDiffusionXLPipeline

    assert "transformer" in FluxPipeline._lora_loadable_modules
    assert {"unet", "text_encoder", "text_encoder_2"} <= set(StableDiffusionXLPipeline._lora_loadable_modules)


def test_pipelines_of_transformers_pack_latents() -> None:
    from diffusers import (
        ChromaPipeline,
        Flux2KleinPipeline,
        Flux2Pipeline,
        FluxPipeline,
        Krea2Pipeline,
        QwenImagePipeline,
    )

    for name in ("_pack_latents", "_unpack_latents", "_prepare_latent_image_ids"):
        assert callable(getattr(FluxPipeline, name))
        assert callable(getattr(ChromaPipeline, name))
    assert callable(ChromaPipeline._prepare_attention_mask)
    for name in ("_patchify_latents", "_unpatchify_latents", "_prepare_text_ids", "_prepare_latent_ids"):
        assert callable(getattr(Flux2Pipeline, name))
        assert callable(getattr(Flux2KleinPipeline, name))
    for name in ("_pack_latents", "_unpack_latents"):
        assert callable(getattr(QwenImagePipeline, name))
        assert callable(getattr(Krea2Pipeline, name))
