import pytest
from lora_files import FILES

from pivotune.converters.bundle import bundle
from pivotune.converters.embedding import Contents
from pivotune.converters.families import all_families
from pivotune.converters.lora import describe, lora_metadata
from pivotune.converters.stored import Stored


@pytest.fixture
def tensors(rows):
    return lambda what: {name: rows(*shape, "F16") for name, shape in FILES[what][2].items()}


@pytest.mark.parametrize("what", FILES)
def test_names_and_shapes_show_layout_and_family(what, tensors):
    layout, family, _ = FILES[what]
    found = describe(tensors(what), {})
    assert (found.layout, found.families) == (layout, (family,))


@pytest.mark.parametrize("what", FILES)
def test_each_of_its_tensors_alone_is_identified_as_a_loras(what, rows, tmp_path):
    for name in FILES[what][2]:
        assert Stored(tmp_path / "x.safetensors", {name: rows(1, 8)}).is_lora, name


@pytest.mark.parametrize("name", ["<soft_light>", "my_lora_style", "lora_x", "lora", "loft_3", "lora_v1.5", "a lora.b",
                                  "bundle_emb.lora_unet.clip_l", "bundle_emb.a.lora_up.clip_l"])  # fmt: skip
def test_an_embedding_may_have_a_name_like_a_loras(name, rows, tmp_path):
    assert not Stored(tmp_path / "x.safetensors", {name: rows(1, 8)}).is_lora


@pytest.mark.parametrize("what", FILES)
def test_shapes_outweigh_metadata(what, tensors):
    lies = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert describe(tensors(what), lies).families == (FILES[what][1],)


NATIVE = {"double_blocks.{}.": "img_attn.qkv img_attn.proj txt_attn.qkv txt_attn.proj",
          "single_blocks.{}.": "linear1 linear2"}  # fmt: skip
FEED_FORWARD = {"double_blocks.{}.": "img_mlp.0 img_mod.lin", "single_blocks.{}.": "modulation.lin"}
HUNYUAN = {"double_blocks.{}.": "img_attn_qkv img_attn_proj img_mlp.fc1"}
DIFFUSERS = {"transformer_blocks.{}.": "attn.to_q attn.add_q_proj", "single_transformer_blocks.{}.": "attn.to_q"}
OF_FLUX2 = {"single_transformer_blocks.{}.": "attn.to_qkv_mlp_proj"}
QWEN = {"transformer_blocks.{}.": "attn.to_q attn.add_q_proj img_mlp.net.2"}
CROSS = {"transformer_blocks.{}.": "attn1.to_q attn2.to_k"}
PIXART = {"blocks.{}.": "attn.qkv cross_attn.kv_linear mlp.fc1"}
CASCADE = {"down_blocks.0.{}.": "attention.to_q attention.to_out.0"}
STATED = {
    "flux": "flux1",
    "chroma": "chroma",
    "hunyuan-video": "hunyuan_video",
    "flux2-klein-4b": "flux2_klein_4b",
    "qwen-image": "qwen_image",
    "anima": "anima",
    "pixart": "pixart",
    "sana": "sana",
    "cascade": "cascade",
}
LIKE_FLUX = ("flux", "flux2-klein-4b", "hunyuan-video")


@pytest.mark.parametrize("spelling", ["kohya", "comfyui", "bare", "peft", "onetrainer", "lycoris"])
@pytest.mark.parametrize(
    ("blocks", "counts", "width", "families", "may_be"),
    [
        (NATIVE, (19, 38), 3072, ("flux",), "flux hunyuan-video chroma"),
        (NATIVE, (20, 40), 3072, ("hunyuan-video",), ""),
        (NATIVE, (5, 20), 3072, ("flux2-klein-4b",), "flux flux2-klein-4b hunyuan-video chroma"),
        (NATIVE, (8, 24), 4096, ("flux2-klein-9b",), ""),
        (NATIVE, (8, 48), 6144, ("flux2-dev",), ""),
        (NATIVE, (3, 2), 3072, LIKE_FLUX, "flux flux2-klein-4b hunyuan-video chroma"),
        (NATIVE, (12, 2), 3072, ("flux", "hunyuan-video"), "flux hunyuan-video chroma"),
        (DIFFUSERS, (19, 38), 3072, ("flux",), "flux hunyuan-video chroma"),
        (DIFFUSERS, (20, 40), 3072, ("hunyuan-video",), ""),
        (DIFFUSERS, (3, 2), 3072, ("flux", "hunyuan-video"), "flux hunyuan-video chroma"),
        (OF_FLUX2, (2,), 3072, ("flux2-klein-4b",), ""),
        (QWEN, (3,), 3072, ("qwen-image",), ""),
        (CROSS, (3,), 1152, ("pixart",), ""),
        (CROSS, (3,), 2240, ("sana",), ""),
        (CROSS, (3,), 1024, (), "any"),
        (PIXART, (3,), 1152, ("pixart",), ""),
        (CASCADE, (3,), 2048, ("cascade",), ""),
    ],
)
def test_a_family_is_told_in_every_spelling_by_its_blocks_else_by_metadata(
    spelling, blocks, counts, width, families, may_be, spelled
):
    made = spelled(spelling, blocks, counts, width)
    assert describe(made, {}).families == families
    for family, base in STATED.items():
        expected = (family,) if may_be == "any" or family in may_be.split() else families
        assert describe(made, {"ss_base_model_version": base}).families == expected, family


