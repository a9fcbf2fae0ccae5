"""Kills runs at random moments and holds what comes out against a run that was never stopped.

By hand, as long as one likes: python tests/run/killing.py --kills 500
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from projects import make_project, run_project
from tqdm import tqdm

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.start import left_behind

# Recipes of the kinds of training that there are; every one writes a checkpoint often, so that kills hit saves too.
OFTEN = '[checkpoint]\nevery = "1 steps"\n'
TWO_STAGES = (
    '[[stage]]\nkind = "rescale"\nto = "mean"\n[[stage]]\nkind = "train"\nsteps = 4\n'
    "embeddings = false\nlora = { rank = 2, learning_rate = 1e-2, dropout = 0.2 }\n"
)
METHODS: dict[str, dict[str, str]] = {
    "words": {"train": "schedule = 'cosine'\nwarmup_steps = 2\npreserve_norm = 'median'", "more": OFTEN},
    "words and LoRA": {
        "train": "lora = { rank = 2, dropout = 0.3 }\nflip = true\ncaption_dropout = 0.3",
        "more": OFTEN,
    },
    "fine-tune, Prodigy, average": {
        "train": 'ema = 0.9\noptimizer = { kind = "prodigy" }\n[stage.finetune]\nlearning_rate = 1e-3',
        "more": OFTEN,
    },
    "pivotal": {"train": "gradient_accumulation = 2", "stages": TWO_STAGES, "more": OFTEN},
}
FAMILY = {"words": "sdxl"}
STEPS = 6


def child(work: Callable[[], object], seconds: float | None = None, number: int = signal.SIGKILL) -> int | None:
    """Do the work in a process of its own; after `seconds` send it the signal. Its exit code, None when it was killed.

    A fork of this process needs no imports of its own, so that hundreds of runs are cheap.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        tqdm.set_lock(threading.RLock())  # else forks share one, and a killed one takes it along
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except Exception as error:  # noqa: BLE001 (its parent sees the exit code)
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    until = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code < 0 else code


@dataclass(frozen=True)
class Project:
    """A recipe, and the run of it that nobody stopped."""

    recipe: Recipe
    whole: Path
    seconds: float


def project(folder: Path, method: str) -> Project:
    """Write the project and run it once, in peace."""
    folder.mkdir()
    path = make_project(folder, FAMILY.get(method, "sd1"), **METHODS[method])
    recipe = load_recipe(path, [f"stage.3.steps={STEPS}", "samples.prompts=[]"])
    begin = time.monotonic()
    assert child(lambda: run_project(recipe, folder / "whole")) == 0
    return Project(recipe, folder / "whole", time.monotonic() - begin)


def killed_again_and_again(made: Project, out: Path, draw: random.Random, most: int) -> int:
    """Run into `out`, killing at random moments, at most so often; in the end it is let through. How many kills hit."""
    for kills in range(most + 1):
        seconds = draw.uniform(0.0, made.seconds) if kills < most else None
        code = child(lambda: run_project(made.recipe, out), seconds)
        if code is not None or _finished(out):  # the last things a run does, such as its report, may be cut off
            assert not code
            return kills
    raise AssertionError("the run that was let through did not finish")


def _finished(out: Path) -> bool:
    left = left_behind(out)
    return left is not None and left["status"] == "finished"


def made_files(run: Path) -> dict[str, bytes]:
    """Every file that must be the same: exports and pictures, but for the script that names the way to the model."""
    found = [path for part in ("exports", "pictures") for path in sorted((run / part).rglob("*")) if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found if path.name != "load.py"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, done, runs = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        projects = {method: project(Path(folder) / method.replace(" ", "-"), method) for method in METHODS}
        wanted = {method: made_files(made.whole) for method, made in projects.items()}
        while done < options.kills:
            method = list(METHODS)[runs % len(METHODS)]
            out = Path(folder) / f"run-{runs}"
            done += killed_again_and_again(projects[method], out, draw, min(10, options.kills - done))
            assert made_files(out) == wanted[method], f"other bytes after kills in {out} ({method})"
            runs += 1
            sys.stdout.write(f"{done} kills, {runs} runs: every one ended in the same bytes\n")


if __name__ == "__main__":
    main()
