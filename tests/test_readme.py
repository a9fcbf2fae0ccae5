"""What the README says of stages, targets and families is what the code has."""

import re
import tomllib
from pathlib import Path

from pivotune import schemas
from pivotune.pipeline.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_table_of_stages_is_the_schemas():
    table = README.split("| stage |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", table, re.M))
    described = {name: schemas.schema(f"stages/{name}.json")["description"] for name in rows}
    assert rows == described
    assert set(rows) == {path.stem for path in (ROOT / "schemas" / "stages").glob("*.json")}


BLOCKS = re.findall(r"```toml\n(.*?)```", README, re.S)


def test_the_recipe_in_the_readme_is_a_recipe(tmp_path):
    assert tomllib.loads(BLOCKS[0])["name"] == "emblem"
    (tmp_path / "recipe.toml").write_text(BLOCKS[0], "utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert [stage.kind for stage in recipe.stages] == ["tokenize", "inject", "train", "rescale", "export"]


def test_ci_finds_its_two_commands():
    found = re.findall(r"<!-- ci: (\w+) -->\n```sh\n(.+?)\n```", README, re.S)
    assert [name for name, _ in found] == ["quickstart", "tests"]
    assert all("\n" not in command and command.startswith("pip install") for _, command in found)
