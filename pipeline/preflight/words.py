"""Whether the words are seen: captions that hold them, tokens that encoders cut off, names that are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...converters.errors import ConvertError
from ...converters.names import safe_stem
from ...converters.programs import programs
from ..recipe.model import Recipe
from ..recipe.plan import Plan, some

BARE = ("{stem}", "{word}")  # prompts of programs that know a word by its bare name


def unseen(plan: Plan) -> tuple[list[str], list[str]]:
    """Errors for trained words that stand behind the token limit wherever they stand, warnings for some places."""
    errors, warnings = [], []
    lost = plan.lost
    if lost:
        first = lost[0]
        where = f"in {len(lost)} of {len(plan.captions)} captions a word stands behind the token limit, where it is not"
        such = f"(the caption of {first.picture}: {', '.join(first.lost)})"
        warnings.append(f"{where} seen {such}; put words further forward")
    trained = {word.placeholder for word in plan.recipe.words if word.train}
    gone = [word for word in plan.never_seen if word in trained]
    if gone:
        errors.append(
            f"behind the token limit in every caption that holds them: {some(gone)}; put them further forward"
        )
    return errors, warnings


def cut_prompts(plan: Plan) -> Iterator[str]:
    """Warnings about prompts for the report that are longer than an encoder reads."""
    for prompt in plan.prompts:
        over = [
            f"{key} reads {plan.limits[key]} of its {count} tokens"
            for key, count in prompt.tokens.items()
            if count > plan.limits[key]
        ]
        if over:
            yield f"samples.prompts: {prompt.before[:60]!r} is cut off: {', '.join(over)}"


def large_words(plan: Plan) -> Iterator[str]:
    """Warnings about words that take half of a prompt or more: little else can be said beside them."""
    for word, made in plan.words.items():
        over = [
            f"{len(tokens.ids)} of the {plan.limits[key]} tokens that {key} reads"
            for key, tokens in made.items()
            if 2 * len(tokens.ids) >= plan.limits[key]
        ]
        if over:
            yield f"{word} takes {' and '.join(over)} of every prompt; fewer tokens leave room for other words"


def taken_names(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Iterator[str]:
    """A warning about names that are words of the model's own, for programs that know a word by its bare name.

    A1111 and its kin put the vectors wherever the name's tokens stand in a prompt; diffusers refuses such a name.
    """
    asked = [name for stage in recipe.stages if stage.kind == "export" for name in stage.options["targets"]]
    found: dict[str, list[str]] = {}
    for target in dict.fromkeys(asked):
        program = programs()[target]
        if program.prompt not in BARE:
            continue
        for word in recipe.words:
            try:
                typed = program.prompted(safe_stem(word.placeholder, program.characters), word.placeholder)
            except ConvertError:
                continue  # said by the recipe's check
            if any(_is_token(typed, tokenizer) for tokenizer in tokenizers.values()):
                found.setdefault(target, []).append(typed)
    for names in {tuple(names) for names in found.values()}:
        targets = ", ".join(target for target, typed in found.items() if tuple(typed) == names)
        yield (
            f"the model knows {some(names)} as a word of its own, which {targets} would take for the new one "
            "wherever it stands in a prompt; a placeholder that is no word is safer"
        )


def _is_token(text: str, tokenizer: Any) -> bool:
    """Whether a text is one piece of the vocabulary, a whole word."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id
