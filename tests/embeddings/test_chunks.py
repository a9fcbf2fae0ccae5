"""Prompts in chunks of 75 tokens: each encoded by itself, embeddings whole, the same for training and drawing."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from tiny import tiny_flux, tiny_sd, tiny_sd2, tiny_sdxl

from pivotune.pipeline.embeddings.chunks import even_chunks, fill_chunks
from pivotune.pipeline.embeddings.initial import TokenizedTexts
from pivotune.pipeline.embeddings.injection import EmbeddingRows, Injection
from pivotune.pipeline.embeddings.placeholders import Replacer
from pivotune.pipeline.embeddings.truncation import count_tokens
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.frozen import FrozenEncoder, frozen_outputs
from pivotune.pipeline.models.load import Model, prepare
from pivotune.pipeline.models.text import CaptionCache, Text
from pivotune.pipeline.recipe.model import MOST_CHUNKS, ModelSpec
from pivotune.pipeline.run.drawing import draw_images
from pivotune.schemas import schema

BUILD = {"sd1": tiny_sd, "sd2": tiny_sd2, "sdxl": tiny_sdxl}
VECTORS = 4
CPU = torch.device("cpu")


def model_of(family: str, chunks: int = 3) -> Model:
    pipe = BUILD[family]()
    if family != "sd1":
        pipe.tokenizer.pad_token = "!"  # as SD 2 and SDXL's second tokenizer have it
    return prepare(pipe, ModelSpec("tiny", family, "float32", None, None, None, prompt_chunks=chunks), None, CPU)


@pytest.fixture(params=list(BUILD))
def model(request: pytest.FixtureRequest) -> Model:
    return model_of(request.param)


def encode(model: Model, captions: list[str]) -> Text:
    return DENOISERS[model.family.denoiser_kind].encode(model.pipe, captions)


def with_cat(model: Model) -> Injection:
    draw = torch.Generator().manual_seed(1)
    rows = {
        one.key: EmbeddingRows({"<cat>": torch.randn(VECTORS, one.width, generator=draw)}) for one in model.encoders
    }
    return Injection(model.pipe, model.encoders, rows)


def text_of(tokens: int) -> str:
    return " ".join(["a"] * tokens)


def same(text: Text, states: torch.Tensor, pooled: torch.Tensor | None) -> None:
    torch.testing.assert_close(text.states, states, rtol=0, atol=1e-6)
    if text.pooled is not None:
        torch.testing.assert_close(text.pooled, pooled, rtol=0, atol=1e-6)


def test_two_chunks_are_two_encodings_side_by_side(model: Model) -> None:
    plain = model_of(model.family.name, 1)
    first, second = (encode(plain, [one]) for one in (text_of(75), "red ring"))
    both = encode(model, [f"{text_of(75)} red ring"])
    assert both.states.shape[1] == 2 * 77
    same(both, torch.cat([first.states, second.states], 1), first.pooled)


def test_short_prompts_are_encoded_as_without_the_key(model: Model) -> None:
    plain, captions = model_of(model.family.name, 1), ["a red ring", text_of(75)]
    same(encode(model, captions), encode(plain, captions).states, encode(plain, captions).pooled)
    assert type(plain.encoders[0].tokenizer) is type(BUILD["sd1"]().tokenizer)


def test_all_captions_of_a_batch_have_the_chunks_of_the_longest(model: Model) -> None:
    """The shorter one gets a chunk without text, which is none of the text's empty caption in SDXL: that is zeros."""
    plain = model_of(model.family.name, 1)
    batch = encode(model, ["red ring", text_of(200)])
    assert batch.states.shape[1] == 3 * 77
    own = encode(plain, ["red ring"])
    if model.family.name == "sdxl":
        plain.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    empty = encode(plain, [""]).states
    same(batch.map(lambda one: one[:1]), torch.cat([own.states, empty, empty], 1), own.pooled)


def test_more_text_than_the_chunks_hold_is_truncated(model: Model) -> None:
    assert torch.equal(encode(model, [text_of(225)]).states, encode(model, [f"{text_of(225)} red ring"]).states)
    assert encode(model, [text_of(500)]).states.shape[1] == 3 * 77


def test_an_embedding_at_the_border_is_moved_whole_and_gets_its_gradient(model: Model) -> None:
    injection = with_cat(model)
    active = injection.activate(["<cat>"], train=True)
    border = encode(model, [f"{text_of(73)} <cat> ring"])
    first, second = encode(model, [text_of(73)]), encode(model, ["<cat> ring"])
    same(border, torch.cat([first.states, second.states], 1), first.pooled)
    border.states[:, 77:].sum().backward()
    for rows in active.values():
        assert rows.leaf.grad is not None
        assert (rows.leaf.grad.abs().sum(1) > 0).all()
    whole = encode(model, [f"{text_of(71)} <cat>"])
    assert whole.states.shape[1] == 77


