"""Every dialect, in files made key by key in the shape of its writer."""

import base64
import json
import random
import struct
import zlib
from collections import OrderedDict
from itertools import combinations

import pytest
from PIL import Image, PngImagePlugin

from pivotune.converters.dialects import DIALECTS, xti
from pivotune.converters.errors import ConvertError
from pivotune.converters.opening import open_file
from pivotune.converters.read import dialect_of, families_of, identify, read
from pivotune.converters.slots import columns
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor

torch = pytest.importorskip("torch")

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


def plain(tensor):
    shape = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
    return tensor.dtype, shape, bytes(tensor.data)


def as_torch(tensor):
    kinds = {"F32": torch.float32, "F16": torch.float16}
    return torch.frombuffer(bytearray(tensor.data), dtype=kinds[tensor.dtype]).reshape(tensor.shape)


@pytest.fixture
def pickled(tmp_path):
    def save(name, value, new=True):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=new)
        return tmp_path / name

    return save


def as_json(tensor):
    numbers = struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data)
    width = tensor.shape[1]
    rows = [list(numbers[at : at + width]) for at in range(0, len(numbers), width)]
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": rows}}, "name": "cat", "step": 9}
    return json.dumps({**content, "sd_checkpoint": "abc", "sd_checkpoint_name": None}).encode()


def chunk_image(path, tensor):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(as_json(tensor)).decode())
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return path


