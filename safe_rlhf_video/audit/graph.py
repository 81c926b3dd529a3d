"""Measures the comparison graph: videos are nodes, comparisons are edges; its shape limits what scores can be known.

Give every comparison a resistance of one ohm. The effective resistance between two videos,

    R_ij = (e_i - e_j)^T L^+ (e_i - e_j),        L the graph's Laplacian, L^+ its pseudo-inverse,

is the variance of the least-squares estimate of their score difference, in units of the variance of one comparison:
1 for a single comparison, 2 along a path of two, 1/2 for two comparisons of the same pair. Videos in different
components have no estimate at all. Sources: Klein & Randic 1993 (J. Math. Chem. 12, 81-95) for R; Foster 1949: the sum
of R over all edges is the number of nodes less the number of components.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from safe_rlhf_video.audit.comparisons import MISSING, Comparisons
from safe_rlhf_video.audit.sections import (
    Components,
    Distribution,
    FosterSum,
    GraphFigures,
    GraphResistance,
    Resistances,
    SamePromptPairs,
)

# A dense inverse of this many videos takes about a second and 100 MB.
MAX_COMPONENT = 2000
_MAX_BATCH_CELLS = 4_000_000
HISTOGRAM_STEP = 0.25


def find_components(num_nodes: int, edges: np.ndarray) -> np.ndarray:
    """Finds the component of each node, named by its lowest node.

    Args:
        num_nodes: N.
        edges: int (M, 2).

    Returns:
        int (N,); a node without an edge is a component of its own.
    """
    root = np.arange(num_nodes)
    while True:
        ends = root[edges]
        low, high = ends.min(axis=1), ends.max(axis=1)
        if np.array_equal(low, high):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, shorter := root[root]):
            root = shorter


def effective_resistances(num_nodes: int, edges: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Computes resistances within every component of two or more nodes, in batches of components of one size.

    Args:
        num_nodes: N.
        edges: int (M, 2), one row for each comparison; two rows with the same nodes are parallel resistors.

    Yields:
        nodes (B, n), resistance (B, n, n) and conductance (B, n, n), the number of comparisons between two nodes.
        Components of more than MAX_COMPONENT nodes are left out.
    """
    component = find_components(num_nodes, edges)
    order = np.argsort(component, kind="stable")
    names, starts, sizes = np.unique(component[order], return_index=True, return_counts=True)
    place = np.empty(num_nodes, np.int64)
    place[order] = np.arange(num_nodes) - np.repeat(starts, sizes)
    number = np.searchsorted(names, component[edges[:, 0]])
    for size in np.unique(sizes):
        if not 2 <= size <= MAX_COMPONENT:
            continue
        chosen = np.flatnonzero(sizes == size)
        batch = max(1, _MAX_BATCH_CELLS // size**2)
        for start in range(0, len(chosen), batch):
            members = chosen[start : start + batch]
            slot = np.full(len(names), -1)
            slot[members] = np.arange(len(members))
            inside = slot[number] >= 0
            row, ends = slot[number[inside]], place[edges[inside]]
            conductance = np.zeros((len(members), size, size))
            np.add.at(conductance, (row, ends[:, 0], ends[:, 1]), 1.0)
            conductance += conductance.transpose(0, 2, 1)
            laplacian = np.eye(size) * conductance.sum(axis=2)[:, :, None] - conductance
            # For a connected graph L + J/n is regular, and its inverse is L^+ + J/n; J/n cancels in the differences.
            inverse = np.linalg.inv(laplacian + 1.0 / size)
            diagonal = np.diagonal(inverse, axis1=1, axis2=2)
            resistance = diagonal[:, :, None] + diagonal[:, None, :] - 2.0 * inverse
            yield order[starts[members][:, None] + np.arange(size)], resistance, conductance


def audit_graph(comparisons: Comparisons, dimension: str | None) -> GraphFigures:
    """Measures size, components, resistances of the graph of one dimension's labels (with ties), or of all (None)."""
    labelled = [comparisons.labels[name] != MISSING for name in comparisons.labels if dimension in (None, name)]
    edges = comparisons.videos[np.any(labelled, axis=0)]
    num_videos = len(comparisons.video_names)
    degree = np.bincount(edges.ravel(), minlength=num_videos)
    compared = degree > 0
    component = find_components(num_videos, edges)
    sizes = np.unique(component[compared], return_counts=True)[1]
    videos_per_prompt = np.bincount(comparisons.prompt_of_video, minlength=comparisons.num_prompts)
    num_same_prompt = _num_pairs(videos_per_prompt)
    num_connected = _num_pairs(sizes)
    num_distinct = len(np.unique(np.sort(edges, axis=1), axis=0))
    first_nodes = np.unique(component[compared])
    components_per_prompt = np.bincount(comparisons.prompt_of_video[first_nodes], minlength=comparisons.num_prompts)
    return GraphFigures(
        comparisons=len(edges),
        compared_pairs=num_distinct,
        videos=int(compared.sum()),
        uncompared_videos=int(np.count_nonzero(~compared)),
        components=Components(
            number=len(sizes),
            sizes=_count_values(sizes),
            prompts=int(np.count_nonzero(components_per_prompt)),
            prompts_with_several=int(np.count_nonzero(components_per_prompt > 1)),
        ),
        comparisons_per_video=_distribution(degree[compared]),
        videos_per_prompt=_distribution(videos_per_prompt),
        same_prompt_pairs=SamePromptPairs(
            total=num_same_prompt,
            compared=num_distinct,
            connected=num_connected,
            share_connected=num_connected / num_same_prompt if num_same_prompt else None,
        ),
        resistance=_audit_resistance(num_videos, edges, len(sizes), int(compared.sum()), sizes),
    )


def _audit_resistance(
    num_nodes: int, edges: np.ndarray, num_components: int, num_compared: int, sizes: np.ndarray
) -> GraphResistance:
    of_compared, of_same_prompt = [np.zeros(0)], [np.zeros(0)]
    for _, resistance, conductance in effective_resistances(num_nodes, edges):
        upper = np.triu_indices(resistance.shape[1], k=1)
        between, times = resistance[:, *upper].ravel(), conductance[:, *upper].ravel().astype(np.int64)
        of_same_prompt.append(between)
        of_compared.append(np.repeat(between, times))
    compared = np.concatenate(of_compared)
    too_large = sizes > MAX_COMPONENT
    return GraphResistance(
        compared=_describe(compared),
        same_prompt=_describe(np.concatenate(of_same_prompt)),
        foster=FosterSum(
            sum=float(compared.sum()), expected=num_compared - num_components - int((sizes[too_large] - 1).sum())
        ),
        components_too_large=int(too_large.sum()),
        reason=f"components of more than {MAX_COMPONENT} videos are left out" if too_large.any() else None,
    )


def _describe(values: np.ndarray) -> Resistances | None:
    """Summarises values; None if there are none."""
    if not len(values):
        return None
    # Rounding error must not move a resistance of exactly 1 into the bin below.
    values = np.round(values, 9)
    counts = np.bincount(np.floor(values / HISTOGRAM_STEP).astype(np.int64))
    return Resistances(
        number=len(values),
        mean=float(values.mean()),
        median=float(np.median(values)),
        q05=float(np.quantile(values, 0.05)),
        q25=float(np.quantile(values, 0.25)),
        q75=float(np.quantile(values, 0.75)),
        q95=float(np.quantile(values, 0.95)),
        max=float(values.max()),
        histogram={f"{HISTOGRAM_STEP * place:.2f}": count for place, count in enumerate(counts.tolist()) if count},
    )


def _distribution(values: np.ndarray) -> Distribution:
    return Distribution(float(values.mean()) if len(values) else None, _count_values(values))


def _count_values(values: np.ndarray) -> dict[str, int]:
    present, counts = np.unique(values, return_counts=True)
    return {str(value): count for value, count in zip(present.tolist(), counts.tolist(), strict=True)}


def _num_pairs(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1) // 2).sum())
