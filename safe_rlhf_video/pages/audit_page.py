"""Makes the page of an audit: its findings first, then every section with plots and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safe_rlhf_video.pages.blocks import Block, Heading, Items, Panels, Section, Table, Text, note, render
from safe_rlhf_video.pages.figures import Plot
from safe_rlhf_video.pages.plots import MAX_ROWS, Share, draw_counts, draw_shares, draw_stacked
from safe_rlhf_video.wording import capitalise, count, interval, percent, verb, words

MAX_GROUPS = 10
_SECTION_OF = {"prompt_ids": "overlap", "responses": "clips"}

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class ShownFinding:
    """A finding; `anchor` names the section with its figures, if the page has that."""

    mark: str
    sentence: str
    anchor: str | None


def audit_sections(result: Figures) -> list[Section]:
    """The sections of the page that have something to show.

    Args:
        result: as `audit` returns it; its texts are untrusted.
    """
    unit = result["unit"]
    sections = [
        Section("overlap", "Shared prompts", _show_overlap(result, unit)),
        Section("fields", "Fields that are not read", _show_fields(result)),
        Section("clips", "Duplicates", _show_clips(result)),
        Section("conflicts", "Contradictions", list(_show_conflicts(result["conflicts"], unit))),
        Section("triangles", "Noise of the labels", _show_triangles(result["triangles"], unit)),
        Section("baselines", f"What predicts the labels without a look at the {unit}s",
                _show_baselines(result["baselines"])),
        Section("balance", "Balance", list(_show_balance(result["balance"], unit))),
        Section("graph", "Shape of the comparison graph", _show_graph(result, unit)),
        Section("splits", "Each split by itself", _show_splits(result, unit)),
    ]  # fmt: skip
    return [section for section in sections if section.blocks]


def make_audit_page(result: Figures, sections: Sequence[Section]) -> str:
    """The whole page; `sections` as of `audit_sections`."""
    anchors = {section.anchor for section in sections}
    findings = []
    for finding in result["findings"]:
        anchor = _SECTION_OF.get(finding["section"], finding["section"])
        sentence = finding["text"][:1].upper() + finding["text"][1:]
        sentence += "" if sentence.endswith("?") else "."
        findings.append(ShownFinding(finding["mark"], sentence, anchor if anchor in anchors else None))
    counts = result["counts"]
    configs = ", ".join(result["splits"][name]["config"] for name in result["names"])
    about = (
        f"{count(counts['pairs'], 'comparison')}, {count(counts['videos'], result['unit'])}, "
        f"{count(counts['prompts'], 'prompt')} in {configs}"
    )
    title = f"Audit of {', '.join(result['names'])}"
    return render("audit.html", title=title, about=about, findings=findings, sections=sections)


def _show_overlap(result: Figures, unit: str) -> list[Block]:
    blocks: list[Block] = []
    rows = [
        (" and ".join(both["splits"]),
         *(f"{both[key]:,}" for key in ("prompts_by_text", "prompts_by_id", "videos", "compared_pairs")))
        for both in result["overlap"]
    ]  # fmt: skip
    if rows:
        header = ["splits", "prompts with one text", "prompts with one id", f"{unit}s", "compared pairs"]
        blocks += [Text("Case and white space make no difference between texts."), Table(header, rows)]
    several = {name: result["splits"][name]["prompt_ids"]["prompts_under_several_ids"] for name in result["names"]}
    if not any(several.values()):
        return [*blocks, note("within a split, no prompt text has several ids")]
    header = ["split", "prompts under several ids"]
    return [*blocks, Table(header, [(name, f"{number:,}") for name, number in several.items()])]


def _show_fields(result: Figures) -> list[Block]:
    rows = [
        (name, field, f"{each['records']:,}", each["resembles"])
        for name in result["names"]
        for field, each in result["splits"][name]["fields"]["unknown"].items()
    ]
    if not rows:
        return []
    blocks: list[Block] = [Table(["split", "unknown field", "records", "perhaps meant as"], rows[:MAX_ROWS])]
    return [*blocks, note(f"{len(rows) - MAX_ROWS:,} more are in audit.json")] if len(rows) > MAX_ROWS else blocks


def _show_clips(result: Figures) -> list[Block]:
    clips, responses = result["clips"], result["responses"]
    blocks: list[Block] = []
    if clips["present"] + clips["missing"]:
        found = [
            *(None if clips[name] is None else len(clips[name]) for name in ("duplicates", "across_splits")),
            None if clips["identical_pairs"] is None else clips["identical_pairs"]["count"],
        ]
        row = ["clips", *(f"{clips[name]:,}" for name in ("present", "missing", "compared")),
               *("not known" if number is None else f"{number:,}" for number in found)]  # fmt: skip
        header = ["", "present", "missing", "compared", "under several names", "of these across splits",
                  "pairs of equal clips"]  # fmt: skip
        blocks.append(Table(header, [row]))
        if groups := clips["across_splits"] or clips["duplicates"]:
            more = [f"and {len(groups) - MAX_GROUPS:,} more, in audit.json"] if len(groups) > MAX_GROUPS else []
            blocks.append(Items([" = ".join(group) for group in groups[:MAX_GROUPS]] + more))
        if clips["reason"]:
            blocks.append(note(clips["reason"]))
    if responses:
        header = ["", "present", "under several names", "of these across splits", "pairs of equal responses"]
        row = ["responses", *(f"{responses[name]:,}" for name in ("responses", "num_duplicates", "num_across_splits")),
               f"{responses['identical_pairs']['count']:,}"]  # fmt: skip
        blocks.append(Table(header, [row]))
    return blocks


def _show_conflicts(conflicts: Figures, unit: str) -> Iterator[Block]:
    rows = [
        (words(name), f"{pairs['pairs']:,}", f"{pairs['contradictory']:,}", percent(pairs["flip_rate"]))
        for name, pairs in conflicts["repeated_pairs"].items()
        if pairs["pairs"]
    ]
    yield Heading(f"The same two {unit}s, compared more than once")
    header = ["dimension", "pairs", "contradict themselves", "labels that are wrong, at a guess"]
    yield Table(header, rows) if rows else note("none")
    safe, harms = conflicts["is_safe"], conflicts["harm_labels"]
    yield Heading(f"Labels of {unit}s")
    found = {
        "safe here, unsafe there": safe["contradictory"],
        "harm label given and denied": harms["contradictory"],
        "safe, with a harm label": harms["safe_with_harm"],
        "unsafe, without any": harms["unsafe_without_harm"],
        "two generators": conflicts["generators"]["contradictory"],
    }
    plots = []
    if any(found.values()):
        n = f"n = {count(safe['videos'], unit)} with an is_safe label, {harms['videos']:,} with harm labels"
        plots.append(draw_counts("Contradictory labels", found, (f"{unit}s", "contradiction"), n))
    elif safe["videos"] or harms["videos"]:
        yield note("no is_safe or harm label contradicts another")
    else:
        yield note(f"no {unit} has an is_safe or harm label")
    order = conflicts["harmlessness_against_is_safe"]
    if order["safe_unsafe_pairs"]:
        yield Text(
            f"Of a safe and an unsafe {unit}, harmlessness should prefer the safe one. "
            f"Of {count(order['safe_unsafe_pairs'], 'such pair')} {order['tied']:,} "
            f"{verb(order['tied'], 'is', 'are')} tied and {order['without_label']:,} "
            f"{verb(order['without_label'], 'has', 'have')} no label."
        )
        share = _share("prefers the unsafe one", order["contradicting"])
        n = f"n = {count(order['contradicting']['total'], 'comparison')} of a safe and an unsafe {unit}"
        plots.append(draw_shares("Harmlessness against is_safe", [share], ("share of comparisons", "label"), n))
    if plots:
        yield Panels(plots)


def _show_triangles(triangles: Figures | None, unit: str) -> list[Block]:
    if not triangles:
        return []
    closed = {name: figure for name, figure in triangles.items() if figure["closed"]}
    if not closed:
        return [note(f"no three {unit}s of a prompt were all compared with one another: nothing shows the noise")]
    lead = Text(
        f"Take three {unit}s of a prompt that were all compared with one another. Where people prefer A to B, B to C "
        "and C to A, one label must be wrong. The share of such circles shows how noisy the labels are, and so where "
        "the accuracy of any model ends: the ceiling. How high that is depends on which labels are wrong; people err "
        f"more often on {unit}s that are alike."
    )
    numbers = sorted({figure["closed"] for figure in closed.values()})
    n = f"n = {' to '.join(f'{number:,}' for number in dict.fromkeys((numbers[0], numbers[-1])))} triangles"
    plots = []
    for key, title, axis in (
        ("cyclic_share", "Triangles that go round in a circle", "share of triangles"),
        ("ceiling_bradley_terry", f"Ceiling, if people err mostly on similar {unit}s (Bradley-Terry)", "accuracy"),
        ("ceiling", "Ceiling, if they err on all alike: an upper end", "accuracy"),
    ):
        shares = []
        for name, figure in closed.items():
            text = percent(figure[key])
            text += f", {figure['cyclic']:,} of {figure['closed']:,}" if key == "cyclic_share" else ""
            shares.append(Share(words(name), figure[key], text, figure[f"{key}_interval"]))
        plots.append(draw_shares(title, shares, (axis, "dimension"), n))
    absent = [words(name) for name in triangles if name not in closed]
    reasons = {figure["reason"] for figure in closed.values()} - {None}
    notes = [f"no triangle of {', '.join(absent)}"] if absent else []
    return [lead, Panels(plots), *map(note, [*notes, *sorted(reasons)])]


def _show_baselines(baselines: Figures) -> list[Block]:
    plots = [plot for split, figures in baselines.items() if (plot := _draw_baselines(split, figures))]
    notes = []
    for split, figures in baselines.items():
        absent: dict[tuple[str, str], list[str]] = {}
        for name, each in _named_baselines(figures).items():
            if each["accuracy"] is None:
                what, _, dimension = name.partition(": ")
                absent.setdefault((what, each["reason"]), []).append(dimension)
        told = [f"{what} ({', '.join(names)}): {reason}" for (what, reason), names in absent.items()]
        told += [f"generators: {figures['reason']}"] if figures["reason"] else []
        if reason := figures["prompt_only_unsafe"]["reason"]:
            told.append(f"prompts: {reason}")
        if merged := figures.get("generators_taken_as_one"):
            told.append(f"{merged:,} less frequent generators are taken as one")
        notes += [note(f"{split}: {text}") for text in told]
    return [Panels(plots), *notes] if plots else [*notes]


def _named_baselines(figures: Figures) -> dict[str, Figures]:
    if not figures["generator_only"]:
        return {}
    named = {f"generators: {words(name)}": figure for name, figure in figures["generator_only"].items()}
    return {**named, "is_safe labels: harmlessness": figures["is_safe_only"]["harmlessness"]}


def _draw_baselines(split: str, figures: Figures) -> Plot | None:
    known = {name: each for name, each in _named_baselines(figures).items() if each["accuracy"] is not None}
    shares = [
        Share(name, each["accuracy"], f"{percent(each['accuracy'])} of {each['total']:,}", each["interval"])
        for name, each in known.items()
    ]
    prompts = figures["prompt_only_unsafe"]
    if prompts["auroc"] is not None:
        shares.append(Share("prompt: is_safe (AUROC)", prompts["auroc"], percent(prompts["auroc"])))
    if not shares:
        return None
    n = f"n = {count(max(each['total'] for each in known.values()), 'comparison')} at most; " if known else ""
    learned = f"{n}learned from {figures['fitted_on'] or prompts['fitted_on']}"
    return draw_shares(split, shares, ("accuracy: share of comparisons", "predictor"), learned)


def _show_balance(balance: Figures, unit: str) -> Iterator[Block]:
    notes, plots = [], []
    if balance["preferences"]:
        sides = ("video_0", "video_1", "tie", "missing")
        rows = {words(name): [counts[side] for side in sides] for name, counts in balance["preferences"].items()}
        labelled = {name: values for name, values in rows.items() if any(values[:3])}
        if labelled:
            n = f"n = {count(sum(next(iter(labelled.values()))), 'comparison')}"
            plots.append(draw_stacked("Preferred", labelled, sides, ("share of comparisons", "dimension"), n))
        if absent := [name for name in rows if name not in labelled]:
            notes.append(f"no label of {', '.join(absent)}")
    safe = balance["is_safe"]
    values = [safe[key] for key in ("true", "false", "contradictory", "unknown")]
    if any(values[:3]):
        names = ("safe", "unsafe", "both said", "unknown")
        titles, n = (f"share of {unit}s", "what is labelled"), f"n = {count(sum(values), unit)}"
        plots.append(draw_stacked(f"is_safe of {unit}s", {f"{unit}s": values}, names, titles, n))
    else:
        notes.append(f"no {unit} has an is_safe label")
    for key, title, what in (("harm_labels", f"Harms of {unit}s", unit), ("prompt_harm_labels", "Harms of prompts",
                                                                         "prompt")):  # fmt: skip
        harms = sorted(balance[key].values(), key=lambda harm: int(harm["code"][1:]))
        if known := max((harm["true"] + harm["false"] for harm in harms), default=0):
            found = {f"{harm['code']} {harm['name']}": harm["true"] for harm in harms}
            texts = [f"{harm['true']:,} ({percent(harm['share_true'])})" for harm in harms]
            n = f"n = {count(known, what)} with the label"
            plots.append(draw_counts(title, found, (f"{what}s", "harm"), n, dict(zip(found, texts, strict=True))))
    types, generators = balance["prompt_types"], balance["generators"]
    if types:
        n = f"n = {count(sum(types.values()), 'prompt')}"
        plots.append(draw_counts("Kinds of prompts", types, ("prompts", "kind"), n))
    if generators:
        made = {name: each["videos"] for name, each in generators.items()}
        n = f"n = {count(sum(made.values()), unit)}"
        plots.append(draw_counts(f"{capitalise(unit)}s of each generator", made, (f"{unit}s", "generator"), n))
        if merged := balance["generators_taken_as_one"]:
            notes.append(f"{merged:,} less frequent generators are taken as one")
    for dimension in ("helpfulness", "harmlessness"):
        wins = [(name, each["win_rate"].get(dimension)) for name, each in list(generators.items())[:MAX_ROWS]]
        shares = [_share(name, win) for name, win in wins if win and win["total"]]
        if shares:
            title = f"{capitalise(dimension)}: wins against other generators"
            n = f"n = {max(win['total'] for _, win in wins if win):,} comparisons of a generator at most"
            plots.append(draw_shares(title, shares, ("share of comparisons won, a tie is half", "generator"), n))
    if plots:
        yield Panels(plots)
    yield from map(note, notes)


def _show_graph(result: Figures, unit: str) -> list[Block]:
    graph = result["graph"]
    if not graph:
        return []
    rows = [
        _graph_row("any of them" if name == "overall" else words(name), figures)
        for name, figures in graph.items()
        if figures["comparisons"]
    ]
    if not rows:
        return [note("no comparison has a label")]
    overall = graph["overall"]
    lead = Text(
        f"{capitalise(unit)}s are points, labelled comparisons are lines between them. Two {unit}s of a prompt can be "
        "put in order when lines connect them, directly or through others. The resistance between two of them says "
        "how unsure their difference is: 1 after one comparison, 2 along a chain of two, 0.5 after two comparisons of "
        "the same pair."
    )
    header = ["labels", "comparisons", f"{unit}s", "connected groups", "pairs in order", "median resistance",
              "95% of pairs below"]  # fmt: skip
    notes = []
    if others := result["counts"]["videos"] - overall["videos"]:
        notes.append(f"{count(others, f'other {unit}')} of these files {verb(others, 'is', 'are')} in no labelled "
                     "comparison")  # fmt: skip
    of_videos = {
        f"Comparisons of one {unit}": (overall["comparisons_per_video"]["distribution"], f"{unit}s", "comparisons"),
        f"Compared {unit}s of one prompt": (overall["videos_per_prompt"]["distribution"], "prompts", f"{unit}s"),
        f"{capitalise(unit)}s in a connected group": (overall["components"]["sizes"], "connected groups", f"{unit}s"),
    }
    plots = [
        draw_counts(title, counts, (what, names), f"n = {sum(counts.values()):,} {what}")
        for title, (counts, what, names) in of_videos.items()
    ]
    for key, title in (("same_prompt", "all connected pairs of one prompt"), ("compared", "the compared pairs")):
        if described := overall["resistance"][key]:
            found = {f"from {start}": number for start, number in described["histogram"].items()}
            n = f"n = {count(sum(found.values()), 'pair')}"
            plots.append(draw_counts(f"Resistance of {title}", found, ("pairs", "resistance"), n))
    if reason := overall["resistance"]["reason"]:
        notes.append(reason)
    return [lead, Table(header, rows), Panels(plots), *map(note, notes)]


def _graph_row(name: str, figures: Figures) -> tuple[str | None, ...]:
    resistance = figures["resistance"]["same_prompt"]
    return (
        name,
        *(f"{figures[key]:,}" for key in ("comparisons", "videos")),
        f"{figures['components']['number']:,}",
        percent(figures["same_prompt_pairs"]["share_connected"]),
        *(f"{resistance[key]:.2f}" if resistance else None for key in ("median", "q95")),
    )


def _show_splits(result: Figures, unit: str) -> list[Block]:
    if len(result["names"]) < 2:
        return []
    rows = []
    for name in result["names"]:
        split = result["splits"][name]
        ceilings = [
            split["triangles"][key]["ceiling_bradley_terry"] if split["triangles"] else None
            for key in ("helpfulness", "harmlessness")
        ]
        rows.append(
            (name, *(f"{split['counts'][key]:,}" for key in ("pairs", "prompts", "videos")),
             percent(split["balance"]["is_safe"]["share_true"]), *map(percent, ceilings))
        )  # fmt: skip
    header = ["split", "comparisons", "prompts", f"{unit}s", "safe", "ceiling of helpfulness", "of harmlessness"]
    return [Table(header, rows), note("the ceilings are those for errors on similar pairs")]


def _share(name: str, figure: Figures) -> Share:
    text = f"{percent(figure['share'])}{interval(figure['interval'])}, {figure['count']:,} of {figure['total']:,}"
    return Share(name, figure["share"], text, figure["interval"])
