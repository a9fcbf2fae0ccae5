"""Our nodes in ComfyUI itself, on a CPU and without weights. `test_comfyui_nodes.py` runs it where ComfyUI is found:

    python tests/converters/real_comfyui_nodes.py /path/to/ComfyUI

An embedding from a bundle must be encoded to the same bits as with its own file in models/embeddings, in every layout
of text encoders; the CLIP that went in must not know it. Prints a line for each.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from stand_ins import StandIns

from pivotune.converters.comfyui import NODE_CLASS_MAPPINGS
from pivotune.converters.safetensors_file import write
from pivotune.converters.tensor import RawTensor

ABSENT = ("torchvision", "torchaudio", "av", "kornia", "spandrel", "torchsde", "scipy",
          "sqlalchemy", "alembic", "simpleeval", "blake3", "pydantic", "aiohttp", "einops")  # fmt: skip
PROMPTS = ("a photo of ({} :1.2) at night", "{} ,a dog", "{} {}")
LORA = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def main(source: str) -> int:
    sys.argv = ["x", "--cpu"]
    sys.path.insert(0, source)
    sys.meta_path.append(StandIns([name for name in ABSENT if not _installed(name)]))
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("loras", "embeddings"):
            (Path(folder) / kind).mkdir()
            folder_paths.folder_names_and_paths[kind] = ([str(Path(folder) / kind)], {".safetensors", ".pt", ".bin"})
        folder_paths.set_temp_directory(str(Path(folder) / "temp"))
        for name in ENCODERS:
            _proof(name, Path(folder))
        _without_model("z_image", "ZImageTokenizer", {"qwen3_4b": 2560}, Path(folder))
        _without_model("qwen_image", "QwenImageTokenizer", {"qwen25_7b": 3584}, Path(folder))
    return 0


def _installed(name: str) -> bool:
    return find_spec(name) is not None


# By the families of ComfyUI: module, tokenizer, model, widths; and configurations that make the encoders small.
ENCODERS = {
    "sd1": ("comfy.sd1_clip", "SD1Tokenizer", "SD1ClipModel", {"clip_l": 768}),
    "sdxl": ("comfy.sdxl_clip", "SDXLTokenizer", "SDXLClipModel", {"clip_l": 768, "clip_g": 1280}),
    "flux": ("comfy.text_encoders.flux", "FluxTokenizer", "FluxClipModel", {"clip_l": 768, "t5xxl": 4096}),
}
SMALL = {
    "clip_l_model_config": {"num_hidden_layers": 3, "intermediate_size": 64},
    "clip_g_model_config": {"num_hidden_layers": 3, "intermediate_size": 64},
    "t5xxl_model_config": {"num_layers": 1, "d_ff": 64},
}


def _proof(name: str, folder: Path) -> None:
    own = folder / "embeddings"
    clip, widths = _clip(name, own), ENCODERS[name][3]
    raws = _bundle(name, widths, folder)
    before = _tokens(clip, f"embedding:{name}cat")
    load = NODE_CLASS_MAPPINGS["PivotuneLoadLora"]
    assert f"{name} lora.safetensors" in load.INPUT_TYPES()["required"]["lora_name"][0]
    _, made, prompt = load().load(None, clip, f"{name} lora.safetensors", 1.0, 1.0, 1.0)
    assert prompt == f"embedding:{name}cat ", prompt
    assert made.patcher.patches, "ComfyUI ignored the LoRA"
    assert _tokens(clip, prompt) == before, "the CLIP that went in has changed"
    assert _tokens(made, prompt) != before

    ours = [_encoded(made, text.format(prompt, prompt)) for text in PROMPTS]
    unknown = [_encoded(clip, text.format(prompt, prompt)) for text in PROMPTS]
    write(own / f"{name}cat.safetensors", raws, {})
    theirs = [_encoded(clip, text.format(prompt, prompt)) for text in PROMPTS]
    for one, other, without in zip(ours, theirs, unknown, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, without, strict=True))

    _, made, prompt = load().load(None, clip, f"{name} lora.safetensors", 1.0, 1.0, 0.5)
    assert prompt == f"embedding:{name}_lora/{name}cat ", prompt  # ComfyUI's own folder has one of that name now
    assert not torch.equal(_encoded(made, prompt)[0], _encoded(clip, f"embedding:{name}cat")[0])
    torch.save({"string_to_param": {"*": torch.randn(2, 768)}, "name": "other"}, own / f"{name}old.pt")
    made, prompt = NODE_CLASS_MAPPINGS["PivotuneLoadEmbedding"]().load(clip, f"{name}old.pt", 1.0)
    assert [torch.equal(a, b) for a, b in zip(_encoded(made, prompt), _encoded(clip, "x"), strict=True)].count(False)
    print(f"ok   {name}: the same bits as with a file in models/embeddings")  # noqa: T201


def _bundle(name: str, widths: dict[str, int], folder: Path) -> dict[str, RawTensor]:
    """Write a LoRA of one layer with an embedding of three vectors; the tensors of the embedding."""
    vectors = {key: torch.randn(3, width) for key, width in widths.items()}
    raws = {key: RawTensor("F32", tuple(one.shape), one.numpy().tobytes()) for key, one in vectors.items()}
    lora = {f"{LORA}.lora_down.weight": torch.randn(1, 768), f"{LORA}.lora_up.weight": torch.randn(64, 1)}
    own = {key: RawTensor("F32", tuple(one.shape), one.numpy().tobytes()) for key, one in lora.items()}
    bundled = {f"bundle_emb.{name}cat.{key}": raw for key, raw in raws.items()}
    write(folder / "loras" / f"{name} lora.safetensors", {**bundled, **own}, {})
    return raws


def _without_model(name: str, tokenizer: str, widths: dict[str, int], folder: Path) -> None:
    """Encoders to whose tokenizers ComfyUI gives no folder: the vectors are in the tokens, of two nodes in a row."""
    clip = _made(getattr(import_module(f"comfy.text_encoders.{name}"), tokenizer)(str(folder)), torch.nn.Linear(1, 1))
    load, node = NODE_CLASS_MAPPINGS["PivotuneLoadLora"](), clip
    expected, text = [], "a"
    for number in (1, 2):
        raws = _bundle(f"{name}{number}", widths, folder)
        _, node, prompt = load.load(None, node, f"{name}{number} lora.safetensors", 1.0, 0.0, 1.0)
        text += f" {prompt}"
        [raw] = raws.values()
        expected += torch.frombuffer(bytearray(raw.data), dtype=torch.float32).reshape(3, -1).tolist()
    [(_, found)] = _tokens(node, text)
    assert [one for one in found if isinstance(one, list)] == expected
    assert not any(isinstance(one, list) for _, tokens in _tokens(clip, text) for one in tokens)
    print(f"ok   {name}: its vectors are in the tokens")  # noqa: T201


def _tokens(clip: Any, prompt: str) -> list:
    """The tokens of a prompt: ids, or vectors as lists."""
    found = clip.tokenizer.tokenize_with_weights(prompt)
    plain = {key: [one["data"] if isinstance(one, dict) else one for part in parts for one, *_ in part]
             for key, parts in found.items()}  # fmt: skip
    return [
        (key, [one.tolist() if isinstance(one, torch.Tensor) else one for one in part]) for key, part in plain.items()
    ]


def _encoded(clip: Any, prompt: str) -> list[torch.Tensor]:
    with torch.no_grad():
        found = clip.cond_stage_model.encode_token_weights(clip.tokenizer.tokenize_with_weights(prompt))
    return [one for one in found if isinstance(one, torch.Tensor)]


def _clip(name: str, folder: Path) -> Any:
    """ComfyUI's CLIP of a family with small layers in each encoder, random ones."""
    module, tokenizer, model, _ = ENCODERS[name]
    parts = import_module(module)
    made = getattr(parts, model)(device="cpu", dtype=torch.float32, model_options=SMALL)
    torch.manual_seed(1)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return _made(getattr(parts, tokenizer)(str(folder)), made)


def _made(tokenizer: Any, model: Any) -> Any:
    import comfy.model_patcher
    import comfy.sd

    made = comfy.sd.CLIP(no_init=True)
    made.cond_stage_model, made.tokenizer = model, tokenizer
    made.patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    made.layer_idx, made.use_clip_schedule, made.apply_hooks_to_conds, made.tokenizer_options = None, False, None, {}
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
