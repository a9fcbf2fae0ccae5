"""Embeddings in a pipeline: their vectors in a float32 table beside the frozen vocabulary of each encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError
from .outputs import OutputHook
from .placeholders import Replacer


class EmbeddingRows:
    """The vectors of all embeddings in one encoder.

    `values` is (rows, width) float32 and never requires a gradient itself: a step copies the few rows of its
    batch into a leaf, so neither gradient nor time grows with the number of embeddings. `spans` has the rows of each
    embedding; an embedding may have none in this encoder, whose text then does not contain it. The vectors of `outputs`
    replace the encoder's output, those of the others are its input.
    """

    def __init__(
        self, vectors: Mapping[str, Tensor], device: torch.device | str = "cpu", outputs: Iterable[str] = ()
    ) -> None:
        self.outputs = frozenset(outputs)
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
        """Row indices of these embeddings, in the order given."""
        return [row for embedding in embeddings for row in self.spans[embedding]]


_ENCODING = {"padding", "truncation", "max_length", "return_tensors"}  # options of the call, not of a template


class EmbeddingTokenizer:
    """A tokenizer that knows the active embeddings: each placeholder becomes its slots before the text is tokenized.

    Everything but the call, chat templates and `tokenize` is the wrapped tokenizer's own.
    """

    def __init__(self, tokenizer: Any, replacer: Replacer) -> None:
        self._inner = copy.deepcopy(tokenizer)
        self._replacer = replacer
        self._slots: list[str] = []
        self._texts: dict[str, str] = {}
        self.first_slot = len(tokenizer)

    def activate(self, slots: Mapping[str, Sequence[int]]) -> None:
        """Replace each of these embeddings by these slots from now on; other placeholders stay plain text."""
        need = 1 + max((slot for numbers in slots.values() for slot in numbers), default=-1)
        if need > len(self._slots):
            self._add_slots(need - len(self._slots))
        self._texts = {embedding: "".join(self._slots[n] for n in numbers) for embedding, numbers in slots.items()}
        if hasattr(self._inner, "spans"):  # of a tokenizer that reads prompts in chunks
            self._inner.spans.of = {self.first_slot + numbers[0]: len(numbers) for numbers in slots.values() if numbers}

    def _add_slots(self, count: int) -> None:
        from tokenizers import AddedToken

        names = [f"<|slot-{len(self._slots) + n}|>" for n in range(count)]
        self._inner.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        given = self._inner.convert_tokens_to_ids(names)
        if given != [self.first_slot + len(self._slots) + number for number in range(count)]:
            raise StageError("this tokenizer does not append new tokens, so embeddings cannot be injected")
        self._slots += names

    def replace_placeholders(self, text: str) -> str:
        """The text with each active placeholder replaced by its slots."""
        return self._replacer.replace(text, self._texts)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        if isinstance(text, str):
            return self._inner(self.replace_placeholders(text), **options)
        return self._inner([self.replace_placeholders(one) for one in text], **options)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **options: Any) -> Any:
        """The tokenizer's own, but ids are made by the call above: its own would spell placeholders in letters."""
        if not tokenize:
            return self._inner.apply_chat_template(conversation, tokenize=False, **options)
        given = {name: options.pop(name) for name in _ENCODING & options.keys()}
        as_dict = options.pop("return_dict", True)
        text = self._inner.apply_chat_template(conversation, tokenize=False, **options)
        encoding = self(text, add_special_tokens=False, **given)
        return encoding if as_dict else encoding["input_ids"]

    def tokenize(self, text: str, **options: Any) -> Any:
        return self._inner.tokenize(self.replace_placeholders(text), **options)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings are the inner tokenizer's: a pipeline may choose the side of the padding before each prompt."""
        own = name in ("_inner", "_replacer", "_slots", "_texts", "first_slot")
        object.__setattr__(self, name, value) if own else setattr(self._inner, name, value)


class UnknownTokenizer(EmbeddingTokenizer):
    """A tokenizer for which each vector of an active embedding is its unknown token.

    It numbers the queries of a part that has no vectors of embeddings (Anima's conditioner). The unknown token is
    that of characters that the vocabulary lacks, and says nothing of an embedding but how many vectors it has.
    """

    def activate(self, slots: Mapping[str, Sequence[int]]) -> None:
        """Replace each of these embeddings by as many unknown tokens as it has slots."""
        self._texts = {embedding: self._inner.unk_token * len(numbers) for embedding, numbers in slots.items()}


