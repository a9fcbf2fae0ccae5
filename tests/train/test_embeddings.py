"""Training of embeddings: norm rules, EMA weights, stop_after, and learning rates per encoder."""

import pytest
import torch
from train_embeddings import NAMES, embedding, pull, trainer, values

from pivotune.pipeline.recipe.intervals import Every
from pivotune.pipeline.recipe.options import Band, OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.embeddings import EmbeddingSettings

ADAM = options_of(OptimizerOptions, kind="adamw", weight_decay=0.0)
PRODIGY = options_of(OptimizerOptions, kind="prodigy-schedule-free", d0=1e-3)


def test_every_vector_has_the_median_norm_of_its_encoders_table_after_every_step():
    one = trainer(EmbeddingSettings(0.1, ADAM, preserve_norm="median"))
    for step in range(3):
        pull(one, ["<a>"], step, goal=-3.0 * step)
        for key, rows in one.injection.rows.items():
            table = one.injection._injected[key].table.weight
            median = float(table.norm(dim=1).sort().values[(len(table) - 1) // 2])
            assert rows.of("<a>").norm(dim=1).tolist() == pytest.approx([median] * 2, rel=1e-5)
            assert torch.equal(rows.of("<b>"), torch.ones_like(rows.of("<b>")))


@pytest.mark.parametrize("ema", [None, 0.5])
def test_exported_ema_weights_have_the_norm_of_the_rule(ema):
    one = trainer(EmbeddingSettings(0.5, ADAM, preserve_norm=0.5, ema=ema))
    for step in range(6):
        pull(one, ["<a>"], step, goal=3 * (-1.0) ** step)
    one.finish()
    for key, rows in one.injection.rows.items():
        assert rows.of("<a>").norm(dim=1).tolist() == pytest.approx([0.5] * 2), key
        assert torch.equal(rows.of("<b>"), torch.ones_like(rows.of("<b>")))


def test_an_embeddings_norm_rule_overrides_the_stages():
    embeddings = [
        embedding("<a>", preserve_norm=0.5),
        embedding("<b>", preserve_norm=Band(0.1, 1.0)),
        embedding("<c>"),
    ]
    one = trainer(EmbeddingSettings(0.1, ADAM, preserve_norm="initial"), embeddings)
    pull(one, list(NAMES), 0, goal=9.0)
    for key, rows in one.injection.rows.items():
        norms = {name: rows.of(name).norm(dim=1).tolist() for name in NAMES}
        assert norms["<a>"] == pytest.approx([0.5] * 2), key
        assert norms["<b>"] == pytest.approx([1.0] * 2)
        assert norms["<c>"] == pytest.approx([rows.values.shape[1] ** 0.5] * 2)


def test_ema_weights_follow_the_formula_and_count_steps_per_embedding():
    one = trainer(EmbeddingSettings(0.1, ADAM, ema=0.5))
    average = {key: rows.clone() for key, rows in values(one).items()}
    for step in range(8):
        names = ["<a>"] if step % 2 else ["<b>"]
        pull(one, names, step)
        count = step // 2 + 1
        keep = min(0.5, (1 + count) / (10 + count))
        for key, rows in one.injection.rows.items():
            span = rows.spans[names[0]]
            part = slice(span.start, span.stop)
            average[key][part] = keep * average[key][part] + (1 - keep) * rows.values[part]
    raw = values(one)
    with one.ema_swapped():
        for key, shown in values(one).items():
            torch.testing.assert_close(shown, average[key])
    assert all(torch.equal(value, raw[key]) for key, value in values(one).items())
    one.finish()
    for key, shown in values(one).items():
        torch.testing.assert_close(shown, average[key])
        assert torch.equal(shown[4:], torch.ones_like(shown[4:]))


@pytest.mark.parametrize("settings", [EmbeddingSettings(0.1, ADAM, ema=0.9), EmbeddingSettings(1.0, PRODIGY)])
def test_a_stopped_embedding_has_the_vectors_that_are_exported(settings):
    embeddings = [embedding("<a>", stop_after=Every(3, "steps")), embedding("<b>")]
    one = trainer(settings, embeddings)
    for step in range(3):
        pull(one, ["<a>", "<b>"], step)
    with one.ema_swapped():
        shown = values(one)
    pull(one, ["<a>", "<b>"], 3)
    assert one.stopped_at == {"<a>": 3}
    stopped = {key: rows.of("<a>").clone() for key, rows in one.injection.rows.items()}
    for step in range(4, 8):
        pull(one, ["<a>", "<b>"], step)
    one.finish()
    for key, rows in one.injection.rows.items():
        assert torch.equal(rows.of("<a>"), stopped[key])
        assert torch.equal(rows.of("<a>"), shown[key][:2])
        assert not torch.equal(rows.of("<b>"), shown[key][2:])


@pytest.mark.parametrize("off", ["clip_l", "clip_g"])
def test_either_encoder_may_be_frozen(off):
    rates = dict.fromkeys(("clip_l", "clip_g"), 0.1) | {off: 0.0}
    one = trainer(EmbeddingSettings(rates, ADAM))
    pull(one, ["<a>"], 0)
    trained = {key for key, rows in one.injection.rows.items() if bool((rows.of("<a>") != 1).any())}
    assert trained == {"clip_l", "clip_g"} - {off}


def test_the_gradient_of_all_encoders_together_is_clipped():
    """Clipping scales the gradients of all encoders by the same factor, not that of the last one only."""
    plain, clipped = (
        trainer(EmbeddingSettings(0.1, ADAM, clip_norm=0.0)),
        trainer(EmbeddingSettings(0.1, ADAM, clip_norm=0.5)),
    )
    norms = [pull(one, ["<a>", "<b>"], 0, goal=3.0) for one in (plain, clipped)]
    assert norms == pytest.approx([2 * (4 * (6 + 10)) ** 0.5] * 2)  # four rows of each encoder, two away from the goal
    for key in plain.injection.rows:
        long, short = (one.states.optimizers[key].adam.moment[:4] for one in (plain, clipped))
        assert bool(short.any())
        torch.testing.assert_close(short, long * 0.5 / norms[0])
