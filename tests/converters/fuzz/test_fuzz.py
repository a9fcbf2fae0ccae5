"""A short, fixed run of the fuzzer, and proof that it would tell."""

import subprocess
import sys
from pathlib import Path

from fuzz import cases, seeds

from pivotune.converters.dialects import DIALECTS
from pivotune.converters.errors import ConvertError
from pivotune.converters.opening import open_file
from pivotune.converters.read import dialect_of

RUN = Path(__file__).with_name("run.py")
PLANT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fuzz import check, run
run.SECONDS = 0.2
checker = run._checker(Path(sys.argv[2]))
run._checker = lambda scratch: checker
for number, fault in enumerate(sys.argv[3:]):
    check.identify = lambda path, code=fault: exec(code, {"check": check})
    print("exit code", run.main(["--cases", "1", "--failures", f"{sys.argv[2]}/kept{number}"]), flush=True)
"""
FAULTS = {
    "raise ValueError('x')": "ValueError",
    "raise check.ConvertError('ab' * 5000) from None": None,  # cut short: nothing to tell
    "import os; os.system('true')": "os.system",
    "open('/dev/null', 'wb').close()": "open outside the folder",
    "import os\ntry: os.mkdir('/no/where')\nexcept OSError: pass": "os.mkdir outside the folder",
    "while True: pass": "Hang",
    "bytes(1 << 30)": "MemoryError",
    "import os; os._exit(9)": "the process ended",
}


def run(*args):
    return subprocess.run([sys.executable, *args], check=False, capture_output=True, text=True)


def test_no_corrupt_file_causes_a_violation(tmp_path):
    done = run(RUN, "--cases", "1500", "--seed", "1", "--failures", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1500 cases" in done.stdout
    assert ", 0 failures" in done.stdout
    assert not (tmp_path / "kept").exists()


def test_the_fuzzer_tells_what_goes_wrong_and_keeps_the_input(tmp_path):
    done = run("-c", PLANT, RUN.parents[1], tmp_path, *FAULTS)
    outputs = done.stdout.split("exit code ")
    assert len(outputs) == len(FAULTS) + 1, done.stdout + done.stderr
    for number, embeddings in enumerate(FAULTS.values()):
        assert outputs[number + 1][0] == ("0" if embeddings is None else "1"), done.stdout
        kept = tmp_path / f"kept{number}" / "0-0.bin"
        assert kept.exists() == (embeddings is not None)
        if embeddings is not None:
            assert embeddings in outputs[number], done.stdout
            assert "again with --seed 0 --replay 0" in outputs[number]
            assert kept.read_bytes() == cases.make(0, 0).data


def test_a_case_is_the_same_in_each_process():
    code = f"import sys; sys.path.insert(0, {str(RUN.parents[1])!r})\nfrom fuzz import cases\n"
    code += "import hashlib; print([hashlib.sha256(cases.make(5, n).data).hexdigest() for n in range(40)])"
    first, second = (run("-c", code).stdout for _ in range(2))
    assert first == second
    assert len(set(first.split())) > 35


def test_there_is_a_seed_for_every_dialect(tmp_path):
    found = set()
    for seed in seeds.seeds():
        path = tmp_path / "x.pt"
        path.write_bytes(seed.data)
        try:
            found.add(dialect_of(open_file(path)))
        except ConvertError:
            assert seed.name == "image without"
    assert found == {*DIALECTS, None}
