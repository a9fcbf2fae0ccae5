"""The texts next to the exported files: HOW-TO.txt, and load.py for diffusers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...converters.families import Family
from ...converters.programs import Program
from ...converters.write import Written
from ..models.family import MICRO
from ..recipe.model import ModelSpec
from .packs import Pack


@dataclass(frozen=True)
class Files:
    """The files of one program: embeddings by name or packs, the LoRA, the embeddings bundled in it, script and model.

    `lora`, `model_folder` and `model_file` are paths relative to the program's folder of the export, as are those of
    `alone`: standalone files of the `bundled` embeddings by name, with what to type. `fits` says which model they are
    for, `lost` what the program ignores of the LoRA. `lora_parts` has what the loader of diffusers leaves out and the
    script adds; `no_embeddings` says why there are no embeddings.
    """

    embeddings: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None
    model_folder: str | None = None
    model_file: str | None = None
    packs: tuple[Pack, ...] = ()
    clip_skip: int = 1
    alone: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lost: Sequence[str] = ()
    fits: str = ""
    lora_parts: str | None = None
    no_embeddings: str = ""


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files of a program and what to type in prompts."""
    first = [program.title]
    if files.fits:
        first.append(files.fits)
    if files.clip_skip > 1:
        first.append(f"Trained with Clip skip {files.clip_skip}; set it in the program too.")
    what = "the LoRA" if files.no_embeddings else "everything"
    script = [f"{files.script} loads {what}: run it, or copy its lines."] if files.script else []
    parts = (
        first,
        script,
        _model(program, files),
        _embeddings(program, files),
        _packs(program, files),
        _lora(program, files),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _model(program: Program, files: Files) -> list[str]:
    """The fine-tuned model: the folder for users of code, the file for others, or the only one there is."""
    forms = {"model": files.model_file, "folder": files.model_folder}
    order = ("folder", "model") if files.script else ("model", "folder")
    form = next((form for form in order if forms[form] is not None), None)
    if form is None:
        return []
    lines = ["The fine-tuned model:"]
    if form in program.how:
        lines.append(program.how[form].format(files=forms[form]))
    else:
        lines.append(f"{forms[form]} is a folder for diffusers; 'file' in the export stage's `model` writes one file.")
    if files.embeddings or files.packs:
        lines.append("The embeddings were trained with this model; with other models they work less well.")
    return lines


def _embeddings(program: Program, files: Files) -> list[str]:
    lines = ["The embeddings:", files.no_embeddings] if files.no_embeddings else []
    for name, written in files.embeddings.items():
        lines.append(_embedding(program, name, " and ".join(one.path.name for one in written), written[0].trigger))
        lines += [f"  note: {loss}" for one in written[:1] for loss in one.losses]
    return lines


def _embedding(program: Program, name: str, paths: str, trigger: str) -> str:
    text = program.how["embedding"].format(files=paths, type=trigger)
    return text if name in trigger else f"{text}  (for {name})"


def _packs(program: Program, files: Files) -> list[str]:
    lines = []
    for pack in files.packs:
        names = " and ".join(one.path.name for one in pack.files)
        typed = pack.files[0].trigger
        how = program.how["lora"].format(files=names, type=typed)
        if files.script is not None:  # no loader of diffusers reads several embeddings of a file
            how = f"{files.script} loads {names}; in prompts type  {typed}"
        lines.append(f"{_span(pack.embeddings)}: {how}")
    return [*lines, "`pivotune split` writes each embedding into its own file, for any program."] if lines else []


def _lora(program: Program, files: Files) -> list[str]:
    if files.lora is None and files.lora_parts is None:
        return []
    if files.lora is None or not files.bundled:
        lines = ["The LoRA:"]
        if files.lora is not None:
            lines.append(program.how["lora"].format(files=files.lora, type=f"<lora:{Path(files.lora).stem}:1>"))
        if files.lora_parts is not None:
            lines.append(f"{files.script} adds {files.lora_parts}, for which the pipeline has no loader.")
        return [*lines, *(f"  note: {loss}" for loss in files.lost)]
    how = program.how["lora"].format(files=files.lora, type=bundle_trigger(files.lora, files.bundled))
    lines = [
        "The LoRA with bundled embeddings:",
        how,
        f"The embeddings work {program.embeddings_in_loras.removeprefix('yes, ')}.",
    ]
    lines += [f"  note: {loss}" for loss in files.lost]
    if files.alone:
        lines += ["", "The embeddings without the LoRA:"]
        lines += [_embedding(program, name, path, typed) for name, (path, typed) in files.alone.items()]
    return lines


def _span(embeddings: Sequence[str]) -> str:
    return (
        f"{len(embeddings):,} embeddings, {embeddings[0]} to {embeddings[-1]}" if len(embeddings) > 1 else embeddings[0]
    )


def bundle_trigger(lora: str, embeddings: Sequence[str]) -> str:
    """What to type to use the embeddings bundled in a LoRA file: the LoRA and each placeholder."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(embeddings)}"


ADD_LORA = """

def add_lora(weights):
    \"\"\"Add a LoRA to the parts of the pipeline for which load_lora_weights has no loader.\"\"\"
    for part in {name.partition(".")[0] for name in weights}:
        model = getattr(pipe, part)
        start = f"{part}." if hasattr(model, "text_model") else f"{part}.text_model."
        own = {name.removeprefix(start).removeprefix(f"{part}."): one for name, one in weights.items()
               if name.startswith(f"{part}.")}
        ranks = {name.removesuffix(".lora_A.weight"): len(one) for name, one in own.items() if "lora_A" in name}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks,
                            use_dora=any("lora_magnitude_vector" in name for name in own))
        inject_adapter_in_model(config, model, "lora")
        set_peft_model_state_dict(model, own, "lora")


