"""The audit: every figure against an independent count, known truths, and files as users have them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from conftest import ROOT, launch

from safe_rlhf_video.audit.audit import audit
from safe_rlhf_video.audit.comparisons import MAX_GENERATORS, build_comparisons
from safe_rlhf_video.audit.graph import HISTOGRAM_STEP, audit_graph, effective_resistances, find_components
from safe_rlhf_video.audit.sections import (
    AuditCounts,
    Components,
    Contradictions,
    FosterSum,
    HarmExamples,
    IdenticalPairs,
    PromptIds,
    SamePromptPairs,
    UnknownField,
    write_audit,
)
from safe_rlhf_video.audit.splits import load_splits
from safe_rlhf_video.audit.triangles import (
    audit_triangles,
    bradley_terry_ceiling,
    count_triangles,
    flip_rate,
    flip_rate_of_repeats,
)
from safe_rlhf_video.data.records import HARM_LABELS, parse_pair
from safe_rlhf_video.pages.audit_page import audit_plots, make_audit_page
from safe_rlhf_video.worlds.video_world import plan_split

REAL_LABELS = ROOT.parent / "shared" / "real-labels" / "safesora_pair_ids.jsonl"
SUB_PREFERENCES = ("instruction_following", "correctness", "informativeness", "aesthetics")


def video(video_id, prompt_id="p", **fields):
    return {"video_id": video_id, "video_path": f"videos/{prompt_id}/{video_id}.mp4", **fields}


def pair(pair_id, first, second, label="video_0", prompt_id="p", prompt_text=None, **fields):
    """A record; `first` and `second` are video ids or whole videos."""
    first, second = (side if isinstance(side, dict) else video(side, prompt_id) for side in (first, second))
    record = {"pair_id": pair_id, "prompt_id": prompt_id, "prompt_text": prompt_text or prompt_id}
    return record | {"video_0": first, "video_1": second, "helpfulness": label, **fields}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return str(path)


def audit_files(*paths, **options):
    return audit(load_splits([str(path) for path in paths]), **options)


def comparisons_of(records):
    return build_comparisons([parse_pair(record, f"row {row}") for row, record in enumerate(records)])


def random_records(num_prompts, seed, with_ties=True):
    """Prompts of 3 to 6 videos with labels at random, some pairs compared twice."""
    random = np.random.default_rng(seed)
    labels = ["video_0", "video_1", "tie", None] if with_ties else ["video_0", "video_1"]
    records = []
    for prompt in range(num_prompts):
        edges = [edge for edge in combinations(range(int(random.integers(3, 7))), 2) if random.random() < 0.7]
        edges += [edge for edge in edges if random.random() < 0.2]
        for ends in random.permutation(np.array(edges).reshape(-1, 2)):
            first, second = random.permutation(ends)
            label = labels[int(random.integers(len(labels)))]
            records.append(pair(str(len(records)), f"v{first}", f"v{second}", label, f"p{prompt}"))
    return records


# Triangles


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.18, 0.35, 0.5])
def test_share_of_cyclic_triangles_by_enumeration(rate):
    # Hidden order a > b > c; the labels a-b, b-c, a-c are each turned round or not.
    probability = 0.0
    for flips in product([False, True], repeat=3):
        a_beats_b, b_beats_c, a_beats_c = (not flipped for flipped in flips)
        wins = Counter(["a" if a_beats_b else "b", "b" if b_beats_c else "c", "a" if a_beats_c else "c"])
        if max(wins.values()) == 1:
            probability += np.prod([rate if flipped else 1 - rate for flipped in flips])
    assert probability == pytest.approx(rate * (1 - rate))
    assert flip_rate(probability) == pytest.approx(rate)
    assert flip_rate_of_repeats(2 * rate * (1 - rate)) == pytest.approx(rate)


def test_flip_rate_ends_at_coin_flips():
    assert flip_rate(0.25) == flip_rate(0.3) == 0.5
    assert 1 - flip_rate(25 / 167) == pytest.approx(0.817, abs=5e-4)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5, 6.0, 20.0, 60.0])
def test_bradley_terry_ceiling_by_simulation(spread):
    utility = np.random.default_rng(0).normal(0, spread, (3, 800_000))
    with np.errstate(over="ignore"):
        first, second, third = (1 / (1 + np.exp(utility[j] - utility[i])) for i, j in ((0, 1), (1, 2), (2, 0)))
    cyclic = np.mean(first * second * third + (1 - first) * (1 - second) * (1 - third))
    truth = np.mean(np.maximum(first, 1 - first))
    assert bradley_terry_ceiling(cyclic) == pytest.approx(truth, abs=max(1e-3, 0.03 * (1 - truth)))


def test_triangles_by_trying_all_triples():
    records = random_records(120, seed=0)
    closed, cyclic, num_tied = count_triangles(comparisons_of(records), "helpfulness")
    expected = Counter()
    for prompt in {record["prompt_id"] for record in records}:
        labels = {}
        for record in records:
            if record["prompt_id"] == prompt and record["helpfulness"] is not None:
                ends = [record["video_0"]["video_id"], record["video_1"]["video_id"]]
                winner = None if record["helpfulness"] == "tie" else ends[int(record["helpfulness"][-1])]
                labels.setdefault(frozenset(ends), []).append(winner)
        first = {ends: next((name for name in given if name), None) for ends, given in labels.items()}
        for triple in combinations(sorted({name for ends in first for name in ends}), 3):
            edges = [frozenset(edge) for edge in combinations(triple, 2)]
            if not all(edge in first for edge in edges):
                continue
            winners = [first[edge] for edge in edges]
            if None in winners:
                expected["tied"] += 1
            else:
                expected["closed", prompt] += 1
                expected["cyclic", prompt] += len(set(winners)) == 3
    prompts = list(dict.fromkeys(record["prompt_id"] for record in records))
    assert closed.tolist() == [expected["closed", prompt] for prompt in prompts]
    assert cyclic.tolist() == [expected["cyclic", prompt] for prompt in prompts]
    assert num_tied == expected["tied"] > 0
    assert closed.sum() > 50
    assert cyclic.sum() > 10


def test_intervals_of_the_flip_rate_cover_the_truth():
    random = np.random.default_rng(0)
    covered, estimates = 0, []
    for _ in range(60):
        records = []
        for prompt in range(150):
            for first, second in combinations(range(3), 2):
                label = "video_1" if random.random() < 0.18 else "video_0"
                records.append(pair(str(len(records)), str(first), str(second), label, f"p{prompt}"))
        comparisons = comparisons_of(records)
        figure = audit_triangles(comparisons, "helpfulness")
        low, high = figure.flip_rate_interval
        assert figure.ceiling == 1 - figure.flip_rate
        covered += low <= 0.18 <= high
        estimates.append(figure.flip_rate)
    assert covered >= 52
    assert np.mean(estimates) == pytest.approx(0.18, abs=0.015)


def test_triangles_of_the_synthetic_world_agree_with_its_truth():
    records, utility, expected, best = [], {}, [], []

    def wins(first, second):
        return 1 / (1 + np.exp(utility[second] - utility[first]))

    for pairs, _, truth in plan_split("train", 12_000, seed=0):
        records += pairs
        utility = {name: values["helpfulness"] for name, values in truth.items()}
        compared = [(record["video_0"]["video_id"], record["video_1"]["video_id"]) for record in pairs]
        best += [max(wins(*ends), wins(*ends[::-1])) for ends in compared]
        known = set(map(frozenset, compared))
        for a, b, c in combinations(sorted(utility), 3):
            if {frozenset((a, b)), frozenset((b, c)), frozenset((a, c))} <= known:
                there, back = wins(a, b) * wins(b, c) * wins(c, a), wins(b, a) * wins(c, b) * wins(a, c)
                expected.append(there + back)
    comparisons = comparisons_of(records)
    figure = audit_triangles(comparisons, "helpfulness")
    assert figure.closed == len(expected)
    deviation = np.sqrt(sum(share * (1 - share) for share in expected))
    assert abs(figure.cyclic - sum(expected)) < 4 * deviation
    # Labels of this world flip by Bradley-Terry: the ceiling of equal flips is far too high, the other one right.
    assert figure.ceiling_bradley_terry == pytest.approx(np.mean(best), abs=0.03)
    assert figure.ceiling_interval[0] > np.mean(best) + 0.03


def test_figures_that_cannot_be_had_are_null_with_a_reason():
    path = comparisons_of([pair("0", "a", "b", prompt_id="p"), pair("1", "a", "b", prompt_id="q")])
    figure = audit_triangles(path, "helpfulness")
    assert (figure.closed, figure.ceiling, figure.flip_rate) == (0, None, None)
    assert "no closed triangle" in figure.reason
    cycles = [("a", "b"), ("b", "c"), ("c", "a")]
    records = [
        pair(f"{prompt}{row}", *edge, prompt_id=f"p{prompt}") for prompt in range(40) for row, edge in enumerate(cycles)
    ]
    records += [pair(f"x{row}", *edge, prompt_id="x") for row, edge in enumerate([*cycles[:2], ("a", "c")])]
    figure = audit_triangles(comparisons_of(records), "helpfulness")
    assert (figure.closed, figure.cyclic, figure.ceiling) == (41, 40, None)
    assert "do not follow one hidden order" in figure.reason


def test_labels_that_cannot_cycle_have_no_ceiling(tmp_path):
    """Every prompt's pairs come from one ranking: no noise can be seen, which is no ceiling of 100%."""
    edges = list(combinations("abcd", 2))
    records = [
        pair(f"{prompt}{row}", *edge, prompt_id=f"p{prompt}", is_extra=True)
        for prompt in range(12)
        for row, edge in enumerate(edges)
    ]
    result = audit_files(write(tmp_path / "config-ranked.json", records))
    figure = result.triangles["helpfulness"]
    assert (figure.closed, figure.cyclic, figure.ceiling, figure.ceiling_bradley_terry) == (48, 0, None, None)
    assert "ranking cannot have a cycle" in figure.reason
    page = make_audit_page(result, audit_plots(result))
    assert "none of 48 triangles of helpfulness labels is cyclic" in page.lower()
    assert "Ceiling, if" not in page
    assert "100.0% of them" not in page
    chain = write(tmp_path / "config-chain.json", [record for record in records if record["pair_id"][-1] in "03"])
    result = audit_files(chain)
    assert "no cycle is possible" in result.triangles["helpfulness"].reason
    assert "No cycle is possible" in make_audit_page(result, audit_plots(result))


