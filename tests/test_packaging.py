"""The folders are the packages, the wheel has everything, and imports point one way."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("pipeline", "converters", "schemas", "recipes")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def sources():
    return [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module a file imports anywhere in it, absolute, as pivotune.… where it is ours."""
    mapped = {folder: name for name, folder in SETUPTOOLS["package-dir"].items()}
    folder = path.parent.relative_to(ROOT).as_posix()
    package = (mapped.get(folder) or "pivotune." + folder.replace("/", ".")).split(".")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
    return found


def test_every_package_is_listed():
    mapped = {folder: name for name, folder in SETUPTOOLS["package-dir"].items()}
    found = set()
    for top in TOPS:
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT).as_posix()
            found.add(mapped.get(folder) or "pivotune." + folder.replace("/", "."))
    assert found == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_is_in_a_package(path):
    assert (path.parent / "__init__.py").is_file()


def test_no_import_by_the_folder_name():
    for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & set(TOPS), (path, node.lineno)


def imported_test_modules(source: str) -> list[str]:
    """Every name in the import statements of a file that is a test module's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [part for name in names for part in name.split(".") if part in TEST_MODULES]
    return found


TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_MODULES = {path.stem for path in TESTS if path.stem.startswith("test_")}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_module_is_imported(path):
    """Helpers that several test modules use are in plain modules."""
    assert imported_test_modules(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["import test_readme", "from test_readme import ROOT", "from run import test_start", "import run.test_start"],
)
def test_imports_of_test_modules_are_found(line):
    assert len(imported_test_modules(line)) == 1


HEAVY = {"torch", "numpy", "transformers", "diffusers", "peft", "accelerate", "matplotlib", "PIL"}


def top_level_imports(path: Path) -> set[str]:
    """What a file imports when it is imported: no function's own imports, nothing for type checkers only."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_imports_point_one_way():
    for path in sources():
        package = path.relative_to(ROOT).parts[0]
        ours = {name for name in imported(path) if name.startswith("pivotune.")}
        allowed = {
            "schemas": ("pivotune.schemas",),
            "converters": ("pivotune.converters", "pivotune.schemas", "pivotune.__version__"),
            "recipes": ("pivotune.recipes", "pivotune.converters", "pivotune.schemas"),
            "pipeline": ("pivotune.",),
        }[package]
        assert all(name.startswith(allowed) for name in ours), (path, ours)


def test_converters_and_recipe_checks_import_nothing_heavy():
    for folder in ("converters", "schemas", "pipeline/recipe", "pipeline/cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert not top_level_imports(path) & HEAVY, path


def test_only_the_loaders_layer_imports_diffusers_loaders():
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        uses = {name for name in imported(path) if name.split(".")[0] == "diffusers"}
        if path.parent.name != "models":
            assert not any("Pipeline" in name for name in uses), (path, uses)


def test_code_never_asks_for_a_family_by_name():
    from pivotune.converters.families import families

    names = set(families())
    for path in sources():
        if path.is_relative_to(ROOT / "recipes"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not constants & names, (path, node.lineno)
