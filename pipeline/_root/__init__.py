"""Pivotune trains embeddings for diffusion models and converts embedding files between programs."""

__version__ = "0.1.0"
