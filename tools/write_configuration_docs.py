"""Writes docs/configuration.md: every field of a training config, with its default and its meaning.

python tools/write_configuration_docs.py

The page is made from the dataclasses of training/config.py and their docstrings; a test keeps it up to date.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from safe_rlhf_video.training.config import TrainConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by tools/write_configuration_docs.py; change the docstrings of training/config.py instead. -->

Every field of a training config ([training.md](training.md)), with its default. A YAML file sets only what differs from
the defaults; `configs/` holds examples. The command line overrides both: `--optimization.epochs 1`. A field that is
unknown or has a wrong value is an error before anything is loaded.
"""


def main() -> None:
    PAGE.write_text(write_page(), encoding="utf-8")
    print(f"wrote {PAGE}")


def write_page() -> str:
    """Return the page as Markdown."""
    return "\n".join([INTRODUCTION, *write_section(TrainConfig, "")]).rstrip() + "\n"


def write_section(section: type, path: str) -> Iterator[str]:
    """Yield the lines for a dataclass, then those for the dataclasses in it.

    Args:
        section: The dataclass.
        path: The field that holds it, as `model.lora`; empty for the whole config.

    Raises:
        ValueError: a field has no meaning in the docstring.
    """
    summary, meanings = read_docstring(section)
    types_of_fields = get_type_hints(section)
    inner = {one.name: types_of_fields[one.name] for one in fields(section) if is_dataclass(types_of_fields[one.name])}
    if path:
        yield from (f"## `{path}`", "", summary.replace("<", "&lt;"), "")
    yield from ("| field | default | meaning |", "|---|---|---|")
    for one in fields(section):
        if one.name in inner:
            continue
        if one.name not in meanings:
            raise ValueError(f"{section.__name__}: the docstring says nothing about {one.name}")
        allowed = ", ".join(f"`{choice}`" for choice in list_choices(types_of_fields[one.name]))
        meaning = meanings[one.name][0].upper() + meanings[one.name][1:] + (f" One of {allowed}." if allowed else "")
        name = ".".join(filter(None, (path, one.name)))
        yield f"| `{name}` | {format_default(one)} | {meaning.replace('|', chr(92) + '|')} |"
    yield ""
    for name, config_type in inner.items():
        yield from write_section(config_type, ".".join(filter(None, (path, name))))


def read_docstring(section: type) -> tuple[str, dict[str, str]]:
    """Return the summary of a dataclass and the meaning of each of its attributes, each in one line."""
    text = inspect.getdoc(section) or ""
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    attributes = re.split(r"\n\n(?! )", attributes)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", attributes, re.MULTILINE)
    return " ".join(summary.split()), {name: " ".join(meaning.split()) for name, meaning in found}


def list_choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a type allows, if it lists them."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return tuple(choice for one in get_args(annotation) for choice in list_choices(one))
    return ()


def format_default(one: Field[Any]) -> str:
    """Return a field's default as YAML has it."""
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is MISSING:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None:
        return "`null`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, list | tuple) else f"`{value}`"


if __name__ == "__main__":
    main()
