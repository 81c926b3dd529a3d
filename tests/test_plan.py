"""Groups, splits, and the plan of an epoch: invariants that hold for any data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Record
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_video.data.batch import collate
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import (
    PromptGroup,
    build_groups,
    keep_useful,
    leave_out,
    split_by_prompt,
    split_pairs,
)
from safe_rlhf_video.data.records import DIMENSIONS, VIDEO_NAMES, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS
from safe_rlhf_video.training.config import DataConfig, OptimizationConfig, TrainConfig
from safe_rlhf_video.training.data import load_data
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.loader import share_out
from safe_rlhf_video.training.plan import GroupSize, divide, plan_epoch, plan_step
from safe_rlhf_video.training.run import FEW_STEPS, count_steps, note_few_steps
from safe_rlhf_video.video.sampling import Video


def make_group(
    number: int,
    num_videos: int,
    comparisons: dict[str, list],
    sign: list[int],
    text: str = "",
    ties: dict[str, list] | None = None,
) -> PromptGroup:
    videos = tuple(
        VideoSample(f"p{number}", "", None, None, f"v{i}", None, "-", None, None, None, None, {})
        for i in range(num_videos)
    )
    rows, tied = (
        {name: np.array(labels.get(name, []), np.int64).reshape(-1, 2) for name in DIMENSIONS}
        for labels in (comparisons, ties or {})
    )
    no_harms = np.zeros((num_videos, NUM_LABEL_COLUMNS), np.float32)
    return PromptGroup(f"p{number}", text or f"text {number}", videos, rows, tied, np.array(sign, np.int64), no_harms)


@st.composite
def groups(draw: st.DrawFn) -> list[PromptGroup]:
    made = []
    for number in range(draw(st.integers(1, 12))):
        size = draw(st.integers(2, 6))
        pair = st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True)
        comparisons = {name: draw(st.lists(pair, max_size=5)) for name in DIMENSIONS}
        sign = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=size, max_size=size))
        ties = {name: draw(st.lists(pair, max_size=2)) for name in DIMENSIONS}
        made.append(make_group(number, size, comparisons, sign, ties=ties))
    return made


@settings(deadline=None)
@given(groups(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_group_once_an_epoch_with_true_denominators(
    data: list[PromptGroup], prompts_per_step: int, seed: int, epoch: int
) -> None:
    plans = plan_epoch(data, prompts_per_step, seed, epoch)
    assert sorted(i for plan in plans for i in plan.groups) == list(range(len(data)))
    assert all(len(plan.groups) == prompts_per_step for plan in plans[:-1])
    for plan in plans:
        members = [data[i] for i in plan.groups]
        for name in DIMENSIONS:
            assert plan.num_comparisons[name] == sum(1 for group in members for _ in group.comparisons[name])
            assert plan.num_ties[name] == sum(1 for group in members for _ in group.ties[name])
            assert plan.num_prompts[name] == sum(bool(len(g.comparisons[name]) + len(g.ties[name])) for g in members)
            assert plan.num_labels(name) == plan.num_comparisons[name] + plan.num_ties[name]
        assert plan.num_signs == sum(1 for group in members for sign in group.safety_sign if sign)
        assert plan.num_videos == sum(1 for group in members for _ in group.videos)
    assert plans == plan_epoch(data, prompts_per_step, seed, epoch)


@settings(deadline=None)
@given(
    st.lists(st.builds(GroupSize, st.integers(2, 6), st.integers(5, 40)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0, 60, 150]),
)
def test_shares_partition_a_step_within_the_budget(sizes: list[GroupSize], ranks: int, budget: int) -> None:
    micro_batches = divide(range(len(sizes)), sizes, ranks, budget)
    assert sorted(i for shares in micro_batches for share in shares for i in share) == list(range(len(sizes)))
    assert budget or len(micro_batches) == 1
    shortest_before = math.inf
    for shares in micro_batches:
        assert len(shares) == ranks
        members = [i for share in shares for i in share]
        width = max(sizes[i].num_tokens for i in members)
        assert width <= shortest_before  # alike in length: what is padded together is next to each other in length
        shortest_before = min(sizes[i].num_tokens for i in members)
        loads = [sum(sizes[i].num_videos for i in share) for share in shares]
        # No share is heavier than the lightest one by more than one group.
        assert max(loads) - min(loads) <= max(sizes[i].num_videos for i in members)
        for share, load in zip(shares, loads, strict=True):
            assert not budget or len(share) <= 1 or load * width <= budget


@settings(deadline=None)
@given(groups(), st.integers(1, 3), st.sampled_from([0, 100]))
def test_idle_ranks_get_a_blank_and_all_have_as_many_micro_batches(
    data: list[PromptGroup], world_size: int, budget: int
) -> None:
    config = TrainConfig(out="-", data=DataConfig(path="-"), optimization=OptimizationConfig(micro_batch_tokens=budget))
    sizes = [GroupSize(len(group.videos), 20) for group in data]
    plan = plan_step(range(len(data)), data)
    of_ranks = [
        list(share_out(config, plan, plan.groups, data, sizes, Ranks(rank, world_size, torch.device("cpu")), True))
        for rank in range(world_size)
    ]
    assert len({len(jobs) for jobs in of_ranks}) == 1
    assert sorted(group.prompt_id for jobs in of_ranks for job in jobs for group in job.groups) == sorted(
        group.prompt_id for group in data
    )
    for jobs in of_ranks:
        assert [job.is_last for job in jobs] == [False] * (len(jobs) - 1) + [True]
        assert all(bool(job.groups) != bool(job.blanks) for job in jobs)


def test_epochs_differ_in_order() -> None:
    data = [make_group(number, 2, {}, [0, 0]) for number in range(20)]
    orders = [[i for plan in plan_epoch(data, 4, 0, epoch) for i in plan.groups] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_groups_hold_each_video_once_and_each_pair(world: Path) -> None:
    dataset = PairDataset.load(world, "config-train.json.gz")
    built, unused = build_groups(dataset.pairs)
    assert sum(len(group.videos) for group in built) == dataset.num_videos
    assert len(built) == dataset.num_prompts
    by_prompt = {group.prompt_id: group for group in built}
    found: dict[str, int] = dict.fromkeys(DIMENSIONS, 0)
    for pair in dataset.pairs:
        group = by_prompt[pair.prompt_id]
        ids = [video.video_id for video in group.videos]
        for name in DIMENSIONS:
            if (preferred := pair.preferences[name]) is None:
                continue
            sides = [ids.index(pair.video_0.video_id), ids.index(pair.video_1.video_id)]
            assert [sides[preferred], sides[1 - preferred]] in group.comparisons[name].tolist()
            found[name] += 1
    for name in DIMENSIONS:
        assert sum(group.num_comparisons(name) for group in built) == found[name]
        assert unused.get(f"missing/{name}", 0) == len(dataset) - found[name]


def test_contradictory_sign_is_unknown(edited_world: Callable[[Callable[[list[Record]], None]], Path]) -> None:
    def contradict(records: list[Record]) -> None:
        first = records[0]["video_0"]
        for record in records:
            for side in ("video_0", "video_1"):
                if record[side]["video_id"] == first["video_id"]:
                    record[side]["is_safe"] = True
        twin = {**records[0], "pair_id": "twin", "video_0": {**first, "is_safe": False}}
        records.append(twin)

    dataset = PairDataset.load(edited_world(contradict), "config-train.json.gz")
    built, unused = build_groups(dataset.pairs)
    assert unused["contradictory is_safe"] == 1
    video_id = dataset.pairs[0].video_0.video_id
    (sign,) = (s for g in built for v, s in zip(g.videos, g.safety_sign, strict=True) if v.video_id == video_id)
    assert sign == 0


def test_keep_useful_drops_and_renumbers() -> None:
    group = make_group(0, 4, {"helpfulness": [[3, 1]], "harmlessness": [[0, 2]]}, [0, 0, -1, 0])
    empty = make_group(1, 2, {}, [1, 0])
    (reward,) = keep_useful([group, empty], ["helpfulness"], signs=False)
    assert [video.video_id for video in reward.videos] == ["v1", "v3"]
    assert reward.comparisons["helpfulness"].tolist() == [[1, 0]]
    assert not len(reward.comparisons["harmlessness"])
    cost, only_sign = keep_useful([group, empty], ["harmlessness"], signs=True)
    assert [video.video_id for video in cost.videos] == ["v0", "v2"]
    assert cost.safety_sign.tolist() == [0, -1]
    assert [video.video_id for video in only_sign.videos] == ["v0"]


def test_ties_are_kept_only_where_they_are_trained_on() -> None:
    group = make_group(
        0, 4, {"helpfulness": [[3, 1]]}, [0] * 4, ties={"helpfulness": [[2, 3]], "harmlessness": [[0, 1]]}
    )
    (without,) = keep_useful([group], ["helpfulness"], signs=False)
    assert [video.video_id for video in without.videos] == ["v1", "v3"]
    assert not len(without.ties["helpfulness"])
    (with_ties,) = keep_useful([group], ["helpfulness"], signs=False, ties=True)
    assert [video.video_id for video in with_ties.videos] == ["v1", "v2", "v3"]
    assert with_ties.comparisons["helpfulness"].tolist() == [[2, 0]]
    assert with_ties.ties["helpfulness"].tolist() == [[1, 2]]
    assert not len(with_ties.ties["harmlessness"])


@settings(deadline=None)
@given(groups(), st.data())
def test_leaving_videos_out_takes_just_their_labels(data: list[PromptGroup], draw: st.DataObject) -> None:
    names = [video.name for group in data for video in group.videos]
    left_out = draw.draw(st.sets(st.sampled_from(names)))

    def labels(groups: list[PromptGroup], kind: str, name: str) -> list[tuple[str, str]]:
        return [(group.videos[a].name, group.videos[b].name) for group in groups for a, b in getattr(group, kind)[name]]

    kept = leave_out(data, left_out)
    assert [video.name for group in kept for video in group.videos] == [name for name in names if name not in left_out]
    signs = {v.name: s for group in data for v, s in zip(group.videos, group.safety_sign, strict=True)}
    assert all(signs[v.name] == s for group in kept for v, s in zip(group.videos, group.safety_sign, strict=True))
    for kind in ("comparisons", "ties"):
        for name in DIMENSIONS:
            expected = [pair for pair in labels(data, kind, name) if not left_out & set(pair)]
            assert labels(kept, kind, name) == expected


@settings(deadline=None)
@given(groups())
def test_pairwise_groups_hold_every_label_once(data: list[PromptGroup]) -> None:
    def labels(groups: list[PromptGroup], kind: str, name: str) -> list[tuple[str, str]]:
        return sorted(
            (group.videos[a].name, group.videos[b].name) for group in groups for a, b in getattr(group, kind)[name]
        )

    pairs = split_pairs(data, DIMENSIONS)
    assert all(len(group.videos) == 2 for group in pairs)
    couples = [tuple(video.name for video in group.videos) for group in pairs]
    assert len(set(couples)) == len(couples)
    signs = {v.name: s for group in data for v, s in zip(group.videos, group.safety_sign, strict=True)}
    assert all(signs[v.name] == s for group in pairs for v, s in zip(group.videos, group.safety_sign, strict=True))
    for name in DIMENSIONS:
        for kind in ("comparisons", "ties"):
            assert labels(pairs, kind, name) == labels(data, kind, name)


def test_videos_that_are_not_used_are_told(edited_world: Callable[[Callable[[list[Record]], None]], Path]) -> None:
    def add_unlabelled(records: list[Record]) -> None:
        for record in records:
            for side in VIDEO_NAMES:
                record[side]["is_safe"] = record[side]["video_id"] < "8"
        videos = {side: {**records[0][side], "video_id": f"new_{side}", "is_safe": None} for side in VIDEO_NAMES}
        records.append({**records[0], **videos, "pair_id": "new", "helpfulness": None, "harmlessness": None})

    data = DataConfig(path=str(edited_world(add_unlabelled)), config_filename="config-train.json.gz")
    unused = "2 videos are in no labelled comparison and are not used"
    for head in ("reward", "cost"):
        loaded = load_data(TrainConfig(out="-", data=data), [head])
        assert unused in loaded.notes
        without_sign = f"2 of {len(loaded.clip_files)} videos have no is_safe label"
        assert (without_sign in loaded.notes) == (head == "cost")


def test_split_is_disjoint_by_text_and_stable() -> None:
    # Two ids share each text, once with other capitals and spaces.
    texts = [f"a prompt number {number // 2}" for number in range(200)]
    texts[1::2] = [text.upper().replace(" ", "  ") for text in texts[1::2]]
    data = [make_group(number, 2, {}, [0, 0], text) for number, text in enumerate(texts)]
    train, validation = split_by_prompt(data, 0.3, seed=0)
    assert len(train) + len(validation) == len(data)
    assert 0.15 < len(validation) / len(data) < 0.45
    normal = [{" ".join(group.prompt_text.lower().split()) for group in side} for side in (train, validation)]
    assert not normal[0] & normal[1]
    # More data moves nobody, and another order does not either.
    fewer = split_by_prompt(data[100::-1], 0.3, seed=0)
    assert {group.prompt_id for group in fewer[1]} == {g.prompt_id for g in validation if int(g.prompt_id[1:]) <= 100}
    assert split_by_prompt(data, 0.3, seed=1)[1] != validation


def test_split_that_leaves_a_side_empty_is_refused() -> None:
    with pytest.raises(SampleError, match="validation_fraction"):
        split_by_prompt([make_group(0, 2, {}, [0, 0])], 0.1, seed=0)


def test_collate_shifts_indices_by_group() -> None:
    data = [
        make_group(0, 2, {"helpfulness": [[1, 0]]}, [1, 0]),
        make_group(1, 3, {"helpfulness": [[0, 2]]}, [0, -1, 0], ties={"helpfulness": [[1, 2]]}),
    ]
    videos = [Video(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1)) for _ in range(5)]
    batch = collate(data, videos)
    assert batch.comparisons["helpfulness"].tolist() == [[1, 0], [2, 4]]
    assert batch.ties["helpfulness"].tolist() == [[3, 4]]
    assert batch.label_weights["helpfulness"].tolist() == [1.0, 0.5, 0.5]  # a prompt with one label, one with two
    assert batch.safety_sign.tolist() == [1, 0, 0, -1, 0]
    assert batch.names == ("p0/v0", "p0/v1", "p1/v0", "p1/v1", "p1/v2")
    assert batch.counted.all()
    with_blank = collate(data[:1], videos[:2], blanks=videos[:1])
    assert with_blank.counted.tolist() == [True, True, False]
    assert with_blank.safety_sign.tolist() == [1, 0, 0]
    assert len(with_blank.prompts) == len(with_blank.responses) == len(with_blank.names) == 3
    idle = collate([], [], blanks=videos[:1])
    assert not any(len(rows) for rows in (*idle.comparisons.values(), *idle.ties.values()))
    assert not idle.safety_sign.any()
    with pytest.raises(ValueError, match="expected the 5 videos"):
        collate(data, videos[:4])


@given(st.integers(1, 2000), st.integers(1, 5), st.integers(1, 64))
def test_few_steps_are_noted_with_a_setting_that_mends_it(num_prompts: int, epochs: int, prompts_per_step: int) -> None:
    rates = OptimizationConfig(epochs=epochs, prompts_per_step=prompts_per_step)
    config = TrainConfig("run", DataConfig("data"), optimization=rates)
    steps = count_steps(config, num_prompts)
    notes = note_few_steps(config, num_prompts)
    assert bool(notes) == (steps < FEW_STEPS and prompts_per_step > 1)
    for note in notes:
        told, fewer, more = map(int, re.findall(r"[0-9]+", note))
        mended = replace(config, optimization=replace(rates, prompts_per_step=fewer))
        assert (told, more) == (steps, count_steps(mended, num_prompts))
        assert more >= FEW_STEPS or fewer == 1
        assert fewer < prompts_per_step
    limited = replace(config, optimization=replace(rates, max_steps=3))
    assert not note_few_steps(limited, num_prompts), "asked for"
