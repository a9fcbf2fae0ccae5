"""`pivotune schema`: prints the JSON Schemas for editors and programs."""

from __future__ import annotations

import click

from .options import print_json


@click.command()
@click.argument("name", required=False)
@click.option("--path", is_flag=True, help="Print the path of the schema file instead, for a recipe's #:schema line.")
def schema(name: str | None, path: bool) -> None:
    """Print one JSON Schema: of recipes (recipe), a stage (train), a table (data), ... Without NAME: list them."""
    from importlib.resources import files

    from pivotune import schemas

    from ..text import did_you_mean

    name = name and name.removesuffix(".json").split("/")[-1]  # the file name of a schema is accepted too
    names = {file.removesuffix(".json").split("/")[-1]: file for file in schemas.names()}
    inner = {table: file for table, file in schemas.inner_tables().items() if table not in names}
    if name is None:
        for known, file in names.items():
            click.echo(f"{known:<15} {schemas.schema(file).get('description', '')}")
        for table, file in inner.items():
            click.echo(f"{table:<15} {schemas.schema(file)['properties'][table].get('description', '')}")
    elif name not in names and name not in inner:
        hint = did_you_mean(name, [*names, *inner])
        raise click.BadParameter(f"unknown schema '{name}'{hint}", param_hint="NAME")
    elif path:
        file = names.get(name) or inner[name]
        click.echo(str(files("pivotune.schemas") / ("editor.json" if name == "recipe" else file)))
    elif name in inner:
        print_json(schemas.bundled(inner[name], name))
    else:
        print_json(schemas.bundled(names[name]))
