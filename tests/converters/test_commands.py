"""How the commands deal with many files, folders, terminals and losses."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256

import click
import pytest
from PIL import Image

from pivotune.converters import safetensors_file
from pivotune.converters.tensor import RawTensor


def test_one_bad_file_stops_no_other_and_sets_the_exit_code(run, rows, saved, tmp_path):
    saved("a.safetensors", {"emb_params": rows(1, 768)})
    (tmp_path / "b.safetensors").write_bytes(b"rubbish")
    saved("c.safetensors", {"emb_params": rows(1, 768)})
    result = run("retarget", "a.safetensors", "b.safetensors", "c.safetensors", "--for", "a1111", "--out", "out")
    assert result.exit_code == 1
    assert sorted(os.listdir("out")) == ["a.safetensors", "c.safetensors"]
    assert "1 of 3 files failed" in str(result.exception)
    assert "b.safetensors" in result.output


def test_the_error_for_a_corrupt_image_names_no_python_objects(run, tmp_path):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "photo.png")
    (tmp_path / "photo.png").write_bytes((tmp_path / "photo.png").read_bytes()[:30])
    result = run("inspect", "photo.png")
    assert (result.exit_code, "object at" in result.output) == (1, False)
    assert "photo.png: a truncated or corrupt image" in str(result.exception)


def test_of_several_files_an_error_names_its_own(run, rows, saved):
    saved("a.safetensors", {"emb_params": rows(1, 768)})
    saved("???.safetensors", {"emb_params": rows(1, 768)})
    result = run("retarget", "a.safetensors", "???.safetensors", "--for", "a1111", "--out", "out")
    assert "Error: ???.safetensors: no file can be named after the embedding" in result.stderr


def test_a_program_given_twice_is_written_once(run, rows, saved):
    saved("a.safetensors", {"emb_params": rows(1, 768)})
    assert run("retarget", "a.safetensors", "--for", "a1111", "--for", "a1111", "--out", "out").exit_code == 0
    assert os.listdir("out") == ["a.safetensors"]


def test_a_folder_stands_for_the_files_in_it(run, rows, saved, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    saved("in/a.safetensors", {"emb_params": rows(1, 768)})
    saved("in/deep/b.safetensors", {"emb_params": rows(1, 768)})
    for name in ("a.preview.png", "a.pt.optim", "empty.pt", "notes.txt", ".hidden.pt"):
        (tmp_path / "in" / name).write_bytes(b"" if name == "empty.pt" else b"x")
    assert run("retarget", "in", "--for", "a1111", "--out", "out").exit_code == 0
    assert sorted(os.listdir("out")) == ["a.safetensors", "deep"]
    assert os.listdir("out/deep") == ["b.safetensors"]


def test_subfolders_of_a_library_are_kept_so_that_files_of_one_name_do_not_collide(run, rows, saved, tmp_path):
    for folder in ("lib/a", "lib/b"):
        (tmp_path / folder).mkdir(parents=True)
        saved(f"{folder}/x.safetensors", {"emb_params": rows(1, 768)})
    assert run("retarget", "lib", "--for", "a1111", "--for", "comfyui", "--out", "out").exit_code == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.safetensors"))
    assert found == [f"{program}/{folder}/x.safetensors" for program in ("a1111", "comfyui") for folder in "ab"]


def test_a_folder_without_embeddings_stops_no_other(run, rows, saved, tmp_path):
    saved("a.safetensors", {"emb_params": rows(1, 768)})
    (tmp_path / "empty").mkdir()
    for command in (["retarget", "--for", "comfyui", "--out", "out"], ["inspect"]):
        result = run(*command, "empty", "a.safetensors")
        assert result.exit_code == 1
        assert "embedding:a" in result.stdout
        assert "empty: no file with an extension of embedding files (.avif" in result.stderr
    assert "no file with an extension" in str(run("inspect", "empty").exception)
    assert "no file with an extension" in str(
        run("merge", "a.safetensors", "empty", "--out", "m.safetensors").exception
    )


def test_a_pattern_that_no_shell_replaced_stands_for_its_files(run, rows, saved, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.safetensors", "in/deep/b.safetensors", "in/c[1].safetensors"):
        saved(name, {"emb_params": rows(1, 768)})
    assert run("retarget", "in/**/*.safetensors", "--for", "a1111", "--out", "out").exit_code == 0
    assert sorted(os.listdir("out")) == ["a.safetensors", "b.safetensors", "c_1.safetensors"]
    assert run("inspect", "in/c[1].safetensors").exit_code == 0
    assert "cannot be opened" in str(run("inspect", "in/*.pt").exception)


def test_inspect_prints_the_error_of_an_unreadable_file_once(run, rows, saved, tmp_path):
    saved("a.safetensors", {"emb_params": rows(1, 768)})
    (tmp_path / "bad.pt").write_text("no tensors")
    for files, failed in ((["bad.pt"], []), (["bad.pt", "a.safetensors"], ["Error: 1 of 2 files failed"])):
        result = run("inspect", *files)
        texts = [*result.output.splitlines(), f"Error: {result.exception}"]
        assert [text.partition(": not ")[0] for text in texts if "bad.pt" in text] == ["Error: bad.pt"]
        assert [text for text in texts if "failed" in text] == failed


def test_files_without_what_is_wanted_fail_only_where_they_are_named(run, rows, saved, lora, tmp_path):
    (tmp_path / "in").mkdir()
    saved("in/a.safetensors", lora(768, cat={"clip_l": rows(1, 768)}))
    saved("in/b.safetensors", lora(768))
    saved("in/c.safetensors", {"emb_params": rows(1, 768)})
    result = run("unbundle", "in", "--out", "out")
    assert (result.exit_code, sorted(os.listdir("out"))) == (0, ["a.safetensors", "cat.safetensors"])
    assert "2 files written from 1; nothing to do in 2" in result.output
    result = run("unbundle", "in/a.safetensors", "in/b.safetensors", "in/c.safetensors", "--out", "out2")
    assert result.exit_code == 1
    assert "b.safetensors: this is a LoRA without embeddings, so" in result.output
    assert "c.safetensors: this is an embedding alone (kohya, ai-toolkit), so" in result.output
    assert run("retarget", "in", "--for", "kohya", "--out", "out3").exit_code == 0
    assert sorted(os.listdir("out3")) == ["c.safetensors", "cat.safetensors"]


SHAPE = {"path", "kind", "dialect", "family", "families", "embeddings", "lora", "metadata", "programs"}


def test_inspect_gives_an_object_of_one_shape_for_every_file(run, rows, saved, lora, tmp_path):
    nan = RawTensor("F32", (2, 768), b"\0\0\xc0\x7f" + bytes(6140))
    saved("embedding.safetensors", {"emb_params": nan}, {"k": "v"})
    saved("bundle.safetensors", lora(768, cat={"clip_l": rows(1, 768)}))
    saved("lora.safetensors", lora(768))
    saved("half.safetensors", {"<cat>": rows(1, 768)})
    saved("other.safetensors", {"weight": rows(2, 3)})
    (tmp_path / "bad.pt").write_bytes(b"no")
    files = [
        "embedding.safetensors",
        "bundle.safetensors",
        "lora.safetensors",
        "half.safetensors",
        "other.safetensors",
        "bad.pt",
    ]
    result = run("inspect", "--json", *files)
    found = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert result.exit_code == 1
    assert [item["path"] for item in found] == files
    assert [item["kind"] for item in found] == ["embedding", "bundle", "lora", "embedding", "other", "other"]
    assert [item["family"] for item in found] == ["sd1", "sd1", "sd1", None, None, None]
    for item in found:
        assert item.keys() >= SHAPE
        assert ("error" in item) == (item["path"] == "bad.pt")
        assert all(verdict.keys() == {"loads", "prompt", "notes", "after"} for verdict in item["programs"].values())
    (cat,) = found[0]["embeddings"]
    assert cat == {"name": "embedding", "vectors": {"clip_l": {"shape": [2, 768], "dtype": "F32", "norms": [None, 0.0],
                   "finite": False, "sha256": sha256(bytes(nan.data)).hexdigest()}}}  # fmt: skip
    assert found[0]["metadata"] == {"k": "v"}
    assert [note for note in found[0]["notes"] if "vector" in note] == [
        "embedding: clip_l vector 2 of 2 is all zeros", "embedding: clip_l vector 1 of 2 is not finite"]  # fmt: skip
    assert found[2]["lora"]["ranks"] == [4]
    assert len(found[3]["families"]) > 1


def test_inspect_says_for_which_programs_retarget_helps(run, rows, saved, lora):
    saved("cat.safetensors", {"emb_params": rows(1, 1024)})
    assert run("inspect", "cat.safetensors").output.endswith("  convert with pivotune retarget for: onetrainer\n")
    saved("l.safetensors", lora(768))
    assert "retarget" not in run("inspect", "l.safetensors").output


def test_inspect_shows_metadata_cut_short(run, rows, saved):
    fields = {f"key {number:02}": "x" * 100 for number in range(20)}
    saved("x.safetensors", {"emb_params": rows(1, 768)}, fields)
    output = run("inspect", "x.safetensors").output
    assert f"key 00 = {'x' * 60} ... (100 characters)" in output
    assert "and 8 more metadata keys" in output
    assert "sha256" in output


def on_a_terminal(*args):
    """What the lines of a terminal show in the end: what follows the last return to its left edge."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 100))
    with subprocess.Popen([sys.executable, "-m", "pivotune", *args], stdout=other, stderr=other) as process:
        os.close(other)
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while piece := os.read(main, 1 << 16):
                shown += piece
    os.close(main)
    return process.returncode, shown.count(b"%|"), [line.rpartition("\r")[2] for line in shown.decode().split("\r\n")]


