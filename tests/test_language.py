"""The terms of the field: no text of Pivotune has words of its own for what the field has a term for.

Reads the help of every command, schemas, Markdown pages, templates, recipes, and every string, docstring and comment
of the packages, tests and benchmarks; and the names that functions, variables and arguments have.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from pivotune import schemas
from pivotune.pipeline.cli.main import pivotune

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "converters", "schemas")
# Pattern: what to write instead.
BANNED = {
    r"stands? still|h[eo]ld(s|ing)? (\w+ |\w+ \w+ )?still": "frozen",
    r"\ball the same\b": "anyway",
    r"\b(goes|going|went|gone|to go|would go|can go|could go|may go) on\b": "continues, resumes",
    r"\b(taken?|takes|taking|took) up( again)?\b": "resumed",
    r"\bleft off\b": "stopped",
    r"\b(is|are|was|were|be) (said|told|pointed out)\b": "is reported, a warning",
    r"\bpictures?\b": "image",
    r"\bstep sizes?\b": "learning rate",
    r"\banew\b": "again, start over",
    r"\blet(s|ting)? (\w+ )?through\b": "maximum gradient norm, clipping",
    r"\brefused by name\b": "not supported",
    r"\bhas not\b(?! (been|changed|had|grown|reached|started|ended|found|yet|moved|improved))": "does not have",
    r"\b(every|each|new|trained|taught|own|single|whole|their|its|other) words?\b": "embedding",
    r"\b(the|a) word(s)?\b(?! of (a|the) (text|caption|prompt|vocabulary))": "embedding",
    r"\bloud(er|ness|est)?\b": "norm",
    r"\b(taught|teach(es|ing)?)\b": "train",
    r"\blearn(s|t)?\b|\blearning\b(?![ -]rate|_rate)": "train",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bstands? (behind|here twice)\b": "is beyond the limit, is duplicate",
    r"\bnobody (knows|tells|sees|reads)\b": "unknown",
    r"\buntouched\b": "base model, unchanged",
    r"\bshares? (\w+ )?out\b": "shard",
    r"\b(comes?|came) to (an|its|no) end\b": "ends, is finished",
    r"\bsilent for\b": "has no vectors for",
    r"\bdata types?\b": "dtype",
    r"\b(written|write|writes) over\b": "overwrite",
    r"(?<!contain )(?<!convert )\b, in embeddings\b|\bwrong, in embeddings\b": "as a message",
    r"\bcut off\b": "truncated",
    r"\bcannot come to its end\b": "pre-flight checks failed",
}
# Part of a text: why it may say so.
ALLOWED = {
    "one word of the text": "a word of a language, split into tokens",
    "cut off the last ones": "`resize = cut` of an embedding's vectors",
    "CLIP's tokenizers split": "a word of a language",
}
NAMES = {
    "told", "held", "noted", "filled", "joined", "stands", "some", "_some", "_few", "_told", "_held", "said", "_said",
    "go_on", "keep_on", "take_up", "let_go", "at_hand", "gauge", "untouched", "picture", "pictures", "word", "words",
    "Keeper", "Rhythm", "Trained", "Twin", "Question", "Elsewhere", "Recognised", "beside", "likely", "alike",
}  # fmt: skip
PENDING: tuple[str, ...] = ()

Text = tuple[str, str]  # where it is, what it says


@cache
def patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern, re.I), instead) for pattern, instead in BANNED.items()]


def findings(texts: Iterator[Text]) -> list[str]:
    """Banned phrases, with what to write instead."""
    found = []
    for where, text in texts:
        flat = re.sub(r"\s+", " ", text)
        if any(part in flat for part in ALLOWED):
            continue
        for pattern, instead in patterns():
            if match := pattern.search(flat):
                around = flat[max(0, match.start() - 40) : match.end() + 40]
                found.append(f"{where}: '{match[0]}' in '...{around}...' ({instead})")
    return found


def sources() -> Iterator[Path]:
    for folder in PACKAGES:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py"))


def strings_and_comments(path: Path) -> Iterator[Text]:
    """Every string with a space in it, which includes docstrings and the parts of f-strings, and every comment."""
    text, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield f"{name}:{node.lineno}", node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{name}:{token.start[0]}", token.string


def help_texts(command: click.Command, name: str = "pivotune") -> Iterator[Text]:
    """Help of a command, its options and its subcommands."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", f"{getattr(parameter, 'help', '') or ''} {parameter.metavar or ''}"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            loaded = command.get_command(context, sub)
            assert loaded is not None
            yield from help_texts(loaded, f"{name} {sub}")


