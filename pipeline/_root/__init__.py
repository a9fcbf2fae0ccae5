"""Pivotune teaches diffusion models new embeddings and carries those embeddings between programs."""

__version__ = "0.1.0"
