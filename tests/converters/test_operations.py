"""What the six commands do, from the command line down."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from math import prod

import pytest
from lora_files import FILES

from pivotune.converters import safetensors_file
from pivotune.converters.families import all_families
from pivotune.converters.read import read
from pivotune.converters.tensor import RawTensor

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
METADATA = {"sshs_model_hash": "stale", "ss_tag_frequency": '{"a": {"b": 1}}'}


def sd1(rows):
    return {"clip_l": rows(2, 768)}


def sdxl(rows):
    return {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}


@pytest.mark.parametrize(("inputs", "vectors"), [(768, sd1), (2048, sdxl)])
def test_unbundling_and_bundling_again_gives_every_tensor_back(inputs, vectors, run, lora, rows, saved, same):
    before = lora(inputs, cat=vectors(rows), ema_y=vectors(rows))
    saved("l.safetensors", before, METADATA)
    result = run("unbundle", "l.safetensors", "--out", "out", "--for", "onetrainer")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("out")) == ["cat.safetensors", "ema y.safetensors", "l.safetensors"]
    assert same(safetensors_file.read("out/l.safetensors")[0], lora(inputs) | read("out/l.safetensors").rest)
    embeddings = ("out/cat.safetensors", "out/ema y.safetensors")
    result = run("bundle", "out/l.safetensors", *embeddings, "--out", "again.safetensors", "--for", "a1111")
    assert result.exit_code == 0, result.output
    after, metadata = safetensors_file.read("again.safetensors")
    assert same(after, before)
    assert metadata["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    first = safetensors_file.read("l.safetensors")[1]["sshs_model_hash"]
    assert metadata["sshs_model_hash"] == first != safetensors_file.read("out/l.safetensors")[1]["sshs_model_hash"]


@pytest.mark.parametrize("what", [name for name in FILES if name != "cloneofsimo"])
def test_in_every_layout_bundle_after_unbundle_gives_the_original(what, run, rows, embedding, saved, same):
    _, family, shapes = FILES[what]
    plain = {name: RawTensor("U8", shape or (1,), bytes(prod(shape or (1,)))) for name, shape in shapes.items()}
    cat = embedding("<cat> 猫", all_families()[family].widths, count=2)
    spelled = {"clip_h": "clip_l"}  # SD 2's encoder, as all who write bundles call it
    before = plain | {f"bundle_emb.{cat.name}.{spelled.get(key, key)}": tensor for key, tensor in cat.vectors.items()}
    saved("l.safetensors", before, {"modelspec.title": "x", "modelspec.hash_sha256": "0x12"})
    result = run("unbundle", "l.safetensors", "--out", "out", "--for", "onetrainer")
    assert result.exit_code == 0, result.exception
    alone, metadata = safetensors_file.read("out/l.safetensors")
    assert same(alone, plain)
    assert metadata["modelspec.title"] == "x"
    result = run("bundle", "out/l.safetensors", "out/cat_ 猫.safetensors", "--out", "again.safetensors")
    assert result.exit_code == 0, result.exception
    after, metadata = safetensors_file.read("again.safetensors")
    assert same(after, before)
    with open("again.safetensors", "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    assert metadata["modelspec.hash_sha256"] == "0x" + sha256(data[8 + length :]).hexdigest()


def test_a_bundle_without_a_lora_is_unbundled(run, rows, saved, same):
    tensor = rows(2, 768)
    saved("w.safetensors", {"bundle_emb.a.clip_l": tensor, "bundle_emb.b.emb_params": tensor})
    assert run("unbundle", "w.safetensors", "--out", "out", "--for", "a1111", "--family", "sd1").exit_code == 0
    assert sorted(os.listdir("out")) == ["a.safetensors", "b.safetensors"]
    assert same(safetensors_file.read("out/b.safetensors")[0], {"emb_params": tensor})


def test_tensors_that_only_look_like_embeddings_are_left_out_and_named(run, rows, saved, lora, same):
    stray = {"bundle_emb.cat.string_to_token.*": RawTensor("I64", (), bytes(8))}
    saved("l.safetensors", lora(768, cat=sd1(rows)) | stray)
    result = run("unbundle", "l.safetensors", "--out", "out", "--strict")
    assert "bundle_emb.cat.string_to_token.* is left out" in str(result.exception)
    assert not os.path.exists("out")
    result = run("unbundle", "l.safetensors", "--out", "out")
    assert "out/l.safetensors: bundle_emb.cat.string_to_token.* is left out" in result.output
    assert not any(name.startswith("bundle_emb") for name in safetensors_file.read("out/l.safetensors")[0])


def test_embeddings_for_a_model_that_is_not_known_leave_a_lora_in_a_dialect(run, rows, saved, lora):
    saved("l.safetensors", {"lora_unet_x.alpha": rows(0, 1), "bundle_emb.cat.qwen": rows(1, 3584)})
    assert "--dialect encoders" in str(run("unbundle", "l.safetensors", "--out", "out").exception)
    assert run("unbundle", "l.safetensors", "--out", "out", "--dialect", "encoders").exit_code == 0
    assert list(safetensors_file.read("out/cat.safetensors")[0]) == ["qwen"]
    assert list(safetensors_file.read("out/l.safetensors")[0]) == ["lora_unet_x.alpha"]
    assert run("unbundle", "l.safetensors", "--out", "o", "--dialect", "encoders", "--for", "a1111").exit_code == 2


def test_each_program_gets_a_folder_and_a_prompt(run, lora, rows, saved):
    saved("l.safetensors", lora(768, ema_y=sd1(rows)))
    result = run("unbundle", "l.safetensors", "--out", "out", "--for", "a1111", "--for", "comfyui", "--json")
    files = {item["program"]: item for item in json.loads(result.output)["written"]}
    assert files["a1111"]["prompt"] == "ema y"
    assert files["comfyui"] == {"path": "out/comfyui/ema_y.safetensors", "program": "comfyui", "dialect": "kohya",
                                "prompt": "embedding:ema_y", "prompts": {}, "losses": [], "encoder": ""}  # fmt: skip


@pytest.mark.parametrize("steps", ["", "-steps-500"])
def test_both_halves_of_a_diffusers_embedding_make_one(steps, run, rows, saved, same):
    l, g = rows(2, 768), rows(2, 1280)  # noqa: E741
    both = (f"learned_embeds{steps}.safetensors", f"learned_embeds_2{steps}.safetensors")
    saved(both[0], {"<dog>": l})
    saved(both[1], {"<dog>": g})
    assert run("retarget", *both, "--for", "a1111", "--out", "a").exit_code == 0
    assert run("retarget", both[0], "--for", "a1111", "--out", "b").exit_code == 0
    assert run("merge", *both, "--out", "c.safetensors").exit_code == 0
    for path in ("a/dog.safetensors", "b/dog.safetensors", "c.safetensors"):
        assert same(safetensors_file.read(path)[0], {"clip_l": l, "clip_g": g})
    assert read("c.safetensors").embeddings[0].name == "<dog>"


def test_a_family_that_stays_open_is_asked_for(run, rows, saved):
    saved("x.safetensors", {"<cat>": rows(2, 768)})
    result = run("retarget", "x.safetensors", "--for", "a1111", "--out", "out")
    assert (result.exit_code, os.path.exists("out")) == (1, False)
    assert "--family" in str(result.exception)
    assert "sd1" in str(result.exception)
    assert run("retarget", "x.safetensors", "--for", "a1111", "--out", "out", "--family", "sd1").exit_code == 0
    result = run("retarget", "x.safetensors", "--for", "a1111", "--out", "out2", "--family", "sdxl")
    assert "would not load it" in str(result.exception)


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [("kohya", {"emb_params"}), ("onetrainer", {"emp_params"}), ("lycoris", {"*"}), ("encoders", {"clip_l"}),
     ("diffusers", {"<cat>"}), ("bundle", {"bundle_emb.<cat>.clip_l"})],
)  # fmt: skip
def test_an_embedding_can_be_written_in_a_dialect_by_name(dialect, keys, run, rows, saved, same):
    tensor = rows(2, 768)
    saved("x.safetensors", {"<cat>": tensor}, {"note": "kept"})
    result = run("retarget", "x.safetensors", "--dialect", dialect, "--out", "out")
    assert result.exit_code == 0, result.output
    assert set(safetensors_file.read("out/cat.safetensors")[0]) == keys
    (embedding,) = read("out/cat.safetensors").embeddings
    assert embedding.name == "<cat>"
    assert same(embedding.vectors, {"clip_l": tensor})
    assert run("retarget", "x.safetensors", "--out", "out").exit_code == 2


@pytest.mark.parametrize(("dtype", "kind"), [("F32", "float32"), ("F16", "float16"), ("F64", "float64")])
def test_an_embedding_can_be_written_as_programs_from_before_safetensors_read_it(dtype, kind, run, rows, saved):
    torch = pytest.importorskip("torch")
    tensor = rows(3, 768, dtype)
    saved("x.safetensors", {"<Ä cat>": tensor})
    command = ("retarget", "x.safetensors", "--dialect", "a1111", "--out")
    assert run(*command, "out").exit_code == 0
    loaded = torch.load("out/Ä cat.pt", weights_only=True)
    assert loaded["string_to_token"] == {"*": 265}
    assert (loaded["name"], loaded["step"]) == ("<Ä cat>", 0)
    vectors = loaded["string_to_param"]["*"]
    assert (vectors.dtype, vectors.shape) == (getattr(torch, kind), (3, 768))
    assert vectors.numpy().tobytes() == bytes(tensor.data)
    answers = json.loads(run("inspect", "out/Ä cat.pt", "--json").output)
    assert answers["dialect"] == "a1111"
    reads = {name for name, verdict in answers["programs"].items() if verdict["loads"] != "no"}
    assert reads == set(answers["programs"]) - {"onetrainer", "fooocus"}
    run(*command, "again")
    with open("out/Ä cat.pt", "rb") as one, open("again/Ä cat.pt", "rb") as other:
        assert one.read() == other.read()


def test_what_old_files_cannot_hold_is_refused(run, rows, saved):
    saved("two.safetensors", sdxl(rows))
    saved("eight.safetensors", {"emb_params": RawTensor("F8_E4M3", (1, 768), bytes(768))})
    for name, why in (("two", "room for one text encoder"), ("eight", "cannot hold F8_E4M3")):
        result = run("retarget", f"{name}.safetensors", "--dialect", "a1111", "--out", "out")
        assert why in str(result.exception)
    result = run("rename", "two.safetensors", "cat", "--out", "cat.pt")
    assert "must end in .safetensors" in str(result.exception)
    assert sorted(os.listdir(".")) == ["eight.safetensors", "two.safetensors"]


@pytest.mark.parametrize("layout", ["cloneofsimo", "ai-toolkit"])
def test_embeddings_of_other_loras_are_unbundled_and_bundled(layout, run, rows, saved, same):
    if layout == "cloneofsimo":
        lora = {"unet:0:up": rows(320, 4), "unet:0:down": rows(4, 768)}
        embeddings, flags = {"<s1>": rows(0, 768)}, {"unet": "[]", "<s1>": "<embed>"}
    else:
        lora, flags = {LORA: rows(4, 768)}, {"ss_base_model_version": "sd_1.5"}
        embeddings = {"emb_params": rows(2, 768)}
    saved("l.safetensors", lora | embeddings, flags)
    result = run("unbundle", "l.safetensors", "--out", "out", "--for", "comfyui")
    assert result.exit_code == 0, str(result.exception)
    files = {"cloneofsimo": ["l.safetensors", "s1.safetensors"], "ai-toolkit": ["l.safetensors", "l_lora.safetensors"]}
    assert sorted(os.listdir("out")) == files[layout]
    tensors, metadata = safetensors_file.read(
        "out/l.safetensors" if layout == "cloneofsimo" else "out/l_lora.safetensors"
    )
    assert same(tensors, lora)
    assert metadata == {key: value for key, value in flags.items() if value != "<embed>"}


def test_a_name_that_prompts_read_differently_gives_a_warning(run, rows, saved, lora):
    saved("l.safetensors", lora(768))
    saved("w.safetensors", {"emb_params": rows(1, 768)})
    command = ("bundle", "l.safetensors", "w.safetensors", "--name")
    for number, name in enumerate(("(cat)", "<a:b>", "AND")):
        result = run(*command, name, "--out", f"{number}.safetensors", "--strict")
        assert "would mean something else" in str(result.exception), name
        assert run(*command, name, "--out", f"{number}.safetensors").exit_code == 0
        answers = json.loads(run("inspect", f"{number}.safetensors", "--json").output)["programs"]
        for program in ("a1111", "sdnext"):
            assert answers[program]["loads"] == "partly"
            assert "rename" in answers[program]["notes"][-1]
    assert run(*command, "<Ema y, 猫>", "--out", "fine.safetensors", "--strict").exit_code == 0
    answers = json.loads(run("inspect", "fine.safetensors", "--json").output)["programs"]
    assert answers["a1111"]["loads"] == answers["sdnext"]["loads"] == "yes"


def test_an_embedding_is_renamed_in_every_kind_of_file(run, rows, saved, lora):
    saved("k.safetensors", {"emb_params": rows(1, 768)}, {"note": "kept"})
    saved("d.safetensors", {"<cat>": rows(1, 768)})
    saved("b.safetensors", lora(768, cat=sd1(rows), dog=sd1(rows)), METADATA)
    assert run("rename", "k.safetensors", "kitty", "--out", "k2.safetensors").exit_code == 0
    assert run("rename", "d.safetensors", "<kitty>", "--out", "d2.safetensors").exit_code == 0
    assert run("rename", "b.safetensors", "cat=kitty", "--out", "b2.safetensors").exit_code == 0
    assert [embedding.name for embedding in read("k2.safetensors").embeddings] == ["kitty"]
    assert safetensors_file.read("k2.safetensors")[1]["note"] == "kept"
    assert list(safetensors_file.read("d2.safetensors")[0]) == ["<kitty>"]
    assert [embedding.name for embedding in read("b2.safetensors").embeddings] == ["dog", "kitty"]
    assert "OLD=NEW" in str(run("rename", "b.safetensors", "kitty", "--out", "b3.safetensors").exception)
    assert "already" in str(run("rename", "b.safetensors", "cat=Dog", "--out", "b3.safetensors").exception)
    assert "dot" in str(run("rename", "b.safetensors", "cat=a.b", "--out", "b3.safetensors").exception)


def test_merging_embeddings_makes_a_bundle_and_keeps_each_embeddings_own_metadata(run, rows, saved, lora, same):
    a, b = rows(1, 768), rows(2, 768)
    saved("a.safetensors", {"emb_params": a}, {"initial_text": "ring"})
    saved("b.safetensors", {"emb_params": b})
    saved("l.safetensors", lora(768), METADATA)
    assert run("merge", "a.safetensors", "l.safetensors", "b.safetensors", "--out", "m.safetensors").exit_code == 0
    found = {embedding.name: embedding for embedding in read("m.safetensors").embeddings}
    assert same(found["a"].vectors, {"clip_l": a})
    assert same(found["b"].vectors, {"clip_l": b})
    assert run("unbundle", "m.safetensors", "--out", "out").exit_code == 0
    assert read("out/a.safetensors").embeddings[0].metadata["initial_text"] == "ring"
    assert "second LoRA" in str(run("merge", "l.safetensors", "m.safetensors", "--out", "n.safetensors").exception)


def test_an_embedding_for_another_model_does_not_go_into_a_lora(run, rows, saved, lora):
    saved("l.safetensors", lora(2048))
    saved("x.safetensors", {"emb_params": rows(1, 768)})
    result = run("bundle", "l.safetensors", "x.safetensors", "--out", "o.safetensors")
    assert "no vectors for clip_g" in str(result.exception)
    assert not os.path.exists("o.safetensors")


def test_a_bundle_for_a_program_that_would_refuse_it_is_not_written(run, rows, saved, lora):
    saved("l.safetensors", lora(768))
    embeddings = [saved(f"w{number}.safetensors", {"emb_params": rows(1, 768)}).name for number in range(13)]
    for program, why in (("diffusers", "no 'lora' is in the name"), ("forge", "more than 12")):
        result = run("bundle", "l.safetensors", *embeddings, "--out", "o.safetensors", "--for", program)
        assert why in str(result.exception)
    result = run("bundle", "l.safetensors", embeddings[0], "--out", "o.safetensors", "--for", "comfyui", "--strict")
    assert "does not use w0" in str(result.exception)
    assert not os.path.exists("o.safetensors")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "C:\\evil", "a\nb", "x" * 10_000, "con", "a\0b"])
def test_no_name_in_a_file_leads_out_of_the_folder(name, run, rows, saved, lora, tmp_path):
    saved("l.safetensors", {**lora(768), f"bundle_emb.{name}.clip_l": rows(1, 768)})
    (tmp_path / "deep" / "er").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    for program in ("a1111", "diffusers"):
        assert run("unbundle", "l.safetensors", "--out", f"deep/er/{program}", "--for", program).exit_code == 0
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "deep" / "er") for path in new)
    assert sum(path.is_file() for path in new) == 4
    assert not os.path.lexists("/evil.safetensors")


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, rows, saved, lora):
    saved("l.safetensors", lora(768))
    saved("w.safetensors", {"emb_params": rows(1, 768)})
    (tmp_path / "o.safetensors").write_bytes(b"old")
    code = """