def test_a_bar_shows_how_far_it_is_and_leaves_the_lines_alone(run, rows, saved, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(20):
        saved(f"in/w{number:02}.safetensors", {"emb_params": rows(1, 768)})
    (tmp_path / "in" / "w05.safetensors").write_bytes(b"bad")
    code, bars, lines = on_a_terminal("retarget", "in", "--for", "comfyui", "--out", "out")
    assert (code, bars > 0) == (1, True)
    good = [f"out/w{number:02}.safetensors  type: embedding:w{number:02}" for number in range(20) if number != 5]
    assert lines[:20] == [*good, "19 files written from 19"]
    assert [line for line in lines[20:] if line and "w05.safetensors" not in line] == ["Error: 1 of 20 files failed"]
    os.unlink("in/w05.safetensors")
    saved("l.safetensors", {"lora_unet_x_attn2_to_k.lora_down.weight": rows(1, 768)})
    saved("in/w20.safetensors", {"emb_params": rows(1, 768)})
    for command in (["bundle", "l.safetensors", "in"], ["merge", "in"]):
        code, bars, lines = on_a_terminal(*command, "--out", f"{command[0]}.safetensors")
        assert (code, bars > 0, lines[0].split()[0]) == (0, True, f"{command[0]}.safetensors")
    _, bars, lines = on_a_terminal("inspect", "in")
    assert bars > 0
    assert [line for line in lines if line.startswith("in/")] == [
        f"in/w{number:02}.safetensors" for number in range(21) if number != 5
    ]
    assert "%|" not in run("retarget", "in", "--for", "kohya", "--out", "out2").output


def test_two_embeddings_never_share_a_file_even_with_overwrite(run, rows, saved, tmp_path):
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        saved(f"{folder}/cat.safetensors", {"emb_params": rows(1, 768)})
    command = ("retarget", "1/cat.safetensors", "2/cat.safetensors", "--for", "a1111", "--out", "out", "--overwrite")
    assert run(*command).exit_code == 1
    assert run(*command).exit_code == 1
    assert safetensors_file.read("out/cat.safetensors")[0]["emb_params"].data == \
        safetensors_file.read("1/cat.safetensors")[0]["emb_params"].data  # fmt: skip


def test_a_dry_run_writes_nothing_and_finds_what_would_fail(run, rows, saved):
    saved("x.safetensors", {"emb_params": rows(1, 768)})
    result = run("retarget", "x.safetensors", "--for", "kohya", "--out", "out", "--dry-run")
    assert (result.exit_code, os.path.exists("out")) == (0, False)
    assert "out/x.safetensors" in result.output
    saved("out.safetensors", {"emb_params": rows(1, 768)})
    result = run("rename", "x.safetensors", "y", "--out", "out.safetensors", "--dry-run")
    assert "already exists" in str(result.exception)


def test_strict_makes_a_loss_an_error_before_anything_is_written(run, rows, saved):
    saved("x.safetensors", {"clip_l": rows(1, 768), "t5": rows(1, 4096)})
    command = ("retarget", "x.safetensors", "--for", "forge", "--out", "out")
    result = run(*command, "--strict")
    assert "t5 is left out" in str(result.exception)
    assert not os.path.exists("out")
    result = run(*command)
    assert "out/x.safetensors: t5 is left out" in result.output


def test_a_loss_is_printed_before_any_file_is_written(run, rows, saved, monkeypatch):
    saved("x.safetensors", {"clip_l": rows(1, 768), "t5": rows(1, 4096)})
    there = []
    monkeypatch.setattr(click, "echo", lambda *_, **__: there.append(os.path.exists("out/x.safetensors")))
    assert run("retarget", "x.safetensors", "--for", "forge", "--out", "out").exit_code == 0
    assert there == [False, True]


def test_names_cannot_control_a_terminal(run, rows, saved, lora):
    saved("l.safetensors", {**lora(768), "bundle_emb.\x1b[31mred\r\n.clip_l": rows(1, 768)})
    output = run("inspect", "l.safetensors").output
    assert "\x1b" not in output
    assert "\r" not in output
    assert "\\x1b[31mred" in output


def test_no_heavy_library_is_loaded(rows, saved, lora, tmp_path):
    saved("l.safetensors", lora(768))
    saved("w.safetensors", {"emb_params": rows(1, 768)})
    code = (
        "import sys; from pivotune.pipeline.cli.convert import COMMANDS\n"
        "from pivotune.pipeline.cli.convert import inspect\n"
        "COMMANDS['bundle'](['l.safetensors', 'w.safetensors', '--out', 'o.safetensors'], standalone_mode=False)\n"
        "inspect(['o.safetensors', '--json'], standalone_mode=False)\n"
        "COMMANDS['unbundle'](['o.safetensors', '--out', 'u', '--for', 'a1111'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'safetensors', 'PIL', 'jsonschema'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("command", [["inspect"], ["retarget", "--for", "a1111", "--out", "out"]])
def test_ordinary_images_of_a_folder_are_skipped(command, run, rows, saved, tmp_path):
    saved("in/cat.safetensors", {"emb_params": rows(1, 768)})
    Image.new("RGB", (32, 32), "white").save(tmp_path / "in" / "photo.png")
    result = run(*command, "in")
    assert result.exit_code == 0, result.output
    assert "photo" not in result.output
    assert run(*command, "in/photo.png").exit_code == 1
