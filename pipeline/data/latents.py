"""Images through the VAE: once and kept, or anew each time they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ...converters.errors import ConvertError
from ..distributed import SINGLE_PROCESS, Processes
from ..errors import StageError
from ..progress import progress
from ..rng import generator
from ..text import first_lines
from .augment import Variant, apply_variant, apply_variant_to_mask, drawn_variant, varies
from .cache import Cache, Encoded, key_of, vae_identity
from .examples import Example, content_of
from .images import open_alpha, open_image, open_mask

HELD = 512 * 2**20  # bytes of encoded images held in memory; the rest is read from the cache when it is shown
SHOWN = 20  # bad images that are named


class Latents:
    """What the VAE says of each variant of each example.

    Images are encoded one by one: in a batch the last bits would depend on their neighbours. `hits` and `misses`
    count the variants that were found and those that had to be encoded; `unwritable` says why the cache takes no
    files, where it does not. With `fresh` nothing is kept and every showing is a variant of its own.
    """

    def __init__(self, vae: Any, seed: int, *, variants: int, cache: Cache | None, fresh: bool = False) -> None:
        self.vae, self.seed, self.variants, self.cache, self.fresh = vae, seed, variants, cache, fresh
        self.factor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.hits = self.misses = 0
        self.unwritable: str | None = None
        self._identity = vae_identity(vae) if cache is not None else {}
        self._held: dict[str, Encoded] = {}
        self._bytes = 0

    def shown(self, example: Example, flip: bool, chance: float, showing: int) -> Variant:
        """The variant of one showing: one of those that are kept, by chance from 0 to 1, or with `fresh` a new one."""
        return self._variant(example, flip, showing if self.fresh else int(chance * self.variants))

    def prepare(
        self,
        examples: Sequence[Example],
        problems: list[str],
        *,
        flip: bool,
        bar: bool,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        """Encode what is not kept yet, each process its share of the images.

        StageError names these problems and all images that cannot be decoded.

        With `fresh` nothing is encoded, but every image is opened once, so that a bad one is found now.
        """
        found = list(problems)
        mine = examples[processes.index :: processes.count]
        with processes.together(), progress(len(mine), "encode", "image", shown=bar, leave=False) as done:
            for example in mine:
                try:
                    self._prepare(example, flip, encode=not found and not self.fresh)
                except StageError as error:
                    found.append(str(error))
                done("")
        found = [problem for part in processes.gather(found) for problem in part]
        if found:
            distinct = list(dict.fromkeys(found))
            raise StageError("\n".join(first_lines(distinct, SHOWN)))

    def get(self, example: Example, variant: Variant) -> Encoded:
        """What the VAE says of one variant: from memory, from the cache, or encoded now."""
        kept = None if self.fresh else self._read(example, variant)
        return kept or self._made(example, variant, *opened(example))

    def _prepare(self, example: Example, flip: bool, *, encode: bool) -> None:
        count = self.variants if varies(example.concept) and not self.fresh else 1
        sides = (False, True) if flip or example.concept.flip else (False,)
        wanted = [self._variant(example, side, number) for number in range(count) for side in sides]
        lacking = [variant for variant in wanted if self.fresh or self._read(example, variant) is None]
        self.hits += len(wanted) - len(lacking)
        if lacking:
            image, mask = opened(example)
            for variant in lacking if encode else ():
                self._made(example, variant, image, mask)

    def _variant(self, example: Example, flip: bool, number: int) -> Variant:
        if not varies(example.concept):
            return Variant(flip=flip)
        return drawn_variant(example.concept, flip, generator(self.seed, "variant", example.content, number))

    def _key(self, example: Example, variant: Variant) -> str:
        return key_of(self._identity, content=example.content, cut=example.cut, variant=variant.as_json())

    def _read(self, example: Example, variant: Variant) -> Encoded | None:
        key = self._key(example, variant)
        kept = self._held.get(key)
        if kept is None and self.cache is not None:
            kept = self.cache.read(key)
            if kept is not None and not kept.fits(self._shape(example), masked=_has_mask(example)):
                kept = None  # of another's making: encoded again
            if kept is not None:
                self._hold(key, kept)
        return kept

    def _shape(self, example: Example) -> tuple[int, int, int]:
        """Channels, height and width of an image's latents."""
        config, (width, height) = self.vae.config, example.cut
        scale = 2 ** (len(config.block_out_channels) - 1)
        return int(config.latent_channels), height // scale, width // scale

    def _made(self, example: Example, variant: Variant, image: Image.Image, mask: Image.Image | None) -> Encoded:
        encoded = encode(self.vae, example, variant, image, mask)
        self.misses += 1
        if not self.fresh:
            key = self._key(example, variant)
            if self.cache is not None and self.unwritable is None:
                try:
                    self.cache.write(key, encoded)
                except ConvertError as error:
                    self.unwritable = str(error)
            self._hold(key, encoded)
        return encoded

    def _hold(self, key: str, encoded: Encoded) -> None:
        if self.cache is None or self.unwritable is not None or self._bytes + encoded.bytes <= HELD:
            self._held[key] = encoded
            self._bytes += encoded.bytes


def _has_mask(example: Example) -> bool:
    return example.mask is not None or example.masked


def opened(example: Example) -> tuple[Image.Image, Image.Image | None]:
    """An image and its mask, of the same size.

    Raises StageError when one of them cannot be read, or is not what it was when the run began.
    """
    image, mask = open_image(example.image), None
    if example.mask is not None:
        mask = open_mask(example.mask, image.size)
    elif example.masked:
        mask = open_alpha(example.image)
    if content_of(example.image, example.mask, example.concept) != example.content:
        said = "the image or its mask has changed since the start of the run; restore it, or start over with --fresh"
        raise StageError(f"{example.image}: {said}")
    return image, mask


@torch.no_grad()
def encode(vae: Any, example: Example, variant: Variant, image: Image.Image, mask: Image.Image | None) -> Encoded:
    """One variant of an image through the VAE, and the same part of its mask."""
    values = apply_variant(image, example.cut, variant)
    told = vae.encode(values.unsqueeze(0).to(vae.device, vae.dtype)).latent_dist
    mean, deviation = told.mean[0].float().cpu(), told.std[0].float().cpu()
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise StageError(f"{example.image}: what the VAE says of it in {vae.dtype} is not finite; use model.dtype = "
                         "'bfloat16' or 'float32'")  # fmt: skip
    part = None if mask is None else apply_variant_to_mask(mask, example.cut, variant, mean.shape[-2], mean.shape[-1])
    return Encoded(mean, deviation, part)
