"""Files made to do harm: nothing in them runs, and none of them makes a reader wait."""

import json
import os
import pickle
import socket
import zipfile
from pathlib import Path

import pytest
from crash import faults
from fuzz import seeds, torch_seeds

from pivotune.converters import file_range, safetensors_file
from pivotune.converters.errors import ConvertError
from pivotune.converters.inspection import inspect
from pivotune.converters.read import identify
from pivotune.converters.tensor import RawTensor


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(sentinel):
    """Pickles that would touch `sentinel` if anything in them ran."""
    touch = f"open({str(sentinel)!r}, 'w').close()"
    inner = pickle.dumps(Runs(exec, touch))
    code = b"X" + len(touch).to_bytes(4, "little") + touch.encode()
    call, kind, size = b"cbuiltins\nexec\n" + code + b"\x85R", b"X\7\0\0\0storage", len(inner).to_bytes(4, "little")
    pickler = torch_seeds.Pickler("zip")
    tensor = pickler.value({"<cat>": pickler.tensor((768,))})
    return {
        "exec": inner,
        "exec, protocol 0": pickle.dumps(Runs(exec, touch), 0),
        "exec beside a tensor": b"\x80\x02(" + tensor + call + b"t.",
        "exec in a key": b"\x80\x02}" + call + b"Ns.",
        "exec in a shape": b"\x80\x02" + tensor.replace(b"K\0", call, 1) + b".",
        "exec in a persistent id": b"\x80\x02" + tensor.replace(kind, call + kind, 1) + b".",
        "exec taken off the stack": b"\x80\x02" + call + b"0" + tensor + b".",
        "exec as a state": b"\x80\x02ccollections\nOrderedDict\n)R" + call + b"b.",
        "eval by getattr": pickle.dumps(Runs(getattr, Runs(__import__, "builtins"), "eval")),
        "a pickle in a storage": b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + size + inner + b"\x85R.",
        "numpy that loads": b"\x80\x02cnumpy\nload\nX\1\0\0\0x\x85R.",
        "a call rebuilt": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nexec\nN(" + code + b"tNtR.",
        "a rebuilt parameter": b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + call + b"\x85R.",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["alone", "stream", "zip"])
@pytest.mark.parametrize("what", attacks("x"))
def test_nothing_in_a_pickle_runs(what, form, tmp_path):
    sentinel = tmp_path / "ran"
    value = attacks(sentinel)[what]
    parts = torch_seeds.Parts("x", form, value, {"0": (bytes(3072), 4)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(value if form == "alone" else parts.file())
    for call in (inspect, identify):
        with pytest.raises(ConvertError):
            call(path)
    assert not sentinel.exists()


def test_a_file_that_is_two_things_is_read_as_what_it_starts_with(tmp_path):
    good = next(seed.data for seed in seeds.seeds() if seed.name == "kohya")
    attack = torch_seeds.zipped(torch_seeds.Parts("x", "zip", attacks(tmp_path / "ran")["exec"], {}))
    path = tmp_path / "x.pt"
    path.write_bytes(good + attack)
    with pytest.raises(ConvertError, match="truncated or corrupt"):
        identify(path)
    assert zipfile.is_zipfile(path)
    path.write_bytes(attack + good)
    with pytest.raises(ConvertError):
        identify(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("call", [inspect, identify])
def test_what_is_no_file_is_refused_at_once(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    Path("empty").write_bytes(b"")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    places = [
        "pipe",
        "folder",
        "empty",
        "loop",
        "socket",
        "/dev/zero",
        "/dev/tty",
        "none",
        "a\0b",
        "x" * 5000,
        "\udcff",
    ]
    for place in places:
        with pytest.raises(ConvertError) as error:
            call(place)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("what", ["kohya", "A1111 (zip)", "A1111 (stream)"])
def test_a_file_that_changes_while_it_is_read_is_refused(what, tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    path.write_bytes(next(seed.data for seed in seeds.seeds() if seed.name == what))
    pread = file_range.pread

    def changing(*args):
        with path.open("ab") as file:
            file.write(b"x")
        return pread(*args)

    monkeypatch.setattr(file_range, "pread", changing)
    with pytest.raises(ConvertError, match="changed while"):
        identify(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 700, 3000])
@pytest.mark.parametrize("what", ["kohya", "A1111 (zip)", "A1111 (stream)", "image, chunk"])
def test_a_file_cut_short_is_refused(what, size, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(next(seed.data for seed in seeds.seeds() if seed.name == what)[:size])
    with pytest.raises(ConvertError):
        identify(path)


def test_a_name_that_is_code_for_a_terminal_is_shown_as_text(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_file.write(path, {"\x1b]0;owned\x07\u202e\r\n": RawTensor("F32", (1,), bytes(4))}, {})
    with pytest.raises(ConvertError) as error:
        identify(path)
    assert str(error.value).isprintable()
    assert json.dumps(inspect(path)).isprintable()
    assert faults.forked(lambda: identify(path)) == faults.REFUSED