class SlotTable(nn.Module):
    """A token table with `active` rows after the frozen `base`.

    Gemma's table multiplies its vectors by a constant, so `active`, which is as in the vocabulary, is multiplied too.
    """

    def __init__(self, base: nn.Module, first_slot: int) -> None:
        super().__init__()
        self.base = base
        self.first_slot = first_slot
        self.active: Tensor | None = None
        self.outputs: Tensor | None = None  # (active rows,), whether a row replaces the output; None: no row does
        self.only_outputs = False
        self.slots: Tensor | None = None  # of the last ids, for `OutputHook`

    @property
    def weight(self) -> Tensor:
        """The frozen vocabulary, (tokens, width): other code expects this attribute."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, width) vectors in the dtype of the base table."""
        if self.active is None or not len(self.active):  # else an accelerator would read a row that does not exist
            self.slots = None
            found: Tensor = self.base(ids)
            return found
        self.slots = slots = ids - self.first_slot
        new = slots >= 0
        active = self.active.to(ids.device)  # a pipeline may have moved its encoder
        if self.outputs is not None:  # zeros stand for them; without a gradient the encoder needs no backward pass
            if self.only_outputs:
                active = torch.zeros_like(active)
            else:
                active = torch.where(self.outputs.to(ids.device).unsqueeze(1), 0.0, active)
        found = self.base(ids.masked_fill(new, 0))
        if ids.device.type == "cpu":  # no synchronisation, so only the new positions
            positions = new.nonzero(as_tuple=True)
            return found.index_put(positions, self._scaled(active[slots[positions]].to(found.dtype)))
        rows = active[slots.clamp(min=0)].to(found.dtype)
        return torch.where(new.unsqueeze(-1), self._scaled(rows), found)

    def _scaled(self, rows: Tensor) -> Tensor:
        scale = getattr(self.base, "embed_scale", None)
        return rows if scale is None else rows * scale.to(rows.dtype)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded text encoder: its key in files, its names in the pipeline, the module and its tokenizer.

    `output` is the hidden state that output embeddings replace, None if it has none; `unknown_in` a second tokenizer
    in the pipeline, without vectors of embeddings (see `families.EncoderSpec` for both).
    """

    key: str
    module_name: str
    tokenizer_name: str
    module: nn.Module
    tokenizer: Any
    width: int
    output: int | None = None
    unknown_in: str = ""

    @property
    def table(self) -> Tensor:
        """The vocabulary, (tokens, width), in the model's dtype."""
        weight = self.module.get_input_embeddings().weight  # type: ignore[operator]
        assert isinstance(weight, Tensor)
        return weight.detach()


@dataclass(frozen=True, eq=False)
class _Injected:
    """One encoder with its embeddings, and what must be restored."""

    encoder: Encoder
    rows: EmbeddingRows
    table: SlotTable
    tokenizers: dict[str, tuple[EmbeddingTokenizer, Any]]  # by name in the pipeline: with embeddings, and without
    locations: tuple[tuple[nn.Module, str, nn.Module], ...]
    end_tokens: tuple[tuple[nn.Module, int], ...]
    hook: OutputHook | None


