"""`converters/README.md`, made from the registries: `python -m pivotune.converters.reference` prints it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .dialects import DIALECTS, WRITABLE
from .embedding import Contents, Embedding
from .families import Family, all_families
from .programs import NAMES, Program, programs, reads
from .programs.loras import applied
from .stored import Stored
from .tensor import RawTensor, nbytes

# One module in every layout of a U-Net's LoRA, without the ending of a tensor's name.
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
NATIVE = "input_blocks.1.1.transformer_blocks.0"
LAYOUTS = {
    "kohya": "lora_unet_" + BLOCK.replace(".", "_") + "_attn2_to_k",
    "kohya, Stability's block names": "lora_unet_" + NATIVE.replace(".", "_") + "_attn2_to_k",
    "PEFT (diffusers)": f"unet.{BLOCK}.attn2.to_k",
    "ComfyUI (`diffusion_model.`)": f"diffusion_model.{NATIVE}.attn2.to_k",
    "original (bare block names)": f"{NATIVE}.attn2.to_k",
    "LyCORIS (`lycoris_`)": "lycoris_" + BLOCK.replace(".", "_") + "_attn2_to_k",
    "PEFT, wrapped (`base_model.model.`)": f"base_model.model.{BLOCK}.attn2.to_k",
}
PEFT = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight")
TEXT = Path(__file__).with_name("reference.md")  # what is written by hand: {embeddings}, {dialects} … are the tables


def reference() -> str:
    """The whole page as Markdown."""
    text = TEXT.read_text("utf-8")
    for name, table in TABLES.items():
        text = text.replace(f"{{{name}}}", "\n".join(_markdown(table())))
    return text


def _embeddings() -> Iterator[Sequence[str]]:
    """Families by programs: how a program wants its embeddings."""
    yield ("family", *NAMES)
    for family in all_families().values():
        yield (family.title, *(_layout(program, family) for program in programs().values()))


def _layout(program: Program, family: Family) -> str:
    if layout := program.layouts.get(family.name):
        ids = "".join(f" `{name}` (ids)" for name in layout.token_ids)
        return " and ".join(" ".join(f"`{name}`" for name in file.values()) for file in layout.files) + ids
    return "no" if program.no_embeddings(family) else "not known"


def _dialects() -> Iterator[Sequence[str]]:
    """Dialects that single embeddings are written in, as each program reads them."""
    yield ("dialect", "family", *NAMES)
    for dialect in WRITABLE:
        for name in ("sd1", "sdxl"):
            family = all_families()[name]
            if (file := _file(dialect, family)) is not None:
                yield (dialect, family.title, *(_reads(program, file, family) for program in NAMES))


def _file(dialect: str, family: Family) -> Stored | None:
    vectors = {key: _tensor((2, width)) for key, width in family.widths.items()}
    single = {"diffusers", "kohya", "onetrainer", "lycoris"}
    if dialect in ("bundle", "a1111") or (dialect in single and len(vectors) > 1):
        return None
    tensors, metadata = DIALECTS[dialect].write(Contents((Embedding("cat", vectors),)))
    return Stored(Path("cat.safetensors"), tensors, metadata)


def _reads(program: str, file: Stored, family: Family) -> str:
    reading = reads(program, file, family.widths)
    return "no" if reading.refusal else "partly" if reading.dropped or reading.notes else "yes"


def _layouts() -> Iterator[Sequence[str]]:
    """Layouts of a LoRA's modules, of which each program applies some."""
    yield ("layout", *NAMES)
    for title, module in LAYOUTS.items():
        down, up = KOHYA if "_" in module.partition(".")[0] and "." not in module else PEFT
        tensors = {f"{module}.{down}": _tensor((4, 768)), f"{module}.{up}": _tensor((320, 4))}
        file = Stored(Path("x.safetensors"), tensors)
        found = (applied(program, file, _unet_family(program)) for program in programs().values())
        yield (title, *("not known" if layers is None else "yes" if layers.applied else "no" for layers in found))


def _unet_family(program: Program) -> Family:
    """The first family with a U-Net that the program runs."""
    with_unet = (family for family in all_families().values() if family.denoiser_module == "unet")
    return next(family for family in with_unet if program.runs is None or family.name in program.runs)


def _kinds() -> Iterator[Sequence[str]]:
    """Kinds of modules by programs."""
    yield ("kind of module", *NAMES)
    for kind in dict.fromkeys(kind for program in programs().values() for kind in program.lora_kinds):
        yield (kind, *("yes" if kind in program.lora_kinds else program.other_kinds for program in programs().values()))


def _families() -> Iterator[Sequence[str]]:
    """Families by programs: whether the rules for their LoRAs are known."""
    yield ("family", *NAMES)
    for family in all_families().values():
        yield (family.title, *(_runs(program, family) for program in programs().values()))


def _runs(program: Program, family: Family) -> str:
    if family.name in program.lora_refuses or (program.runs is not None and family.name not in program.runs):
        return "no"
    return "yes" if program.lora_names_of(family.name) else "not known"


def _sources() -> Iterator[Sequence[str]]:
    """Every dialect that is read, and where such a file has an embedding's name."""
    yield ("dialect", "what it is", "name of the embedding", "`--dialect`")
    for name, dialect in DIALECTS.items():
        yield (f"`{name}`", dialect.title, dialect.name_from, "yes" if name in WRITABLE else "")


TABLES = {
    "sources": _sources,
    "embeddings": _embeddings,
    "dialects": _dialects,
    "layouts": _layouts,
    "kinds": _kinds,
    "families": _families,
}


def _tensor(shape: tuple[int, ...]) -> RawTensor:
    return RawTensor("F32", shape, bytes(nbytes("F32", shape)))


def _markdown(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield "|" + " --- |" * len(row)


if __name__ == "__main__":
    sys.stdout.write(reference())
