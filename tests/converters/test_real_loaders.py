"""Our files in the loaders that others wrote, where those can be installed: diffusers, InvokeAI, safetensors."""

import pytest
import safetensors.numpy
import torch

from pivotune.converters.families import families
from pivotune.converters.programs import reads
from pivotune.converters.stored import Stored
from pivotune.converters.write import write_embedding

SIZES = {"clip_l": 768, "clip_g": 1280}


@pytest.fixture(scope="module")
def pipe():
    """What diffusers needs of a pipeline for textual inversion: tokenizers, and text encoders of the real widths."""
    pytest.importorskip("diffusers")
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel

    from pivotune.recipes.micro.tokenizer import build_tokenizer

    class Pipe(TextualInversionLoaderMixin):
        hf_device_map = None

        def __init__(self):
            self.tokenizers = {key: build_tokenizer() for key in SIZES}
            self.encoders = {
                key: CLIPTextModel(CLIPTextConfig(
                    vocab_size=len(self.tokenizers[key]), hidden_size=size, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=4,
                ))
                for key, size in SIZES.items()
            }  # fmt: skip
            self.tokenizer, self.text_encoder = self.tokenizers["clip_l"], self.encoders["clip_l"]
            self.components = {"text_encoder": self.text_encoder}

    return Pipe()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_loads_the_files_we_write_for_it(family, pipe, tmp_path, embedding):
    """Every vector arrives in the encoder's table under `token`, `token_1`, ... bit for bit."""
    name = f"<embedding {family}>"
    loaded = embedding(name, families()[family].widths, count=3)
    for key, file in zip(
        loaded.vectors, write_embedding(loaded, "diffusers", families()[family], tmp_path), strict=True
    ):
        tokenizer, encoder = pipe.tokenizers[key], pipe.encoders[key]
        pipe.load_textual_inversion(str(file.path), text_encoder=encoder, tokenizer=tokenizer)
        tokens = tokenizer.convert_tokens_to_ids([name, f"{name}_1", f"{name}_2"])
        table = encoder.get_input_embeddings().weight.detach()
        assert table[tokens].numpy().tobytes() == bytes(loaded.vectors[key].data)
        assert pipe.maybe_convert_prompt(f"a {name}", tokenizer) == f"a {name} {name}_1 {name}_2"


@pytest.mark.slow
def test_diffusers_expands_what_we_write_for_it_and_no_token_with_upper_case_letters(pipe, tmp_path, embedding):
    loaded = embedding("<tokA>", {"clip_l": 768}, count=3)
    (file,) = write_embedding(loaded, "diffusers", families()["sd1"], tmp_path)
    assert file.trigger == "<toka>"
    pipe.load_textual_inversion(str(file.path))
    assert pipe.maybe_convert_prompt(f"a {file.trigger}", pipe.tokenizer) == "a <toka> <toka>_1 <toka>_2"
    rows = {"<tokB>": torch.zeros(3, 768)}
    pipe.load_textual_inversion(rows)
    assert pipe.maybe_convert_prompt("a <tokB>", pipe.tokenizer) == "a <tokB>"
    assert reads("diffusers", Stored(tmp_path / "x", {"<tokB>": loaded.vectors["clip_l"]}), {"clip_l": 768}).notes


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_safetensors_reads_what_we_write(family, tmp_path, embedding):
    loaded = embedding("cat", families()[family].widths)
    (file,) = write_embedding(loaded, "a1111", families()[family], tmp_path)
    found = safetensors.numpy.load_file(file.path)
    assert sorted(array.tobytes() for array in found.values()) == sorted(
        bytes(tensor.data) for tensor in loaded.vectors.values()
    )


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_invokeai_reads_what_we_write_for_it(family, tmp_path, embedding):
    try:  # it asks for a torch and a diffusers of its own, so it is tried where somebody has both
        from invokeai.backend.textual_inversion import TextualInversionModelRaw
    except ImportError as error:
        pytest.skip(f"InvokeAI is not installed ({error})")
    loaded = embedding("cat", families()[family].widths)
    (file,) = write_embedding(loaded, "invokeai", families()[family], tmp_path)
    found = TextualInversionModelRaw.from_checkpoint(file.path)
    parts = [found.embedding] if found.embedding_2 is None else [found.embedding_2, found.embedding]
    assert [part.numpy().tobytes() for part in parts] == [bytes(tensor.data) for tensor in loaded.vectors.values()]
