"""The LoRA loaders of A1111, Forge, Forge Neo and SD.Next; see real_loaders.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import real_families
import torch
from real_common import patched, stand_in
from real_models import CLIP_NAMES, clip, transformer, unet, unet_config

UNETS = ("sd1", "sdxl")
NETWORKS = ("network", "modules", "modules.shared", "modules.sd_models", "modules.errors", "modules.scripts",
            "backend.args", "backend.memory_management", "backend.operations", "backend.utils")  # fmt: skip
FLUX = {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072}


class Patcher:
    """A model that notes what is patched."""

    def __init__(self, model):
        self.model = self.cond_stage_model = model
        self.patched = set()

    def clone(self):
        return self

    def add_patches(self, patches, **_):
        self.patched |= {str(key) for key in patches}
        return list(patches)


def forge(source: Path):
    _networks(source, *NETWORKS)
    import networks
    from packages_3rdparty.comfyui_lora_collection import utils

    def drive(family, tensors, _):
        is_flux = family == "flux"
        native = utils.flux_to_diffusers(FLUX) if is_flux else utils.unet_to_diffusers(unet_config(family))
        config = FLUX if is_flux else unet_config(family)
        return _forged(networks, family, tensors, native.values(), config, "flux" if is_flux else "sd")

    return drive


def forge_neo(source: Path):
    _networks(source, *NETWORKS, "backend.logging", "backend.state_dict")
    sys.modules["backend.args"].dynamic_args = SimpleNamespace(nunchaku=False, ops="")
    import networks
    from modules_forge.packages.comfy import utils

    def drive(family, tensors, _):
        config, repository = {
            "flux": (FLUX, "flux"), "chroma": (FLUX, "chroma"), "qwen-image": ({}, "qwen"),
            "z-image": ({"n_layers": 1, "dim": 3840}, "z-image"),
        }.get(family) or (unet_config(family), "sd")  # fmt: skip
        native = {
            "qwen": lambda: [f"{name}.weight" for name in real_families.NATIVE["qwen-image"]],
            "z-image": lambda: utils.z_image_to_diffusers(config).values(),
            "sd": lambda: utils.unet_to_diffusers(config).values(),
        }.get(repository, lambda: utils.flux_to_diffusers(config).values())()
        return _forged(networks, family, tensors, native, config, repository)

    return drive


def _networks(source: Path, *names: str) -> None:
    """Of Forge and Forge Neo: stand-ins for what their module `networks` imports."""
    stand_in(*names)
    sys.modules["modules"].shared = sys.modules["modules.shared"]
    sys.modules["modules.shared"].walk_files = lambda *_, **__: []
    sys.modules["modules.shared"].cmd_opts.lora_dir = "/tmp"
    sys.modules["modules.shared"].cmd_opts.lora_dirs = []
    sys.path.insert(0, str(source / "extensions-builtin/sd_forge_lora"))


def _forged(networks, family, tensors, native, config, repository):
    """How many weights `load_lora_for_models` patches."""
    names = dict.fromkeys([f"diffusion_model.{name if isinstance(name, str) else name[0]}" for name in native])
    denoiser = SimpleNamespace(
        state_dict=lambda: names,
        diffusion_model=SimpleNamespace(config=config),
        config=SimpleNamespace(huggingface_repo=repository),
    )
    text = [name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")]
    text = text if family in (*UNETS, "flux") else []
    model, encoder = Patcher(denoiser), Patcher(SimpleNamespace(state_dict=lambda: dict.fromkeys(text)))
    for key_map in (networks.model_lora_keys_unet, networks.model_lora_keys_clip):
        key_map.__defaults__[0].clear()
    new_model, new_encoder = networks.load_lora_for_models(model, encoder, tensors, 1, 1)
    return patched(new_model.patched | new_encoder.patched)


WEBUI = ("shared", "devices", "sd_models", "errors", "scripts", "sd_hijack", "cache", "hashes", "images", "sd_samplers",
         "ui_extra_networks", "sd_hijack_checkpoint", "sd_hijack_clip", "modelloader", "prompt_parser",
         "textual_inversion.dataset", "textual_inversion.learn_schedule",
         "textual_inversion.saving_settings")  # fmt: skip


def webui():
    """Of A1111: stand-ins for its user interface and its models."""
    stand_in("gradio", "lora_patches", "k_diffusion", "piexif", "piexif.helper", *(f"modules.{name}" for name in WEBUI))
    import modules

    for name in WEBUI:
        if "." not in name:
            setattr(modules, name, sys.modules[f"modules.{name}"])
    sys.modules["modules.devices"].device = sys.modules["modules.devices"].cpu = torch.device("cpu")
    sys.modules["modules.devices"].dtype = torch.float32
    sys.modules["modules.shared"].cmd_opts.disable_safe_unpickle = False
    sys.modules["modules.images"].read = _image
    sys.modules["k_diffusion"].external.DiscreteSchedule = sys.modules[
        "modules.sd_hijack_clip"
    ].TextConditionalModel = torch.nn.Module


def _image(path):
    from PIL import Image

    return Image.open(path)


def a1111(source: Path):
    load = a1111_network(source)
    return lambda family, tensors, path: len(load(family, tensors, path).modules)


def a1111_network(source: Path):
    """`load_network` on a model with the real names of modules."""
    webui()
    sys.path.insert(0, str(source / "extensions-builtin/Lora"))
    shared, models = sys.modules["modules.shared"], sys.modules["modules.sd_models"]
    shared.walk_files = lambda *_, **__: []
    shared.cmd_opts.lora_dir = "/tmp"
    import networks
    from modules.models.sd3.mmdit import MMDiT
    from modules.models.sd3.sd3_model import SD3Inferencer

    def sd3():
        with torch.device("meta"):
            body = MMDiT(depth=24, patch_size=2, pos_embed_scaling_factor=None, adm_in_channels=2048,
                         context_embedder_config={"target": "torch.nn.Linear", "params": {
                             "in_features": 4096, "out_features": 1536}})  # fmt: skip
        layers = {f"diffusion_model_{name.replace('.', '_')}": layer for name, layer in body.named_modules()}
        depth = SimpleNamespace(model=SimpleNamespace(depth=24))
        return {
            "network_layer_mapping": layers,
            "diffusers_weight_mapping": lambda: SD3Inferencer.diffusers_weight_mapping(depth),
        }

    def others(family):
        layers = {
            networks.convert_diffusers_name_to_compvis("lora_unet_" + name.replace(".", "_"), False): layer
            for name, layer in unet(family).named_modules()
        }
        text = "transformer_text_model_" if family == "sd1" else "0_transformer_text_model_"
        layers |= {text + name.replace(".", "_"): layer for name, layer in clip().text_model.named_modules()}
        return {"network_layer_mapping": layers}

    def load(family, tensors, path):
        if family not in ("sd1", "sdxl", "sd3"):
            raise NotImplementedError
        model = sd3() if family == "sd3" else others(family)
        shared.sd_model = SimpleNamespace(**model, is_sdxl=family == "sdxl")
        models.read_state_dict = lambda _: tensors
        return networks.load_network(path.stem, SimpleNamespace(filename=str(path), name=path.stem))

    return load


def _own_krea2():
    """SD.Next's own model of Krea 2, which has the names of the original code."""
    from pipelines.krea2.transformer_krea2 import Krea2Transformer2DModel

    with torch.device("meta"):
        return Krea2Transformer2DModel(layers=1)


