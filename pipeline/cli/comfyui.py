"""`pivotune comfyui install`: lets ComfyUI find the nodes that ship with Pivotune."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

NAME = "pivotune_nodes.py"
SOURCE = '''"""Nodes of Pivotune: Load LoRA with embeddings, Load embedding. Written by `pivotune comfyui install`."""

try:
    from pivotune.converters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ImportError as error:
    raise ImportError("ComfyUI's Python has no pivotune: run  pip install --no-deps pivotune  there") from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''


def _fill(stream: BinaryIO) -> None:
    stream.write(SOURCE.encode())


@click.group()
def comfyui() -> None:
    """Nodes for ComfyUI: LoRAs with embeddings, and embeddings of every program.

    They need nothing but Pivotune itself in ComfyUI's Python, which `pip install --no-deps pivotune` puts there.
    """


@comfyui.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help=f"Overwrite another file called {NAME}.")
def install(path: Path, overwrite: bool) -> None:
    """Put the nodes into the ComfyUI in the folder PATH: one file in its custom_nodes.

    After a restart ComfyUI has the nodes "Load LoRA with embeddings" and "Load embedding" among its loaders.
    """
    from ...converters.atomic import write_file
    from ...converters.errors import ConvertError
    from ..text import printable

    folder = path / "custom_nodes"
    if not folder.is_dir():
        raise ConvertError(f"{path}: has no folder custom_nodes; give the folder of ComfyUI")
    file = folder / NAME
    if file.is_file() and file.read_bytes() == SOURCE.encode():
        click.echo(printable(f"{file} is up to date"))
        return
    write_file(file, _fill, overwrite=overwrite)
    click.echo(printable(f"{file} written; restart ComfyUI"))
