"""The new vectors of one encoder: one float32 table of their own, apart from the vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError
from .placeholders import Replacer


class EmbeddingRows:
    """All trained vectors of one encoder.

    `values` is (rows, width) float32 and never requires a gradient itself: a step takes out the few rows its batch
    holds as a leaf, so neither gradient nor time grows with the number of embeddings. `spans` says which rows are
    whose; a embedding may have none in this encoder, which then leaves it out of the text.
    """

    def __init__(self, vectors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        self.spans: dict[str, range] = {}
        start = 0
        for embedding, rows in vectors.items():
            if rows.ndim != 2:
                raise ValueError(f"{embedding}: vectors have shape {tuple(rows.shape)}, not (tokens, width)")
            self.spans[embedding] = range(start, start + rows.shape[0])
            start += rows.shape[0]
        self.values = torch.cat(list(vectors.values())).detach().to(device, torch.float32)

    def __len__(self) -> int:
        return self.values.shape[0]

    def of(self, embedding: str) -> Tensor:
        """The vectors of one embedding, (tokens, width) float32: a view, not a copy."""
        span = self.spans[embedding]
        return self.values[span.start : span.stop]

    def index(self, embeddings: Iterable[str]) -> list[int]:
        """Row numbers of these embeddings, in the order given."""
        return [row for embedding in embeddings for row in self.spans[embedding]]


class EmbeddingTokenizer:
    """A tokenizer that knows the active embeddings: each placeholder becomes its slots before the text is tokenized.

    Everything but the call and `tokenize` is the wrapped tokenizer's own.
    """

    def __init__(self, tokenizer: Any, replacer: Replacer) -> None:
        self._inner = copy.deepcopy(tokenizer)
        self._replacer = replacer
        self._slots: list[str] = []
        self._texts: dict[str, str] = {}
        self.first_slot = len(tokenizer)

    def activate(self, slots: Mapping[str, Sequence[int]]) -> None:
        """From now on each of these embeddings is spelled by these slots; other placeholders stay plain text."""
        need = 1 + max((slot for numbers in slots.values() for slot in numbers), default=-1)
        if need > len(self._slots):
            self._add_slots(need - len(self._slots))
        self._texts = {embedding: "".join(self._slots[n] for n in numbers) for embedding, numbers in slots.items()}

    def _add_slots(self, count: int) -> None:
        from tokenizers import AddedToken

        names = [f"<|slot-{len(self._slots) + n}|>" for n in range(count)]
        self._inner.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        given = self._inner.convert_tokens_to_ids(names)
        if given != [self.first_slot + len(self._slots) + number for number in range(count)]:
            raise StageError(
                "this tokenizer does not number new tokens from its end on, so no embedding can be injected"
            )
        self._slots += names

    def spelled(self, text: str) -> str:
        """The text with each active placeholder spelled by its slots."""
        return self._replacer.replace(text, self._texts)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        spelled = self.spelled(text) if isinstance(text, str) else [self.spelled(one) for one in text]
        return self._inner(spelled, **options)

    def tokenize(self, text: str, **options: Any) -> Any:
        return self._inner.tokenize(self.spelled(text), **options)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class SlotTable(nn.Module):
    """A token embedding with `active` rows behind the frozen `base`."""

    def __init__(self, base: nn.Module, first_slot: int) -> None:
        super().__init__()
        self.base = base
        self.first_slot = first_slot
        self.active: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen vocabulary, (tokens, width): what other code expects of a token embedding."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, width) vectors in the data type of the base table."""
        if self.active is None or not len(self.active):  # an accelerator has no row 0 to read then
            found: Tensor = self.base(ids)
            return found
        slots = ids - self.first_slot
        new = slots >= 0
        found = self.base(ids.masked_fill(new, 0))
        if ids.device.type == "cpu":  # no synchronisation to fear: touch the new positions only
            places = new.nonzero(as_tuple=True)
            return found.index_put(places, self.active[slots[places]].to(found.dtype))
        rows = self.active[slots.clamp(min=0)].to(found.dtype)
        return torch.where(new.unsqueeze(-1), rows, found)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded text encoder: its key in files, where the pipeline keeps it, the module and its tokenizer."""

    key: str
    module_name: str
    tokenizer_name: str
    module: nn.Module
    tokenizer: Any
    width: int

    @property
    def table(self) -> Tensor:
        """The vocabulary, (tokens, width), in the model's data type."""
        weight = self.module.get_input_embeddings().weight  # type: ignore[operator]
        assert isinstance(weight, Tensor)
        return weight.detach()


@dataclass(frozen=True, eq=False)
class _Injected:
    """One encoder with its embeddings in it, and what must be put back."""

    encoder: Encoder
    rows: EmbeddingRows
    table: SlotTable
    tokenizer: EmbeddingTokenizer
    places: tuple[tuple[nn.Module, str, nn.Module], ...]
    end_tokens: tuple[tuple[nn.Module, int], ...]