SDNEXT = {"sd1": "sd", "flux": "f1", "z-image": "zimage", "flux2-klein-4b": "f2", "flux2-klein-9b": "f2",
          "flux2-dev": "f2"}  # fmt: skip


def sdnext(source: Path):
    load = sdnext_network(source)
    return lambda family, tensors, path: len(getattr(load(family, tensors, path), "modules", ()))


def sdnext_network(source: Path):
    """`load_safetensors` on a model with the real names of modules."""
    names = ("shared", "errors", "sd_models", "sd_models_compile", "sd_models_utils", "files_cache", "devices",
             "hashes", "model_quant", "scripts_manager", "extra_networks", "modelloader")  # fmt: skip
    stand_in("installer", "fasteners", "orjson", "gradio", "modules.logger", *(f"modules.{name}" for name in names))
    import modules

    for name in (*names, "logger"):
        setattr(modules, name, sys.modules[f"modules.{name}"])
    sys.modules["modules.devices"].cpu, sys.modules["modules.devices"].dtype = torch.device("cpu"), torch.float32
    shared, models = sys.modules["modules.shared"], sys.modules["modules.sd_models"]
    from modules.lora import lora_load

    stored: dict = {}
    models.read_state_dict = lambda *_, **__: dict(stored)
    sys.modules["modules.sd_models_utils"].read_state_dict = models.read_state_dict

    def drive(family, tensors, path):
        lora_load.lora_cache.clear()
        body = {"unet": unet(family)} if family in UNETS else {
            "transformer": _own_krea2() if family == "krea2" else transformer(family)}  # fmt: skip
        parts = {"text_encoder": clip()} | body
        if family == "sdxl":
            parts["text_encoder_2"] = torch.nn.Module()
        pipe = SimpleNamespace(**parts)
        shared.sd_model, shared.sd_loaded = pipe, True
        shared.sd_model_type = SDNEXT.get(family, family)
        stored.clear()
        stored.update(tensors)
        return lora_load.load_safetensors(path.stem, SimpleNamespace(filename=str(path), name=path.stem))

    return drive
