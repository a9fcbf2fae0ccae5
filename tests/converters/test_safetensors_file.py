import hashlib
import json
import os

import numpy
import pytest
import safetensors.numpy

from pivotune.converters import safetensors_bytes, safetensors_file
from pivotune.converters.atomic import batch
from pivotune.converters.errors import ConvertError
from pivotune.converters.file_range import FileRange
from pivotune.converters.read import identify
from pivotune.converters.tensor import RawTensor


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "header longer than the file": (raw({"a": entry()}, bytes(8), length=1 << 20), "header would be"),
    "header of 2^63 bytes": (raw({}, length=1 << 63), "header would be"),
    "seven bytes": (b"1234567", "7 bytes"),
    "empty": (b"", "0 bytes"),
    "not JSON": (raw(b"{]"), "not a safetensors file"),
    "a list": (raw([1]), "not a JSON object"),
    "deep JSON": (raw(b"[" * 200_000), "not a safetensors file"),
    "deep JSON in an entry": (raw(b'{"a":' * 100_000), "not a safetensors file"),
    "invalid UTF-8": (raw(b'{"\xff": 1}'), "not a safetensors file"),
    "half a surrogate": (raw(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(8)), "not valid text"),
    "a number of 5000 digits": (raw(b'{"a": ' + b"9" * 5000 + b"}"), "not a safetensors file"),
    "NaN": (raw(b'{"a": NaN}'), "NaN"),
    "a tensor given twice": (
        raw(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)),
        "'a' occurs twice",
    ),
    "something given twice, with as many colons as there should be": (
        raw(b'{"__metadata__":null,"a":{"dtype":1,"shape":2},"a":' + json.dumps(entry()).encode() + b"}", bytes(8)),
        "'a' occurs twice",
    ),
    "a text given twice": (raw(b'{"__metadata__":{"k":"1","k":"2"}}'), "'k' occurs twice"),
    "a name given twice and a colon written otherwise": (
        raw(b'{"__metadata__":{"k":"1","k":"\\u003a"}}'),
        "'k' occurs twice",
    ),
    "a key given twice": (raw(b'{"a":1,"b":2,"a":3}'), "'a' occurs twice"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b' overlaps"),
    "same bytes twice": (raw({"a": entry(), "b": entry()}, bytes(8)), "'b' overlaps"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "hole of 4 bytes"),
    "hole at the start": (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "hole of 4 bytes"),
    "trailing bytes": (raw({"a": entry()}, bytes(9)), "9 follow"),
    "missing bytes": (raw({"a": entry()}, bytes(7)), "7 follow"),
    "size that does not fit": (raw({"a": entry(shape=(3,))}, bytes(8)), "does not fit"),
    "negative shape": (raw({"a": entry(shape=(-2, -1))}, bytes(8)), "not a description"),
    "negative offsets": (raw({"a": entry(offsets=(-8, 0))}, bytes(8)), "not a description"),
    "backward offsets": (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "not a description"),
    "huge shape of nothing": (raw({"a": entry(shape=(0, 1 << 80), offsets=(0, 0))}), "not a description"),
    "a truth value for a size": (raw({"a": entry(shape=(True,), offsets=(0, 4))}, bytes(4)), "not a description"),
    "unknown type": (raw({"a": entry(dtype="F33")}, bytes(8)), "unknown dtype"),
    "no type": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "not a description"),
    "metadata that is not text": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata that is a list": (raw({"__metadata__": ["a"]}), "__metadata__"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_wrong_header_is_refused_with_one_line(what, tmp_path):
    data, embeddings = LIES[what]
    path = tmp_path / "lie.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConvertError) as error:
        safetensors_file.read(path)
    assert embeddings in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_pipe_a_folder_a_device_and_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / "none", "a\0b"):
        with pytest.raises(ConvertError, match=r"regular|cannot be opened"):
            safetensors_file.read(path)


