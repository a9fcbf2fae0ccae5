"""Kills runs at random moments and holds what comes out against a run that was never stopped.

By hand, as long as one likes: python tests/run/killing.py --kills 500; --kind processes chooses one of the kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from run.attempts import Blow, attempt
from run.kinds import KINDS
from run.launching import started

from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.start import manifest_or_none

# Files that name the run's folder, and lists of files with the hashes of those.
SCRIPTS = ("load.py", "save.json")


def child(work: Callable[[], object]) -> int:
    """Do the work in a fork of this process; its exit code, negative for a signal."""
    with tempfile.TemporaryDirectory() as folder:
        (process,) = started(Path(folder), lambda rank: work(), 1)
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        sys.stderr.write(process.output.read_text("utf-8", "replace"))
    return code


@dataclass(frozen=True)
class Project:
    """A recipe, the run of it that nobody stopped, and how long that one computed."""

    recipe: Recipe
    whole: Path
    seconds: float
    processes: int = 1
    drawn: Path | None = None
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Kill:
    """A signal that ended a run before its time, and how far that had come."""

    name: str
    moment: str


def project(folder: Path, name: str) -> Project:
    """Write the project of a kind and run it in peace, twice: the second run takes no longer than it must."""
    folder.mkdir()
    kind = KINDS[name]
    recipe, drawn = kind.write(folder), folder / kind.drawn if kind.drawn else None
    attempt(recipe, folder / "whole", kind.processes, environment=kind.environment)
    if drawn is not None:
        shutil.rmtree(drawn)
    again = attempt(recipe, folder / "again", kind.processes, environment=kind.environment)
    assert_same(folder / "again", folder / "whole")
    return Project(recipe, folder / "whole", again.seconds, kind.processes, drawn, kind.environment)


def killed_again_and_again(made: Project, out: Path, draw: random.Random, most: int) -> list[Kill]:
    """Run into `out`, killing at random moments, at most so often; the last time not. The kills that hit."""
    kills: list[Kill] = []
    if made.drawn is not None:
        shutil.rmtree(made.drawn)
    while len(kills) < most:
        before = _parts(out)
        blow = Blow.drawn(draw, made.seconds, made.processes)
        attempt(made.recipe, out, made.processes, blow, made.environment)
        if _finished(out):  # the last things a run does, such as its report, may be truncated
            return kills
        kills.append(Kill(blow.name, _moment(out, before)))
    attempt(made.recipe, out, made.processes, environment=made.environment)
    assert _finished(out)
    return kills


def _finished(out: Path) -> bool:
    left = manifest_or_none(out)
    return left is not None and left["status"] == "finished"


def _parts(out: Path) -> set[tuple[str, int]]:
    """What somebody was writing when he was killed."""
    return {(path.name, path.stat().st_ino) for path in out.rglob("*.part")}


def _moment(out: Path, before: set[tuple[str, int]]) -> str:
    """How far a run had come that was killed."""
    found = {name for name, _ in _parts(out) - before}
    if any("-step-" in name for name in found):
        return "writing a checkpoint or a save"
    if not (out / "manifest.json").exists():
        return "loading"
    if (out / "exports").exists():
        return "exporting"
    return "training" if any(out.glob("checkpoints/stage-*")) else "before the first checkpoint"


def made_files(run: Path) -> dict[str, bytes]:
    """Every file that must be the same: exports, images and saves, but for scripts that name the run's folder."""
    parts = [run / name for name in ("exports", "images", "saves")]
    found = [path for part in parts for path in sorted(part.rglob("*")) if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found if path.name not in SCRIPTS}


def recorded(run: Path) -> dict[str, Any]:
    """What metrics and manifest say, without what a clock says."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    parts = ("recipe", "embeddings", "proofs", "artefacts", "images", "warnings", "finished", "error")
    stages = [{key: value for key, value in row.items() if key != "seconds"} for row in manifest["stages"]]
    saves = {path.parent.name: json.loads(path.read_text("utf-8")) for path in run.glob("saves/*/save.json")}
    for one in (manifest, *saves.values()):
        one["artefacts"] = [row for row in one["artefacts"] if Path(row["path"]).name not in SCRIPTS]
    return {"metrics": rows, "stages": stages, "saves": saves, **{part: manifest.get(part) for part in parts}}


def assert_same(run: Path, whole: Path) -> None:
    """The files are the same to the byte, and metrics and manifest say the same."""
    for one, other in ((made_files(run), made_files(whole)), (recorded(run), recorded(whole))):
        differ = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
        assert not differ, f"{run} is not what the run that nobody stopped is ({whole}): {', '.join(sorted(differ))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="again for more of them [all]")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="killing-"))  # stays when something differs
    survived(folder, _able(options.kind or tuple(KINDS)), options.kills, random.Random(options.seed))
    shutil.rmtree(folder)


def _able(kinds: Sequence[str]) -> list[str]:
    """The kinds that can run here; and prints why others cannot."""
    for name in kinds:
        if KINDS[name].lacks:
            sys.stdout.write(f"left out: {name} {KINDS[name].lacks}\n")
    return [name for name in kinds if not KINDS[name].lacks]


def survived(folder: Path, kinds: Sequence[str], wanted: int, draw: random.Random) -> None:
    """Kill runs of these kinds in turn until so many kills have hit, and say how many there were of each."""
    projects = {name: project(folder / name.replace(" ", "-"), name) for name in kinds}
    kills: list[Kill] = []
    by_kind, runs = Counter[str](), Counter[str]()
    while len(kills) < wanted:
        name = kinds[runs.total() % len(kinds)]
        out = folder / f"run-{runs.total()}"
        hit = killed_again_and_again(projects[name], out, draw, min(10, wanted - len(kills)))
        assert_same(out, projects[name].whole)
        shutil.rmtree(out)
        kills += hit
        by_kind[name] += len(hit)
        runs[name] += 1
        sys.stdout.write(f"{len(kills)} kills, {runs.total()} runs: every one ended in the same bytes\n")
        sys.stdout.flush()
    for title, counts in (
        ("kind (kills of runs)", [f"{name} {by_kind[name]} of {runs[name]}" for name in kinds]),
        ("signal", [f"{name} {count}" for name, count in Counter(kill.name for kill in kills).most_common()]),
        ("moment", [f"{name} {count}" for name, count in Counter(kill.moment for kill in kills).most_common()]),
    ):
        sys.stdout.write(f"by {title}: {', '.join(counts)}\n")


if __name__ == "__main__":
    main()
