"""Every layout of embeddings in files, identified by content.

One row a dialect: how to detect it, how to read it. A new spelling of keys is a row over `keyed`; a new structure is a
module with `detect` and `read`. No two rows may claim one file, which a test checks for every pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..embedding import Contents
from ..programs.verdict import Verdict
from ..slots import ENCODERS
from ..stored import Stored
from . import ai_toolkit, bare, bundled, cloneofsimo, comfyui_list, keyed, lora, string_to_param, tokens, xti
from .keyed import FileData


class Dialect(NamedTuple):
    """`name_from` says where such a file has an embedding's name.

    `write` gives the tensors and metadata of a safetensors file; pickles and images are written as kohya's or as one
    tensor an encoder, which every program reads that read the original. `whole`: its writers give every encoder of a
    model, so a single 768-wide tensor is not half of a larger embedding. `verdicts`: what programs do with a dialect
    whose vectors cannot be read as embeddings.
    """

    title: str
    detect: Callable[[Stored], bool]
    read: Callable[[Stored], Contents]
    name_from: str = "file name"
    whole: bool = False
    write: Callable[[Contents], FileData] = keyed.write
    verdicts: Callable[[Stored], dict[str, Verdict]] | None = None


def _keyed(title: str, *keys: str, whole: bool = False, alone: str = "emb_params") -> Dialect:
    detect, write = partial(keyed.detect, keys=frozenset(keys)), partial(keyed.write, alone=alone)
    return Dialect(title, detect, keyed.read, whole=whole, write=write)


def _param(title: str, writer: str, name_from: str = "file name") -> Dialect:
    return Dialect(title, partial(string_to_param.detect, writer=writer), string_to_param.read, name_from, True)


DIALECTS: dict[str, Dialect] = {
    "bundle": Dialect(
        "LoRA with embeddings in it (bundle_emb)", bundled.detect, bundled.read, "tensor names", write=bundled.write
    ),
    "cloneofsimo": Dialect(
        "pivotal LoRA of cloneofsimo/lora", cloneofsimo.detect, cloneofsimo.read, "metadata", write=cloneofsimo.write
    ),
    "ai-toolkit": Dialect(
        "LoRA with a nameless embedding in it (ai-toolkit)", ai_toolkit.detect, ai_toolkit.read, write=ai_toolkit.write
    ),
    "lora": Dialect("LoRA without embeddings", lora.detect, lora.read, write=lora.write),
    "a1111": _param("AUTOMATIC1111 .pt", "a1111"),
    "a1111-image": _param("AUTOMATIC1111 image", "image", "`name` in the image"),
    "original": _param("original textual inversion", "original"),
    "hcp": _param("HCP-Diffusion", "hcp"),
    "kohya": _keyed("kohya, ai-toolkit", "emb_params", whole=True),
    "onetrainer": _keyed("OneTrainer, SD 1 and SD 2", "emp_params", "emp_params_out", whole=True, alone="emp_params"),
    "lycoris": _keyed("unpacked by LyCORIS", "*", whole=True, alone="*"),
    "text-encoders": Dialect(
        "cog-sdxl, diffusers' advanced training of 2023-11",
        partial(keyed.detect, keys=frozenset(("text_encoders_0", "text_encoders_1"))),
        keyed.read_cog,
        "special_params.json, else file name",
    ),
    "encoders": _keyed(
        "one tensor per encoder (SDXL and later)",
        *(key + out for key in (*ENCODERS, "t5xxl", "gemma2_2b") for out in ("", "_out")),
        alone="",
    ),
    "diffusers": Dialect("diffusers learned_embeds", tokens.detect, tokens.read, "tensor name", write=tokens.write),
    "comfyui-list": Dialect("list of dicts (ComfyUI)", comfyui_list.detect, comfyui_list.read),
    "tensor": Dialect("a bare tensor", bare.detect, bare.read),
    "xti": Dialect("extended textual inversion (XTI, P+)", xti.detect, xti.read, verdicts=xti.verdicts),
}

# Dialects that --dialect takes; for --for, `programs` chooses.
WRITABLE = ("kohya", "onetrainer", "lycoris", "encoders", "diffusers", "bundle", "a1111")
