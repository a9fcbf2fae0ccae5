"""A bar for a long row of files, and lines that are printed above it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...converters.errors import ConvertError, printable
from ...converters.programs import programs

if TYPE_CHECKING:
    from ...converters.write import Written


FEWEST = 20  # files that are worth a bar


def with_bar(paths: Sequence[Path]) -> Iterable[Path]:
    """The paths; while they are gone through, a bar on standard error, if they are many and it is a terminal."""
    if len(paths) < FEWEST or sys.stderr is None or not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    return tqdm(paths, unit="file", leave=False)


def say(line: str, *, err: bool = False) -> None:
    """Print a line, above the bar if there is one."""
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode() if bars else nullcontext():
        click.echo(line, err=err)


MOST_KEYS = 12  # of metadata that text shows
SHOWN = 60  # characters of a value
LONGEST = 200  # characters of what is typed


def as_text(facts: dict[str, Any]) -> str:
    """Lines about one file; strangers' names are made harmless for a terminal."""
    return "\n".join(printable(line) for line in _lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield facts["path"]
    if "error" in facts:
        yield f"  error: {facts['error'].removeprefix(facts['path'] + ': ')}"
        return
    family = facts["family"] or " or ".join(facts["families"]) or "unknown family"
    kind = {"bundle": "LoRA with embeddings in it", "lora": "LoRA without embeddings"}.get(facts["kind"], facts["kind"])
    yield f"  {kind}, {facts['dialect'] or 'no known dialect'}" + (f", {family}" if facts["kind"] != "other" else "")
    if facts["lora"]:
        ranks = ", ".join(map(str, facts["lora"]["ranks"])) or "unknown"
        yield f"  LoRA: {facts['lora']['layout']} layout, {facts['lora']['modules']} modules, rank {ranks}"
    for embedding in facts["embeddings"]:
        yield f"  embedding {embedding['name']}"
        for key, tensor in embedding["vectors"].items():
            yield f"    {key:<8} {_vectors(tensor)}"
    yield from (f"  note: {note}" for note in facts["notes"])
    yield from _metadata(facts["metadata"])
    for name, verdict in facts["programs"].items():
        yield f"  {name:<11}{verdict['loads']:<8}{verdict['prompt']}".rstrip()
        yield from (f"{'':<21}{note}" for note in verdict["notes"])
    if able := _after_retarget(facts):
        yield f"  pivotune retarget writes it for {', '.join(able)}"


def _after_retarget(facts: dict[str, Any]) -> list[str]:
    """Programs that do not load the file of embeddings as it is, and have embeddings of its family."""
    if facts["kind"] != "embedding":
        return []
    refusing = [name for name, verdict in facts["programs"].items() if verdict["loads"] == "no"]
    return [name for name in refusing if programs()[name].layouts.keys() & set(facts["families"])]


def _vectors(tensor: dict[str, Any]) -> str:
    shape = " x ".join(map(str, tensor["shape"]))
    norms = tensor["norms"]
    known = f"{shape} {tensor['dtype']}  sha256 {tensor['sha256'][:10]}"
    if norms is None:
        return known
    shown = " ".join("not finite" if norm is None else f"{norm:.3g}" for norm in norms[:8])
    return f"{known}  norms {shown}{' ...' if len(norms) > 8 else ''}"


def _metadata(metadata: dict[str, str]) -> Iterator[str]:
    for key in sorted(metadata)[:MOST_KEYS]:
        value = metadata[key]
        yield f"  {key[:SHOWN]} = {value[:SHOWN]}{f' ... ({len(value)} characters)' if len(value) > SHOWN else ''}"
    if len(metadata) > MOST_KEYS:
        yield f"  and {len(metadata) - MOST_KEYS} more fields of metadata, which --json shows"


def written_json(path: Path, written: Iterable[Written]) -> str:
    """What was written for one file, as JSON."""
    files: list[dict[str, Any]] = [
        {"path": str(item.path), "program": item.program, "dialect": item.dialect, "prompt": item.trigger,
         "prompts": dict(item.prompts), "losses": list(item.losses)}
        for item in written
    ]  # fmt: skip
    return json.dumps({"path": str(path), "written": files, "error": None})


def written_lines(written: Iterable[Written]) -> Iterator[str]:
    """What was written and what to type for it, a line each."""
    for item in written:
        if item.prompts:
            prompt = ", ".join(f"{_short(typed)} ({', '.join(where)})" for typed, where in _where(item.prompts).items())
        else:
            prompt = item.trigger if item.program else ""
        yield printable(f"{item.path}" + (f"  type: {prompt}" if prompt else ""))


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST else f"{prompt[:LONGEST]} ..."


def _where(prompts: Mapping[str, str]) -> dict[str, list[str]]:
    """Programs by what is typed in them."""
    found: dict[str, list[str]] = {}
    for program, typed in prompts.items():
        found.setdefault(typed, []).append(program)
    return found


def lost_lines(written: Iterable[Written]) -> Iterator[str]:
    """What could not go in, each once, by the first file that it is missing from."""
    told = set()
    for item in written:
        for loss in item.losses:
            if (item.program, item.trigger, loss) not in told:
                told.add((item.program, item.trigger, loss))
                yield printable(f"Lost: {item.path}: {loss}")


def ended(failed: Sequence[ConvertError], count: int) -> None:
    """Raises ConvertError if something failed: the error itself, or after all of them how many."""
    if len(failed) == 1 and count == 1:
        raise failed[0]
    for error in failed:
        click.echo(f"Error: {error}", err=True)
    if failed:
        raise ConvertError(f"{len(failed)} of {count} files failed")
