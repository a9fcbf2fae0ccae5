"""Tiny models that know a few colours by name, and how near an embedding gets to a colour they do not know.

A tiny model of a family's shape is trained on solid colours with captions until the caption decides the colour. Then a
recipe trains an embedding, also with a LoRA, on images of another colour. Distances are those of latents, as a random
VAE decodes no colours: of what the pipeline draws with the exported files, to the encoded images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from projects import BUILD, family_name, run_project
from recipe_text import recipe_text, write_recipe
from safetensors.torch import save_file
from tiny import image_encoder_file
from torch import Tensor
from train.objectives import objective_with

from pivotune.converters.families import families
from pivotune.pipeline.models.companions import read_image_encoder
from pivotune.pipeline.models.denoisers import denoiser_for
from pivotune.pipeline.models.load import Model, load_model
from pivotune.pipeline.models.text import CaptionCache, between
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.rng import generator
from pivotune.pipeline.run.samples import draw_after, draw_now
from pivotune.pipeline.vae import encode_image, normalization, vae_scale

CPU = torch.device("cpu")
KNOWN = {
    "red": (215, 40, 45), "yellow": (245, 215, 40), "green": (45, 150, 60), "blue": (45, 80, 210),
    "white": (245, 245, 245), "black": (30, 30, 35),
}  # fmt: skip
NEW = (245, 140, 30)  # orange
INITIAL = "blue"
FROM_PROMPT = {"z-image", "krea2"}  # families whose pipelines count guidance from 0


@dataclass(frozen=True)
class Setting:
    """How long a family's model and its embedding are trained, and at which learning rates.

    Some tiny models are too narrow to depend on captions: `build` are arguments of their function, `denoiser` changes
    of the denoiser's config, `tokens` a factor for the token tables. Others memorise the captions and draw nothing
    between two colours; with `blend` they also train on blends of two captions and of their latents. Where a sampler
    predicts pure noise first, whose errors grow most, it needs more `draw_steps` and more weight for much noise:
    `weighting` when the model is trained, `embedding_weighting` when the embedding is. The distances with
    an embedding, and with a LoRA too, must be at most these fractions of the initial text's.
    """

    steps: int = 600
    learning_rate: float = 3e-3
    embedding_steps: int = 150
    embedding_rate: float = 0.02
    lora_rate: float = 0.005
    at_most: float = 0.7
    at_most_with_lora: float = 0.4
    tokens: float = 1.0
    blend: bool = False
    weighting: str = "none"
    embedding_weighting: str = "none"
    draw_steps: int = 10
    build: Mapping[str, Any] = field(default_factory=dict)
    denoiser: Mapping[str, Any] = field(default_factory=dict)


UNET = {"block_out_channels": (32, 32)}
SETTINGS = {
    "sd1": Setting(denoiser=UNET, blend=True, steps=2000, weighting="debiased"),
    "sd2": Setting(denoiser=UNET, blend=True, steps=2000, weighting="debiased", embedding_steps=300),
    "sdxl": Setting(denoiser=UNET, blend=True, steps=1200, weighting="debiased"),
    "sd3": Setting(steps=900, denoiser={"num_attention_heads": 4, "caption_projection_dim": 32}),
    "flux": Setting(),
    "chroma": Setting(),
    "pixart": Setting(steps=1200, denoiser={
        "attention_head_dim": 16, "num_attention_heads": 4, "cross_attention_dim": 64,
    }),
    "z-image": Setting(),
    "flux2-klein-4b": Setting(steps=900),
    "flux2-dev": Setting(steps=900, embedding_rate=0.002, embedding_steps=400),
    "sana": Setting(build={"width": 32}, tokens=20.0, steps=1000, denoiser={
        "num_attention_heads": 4, "attention_head_dim": 8, "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 8, "cross_attention_dim": 32, "num_layers": 2,
    }),
    "lumina2": Setting(build={"width": 32}, tokens=20.0, embedding_rate=0.05, embedding_steps=400, denoiser={
        "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 4,
    }),
    "qwen-image": Setting(),
    "krea2": Setting(tokens=20.0, steps=1000),
    "hidream": Setting(),
    "hunyuan-video": Setting(),
    "anima": Setting(),
    "wan": Setting(denoiser={"num_attention_heads": 4, "attention_head_dim": 24}),
    "cascade": Setting(
        denoiser={"block_out_channels": (96, 96)}, steps=1200, draw_steps=30, weighting="p2", embedding_weighting="p2",
        embedding_steps=200, lora_rate=0.002,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Distances:
    """Distance of latents to the new colour's: with the initial text, with the embedding, with embedding and LoRA.

    `known` are the known colours whose prompts draw them: nearer to theirs than to those of all others.
    """

    known: tuple[str, ...]
    before: float
    embedding: float
    with_lora: float


def side_of(pipe: Any) -> int:
    """Side in pixels of the images: 8 latents, of deep compressing VAEs 4, of Stable Cascade's image encoder 3."""
    scale = vae_scale(pipe.vae.config)
    return scale.numerator * (8 if scale <= 8 else 4 if scale.denominator == 1 else 1)


