"""The kinds of runs that are killed: each writes a checkpoint after every step, so that kills hit checkpoints too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from projects import make_project

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe

OFTEN = '[checkpoint]\nevery = "1 steps"\n'
STEPS = 6


@dataclass(frozen=True)
class Kind:
    """A recipe (`parts` are those of `make_project`) and how it is run: by how many processes, beside which files.

    `drawn` is a folder that the run fills itself, beside its own: every run finds none. `environment` is what a
    launcher asks for, `needs` a package without which there is no such run.
    """

    parts: Mapping[str, str]
    family: str = "sd1"
    processes: int = 1
    files: Mapping[str, str] = field(default_factory=dict)
    drawn: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""

    @property
    def lacks(self) -> str:
        """Why this kind cannot run here; nothing where it can."""
        return "" if not self.needs or find_spec(self.needs) else f"needs {self.needs}, which is not installed"

    def write(self, folder: Path) -> Recipe:
        """Write the project into a folder that is there."""
        for name, text in self.files.items():
            (folder / name).write_text(text, "utf-8")
        parts = {**self.parts, "more": self.parts.get("more", "") + OFTEN}
        path = make_project(folder, self.family, **parts)
        return load_recipe(path, [f"stage.3.steps={STEPS}", "samples.prompts=[]"])


TWO_STAGES = (
    '[[stage]]\nkind = "rescale"\nto = "mean"\n[[stage]]\nkind = "train"\nsteps = 4\n'
    "embeddings = false\nlora = { rank = 2, learning_rate = 1e-2, dropout = 0.2 }\n"
)
# Twelve embeddings, two or so of which are finished by each step; the bands make the guard warn of them.
TABLE = [f"w{number:02},{1 + number // 2} own steps" for number in range(12)]
MANY_EMBEDDINGS = {
    "captions": "<cat> " + " ".join(row.partition(",")[0] for row in TABLE),
    "more": '[[embeddings_from]]\ntable = "embeddings.csv"\nembedding = { initial_text = "blue" }\n',
    "train": "[stage.guard]\nnorm_band = { low = 0.999, high = 1.001 }",
    "export": 'targets = ["a1111", "comfyui"]',
}
EMBEDDINGS_CSV = "\n".join(["placeholder,stop_after", *TABLE]) + "\n"
BESIDE = "save = { every = '2 steps', keep = 1 }\nwatch = { sample_every = '2 steps', prompts = ['<cat>'] }"
CLASS = '[[concept]]\nimages = "class"\nprior = true\ngenerate = { prompts = ["a ring"], count = 3, steps = 2 }\n'
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SPREAD = "finetune = { parts = ['denoiser', 'clip_l'], learning_rate = 1e-3, layers = 'attention' }"
EIGHT_BITS = (
    "optimizer = { kind = 'adamw8bit' }\nfinetune = { learning_rate = 1e-3, optimizer = { kind = 'adamw8bit' } }"
)

KINDS: dict[str, Kind] = {
    "embeddings": Kind({"train": "schedule = 'cosine'\nwarmup_steps = 2\npreserve_norm = 'median'"}, "sdxl"),
    "embeddings and LoRA": Kind({"train": "lora = { rank = 2, dropout = 0.3 }\nflip = true\ncaption_dropout = 0.3"}),
    "fine-tune, Prodigy, average": Kind(
        {"train": 'ema = 0.9\noptimizer = { kind = "prodigy" }\n[stage.finetune]\nlearning_rate = 1e-3'}
    ),
    "pivotal": Kind({"train": "gradient_accumulation = 2", "stages": TWO_STAGES}),
    "many embeddings": Kind(MANY_EMBEDDINGS, files={"embeddings.csv": EMBEDDINGS_CSV}),
    "saves and images": Kind(
        {"train": f"lora = {{ rank = 2, dropout = 0.3 }}\n{BESIDE}", "export": 'targets = ["a1111", "comfyui"]'}, "sd3"
    ),
    "class images": Kind({"train": "prior_weight = 0.5", "more": CLASS}, drawn="class"),
    "processes": Kind({"train": f"lora = {{ rank = 2, dropout = 0.3 }}\nema = 0.9\n{BESIDE}"}, processes=2),
    "processes, many embeddings": Kind(
        MANY_EMBEDDINGS | {"train": f"shard_optimizer_from = 1\n{MANY_EMBEDDINGS['train']}"},
        processes=2,
        files={"embeddings.csv": EMBEDDINGS_CSV},
    ),
    "FSDP": Kind({"train": f"ema = 0.9\n{BESIDE}\n{SPREAD}"}, processes=2, environment=FSDP),
    "validation": Kind(
        {
            "train": "lora = { rank = 2, dropout = 0.3 }\nema = 0.9\nstop_when = { validation = 'no better for 2' }",
            "export": 'from = "best"',
            "more": "[validation]\nevery = '1 steps'\nshare = 0.3\n",
        }
    ),
    "fine-tune, 8-bit AdamW": Kind({"train": EIGHT_BITS}, needs="bitsandbytes"),
}
