"""Which layers get a LoRA: targets, and the texts that their names must or must not contain."""

from __future__ import annotations

import pytest
from tiny import tiny_z_image

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.options import LoraOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.lora import add_lora, lora_layers


@pytest.fixture(scope="module")
def transformer():
    return tiny_z_image().transformer


def test_containing_and_excluding_choose_among_the_targets(transformer) -> None:
    every = lora_layers(transformer, "attention")
    plain = lora_layers(transformer, "attention", (), ("refiner",))
    assert plain == [name for name in every if "refiner" not in name]
    assert 0 < len(plain) < len(every)
    refiners = lora_layers(transformer, "attention", ("noise_refiner", "context_refiner"))
    assert sorted(refiners + plain) == sorted(every)
    assert lora_layers(transformer, ["to_q"], ("refiner",), ("noise",)) == [
        name for name in every if name.endswith("to_q") and name.startswith("context_refiner")
    ]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"containing": ("nowhere",)}, r"'attention' with containing = \['nowhere'\] match no layer of denoiser"),
        ({"excluding": ("attention",)}, r"'attention' and excluding = \['attention'\] match no layer of denoiser"),
    ],
)
def test_filters_that_leave_no_layer_are_an_error(transformer, filters, message: str) -> None:
    with pytest.raises(StageError, match=message):
        add_lora("denoiser", transformer, options_of(LoraOptions, **filters), 0)