def pixel_image(path, tensor):
    """The layout of A1111's insert_image_data_embed: packed data in low bits, decoration in high ones."""
    height, source = 64, random.Random(1)
    packed = zlib.compress(as_json(tensor), 9)
    size = len(packed) + height - len(packed) % height
    size += 3 * height - size % (3 * height)
    packed = (packed * (size // len(packed) + 1))[:size]
    seed, low, high = 0, bytearray(), bytearray()
    for value in packed:
        seed = (1664525 * seed + 1013904223) % 2**32
        key = seed % 255 & 15
        low.append((value & 15) ^ key | source.randrange(1, 16) << 4)
        high.append(value >> 4 ^ key | source.randrange(1, 16) << 4)
    width = size // (3 * height)
    image = Image.frombytes("RGB", (64, height), bytes(source.randrange(17, 256) | 1 for _ in range(64 * height * 3)))
    whole = Image.new("RGB", (2 * width + 66, height))
    whole.paste(Image.frombytes("RGB", (width, height), bytes(low)), (0, 0))
    whole.paste(image, (width + 1, 0))
    whole.paste(Image.frombytes("RGB", (width, height), bytes(high)), (width + 66, 0))
    framed = Image.new("RGB", (whole.width + 4, height + 6))
    framed.paste(whole, (2, 3))
    framed.save(path)
    return path


@pytest.fixture
def samples(rows, saved, pickled, tmp_path):
    """what -> (dialect, function that writes a file, embeddings: name -> {encoder key: tensor})."""
    v, l2, g, h, t5 = rows(2, 768), rows(1, 768), rows(2, 1280), rows(2, 1024), rows(2, 4096, "F16")
    one, lora, gemma = rows(0, 768), {LORA: rows(4, 768)}, rows(2, 2304, "F16")
    number = RawTensor("I64", (), bytes(8))
    every = {"clip_l": v, "clip_g": g, "t5": t5, "gemma": gemma, "llama": t5}
    both = RawTensor("F32", (2, 2048), b"".join(
        bytes(part.data[row * size : (row + 1) * size]) for row in (0, 1) for part, size in ((v, 3072), (g, 5120))
    ))  # fmt: skip

    def sub(param, **more):
        return {"string_to_token": {"*": 265}, "string_to_param": {"*": param}, **more}

    a1111 = {"name": "cat", "step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": "x"}
    params = torch.nn.ParameterDict({"a": torch.nn.Parameter(as_torch(v)), "b": torch.nn.Parameter(as_torch(l2))})
    ti = {"string_to_token": {"a": torch.tensor(265), "b": torch.tensor(266)}, "string_to_param": params}
    return {
        "original, two": ("original", lambda: pickled("x.pt", ti), {"a": {"clip_l": v}, "b": {"clip_l": l2}}),
        "original, old": ("original", lambda: pickled("x.pt", ti, False), {"a": {"clip_l": v}, "b": {"clip_l": l2}}),
        "a1111": ("a1111", lambda: pickled("x.pt", sub(as_torch(v).requires_grad_(), **a1111)), {"x": {"clip_l": v}}),
        "a1111, old": ("a1111", lambda: pickled("x.pt", sub(as_torch(h), **a1111), False), {"x": {"clip_h": h}}),
        "a1111, sdxl": ("a1111", lambda: pickled("x.pt", sub(as_torch(both), **a1111)),
                        {"x": {"clip_l": v, "clip_g": g}}),
        "onetrainer 2023": ("a1111", lambda: pickled("x.pt", sub(as_torch(v), name="*", step=0)), {"x": {"clip_l": v}}),
        "image, chunk": ("a1111-image", lambda: chunk_image(tmp_path / "x.png", v), {"cat": {"clip_l": v}}),
        "image, pixels": ("a1111-image", lambda: pixel_image(tmp_path / "x.png", v), {"cat": {"clip_l": v}}),
        "hcp": ("hcp", lambda: pickled("x.pt", {"string_to_param": {"*": as_torch(v)}, "name": "x"}),
                {"x": {"clip_l": v}}),
        "hcp, sdxl": ("hcp", lambda: pickled("x.pt", {"string_to_param": {"*": as_torch(both)}, "name": "x"}),
                      {"x": {"clip_l": v, "clip_g": g}}),
        "kohya": ("kohya", lambda: saved("x.safetensors", {"emb_params": v}, {"modelspec.title": "x"}),
                  {"x": {"clip_l": v}}),
        "kohya .pt": ("kohya", lambda: pickled("x.pt", {"emb_params": as_torch(h)}), {"x": {"clip_h": h}}),
        "ai-toolkit": ("kohya", lambda: saved("x.safetensors", {"emb_params": v}, {
            "string_to_token": '{"*": 265}', "name": "x", "step": "5", "string_to_param": '{"*": "emb_params"}'}),
            {"x": {"clip_l": v}}),
        "xti": ("xti", lambda: saved("x.safetensors", dict.fromkeys(xti.LAYERS, v)), None),
        "onetrainer": ("onetrainer", lambda: saved("x.safetensors", {"emp_params": v}), {"x": {"clip_l": v}}),
        "onetrainer, output": ("onetrainer", lambda: saved("x.safetensors", {"emp_params": v, "emp_params_out": l2}),
                               {"x": {"clip_l": v, "clip_l_out": l2}}),
        "onetrainer, sd2": ("onetrainer", lambda: saved("x.safetensors", {"emp_params": h}), {"x": {"clip_h": h}}),
        "lycoris": ("lycoris", lambda: saved("x.safetensors", {"*": v}), {"x": {"clip_l": v}}),
        "lycoris .pt": ("encoders", lambda: pickled("x.pt", {"clip_l": as_torch(v), "name": "x"}),
                        {"x": {"clip_l": v}}),
        "sdxl": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "clip_g": g}),
                 {"x": {"clip_l": v, "clip_g": g}}),
        "sdxl, output": ("encoders", lambda: saved("x.safetensors", {"clip_g": g, "clip_g_out": g, "clip_l": v,
                                                                    "clip_l_out": v}),
                         {"x": {"clip_l": v, "clip_g": g, "clip_l_out": v, "clip_g_out": g}}),
        "sdxl .pt": ("encoders", lambda: pickled("x.pt", {"clip_l": as_torch(v), "clip_g": as_torch(g)}),
                     {"x": {"clip_l": v, "clip_g": g}}),
        "advanced, sd1": ("encoders", lambda: saved("x_emb.safetensors", {"clip_l": v}), {"x_emb": {"clip_l": v}}),
        "sd3, output": ("encoders", lambda: saved("x.safetensors", {
            "clip_l": v, "clip_g": g, "t5": t5, "clip_l_out": v, "clip_g_out": g, "t5_out": t5}),
            {"x": {"clip_l": v, "clip_g": g, "t5": t5, "clip_l_out": v, "clip_g_out": g, "t5_out": t5}}),
        "flux, output": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "t5": t5, "t5_out": t5}),
                         {"x": {"clip_l": v, "t5": t5, "t5_out": t5}}),
        "pixart, chroma": ("encoders", lambda: saved("x.safetensors", {"t5": t5, "t5_out": t5}),
                           {"x": {"t5": t5, "t5_out": t5}}),
        "sana": ("encoders", lambda: saved("x.safetensors", {"gemma": gemma, "gemma_out": gemma}),
                 {"x": {"gemma": gemma, "gemma_out": gemma}}),
        "hidream": ("encoders", lambda: saved("x.safetensors", {
            "clip_l": v, "clip_g": g, "t5": t5, "llama": t5, "t5_out": t5, "llama_out": t5}),
            {"x": {"clip_l": v, "clip_g": g, "t5": t5, "llama": t5, "t5_out": t5, "llama_out": t5}}),
        "cascade": ("encoders", lambda: saved("x.safetensors", {"clip_g": g, "clip_g_out": g}),
                    {"x": {"clip_g": g, "clip_g_out": g}}),
        "sd3": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "clip_g": g, "t5": t5}),
                {"x": {"clip_l": v, "clip_g": g, "t5": t5}}),
        "flux": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "t5": t5}), {"x": {"clip_l": v, "t5": t5}}),
        "flux of 2024": ("encoders", lambda: saved("x.safetensors", {"clip_g": v, "t5": t5}),
                         {"x": {"clip_l": v, "t5": t5}}),
        "flux, comfyui": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "t5xxl": t5}),
                          {"x": {"clip_l": v, "t5": t5}}),
        "hunyuan video, output": ("encoders", lambda: saved("x.safetensors", {
            "clip_l": v, "llama": t5, "llama_out": t5}), {"x": {"clip_l": v, "llama": t5, "llama_out": t5}}),
        "hunyuan video": ("encoders", lambda: saved("x.safetensors", {"clip_l": v, "llama": t5}),
                          {"x": {"clip_l": v, "llama": t5}}),
        "advanced, first": ("text-encoders", lambda: saved("x.safetensors", {"text_encoders_0": v,
                                                                            "text_encoders_1": g}),
                            {"x": {"clip_l": v, "clip_g": g}}),
        "diffusers": ("diffusers", lambda: saved("x.safetensors", {"<cat>": v}, {"format": "pt"}),
                      {"<cat>": {"clip_l": v}}),
        "diffusers .bin": ("diffusers", lambda: pickled("learned_embeds.bin", {"<cat>": as_torch(one)}),
                           {"<cat>": {"clip_l": one}}),
        "diffusers, Parameter": ("diffusers", lambda: pickled("x.bin", OrderedDict(
            {"<cat>": torch.nn.Parameter(as_torch(g))})), {"<cat>": {"clip_g": g}}),
        "diffusers, several": ("diffusers", lambda: pickled("x.bin", {"<a>": as_torch(v), "<b>": as_torch(l2)}),
                               {"<a>": {"clip_l": v}, "<b>": {"clip_l": l2}}),
        "cloneofsimo .ti.pt": ("diffusers", lambda: pickled("x.ti.pt", {"<s1>": as_torch(one), "<s2>": as_torch(one)}),
                               {"<s1>": {"clip_l": one}, "<s2>": {"clip_l": one}}),
        "cloneofsimo": ("cloneofsimo", lambda: saved("x.safetensors", {
            "unet:0:up": rows(320, 4), "unet:0:down": rows(4, 320), "<s1>": one}, {
            "unet": '["CrossAttention"]', "unet:0:rank": "4", "<s1>": "<embed>"}), {"<s1>": {"clip_l": one}}),
        "cloneofsimo, tokens alone": ("cloneofsimo", lambda: saved("x.safetensors", {"<s1>": one}, {
            "<s1>": "<embed>"}), {"<s1>": {"clip_l": one}}),
        "bundle": ("bundle", lambda: saved("x.safetensors", {**lora, "bundle_emb.mr. cat.clip_l": v}),
                   {"mr. cat": {"clip_l": v}}),
        "bundle of 2024": ("bundle", lambda: saved("x.safetensors", {**lora, "bundle_emb.cat.string_to_param.*": v}),
                           {"cat": {"clip_l": v}}),
        "bundle, LyCORIS": ("bundle", lambda: saved("x.safetensors", {
            **lora, "bundle_emb.a.emb_params": v, "bundle_emb.b.emp_params": l2, "bundle_emb.c.*": v,
            "bundle_emb.d.string_to_param.*": one, "bundle_emb.d.string_to_token.*": number}),
            {"a": {"clip_l": v}, "b": {"clip_l": l2}, "c": {"clip_l": v}, "d": {"clip_l": one}}),
        "bundle, every encoder": ("bundle", lambda: saved("x.safetensors", {**lora, **{
            f"bundle_emb.<a b>.{key}": tensor for key, tensor in every.items()}}), {"<a b>": every}),
        "bundle, output": ("bundle", lambda: saved("x.safetensors", {
            **lora, "bundle_emb.ä.clip_l": v, "bundle_emb.ä.clip_l_out": l2}), {"ä": {"clip_l": v, "clip_l_out": l2}}),
        "bundle of a community fork": ("bundle", lambda: saved("x.safetensors", {
            **lora, "bundle_emb.a.qwen": t5, "bundle_emb.a.qwen_out": t5, "bundle_emb.a.t5": t5}),
            {"a": {"qwen": t5, "qwen_out": t5, "t5": t5}}),
        "bundle of an ai-toolkit LoRA": ("bundle", lambda: saved("x.safetensors", {
            **lora, "emb_params": l2, "bundle_emb.cat.emb_params": v}), {"cat": {"clip_l": v}}),
        "ai-toolkit LoRA, sd1": ("ai-toolkit", lambda: saved("x.safetensors", {**lora, "emb_params": v}),
                                 {"x": {"clip_l": v}}),
        "ai-toolkit LoRA": ("ai-toolkit", lambda: saved("x.safetensors", {**lora, "clip_l": v, "clip_g": g}),
                            {"x": {"clip_l": v, "clip_g": g}}),
        "lora": ("lora", lambda: saved("x.safetensors", lora), {}),
        "list": ("comfyui-list", lambda: pickled("x.pt", [{"a": as_torch(v)}, {"b": as_torch(g)}]),
                 {"x": {"clip_l": v, "clip_g": g}}),
        "tensor": ("tensor", lambda: pickled("x.pt", as_torch(v)), {"x": {"clip_l": v}}),
    }  # fmt: skip


