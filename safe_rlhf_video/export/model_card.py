"""Builds the card (README.md) of an exported model: what it is, what it predicts, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_video.evaluation.control_words import warn_of_gaps
from safe_rlhf_video.evaluation.results import Evaluation
from safe_rlhf_video.evaluation.seen_prompts import say_seen
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEADS, LABEL_HEADS, SUB_HEADS
from safe_rlhf_video.kinds.targets import kind_of
from safe_rlhf_video.models.config import EMBEDDED_BACKBONE, LoraConfig
from safe_rlhf_video.models.record import ModelRecord, TrainingFacts
from safe_rlhf_video.wording import figure, sentence, with_interval, words

MEANINGS = {
    "reward": "how helpful a video is for its prompt: more is better. Only differences between videos for one prompt "
    "mean something",
    **{head: f"its {words(head)}, a part of helpfulness: more is better, between videos for one prompt"
       for head in SUB_HEADS},
    "cost": "how harmful a video is: above 0 is unsafe, 0 is the boundary, below is safe; as far as the model was "
    "trained on labels of what is safe, which alone give it a zero",
    **{head: kind_of(head).meaning(HEADS[head]) for head in LABEL_HEADS},
}  # fmt: skip
LICENSE = "# license: not stated. Write one that the licences of the base model and of the training data allow.\n"
LIMITS = """\
- A reward says which of two videos for one prompt people would find more helpful. It has no unit, and rewards of
  different prompts do not compare.
- A cost says what the people who labelled the training data would find harmful. It is no guarantee that a video is
  safe, and no replacement for a review where harm matters.
