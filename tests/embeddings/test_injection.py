"""Embeddings go in, work as diffusers' own loader makes them work, and come out without a trace."""

import pytest
import torch
from tiny import tiny_sd, tiny_sdxl

from pivotune.converters.families import families
from pivotune.pipeline.embeddings.injection import EmbeddingRows, Injection, SlotTable
from pivotune.pipeline.models.denoisers import CLASSES, DENOISERS
from pivotune.pipeline.models.load import prepare
from pivotune.pipeline.recipe.model import ModelSpec


def model_of(pipe, family):
    spec = ModelSpec("tiny", family, "float32", None, None, None)
    return prepare(pipe, spec, None, torch.device("cpu"))


@pytest.fixture(params=["sd1", "sdxl"])
def model(request):
    return model_of(tiny_sd() if request.param == "sd1" else tiny_sdxl(), request.param)


EMBEDDINGS = {"<cat>": 2, "ema yasuhara": 1, "<dog>": 3}


def embeddings_for(model, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return {
        encoder.key: EmbeddingRows(
            {embedding: torch.randn(n, encoder.width, generator=draw) for embedding, n in EMBEDDINGS.items()}
        )
        for encoder in model.encoders
    }


def encode(model, prompts):
    return DENOISERS[model.family.denoiser_kind].encode(model.pipe, prompts)


def same(text, other):
    return torch.equal(text.states, other.states) and (text.pooled is None or torch.equal(text.pooled, other.pooled))


def test_injected_embeddings_match_diffusers_loader(model):
    rows = embeddings_for(model)
    prompts = ["a photo of <cat>, and <dog>", "<dog> on a red ground", "plain"]
    injection = Injection(model.pipe, model.encoders, rows)
    injection.activate(prompts)
    ours = encode(model, prompts)
    injection.eject()
    for encoder in model.encoders:
        model.pipe.load_textual_inversion(
            [rows[encoder.key].of(embedding).clone() for embedding in ("<cat>", "<dog>")], token=["<cat>", "<dog>"],
            text_encoder=encoder.module, tokenizer=encoder.tokenizer,
        )  # fmt: skip
    assert same(ours, encode(model, prompts))


def test_prompts_without_embeddings_are_encoded_as_before(model):
    before = encode(model, ["a red ring", ""])
    injection = Injection(model.pipe, model.encoders, embeddings_for(model))
    injection.activate(["a <cat>"])
    assert same(before, encode(model, ["a red ring", ""]))
    injection.activate([])
    assert same(before, encode(model, ["a red ring", ""]))


def test_a_batch_without_embeddings_reads_the_vocabulary_only():
    """Off the CPU every position is looked up in the active rows, and a table without rows has none to give."""

    class NoRows:
        def __len__(self):
            return 0

        def __getitem__(self, index):
            raise IndexError("index is out of bounds for dimension with size 0")

    base = torch.nn.Embedding(5, 3)
    table = SlotTable(base, 5)
    table.__dict__["active"] = NoRows()
    ids = torch.tensor([[0, 4, 2]])
    assert torch.equal(table(ids), base(ids))


def test_ejecting_restores_encoders_and_tokenizers_bit_for_bit(model):
    prompts = ["a photo of <cat> and ema yasuhara", "a red ring"]
    before = encode(model, prompts)
    state = {e.key: {n: t.clone() for n, t in e.module.state_dict().items()} for e in model.encoders}
    tables = [e.module.get_input_embeddings() for e in model.encoders]
    tokenizers = [(e.tokenizer.backend_tokenizer.to_str(), len(e.tokenizer)) for e in model.encoders]
    injection = Injection(model.pipe, model.encoders, embeddings_for(model))
    injection.activate(prompts)
    assert not same(before, encode(model, prompts))
    injection.eject()
    injection.eject()
    assert same(before, encode(model, prompts))
    for number, encoder in enumerate(model.encoders):
        after = encoder.module.state_dict()
        assert after.keys() == state[encoder.key].keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in state[encoder.key].items())
        assert encoder.module.get_input_embeddings() is tables[number]
        assert getattr(model.pipe, encoder.tokenizer_name) is encoder.tokenizer
        assert (encoder.tokenizer.backend_tokenizer.to_str(), len(encoder.tokenizer)) == tokenizers[number]


