"""Run commands on hostile models, data, manifests, checkpoints and run folders. Exit code 1 for any failure.

    python tests/hostile/run.py --cases 1000 --seed 1

A case is determined by its kind, the seed and its number: `--only models --first 17 --cases 1` runs one again. The
folders of failed cases are kept. Linux only: it uses fork, audit hooks and /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked process does not have the threads of its parent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hostile.case import Outcome, attack

say = partial(print, flush=True)
KINDS = ("models", "runs")  # modules of this folder with cases(draw), an endless iterator of Case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--failures", type=Path, default=Path("hostile-failures"), help="folder for failed cases")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        _warm(Path(folder) / "warm")
        for kind in [options.only] if options.only else KINDS:
            codes, faults = _kind(kind, options, Path(folder) / "case")
            ended = ", ".join(f"{count} with exit code {code}" for code, count in sorted(codes.items()))
            say(f"{kind}: {codes.total()} cases ({ended}); {faults.total()} failures")
            for fault, count in faults.most_common():
                say(f"  {count} x {fault}")
            failed += faults.total()
    return 1 if failed else 0


def _kind(kind: str, options: argparse.Namespace, sandbox: Path) -> tuple[Counter[int], Counter[str]]:
    module = importlib.import_module(f"hostile.{kind}")
    codes: Counter[int] = Counter()
    faults: Counter[str] = Counter()
    for number in range(options.first, options.first + options.cases):
        case = next(module.cases(random.Random(f"{options.seed} {kind} {number}")))
        outcome = attack(case, sandbox)
        codes[outcome.code] += 1
        if outcome.faults:
            faults[_cause(outcome)] += 1
            say(f"FAILED {kind} {number}, {case.name}: {'; '.join(outcome.faults)}")
            _keep(sandbox, options.failures / f"{kind}-{options.seed}-{number}", outcome)
    return codes, faults


def _cause(outcome: Outcome) -> str:
    """One line for all failures with the same cause: for a traceback, its last line and its last line in Pivotune."""
    if "traceback" not in outcome.faults:
        return outcome.faults[0].split(":")[0]
    lines = outcome.text.rstrip().splitlines()
    ours = [
        line.strip() for line in lines if line.startswith("  File ") and ("pipeline/" in line or "converters/" in line)
    ]
    return f"{lines[-1][:100]} ({ours[-1] if ours else '?'})"


def _keep(sandbox: Path, target: Path, outcome: Outcome) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "outcome.txt").write_text("\n".join((*outcome.faults, "", outcome.text)), "utf-8", "backslashreplace")
    with contextlib.suppress(OSError, shutil.Error):  # FIFOs and devices are not copied
        shutil.copytree(sandbox / "work", target / "work", symlinks=True, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if not path.is_symlink() and not path.is_dir() and not path.is_file()]


def _warm(folder: Path) -> None:
    """Import everything once, by a run of one step in this process, so that forked processes start at once."""
    import torch

    from pivotune.pipeline.cli import main as cli

    torch.set_num_threads(1)
    folder.mkdir()
    sys.argv = ["pivotune", "run", "quickstart", "--out", str(folder / "run"), "--set", "train.steps=1",
                "--set", "samples.count=1"]  # fmt: skip
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), contextlib.suppress(SystemExit):
        cli.main()


if __name__ == "__main__":
    sys.exit(main())