def schema_texts() -> Iterator[Text]:
    def texts(value: Any, where: str) -> Iterator[Text]:
        if isinstance(value, dict):
            yield from ((f"{where}.{key}", value[key]) for key in ("description", "title") if key in value)
            for key, item in value.items():
                yield from texts(item, f"{where}.{key}")
        elif isinstance(value, list):
            for item in value:
                yield from texts(item, where)

    for name in schemas.names():
        for where, text in texts(json.loads(json.dumps(schemas.schema(name))), name):
            if isinstance(text, str):
                yield where, text


def pages() -> Iterator[Text]:
    """Markdown by paragraph, templates by line, recipes by comment and description."""
    # The card of the micro model describes its vocabulary, which has words of English.
    markdown = [
        *ROOT.glob("*.md"),
        *(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.md")),
        *(ROOT / "recipes").glob("*.md"),
    ]
    for path in markdown:
        for number, part in enumerate(path.read_text("utf-8").split("\n\n")):
            yield f"{path.relative_to(ROOT).as_posix()}, paragraph {number + 1}", part
    for path in sorted(path for path in (ROOT / "pipeline").rglob("*.j2") if not is_pending(path)):
        for number, line in enumerate(path.read_text("utf-8").splitlines()):
            yield f"{path.relative_to(ROOT).as_posix()}:{number + 1}", line
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        lines = path.read_text("utf-8").splitlines()
        comments = " ".join(line.partition("#")[2] if line.startswith("#") else "" for line in lines)
        yield f"{path.relative_to(ROOT).as_posix()}: comments", comments
        for number, line in enumerate(lines):
            if not line.startswith("#"):
                yield f"{path.relative_to(ROOT).as_posix()}:{number + 1}", line


def is_pending(path: Path) -> bool:
    return path.relative_to(ROOT).as_posix().startswith(PENDING) if PENDING else False


def test_the_help_of_every_command() -> None:
    texts = list(help_texts(pivotune))
    assert len(texts) > 60
    assert findings(iter(texts)) == []


def test_the_descriptions_of_schemas() -> None:
    texts = list(schema_texts())
    assert len(texts) > 300
    assert findings(iter(texts)) == []


def test_pages_templates_and_recipes() -> None:
    texts = list(pages())
    assert len(texts) > 300
    assert findings(iter(texts)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_strings_and_comments_of_the_code(package: str) -> None:
    paths = [path for path in sources() if path.is_relative_to(ROOT / package) and not is_pending(path)]
    assert findings(text for path in paths for text in strings_and_comments(path)) == []


def test_strings_and_comments_of_tests_and_benchmarks() -> None:
    assert findings(text for path in other_sources() for text in strings_and_comments(path)) == []


def other_sources() -> Iterator[Path]:
    """Tests and benchmarks, without this file."""
    for folder in ("tests", "benchmarks"):
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Names of functions, classes, arguments and variables, where they are defined."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def test_names_in_the_code() -> None:
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for path in (*sources(), *other_sources())
        if not is_pending(path)
        for line, name in names_in(path)
        if name in NAMES
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "All else stands still.", "Begin anew, also where a run could go on", "the step size", "a word of the recipe",
        "so loud a word", "taught words", "the vectors are held still", "what the model has not", "the same picture",
    ],
)  # fmt: skip
def test_a_banned_phrase_is_found(text: str) -> None:
    assert findings(iter([("here", text)]))


@pytest.mark.parametrize(
    "text", ["the learning rate", "a learning_rate of 0", "a file that has not been read", "words"]
)
def test_other_phrases_are_allowed(text: str) -> None:
    assert findings(iter([("here", text)])) == []
