"""Embeddings in LoRAs, of the programs that use them: `python -m real_bundles PROGRAM SOURCE FOLDER`.

Prints JSON: sample to the embeddings by name, with the SHA-256 of each text encoder's vectors, and the loader's error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import real_common
import real_embeddings
import real_webuis
import torch
from safetensors.torch import load_file

from pivotune.converters.families import all_families


def main(program: str, source: str, folder: str) -> None:
    """Print the embeddings that `program` takes from each LoRA."""
    real_common.print_answers(LOADERS[program], source, folder, _hashes, nothing={})


def _hashes(drive, path: Path) -> dict:
    family = path.stem.partition("_")[0]
    found = drive(family, all_families()[family].widths, path)
    return {name: real_embeddings.hashes(vectors) for name, vectors in found.items()}


def a1111(source: Path):
    """`load_network`, then `load_networks`, which gives the embeddings to the database."""
    load = real_webuis.a1111_network(source)
    import networks

    networks.shared.opts.lora_in_memory_limit = 0

    def drive(family, widths, path):
        net = load(family, load_file(path), path)
        clips = [key for key in widths if key.startswith("clip")]
        expected, used = sum(widths[key] for key in clips), {}
        database = SimpleNamespace(expected_shape=expected, word_embeddings={}, skipped_embeddings={})
        database.register_embedding = lambda embedding, _: used.update({embedding.name: embedding.vec})
        networks.sd_hijack.model_hijack.embedding_db = database
        networks.available_networks = networks.available_network_aliases = {path.stem: net.network_on_disk}
        networks.networks_in_memory, networks.loaded_networks = {path.stem: net}, []
        net.network_on_disk.read_hash = lambda: None
        networks.load_networks([path.stem])
        return {name: {key: vec[key] if isinstance(vec, dict) else vec for key in clips} for name, vec in used.items()}

    return drive


def sdnext(source: Path):
    """`load_safetensors`, and what the database of embeddings does with what that has found."""
    load = real_webuis.sdnext_network(source)
    from modules import shared, textual_inversion

    shared.opts.diffusers_convert_embed = False

    def drive(family, widths, path):
        if family not in ("sd1", "sdxl"):
            raise NotImplementedError
        net = load(family, load_file(path), path)
        used = real_embeddings.sdnext_tables(textual_inversion, shared, widths)
        if net is not None and net.bundle_embeddings:
            textual_inversion.EmbeddingDatabase().load_diffusers_embedding(None, net.bundle_embeddings)
        return used

    textual_inversion.devices.device = torch.device("cpu")
    return drive


LOADERS = {"a1111": a1111, "sdnext": sdnext}

if __name__ == "__main__":
    main(*sys.argv[1:])