def test_the_data_is_that_of_safetensors_own_writer(tmp_path):
    arrays = {
        "a.half": numpy.arange(5, dtype=numpy.float16),
        "z.float": numpy.arange(12, dtype=numpy.float32).reshape(3, 4),
        "long": numpy.arange(3, dtype=numpy.int64),
        "é": numpy.zeros((0, 3), numpy.float32),
        "scalar": numpy.array(2, numpy.uint8),
        "bool": numpy.array([True, False]),
        'quote "\\ \n': numpy.arange(3, dtype=numpy.int16),
    }
    codes = {"float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL", "int16": "I16"}
    tensors = {name: RawTensor(codes[str(a.dtype)], a.shape, a.tobytes()) for name, a in arrays.items()}
    safetensors_file.write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "x.safetensors").read_bytes() == safetensors.numpy.save(arrays, {"format": "pt"})


def test_reading_gives_back_what_was_written(tmp_path, rows, same):
    tensors = {"b": rows(2, 8), "a": rows(3, 4, "F16"), "odd": RawTensor("F8_E4M3", (3,), b"\x01\x02\x7f")}
    safetensors_file.write(tmp_path / "x.safetensors", tensors, {"who": "me", "": "ünï"})
    found, metadata = safetensors_file.read(tmp_path / "x.safetensors")
    assert same(found, tensors)
    assert metadata == {"who": "me", "": "ünï"}


def test_the_text_of_a_header_says_what_is_described(rows):
    names = ('a "quoted" \\ name', "tab\tnewline\n", "café 猫 \U0001f408", "\x7f\u2028", "plain")
    tensors = {name: rows(2, 3) for name in names} | {"number": RawTensor("F16", (), b"\0\0")}
    for metadata in ({}, {"b": 'x"\n', "a": "é"}):
        head = safetensors_bytes.header(tensors, metadata)
        assert int.from_bytes(head[:8], "little") == len(head) - 8
        assert len(head) % 8 == 0
        description = safetensors_bytes.described(tensors, metadata)
        assert json.loads(head[8:]) == description
        assert head[8:].rstrip() == json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()


def test_a_header_that_would_be_read_otherwise_is_refused(tmp_path, rows, monkeypatch):
    plain = safetensors_bytes.header
    monkeypatch.setattr(safetensors_bytes, "header", lambda *parts: plain(*parts).replace(b"[2,3]", b"[3,2]"))
    with batch() as files, pytest.raises(ConvertError, match="its header would not be read as it was meant"):
        safetensors_file.add(files, tmp_path / "x.safetensors", {"a": rows(2, 3)}, {}, check=lambda *_: None)


@pytest.mark.parametrize("check", [None, lambda *_: None])
def test_a_header_that_is_larger_than_readers_allow_is_not_written(tmp_path, rows, monkeypatch, check):
    monkeypatch.setattr(safetensors_file, "MAX_HEADER", 200)
    with batch() as files:
        safetensors_file.add(files, tmp_path / "x.safetensors", {"a": rows(2, 3)}, {"who": "m" * 100}, check=check)
    with pytest.raises(ConvertError, match=r"names and metadata are larger than the 200 bytes"), batch() as files:
        safetensors_file.add(files, tmp_path / "y.safetensors", {"a": rows(2, 3)}, {"who": "m" * 200}, check=check)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_files_with_the_same_header_share_nothing_and_each_size_is_checked(tmp_path, rows):
    tensors, paths = {"emb_params": rows(2, 8)}, [tmp_path / name for name in ("x", "y", "z")]
    for path in paths:
        safetensors_file.write(path, tensors, {"who": "me"})
    paths[2].write_bytes(paths[2].read_bytes()[:-4])
    (first, metadata), (second, others) = map(safetensors_file.read, paths[:2])
    metadata["who"] = "you"
    first.clear()
    assert others == {"who": "me"}
    assert second.keys() == tensors.keys()
    with pytest.raises(ConvertError, match="truncated or corrupt"):
        safetensors_file.read(paths[2])


