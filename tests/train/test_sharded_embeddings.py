"""Embeddings shared out over processes: trained as in one process, each process with the state of its own embeddings
alone.
"""

from __future__ import annotations

import pytest
import torch
from run.launching import launched
from train_embeddings import WIDTHS, embedding, pull, trainer, values

from pivotune.pipeline.distributed import SINGLE_PROCESS
from pivotune.pipeline.launch import join_processes
from pivotune.pipeline.recipe.intervals import Every
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.embeddings import EmbeddingSettings
from pivotune.pipeline.train.packing import unpack

NAMES = [f"<{letter}>" for letter in "abcdefg"]
STEPS = [["<a>", "<g>"], ["<b>", "<c>", "<d>"], ["<g>"], ["<a>", "<b>", "<c>", "<d>", "<e>"], ["<e>", "<g>"]]  # no <f>
ADAM = options_of(OptimizerOptions, kind="adamw", weight_decay=0.1)
PRODIGY = options_of(OptimizerOptions, kind="prodigy-schedule-free", d0=1e-3)
SETTINGS = {
    "adamw": EmbeddingSettings(0.1, ADAM, preserve_norm="initial", ema=0.5),
    "prodigy": EmbeddingSettings(1.0, PRODIGY, clip_norm=0.0, preserve_norm="median", ema=0.9),
}


def made(name, sharing=SINGLE_PROCESS):
    embeddings = [embedding(one, stop_after=Every(3, "steps") if one == "<a>" else Every(0, "never")) for one in NAMES]
    return trainer(SETTINGS[name], embeddings, sharing)


def went(one, first, last):
    """These steps, with a look at the averages after each; everything that can be seen of them."""
    seen = []
    for step in range(first, last):
        pull(one, STEPS[step], step, goal=2.0 + step)
        with one.ema_swapped():
            shown = values(one)
        seen.append({"rows": values(one), "shown": shown, "rates": one.learning_rates(), "stopped": one.stopped_at})
    return seen


def in_processes(folder, name, count, state=None, first=0, last=None):
    """The same in several processes: what each of them has seen, the state that it has, and its state's bytes."""

    def work(rank):
        one = made(name, join_processes("cpu"))
        if state is not None:
            one.restore(state)
        seen = went(one, first, last or len(STEPS))
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept(one.states))
        saved = one.state()
        one.finish()
        torch.save((seen, saved, size, values(one)), folder / f"{rank}.pt")

    ended = launched(folder, work, count)
    assert ended.codes == [0] * count, ended.outputs
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def kept(states):
    """The tensors that a process has of its own embeddings, beside the table."""
    trees = [one.state() for one in (*states.optimizers.values(), *states.averages.values())]
    while trees:
        found = trees.pop()
        if isinstance(found, torch.Tensor):
            yield found
        elif isinstance(found, dict | list):
            trees += found.values() if isinstance(found, dict) else found


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SETTINGS)
def test_sharded_embeddings_match_one_process(tmp_path, name):
    alone = made(name)
    seen = went(alone, 0, len(STEPS))
    state = unpack(alone.state())
    alone.finish()
    found = in_processes(tmp_path, name, 3)
    for theirs, _, _, final in found:
        assert_same(theirs, seen)
        assert_same(final, values(alone))
        for key in WIDTHS:  # the embedding that is in no batch
            assert torch.equal(final[key][10:12], torch.ones_like(final[key][10:12]))
    saved = [unpack(saved) for _, saved, _, _ in found]
    assert_same(saved[0]["rows"], state["rows"])
    assert_same(saved[0]["averages"], state["averages"])
    assert saved[0]["optimizers"].keys() == state["optimizers"].keys()
    assert all(not one["rows"] and "optimizers" not in one for one in saved[1:])  # the main process writes


def test_each_process_has_the_state_of_its_shard_only(tmp_path):
    [[_, _, whole, _]] = in_processes(tmp_path, "adamw", 1)
    sizes = [sizes for _, _, sizes, _ in in_processes(tmp_path, "adamw", 7)]
    assert whole == len(NAMES) * 2 * (sum(WIDTHS.values()) * 12 + len(WIDTHS) * 8)  # moments, average, two counts a row
    assert sizes == [whole // 7] * 7


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_training_resumes_with_another_number_of_processes(tmp_path, name, before, after):
    whole = made(name)
    seen = went(whole, 0, len(STEPS))
    [[_, state, _, _], *_] = in_processes(tmp_path, name, before, last=3)
    for theirs, _, _, _ in in_processes(tmp_path, name, after, state, first=3):
        assert_same(theirs, seen[3:])
