"""Model folders for tests: written once, copied and changed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from pivotune.pipeline.models.load import Model, load_model
from pivotune.pipeline.recipe.model import ModelSpec

CPU = torch.device("cpu")
WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
State = dict[str, torch.Tensor]
http = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])  # the hub client's own


def hub_answer(kind: Any, status: int) -> Any:
    """An error of the hub's client for an answer of this status."""
    return kind(f"{status} from the hub", response=http.Response(status, request=http.Request("GET", "https://hub")))


def spec_of(base: Path | str, family: str | None = "sd1", dtype: str = "float32", **more: Any) -> ModelSpec:
    options = dict.fromkeys(("revision", "variant", "config")) | more
    return ModelSpec(str(base), family, dtype, **options)


def load(base: Path | str, *args: Any, **more: Any) -> Model:
    return load_model(spec_of(base, *args, **more), CPU)


def rewrite(folder: Path, part: str, change: Callable[[State], State]) -> None:
    """Change the weights of one part of a folder."""
    path = folder / WEIGHTS[part]
    state = change(load_file(path))
    path.unlink()
    save_file(state, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def assert_same_weights(pipe: Any, other: Any) -> None:
    """Every weight of every model of two pipelines is equal bit for bit, and there are as many."""
    modules = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert modules == {name for name, part in other.components.items() if isinstance(part, torch.nn.Module)}
    for name in modules:
        mine, theirs = getattr(pipe, name).state_dict(), getattr(other, name).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
