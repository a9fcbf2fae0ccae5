"""Every optimizer trains embeddings and weights, leaves absent embeddings unchanged, and resumes from its state."""

import json
import sys
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from train_embeddings import NAMES, WIDTHS, pull, trainer, values

from pivotune import schemas
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.intervals import Clock
from pivotune.pipeline.recipe.optimizers import OPTIMIZERS
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.embeddings import EmbeddingSettings
from pivotune.pipeline.train.optimizers import effective_learning_rate, make_optimizer
from pivotune.pipeline.train.trainable import State
from pivotune.pipeline.train.weights import WeightSettings, WeightTrainer

# a rate at which forty steps go far
RATES = {
    "adamw": 0.03, "adamw-schedule-free": 0.2, "adamw8bit": 0.03, "adafactor": 0.03, "lion": 0.02, "came": 0.03,
    "prodigy": 1.0, "prodigy-schedule-free": 1.0,
}  # fmt: skip
NO_8BIT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
KINDS = [pytest.param(kind, marks=NO_8BIT) if kind == "adamw8bit" else kind for kind in RATES]


def options(kind, **changes):
    return options_of(OptimizerOptions, kind=kind, **changes)


def embeddings_with(kind, **changes):
    first = {"d0": 1e-3} if OPTIMIZERS[kind].adaptive else {}
    settings = {"learning_rate": RATES[kind], "optimizer": options(kind, **first), "clip_norm": 0.0}
    return trainer(EmbeddingSettings(**settings | changes))


def test_the_table_and_the_schema_have_the_same_optimizers():
    table = schemas.schema("tables/optimizer.json")
    assert list(OPTIMIZERS) == table["properties"]["kind"]["enum"] == list(table["definitions"])
    assert RATES.keys() == OPTIMIZERS.keys()  # the tests below train with every optimizer


