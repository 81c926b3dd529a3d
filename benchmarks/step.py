"""Where the time of a training step goes, and on CUDA how much of the device's arithmetic is used.

    python benchmarks/step.py --out outputs/step.json
    python benchmarks/step.py --shape qwen3_vl_8b --side 448 --frames 8 --prompts 2 --out outputs/step.json

The first trains the embedded backbone on 32x32 clips; the second a backbone of the hub's shape with random weights,
made on the device, and the embedded tokenizer: times do not depend on what the weights are. Nothing is downloaded:
comparisons are the synthetic world's, clips are written for the occasion (96 frames of drifting texture).

Three passes over the same steps, through the functions that training calls. "Apart": every stage is waited for, so that
its own time is seen. "Together": as in training, the next batch read ahead. "Alone": the same with all inputs on the
device beforehand; what "together" takes longer is the share that the device waits for the host.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone_memory import SHAPES, build_config
from machine import describe_machine
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.records import VIDEO_NAMES
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.models.backbones import EMBEDDED_FOLDER, Backbone, _apply_liger, load_backbone, outline_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, ModelConfig
from safe_rlhf_video.models.families import FAMILIES, Family
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.estimate import (
    GB,
    Flops,
    MicroBatch,
    build_on_meta,
    count_flops,
    estimate_memory,
)
from safe_rlhf_video.video.encoding import encode_mp4
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store
from safe_rlhf_video.worlds.video_world import FPS, plan_split, write_config

from safe_rlhf_video.training import distributed, engine as engines, steps as training_steps  # isort: skip
from safe_rlhf_video.training.config import DataConfig, EngineConfig, OptimizationConfig, TrainConfig
from safe_rlhf_video.training.data import load_data
from safe_rlhf_video.training.learner import Learner
from safe_rlhf_video.training.loader import open_clips, prefetch, read_jobs, training_jobs
from safe_rlhf_video.training.run import Run
from safe_rlhf_video.training.sizes import measure_data

HEADS = ("reward", "cost")
DISTINCT_CLIPS, CLIP_FRAMES, TINY_SIDE = 16, 96, 32
STAGES = ("decode", "host", "vision", "language", "heads", "backward of heads", "backward of language", "optimiser")
# Dense bfloat16 TFLOP/s as NVIDIA's data sheets have them, by a part of the device's name; the first that fits.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "H800": 989, "B200": 2250, "A100": 312,
               "A800": 312, "L40S": 362, "A10": 125, "4090": 165}  # fmt: skip
# Fields of config.json that name special tokens, by family.
QWEN_TOKENS = {"video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>"}
TOKEN_FIELDS = {"qwen3_vl": QWEN_TOKENS, "qwen2_5_vl": QWEN_TOKENS, "smolvlm": {"image_token_id": "<image>"},
                "video_llava": {"video_token_index": "<video>"}}  # fmt: skip


@dataclass
class Clock:
    """Seconds by stage of the step under way; the device is waited for before and after each."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            started = self.now()
            result = function(*args, **options)
            self.add(stage, self.now() - started)
            return result

        return run


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a checkpoint folder, or the embedded one")
    parser.add_argument("--shape", help="a hub backbone's shape with random weights, such as qwen3_vl_8b")
    parser.add_argument("--layers", type=int, help="of the shape: keep so many of both towers' layers")
    parser.add_argument("--side", type=int, help="frames are squares of so many pixels (32 for the embedded one)")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4, help="of 3.9 clips each, in a step")
    parser.add_argument("--micro_batch_tokens", type=int, default=0, help="0: a step is one micro-batch")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", default="auto", choices=["auto", "sdpa", "flash_attention_2", "eager"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    parser.add_argument("--steps", type=int, default=8, help="in each pass, after two that are not counted")
    parser.add_argument("--rounds", type=int, default=3, help="of the passes together and alone")
    parser.add_argument("--peak_tflops", type=float, help="of the device, dense bfloat16")
    parser.add_argument("--out", type=Path, help="a JSON file with every step")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ranks = distributed.start()
    if ranks.world_size > 1:
        raise ConfigError("this benchmark runs on one device; start it with python")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, ranks, Path(folder))
    distributed.stop()
    print_result(result)
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


