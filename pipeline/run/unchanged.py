"""What a stage reads is what the manifest says that the run was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..data.captions import read_concept
from ..data.examples import Example
from ..errors import StageError
from ..recipe.model import Recipe
from .hashes import sha256, shown_path

MOST = 5  # files that are named


def hold_data(recipe: Recipe, examples: Sequence[Example], known: Mapping[str, str]) -> None:
    """StageError when a picture, mask or caption file is another one than when the run began.

    `known` are the manifest's hashes of the files. Pictures were hashed when `examples` were read and are not again.
    """
    base = recipe.path.parent
    now = {shown_path(example.picture, base): example.content.split("+")[0] for example in examples}
    for example in examples:
        if example.mask is not None:
            now[shown_path(example.mask, base)] = example.content.split("+")[1]
    for concept in recipe.concepts:
        now |= {shown_path(path, base): sha256(path) for path in read_concept(concept).files}
    changed = sorted({*now, *known} - {name for name, digest in now.items() if known.get(name) == digest})
    if changed:
        more = f" and {len(changed) - MOST} more" if len(changed) > MOST else ""
        raise StageError(
            f"changed since the run began: {', '.join(changed[:MOST])}{more}; put back what was there and say the same "
            "command again, or begin anew with --fresh"
        )
