"""Our verdicts against the programs' own loaders. Run by hand, with the source of each program:

    python tests/converters/real_programs.py comfyui=/path/to/ComfyUI a1111=/path/to/webui diffusers=

Each program runs in a process of its own, with stand-ins for its user interface and for models (names and shapes of
modules are real, weights do not exist). For sample files of every layout and kind it compares how many modules of a
LoRA the loader takes, and which vectors each text encoder gets of an embedding, in a file of its own or in a LoRA,
with our answers, prints every difference and how many agree. `diffusers=` takes the installed one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "converters")]

import real_bundles  # noqa: E402
import real_embedding_files  # noqa: E402
import real_embeddings  # noqa: E402
import real_loaders  # noqa: E402
import real_samples  # noqa: E402

from pivotune.converters.families import all_families  # noqa: E402
from pivotune.converters.opening import open_file  # noqa: E402
from pivotune.converters.programs import programs, reads, reads_lora  # noqa: E402
from pivotune.converters.programs.loras import applied  # noqa: E402

Answer = Callable[[str, str, Path], Any]


def main(sources: list[str]) -> int:
    """Print a line a program and half of its files; 1 if an answer differs."""
    agreed = asked = 0
    for source in sources:
        program, _, path = source.partition("=")
        for what, samples, answer in (
            (real_loaders, loras, modules),
            (real_embeddings, real_embedding_files.write_all, vectors),
            (real_bundles, real_embedding_files.write_bundles, bundled),
        ):
            if program not in what.LOADERS:
                continue
            results = list(compare(what.__name__, program, path, samples, answer))
            same = results.count("")
            for line in filter(None, results):
                print(f"  {program} {line}")  # noqa: T201
            print(f"{program}: {same} of {len(results)} samples of {what.__name__} agree")  # noqa: T201
            agreed, asked = agreed + same, asked + len(results)
    print(f"all: {agreed} of {asked} agree")  # noqa: T201
    return int(agreed != asked)


def compare(what: str, program: str, path: str, samples: Callable[[Path], dict], answer: Answer) -> Iterator[str]:
    """A text for each sample: how the loader's answer differs from ours, empty if it does not."""
    with TemporaryDirectory() as folder:
        files = samples(Path(folder))
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])}
        call = [sys.executable, "-m", what, program, path, folder]
        ran = subprocess.run(call, env=paths, capture_output=True, text=True, check=False)
        if ran.returncode:
            yield f"does not run here: {ran.stderr.strip().splitlines()[-1]}"
            return
        for name, loaded in json.loads(ran.stdout.splitlines()[-1]).items():
            found, error = loaded["found"], loaded["error"]
            ours = answer(program, *files[name])
            yield "" if ours == found else f"{name}: loader {found} {error[:100]}, we say {ours}"


def modules(program: str, family: str, path: Path) -> int | None:
    """How many modules we say that the program applies; None: not known."""
    file, kind = open_file(path), all_families()[family]
    layers = applied(programs()[program], file, kind)
    if layers is None:
        return None
    return 0 if reads_lora(program, file, kind.widths).refusal else layers.applied


def loras(folder: Path) -> dict[str, tuple[str, Path]]:
    """LoRAs of every layout and kind, and those with embeddings in them."""
    return real_samples.write_all(folder) | real_embedding_files.write_bundles(folder)


def vectors(program: str, family: str, path: Path) -> dict[str, str]:
    """The hashes of the vectors that we say each text encoder gets."""
    kind = all_families()[family]
    if family not in programs()[program].layouts and not programs()[program].may_read(kind):
        return {}
    found = reads(program, open_file(path), kind.widths).embeddings
    return {key: sha256(raw.data).hexdigest()[:8] for of in found.values() for key, raw in of.items()}


def bundled(program: str, family: str, path: Path) -> dict[str, dict[str, str]]:
    """The same for each embedding in a LoRA."""
    file, kind = open_file(path), all_families()[family]
    found = reads_lora(program, file, kind.widths).embeddings
    return {
        name: {key: sha256(raw.data).hexdigest()[:8] for key, raw in vectors.items()} for name, vectors in found.items()
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
