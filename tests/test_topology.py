"""Shapes: exactly the budget, each prompt's edges a path, a tree or a clique, and as many as brute force finds."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, permutations, product

import numpy as np
import pytest

from safe_rlhf_video.data.records import TIE, parse_pair
from safe_rlhf_video.data.topology import subsample
from safe_rlhf_video.errors import ConfigError


def make_pairs(edges_of, label="video_0"):
    """One pair an edge; edges_of: prompt id -> list of (video id, video id)."""
    pairs = []
    for prompt_id, edges in edges_of.items():
        for ends in edges:
            videos = {
                f"video_{side}": {"video_id": str(video_id), "video_path": f"{video_id}.mp4"}
                for side, video_id in enumerate(ends)
            }
            record = {"pair_id": str(len(pairs)), "prompt_id": prompt_id, "prompt_text": prompt_id, **videos}
            pairs.append(parse_pair(record | {"helpfulness": label}, "row"))
    return pairs


def random_graphs(count, seed):
    random = np.random.default_rng(seed)
    graphs = {}
    for number in range(count):
        videos = int(random.integers(2, 7))
        edges = [edge for edge in combinations(range(videos), 2) if random.random() < 0.6]
        graphs[f"p{number}"] = [edge if random.random() < 0.5 else edge[::-1] for edge in edges]
    return graphs


def edges_by_prompt(pairs):
    edges = defaultdict(list)
    for pair in pairs:
        edges[pair.prompt_id].append({pair.video_0.video_id, pair.video_1.video_id})
    return edges


def is_of_shape(edges, topology):
    degree = defaultdict(int)
    for edge in edges:
        for video_id in edge:
            degree[video_id] += 1
    if topology == "clique":
        return len(edges) == len(degree) * (len(degree) - 1) // 2
    reached = set(edges[0])
    for _ in edges:
        reached |= {video_id for edge in edges if edge & reached for video_id in edge}
    is_tree = reached == set(degree) and len(edges) == len(degree) - 1
    return is_tree and (topology == "tree" or max(degree.values()) <= 2)


def most_edges(edges, topology):
    """By trying everything."""
    known = {frozenset(edge) for edge in edges}
    videos = sorted({video_id for edge in edges for video_id in edge})
    if topology == "chain":
        return max(
            size - 1
            for size in range(1, len(videos) + 1)
            for row in permutations(videos, size)
            if all(frozenset(row[place : place + 2]) in known for place in range(size - 1))
        )
    if topology == "clique":
        sizes = range(1, len(videos) + 1)
        return max(
            size * (size - 1) // 2
            for size in sizes
            for members in combinations(videos, size)
            if all(frozenset(edge) in known for edge in combinations(members, 2))
        )
    components = [{video_id} for video_id in videos]
    for edge in known:
        joined = [component for component in components if component & edge]
        components = [component for component in components if not component & edge] + [set().union(*joined)]
    return max(map(len, components)) - 1


@pytest.mark.parametrize("topology", ["chain", "tree", "clique"])
def test_shapes_are_exact_and_as_large_as_brute_force_finds(topology):
    graphs = {prompt: edges for prompt, edges in random_graphs(60, seed=1).items() if edges}
    pairs = make_pairs(graphs)
    reachable = sum(most_edges(edges, topology) for edges in graphs.values())
    for budget in (1, 10, 57, reachable // 2, reachable):
        chosen = subsample(pairs, topology, budget, seed=3)
        assert len({pair.pair_id for pair in chosen}) == len(chosen) == budget
        assert all(is_of_shape(edges, topology) for edges in edges_by_prompt(chosen).values())
        assert [int(pair.pair_id) for pair in chosen] == sorted(int(pair.pair_id) for pair in chosen)
    with pytest.raises(ConfigError, match=rf"give {reachable} helpfulness labels.*ask for {reachable} or fewer"):
        subsample(pairs, topology, reachable + 1)


def test_the_shapes_differ_where_the_data_allow_it():
    complete = {f"p{number}": list(combinations(range(5), 2)) for number in range(10)}
    pairs = make_pairs(complete)
    degrees = {}
    for topology, num_prompts in (("chain", 5), ("tree", 5), ("clique", 2)):
        chosen = edges_by_prompt(subsample(pairs, topology, 20))
        assert len(chosen) == num_prompts
        counts = defaultdict(int)
        for prompt_id, edges in chosen.items():
            for edge in edges:
                for video_id in edge:
                    counts[prompt_id, video_id] += 1
        degrees[topology] = sorted(counts.values())
    assert degrees == {"chain": [1] * 10 + [2] * 15, "tree": [1] * 20 + [4] * 5, "clique": [4] * 10}


def test_the_seed_decides_and_the_order_of_the_records_does_not():
    pairs = make_pairs(random_graphs(40, seed=2))
    names = {pair.pair_id for pair in subsample(pairs, "chain", 30, seed=5)}
    assert {pair.pair_id for pair in subsample(pairs[::-1], "chain", 30, seed=5)} == names
    assert {pair.pair_id for pair in subsample(pairs, "chain", 30, seed=6)} != names


def test_labels_are_taken_as_they_are_and_missing_ones_not_at_all():
    unlabelled = make_pairs({"p": [(0, 1), (1, 2)]}, label=None)
    with pytest.raises(ConfigError, match="give 0 helpfulness labels"):
        subsample(unlabelled, "tree", 1)
    ties = make_pairs({"p": [(0, 1), (1, 0)]}, label=TIE)
    assert subsample(ties, "chain", 1) == [ties[0]]
    with pytest.raises(ConfigError, match="give 1 helpfulness"):
        subsample(ties, "chain", 2)


def test_a_count_that_cliques_cannot_make_names_one_that_they_can():
    pairs = make_pairs({prompt: list(combinations(range(3), 2)) for prompt in "ab"})
    with pytest.raises(ConfigError, match="not exactly 5; ask for 4"):
        subsample(pairs, "clique", 5)
    assert len(subsample(pairs, "clique", 4)) == 4


@pytest.mark.parametrize("seed", range(30))
def test_every_count_that_cliques_can_make_is_found(seed):
    random = np.random.default_rng(seed)
    sizes = [int(size) for size in random.integers(2, 7, int(random.integers(2, 5)))]
    pairs = make_pairs({f"p{number}": list(combinations(range(size), 2)) for number, size in enumerate(sizes)})
    choices = [[part * (part - 1) // 2 for part in range(1, size + 1)] for size in sizes]
    possible = {sum(counts) for counts in product(*choices)}
    for budget in range(1, len(pairs) + 1):
        if budget in possible:
            chosen = edges_by_prompt(subsample(pairs, "clique", budget, seed=seed))
            assert sum(map(len, chosen.values())) == budget
            assert all(is_of_shape(edges, "clique") for edges in chosen.values())
        else:
            below = max(count for count in possible if count < budget)
            with pytest.raises(ConfigError, match=rf"not exactly {budget}; ask for {below}$"):
                subsample(pairs, "clique", budget, seed=seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("star", 3), "topology: 'star'"), (("chain", 0), "budget"), (("chain", 1, 0, "beauty"), "dimension: 'beauty'")],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        subsample(make_pairs({"p": [(0, 1)]}), *arguments)


@pytest.mark.timeout(20)
def test_a_large_dense_prompt_ends():
    pairs = make_pairs({"p": list(combinations(range(60), 2))})
    assert len(subsample(pairs, "chain", 59)) == 59
    assert len(subsample(pairs, "clique", 1770)) == 1770
    sparse = make_pairs({"p": [edge for edge in combinations(range(60), 2) if sum(edge) % 3 == 0]})
    assert len(subsample(sparse, "chain", 30)) == 30
