"""Pivotune teaches diffusion models new words and carries those words between programs."""

__version__ = "0.1.0"
