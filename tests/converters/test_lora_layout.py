import pytest

from pivotune.converters.bundle import bundle
from pivotune.converters.embedding import Contents
from pivotune.converters.families import all_families
from pivotune.converters.lora import lora_metadata
from pivotune.converters.lora_layout import describe
from pivotune.converters.stored import Stored

# layout, family: names and shapes of a few tensors as the writer of the layout spells them
FILES = {
    "kohya, SD 1": ("kohya", "sd1", {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 8),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)}),
    "kohya, SD 2": ("kohya", "sd2", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight": (8, 1024)}),
    "kohya, SDXL": ("kohya", "sdxl", {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 2048)}),
    "kohya, SDXL without cross-attention": ("kohya", "sdxl", {
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2.lora_down.weight": (8, 5120)}),
    "kohya, FLUX": ("kohya", "flux", {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (8, 3072),
        "lora_unet_single_blocks_0_linear1.lora_down.weight": (8, 3072)}),
    "kohya, SD 3": ("kohya", "sd3", {"lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": (8, 1536)}),
    "peft, SD 1": ("diffusers", "sd1", {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 768),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (320, 8)}),
    "diffusers, old": ("diffusers", "sdxl", {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (8, 2048),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight": (8, 2048)}),
    "diffusers, FLUX": ("diffusers", "flux", {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)}),
    "diffusers, FLUX with DoRA and default": ("diffusers", "flux", {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.default.weight": (8, 3072),
        "transformer.single_transformer_blocks.0.attn.to_q.lora_magnitude_vector": (0, 3072)}),
    "XLabs, FLUX": ("other", "flux", {
        "double_blocks.0.processor.qkv_lora1.down.weight": (8, 3072),
        "single_blocks.0.processor.qkv_lora.up.weight": (9216, 8)}),
    "comfyui, FLUX": ("comfyui", "flux", {"diffusion_model.single_blocks.0.linear1.lora_down.weight": (8, 3072)}),
    "onetrainer, FLUX": ("onetrainer", "flux", {
        "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight": (8, 3072)}),
    "LoHa": ("lycoris", "sd1", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_a": (1280, 8),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b": (8, 768)}),
    "LoKr": ("lycoris", "sdxl", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w1": (16, 32),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w2": (80, 64)}),
    "full difference": ("kohya", "sd1", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.diff": (1280, 768)}),
    "OFT": ("lycoris", "sd1", {
        "oft_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.oft_blocks": (4, 768),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)}),
    "cloneofsimo": ("cloneofsimo", "sd1", {"unet:0:up": (320, 4), "unet:0:down": (4, 768)}),
}  # fmt: skip


@pytest.fixture
def tensors(rows):
    return lambda what: {name: rows(*shape, "F16") for name, shape in FILES[what][2].items()}


@pytest.mark.parametrize("what", FILES)
def test_layout_and_family_are_told_from_names_and_shapes(what, tensors):
    layout, family, _ = FILES[what]
    found = describe(tensors(what), {})
    assert (found.layout, found.families) == (layout, (family,))


@pytest.mark.parametrize("what", FILES)
def test_each_of_its_tensors_alone_is_known_for_a_loras(what, rows, tmp_path):
    for name in FILES[what][2]:
        assert Stored(tmp_path / "x.safetensors", {name: rows(1, 8)}).is_lora, name


@pytest.mark.parametrize("name", ["<soft_light>", "my_lora_style", "lora_x", "lora", "loft_3", "lora_v1.5", "a lora.b",
                                  "bundle_emb.lora_unet.clip_l", "bundle_emb.a.lora_up.clip_l"])  # fmt: skip
def test_a_word_may_be_called_as_if_it_were_a_lora(name, rows, tmp_path):
    assert not Stored(tmp_path / "x.safetensors", {name: rows(1, 8)}).is_lora


@pytest.mark.parametrize("what", FILES)
def test_shapes_are_believed_more_than_metadata(what, tensors):
    lies = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert describe(tensors(what), lies).families == (FILES[what][1],)


def test_chroma_has_the_blocks_of_flux_and_is_told_by_metadata(tensors):
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
def test_words_go_into_loras_of_every_layout(what, tensors, word):
    widths = all_families()[FILES[what][1]].widths
    contents = bundle(Contents(rest=tensors(what)), [word("cat", widths)], widths=widths)
    assert contents.rest.keys() == FILES[what][2].keys()
