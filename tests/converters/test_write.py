import os
import struct

import pytest

from pivotune.converters import safetensors_file
from pivotune.converters.embedding import Embedding
from pivotune.converters.errors import ConvertError
from pivotune.converters.families import all_families, families
from pivotune.converters.programs import programs
from pivotune.converters.programs.reading import Reading
from pivotune.converters.tensor import RawTensor
from pivotune.converters.write import write_embedding, write_embeddings

SUPPORTED = [
    (program.name, family)
    for program in programs().values()
    for family in sorted(program.layouts)
    if family in families()
]
KEYS = {  # what each program's own writer or reader calls the tensors (SD 1, SDXL)
    "a1111": ("emb_params", {"clip_l", "clip_g"}),
    "forge": ("emb_params", {"clip_l", "clip_g"}),
    "sdnext": ("emb_params", {"clip_l", "clip_g"}),
    "comfyui": ("emb_params", {"clip_l", "clip_g"}),
    "invokeai": ("emb_params", {"clip_l", "clip_g"}),
    "kohya": ("emb_params", {"clip_l", "clip_g"}),
    "swarmui": ("emb_params", {"clip_l", "clip_g"}),
    "reforge": ("emb_params", {"clip_l", "clip_g"}),
    "onetrainer": ("emp_params", {"clip_l", "clip_g"}),
}


SD1 = [program for program, family in SUPPORTED if family == "sd1"]


def own_family(name):
    return families()[name]


@pytest.mark.parametrize(("program", "family"), SUPPORTED)
def test_every_program_reads_back_what_was_written_for_it(program, family, tmp_path, embedding):
    spec = own_family(family)
    written = write_embedding(embedding("<emblem>", spec.widths, initial_text="ring"), program, spec, tmp_path)
    assert {item.path for item in written} == set(tmp_path.iterdir())
    for item in written:
        _, metadata = safetensors_file.read(item.path)
        assert metadata["initial_text"] == "ring"
        assert metadata["pivotune.embedding"] == "<emblem>"


@pytest.mark.parametrize("program", KEYS)
def test_tensors_are_called_as_the_program_wants_them(program, tmp_path, embedding):
    (one,) = write_embedding(embedding("cat", {"clip_l": 768}), program, own_family("sd1"), tmp_path / "1")
    (two,) = write_embedding(
        embedding("cat", {"clip_l": 768, "clip_g": 1280}), program, own_family("sdxl"), tmp_path / "2"
    )
    assert set(safetensors_file.read(one.path)[0]) == {KEYS[program][0]}
    assert set(safetensors_file.read(two.path)[0]) == KEYS[program][1]


def test_diffusers_gets_a_file_for_each_encoder_named_by_the_placeholder(tmp_path, embedding):
    written = write_embedding(
        embedding("<cat>", {"clip_l": 768, "clip_g": 1280}), "diffusers", own_family("sdxl"), tmp_path
    )
    found = {item.path.name: list(safetensors_file.read(item.path)[0].items()) for item in written}
    assert {name: (key, tensor.shape) for name, [(key, tensor)] in found.items()} == {
        "cat.safetensors": ("<cat>", (2, 768)),
        "cat_2.safetensors": ("<cat>", (2, 1280)),
    }


def test_the_prompt_is_returned(tmp_path, embedding):
    def prompt(program, name):
        (item, *_) = write_embedding(embedding(name, {"clip_l": 768}), program, own_family("sd1"), tmp_path / program)
        return item.trigger

    assert prompt("a1111", "<ema (y)>") == "ema _y"
    assert prompt("comfyui", "ema y") == "embedding:ema_y"
    assert prompt("invokeai", "<猫 a>") == "<a>"
    assert prompt("diffusers", "<ema y>") == "<ema y>"
    assert prompt("onetrainer", "<ema y>") == "<ema y>"


def test_a_name_that_fooocus_reads_as_a_wildcard_is_a_loss(tmp_path, embedding):
    sdxl = own_family("sdxl")
    for name, lost in (("a__b__c", True), ("a__b", False), ("a_b_c", False)):
        (item,) = write_embedding(embedding(name, sdxl.widths), "fooocus", sdxl, tmp_path)
        assert (item.trigger, bool(item.losses)) == (f"(embedding:{name}:1.0)", lost)


def test_a_model_of_other_widths_is_supported(tmp_path, embedding):
    widths = {"clip_l": 96}
    for program in SD1:
        write_embedding(embedding("cat", widths), program, own_family("sd1"), tmp_path / program, widths=widths)
        with pytest.raises(ConvertError, match=r"wide|widths|cannot be imported"):
            write_embedding(embedding("dog", widths), program, own_family("sd1"), tmp_path / program)


def test_a_half_embedding_is_refused_where_it_would_not_load(tmp_path, embedding):
    for program in ("a1111", "forge", "invokeai", "kohya", "onetrainer"):
        with pytest.raises(ConvertError):
            write_embedding(embedding("cat", {"clip_l": 768}), program, own_family("sdxl"), tmp_path)
    assert not os.listdir(tmp_path)


