"""The page of the reward server in a real browser: on a real model, by mouse and by keyboard, and when things fail."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip
from running_server import running_server
from small_models import write_reward_and_cost

from safe_rlhf_video import lagrangian
from safe_rlhf_video.scoring.decisions import judge_ranking
from safe_rlhf_video.scoring.harms import Moderation
from safe_rlhf_video.serving.page_files import PAGE_POLICY, read_page_files

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

KEY = "a-key-of-the-page-s-own-test"
PROMPT = "a red circle moving left at night"


@dataclass
class Visit:
    """An open page, and all that went on behind it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        found: str = self.page.inner_text(selector)
        return found

    def chosen(self) -> list[str]:
        """The letters of the cards that are marked."""
        found: list[str] = self.page.eval_on_selector_all(".clip.is-chosen", "all => all.map(one => one.dataset.clip)")
        return found

    def focused(self) -> str:
        found: str = self.page.evaluate("document.activeElement.id || document.activeElement.className")
        return found

    def enter(self) -> None:
        self.page.fill("#key", KEY)
        self.page.press("#key", "Enter")
        self.page.wait_for_selector("#key-form", state="hidden")

    def score(self, clips: list[Path], prompt: str = PROMPT) -> dict[str, Any]:
        """Add clips and score them; returns the server's answer."""
        self.page.fill("#prompt", prompt)
        self.page.set_input_files("#files", clips)
        with self.page.expect_response("**/rank") as answered:
            self.page.click("#score")
        self.page.wait_for_selector("#choice")
        answer: dict[str, Any] = answered.value.json()
        return answer


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three clips that a browser plays; the third's name is an attack."""
    folder = tmp_path_factory.mktemp("clips")
    names = ("one.mp4", "two.mp4", "<img src=x onerror=alert(1)>.mp4")
    seeds = (4, 0, 2)  # the model of these tests finds the first more helpful and less safe than the second
    return [write_clip(folder / name, seed=seed) for seed, name in zip(seeds, names, strict=True)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """scripts/serve.py on a small model, with a key."""
    base = tmp_path_factory.mktemp("served")
    models = write_reward_and_cost(base)
    with running_server(base, "--model", *models, "--workers", 1, key=KEY) as started:
        yield f"http://127.0.0.1:{started.port}"


# What a server would answer that has every kind of head: A is harmful and helpful, C is beaten by B.
SCORES = {
    "reward": (2.1, 1.4, -0.2),
    "cost": (2.3, -1.4, -0.9),
    "instruction_following": (1.2, -0.3, 0.5),
    "aesthetics": (-0.2, 0.9, 0.0),
}
HARMS = [
    Moderation({"any": 0.93, "violence": 0.81}, ("any", "violence"), ("S8 Violence",), {"any": True}, {"any": None}),
    Moderation({"any": 0.02, "violence": 0.01}, (), (), {"any": True, "violence": True}, {"any": None}),
]
MODEL = {
    "fingerprint": "0123456789abcdef",
    "backbone": "/folder/backbone",
    "heads": [*SCORES],
    "lagrange_multiplier": 1.0,
    "cost_limit": 0.0,
    "multiplier_source": "the default",
    "weighed": "cost",
    "limits": {"max_videos": 3, "max_body_mb": 64.0},
}
NOWHERE = "http://page.test"


def answer_prepared(route: Any, model: Mapping[str, Any], scores: Mapping[str, Sequence[float]]) -> None:
    """The page's files, and a ranking that no model made."""
    request = route.request
    path = request.url.removeprefix(NOWHERE)
    if path in ("/model", "/rank"):
        if request.headers.get("authorization") != f"Bearer {KEY}":
            route.fulfill(status=401, json={"error": "key: missing or wrong"})
        elif path == "/model":
            route.fulfill(json=model)
        else:
            number = request.post_data_buffer.count(b'name="videos"')
            answer = judge_ranking({head: values[:number] for head, values in scores.items()}).to_dict()
            answer["percentiles"] = {"reward": (93.2, 71.0, 3.0)[:number], "cost": (98.0, 4.0, 10.0)[:number]}
            route.fulfill(json=answer | {"harms": [HARMS[min(at, 1)].to_dict() for at in range(number)]})
        return
    file = read_page_files()["index.html" if path == "/" else path.removeprefix("/page/")]
    route.fulfill(body=file.content, content_type=file.media_type, headers={"Content-Security-Policy": PAGE_POLICY})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def open_page(
    browser: Any,
    address: str,
    model: Mapping[str, Any] = MODEL,
    scores: Mapping[str, Sequence[float]] = SCORES,
    **options: Any,
) -> Visit:
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options})
    page.set_default_timeout(20_000)
    visit = Visit(page)
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("console", lambda message: visit.problems.append(message.text) if message.type == "error" else None)
    if address == NOWHERE:
        page.route("**/*", lambda route: answer_prepared(route, model, scores))
    page.on("filechooser", lambda chooser: None)  # from now on: what is only now waited for may open too early
    page.goto(address)
    return visit


