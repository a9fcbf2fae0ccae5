import pytest

from pivotune.converters import safetensors_file, write
from pivotune.converters.atomic import batch
from pivotune.converters.bundle import bundle, embeddings_of, parse, tensors_of
from pivotune.converters.embedding import Contents, Embedding
from pivotune.converters.errors import ConvertError
from pivotune.converters.families import families
from pivotune.converters.lora import lora_metadata, write_lora
from pivotune.converters.tensor import RawTensor


@pytest.fixture
def lora(rows):
    names = [f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{tail}" for tail in
             ("lora_down.weight", "lora_up.weight")]  # fmt: skip
    return Contents(rest={names[0]: rows(4, 768), names[1]: rows(320, 4)}, metadata={"ss_tag_frequency": "{}"})


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("bundle_emb.cat.clip_l", ("cat", "clip_l")),
        ("bundle_emb.mr. smith.clip_l", ("mr. smith", "clip_l")),
        ("bundle_emb.clip_l.clip_g", ("clip_l", "clip_g")),
        ("bundle_emb.a.b.string_to_param.*", ("a.b", "string_to_param.*")),
        ("bundle_emb.x.*", ("x", "*")),
        ("bundle_emb.<a b>.clip_g_out", ("<a b>", "clip_g_out")),
        ("bundle_emb.a.t5xxl", ("a", "t5xxl")),
        ("bundle_emb.a.new_encoder", ("a", "new_encoder")),
        ("bundle_emb..clip_l", ("", "clip_l")),
        ("bundle_emb.x", None),
        ("Bundle_emb.x.clip_l", None),
        ("lora_unet_x.alpha", None),
    ],
)
def test_a_name_is_parsed_from_the_right(name, parsed):
    assert parse(name) == parsed


def test_bundling_and_unbundling_keeps_every_bit(lora, embedding, same):
    embeddings = [embedding(name, {"clip_l": 768}) for name in ("<emblem>", "ema yasuhara")]
    tensors = tensors_of(bundle(lora, embeddings))
    assert "bundle_emb.<emblem>.clip_l" in tensors
    found, rest = embeddings_of(tensors)
    assert same(rest, lora.rest)
    assert [item.name for item in found] == ["<emblem>", "ema yasuhara"]
    assert all(same(a.vectors, b.vectors) for a, b in zip(found, embeddings, strict=True))


@pytest.mark.parametrize(
    ("key", "width", "slot"),
    [
        ("clip_l", 768, "clip_l"),
        ("clip_l", 1024, "clip_h"),
        ("clip_g", 768, "clip_l"),
        ("string_to_param.*", 768, "clip_l"),
        ("emb_params", 1024, "clip_h"),
        ("emp_params", 768, "clip_l"),
        ("*", 1280, "clip_g"),
        ("t5xxl", 4096, "t5"),
        ("clip_l_out", 768, "clip_l_out"),
        ("clip_l", 96, "clip_l"),
        ("emb_params", 4096, "unnamed"),
    ],
)
def test_every_spelling_of_a_bundle_finds_its_encoder(key, width, slot, rows):
    (found,), _ = embeddings_of({f"bundle_emb.cat.{key}": rows(2, width)})
    assert list(found.vectors) == [slot]


def test_a_single_vector_becomes_a_row(rows):
    (found,), _ = embeddings_of({"bundle_emb.cat.clip_l": rows(0, 768)})
    assert found.vectors["clip_l"].shape == (1, 768)


@pytest.mark.parametrize("name", ["mr. smith", "", " ", "a.b"])
def test_names_that_a_reader_would_cut_are_refused(name, lora, embedding):
    with pytest.raises(ConvertError, match=r"dot|must have a name"):
        bundle(lora, [embedding(name, {"clip_l": 768})])