@torch.no_grad()
def encoded(vae: Any, colours: Iterable[tuple[int, int, int]], side: int) -> Tensor:
    """The VAE's mean latents of solid colours, (colours, channels, height, width)."""
    pixels = [(torch.tensor(colour) / 127.5 - 1).reshape(3, 1, 1).expand(3, side, side) for colour in colours]
    return torch.stack([encode_image(vae, one)[0] for one in pixels])


@torch.no_grad()
def separate_colours(vae: Any, side: int) -> None:
    """Have a random VAE give latents that are, normalized, of mean 0 and deviation 1 and without noise.

    As those of trained VAEs are; of random ones the noise is many times larger than the difference of two colours.
    """
    latents = encoded(vae, (*KNOWN.values(), NEW), side)
    if type(vae).__name__ == "AutoencoderDC":  # no distribution
        vae.register_to_config(scaling_factor=1 / float(latents.std()))
        return
    if hasattr(vae, "mapper"):  # Stable Cascade's image encoder ends with a batch norm
        norm = vae.mapper[1]
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        norm.running_mean += mean * (norm.running_var + norm.eps).sqrt()
        norm.running_var.copy_((norm.running_var + norm.eps) * deviation**2 - norm.eps)
        return
    normalize = normalization(vae)
    zero, one = (normalize(value(latents)).mean((0, 2, 3)) for value in (torch.zeros_like, torch.ones_like))
    scale = 1 / (latents.std((0, 2, 3)) * (one - zero))
    last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out  # means, then logarithms of variances
    channels = len(scale)
    last.weight[:channels] *= scale.reshape(-1, *[1] * (last.weight.ndim - 1))
    last.bias[:channels] = (last.bias[:channels] - latents.mean((0, 2, 3))) * scale - zero / (one - zero)
    last.weight[channels:], last.bias[channels:] = 0.0, -12.0


def train_colours(model: Model, side: int, setting: Setting) -> None:
    """Train the denoiser alone on the known colours, as a train stage does, until captions decide the colour."""
    pipe, denoiser = model.pipe, denoiser_for(model.family.denoiser_kind)
    objective = objective_with(pipe.scheduler, kind=model.family.objective, weighting=setting.weighting)
    latents = normalization(pipe.vae)(encoded(pipe.vae, KNOWN.values(), side))
    text = CaptionCache(denoiser, pipe)([f"a {colour} image" for colour in KNOWN], CPU)
    weights = list(model.denoiser.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, setting.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.learning_rate, setting.steps)
    for step in range(setting.steps):
        amount = torch.rand(1, generator=generator(0, "blend", step)).item() if setting.blend and step % 2 else 0.0
        order = torch.randperm(len(KNOWN), generator=generator(0, "order", step))
        batch = objective.sample(torch.lerp(latents, latents[order], amount), 0, step)
        blended = between(text, text.map(lambda one, order=order: one[order]), amount) if amount else text
        prediction = denoiser.predict(pipe, batch.noisy, batch.timesteps, blended)
        objective.losses(prediction, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.denoiser.requires_grad_(False)


@torch.no_grad()
def tiny_pipe(name: str, setting: Setting) -> Any:
    """The tiny model of a family, wide enough, and with a VAE that separates colours."""
    pipe, family = BUILD[name](**setting.build), families()[family_name(name)]
    torch.manual_seed(1)
    rebuild(pipe, family.denoiser_module, setting.denoiser)
    if family.image_encoder is not None:
        pipe.vae = read_image_encoder(image_encoder_file(), CPU)
    if "norm_num_groups" in pipe.vae.config:  # of a solid colour, two channels normalized together keep their signs
        weights = pipe.vae.state_dict()
        rebuild(pipe, "vae", {"norm_num_groups": 1})
        pipe.vae.load_state_dict(weights)
    for encoder in family.encoders:
        getattr(pipe, encoder.module).get_input_embeddings().weight.mul_(setting.tokens)
    separate_colours(pipe.vae, side_of(pipe))
    return pipe


def rebuild(pipe: Any, name: str, changes: Mapping[str, Any]) -> None:
    """Replace a part of a pipeline by a random one with these changes of its config."""
    if changes:
        old = getattr(pipe, name)
        config = {key: value for key, value in old.config.items() if not key.startswith("_")}
        setattr(pipe, name, type(old).from_config(config | changes))


def write_project(folder: Path, name: str, setting: Setting) -> Recipe:
    """The model folder and a recipe whose embedding has the initial text of a known colour and images of a new one."""
    pipe = tiny_pipe(name, setting)
    side = side_of(pipe)
    pipe.save_pretrained(folder / "model")
    image_encoder = families()[family_name(name)].image_encoder
    if image_encoder is not None:
        file = folder / "model" / image_encoder.file
        file.unlink()  # it is the one of all tests
        save_file(pipe.vae.state_dict(), str(file))
    (folder / "images").mkdir()
    Image.new("RGB", (side, side), NEW).save(folder / "images" / "new.png")
    (folder / "images" / "new.txt").write_text("a <new> image", "utf-8")
    text = recipe_text(
        top='seed = 3\ndevice = "cpu"\nthreads = 1',
        model=f'base = "model"\nfamily = "{family_name(name)}"',
        embeddings=f'[[embedding]]\nplaceholder = "<new>"\ninitial_text = "{INITIAL}"',
        train=f"resolution = {side}\nbatch_size = 4\nsteps = {setting.embedding_steps}\n"
        f"learning_rate = {setting.embedding_rate}\nobjective = {{ weighting = '{setting.embedding_weighting}' }}",
        export="targets = []",
        samples=f"steps = {setting.draw_steps}\nguidance = {0 if name in FROM_PROMPT else 1}\nsize = {side}\ncount = 4",
    )
    recipe = load_recipe(write_recipe(folder / "recipe.toml", text))
    model = load_model(recipe.model, CPU)
    train_colours(model, side, setting)
    model.denoiser.save_pretrained(folder / "model" / model.family.denoiser_module)
    return recipe


def with_prompts(recipe: Recipe, *prompts: str) -> Recipe:
    return replace(recipe, samples=replace(recipe.samples, prompts=prompts))


class LatentDecoder:
    """Stands in for the decoder of a prior: it adds what it is given to `found`, and draws nothing."""

    found: list[Tensor]

    def __call__(self, latents: Tensor, **options: Any) -> SimpleNamespace:
        self.found.extend(latents.float())
        return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in latents])


