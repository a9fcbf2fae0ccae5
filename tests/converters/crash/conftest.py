import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `crash` and `fuzz` can be imported
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]  # fork, limits of memory, /proc


@pytest.fixture
def lora():
    """Tensors of a small LoRA with an embedding in it, and its metadata."""
    from pivotune.converters.tensor import RawTensor

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    embedding = RawTensor("F32", (2, 768), b"\0\0\0\x3e" * 1536)
    return {name: RawTensor("F32", (4, 768), b"\1\2\3\4" * 3072), "bundle_emb.dog.clip_l": embedding}, {
        "ss_v2": "False"
    }


@pytest.fixture
def case(tmp_path, lora):
    """case(what): the work, a folder as it is before (a function that makes it), and what it holds after."""
    from crash import jobs

    from pivotune.converters import safetensors_file

    source = tmp_path / "source.safetensors"
    safetensors_file.write(source, *lora)

    def make(what):
        work, old = jobs.every(lora, source)[what]
        whole = tmp_path / "whole"
        whole.mkdir()
        work(whole)
        new = jobs.contents(whole)
        before = {name: b"old " + name.encode() for name in new} if old else {}

        def folder(number):
            place = tmp_path / f"{number}"
            place.mkdir()
            for name, data in before.items():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(data)
            return place

        return work, folder, before, new

    return make