SERVED = [NOWHERE, pytest.param("server", marks=pytest.mark.slow)]


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """Where the page is: at prepared answers, or at a real server."""
    asked: str = getattr(request, "param", "server")
    return asked if asked == NOWHERE else request.getfixturevalue("server")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """The page, after its key was given."""
    opened = open_page(browser, address)
    opened.page.wait_for_selector("#key-form")
    opened.problems.clear()  # the browser reports the 401
    opened.enter()
    yield opened
    opened.page.close()


@pytest.mark.parametrize("heads", [("reward",), ("cost",), ("aesthetics",)])
def test_models_that_cannot_weigh(browser: Any, clips: list[Path], heads: tuple[str, ...]) -> None:
    """One of reward and cost orders the clips, with neither there are scores; the page says what is missing."""
    scores = {head: SCORES[head] for head in heads}
    ranking = judge_ranking(scores)
    opened = open_page(browser, NOWHERE, model={**MODEL, "heads": list(heads)}, scores=scores)
    opened.page.wait_for_selector("#key-form")
    opened.problems.clear()
    opened.enter()
    opened.score(clips)
    page = opened.page
    assert not page.is_visible("#settings")
    assert not page.is_visible("#figures")
    assert page.locator(".clip dd").count() > 0
    if ranking.order is None:
        assert opened.text("#chosen") == "No order"
        assert "neither a reward nor a cost model" in opened.text("#model")
        assert opened.chosen() == []
        assert opened.text("#reason").lower() == ranking.reason.lower()
    else:
        names = "ABC"
        first = names[ranking.order[0]]
        assert opened.text("#chosen") == f"{first} is chosen by {heads[0]} alone"
        assert opened.chosen() == [first]
        reason = re.sub(r"videos\[(\d)\]", lambda found: names[int(found[1])], ranking.reason)
        assert opened.text("#reason") == reason
        assert f"no {'cost' if heads == ('reward',) else 'reward'} model" in opened.text("#model")
    assert opened.problems == []
    page.close()


# --- what the page computes by itself --------------------------------------------------------------------------------

COMPUTE = """async ([points, lambda, limit, weighed]) => {
  const page = await import("/page/page.js");
  return {
    scores: points.map((point) => page.lagrangianScore(point.reward, point.cost, lambda, limit, weighed)),
    order: page.rank(points, lambda, weighed),
    front: page.paretoFront(points),
    choices: page.findChoices(points, weighed),
    reason: page.explainChoice(...page.rank(points, lambda, weighed).slice(0, 2).map((at) => points[at]), lambda,
      limit, weighed),
    alone: [["reward", points[0].reward, points[1].reward], ["cost", points[0].cost, points[1].cost]].map(
      ([head, one, other]) => page.explainChoiceByOne(head, { name: "v1", score: one }, { name: "v2", score: other })),
  };
}"""


