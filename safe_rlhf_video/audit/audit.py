"""Computes all sections of an audit; docs/audit.md explains every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from safe_rlhf_video.audit.balance import audit_balance
from safe_rlhf_video.audit.baselines import audit_baselines, audit_prompt_baseline, gather_safety_labels
from safe_rlhf_video.audit.clip_checks import audit_clips, audit_responses
from safe_rlhf_video.audit.comparisons import build_comparisons
from safe_rlhf_video.audit.conflicts import audit_conflicts
from safe_rlhf_video.audit.field_coverage import audit_fields
from safe_rlhf_video.audit.findings import find
from safe_rlhf_video.audit.graph import audit_graph
from safe_rlhf_video.audit.overlap import audit_overlap, audit_prompt_ids
from safe_rlhf_video.audit.sections import Audit, AuditCounts, Baselines, LabelAudit, SplitAudit
from safe_rlhf_video.audit.splits import Split, keep_apart
from safe_rlhf_video.audit.triangles import audit_triangles
from safe_rlhf_video.data.records import ALL_DIMENSIONS, PairSample
from safe_rlhf_video.progress import progress_bar

FORMAT_VERSION = 2
NO_COMPARISON = "no comparison: a list of single videos or prompts"


def audit(
    splits: Sequence[Split],
    *,
    read_content: bool = True,
    known_hashes: Mapping[str, str] | None = None,
) -> Audit:
    """Audits some configs, each by itself and all together.

    Args:
        splits: the fitted baselines of the others learn from the first one.
        read_content: whether to read clips for their content hash.
        known_hashes: video name -> SHA-256 of its file, from a frame store.
    """
    splits = list(splits)
    apart = keep_apart(splits)
    steps = len(splits) + (len(splits) > 1)
    sections: dict[str, SplitAudit] = {}
    with progress_bar(steps, 0, "auditing labels", "split") as progress:
        for split in splits:
            sections[split.name] = SplitAudit(
                **vars(_audit_labels([split])),
                config=str(split.dataset.config_file),
                prompt_ids=audit_prompt_ids(split),
                fields=audit_fields(split),
            )
            progress.update()
        together: LabelAudit = sections[splits[0].name]
        if len(splits) > 1:
            together = _audit_labels(apart)
            progress.update()
    result = Audit(
        format_version=FORMAT_VERSION,
        names=[split.name for split in splits],
        unit=_unit(splits),
        findings=[],
        overlap=audit_overlap(splits, apart),
        clips=audit_clips(apart, read_content, known_hashes),
        responses=audit_responses(apart),
        baselines=_audit_all_baselines(splits),
        counts=together.counts,
        conflicts=together.conflicts,
        triangles=together.triangles,
        balance=together.balance,
        graph=together.graph,
        reason=together.reason,
        splits=sections,
    )
    return replace(result, findings=find(result))


def _unit(splits: Sequence[Split]) -> str:
    """Returns the word for what is compared: "video", "response", or "item" if there are both."""
    are_texts = {video.response_text is not None for split in splits for video in split.videos}
    return "item" if len(are_texts) > 1 else "response" if True in are_texts else "video"


def _audit_labels(splits: Sequence[Split]) -> LabelAudit:
    """Audits the labels of some splits together; sections about comparisons are None if there are no comparisons.

    Args:
        splits: an id must mean the same prompt in all of them.
    """
    pairs, num_repeated = _pool_pairs(splits)
    mentions = [video for split in splits for video in split.mentions]
    prompts = {prompt_id: record for split in reversed(splits) for prompt_id, record in split.prompts.items()}
    comparisons = build_comparisons(pairs)
    return LabelAudit(
        counts=AuditCounts(len(pairs), num_repeated, len(prompts), len({video.name for video in mentions})),
        conflicts=audit_conflicts(comparisons, mentions),
        triangles={name: audit_triangles(comparisons, name) for name in ALL_DIMENSIONS} if pairs else None,
        balance=audit_balance(comparisons, mentions, list(prompts.values()), bool(pairs)),
        graph={"overall": audit_graph(comparisons, None)}
        | {name: audit_graph(comparisons, name) for name in ALL_DIMENSIONS}
        if pairs
        else None,
        reason=None if pairs else NO_COMPARISON,
    )


def _pool_pairs(splits: Sequence[Split]) -> tuple[Sequence[PairSample], int]:
    """Returns all pairs, and the number of dropped copies: a row in several splits is one label, not a repeated one."""
    if len(splits) == 1:
        return splits[0].pairs, 0
    pool: dict[tuple[object, ...], PairSample] = {}
    for split in splits:
        for pair in split.pairs:
            key = (pair.pair_id, pair.video_0.name, pair.video_1.name, *pair.preferences.values())
            pool.setdefault(key, pair)
    return list(pool.values()), sum(len(split.pairs) for split in splits) - len(pool)


def _audit_all_baselines(splits: Sequence[Split]) -> dict[str, Baselines]:
    """Cross-fits the first split that can be learned from, and judges every later one by a fit on it."""
    fitted = fitted_signs = None
    found: dict[str, Baselines] = {}
    for split in splits:
        labels = gather_safety_labels(split)
        unsafe = audit_prompt_baseline(labels, *(fitted_signs or ()))
        if labels.has_both:
            fitted_signs = fitted_signs or (labels, split.name)
        found[split.name] = Baselines(reason=NO_COMPARISON, prompt_only_unsafe=unsafe)
        if split.pairs:
            judged = build_comparisons(split.pairs)
            found[split.name] = audit_baselines(judged, unsafe, *(fitted or ()))
            fitted = fitted or (judged, split.name)
    return found
