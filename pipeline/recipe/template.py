"""A recipe of one's own from one that ships."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import tomli

from ... import schemas
from ...converters.names import is_reserved
from ..errors import RecipeError

_SCHEMA = re.compile(r"^#:schema .*$", re.M)
_NAME = re.compile(r'^name = ".*?"', re.M)
_FOLDER = re.compile(r'^(?P<key>images|captions) = "(?P<path>[^"\n]+)"', re.M)


def description(path: Path) -> str:
    """What a shipped recipe says of itself."""
    return str(tomli.loads(path.read_text("utf-8")).get("description", ""))


def from_template(template: Path, target: Path) -> str:
    """The template's text, comments and all, named after `target`; paths to what ships beside it become absolute."""
    about = schemas.schema("recipe.json")["properties"]["name"]
    if re.fullmatch(about["pattern"], target.stem) is None:
        raise RecipeError([f"the file's name names the recipe, but '{target.stem}' is not {about['title']}"])
    if is_reserved(target.stem):
        raise RecipeError([f"the file's name names the recipe, but '{target.stem}' is a device on Windows"])
    schema = Path(str(files("pivotune.schemas") / "recipe.json"))
    text = template.read_text("utf-8")
    text = _SCHEMA.sub(lambda _: f"#:schema {schema.as_uri()}", text, count=1)
    text = _NAME.sub(lambda _: f"name = {json.dumps(target.stem)}", text, count=1)
    return _FOLDER.sub(lambda match: _absolute(match, template.parent), text)


def _absolute(match: re.Match[str], folder: Path) -> str:
    path = folder / match["path"]
    return f"{match['key']} = {json.dumps(path.as_posix())}" if path.exists() else match[0]
