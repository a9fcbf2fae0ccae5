"""Embeddings that have reached stop_after are exported at once, so that a run that stops later keeps them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...converters.atomic import Batch, batch
from ...converters.embedding import Contents, Embedding
from ...converters.programs import programs
from ...converters.write import Written, add_embeddings, stems_for
from ..recipe.options import ExportOptions, TrainOptions
from ..run_folder import bounded_json, shape_error
from ..tensors import to_raw
from ..text import first_few
from ..train.embeddings import EmbeddingTrainer
from .context import ExportContext
from .standalone import add_standalone, standalone_stems, widths, with_metadata, with_outputs
from .tensors import in_dtype

FOLDER, LEDGER = "finished", "finished.jsonl"
_LINE = {"embedding": str, "stage": int, "step": int, "sha256": str, "files": [str]}


class Finished:
    """Writes `finished/` of a run folder: the files of embeddings that have stopped, as the export stage writes them.

    Where that stage writes packs, an embedding has one standalone file here. A line of `finished.jsonl` records that
    the files of an embedding are complete, and after which step it stopped. A resumed run stops the embedding at that
    step again and rewrites its files only where the values differ, with a warning.
    """

    def __init__(self, context: ExportContext, contents: Contents, last: Callable[[Contents], Contents]) -> None:
        """`last` changes embeddings as later stages will (rescale)."""
        self.context, self.last, self.folder = context, last, context.folder / FOLDER
        self.embeddings = {embedding.name: embedding for embedding in contents.embeddings}
        self.options = _options(context)
        self.lines = dict(_read(self.folder)) if self.options and context.processes.main else {}
        self._done = 0  # how many of the stopped embeddings are exported
        self._stems: dict[str, dict[str, str]] = {}

    @property
    def recorded(self) -> dict[str, int]:
        """The step after which each embedding stopped, as an earlier process of this run recorded it."""
        return {
            embedding: line["step"] for embedding, line in self.lines.items() if line["stage"] == self.context.stage + 1
        }

    def write(self, trainer: EmbeddingTrainer | None) -> None:
        """Export the embeddings that have stopped since the last call; the cost depends on these only."""
        if trainer is None or self.options is None or len(trainer.stopped_at) == self._done:
            return
        newest = islice(reversed(trainer.stopped_at.items()), len(trainer.stopped_at) - self._done)
        stopped = dict(reversed(list(newest)))  # in the order in which they stopped
        rows = trainer.injection.rows
        trained = tuple(
            replace(
                self.embeddings[name],
                vectors={key: to_raw(rows[key].of(name)) for key in self.embeddings[name].vectors},
            )
            for name in stopped
        )
        final = self.last(Contents(trained)).embeddings
        digests = {embedding.name: _digest(embedding) for embedding in final}
        new = [embedding for embedding in final if not self._is_there(embedding.name, digests[embedding.name])]
        again = [name for name, digest in digests.items() if self.lines.get(name, {}).get("sha256", digest) != digest]
        if again:
            self.context.warnings.append(
                f"finished/ was rewritten for {first_few(again)}: the resumed run gave other values"
            )
        for lines in self._written(new, stopped, digests):
            self._append(lines)
        self._done += len(stopped)

    def _written(
        self, embeddings: list[Embedding], stopped: dict[str, int], digests: dict[str, str]
    ) -> Iterator[list[dict[str, Any]]]:
        """Write a few hundred embeddings at a time; yield the ledger's lines of those whose files are written."""
        assert self.options is not None
        if not self._stems:
            self._stems = {"": standalone_stems(self.context, list(self.embeddings))} | {
                target: stems_for(self.embeddings, target, self.context.model.family) for target in self._targets()
            }
        for start in range(0, len(embeddings), 256):
            part = embeddings[start : start + 256]
            contents = with_metadata(self.context, Contents(tuple(part)))
            ready = with_outputs(self.context, in_dtype(contents, self.options.dtype, self.context)).embeddings
            there: dict[str, list[str]] = {}
            with batch(overwrite=True) as files:
                for embedding in ready:
                    written = self._add(files, embedding)
                    there[embedding.name] = [one.path.relative_to(self.folder).as_posix() for one in written]
            yield [
                {"embedding": embedding.name, "stage": self.context.stage + 1, "step": stopped[embedding.name],
                 "sha256": digests[embedding.name], "files": there[embedding.name]}
                for embedding in part
            ]  # fmt: skip

    def _add(self, files: Batch, embedding: Embedding) -> list[Written]:
        assert self.options is not None
        place, family = self.folder / f"{self.context.recipe.name}_embeddings", self.context.model.family
        written = add_standalone(self.context, files, embedding, place, self._stems[""])
        for target in self._targets():
            written += add_embeddings(
                files,
                [embedding],
                target,
                family,
                self.folder / target,
                widths=widths(self.context),
                stems=self._stems[target],
            )
        return written

    def _targets(self) -> Sequence[str]:
        """The programs that get a file for each embedding."""
        if self.options is None or self.options.files != "each":
            return ()
        family = self.context.model.family.name
        return [target for target in self.options.targets if family in programs()[target].layouts]

    def _is_there(self, embedding: str, digest: str) -> bool:
        """Whether the embedding's files exist with these values."""
        line = self.lines.get(embedding, {})
        return line.get("sha256") == digest and all((self.folder / path).is_file() for path in line["files"])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        with (self.folder / LEDGER).open("ab") as file:
            file.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.lines |= {line["embedding"]: line for line in lines}


def _read(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with (folder / LEDGER).open("rb+") as file:
            text = file.read()
            whole = text.rfind(b"\n") + 1
            if whole != len(text):  # a line that a kill truncated
                file.truncate(whole)
    except FileNotFoundError:
        return
    for line in text[:whole].splitlines():
        with suppress(ValueError):  # a power failure leaves zeros; the embedding is exported again
            row = bounded_json(line)
            if shape_error(row, _LINE) is None:
                yield row["embedding"], row


def _options(context: ExportContext) -> ExportOptions | None:
    """How the embeddings will be exported; None where they are not, or where a later stage trains them."""
    recipe, later = context.recipe, context.stage + 1
    if any(options.embeddings for _, options in recipe.stages_with(TrainOptions, later)):
        return None
    return next((options for _, options in recipe.stages_with(ExportOptions, later)), None)


def _digest(embedding: Embedding) -> str:
    digest = hashlib.sha256()
    for key, raw in sorted(embedding.vectors.items()):
        digest.update(f"{key} {raw.dtype} {raw.shape} ".encode())
        digest.update(raw.data)
    return digest.hexdigest()


def finished_facts(context: ExportContext, contents: Contents) -> dict[str, Any] | None:
    """For the manifest: how many embeddings are in `finished/`, and whether the verified exports of `contents` replace
    it, because all of them have the same values."""
    lines = dict(_read(context.folder / FOLDER))
    now = {embedding.name: embedding for embedding in contents.embeddings}
    same = all(name in now and line["sha256"] == _digest(now[name]) for name, line in lines.items())
    if not same:
        context.warnings.append("finished/ is kept: some of its embeddings differ from the exported ones")
    return {"embeddings": len(lines), "removed": same} if lines else None


def remove_finished(folder: Path) -> None:
    """Delete `finished/` of a run folder."""
    hidden = folder / f".{FOLDER}.old"
    with suppress(FileNotFoundError):
        os.replace(folder / FOLDER, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
