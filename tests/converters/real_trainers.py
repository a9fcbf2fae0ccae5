"""The embedding loaders of the trainers: OneTrainer and kohya's sd-scripts; see real_embeddings.py."""

from __future__ import annotations

import ast
import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch

from pivotune.recipes.micro.tokenizer import build_tokenizer

# Family to OneTrainer's name for it, and the encoders in its order
ONETRAINER = {
    "sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3",
    "flux": "Flux", "chroma": "Chroma", "pixart": "PixArtAlpha", "sana": "Sana", "hidream": "HiDream",
    "hunyuan-video": "HunyuanVideo", "cascade": "Wuerstchen",
}  # fmt: skip


class Anything(ModuleType):
    """A module in which every name is a class of its own, so that others can inherit from it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (), {})
        setattr(self, name, found)
        return found


def stand_in(*names: str) -> None:
    for name in names:
        sys.modules[name] = Anything(name)
        sys.modules[name].__spec__, sys.modules[name].__path__ = ModuleSpec(name, None), []


def onetrainer(source: Path):
    """The loader's file reading, then the setup that takes tensors by name and gives them to the encoders."""
    real = {"modules.model.BaseModel", "modules.modelLoader.mixin.EmbeddingLoaderMixin", "modules.util.ModelNames"}
    real |= {f"modules.{part}" for of in set(ONETRAINER.values())
             for part in (f"model.{of}Model", f"modelSetup.Base{of}Setup")}  # fmt: skip
    folders = {path.parent.relative_to(source) for path in (source / "modules").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    files = {".".join(path.relative_to(source).with_suffix("").parts) for path in (source / "modules").rglob("*.py")}
    import diffusers.pipelines.pipeline_utils  # noqa: F401 - before torchvision is only a stand-in

    stand_in("torchvision", "torchvision.transforms", *sorted(files - real - packages))
    from modules.modelLoader.mixin.EmbeddingLoaderMixin import EmbeddingLoaderMixin

    def drive(family, widths, path):
        if family not in ONETRAINER:
            return {}
        setup = getattr(import_module(f"modules.modelSetup.Base{ONETRAINER[family]}Setup"),
                        f"Base{ONETRAINER[family]}Setup")  # fmt: skip
        one = SimpleNamespace(uuid="x", model_name=str(path), placeholder="<x>")
        one.is_output_embedding = "_out" in path.read_bytes()[:2000].decode("latin-1")
        model = _model(widths)
        EmbeddingLoaderMixin._load(EmbeddingLoaderMixin(), model, "/nowhere", SimpleNamespace(
            all_embedding=lambda: [one]))  # fmt: skip
        config = SimpleNamespace(all_embedding_configs=lambda: [one], embedding=one)
        this = SimpleNamespace(train_device=torch.device("cpu"), temp_device=None,
                               _add_embeddings_to_tokenizer=lambda *_: None)  # fmt: skip
        setup._setup_embeddings(this, model, config)
        return _taken(model.embedding, widths)

    return drive


def _model(widths):
    parts = {}
    for number, _ in enumerate(widths, 1):
        text = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=torch.zeros(1)))
        for name in ("text_encoder", "prior_text_encoder", f"text_encoder_{number}"):
            parts[name] = text
        for name in ("tokenizer", "prior_tokenizer", f"tokenizer_{number}"):
            parts[name] = None
        for name in ("all_text_encoder_embeddings", "all_prior_text_encoder_embeddings",
                     f"all_text_encoder_{number}_embeddings"):  # fmt: skip
            parts[name] = list
    return SimpleNamespace(embedding_state_dicts={}, **parts)


def _taken(embedding, widths):
    """Vectors of the embedding by encoder key; those of the output are called `…_out`."""
    found = {}
    for of, (key, size) in zip(vars(embedding).values(), widths.items(), strict=True):
        if of.vector is not None and of.vector.shape[-1] == size:
            found[f"{key}_out" if of.is_output_embedding else key] = (
                of.output_vector if of.is_output_embedding else of.vector
            )
    return found


def kohya(source: Path):
    """What gen_img.py does with `--textual_inversion_embeddings`, a part of its `main`."""
    stand_in("library.device_utils", "library.original_unet", "library.utils")
    sys.modules["library.utils"].setup_logging = sys.modules["library.device_utils"].init_ipex = lambda: None
    from library import model_util

    tree = ast.parse((source / "gen_img.py").read_text(encoding="utf-8"))
    part = next(node for node in ast.walk(tree) if isinstance(node, ast.If)
                and ast.unparse(node.test) == "args.textual_inversion_embeddings")  # fmt: skip
    code = compile(ast.Module([part], []), "gen_img.py", "exec")

    def drive(family, widths, path):
        if family not in ("sd1", "sd2", "sdxl"):
            return {}
        tokenizers, known = [build_tokenizer() for _ in widths], len(build_tokenizer())
        encoders = [_Table(known, size) for size in widths.values()]
        exec(code, {
            "args": SimpleNamespace(textual_inversion_embeddings=[str(path)]), "is_sdxl": family == "sdxl",
            "model_util": model_util, "os": os,
            "torch": torch, "tokenizers": tokenizers, "text_encoders": encoders, "pipe": MagicMock(),
            "logger": MagicMock(),
        })  # fmt: skip
        found = {key: encoder.table.weight.detach()[known:] for key, encoder in zip(widths, encoders, strict=True)}
        if any((rows == rows[:, :1]).all() for rows in found.values()):
            raise ValueError("each number of a vector became a vector")
        return found

    return drive


class _Table:
    """A text encoder that has a table of vectors alone."""

    def __init__(self, count, size):
        self.table = torch.nn.Embedding(count, size)

    def get_input_embeddings(self):
        return self.table

    def resize_token_embeddings(self, count):
        self.table = torch.nn.Embedding(count, self.table.weight.shape[1])
