"""The opcodes that data in a pickle is made of, by what they do to the machine of `pickle_data`.

Those that no embedding needs (INST, OBJ, EXT, NEWOBJ_EX, text numbers of protocol 0, out-of-band buffers) are not
here, and a pickle that uses one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pickle_data import Machine

MARK = object()


def _push(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        machine.stack.append(value(machine))

    return operation


def _pop_tuple(count: int) -> Callable[[Machine], tuple]:
    return lambda machine: tuple([machine.pop() for _ in range(count)][::-1])


def _signed(machine: Machine, form: str) -> int:
    return int.from_bytes(machine.take(machine.number(form)), "little", signed=True)


OPERATIONS: dict[int, Callable[[Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": _push(lambda m: MARK),
        "0": lambda m: m.stack.pop(),
        "N": _push(lambda m: None),
        "\x88": _push(lambda m: True),
        "\x89": _push(lambda m: False),
        "J": _push(lambda m: m.number("<i")),
        "K": _push(lambda m: m.number("<B")),
        "M": _push(lambda m: m.number("<H")),
        "\x8a": _push(lambda m: _signed(m, "<B")),
        "\x8b": _push(lambda m: _signed(m, "<i")),
        "G": _push(lambda m: m.number(">d")),
        "X": _push(lambda m: m.text("<I")),
        "\x8c": _push(lambda m: m.text("<B")),
        "\x8d": _push(lambda m: m.text("<Q")),
        "U": _push(lambda m: bytes(m.take(m.number("<B"))).decode("latin-1")),
        "T": _push(lambda m: bytes(m.take(m.number("<i"))).decode("latin-1")),
        "C": _push(lambda m: bytes(m.take(m.number("<B")))),
        "B": _push(lambda m: bytes(m.take(m.number("<I")))),
        "\x8e": _push(lambda m: bytes(m.take(m.number("<Q")))),
        ")": _push(lambda m: ()),
        "t": _push(lambda m: tuple(m.above_mark())),
        "\x85": _push(_pop_tuple(1)),
        "\x86": _push(_pop_tuple(2)),
        "\x87": _push(_pop_tuple(3)),
        "]": _push(lambda m: []),
        "l": _push(lambda m: m.above_mark()),
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.above_mark()),
        "}": _push(lambda m: {}),
        "s": lambda m: m.set_items([*_pop_tuple(2)(m)]),
        "u": lambda m: m.set_items(m.above_mark()),
        "\x8f": _push(lambda m: m.made("builtins.set")),
        "\x90": lambda m: m.append(m.above_mark()),
        "c": _push(lambda m: m.name(m.line(), m.line())),
        "\x93": _push(lambda m: m.name(*_pop_tuple(2)(m))),
        "R": lambda m: m.call(),
        "\x81": lambda m: m.call(),  # NEWOBJ
        "b": lambda m: m.build(),
        "Q": _push(lambda m: m.refer()),
        "q": lambda m: m.put(m.number("<B")),
        "r": lambda m: m.put(m.number("<I")),
        "\x94": lambda m: m.put(len(m.memo)),
        "h": _push(lambda m: m.memo[m.number("<B")]),
        "j": _push(lambda m: m.memo[m.number("<I")]),
    }.items()
}
