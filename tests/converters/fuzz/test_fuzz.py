"""A short, fixed run of the fuzzer, and proof that it would tell."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import cases, seeds

from pivotune.converters.dialects import DIALECTS
from pivotune.converters.errors import ConvertError
from pivotune.converters.opening import open_file
from pivotune.converters.read import dialect_of

RUN = Path(__file__).with_name("run.py")
PLANT = """
import sys
sys.path.insert(0, {tests!r})
from fuzz import check, run
def planted(path):
    {fault}
run.main.__globals__["_checker"] = lambda scratch, made=run._checker: spoilt(made(scratch))
def spoilt(checker):
    check.recognised = planted
    return checker
sys.exit(run.main(["--cases", "1", "--failures", {kept!r}]))
"""
FAULTS = {
    "raise ValueError('x')": "ValueError",
    "raise check.ConvertError('ab' * 5000) from None": None,  # cut short: nothing to tell
    "import os; os.system('true')": "os.system",
    "open('/dev/null', 'wb').close()": "open outside the folder",
    "import os\n    try: os.mkdir('/no/where')\n    except OSError: pass": "os.mkdir outside the folder",
    "while True: pass": "Hang",
    "bytes(1 << 30)": "MemoryError",
    "import os; os._exit(9)": "the process ended",
}


def run(*args):
    return subprocess.run([sys.executable, *args], check=False, capture_output=True, text=True)


def test_no_damaged_file_leads_astray(tmp_path):
    done = run(RUN, "--cases", "1500", "--seed", "1", "--failures", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1500 cases" in done.stdout
    assert ", 0 failures" in done.stdout
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_tells_what_goes_wrong_and_keeps_the_input(fault, tmp_path):
    code = PLANT.format(tests=str(RUN.parents[1]), fault=fault, kept=str(tmp_path / "kept"))
    done = run("-c", code)
    if FAULTS[fault] is None:
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert done.returncode == 1, done.stdout + done.stderr
    assert FAULTS[fault] in done.stdout
    assert "again with --seed 0 --replay" in done.stdout
    assert (tmp_path / "kept" / "0-0.bin").read_bytes() == cases.make(0, 0).data


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
            assert seed.name == "picture without"
    assert found == {*DIALECTS, None}
