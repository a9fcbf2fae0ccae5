"""ComfyUI reads an embedding for Anima twice: as vectors for Qwen3, and as token ids for T5's tokenizer."""

from pathlib import Path

import pytest

from pivotune.converters.embedding import Embedding
from pivotune.converters.families import families
from pivotune.converters.programs import reads
from pivotune.converters.read import identify
from pivotune.converters.safetensors_file import read
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor, same
from pivotune.converters.write import write_embedding

ANIMA = families()["anima"]


@pytest.fixture
def vectors(rows):
    return rows(3, 1024)


def ids(*numbers: int, dtype: str = "I64", size: int = 8) -> RawTensor:
    return RawTensor(dtype, (len(numbers), 1), b"".join(number.to_bytes(size, "little") for number in numbers))


def test_the_file_has_an_unknown_token_for_each_vector(vectors, tmp_path):
    [written] = write_embedding(Embedding("cat", {"qwen3_06b": vectors}), "comfyui", ANIMA, tmp_path)
    assert written.losses == ()
    tensors, _ = read(written.path)
    assert tensors.keys() == {"qwen3_06b", "t5xxl"}
    assert same(tensors["t5xxl"], ids(2, 2, 2))
    assert same(tensors["qwen3_06b"], vectors)


def test_the_ids_are_no_vectors_of_the_embedding(vectors, tmp_path):
    [written] = write_embedding(Embedding("cat", {"qwen3_06b": vectors}), "comfyui", ANIMA, tmp_path)
    [embedding] = identify(written.path).contents.embeddings
    assert embedding.vectors.keys() == {"qwen3_06b"}
    [again] = write_embedding(embedding, "comfyui", ANIMA, tmp_path / "again")
    assert again.path.read_bytes() == written.path.read_bytes()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "takes qwen3_06b of the file for token ids"),
        ({"t5xxl": RawTensor("F32", (1, 1), bytes(4))}, "takes t5xxl of the file for token ids"),
        ({"t5xxl": RawTensor("F32", (3, 4096), bytes(3 * 4096 * 4))}, "takes t5xxl of the file for token ids"),
        ({"t5xxl": ids(2, 2)}, ""),
        ({"t5xxl": ids(2, 2, dtype="I32", size=4)}, ""),
    ],
)
def test_comfyui_needs_whole_numbers_as_ids(vectors, tmp_path: Path, more, why):
    file = Stored(tmp_path / "cat.safetensors", {"qwen3_06b": vectors, **more})
    reading = reads("comfyui", file, ANIMA.widths)
    assert why in reading.refusal
    assert bool(reading.refusal) == bool(why)
    if not why:
        assert reading.embeddings["cat"].keys() == {"qwen3_06b"}
        assert reading.dropped == ()
