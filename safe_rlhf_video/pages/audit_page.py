"""An audit as one HTML file that needs nothing else: findings first, then every section with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safe_rlhf_video.audit.wording import count, interval, percent, verb, words
from safe_rlhf_video.pages.audit_charts import MAX_BARS, RANGES_LEGEND, STYLE, bars, ranges, stacked
from safe_rlhf_video.pages.document import escape, make_document, table

_TITLES = {
    "overlap": "Shared prompts",
    "fields": "Fields that are not read",
    "clips": "Duplicates",
    "conflicts": "Contradictions",
    "triangles": "Noise of the labels",
    "baselines": "What predicts the labels without a look at the {unit}s",
    "balance": "Balance",
    "graph": "Shape of the comparison graph",
    "splits": "Each split by itself",
}
_SECTION_OF = {"prompt_ids": "overlap", "responses": "clips"}

Figures = Mapping[str, Any]


def make_page(result: Figures) -> str:
    """The page of an audit.

    Args:
        result: as `audit` returns it; its texts are untrusted and are escaped.
    """
    unit = result["unit"]
    sections = {
        "overlap": _show_overlap(result, unit),
        "fields": _show_fields(result),
        "clips": _show_clips(result),
        "conflicts": _show_conflicts(result["conflicts"], unit),
        "triangles": _show_triangles(result["triangles"], unit) if result["triangles"] else "",
        "baselines": _show_baselines(result["baselines"], unit),
        "balance": _show_balance(result["balance"], unit),
        "graph": _show_graph(result, unit) if result["graph"] else "",
        "splits": _show_splits(result, unit) if len(result["names"]) > 1 else "",
    }
    shown = {name: content for name, content in sections.items() if content}
    body = "".join(
        f'<h2 id="{name}">{_TITLES[name].format(unit=unit)}</h2>{content}' for name, content in shown.items()
    )
    counts = result["counts"]
    about = (
        f'<p class="dim">{count(counts["pairs"], "comparison")}, {count(counts["videos"], unit)}, '
        f"{count(counts['prompts'], 'prompt')} in "
        f"{escape(', '.join(result['splits'][name]['config'] for name in result['names']))}; what stands in several "
        "files counts once. docs/audit.md explains every figure, audit.json has them all.</p>"
    )
    content = about + _show_findings(result["findings"], shown) + RANGES_LEGEND + body
    return make_document(f"Audit of {', '.join(result['names'])}", content, STYLE)


def _show_findings(findings: Sequence[Figures], sections: Mapping[str, str]) -> str:
    items = []
    for finding in findings:
        section = _SECTION_OF.get(finding["section"], finding["section"])
        link = f' <a href="#{section}">more</a>' if section in sections else ""
        sentence = finding["text"][:1].upper() + finding["text"][1:]
        sentence += "" if sentence.endswith("?") else "."
        mark = f'<span class="mark {finding["mark"]}">{finding["mark"]}</span>'
        items.append(f"<li>{mark}<span>{escape(sentence)}{link}</span></li>")
    return f'<ul class="findings">{"".join(items)}</ul>'


def _show_overlap(result: Figures, unit: str) -> str:
    rows = [
        (" and ".join(both["splits"]), f"{both['prompts_by_text']:,}", f"{both['prompts_by_id']:,}",
         f"{both['videos']:,}", f"{both['compared_pairs']:,}")
        for both in result["overlap"]
    ]  # fmt: skip
    shared = ""
    if rows:
        header = ["splits", "prompts with one text", "prompts with one id", f"{unit}s", "compared pairs"]
        shared = "<p>Case and white space make no difference between texts.</p>" + table(header, rows)
    several = {name: result["splits"][name]["prompt_ids"]["prompts_under_several_ids"] for name in result["names"]}
    if not any(several.values()):
        return shared + _note("within a split, no text of a prompt stands under several ids")
    return shared + table(
        ["split", "prompts under several ids"], [(name, f"{number:,}") for name, number in several.items()]
    )


def _show_fields(result: Figures) -> str:
    rows = [
        (name, field, f"{each['records']:,}", each["resembles"])
        for name in result["names"]
        for field, each in result["splits"][name]["fields"]["unknown"].items()
    ]
    if not rows:
        return ""
    more = _note(f"{len(rows) - MAX_BARS:,} more are in audit.json") if len(rows) > MAX_BARS else ""
    return table(["split", "unknown field", "records", "perhaps meant as"], rows[:MAX_BARS]) + more


def _show_clips(result: Figures) -> str:
    clips, responses = result["clips"], result["responses"]
    content = ""
    if clips["present"] + clips["missing"]:
        row = ["clips", *(f"{clips[name]:,}" for name in ("present", "missing", "compared"))]
        for name in ("duplicates", "across_splits"):
            row.append("not known" if clips[name] is None else f"{len(clips[name]):,}")
        row.append("not known" if clips["identical_pairs"] is None else f"{clips['identical_pairs']['count']:,}")
        header = [
            *("", "present", "missing", "compared", "under several names", "of these across splits"),
            "pairs of equal clips",
        ]
        content += table(header, [row])
        content += _show_groups(clips["across_splits"] or clips["duplicates"] or [])
        if clips["reason"]:
            content += _note(clips["reason"])
    if responses:
        content += table(
            ["", "present", "under several names", "of these across splits", "pairs of equal responses"],
            [
                [
                    "responses",
                    *(f"{responses[name]:,}" for name in ("responses", "num_duplicates", "num_across_splits")),
                    f"{responses['identical_pairs']['count']:,}",
                ]
            ],
        )
    return content


def _show_groups(groups: Sequence[Sequence[str]], most: int = 10) -> str:
    if not groups:
        return ""
    more = f"<li>and {len(groups) - most:,} more, in audit.json</li>" if len(groups) > most else ""
    return "<ul>" + "".join(f"<li>{escape(' = '.join(group))}</li>" for group in groups[:most]) + more + "</ul>"


def _show_conflicts(conflicts: Figures, unit: str) -> str:
    rows = [
        (words(name), f"{pairs['pairs']:,}", f"{pairs['contradictory']:,}", percent(pairs["flip_rate"]))
        for name, pairs in conflicts["repeated_pairs"].items()
        if pairs["pairs"]
    ]
    safe, harms = conflicts["is_safe"], conflicts["harm_labels"]
    content = f"<h3>The same two {unit}s, compared more than once</h3>"
    if rows:
        content += table(["dimension", "pairs", "contradict themselves", "labels that are wrong, at a guess"], rows)
    else:
        content += _note("none")
    content += f"<h3>Labels of {unit}s</h3>"
    found = {
        "safe here, unsafe there": safe["contradictory"],
        "harm label given and denied": harms["contradictory"],
        "safe, with a harm label": harms["safe_with_harm"],
        "unsafe, without any": harms["unsafe_without_harm"],
        "two generators": conflicts["generators"]["contradictory"],
    }
    if any(found.values()):
        content += bars(found)
    elif safe["videos"] or harms["videos"]:
        content += _note("no is_safe or harm label contradicts another")
    else:
        content += _note(f"no {unit} has an is_safe or harm label")
    order = conflicts["harmlessness_against_is_safe"]
    if order["safe_unsafe_pairs"]:
        figure = order["contradicting"]
        content += (
            f"<h3>Harmlessness against is_safe</h3><p>Of a safe and an unsafe {unit}, harmlessness should prefer the "
            f"safe one. Of {count(order['safe_unsafe_pairs'], 'such pair')} {order['tied']:,} "
            f"{verb(order['tied'], 'is', 'are')} tied and {order['without_label']:,} "
            f"{verb(order['without_label'], 'has', 'have')} no label.</p>"
        ) + ranges([("prefers the unsafe one", figure["share"], figure["interval"], _share(figure))])
    return content


def _show_triangles(triangles: Figures, unit: str) -> str:
    closed = {name: figure for name, figure in triangles.items() if figure["closed"]}
    if not closed:
        return _note(f"no three {unit}s of a prompt were all compared with one another: nothing to tell noise by")
    content = (
        f"<p>Take three {unit}s of a prompt that were all compared with one another. Where people prefer A to B, B to "
        "C and C to A, one label must be wrong. The share of such circles tells how noisy the labels are and so where "
        "the accuracy of any model ends: the ceiling. How high that is depends on which labels are wrong; people err "
        f"more often on {unit}s that are alike.</p>"
    )
    for key, title in (
        ("cyclic_share", "Triangles that go round in a circle"),
        ("ceiling_bradley_terry", f"Ceiling, if people err mostly on similar {unit}s (Bradley-Terry)"),
        ("ceiling", "Ceiling, if they err on all alike: an upper end"),
    ):
        rows = []
        for name, figure in closed.items():
            text = percent(figure[key])
            text += f", {figure['cyclic']:,} of {figure['closed']:,}" if key == "cyclic_share" else ""
            rows.append((words(name), figure[key], figure[f"{key}_interval"], text))
        content += f"<h3>{title}</h3>" + ranges(rows)
    reasons = {figure["reason"] for figure in closed.values()} - {None}
    absent = [words(name) for name in triangles if name not in closed]
    content += _note(f"no triangle of {', '.join(absent)}") if absent else ""
    return content + "".join(_note(reason) for reason in sorted(reasons))


def _show_baselines(baselines: Figures, unit: str) -> str:
    content = ""
    for split, figures in baselines.items():
        named: dict[str, Figures] = {}
        if figures["generator_only"]:
            named = {f"generators: {words(name)}": figure for name, figure in figures["generator_only"].items()}
            named["is_safe labels: harmlessness"] = figures["is_safe_only"]["harmlessness"]
        rows = [
            (name, each["accuracy"], each["interval"], f"{percent(each['accuracy'])} of {each['total']:,}")
            for name, each in named.items()
            if each["accuracy"] is not None
        ]
        prompts = figures["prompt_only_unsafe"]
        if prompts["auroc"] is not None:
            rows.append(("prompt: is_safe (AUROC)", prompts["auroc"], None, percent(prompts["auroc"])))
        lacking: dict[tuple[str, str], list[str]] = {}
        for name, each in named.items():
            if each["accuracy"] is None:
                what, _, dimension = name.partition(": ")
                lacking.setdefault((what, each["reason"]), []).append(dimension)
        content += f"<h3>{escape(split)}</h3>"
        if rows:
            source = figures["fitted_on"] or prompts["fitted_on"]
            content += _note(f"learned from {source}") + ranges(rows)
        content += "".join(
            _note(f"{what} ({', '.join(dimensions)}): {reason}") for (what, reason), dimensions in lacking.items()
        )
        if figures["reason"]:
            content += _note(f"generators: {figures['reason']}")
        if prompts["reason"]:
            content += _note(f"prompts: {prompts['reason']}")
        if merged := figures.get("generators_taken_as_one"):
            content += _note(f"{merged:,} less frequent generators are taken as one")
    return content


def _show_balance(balance: Figures, unit: str) -> str:
    content = ""
    if balance["preferences"]:
        names = ("video_0", "video_1", "tie", "missing")
        rows = {words(name): [counts[key] for key in names] for name, counts in balance["preferences"].items()}
        labelled = {name: values for name, values in rows.items() if any(values[:3])}
        content += "<h3>Preferred</h3>" + (stacked(labelled, names) if labelled else "")
        if absent := [name for name in rows if name not in labelled]:
            content += _note(f"no label of {', '.join(absent)}")
    safe = balance["is_safe"]
    counts = [safe["true"], safe["false"], safe["contradictory"], safe["unknown"]]
    content += f"<h3>is_safe of {unit}s</h3>"
    if any(counts[:3]):
        content += stacked({f"{unit}s": counts}, ("safe", "unsafe", "both said", "unknown"))
    else:
        content += _note(f"no {unit} has the label")
    for key, title in (("harm_labels", f"Harms of {unit}s"), ("prompt_harm_labels", "Harms of prompts")):
        harms = balance[key]
        if any(harm["true"] + harm["false"] for harm in harms.values()):
            ordered = sorted(harms.values(), key=lambda harm: int(harm["code"][1:]))
            shown = {f"{harm['code']} {harm['name']}": harm for harm in ordered}
            texts = {name: f"{harm['true']:,} ({percent(harm['share_true'])})" for name, harm in shown.items()}
            content += f"<h3>{title}</h3>" + bars({name: harm["true"] for name, harm in shown.items()}, texts)
    content += "<h3>Kinds of prompts</h3>" + bars(balance["prompt_types"])
    generators = balance["generators"]
    if generators:
        content += f"<h3>{unit.capitalize()}s of each generator</h3>" + bars(
            {name: each["videos"] for name, each in generators.items()}
        )
        if merged := balance["generators_taken_as_one"]:
            content += _note(f"{merged:,} less frequent generators are taken as one")
    for dimension in ("helpfulness", "harmlessness"):
        wins = [(name, each["win_rate"].get(dimension)) for name, each in list(generators.items())[:MAX_BARS]]
        won = [(name, win["share"], win["interval"], _share(win)) for name, win in wins if win and win["total"]]
        if won:
            content += f"<h3>{dimension.capitalize()}: wins against other generators</h3>" + ranges(won)
    return content


def _show_graph(result: Figures, unit: str) -> str:
    graph = result["graph"]
    rows = []
    for name, figures in graph.items():
        if not figures["comparisons"]:
            continue
        between, resistance = figures["same_prompt_pairs"], figures["resistance"]["same_prompt"]
        rows.append(
            (
                "any of them" if name == "overall" else words(name),
                *(f"{figures[key]:,}" for key in ("comparisons", "videos")),
                f"{figures['components']['number']:,}",
                percent(between["share_connected"]),
                *(f"{resistance[key]:.2f}" if resistance else None for key in ("median", "q95")),
            )
        )
    if not rows:
        return _note("no comparison has a label")
    overall = graph["overall"]
    content = (
        f"<p>{unit.capitalize()}s are points, labelled comparisons are lines between them. Two {unit}s of a prompt can "
        "be put in order when lines connect them, directly or through others. The resistance between two of them says "
        "how unsure their difference is: 1 after one comparison, 2 along a chain of two, 0.5 after two comparisons of "
        "the same pair.</p>"
    )
    header = [
        *("labels", "comparisons", f"{unit}s", "connected groups", "pairs in order", "median resistance"),
        "95% of pairs below",
    ]
    content += table(header, rows)
    if others := result["counts"]["videos"] - overall["videos"]:
        content += _note(f"{count(others, f'other {unit}')} of these files {verb(others, 'stands', 'stand')} in no "
                         "labelled comparison")  # fmt: skip
    for title, values in (
        (f"Comparisons of one {unit}", overall["comparisons_per_video"]["distribution"]),
        (f"Compared {unit}s of one prompt", overall["videos_per_prompt"]["distribution"]),
        (f"{unit.capitalize()}s in a connected group", overall["components"]["sizes"]),
    ):
        content += f"<h3>{title}</h3>" + bars(values)
    for key, title in (("same_prompt", "all connected pairs of one prompt"), ("compared", "the compared pairs")):
        described = overall["resistance"][key]
        if described:
            content += f"<h3>Resistance of {title}</h3>" + bars(
                {f"from {start}": number for start, number in described["histogram"].items()}
            )
    reason = overall["resistance"]["reason"]
    return content + (_note(reason) if reason else "")


def _show_splits(result: Figures, unit: str) -> str:
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
    return table(header, rows) + _note("the ceilings are those for errors on similar pairs")


def _note(text: str) -> str:
    """A sentence of its own, in small print."""
    return f'<p class="dim">{escape(text[:1].upper() + text[1:])}.</p>'


def _share(figure: Figures) -> str:
    return f"{percent(figure['share'])}{interval(figure['interval'])}, {figure['count']:,} of {figure['total']:,}"
