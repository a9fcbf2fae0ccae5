"""Tables of a train stage whose options cannot be used together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .model import Recipe
from .problem import Finding, Place
from .stop import parse_stop


def table_findings(place: Place, options: dict[str, Any], recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the tables of one train stage that say what is asked, held, watched and saved."""
    yield from _rhythms(place, options)
    locality = options["locality"]
    if locality is not None and not options["lora"] and not options["finetune"]:
        text = "this stage tunes no LoRA and no weights of the model, so prompts without words stay as they are"
        yield Finding((*place, "locality"), f"{text}; leave it out")
    for number, prompt in enumerate((locality or {}).get("prompts") or ()):
        held = [word.placeholder for word in recipe.words if word.placeholder in prompt]
        if held:
            text = f"the other prompts are to be without new words, but this one has '{held[0]}'"
            yield Finding((*place, "locality", "prompts", number), text)


def _rhythms(place: Place, options: dict[str, Any]) -> Iterator[Finding]:
    for table, key in (("watch", "sample_every"), ("save", "every")):
        text = (options[table] or {}).get(key)
        if text is None:
            continue
        try:
            rule = parse_stop(text, "0 is never; leave it out, or write how often")
        except ValueError as error:
            yield Finding((*place, table, key), str(error))
            continue
        if rule.unit == "never":
            yield Finding((*place, table, key), f"'never' says nothing here; leave {key} out")
        elif rule.unit == "steps" and rule.value > options["steps"]:
            text = f"comes after the stage's {options['steps']} steps, so it never happens"
            yield Finding((*place, table, key), text, "warning")
