"""Makes the page of an audit: draws its plots, and hands them with the figures to the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safe_rlhf_video.audit.sections import (
    Audit,
    Balance,
    Baselines,
    Conflicts,
    CountedShare,
    GraphFigures,
    HarmCounts,
    PredictorAccuracy,
    TriangleFigures,
)
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.pages.document import Panels, Table, render
from safe_rlhf_video.pages.figures import Plot
from safe_rlhf_video.pages.plots import MAX_ROWS, Share, draw_counts, draw_shares, draw_stacked
from safe_rlhf_video.wording import capitalise, count, interval, percent, thousands, words


def audit_plots(result: Audit) -> dict[str, Sequence[Plot]]:
    """The plots of each section.

    Args:
        result: as `audit` returns it; its texts are untrusted.
    """
    unit = result.unit
    return {
        "conflicts": list(_draw_conflicts(result.conflicts, unit)),
        "triangles": list(_draw_triangles(result.triangles or {}, unit)),
        "baselines": [plot for name, each in result.baselines.items() if (plot := _draw_baselines(name, each))],
        "balance": list(_draw_balance(result.balance, unit)),
        "graph": list(_draw_graph(result.graph["overall"], unit)) if result.graph else [],
    }


def make_audit_page(result: Audit, plots: Panels) -> str:
    """The whole page; `plots` as of `audit_plots`."""
    names = result.names
    notes = {
        "triangles": _note_triangles(result.triangles or {}),
        "baselines": [f"{name}: {text}" for name, each in result.baselines.items() for text in _note_baselines(each)],
        "balance": _note_balance(result.balance, result.unit),
    }
    unknown = [(name, field, each) for name in names for field, each in result.splits[name].fields.unknown.items()]
    configs = [result.splits[name].config for name in names]
    return render("audit.html", title=f"Audit of {', '.join(names)}", result=result, plots=plots, notes=notes,
                  configs=configs, unknown_fields=unknown, splits_table=_compare_splits(result), max_rows=MAX_ROWS,
                  has_contradictory_labels=any(_contradictions(result.conflicts).values()))  # fmt: skip


def _compare_splits(result: Audit) -> Table:
    """A row for each split; a ceiling that no split has is left out."""
    splits = [result.splits[name] for name in result.names]
    ceilings = {
        name: found
        for name in DIMENSIONS
        if any(found := [(each.triangles or {})[name].ceiling_bradley_terry if each.triangles else None
                         for each in splits])
    }  # fmt: skip
    rows = [
        [each, thousands(one.counts.pairs), thousands(one.counts.prompts), thousands(one.counts.videos),
         percent(one.balance.is_safe.share_true), *(percent(found[place]) for found in ceilings.values())]
        for place, (each, one) in enumerate(zip(result.names, splits, strict=True))
    ]  # fmt: skip
    header = [
        "split",
        "comparisons",
        "prompts",
        f"{result.unit}s",
        "safe",
        *(f"ceiling of {name}" for name in ceilings),
    ]
    return Table(header, rows, note="the ceilings are those for errors on similar pairs" if ceilings else "")


def _contradictions(conflicts: Conflicts) -> dict[str, int]:
    return {
        "safe here, unsafe there": conflicts.is_safe.contradictory,
        "harm label given and denied": conflicts.harm_labels.contradictory,
        "safe, with a harm label": conflicts.harm_labels.safe_with_harm,
        "unsafe, without a harm label": conflicts.harm_labels.unsafe_without_harm,
        "two generators": conflicts.generators.contradictory,
    }


def _draw_conflicts(conflicts: Conflicts, unit: str) -> Iterator[Plot]:
    found = _contradictions(conflicts)
    if any(found.values()):
        n = (f"n = {count(conflicts.is_safe.videos, unit)} with an is_safe label, "
             f"{conflicts.harm_labels.videos:,} with harm labels")  # fmt: skip
        yield draw_counts(
            "Contradictory labels",
            {name: number for name, number in found.items() if number},
            (f"{unit}s", "contradiction"),
            n,
        )
    order = conflicts.harmlessness_against_is_safe
    if order.safe_unsafe_pairs:
        n = f"n = {count(order.contradicting.total, 'comparison')} of a safe and an unsafe {unit}"
        share = _to_share("prefers the unsafe one", order.contradicting)
        yield draw_shares("Harmlessness against is_safe", [share], ("share of comparisons", "label"), n)


def _draw_triangles(triangles: Mapping[str, TriangleFigures], unit: str) -> Iterator[Plot]:
    closed = {words(name): figure for name, figure in triangles.items() if figure.closed}
    if not closed:
        return
    numbers = [figure.closed for figure in closed.values()]
    n = f"n = {' to '.join(f'{number:,}' for number in sorted({min(numbers), max(numbers)}))} triangles"
    cyclic = [Share(name, each.cyclic_share, f"{percent(each.cyclic_share)}, {each.cyclic:,} of {each.closed:,}",
                    each.cyclic_share_interval) for name, each in closed.items()]  # fmt: skip
    close = [Share(name, each.ceiling_bradley_terry, percent(each.ceiling_bradley_terry),
                   each.ceiling_bradley_terry_interval) for name, each in closed.items()
             if each.ceiling_bradley_terry is not None]  # fmt: skip
    alike = [Share(name, each.ceiling, percent(each.ceiling), each.ceiling_interval) for name, each in closed.items()
             if each.ceiling is not None]  # fmt: skip
    for title, shares, axis in (
        ("Cyclic triangles", cyclic, "share of triangles"),
        (f"Ceiling, if people err mostly on similar {unit}s (Bradley-Terry)", close, "accuracy"),
        ("Ceiling, if they err equally often on all: an upper end", alike, "accuracy"),
    ):
        if shares:
            yield draw_shares(title, shares, (axis, "dimension"), n)


def _note_triangles(triangles: Mapping[str, TriangleFigures]) -> list[str]:
    absent = [words(name) for name, figure in triangles.items() if not figure.closed]
    reasons = {figure.reason for figure in triangles.values() if figure.closed and figure.reason is not None}
    return ([f"no triangle of {', '.join(absent)}"] if absent else []) + sorted(reasons)


def _named_baselines(figures: Baselines) -> dict[str, PredictorAccuracy]:
    by_generators, by_labels = figures.generator_only or {}, figures.is_safe_only or {}
    return {
        **{f"generators: {words(name)}": figure for name, figure in by_generators.items()},
        **{f"is_safe labels: {words(name)}": figure for name, figure in by_labels.items()},
    }


def _draw_baselines(split: str, figures: Baselines) -> Plot | None:
    known = {name: each for name, each in _named_baselines(figures).items() if each.accuracy is not None}
    shares = [Share(name, each.accuracy, f"{percent(each.accuracy)} of {each.total:,}", each.interval)
              for name, each in known.items()]  # fmt: skip
    prompts = figures.prompt_only_unsafe
    if prompts.auroc is not None:
        shares.append(Share("prompt: is_safe (AUROC)", prompts.auroc, percent(prompts.auroc)))
    if not shares:
        return None
    n = f"n = {count(max(each.total for each in known.values()), 'comparison')} at most; " if known else ""
    learned = f"{n}learned from {figures.fitted_on or prompts.fitted_on}"
    return draw_shares(split, shares, ("accuracy: share of comparisons", "predictor"), learned)


def _note_baselines(figures: Baselines) -> Iterator[str]:
    absent: dict[tuple[str, str | None], list[str]] = {}
    for name, each in _named_baselines(figures).items():
        if each.accuracy is None:
            what, _, dimension = name.partition(": ")
            absent.setdefault((what, each.reason), []).append(dimension)
    yield from (f"{what} ({', '.join(names)}): {reason}" for (what, reason), names in absent.items())
    if figures.reason:
        yield f"generators: {figures.reason}"
    if figures.prompt_only_unsafe.reason:
        yield f"prompts: {figures.prompt_only_unsafe.reason}"
    if merged := figures.generators_taken_as_one:
        yield f"{merged:,} less frequent generators are taken as one"


def _is_safe(balance: Balance) -> list[int]:
    safe = balance.is_safe
    return [safe.true, safe.false, safe.contradictory, safe.unknown]


def _draw_balance(balance: Balance, unit: str) -> Iterator[Plot]:
    labelled = {words(name): [each.video_0, each.video_1, each.tie, each.missing]
                for name, each in (balance.preferences or {}).items() if each.labelled}  # fmt: skip
    if labelled:
        n = f"n = {count(sum(next(iter(labelled.values()))), 'comparison')}"
        names = ("video_0", "video_1", "tie", "missing")
        yield draw_stacked("Preferred", labelled, names, ("share of comparisons", "dimension"), n)
    values = _is_safe(balance)
    if any(values[:3]):
        names = ("safe", "unsafe", "contradictory", "unknown")
        titles, n = (f"share of {unit}s", "what is labelled"), f"n = {count(sum(values), unit)}"
        yield draw_stacked(f"is_safe of {unit}s", {f"{unit}s": values}, names, titles, n)
    for labels, what in ((balance.harm_labels, unit), (balance.prompt_harm_labels, "prompt")):
        harms = [harm for harm in _by_code(labels) if harm.true]
        if harms:
            known = max(harm.true + harm.false for harm in harms)
            found = {f"{harm.code} {harm.name}": harm.true for harm in harms}
            texts = [f"{harm.true:,} ({percent(harm.share_true)})" for harm in harms]
            n = f"n = {count(known, what)} with the label"
            yield draw_counts(f"Harm labels of {what}s", found, (f"{what}s", "harm"), n,
                              dict(zip(found, texts, strict=True)))  # fmt: skip
    types, generators = balance.prompt_types, balance.generators
    if types:
        n = f"n = {count(sum(types.values()), 'prompt')}"
        yield draw_counts("Prompt types", types, ("prompts", "kind"), n)
    if generators:
        made = {name: each.videos for name, each in generators.items()}
        n = f"n = {count(sum(made.values()), unit)}"
        yield draw_counts(f"{capitalise(unit)}s of each generator", made, (f"{unit}s", "generator"), n)
    for dimension in ("helpfulness", "harmlessness"):
        wins = {name: each.win_rate.get(dimension) for name, each in list(generators.items())[:MAX_ROWS]}
        won = {name: win for name, win in wins.items() if win and win.total}
        if won:
            n = f"n = {max(win.total for win in won.values()):,} comparisons of a generator at most"
            yield draw_shares(f"{capitalise(dimension)}: wins against other generators",
                              [_to_share(name, win) for name, win in won.items()],
                              ("share of comparisons won, a tie is half", "generator"), n)  # fmt: skip


def _note_balance(balance: Balance, unit: str) -> list[str]:
    absent = [words(name) for name, each in (balance.preferences or {}).items() if not each.labelled]
    notes = [f"no label of {', '.join(absent)}"] if absent else []
    if not any(_is_safe(balance)[:3]):
        notes.append(f"no {unit} has an is_safe label")
    for labels, what in ((balance.harm_labels, unit), (balance.prompt_harm_labels, "prompt")):
        known = [harm for harm in _by_code(labels) if harm.true + harm.false]
        if never := [f"{harm.code} {harm.name}" for harm in known if not harm.true]:
            notes.append(f"no {what} has the label {', '.join(never)}")
    if merged := balance.generators_taken_as_one:
        notes.append(f"{merged:,} less frequent generators are taken as one")
    return notes


def _by_code(labels: Mapping[str, HarmCounts]) -> list[HarmCounts]:
    """S2 before S10."""
    return sorted(labels.values(), key=lambda harm: int(harm.code[1:]))


def _draw_graph(overall: GraphFigures, unit: str) -> Iterator[Plot]:
    if not overall.comparisons:
        return
    counted: list[tuple[str, Mapping[str, int], str, str]] = [
        (f"Comparisons of one {unit}", overall.comparisons_per_video.distribution, f"{unit}s", "comparisons"),
        (f"Compared {unit}s of one prompt", overall.videos_per_prompt.distribution, "prompts", f"{unit}s"),
        (f"{capitalise(unit)}s in a connected group", overall.components.sizes, "connected groups", f"{unit}s"),
    ]
    for each, title in (
        (overall.resistance.same_prompt, "all connected pairs of one prompt"),
        (overall.resistance.compared, "the compared pairs"),
    ):
        if each:
            resistances = {f"from {start}": number for start, number in each.histogram.items()}
            counted.append((f"Resistance of {title}", resistances, "pairs", "resistance"))
    for title, counts, what, names in counted:
        yield draw_counts(title, counts, (what, names), f"n = {sum(counts.values()):,} {what}")


def _to_share(name: str, figure: CountedShare) -> Share:
    text = f"{percent(figure.share)}{interval(figure.interval)}, {figure.count:,} of {figure.total:,}"
    return Share(name, figure.share, text, figure.interval)
