"""`pivotune new`: writes a recipe from a template."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import click
import tomli

from pivotune import schemas

from ...converters.names import is_reserved
from ..errors import RecipeError
from .options import complete_recipe

_SCHEMA = re.compile(r"^#:schema .*$", re.M)
_NAME = re.compile(r'^name = ".*?"', re.M)
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


@click.command()
@click.argument("template", required=False, shell_complete=complete_recipe)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Output file [TEMPLATE.toml].")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
def new(template: str | None, out: Path | None, overwrite: bool) -> None:
    """Write a recipe from a TEMPLATE, with comments on the most common keys.

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
    if template not in shipped():
        hint = did_you_mean(template, shipped())
        raise click.BadParameter(f"unknown template '{template}'{hint}", param_hint="TEMPLATE")
    target = out or Path(f"{template}.toml")
    text = from_template(shipped()[template], target)
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(
            [f"{target} already exists; choose another --out, or overwrite it with --overwrite"]
        ) from None
    except OSError as error:
        raise RecipeError([f"{target} cannot be written: {error.strerror or error}"]) from None
    click.echo(f"{target} written. Edit it, then: pivotune check {target}")
