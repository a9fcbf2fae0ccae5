"""How each kind of denoiser is called, and how captions are encoded for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded captions: `states` (batch, tokens, width) and, where the model has one, `pooled` (batch, width)."""

    states: Tensor
    pooled: Tensor | None = None


class Denoiser(Protocol):
    """What a training step asks of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text:
        """Captions through the pipeline's own prompt encoding, with gradients: what is trained is what is used."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        """The denoiser's answer for (batch, channels, height, width) latents at (batch,) time steps.

        `sizes` is `Batch.sizes`, for models that are told them; left out: whole images of the latents' size.
        """


class UNet:
    """Stable Diffusion 1.x and 2.x: cross-attention on one encoder's states."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return Text(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        prediction: Tensor = pipe.unet(noisy, timesteps, encoder_hidden_states=text.states, return_dict=False)[0]
        return prediction


class UNetXL:
    """Stable Diffusion XL: two encoders side by side, the second's pooled vector, and sizes as time ids."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder_2.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if pipe.config.force_zeros_for_empty_prompt:  # as the pipeline itself does for an empty negative prompt
            said = torch.tensor([bool(caption) for caption in captions], device=states.device)
            states, pooled = states * said.reshape(-1, 1, 1), pooled * said.reshape(-1, 1)
        return Text(states, pooled)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        height, width = (side * pipe.vae_scale_factor for side in noisy.shape[-2:])
        if sizes is None:
            sizes = torch.tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": text.pooled, "time_ids": sizes.to(noisy.device, text.states.dtype)}
        prediction: Tensor = pipe.unet(
            noisy, timesteps, encoder_hidden_states=text.states, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction


class JointTransformer:
    """Stable Diffusion 3: all encoders' states in one sequence, CLIP's pooled vectors beside them.

    A model may lack T5; the pipeline puts zeros in its place.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, pooled, _ = pipe.encode_prompt(
            captions, None, None, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return Text(states, pooled)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        prediction: Tensor = pipe.transformer(
            noisy, encoder_hidden_states=text.states, pooled_projections=text.pooled, timestep=timesteps,
            return_dict=False,
        )[0]  # fmt: skip
        return prediction


@dataclass(frozen=True)
class FluxTransformer:
    """FLUX.1: T5's states padded to their full length and without a mask, CLIP's pooled vector, latents in 2x2 patches.

    `guidance` is the value given to models distilled for it (dev); others (schnell) take none.
    """

    guidance: float = 1.0

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, pooled, _ = pipe.encode_prompt(captions, None, device=pipe.text_encoder.device)
        return Text(states, pooled)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        batch, channels, height, width = noisy.shape
        like = {"device": noisy.device, "dtype": noisy.dtype}
        guided = pipe.transformer.config.guidance_embeds
        answer = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, batch, channels, height, width),
            timestep=timesteps.to(noisy.dtype) / 1000, guidance=torch.full((batch,), self.guidance, **like) if guided else None,
            pooled_projections=text.pooled, encoder_hidden_states=text.states,
            txt_ids=torch.zeros(text.states.shape[1], 3, **like),
            img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype),
            return_dict=False,
        )[0]  # fmt: skip
        scale = pipe.vae_scale_factor
        prediction: Tensor = pipe._unpack_latents(answer, height * scale, width * scale, scale)
        return prediction


DENOISERS: dict[str, Denoiser] = {
    "unet": UNet(), "unet_xl": UNetXL(), "joint_transformer": JointTransformer(), "flux_transformer": FluxTransformer()
}  # fmt: skip


LIMIT = 1 << 30  # bytes of memory; of SDXL in bfloat16 some 3,400 captions


class Texts:
    """Encodes captions one by one, so that none depends on its batch or on what was kept; the last used ones are kept.

    They lie in the host's memory, the texts that are asked for on the model's device.
    """

    def __init__(self, denoiser: Denoiser, pipe: Any, limit: int = LIMIT) -> None:
        self.denoiser, self.pipe, self.limit = denoiser, pipe, limit
        self._kept: OrderedDict[str, Text] = OrderedDict()
        self._bytes = 0

    def __call__(self, captions: Sequence[str], device: torch.device) -> Text:
        """Text of these captions, (batch, tokens, width) and where the model has them pooled (batch, width)."""
        texts = [self._one(caption) for caption in captions]
        states = torch.cat([text.states for text in texts]).to(device)
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(states, torch.cat(pooled).to(device) if pooled else None)

    def _one(self, caption: str) -> Text:
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        with torch.no_grad():
            fresh = self.denoiser.encode(self.pipe, [caption])
        text = Text(fresh.states.cpu(), None if fresh.pooled is None else fresh.pooled.cpu())
        self._kept[caption] = text
        self._bytes += _size(text)
        while self._bytes > self.limit and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return text


def _size(text: Text) -> int:
    return text.states.nbytes + (0 if text.pooled is None else text.pooled.nbytes)
