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
