"""Tiny checkpoint folders of every family, with random weights: the hub's files and architecture, small numbers."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.video.sampling import Sampling

CORPUS = (
    "a red circle moving left at night, show me a checkerboard in purple that is growing by the sea",
    "You are a helpful assistant. Prompt: user assistant system USER: ASSISTANT: Assistant: User:",
    "You are provided the following series of eight frames from a 0:00:01 [H:MM:SS] video. Frame from 00:01:",
)
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

SAMPLINGS = {
    "qwen3_vl": Sampling(num_frames=4, min_pixels=16 * 16, max_pixels=48 * 48, size_multiple=8),
    "qwen2_5_vl": Sampling(num_frames=4, min_pixels=16 * 16, max_pixels=48 * 48, size_multiple=8),
    "smolvlm": Sampling(num_frames=4, min_pixels=32 * 32, max_pixels=32 * 32, size_multiple=32, fit="stretch"),
    "video_llava": Sampling(num_frames=4, min_pixels=32 * 32, max_pixels=32 * 32, size_multiple=32, fit="crop"),
}
assert set(SAMPLINGS) == set(FAMILIES)


def each_family_with(name: str, values: Collection[object]) -> pytest.MarkDecorator:
    """Parametrise a test by the fixture `family` and by a further name.

    The fast tests take every family and every value once at least; the other pairs of both are slow.
    """
    return pytest.mark.parametrize(
        ("family", name),
        [
            pytest.param(family, value, marks=[] if row % len(values) == column else pytest.mark.slow)
            for row, family in enumerate(FAMILIES)
            for column, value in enumerate(values)
        ],
        indirect=["family"],
        scope="module",
    )


def write_tiny_backbone(folder: Path, family: str, seed: int = 0) -> Path:
    """A checkpoint folder as the hub has it: weights with their head for text, config, processor, tokenizer."""
    folder.mkdir(parents=True)
    tokenizer, files, config = BUILDERS[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for name, parameter in model.named_parameters():
            # Larger than at the start of training, so that a score depends on what is scored.
            if parameter.ndim > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _text_config(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        **more,
    }


def _byte_level(specials: Sequence[str]) -> Tokenizer:
    """A byte-level BPE as Qwen's and SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def _sentencepiece(specials: Sequence[str]) -> Tokenizer:
    """A BPE with spaces as letters and unknown letters as bytes, as LLaMA's."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>", "<s>", "</s>", *bytes_])
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in ("<unk>", "<s>", "</s>")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def _qwen(config: dict[str, Any], image_processor: str, processor: str, mean: list[float], std: list[float]) -> Any:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|{name}|>" for name in names)]
    tokenizer = _byte_level(specials)
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}|>") for name in names[:2]}
    ids |= {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}_pad|>") for name in ("image", "video")}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    config = {
        **ids,
        **config,
        "text_config": _text_config(tokenizer, rope_parameters=rope, head_dim=8, **config.pop("text_config")),
    }
    files = {
        "preprocessor_config.json": {
            "image_processor_type": image_processor,
            "processor_class": processor,
            "image_mean": mean,
            "image_std": std,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 16, "longest_edge": 1 << 24},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "additional_special_tokens": specials[1:],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_prefix_space": False,
            "split_special_tokens": False,
        },
    }
    return tokenizer, files, AutoConfig.for_model(**config)


def _qwen3_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    vision |= {
        "out_hidden_size": 32,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = {"model_type": "qwen3_vl", "vision_config": vision, "text_config": {}, "tie_word_embeddings": False}
    tokenizer, files, config = _qwen(config, "Qwen2VLImageProcessorFast", "Qwen3VLProcessor", [0.5] * 3, [0.5] * 3)
    video = {**files["preprocessor_config.json"], "video_processor_type": "Qwen3VLVideoProcessor"}
    return tokenizer, {**files, "video_preprocessor_config.json": video}, config


def _qwen2_5_vl() -> Any:
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    vision |= {
        "out_hidden_size": 32,
        "temporal_patch_size": 2,
        "tokens_per_second": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {}, "tie_word_embeddings": False}
    return _qwen(config, "Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", CLIP_MEAN, CLIP_STD)


def _smolvlm() -> Any:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<global-img>", "<fake_token_around_image>", "<image>"]
    tokenizer = _byte_level([*specials, "<row_1_col_1>", "<end_of_utterance>"])
    names = {
        "end_of_utterance_token": "<end_of_utterance>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "image_token": "<image>",
    }
    vision = {"model_type": "smolvlm_vision", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 4}
    pad = tokenizer.token_to_id("<|im_end|>")
    config = AutoConfig.for_model(
        "smolvlm",
        image_token_id=tokenizer.token_to_id("<image>"),
        scale_factor=4,
        tie_word_embeddings=False,
        vision_config=vision,
        text_config={"model_type": "llama", **_text_config(tokenizer, pad_token_id=pad)},
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "do_image_splitting": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 32},
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}},
        },
        "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
            "extra_special_tokens": names,
            **names,
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
    }
    return tokenizer, files, config


def _video_llava() -> Any:
    tokenizer = _sentencepiece(["<image>", "<video>", "<pad>"])
    vision = {"model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = AutoConfig.for_model(
        "video_llava",
        image_token_index=tokenizer.token_to_id("<image>"),
        video_token_index=tokenizer.token_to_id("<video>"),
        vision_config=vision,
        text_config={"model_type": "llama", **_text_config(tokenizer)},
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "VideoLlavaImageProcessor",
            "processor_class": "VideoLlavaProcessor",
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "size": {"shortest_edge": 32},
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
        },
        "processor_config.json": {
            "processor_class": "VideoLlavaProcessor",
            "patch_size": 8,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "legacy": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "additional_special_tokens": ["<image>", "<video>"],
        },
    }
    return tokenizer, files, config


BUILDERS: dict[str, Callable[[], tuple[Tokenizer, dict[str, dict[str, Any]], PreTrainedConfig]]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "smolvlm": _smolvlm,
    "video_llava": _video_llava,
}
