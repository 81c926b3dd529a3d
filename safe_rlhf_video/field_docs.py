"""Reads what the docstrings of configuration dataclasses say of their fields, for --help and docs/configuration.md."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class FieldDoc:
    """One field of a configuration.

    Attributes:
        path: its name with those of the sections around it, as `model.lora.rank`.
        annotation: its type.
        default: as YAML has it; "" where the field is required.
        meaning: one sentence or more, with the unit.
    """

    path: str
    annotation: Any
    default: str
    meaning: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that the type allows, if it lists them."""
        return _list_choices(self.annotation)

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false."""
        return self.annotation is bool


@dataclass(frozen=True)
class SectionDoc:
    """A dataclass in a configuration.

    Attributes:
        path: the field that holds it, as `model.lora`; empty for the whole configuration.
        summary: what it is about.
        fields: its fields, without the sections in it.
    """

    path: str
    summary: str
    fields: tuple[FieldDoc, ...]


@cache
def read_sections(config_type: type, path: str = "") -> tuple[SectionDoc, ...]:
    """Reads a dataclass and the dataclasses in it, outer ones first.

    Raises:
        ValueError: a field has no meaning in the docstring.
    """
    return tuple(_read_sections(config_type, path))


def _read_sections(config_type: type, path: str) -> Iterator[SectionDoc]:
    summary, meanings = _read_docstring(config_type)
    annotations = get_type_hints(config_type)
    inner = {one.name: annotations[one.name] for one in fields(config_type) if is_dataclass(annotations[one.name])}
    found = []
    for one in fields(config_type):
        if one.name in inner:
            continue
        if one.name not in meanings:
            raise ValueError(f"{config_type.__name__}: the docstring says nothing about {one.name}")
        meaning = meanings[one.name][0].upper() + meanings[one.name][1:]
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        found.append(FieldDoc(_join(path, one.name), annotations[one.name], _in_yaml(default), meaning))
    yield SectionDoc(path, summary, tuple(found))
    for name, section in inner.items():
        yield from _read_sections(section, _join(path, name))


def describe_type(annotation: Any) -> str:
    """Says in words what values a type takes: "a whole number", "a list such as [a, b], or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return ", or ".join(describe_type(one) for one in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}, each {describe_type(inner[0])}"
    if origin in (list, tuple):
        item = describe_type(inner[0])
        return "a list such as [a,b]" if item == "a text" else f"a list, each {item}"
    if origin is dict or annotation is dict:
        return "a section of keys"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}.get(
        annotation, str(annotation)
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read_docstring(section: type) -> tuple[str, dict[str, str]]:
    """Returns the summary of a dataclass and the meaning of each of its attributes, each in one line."""
    text = inspect.getdoc(section) or ""
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    attributes = re.split(r"\n\n(?! )", attributes)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", attributes, re.MULTILINE)
    return " ".join(summary.split()), {name: " ".join(meaning.split()) for name, meaning in found}


def _list_choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return tuple(choice for one in get_args(annotation) for choice in _list_choices(one))
    return ()


def _in_yaml(value: Any) -> str:
    if value is MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
