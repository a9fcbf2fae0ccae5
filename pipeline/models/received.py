"""Checks the files of a model from elsewhere, and turns what libraries raise for it into one line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RecipeError, StageError
from ..files import LARGEST, read_json
from ..recipe.model import ModelSpec
from .index import index_file, plain_index


@contextmanager
def load_errors(as_stage_error: Callable[[Exception], StageError]) -> Iterator[None]:
    """Whatever a library raises while a model is read or built becomes the error that `as_stage_error` makes of it."""
    try:
        yield
    except (StageError, RecipeError):
        raise
    except Exception as error:
        raise as_stage_error(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by libraries in Rust
            raise
        raise as_stage_error(ValueError(one_line(error))) from error


def model_error(spec: ModelSpec, why: Exception | str, hint: str = "") -> StageError:
    """The error of a model that cannot be loaded: which one, why, and what to do."""
    from ..system_errors import out_of_memory

    full = out_of_memory(why) if isinstance(why, Exception) else None
    return StageError(full or f"model.base = {spec.base!r} cannot be loaded: {one_line(why)}{hint}")


_SHAPES = re.compile(r"(\S+) expected shape torch\.Size\(\[(.*?)\]\), but got torch\.Size\(\[(.*?)\]\)")


def one_line(why: BaseException | str) -> str:
    """The first line of a library's message, without advice to run the code in a file."""
    text = str(why).strip() or type(why).__name__
    if "weights_only" in text:
        return "its pickle contains more than tensors, which is never loaded"
    if (found := _SHAPES.search(text)) is not None:
        return f"{found[1]} has the shape ({found[3]}) instead of ({found[2]}): it is of another kind of model"
    if isinstance(why, (TypeError, AttributeError, KeyError, AssertionError, ZeroDivisionError, RecursionError)):
        text = f"its files do not fit together ({type(why).__name__}: {text})"
    return text.splitlines()[0][:500].rstrip(". ")


LARGE = 1 << 27  # bytes of a vocabulary or a tokenizer
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt",
    "chat_template.jinja",
)  # fmt: skip
_BIG = ("tokenizer.json", "vocab.json", "added_tokens.json", "spiece.model", "tokenizer.model")
USUAL = (
    "unet", "transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer",
    "tokenizer_2", "tokenizer_3",
)  # fmt: skip  # read even if the index does not list them
_TEMPLATES = "additional_chat_templates"  # the one folder in a part that transformers reads
_LIBRARIES = ("diffusers", "transformers")
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Part of a key: the largest value that a model has. The first match counts.
BOUNDS = {
    "num_train_timesteps": 100_000, "sample_size": 4096, "pos_embed_max_size": 4096, "patch_size": 256,
    "layers": 512, "blocks": 512, "vocab": 2_000_000, "extra_ids": 100_000, "position": 1_000_000, "heads": 1024,
    "groups": 65_536, "buckets": 65_536, "input_dim": 1_000_000, "intermediate_size": 1_000_000, "d_ff": 1_000_000,
    "channels": 65_536, "dim": 65_536, "hidden_size": 65_536, "d_model": 65_536, "d_kv": 65_536,
    "num_class_embeds": 1_000_000, "total_size": 1 << 48, "size": 1_000_000, "num_": 1_000_000,
}  # fmt: skip
_POSITIVE = ("scaling_factor", "num_train_timesteps", "model_max_length")
_NAMES = ("prediction_type", "_class_name")
_UNREAD = ("special_tokens_map_file",)  # real models have it; no library opens the file it names
_ENDLESS = ("lambda_min_clipped", "model_max_length")  # real models have -Infinity and 1e30


def check_model_folder(folder: Path) -> None:
    """Check every small file of a diffusers folder. StageError names the first that is not acceptable."""

    def parts() -> Iterator[str]:
        index_path = index_file(folder)
        yield from USUAL
        if os.path.lexists(index_path):
            yield from _parts(index_path, read_config(index_path, folder))

    check_parts(folder, parts())


def check_parts(folder: Path, parts: Iterable[str]) -> None:
    """Check every small file of these parts of a diffusers folder, as `check_model_folder` does."""
    try:
        for name in dict.fromkeys(parts):
            _part(folder, folder / name)
    except (OSError, ValueError, RuntimeError) as error:  # the last: links in a circle
        raise StageError(_line(error)) from error


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _parts(path: Path, index: dict[str, Any]) -> Iterator[str]:
    try:
        index = plain_index(index)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, value in index.items():
        if not isinstance(value, list) or name in ("safety_checker", "feature_extractor") or value[:1] == [None]:
            continue
        if value and all(isinstance(one, int) for one in value):
            continue  # a setting of the pipeline, as the layers in Krea 2's
        if os.path.basename(name) != name or name in ("", ".", "..") or "\\" in name:
            raise ValueError(f"{path}: {name!r} is not a valid name of a part")
        if len(value) != 2 or value[0] not in _LIBRARIES or not isinstance(value[1], str):
            raise ValueError(f"{path}: {name} must be a class of {' or '.join(_LIBRARIES)}, not {str(value)[:60]}")
        yield name


