"""Checks a backbone's config.json before transformers acts on it: a stranger may have written it.

Some of its fields make transformers fetch code, take weights from elsewhere or build millions of layers. The families
that are supported need none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig

from safe_rlhf_video.errors import CheckpointError

# What transformers would do about them.
_REFUSED: Mapping[str, str] = {
    "quantization_config": "load quantised weights, with kernels that it may fetch",
    "compression_config": "load compressed weights",
    "fusion_config": "replace layers",
    "distributed_config": "divide the model",
}
# The largest backbone of a supported family has 94 layers.
_MAX_LAYERS = 256
_MAX_ITEMS = 10_000
_MAX_DEPTH = 20
# The head for writing text, which is left aside, is a part of the weights.
_MAX_SHARE = 2


def check_fields(fields: Mapping[str, Any], source: str) -> None:
    """Checks the fields of config.json.

    Raises:
        CheckpointError: a field reaches beyond the weights beside it, or would take very long to build.
    """
    if fields.get("transformers_weights"):
        raise CheckpointError(
            f"{source}: config.json takes the weights from {fields['transformers_weights']!r} (transformers_weights), "
            "only model.safetensors and its index are read; rename the file and delete the entry"
        )
    for place, value in _walk(fields, ""):
        name = place.rpartition(".")[2]
        if place.count(".") > _MAX_DEPTH:
            raise CheckpointError(f"{source}: config.json is nested too deeply; download the checkpoint again")
        if name in _REFUSED and value not in (None, {}, ""):
            raise CheckpointError(
                f"{source}: config.json field {place} makes transformers {_REFUSED[name]}, which is not supported; "
                "give a backbone without it"
            )
        is_count = "layers" in name or name in ("depth", "num_labels", "n_layer") or "experts" in name
        if is_count and isinstance(value, int) and value > _MAX_LAYERS:
            raise CheckpointError(
                f"{source}: config.json field {place} is {value}, at most {_MAX_LAYERS} are built; download the "
                "checkpoint again"
            )
        if isinstance(value, list | dict) and len(value) > _MAX_ITEMS:
            raise CheckpointError(
                f"{source}: config.json field {place} has {len(value)} entries, at most {_MAX_ITEMS} are read; "
                "download the checkpoint again"
            )


def clear_implementations(model_config: PreTrainedConfig) -> None:
    """Forgets which kernels config.json names, in its parts too: "owner/name" would be fetched from the hub and run."""
    model_config._attn_implementation = None
    model_config._experts_implementation = None


def check_amounts(model: nn.Module, files: Sequence[str], source: str) -> None:
    """Checks that a model is not much larger than the weights that will fill it, of which only the headers are read.

    Args:
        model: its parameters may be on the meta device.
        files: of the weights.

    Raises:
        CheckpointError: it is.
    """
    needed = sum(parameter.numel() for parameter in model.parameters())
    found = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, no mapping
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    found += size
        except (SafetensorError, OSError):
            return  # whoever reads the weights says what is wrong
    if needed > _MAX_SHARE * found:
        raise CheckpointError(
            f"{source}: config.json is of a model with {needed} numbers, the weights have {found}; download the "
            "checkpoint again"
        )


def _walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All fields with their places, such as "text_config.num_hidden_layers"."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            inner = f"{place}.{name}" if place else str(name)
            yield inner, item
            yield from _walk(item, inner)
