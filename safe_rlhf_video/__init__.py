"""Safe RLHF Video: reward and cost models for text-to-video generations, and the choice between two of them.

Public names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset
    from safe_rlhf_video.responses import TextResponse
    from safe_rlhf_video.scoring.decisions import PairScore, Ranking
    from safe_rlhf_video.scoring.harms import Moderation
    from safe_rlhf_video.scoring.policy_reward import LagrangianReward
    from safe_rlhf_video.scoring.scorer import Scorer, score_pair
    from safe_rlhf_video.video.sampling import Sampling, Video

__version__ = "0.1.0"
__all__ = [
    "LagrangianReward",
    "Moderation",
    "PairDataset",
    "PairScore",
    "PromptDataset",
    "Ranking",
    "Sampling",
    "Scorer",
    "TextResponse",
    "Video",
    "VideoDataset",
    "score_pair",
]

_HOME = {
    "PairDataset": "data.datasets",
    "PromptDataset": "data.datasets",
    "VideoDataset": "data.datasets",
    "TextResponse": "responses",
    "LagrangianReward": "scoring.policy_reward",
    "Moderation": "scoring.harms",
    "PairScore": "scoring.decisions",
    "Ranking": "scoring.decisions",
    "Scorer": "scoring.scorer",
    "score_pair": "scoring.scorer",
    "Sampling": "video.sampling",
    "Video": "video.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
