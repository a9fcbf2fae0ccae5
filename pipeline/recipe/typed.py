"""Tables of a recipe as typed options, with the defaults of their schemas, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pivotune import schemas

from .defaults import TABLES, fill_trained, with_defaults
from .intervals import Every, parse_interval
from .options import NormRule, OptimizerOptions, ScheduleOptions, TrainOptions

T = TypeVar("T")


def options_of(kind: type[T], /, **given: Any) -> T:
    """The options of a table with these keys, as a recipe writes them; all others are the schema's defaults."""
    origin: str = kind.SCHEMA  # type: ignore[attr-defined]
    about = schemas.schema(origin)
    if schemas.has_branches(about):
        about, origin = schemas.branch(about, given, origin)
    table = with_defaults(given, about, origin)
    if kind is TrainOptions:
        fill_trained(table)
    return typed(kind, table)


def typed(kind: type[T], table: Mapping[str, Any]) -> T:
    """The options of a table that has all keys of its schema (see `with_defaults`).

    A key that is a keyword of Python is a field with `_` behind it.
    """
    if kind is OptimizerOptions:
        settings = {key: _value(Any, value) for key, value in table.items() if key not in ("kind", "weight_decay")}
        return kind(table["kind"], settings, table["weight_decay"] or 0.0)  # type: ignore[call-arg]
    return kind(**{name: _value(wanted, table[name.rstrip("_")]) for name, wanted in _types(kind).items()})  # type: ignore[arg-type]


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Field name to type, with the names in annotations resolved."""
    types = get_type_hints(kind)
    return {one.name: types[one.name] for one in fields(kind)}


def _value(wanted: Any, value: Any) -> Any:
    """A value of a table as its type says: tables become their class, lists tuples."""
    inner = next((one for one in (wanted, *get_args(wanted)) if is_dataclass(one)), None)
    if value is None and get_origin(wanted) is tuple:
        return ()
    if inner is ScheduleOptions and value is not None:  # a name alone, or the keys that are given
        return options_of(ScheduleOptions, **({"kind": value} if isinstance(value, str) else value))
    if inner is Every and isinstance(value, str):
        return parse_interval(value)
    if isinstance(value, dict) and isinstance(inner, type):
        return typed(inner, value)
    if isinstance(value, (list, tuple)):
        return tuple(_value(inner, one) for one in value)
    return value


def norm_rule(value: Any) -> NormRule | None:
    """A norm rule as a recipe writes it, or None."""
    return _value(NormRule, value)


def as_table(options: Any) -> Any:
    """Options as a recipe writes them, with every key (of a schedule, those that are not the default); None is off."""
    if isinstance(options, Every):
        return str(options)
    if isinstance(options, OptimizerOptions):
        return {"kind": options.kind, **as_table(options.settings), "weight_decay": options.weight_decay}
    if isinstance(options, ScheduleOptions):
        usual = options_of(ScheduleOptions, kind=options.kind)
        own = {key: as_table(value) for key, value in vars(options).items() if value != getattr(usual, key)}
        return {"kind": options.kind, **own} if own or options.kind == "piecewise" else options.kind
    if is_dataclass(options):
        table = {key.rstrip("_"): as_table(value) for key, value in vars(options).items()}
        return table | {key: None for key in TABLES if table.get(key) == []}
    if isinstance(options, (list, tuple)):
        return [as_table(one) for one in options]
    return dict(options) if isinstance(options, Mapping) else options
