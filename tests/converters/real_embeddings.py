"""The embedding loaders of programs: `python -m real_embeddings PROGRAM SOURCE FOLDER`; see real_loaders.py.

Prints JSON: sample to the SHA-256 of the vectors that each text encoder gets, and the loader's error.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import real_trainers
import torch
from real_common import print_answers, stand_in, stand_in_for_comfyui, stand_in_for_management
from real_webuis import webui

from pivotune.converters.families import all_families


def main(program: str, source: str, folder: str) -> None:
    """Print what the loader of `program` makes of each sample."""
    print_answers(LOADERS[program], source, folder, _hashes, nothing={})


def _hashes(drive, path: Path) -> dict[str, str]:
    family = path.stem.partition("_")[0]
    return hashes(drive(family, all_families()[family].widths, path))


def hashes(vectors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Each text encoder's vectors as a short text."""
    arrays = {key: vector.detach().contiguous().numpy() for key, vector in vectors.items()}
    return {key: sha256(array.tobytes()).hexdigest()[:8] for key, array in arrays.items()}


def as_before_torch_2_6() -> None:
    """Programs that bring an older torch: its torch.load runs the code of a pickle unless an option forbids it."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def comfyui(_: Path):
    stand_in_for_comfyui()
    from comfy.sd1_clip import load_embed

    names = {"t5": "t5xxl"}

    def drive(family, widths, path):
        found = {
            key: load_embed(path.stem, str(path.parent), size, names.get(key, key))
            for key, size in widths.items()
            if key != "gemma"  # its tokenizer gets no folder
        }
        return {key: vector for key, vector in found.items() if vector is not None and vector.shape[-1] == widths[key]}

    return drive


def fooocus(_: Path):
    as_before_torch_2_6()
    stand_in_for_management()
    from ldm_patched.modules.sd1_clip import load_embed

    def drive(family, widths, path):
        if family != "sdxl":
            raise NotImplementedError
        found = {key: load_embed(path.stem, str(path.parent), size, key) for key, size in widths.items()}
        return {key: vector for key, vector in found.items() if vector is not None and vector.shape[-1] == widths[key]}

    return drive


def a1111(_: Path):
    as_before_torch_2_6()
    webui()
    import modules.safe  # noqa: F401 - it takes the place of torch.load
    from modules.textual_inversion.textual_inversion import EmbeddingDatabase

    return _webui(EmbeddingDatabase, {"sd1": {"": 768}, "sd2": {"": 1024}, "sdxl": {"": 2048}, "sd3": {"": 2048}})


def reforge(source: Path):
    stand_in("modules", "modules.textual_inversion")
    webui()
    folder = source / "modules/textual_inversion"
    _loaded("modules.textual_inversion.image_embedding", folder / "image_embedding.py")
    loaded = _loaded("modules.textual_inversion.textual_inversion", folder / "textual_inversion.py")
    return _webui(loaded.EmbeddingDatabase, {"sd1": {"": 768}, "sd2": {"": 1024}, "sdxl": {"": 2048}})


def _loaded(name: str, place: Path):
    spec = spec_from_file_location(name, place)
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def forge(source: Path):
    as_before_torch_2_6()
    return _forge({"sd1": {"clip_l": 768}, "sd2": {"clip_h": 1024}, "sdxl": {"clip_l": 2048, "clip_g": 2048},
                   "sd3": {"clip_l": 768, "clip_g": 1280}, "flux": {"clip_l": 768}})  # fmt: skip


def _forge(expected):
    from backend.text_processing.textual_inversion import EmbeddingDatabase

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
    names = ("shared", "errors", "errorlimiter", "devices")
    stand_in("modules.logger", *(f"modules.{name}" for name in names))
    import modules

    for name in (*names, "logger"):
        setattr(modules, name, sys.modules[f"modules.{name}"])
    shared = sys.modules["modules.shared"]
    shared.opts.diffusers_convert_embed = False
    sys.modules["modules.devices"].device = torch.device("cpu")
    from modules import textual_inversion

    def drive(family, widths, path):
        if {"sd1": "sd", "sd2": "sd"}.get(family, family) not in textual_inversion.supported_models:
            return {}
        used = sdnext_tables(textual_inversion, shared, widths)
        shared.opts.embeddings_dir = str(path.parent)
        files = textual_inversion.list_embeddings(str(path.parent))
        textual_inversion.EmbeddingDatabase().load_diffusers_embedding([file for file in files if file == str(path)])
        return next(iter(used.values()), {})

    return drive


def sdnext_tables(textual_inversion, shared, widths):
    """A model with tables of these widths; gives the dict that its embeddings go into, by their names."""
    parts, used = {}, {}
    for number, size in enumerate(widths.values(), 1):
        table, suffix = torch.nn.Embedding(4, size), "" if number == 1 else f"_{number}"
        parts[f"text_encoder{suffix}"] = SimpleNamespace(get_input_embeddings=lambda table=table: table)
        parts[f"tokenizer{suffix}"] = SimpleNamespace()
    shared.sd_model = SimpleNamespace(**parts)
    textual_inversion.insert_tokens = textual_inversion.deref_tokenizers = lambda *_: None

    def insert(embedding, _tokenizers, _encoders, sizes):
        pairs = zip(embedding.vec, embedding.vector_sizes, strict=False)
        used[embedding.name] = {list(widths)[sizes.index(size)]: vector for vector, size in pairs if size in sizes}

    textual_inversion.insert_vectors = insert
    textual_inversion.EmbeddingDatabase.register_embedding = lambda *_: None
    return used


def invokeai(source: Path):
    from real_loaders import invokeai as prepared

    prepared(source)
    from invokeai.backend.model_manager import model_on_disk
    from invokeai.backend.model_manager.configs.textual_inversion import TI_Config_Base
    from invokeai.backend.textual_inversion import TextualInversionModelRaw

    bases = {"sd1": "sd-1", "sd2": "sd-2", "sdxl": "sdxl"}
    model_on_disk.scan_file_path = lambda _: SimpleNamespace(infected_files=0, scan_err=False)
    model_on_disk._is_sdnq_safetensors = lambda _: False

    def drive(family, widths, path):
        if family not in bases:
            return {}
        on_disk = model_on_disk.ModelOnDisk(path)
        if not TI_Config_Base._file_looks_like_embedding(on_disk):
            return {}
        if TI_Config_Base._get_base_or_raise(on_disk).value != bases[family]:
            return {}
        found = TextualInversionModelRaw.from_checkpoint(path)
        if len(widths) == 2:
            return {"clip_g": found.embedding, "clip_l": found.embedding_2}
        return {next(iter(widths)): found.embedding}

    return drive


def diffusers(_: Path):
    import diffusers
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel

    from pivotune.recipes.micro.tokenizer import build_tokenizer

    class Pipe(TextualInversionLoaderMixin):
        hf_device_map = None

    def table(path, size):
        pipe, tokenizer = Pipe(), build_tokenizer()
        config = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=size, intermediate_size=8, num_hidden_layers=1,
                                num_attention_heads=4)  # fmt: skip
        pipe.text_encoder, known = CLIPTextModel(config), len(tokenizer)
        pipe.components = {"text_encoder": pipe.text_encoder}
        pipe.load_textual_inversion(str(path), tokenizer=tokenizer, text_encoder=pipe.text_encoder)
        return pipe.text_encoder.get_input_embeddings().weight.detach()[known:]

    def drive(family, widths, path):
        if not hasattr(getattr(diffusers, all_families()[family].pipeline), "load_textual_inversion"):
            return {}
        errors = []
        for key, size in widths.items():
            try:
                return {key: table(path, size)}
            except (ValueError, RuntimeError) as error:  # the next text encoder may have its width
                errors.append(error)
        raise errors[0]

    return drive


def forge_neo(_: Path):
    """Its torch runs no code of a pickle unless an option allows it."""
    return _forge({"sd1": {"clip_l": 768}, "sdxl": {"clip_l": 2048, "clip_g": 2048}, "flux": {"clip_l": 768}})


LOADERS = {
    "comfyui": comfyui, "a1111": a1111, "forge": forge, "sdnext": sdnext, "invokeai": invokeai, "reforge": reforge,
    "fooocus": fooocus, "diffusers": diffusers, "forge-neo": forge_neo, "kohya": real_trainers.kohya,
    "onetrainer": real_trainers.onetrainer,
}  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
