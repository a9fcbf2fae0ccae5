"""Output of the commands for embedding files: text, JSON, and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...converters.errors import ConvertError, count_of, printable

if TYPE_CHECKING:
    from ...converters.write import Written


BAR_FROM = 20  # files


def with_bar(paths: Sequence[Path]) -> Iterable[Path]:
    """The paths, with a progress bar on standard error for many files on a terminal."""
    if len(paths) < BAR_FROM or sys.stderr is None or not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    return tqdm(paths, unit="file", leave=False)


def echo(line: str, *, err: bool = False) -> None:
    """Print a line, above the progress bar if there is one."""
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode() if bars else nullcontext():
        click.echo(line, err=err)


METADATA_KEYS = 12  # shown as text
VALUE_LENGTH = 60  # characters
PROMPT_LENGTH = 200  # characters


def as_text(facts: dict[str, Any]) -> str:
    """Lines about one file, without control characters."""
    return "\n".join(printable(line) for line in _lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield facts["path"]
    family = facts["family"] or " or ".join(facts["families"]) or "unknown family"
    kind = {"bundle": "LoRA with bundled embeddings", "lora": "LoRA without embeddings"}.get(
        facts["kind"], facts["kind"]
    )
    yield f"  {kind}, {facts['dialect'] or 'no known dialect'}" + (f", {family}" if facts["kind"] != "other" else "")
    if facts["lora"]:
        ranks = ", ".join(map(str, facts["lora"]["ranks"])) or "unknown"
        yield f"  LoRA: {facts['lora']['layout']} layout, {count_of(facts['lora']['modules'], 'module')}, rank {ranks}"
    for embedding in facts["embeddings"]:
        yield f"  embedding {embedding['name']}"
        for key, tensor in embedding["vectors"].items():
            yield f"    {key:<8} {_vectors(tensor)}"
    yield from (f"  note: {note}" for note in facts["notes"])
    yield from _metadata(facts["metadata"])
    for name, verdict in facts["programs"].items():
        typed = f"{verdict['prompt']}  {verdict['after']}"
        yield f"  {name:<11}{verdict['loads']:<10}{typed}".rstrip()
        yield from (f"{'':<23}{note}" for note in verdict["notes"])
    if facts["retarget"]:
        yield f"  convert with pivotune retarget for: {', '.join(facts['retarget'])}"


def _vectors(tensor: dict[str, Any]) -> str:
    shape = " x ".join(map(str, tensor["shape"]))
    norms = tensor["norms"]
    known = f"{shape} {tensor['dtype']}  sha256 {tensor['sha256'][:10]}"
    if norms is None:
        return known
    shown = " ".join("not finite" if norm is None else f"{norm:.3g}" for norm in norms[:8])
    return f"{known}  norms {shown}{' ...' if len(norms) > 8 else ''}"


def _metadata(metadata: dict[str, str]) -> Iterator[str]:
    for key in sorted(metadata)[:METADATA_KEYS]:
        value = metadata[key]
        more = f" ... ({len(value)} characters)" if len(value) > VALUE_LENGTH else ""
        yield f"  {key[:VALUE_LENGTH]} = {value[:VALUE_LENGTH]}{more}"
    if len(metadata) > METADATA_KEYS:
        yield f"  and {count_of(len(metadata) - METADATA_KEYS, 'more metadata key')} (--json shows all)"


def written_json(path: Path, written: Iterable[Written]) -> str:
    """The files written for one input file, as JSON."""
    files: list[dict[str, Any]] = [
        {"path": str(item.path), "program": item.program, "dialect": item.dialect, "prompt": item.trigger,
         "prompts": dict(item.prompts), "losses": list(item.losses), "encoder": item.encoder}
        for item in written
    ]  # fmt: skip
    return json.dumps({"path": str(path), "written": files, "error": None})


def written_lines(written: Iterable[Written]) -> Iterator[str]:
    """The written files and their triggers, one line each."""
    for item in written:
        if item.prompts:
            prompt = ", ".join(
                f"{_short(typed)} ({', '.join(names)})" for typed, names in _programs_by_prompt(item.prompts).items()
            )
        else:
            prompt = item.trigger if item.program else ""
            prompt += f"  (vectors of {item.encoder})" if item.encoder else ""
        yield printable(f"{item.path}" + (f"  type: {prompt}" if prompt else ""))


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= PROMPT_LENGTH else f"{prompt[:PROMPT_LENGTH]} ..."


def _programs_by_prompt(prompts: Mapping[str, str]) -> dict[str, list[str]]:
    """Programs, grouped by the text to type in them."""
    found: dict[str, list[str]] = {}
    for program, typed in prompts.items():
        found.setdefault(typed, []).append(program)
    return found


def lost_lines(written: Iterable[Written]) -> Iterator[str]:
    """What was lost in conversion, each loss once, with the first file that lacks it."""
    seen = set()
    for item in written:
        for loss in item.losses:
            if (item.program, item.trigger, loss) not in seen:
                seen.add((item.program, item.trigger, loss))
                yield printable(f"warning: {item.path}: {loss}")


def raise_failures(failed: Sequence[ConvertError], count: int) -> None:
    """Raise the error of a single file; of several files, print each error and raise their number."""
    if len(failed) == 1 and count == 1:
        raise failed[0]
    for error in failed:
        click.echo(f"Error: {error}", err=True)
    if failed:
        raise ConvertError(f"{len(failed)} of {count_of(count, 'file')} failed")
