"""Embedding files of every dialect and container for real_programs.py, and LoRAs with embeddings in them."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz.images import with_chunk, with_pixels
from real_samples import samples

from pivotune.converters.safetensors_file import write
from pivotune.converters.tensor import RawTensor

Files = dict[str, tuple[str, Path]]

SHAPES = {
    "emb_params": {"sd1": {"emb_params": (2, 768)}, "sd2": {"emb_params": (2, 1024)}},
    "emp_params": {"sd1": {"emp_params": (2, 768)}, "sd2": {"emp_params": (2, 1024)}},
    "with output": {"sd1": {"emp_params": (2, 768), "emp_params_out": (2, 768)},
                    "sdxl": {"clip_l": (2, 768), "clip_g": (2, 1280), "clip_l_out": (2, 768), "clip_g_out": (2, 1280)},
                    "flux": {"clip_l": (2, 768), "t5": (2, 4096), "t5_out": (2, 4096)},
                    "chroma": {"t5": (2, 4096), "t5_out": (2, 4096)}},
    "token": {"sd1": {"<cat>": (2, 768)}, "sdxl": {"<cat>": (2, 1280)}, "flux": {"<cat>": (2, 768)}},
    "token of t5": {"flux": {"<cat>": (2, 4096)}, "chroma": {"<cat>": (2, 4096)}},
    "one dimension": {"sd1": {"<cat>": (768,)}, "sd2": {"<cat>": (1024,)}},
    "two tokens": {"sd1": {"<cat>": (2, 768), "<dog>": (2, 768)}},
    "star": {"sd1": {"*": (2, 768)}},
    "encoders": {"sd1": {"clip_l": (2, 768)}, "sd2": {"clip_l": (2, 1024)}, "sdxl": {"clip_l": (2, 768),
                 "clip_g": (2, 1280)}, "sd3": {"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)},
                 "flux": {"clip_l": (2, 768), "t5": (2, 4096)}, "chroma": {"t5": (2, 4096)},
                 "pixart": {"t5": (2, 4096)}, "sana": {"gemma": (2, 2304)}, "cascade": {"clip_g": (2, 1280)},
                 "hidream": {"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096), "llama": (2, 4096)},
                 "hunyuan-video": {"llama": (2, 4096), "clip_l": (2, 768)}},
    "comfyui": {"sd3": {"clip_l": (2, 768), "clip_g": (2, 1280), "t5xxl": (2, 4096)},
                "flux": {"clip_l": (2, 768), "t5xxl": (2, 4096)}},
    "half": {"sdxl": {"clip_l": (2, 768)}, "flux": {"clip_l": (2, 768)}, "sd3": {"clip_g": (2, 1280)},
             "hidream": {"llama": (2, 4096)}, "hunyuan-video": {"clip_l": (2, 768)}},
    "both clips": {"sd3": {"clip_l": (2, 768), "clip_g": (2, 1280)}},
    "other half": {"sdxl": {"clip_g": (2, 1280)}},
    "joined": {"sdxl": {"emb_params": (2, 2048)}},
    "wrong width": {"sd1": {"emb_params": (2, 1024)}, "sdxl": {"emb_params": (2, 768)}},
    "old flux": {"flux": {"clip_g": (2, 768), "t5": (2, 4096)}},
}  # fmt: skip
A1111 = {"name": "cat", "step": 9, "sd_checkpoint": "abc", "sd_checkpoint_name": None}

# Embeddings in LoRAs: names of tensors after `bundle_emb.`
BUNDLES = {
    "bundle of one": {"sd1": {"cat.string_to_param.*": 768}, "sdxl": {"cat.clip_l": 768, "cat.clip_g": 1280},
                      "flux": {"cat.clip_l": 768, "cat.t5": 4096}, "chroma": {"cat.t5": 4096},
                      "sd3": {"cat.clip_l": 768, "cat.clip_g": 1280, "cat.t5": 4096}},
    "bundle of two": {"sd1": {"cat.clip_l": 768, "dog.clip_l": 768},
                      "sdxl": {f"{name}.{key}": size for name in ("cat", "dog")
                               for key, size in (("clip_l", 768), ("clip_g", 1280))},
                      "sd3": {f"{name}.{key}": size for name in ("cat", "dog")
                              for key, size in (("clip_l", 768), ("clip_g", 1280))}},
    "bundle of many": {"sd1": {f"cat{number}.clip_l": 768 for number in range(14)},
                       "sdxl": {f"cat{number}.{key}": size for number in range(7)
                                for key, size in (("clip_l", 768), ("clip_g", 1280))}},
    "bundle with output": {"sd1": {"cat.clip_l": 768, "cat.clip_l_out": 768},
                           "sdxl": {"cat.clip_l": 768, "cat.clip_g": 1280, "cat.clip_l_out": 768}},
    "bundle with dot": {"sd1": {"cat.v1.clip_l": 768}, "sdxl": {"cat.v1.clip_l": 768, "cat.v1.clip_g": 1280},
                        "sd3": {"cat.v1.clip_l": 768, "cat.v1.clip_g": 1280}},
    "bundle of half": {"sdxl": {"cat.clip_l": 768}, "sd3": {"cat.clip_l": 768}},
    "bundle of another": {"sd1": {"cat.clip_l": 1024}},
    "bundle without key": {"sd1": {"cat": 768}},
    "bundle called lora": {"sd1": {"my_lora.clip_l": 768}, "sdxl": {"my_lora.clip_l": 768, "my_lora.clip_g": 1280}},
}  # fmt: skip


def vectors(shape: tuple[int, ...], number: int = 0) -> torch.Tensor:
    """Values that no other tensor of a file has."""
    return (torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32) / 1e4 + number).reshape(shape)


def raw(shape: tuple[int, ...], number: int = 0) -> RawTensor:
    return RawTensor("F32", shape, vectors(shape, number).numpy().tobytes())


def write_all(folder: Path) -> Files:
    """Sample to family and file: safetensors, pickles, images, and LoRAs with embeddings in the embeddings folder."""
    files: Files = {}
    for name, families in SHAPES.items():
        for family, shapes in families.items():
            path = folder / f"{family}_{name.replace(' ', '_')}.safetensors"
            write(path, {key: raw(shape, number) for number, (key, shape) in enumerate(shapes.items())}, {})
            files[path.stem] = (family, path)
    return files | _pickles(folder) | _misnamed(folder) | _images(folder) | write_bundles(folder)


def _misnamed(folder: Path) -> Files:
    """Files whose extension is another container's."""
    pickled, written = folder / "sd1_pickle_called_safetensors.safetensors", folder / "sd1_safetensors_called_pt.pt"
    torch.save({"emb_params": vectors((2, 768))}, pickled, _use_new_zipfile_serialization=False)
    write(folder / "sd1_safetensors_called_sft.sft", {"emb_params": raw((2, 768))}, {})
    write(written, {"emb_params": raw((2, 768))}, {})
    return {path.stem: ("sd1", path) for path in (pickled, written, folder / "sd1_safetensors_called_sft.sft")}


