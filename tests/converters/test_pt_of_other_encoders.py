"""A .pt of A1111 has no name of its text encoder: vectors of another one than CLIP are refused with that reason."""

import pytest

from pivotune.converters.atomic import batch
from pivotune.converters.embedding import Embedding
from pivotune.converters.errors import ConvertError
from pivotune.converters.tensor import RawTensor
from pivotune.converters.torch_writer import add_pt


@pytest.mark.parametrize(("key", "width"), [("qwen3_4b", 2560), ("t5", 4096)])
def test_vectors_of_another_encoder_are_refused(tmp_path, key, width):
    raw = RawTensor("F32", (2, width), b"\x01\x02\x03\x3f" * (2 * width))
    with pytest.raises(ConvertError, match="does not say which text encoder"), batch(overwrite=False) as files:
        add_pt(files, tmp_path / "x.pt", Embedding("<x>", {key: raw}))
    assert not list(tmp_path.iterdir())