@pytest.mark.parametrize(("kind", "row"), OPTIMIZERS.items(), ids=str)
def test_an_optimizers_row_fits_its_library_and_its_settings(kind, row):
    assert set(row.renamed) <= set(options(kind).settings)
    assert row.averages_itself == kind.endswith("schedule-free")  # by which the report knows them
    assert row.missing is None or find_spec(row.package) is None
    if row.missing is None:
        made = make_optimizer([torch.zeros(8, 8, requires_grad=True)], options(kind), 1e-3)
        assert row.adaptive == ("d" in made.param_groups[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_approaches_its_goal_and_an_absent_one_is_unchanged(kind):
    one = embeddings_with(kind)
    start = values(one)
    for step in range(40):
        pull(one, ["<a>", "<c>"] if step % 2 else ["<a>"], step)
    one.finish()
    for key, rows in one.injection.rows.items():
        assert (rows.of("<a>") - 2).norm() < 0.7 * (start[key][:2] - 2).norm(), key
        assert not torch.equal(rows.of("<c>"), start[key][4:])
        assert torch.equal(rows.of("<b>"), start[key][2:4])


@pytest.mark.parametrize("kind", KINDS)
def test_an_embeddings_training_does_not_depend_on_other_embeddings(kind):
    alone, among = embeddings_with(kind), embeddings_with(kind)
    for step in range(12):
        pull(alone, ["<a>"], step)
        pull(among, ["<a>"], step)
        pull(among, ["<b>", "<c>"], step, goal=-5.0)
    for key, rows in alone.injection.rows.items():
        torch.testing.assert_close(rows.of("<a>"), among.injection.rows[key].of("<a>"), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_resume_from_their_state(kind):
    whole, again = embeddings_with(kind, ema=0.9), embeddings_with(kind, ema=0.9)
    for step in range(6):
        pull(whole, list(NAMES[: 1 + step % 3]), step)
        if step == 3:
            stored = whole.state()
    again.restore(State(stored.tensors, json.loads(json.dumps(stored.values))))
    for step in (4, 5):
        pull(again, list(NAMES[: 1 + step % 3]), step)
    for use in (False, True):
        for one in (whole, again):
            one._switch.set(use)
        assert all(torch.equal(value, values(again)[key]) for key, value in values(whole).items())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_trained_and_resume_from_their_state(kind):
    def weights():
        parameters = {"matrix": torch.nn.Parameter(torch.ones(64, 64)), "bias": torch.nn.Parameter(torch.ones(8))}
        first = {"d0": 1e-3} if OPTIMIZERS[kind].adaptive else {}
        settings = WeightSettings(options(kind, **first), RATES[kind], clip_norm=0.0, ema=0.9)
        return WeightTrainer("finetune.denoiser", parameters, settings, text=False)

    def step(one, number):
        for parameter in one.parameters.values():
            parameter.grad = parameter.detach() - 2
        one.step(one.gradient_norm(1.0), Clock(number, 40, 1.0, 0.0))

    whole, again = weights(), weights()
    for number in range(40):
        if number == 20:
            stored = whole.state()
        step(whole, number)
    again.restore(State(stored.tensors, json.loads(json.dumps(stored.values))))
    for number in range(20, 40):
        step(again, number)
    whole.finish()
    again.finish()
    assert float((whole.parameters["matrix"] - 2).abs().mean()) < 0.8
    for key, parameter in whole.parameters.items():
        assert torch.equal(parameter, again.parameters[key])


def test_prodigys_learning_rate_grows_within_growth_rate():
    one = trainer(EmbeddingSettings(1.0, options("prodigy", growth_rate=2), clip_norm=0.0))
    sizes = []
    for step in range(60):
        pull(one, ["<a>"], step)
        sizes.append(one.learning_rates()["embeddings"])
    assert sizes[-1] > 1e-2
    growth = [after / before for before, after in pairwise(sizes[1:])]
    assert max(growth) <= 2 + 1e-9
    assert max(growth) > 1.9


def test_prodigy_has_a_learning_rate_per_embedding():
    one = trainer(EmbeddingSettings(1.0, options("prodigy", d0=1e-4), clip_norm=0.0))
    for step in range(20):
        pull(one, ["<a>"], step, goal=1.01)  # almost there: small steps are right
        pull(one, ["<b>"], step, goal=50.0)
    sizes = one.states.learning_rates_of(one.embedding_rates, NAMES)
    assert sizes["<b>"][0] > 20 * sizes["<a>"][0]
    assert sizes["<c>"][0] == 1.0  # never seen: the rate alone


def test_a_missing_library_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(StageError, match=r"prodigy needs prodigyopt: pip install 'pivotune\[optimizers\]'"):
        make_optimizer([torch.zeros(1, requires_grad=True)], options("prodigy"), 1.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adamw8bit_has_8bit_moments_for_large_weights_and_float32_for_embeddings(device):
    """The library leaves tensors of less than 4096 values, as of most embeddings, in float32."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    weight, embedding = (torch.nn.Parameter(torch.ones(rows, 64, device=device)) for rows in (128, 2))
    optimizer = make_optimizer([weight, embedding], options("adamw8bit"), 0.01)
    for _ in range(20):
        for one in (weight, embedding):
            one.grad = one.detach() - 2
        optimizer.step()
    assert effective_learning_rate(optimizer) == 0.01
    assert [optimizer.state[one]["state1"].dtype for one in (weight, embedding)] == [torch.uint8, torch.float32]
    assert all(1.1 < float(one.mean()) < 2.1 for one in (weight, embedding))


FREE = [kind for kind, row in OPTIMIZERS.items() if row.averages_itself]


def test_schedule_free_adamw_follows_its_formula():
    """Defazio et al. 2024, algorithm 1: steps of Adam at z, their mean x, gradients asked for between the two."""
    one = embeddings_with("adamw-schedule-free")
    z = x = y = torch.ones(2, dtype=torch.float64)
    square = torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        gradient = y - 2
        square = 0.999 * square + 0.001 * gradient**2
        z = z - 0.2 * gradient / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        x = x + (z - x) / (step + 1)
        y = 0.1 * z + 0.9 * x
        pull(one, ["<a>"], step)
        for key, rows in one.injection.rows.items():
            torch.testing.assert_close(rows.of("<a>")[:, 0].double(), y, rtol=1e-5, atol=1e-6)
            with one.ema_swapped():
                torch.testing.assert_close(one.injection.rows[key].of("<a>")[:, 0].double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("kind", FREE)
def test_schedule_free_averages_follow_the_norm_rule_and_are_exported(kind, ema):
    one = embeddings_with(kind, preserve_norm=0.5, ema=ema)
    for step in range(30):
        pull(one, ["<a>"], step, goal=3 * (-1.0) ** (step // 4))
        with one.ema_swapped():
            shown = values(one)
    one.finish()
    for key, rows in one.injection.rows.items():
        assert rows.of("<a>").norm(dim=1).tolist() == pytest.approx([0.5] * 2, rel=1e-5), key
        assert torch.equal(rows.values, shown[key])
        assert torch.equal(rows.of("<b>"), torch.ones_like(rows.of("<b>")))


@pytest.mark.parametrize("kind", FREE)
def test_a_schedule_free_optimizer_converges_with_a_norm_rule(kind):
    """It finds the direction of the goal, and the raw weights do not grow beyond the rule."""
    one = embeddings_with(kind, preserve_norm="initial")
    goals = {
        key: 10 * torch.rand(2, width, generator=torch.Generator().manual_seed(1)) for key, width in WIDTHS.items()
    }
    for step in range(200):
        active = one.begin(["<a>"], Clock(step, 200, 10.0, float(step)))
        for key, rows in active.items():
            rows.leaf.grad = rows.leaf.detach() - goals[key]
        one.step(one.gradient_norm(1.0), Clock(step, 200, 10.0, float(step)))
        for key, rows in one.injection.rows.items():
            assert float(rows.of("<a>").norm(dim=1).max()) < 1.25 * WIDTHS[key] ** 0.5  # while it trains, too
    one.finish()
    for key, rows in one.injection.rows.items():
        assert float(torch.cosine_similarity(rows.of("<a>"), goals[key]).min()) > 0.9, key
        assert rows.of("<a>").norm(dim=1).tolist() == pytest.approx([WIDTHS[key] ** 0.5] * 2, rel=1e-5)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_swapping_ema_weights_does_not_change_training(kind, ema):
    def weights():
        settings = WeightSettings(options(kind), RATES[kind], clip_norm=0.0, ema=ema)
        start = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        return WeightTrainer("lora.denoiser", {"a": torch.nn.Parameter(start)}, settings, text=False)

    looked, quiet = [(embeddings_with(kind, ema=ema), weights()) for _ in range(2)]
    for step in range(12):
        for embeddings, lora in (looked, quiet):
            pull(embeddings, ["<a>"], step, goal=0.37 * step)
            lora.parameters["a"].grad = lora.parameters["a"].detach() - 0.37 * step
            lora.step(lora.gradient_norm(1.0), Clock(step, 12, 1.0, 0.0))
        with looked[0].ema_swapped(), looked[1].ema_swapped():
            pass
    for one, other in zip(looked, quiet, strict=True):
        states = [one.state(), other.state()]
        assert states[0].values == states[1].values
        assert all(torch.equal(tensor, states[1].tensors[name]) for name, tensor in states[0].tensors.items())
