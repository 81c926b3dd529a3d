"""Loading a video-language backbone: the embedded one, a checkpoint folder or a hub id, all by the same code."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import SiLUActivation
from transformers.utils import cached_file, is_flash_attn_2_available, is_liger_kernel_available, logging

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.files import is_only_a_path
from safe_rlhf_video.models.backbone_config import check_amounts, check_fields, clear_implementations
from safe_rlhf_video.models.config import EMBEDDED_BACKBONE, BackboneConfig
from safe_rlhf_video.models.families import FAMILIES, Family
from safe_rlhf_video.models.prompts import Special
from safe_rlhf_video.reading import find_unfit, load_json, read_regular
from safe_rlhf_video.video.sampling import Sampling

EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "tiny_backbone"

# What tokenizers and processors are read from.
SETTINGS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Reader:
    """All that makes a backbone's inputs, without its weights.

    Attributes:
        family: How the backbone is fed.
        model_config: Its config.json.
        max_tokens: The longest input it was made for.
    """

    tokenizer: PreTrainedTokenizerBase
    family: Family
    model_config: PreTrainedConfig
    max_tokens: int


@dataclass(frozen=True)
class Backbone(Reader):
    """A backbone with all that is needed to feed it, frozen.

    Attributes:
        model: Returns `last_hidden_state` (N, L, E); it has no language-model head.
        fingerprint: Identifies the weights; a model folder names the one it was trained on.
        attention: The implementation of attention that was chosen.
        liger: Whether the language model runs on Liger kernels.
    """

    model: PreTrainedModel
    config: BackboneConfig
    fingerprint: str
    hidden_size: int
    attention: str
    liger: bool


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> Backbone:
    """Load weights, tokenizer and preprocessing of one backbone, frozen and in evaluation mode.

    Raises:
        CheckpointError: the folder or hub id is missing or incomplete, or its family is not supported.
        ConfigError: an attention was asked for that cannot run here.
    """
    return fill_backbone(outline_backbone(config, device), device)


def outline_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> Backbone:
    """A backbone before its weights are read: all is checked but them.

    Returns:
        As `build_outline`.

    Raises:
        CheckpointError, ConfigError: as `load_backbone`.
    """
    dtype = _resolve_dtype(config.dtype, torch.device(device))
    attention = _resolve_attention(config.attention, torch.device(device), dtype)
    reader = load_reader(config)
    return _load_part(lambda *_, **__: build_outline(reader, config, dtype, attention), _resolve_source(config), config)


def build_outline(reader: Reader, config: BackboneConfig, dtype: torch.dtype, attention: str) -> Backbone:
    """A backbone of a reader's config.json, whether or not there are weights of it.

    Args:
        dtype: of all parameters.
        attention: the implementation of attention, by transformers' name.

    Returns:
        The backbone as `fill_backbone` completes it, with parameters of the right names, shapes and types on the meta
        device, and without a fingerprint.
    """
    with torch.device("meta"):
        model = _build_model(reader.model_config, config, dtype, attention)
    return Backbone(
        **vars(reader),
        model=model.requires_grad_(False).eval(),
        config=config,
        fingerprint="",
        hidden_size=reader.model_config.get_text_config().hidden_size,
        attention=attention,
        liger=False,
    )


def identify_backbone(outline: Backbone) -> Backbone:
    """An outlined backbone with the fingerprint of its weight files, which are read whole but not loaded.

    A random initialisation has no files: it gets its fingerprint when it is drawn.

    Raises:
        CheckpointError: a file is missing, damaged or cannot be read.
    """
    if outline.config.initialization == "random":
        return outline
    return replace(outline, fingerprint=_fingerprint_weights(_resolve_source(outline.config), outline.config))


def fill_backbone(outline: Backbone, device: torch.device | str = "cpu") -> Backbone:
    """Read the weights of an outlined backbone.

    Args:
        outline: with a fingerprint or without.
        device: as the outline's.

    Raises:
        CheckpointError: a file is damaged, or is not of config.json's architecture.
        ConfigError: the installed Liger kernels cannot be used.
    """
    config = outline.config
    source, dtype = _resolve_source(config), _resolve_dtype(config.dtype, torch.device(device))
    if config.initialization == "random":
        # A seed of its own: the control must not depend on what ran before, nor change what runs after.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.random_seed)
            # In float32, whatever the type to run in: other types draw other numbers.
            model = _build_model(outline.model_config, config, torch.float32, outline.attention)
        fingerprint = f"random-{config.random_seed}-{_fingerprint_tensors(model.state_dict())}"
        model.to(dtype)
    else:
        fingerprint = outline.fingerprint or _fingerprint_weights(source, config)
        check_amounts(outline.model, _weight_files(source, config), source)
        with _quiet():  # its report calls the head for writing text a fault
            model, loading_info = _load_part(
                AutoModel.from_pretrained,
                source,
                config,
                config=copy.deepcopy(outline.model_config),  # not that of the file: see `clear_implementations`
                trust_remote_code=config.trust_remote_code,
                dtype=dtype,
                attn_implementation=outline.attention,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # not ignored, but said below: transformers' own error names no tensor
                output_loading_info=True,
            )
        _check_loading(loading_info, source)
    model.requires_grad_(False).eval().to(device)
    language_model = model.get_submodule(outline.family.language_model)
    liger = config.liger == "auto" and torch.device(device).type == "cuda" and _apply_liger(language_model)
    return replace(outline, model=model, fingerprint=fingerprint, liger=liger)


def load_reader(config: BackboneConfig) -> Reader:
    """Load tokenizer and preprocessing of a backbone, and none of its weights.

    Raises:
        CheckpointError: its folder or hub id is missing or incomplete, or its family is not supported.
    """
    source = _resolve_source(config)
    family, model_config = _load_family(source, config)
    tokenizer = _load_part(AutoTokenizer.from_pretrained, source, config, trust_remote_code=config.trust_remote_code)
    _check_tokenizer(tokenizer, family, family.token_ids(model_config), source)
    return Reader(tokenizer, family, model_config, model_config.get_text_config().max_position_embeddings)


def load_family(config: BackboneConfig) -> Family:
    """How a backbone is fed, without loading any weights.

    Raises:
        CheckpointError: its family is not supported, or a processor's file is missing or damaged.
    """
    return _load_family(_resolve_source(config), config)[0]


def check_sampling(config: BackboneConfig, sampling: Sampling) -> None:
    """Say before any weights are loaded that clips sampled like this are not what the backbone takes.

    Raises:
        ConfigError: `size_multiple` or `fit` are not the backbone's, or a clip makes more tokens than it has positions.
        CheckpointError: its family is not supported, or a processor's file is missing or damaged.
    """
    family, model_config = _load_family(_resolve_source(config), config)
    family.check_sampling(sampling, config.path, model_config.get_text_config().max_position_embeddings)


def copy_settings(config: BackboneConfig, folder: Path) -> None:
    """Copy a checkpoint's tokenizer and processor files as they are: with weights and config.json, all of a backbone.

    Raises:
        CheckpointError: the checkpoint is missing.
    """
    source = _resolve_source(config)
    for name in SETTINGS:
        found = _load_part(cached_file, source, config, filename=name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)


def fingerprint_checkpoint(folder: Path) -> str:
    """The fingerprint that a backbone has when it is loaded from this folder."""
    return _fingerprint_weights(str(folder), BackboneConfig(path=str(folder)))


def _load_family(source: str, config: BackboneConfig) -> tuple[Family, PreTrainedConfig]:
    folder = Path(source)
    if folder.is_dir() and (unfit := find_unfit(folder.iterdir())):
        raise CheckpointError(f"{unfit[0]}: {unfit[1]}; download the checkpoint again")
    fields = _load_part(PreTrainedConfig.get_config_dict, source, config)[0]
    name = fields.get("model_type") if isinstance(fields, dict) else None
    if name is None:
        raise CheckpointError(f"{source}: has no config.json with a model_type; give a backbone's folder or hub id")
    if name not in FAMILIES:
        raise CheckpointError(
            f"{source}: backbones of the family {name!r} are not supported; supported: {', '.join(FAMILIES)}"
        )
    check_fields(fields, source)
    _refuse_adapter(source, config)
    model_config = _load_part(AutoConfig.from_pretrained, source, config, trust_remote_code=config.trust_remote_code)
    clear_implementations(model_config)
    return _read_processor(source, config, FAMILIES[name], model_config), model_config


def _refuse_adapter(source: str, config: BackboneConfig) -> None:
    """Without this, transformers would put the adapter on: the fingerprint would be that of other weights."""
    optional = dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    if _load_part(cached_file, source, config, filename="adapter_config.json", **optional):
        raise CheckpointError(
            f"{source}: has an adapter (adapter_config.json), so that its weights are not those of a backbone alone; "
            "merge the adapter into them, or delete it"
        )


def _resolve_source(config: BackboneConfig) -> str:
    """The folder to load from, or a hub id."""
    if config.path == EMBEDDED_BACKBONE:
        return str(EMBEDDED_FOLDER)
    folder = Path(config.path).expanduser()
    if folder.is_dir():
        return str(folder)
    if is_only_a_path(config.path) and not folder.exists():
        raise CheckpointError(f"{config.path}: no such file or folder; say where the backbone is, or give a hub id")
    return config.path


def _load_part(load: Any, source: str, backbone: BackboneConfig, /, **options: Any) -> Any:
    try:
        return load(source, revision=backbone.revision, **options)
    except Exception as error:  # tokenizers and safetensors raise classes of their own, and plain Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        here = "" if Path(source).exists() else "no such file or folder here, and "
        raise CheckpointError(
            f"{source}: {here}cannot load this backbone ({reason}); give a checkpoint folder, a hub id, "
            f"or {EMBEDDED_BACKBONE!r} for the embedded one"
        ) from error


def _read_processor(
    source: str, config: BackboneConfig, family: type[Family], model_config: PreTrainedConfig
) -> Family:
    # The order is transformers' own; since version 5 it writes all processors into the first file.
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        found = _load_part(cached_file, source, config, filename=name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        try:
            fields = load_json(read_regular(Path(found)))
            if name == "processor_config.json":
                if "video_processor" not in fields:
                    continue
                fields = fields["video_processor"]
            return family.build(fields, model_config)
        except (KeyError, TypeError, ValueError, OSError) as error:
            reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{found}: damaged ({reason}); download the checkpoint again") from error
    raise CheckpointError(f"{source}: has no video_preprocessor_config.json; download the checkpoint's processor files")


def _check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, family: Family, token_ids: Mapping[Special, int], source: str
) -> None:
    """A folder without tokenizer files gives an empty tokenizer, not an error: every special token must be there."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(f"{source}: its tokenizer has no tokenizer.json; save it with transformers 5")
    vocabulary = tokenizer.get_vocab()
    for special in family.specials:
        token_id = vocabulary.get(special.token)
        if token_id is None:
            raise CheckpointError(
                f"{source}: its tokenizer has no token {special.token}; download the checkpoint's tokenizer files"
            )
        if token_ids.get(special, token_id) != token_id:
            raise CheckpointError(
                f"{source}: {special.token} is token {token_id} of the tokenizer but {token_ids[special]} in "
                "config.json; download the checkpoint again"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_loading(loading_info: Mapping[str, Any], source: str) -> None:
    # The head for writing text is all that a backbone leaves aside.
    unexpected = {name for name in loading_info["unexpected_keys"] if "lm_head" not in name.split(".")}
    mismatched = {name for name, *_ in loading_info["mismatched_keys"]}
    for what, names in (
        ("weights are missing for", loading_info["missing_keys"]),
        ("the shape in the weights' file is not that of config.json for", mismatched),
        ("config.json has no place for the weights of", unexpected),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{source}: {what} {min(names)}{more}; download the checkpoint again")


def _resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _build_model(
    model_config: PreTrainedConfig, config: BackboneConfig, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    # `from_config` writes type and attention into the config that it is given.
    return AutoModel.from_config(
        copy.deepcopy(model_config),
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=config.trust_remote_code,
    )


def _resolve_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    can_flash = device.type == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available()
    if name == "auto":
        return "flash_attention_2" if can_flash else "sdpa"
    if name == "flash_attention_2" and not can_flash:
        raise ConfigError(
            f"model.backbone.attention: flash_attention_2 needs CUDA, bfloat16 and the package flash-attn 2, here "
            f"are {device.type}, {str(dtype).removeprefix('torch.')} and "
            f"{'the package' if is_flash_attn_2_available() else 'no such package'}; set it to auto or sdpa"
        )
    return name


def _apply_liger(language_model: PreTrainedModel) -> bool:
    """Let a language model's norms and gated layers run on Liger kernels, if they are installed.

    Module by module: Liger's functions for whole families also replace classes inside transformers, which breaks models
    built later on a CPU, and those of 0.8.5 for Qwen-VL do not import beside transformers 5.23.
    """
    if not is_liger_kernel_available():
        return False
    try:
        patches = import_module("liger_kernel.transformers.monkey_patch")
        gated_layer = import_module("liger_kernel.transformers.swiglu").LigerSwiGLUMLP
        for module in language_model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                patches._patch_rms_norm_module(module)
            elif isinstance(getattr(module, "act_fn", None), SiLUActivation | nn.SiLU) and hasattr(module, "gate_proj"):
                patches._patch_swiglu_module(module, gated_layer)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"model.backbone.liger: the installed liger-kernel cannot be used ({error}); set it to off"
        ) from error
    return True


def _fingerprint_weights(source: str, config: BackboneConfig) -> str:
    digest = hashlib.sha256()
    for path in _weight_files(source, config):
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror or error}); check its rights, or download it again"
            ) from error
    return digest.hexdigest()[:32]


def _weight_files(source: str, config: BackboneConfig) -> list[str]:
    """What transformers takes the weights from: one whole file goes before an index of several."""

    def find(name: str, is_needed: bool = True) -> str | None:
        return _load_part(cached_file, source, config, filename=name, _raise_exceptions_for_missing_entries=is_needed)

    whole = find("model.safetensors", is_needed=False)
    if whole is not None:
        return [whole]
    index = str(find("model.safetensors.index.json"))
    try:
        names = set(load_json(read_regular(Path(index)))["weight_map"].values())
        if not names:
            raise ValueError("weight_map is empty")
        for name in names:
            if not isinstance(name, str) or PureWindowsPath(name).name != name or name in ("", ".."):
                raise ValueError(f"{name!r} is no file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{index}: damaged ({reason}); download the checkpoint again") from error
    return [str(find(name)) for name in sorted(names)]


def _fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()[:32]
