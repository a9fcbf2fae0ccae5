"""What differs between two runs, a line each, and of thousands of files one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..data.files import PICTURES
from .changed import few
from .differences import Difference

# Where hashes of files lie.
_FILES = ("data.files", "model.sha256")
# What follows from the data's files and from the recipe.
_DERIVED = ("data.pictures", "data.concepts", "data.captions", "data.coverage")


def difference_lines(differences: Sequence[Difference], most: int) -> list[str]:
    """At most `most` lines, and one that says how many more there are; files are counted in one line a kind."""
    rest = [one for one in differences if not one.within(*_FILES)]
    derived = [one for one in rest if one.within(*_DERIVED)]
    if len(derived) < len(differences):
        rest = [one for one in rest if one not in derived]
    lines = [str(one) for one in rest]
    for place in _FILES:
        lines += _file_lines(place, [one for one in differences if one.within(place)])
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return [*lines[:most], *more]


def _file_lines(place: str, files: Sequence[Difference]) -> Iterator[str]:
    """`data: 3 pictures added (a.png, b.png, c.png), 1 changed (d.png)`, and the like of other files."""
    part = place.partition(".")[0]
    pictures = [one for one in files if part == "data" and one.place.lower().endswith(tuple(PICTURES))]
    others = [one for one in files if one not in pictures]
    for what, group in (("picture", pictures), ("file", others)):
        found = {
            "added": [one for one in group if one.old is None],
            "removed": [one for one in group if one.new is None],
            "changed": [one for one in group if None not in (one.old, one.new)],
        }
        said: list[str] = []
        for how, ones in found.items():
            if ones:
                thing = "" if said else f" {what}{'s' if len(ones) > 1 else ''}"
                said.append(f"{len(ones)}{thing} {how} ({few([one.place[len(place) + 1 :] for one in ones])})")
        if said:
            yield f"{part}: {', '.join(said)}"
