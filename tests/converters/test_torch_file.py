"""Pickles: what torch writes is read bit for bit without torch, and nothing in a pickle ever runs."""

import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile

import pytest

from pivotune.converters.errors import ConvertError
from pivotune.converters.opening import open_file

torch = pytest.importorskip("torch")


@pytest.fixture
def pwned(tmp_path):
    return tmp_path / "pwned"


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_half_a_surrogate_pair_in_a_text_does_not_keep_the_embeddings_from_being_written(tmp_path):
    from pivotune.converters import safetensors_file

    path = tmp_path / "cat.pt"
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}, "name": "a\ud800b", "step": 5}, path)
    stored = open_file(path)
    assert stored.metadata["name"] == "a?b"
    safetensors_file.write(tmp_path / "cat.safetensors", stored.tensors, stored.metadata)


def zipped(pickled, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"x/{name}", data)
    return file.getvalue()


def attacks(pwned):
    touch = f"touch {pwned}"
    return {
        "os.system": pickle.dumps({"string_to_param": Runs(os.system, touch)}),
        "os.system, protocol 2": pickle.dumps({"string_to_param": Runs(os.system, touch)}, 2),
        "eval": pickle.dumps(Runs(eval, f"__import__('os').system({touch!r})")),
        "in a key": pickle.dumps({Runs(os.system, touch): 1}),
        "subprocess": pickle.dumps([Runs(subprocess.check_output, ["touch", str(pwned)])]),
        "a chain": pickle.dumps({"a": Runs(getattr, Runs(__import__, "os"), "system")}),
        "in an allowed call": pickle.dumps(Runs(collections.OrderedDict, Runs(os.system, touch))),
        "by name alone, protocol 0": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "protocol 0 behind PROTO": f"\x80\x02cos\nsystem\n(X{chr(len(touch))}\0\0\0{touch}tR.".encode("latin-1"),
        "INST": f"\x80\x02(S'{touch}'\nios\nsystem\n.".encode("latin-1"),
        "OBJ": f"\x80\x02(cos\nsystem\nS'{touch}'\no.".encode("latin-1"),
        "BUILD with a state": b"\x80\x02cos\nenviron\n}X\x01\0\0\0aX\x01\0\0\0bsb.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\nX\x02\0\0\0ls\x85\x81.",
        "extension registry": b"\x80\x02\x82\x01.",
    }


def attack(what, pwned):
    pickled = attacks(pwned)
    if what == "zip in a zip":
        return zipped(zipped(pickled["os.system"]))
    if what == "zip with two pickles":
        with pytest.warns(UserWarning, match="Duplicate name"):
            return zipped(b"not a pickle", **{"data.pkl": pickled["os.system"]})
    return zipped(pickled[what.removesuffix(", in a zip")]) if what.endswith(", in a zip") else pickled[what]


ATTACKS = [
    *attacks("x"),
    *(f"{name}, in a zip" for name, data in attacks("x").items() if data[:1] == b"\x80"),
    "zip in a zip",
    "zip with two pickles",
]


@pytest.mark.parametrize("extension", ["pt", "safetensors"])
@pytest.mark.parametrize("what", ATTACKS)
def test_no_code_in_a_pickle_runs(what, extension, pwned, tmp_path):
    path = tmp_path / f"attack.{extension}"
    path.write_bytes(attack(what, pwned))
    with pytest.raises(ConvertError) as error:
        open_file(path)
    assert not pwned.exists()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_attack_is_named(pwned, tmp_path):
    (tmp_path / "x.pt").write_bytes(attack("os.system, in a zip", pwned))
    with pytest.raises(ConvertError, match=r"asks to run 'posix\.system'.*nothing was run"):
        open_file(tmp_path / "x.pt")


def itself():
    value = []
    for _ in range(20):
        value.append(value)
    return value


def laughs():
    value = []
    for _ in range(30):
        value = [value] * 10
    return value


BOMBS = {
    "holds itself": pickle.dumps(itself()),
    "doubles itself": pickle.dumps(laughs()),
    "a number of two billion bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a text of two billion bytes": b"\x80\x02X\xff\xff\xff\x7f.",
    "a number too long to print": pickle.dumps({"a": 1 << 100_000}),
    "nothing on the stack": b"\x80\x02.",
    "a mark on the stack": b"\x80\x02(.",
    "no end": b"\x80\x02}",
    "a memo that is not there": b"\x80\x02h\x05.",
    "items of a number": b"\x80\x02K\x01K\x01K\x01s.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_malicious_pickle_is_refused_quickly(what, tmp_path):
    (tmp_path / "x.pt").write_bytes(BOMBS[what])
    with pytest.raises(ConvertError):
        open_file(tmp_path / "x.pt")


VALUES = {
    "plain": lambda: {"a": torch.randn(2, 3), "b": torch.randn(4).half()},
    "types": lambda: {name: torch.ones(3).to(getattr(torch, name)) for name in (
        "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "float8_e4m3fn")},
    "views": lambda: {"t": torch.randn(4, 3).t(), "part": torch.arange(10)[2:5], "wide": torch.ones(1).expand(3),
                      "empty": torch.zeros(0, 3), "column": torch.randn(4, 3)[:, 1:2], "scalar": torch.tensor(3.0)},
    "shared": lambda: dict.fromkeys("ab", torch.randn(2, 2)),
    "parameters": lambda: collections.OrderedDict(a=torch.nn.Parameter(torch.randn(2, 3))),
    "nested": lambda: {"x": {"y": {"z": torch.randn(1, 2)}}},
}  # fmt: skip


def flat(value, name=""):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from flat(child, f"{name}.{key}" if name else key)
    else:
        yield name, bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()), tuple(value.shape)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("what", VALUES)
def test_what_torch_saves_is_read_bit_for_bit(what, new, tmp_path):
    value = VALUES[what]()
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    found = open_file(tmp_path / "x.pt")
    assert [(name, bytes(tensor.data), tensor.shape) for name, tensor in found.tensors.items()] == list(flat(value))


def test_numbers_and_texts_beside_tensors_become_metadata(tmp_path):
    torch.save({"a": torch.ones(1, 2), "step": 5, "name": "x", "none": None, "d": {"*": 265}}, tmp_path / "x.pt")
    assert open_file(tmp_path / "x.pt").metadata == {"step": "5", "name": "x", "d.*": "265"}


@pytest.mark.parametrize("change", ["packed", "cut", "beyond", "missing storage", "big-endian", "not torch's"])
def test_a_wrong_zip_is_refused(change, tmp_path):
    path, other = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.save({"a": torch.randn(2, 768)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if change == "missing storage" and item.filename.endswith("data/0"):
                continue
            if change == "beyond" and item.filename.endswith("data/0"):
                data = data[:-4]
            if change == "big-endian" and item.filename.endswith("byteorder"):
                data = b"big"
            name = item.filename.replace("data.pkl", "else") if change == "not torch's" else item.filename
            new.writestr(name, data, zipfile.ZIP_DEFLATED if change == "packed" else zipfile.ZIP_STORED)
    if change == "cut":
        other.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConvertError):
        open_file(other)


def test_reading_a_pickle_imports_neither_torch_nor_numpy(tmp_path):
    torch.save({"string_to_param": {"*": torch.randn(2, 768)}, "name": "x"}, tmp_path / "x.pt")
    code = (
        "import sys; from pivotune.converters.read import read; "
        f"assert read({str(tmp_path / 'x.pt')!r}).embeddings; "
        "assert not {'torch', 'numpy', 'safetensors', 'diffusers', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
