"""Reading as AUTOMATIC1111 1.8 to 1.10: `create_embedding_from_data`, then the width of all CLIP encoders together."""

from __future__ import annotations

from ..stored import Stored
from .reading import BUNDLED, Reading, Vectors, bundle_tensors, clips, cut_at_first_dots, embedding, misnamed, refused
from .webui import PICKLES, embedding_name, parse_embedding, unsafe


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file. Vectors of T5 and others are not used (SD 3)."""
    return refused(why) if (why := unsafe(file)) else reads_safe(file, widths)


def reads_safe(file: Stored, widths: dict[str, int]) -> Reading:
    """As `reads`, without A1111's check of pickles."""
    if why := misnamed(file, PICKLES):
        return refused(why)
    found = parse_embedding(file)
    if isinstance(found, str):
        return refused(found)
    tensors, size = found
    encoders = clips(widths)
    if size != sum(encoders.values()):
        return refused(f"its vectors are {size} wide, the model needs {sum(encoders.values())}; the file is skipped")
    if "" in tensors:
        if len(encoders) != 1:
            return refused("one tensor as wide as both encoders together loads, but fails in a prompt")
        return embedding(embedding_name(file), dict.fromkeys(encoders, tensors[""]), file.tensors, file.tensors)
    return embedding(embedding_name(file), {key: tensors[key] for key in encoders}, file.tensors, encoders)


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings that exist while the LoRA is in the prompt. One embedding that cannot be parsed costs the whole LoRA.

    Follows extensions-builtin/Lora/networks.py; a model with T5 (SD 3) uses the code of 1.10 that splits names
    from the right, needs two dots in every name and does not read string_to_param.
    """
    if "t5" in widths:
        return _reads_lora_of_sd3(file, widths)
    if any("." not in name[len(BUNDLED) :] for name in bundle_tensors(file.tensors)):
        return refused("a bundle_emb tensor has no key after its name, and the whole LoRA is refused")
    return _loaded(cut_at_first_dots(file.tensors), file, widths)


def _reads_lora_of_sd3(file: Stored, widths: dict[str, int]) -> Reading:
    short = next((name for name in file.tensors if name.count(".") < 2), None)
    if short is not None:
        return refused(f"its SD 3 loader needs two dots in every name; {short[:60]!r} has fewer")
    embeddings: dict[str, Vectors] = {}
    for full in bundle_tensors(file.tensors):
        name, _, key = full[len(BUNDLED) :].rpartition(".")
        if "." not in name:
            embeddings.setdefault(name, {})[key] = file.tensors[full]
    return _loaded(embeddings, file, widths)


def _loaded(embeddings: dict[str, Vectors], file: Stored, widths: dict[str, int]) -> Reading:
    kept: dict[str, Vectors] = {}
    used: set[str] = set()
    folded: set[str] = set()
    for name, tensors in embeddings.items():
        if not name or "/" in name or "\\" in name:
            return refused(f"the embedding {name!r} makes loading the whole LoRA fail")
        found = parse_embedding(Stored(file.path.with_name(name), tensors))
        if isinstance(found, str):
            return refused(f"the whole LoRA is refused because of the embedding {name!r}: {found}")
        one = reads(Stored(file.path.with_name(f"{name}.safetensors"), tensors), widths)
        if not one.refusal and name.casefold() not in folded:
            folded.add(name.casefold())
            kept[name] = next(iter(one.embeddings.values()))
            used.update(f"{BUNDLED}{name}.{key}" for key in tensors if key not in one.dropped)
    return Reading(kept, tuple(full for full in bundle_tensors(file.tensors) if full not in used))
