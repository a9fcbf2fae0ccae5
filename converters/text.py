"""Texts that pickles and images hold, as safetensors files can hold them."""

from __future__ import annotations


def plain_text(value: object) -> str:
    """A value as text; halves of surrogate pairs, which UTF-8 does not have, become question marks."""
    return str(value).encode("utf-8", "replace").decode()
