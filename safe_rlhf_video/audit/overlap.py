"""Finds what two splits share, and prompts with two ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from safe_rlhf_video.audit.sections import Overlap, OverlapExamples, PromptIds
from safe_rlhf_video.audit.splits import NUM_EXAMPLES, Split
from safe_rlhf_video.data.preferences import normalise_prompt


def audit_overlap(splits: Sequence[Split], apart: Sequence[Split]) -> list[Overlap]:
    """Counts for every two splits the prompts (by normalised text and by id), videos and comparisons in both.

    Args:
        splits: with the ids of their files.
        apart: the same splits from `keep_apart`: where one id means different prompts, the ids differ.
    """
    texts = {split.name: _ids_of_texts(split) for split in splits}
    written = {split.name: {video.name for video in split.videos} for split in splits}
    names = {split.name: {video.name for video in split.videos} for split in apart}
    compared = {split.name: _compared(split) for split in apart}
    found = []
    for first, second in combinations(splits, 2):
        of_first, of_second = texts[first.name], texts[second.name]
        by_text = [text for text in of_first if text in of_second]
        id_texts_1, id_texts_2 = (
            {i: text for text, ids in each.items() for i in ids} for each in (of_first, of_second)
        )
        by_id = [prompt_id for prompt_id in id_texts_1 if prompt_id in id_texts_2]
        shared_videos = sorted(names[first.name] & names[second.name])
        found.append(
            Overlap(
                splits=(first.name, second.name),
                prompts={first.name: len(of_first), second.name: len(of_second)},
                prompts_by_text=len(by_text),
                prompts_by_text_under_other_ids=sum(not set(of_first[text]) & set(of_second[text]) for text in by_text),
                prompts_by_id=len(by_id),
                prompt_ids_with_other_text=sum(id_texts_1[i] != id_texts_2[i] for i in by_id),
                share_of_prompts={
                    split.name: len(by_text) / len(texts[split.name]) if texts[split.name] else None
                    for split in (first, second)
                },
                videos=len(shared_videos),
                video_names_of_other_videos=len(written[first.name] & written[second.name]) - len(shared_videos),
                compared_pairs=len(compared[first.name] & compared[second.name]),
                examples=OverlapExamples(
                    prompt_ids=[
                        {first.name: of_first[text], second.name: of_second[text]} for text in by_text[:NUM_EXAMPLES]
                    ],
                    videos=shared_videos[:NUM_EXAMPLES],
                ),
            )
        )
    return found


def audit_prompt_ids(split: Split) -> PromptIds:
    """Finds prompts of one split whose text has several ids, ignoring case and white space."""
    repeated = [ids for ids in _ids_of_texts(split).values() if len(ids) > 1]
    return PromptIds(len(repeated), repeated[:NUM_EXAMPLES])


def _ids_of_texts(split: Split) -> dict[str, list[str]]:
    """Maps each normalised text to its prompt ids, in the order of first appearance."""
    ids: dict[str, dict[str, None]] = {}
    for prompt_id, record in split.prompts.items():
        ids.setdefault(normalise_prompt(record.prompt_text), {})[prompt_id] = None
    return {text: list(each) for text, each in ids.items()}


def _compared(split: Split) -> set[tuple[str, ...]]:
    return {tuple(sorted((pair.video_0.name, pair.video_1.name))) for pair in split.pairs}