class Injection:
    """The embeddings of a run inside a pipeline, from `inject` to `eject`."""

    def __init__(self, pipe: Any, encoders: Sequence[Encoder], rows: Mapping[str, EmbeddingRows]) -> None:
        self.embeddings: tuple[str, ...] = tuple(next(iter(rows.values())).spans)
        self._order = {embedding: number for number, embedding in enumerate(self.embeddings)}
        self.replacer = Replacer(self.embeddings)
        self._pipe = pipe
        self._injected = {encoder.key: self._put_in(encoder, rows[encoder.key]) for encoder in encoders}

    def _put_in(self, encoder: Encoder, rows: EmbeddingRows) -> _Injected:
        tokenizer = EmbeddingTokenizer(encoder.tokenizer, self.replacer)
        base = encoder.module.get_input_embeddings()  # type: ignore[operator]
        table = SlotTable(base, tokenizer.first_slot)
        places = _places(encoder.module, base)
        for parent, name, _ in places:
            setattr(parent, name, table)
        setattr(self._pipe, encoder.tokenizer_name, tokenizer)
        return _Injected(encoder, rows, table, tokenizer, places, _mend_end_token(encoder))

    @property
    def rows(self) -> dict[str, EmbeddingRows]:
        """Encoder key to its new rows."""
        return {key: one.rows for key, one in self._injected.items()}

    def embeddings_in(self, texts: Iterable[str]) -> list[str]:
        """The embeddings these texts hold, each once, in the order in which the run declares them."""
        found = {embedding for text in texts for embedding in self.replacer.embeddings_in(text)}
        return sorted(found, key=self._order.__getitem__)

    def activate(self, texts: Iterable[str], *, train: bool = False) -> dict[str, ActiveRows]:
        """Make the embeddings that these texts hold usable in prompts, and no others; see `take`."""
        return self.take(self.embeddings_in(texts), train=train)

    def take(self, embeddings: Sequence[str], *, train: bool) -> dict[str, ActiveRows]:
        """Take the rows of these embeddings out of the tables; with `train`, as leaves that collect a gradient.

        Returns encoder key to the rows taken out: call once for all micro-batches of one optimizer step. Costs as
        much as these embeddings have rows, whatever the number of embeddings in the run.
        """
        return {key: self._activate(one, embeddings, train) for key, one in self._injected.items()}

    def _activate(self, one: _Injected, embeddings: Sequence[str], train: bool) -> ActiveRows:
        slots: dict[str, range] = {}
        for embedding in embeddings:
            start = sum(len(numbers) for numbers in slots.values())
            slots[embedding] = range(start, start + len(one.rows.spans[embedding]))
        index = torch.tensor(one.rows.index(embeddings), dtype=torch.long, device=one.rows.values.device)
        leaf = one.rows.values[index].requires_grad_(train)
        one.table.active = leaf
        one.tokenizer.activate(slots)
        return ActiveRows(tuple(embeddings), index, leaf)

    def eject(self) -> None:
        """Put encoders and tokenizers back as they were. Doing so twice does no harm."""
        self._take_out()
        self._injected = {}

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Encoders and tokenizers as they were, for as long as this lasts; then the embeddings are in them again."""
        self._take_out()
        try:
            yield
        finally:
            for one in self._injected.values():
                for parent, name, _ in one.places:
                    setattr(parent, name, one.table)
                setattr(self._pipe, one.encoder.tokenizer_name, one.tokenizer)
                for module, _ in one.end_tokens:
                    module.eos_token_id = one.encoder.tokenizer.eos_token_id

    def _take_out(self) -> None:
        for one in self._injected.values():
            for parent, name, module in one.places:
                setattr(parent, name, module)
            setattr(self._pipe, one.encoder.tokenizer_name, one.encoder.tokenizer)
            for module, value in one.end_tokens:
                module.eos_token_id = value  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class ActiveRows:
    """The rows one step uses: `leaf` is (active rows, width) float32, `index` their row numbers in `EmbeddingRows`."""

    embeddings: tuple[str, ...]
    index: Tensor
    leaf: Tensor


def _places(encoder: nn.Module, base: nn.Module) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    """Where an encoder keeps its token embedding: owner, attribute, module. T5 has two modules that share a weight."""
    return tuple(
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if child is base or (isinstance(child, nn.Embedding) and child.weight is base.weight)
    )


def _mend_end_token(encoder: Encoder) -> tuple[tuple[nn.Module, int], ...]:
    """Make the encoder pool at its end token while slots are in use; return what to put back.

    Models made before transformers 4.31 say `eos_token_id = 2`, which makes transformers pool at the *largest* id.
    Slot ids are larger than the end token's, so the pooled vector would come from an embedding. Looking for the end
    token itself finds the same position in every text without slots.
    """
    wrong = [m for m in encoder.module.modules() if getattr(m, "eos_token_id", None) == 2]
    for module in wrong:
        module.eos_token_id = encoder.tokenizer.eos_token_id
    return tuple((module, 2) for module in wrong)
