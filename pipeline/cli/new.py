"""`pivotune new`: writes a recipe from a template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import click
import tomli

from pivotune import schemas

from ...converters.families import families
from ...converters.names import is_reserved
from ..errors import RecipeError
from .options import complete_recipe, vram_option

_SCHEMA = re.compile(r"^#:schema .*$", re.M)
_NAME = re.compile(r'^name = ".*?"', re.M)
_BASE, _FAMILY = re.compile(r'^base = ".*?"', re.M), re.compile(r'^family = ".*?"', re.M)
_VALUE = re.compile(r"^(?P<key>[^=#]+= )(?P<value>[^#]*?)(?P<rest>\s*(#.*)?)$")
AFTER = ("dtype", "family", "base", "batch_size", "steps", "kind")
_FOLDER = re.compile(r'^(?P<key>images|captions) = "(?P<path>[^"\n]+)"', re.M)


def description(path: Path) -> str:
    """The description of a shipped recipe."""
    return str(tomli.loads(path.read_text("utf-8")).get("description", ""))


def from_template(template: Path, target: Path) -> str:
    """The template's text with its comments, named after `target`; paths of shipped files become absolute."""
    about = schemas.schema("recipe.json")["properties"]["name"]
    if re.fullmatch(about["pattern"], target.stem) is None:
        raise RecipeError(
            [f"'{target.stem}' cannot be the recipe's name: it is not {about['title']}; choose another file name"]
        )
    if is_reserved(target.stem):
        raise RecipeError(
            [f"'{target.stem}' cannot be the recipe's name: it is a device on Windows; choose another file name"]
        )
    schema = Path(str(files("pivotune.schemas") / "editor.json"))
    text = template.read_text("utf-8")
    text = _SCHEMA.sub(lambda _: f"#:schema {schema.as_uri()}", text, count=1)
    text = _NAME.sub(lambda _: f"name = {json.dumps(target.stem)}", text, count=1)
    return _FOLDER.sub(lambda match: _absolute(match, template.parent), text)


def _absolute(match: re.Match[str], folder: Path) -> str:
    path = folder / match["path"]
    return f"{match['key']} = {json.dumps(path.as_posix())}" if path.exists() else match[0]


def of_family(text: str, family: str) -> str:
    """The text of a recipe for this family: with its usual model, where the recipe is for another one."""
    about = _FAMILY.search(text)
    if about is None or about[0] == f'family = "{family}"':
        return text
    was = re.search(r'"([^"]+)"', about[0])
    before = families()[was[1]].widths if was else {}
    for old, new in zip(before, families()[family].widths, strict=False):  # keys of learning rates
        text = re.sub(rf"\b{re.escape(old)} =", f"{new} =", text)
    text = _FAMILY.sub(lambda _: f'family = "{family}"', text, count=1)
    return _BASE.sub(lambda _: f'base = "{families()[family].example}"', text, count=1)


def with_keys(text: str, changes: Mapping[tuple[str | int, ...], str]) -> str:
    """The text of a recipe with values (TOML) for keys by their path; comments stay.

    Keys that it does not have come after the first of AFTER that their table has. Values are of one line.
    """
    from ..recipe.document import key_lines

    numbers, lines = key_lines(text), text.splitlines()
    new: dict[int, list[str]] = {}
    for path, value in changes.items():
        number = numbers.get(path)
        if number is not None:
            lines[number - 1] = _VALUE.sub(rf"\g<key>{value}\g<rest>", lines[number - 1])
        else:
            number = next(numbers[*path[:-1], key] for key in AFTER if (*path[:-1], key) in numbers)
            new.setdefault(number, []).append(f"{path[-1]} = {value}")
    return "".join(f"{line}\n" for number, old in enumerate(lines, 1) for line in [old, *new.get(number, [])])


def fitted(text: str, template: Path, name: str, gib: float) -> str:
    """The text of a template with the settings that make it fit into `gib` GiB, and the estimate as a comment.

    RecipeError when none do.
    """
    from ..checks.fit import changed_keys, fit
    from ..recipe.document import Document, key_lines
    from ..recipe.load import open_document
    from ..text import format_bytes

    recipe, _, _ = open_document(Document(template, text, tomli.loads(text)))
    found = fit(recipe, gib) if recipe is not None else None
    if found is None:
        raise RecipeError([f"{name} has no train stage whose memory could be estimated; remove --vram"])
    need = format_bytes(max(found.made_stages.values()))
    if not found.fits:
        hint = "use a larger --vram, or reduce train.resolution in a recipe written without it"
        raise RecipeError(
            [f"{name} does not fit into {gib:g} GB of GPU memory, with all settings it needs {need}; {hint}"]
        )
    text = with_keys(text, changed_keys(found.recipe, found.made))
    lines, at = text.splitlines(keepends=True), key_lines(text)["model",] - 1
    about = f"# GPU memory, estimated and not measured: {need}. `pivotune plan FILE --vram {gib:g}` shows it by part.\n"
    return "".join([*lines[:at], about, *lines[at:]])


@click.command()
@click.argument("template", required=False, metavar="[TEMPLATE|FAMILY]", shell_complete=complete_recipe)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Output file [TEMPLATE.toml].")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
@vram_option("Set the keys that make the recipe fit into a GPU with this much memory, by an estimate.")
def new(template: str | None, out: Path | None, overwrite: bool, vram: float | None) -> None:
    """Write a recipe from a TEMPLATE, or that of a model FAMILY, with comments on the most common keys.

    Without TEMPLATE: list the templates. The recipe is named after the file. All keys are in schemas/README.md and in
    `pivotune schema train`. Shipped images are referred to by absolute paths, so that the recipe runs as it is.
    """
    from ..recipe.document import shipped
    from ..text import did_you_mean

    if template is None:
        width = max(map(len, shipped()))
        for name, path in shipped().items():
            click.echo(f"{name:<{width}} {description(path)}")
        return
    family = families().get(template) if template not in shipped() else None
    source = shipped().get(template if family is None else family.template)
    if source is None:
        hint = did_you_mean(template, [*shipped(), *families()])
        raise click.BadParameter(f"unknown template '{template}'{hint}", param_hint="TEMPLATE")
    target = out or Path(f"{template}.toml")
    text = from_template(source, target)
    if family is not None:
        text = of_family(text, family.name)
    if vram is not None:
        text = fitted(text, source, template, vram)
    _write(target, text, overwrite=overwrite)
    click.echo(f"{target} written. Edit it, then: pivotune check {target}")


def _write(target: Path, text: str, *, overwrite: bool) -> None:
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(
            [f"{target} already exists; choose another --out, or overwrite it with --overwrite"]
        ) from None
    except OSError as error:
        raise RecipeError([f"{target} cannot be written: {error.strerror or error}"]) from None
