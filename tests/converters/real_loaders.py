"""The loaders of programs, each with stand-ins for what it imports: `python -m real_loaders PROGRAM SOURCE FOLDER`.

Reads the sample files in FOLDER and prints JSON: sample to the number of modules that the loader takes, and its error.
Models exist without weights (on torch's meta device): a loader looks at names and shapes alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from real_models import CLIP_NAMES, clip, flux, native_unet, unet, unet_config
from real_samples import samples
from safetensors.torch import load_file


def main(program: str, source: str, folder: str) -> None:
    """Print what the loader of `program` makes of each sample."""
    if source:
        sys.path.insert(0, source)
    families = {name.replace(" ", "_").replace(",", ""): family for name, (family, _) in samples().items()}
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        drive = LOADERS[program](Path(source))
        for path in sorted(Path(folder).glob("*.safetensors")):
            try:
                modules, error = drive(families[path.stem], load_file(path), path), ""
            except NotImplementedError:
                continue
            except Exception as raised:  # noqa: BLE001 - any exception of a loader is what we want to know
                modules, error = 0, f"{type(raised).__name__}: {raised}"
            found[path.stem] = {"found": modules, "error": error}
    print(json.dumps(found))  # noqa: T201


def stand_in(*names: str) -> None:
    """Modules that are there and do nothing."""
    for name in names:
        sys.modules[name] = MagicMock(name=name)
        sys.modules[name].__spec__, sys.modules[name].__path__ = ModuleSpec(name, None), []


def comfyui(source: Path):
    sys.argv = ["x", "--cpu"]
    stand_in("torchvision", "torchvision.transforms", "torchaudio", "av", "kornia", "spandrel", "torchsde")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_base
    import comfy.utils

    config = {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072}

    def drive(family, tensors, _):
        if family == "flux":
            native = [
                name if isinstance(name, str) else name[0] for name in comfy.utils.flux_to_diffusers(config).values()
            ]
            base = comfy.model_base.Flux
        else:
            native, base, _config = native_unet(family, comfy.utils), object, unet_config(family)
        names = dict.fromkeys([f"diffusion_model.{name}" for name in native])
        kind = type("Fake", (base,), {"__init__": lambda self: None, "state_dict": lambda self: names})
        model = kind()
        object.__setattr__(model, "model_config", SimpleNamespace(unet_config=config if family == "flux" else _config))
        text = [name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")]
        keys = comfy.lora.model_lora_keys_unet(model, {})
        keys = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: dict.fromkeys(text)), keys)
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys)
        return len({str(key).removesuffix(".bias").removesuffix(".weight") for key in patches})

    return drive


def stand_in_for_management():
    """Of the programs with a copy of ComfyUI in `ldm_patched`: their devices, and no package for attention."""
    packages = ("xformers", "xformers.ops", "torchvision", "torchvision.transforms", "torchsde")
    stand_in("ldm_patched.modules.model_management", *packages)
    import ldm_patched.modules

    management = ldm_patched.modules.model_management = sys.modules["ldm_patched.modules.model_management"]
    for package in ("xformers", "sage_attention", "sage_attention3", "flash_attention"):
        getattr(management, f"{package}_enabled").return_value = False


def reforge(source: Path):
    stand_in_for_management()
    from ldm_patched.modules import lora, lora_convert, utils

    def drive(family, tensors, _):
        unet, text = _unet_and_clip(family, utils)
        keys = lora.model_lora_keys_clip(text, lora.model_lora_keys_unet(unet, {}))
        return _patched(lora.load_lora(lora_convert.convert_lora(tensors), keys))

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
        return 0 if len(loose) > 12 else _patched(in_unet | in_text)

    return drive


def _unet_and_clip(family, utils):
    """Two models with the names of a U-Net's weights and of those of the CLIP text encoders."""
    if family == "flux":
        raise NotImplementedError
    names = dict.fromkeys([f"diffusion_model.{name}" for name in native_unet(family, utils)])
    text = dict.fromkeys([name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")])
    config = SimpleNamespace(unet_config=unet_config(family))
    return SimpleNamespace(state_dict=lambda: names, model_config=config), SimpleNamespace(state_dict=lambda: text)


def _patched(patches):
    return len({str(key).removesuffix(".bias").removesuffix(".weight") for key in patches})


def forge(source: Path):
    stand_in("network", "modules", "modules.shared", "modules.sd_models", "modules.errors", "modules.scripts",
             "backend.args", "backend.memory_management", "backend.operations", "backend.utils")  # fmt: skip
    sys.modules["modules"].shared = sys.modules["modules.shared"]
    sys.modules["modules.shared"].walk_files = lambda *_, **__: []
    sys.modules["modules.shared"].cmd_opts.lora_dir = "/tmp"
    sys.path.insert(0, str(source / "extensions-builtin/sd_forge_lora"))
    import networks
    from packages_3rdparty.comfyui_lora_collection import utils

    config = {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072}

    class Patcher:
        def __init__(self, model):
            self.model = self.cond_stage_model = model
            self.patched = set()

        def clone(self):
            return self

        def add_patches(self, patches, **_):
            self.patched |= {str(key) for key in patches}
            return list(patches)

    def drive(family, tensors, _):
        is_flux = family == "flux"
        native = utils.flux_to_diffusers(config) if is_flux else utils.unet_to_diffusers(unet_config(family))
        names = dict.fromkeys([f"diffusion_model.{n if isinstance(n, str) else n[0]}" for n in native.values()])
        denoiser = SimpleNamespace(
            state_dict=lambda: names,
            diffusion_model=SimpleNamespace(config=config if is_flux else unet_config(family)),
            config=SimpleNamespace(huggingface_repo="flux" if is_flux else "sd"),
        )
        text = [name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")]
        model, encoder = Patcher(denoiser), Patcher(SimpleNamespace(state_dict=lambda: dict.fromkeys(text)))
        for key_map in (networks.model_lora_keys_unet, networks.model_lora_keys_clip):
            key_map.__defaults__[0].clear()
        new_model, new_encoder = networks.load_lora_for_models(model, encoder, tensors, 1, 1)
        patched = new_model.patched | new_encoder.patched
        return len({name.removesuffix(".bias").removesuffix(".weight") for name in patched})

    return drive


def a1111(source: Path):
    names = ("shared", "devices", "sd_models", "errors", "scripts", "sd_hijack", "cache", "hashes", "ui_extra_networks",
             "textual_inversion", "textual_inversion.textual_inversion")  # fmt: skip
    stand_in("modules", "gradio", "lora_patches", *(f"modules.{name}" for name in names))
    for name in names:
        if "." not in name:
            setattr(sys.modules["modules"], name, sys.modules[f"modules.{name}"])
    sys.path.insert(0, str(source / "extensions-builtin/Lora"))
    shared, models = sys.modules["modules.shared"], sys.modules["modules.sd_models"]
    sys.modules["modules.devices"].cpu, sys.modules["modules.devices"].dtype = torch.device("cpu"), torch.float32
    shared.walk_files = lambda *_, **__: []
    shared.cmd_opts.lora_dir = "/tmp"
    import networks

    def drive(family, tensors, path):
        if family == "flux":
            raise NotImplementedError
        mapping = {}
        for name, layer in unet(family).named_modules():
            key = networks.convert_diffusers_name_to_compvis("lora_unet_" + name.replace(".", "_"), False)
            mapping[key] = layer
        text = "transformer_text_model_" if family == "sd1" else "0_transformer_text_model_"
        for name, layer in clip().text_model.named_modules():
            mapping[text + name.replace(".", "_")] = layer
        shared.sd_model = SimpleNamespace(network_layer_mapping=mapping, is_sdxl=family == "sdxl")
        models.read_state_dict = lambda _: tensors
        stored = SimpleNamespace(filename=str(path), name=path.stem)
        return len(networks.load_network(path.stem, stored).modules)

    return drive


def sdnext(source: Path):
    names = ("shared", "errors", "sd_models", "sd_models_compile", "sd_models_utils", "files_cache", "devices",
             "hashes", "model_quant", "scripts_manager", "extra_networks", "modelloader")  # fmt: skip
    stand_in("installer", "fasteners", "orjson", "gradio", "modules.logger", *(f"modules.{name}" for name in names))
    import modules

    for name in (*names, "logger"):
        setattr(modules, name, sys.modules[f"modules.{name}"])
    sys.modules["modules.devices"].cpu, sys.modules["modules.devices"].dtype = torch.device("cpu"), torch.float32
    shared, models = sys.modules["modules.shared"], sys.modules["modules.sd_models"]
    from modules.lora import lora_load

    def drive(family, tensors, path):
        lora_load.lora_cache.clear()
        parts = {"text_encoder": clip()} | ({"transformer": flux()} if family == "flux" else {"unet": unet(family)})
        if family == "sdxl":
            parts["text_encoder_2"] = torch.nn.Module()
        pipe = SimpleNamespace(**parts)
        shared.sd_model, shared.sd_loaded = pipe, True
        shared.sd_model_type = {"sd1": "sd", "flux": "f1"}.get(family, family)
        models.read_state_dict = lambda *_, **__: dict(tensors)
        net = lora_load.load_safetensors(path.stem, SimpleNamespace(filename=str(path), name=path.stem))
        return len(net.modules) if net is not None else 0

    return drive


def kohya(source: Path):
    stand_in("cv2", "imagesize", "voluptuous", "toml", "library.utils", "library.train_util", "library.device_utils",
             "library.sdxl_original_unet", "library.sdxl_model_util", "library.deepspeed_utils")  # fmt: skip
    sys.modules["library.sdxl_original_unet"].SdxlUNet2DConditionModel = type("Sdxl", (), {})
    from networks import lora

    def drive(family, tensors, _):
        if family != "sd1":
            raise NotImplementedError
        network, weights = lora.create_network_from_weights(1.0, None, None, [clip()], unet(family), dict(tensors))
        network.apply_to([clip()], unet(family))
        info = network.load_state_dict(weights, False)
        loaded = [name for name in weights if name.endswith("lora_down.weight") and name not in info.unexpected_keys]
        return len(loaded)

    return drive


def diffusers(_: Path):
    from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin  # noqa: F401

    def drive(family, tensors, _):
        pipeline = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline, "flux": FluxPipeline}[family]
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


INVOKEAI = (
    "app", "app.services", "app.services.config", "app.services.config.config_default", "app.util",
    "app.util.misc", "backend.quantization", "backend.quantization.gguf",
    "backend.quantization.gguf.ggml_tensor", "backend.quantization.gguf.loaders",
    "backend.quantization.gguf.utils", "backend.quantization.sdnq", "backend.quantization.sdnq.detection",
    "backend.quantization.sdnq.loaders", "backend.quantization.sdnq.sdnq_tensor", "backend.util.logging",
)  # fmt: skip


def invokeai(_: Path):
    import peft  # noqa: F401 - it looks for packages, of which there are only stand-ins below

    unet("sd1"), clip()
    stand_in(
        "blake3", "compel", "compel.embeddings_provider", "cv2", "deprecated", "gguf", "onnx", "onnxruntime",
        "picklescan", "picklescan.scanner", "spandrel", "torchvision", "torchvision.transforms",
        *(f"invokeai.{name}" for name in INVOKEAI),
    )  # fmt: skip
    import invokeai.backend.model_manager.load  # noqa: F401 - first, for its modules import each other
    from invokeai.backend.model_manager.configs import lora as configs
    from invokeai.backend.patches.lora_conversions import sd_lora_conversion_utils as sd
    from invokeai.backend.patches.lora_conversions import sdxl_lora_conversion_utils as sdxl

    bases = {"sd1": configs.LoRA_LyCORIS_SD1_Config, "sdxl": configs.LoRA_LyCORIS_SDXL_Config}

    def drive(family, tensors, path):
        if family == "flux":
            raise NotImplementedError
        on_disk = SimpleNamespace(path=path, load_state_dict=lambda *_: tensors, metadata=dict)
        bases[family]._validate_looks_like_lora(on_disk)
        bases[family]._validate_base(on_disk)
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("bundle_emb")}
        kept = sdxl.convert_sdxl_keys_to_diffusers_format(kept) if family == "sdxl" else kept
        layers = sd.lora_model_from_sd_state_dict(kept).layers
        known = {"lora_unet_" + name.replace(".", "_") for name, _ in unet(family).named_modules()}
        text = "lora_te_" if family == "sd1" else "lora_te1_"
        known |= {text + name.replace(".", "_") for name, _ in clip().named_modules()}
        if strange := layers.keys() - known:
            raise AttributeError(f"no module {sorted(strange)[0]}")
        return len(layers)

    return drive


def onetrainer(_: Path):
    for name in ("BaseModel", "util.clip_util"):
        stand_in(f"modules.model.{name}")
    sys.modules["modules.model.BaseModel"].BaseModel = sys.modules["modules.model.BaseModel"].BaseModelEmbedding = (
        object
    )
    stand_in("modules.module.AdditionalEmbeddingWrapper", "modules.module.LoRAModule")
    from modules.model.StableDiffusionModel import StableDiffusionModel
    from modules.util import load_lora_util as util

    def drive(family, tensors, _):
        if family != "sd1" or any("lora_mid" in name for name in tensors):
            raise NotImplementedError  # lora_mid is refused later, by the strict load of a module
        names = {"unet": util.lora_module_names(unet(family)), "text_encoder": util.lora_module_names(clip())}
        body = StableDiffusionModel.diffusers_to_original(MagicMock())
        found = util.to_canonical(
            util.normalize_various(dict(tensors)), component="unet", original_conversion=body, comfy_conversion=body,
            fusion_groups=None, text_encoders=[("text_encoder", "lora_te")], legacy_conversion=None,
            kohya_conversion=None, module_names=names, comfy_te_prefixes={},
        )  # fmt: skip
        known = {f"{part}.{name}" for part, of in names.items() for name in of}
        return len({name for name in known if any(key.startswith(f"{name}.") for key in found)})

    return drive


LOADERS = {
    loader.__name__: loader
    for loader in (comfyui, forge, a1111, sdnext, kohya, diffusers, invokeai, onetrainer, reforge, fooocus)
}

if __name__ == "__main__":
    main(*sys.argv[1:])