def test_a_large_file_is_copied_without_being_loaded(tmp_path, rows):
    large = RawTensor("U8", (3 << 20,), bytes(range(256)) * (3 << 12))
    safetensors_file.write(tmp_path / "x.safetensors", {"m": large, "a": rows(2, 3), "z": large}, {})
    found, _ = safetensors_file.read(tmp_path / "x.safetensors")
    assert isinstance(found["m"].stored, FileRange)
    safetensors_file.write(tmp_path / "y.safetensors", found, {})
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("change", ["shorter", "longer", "other", "gone"])
def test_a_file_that_changes_while_it_is_read_is_refused(change, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_file.write(path, {"m": RawTensor("U8", (2 << 20,), bytes(2 << 20))}, {})
    found, _ = safetensors_file.read(path)
    if change == "shorter":
        os.truncate(path, 1000)
    elif change == "longer":
        with path.open("ab") as file:
            file.write(b"x")
    elif change == "other":
        safetensors_file.write(path, {"m": RawTensor("U8", (2 << 20,), b"\1" * (2 << 20))}, {}, overwrite=True)
    else:
        path.unlink()
    with pytest.raises(ConvertError, match=r"changed|cannot be opened"):
        found["m"].data  # noqa: B018
    with pytest.raises(ConvertError):
        safetensors_file.write(tmp_path / "y.safetensors", found, {})
    assert not (tmp_path / "y.safetensors").exists()


def test_hashes_in_metadata_are_recomputed(tmp_path, rows):
    big = RawTensor("U8", (2 << 20,), os.urandom(2 << 20))
    stale = {"sshs_model_hash": "x", "sshs_legacy_hash": "y", "modelspec.hash_sha256": "z", "ss_a": "1", "other": "2"}
    safetensors_file.write(tmp_path / "x.safetensors", {"b": big, "a": rows(2, 4)}, stale)
    content = (tmp_path / "x.safetensors").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    _, metadata = safetensors_file.read(tmp_path / "x.safetensors")
    arrays = {
        "b": numpy.frombuffer(big.data, numpy.uint8),
        "a": numpy.frombuffer(data[:32], numpy.float32).reshape(2, 4),
    }
    in_memory = safetensors.numpy.save(arrays, {"ss_a": "1"})  # as kohya does it
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(in_memory[0x100000:0x110000]).hexdigest()[:8]
    assert (metadata["ss_a"], metadata["other"]) == ("1", "2")


def test_nothing_is_overwritten_unless_asked(tmp_path, rows):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(ConvertError, match="already exists"):
        safetensors_file.write(path, {"a": rows(1, 2)}, {})
    assert path.read_bytes() == b"precious"
    safetensors_file.write(path, {"a": rows(1, 2)}, {}, overwrite=True)
    assert list(safetensors_file.read(path)[0]) == ["a"]
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_would_spoil_the_file_are_refused(name, tmp_path, rows):
    with pytest.raises(ConvertError):
        safetensors_file.write(tmp_path / "x.safetensors", {name: rows(1, 2)}, {})
    assert not os.listdir(tmp_path)


def test_many_files_are_not_kept_in_memory(tmp_path, rows):
    safetensors_file.write(tmp_path / "x.safetensors", {"emb_params": rows(2, 768)}, {})
    (kept,) = identify(tmp_path / "x.safetensors").contents.embeddings[0].vectors.values()
    (left,) = identify(tmp_path / "x.safetensors", cached=0).contents.embeddings[0].vectors.values()
    assert isinstance(kept.stored, FileRange)
    assert isinstance(left.stored, FileRange)
    assert len(kept.stored.cached) == len(left.stored)
    assert left.stored.cached is None
    assert bytes(left.data) == bytes(kept.data)