NAMES = [
    "original, two", "original, old", "a1111", "a1111, old", "a1111, sdxl", "onetrainer 2023", "image, chunk",
    "image, pixels", "hcp", "hcp, sdxl", "kohya", "kohya .pt", "ai-toolkit", "xti", "onetrainer",
    "onetrainer, output", "onetrainer, sd2", "lycoris", "lycoris .pt", "sdxl", "sdxl, output", "sdxl .pt",
    "advanced, sd1", "sd3, output", "flux, output", "pixart, chroma", "sana", "hidream", "cascade", "sd3", "flux",
    "flux of 2024", "flux, comfyui", "hunyuan video, output", "hunyuan video", "advanced, first", "diffusers",
    "diffusers .bin", "diffusers, Parameter", "diffusers, several", "cloneofsimo .ti.pt", "cloneofsimo",
    "cloneofsimo, tokens alone", "bundle", "bundle of 2024", "bundle, LyCORIS", "bundle, every encoder",
    "bundle, output", "bundle of a community fork", "bundle of an ai-toolkit LoRA", "ai-toolkit LoRA, sd1",
    "ai-toolkit LoRA", "lora", "list", "tensor",
]  # fmt: skip


def test_there_is_a_sample_of_every_dialect(samples):
    assert list(samples) == NAMES
    assert {dialect for dialect, _, _ in samples.values()} == set(DIALECTS)


