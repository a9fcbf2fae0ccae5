"""`pivotune tokens`: how each text encoder of a model splits a text."""

from __future__ import annotations

from typing import Any

import click

from .options import json_option, print_json


@click.command()
@click.argument("text")
@click.option("--model", "base", help="Model: micro, a folder, a hub id or a checkpoint.  [default: micro]")
@click.option(
    "--family", help="Model family, if it cannot be detected; without --model: a well-known model of this family."
)
@click.option("--config", help="Diffusers folder or hub id with the tokenizers for a single-file checkpoint.")
@click.option("--prompt-chunks", type=click.IntRange(1, 4), help="model.prompt_chunks of the recipe.  [default: 1]")
@json_option
def tokens(
    text: str, base: str | None, family: str | None, config: str | None, prompt_chunks: int | None, as_json: bool
) -> None:
    """Show the tokens of TEXT for each text encoder of a model, and the token limit."""
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise click.BadParameter("not valid UTF-8", param_hint="TEXT")
    from dataclasses import replace

    from ..checks.model import family_findings, model_findings
    from ..errors import RecipeError
    from ..models.received import load_errors, model_error
    from ..models.tokenizers import known_model, load_tokenizers, stated_family, token_limits
    from ..recipe.load import model_spec
    from ..text import printable

    base = base or (known_model(family) if family else "micro")
    spec = replace(model_spec(base, family, config), prompt_chunks=prompt_chunks or 1)
    wrong = [finding.text for finding in model_findings(spec) if finding.severity == "error"]
    if wrong:
        raise RecipeError(wrong)
    rows: dict[str, dict[str, Any]] = {}
    tokenizers = load_tokenizers(spec)
    about = stated_family(spec)
    if wrong := [finding.text for finding in family_findings(spec, about)]:
        raise RecipeError(wrong)
    limits = token_limits(about, tokenizers, spec.prompt_chunks)
    for key, tokenizer in tokenizers.items():
        with load_errors(lambda error: model_error(spec, error)):
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []
            pieces = [_piece(tokenizer, number) for number in ids]
        rows[key] = {"count": len(ids), "limit": limits[key], "ids": ids, "pieces": pieces}
    if as_json:
        print_json({"text": text, "encoders": rows})
        return
    for key, row in rows.items():
        click.echo(f"{key}: {row['count']} of {row['limit']} tokens")
        for number, piece in zip(row["ids"], row["pieces"], strict=True):
            click.echo(printable(f"  {number:>6}  {piece}"))  # a downloaded vocabulary may contain control characters


def _piece(tokenizer: Any, number: int) -> str:
    """A token as text; part of a character: as the vocabulary spells it."""
    text = tokenizer.decode([number]).strip()
    return tokenizer.convert_ids_to_tokens([number])[0] if "\ufffd" in text or not text else text