def _pickles(folder: Path) -> Files:
    files: Files = {}
    for name, (family, suffix, value) in _values().items():
        for form in ("zip", "old_zip", "stream"):
            path = folder / f"{family}_{name.replace(' ', '_')}_{form}{suffix}"
            torch.save(value(), path, _use_new_zipfile_serialization=form != "stream")
            if form == "old_zip":
                _as_before_torch_2_7(path)
            files[path.stem] = (family, path)
    return files


def _as_before_torch_2_7(path: Path) -> None:
    """Without the members that torch did not write then."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            if not name.endswith(("/.format_version", "/.storage_alignment")):
                file.writestr(name, data)


def _values() -> dict[str, tuple[str, str, Callable[[], Any]]]:
    """Name to family, extension and what is pickled."""

    def ti(param: Any, **more: Any) -> Callable[[], Any]:
        return lambda: {"string_to_token": {"*": 265}, "string_to_param": param, **more}

    def parameters(**shapes: tuple[int, ...]) -> Any:
        entries = {key: torch.nn.Parameter(vectors(shape, at)) for at, (key, shape) in enumerate(shapes.items())}
        return torch.nn.ParameterDict(entries)

    one, wide = vectors((2, 768)), vectors((2, 1280), 1)
    two = {"clip_l": one, "clip_g": wide}
    return {
        "a1111": ("sd1", ".pt", ti({"*": one}, **A1111)),
        "a1111 bin": ("sd1", ".bin", ti({"*": one}, **A1111)),
        "a1111 trained": ("sd1", ".pt", ti({"*": torch.nn.Parameter(one)}, **A1111)),
        "a1111 of SD 2": ("sd2", ".pt", ti({"*": vectors((2, 1024))}, **A1111)),
        "a1111 of SDXL": ("sdxl", ".pt", ti({"*": vectors((2, 2048))}, **A1111)),
        "a1111 without name": ("sd1", ".pt", ti({"*": one})),
        "a1111 of two": ("sd1", ".pt", ti({"*": one, "cat": vectors((2, 768), 1)}, **A1111)),
        "a1111 with placeholder": ("sd1", ".pt", ti({"cat": one}, **A1111)),
        "original": ("sd1", ".pt", lambda: {"string_to_token": {"*": torch.tensor(265)},
                                            "string_to_param": parameters(a=(2, 768))}),
        "original of two": ("sd1", ".pt", lambda: {"string_to_token": {"a": torch.tensor(265)},
                                                   "string_to_param": parameters(a=(2, 768), b=(2, 768))}),
        "hcp": ("sd1", ".pt", lambda: {"string_to_param": {"*": one}, "name": "cat"}),
        "kohya": ("sd1", ".pt", lambda: {"emb_params": one}),
        "kohya ckpt": ("sd1", ".ckpt", lambda: {"emb_params": one}),
        "lycoris": ("sd1", ".pt", lambda: {"clip_l": one, "name": "cat"}),
        "diffusers": ("sd1", ".bin", lambda: {"<cat>": one}),
        "diffusers trained": ("sd1", ".bin", lambda: {"<cat>": torch.nn.Parameter(one)}),
        "diffusers of one vector": ("sd1", ".bin", lambda: {"<cat>": one[0].clone()}),
        "diffusers of two": ("sd1", ".bin", lambda: {"<cat>": one, "<dog>": vectors((2, 768), 1)}),
        "diffusers ordered": ("sd1", ".bin", lambda: OrderedDict({"<cat>": one})),
        "encoders": ("sdxl", ".pt", lambda: dict(two)),
        "encoders bin": ("sdxl", ".bin", lambda: dict(two)),
        "encoders ordered": ("sdxl", ".pt", lambda: OrderedDict(two)),
        "encoders of SD 3": ("sd3", ".pt", lambda: {**two, "t5": vectors((2, 4096), 2)}),
        "encoders of FLUX": ("flux", ".pt", lambda: {"clip_l": one, "t5": vectors((2, 4096), 2)}),
        "list": ("sdxl", ".pt", lambda: [{"a": one, "b": wide}, {"c": vectors((2, 768), 2)}]),
        "list of SD 1": ("sd1", ".pt", lambda: [{"a": one}, {"b": vectors((2, 768), 2)}]),
        "list without one": ("sdxl", ".pt", lambda: [{"a": one}]),
        "tensor": ("sd1", ".pt", lambda: one),
    }  # fmt: skip


def _images(folder: Path) -> Files:
    files: Files = {}
    for family, size in (("sd1", 768), ("sd2", 1024), ("sdxl", 2048), ("sdxl_half", 768)):
        param = {"*": {"TORCHTENSOR": vectors((1, size)).tolist()}}
        text = json.dumps({"string_to_token": {"*": 265}, "string_to_param": param, **A1111}).encode()
        for name, image in (("chunk", with_chunk(text)), ("pixels", with_pixels(zlib.compress(text, 9)))):
            path = folder / f"{family}_image_{name}.png"
            path.write_bytes(image)
            files[path.stem] = (family.partition("_")[0], path)
    return files


def write_bundles(folder: Path) -> Files:
    """LoRAs of kohya's layout (of SD 3: diffusers') with embeddings; and each without its `alpha`."""
    files: Files = {}
    known = samples()
    for name, families in BUNDLES.items():
        for family, sizes in families.items():
            lora = known["sd3 peft" if family == "sd3" else f"{family} kohya"][1]
            for alpha in (True, False):
                shapes = {key: shape for key, shape in lora.items() if alpha or not key.endswith(".alpha")}
                if len(shapes) == len(lora) and not alpha:
                    continue
                tensors = {key: RawTensor("F32", (), b"\0\0\x80@") if shape is None else raw(shape)
                           for key, shape in shapes.items()}  # fmt: skip
                bundled = {f"bundle_emb.{key}": raw((2, size), at) for at, (key, size) in enumerate(sizes.items())}
                path = folder / f"{family}_{name.replace(' ', '_')}{'' if alpha else '_without_alpha'}.safetensors"
                write(path, tensors | bundled, {})
                files[path.stem] = (family, path)
    return files
