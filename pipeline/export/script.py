"""load.py next to the exported files: a script that loads them with diffusers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...converters.families import EncoderSpec, Family
from ...converters.write import Written
from ..models.companions import TEXT_PARTS, decoder_parts
from ..models.family import MICRO
from ..recipe.model import ModelSpec
from .guide import Files
from .packs import Pack
from .standalone import standalone_keys

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
    lines = [
        *(["from importlib.resources import files"] if shipped else []),
        *(["import re"] if files.by_hand else []),
        "from pathlib import Path",
        "",
        "import torch",
        f"from diffusers import {family.pipeline}",
        *([PEFT] if files.lora_parts else []),
        *(["from safetensors.torch import load_file"] if files.packs or files.by_hand or files.lora_parts else []),
        *(["from tokenizers import AddedToken"] if files.by_hand else []),
        "",
        "here = Path(__file__).resolve().parent",
        *_loaded(family, files, base),
    ]
    lines += [f"# {text[0].upper()}{text[1:]}, for example by pipe.load_lora_weights" for text in files.under]
    for written in files.embeddings.values():
        lines += _load_lines(family, written)
    for pack in files.packs:
        lines += _load_pack(family, pack)
    if files.by_hand:
        lines += [*BY_HAND.splitlines(), "", *_add_lines(family, files.by_hand)]
    if files.lora is not None:
        lora = Path(files.lora)
        lines += [f"pipe.load_lora_weights(here / {str(lora.parent)!r}, weight_name={lora.name!r})"]
    if files.lora_parts is not None:
        lines += [*ADD_LORA, f"add_lora(load_file(here / {files.lora_parts!r}))"]
    triggers = (written[0].trigger for written in files.embeddings.values())
    packed = (embedding.lower() for pack in files.packs[:1] for embedding in pack.embeddings[:1])
    embeddings = [*triggers, *packed, *files.by_hand]
    prompt = f"a photo of {embeddings[0]}" if embeddings else "a photo"
    if files.clip_skip > 1:
        lines += [
            "",
            f"# Clip skip {files.clip_skip}: remove the last layers of the text encoder",
            "parts = pipe.text_encoder.named_modules()",
            'layers = next(part for name, part in parts if name.endswith("encoder.layers"))',
            f"del layers[-{files.clip_skip - 1} :]",
        ]
    if files.prompt_chunks > 1:
        lines += [*_chunked(family, files.prompt_chunks), *_drawing_encoded(family, prompt)]
    else:
        lines += ["", *_drawing(family, base, prompt)]
    lines += ['image.save(here / "try.png")']
    return "\n".join(lines) + "\n"


def _drawing(family: Family, base: Base, prompt: str) -> list[str]:
    """The lines that draw one image: by the pipeline, or by the decoder of what it makes."""
    if family.decoder is None:
        return [f"image = {_call(family, prompt)}"]
    import diffusers

    kind, name = family.decoder.pipeline, _named(base, base.spec.decoder or family.decoder.example)
    parts = decoder_parts(getattr(diffusers, kind))
    return [
        "# This makes image embeddings; a decoder draws them. It gets the encoded prompt, so it needs no text encoder",
        f"made = pipe(prompt={prompt!r})",
        *(f"from {part.__module__} import {part.__name__}" for part in parts.values()),
        f"from diffusers import {kind}",
        "",
        f"folder = {name}",
        f"decoder = {kind}(",
        *(f"    {key}={part.__name__}.from_pretrained(folder, subfolder={key!r})," for key, part in parts.items()),
        *(f"    {key}=None," for key in TEXT_PARTS),
        f").to(dtype=torch.{base.spec.dtype})",
        "image = decoder(",
        "    made.image_embeddings, prompt_embeds=made.prompt_embeds, prompt_embeds_pooled=made.prompt_embeds_pooled",
        ").images[0]",
    ]


def _chunked(family: Family, chunks: int) -> list[str]:
    """The functions that encode a prompt in chunks, as training does."""
    encoders = ", ".join(f"(pipe.{one.module}, pipe.{one.tokenizer})" for one in family.encoders)
    return [*CHUNKS.format(chunks=chunks, encoders=encoders, state=family.encoders[0].output).splitlines(), ""]


def _drawing_encoded(family: Family, prompt: str) -> list[str]:
    """The lines that draw an image of a prompt of any length."""
    pooled = len(family.encoders) > 1
    names = ["prompt_embeds", "negative_prompt_embeds"]
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"] if pooled else []
    values = ["states[:1]", "states[1:]", *(["pooled[:1]", "pooled[1:]"] if pooled else [])]
    options = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    options += [f"{name}={value!r}" for name, value in family.draw_options.items()]
    return [
        f'states, pooled = encode({prompt!r}, "")  # the second is the negative prompt',
        "image = pipe(",
        *(f"    {option}," for option in options),
        ").images[0]",
    ]


def _call(family: Family, prompt: str) -> str:
    """The call that draws one image, with the arguments of the family."""
    options = "".join(f", {name}={value!r}" for name, value in family.draw_options.items())
    first = "images[0]"
    if "num_frames" in family.draw_options:
        options, first = f"{options}, output_type='pil'", "frames[0][0]"
    return f"pipe(prompt={prompt!r}{options}).{first}"


def _loaded(family: Family, files: Files, base: Base) -> list[str]:
    """The lines that load the model; a modular pipeline loads its parts in a second call."""
    spec, single = base.spec, Path(base.spec.base).is_file()
    dtype = f"dtype=torch.{spec.dtype}"
    lacking = "".join(f", {name}=None" for name in files.lacking)
    if files.model_folder is not None:
        name, asked = f"here / {files.model_folder!r}", {}
    else:
        asked = {"config": spec.config} if single else {"revision": spec.revision, "variant": spec.variant}
        name = SHIPPED if spec.base == MICRO else _named(base, spec.base)
    variant = asked.pop("variant", None) if family.modular else None
    options = "".join(f", {key}={_named(base, value)}" for key, value in asked.items() if value)
    loader = "from_single_file" if single and files.model_folder is None else "from_pretrained"
    if not family.modular:
        return [f"pipe = {family.pipeline}.{loader}({name}{options}{lacking}, {dtype})"]
    which = f"variant={variant!r}, " if variant else ""
    return [f"pipe = {family.pipeline}.{loader}({name}{options})", f"pipe.load_components({which}{dtype})"]


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


# For parts of pipelines without a loader for LoRAs.
PEFT = "from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict"
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

# Prompts longer than CLIP's 75 tokens, as training encodes them.
CHUNKS = '''

def chunks_of(prompt, tokenizer):
    """The ids of a prompt in chunks of 75; the vectors of an embedding stay together."""
    ids = tokenizer(pipe.maybe_convert_prompt(prompt, tokenizer), add_special_tokens=False, verbose=False).input_ids
    names, size, chunks = tokenizer.convert_ids_to_tokens(ids), tokenizer.model_max_length - 2, [[]]
    while ids:
        count = 1
        while count < len(ids) and names[count] == f"{{names[0]}}_{{count}}":
            count += 1
        if chunks[-1] and len(chunks[-1]) + count > size:
            chunks.append([])
        chunks[-1] += ids[:count][:size]
        ids, names = ids[count:], names[count:]
    return chunks[:{chunks}]


@torch.no_grad()
def encode(*prompts):
    """The states of prompts, each in as many chunks as the longest, and the pooled vectors of the first chunks."""
    encoders = [{encoders}]
    split = [[chunks_of(prompt, tokenizer) for prompt in prompts] for _, tokenizer in encoders]
    count = max(len(chunks) for several in split for chunks in several)
    states, pooled = [], None
    for (encoder, tokenizer), several in zip(encoders, split):
        rows = [
            [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
            for chunks in several
            for ids in [*chunks, *[[]] * (count - len(chunks))]
        ]
        rows = [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)) for row in rows]
        output = encoder(torch.tensor(rows, device=pipe.device), output_hidden_states=True)
        found = output.last_hidden_state if {state} == -1 else output.hidden_states[{state}]
        states.append(found.reshape(len(prompts), -1, found.shape[-1]))
        pooled = output[0][::count]
    states = torch.cat(states, -1)
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):
        for index, prompt in enumerate(prompts):
            if not prompt:
                states[index], pooled[index] = 0, 0
    return states, pooled

'''

# What the script does for pipelines without a loader for embeddings, as training does: tokens after the vocabulary, and
# a tokenizer that puts them in place of the placeholder.
BY_HAND = '''

class WithEmbeddings:
    """A tokenizer that replaces placeholders by the tokens of their vectors."""

    def __init__(self, tokenizer, texts):
        parts = []
        for name in sorted(texts, key=len, reverse=True):  # not inside words; whitespace of any length
            left, right = (r"(?<!\\w)" if name[0].isalnum() else ""), (r"(?!\\w)" if name[-1].isalnum() else "")
            parts.append(left + r"\\s+".join(map(re.escape, name.split())) + right)
        pattern = re.compile("|".join(parts), re.IGNORECASE)
        self.__dict__.update(tokenizer=tokenizer, texts=texts, pattern=pattern)

    def replaced(self, text):
        return self.pattern.sub(lambda found: self.texts[" ".join(found[0].lower().split())], text)

    def __call__(self, text, **options):
        texts = self.replaced(text) if isinstance(text, str) else [self.replaced(one) for one in text]
        return self.tokenizer(texts, **options)

    def apply_chat_template(self, messages, tokenize=True, **options):
        if not tokenize:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        own = ("padding", "truncation", "max_length", "return_tensors")
        given = {name: options.pop(name) for name in own if name in options}
        as_dict = options.pop("return_dict", True)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        encoding = self(text, add_special_tokens=False, **given)
        return encoding if as_dict else encoding["input_ids"]

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __setattr__(self, name, value):
        setattr(self.tokenizer, name, value)


def add_embeddings(encoder, tokenizer, embeddings):
    """Add the vectors of each placeholder to a text encoder; returns the tokenizer that knows them."""
    template = getattr(tokenizer, "chat_template", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, which reads images too
    tokenizer.chat_template = tokenizer.chat_template or template
    texts, first = {}, len(tokenizer)
    for number, (placeholder, vectors) in enumerate(embeddings.items()):
        names = [f"<|embedding-{number}-{row}|>" for row in range(len(vectors))]
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        texts[" ".join(placeholder.lower().split())] = "".join(names)
    if len(tokenizer) > encoder.get_input_embeddings().weight.shape[0]:
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight.data
    table[first : len(tokenizer)] = torch.cat(list(embeddings.values())).to(table)
    return WithEmbeddings(tokenizer, texts)

'''


def _add_lines(family: Family, paths: Mapping[str, str]) -> list[str]:
    """Lines that add all embeddings to each text encoder that they have vectors for."""
    lines = ["files = {"]
    lines += [f"    {name!r}: load_file(here / {path!r})," for name, path in paths.items()]
    lines += ["}", "encoders = {"]
    for encoder in family.encoders:
        keys = ", ".join(repr(key) for key in standalone_keys(family, encoder.key))
        lines.append(f"    ({encoder.module!r}, {encoder.tokenizer!r}): ({keys},),")
    return [
        *lines,
        "}",
        "for (encoder, tokenizer), keys in encoders.items():",
        "    vectors = {name: one[key] for name, one in files.items() for key in keys if key in one}",
        "    if vectors:",
        "        setattr(pipe, tokenizer, add_embeddings(getattr(pipe, encoder), getattr(pipe, tokenizer), vectors))",
        *(line for encoder in family.encoders if encoder.unknown_in for line in _unknown_lines(encoder)),
    ]


def _unknown_lines(encoder: EncoderSpec) -> list[str]:
    """Lines that give a second tokenizer its unknown token for each vector, as in training."""
    name, key = encoder.unknown_in, encoder.key
    return [
        f"unknown = pipe.{name}.unk_token  # one for each vector: what reads these tokens knows no embeddings",
        f"counts = {{name: len(one[{key!r}]) for name, one in files.items() if {key!r} in one}}",
        'texts = {" ".join(name.lower().split()): unknown * count for name, count in counts.items()}',
        f"pipe.{name} = WithEmbeddings(pipe.{name}, texts)",
    ]