def test_a_gradient_reaches_every_vector_of_every_encoder_and_nothing_else(model):
    prompts = ["a photo of <cat> and ema yasuhara"]
    injection = Injection(model.pipe, model.encoders, embeddings_for(model))
    active = injection.activate(prompts, train=True)
    text = encode(model, prompts)
    (text.states.square().sum() + (text.pooled.sum() if text.pooled is not None else 0)).backward()
    assert list(active) == [encoder.key for encoder in model.encoders]
    for key, rows in active.items():
        assert rows.embeddings == ("<cat>", "ema yasuhara")
        assert rows.index.tolist() == [0, 1, 2]
        assert rows.leaf.shape == rows.leaf.grad.shape == (3, injection.rows[key].values.shape[1])
        assert (rows.leaf.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is None for e in model.encoders for p in e.module.parameters())


def test_gradients_match_the_formula():
    """The same text with the rows written into a copy of the whole table, the textbook way."""
    model = model_of(tiny_sd(), "sd1")
    [encoder] = model.encoders
    rows = embeddings_for(model)
    injection = Injection(model.pipe, model.encoders, rows)
    active = injection.activate(["a <cat> here"], train=True)[encoder.key]
    states = encode(model, ["a <cat> here"]).states
    states.square().sum().backward()
    injection.eject()
    ids = encoder.tokenizer("a red ring here", padding="max_length", max_length=77, return_tensors="pt").input_ids
    base = encoder.table
    full = torch.cat([base, rows[encoder.key].of("<cat>")]).requires_grad_(True)
    ids[0, 2:4] = torch.tensor([len(base), len(base) + 1])  # start, a, cat, cat, here
    encoder.module.get_input_embeddings().weight = torch.nn.Parameter(full)
    grown = encoder.module.get_input_embeddings().weight
    textbook = encoder.module(ids)[0]
    textbook.square().sum().backward()
    assert torch.equal(states, textbook)
    torch.testing.assert_close(active.leaf.grad, grown.grad[len(base) :], rtol=1e-6, atol=1e-7)


def test_pooling_stays_at_the_end_token_in_models_that_pool_at_the_largest_id():
    """Old configs say eos_token_id = 2: transformers then pools at the largest id, which a slot would be."""
    modern, old = tiny_sdxl(), tiny_sdxl(eos_token_id=2)
    texts = []
    for pipe in (modern, old):
        model = model_of(pipe, "sdxl")
        injection = Injection(pipe, model.encoders, embeddings_for(model))
        injection.activate(["a <cat> here"])
        texts.append(encode(model, ["a <cat> here"]))
        injection.eject()
    assert same(*texts)
    assert old.text_encoder_2.text_model.eos_token_id == 2


def test_slots_and_tables_do_not_grow_with_the_number_of_embeddings():
    model = model_of(tiny_sd(), "sd1")
    rows = {"clip_l": EmbeddingRows({f"<w{n}>": torch.randn(2, 32) for n in range(500)})}
    injection = Injection(model.pipe, model.encoders, rows)
    active = injection.activate(["<w7> and <w300>", "<w7>"])["clip_l"]
    assert active.index.tolist() == [14, 15, 600, 601]
    assert len(model.pipe.tokenizer) == model.pipe.tokenizer.first_slot + 4


def test_different_counts_in_each_encoder():
    model = model_of(tiny_sdxl(), "sdxl")
    rows = {"clip_l": EmbeddingRows({"<w>": torch.randn(1, 24)}), "clip_g": EmbeddingRows({"<w>": torch.randn(4, 40)})}
    injection = Injection(model.pipe, model.encoders, rows)
    injection.activate(["a <w>"])
    ids = [model.pipe.tokenizer("a <w>").input_ids, model.pipe.tokenizer_2("a <w>").input_ids]
    assert [len(one) for one in ids] == [4, 7]


def test_every_family_has_a_denoiser():
    assert {family.denoiser_kind for family in families().values()} <= CLASSES.keys()
    assert all(DENOISERS[kind] for kind in CLASSES)