class Injection:
    """The embeddings of a run inside a pipeline, from `inject` to `eject`."""

    def __init__(self, pipe: Any, encoders: Sequence[Encoder], rows: Mapping[str, EmbeddingRows]) -> None:
        self.embeddings: tuple[str, ...] = tuple(next(iter(rows.values())).spans)
        self._order = {embedding: number for number, embedding in enumerate(self.embeddings)}
        self.replacer = Replacer(self.embeddings)
        self._pipe = pipe
        self._injected = {encoder.key: self._inject(encoder, rows[encoder.key]) for encoder in encoders}

    def _inject(self, encoder: Encoder, rows: EmbeddingRows) -> _Injected:
        tokenizer = EmbeddingTokenizer(encoder.tokenizer, self.replacer)
        tokenizers = {encoder.tokenizer_name: (tokenizer, encoder.tokenizer)}
        if encoder.unknown_in:
            plain = getattr(self._pipe, encoder.unknown_in)
            tokenizers[encoder.unknown_in] = (UnknownTokenizer(plain, self.replacer), plain)
        base = encoder.module.get_input_embeddings()  # type: ignore[operator]
        table = SlotTable(base, tokenizer.first_slot)
        locations = _locations(encoder.module, base)
        for parent, name, _ in locations:
            setattr(parent, name, table)
        for name, (wrapped, _) in tokenizers.items():
            setattr(self._pipe, name, wrapped)
        hook = None
        if rows.outputs and encoder.output is not None:
            hook = OutputHook(encoder.module, encoder.output, table)
        return _Injected(encoder, rows, table, tokenizers, locations, _fix_end_token(encoder), hook)

    @property
    def rows(self) -> dict[str, EmbeddingRows]:
        """Encoder key to its new rows."""
        return {key: one.rows for key, one in self._injected.items()}

    def embeddings_in(self, texts: Iterable[str]) -> list[str]:
        """The embeddings in these texts, each once, in the order of the run."""
        found = {embedding for text in texts for embedding in self.replacer.embeddings_in(text)}
        return sorted(found, key=self._order.__getitem__)

    def activate(self, texts: Iterable[str], *, train: bool = False) -> dict[str, ActiveRows]:
        """Activate the embeddings in these texts, and no others; see `take`."""
        return self.take(self.embeddings_in(texts), train=train)

    def take(self, embeddings: Sequence[str], *, train: bool) -> dict[str, ActiveRows]:
        """Activate the rows of these embeddings; with `train`, as leaves that collect a gradient.

        Returns encoder key to active rows: call once for all micro-batches of one optimizer step. The cost depends on
        the rows of these embeddings, not on the number of embeddings in the run.
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
        one.table.outputs = None
        if not one.rows.outputs.isdisjoint(embeddings):
            flags = [name in one.rows.outputs for name in embeddings for _ in slots[name]]
            one.table.outputs, one.table.only_outputs = torch.tensor(flags, device=leaf.device), all(flags)
        for tokenizer, _ in one.tokenizers.values():
            tokenizer.activate(slots)
        return ActiveRows(tuple(embeddings), index, leaf)

    def eject(self) -> None:
        """Restore encoders and tokenizers. Calling it twice is allowed."""
        self._restore()
        self._injected = {}

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Within it encoders and tokenizers are as before the injection."""
        self._restore()
        try:
            yield
        finally:
            for one in self._injected.values():
                for parent, name, _ in one.locations:
                    setattr(parent, name, one.table)
                for name, (tokenizer, _) in one.tokenizers.items():
                    setattr(self._pipe, name, tokenizer)
                for module, _ in one.end_tokens:
                    module.eos_token_id = one.encoder.tokenizer.eos_token_id
                if one.hook is not None:
                    one.hook.on()

    def _restore(self) -> None:
        for one in self._injected.values():
            for parent, name, module in one.locations:
                setattr(parent, name, module)
            for name, (_, plain) in one.tokenizers.items():
                setattr(self._pipe, name, plain)
            for module, value in one.end_tokens:
                module.eos_token_id = value  # type: ignore[assignment]
            if one.hook is not None:
                one.hook.off()


@dataclass(frozen=True, eq=False)
class ActiveRows:
    """The rows of one step: `leaf` is (active rows, width) float32, `index` their indices in `EmbeddingRows`."""

    embeddings: tuple[str, ...]
    index: Tensor
    leaf: Tensor


def _locations(encoder: nn.Module, base: nn.Module) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    """The token table in an encoder: parent, attribute, module. T5 has two modules that share a weight."""
    return tuple(
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if child is base or (isinstance(child, nn.Embedding) and child.weight is base.weight)
    )


def _fix_end_token(encoder: Encoder) -> tuple[tuple[nn.Module, int], ...]:
    """Make the encoder pool at its end token while slots are in use; return what to restore.

    Models from before transformers 4.31 have `eos_token_id = 2`, which makes transformers pool at the *largest* id.
    Slot ids are larger than the end token's, so the pooled vector would be that of an embedding. The position of the
    end token itself is the same in every text without slots.
    """
    wrong = [m for m in encoder.module.modules() if getattr(m, "eos_token_id", None) == 2]
    for module in wrong:
        module.eos_token_id = encoder.tokenizer.eos_token_id
    return tuple((module, 2) for module in wrong)
