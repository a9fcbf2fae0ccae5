"""Counts bad recipes, images and embedding files that are refused with a message. Exit code 1 for any traceback.

python tests/refused.py --cases 10000
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli
from bad_images import BROKEN, broken
from PIL import Image

from pivotune.pipeline.checks.recipe import check_built, check_recipe
from pivotune.pipeline.data.images import open_image
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.document import Document, shipped
from pivotune.pipeline.recipe.load import validated

HERE = Path(__file__).parent
JUNK: tuple[Any, ...] = (
    "", " ", "never", "5 steps", "train", "median", "a\0b", "../x", "é\u0301", "x" * 200, -1, 0, 3, 2**63, 10**400,
    float("nan"), float("inf"), 0.5, True, [], {}, [[]], {"kind": "train"}, {"low": 2, "high": 1},
)  # fmt: skip
REFUSED, READ, FAULT = "refused", "read", "traceback"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="random inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "recipes": lambda: recipes(options.cases, options.seed),
            "images": lambda: images(Path(folder), options.cases, options.seed),
            "embedding files": lambda: files(Path(folder), options.cases, options.seed),
        }
        for kind, count in kinds.items():
            found = count()
            say(f"{kind}: {found[REFUSED]} refused, {found[READ]} still valid, {found[FAULT]} tracebacks")
            total += found
    say(
        f"{total[REFUSED]} bad inputs refused with a message, {total[READ]} damaged ones still valid, "
        f"{total[FAULT]} tracebacks"
    )
    return 1 if total[FAULT] else 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def outcome(work: Callable[[], bool]) -> str:
    """The outcome of one input; `work` returns whether it was refused with a message."""
    try:
        return REFUSED if work() else READ
    except StageError:
        return REFUSED
    except Exception:  # noqa: BLE001 (any other error is the fault that is looked for)
        traceback.print_exc()
        return FAULT


def recipes(count: int, seed: int) -> Counter[str]:
    """The bad recipes of the tests, and shipped recipes with up to three values replaced, removed or added."""
    found = Counter(
        outcome(lambda path=path: check_recipe(path).failed)  # type: ignore[misc]
        for path in sorted((HERE / "recipe" / "bad").glob("*.toml"))
    )
    home = Path(str(shipped()["quickstart"]))
    loaded = [tomli.loads(path.read_text("utf-8")) for path in shipped().values()]
    good = [
        data for data in loaded if not _fails(Document(home, "", copy.deepcopy(data)))
    ]  # others need images that do not ship
    draw = random.Random(seed)
    for _ in range(count):
        data = mutated(copy.deepcopy(draw.choice(good)), draw)
        found[outcome(lambda data=data: _fails(Document(home, "", data)))] += 1  # type: ignore[misc]
    return found


def _fails(document: Document) -> bool:
    recipe, document, problems = validated(document)
    if recipe is not None:
        problems = check_built(recipe, document).problems
    return any(problem.severity == "error" for problem in problems)


def mutated(data: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    for _ in range(draw.randint(1, 3)):
        *path, last = draw.choice([path for path in key_paths(data) if path])
        target: Any = data
        for part in path:
            target = target[part]
        what = draw.choice(("replace", "remove", "add"))
        if what == "replace":
            target[last] = draw.choice(JUNK)
        elif what == "remove":
            del target[last]
        elif isinstance(target, dict):
            target[draw.choice(("lora", "to", "repeats", "tokens", "sedes"))] = draw.choice(JUNK)
    return data


def key_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in key_paths(item, (*path, key)))]


def images(folder: Path, count: int, seed: int) -> Counter[str]:
    """The bad images of the tests, and good ones that are truncated or have bytes overwritten."""
    broken(folder)
    found = Counter(outcome(lambda name=name: _opens(folder / name)) for name, _ in BROKEN)  # type: ignore[misc]
    draw, good = random.Random(seed), []
    for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        Image.effect_noise((48, 40), 60).convert("RGB").save(folder / f"good.{ending}")
        good.append((folder / f"good.{ending}").read_bytes())
    for _ in range(count):
        data = bytearray(draw.choice(good))
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.randint(0, 8)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        (folder / "case.png").write_bytes(data)
        found[outcome(lambda: _opens(folder / "case.png"))] += 1
    return found


def _opens(path: Path) -> bool:
    open_image(path)
    return False


def files(folder: Path, count: int, seed: int) -> Counter[str]:
    """The converters' fuzzer, in its own process."""
    command = [sys.executable, str(HERE / "converters" / "fuzz" / "run.py"), "--cases", str(count), "--seed", str(seed)]
    ended = subprocess.run(
        [*command, "--failures", str(folder / "failures")], capture_output=True, text=True, check=False
    )
    lines = [line for line in ended.stdout.splitlines() if " cases, " in line]
    if not lines:
        say(ended.stderr)
        return Counter({FAULT: 1})
    numbers = {what: int(number) for number, what in re.findall(r"(\d+) (failures|read|refused|written)", lines[-1])}
    kept = numbers.get("read", 0) + numbers.get("written", 0)
    return Counter({REFUSED: numbers.get("refused", 0), READ: kept, FAULT: numbers["failures"]})


if __name__ == "__main__":
    sys.exit(main())
