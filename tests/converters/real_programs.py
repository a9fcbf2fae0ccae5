"""Our verdicts against the programs' own LoRA loaders. Run by hand, for programs whose source is at hand:

    python tests/converters/real_programs.py comfyui=/path/to/ComfyUI a1111=/path/to/webui diffusers=

Each program runs in a process of its own, with stand-ins for its user interface and for models (names and shapes of
modules are real, weights are not there). Prints how many modules of each sample file each loader takes, what we say of
the file, and how often the two agree. `diffusers=` takes the installed one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "converters")]


def main(sources: list[str]) -> int:
    """Print the tables; 1 if a verdict disagrees."""
    import real_samples

    from pivotune.converters.families import all_families
    from pivotune.converters.opening import open_file
    from pivotune.converters.programs import programs, reads_lora
    from pivotune.converters.programs.loras import applied

    agreed = asked = 0
    with TemporaryDirectory() as folder:
        samples = real_samples.write_all(Path(folder))
        for source in sources:
            program, _, path = source.partition("=")
            call = [sys.executable, "-m", "real_loaders", program, path, folder]
            paths = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])}
            ran = subprocess.run(call, env=paths, capture_output=True, text=True, check=False)
            if ran.returncode:
                print(f"{program}: its loader does not run here: {ran.stderr.strip().splitlines()[-1]}")  # noqa: T201
                continue
            found = json.loads(ran.stdout.splitlines()[-1])
            same = 0
            for name, loaded in found.items():
                file, family = open_file(samples[name][1]), all_families()[samples[name][0]]
                ours = applied(programs()[program], file, family)
                refused = reads_lora(program, file, family.widths).refusal
                count = None if ours is None else 0 if refused else ours.applied
                same += count == loaded["modules"]
                if count != loaded["modules"]:
                    said = "not known" if ours is None else f"{count} of {ours.modules} {refused or ours.refusal}"
                    print(f"  {program} {name}: takes {loaded['modules']} {loaded['error'][:100]}; we say {said}")  # noqa: T201
            print(f"{program}: {same} of {len(found)} agree")  # noqa: T201
            agreed, asked = agreed + same, asked + len(found)
    print(f"all: {agreed} of {asked} agree")  # noqa: T201
    return int(agreed != asked)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
