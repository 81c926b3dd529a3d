"""The one path from prompts and responses to a backbone's tensors, for training, evaluation, scoring and serving."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import Metaspace
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.models.backbones import Backbone, Reader
from safe_rlhf_video.models.families import EncodedVideo, Family
from safe_rlhf_video.models.families.base import normalise
from safe_rlhf_video.models.lru_bytes import LruBytes
from safe_rlhf_video.models.prompts import Segments, Special
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.sampling import Sampling, Video

# Of the most recent texts: those of SafeSora's 14,711 prompts take about 20 MB.
_text_ids_cache: LruBytes[tuple[PreTrainedTokenizerBase, str, bool]] = LruBytes(64 << 20)


def build_inputs(
    backbone: Backbone, prompts: Sequence[str], responses: Sequence[Response], device: torch.device | str
) -> dict[str, Tensor]:
    """Tokenize, normalise and patchify N >= 1 prompts with one video or text response each, in any mixture.

    Returns:
        input_ids, attention_mask (N, L), padded on the right, and what else the backbone's family takes: of Qwen-VL
        mm_token_type_ids (N, L) and, where there is a video, pixel_values_videos (all patches, patch dimension),
        video_grid_thw (videos, 3) in patches and position_ids (3, N, L). No tensor holds a video that is not in the
        batch.

    Raises:
        ConfigError: a frame size the backbone cannot take, or an input longer than it was made for.
        SampleError: a text is no valid Unicode, cannot be told from a special token, or makes the tokenizer panic.
    """
    family = backbone.family
    videos: list[EncodedVideo] = []
    rows: list[list[int]] = []
    for prompt, response in zip(prompts, responses, strict=True):
        if isinstance(response, TextResponse):
            segments = family.template.build_text_segments(prompt, response.text)
        else:
            video = encode_video(response, family, device)
            videos.append(video)
            tokens = family.count_step_tokens(*video.size)
            segments = family.template.build_segments(
                prompt, family.video_segments(family.step_seconds(video.times), tokens)
            )
        rows.append(_token_ids(backbone, segments))
    length = max(map(len, rows))
    if length > backbone.max_tokens:
        longest = max(range(len(rows)), key=lambda row: len(rows[row]))
        raise ConfigError(
            f"prompt {prompts[longest][:60]!r} with its response makes {length} tokens, the backbone takes "
            f"{backbone.max_tokens}; shorten the text, or for a video lower sampling.num_frames or sampling.max_pixels"
        )
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row)
        attention_mask[number, : len(row)] = 1
    # Only real video tokens count: the padding id may be any token's.
    is_video = (input_ids == _token_id(backbone.tokenizer, family.video_token)) & (attention_mask == 1)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **family.collate(videos, is_video)}
    inputs = family.add_positions(backbone.model, inputs)
    return {name: _to_device(tensor, device) for name, tensor in inputs.items()}


def count_text_tokens(reader: Reader, prompt: str, response: str) -> int:
    """Tokens of a prompt with a text response, as `build_inputs` makes them."""
    return len(_token_ids(reader, reader.family.template.build_text_segments(prompt, response)))


def count_video_tokens(reader: Reader, prompt: str, sampling: Sampling) -> int:
    """Tokens of a prompt with the longest video that `sampling` lets through, about: times are taken as whole seconds.

    No clip has to be read for it, so the count is the same wherever the clips are.
    """
    family = reader.family
    seconds = family.step_seconds([float(second) for second in range(sampling.num_frames)])
    segments = family.template.build_segments(prompt, family.video_segments(seconds, 0))
    return len(_token_ids(reader, segments)) + family.most_video_tokens(sampling)


def encode_video(video: Video, family: Family, device: torch.device | str) -> EncodedVideo:
    """Normalise a clip's uint8 frames on the device, in the layout of the family's vision tower.

    Raises:
        ConfigError: the backbone cannot take frames of this size.
    """
    # A copy: torch takes neither mirrored views (as BGR turned to RGB by [..., ::-1]) nor read-only arrays.
    frames = _to_device(torch.from_numpy(np.array(video.frames, order="C")), device)  # size = (T, H, W, 3)
    height, width = frames.shape[1:3]
    family.check_size(height, width)
    return EncodedVideo(family.encode(normalise(frames, family)), (height, width), tuple(video.timestamps.tolist()))


def _to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Without waiting for a device that is still busy with the batch before: from pageable memory the copy would."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _token_ids(reader: Reader, segments: Segments) -> list[int]:
    tokenizer = reader.tokenizer
    ids: list[int] = []
    is_first = True
    for segment in segments:
        if isinstance(segment, Special):
            ids.append(_token_id(tokenizer, segment))
            continue
        text_ids = _text_ids(tokenizer, segment, is_first)
        reserved = _reserved_ids(tokenizer, reader.family.specials)
        if found := reserved.keys() & text_ids:
            raise SampleError(
                f"the text {segment[:60]!r} spells out {reserved[min(found)]}, which this backbone's tokenizer cannot "
                "tell from the token; correct it"
            )
        ids += text_ids
        is_first = False
    return ids


@lru_cache(maxsize=64)
def _token_id(tokenizer: PreTrainedTokenizerBase, special: Special) -> int:
    token_id: int = tokenizer.convert_tokens_to_ids(special.token)  # there: load_backbone has checked it
    return token_id


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str, is_first: bool) -> tuple[int, ...]:
    key = (tokenizer, text, is_first)
    ids = _text_ids_cache.get(key)
    if ids is None:
        ids = _tokenize(tokenizer, text, is_first)
        _text_ids_cache.put(key, ids, sys.getsizeof(text))
    return ids


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, is_first: bool) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(f"the text {text[:60]!r} is no valid Unicode ({error.reason}); correct it") from error
    try:
        # A user's text that spells out an added token stays plain text.
        return tuple(_text_tokenizer(tokenizer, is_first).encode(text, add_special_tokens=False).ids)
    except BaseException as error:
        # A panic of the tokenizer, which is written in Rust, is no Exception: it would end any thread, and any run.
        if type(error).__name__ != "PanicException":  # of pyo3_runtime, which cannot be imported
            raise
        raise SampleError(f"the backbone's tokenizer fails on the text {text[:60]!r}; change it") from None


@lru_cache(maxsize=8)
def _text_tokenizer(tokenizer: PreTrainedTokenizerBase, is_first: bool) -> Tokenizer:
    """Takes no text for an added token, whether the tokenizer calls that special or not.

    Args:
        is_first: LLaMA's tokenizers put a space before a text, newer ones before the first of an input only. They
            cannot know that a text alone is not the first.
    """
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    fields["padding"] = fields["truncation"] = None
    for token in fields["added_tokens"]:
        token["special"] = True
    made = Tokenizer.from_str(json.dumps(fields))
    made.encode_special_tokens = True
    spaces = made.pre_tokenizer
    if not is_first and isinstance(spaces, Metaspace) and spaces.prepend_scheme == "first":
        made.pre_tokenizer = Metaspace(spaces.replacement, prepend_scheme="never", split=spaces.split)
    return made


@lru_cache(maxsize=8)
def _reserved_ids(tokenizer: PreTrainedTokenizerBase, specials: tuple[Special, ...]) -> Mapping[int, str]:
    """The tokens that a user's text must never become, by their ids; what is unknown may be."""
    reserved = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    reserved.pop(tokenizer.unk_token_id, None)
    return reserved | {_token_id(tokenizer, special): special.token for special in specials}