- Probabilities derived from scores are not calibrated, unless this card says so.
- The model sees only the sampled frames: no sound, and nothing between them.
- On videos of other generators, lengths or sizes than in training, scores may mean less; measure on labels of your own.
- A generator that is optimised against these scores finds their faults."""


@dataclass(frozen=True)
class MergeCheck:
    """How far a merged folder is from the original model, in float32.

    Attributes:
        num_inputs: made-up clips and texts that were scored.
        dtype: what the weights were written in.
        difference: the largest difference of scores that should be equal.
        rounding: the largest difference that bfloat16 makes, in standard deviations of the scores; None for float32.
        rounding_bound: the largest that is allowed.
    """

    num_inputs: int
    dtype: str
    difference: float
    rounding: float | None
    rounding_bound: float | None

    def describe(self) -> str:
        """A sentence or two for people."""
        text = (
            f"On {self.num_inputs} made-up clips and texts, computed in float32, its scores are those of the adapted "
            "backbone"
        )
        if self.rounding is None:
            return f"{text} (largest difference {self.difference:.1g})."
        return (
            f"{text}, but for rounding to bfloat16, which moves them by at most {self.rounding:.2g} of their standard "
            f"deviation (allowed: {self.rounding_bound:.2g})."
        )


def build_card(
    record: ModelRecord,
    name: str,
    template: Mapping[str, str],
    is_local_backbone: bool,
    evaluation: Evaluation | None = None,
    check: MergeCheck | None = None,
) -> str:
    """Builds the card as Markdown with YAML in front.

    Args:
        record: of the exported folder.
        name: the folder's.
        template: name and hash of the text around prompt and video, as model.json has them.
        is_local_backbone: whether the backbone was a folder, which nobody else has under this name.
        evaluation: of the model.
    """
    heads = [head for head in HEADS if any(head in others for others in record.heads_of_adapter.values())]
    parts = [
        _front_matter(record, heads, is_local_backbone),
        f"# {name}",
        f"Scores of generated videos, by Safe RLHF Video (the package `safe_rlhf_video`): {' and '.join(heads)}.",
        "## What it predicts",
        "\n".join(f"- **{head}**: {_meaning(head, record.training)}." for head in heads),
        "## Use",
        _usage(record, name, heads, is_local_backbone),
        "## What it is made of",
        _made_of(record, template, is_local_backbone, check),
        "## Training",
        _training(record.training),
        "## Evaluation",
        _evaluation(evaluation, heads),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _meaning(head: str, facts: TrainingFacts) -> str:
    if head == "cost" and facts.no_zero:
        return f"how harmful a video is, more is worse, between videos; **{facts.no_zero}**"
    return MEANINGS[head]


def _front_matter(record: ModelRecord, heads: list[str], is_local_backbone: bool) -> str:
    fields: dict[str, Any] = {"library_name": "safe-rlhf-video", "pipeline_tag": "video-classification"}
    if not is_local_backbone and record.backbone.path != EMBEDDED_BACKBONE:
        fields |= {
            "base_model": record.backbone.path,
            "base_model_relation": "adapter" if record.lora.rank else "finetune",
        }
    fields["tags"] = [*(f"{head}-model" for head in heads), "rlhf", "preference", "text-to-video", "safety"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}{LICENSE}---"


def _usage(record: ModelRecord, name: str, heads: list[str], is_local_backbone: bool) -> str:
    path = json.dumps(name, ensure_ascii=False)
    backbone = ""
    notes = []
    if is_local_backbone and not record.backbone_in_folder:
        backbone = ', backbone="/path/to/backbone"'
        notes.append(
            f"It was trained on a folder, {Path(record.backbone.path).name}, which is not part of this one: "
            f"`backbone=` says where it lies. Its weights must have the fingerprint `{record.backbone_fingerprint}`."
        )
    deciding = [head for head in ("reward", "cost") if head in heads]
    if deciding:
        lines = ["from safe_rlhf_video import score_pair", ""]
        lines += [f'result = score_pair("a red kite", "v1.mp4", "v2.mp4", model={path}{backbone})']
        lines += ["print(result.preferred, result.reason)"]
    else:
        lines = ["from safe_rlhf_video import Scorer", ""]
        lines += [f"with Scorer.from_pretrained({path}{backbone}) as scorer:"]
        lines += [f'    print(scorer.score("a red kite", "v1.mp4")["{heads[0]}"])']
    if len(deciding) < 2 and not record.backbone_in_folder and not record.trained_parts:
        other = " and ".join(f"a {head}" for head in ("reward", "cost") if head not in heads)
        what = f"The {deciding[0]} decides alone: for a choice that weighs both" if deciding else "To choose"
        notes.append(f"{what}, give {other} model on the same backbone too: `score_pair(..., model=[...])`.")
    notes.insert(0, f"{path} is this folder's path, or its `owner/name` on the hub.")
    return "\n".join(["```python", *lines, "```", "", *notes])


def _made_of(
    record: ModelRecord, template: Mapping[str, str], is_local_backbone: bool, check: MergeCheck | None
) -> str:
    backbone, sampling = record.backbone, record.sampling
    if backbone.path == EMBEDDED_BACKBONE:
        name = "the small one that is embedded in the package"
    elif is_local_backbone:
        name = f"a folder named {Path(backbone.path).name}"
    else:
        name = f"`{backbone.path}`" + (f", revision `{backbone.revision}`" if backbone.revision else "")
    if backbone.initialization == "random":
        name += f", with random weights (seed {backbone.random_seed}): a control, not a model to use"
    rows = [("backbone", name)]
    origin = record.training.merged_from
    if origin is not None:
        rows += [
            ("fingerprint of its weights", f"`{origin.backbone_fingerprint}`"),
            ("merged into it", _changes(origin.lora, origin.trained_parts)),
            ("merged weights", f"in `backbone/`, fingerprint `{record.backbone_fingerprint}`"),
        ]
    else:
        rows.append(("fingerprint of its weights", f"`{record.backbone_fingerprint}`"))
        if record.lora.rank or record.trained_parts:
            rows.append(("trained of it", _changes(record.lora, record.trained_parts)))
    rows += [
        ("frames", f"{sampling.num_frames} a clip, spread evenly over it"),
        (
            "their size",
            f"{sampling.min_pixels} to {sampling.max_pixels} pixels, sides multiples of {sampling.size_multiple}, "
            f"fit: {sampling.fit}",
        ),
        ("text around prompt and video", f"template `{template['name']}` (`{template['hash']}`)"),
        ("pooling", record.pooling.replace("_", " ")),
    ]
    table = ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in rows)]
    return "\n".join(table) + (f"\n\n{check.describe()}" if check else "")


def _changes(lora: LoraConfig, trained_parts: Sequence[str]) -> str:
    adapters = [f"LoRA on the language model, rank {lora.rank}, alpha {lora.alpha:g}"] if lora.rank else []
    return "; ".join([*adapters, *(f"the {part.replace('_', ' ')} in full" for part in trained_parts)])


def _training(facts: TrainingFacts) -> str:
    told = replace(facts, merged_from=None)
    if told == TrainingFacts():
        return "Nothing is recorded."
    rows = [
        f"| {_cell(name)} | {_cell(value)} |" for name, value in _leaves(asdict(told)) if value not in (None, (), "")
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


def _leaves(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in facts.items():
        leaves += _leaves(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return leaves


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(_cell(one) for one in value) if isinstance(value, tuple) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _evaluation(evaluation: Evaluation | None, heads: list[str]) -> str:
    if evaluation is None:
        return "Not given. `python scripts/evaluate.py` measures it on labelled comparisons."
    names = (DIMENSION_OF_HEAD[head] for head in heads if head in DIMENSION_OF_HEAD)
    judged = {name: found for name in names if (found := evaluation.dimensions[name])}
    paragraphs = []
    if judged:
        rows = {
            "test comparisons (prompts)": [f"{one.num_comparisons} ({one.num_prompts})" for one in judged.values()],
            "accuracy [95% interval]": [with_interval(one.accuracy, one.interval) for one in judged.values()],
            "ceiling that noisy labels set": [figure(one.ceiling) for one in judged.values()],
            "accuracy / ceiling [95% interval]": [
                with_interval(one.fraction_of_ceiling, one.fraction_of_ceiling_interval) for one in judged.values()
            ],
        }
        for control, values in evaluation.controls.items():
            rows[f"control: {control.replace('_', ' ')}"] = [figure(values.get(name)) for name in judged]
        lines = [_row("", list(judged)), "|" + "---|" * (len(judged) + 1)]
        lines += [_row(title, cells) for title, cells in rows.items() if any(cells)]
        paragraphs.append("\n".join(lines))
    sign = evaluation.cost_sign
    if sign and "cost" in heads:
        paragraphs.append(
            f"Sign of the cost on {sign.num_safe} safe and {sign.num_unsafe} unsafe videos: accuracy "
            f"{with_interval(sign.accuracy, sign.interval) or '-'}, balanced "
            f"{with_interval(sign.balanced_accuracy, sign.balanced_interval) or '-'}, AUROC "
            f"{figure(sign.auroc) or '-'}" + (f" ({sign.reason})." if sign.reason else ".")
        )
    if not paragraphs:
        return "The evaluation that was given has no figure of these heads."
    seen = [one for folder, one in evaluation.seen_prompts.items() if folder in evaluation.models]
    for one in seen:
        if set(one.heads) & set(heads):
            paragraphs += [f"**These figures: {text}.**" for text in say_seen(one)]
    told = {name: gap for name, gap in evaluation.control_gaps.items()
            if name in judged or name in heads or ("cost" in heads and name.startswith("cost_sign"))}  # fmt: skip
    paragraphs += [f"**{sentence(text)}**" for text in warn_of_gaps(told)]
    paragraphs.append("Intervals are over prompts; a control is a predictor that cannot judge the video.")
    if num_shared := evaluation.num_prompts_also_in_training:
        paragraphs.append(
            f"{num_shared} of the prompts are in the training data too: these figures may flatter the model."
        )
    return "\n\n".join(paragraphs)


def _row(title: str, cells: list[str]) -> str:
    return f"| {' | '.join([title, *cells])} |"