@pytest.mark.parametrize("address", [NOWHERE], indirect=True)
def test_the_browser_computes_what_the_package_does(visit: Visit) -> None:
    rng = np.random.default_rng(0)
    for trial in range(150):
        number = int(rng.integers(2, 7))
        # Few different values in every third trial: ties, and points that are equal in one or both.
        decimals = 0 if trial % 3 == 0 else 4
        rewards, costs = rng.normal(0, 2, (2, number)).round(decimals)
        multiplier, limit = float(rng.choice([0.0, 1.0, rng.exponential()])), float(rng.normal().__round__(2))
        points = [
            {"name": f"v{at}", "reward": float(reward), "cost": float(cost)}
            for at, (reward, cost) in enumerate(zip(rewards, costs, strict=True))
        ]
        weighed = ("cost", "p_unsafe")[trial % 2]
        found = visit.page.evaluate(COMPUTE, [points, multiplier, limit, weighed])
        scores = lagrangian.lagrangian_score(rewards, costs, multiplier, limit, weighed)
        net = lagrangian.net_reward(rewards, costs, multiplier, weighed)
        order = np.array(lagrangian.order_candidates(net, lagrangian.weigh(costs, weighed)))
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-12, atol=1e-12)
        assert found["order"] == order.tolist()
        assert found["front"] == lagrangian.pareto_front(rewards, costs).tolist()
        first, second = order[:2]
        pair = [(float(values[first]), float(values[second])) for values in (rewards, costs)]
        preferred = lagrangian.choose(float(net[first]), float(net[second]))
        names = (f"v{first}", f"v{second}")
        assert found["reason"] == lagrangian.explain_choice(*pair, multiplier, limit, preferred, names, weighed)
        for head, alone, sentence in zip(("reward", "cost"), (rewards, costs), found["alone"], strict=True):
            sign = 1 if head == "reward" else -1
            two = [float(value) for value in alone[:2]]
            if lagrangian.choose(sign * two[0], sign * two[1]) != "v2":  # the page names the better one first
                expected = lagrangian.explain_choice_by_one(
                    head, (two[0], two[1]), lagrangian.choose(sign * two[0], sign * two[1])
                )
                assert sentence == expected
        # Between two flips the same one is best; at a flip the two that change places are equally good.
        choices = found["choices"]
        assert choices[0]["from"] == 0
        edges = [choice["from"] for choice in choices]
        assert edges == sorted(edges)
        for at, choice in enumerate(choices):
            end = choices[at + 1]["from"] if at + 1 < len(choices) else edges[-1] + 10
            for inside in ((edges[at] + end) / 2, end if at + 1 < len(choices) else edges[at]):
                values = rewards - inside * lagrangian.weigh(costs, weighed)
                assert values[choice["at"]] == pytest.approx(values.max(), abs=1e-9)


@pytest.mark.parametrize("address", [NOWHERE], indirect=True)
def test_slider_is_logarithmic_with_zero_included(visit: Visit) -> None:
    places = list(range(402))
    script = """async (places) => { const page = await import("/page/page.js");
        return places.map((place) => [page.lambdaOf(place), page.placeOf(page.lambdaOf(place))]); }"""
    found = visit.page.evaluate(script, places)
    multipliers = [one for one, _ in found]
    assert multipliers[0] == 0
    assert multipliers == sorted(set(multipliers))
    assert (multipliers[1], multipliers[201], multipliers[401]) == (0.01, 1, 100)
    assert [round(place) for _, place in found] == places


