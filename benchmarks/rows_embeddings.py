"""Many embeddings in one run: what a step of 10,000 costs beside a step of one, how long setting up takes, and
memory.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import Row, in_fresh_process, in_turn, ratios

COUNTS = (1_000, 10_000, 20_000)
ROUNDS = 7
BATCH = 4
RECIPE = """
name = "many"
[model]
base = "micro"
[[concept]]
images = {images}
captions = ["a photo of <thing-0> on a table"]
[[embeddings_from]]
table = "embeddings.csv"
embedding = {{ placeholder = "<{{name}}>" }}
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = 100
batch_size = {batch}
[data]
cache_latents = "memory"
"""


def rows() -> list[Row]:
    return [Row(**row) for row in in_fresh_process("rows_embeddings.py", keep_pages=True)]  # type: ignore[union-attr]


def written(folder: Path, count: int) -> Path:
    """A recipe of so many embeddings, each with a text of its own."""
    from pivotune.pipeline.recipe.document import shipped_folder

    lines = [f"thing-{n},a thing number {n},2" for n in range(count)]
    (folder / "embeddings.csv").write_text("\n".join(["name,initial_text,tokens", *lines]), "utf-8")
    images = json.dumps(str(shipped_folder() / "images/emblem"))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(images=images, batch=BATCH), "utf-8")
    return path


def set_up(path: Path, model: Any) -> tuple[dict[str, float], Any, Any]:
    """Seconds of CPU for reading and for making the embeddings ready to train, the run so far, and the trainer."""
    from pivotune.converters.embedding import Contents
    from pivotune.pipeline.embeddings.norms import norm_statistics
    from pivotune.pipeline.recipe.load import load_recipe
    from pivotune.pipeline.run.context import RunContext, RunState
    from pivotune.pipeline.run.steps import initial_norms
    from pivotune.pipeline.stages.inject import inject
    from pivotune.pipeline.stages.tokenize import tokenize
    from pivotune.pipeline.train.embeddings import EmbeddingSettings, EmbeddingTrainer

    begin = time.process_time()
    recipe = load_recipe(path)
    read = time.process_time()
    unused: Any = None
    context, state = RunContext(recipe, path.parent, model, {}, unused, unused, print), RunState()
    tokenizing, injecting, options = (stage.options for stage in recipe.stages[:3])
    inject(context, state, tokenize(context, state, Contents(), tokenizing), injecting)
    statistics = {encoder.key: norm_statistics(encoder.table) for encoder in model.encoders}
    settings = EmbeddingSettings(options.learning_rate, options.optimizer)
    injection = state.require_injection()
    norms = initial_norms(injection, state.initial)
    trainer = EmbeddingTrainer(injection, recipe.embeddings, statistics, settings, norms)
    run = SimpleNamespace(recipe=recipe, model=model, injection=injection)
    return {"read": read - begin, "ready": time.process_time() - read}, run, trainer


def stepper(run: Any, trainer: Any, folder: Path) -> Any:
    """One whole training step of the run, called again and again."""
    from pivotune.pipeline.data.dataset import open_dataset
    from pivotune.pipeline.models.denoisers import DENOISERS
    from pivotune.pipeline.recipe.intervals import Clock
    from pivotune.pipeline.train.guard import Guard
    from pivotune.pipeline.train.loop import one_step
    from pivotune.pipeline.train.objective import objective_for
    from pivotune.pipeline.train.setup import Trainables, Training

    options = run.recipe.stages[2].options
    objective = objective_for(run.model.pipe.scheduler, options.objective, options.noise, options.timesteps)
    dataset = open_dataset(
        run.recipe, run.model.pipe.vae, resolution=64, batch_size=BATCH, seed=0, flip=False, caption_dropout=0.0,
        run_folder=folder, warn=print, tell=lambda text: None, bar=False,
    )  # fmt: skip
    training = Training(
        model=run.model, denoiser=DENOISERS[run.model.family.denoiser_kind], injection=run.injection,
        objective=objective, dataset=dataset, trainables=Trainables(trainer), steps=100, accumulation=1, seed=0,
        guard=Guard(options.guard, print),
    )  # fmt: skip
    return partial(one_step, training, Clock(1, 100, 10.0, 1.0))


def shared_bytes(run: Any, trainer: Any, count: int) -> float:
    """The same in the fullest of `count` processes that share the embeddings out."""
    from pivotune.pipeline.distributed import Processes
    from pivotune.pipeline.train.embeddings import EmbeddingTrainer

    made = (
        EmbeddingTrainer(run.injection, run.recipe.embeddings, trainer.statistics, trainer.settings, trainer.norms,
                    sharing=Processes(count, index))
        for index in range(count)
    )  # fmt: skip
    return max(state_bytes(run, one) for one in made)


def state_bytes(run: Any, trainer: Any) -> float:
    """Bytes a value of everything that grows with the embeddings while they are trained."""
    rows = next(iter(run.injection.rows.values()))
    key = next(iter(run.injection.rows))
    state = [rows.values, *trainer.states.optimizers[key].state().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in state) / rows.values.numel()


def measured() -> list[Row]:
    from pivotune.pipeline.models.load import load_model
    from pivotune.pipeline.recipe.load import stated_model

    torch.set_num_threads(1)
    seconds: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_model(stated_model("micro", None, None), torch.device("cpu"))
        for _ in range(3):
            for count in COUNTS:
                spent, run, trainer = set_up(written(folder, count), model)
                run.injection.eject()
                seconds[count].append(spent)
        steps = {}
        for count in (1, 10_000):
            # each has a model of its own: the embeddings stay in it
            own = load_model(stated_model("micro", None, None), torch.device("cpu"))
            _, run, trainer = set_up(written(folder, count), own)
            steps[count] = stepper(run, trainer, folder)
            steps[count]()
        bytes_a_value, shared = state_bytes(run, trainer), shared_bytes(run, trainer, 8)
        found = in_turn({"one": steps[1], "many": steps[10_000]}, ROUNDS, {"one": 4, "many": 4})
    ready = {count: [spent["ready"] for spent in seconds[count]] for count in COUNTS}
    return [
        Row("whole step of the micro model, 10,000 embeddings / 1 embedding", "<= 1.05", 1.05,
            ratios(found["many"], found["one"])),
        Row("10,000 embeddings ready to train: tokens, rows, optimizer", "<= 2 s", 2.0, ready[10_000], " s"),
        Row("the same, 20,000 embeddings / 10,000 embeddings", "<= 2.5 (linear: 2)", 2.5,
            ratios(ready[20_000], ready[10_000])),
        Row("the same, 10,000 embeddings / 1,000 embeddings", "<= 12 (linear: 10)", 12.0,
            ratios(ready[10_000], ready[1_000])),
        Row("a recipe of 10,000 embeddings read from a table", "<= 1 s", 1.0,
            [spent["read"] for spent in seconds[10_000]], " s"),
        Row("bytes a value in training with AdamW (value, moments)", "<= 16.1", 16.1, [bytes_a_value], " B"),
        Row("the same in each of 8 processes with sharded optimizer state", "<= 5.1", 5.1, [shared], " B"),
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps([vars(row) for row in measured()]))
