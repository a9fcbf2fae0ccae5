"""Disk and memory of a planned run as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .size import size

if TYPE_CHECKING:
    from .look import Preflight


def told_room(ahead: Preflight) -> Iterator[str]:
    """What the run takes of each file system and of the device, and what there is; then what is wrong with it."""
    for room in ahead.rooms:
        yield f"Disk: {size(room.least)} to {size(room.most)} in {room.folder}, where {size(room.free)} are free"
    if ahead.memory is not None:
        about = ahead.memory
        most = f" to {size(about.most)}" if about.most > about.least else ", activations not counted"
        yield f"Memory: {size(about.least)}{most}; {size(about.free)} of {size(about.total)} are free"
    yield from (f"  error: {text}" for text in ahead.errors)
    yield from (f"  warning: {text}" for text in ahead.warnings)
