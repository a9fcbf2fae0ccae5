"""Embeddings with names made to do harm: nothing is written outside the folder, and no two embeddings meet in one
file.
"""

import os
import unicodedata
from pathlib import Path

import pytest
from fuzz import embeddings, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from pivotune.converters import safetensors_file
from pivotune.converters.atomic import batch
from pivotune.converters.embeddings import ConvertOptions
from pivotune.converters.errors import ConvertError
from pivotune.converters.names import _RESERVED, distinct_stems, safe_stem
from pivotune.converters.operations import unbundle
from pivotune.converters.programs import programs
from pivotune.converters.tensor import RawTensor

VECTORS = RawTensor("F32", (1, 768), b"\0\0\0\x3e" * 768)
LORA = {seeds.LORA: RawTensor("F32", (4, 768), b"\1\2\3\4" * 3072)}
ONE_FOR_A_SYSTEM = (
    *(
        "cat",
        "Cat",
        "CAT",
        "<cat>",
        "cat.",
        "c\u0301at",
        "\u0107at",
        "Straße",
        "STRASSE",
        "\u01f0",
        "J\u030c",
        "İ",
        "i\u0307",
    ),
    *("\u0390", "\u1fd3", "\u03b9\u0308\u0301", "a" * 200, "a" * 300, "CON", "con", "CON_", "nul.txt", "K", "\u212a"),
)


def known_as(name):
    """By what a system that minds neither case nor composition knows a file."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def check_stems(names):
    stems = distinct_stems(names)
    assert list(stems) == names
    assert len({known_as(stem) for stem in stems.values()}) == len(names)
    for stem in stems.values():
        file = f"{stem}.safetensors"
        assert Path(file).name == file
        assert not set(file) & set('<>:"/\\|?*')
        assert not {unicodedata.category(char) for char in file} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        assert len(file.encode()) <= 255
        assert stem[0] not in " .-"
        assert stem[-1] not in " ."
        assert stem.partition(".")[0].strip().upper() not in _RESERVED


def nameable(name):
    try:
        return bool(safe_stem(name))
    except ConvertError:
        return False


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(embeddings.HOSTILE)), max_size=8, unique=True))
def test_file_names_are_harmless_and_differ_on_every_system(names):
    check_stems([name for name in names if nameable(name)])


def test_names_equal_on_some_systems_get_files_of_their_own():
    check_stems(list(ONE_FOR_A_SYSTEM))


def typeable(name):
    """Whether A1111's files can be called after it, and a safetensors file can hold it."""
    try:
        return bool(safe_stem(name, programs()["a1111"].characters)) and bool(name.strip()) and bool(name.encode())
    except (ConvertError, UnicodeEncodeError):
        return False


def bundle_of(path, names):
    tensors = {f"bundle_emb.{name}.clip_l": VECTORS for name in names}
    safetensors_file.write(path, {**LORA, **tensors}, {"ss_v2": "False"})


def test_embeddings_with_hostile_names_stay_in_the_folder(tmp_path):
    out = tmp_path / "a" / "out"
    names = sorted({name for name in embeddings.HOSTILE if typeable(name)})
    bundle_of(tmp_path / "lora.safetensors", names)
    before = set(tmp_path.rglob("*"))
    with batch() as files:
        written = unbundle(files, tmp_path / "lora.safetensors", out, ["a1111"], ConvertOptions())
    assert len({item.path for item in written}) == len(names) + 1
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {item.path for item in written}
    assert all(item.path.parent == out for item in written)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_in_the_folder_leads_nowhere(overwrite, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_bytes(b"precious")
    (out / "cat.safetensors").symlink_to(victim)
    bundle_of(tmp_path / "lora.safetensors", ["cat"])

    def write():
        with batch(overwrite=overwrite) as files:
            unbundle(files, tmp_path / "lora.safetensors", out, ["a1111"], ConvertOptions())

    if overwrite:
        write()
        assert not (out / "cat.safetensors").is_symlink()
    else:
        with pytest.raises(ConvertError, match="already exists"):
            write()
        assert os.listdir(out) == ["cat.safetensors"]
    assert victim.read_bytes() == b"precious"


def test_embeddings_of_two_files_that_differ_only_in_case_never_share_a_file(tmp_path):
    claimed = set()
    with batch(overwrite=True, claimed=claimed) as files:
        files.add(tmp_path / "Cat", lambda file: file.write(b"1"))
    with pytest.raises(ConvertError, match="two embeddings"), batch(overwrite=True, claimed=claimed) as files:
        files.add(tmp_path / "cat", lambda file: file.write(b"2"))
    assert (tmp_path / "Cat").read_bytes() == b"1"


def test_a_lora_keeps_clear_of_all_its_embeddings(tmp_path):
    bundle_of(tmp_path / "x.safetensors", ["x", "X_lora", "x_lora_2", "x_lora_3"])
    with batch() as files:
        written = unbundle(files, tmp_path / "x.safetensors", tmp_path / "out", ["a1111"], ConvertOptions())
    assert len({known_as(item.path.name) for item in written}) == 5