@pytest.mark.parametrize(("blocks", "families"), [(NATIVE, LIKE_FLUX), (FEED_FORWARD, ("flux",)),
                                                  (HUNYUAN, ("hunyuan-video",))])  # fmt: skip
def test_names_of_the_feed_forward_layers_tell_kohyas_flux_from_hunyuan_video(blocks, families, spelled):
    assert describe(spelled("kohya", blocks, (3, 2), 3072), {}).families == families
    assert describe(spelled("kohya", blocks, (3, 2), 3072), {"ss_base_model_version": "flux1"}).families == (
        ("flux",) if "flux" in families else families
    )


def test_a_t5_encoder_in_a_lora_does_not_make_it_one_for_a_wider_model(spelled, rows):
    made = spelled("kohya", NATIVE, (19, 38), 3072) | {"lora_te3_encoder_block_0.lora_down.weight": rows(1, 4096)}
    assert describe(made, {}).families == ("flux",)


@pytest.fixture
def spelled(rows):
    """A LoRA of these layers in so many blocks, as a program names them."""
    prefixes = {"kohya": "lora_unet_", "comfyui": "diffusion_model.", "bare": "", "peft": "transformer.",
                "onetrainer": "lora_transformer_", "lycoris": "lycoris_"}  # fmt: skip

    def made(spelling, blocks, counts, width):
        names = [start.format(number) + layer for (start, layers), count in zip(blocks.items(), counts, strict=False)
                 for number in range(count) for layer in layers.split()]  # fmt: skip
        flat = prefixes[spelling].endswith("_")
        layers = [prefixes[spelling] + (name.replace(".", "_") if flat else name) for name in names]
        end = "lora_down.weight" if flat else "lora_A.weight"
        return {f"{layer}.{end}": rows(1, width, "F16") for layer in layers}

    return made


def test_metadata_distinguishes_chroma_from_flux(tensors):
    assert describe(tensors("kohya, FLUX"), {"modelspec.architecture": "flux-1-chroma/lora"}).families == ("chroma",)


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "Flux.1-dev/lora"}, ("flux",)),
        ({"modelspec.architecture": "stable-diffusion-v3.5-large/lora"}, ("sd3",)),
        ({"ss_base_model_version": "sdxl_"}, ("sdxl",)),
        ({"ss_base_model_version": "sd_1.5"}, ("sd1",)),
        ({"ss_v2": "True"}, ("sd2",)),
        ({}, ()),
    ],
)
def test_metadata_decides_where_shapes_do_not(metadata, family, rows):
    assert describe({"lora_unet_time_emb_proj.lora_down.weight": rows(4, 1280)}, metadata).families == family


@pytest.mark.parametrize("name", all_families())
def test_the_metadata_we_write_names_the_family(name, rows):
    metadata = lora_metadata(all_families()[name], title="x", rank=4, alpha=4.0)
    assert describe({"lora_unet_time_emb_proj.lora_down.weight": rows(4, 1280)}, metadata).families == (name,)


def test_modules_and_ranks_are_counted(tensors):
    found = describe(tensors("kohya, SD 1"), {})
    assert (found.modules, found.ranks) == (2, (8,))


@pytest.mark.parametrize("what", FILES)
def test_embeddings_go_into_loras_of_every_layout(what, tensors, embedding):
    widths = all_families()[FILES[what][1]].widths
    contents = bundle(Contents(rest=tensors(what)), [embedding("cat", widths)], widths=widths)
    assert contents.rest.keys() == FILES[what][2].keys()
