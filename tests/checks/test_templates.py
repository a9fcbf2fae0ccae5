"""Placeholders that a prompt template contains too would be replaced there."""

import pytest
from projects import make_project

from pivotune.pipeline.checks.recipe import check_recipe


@pytest.mark.parametrize(("family", "placeholder", "warned"), [
    ("z-image", "user", True), ("z-image", "<user>", False), ("z-image", "user7", False), ("chroma", "user", False),
])  # fmt: skip
def test_a_plain_word_is_a_warning_where_captions_go_into_a_template(tmp_path, family, placeholder, warned):
    recipe = make_project(tmp_path, family, captions=f"a photo of {placeholder}", export="targets = []")
    recipe.write_text(recipe.read_text("utf-8").replace("<cat>", placeholder), "utf-8")
    checked = check_recipe(recipe)
    assert any("may contain; write" in problem.text for problem in checked.problems) == warned