def measure(arguments: argparse.Namespace, ranks: distributed.Ranks, folder: Path) -> dict[str, Any]:
    device = ranks.device
    lora = LoraConfig(rank=arguments.rank, alpha=2.0 * arguments.rank)
    asked = BackboneConfig(path=arguments.shape or arguments.backbone, attention=arguments.attention)
    model_config = ModelConfig(asked, lora, gradient_checkpointing=arguments.checkpointing)
    backbone = (
        build_shape(arguments, asked, device, folder / "shape") if arguments.shape else load_backbone(asked, device)
    )
    sampling = choose_sampling(backbone.family, arguments.frames, arguments.side)
    num_steps = 2 + arguments.steps
    side = int(sampling.max_pixels**0.5)
    write_world(folder / "world", num_steps * arguments.prompts, max(side, 64))
    config = TrainConfig(
        out=str(folder / "run"),
        data=DataConfig(
            str(folder / "world"), "config-train.json.gz", validation_fraction=0, workers=arguments.workers
        ),
        heads=list(HEADS),
        sampling=sampling,
        model=model_config,
        optimization=OptimizationConfig(
            prompts_per_step=arguments.prompts, micro_batch_tokens=arguments.micro_batch_tokens
        ),
        engine=EngineConfig(compile=arguments.compile),
    )
    meta = build_on_meta(backbone.model.config, backbone.family, model_config, HEADS, backbone.model.dtype)
    model = ScoreModel(
        backbone, {"joint": HEADS}, lora, model_config.pooling, (), model_config.gradient_checkpointing
    ).to(device)
    engine = engines.build_engine(model, config, device)
    record = ModelRecord(model_config.backbone, backbone.fingerprint, sampling, lora, {"joint": HEADS})
    run = TimedRun(config, ranks, Learner(backbone, model, engine, record), num_steps)
    clips = [ClipFile(name, path) for name, path in load_data(config, HEADS).clip_files.items()]
    build_store(folder / "store", sampling, clips, len(clips), num_workers=arguments.workers)
    stores = {"files": None, "store": str(folder / "store")}
    apart, rounds = {}, []
    for source, store in stores.items():
        run.read_from(store)
        apart[source] = run.apart()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    memory = 0
    for _ in range(arguments.rounds):
        seconds = {}
        for source, store in stores.items():
            run.read_from(store)
            seconds[source] = run.together()
        memory = memory or peak_memory(device)  # before all inputs lie on the device at once
        seconds["alone"] = run.alone()
        rounds.append(seconds)
    flops = [sum_flops(meta, batches) for batches in run.batches]
    largest = max((batch for batches in run.padded for batch in batches), key=lambda batch: batch.tokens)
    return {
        "arguments": {name: str(value) for name, value in vars(arguments).items() if value is not None},
        "machine": describe_machine(),
        "attention": backbone.attention,
        "liger": backbone.liger,
        "peak_tflops": arguments.peak_tflops or peak_tflops(device),
        "sampling": sampling.to_dict(),
        "apart": apart,
        "rounds": rounds,
        "flops": [asdict(one) for one in flops[2:]],
        "clips": [sum(batch.videos for batch in batches) for batches in run.batches][2:],
        "tokens": [sum(batch.tokens for batch in batches) for batches in run.batches][2:],
        "padded_tokens": [sum(batch.tokens for batch in batches) for batches in run.padded][2:],
        "peak_memory": memory,
        "estimated_memory": estimate_memory(meta, largest, 1, 0, arguments.checkpointing).total,
    }


