"""Run by test_families.py: every family's inputs against its official processor; exit code 77 without torchvision."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXIT_NO_TORCHVISION = 77
PIXEL_TOLERANCE = 1e-6  # of normalised values
# Levels of 0 .. 255 by which our one resizer (bicubic) may differ from the official ones. SmolVLM2's is another: with
# Lanczos to four times the side and back to it. On clips of independent pixels it is only said how far apart they are.
RESIZE_TOLERANCE = {
    "qwen3_vl": {"smooth": 1, "noise": 1},
    "qwen2_5_vl": {"smooth": 1, "noise": 1},
    "video_llava": {"smooth": 2, "noise": 2},
    "smolvlm": {"smooth": 3, "noise": 255},
}
PROMPTS = (
    "a red circle moving left at night",
    "show me a checkerboard in purple that is growing by the sea, with an anchor emblem, " * 4,
    "ein grüner Kreis 🐟\nzweite Zeile",
    "It's 3 o'clock:  two  spaces, 12345",
    "an odd number of frames",
)
SIZES = ((4, 16, 48), (8, 48, 24), (2, 64, 64), (16, 32, 32), (5, 40, 56))
STEP, FPS = 3, 8.0  # every third frame of a clip with 8 a second
# Where our text for a video stands in the official chat.
CHATS = {
    # A bare <|video_pad|>: each version of the processor writes times, starts and ends for it, while around one
    # that has a start and an end already, 5.23 leaves these and earlier ones took them away.
    "qwen3_vl": "<|im_start|>user\n<|video_pad|>Prompt: {prompt}<|im_end|>\n<|im_start|>assistant\n",
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|video_pad|><|vision_end|>Prompt: {prompt}<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": "<|im_start|>User: <video>Prompt: {prompt}<end_of_utterance>\nAssistant:",
    "video_llava": "USER: <video>\nPrompt: {prompt} ASSISTANT:",
}


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
    from tiny_backbones import BUILDERS, edit_json, write_tiny_backbone
    from transformers.utils import is_num2words_available, logging

    logging.set_verbosity_error()
    for family in BUILDERS:
        if family == "smolvlm" and not is_num2words_available():
            print("smolvlm: not compared, its official processor needs num2words")
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = write_tiny_backbone(Path(folder) / family, family)
            compare_family(path, family)
            if family == "video_llava":
                # LLaMA's older tokenizers put a space before every text, not before the first alone.
                edit_json(path / "tokenizer_config.json", legacy=True)
                compare_family(path, family)


def compare_family(folder: Path, family: str) -> None:
    from tiny_backbones import SAMPLINGS
    from transformers import AutoProcessor

    from safe_rlhf_video.models.backbones import load_backbone, load_family
    from safe_rlhf_video.models.config import BackboneConfig
    from safe_rlhf_video.models.inputs import build_inputs
    from safe_rlhf_video.video.sampling import Video

    backbone = load_backbone(BackboneConfig(path=str(folder)))
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    side = None if SAMPLINGS[family].fit == "aspect" else backbone.family.size_multiple
    largest, names = 0.0, set()
    for prompt, (num_frames, height, width) in zip(PROMPTS, SIZES, strict=True):
        frames = rng.integers(0, 256, (num_frames, side or height, side or width, 3), dtype=np.uint8)
        indices = [STEP * index for index in range(num_frames)]
        ours = build_inputs(backbone, [prompt], [Video(frames, np.array(indices) / FPS)], "cpu")
        theirs = call(processor, CHATS[family].format(prompt=prompt), frames, indices, is_resized=side is None)
        names = set(ours) - {"position_ids"}
        for name in names:
            mine, official = ours[name], torch.as_tensor(theirs[name])
            if name.startswith("pixel_values"):
                largest = max(largest, (mine - official).abs().max().item())
            elif name == "second_per_grid_ts":
                torch.testing.assert_close(mine, official.float(), rtol=1e-6, atol=0.0)
            else:
                assert torch.equal(mine, official), (family, name, mine, official)
        if "video_grid_thw" in ours:
            known = {name: torch.as_tensor(theirs[name]) for name in names if not name.startswith("pixel")}
            assert torch.equal(ours["position_ids"], backbone.model.get_rope_index(**known)[0])
            names.add("position_ids")
    assert largest <= PIXEL_TOLERANCE, (family, largest)
    equal = ", ".join(sorted(name for name in names if not name.startswith("pixel")))
    print(f"{family}: {len(SIZES)} inputs with equal {equal}; pixel values differ by {largest:.1e} at most")
    # As transformers 5 writes processors: all in one file, which goes before the older ones.
    again = shutil.copytree(folder, folder.with_name(f"{family}-again"), dirs_exist_ok=True)
    processor.save_pretrained(again)
    assert "video_processor" in (again / "processor_config.json").read_text()
    assert load_family(BackboneConfig(path=str(again))) == backbone.family
    compare_resizing(processor, backbone.family)


def call(processor: Any, text: str, frames: np.ndarray, indices: list[int], is_resized: bool) -> Any:
    metadata = {"fps": FPS, "total_num_frames": STEP * len(frames), "frames_indices": indices}
    return processor(
        text=[text],
        videos=[frames.transpose(0, 3, 1, 2)],
        # The frames have their size: SmolVLM2's own would enlarge them fourfold and reduce them again.
        videos_kwargs={"do_sample_frames": False, "do_resize": is_resized, "video_metadata": [metadata]},
        return_tensors="pt",
    )


def compare_resizing(processor: Any, family: Any) -> None:
    """From a clip's own size: our resizer and the official one, at the sizes of the family's real checkpoints."""
    from safe_rlhf_video.models.families import FAMILIES
    from safe_rlhf_video.video.sampling import Sampling, fit_frames

    name = next(name for name, one in FAMILIES.items() if isinstance(family, one))
    official = processor.video_processor
    num_frames, area = 2, 224 * 224
    sampling = Sampling(num_frames, 16 * 16, area, family.size_multiple)
    options: dict[str, Any] = {"size": {"shortest_edge": 16 * 16, "longest_edge": area}}
    if name == "qwen3_vl":  # it counts the pixels of all frames together
        options["size"] = {limit: num_frames * pixels for limit, pixels in options["size"].items()}
    elif name == "smolvlm":
        sampling = Sampling(num_frames, 512 * 512, 512 * 512, 512, fit="stretch")
        # As its files on the hub say: enlarged to four times the side, then reduced to it.
        official.max_image_size, options["size"] = {"longest_edge": 512}, {"longest_edge": 4 * 512}
    elif name == "video_llava":
        sampling = Sampling(num_frames, area, area, 224, fit="crop")
        options = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    for kind in ("smooth", "noise"):
        largest = mean = 0.0
        for height, width in ((320, 512), (512, 320), (480, 854), (256, 256), (120, 160)):
            frames = draw(kind, height, width)
            ours = family.encode(torch.from_numpy(fit_frames(frames, sampling)).float())
            videos = [frames.transpose(0, 3, 1, 2)]
            theirs = official(videos, do_normalize=False, do_rescale=False, return_tensors="pt", **options)
            pixels = theirs["pixel_values" if name == "smolvlm" else "pixel_values_videos"].float()
            difference = (ours - pixels.reshape(ours.shape)).abs()
            largest, mean = max(largest, difference.max().item()), max(mean, difference.mean().item())
        print(f"{name}: resized {kind} clips differ by {largest:.0f} of 255 levels at most, {mean:.3f} in the mean")
        assert largest <= RESIZE_TOLERANCE[name][kind], (name, kind, largest)


def draw(kind: str, height: int, width: int) -> np.ndarray:
    """Two frames of waves as long as 1/6 of a side, or of independent pixels."""
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [np.sin(2 * np.pi * (6 * rows + s)) * np.cos(2 * np.pi * (5 * columns - s)) for s in (0, 0.1, 0.2)]
    frame = (127.5 + 127.5 * np.stack(waves, axis=-1)).round().astype(np.uint8)
    return np.stack([frame, frame[::-1]])


if __name__ == "__main__":
    main()