import os
from pivotune.converters.read import read
from pivotune.pipeline.cli.convert import COMMANDS

def run(step):
    count = 0
    def stop(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
            count += 1
            if count == step:
                os._exit(9)
    import sys
    sys.addaudithook(stop)
    COMMANDS["bundle"](["l.safetensors", "w.safetensors", "--out", "o.safetensors", "--overwrite"])

def kill_at(step):
    child = os.fork()
    if child == 0:
        run(step)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if open("o.safetensors", "rb").read() != b"old":
        assert [embedding.name for embedding in read("o.safetensors").embeddings] == ["w"]
        open("o.safetensors", "wb").write(b"old")
    return ended

step = 1
while kill_at(step) == 9:
    step += 1
assert kill_at(step) == 0 and step > 5, step
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_an_embedding_that_is_not_there_is_not_renamed(run, rows, saved):
    saved("k.safetensors", {"emb_params": rows(1, 768)})
    result = run("rename", "k.safetensors", "dog=cat", "--out", "o.safetensors")
    assert result.exit_code == 1
    assert "no embedding 'dog'" in str(result.exception)
    assert "'k'" in str(result.exception)
    assert not os.path.exists("o.safetensors")
    assert run("rename", "k.safetensors", "k=cat", "--out", "o.safetensors").exit_code == 0
    assert [embedding.name for embedding in read("o.safetensors").embeddings] == ["cat"]


def test_embeddings_of_a_small_model_are_for_the_family_in_their_metadata(run, rows, saved, lora):
    saved("cat.safetensors", {"emb_params": rows(2, 64)}, {"pivotune.family": "sd1", "pivotune.embedding": "cat"})
    saved("l.safetensors", lora(64), {"modelspec.architecture": "stable-diffusion-v1/lora"})
    facts = json.loads(run("inspect", "cat.safetensors", "--json").output)
    assert (facts["family"], facts["programs"]["a1111"]["loads"]) == ("sd1", "yes")
    assert run("retarget", "cat.safetensors", "--for", "onetrainer", "--out", "out").exit_code == 0
    assert safetensors_file.read("out/cat.safetensors")[0].keys() == {"emp_params"}
    result = run("bundle", "l.safetensors", "cat.safetensors", "--out", "b.safetensors")
    assert result.exit_code == 0, result.exception
    assert read("b.safetensors").embeddings[0].vectors["clip_l"].shape == (2, 64)
    saved("real.safetensors", lora(768))
    result = run("bundle", "real.safetensors", "cat.safetensors", "--out", "no.safetensors")
    assert "64 values" in str(result.exception)


def test_what_is_typed_for_a_bundle_is_the_lora_and_its_embeddings(run, rows, saved, lora):
    saved("l.safetensors", lora(768))
    saved("cat.safetensors", {"emb_params": rows(2, 768)})
    result = run("bundle", "l.safetensors", "cat.safetensors", "--out", "both.safetensors")
    assert result.output == "both.safetensors  type: <lora:both:1> cat (a1111, sdnext)\n"
    result = run("bundle", "l.safetensors", "cat.safetensors", "--out", "c.safetensors", "--for", "kohya", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["written"][0]["prompts"] == {
        "kohya": "--network_weights c.safetensors"
    }


def test_embeddings_whose_encoders_have_different_numbers_of_vectors_are_named(run, rows, saved, lora):
    saved("l.safetensors", lora(2048))
    saved("cat.safetensors", {"clip_l": rows(2, 768), "clip_g": rows(3, 1280)})
    result = run("bundle", "l.safetensors", "cat.safetensors", "--out", "both.safetensors", "--for", "a1111")
    assert "AUTOMATIC1111 web UI mixes up 'cat'" in result.stderr
    assert run("bundle", "l.safetensors", "cat.safetensors", "--out", "no.safetensors", "--strict").exit_code == 1
    assert not os.path.exists("no.safetensors")