def test_output_vectors_go_to_onetrainer_alone(tmp_path, rows):
    both = Embedding("cat", {"clip_l": rows(2, 768), "clip_l_out": rows(2, 768)})
    (item,) = write_embedding(both, "a1111", own_family("sd1"), tmp_path)
    assert item.losses == ("clip_l_out is left out: only OneTrainer uses output vectors",)
    (item,) = write_embedding(both, "onetrainer", own_family("sd1"), tmp_path / "o")
    assert (item.losses, set(safetensors_file.read(item.path)[0])) == ((), {"emp_params", "emp_params_out"})
    only_outputs = Embedding("dog", {"clip_l": RawTensor("F32", (1, 768), bytes(3072)), "clip_l_out": rows(1, 768)})
    with pytest.raises(ConvertError, match="only its output vectors were trained"):
        write_embedding(only_outputs, "comfyui", own_family("sd1"), tmp_path)
    write_embedding(only_outputs, "onetrainer", own_family("sd1"), tmp_path / "o")


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "hidream"])
def test_the_output_vectors_of_every_encoder_have_a_tensor_of_their_own(family, tmp_path, rows, same):
    """OneTrainer's own writer gives two encoders of HiDream one name, and the second loses the first."""
    spec = all_families()[family]
    vectors = {f"{key}{out}": rows(2, width) for key, width in spec.widths.items() for out in ("", "_out")}
    (item,) = write_embedding(Embedding("cat", vectors), "onetrainer", spec, tmp_path)
    assert same(safetensors_file.read(item.path)[0], vectors)


def test_values_that_are_not_finite_are_refused(tmp_path):
    bad = Embedding("cat", {"clip_l": RawTensor("F32", (1, 768), b"\0\0\xc0\x7f" + bytes(3068))})
    with pytest.raises(ConvertError, match="not finite"):
        write_embedding(bad, "a1111", own_family("sd1"), tmp_path)


def test_values_that_become_infinite_in_float32_are_refused(tmp_path):
    large = Embedding("cat", {"clip_l": RawTensor("F64", (1, 768), struct.pack("<768d", *[1e39] * 768))})
    with pytest.raises(ConvertError, match="not finite"):
        write_embedding(large, "a1111", own_family("sd1"), tmp_path)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (RawTensor("F32", (0, 768), b""), "no vector"),
        (RawTensor("C64", (1, 768), b"\1" * 6144), "has C64"),
        (RawTensor("BOOL", (1, 768), b"\1" * 768), "has BOOL"),
    ],
)
def test_what_is_no_vector_of_floating_point_numbers_is_refused(tensor, why, tmp_path):
    with pytest.raises(ConvertError, match=f"cat: clip_l .*{why}"):
        write_embedding(Embedding("cat", {"clip_l": tensor}), "a1111", own_family("sd1"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_different_counts_are_losses_where_they_matter(tmp_path, rows):
    uneven = Embedding("cat", {"clip_l": rows(2, 768), "clip_g": rows(3, 1280)})
    (item,) = write_embedding(uneven, "a1111", own_family("sdxl"), tmp_path)
    assert "2 and 3 vectors" in item.losses[0]
    (item,) = write_embedding(uneven, "onetrainer", own_family("sdxl"), tmp_path / "o")
    assert item.losses == ()


def test_embeddings_with_equal_stems_get_files_of_their_own(tmp_path, embedding, same):
    embeddings = [embedding(name, {"clip_l": 768}) for name in ("<cat>", "cat", "CAT")]
    written = write_embeddings(embeddings, "a1111", own_family("sd1"), tmp_path)
    assert [item.path.name for item in written] == ["cat.safetensors", "cat_2.safetensors", "CAT_3.safetensors"]
    for item, loaded in zip(written, embeddings, strict=True):
        assert same(safetensors_file.read(item.path)[0], {"emb_params": loaded.vectors["clip_l"]})


@pytest.mark.parametrize("change", ["other numbers", "another encoder", "no embedding", "two embeddings"])
def test_a_file_that_the_program_would_read_otherwise_is_not_written(change, tmp_path, embedding, rows, monkeypatch):
    other = rows(2, 768)
    embeddings = {"other numbers": {"cat": {"clip_l": other}}, "another encoder": {"cat": {"clip_g": other}},
                  "no embedding": {}, "two embeddings": {"cat": {}, "dog": {}}}[change]  # fmt: skip
    monkeypatch.setattr("pivotune.converters.write.reads", lambda *_: Reading(embeddings))
    with pytest.raises(ConvertError, match="would not"):
        write_embedding(embedding("cat", {"clip_l": 768}), "a1111", own_family("sd1"), tmp_path)
    assert not os.listdir(tmp_path)


def test_an_unknown_program_or_family_names_the_choices(tmp_path, embedding):
    with pytest.raises(ConvertError, match="choose from a1111"):
        write_embedding(embedding("cat", {"clip_l": 768}), "paint", own_family("sd1"), tmp_path)


def test_one_bad_embedding_leaves_none_behind(tmp_path, embedding, rows):
    embeddings = [embedding("a", {"clip_l": 768}), Embedding("b", {"clip_g": rows(1, 1280)})]
    with pytest.raises(ConvertError):
        write_embeddings(embeddings, "a1111", own_family("sd1"), tmp_path)
    assert not os.listdir(tmp_path)