@pytest.mark.parametrize("what", NAMES)
def test_a_file_is_identified_as_its_own_dialect_only(what, samples):
    dialect, make, _ = samples[what]
    stored = open_file(make())
    assert [name for name, row in DIALECTS.items() if row.detect(stored)] == [dialect]


def test_no_two_dialects_claim_what_is_in_both_of_their_files(samples):
    """Every pair of samples with the tensors and metadata of both in one file, as nobody's writer makes them."""
    opened, quarrels = {}, {}
    for what, (_, make, _) in samples.items():
        opened[what] = open_file(make())
        opened[what].path.unlink()
    for (one, a), (other, b) in combinations(opened.items(), 2):
        tensors, metadata = {**a.tensors, **b.tensors}, {**a.metadata, **b.metadata}
        flags = dict.fromkeys(tensors, "<embed>")
        for root, entries in ((a.root, metadata), (b.root, metadata), (a.root, flags)):
            mixed = Stored(a.path, tensors, entries, root=root)
            claims = tuple(name for name, row in DIALECTS.items() if row.detect(mixed))
            if len(claims) > 1:
                quarrels[claims] = (one, other, root)
    assert not quarrels


@pytest.mark.parametrize("what", [name for name in NAMES if name != "xti"])
def test_every_bit_of_every_embedding_is_read(what, samples):
    _, make, embeddings = samples[what]
    found = {item.name: {key: plain(t) for key, t in item.vectors.items()} for item in read(make()).embeddings}
    assert found == {name: {key: plain(t) for key, t in vectors.items()} for name, vectors in embeddings.items()}


