"""Puts an audit in plain words: a sentence for each finding, marked ok, look or problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safe_rlhf_video.audit.triangles import FEW_TRIANGLES
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.wording import count, interval, percent, verb, words

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
# A share without an interval is believed from so many prompts on.
ENOUGH_PROMPTS = 30

Finding = dict[str, str]


def find(result: Mapping[str, Any]) -> list[Finding]:
    """The findings of an audit, problems first. What was not examined is never "ok".

    Args:
        result: the sections, as `audit` gathers them.

    Returns:
        `mark`, `section` (the key of the section with the figures) and `text`.
    """
    unit = result["unit"]
    everything = [
        *_find_overlap(result, unit),
        *_find_fields(result),
        *_find_clips(result["clips"]),
        *_find_responses(result["responses"]),
        *_find_conflicts(result["conflicts"], unit),
        *_find_noise(result["triangles"] or {}, unit),
        *_find_shortcuts(result, unit),
        *_find_balance(result["balance"], unit),
        *_find_shape(result["graph"] or {}, unit),
    ]
    return sorted(everything, key=lambda finding: (PROBLEM, LOOK, OK).index(finding["mark"]))


def _finding(mark: str, section: str, text: str) -> Finding:
    return {"mark": mark, "section": section, "text": text}


def _sure(share: float, ends: list[float] | None, prompts: int, nothing: float) -> float:
    """What a share is at least: of few comparisons it is the sure part that counts.

    There is no interval where all prompts agree; then the share itself is sure if there are enough of them, and
    `nothing` is known otherwise.
    """
    return ends[0] if ends is not None else share if prompts >= ENOUGH_PROMPTS else nothing


def _find_overlap(result: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    for both in result["overlap"]:
        first, second = both["splits"]
        number, share = both["prompts_by_text"], both["share_of_prompts"][second]
        if number:
            text = (
                f"{count(number, 'prompt')} of {second} ({percent(share)}) {_are(number)} in {first} too: "
                f"figures on {second} are no figures on unseen prompts"
            )
            yield _finding(PROBLEM, "overlap", text)
        elif all(both["prompts"].values()):
            yield _finding(OK, "overlap", f"no prompt of {second} is in {first}")
        if different := both["prompt_ids_with_other_text"]:
            text = f"{count(different, 'prompt id')} of {second} {_have(different)} another text in {first}"
            yield _finding(PROBLEM, "overlap", text)
        elif other := both["video_names_of_other_videos"]:
            text = (
                f"{count(other, f'{unit} name')} of {second} {verb(other, 'names', 'name')} another {unit} in {first}"
            )
            yield _finding(PROBLEM, "overlap", text)
        if (shared := both["videos"]) and not number:
            yield _finding(PROBLEM, "overlap", f"{count(shared, unit)} of {second} {_are(shared)} in {first} too")
    for name in result["names"]:
        if number := result["splits"][name]["prompt_ids"]["prompts_under_several_ids"]:
            text = f"{count(number, 'prompt')} of {name} {_have(number)} several ids: split by text, not by id"
            yield _finding(LOOK, "prompt_ids", text)


def _find_fields(result: Mapping[str, Any]) -> Iterator[Finding]:
    for name in result["names"]:
        fields = result["splits"][name]["fields"]
        doubtful = {field: each for field, each in fields["unknown"].items() if each["resembles"]}
        if doubtful:
            listed = "; ".join(
                f"{field} in {count(each['records'], 'record')}, perhaps meant as {each['resembles']}"
                for field, each in doubtful.items()
            )
            text = f"{count(len(doubtful), 'unknown field')} of {name} {verb(len(doubtful), 'is', 'are')} not read: "
            yield _finding(LOOK, "fields", text + listed)
        if number := fields["blank_prompts"]:
            yield _finding(LOOK, "fields", f"{count(number, 'prompt')} of {name} {verb(number, 'has', 'have')} no text")


def _find_clips(clips: Mapping[str, Any]) -> Iterator[Finding]:
    total = clips["present"] + clips["missing"] + len(clips["refused"])
    if not total:
        return
    if clips["refused"]:
        text = f"{count(len(clips['refused']), 'path')} outside the video folder, whose clips cannot be loaded"
        yield _finding(PROBLEM, "clips", text)
    if clips["unreadable"]:
        yield _finding(PROBLEM, "clips", f"{count(len(clips['unreadable']), 'clip')} that cannot be read")
    if clips["missing"] and clips["duplicates"] is not None:
        text = f"{clips['missing']:,} of {count(total, 'clip')} {verb(clips['missing'], 'is', 'are')} not where the "
        yield _finding(LOOK, "clips", text + "config says")
    open_cases = total - clips["compared"]
    rest = f"; {open_cases:,} of {count(total, 'clip')} could not be compared" if open_cases else ""
    if clips["duplicates"] is None:
        yield _finding(LOOK, "clips", f"{clips['reason']}: duplicates are not known")
    elif number := len(clips["across_splits"]):
        text = f"{count(number, 'clip')} {_have(number)} different names in more than one split{rest}"
        yield _finding(PROBLEM, "clips", text)
    elif number := len(clips["duplicates"]):
        yield _finding(LOOK, "clips", f"{count(number, 'clip')} {_have(number)} more than one name{rest}")
    elif clips["compared"] > 1:
        text = f"no two of the {clips['compared']:,} clips that were compared have the same content{rest}"
        yield _finding(LOOK if rest else OK, "clips", text)
    elif rest:
        yield _finding(LOOK, "clips", f"duplicate clips are not known{rest}")
    if clips["identical_pairs"] and (number := clips["identical_pairs"]["count"]):
        yield _finding(PROBLEM, "clips", f"{count(number, 'comparison')} between two equal clips")


def _find_responses(responses: Mapping[str, Any] | None) -> Iterator[Finding]:
    if responses is None:
        return
    if number := responses["identical_pairs"]["count"]:
        yield _finding(PROBLEM, "responses", f"{count(number, 'comparison')} between two equal responses")
    if number := responses["num_across_splits"]:
        text = f"{count(number, 'response')} {_are(number)} word for word in several splits, under another name"
        yield _finding(PROBLEM, "responses", text)
    elif number := responses["num_duplicates"]:
        text = f"{count(number, 'response')} {_have(number)} more than one name, word for word"
        yield _finding(LOOK, "responses", text)
    elif responses["responses"] > 1:
        yield _finding(OK, "responses", f"no two of the {responses['responses']:,} responses are the same")


def _find_conflicts(conflicts: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    most = 0
    for name, repeats in conflicts["repeated_pairs"].items():
        number, most = repeats["contradictory"], max(most, repeats["pairs"])
        if number:
            text = (
                f"{number:,} of {count(repeats['pairs'], 'pair')} with several {words(name)} labels "
                f"{verb(number, 'contradicts itself', 'contradict themselves')}"
            )
            yield _finding(PROBLEM if number / repeats["pairs"] > 0.5 else LOOK, "conflicts", text)
    if most and not any(repeats["contradictory"] for repeats in conflicts["repeated_pairs"].values()):
        text = f"{'the' if most == 1 else 'all'} {count(most, 'pair')} labelled more than once "
        yield _finding(OK, "conflicts", text + f"{verb(most, 'agrees with itself', 'agree with themselves')}")
    if number := conflicts["is_safe"]["contradictory"]:
        text = f"{count(number, unit)} safe in one record and unsafe in another: training takes that as unknown"
        yield _finding(LOOK, "conflicts", text)
    if number := conflicts["generators"]["contradictory"]:
        text = f"{count(number, unit)} with one generator in one record and another in the next: the first is taken"
        yield _finding(LOOK, "conflicts", text)
    harms = conflicts["harm_labels"]
    for key, what in (
        ("contradictory", "with a harm label that one record gives and another denies"),
        ("safe_with_harm", "called safe, with a harm label"),
        ("unsafe_without_harm", "called unsafe, with none of the 12 harm labels"),
    ):
        if harms[key]:
            yield _finding(LOOK, "conflicts", f"{count(harms[key], unit)} {what}")
    order = conflicts["harmlessness_against_is_safe"]["contradicting"]
    if order["total"]:
        text = (
            f"harmlessness prefers the unsafe {unit} in {order['count']:,} of {count(order['total'], 'pair')} of a "
            f"safe and an unsafe one ({percent(order['share'])}{interval(order['interval'])})"
        )
        sure = _sure(order["share"], order["interval"], order["prompts"], 0.0)
        mark = PROBLEM if sure > CONTRADICTION_PROBLEM else LOOK if order["count"] else OK
        yield _finding(mark, "conflicts", text)


def _find_noise(triangles: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    for name in DIMENSIONS:
        figure = triangles.get(name)
        if figure is None or not figure["closed"]:
            continue
        counts = (
            f"{figure['cyclic']:,} of {count(figure['closed'], 'triangle')} of {words(name)} labels "
            f"{verb(figure['cyclic'], 'goes', 'go')} round in a circle (A over B, B over C, C over A)"
        )
        if figure["ceiling"] is None:
            yield _finding(PROBLEM, "triangles", f"{counts}: {figure['reason']}")
            continue
        is_few = figure["closed"] < FEW_TRIANGLES
        few = f"; fewer than {FEW_TRIANGLES} triangles say little" if is_few else ""
        close = f"{percent(figure['ceiling_bradley_terry'])}{interval(figure['ceiling_bradley_terry_interval'])}"
        text = (
            f"{counts}, a sign of wrong labels: no model can agree with more than about {close} of them if people err "
            f"mostly on similar {unit}s, {percent(figure['ceiling'])}{interval(figure['ceiling_interval'])} if they "
            f"err on all alike{few}"
        )
        # The lower of the two: equal errors give an upper end.
        ceiling, ends = figure["ceiling_bradley_terry"], figure["ceiling_bradley_terry_interval"]
        at_most = ends[1] if ends is not None else 1.0 if is_few else ceiling
        mark = PROBLEM if at_most < CEILING_PROBLEM else LOOK if ceiling < CEILING_LOOK or is_few else OK
        yield _finding(mark, "triangles", text)


def _find_shortcuts(result: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    for split, baselines in result["baselines"].items():
        for name in DIMENSIONS if baselines["generator_only"] else ():
            figure = baselines["generator_only"][name]
            accuracy = figure["accuracy"]
            if accuracy is None:
                continue
            text = (
                f"the generators' names alone predict {percent(accuracy)}{interval(figure['interval'])} of the "
                f"{words(name)} labels of {split}"
            )
            sure = _sure(accuracy, figure["interval"], figure["prompts"], 0.5)
            mark = PROBLEM if sure >= GENERATOR_PROBLEM else LOOK if accuracy >= GENERATOR_LOOK else OK
            yield _finding(mark, "baselines", text)
        auroc = baselines["prompt_only_unsafe"]["auroc"]
        if auroc is not None:
            text = (
                f"the words of the prompt alone distinguish an unsafe {unit} of {split} from a safe one in "
                f"{percent(auroc)} of cases (AUROC; 50% is guessing): a cost model has to beat that"
            )
            yield _finding(LOOK if auroc >= PROMPT_LOOK else OK, "baselines", text)


def _find_balance(balance: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    preferences = balance["preferences"] or {}
    absent = [
        words(name) for name, counts in preferences.items() if not counts["video_0"] + counts["video_1"] + counts["tie"]
    ]
    if absent:
        yield _finding(LOOK, "balance", f"no pair is labelled for {', '.join(absent)}")
    for name, counts in preferences.items():
        labelled = counts["video_0"] + counts["video_1"] + counts["tie"]
        if (missing := counts["missing"]) and labelled:
            all_pairs = count(missing + labelled, "pair")
            text = f"{missing:,} of {all_pairs} {verb(missing, 'lacks', 'lack')} a {words(name)} label"
            yield _finding(LOOK, "balance", text)
        place = counts["share_video_0"]
        if place["interval"] and abs(place["share"] - 0.5) > POSITION_LOOK * (
            place["interval"][1] - place["interval"][0]
        ):
            text = (
                f"{percent(place['share'])}{interval(place['interval'])} of the {words(name)} labels name video_0: "
                "the place predicts the label; shuffle the sides"
            )
            mark = PROBLEM if abs(place["share"] - 0.5) > POSITION_PROBLEM else LOOK
            yield _finding(mark, "balance", text)
    safe = balance["is_safe"]
    known = safe["true"] + safe["false"]
    if known:
        mark = LOOK if min(safe["true"], safe["false"]) < RARE_CLASS else OK
        text = (
            f"of {count(known, unit)} with an is_safe label {safe['true']:,} ({percent(safe['share_true'])}) "
            f"{verb(safe['true'], 'is', 'are')} safe, {safe['false']:,} {verb(safe['false'], 'is', 'are')} not"
        )
        yield _finding(mark, "balance", text)
    elif safe["unknown"]:
        yield _finding(LOOK, "balance", f"no {unit} has an is_safe label: a cost model cannot learn where zero is")
    if number := balance["generators_taken_as_one"]:
        text = (
            f"{number:,} generators beyond the {len(balance['generators']) - 1} most frequent are taken as one; is "
            "generated_from a name?"
        )
        yield _finding(LOOK, "balance", text)
    rare = [f"{harm['name']} ({harm['true']})" for harm in balance["harm_labels"].values() if harm["true"] < RARE_CLASS]
    if any(harm["true"] + harm["false"] for harm in balance["harm_labels"].values()) and rare:
        text = (
            f"{count(len(rare), 'harm')} with fewer than {RARE_CLASS} {unit}s, too few for a figure: {'; '.join(rare)}"
        )
        yield _finding(LOOK, "balance", text)


def _find_shape(graph: Mapping[str, Any], unit: str) -> Iterator[Finding]:
    for name in DIMENSIONS:
        if name not in graph or not graph[name]["comparisons"]:
            continue
        between, resistance = graph[name]["same_prompt_pairs"], graph[name]["resistance"]["same_prompt"]
        text = (
            f"{words(name)} labels order {percent(between['share_connected'])} of all pairs of {unit}s of one prompt, "
            f"directly or through other {unit}s"
        )
        if resistance:
            text += f"; at the median that is worth {1 / resistance['median']:.1f} direct comparisons of the pair"
        yield _finding(OK if between["share_connected"] >= CONNECTED_LOOK else LOOK, "graph", text)


def _are(number: int) -> str:
    return verb(number, "is", "are")


def _have(number: int) -> str:
    return verb(number, "has", "have")
