"""The nodes. What they need of ComfyUI is imported when one runs, so that this module can be imported without it.

Interface of a node: `INPUT_TYPES`, `RETURN_TYPES`, `FUNCTION`, `CATEGORY`, `IS_CHANGED` (ComfyUI's nodes.py).
"""

from __future__ import annotations

from importlib import import_module
from os import stat
from pathlib import Path
from typing import Any

from ..bundle import PREFIX
from ..embeddings import with_halves
from ..errors import ConvertError
from ..read import identify, own_embeddings
from .clip import with_embeddings


def _strength(tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01, "tooltip": tooltip}


class _Node:
    """What the nodes share: `FOLDER` is the kind of folder of ComfyUI that has the files, `FILE` the input for one."""

    FOLDER = ""
    FILE = ""
    CATEGORY = "loaders"

    @classmethod
    def files(cls) -> list[str]:
        """The file names that ComfyUI lists for this kind of folder."""
        found: list[str] = import_module("folder_paths").get_filename_list(cls.FOLDER)
        return found

    @classmethod
    def path(cls, name: str) -> Path:
        """The file of a name from that list. ConvertError if it is gone."""
        found = import_module("folder_paths").get_full_path(cls.FOLDER, name)
        if found is None:
            raise ConvertError(f"{name}: is not in ComfyUI's {cls.FOLDER} folder any more; refresh and choose again")
        return Path(found)

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        """Another value when the file was replaced: the node runs again."""
        return stat(cls.path(inputs[cls.FILE])).st_mtime


class LoadLoraWithEmbeddings(_Node):
    """Applies a LoRA and makes the embeddings in its file usable on the returned CLIP alone.

    The third output is what to type for the embeddings: `embedding:cat embedding:dog `.
    """

    FOLDER = "loras"
    FILE = "lora_name"
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "prompt")
    FUNCTION = "load"
    DESCRIPTION = "A LoRA with embeddings in it (a bundle). The output 'prompt' is what to type for the embeddings."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs of the node."""
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (cls.files(),),
                "strength_model": _strength("Strength of the LoRA on the diffusion model"),
                "strength_clip": _strength("Strength of the LoRA on the text encoders"),
                "strength_embeddings": _strength("Factor of the vectors of the embeddings"),
            }
        }

    def load(
        self, model: Any, clip: Any, lora_name: str, strength_model: float, strength_clip: float,
        strength_embeddings: float,
    ) -> tuple[Any, Any, str]:  # fmt: skip
        """The model and the CLIP with the LoRA, the CLIP with the embeddings too, and what to type.

        ConvertError for a file that is neither a LoRA nor an embedding, or whose embeddings are for another model.
        """
        path = self.path(lora_name)
        found = identify(path)
        embeddings = own_embeddings(found.contents)
        if found.contents.rest:
            loaded = import_module("comfy.utils").load_torch_file(str(path), safe_load=True)
            lora = {name: tensor for name, tensor in loaded.items() if not name.startswith(PREFIX)}
            apply = import_module("comfy.sd").load_lora_for_models
            model, clip = apply(model, clip, lora, strength_model, strength_clip)
        if not embeddings:
            return model, clip, ""
        return model, *with_embeddings(clip, embeddings, path, strength_embeddings)


class LoadEmbedding(_Node):
    """Makes the embeddings of a file of any program usable on the returned CLIP alone.

    ComfyUI itself reads some dialects only, and pickles by torch; here no code in a file is run.
    """

    FOLDER = "embeddings"
    FILE = "embedding_name"
    RETURN_TYPES = ("CLIP", "STRING")
    RETURN_NAMES = ("clip", "prompt")
    FUNCTION = "load"
    DESCRIPTION = "An embedding of any program. The output 'prompt' is what to type for it."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs of the node."""
        return {
            "required": {
                "clip": ("CLIP",),
                "embedding_name": (cls.files(),),
                "strength": _strength("Factor of its vectors"),
            }
        }

    def load(self, clip: Any, embedding_name: str, strength: float) -> tuple[Any, str]:
        """The CLIP with the embeddings, and what to type. ConvertError for another file or one for another model."""
        path = self.path(embedding_name)
        found = identify(path)
        embeddings = with_halves(own_embeddings(found.contents), path, found)
        if not embeddings:
            raise ConvertError(f"{path}: there is no embedding in it")
        return with_embeddings(clip, embeddings, path, strength)
