"""No test asserts how long something takes: on a busy computer that says nothing."""

import ast
from pathlib import Path

CLOCKS = {"time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns"}
ROOT = Path(__file__).resolve().parents[1]


def _clock_read(node: ast.AST) -> bool:
    """`time.monotonic()`, or `monotonic()` imported from there: `datetime.time(12)` is none."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in CLOCKS and ast.unparse(node.func.value) == "time"
    return isinstance(node.func, ast.Name) and node.func.id in CLOCKS


def test_no_test_reads_a_clock():
    """What is measured would be asserted; harnesses beside the tests may wait for a process."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        found += [f"{path}:{node.lineno}" for node in ast.walk(tree) if _clock_read(node)]
    assert found == []


def test_every_text_file_names_its_encoding():
    found = []
    for top in ("pipeline", "converters", "schemas", "recipes"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and _opens_text(node):
                    found.append(f"{path}:{node.lineno}")
    assert found == []


def _opens_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named or None in named:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name == "open" and isinstance(call.func, ast.Name):
        modes = [one.value for one in call.args[1:] if isinstance(one, ast.Constant)]
        return not any("b" in str(mode) for mode in modes)
    return name in ("run", "Popen", "check_output") and bool({"text", "universal_newlines"} & named)