""".splitlines()
SHIPPED = 'str(files("pivotune.recipes.micro") / "model")'


@dataclass(frozen=True)
class Base:
    """The base model of a run (a hub id, a folder, a single file, or `micro`), and the folder of the script.

    Local paths are relative to the script: it contains no private paths and works after model and run are moved.
    """

    spec: ModelSpec
    folder: Path


def diffusers_lines(family: Family, files: Files, base: Base) -> str:
    """A script that loads the exported model (else the `base`), the embeddings and the LoRA with diffusers."""
    shipped = files.model_folder is None and base.spec.base == MICRO
    parts = files.lora_parts
    lines = [
        *(["from importlib.resources import files"] if shipped else []),
        "from pathlib import Path",
        "",
        "import torch",
        f"from diffusers import {family.pipeline}",
        *(["from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict"] if parts else []),
        *(["from safetensors.torch import load_file"] if files.packs or parts else []),
        "",
        "here = Path(__file__).resolve().parent",
        f"pipe = {_loaded(family.pipeline, files, base)}",
    ]
    for written in files.embeddings.values():
        lines += _load_lines(family, written)
    for pack in files.packs:
        lines += _load_pack(family, pack)
    if files.lora is not None:
        lora = Path(files.lora)
        lines += [f"pipe.load_lora_weights(here / {str(lora.parent)!r}, weight_name={lora.name!r})"]
    if parts is not None:
        lines += [*ADD_LORA, f"add_lora(load_file(here / {parts!r}))"]
    triggers = (written[0].trigger for written in files.embeddings.values())
    packed = (embedding.lower() for pack in files.packs[:1] for embedding in pack.embeddings[:1])
    embeddings = [*triggers, *packed]
    prompt = f"a photo of {embeddings[0]}" if embeddings else "a photo"
    if files.clip_skip > 1:
        lines += [
            "",
            f"# Clip skip {files.clip_skip}: remove the last layers of the text encoder",
            "parts = pipe.text_encoder.named_modules()",
            'layers = next(part for name, part in parts if name.endswith("encoder.layers"))',
            f"del layers[-{files.clip_skip - 1} :]",
        ]
    lines += ["", f"image = {_drawn(family, prompt)}", 'image.save(here / "try.png")']
    return "\n".join(lines) + "\n"


def _drawn(family: Family, prompt: str) -> str:
    """The call that draws an image; a video's pipeline draws one frame."""
    video = "num_frames" in family.draw_options
    options = {**family.draw_options, **({"output_type": "pil"} if video else {})}
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"pipe({prompt!r}{given}).{'frames[0][0]' if video else 'images[0]'}"


def _loaded(kind: str, files: Files, base: Base) -> str:
    """The call that loads the model."""
    if files.model_folder is not None:
        return f"{kind}.from_pretrained(here / {files.model_folder!r}, dtype=torch.{base.spec.dtype})"
    spec, single = base.spec, Path(base.spec.base).is_file()
    asked = {"config": spec.config} if single else {"revision": spec.revision, "variant": spec.variant}
    options = "".join(f", {name}={_named(base, value)}" for name, value in asked.items() if value)
    loader = "from_single_file" if single else "from_pretrained"
    name = SHIPPED if spec.base == MICRO else _named(base, spec.base)
    return f"{kind}.{loader}({name}{options}, dtype=torch.{spec.dtype})"


def _named(base: Base, name: str) -> str:
    """A hub id unchanged; a local path relative to the script."""
    if not Path(name).exists():
        return repr(name)
    try:
        return f"str(here / {Path(os.path.relpath(Path(name).resolve(), base.folder.resolve())).as_posix()!r})"
    except ValueError:  # another drive
        return repr(name)


def _load_lines(family: Family, written: Sequence[Written]) -> list[str]:
    lines = []
    for encoder, one in zip(family.encoders, written, strict=True):
        where = "" if len(written) == 1 else f", text_encoder=pipe.{encoder.module}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f"pipe.load_textual_inversion(here / {one.path.name!r}, token={one.trigger!r}{where})")
    return lines


def _load_pack(family: Family, pack: Pack) -> list[str]:
    """All embeddings of each file in one call, so that the token table grows once."""
    encoders = {encoder.key: encoder for encoder in family.encoders}
    lines = []
    for key, one in zip(pack.keys, pack.files, strict=True):
        own = encoders[key]
        lines += [
            f"embeddings = load_file(here / {one.path.name!r})",
            "# A token of several vectors is expanded in prompts only without upper-case letters",
            "tokens = [name.lower() if len(vectors) > 1 else name for name, vectors in embeddings.items()]",
            "pipe.load_textual_inversion(",
            "    [{token: vectors} for token, vectors in zip(tokens, embeddings.values(), strict=True)],",
            f"    text_encoder=pipe.{own.module}, tokenizer=pipe.{own.tokenizer},",
            ")",
        ]
    return lines
