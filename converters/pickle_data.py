"""A pickle read as data: no class is looked up and nothing is called, so nothing in it can run.

Where a pickle asks for a call (`torch._utils._rebuild_tensor_v2(...)`) the result here is a `PickledObject` that
records the call; the reader decides what it means. Opcodes as in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from .errors import ConvertError
from .pickle_opcodes import MARK, OPERATIONS

LONGEST_NAME = 300
MAX_NAMES = 100_000
MAX_STEPS = 2_000_000  # each may take 60 bytes of memory; a LoRA of 10,000 tensors takes a fifth


@dataclass(eq=False)
class Named:
    """A class or function that the pickle names, such as `torch.FloatStorage`; never looked up."""

    name: str


@dataclass(eq=False)
class PickledObject:
    """An object that the pickle wants made by calling `name` with `args`, and what it puts into it."""

    name: str
    args: tuple
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)


@dataclass(eq=False)
class Reference:
    """A persistent id: torch's way of pointing at a storage outside the pickle."""

    key: Any


class Malformed(ConvertError):
    """The bytes are no pickle, or use a part of the language that no embedding needs."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """The value of a pickle, where it ended, the references it made, the names it used and those it wanted called."""

    value: Any
    end: int
    references: list[Reference]
    names: list[str]
    called: list[str]


def load(data: bytes | memoryview, at: int = 0) -> Loaded:
    """The pickle that starts at `at`. Raises Malformed."""
    machine = Machine(data, at)
    try:
        return Loaded(machine.run(), machine.at, machine.references, machine.names, machine.called)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError) as error:
        raise Malformed(f"not a pickle ({type(error).__name__} at byte {machine.at})") from error


class Machine:
    """A stack, a memo and a position, as in pickle's own virtual machine."""

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self.data, self.at = memoryview(data), at
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []
        self.names: list[str] = []
        self.called: list[str] = []

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.pop()
            operation = OPERATIONS.get(code)
            if operation is None:
                raise Malformed(
                    f"a pickle with opcode {bytes([code])!r} at byte {self.at - 1}, which no embedding needs"
                )
            operation(self)
        raise Malformed(f"a pickle of more than {MAX_STEPS} steps, which no embedding needs")

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("beyond the end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, form: str) -> str:
        return str(self.take(self.number(form)), "utf-8", "surrogatepass")

    def line(self) -> str:
        end = bytes(self.data[self.at : self.at + 4096]).index(b"\n")
        text = str(self.take(end), "utf-8")
        self.at += 1
        return text

    def above_mark(self) -> list[Any]:
        for at in reversed(range(len(self.stack))):
            if self.stack[at] is MARK:
                above = self.stack[at + 1 :]
                del self.stack[at:]
                return above
        raise ValueError("no mark")

    def pop(self) -> Any:
        if self.stack[-1] is MARK:
            raise ValueError("nothing to take")
        return self.stack.pop()

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def call(self) -> None:
        args, called = self.pop(), self.pop()
        if not isinstance(called, Named) or not isinstance(args, tuple):
            raise Malformed("a pickle that calls something that is no function")
        self.called.append(called.name)
        self.stack.append(PickledObject(called.name, args))

    def made(self, name: str) -> PickledObject:
        return PickledObject(name, ())

    def build(self) -> None:
        state = self.pop()
        if not isinstance(self.stack[-1], PickledObject):
            raise Malformed("a pickle that changes something that is no object")
        self.stack[-1].state = state

    def append(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        target = target.elements if isinstance(target, PickledObject) else target
        if not isinstance(target, list):
            raise Malformed("a pickle that appends to something that is no list")
        target.extend(elements)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, PickledObject) else target
        if not isinstance(target, dict) or len(flat) % 2:
            raise Malformed("a pickle that sets items of something that is no dict")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            plain = isinstance(key, str | int | float | bytes | None)
            target[str(key) if plain else getattr(key, "name", "?")] = value  # numbers could be chosen to collide

    def name(self, module: Any, name: Any) -> Named:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a pickle that names something by what is no text")
        if len(module) + len(name) > LONGEST_NAME or len(self.names) > MAX_NAMES:
            raise Malformed("a pickle that names more classes, or longer ones, than any embedding")
        self.names.append(f"{module}.{name}")
        return Named(f"{module}.{name}")

    def refer(self) -> Reference | Named:
        key = self.pop()
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module" and isinstance(key[1], Named):
            return key[1]  # how torch before 1.6 named the class of a module, with its source beside it
        self.references.append(Reference(key))
        return self.references[-1]
