"""Run by test_models.py: our inputs against transformers' Qwen3VLProcessor; exit code 77 without torchvision."""

import contextlib
import json
import sys
from typing import Any

import numpy as np
import torch

EXIT_NO_TORCHVISION = 77
CASES = (
    (4, 16, 48, "a red circle moving left at night"),
    (8, 48, 24, "show me a checkerboard in purple that is growing by the sea, with an anchor emblem, " * 4),
    (2, 64, 64, "ein grüner Kreis 🐟\nzweite Zeile"),
    (16, 32, 32, "It's 3 o'clock:  two  spaces, 12345"),
    (5, 40, 56, "an odd number of frames"),
)


def main() -> None:
    # Torchvision's wheels find no compiled operators beside another build of torch, and only need these two by name.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # compiled ones are there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchvision.transforms.v2.functional  # type: ignore[import-not-found]  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchvision cannot be imported ({error})")
        sys.exit(EXIT_NO_TORCHVISION)

    from safe_rlhf_video.models.backbones import load_backbone
    from safe_rlhf_video.models.config import BackboneConfig
    from safe_rlhf_video.models.inputs import build_inputs
    from safe_rlhf_video.video.sampling import Video

    backbone = load_backbone(BackboneConfig())
    processor = build_official_processor(backbone.tokenizer)
    rng = np.random.default_rng(0)
    fps, largest = 8.0, 0.0
    for num_frames, height, width, prompt in CASES:
        frames = rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
        indices = [3 * index for index in range(num_frames)]
        ours = build_inputs(backbone, [prompt], [Video(frames, np.array(indices) / fps)], "cpu")
        # A bare <|video_pad|>: each version of the processor writes times, starts and ends for it, while around one
        # that has a start and an end already, 5.23 leaves these and earlier ones took them away.
        chat = f"<|im_start|>user\n<|video_pad|>Prompt: {prompt}<|im_end|>\n<|im_start|>assistant\n"
        theirs = processor(
            text=[chat],
            videos=[frames.transpose(0, 3, 1, 2)],
            video_metadata=[{"fps": fps, "total_num_frames": 3 * num_frames, "frames_indices": indices}],
            return_tensors="pt",
        )
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "video_grid_thw"):
            assert torch.equal(ours[name], torch.as_tensor(theirs[name])), (name, ours[name], theirs[name])
        difference = (ours["pixel_values_videos"] - theirs["pixel_values_videos"]).abs().max().item()
        largest = max(largest, difference)
    assert largest <= 1e-6, largest
    print(f"{len(CASES)} inputs: equal token ids, token types and grids; pixels differ by {largest:.1e} at most")


def build_official_processor(tokenizer: Any) -> Any:
    """Qwen3VLProcessor with the embedded backbone's numbers; it keeps all frames and their sizes."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    from safe_rlhf_video.models.backbones import EMBEDDED_FOLDER

    fields = json.loads((EMBEDDED_FOLDER / "video_preprocessor_config.json").read_text())
    kept = {
        name: fields[name] for name in ("image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size")
    }
    size = {"shortest_edge": 16, "longest_edge": 1 << 30}
    video_processor = Qwen3VLVideoProcessor(**kept, size=size, do_sample_frames=False)
    return Qwen3VLProcessor(Qwen2VLImageProcessor(**kept), tokenizer, video_processor)


if __name__ == "__main__":
    main()
