"""No test asserts how long something takes: on a busy computer that says nothing."""

import ast
from pathlib import Path

CLOCKS = {"time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns"}
ROOT = Path(__file__).resolve().parents[1]


def _reads_clock(node: ast.AST) -> bool:
    return any(
        isinstance(call, ast.Call)
        and (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")) in CLOCKS
        for call in ast.walk(node)
    )


def test_no_test_asserts_seconds():
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        found += [
            f"{path}:{node.lineno}" for node in ast.walk(tree) if isinstance(node, ast.Assert) and _reads_clock(node)
        ]
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
