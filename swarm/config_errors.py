"""From pydantic's errors to sentences that name the key, the value and what is allowed. Pure."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

#: What a value must be, by the head of pydantic's error type.
KINDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "path": "a path",
    "dict": "a table",
    "model": "a table",
    "tuple": "a list",
    "list": "a list",
}
#: What a value must be, by pydantic's error type; `ctx` fills in the numbers.
BOUNDS: Mapping[str, str] = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "utf8_length": "a string of {least} to {most} bytes",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    key: str
    """Dotted: "tasks.0.name"."""
    sentence: str
    """Begins with the key."""


def complaints(error: ValidationError, model: type[BaseModel]) -> list[Complaint]:
    """One per thing that is wrong with the value that `model` was to be made from, in the order of the fields."""
    found = [_complaint(details, model) for details in error.errors(include_url=False)]
    # A list whose item is wrong counts as too short, too: what is wrong inside of a key says enough about the key.
    return [c for c in found if not any(other.key.startswith(f"{c.key}.") for other in found)]


def shown(value: object) -> str:
    """A value as it would stand in the file, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _complaint(details: ErrorDetails, root: type[BaseModel]) -> Complaint:
    keys, table = _locate(root, details["loc"])
    key, kind, ctx = ".".join(keys), details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return Complaint(key, f"{key} is not a key; {_neighbour(keys, table, root)}")
    if kind.startswith("union_tag"):
        tags = " or ".join(shown(tag) for tag in _variants(_annotation(root, keys)))
        if kind == "union_tag_not_found":  # the fault of whoever made the table, by whichever of its keys
            return Complaint(key, f"{key}.type is missing; it must be {tags}")
        return Complaint(f"{key}.type", f"{key}.type = {shown(ctx['tag'])} is not allowed; it must be {tags}")
    if kind == "missing":
        return Complaint(key, f"{key} is missing")
    return Complaint(key, f"{key} = {shown(details['input'])} is not allowed; it must be {_allowed(details)}")


def _allowed(details: ErrorDetails) -> str:
    kind, ctx = details["type"], details.get("ctx", {})
    if kind in BOUNDS:
        return BOUNDS[kind].format(**ctx)
    if kind == "literal_error":
        return ctx["expected"].replace("'", '"')
    return KINDS.get(kind.partition("_")[0], f"valid ({details['msg']})")


def _neighbour(keys: Sequence[str], table: type[BaseModel] | None, root: type[BaseModel]) -> str:
    names = list(table.model_fields) if table is not None else []
    parent = ".".join(keys[:-1])
    if near := difflib.get_close_matches(keys[-1], names, n=1):
        return f"did you mean {'.'.join([*keys[:-1], near[0]])}?"
    elsewhere = [key for key in _all_keys(root) if key.rpartition(".")[2] == keys[-1]]
    if elsewhere and ".".join(keys) not in elsewhere:
        return f"did you mean {elsewhere[0]}?"
    tag = table.model_fields["type"].default if table is not None and "type" in names else None
    variant = f" of type {shown(tag)}" if isinstance(tag, str) else ""
    return f"{parent or 'the file'}{variant} has {', '.join(names)}"


def _locate(root: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys as the file has them (pydantic's location also names the variant of a tagged union), and the table that
    the last key is in."""
    keys: list[str] = []
    here: Any = root
    table: Any = None
    for part in loc:
        if part in (variants := _variants(here)):
            here = variants[str(part)]
            continue
        keys.append(str(part))
        here, table = _inside(here, part), here
    return keys, table if _is_table(table) else None


def _annotation(root: type[BaseModel], keys: Sequence[str]) -> Any:
    here: Any = root
    for key in keys:
        here = _inside(here, key)
    return here


def _inside(annotation: Any, key: int | str) -> Any:
    """The type of what is under `key`; None where the models do not say."""
    if _is_table(annotation):
        field = annotation.model_fields.get(str(key))
        return None if field is None else field.annotation
    return get_args(annotation)[0] if get_origin(annotation) in (tuple, list) else None


def _variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """Tag -> table, of a tagged union; empty for everything else."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    return {member.model_fields["type"].default: member for member in get_args(annotation) if _is_table(member)}


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _all_keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        yield prefix + name
        inner = [field.annotation] if _is_table(field.annotation) else _variants(field.annotation).values()
        for model in inner:
            yield from _all_keys(model, f"{prefix}{name}.")  # type: ignore[arg-type]  # _is_table has looked
