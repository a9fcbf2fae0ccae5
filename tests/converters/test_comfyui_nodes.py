"""Our nodes for ComfyUI: with stand-ins of the classes that they call, and with ComfyUI itself where it is found."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from click.testing import CliRunner

from pivotune.converters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from pivotune.converters.dtypes import values
from pivotune.converters.errors import ConvertError
from pivotune.converters.read import read
from pivotune.converters.safetensors_file import read as read_safetensors
from pivotune.converters.safetensors_file import write as write_safetensors
from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.cli.main import pivotune

SOURCE = os.environ.get("PIVOTUNE_COMFYUI", "")
LORA = {
    "lora_te1_x.lora_down.weight": RawTensor("F32", (1, 2), bytes(8)),
    "lora_te1_x.lora_up.weight": RawTensor("F32", (2, 1), bytes(8)),
}


class Vector:
    """A vector in the tokens, with a shape as tensors have."""

    def __init__(self, raw: RawTensor) -> None:
        self.raw, self.shape = raw, raw.shape


class Part:
    """The tokenizer of one encoder: `embedding:NAME` becomes the tensor of its key in the first folder that has it."""

    def __init__(self, folders, key, width):
        self.embedding_directory, self.embedding_key, self.embedding_size = folders, key, width

    def tokenize_with_weights(self, text, **options):
        return [[(self._token(piece), 1.0) for piece in text.split()]]

    def _token(self, piece):
        name = piece.removeprefix("embedding:")
        if name == piece or self.embedding_directory is None:
            return len(piece)
        files = [Path(folder) / f"{name}.safetensors" for folder in self.embedding_directory]
        files += [found for folder in self.embedding_directory for found in Path(folder).rglob(f"{name}.safetensors")]
        for file in files:
            if file.is_file():
                return Vector(read_safetensors(file)[0][self.embedding_key])
        return -1


class Tokenizer:
    """The tokenizer of a CLIP with one part for each encoder; `picky` fails at vectors, as Qwen-Image's does."""

    def __init__(self, *parts, picky=False):
        self.picky = picky
        for part in parts:
            setattr(self, part.embedding_key, part)

    def tokenize_with_weights(self, text, **options):
        parts = [part for part in vars(self).values() if isinstance(part, Part)]
        found = {part.embedding_key: part.tokenize_with_weights(text, **options) for part in parts}
        if self.picky and any(isinstance(token, Vector) for rows in found.values() for row in rows for token, _ in row):
            raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
        return found


class Clip:
    def __init__(self, tokenizer):
        self.tokenizer, self.patches = tokenizer, []

    def clone(self):
        made = copy.copy(self)
        made.patches = list(self.patches)
        return made


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """The modules of ComfyUI that the nodes call, and its folders."""
    folders = {kind: tmp_path / kind for kind in ("loras", "embeddings", "temp")}
    for folder in folders.values():
        folder.mkdir()
    paths = ModuleType("folder_paths")
    paths.get_filename_list = lambda kind: sorted(os.listdir(folders[kind]))
    paths.get_full_path = lambda kind, name: str(folders[kind] / name) if (folders[kind] / name).is_file() else None
    paths.get_temp_directory = lambda: str(folders["temp"])
    utils, sd = ModuleType("comfy.utils"), ModuleType("comfy.sd")
    utils.load_torch_file = lambda path, safe_load=False: read_safetensors(Path(path))[0]

    def load_lora_for_models(model, clip, lora, strength_model, strength_clip):
        made = clip.clone()
        made.patches.append((sorted(lora), strength_clip))
        return (*(model or ()), (sorted(lora), strength_model)), made

    sd.load_lora_for_models = load_lora_for_models
    for name, module in (("folder_paths", paths), ("comfy", ModuleType("comfy")), ("comfy.utils", utils)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "comfy.sd", sd)
    return SimpleNamespace(**folders)


def vectors(width: int, number: float = 0.5, count: int = 2) -> RawTensor:
    from struct import pack

    return RawTensor("F32", (count, width), pack(f"<{count * width}f", *[number] * (count * width)))


