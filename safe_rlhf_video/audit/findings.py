"""Puts an audit in plain words: a sentence for each finding, marked ok, look or problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safe_rlhf_video.audit.sections import (
    Audit,
    Balance,
    ClipChecks,
    Conflicts,
    Finding,
    GraphFigures,
    ResponseChecks,
    TriangleFigures,
)
from safe_rlhf_video.audit.triangles import FEW_TRIANGLES, NO_CYCLE
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.stats.intervals import Interval
from safe_rlhf_video.wording import count, interval, percent, verb, with_article, words

OK, LOOK, PROBLEM = "ok", "look", "problem"

# Where a share stops being fine and where it spoils what is measured on the data; docs/audit.md argues each.
CONTRADICTION_PROBLEM = 0.05
CEILING_LOOK, CEILING_PROBLEM = 0.9, 0.65
GENERATOR_LOOK, GENERATOR_PROBLEM = 0.6, 0.75
# In widths of the interval: three standard errors, so that six dimensions seldom alarm by chance.
POSITION_LOOK, POSITION_PROBLEM = 0.75, 0.1
PROMPT_LOOK = 0.7
RARE_CLASS = 50
CONNECTED_LOOK = 0.8


def find(result: Audit) -> list[Finding]:
    """The findings of an audit, problems first. What was not examined is never "ok"."""
    unit = result.unit
    everything = [
        *_find_overlap(result, unit),
        *_find_fields(result),
        *_find_clips(result.clips),
        *_find_responses(result.responses),
        *_find_conflicts(result.conflicts, unit),
        *_find_noise(result.triangles or {}, unit),
        *_find_shortcuts(result, unit),
        *_find_balance(result.balance, unit),
        *_find_shape(result.graph or {}, unit),
    ]
    return sorted(everything, key=lambda finding: (PROBLEM, LOOK, OK).index(finding.mark))


def _sure(ends: Interval | None, nothing: float) -> float:
    """What a share is at least: of few comparisons it is the sure part that counts, and of too few there is none."""
    return nothing if ends is None else ends[0]


def _find_overlap(result: Audit, unit: str) -> Iterator[Finding]:
    for both in result.overlap:
        first, second = both.splits
        number, share = both.prompts_by_text, both.share_of_prompts[second]
        if number:
            text = (
                f"{count(number, 'prompt')} of {second} ({percent(share)}) {_are(number)} in {first} too: "
                f"figures on {second} are no figures on unseen prompts"
            )
            yield Finding(PROBLEM, "overlap", text)
        elif all(both.prompts.values()):
            yield Finding(OK, "overlap", f"no prompt of {second} is in {first}")
        if different := both.prompt_ids_with_other_text:
            text = f"{count(different, 'prompt id')} of {second} {_have(different)} another text in {first}"
            yield Finding(PROBLEM, "overlap", text)
        elif other := both.video_names_of_other_videos:
            text = (
                f"{count(other, f'{unit} name')} of {second} {verb(other, 'names', 'name')} another {unit} in {first}"
            )
            yield Finding(PROBLEM, "overlap", text)
        if (shared := both.videos) and not number:
            yield Finding(PROBLEM, "overlap", f"{count(shared, unit)} of {second} {_are(shared)} in {first} too")
    for name in result.names:
        if number := result.splits[name].prompt_ids.prompts_under_several_ids:
            text = f"{count(number, 'prompt')} of {name} {_have(number)} several ids: split by text, not by id"
            yield Finding(LOOK, "prompt_ids", text)


def _find_fields(result: Audit) -> Iterator[Finding]:
    for name in result.names:
        fields = result.splits[name].fields
        doubtful = {field: each for field, each in fields.unknown.items() if each.resembles}
        if doubtful:
            listed = "; ".join(
                f"{field} in {count(each.records, 'record')}, perhaps meant as {each.resembles}"
                for field, each in doubtful.items()
            )
            text = f"{count(len(doubtful), 'unknown field')} of {name} {verb(len(doubtful), 'is', 'are')} not read: "
            yield Finding(LOOK, "fields", text + listed)
        if number := fields.blank_prompts:
            yield Finding(LOOK, "fields", f"{count(number, 'prompt')} of {name} {verb(number, 'has', 'have')} no text")


def _find_clips(clips: ClipChecks) -> Iterator[Finding]:
    total = clips.present + clips.missing + len(clips.refused)
    if not total:
        return
    if clips.refused:
        text = f"{count(len(clips.refused), 'path')} outside the video folder, whose clips cannot be loaded"
        yield Finding(PROBLEM, "clips", text)
    if clips.unreadable:
        yield Finding(PROBLEM, "clips", f"{count(len(clips.unreadable), 'clip')} that cannot be read")
    if clips.missing and clips.duplicates is not None:
        text = f"{clips.missing:,} of {count(total, 'clip')} {verb(clips.missing, 'is', 'are')} not where the "
        yield Finding(LOOK, "clips", text + "config says")
    open_cases = total - clips.compared
    rest = f"; {open_cases:,} of {count(total, 'clip')} could not be compared" if open_cases else ""
    if clips.duplicates is None or clips.across_splits is None:
        yield Finding(LOOK, "clips", f"{clips.reason}: duplicates are not known")
    elif number := len(clips.across_splits):
        text = f"{count(number, 'clip')} {_have(number)} different names in more than one split{rest}"
        yield Finding(PROBLEM, "clips", text)
    elif number := len(clips.duplicates):
        yield Finding(LOOK, "clips", f"{count(number, 'clip')} {_have(number)} more than one name{rest}")
    elif clips.compared > 1:
        text = f"no two of the {clips.compared:,} clips that were compared have the same content{rest}"
        yield Finding(LOOK if rest else OK, "clips", text)
    elif rest:
        yield Finding(LOOK, "clips", f"duplicate clips are not known{rest}")
    if clips.identical_pairs and (number := clips.identical_pairs.count):
        yield Finding(PROBLEM, "clips", f"{count(number, 'comparison')} between two equal clips")


def _find_responses(responses: ResponseChecks | None) -> Iterator[Finding]:
    if responses is None:
        return
    if number := responses.identical_pairs.count:
        yield Finding(PROBLEM, "responses", f"{count(number, 'comparison')} between two equal responses")
    if number := responses.num_across_splits:
        text = f"{count(number, 'response')} {_are(number)} word for word in several splits, under another name"
        yield Finding(PROBLEM, "responses", text)
    elif number := responses.num_duplicates:
        text = f"{count(number, 'response')} {_have(number)} more than one name, word for word"
        yield Finding(LOOK, "responses", text)
    elif responses.responses > 1:
        yield Finding(OK, "responses", f"no two of the {responses.responses:,} responses are the same")


def _find_conflicts(conflicts: Conflicts, unit: str) -> Iterator[Finding]:
    most = 0
    for name, repeats in conflicts.repeated_pairs.items():
        number, most = repeats.contradictory, max(most, repeats.pairs)
        if number:
            text = (
                f"{number:,} of {count(repeats.pairs, 'pair')} with several {words(name)} labels "
                f"{verb(number, 'contradicts itself', 'contradict themselves')}"
            )
            yield Finding(PROBLEM if number / repeats.pairs > 0.5 else LOOK, "conflicts", text)
    if most and not any(repeats.contradictory for repeats in conflicts.repeated_pairs.values()):
        text = f"{'the' if most == 1 else 'all'} {count(most, 'pair')} labelled more than once "
        yield Finding(OK, "conflicts", text + f"{verb(most, 'agrees with itself', 'agree with themselves')}")
    if number := conflicts.is_safe.contradictory:
        text = f"{count(number, unit)} safe in one record and unsafe in another: training treats them as unknown"
        yield Finding(LOOK, "conflicts", text)
    if number := conflicts.generators.contradictory:
        text = f"{count(number, unit)} with different generators in different records: the first is used"
        yield Finding(LOOK, "conflicts", text)
    harms = conflicts.harm_labels
    for number, what in (
        (harms.contradictory, "with a harm label that one record gives and another denies"),
        (harms.safe_with_harm, "called safe, with a harm label"),
        (harms.unsafe_without_harm, "called unsafe, with none of the 12 harm labels"),
    ):
        if number:
            yield Finding(LOOK, "conflicts", f"{count(number, unit)} {what}")
    order = conflicts.harmlessness_against_is_safe.contradicting
    if order.share is not None:
        text = (
            f"harmlessness prefers the unsafe {unit} in {order.count:,} of {count(order.total, 'pair')} of a "
            f"safe and an unsafe one ({percent(order.share)}{interval(order.interval)})"
        )
        sure = _sure(order.interval, 0.0)
        mark = PROBLEM if sure > CONTRADICTION_PROBLEM else LOOK if order.count else OK
        yield Finding(mark, "conflicts", text)


def _find_noise(triangles: Mapping[str, TriangleFigures], unit: str) -> Iterator[Finding]:
    for name in DIMENSIONS:
        figure = triangles.get(name)
        if figure is None or not figure.closed:
            continue
        is_few = figure.closed < FEW_TRIANGLES
        if not figure.cyclic:
            text = f"none of {count(figure.closed, 'triangle')} of {words(name)} labels is cyclic"
            yield Finding(LOOK if is_few else OK, "triangles", f"{text}: {NO_CYCLE}")
            continue
        counts = (
            f"{figure.cyclic:,} of {count(figure.closed, 'triangle')} of {words(name)} labels "
            f"{_are(figure.cyclic)} cyclic (A over B, B over C, C over A)"
        )
        ceiling, ends = figure.ceiling_bradley_terry, figure.ceiling_bradley_terry_interval
        if ceiling is None:
            yield Finding(PROBLEM, "triangles", f"{counts}: {figure.reason}")
            continue
        few = f"; fewer than {FEW_TRIANGLES} triangles say little" if is_few else ""
        text = (
            f"{counts}, so some labels are wrong: no model can agree with more than about {percent(ceiling)}"
            f"{interval(ends)} of them if people err mostly on similar {unit}s, {percent(figure.ceiling)}"
            f"{interval(figure.ceiling_interval)} if they err equally often on all{few}"
        )
        # The lower of the two: equal errors give an upper end.
        at_most = 1.0 if ends is None else ends[1]
        mark = PROBLEM if at_most < CEILING_PROBLEM else LOOK if ceiling < CEILING_LOOK or is_few else OK
        yield Finding(mark, "triangles", text)


def _find_shortcuts(result: Audit, unit: str) -> Iterator[Finding]:
    for split, baselines in result.baselines.items():
        for name in DIMENSIONS:
            figure = (baselines.generator_only or {}).get(name)
            if figure is None or (accuracy := figure.accuracy) is None:
                continue
            text = (
                f"the generators' names alone predict {percent(accuracy)}{interval(figure.interval)} of the "
                f"{words(name)} labels of {split}"
            )
            sure = _sure(figure.interval, 0.5)
            mark = PROBLEM if sure >= GENERATOR_PROBLEM else LOOK if accuracy >= GENERATOR_LOOK else OK
            yield Finding(mark, "baselines", text)
        auroc = baselines.prompt_only_unsafe.auroc
        if auroc is not None:
            text = (
                f"the words of the prompt alone distinguish an unsafe {unit} of {split} from a safe one in "
                f"{percent(auroc)} of cases (AUROC; 50% is guessing): a cost model has to beat that"
            )
            yield Finding(LOOK if auroc >= PROMPT_LOOK else OK, "baselines", text)


def _find_balance(balance: Balance, unit: str) -> Iterator[Finding]:
    preferences = balance.preferences or {}
    absent = [words(name) for name, counts in preferences.items() if not counts.labelled]
    if absent:
        yield Finding(LOOK, "balance", f"no pair is labelled for {', '.join(absent)}")
    for name, counts in preferences.items():
        if (missing := counts.missing) and counts.labelled:
            all_pairs = count(missing + counts.labelled, "pair")
            text = f"{missing:,} of {all_pairs} {verb(missing, 'lacks', 'lack')} {with_article(words(name))} label"
            yield Finding(LOOK, "balance", text)
        share, ends = counts.share_video_0.share, counts.share_video_0.interval
        if share is not None and ends is not None and abs(share - 0.5) > POSITION_LOOK * (ends[1] - ends[0]):
            text = (
                f"{percent(share)}{interval(ends)} of the {words(name)} labels name video_0: "
                "the position predicts the label; shuffle the sides"
            )
            mark = PROBLEM if abs(share - 0.5) > POSITION_PROBLEM else LOOK
            yield Finding(mark, "balance", text)
    safe = balance.is_safe
    known = safe.true + safe.false
    if known:
        mark = LOOK if min(safe.true, safe.false) < RARE_CLASS else OK
        text = (
            f"of {count(known, unit)} with an is_safe label {safe.true:,} ({percent(safe.share_true)}) "
            f"{verb(safe.true, 'is', 'are')} safe, {safe.false:,} {verb(safe.false, 'is', 'are')} not"
        )
        yield Finding(mark, "balance", text)
    elif safe.unknown:
        yield Finding(LOOK, "balance", f"no {unit} has an is_safe label: a cost model cannot learn where zero is")
    if number := balance.generators_taken_as_one:
        text = (
            f"{number:,} generators beyond the {len(balance.generators) - 1} most frequent are taken as one; is "
            "generated_from a name?"
        )
        yield Finding(LOOK, "balance", text)
    rare = [f"{harm.name} ({harm.true})" for harm in balance.harm_labels.values() if harm.true < RARE_CLASS]
    if any(harm.true + harm.false for harm in balance.harm_labels.values()) and rare:
        text = (
            f"{count(len(rare), 'harm')} with fewer than {RARE_CLASS} {unit}s, too few for a figure: {'; '.join(rare)}"
        )
        yield Finding(LOOK, "balance", text)


def _find_shape(graph: Mapping[str, GraphFigures], unit: str) -> Iterator[Finding]:
    for name in DIMENSIONS:
        figures = graph.get(name)
        if figures is None or not figures.comparisons or (share := figures.same_prompt_pairs.share_connected) is None:
            continue
        text = (
            f"{words(name)} labels order {percent(share)} of all pairs of {unit}s of one prompt, "
            f"directly or through other {unit}s"
        )
        if resistance := figures.resistance.same_prompt:
            text += f"; at the median that is worth {1 / resistance.median:.1f} direct comparisons of the pair"
        yield Finding(OK if share >= CONNECTED_LOOK else LOOK, "graph", text)


def _are(number: int) -> str:
    return verb(number, "is", "are")


def _have(number: int) -> str:
    return verb(number, "has", "have")