def test_an_article_goes_with_its_noun(tmp_path):
    records = [pair("0", "a", "b", sub_preferences={"aesthetics": "video_0", "correctness": None}), pair("1", "a", "c")]
    records[1]["sub_preferences"] = {"aesthetics": None, "correctness": "tie"}
    texts = [finding.text for finding in audit_files(write(tmp_path / "config.json", records)).findings]
    assert "1 of 2 pairs lacks an aesthetics label" in texts
    assert "1 of 2 pairs lacks a correctness label" in texts


@pytest.mark.skipif(not REAL_LABELS.exists(), reason="the real labels are not here")
def test_real_comparisons(tmp_path):
    random, records = np.random.default_rng(0), []
    for row, line in enumerate(REAL_LABELS.read_text().splitlines()):
        ids = json.loads(line)
        sides, winner = [ids["chosen_video_id"], ids["rejected_video_id"]], "video_0"
        if random.random() < 0.5:
            sides, winner = sides[::-1], "video_1"
        preferences = {"harmlessness": winner, "sub_preferences": dict.fromkeys(SUB_PREFERENCES, winner)}
        records.append(pair(str(row), *sides, winner, prompt_id=ids["prompt_id"], **preferences))
    result = audit_files(write(tmp_path / "config.json", records))
    for dimension in ("helpfulness", "harmlessness", "aesthetics"):
        figure = result.triangles[dimension]
        assert (figure.closed, figure.cyclic) == (167, 25)
        assert figure.ceiling == pytest.approx(0.817, abs=5e-4)
        low, high = figure.ceiling_interval
        assert 0.66 < low < 0.73 < 0.87 < high < 0.92
    graph = result.graph["overall"]
    assert (graph.comparisons, graph.videos, graph.components.prompts) == (2993, 4222, 1329)
    assert graph.resistance.foster.sum == pytest.approx(graph.resistance.foster.expected)


