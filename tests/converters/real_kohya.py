"""The LoRA loaders of kohya's sd-scripts, with their own models without weights; see real_loaders.py.

As train_network.py loads `--network_weights`: into a network with the modules of the file (`--dim_from_weights`), or
where that asks for an alpha that is not there, with those that a script trains by default.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch
from real_common import stand_in
from real_models import clip, t5, unet

# Family to the module of its network
NETWORKS = {"sd1": "lora", "sdxl": "lora", "sd3": "lora_sd3", "flux": "lora_flux", "lumina2": "lora_lumina",
            "anima": "lora_anima"}  # fmt: skip


def kohya(source: Path):
    """How many of the file's modules the network takes."""
    import diffusers

    diffusers.AutoencoderKL, clip(), t5(), unet("sd1")
    stand_in("cv2", "imagesize", "voluptuous", "toml", "library.train_util", "library.device_utils",
             "library.deepspeed_utils", "library.utils")  # fmt: skip
    sys.modules["library.utils"].setup_logging = sys.modules["library.device_utils"].init_ipex = lambda *_, **__: None
    models: dict = {}

    def drive(family, tensors, path):
        if family not in models:
            models[family] = _models(family)
        network_module, texts, denoiser = models[family]
        arguments = {"train_t5xxl": "True"} if "lora_te3_" in " ".join(tensors) else {}
        try:
            network, _ = network_module.create_network_from_weights(1.0, None, None, texts, denoiser, dict(tensors))
        except KeyError:
            network = network_module.create_network(1.0, 4, 1.0, None, texts, denoiser, **arguments)
        network.apply_to(texts, denoiser)
        info = network.load_state_dict(dict(tensors), False)
        return len([name for name in tensors if name.endswith("lora_down.weight") and name not in info.unexpected_keys])

    return drive


def _models(family: str):
    makers = {"sd1": lambda: unet("sd1"), "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "lumina2": _lumina2,
              "anima": _anima}  # fmt: skip
    texts = {"sd3": [clip(), clip(), t5()], "flux": [clip(), t5()], "sdxl": [clip(), clip()],
             "lumina2": [torch.nn.Module()], "anima": [torch.nn.Module()]}.get(family, [clip()])  # fmt: skip
    with torch.device("meta"):
        return import_module(f"networks.{NETWORKS[family]}"), texts, makers[family]()


def _sdxl():
    from library.sdxl_original_unet import SdxlUNet2DConditionModel

    return SdxlUNet2DConditionModel()


def _sd3():
    from library.sd3_models import MMDiT

    return MMDiT(input_size=None, depth=24, in_channels=16, patch_size=2, adm_in_channels=2048,
                 context_embedder_in_features=4096, context_embedder_out_features=1536)  # fmt: skip


def _flux():
    from library.flux_models import Flux, FluxParams

    return Flux(FluxParams(in_channels=64, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
                           num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000,
                           qkv_bias=True, guidance_embed=True))  # fmt: skip


def _lumina2():
    from library.lumina_models import NextDiT

    return NextDiT(patch_size=2, in_channels=16, dim=2304, n_layers=1, n_refiner_layers=1, n_heads=24, n_kv_heads=8,
                   cap_feat_dim=2304, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512])  # fmt: skip


def _anima():
    from library.anima_models import Anima

    return Anima(max_img_h=240, max_img_w=240, max_frames=1, in_channels=16, out_channels=16, patch_spatial=2,
                 patch_temporal=1, model_channels=2048, num_blocks=1, num_heads=16, crossattn_emb_channels=1024,
                 use_adaln_lora=True, pos_emb_cls="rope3d", adaln_lora_dim=256)  # fmt: skip
