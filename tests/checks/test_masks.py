"""Black masks: found by `check`, and named by a run whose loss counts nowhere."""

from __future__ import annotations

import pytest
from PIL import Image
from projects import make_project, run_project

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.run import runner

ALL = "0-mask.png, 1-mask.png, 2-mask.png"


def project(folder, masks, weight=0, **objective):
    """A project of three images of 16x20 with these masks (None, a gray value, or a box that is white)."""
    keys = "".join(f", {key} = {value}" for key, value in objective.items())
    path = make_project(folder, train=f"objective = {{ unmasked_weight = {weight}{keys} }}")
    for number, mask in enumerate(masks):
        if mask is not None:
            image = Image.new("L", (16, 20), mask if isinstance(mask, int) else 0)
            if isinstance(mask, tuple):
                image.paste(255, mask)
            image.save(folder / f"images/{number}-mask.png")
    return path


def shown(path, *sets):
    return [(one.severity, one.key, one.text) for one in check_recipe(path, sets).problems if "masks" in one.key]


def test_black_masks_alone_are_an_error(tmp_path):
    ((severity, key, text),) = shown(project(tmp_path, (0, 0, 0)))
    assert (severity, key) == ("error", "concept.1.masks")
    assert text == (
        "the masks of all 3 images are black (0-mask.png, 1-mask.png, 2-mask.png): the loss counts nowhere in them; "
        "white is where the loss counts; invert them, or set masks = 'none'"
    )


@pytest.mark.parametrize(
    ("masks", "objective", "expected"),
    [
        ((0, 255, 0), {}, "2 of 3 images are black (0-mask.png, 2-mask.png): the loss counts nowhere in them; white"),
        ((0, 0, 0), {"weight": 0.1}, f"all 3 images are black ({ALL}): the loss has a weight of 0.1 everywhere"),
        ((0, 0, 0), {"masked_prior_weight": 1}, "all 3 images are black"),
    ],
)  # fmt: skip
def test_other_black_masks_are_a_warning(tmp_path, masks, objective, expected):
    ((severity, _, text),) = shown(project(tmp_path, masks, **objective))
    assert severity == "warning"
    assert text.startswith(f"the masks of {expected}")


@pytest.mark.parametrize("masks", [(0, 0, None), ((3, 3, 4, 4), 1, 255), (None, None, None)])
def test_masks_with_anything_in_them_are_no_error(tmp_path, masks):
    assert [one for one in shown(project(tmp_path, masks)) if one[0] == "error"] == []


def test_transparent_images_and_other_concepts(tmp_path):
    path = project(tmp_path, (None,) * 3)
    for number in range(3):
        Image.new("RGBA", (16, 20), (9, 9, 9, 0)).save(tmp_path / f"images/{number}.png")
    ((severity, _, text),) = shown(path, "concept.masks='alpha'")
    assert severity == "error"
    assert "all 3 images are black (0.png, 1.png, 2.png)" in text
    other = '\n[[concept]]\nimages = "images"\nmasks = "none"\nprior = {}\n[[embedding]]'
    plain = path.read_text("utf-8").replace("[[concept]]", "[[concept]]\nmasks = 'alpha'")
    for prior, severity in (("false", "warning"), ("true", "error")):
        path.write_text(plain.replace("[[embedding]]", other.format(prior), 1), "utf-8")
        assert [one[0] for one in shown(path)] == [severity]


def test_the_first_step_names_the_masks_not_the_caption(tmp_path):
    """Masks that are black where the images are cropped to: `check` does not see it."""
    path = project(tmp_path, ((0, 0, 16, 1),) * 3)
    assert shown(path) == []
    with pytest.raises(StageError, match="the masks of all its images are black, so the loss counts nowhere"):
        run_project(path, tmp_path / "run")


def test_an_image_with_a_black_mask_passes_if_another_counts(tmp_path):
    result = run_project(project(tmp_path, (0, 0, 255)), tmp_path / "run")
    assert isinstance(result, runner.RunResult)


def test_a_frozen_embedding_is_not_blamed_on_masks(tmp_path):
    """With a weight outside the masks black ones do not stop the gradient."""
    assert run_project(project(tmp_path, (0, 0, 0), weight=0.5), tmp_path / "run")