def test_an_embedding_for_another_model_is_refused(lora, embedding):
    with pytest.raises(ConvertError, match="1280 values"):
        bundle(lora, [embedding("cat", {"clip_l": 1280})], widths={"clip_l": 768})
    with pytest.raises(ConvertError, match="no vectors for clip_g"):
        bundle(lora, [embedding("cat", {"clip_l": 768})], widths={"clip_l": 768, "clip_g": 1280})


def test_an_embedding_is_replaced_only_when_asked(lora, embedding, same):
    old, new = embedding("cat", {"clip_l": 768}), embedding("cat", {"clip_l": 768})
    with pytest.raises(ConvertError, match="--replace"):
        bundle(bundle(lora, [old]), [new])
    (found,) = bundle(bundle(lora, [old]), [new], replace=True).embeddings
    assert same(found.vectors, new.vectors)
    with pytest.raises(ConvertError, match="'cat'"):
        bundle(bundle(lora, [old]), [embedding("Cat", {"clip_l": 768})], replace=True)


def test_what_would_cost_a1111_the_lora_is_refused(lora, rows):
    both = Embedding("cat", {"clip_l": rows(1, 768), "clip_l_out": rows(1, 768)})
    with pytest.raises(ConvertError, match="clip_l_out"):
        bundle(lora, [both])
    assert list(bundle(lora, [both], drop_outputs=True).embeddings[0].vectors) == ["clip_l"]
    with pytest.raises(ConvertError, match="only zeros"):
        bundle(lora, [Embedding("dog", {"clip_l": RawTensor("F32", (1, 768), bytes(3072))})])


def test_two_embeddings_never_share_a_tensor(rows):
    a, b = Embedding("x", {"y.clip_l": rows(1, 8)}), Embedding("x.y", {"clip_l": rows(1, 8)})
    with pytest.raises(ConvertError, match="two tensors"):
        tensors_of(Contents((a, b)))


def test_a_lora_is_written_with_what_programs_know_it_by(tmp_path, lora, embedding):
    metadata = lora_metadata(families()["sd1"], title="emblem", rank=4, alpha=4.0)
    contents = bundle(lora, [embedding("emblem", {"clip_l": 768})])
    write_lora(tmp_path / "l.safetensors", tensors_of(contents), {**contents.metadata, **metadata})
    tensors, found = safetensors_file.read(tmp_path / "l.safetensors")
    assert len(tensors) == 3
    assert found["ss_tag_frequency"] == "{}"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"]
    assert len(found["sshs_legacy_hash"]) == 8


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (
            lambda tensors: {**tensors, "bundle_emb.cat.clip_l": tensors["bundle_emb.dog.clip_l"]},
            "'cat' would not be read",
        ),
        (lambda tensors: {name.replace("dog", "hog"): data for name, data in tensors.items()}, "not be found again"),
        (lambda tensors: {name: data for name, data in tensors.items() if "up" not in name}, "not be found again"),
        (
            lambda tensors: {
                name: RawTensor(data.dtype, data.shape, bytes(data.data)) for name, data in tensors.items()
            },
            "",
        ),
    ],
)
def test_a_bundle_from_which_an_embedding_would_not_come_back_is_not_written(
    alter, says, lora, rows, tmp_path, monkeypatch
):
    embeddings = (Embedding("cat", {"clip_l": rows(2, 768)}), Embedding("dog", {"clip_l": rows(2, 768)}))
    file_data = write.file_data

    def otherwise(contents, dialect):
        tensors, metadata = file_data(contents, dialect)
        return alter(tensors), metadata

    monkeypatch.setattr(write, "file_data", otherwise)
    place = tmp_path / "x.safetensors"
    if says:
        with pytest.raises(ConvertError, match=says), batch() as files:
            write.write_contents(files, place, bundle(lora, embeddings), "bundle")
        assert not [*tmp_path.iterdir()]
    else:
        with batch() as files:
            write.write_contents(files, place, bundle(lora, embeddings), "bundle")
        assert place.is_file()