@contextmanager
def drawn_latents(model: Model) -> Iterator[list[Tensor]]:
    """The latents of all images that the pipeline draws meanwhile, as its denoiser has them."""
    found: list[Tensor] = []
    if model.decoder is not None:
        model.decoder.found = found
        yield found
        return
    vae, decode = model.pipe.vae, model.pipe.vae.decode

    def spy(latents: Tensor, *arguments: Any, **options: Any) -> Any:
        frames = latents.squeeze(2) if latents.ndim == 5 else latents
        found.extend(normalization(vae)(frames.float()))
        return decode(latents, *arguments, **options)

    vae.decode = spy
    try:
        yield found
    finally:
        vae.decode = decode


def latents_of(model: Model, draw: Callable[[], Any]) -> Tensor:
    with drawn_latents(model) as found:
        draw()
    return torch.stack(found)


def distance(latents: Tensor, colour: Tensor) -> float:
    """Root of the mean squared difference of latents to those of a colour."""
    return float((latents - colour).square().mean().sqrt())


def known_colours(model: Model, recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The colours whose prompts draw them: nearer to theirs than to those of all others."""
    goals = normalization(model.pipe.vae)(encoded(model.pipe.vae, KNOWN.values(), recipe.samples.size or 0))
    nearest = {}
    for colour in KNOWN:
        asked = with_prompts(recipe, f"a {colour} image")
        latents = latents_of(model, lambda asked=asked: draw_now(model, asked, folder, "known"))
        nearest[colour] = min(zip(KNOWN, goals, strict=True), key=lambda pair: distance(latents, pair[1]))[0]
    return tuple(colour for colour in KNOWN if nearest[colour] == colour)


def exported(folder: Path) -> tuple[dict[str, Path], Path | None]:
    """The embedding's file and the LoRA's of a run folder."""
    exports = folder / "exports"
    [file] = (exports / "tiny_embeddings").glob("*.safetensors")
    lora = exports / "tiny.safetensors"
    return {"<new>": file}, lora if lora.is_file() else None


def measure(name: str, folder: Path, setting: Setting) -> Distances:
    """Train the model, then the embedding alone and with a LoRA, and draw with what was exported."""
    recipe = write_project(folder, name, setting)
    model = load_model(recipe.model, CPU)
    if model.family.decoder is not None:
        model = replace(model, decoder=LatentDecoder())
    if not model.family.modular:  # a constant of Lumina's pipeline
        model.pipe.vae_scale_factor = model.pixels_per_latent
    goal = normalization(model.pipe.vae)(encoded(model.pipe.vae, [NEW], recipe.samples.size or 0))[0]
    asked = with_prompts(recipe, "a <new> image")
    before = latents_of(
        model, lambda: draw_now(model, with_prompts(recipe, f"a {INITIAL} image"), folder / "before", "b")
    )
    found = [distance(before, goal)]
    lora = f"lora = {{ rank = 4, learning_rate = {setting.lora_rate} }}"
    for part in ("", lora):
        text = (folder / "recipe.toml").read_text("utf-8").replace("batch_size", f"{part}\nbatch_size", 1)
        out = folder / f"run-{len(found)}"
        run_project(write_recipe(folder / f"recipe-{len(found)}.toml", text), out)
        files, weights = exported(out)
        after = latents_of(model, lambda f=files, w=weights: draw_after(model, asked, f, w, folder / "after"))
        found.append(distance(after, goal))
    return Distances(known_colours(model, recipe, folder / "known"), *found)