def sdxl(folder) -> Clip:
    return Clip(Tokenizer(Part([str(folder)], "clip_l", 768), Part([str(folder)], "clip_g", 1280)))


def found(clip: Clip, prompt: str) -> dict[str, list]:
    return {
        key: [token.raw if isinstance(token, Vector) else token for token, _ in rows[0]]
        for key, rows in clip.tokenizer.tokenize_with_weights(prompt).items()
    }


def bundle(folder: Path, name: str, **tensors: RawTensor) -> None:
    write_safetensors(folder / name, {**LORA, **{key.replace("__", "."): raw for key, raw in tensors.items()}}, {})


def test_a_lora_is_applied_without_its_embeddings_which_are_found_on_the_new_clip_alone(comfyui):
    cat = {"clip_l": vectors(768), "clip_g": vectors(1280)}
    bundle(comfyui.loras, "my cat.safetensors", **{f"bundle_emb__cat__{key}": raw for key, raw in cat.items()})
    clip = sdxl(comfyui.embeddings)
    load = NODE_CLASS_MAPPINGS["PivotuneLoadLora"]
    assert load.INPUT_TYPES()["required"]["lora_name"] == (["my cat.safetensors"],)
    model, made, prompt = load().load(None, clip, "my cat.safetensors", 0.7, 0.6, 1.0)
    assert prompt == "embedding:cat "
    assert (model, made.patches) == (((sorted(LORA), 0.7),), [(sorted(LORA), 0.6)])
    tokens = found(made, f"a {prompt}")
    assert {key: bytes(row[1].data) for key, row in tokens.items()} == {
        key: bytes(raw.data) for key, raw in cat.items()
    }
    assert found(clip, f"a {prompt}") == {"clip_l": [1, -1], "clip_g": [1, -1]}
    assert clip.tokenizer.clip_l.embedding_directory == [str(comfyui.embeddings)]
    assert clip.patches == []


def test_two_nodes_in_a_row_and_a_name_that_models_embeddings_has_too(comfyui):
    for number, name in enumerate(("cat", "dog"), 1):
        bundle(comfyui.loras, f"{name}.safetensors", **{f"bundle_emb__{name}__clip_l": vectors(768, number)})
    write_safetensors(comfyui.embeddings / "dog.safetensors", {"clip_l": vectors(768, 9)}, {})
    load, clip = (
        NODE_CLASS_MAPPINGS["PivotuneLoadLora"](),
        Clip(Tokenizer(Part([str(comfyui.embeddings)], "clip_l", 768))),
    )
    _, clip, cat = load.load(None, clip, "cat.safetensors", 1, 1, 1)
    _, clip, dog = load.load(None, clip, "dog.safetensors", 1, 1, 1)
    assert (cat, dog) == ("embedding:cat ", "embedding:dog/dog ")
    numbers = [values(raw)[0] for raw in found(clip, cat + dog)["clip_l"]]
    assert numbers == [1, 2]


def test_the_strength_multiplies_the_vectors_and_one_keeps_their_bits(comfyui):
    half = RawTensor("BF16", (1, 768), bytes([0x81, 0x3F]) * 768)
    bundle(comfyui.loras, "cat.safetensors", bundle_emb__cat__clip_l=half)
    clip, load = Clip(Tokenizer(Part([], "clip_l", 768))), NODE_CLASS_MAPPINGS["PivotuneLoadLora"]()
    [whole] = found(load.load(None, clip, "cat.safetensors", 1, 1, 1.0)[1], "embedding:cat")["clip_l"]
    [double] = found(load.load(None, clip, "cat.safetensors", 1, 1, 2.0)[1], "embedding:cat")["clip_l"]
    assert (whole.dtype, bytes(whole.data)) == ("BF16", bytes(half.data))
    assert (double.dtype, set(values(double))) == ("F32", {2 * values(half)[0]})