@pytest.mark.parametrize(("before", "chunks"), [(0, [4]), (71, [75]), (72, [72, 4]), (75, [75, 4]), (147, [75, 72])])
def test_counts_say_where_an_embedding_is(before: int, chunks: list[int]) -> None:
    """With two chunks, where the last does not fit: it is truncated, and the count is beyond the limit."""
    ids = [7] * before + [100, 101, 102, 103]
    assert [len(one) for one in fill_chunks(ids, {100: 4}, 75, 2)] == chunks
    tokenizer = BUILD["sd1"]().tokenizer
    texts, replacer = TokenizedTexts(tokenizer), Replacer(["<cat>"])
    total, beyond = count_tokens(f"{text_of(before)} <cat>", replacer, {"<cat>": 4}, texts, 150, 2)
    assert total == (154 if before == 147 else 75 * (len(chunks) - 1) + chunks[-1])
    assert beyond == (["<cat>"] if before == 147 else [])


def test_an_embedding_of_more_vectors_than_a_chunk_has_never_fits() -> None:
    assert [len(one) for one in fill_chunks(list(range(80)), {0: 80}, 75, 4)] == [75]
    texts = TokenizedTexts(BUILD["sd1"]().tokenizer)
    assert count_tokens("<cat>", Replacer(["<cat>"]), {"<cat>": 80}, texts, 300, 4)[1] == ["<cat>"]


def test_cached_texts_are_those_of_the_batch(model: Model) -> None:
    captions = ["red ring", f"{text_of(80)} blue"]
    expected = encode(model, captions)
    cache = CaptionCache(DENOISERS[model.family.denoiser_kind], model.pipe)
    assert cache(captions[:1], CPU).states.shape[1] == 77
    same(cache(captions, CPU), expected.states, expected.pooled)
    assert cache(captions[:1], CPU).states.shape[1] == 77


def test_frozen_encoders_return_the_same_chunks() -> None:
    model, captions = model_of("sdxl"), ["red ring", f"{text_of(80)} blue"]
    expected = encode(model, captions)
    frozen = [FrozenEncoder(one.module) for one in model.encoders]
    for _ in range(2):
        with frozen_outputs(frozen, captions):
            same(encode(model, captions), expected.states, expected.pooled)
    with frozen_outputs(frozen, captions[:1]):
        assert encode(model, captions[:1]).states.shape[1] == 77


def test_a_failed_encoding_leaves_the_number_of_chunks() -> None:
    model = model_of("sd1")
    with suppress(RuntimeError), even_chunks(model.pipe, [text_of(80)]) as count:
        assert count == 2
        raise RuntimeError
    assert encode(model, ["a"]).states.shape[1] == 77


@pytest.mark.parametrize("negative", [None, "blue", text_of(160)], ids=["none", "short", "longer than the prompt"])
def test_images_are_drawn_with_the_encoding_of_training(model: Model, negative: str | None) -> None:
    """The pipeline's image from its own text equals that from our `encode`, given as states."""
    prompt, injection = f"{text_of(73)} <cat> ring", with_cat(model)
    injection.activate([prompt])
    drawn = draw_images(model, [prompt], 2, 3.5, 16, [torch.Generator().manual_seed(1)], negative)
    asked = [prompt, negative or ""]
    text = encode(model, asked)
    if negative is None and model.family.name != "sdxl":
        assert text.states.shape[1] == 2 * 77
    given = {"prompt_embeds": text.states[:1], "negative_prompt_embeds": text.states[1:]}
    if text.pooled is not None:
        given |= {"pooled_prompt_embeds": text.pooled[:1], "negative_pooled_prompt_embeds": text.pooled[1:]}
    by_states = model.pipe(
        **given, num_inference_steps=2, guidance_scale=3.5, height=16, width=16,
        generator=[torch.Generator().manual_seed(1)],
    ).images  # fmt: skip
    assert drawn[0].tobytes() == by_states[0].tobytes()
    other = draw_images(model, [f"{text_of(73)} ring"], 2, 3.5, 16, [torch.Generator().manual_seed(1)], negative)
    assert other[0].tobytes() != drawn[0].tobytes()


def test_tokenizers_keep_their_class_for_files() -> None:
    model, plain = model_of("sdxl"), BUILD["sdxl"]()
    for name in ("tokenizer", "tokenizer_2"):
        mine, other = type(getattr(model.pipe, name)), type(getattr(plain, name))
        assert (mine.__name__, mine.__module__) == (other.__name__, other.__module__)
    injection = with_cat(model)
    injection.eject()
    assert model.pipe.config["tokenizer"] == plain.config["tokenizer"]


def test_a_family_without_chunks_says_why() -> None:
    spec = ModelSpec("tiny", "flux", "float32", None, None, None, prompt_chunks=2)
    with pytest.raises(
        StageError, match=r"^model.prompt_chunks is not supported for .*: its prompts are encoded at once"
    ):
        prepare(tiny_flux(), spec, None, CPU)


def test_the_most_chunks_are_those_of_the_schema() -> None:
    key = schema("recipe.json")["properties"]["model"]["properties"]["prompt_chunks"]
    assert key["maximum"] == MOST_CHUNKS