@pytest.mark.parametrize("what", [name for name in NAMES if name not in ("image, chunk", "image, pixels")])
def test_the_name_of_the_file_does_not_matter(what, samples, tmp_path):
    dialect, make, _ = samples[what]
    path = make()
    for extension in (".safetensors", ".pt", ".png", ""):
        other = tmp_path / f"y{extension}"
        other.write_bytes(path.read_bytes())
        assert dialect_of(open_file(other)) == dialect


def test_extended_textual_inversion_is_named_and_refused(samples):
    with pytest.raises(ConvertError, match="this is an extended textual inversion"):
        read(samples["xti"][1]())


def test_what_is_no_embedding_stays_with_the_lora(samples):
    contents = read(samples["cloneofsimo"][1]())
    assert set(contents.rest) == {"unet:0:up", "unet:0:down"}
    assert contents.metadata == {"unet": '["CrossAttention"]', "unet:0:rank": "4"}


@pytest.mark.parametrize(
    ("what", "rest"), [("bundle of an ai-toolkit LoRA", {LORA, "emb_params"}), ("lora", {LORA}), ("bundle", {LORA})]
)
def test_the_tensors_of_a_lora_are_not_lost(what, rest, samples):
    assert set(read(samples[what][1]()).rest) == rest


@pytest.mark.parametrize(
    ("what", "families"),
    [
        ("kohya", ["sd1"]),
        ("a1111", ["sd1"]),
        ("a1111, old", ["sd2"]),
        ("sdxl", ["sdxl"]),
        ("hcp, sdxl", ["sdxl"]),
        ("flux", ["flux"]),
        ("flux of 2024", ["flux"]),
        ("sd3", ["sd3"]),
        ("hunyuan video", ["hunyuan-video"]),
        ("diffusers", ["sd1", "flux", "hunyuan-video", "sdxl", "sd3", "hidream"]),
        ("diffusers, Parameter", ["sdxl", "sd3", "hidream", "cascade"]),
    ],
)
def test_a_family_follows_from_the_widths_or_stays_open(what, families, samples):
    found = identify(samples[what][1]())
    assert families_of(found.contents.embeddings[0], found.dialect) == families


