"""Reads a typed configuration from a YAML file and the command line, and lists its fields for --help."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from safe_rlhf_video.cli import describe_unknown, refuse_repeated
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.field_docs import FieldDoc, describe_type, read_sections
from safe_rlhf_video.files import require_path
from safe_rlhf_video.wording import did_you_mean

Config = TypeVar("Config")
Node = yaml.nodes.Node

HELP_WIDTH = 100
# The deepspeed launcher passes it to every script; the environment has it too.
LOCAL_RANK = re.compile(r"--local_rank=\d+")


def parse_config(config_type: type[Config], arguments: Sequence[str], description: str) -> Config:
    """Reads `--config FILE.yaml` and `--section.field VALUE` overrides into a dataclass.

    `-h` or `--help` lists all fields and exits. A field that is true or false may stand without a value, for true.

    Raises:
        ConfigError: an unknown or repeated key, a value of another type, or a missing file.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    words = [word for word in arguments if not LOCAL_RANK.fullmatch(word)]
    if {"-h", "--help"} & set(words):
        print("\n".join(describe_config(config_type, description)))
        sys.exit(0)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_type)
    known = {f"--{path}": one for path, one in _fields_of(config_type).items()}
    try:
        parsed = parser.parse_args(_prepare(words, config_type, known))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
            values = instantiate(parsed).as_dict()
    except ArgumentError as error:
        _explain(error, config_type)
    values.pop("config", None)
    return config_type(**values)


def list_overrides(arguments: Sequence[str]) -> frozenset[str]:
    """Returns the fields that a command line sets by themselves, as `loss.sign`."""
    names = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    return frozenset(name.removeprefix("--") for name in names if name not in ("--config", "--print_config"))


def describe_config(config_type: type, description: str) -> Iterator[str]:
    """Yields the lines of --help: each section, and the meaning and default of each field in it."""
    yield f"usage: {Path(sys.argv[0]).name} [--config FILE.yaml] [--section.field VALUE ...]"
    yield from ("", description.strip(), "")
    yield "Fields are set in FILE.yaml or here; here counts. --print_config prints all as they are set, and ends."
    for section in read_sections(config_type):
        yield from ("", f"{section.path}: {section.summary}" if section.path else "the run:", "")
        for one in section.fields:
            yield f"  --{one.path} {_placeholder(one)}"
            default = f"Default: {one.default}." if one.default else "Required."
            wrapped = textwrap.wrap(f"{one.meaning} {default}", HELP_WIDTH - 6, break_on_hyphens=False)
            yield from (f"      {line}" for line in wrapped)


def _placeholder(one: FieldDoc) -> str:
    if one.is_flag:
        return "[true|false]"
    words = describe_type(one.annotation).removesuffix(", or null")
    if words.startswith("one of "):
        return f"{{{','.join(map(str, one.choices))}}}"
    names = {"a whole number": "INTEGER", "a number": "NUMBER", "a text": "TEXT", "a section of keys": "KEYS"}
    return names.get(words, "[A,B,...]" if words.startswith("a list") else "TEXT or [A,B,...]")


def _fields_of(config_type: type) -> dict[str, FieldDoc]:
    return {one.path: one for section in read_sections(config_type) for one in section.fields}


