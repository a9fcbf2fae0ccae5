"""Images encoded by the VAE: once and cached, or each time they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from ...converters.errors import ConvertError
from ..distributed import SINGLE_PROCESS, Processes
from ..errors import StageError
from ..progress import progress
from ..rng import generator
from ..text import first_lines
from ..vae import encode_image, latent_channels, normalization, vae_scale
from .augment import Variant, apply_variant, apply_variant_to_mask, is_augmented, random_variant
from .buckets import Shape
from .cache import Cache, Encoded, key_of, vae_identity
from .complete import require_complete
from .examples import Example, content_of
from .images import open_alpha, open_image, open_mask

MEMORY_LIMIT = 512 * 2**20  # bytes of encoded images in memory; others are read from the cache
MOST_LISTED = 20  # problems that are listed


class Latents:
    """The VAE's distributions for the variants of all examples.

    Images are encoded one by one: in a batch the last bits would depend on the others. `hits` and `misses` count the
    variants that were cached and those that were encoded; `unwritable` is the error of a cache that cannot be written.
    With `fresh` nothing is cached and each use has a new variant.
    """

    def __init__(self, vae: Any, seed: int, *, variants: int, cache: Cache | None, fresh: bool = False) -> None:
        self.vae, self.seed, self.variants, self.cache, self.fresh = vae, seed, variants, cache, fresh
        self.normalize = normalization(vae)
        self.hits = self.misses = 0
        self.unwritable: str | None = None
        self._identity = vae_identity(vae) if cache is not None else {}
        self._key_of = lru_cache(maxsize=4096)(self._make_key)  # asked for in every step
        self._in_memory: dict[str, Encoded] = {}
        self._bytes = 0

    def choose_variant(self, example: Example, flip: bool, chance: float, use: int) -> Variant:
        """The variant of one use: one of the cached ones, by `chance` from 0 to 1, or with `fresh` a new one."""
        return self._variant(example, flip, use if self.fresh else int(chance * self.variants))

    def prepare(
        self,
        examples: Sequence[Example],
        problems: list[str],
        *,
        flip: bool,
        bar: bool,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        """Encode what is not cached yet, each process its share of the images.

        StageError lists `problems` and all images that cannot be decoded. With `fresh` nothing is encoded, but every
        image is opened once, so that corrupt ones are found now.
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
            raise StageError("\n".join(first_lines(distinct, MOST_LISTED)))

    def get(self, example: Example, variant: Variant) -> Encoded:
        """The VAE's distribution for one variant: from memory, from the cache, or encoded now."""
        cached = None if self.fresh else self._read(example, variant)
        return cached or self._encode(example, variant, *open_example(example))

    def _prepare(self, example: Example, flip: bool, *, encode: bool) -> None:
        count = self.variants if is_augmented(example.concept) and not self.fresh else 1
        sides = (False, True) if flip or example.concept.flip else (False,)
        wanted = [self._variant(example, side, number) for number in range(count) for side in sides]
        lacking = [variant for variant in wanted if self.fresh or self._read(example, variant) is None]
        self.hits += len(wanted) - len(lacking)
        if lacking:
            image, mask = open_example(example)
            require_complete(example.image)
            for variant in lacking if encode else ():
                self._encode(example, variant, image, mask)

    def _variant(self, example: Example, flip: bool, number: int) -> Variant:
        if not is_augmented(example.concept):
            return Variant(flip=flip)
        return random_variant(example.concept, flip, generator(self.seed, "variant", example.content, number))

    def _key(self, example: Example, variant: Variant) -> str:
        return self._key_of(example.content, example.crop, variant)

    def _make_key(self, content: str, crop: Shape, variant: Variant) -> str:
        return key_of(self._identity, content=content, cut=crop, variant=variant.as_json())

    def _read(self, example: Example, variant: Variant) -> Encoded | None:
        key = self._key(example, variant)
        cached = self._in_memory.get(key)
        if cached is None and self.cache is not None:
            cached = self.cache.read(key)
            if cached is not None and not cached.fits(self._shape(example), masked=_has_mask(example)):
                cached = None  # not of this VAE: encode it again
            if cached is not None:
                self._remember(key, cached)
        return cached

    def _shape(self, example: Example) -> tuple[int, int, int]:
        """Channels, height and width of an image's latents."""
        config, (width, height) = self.vae.config, example.crop
        scale = vae_scale(config)
        return latent_channels(config), height // scale, width // scale

    def _encode(self, example: Example, variant: Variant, image: Image.Image, mask: Image.Image | None) -> Encoded:
        encoded = encode(self.vae, example, variant, image, mask)
        self.misses += 1
        if not self.fresh:
            key = self._key(example, variant)
            if self.cache is not None and self.unwritable is None:
                try:
                    self.cache.write(key, encoded)
                except ConvertError as error:
                    self.unwritable = str(error)
            self._remember(key, encoded)
        return encoded

    def _remember(self, key: str, encoded: Encoded) -> None:
        if self.cache is None or self.unwritable is not None or self._bytes + encoded.bytes <= MEMORY_LIMIT:
            self._in_memory[key] = encoded
            self._bytes += encoded.bytes


def _has_mask(example: Example) -> bool:
    return example.mask is not None or example.masked


def open_example(example: Example) -> tuple[Image.Image, Image.Image | None]:
    """An image and its mask, of the same size.

    Raises StageError when one of them cannot be read, or has changed since the start of the run.
    """
    image, mask = open_image(example.image), None
    if example.mask is not None:
        mask = open_mask(example.mask, image.size)
    elif example.masked:
        mask = open_alpha(example.image)
    if content_of(example.image, example.mask, example.concept) != example.content:
        text = "the image or its mask has changed since the start of the run; restore it, or start over with --fresh"
        raise StageError(f"{example.image}: {text}")
    return image, mask


@torch.no_grad()
def encode(vae: Any, example: Example, variant: Variant, image: Image.Image, mask: Image.Image | None) -> Encoded:
    """One variant of an image through the VAE, and the same part of its mask."""
    mean, deviation = encode_image(vae, apply_variant(image, example.crop, variant))
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise StageError(f"{example.image}: the VAE's output in {vae.dtype} is not finite; use model.dtype = "
                         "'bfloat16' or 'float32'")  # fmt: skip
    part = None if mask is None else apply_variant_to_mask(mask, example.crop, variant, mean.shape[-2], mean.shape[-1])
    return Encoded(mean, deviation, part)
