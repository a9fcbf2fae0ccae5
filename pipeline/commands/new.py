"""`pivotune new`: writes a recipe from one that ships."""

from __future__ import annotations

from pathlib import Path

import click

from .options import complete_recipe


@click.command()
@click.argument("template", required=False, shell_complete=complete_recipe)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write [TEMPLATE.toml].")
@click.option("--overwrite", is_flag=True, help="Replace the file if there is one.")
def new(template: str | None, out: Path | None, overwrite: bool) -> None:
    """Write a recipe of your own from a TEMPLATE: the options that most recipes need, explained.

    `pivotune schema train` and its sisters have all options. Without TEMPLATE: list the templates. The recipe is named
    after the file. Paths to pictures that ship are written out, so that it runs as it is.
    """
    from ..errors import RecipeError
    from ..recipe.document import shipped
    from ..recipe.nearest import did_you_mean
    from ..recipe.template import description, from_template

    if template is None:
        for name, path in shipped().items():
            click.echo(f"{name:<16} {description(path)}")
        return
    if template not in shipped():
        hint = did_you_mean(template, shipped())
        raise click.BadParameter(f"no template is called '{template}'{hint}", param_hint="TEMPLATE")
    target = out or Path(f"{template}.toml")
    text = from_template(shipped()[template], target)
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError([f"{target} exists; give another --out, or --overwrite to replace it"]) from None
    except OSError as error:
        raise RecipeError([f"{target} cannot be written: {error.strerror or error}"]) from None
    click.echo(f"{target} written. Edit it, then: pivotune check {target}")