def test_a_single_tensor_that_may_be_t5_or_llama_stays_open(saved, rows):
    (found,) = read(saved("x.safetensors", {"<cat>": rows(1, 4096)})).embeddings
    assert list(found.vectors) == ["unnamed"]
    assert {"chroma", "hunyuan-video"} < set(families_of(found))


def test_cog_sdxl_names_its_embeddings_in_another_file(saved, rows, tmp_path):
    v, g = rows(4, 768), rows(4, 1280)
    path = saved("embeddings.pti", {"text_encoders_0": v, "text_encoders_1": g})
    (tmp_path / "special_params.json").write_text('{"TOK": "<s0><s1>", "CAT": "<s2><s3>"}')
    tok, cat = read(path).embeddings
    assert (tok.name, cat.name) == ("TOK", "CAT")
    assert bytes(tok.vectors["clip_l"].data) + bytes(cat.vectors["clip_l"].data) == bytes(v.data)
    (tmp_path / "special_params.json").write_text('{"TOK": "<s0><s9>"}')
    assert [item.name for item in read(path).embeddings] == ["embeddings"]
    (tmp_path / "special_params.json").write_text("{")
    with pytest.raises(ConvertError, match=r"special_params\.json"):
        read(path)


def test_our_metadata_names_the_embedding_that_a_file_name_cannot_hold(saved, rows):
    metadata = {"pivotune.embedding": "<Ema Y>", "initial_text": "ring"}
    (found,) = read(saved("ema_y.safetensors", {"emb_params": rows(1, 768)}, metadata)).embeddings
    assert (found.name, found.metadata) == ("<Ema Y>", {"initial_text": "ring"})


def test_a_diffusers_file_of_ours_may_have_any_width(saved, rows):
    (found,) = read(saved("x.safetensors", {"<cat>": rows(2, 96)}, {"pivotune.embedding": "<cat>"})).embeddings
    assert (found.name, list(found.vectors)) == ("<cat>", ["unnamed"])


@pytest.mark.parametrize(
    ("tensors", "embeddings"),
    [
        ({"model.diffusion_model.x.weight": (4, 768)}, "a whole model"),
        ({"text_model.embeddings.token_embedding.weight": (10, 768)}, "a text encoder"),
        ({"weight": (10, 33)}, "not an embedding and not a LoRA; it holds 1 tensor: weight"),
        ({}, "no tensor"),
        ({"emb_params": (2, 2, 768)}, "shape"),
        ({"emb_params": ()}, "shape"),
    ],
)
def test_a_file_without_embeddings_is_named(tensors, embeddings, saved):
    made = {name: RawTensor("U8", shape, bytes(torch.Size(shape).numel()))
            for name, shape in tensors.items()}  # fmt: skip
    with pytest.raises(ConvertError, match=embeddings):
        read(saved("x.safetensors", made))


def test_an_image_without_an_embedding_is_reported(tmp_path):
    source = random.Random(3)
    noise = Image.frombytes("RGB", (64, 64), source.randbytes(64 * 64 * 3))
    noise.save(tmp_path / "noise.png")
    striped = noise.copy()
    for x in (10, 50):
        striped.paste((16, 16, 16), (x, 0, x + 1, 64))
    striped.save(tmp_path / "striped.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:50])
    for name in ("noise", "striped", "black", "cut"):
        with pytest.raises(ConvertError, match="an image without a"):
            read(tmp_path / f"{name}.png")


def test_columns_are_cut_row_by_row(rows):
    tensor = rows(3, 8)
    assert bytes(columns(tensor, 2, 4).data) == b"".join(bytes(tensor.data[at + 8 : at + 16]) for at in (0, 32, 64))
