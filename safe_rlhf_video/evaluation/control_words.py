"""Names the controls, and says in words where a model is not clearly above the strongest of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safe_rlhf_video.evaluation.results import ControlGap, Standing
from safe_rlhf_video.heads import HEADS, LOGIT_HEADS
from safe_rlhf_video.wording import words

CONTROL_NAMES = {
    "generator_only": "which generator made it, nothing else",
    "prompt_only": "the prompt, nothing else",
    "is_safe_only": "the is_safe labels, nothing else",
    "random_backbone": "same heads, random backbone",
    "shuffled_prompt": "the model, under other prompts",
    "reversed_frames": "the model, frames reversed",
    "single_frame": "the model, a single frame",
}
_FIGURES = {"cost_sign": "cost sign, balanced", "cost_sign_auroc": "cost sign, AUROC"}


def warn_of_gaps(gaps: Mapping[str, ControlGap]) -> Iterator[str]:
    """A sentence for each figure of a model that is below its strongest control, or not clearly above it.

    Harm labels, of which there are many, share one for each standing and control.
    """
    labels: dict[tuple[Standing, str], list[str]] = {}
    for figure, gap in gaps.items():
        if gap.standing == "above":
            continue
        if figure in LOGIT_HEADS:
            text = f"{HEADS[figure].title} ({gap.own_figure:.3f} against {gap.control_figure:.3f})"
            labels.setdefault((gap.standing, gap.control), []).append(text)
            continue
        name = _FIGURES.get(figure, words(figure))
        unknown = ", with too few prompts for an interval" if gap.interval is None else ""
        yield (
            f"{name}: this model is {gap.standing} a control that cannot judge the video "
            f"({CONTROL_NAMES[gap.control]}): {gap.own_figure:.4f} against {gap.control_figure:.4f}, "
            f"difference {describe_gap(gap)}{unknown}"
        )

    for (standing, control), names in labels.items():
        yield (
            f"AUROC of harm labels: this model is {standing} a control that cannot judge the video "
            f"({CONTROL_NAMES[control]}) for {', '.join(names)}"
        )


def describe_gap(gap: ControlGap | None) -> str:
    """The difference with its interval; a dash without one."""
    if gap is None:
        return "-"
    ends = "" if gap.interval is None else f" [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]"
    return f"{gap.difference:+.4f}{ends}"
