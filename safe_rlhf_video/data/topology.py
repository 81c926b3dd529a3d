"""Cuts data sets of equal label count and different shape from one: does the shape of the comparison graph matter?

The question comes from "Reward Generalization in RLHF: A Topological Perspective" (arXiv 2402.10184). That work
compares chains and trees of information in text, where answers share beginnings. Here the shape is that of the
comparison graph of each prompt, which any data set has. `docs/audit.md` says what carries over and what does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.errors import ConfigError

# The longest path and the largest clique are hard to find in a large graph; with a handful of videos it takes a few
# steps. After this many, the best one found so far is taken.
_MAX_STEPS = 20_000

Edge = tuple[str, str]  # two video ids, in order
Graph = Mapping[str, Sequence[str]]  # video id -> the ids it was compared with


def subsample(
    pairs: Sequence[PairSample], topology: str, budget: int, seed: int = 0, dimension: str = "helpfulness"
) -> list[PairSample]:
    """Chooses exactly `budget` comparisons so that those of each prompt form one shape.

        "chain"    a path: A-B, B-C, C-D, ...; the longest one, or a piece of it
        "tree"     as star-like as the data allow: breadth first from the video with most comparisons, so that every
                   video is as near to it as can be; or the part next to its root
        "clique"   all chosen videos compared with each other: one pair, a triangle, four videos with six comparisons

    Every prompt gives at most one such shape. Prompts with the largest shapes go first, in random order among equals,
    and the last ones are cut down to meet the count. Labels are kept, ties too; of a pair that was labelled several
    times, the first label.

    Args:
        pairs: the comparisons to choose from.
        topology: "chain", "tree" or "clique".
        budget: how many to choose.
        seed: the same arguments and seed choose the same comparisons.
        dimension: whose labels count; a comparison without such a label is not chosen.

    Returns:
        The chosen pairs, in the order of `pairs`.

    Raises:
        ConfigError: an argument is wrong, or the data cannot give `budget` comparisons of that shape; the message says
            how many they can give.
    """
    if topology not in _SHAPES:
        raise ConfigError(f"topology: {topology!r} is unknown; expected {', '.join(map(repr, _SHAPES))}")
    if budget < 1:
        raise ConfigError(f"budget: expected 1 or more, got {budget}")
    if pairs and dimension not in pairs[0].preferences:
        raise ConfigError(f"dimension: {dimension!r} is unknown; expected one of {', '.join(pairs[0].preferences)}")
    rows_of: dict[str, dict[Edge, int]] = {}
    for row, pair in enumerate(pairs):
        if pair.preferences[dimension] is not None:
            first, second = sorted((pair.video_0.video_id, pair.video_1.video_id))
            rows_of.setdefault(pair.prompt_id, {}).setdefault((first, second), row)
    random = np.random.default_rng(seed)
    find = _SHAPES[topology]
    # The order of the records must not matter.
    shapes = [(prompt_id, find(_shuffled_graph(rows_of[prompt_id], random))) for prompt_id in sorted(rows_of)]
    shapes = [shapes[place] for place in random.permutation(len(shapes))]
    shapes.sort(key=lambda shape: -len(shape[1]))
    counts = _cut_in_turn([len(edges) for _, edges in shapes], budget, topology)
    if sum(counts) < budget:
        reachable = sum(len(edges) for _, edges in shapes)
        if reachable >= budget:
            counts = _cut_cliques([len(edges) for _, edges in shapes], reachable - budget, reachable - sum(counts))
        if sum(counts) != budget:
            instead = f"ask for {sum(counts)}" if reachable > budget else f"ask for {reachable} or fewer"
            raise ConfigError(
                f"budget: these {len(pairs)} comparisons give {reachable} {dimension} labels in the shape of "
                f"{topology}s, and not exactly {budget}; {instead}"
            )
    chosen = [
        rows_of[prompt_id][edge]
        for (prompt_id, edges), number in zip(shapes, counts, strict=True)
        for edge in edges[:number]
    ]
    return [pairs[row] for row in sorted(chosen)]


def _shuffled_graph(edges: Mapping[Edge, int], random: np.random.Generator) -> Graph:
    """Neighbours of each video, videos and neighbours in random order."""
    ids = sorted({video_id for edge in edges for video_id in edge})
    order = [ids[place] for place in random.permutation(len(ids))]
    neighbours: dict[str, list[str]] = {video_id: [] for video_id in order}
    for first, second in edges:
        neighbours[first].append(second)
        neighbours[second].append(first)
    rank = {video_id: place for place, video_id in enumerate(order)}
    return {video_id: sorted(others, key=rank.__getitem__) for video_id, others in neighbours.items()}


def _longest_path(graph: Graph) -> list[Edge]:
    """The edges of the longest path found."""
    sets = {video_id: set(others) for video_id, others in graph.items()}

    def extensions(path: tuple[str, ...]) -> list[str]:
        choices = [other for other in graph[path[-1]] if other not in path]
        # Videos with few ways on come first: a dead end left for later is seldom reached.
        return sorted(choices, key=lambda video_id: len(sets[video_id].difference(path)))

    best = _grow(graph, extensions, enough=len(graph))
    return [_edge(first, second) for first, second in pairwise(best)]


def _largest_clique(graph: Graph) -> list[Edge]:
    """All edges of the largest clique found.

    The first k (k - 1) / 2 of them connect the clique's first k videos.
    """
    sets = {video_id: set(others) for video_id, others in graph.items()}
    rank = {video_id: place for place, video_id in enumerate(graph)}

    def extensions(members: tuple[str, ...]) -> list[str]:
        last = rank[members[-1]]
        return [other for other in graph[members[-1]] if rank[other] > last and sets[other].issuperset(members)]

    best = _grow(graph, extensions, enough=max(map(len, sets.values())) + 1)
    return [_edge(best[first], best[second]) for second in range(len(best)) for first in range(second)]


def _bushiest_tree(graph: Graph) -> list[Edge]:
    """The edges of a breadth-first tree from the video with most comparisons, the nearest first."""
    best: list[Edge] = []
    seen: set[str] = set()
    # sorted() keeps the random order of equals.
    for root in sorted(graph, key=lambda video_id: -len(graph[video_id])):
        if root in seen:
            continue
        reached, edges = [root], []
        seen.add(root)
        for video_id in reached:
            for other in graph[video_id]:
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
                    edges.append(_edge(video_id, other))
        best = max(best, edges, key=len)
    return best


def _grow(graph: Graph, extensions: Callable[[tuple[str, ...]], list[str]], enough: int) -> tuple[str, ...]:
    """Searches depth first for the longest row of videos that `extensions` allows; stops at `enough` videos."""
    best: tuple[str, ...] = ()
    steps = 0
    for start in graph:
        pending: list[Iterator[str]] = [iter((start,))]
        row: tuple[str, ...] = ()
        while pending:
            video_id = next(pending[-1], None)
            if video_id is None:
                pending.pop()
                row = row[:-1]
                continue
            row = (*row, video_id)
            steps += 1
            if len(row) > len(best):
                best = row
            if len(best) == enough or steps > _MAX_STEPS:
                return best
            pending.append(iter(extensions(row)))
    return best


def _cut_in_turn(sizes: Sequence[int], budget: int, topology: str) -> list[int]:
    """How many of its first edges each shape gives: all, but the last shapes are cut to meet the budget."""
    counts, left = [], budget
    for size in sizes:
        counts.append(min(size, left) if topology != "clique" else max(n for n in _clique_sizes(size) if n <= left))
        left -= counts[-1]
    return counts


def _cut_cliques(sizes: Sequence[int], fewest: int, most: int) -> list[int]:
    """How many edges each clique gives, so that together they leave out as few as possible, but at least `fewest`.

    One integer holds the sums that the first k cliques can leave out, a bit for each (Bellman 1957, subset sums).
    All cliques together must be able to leave out `most`.
    """
    mask = (1 << (most + 1)) - 1
    sums = [1]
    for size in sizes:
        reached = 0
        for number in _clique_sizes(size):
            reached |= sums[-1] << (size - number)
        sums.append(reached & mask)
    left_out = next(number for number in range(fewest, most + 1) if sums[-1] >> number & 1)
    counts = []
    for size, before in zip(reversed(sizes), reversed(sums[:-1]), strict=True):
        count = next(
            number
            for number in reversed(_clique_sizes(size))
            if size - number <= left_out and before >> (left_out - size + number) & 1
        )
        left_out -= size - count
        counts.append(count)
    return counts[::-1]


def _clique_sizes(size: int) -> list[int]:
    """Edge counts of the cliques within a clique of `size` edges: 0, 1, 3, 6, ..., `size`."""
    sizes = [0]
    while sizes[-1] < size:
        sizes.append(sizes[-1] + len(sizes))
    return sizes


def _edge(first: str, second: str) -> Edge:
    return (first, second) if first < second else (second, first)


_SHAPES: Mapping[str, Callable[[Graph], list[Edge]]] = {
    "chain": _longest_path,
    "tree": _bushiest_tree,
    "clique": _largest_clique,
}
