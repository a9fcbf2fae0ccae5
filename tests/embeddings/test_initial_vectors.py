"""Initial vectors of many embeddings equal, bit for bit, those of each embedding alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_sdxl
from train_embeddings import embedding

from pivotune.converters.embedding import Contents, Embedding
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import prepare
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.recipe.options import InjectOptions, TokenizeOptions
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.stages.inject import inject
from pivotune.pipeline.stages.tokenize import tokenize
from pivotune.pipeline.tensors import from_raw, to_raw, vectors_for, vectors_of_all

PADDED = TokenizeOptions("*")
TEXTS = {"<a>": ("red ring", None), "<b>": ("ring", 3), "<c>": ("red ring", 1), "<d>": ("", 2), "<e>": ("a cat", 2)}


@pytest.fixture(scope="module")
def model():
    return prepare(tiny_sdxl(), ModelSpec("tiny", "sdxl", "float32", None, None, None), None, torch.device("cpu"))


def embeddings(**changes):
    return [embedding(name, initial_text=text, tokens=tokens, **changes.get(name[1], {}))
            for name, (text, tokens) in TEXTS.items()]  # fmt: skip


def context_of(model, embeddings):
    return SimpleNamespace(model=model, recipe=SimpleNamespace(outputs=frozenset(), embeddings=tuple(embeddings)))


def bytes_of(contents):
    return [(one.name, {key: (raw.shape, bytes(raw.data)) for key, raw in one.vectors.items()})
            for one in contents.embeddings]  # fmt: skip


@pytest.fixture
def based(tmp_path):
    """Changes for `<b>` with a base file that has vectors for one encoder, one more than `tokens`."""

    def changes(rows):
        save_file({"clip_l": rows}, tmp_path / "old.safetensors")
        return {"b": {"base": tmp_path / "old.safetensors", "resize": "cut"}}

    return changes


def test_many_embeddings_have_the_initial_vectors_of_each_alone(model, based):
    rows = torch.randn(4, model.encoders[0].width)
    own = embeddings(**based(rows))
    together = RunState()
    made = bytes_of(tokenize(context_of(model, own), together, Contents(), PADDED))
    for number, one in enumerate(own):
        alone = RunState()
        assert bytes_of(tokenize(context_of(model, [one]), alone, Contents(), PADDED)) == made[number : number + 1]
        assert alone.initial_tokens[one.placeholder] == together.initial_tokens[one.placeholder]
    assert torch.equal(from_raw(together.initial.embeddings[1].vectors["clip_l"]), rows[:3])
    for encoder in model.encoders:
        ids = encoder.tokenizer("red ring", add_special_tokens=False).input_ids
        assert made[0][1][encoder.key] == ((2, encoder.width), bytes(to_raw(encoder.table[ids]).data))


def test_rows_of_the_model_are_the_embeddings_vectors(model):
    context, state = context_of(model, embeddings()), RunState()
    contents = inject(context, state, tokenize(context, state, Contents(), PADDED), InjectOptions(None))
    try:
        for encoder in model.encoders:
            for one in contents.embeddings:
                rows = state.injection.rows[encoder.key].of(one.name)
                assert torch.equal(rows, from_raw(one.vectors[encoder.key]))
    finally:
        state.injection.eject()


def test_vectors_of_other_dtypes_and_missing_vectors():
    draw = torch.randn(2, 4)
    several = [
        Embedding("<a>", {"x": to_raw(draw)}),
        Embedding("<b>", {}),
        Embedding("<c>", {"x": to_raw(draw.half())}),
    ]
    for chosen in (several, several[:2], several[1:2], [several[0], several[1], replace(several[0], name="<d>")]):
        for one, found in zip(chosen, vectors_of_all(chosen, "x", 4), strict=True):
            assert torch.equal(found, vectors_for(one, "x", 4))


def test_a_base_that_is_not_finite_is_refused(model, based):
    rows = torch.full((3, model.encoders[0].width), float("nan"))
    with pytest.raises(StageError, match=r"<b>: its base .*old.safetensors has values for clip_l that are not finite"):
        tokenize(context_of(model, embeddings(**based(rows))), RunState(), Contents(), PADDED)
