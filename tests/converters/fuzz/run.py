"""Feed damaged files to the converters: `python tests/converters/fuzz/run.py --cases 1000000 --seed 1`.

Each case is made from the seed and its number, so `--seed 1 --replay 4711` runs one again; `--file PATH` runs a file.
Batches run in forked processes with a limit of memory; one that dies or hangs is a failure as well.
"""

import argparse
import json
import mmap
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz import cases, check, guard, seeds

BATCH = 10_000  # cases a process
MEMORY = 256 << 20  # bytes beyond what a process has when it starts
SECONDS = 2.0  # of CPU a case
PATIENCE = 120  # seconds without a new case
KEPT = 3  # inputs of one kind of failure

say = partial(print, flush=True)


def main(argv=None):
    """Exit code 1 if any case failed."""
    args = _arguments(argv)
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        if args.replay is not None or args.file:
            return _one(args, scratch)
        return _many(args, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    parser.add_argument("--replay", type=int, metavar="NUMBER")
    parser.add_argument("--file", type=Path)
    return parser.parse_args(argv)


def _checker(scratch):
    """A checker in a new folder, after every seed has been read once, so that nothing is imported later."""
    from PIL import Image

    Image.init()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    partners = {}
    for seed in seeds.seeds():
        if seed.name in ("LoRA", "kohya"):
            partners["lora" if seed.name == "LoRA" else "embedding"] = folder / f"partner_{seed.name}.safetensors"
            (folder / f"partner_{seed.name}.safetensors").write_bytes(seed.data)
    checker = check.Checker(folder, guard.Guard(), partners)
    for number, seed in enumerate(seeds.seeds()):
        with suppress(guard.Violation):  # modules that are loaded the first time
            checker.run(cases.Case(number, seed.name, "x.pt", seed.data))
    return checker


def _one(args, scratch):
    if args.file:
        case = cases.Case(args.replay or 0, str(args.file), args.file.name, args.file.read_bytes())
    else:
        case = cases.make(args.seed, args.replay)
    checker = _checker(scratch)
    guard.limit_memory(MEMORY)
    checker.guard.start(SECONDS)
    say(case, len(case.data), "bytes", case.data[:200])
    say(checker.run(case))
    return 0


def _many(args, scratch):
    seen, outcomes, start, done = Counter(), Counter(), time.monotonic(), 0
    checker = _checker(scratch)
    while done < args.cases:
        first = args.first + done
        count = min(BATCH, args.cases - done)
        for failure in _batch(args.seed, range(first, first + count), checker, outcomes):
            _keep(args, failure, seen)
        done += count
        rate = done / (time.monotonic() - start)
        shares = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
        say(f"{done} cases, {rate:.0f} a second, {sum(seen.values())} failures ({shares})")
    for what, number in seen.most_common():
        say(f"{number} x {what}")
    return 1 if seen else 0


def _keep(args, failure, seen):
    number, what, trace = failure
    seen[what] += 1
    if seen[what] > KEPT:
        return
    case = cases.make(args.seed, number)
    args.failures.mkdir(parents=True, exist_ok=True)
    place = args.failures / f"{args.seed}-{number}.bin"
    place.write_bytes(case.data)
    place.with_suffix(".txt").write_text(f"{case}\n{what}\n{trace}", "utf-8", "backslashreplace")
    say(f"FAILED case {number}, from {case.origin}: {what}")
    say(f"  kept as {place}; again with --seed {args.seed} --replay {number}")


def _batch(seed, numbers, checker, outcomes):
    """Failures of these cases, run in forked processes: a new one after each that dies."""
    progress = mmap.mmap(-1, 8)
    failures, at = [], numbers.start
    while at < numbers.stop:
        progress[:] = at.to_bytes(8, "little")
        ended, found = _forked(lambda at=at: _work(seed, range(at, numbers.stop), checker, progress), progress)
        failures += found.get("failures", [])
        outcomes.update(found.get("outcomes", {}))
        if ended == 0:
            break
        stopped = int.from_bytes(progress, "little")
        failures.append((stopped, f"the process ended with {ended}", ""))
        at = stopped + 1
    return failures


def _forked(work, progress):
    """How a process ended (0: well) and what it had to say."""
    with tempfile.TemporaryFile() as report:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pickle.dump(work(), report)
                report.flush()
                code = 0
            finally:
                os._exit(code)
        status = _waited(child, progress)
        report.seek(0)
        return status, pickle.load(report) if status == 0 else {}


def _waited(child, progress):
    last, since = bytes(progress), time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if bytes(progress) != last:
            last, since = bytes(progress), time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _work(seed, numbers, checker, progress):
    guard.limit_memory(MEMORY)
    checker.guard.start(SECONDS)
    outcomes, failures = Counter(), []
    for number in numbers:
        progress[:] = number.to_bytes(8, "little")
        try:
            outcomes[checker.run(cases.make(seed, number))] += 1
        except (Exception, guard.Hang) as error:  # noqa: BLE001 - any exception is a finding
            failures.append((number, _kind(error), traceback.format_exc()))
    checker.guard.stop()
    return {"outcomes": dict(outcomes), "failures": failures}


def _kind(error):
    """One line for all failures of one cause."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "converters" in frame.filename]
    ours = [frame for frame in frames if "/tests/" not in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return json.dumps(f"{type(error).__name__} at {place}: {str(error)[:80]}" if not ours or not isinstance(
        error, guard.Violation) else f"Violation: {str(error)[:60]}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
