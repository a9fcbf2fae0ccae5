"""The embedding loaders of programs: `python -m real_embeddings PROGRAM SOURCE FOLDER`; see real_loaders.py.

Prints JSON: sample to the SHA-256 of the vectors that each text encoder gets, and the loader's error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import torch
from real_loaders import stand_in, stand_in_for_management
from safetensors.torch import load_file

from pivotune.converters.families import all_families
from pivotune.converters.safetensors_file import write
from pivotune.converters.tensor import RawTensor

SHAPES = {
    "emb_params": {"sd1": {"emb_params": (2, 768)}, "sd2": {"emb_params": (2, 1024)}},
    "emp_params": {"sd1": {"emp_params": (2, 768)}, "sd2": {"emp_params": (2, 1024)}},
    "with output": {"sd1": {"emp_params": (2, 768), "emp_params_out": (2, 768)},
                    "sdxl": {"clip_l": (2, 768), "clip_g": (2, 1280), "clip_l_out": (2, 768), "clip_g_out": (2, 1280)}},
    "token": {"sd1": {"<cat>": (2, 768)}, "sdxl": {"<cat>": (2, 1280)}, "flux": {"<cat>": (2, 768)}},
    "one dimension": {"sd1": {"<cat>": (768,)}, "sd2": {"<cat>": (1024,)}},
    "star": {"sd1": {"*": (2, 768)}},
    "encoders": {"sd1": {"clip_l": (2, 768)}, "sd2": {"clip_l": (2, 1024)}, "sdxl": {"clip_l": (2, 768),
                 "clip_g": (2, 1280)}, "sd3": {"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)},
                 "flux": {"clip_l": (2, 768), "t5": (2, 4096)}},
    "comfyui": {"sd3": {"clip_l": (2, 768), "clip_g": (2, 1280), "t5xxl": (2, 4096)},
                "flux": {"clip_l": (2, 768), "t5xxl": (2, 4096)}},
    "half": {"sdxl": {"clip_l": (2, 768)}, "flux": {"clip_l": (2, 768)}, "sd3": {"clip_g": (2, 1280)}},
    "joined": {"sdxl": {"emb_params": (2, 2048)}},
    "wrong width": {"sd1": {"emb_params": (2, 1024)}, "sdxl": {"emb_params": (2, 768)}},
    "old flux": {"flux": {"clip_g": (2, 768), "t5": (2, 4096)}},
}  # fmt: skip


def write_all(folder: Path) -> dict[str, tuple[str, Path]]:
    """Sample to family and file; every vector has values of its own."""
    found = {}
    for name, families in SHAPES.items():
        for family, shapes in families.items():
            tensors = {}
            for number, (key, shape) in enumerate(shapes.items()):
                values = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32) / 1e4 + number
                tensors[key] = RawTensor("F32", shape, values.numpy().tobytes())
            path = folder / f"{family}_{name.replace(' ', '_')}.safetensors"
            write(path, tensors, {})
            found[path.stem] = (family, path)
    return found


def main(program: str, source: str, folder: str) -> None:
    """Print what the loader of `program` makes of each sample."""
    if source:
        sys.path.insert(0, source)
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        drive = LOADERS[program](Path(source))
        for path in sorted(Path(folder).glob("*.safetensors")):
            family, error, vectors = path.stem.partition("_")[0], "", {}
            try:
                vectors = drive(family, all_families()[family].widths, path)
            except NotImplementedError:
                continue
            except (Exception, AssertionError) as raised:  # noqa: BLE001 - any exception of a loader is an answer
                error = f"{type(raised).__name__}: {raised}"
            hashes = {key: sha256(vector.numpy().tobytes()).hexdigest()[:8] for key, vector in vectors.items()}
            found[path.stem] = {"found": hashes, "error": error}
    print(json.dumps(found))  # noqa: T201


def comfyui(_: Path):
    sys.argv = ["x", "--cpu"]
    stand_in("torchvision", "torchvision.transforms", "torchaudio", "av", "kornia", "spandrel", "torchsde")
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.sd1_clip import load_embed

    names = {"t5": "t5xxl"}

    def drive(family, widths, path):
        found = {
            key: load_embed(path.stem, str(path.parent), size, names.get(key, key)) for key, size in widths.items()
        }
        return {key: vector for key, vector in found.items() if vector is not None and vector.shape[-1] == widths[key]}

    return drive


def fooocus(_: Path):
    stand_in_for_management()
    from ldm_patched.modules.sd1_clip import load_embed

    def drive(family, widths, path):
        if family != "sdxl":
            raise NotImplementedError
        found = {key: load_embed(path.stem, str(path.parent), size, key) for key, size in widths.items()}
        return {key: vector for key, vector in found.items() if vector is not None and vector.shape[-1] == widths[key]}

    return drive


def a1111(source: Path):
    names = ("shared", "devices", "sd_hijack", "sd_models", "images", "sd_samplers", "sd_hijack_checkpoint", "errors",
             "hashes", "textual_inversion.dataset", "textual_inversion.learn_schedule",
             "textual_inversion.image_embedding", "textual_inversion.logging")  # fmt: skip
    stand_in(*(f"modules.{name}" for name in names))
    import modules

    for name in names:
        if "." not in name:
            setattr(modules, name, sys.modules[f"modules.{name}"])
    sys.modules["modules.devices"].device = torch.device("cpu")
    from modules.textual_inversion.textual_inversion import EmbeddingDatabase

    return _webui(EmbeddingDatabase, {"sd1": {"": 768}, "sd2": {"": 1024}, "sdxl": {"": 2048}, "sd3": {"": 2048}})


def reforge(source: Path):
    names = ("shared", "devices", "sd_hijack", "sd_models", "images", "sd_samplers", "sd_hijack_checkpoint", "errors",
             "hashes", "cache", "textual_inversion.dataset", "textual_inversion.learn_schedule",
             "textual_inversion.image_embedding", "textual_inversion.saving_settings")  # fmt: skip
    stand_in("modules", "modules.textual_inversion", *(f"modules.{name}" for name in names))
    sys.modules["modules.devices"].device = torch.device("cpu")
    for name in names:
        if "." not in name:
            setattr(sys.modules["modules"], name, sys.modules[f"modules.{name}"])
    place = source / "modules/textual_inversion/textual_inversion.py"
    spec = spec_from_file_location("modules.textual_inversion.textual_inversion", place)
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return _webui(loaded.EmbeddingDatabase, {"sd1": {"": 768}, "sd2": {"": 1024}, "sdxl": {"": 2048}})


def forge(source: Path):
    from backend.text_processing.textual_inversion import EmbeddingDatabase

    expected = {"sd1": {"clip_l": 768}, "sd2": {"clip_h": 1024}, "sdxl": {"clip_l": 2048, "clip_g": 2048},
                "sd3": {"clip_l": 768, "clip_g": 1280}, "flux": {"clip_l": 768}}  # fmt: skip
    return _webui(lambda: EmbeddingDatabase(None, -1), expected)


def _webui(database, expected):
    """Both keep an embedding whose shape the encoder expects, and use its own key of a dict."""

    def drive(family, widths, path):
        if family not in expected:
            raise NotImplementedError
        found = {}
        for encoder, shape in expected[family].items():
            data = database()
            data.expected_shape, kept = shape, {}
            data.register_embedding = lambda embedding, *_: kept.update(x=embedding)  # noqa: B023
            data.load_from_file(str(path), path.name)
            for key in [key for key in widths if key.startswith("clip") and encoder in ("", key)] if kept else []:
                vector = kept["x"].vec[key] if isinstance(kept["x"].vec, dict) else kept["x"].vec
                if vector.shape[-1] == widths[key]:
                    found[key] = vector
        return found

    return drive


def sdnext(_: Path):
    names = ("shared", "errors", "errorlimiter", "devices", "files_cache")
    stand_in("modules.logger", *(f"modules.{name}" for name in names))
    import modules

    for name in (*names, "logger"):
        setattr(modules, name, sys.modules[f"modules.{name}"])
    shared = sys.modules["modules.shared"]
    shared.opts.diffusers_convert_embed = False
    from modules import textual_inversion

    def drive(family, widths, path):
        if {"sd1": "sd", "sd2": "sd"}.get(family, family) not in textual_inversion.supported_models:
            return {}
        tables = {key: torch.nn.Embedding(4, size) for key, size in widths.items()}
        parts, used = {}, {}
        for number, table in enumerate(tables.values(), 1):
            suffix = "" if number == 1 else f"_{number}"
            parts[f"text_encoder{suffix}"] = SimpleNamespace(get_input_embeddings=lambda table=table: table)
            parts[f"tokenizer{suffix}"] = SimpleNamespace()
        shared.sd_model = SimpleNamespace(**parts)
        textual_inversion.insert_tokens = lambda *_: None
        textual_inversion.insert_vectors = lambda embedding, *_: used.update(
            {key: raw for key, size in widths.items() for raw in embedding.vec if raw.shape[-1] == size})  # fmt: skip
        database = textual_inversion.EmbeddingDatabase()
        database.register_embedding = lambda *_: None
        shared.opts.embeddings_dir = str(path.parent)
        database.load_diffusers_embedding([str(path)])
        return used

    return drive


def invokeai(_: Path):
    from real_loaders import invokeai as prepared

    prepared(_)
    from invokeai.backend.model_manager.configs.textual_inversion import TI_Config_Base
    from invokeai.backend.textual_inversion import TextualInversionModelRaw

    bases = {"sd1": "sd-1", "sd2": "sd-2", "sdxl": "sdxl"}

    def drive(family, widths, path):
        if family not in bases:
            return {}
        on_disk = SimpleNamespace(path=path, load_state_dict=lambda *_: load_file(path))
        if TI_Config_Base._get_base_or_raise(on_disk, path).value != bases[family]:
            return {}
        found = TextualInversionModelRaw.from_checkpoint(path)
        if len(widths) == 2:
            return {"clip_g": found.embedding, "clip_l": found.embedding_2}
        return {next(iter(widths)): found.embedding}

    return drive


LOADERS = {name: globals()[name] for name in ("comfyui", "a1111", "forge", "sdnext", "invokeai", "reforge", "fooocus")}

if __name__ == "__main__":
    main(*sys.argv[1:])
