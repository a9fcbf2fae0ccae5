"""The layers of `pipeline` (a lower one never imports a higher one, lazy imports included) and the sizes of modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From low to high. Layers of one row do not import each other. Modules beside the folders are the ground.
LAYERS = (
    ("ground",), ("recipe", "report"), ("embeddings",), ("data", "models"), ("train",), ("export",), ("checks",),
    ("run",), ("stages",), ("cli",),
)  # fmt: skip
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
MAX_FILE, MAX_FUNCTION, MIN_FILE = 350, 50, 60  # lines
# Files below MIN_FILE with a single importer (or a registry that imports them by name).
SMALL_FOLDERS = {
    "pipeline/cli": "one command a file",
    "pipeline/stages": "one stage a file",
    "converters/dialects": "one dialect a file",
    "converters/programs": "one program a file",
}
SMALL_FILES: dict[str, str] = {}  # path: reason


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its import name."""
    found = {}
    for folder in ("pipeline", "converters", "schemas"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_root" not in path.parts:
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(("pivotune", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """Our modules that a module imports anywhere, also in functions, and the line."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{origin}.{alias.name}"
                if (target if target in MODULES else origin) in MODULES:
                    yield (target if target in MODULES else origin), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)


def layer(name: str) -> str:
    """The layer of a module of `pipeline`."""
    part = name.split(".")[2]
    return part if (ROOT / "pipeline" / part).is_dir() else "ground"


def in_pipeline(name: str) -> bool:
    return name.startswith("pivotune.pipeline.")


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()} - {"_root"}
    assert folders == RANK.keys() - {"ground"}


@pytest.mark.parametrize("name", filter(in_pipeline, MODULES))
def test_no_module_imports_a_higher_layer(name: str) -> None:
    own = layer(name)
    wrong = [
        f"line {line}: {target}"
        for target, line in imported(name)
        if in_pipeline(target) and layer(target) != own and RANK[layer(target)] >= RANK[own]
    ]
    assert wrong == []


def test_the_report_imports_the_ground_alone() -> None:
    own = [name for name in MODULES if in_pipeline(name) and layer(name) == "report"]
    assert {layer(target) for name in own for target, _ in imported(name) if in_pipeline(target)} <= {
        "ground",
        "report",
    }


def test_files_and_functions_are_short() -> None:
    long = []
    for path in MODULES.values():
        text = path.read_text("utf-8")
        if len(text.splitlines()) > MAX_FILE:
            long.append(path.relative_to(ROOT).as_posix())
        for node in ast.walk(ast.parse(text)):
            lines = (node.end_lineno or 0) - node.lineno + 1 if hasattr(node, "end_lineno") else 0
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines > MAX_FUNCTION:
                long.append(f"{path.relative_to(ROOT).as_posix()}: {node.name}")
    assert long == []


def test_small_files_with_one_importer_have_a_reason() -> None:
    importers: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        for target, _ in imported(name):
            importers[target].add(name)
    small = {
        path.relative_to(ROOT).as_posix()
        for name, path in MODULES.items()
        if path.name != "__init__.py" and len(importers[name]) <= 1 and len(path.read_text().splitlines()) < MIN_FILE
    }
    assert {path for path in small if str(Path(path).parent.as_posix()) not in SMALL_FOLDERS} == SMALL_FILES.keys()
