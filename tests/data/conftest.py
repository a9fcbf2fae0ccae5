"""A tiny VAE and a recipe over five images."""

import pytest
import torch
from data_of import recipe_of
from recipe_text import noise
from tiny import tiny_vae


@pytest.fixture(scope="session")
def vae():
    torch.manual_seed(0)
    return tiny_vae().eval()


@pytest.fixture
def five(tmp_path):
    """Five noisy images of 16x20 with two captions each, encoded for each test."""
    for number in range(5):
        noise(tmp_path / f"images/{number}.png", seed=number)
        (tmp_path / f"images/{number}.txt").write_text(f"a {number}\nthe {number}", "utf-8")
    return recipe_of(tmp_path, cache_latents="memory")