@pytest.mark.parametrize("picky", [False, True])
def test_encoders_to_which_comfyui_gives_no_folder(comfyui, picky):
    bundle(comfyui.loras, "cat.safetensors", bundle_emb__cat__qwen25_7b=vectors(3584))
    clip = Clip(Tokenizer(Part(None, "qwen25_7b", 3584), picky=picky))
    _, made, prompt = NODE_CLASS_MAPPINGS["PivotuneLoadLora"]().load(None, clip, "cat.safetensors", 1, 1, 1)
    [token] = found(made, prompt)["qwen25_7b"]
    raw = token["data"].raw if picky else token
    assert bytes(raw.data) == bytes(vectors(3584).data)
    assert clip.tokenizer.qwen25_7b.embedding_directory is None
    assert type(clip.tokenizer.qwen25_7b) is Part


def test_pickles_of_other_programs_are_read_without_running_them(comfyui):
    torch = pytest.importorskip("torch")
    torch.save({"string_to_param": {"*": torch.ones(3, 768)}, "name": "cat"}, comfyui.embeddings / "old.pt")
    load, clip = NODE_CLASS_MAPPINGS["PivotuneLoadEmbedding"], Clip(Tokenizer(Part([], "clip_l", 768)))
    assert load.INPUT_TYPES()["required"]["embedding_name"] == (["old.pt"],)
    made, prompt = load().load(clip, "old.pt", 1.0)
    [name] = [one.name for one in read(comfyui.embeddings / "old.pt").embeddings]
    assert prompt == f"embedding:{name} "
    [raw] = found(made, prompt)["clip_l"]
    assert raw.shape == (3, 768)
    before = load.IS_CHANGED(embedding_name="old.pt", clip=clip, strength=1.0)
    os.utime(comfyui.embeddings / "old.pt", (1, 1))
    assert before != load.IS_CHANGED(embedding_name="old.pt", clip=clip, strength=1.0)


def test_errors_are_one_line(comfyui):
    bundle(comfyui.loras, "cat.safetensors", bundle_emb__cat__clip_h=vectors(1024))
    write_safetensors(comfyui.embeddings / "lora.safetensors", LORA, {})
    lora, embedding = (NODE_CLASS_MAPPINGS[f"PivotuneLoad{name}"]() for name in ("Lora", "Embedding"))
    clip = sdxl(comfyui.embeddings)
    for message, call in {
        "'cat' is for another model: it has clip_h 1024; this CLIP has clip_l 768, clip_g 1280": lambda: lora.load(
            None, clip, "cat.safetensors", 1, 1, 1
        ),
        "there is no embedding in it": lambda: embedding.load(clip, "lora.safetensors", 1),
        "gone.safetensors: is not in ComfyUI's loras": lambda: lora.load(None, clip, "gone.safetensors", 1, 1, 1),
    }.items():
        with pytest.raises(ConvertError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_installed_file_gives_comfyui_the_nodes(tmp_path):
    call = CliRunner().invoke
    missing = call(pivotune, ["comfyui", "install", str(tmp_path)])
    assert isinstance(missing.exception, ConvertError)
    (tmp_path / "custom_nodes").mkdir()
    done = call(pivotune, ["comfyui", "install", str(tmp_path)])
    assert (done.exit_code, "restart ComfyUI" in done.output) == (0, True)
    file = tmp_path / "custom_nodes" / "pivotune_nodes.py"
    spec = importlib.util.spec_from_file_location("installed", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert all(hasattr(node, node.FUNCTION) and node.RETURN_TYPES for node in NODE_CLASS_MAPPINGS.values())
    assert "up to date" in call(pivotune, ["comfyui", "install", str(tmp_path)]).output
    file.write_text("another's", "utf-8")
    assert isinstance(call(pivotune, ["comfyui", "install", str(tmp_path)]).exception, ConvertError)
    assert call(pivotune, ["comfyui", "install", str(tmp_path), "--overwrite"]).exit_code == 0
    assert "another" not in file.read_text("utf-8")


@pytest.mark.skipif(not SOURCE, reason="PIVOTUNE_COMFYUI is not the folder of a ComfyUI")
def test_comfyui_itself_encodes_the_same_bits_as_with_a_file_of_the_embedding():
    script = Path(__file__).with_name("real_comfyui_nodes.py")
    done = subprocess.run([sys.executable, str(script), SOURCE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("ok")] == [
        f"ok   {name}" for name in ("sd1", "sdxl", "flux", "z_image", "qwen_image")
    ]