# The graph


def test_resistances_by_pseudo_inverse():
    random = np.random.default_rng(0)
    edges = random.integers(0, 60, (70, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    laplacian = np.zeros((60, 60))
    for first, second in edges:
        ends = np.zeros(60)
        ends[[first, second]] = 1, -1
        laplacian += np.outer(ends, ends)
    pseudo_inverse = np.linalg.pinv(laplacian)
    component = find_components(60, edges)
    reach = np.linalg.matrix_power(laplacian != 0, 1) | np.eye(60, dtype=bool)
    for _ in range(6):
        reach = reach @ reach
    np.testing.assert_array_equal(component[:, None] == component[None, :], reach)
    seen = 0
    for nodes, resistance, conductance in effective_resistances(60, edges):
        for row, members in enumerate(nodes):
            block = pseudo_inverse[np.ix_(members, members)]
            expected = np.diag(block)[:, None] + np.diag(block)[None, :] - 2 * block
            np.testing.assert_allclose(resistance[row], expected, atol=1e-9)
            np.testing.assert_allclose(
                conductance[row],
                np.diag(laplacian)[members] * np.eye(len(members)) - laplacian[np.ix_(members, members)],
            )
            seen += len(members)
    assert seen == np.count_nonzero(np.bincount(edges.ravel(), minlength=60))


def test_graph_of_known_shapes():
    # A chain of four, two parallel comparisons, a triangle, and a prompt in two pieces with a video left over.
    shapes = {
        "chain": [("a", "b"), ("b", "c"), ("c", "d")],
        "twice": [("a", "b"), ("b", "a")],
        "ring": [("a", "b"), ("b", "c"), ("c", "a")],
        "torn": [("a", "b"), ("c", "d")],
    }
    records = [
        pair(f"{prompt}{row}", *edge, prompt_id=prompt)
        for prompt, edges in shapes.items()
        for row, edge in enumerate(edges)
    ]
    records.append(pair("unlabelled", "d", "e", None, prompt_id="torn", harmlessness="video_1"))
    figures = audit_graph(comparisons_of(records), "helpfulness")
    assert (figures.comparisons, figures.videos, figures.uncompared_videos) == (10, 13, 1)
    assert figures.components == Components(number=5, sizes={"2": 3, "3": 1, "4": 1}, prompts=4, prompts_with_several=1)
    assert figures.same_prompt_pairs == SamePromptPairs(total=20, compared=9, connected=12, share_connected=0.6)
    resistance = figures.resistance
    assert resistance.foster == FosterSum(sum=pytest.approx(8), expected=8)
    assert resistance.compared.histogram == {"0.50": 5, "1.00": 5}
    assert resistance.same_prompt.histogram == {"0.50": 4, "1.00": 5, "2.00": 2, "3.00": 1}
    assert resistance.compared.mean == pytest.approx(8 / 10)
    assert HISTOGRAM_STEP == 0.25
    overall = audit_graph(comparisons_of(records), None)
    assert (overall.comparisons, overall.uncompared_videos) == (11, 0)


# Contradictions, overlap, balance, baselines


def test_contradictions_are_found(tmp_path):
    nothing = dict.fromkeys(HARM_LABELS, False)
    safe, unsafe = {"is_safe": True}, {"is_safe": False}
    records = [
        pair("kept", "a", "b", "video_0"),
        pair("same", "b", "a", "video_1"),
        pair("turned", "c", "d", "video_0"),
        pair("other way", "d", "c", "video_0"),
        pair("tie", "c", "a", "tie"),
        pair("no tie", "a", "c", "video_1"),
        pair("right", video("e", **safe), video("f", **unsafe), harmlessness="video_0"),
        pair("wrong", video("f", **unsafe), video("g", **safe), harmlessness="video_0"),
        pair("tied", video("f", **unsafe), video("h", **safe), harmlessness="tie"),
        pair("no label", video("f", **unsafe), video("i", **safe)),
        pair("now unsafe", video("j", **safe), video("k", **safe, video_labels={"porn": True})),
        pair(
            "then safe", video("j", **unsafe), video("k", **safe, video_labels={"porn": False}), harmlessness="video_0"
        ),
        pair(
            "harmless", video("l", **unsafe, video_labels=nothing), video("m", **unsafe, video_labels={"porn": False})
        ),
    ]
    conflicts = audit_files(write(tmp_path / "config.json", records)).conflicts
    repeated = conflicts.repeated_pairs["helpfulness"]
    assert (repeated.pairs, repeated.comparisons, repeated.contradictory, repeated.tie_and_preference) == (4, 8, 1, 1)
    assert repeated.examples == ["turned", "other way"]
    assert repeated.disagreement == pytest.approx(1 / 3)
    assert conflicts.is_safe == Contradictions(videos=9, contradictory=1, examples=["p/j"])
    examples = HarmExamples(contradictory=["p/k"], safe_with_harm=["p/k"], unsafe_without_harm=["p/l"])
    assert conflicts.harm_labels.examples == examples
    order = conflicts.harmlessness_against_is_safe
    # The video of two minds, j, takes part in none of them.
    assert (order.safe_unsafe_pairs, order.tied, order.without_label) == (4, 1, 1)
    assert (order.contradicting.count, order.contradicting.total) == (1, 2)
    assert order.examples == ["wrong"]


def test_leaks_between_splits_and_equal_clips_are_found(tmp_path):
    train = [
        pair("0", "a", "b", prompt_id="p0", prompt_text="A Cat  runs"),
        pair("1", "a", "b", prompt_id="p1", prompt_text="a dog"),
        pair("2", "a", "b", prompt_id="p2", prompt_text="A  dog"),
    ]
    test = [
        pair("0", "a", "b", prompt_id="p0", prompt_text="a cat runs"),
        pair("1", "a", "c", prompt_id="q1", prompt_text="a DOG"),
        pair("2", "a", "b", prompt_id="q2", prompt_text="a bird"),
    ]
    contents = {"p0/a": b"one", "p0/b": b"two", "p1/a": b"one", "p1/b": b"333", "q1/a": b"333", "q2/a": b"longer"}
    for name, content in contents.items():
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(content)
    files = write(tmp_path / "config-train.json", train), write(tmp_path / "config-test.json", test)
    result = audit_files(*files)
    (both,) = result.overlap
    assert both.splits == ("train", "test")
    assert (both.prompts_by_text, both.prompts_by_text_under_other_ids) == (2, 1)
    assert (both.prompts_by_id, both.prompt_ids_with_other_text, both.videos) == (1, 0, 2)
    assert both.compared_pairs == 1
    assert both.share_of_prompts == {"train": 1.0, "test": 2 / 3}
    assert result.splits["train"].prompt_ids == PromptIds(1, [["p1", "p2"]])
    clips = result.clips
    assert (clips.present, clips.missing, clips.hashed) == (6, 4, 5)
    assert clips.duplicates == [["p0/a", "p1/a"], ["p1/b", "q1/a"]]
    assert clips.across_splits == [["test: p0/a", "train: p0/a", "train: p1/a"], ["test: q1/a", "train: p1/b"]]
    problems = [finding.text for finding in result.findings if finding.mark == "problem"]
    assert any(text.startswith("2 prompts of test (66.7%) are in train too") for text in problems)

    assert clips.identical_pairs == IdenticalPairs(0, [])
    (tmp_path / "videos" / "p0" / "b.mp4").write_bytes(b"one")
    assert audit_files(*files).clips.identical_pairs == IdenticalPairs(2, ["train: 0", "test: 0"])

    unread = audit_files(*files, read_content=False).clips
    # q2/a alone has its size.
    assert (unread.present, unread.hashed, unread.compared, unread.duplicates) == (6, 0, 1, [])
    # What a store knows needs no file: q2/b is not there.
    known = audit_files(*files, known_hashes={"p2/a": "ff", "q2/b": "ff"}).clips
    assert (known.from_store, known.duplicates[-1]) == (2, ["p2/a", "q2/b"])


def texts_of(result, section):
    return [(finding.mark, finding.text) for finding in result.findings if finding.section == section]


def test_one_file_under_two_names_needs_no_reading(tmp_path):
    records = [
        pair("0", {"video_id": "a", "video_path": "x.mp4"}, {"video_id": "b", "video_path": "./x.mp4"}),
        pair("1", {"video_id": "a", "video_path": "x.mp4"}, {"video_id": "c", "video_path": "y.mp4"}),
    ]
    config = write(tmp_path / "config.json", records)
    for expected in ((0, 3, 0), (3, 0, 3)):
        result = audit_files(config, read_content=False)
        clips = result.clips
        assert (clips.present, clips.missing, clips.compared) == expected
        assert (clips.duplicates, clips.identical_pairs.examples) == ([["p/a", "p/b"]], ["config: 0"])
        assert ("problem", "1 comparison between two equal clips") in texts_of(result, "clips")
        (tmp_path / "x.mp4").write_bytes(b"one")
        (tmp_path / "y.mp4").write_bytes(b"other")


def test_clips_that_were_not_compared_are_never_ok(tmp_path):
    config = write(tmp_path / "config.json", [pair("0", "a", "b"), pair("1", "c", "d")])
    files = [tmp_path / "videos" / "p" / f"{name}.mp4" for name in "abcd"]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_bytes(b"same")
    (finding,) = texts_of(audit_files(config, read_content=False, known_hashes={"p/a": "00"}), "clips")
    assert finding == ("look", "duplicate clips are not known; 3 of 4 clips could not be compared")
    (finding,) = texts_of(audit_files(config, read_content=False, known_hashes={"p/a": "00", "p/b": "01"}), "clips")
    assert finding[0] == "look"
    assert "no two of the 2 clips that were compared have the same content; 2 of 4 clips" in finding[1]
    for file in files:
        file.unlink()
    marks = [mark for mark, _ in texts_of(audit_files(config, known_hashes={"p/a": "00", "p/b": "01"}), "clips")]
    assert marks == ["look", "look"]
    everything = {f"p/{name}": name for name in "abcd"}
    result = audit_files(config, known_hashes=everything)
    assert ("ok", "no two of the 4 clips that were compared have the same content") in texts_of(result, "clips")
    files[0].write_bytes(b"x")
    # Whatever its size, it may equal a clip that only the store knows.
    assert audit_files(config, known_hashes={"p/b": "01"}).clips.hashed == 1


def test_equal_ids_of_unrelated_corpora_are_not_one_prompt(tmp_path):
    chain = [("a", "b"), ("b", "c")]
    cats = [pair(str(row), *ends, prompt_text="a cat") for row, ends in enumerate(chain)]
    dogs = [pair("0", "c", "a", prompt_text="a dog"), pair("1", "b", "a", prompt_text="a dog")]
    for folder, contents in (("A", {"a": b"one", "b": b"two"}), ("B", {"a": b"two", "b": b"six"})):
        for name, content in contents.items():
            file = tmp_path / folder / "videos" / "p" / f"{name}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    files = write(tmp_path / "A" / "A.json", cats), write(tmp_path / "B" / "B.json", dogs)
    result = audit_files(*files, known_hashes={"p/c": "ff"})
    assert result.counts == AuditCounts(pairs=4, pairs_in_several_splits=0, prompts=2, videos=6)
    assert result.triangles["helpfulness"].closed == 0
    assert result.conflicts.repeated_pairs["helpfulness"].pairs == 0
    (both,) = result.overlap
    assert (both.prompt_ids_with_other_text, both.videos, both.compared_pairs) == (1, 0, 0)
    assert result.clips.across_splits == [["A: A/p/b", "B: B/p/a"]]
    assert result.clips.identical_pairs.count == 0
    # Whose p/c the store holds cannot be told.
    assert result.clips.from_store == 0
    # The same text with the videos of someone else is another prompt, too; the ids of folders still find their clips.
    others = [pair(str(row), *ends) for row, ends in enumerate(chain)]
    for record in others:
        for side in ("video_0", "video_1"):
            record[side]["video_path"] = "again.mp4"
            record["prompt_text"] = "a cat"
    write(tmp_path / "C" / "config.json", others)
    (tmp_path / "C" / "videos" / "p").mkdir(parents=True)
    (tmp_path / "C" / "videos" / "p" / "a.mp4").write_bytes(b"one")
    result = audit_files(files[0], tmp_path / "C")
    (both,) = result.overlap
    assert (both.prompts_by_text, both.videos, both.video_names_of_other_videos) == (1, 0, 3)
    assert result.clips.duplicates == [["A/p/a", "config/p/a"]]


def test_rows_that_two_splits_share_are_one_label(tmp_path):
    ring = [pair(str(row), *ends) for row, ends in enumerate([("a", "b"), ("b", "c"), ("c", "a")])]
    turned = [pair("0", "a", "b", "video_1"), pair("new", "b", "c"), *ring[2:]]
    result = audit_files(write(tmp_path / "train.json", ring), write(tmp_path / "test.json", turned))
    assert (result.counts.pairs, result.counts.pairs_in_several_splits) == (5, 1)
    repeated = result.conflicts.repeated_pairs["helpfulness"]
    assert (repeated.pairs, repeated.contradictory) == (2, 1)


def test_generators_with_a_name_for_each_video_end(tmp_path):
    def records_of(numbers):
        return [
            pair(str(row), *(video(f"{row}{side}", generated_from=f"model seed {row}{side}") for side in "ab"))
            for row in numbers
        ]

    config = write(tmp_path / "config.json", records_of(range(3000)))
    started = time.process_time()
    result = audit_files(config)
    # Cubic in 6,000 generators, this took minutes.
    assert time.process_time() - started < 10
    balance = result.balance
    assert len(balance.generators) == MAX_GENERATORS + 1
    assert balance.generators_taken_as_one == 6000 - MAX_GENERATORS
    assert balance.generators["other generators"].videos == 6000 - MAX_GENERATORS
    assert "less frequent generators are taken as one" in make_audit_page(result, audit_plots(result))


def test_the_first_known_generator_counts(tmp_path):
    records = [
        pair("0", video("a", generated_from="X"), "b"),
        pair("1", "a", video("b", generated_from="Y")),
        pair("2", "a", video("b", generated_from="Z")),
    ]
    result = audit_files(write(tmp_path / "config.json", records))
    assert {name: each.videos for name, each in result.balance.generators.items()} == {"X": 1, "Y": 1}
    assert result.conflicts.generators == Contradictions(2, 1, ["p/b"])
    assert comparisons_of(records).generators == ["X", "Y"]


def test_marks_follow_what_is_sure(tmp_path):
    safe, unsafe = video("a", is_safe=True), video("b", is_safe=False)

    def mark_of(count, wrong):
        records = [
            pair(str(row), safe, unsafe, prompt_id=f"p{row}", harmlessness=f"video_{int(row < wrong)}")
            for row in range(count)
        ]
        found = texts_of(audit_files(write(tmp_path / f"{count}-{wrong}.json", records)), "conflicts")
        return next(mark for mark, text in found if text.startswith("harmlessness prefers the unsafe"))

    assert [mark_of(8, 1), mark_of(8, 8), mark_of(400, 60), mark_of(40, 40), mark_of(40, 0)] == [
        "look", "look", "problem", "problem", "ok"
    ]  # fmt: skip

    # 22% of cycles: 62% by Bradley-Terry, 67% by equal flips; the lower one decides.
    edges = [("a", "b"), ("b", "c")]
    records = [
        pair(f"{prompt}{row}", *ends, prompt_id=f"p{prompt}")
        for prompt in range(3000)
        for row, ends in enumerate([*edges, ("c", "a") if prompt < 660 else ("a", "c")])
    ]
    result = audit_files(write(tmp_path / "noisy.json", records))
    assert result.triangles["helpfulness"].ceiling > 0.66
    assert [mark for mark, _ in texts_of(result, "triangles")] == ["problem"]
    result = audit_files(write(tmp_path / "one.json", [pair("0", "a", "b"), pair("1", "b", "c"), pair("2", "c", "a")]))
    ((mark, text),) = texts_of(result, "triangles")
    assert mark == "look"
    assert text.startswith("1 of 1 triangle of helpfulness labels is cyclic")


def test_fields_that_are_not_read_are_shown(tmp_path):
    records = [pair(str(row), "a", video("b", is_save=True), helpfullness="video_0", source="x") for row in range(3)]
    records[0] |= {"sub_preferences": {"correctnes": "video_1"}}
    records[1] |= {"prompt_id": "q", "prompt_text": " \n"}
    result = audit_files(write(tmp_path / "config.json", records))
    fields = result.splits["config"].fields
    assert fields.unknown == {
        "helpfullness": UnknownField(records=3, resembles="helpfulness"),
        "source": UnknownField(records=3, resembles=None),
        "video.is_save": UnknownField(records=3, resembles="is_safe"),
        "sub_preferences.correctnes": UnknownField(records=1, resembles="correctness"),
    }
    assert (fields.blank_prompts, fields.examples) == (1, ["q"])
    (unknown, blank) = (text for _, text in texts_of(result, "fields"))
    assert "helpfullness in 3 records, perhaps meant as helpfulness" in unknown
    assert blank == "1 prompt of config has no text"


def test_nothing_that_was_not_examined_is_ok(tmp_path):
    result = audit_files(write(tmp_path / "config.json", [pair("0", "a", "b", None)]))
    assert not [finding for finding in result.findings if finding.mark == "ok"]
    page = make_audit_page(result, audit_plots(result))
    assert "no three videos" in page.lower()
    assert "no comparison has a label" in page.lower()


def test_clips_outside_the_folder_and_responses(tmp_path):
    outside = pair("0", {"video_id": "a", "video_path": "../a.mp4"}, "b")
    result = audit_files(write(tmp_path / "config.json", [outside]))
    assert result.clips.refused == ["p/a"]
    said = [{"video_id": name, "response_text": text} for name, text in (("a", "no"), ("b", "yes"), ("c", "no"))]
    text = audit_files(write(tmp_path / "text" / "config.json", [pair("0", *said[:2]), pair("1", *said[1:])]))
    assert text.responses.duplicates == [["p/a", "p/c"]]
    assert text.responses.identical_pairs.count == 0
    assert text.clips.present + text.clips.missing == 0
    assert "video" not in " ".join(finding.text for finding in text.findings)
    different = [pair("0", *said[:2])]
    result = audit_files(write(tmp_path / "different" / "config.json", different))
    assert texts_of(result, "responses") == [("ok", "no two of the 2 responses are the same")]


def test_balance_counts_videos_once_and_ties_half(tmp_path):
    made = [video("a", generated_from="A", is_safe=True), video("b", generated_from="B", is_safe=False)]
    third = video("c", generated_from="A", video_labels={"crime": True, "hate": False})
    records = [
        pair("0", *made, "video_0", prompt_type="safety_neutral"),
        pair("1", *made[::-1], "tie"),
        pair("2", made[0], third, "video_1"),
        pair("3", third, made[1], None),
    ]
    balance = audit_files(write(tmp_path / "config.json", records)).balance
    counts = balance.preferences["helpfulness"]
    assert (counts.video_0, counts.video_1, counts.tie, counts.missing) == (1, 1, 1, 1)
    assert (balance.is_safe.true, balance.is_safe.false, balance.is_safe.unknown) == (1, 1, 1)
    assert (balance.harm_labels["crime"].true, balance.harm_labels["hate"].false) == (1, 1)
    assert {name: each.videos for name, each in balance.generators.items()} == {"A": 2, "B": 1}
    wins = balance.generators["A"].win_rate["helpfulness"]
    assert (wins.count, wins.total) == (1.5, 2)


def test_intervals_take_a_text_under_several_ids_for_one_prompt(tmp_path):
    records = random_records(48, seed=0, with_ties=False)
    made_by = {side: video(side, generated_from=name) for side, name in (("v0", "A"), ("v1", "B"))}
    for record in records:
        number = int(record["prompt_id"][1:])
        record["prompt_text"] = f"text {number // 4}"
        for key in ("video_0", "video_1"):
            record[key] |= made_by.get(record[key]["video_id"], {}) | {"is_safe": number % 3 > 0}
    result = audit_files(write(tmp_path / "config-train.json", records))
    triangles = result.triangles["helpfulness"]
    assert triangles.prompts == 12
    baselines = result.baselines["train"]
    assert baselines.prompt_only_unsafe.safe_recall.prompts == 12
    assert baselines.generator_only["helpfulness"].prompts == 11
    # The same comparisons, each text under one id.
    joined = [record | {"prompt_id": record["prompt_text"]} for record in records]
    for number, record in enumerate(joined):
        for key in ("video_0", "video_1"):
            record[key] = record[key] | {"video_id": f"{records[number]['prompt_id']}{record[key]['video_id']}"}
    other = audit_files(write(tmp_path / "joined" / "config-train.json", joined))
    assert other.triangles["helpfulness"] == triangles
    assert other.balance.preferences == result.balance.preferences
    assert other.baselines == result.baselines


def test_generator_baseline_finds_a_planted_difference_and_nothing_in_noise(tmp_path):
    random = np.random.default_rng(0)

    def split(name, strength, seed_text):
        records = []
        for row in range(600):
            names = [str(each) for each in random.permutation(["strong", "weak"])]
            winner = names.index("strong" if random.random() < strength else "weak")
            sides = [video(f"v{side}", f"{seed_text}{row}", generated_from=names[side]) for side in (0, 1)]
            records.append(pair(str(row), *sides, f"video_{winner}", prompt_id=f"{seed_text}{row}"))
        return write(tmp_path / f"config-{name}.json", records)

    result = audit_files(split("train", 0.8, "t"), split("test", 0.7, "u"), split("noise", 0.5, "w")).baselines
    for name, expected in (("train", 0.8), ("test", 0.7), ("noise", 0.5)):
        figure = result[name].generator_only["helpfulness"]
        assert figure.interval[0] <= expected <= figure.interval[1]
        assert figure.total == 600
    assert "halves" in result["train"].fitted_on
    assert result["test"].fitted_on == "train"
    assert result["test"].generator_only["harmlessness"].accuracy is None


def test_lists_of_videos_and_prompts_are_audited_as_far_as_they_go(tmp_path):
    videos = [
        {**video(name, prompt, is_safe=name == "a", generated_from="A"), "prompt_id": prompt, "prompt_text": prompt}
        for name in "ab"
        for prompt in ("p", "q")
    ]
    prompts = [{"prompt_id": "x", "prompt_text": " P "}]
    result = audit_files(write(tmp_path / "videos.json", videos), write(tmp_path / "eval.json", prompts))
    assert result.overlap[0].prompts_by_text == 1
    assert result.balance.is_safe.share_true == 0.5
    assert result.triangles is None
    assert "no comparison" in result.reason
    assert [each.generator_only for each in result.baselines.values()] == [None, None]
    assert all("no comparison" in each.reason for each in result.baselines.values())
    write_audit(tmp_path / "audit.json", result)
    baselines = json.loads((tmp_path / "audit.json").read_text())["baselines"]["videos"]
    assert baselines["generator_only"] is None
    assert "generators_taken_as_one" not in baselines
    assert "Prompt types" in make_audit_page(result, audit_plots(result))


def test_prompts_of_single_videos_predict_their_safety(tmp_path):
    def videos(prefix):
        return [
            {**video("a", f"{prefix}{row}", is_safe=row % 2 == 0), "prompt_id": f"{prefix}{row}",
             "prompt_text": f"{prefix}{row} " + ("a cat" if row % 2 == 0 else "a weapon")}
            for row in range(80)
        ]  # fmt: skip

    result = audit_files(write(tmp_path / "train.json", videos("t")), write(tmp_path / "test.json", videos("u")))
    for split, source in (("train", "halves"), ("test", "train")):
        figure = result.baselines[split].prompt_only_unsafe
        assert source in figure.fitted_on
        assert (figure.auroc, figure.balanced_accuracy) == (1.0, 1.0)
    assert sum("AUROC" in text for _, text in texts_of(result, "baselines")) == 2


# The command


def test_command_writes_strict_json_and_a_page_that_trusts_nothing(tmp_path):
    evil = "<script>alert('\u6f22')</script>"
    records = random_records(40, seed=3)
    for record in records:
        record["prompt_text"] += evil
        record["prompt_type"] = evil
        for side in ("video_0", "video_1"):
            record[side]["generated_from"] = evil + record[side]["video_id"]
    config = tmp_path / "config-<b>train.json.gz"
    config.write_bytes(gzip.compress(json.dumps(records).encode()))
    done = launch("scripts/audit.py", "--data", config, "--out", tmp_path / "out", PYTHONUTF8="0", LC_ALL="C")
    assert "Traceback" not in done.stderr

    def refuse(constant):
        raise AssertionError(constant)

    result = json.loads((tmp_path / "out" / "audit.json").read_text(), parse_constant=refuse)
    assert result["triangles"]["helpfulness"]["closed"] > 10
    assert result["splits"]["<b>train"]["triangles"] == result["triangles"]
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>train" not in page
    assert "&lt;script&gt;" in page
    assert not [word for word in ("http:", "https:", "src=", "url(", "@import") if word in page]
    for finding in result["findings"]:
        assert finding["mark"] in ("ok", "look", "problem")
        assert finding["text"] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.json"], "no such file"),
        (["--data", "config.json", "--names", "a", "b"], "2 names for 1 configs"),
        (["--data", "config.json", "config.json"], "name the configs with --names"),
        (["--data", "config.json", "--frame_store", "."], "no frame store"),
        (["--data", "config.json", "--out", "config.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    write(tmp_path / "config.json", [pair("0", "a", "b")])
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in arguments else ("--out", "out")
    done = launch("scripts/audit.py", *out, *arguments, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_a_report_that_cannot_be_written_leaves_the_last_one(tmp_path):
    config = write(tmp_path / "config.json", [pair("0", "a", "b")])
    out = tmp_path / "out"
    launch("scripts/audit.py", "--data", config, "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    # A folder in the way of the partial file: rights would not stop root.
    (out / ".audit.json.partial").mkdir()
    done = launch("scripts/audit.py", "--data", config, "--out", out, check=False)
    assert done.returncode == 1
    assert {name: (out / name).read_bytes() for name in before} == before


def test_command_takes_hashes_from_a_frame_store(world, tmp_path):
    config = world / "config-train.json.gz"
    launch("scripts/prepare_videos.py", "--data", config, "--out", tmp_path / "store")
    moved = tmp_path / config.name
    moved.write_bytes(config.read_bytes())
    launch("scripts/audit.py", "--data", moved, "--frame_store", tmp_path / "store", "--out", tmp_path)
    clips = json.loads((tmp_path / "audit.json").read_text())["clips"]
    assert (clips["present"], clips["from_store"], clips["duplicates"]) == (0, clips["missing"], [])


def test_neither_audit_nor_subsampling_import_torch():
    modules = "safe_rlhf_video.audit.audit, safe_rlhf_video.pages.audit_page, safe_rlhf_video.data.topology"
    code = (
        f"import sys, {modules}; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