class TimedRun:
    """The same steps again and again, through `steps.take_step`."""

    def __init__(self, config: TrainConfig, ranks: distributed.Ranks, learner: Learner, num_steps: int) -> None:
        self.config, self.ranks, self.learner, self.num_steps = config, ranks, learner, num_steps
        self.clock = Clock(ranks.device)
        self.build_inputs = training_steps.build_inputs
        self.read_from(None)

    def read_from(self, store: str | None) -> None:
        self.config = replace(self.config, data=replace(self.config.data, frame_store=store))
        data = load_data(self.config, HEADS)
        sizes = measure_data(self.learner.backbone, data, self.config.sampling)
        self.run = Run(self.config, HEADS, data, sizes, self.ranks, self.num_steps)

    def apart(self) -> list[dict[str, float]]:
        """Seconds of every stage, each waited for."""
        clock, inputs_made = self.clock, []
        timed_build_inputs = clock.timed("host", self.build_inputs)

        def build_inputs(*args: Any) -> dict[str, Tensor]:
            inputs = timed_build_inputs(*args)
            inputs_made.append({name: tensor.cpu() for name, tensor in inputs.items()})
            return inputs

        training_steps.build_inputs = build_inputs
        steps, ends = [], []
        with self.open_batches() as batches, stages_of(self.learner.engine, clock):
            timed = timed_items(batches, clock)
            for step in range(self.num_steps):
                clock.seconds = {}
                started = clock.now()
                self.take_step(timed, step)
                whole = clock.now() - started
                steps.append({**clock.seconds, "rest": whole - sum(clock.seconds.values()), "step": whole})
                ends.append(len(inputs_made))
        training_steps.build_inputs = self.build_inputs
        self.inputs = inputs_made
        groups = [inputs_made[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.batches = [[self.count(inputs, padded=False) for inputs in group] for group in groups]
        self.padded = [[self.count(inputs, padded=True) for inputs in group] for group in groups]
        return steps[2:]

    def together(self) -> list[float]:
        """Seconds of whole steps, as in training."""
        with self.open_batches() as batches:
            return self.whole_steps(prefetch(batches))

    def alone(self) -> list[float]:
        """Seconds of whole steps whose inputs are on the device before the first."""
        with self.open_batches() as batches:
            ready = list(batches)
        device = self.ranks.device
        made = iter([{name: tensor.to(device) for name, tensor in inputs.items()} for inputs in self.inputs])
        training_steps.build_inputs = lambda *_: next(made)
        steps = self.whole_steps(iter(ready))
        training_steps.build_inputs = self.build_inputs
        return steps

    def whole_steps(self, batches: Iterator[Any]) -> list[float]:
        steps = []
        for step in range(self.num_steps):
            started = self.clock.now()
            self.take_step(batches, step)
            steps.append(self.clock.now() - started)
        return steps[2:]

    def take_step(self, batches: Iterator[Any], step: int) -> None:
        training_steps.take_step(self.run, self.learner, batches, step)

    @contextmanager
    def open_batches(self) -> Iterator[Iterator[Any]]:
        with open_clips(self.config, self.run.data) as clips:
            yield read_jobs(partial(training_jobs, self.run), clips)

    def count(self, inputs: dict[str, Tensor], padded: bool) -> MicroBatch:
        """A batch in numbers, with its padding or without."""
        mask, family, sampling = inputs["attention_mask"], self.learner.backbone.family, self.config.sampling
        side = int(sampling.max_pixels**0.5)
        return MicroBatch(
            tokens=mask.numel() if padded else int(mask.sum()),
            videos=len(mask),
            video_tokens=len(mask) * family.count_video_tokens(sampling.num_frames, side, side),
            steps=len(mask) * family.count_steps(sampling.num_frames),
        )


def timed_items(items: Iterator[Any], clock: Clock) -> Iterator[Any]:
    take = clock.timed("decode", partial(next, items))
    while True:
        yield take()


@contextmanager
def stages_of(engine: Any, clock: Clock) -> Iterator[None]:
    """Time the vision tower, the language model, the heads, both parts of the backward pass and the update."""
    model: ScoreModel = engine.module
    plain = model.backbone if model.peft_model is None else model.peft_model.get_base_model()
    family = model.family
    outside = [name for name in family.projector if not name.startswith(f"{family.vision_tower}.")]
    stages = dict.fromkeys((family.vision_tower, *outside), "vision") | {family.language_model: "language"}
    modules = [(plain.get_submodule(name), stage) for name, stage in stages.items()]
    modules += [(head, "heads") for head in model.score_heads.values()]
    hooks: list[Any] = []
    began: dict[nn.Module, float] = {}
    heads_done: list[float] = []

    def begin(module: nn.Module, *_: Any) -> None:
        began[module] = clock.now()

    def end(stage: str, module: nn.Module, _: Any, output: Any) -> None:
        clock.add(stage, clock.now() - began[module])
        if stage == "language":
            output.last_hidden_state.register_hook(lambda gradient: heads_done.append(clock.now()))

    for module, stage in modules:
        hooks.append(module.register_forward_pre_hook(begin))
        hooks.append(module.register_forward_hook(partial(end, stage)))
    backward, step = engine.backward, engine.step

    def timed_backward(*args: Any, **options: Any) -> Any:
        started = clock.now()
        heads_done.clear()
        result = backward(*args, **options)
        clock.add("backward of heads", heads_done[-1] - started)
        clock.add("backward of language", clock.now() - heads_done[-1])
        return result

    engine.backward, engine.step = timed_backward, clock.timed("optimiser", step)
    yield
    engine.backward, engine.step = backward, step
    for hook in hooks:
        hook.remove()


def build_shape(arguments: argparse.Namespace, asked: BackboneConfig, device: torch.device, folder: Path) -> Backbone:
    """A backbone of the hub's shape with random weights, made on the device, with the embedded tokenizer.

    Args:
        folder: gets the checkpoint's files, but for the weights.
    """
    found = [name for name in SHAPES if arguments.shape.lower() in name.lower().replace("-", "_").replace(".", "_")]
    if len(found) != 1:
        raise ConfigError(f"shape: {arguments.shape!r} is {'none' if not found else 'several'} of {', '.join(SHAPES)}")
    shape = copy.deepcopy(SHAPES[found[0]])
    if arguments.layers:
        for tower in ("text_config", "vision_config"):
            for name in ("num_hidden_layers", "depth"):
                if name in shape.config[tower]:
                    shape.config[tower][name] = arguments.layers
    config = build_config(shape)
    if arguments.layers and hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0]
    family = FAMILIES[config.model_type].build(shape.processor, config)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    tokenizer.add_special_tokens({"additional_special_tokens": [special.token for special in family.specials]})
    for name, token in TOKEN_FIELDS[config.model_type].items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    folder.mkdir()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(shape.processor))
    outline = outline_backbone(replace(asked, path=str(folder), initialization="random"), device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:  # `fill_backbone` would draw the weights on the CPU
        model = AutoModel.from_config(outline.model.config, dtype=dtype, attn_implementation=outline.attention)
    model.requires_grad_(False).eval().to(device)
    language_model = model.get_submodule(family.language_model)
    liger = device.type == "cuda" and _apply_liger(language_model)
    return replace(outline, model=model, fingerprint="random", liger=liger)


def choose_sampling(family: Family, frames: int, side: int | None) -> Sampling:
    multiple = family.size_multiple
    if side is None:
        side = TINY_SIDE if family.fit == "aspect" else multiple
    if side % multiple or (family.fit != "aspect" and side != multiple):
        of = "multiples of" if family.fit == "aspect" else "squares of"
        raise ConfigError(f"side: the backbone takes {of} {multiple}, got {side}")
    return Sampling(frames, side**2, side**2, multiple, family.fit)


def write_world(folder: Path, num_prompts: int, side: int) -> None:
    """The synthetic world's comparisons; square clips of drifting texture, a few that all names are links to."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    clips = []
    for number in range(DISTINCT_CLIPS):
        texture = rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        frames = np.stack([np.roll(texture, 2 * index, 1)[:side, :side] for index in range(CLIP_FRAMES)])
        clips.append(folder / f"{number}.mp4")
        clips[-1].write_bytes(encode_mp4(frames, FPS))
    records: list[dict[str, Any]] = []
    for number, (pairs, _, _) in enumerate(plan_split("train", 4 * num_prompts, 0)):
        if number == num_prompts:
            break
        records += pairs
    for number, path in enumerate({folder / pair[side]["video_path"] for pair in records for side in VIDEO_NAMES}):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(clips[number % DISTINCT_CLIPS], path)
    write_config(folder / "config-train.json.gz", records)


def sum_flops(model: ScoreModel, batches: list[MicroBatch]) -> Flops:
    parts = [asdict(count_flops(model, batch)) for batch in batches]
    return Flops(**{name: sum(part[name] for part in parts) for name in parts[0]})


def peak_tflops(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((float(peak) for part, peak in PEAK_TFLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device as its allocator has them, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_result(result: dict[str, Any]) -> None:
    clips, tokens = statistics.mean(result["clips"]), statistics.mean(result["tokens"])
    flops = statistics.mean(sum(one.values()) for one in result["flops"])
    padding = 1 - tokens / statistics.mean(result["padded_tokens"])
    machine = result["machine"]
    print(
        f"{machine['device']}, {machine['date']}; a step of {clips:.1f} clips, {tokens:.0f} tokens and {padding:.1%} "
        f"of padding, {flops / 1e12:.3g} TFLOP; medians of {len(result['clips'])} steps, and of "
        f"{len(result['rounds'])} rounds"
    )
    apart = result["apart"]
    print(f"{'stage, apart; ms':<24} " + " ".join(f"{source:>10}" for source in apart))
    for stage in (*STAGES, "rest", "step"):
        columns = [statistics.median(step.get(stage, 0.0) for step in steps) for steps in apart.values()]
        print(f"{stage:<24} " + " ".join(f"{1e3 * seconds:10.1f}" for seconds in columns))
    rounds = [{name: statistics.median(steps) for name, steps in one.items()} for one in result["rounds"]]
    for name in rounds[0]:
        seconds = statistics.median(one[name] for one in rounds)
        rate = flops / seconds / 1e12
        line = (
            f"{name}: {1e3 * seconds:.1f} ms a step, {clips / seconds:.1f} clips/s, {tokens / seconds:.0f} tokens/s, "
        )
        line += f"{rate:.3g} TFLOP/s"
        if result["peak_tflops"]:
            line += f" = {rate / result['peak_tflops']:.1%} of {result['peak_tflops']:.0f}"
        if name != "alone":
            waits = [1 - one["alone"] / one[name] for one in rounds]
            line += f"; the device waits {statistics.median(waits):.1%} ({min(waits):.1%} to {max(waits):.1%})"
        print(line)
    memory = f"peak memory {result['peak_memory'] / GB:.2f} GB"
    if machine["device"] != "cpu":  # else it is all of the process, the libraries too
        memory += f", estimate {result['estimated_memory'] / GB:.2f} GB"
    print(memory)


if __name__ == "__main__":
    run_script(main)