def _prepare(words: Sequence[str], config_type: type, known: Mapping[str, FieldDoc]) -> list[str]:
    """Checks names, fills in what flags leave out, and takes the checked content of files in place of their names."""
    options = {*known, "--config", "--print_config"}
    refuse_repeated(words, options - {"--config"})
    prepared: list[str] = []
    takes_value = False
    for word, following in zip(words, [*words[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if takes_value and not (word.startswith("--") and name in options):
            is_file = prepared[-1] == "--config"
            prepared.append(_read_file(Path(word), config_type) if is_file else word)
            takes_value = False
            continue
        if name not in options:
            raise ConfigError(describe_unknown(word, options))
        if name == "--config" and equals:
            prepared += [name, _read_file(Path(value), config_type)]
        elif name in known and known[name].is_flag and not equals and (following is None or following.startswith("--")):
            prepared.append(f"{name}=true")
        else:
            prepared.append(word)
            takes_value = not equals and name != "--print_config"
    return prepared


def _read_file(path: Path, config_type: type) -> str:
    """Reads a YAML file; checks its keys; leaves out sections without a field."""
    require_path(path, ConfigError)
    try:
        return _check_text(path.read_text(encoding="utf-8"), config_type, path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError(f"config: {path}: cannot be read ({reason}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())}); correct it") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; correct it") from None


def _check_text(text: str, config_type: type, path: Path) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return "{}"
    sections: dict[str, Any] = {}
    for field in _fields_of(config_type):
        *above, name = field.split(".")
        inner = sections
        for section in above:
            inner = inner.setdefault(section, {})
        inner[name] = None
    _check_keys(node, sections, (), path)
    return yaml.serialize(node)


def _check_keys(node: Node, sections: Mapping[str, Any], above: tuple[str, ...], file: Path) -> None:
    """Checks that a section of a file has only keys that it may have, each once, and removes sections without any.

    jsonargparse passes over an unknown key whose value is `{}`, and YAML takes the last of two equal keys.
    """
    where = f"{file}: {'.'.join(above)}" if above else f"{file}"
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}: expected a section of fields, such as {next(iter(sections))}, each on a line")
    seen: set[str] = set()
    kept = []
    for key, value in node.value:
        name = str(key.value)
        path = ".".join([*above, name])
        if name not in sections:
            choices = [".".join([*above, one]) for one in sections] + _leaves(sections, above)
            advice = did_you_mean(path, choices) or f"there are {', '.join(sections)}"
            if path in choices:
                advice = f"write {name.rpartition('.')[2]} in the section {path.rpartition('.')[0]}"
            raise ConfigError(f"{file}: there is no field {path}; {advice}")
        if name in seen:
            raise ConfigError(f"{file}: {path} is there twice, and only one could count; join them")
        seen.add(name)
        if sections[name] is not None:
            if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":null"):
                continue
            _check_keys(value, sections[name], (*above, name), file)
        _refuse_twins(value, path, file)
        kept.append((key, value))
    node.value = kept


def _refuse_twins(node: Node, path: str, file: Path) -> None:
    """Raises a ConfigError where a key is twice in what a field holds."""
    if not isinstance(node, yaml.MappingNode):
        return
    names = [str(key.value) for key, _ in node.value]
    for place, (name, (_, value)) in enumerate(zip(names, node.value, strict=True)):
        if name in names[:place]:
            raise ConfigError(f"{file}: {path}.{name} is there twice, and only one could count; join them")
        _refuse_twins(value, f"{path}.{name}", file)


def _leaves(sections: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    found = []
    for name, inner in sections.items():
        found += [".".join((*above, name))] if inner is None else _leaves(inner, (*above, name))
    return found


def _explain(error: Exception, config_type: type) -> NoReturn:
    """Raises a ConfigError that says in words what a field expects."""
    text = " ".join(str(error).split())
    named = re.search(r'Parser key "([\w.]+)"', text)
    one = _fields_of(config_type).get(named[1]) if named else None
    value = re.search(r"(?:Got value|Given value): (.*)$", text)
    if one is not None and value is not None:
        raise ConfigError(f"{one.path}: expected {describe_type(one.annotation)}, got {value[1]}") from error
    if bare := re.search(r"argument (--[\w.]+)\S*: expected one argument", text):
        raise ConfigError(f"{bare[1]}: needs a value; --help says which") from error
    if required := re.search(r"arguments are required: ([\w.]+)", text):
        raise ConfigError(f"{required[1]}: missing; give --{required[1]}, or set it in the file of --config") from error
    raise ConfigError(text) from error