def _part(model: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    _inside(folder, model)
    if not folder.is_dir():
        raise ValueError(f"{folder}: it must be a folder")
    for path in sorted(folder.iterdir()):
        if path.name == _TEMPLATES:
            _part(model, path)
        elif path.name == "adapter_config.json":
            raise ValueError(f"{path}: an adapter next to the model would change it; remove it")
        if path.is_dir():
            continue
        weights = path.name.lower().endswith(WEIGHTS)
        if weights and path.is_symlink() and not path.exists():
            continue  # weights that were not downloaded; loading reports those that it needs
        if not path.is_file():
            raise ValueError(f"{path}: not a regular file, or a broken link")
        if weights:
            continue
        _inside(path, model)
        big = path.name in _BIG
        if path.stat().st_size > (LARGE if big else LARGEST):
            raise ValueError(f"{path}: it is too large ({path.stat().st_size:,} bytes)")
        if path.suffix == ".json" and not big:
            read_config(path, model)


def read_config(path: Path, model: Path) -> dict[str, Any]:
    """The object in a config of a model's folder, checked. OSError or ValueError name the file."""
    _inside(path, model)
    config = read_json(path)
    _check(path, model, config)
    return config


def _inside(path: Path, model: Path) -> None:
    """ValueError for a link that points outside the model."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(model))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(one) for one in homes):
        raise ValueError(f"{path}: a link that points outside the model; replace it with a copy of the file")


def regular_in(path: Path, model: Path) -> bool:
    """Whether this is a regular file inside the model."""
    try:
        _inside(path, model)
    except (OSError, ValueError):
        return False
    return path.is_file()


def _check(path: Path, model: Path, value: object, key: str = "") -> None:
    if key == "weight_map" and isinstance(value, dict):
        for name in value.values():
            if not isinstance(name, str) or os.path.basename(name) != name or "\\" in name:
                raise ValueError(f"{path}: its weights are next to it, not in {str(name)[:60]!r}")
    elif isinstance(value, dict):
        for name, one in value.items():
            _refuse_code(path, name, one)
            _refuse_files(path, model, name, one)
            _check(path, model, one, name)
    elif isinstance(value, list):
        for one in value:
            _check(path, model, one, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _number(path, key, value)
    if key in _NAMES and value is not None and not (isinstance(value, str) and len(value) < 200):
        raise ValueError(f"{path}: {key} must be a name, not {str(value)[:60]!r}")
    if key == "shift_factor" and not (
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    ):
        raise ValueError(f"{path}: {key} must be a number, not {str(value)[:60]!r}")
    if key == "model_max_length" and value is None:  # the same as no key
        return
    if key in _POSITIVE and not (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0):
        raise ValueError(f"{path}: {key} must be a number above 0, not {str(value)[:60]!r}")


def _refuse_code(path: Path, name: str, value: object) -> None:
    if "attn_implementation" in name and not name.endswith("autoset"):
        named = value.values() if isinstance(value, dict) else [value]
        if any(one is not None and one not in _ATTENTIONS for one in named):
            raise ValueError(f"{path}: {name} = {str(value)[:60]!r} would load other code; remove it")
    if name in ("auto_map", "custom_pipeline", "trust_remote_code", "_custom_code") and value:
        raise ValueError(f"{path}: {name} would run the model's own code, which is not supported; remove it")
    if name == "quantization_config" and value is not None:
        raise ValueError(f"{path}: its weights are quantised and cannot be trained; use the model in full precision")


def _refuse_files(path: Path, model: Path, name: str, value: object) -> None:
    """ValueError for a config that names an existing file outside the model: tokenizers would read it."""
    if not name.endswith(("_file", "_files")) or name in _UNREAD:
        return
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and os.path.basename(one) != one and len(one) < 4096 and "\0" not in one:
            for target in (path.parent / one, Path(one)):
                if target.exists() and not regular_in(target, model):
                    raise ValueError(f"{path}: {name} points outside the model, to {target}; remove it")


def _number(path: Path, key: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value) and key not in _ENDLESS:
        raise ValueError(f"{path}: {key} = {value} is out of range")
    if key in _ENDLESS or key.endswith("token_id"):
        return
    most = next((most for part, most in BOUNDS.items() if part in key), 1 << 40)
    if abs(value) > most:
        raise ValueError(f"{path}: {key} = {str(value)[:30]} is too large (at most {most:,})")