# --- in use ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", SERVED, indirect=True)
def test_the_choice_flips_with_lambda_and_nothing_leaves_the_origin(
    visit: Visit, clips: list[Path], address: str
) -> None:
    page = visit.page
    assert page.is_visible("#empty")
    answer = visit.score(clips[:2])
    rewards, costs = answer["rewards"], answer["costs"]
    helpful, safe = ("A", "B") if rewards[0] > rewards[1] else ("B", "A")
    assert (costs[0] > costs[1]) == (helpful == "A"), "seeds of `clips` no longer fit"
    flip = (rewards[0] - rewards[1]) / (costs[0] - costs[1])
    num_requests = len(visit.requests)

    page.fill("#lambda", "0")
    assert visit.text("#chosen").startswith(f"{helpful} is chosen")
    assert visit.chosen() == [helpful]
    assert "lambda = 0 ignores cost" in visit.text("#reason")
    page.fill("#lambda", str(1.05 * flip))
    assert visit.text("#chosen").startswith(f"{safe} is chosen")
    assert visit.chosen() == [safe]
    page.fill("#lambda", str(0.95 * flip))
    assert visit.chosen() == [helpful]
    assert f"flips at lambda = {flip:.3g} ({helpful} to {safe})" in visit.text("#flips")
    parts = page.eval_on_selector_all("#lambda-strip .part", "all => all.map((one) => one.textContent)")
    assert len(parts) == 2
    # By mouse: the ends of the slider.
    box = page.locator("#lambda-slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert visit.chosen() == [safe]
    page.mouse.click(box["x"] + 4, box["y"] + box["height"] / 2)
    assert visit.chosen() == [helpful]
    assert page.input_value("#lambda") == "0"

    # The limit says which clips are within it, and moves no choice.
    for limit, within in ((max(costs) + 1, 2), (sum(costs) / 2, 1), (min(costs) - 1, 0)):
        page.fill("#limit", str(limit))
        assert page.locator(".clip.is-over").count() == 2 - within
        assert visit.chosen() == [helpful]
        said = visit.text("#within")
        assert ("No clip is within the limit" in said) == (within == 0)
        assert (f"Within the limit: {safe}." == said) == (within == 1)
    page.fill("#limit", str(sum(costs) / 2))
    assert f"{safe}; a lambda above {flip:.3g} chooses it" in visit.text("#best")
    page.fill("#lambda", "-1")
    assert visit.text("#lambda-problem") == "Lambda is a number from 0 to a million."
    assert visit.chosen() == [helpful]
    page.click("#defaults")
    assert (page.input_value("#lambda"), page.input_value("#limit")) == ("1", "0")
    assert not visit.text("#lambda-problem")

    # The plot and the table have the same points.
    assert page.locator("#plot [data-point]").count() == 2
    assert page.eval_on_selector_all("#numbers tr", "all => all.length") == 2
    assert f"{rewards[0]:.2f}" in page.get_attribute("#plot svg", "aria-label")
    assert len(visit.requests) == num_requests
    assert all(url.startswith((address, f"blob:{address}")) for url in visit.requests)
    assert visit.problems == []


@pytest.mark.slow
def test_with_the_keyboard_alone(visit: Visit, clips: list[Path]) -> None:
    page = visit.page
    keys = page.keyboard
    assert visit.focused() == "prompt"  # after the key
    keys.type(PROMPT)
    keys.press("Tab")
    assert visit.focused() == "choose"
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files([*clips])
    keys.press("Tab")
    assert visit.focused() == "score"
    keys.press("Enter")
    page.wait_for_selector("#choice")
    seen = []
    for _ in range(40):
        keys.press("Tab")
        seen.append(visit.focused())
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outlined != "none", seen[-1]
        if seen[-1] == "lambda-slider":
            keys.press("Home")
            assert page.input_value("#lambda") == "0"
            at_zero = visit.chosen()
            keys.press("End")
            assert page.input_value("#lambda") == "100"
            assert visit.chosen() != at_zero
            keys.press("ArrowLeft")
            assert page.input_value("#lambda") == "97.7"
            assert page.get_attribute("#lambda-slider", "aria-valuetext").startswith("lambda 97.7, chooses ")
        if seen[-1] == "limit-slider":
            keys.press("Home")
            assert visit.text("#within") == "No clip is within the limit."
        if seen[-1] == "remove":
            break
    assert [name for name in seen if name in ("lambda", "lambda-slider", "limit", "limit-slider", "play")] == [
        *("lambda", "lambda-slider", "limit", "limit-slider", "play")
    ]
    keys.press("Enter")
    assert page.locator(".clip").count() == 2
    assert visit.focused() == "remove"  # of the next clip: the focus is not lost
    assert visit.problems == []


@pytest.mark.slow
def test_clips_come_and_go(visit: Visit, clips: list[Path], tmp_path: Path) -> None:
    page = visit.page
    drop = """([name, data]) => {
      const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
      const carried = new DataTransfer();
      carried.items.add(new File([bytes], name));
      for (const kind of ["dragover", "drop"]) {
        document.querySelector("main").dispatchEvent(
          new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
      }
    }"""
    unplayable = write_clip(tmp_path / "three.mkv", codec="ffv1", seed=3)
    for clip in (clips[2], unplayable):
        page.evaluate(drop, [clip.name, base64.b64encode(clip.read_bytes()).decode()])
    page.wait_for_selector("text=This browser cannot play the file")
    assert visit.text(".clip[data-clip=A] .name") == clips[2].name  # a text, and no element
    visit.score([clips[0]])
    assert page.locator(".clip .scores").count() == 3
    # A clip that is added has no scores yet; the others keep theirs, and their letters.
    page.set_input_files("#files", [clips[1]])
    assert visit.text(".clip[data-clip=D]").count("Not scored yet") == 1
    assert page.locator("#numbers tr").count() == 3
    page.click(".clip[data-clip=A] .remove")
    page.click(".clip[data-clip=C] .remove")
    assert visit.text("#chosen") == "B is the only scored clip"
    with page.expect_response("**/rank"):
        page.click("#score")
    page.wait_for_selector("#numbers tr:nth-child(2)")
    page.fill("#prompt", "another one")
    assert "score again" in visit.text("#stale")
    page.fill("#prompt", PROMPT)
    assert page.is_hidden("#stale")
    for letter in "BD":
        page.click(f".clip[data-clip={letter}] .remove")
    assert page.is_visible("#empty")
    assert page.is_hidden("#settings")
    # The same clip twice has the same scores.
    visit.score([clips[0], clips[0]])
    assert visit.text("#chosen") == "Tie: A and B have equal scores"
    assert visit.chosen() == ["A", "B"]
    assert "neither is preferred: both have reward" in visit.text("#reason").lower()
    assert visit.text("#flips") == "No lambda flips the choice: A and B tie at all of them."
    assert visit.problems == []


@pytest.mark.slow
def test_what_goes_wrong_is_said_in_place(visit: Visit, clips: list[Path], tmp_path: Path) -> None:
    page = visit.page
    page.click("#score")
    assert visit.text("#problem") == "Write the prompt that the clips were generated from."
    assert visit.focused() == "prompt"
    page.fill("#prompt", PROMPT)
    page.set_input_files("#files", [clips[0]])
    page.click("#score")
    assert visit.text("#problem") == "Add one more clip: a choice needs two."
    broken = tmp_path / "broken.mp4"
    broken.write_text("no clip at all")
    page.set_input_files("#files", [broken])
    page.click("#score")
    page.wait_for_selector("#problem:has-text('broken.mp4')")
    assert visit.text("#problem").startswith("Clip B (broken.mp4)")
    assert "\n" not in visit.text("#problem")
    assert page.is_hidden("#choice")
    page.click(".clip[data-clip=B] .remove")
    page.set_input_files("#files", [clips[1]])
    assert page.is_hidden("#retry")  # as it is, it would fail again
    page.click("#score")
    page.wait_for_selector("#choice")
    assert page.is_hidden("#failure")
    page.context.set_offline(True)
    page.click("#score")
    page.wait_for_selector("#problem:has-text('No answer from the server')")
    page.context.set_offline(False)
    page.click("#retry")
    page.wait_for_selector("#failure", state="hidden")


@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_nowhere(browser: Any, server: str, clips: list[Path]) -> None:
    visit = open_page(browser, server)
    page = visit.page
    page.wait_for_selector("#key-form")
    assert page.get_attribute("#key", "type") == "password"
    assert visit.focused() == "key"
    page.fill("#key", "a wrong one")
    page.press("#key", "Enter")
    page.wait_for_selector("#key-problem:has-text('does not accept')")
    visit.enter()
    assert visit.text("#model").startswith("Model ")
    visit.score(clips[:2])
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert kept == '[{},{},""]'
    assert KEY not in page.content()
    page.reload()
    page.wait_for_selector("#key-form")
    page.close()


# --- how it looks ----------------------------------------------------------------------------------------------------

# What a checker of accessibility would look at first.
INSPECT = """() => {
  const found = [];
  const isShown = (one) => one.checkVisibility({ visibilityProperty: true }) && one.getClientRects().length > 0;
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) found.push("an id is there twice");
  for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const one of document.querySelectorAll(`[${name}]`)) {
      for (const id of one.getAttribute(name).split(" ")) if (!ids.includes(id)) found.push(`${name} ${id} is nowhere`);
    }
  }
  for (const one of document.querySelectorAll("input, textarea, button, summary, video, progress, svg[role]")) {
    const label = one.labels?.[0]?.textContent || one.getAttribute("aria-label") || one.textContent
      || ids.includes(one.getAttribute("aria-labelledby"));
    if (!label) found.push(`no name: ${one.outerHTML.slice(0, 80)}`);
  }
  if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) {
    found.push("one h1 and one main are expected");
  }
  const width = document.documentElement.clientWidth;
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  for (const one of document.querySelectorAll("body *")) {
    if (!isShown(one) || one.closest(".scroll, .strip")) continue;
    const box = one.getBoundingClientRect();
    if (box.left < -0.5 || box.right > width + 0.5) found.push(`sticks out: ${one.outerHTML.slice(0, 80)}`);
    const hasText = [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!hasText || one.closest(".screen")) continue;
    let behind = one;
    while (behind && read(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const style = getComputedStyle(one);
    const shades = [light(read(one.closest("svg") ? style.fill : style.color)),
      light(read(getComputedStyle(behind ?? document.body).backgroundColor))].sort((a, b) => b - a);
    const contrast = (shades[0] + 0.05) / (shades[1] + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 80)}`);
  }
  if (document.documentElement.scrollWidth > width) found.push(`${document.documentElement.scrollWidth} wide`);
  return found;
}"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Any, clips: list[Path], width: int, scheme: str) -> None:
    visit = open_page(browser, NOWHERE, viewport={"width": width, "height": 844}, color_scheme=scheme)
    visit.page.wait_for_selector("#key-form")
    assert visit.page.evaluate(INSPECT) == []
    visit.enter()
    assert visit.page.evaluate(INSPECT) == []
    visit.score(clips)
    assert "S8 Violence (81%)" in visit.text(".clip[data-clip=A] .harms")
    assert "No harm is flagged" in visit.text(".clip[data-clip=B] .harms")
    assert "more helpful than 93% of the reference clips" in visit.text(".clip[data-clip=A] .scores")
    assert "beaten" in visit.text(".clip[data-clip=C] .tags")
    assert visit.page.locator(".clip[data-clip=A] [data-sub]").count() == 2
    for limit in ("-100", "100"):
        visit.page.fill("#limit", limit)
        assert visit.page.evaluate(INSPECT) == []
    assert visit.page.evaluate("document.getAnimations().length") == 0  # as the system's setting asks
    visit.page.set_input_files("#files", clips[0])
    visit.page.click("#score")
    assert visit.text("#problem") == "This server takes 3 clips at once: remove 1."
    visit.page.close()
