// Clips of one prompt, scored once by the server; what lambda and the limit make of the scores is computed here.

// --- the Lagrangian, as safe_rlhf_video/lagrangian computes it; tests hold each function to it -----------------------

export const TIE_TOLERANCE = 1e-5;
const MOST = 1e6;  // of lambda and the limit, as the server takes them
const MAX_DECIMALS = 9;

/** What lambda is the price of: the cost itself, or P(unsafe). */
export function weigh(cost, weighed = "cost") {
  return weighed === "p_unsafe" ? 0.5 * (1 + Math.tanh(0.5 * cost)) : cost;
}

export function lagrangianScore(reward, cost, lambda, limit, weighed = "cost") {
  return (reward - lambda * (weigh(cost, weighed) - weigh(limit, weighed))) / (1 + lambda);
}

/** What choices and orders go by: without the limit and the division, so that ties do not depend on lambda. */
export function netReward(reward, cost, lambda, weighed = "cost") {
  return reward - lambda * weigh(cost, weighed);
}

/** Indices of points {reward, cost}, best first; of those that tie the least harmful first, equal ones in their order. */
export function rank(points, lambda, weighed = "cost") {
  const net = points.map((point) => netReward(point.reward, point.cost, lambda, weighed));
  const weight = points.map((point) => weigh(point.cost, weighed));
  const order = [];
  let left = points.map((_, at) => at).sort((a, b) => net[b] - net[a] || weight[a] - weight[b] || a - b);
  while (left.length) {
    const best = net[left[0]];
    const tied = left.filter((at) => best - net[at] <= TIE_TOLERANCE);
    order.push(...tied.sort((a, b) => weight[a] - weight[b] || net[b] - net[a] || a - b));
    left = left.filter((at) => best - net[at] > TIE_TOLERANCE);
  }
  return order;
}

/** Indices of the points that no other beats, by rising cost; equal ones stay together. */
export function paretoFront(points) {
  const beats = (one, other) => one.reward >= other.reward && one.cost <= other.cost
    && (one.reward > other.reward || one.cost < other.cost);
  return points.map((_, at) => at)
    .filter((at) => !points.some((other) => beats(other, points[at])))
    .sort((a, b) => points[a].cost - points[b].cost || a - b);
}

/** Which point each lambda >= 0 puts first: [{at, from}] by rising lambda, the first from 0. */
export function findChoices(given, weighed = "cost") {
  if (!given.length) return [];
  const points = given.map(({ reward, cost }) => ({ reward, cost: weigh(cost, weighed) }));
  const first = (candidates, from) => ({
    at: candidates.reduce((a, b) => {
      const [one, other] = [points[a], points[b]];
      const isBetter = other.reward > one.reward || (other.reward === one.reward && other.cost < one.cost);
      return isBetter ? b : a;
    }),
    from,
  });
  const choices = [first(points.map((_, at) => at), 0)];
  for (;;) {
    // Of the cheaper points, the one whose line reward - lambda cost is the first to be crossed; then the cheapest.
    const { at, from } = choices[choices.length - 1];
    let next = null;
    points.forEach((point, other) => {
      if (!(point.cost < points[at].cost)) return;
      const crossing = Math.max(from, (points[at].reward - point.reward) / (points[at].cost - point.cost));
      if (next === null || crossing < next.from || (crossing === next.from && point.cost < points[next.at].cost)) {
        next = { at: other, from: crossing };
      }
    });
    if (next === null) return choices;
    choices.push(next);
  }
}

function roundsTo(value, decimals) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? (0).toFixed(decimals) : text;
}

/** Fewest decimals, 2 to 9, at which different values look different. */
function countDecimals(...values) {
  for (let decimals = 2; decimals < MAX_DECIMALS; decimals += 1) {
    if (new Set(values.map((value) => roundsTo(value, decimals))).size === new Set(values).size) return decimals;
  }
  return MAX_DECIMALS;
}

function signed(value, decimals) {
  const text = roundsTo(value, decimals);
  return text.startsWith("-") ? text : `+${text}`;
}

/** Why the first of two points {name, reward, cost} is preferred to the second, or why neither is, in a sentence. */
export function explainChoice(winner, loser, lambda, limit, weighed = "cost", hasZero = true) {
  const over = hasZero ? "unsafe" : "over the limit";
  const pair = [winner, loser];
  const scores = pair.map((point) => netReward(point.reward, point.cost, lambda, weighed));
  const rewardDecimals = countDecimals(winner.reward, loser.reward);
  const costDecimals = countDecimals(winner.cost, loser.cost, limit);
  const reward = (point) => roundsTo(point.reward, rewardDecimals);
  const cost = (point) => signed(point.cost, costDecimals);
  const limitText = roundsTo(limit, costDecimals);
  const at = `at lambda = ${roundsTo(lambda, countDecimals(lambda, 0))}`;
  const isOnlyOver = (point, other) => point.cost > limit && limit >= other.cost;

  let reason;
  if (Math.abs(scores[0] - scores[1]) <= TIE_TOLERANCE) {
    const isOrdered = winner.reward > loser.reward || (winner.reward === loser.reward && winner.cost <= loser.cost);
    const [first, second] = isOrdered ? pair : [loser, winner];
    const numbers = `${first.name} has reward ${reward(first)} and cost ${cost(first)}, `
      + `${second.name} has reward ${reward(second)} and cost ${cost(second)}`;
    if (first.reward === second.reward && first.cost === second.cost) {
      reason = `neither is preferred: both have reward ${reward(first)} and cost ${cost(first)}`;
    } else if (lambda === 0) {
      reason = `neither is preferred: ${numbers}; the rewards are equal within the tolerance, `
        + "and lambda = 0 ignores cost";
    } else {
      reason = `neither is preferred: ${numbers}, and ${at} their scores are equal within the tolerance`;
    }
  } else if (lambda === 0) {
    reason = `${winner.name} is preferred: it is more helpful (reward ${reward(winner)} against ${reward(loser)}), `
      + "and lambda = 0 ignores cost";
    if (isOnlyOver(winner, loser)) reason += `; it is ${over} (cost ${cost(winner)} > limit ${limitText})`;
  } else if (winner.reward >= loser.reward && winner.cost <= loser.cost) {
    const helpful = winner.reward === loser.reward
      ? `equally helpful (reward ${reward(winner)})`
      : `more helpful (reward ${reward(winner)} against ${reward(loser)})`;
    const safe = winner.cost === loser.cost
      ? `equally safe (cost ${cost(winner)})`
      : `safer (cost ${cost(winner)} against ${cost(loser)})`;
    reason = `${winner.name} is preferred: it is ${helpful} and ${safe}`;
  } else {
    const [helpful, safe] = winner.reward > loser.reward ? pair : [loser, winner];
    const harm = isOnlyOver(helpful, safe)
      ? `${over} (cost ${cost(helpful)} > limit ${limitText})`
      : `less safe (cost ${cost(helpful)} against ${cost(safe)})`;
    const price = weighed === "p_unsafe" ? "risk of harm" : "cost";
    const [stronger, weaker] = helpful === winner ? ["reward", price] : [price, "reward"];
    reason = `${winner.name} is preferred: ${helpful === winner ? "it" : helpful.name} is more helpful `
      + `(reward ${reward(helpful)} against ${reward(safe)}) but ${harm}, and ${at} its extra ${stronger} `
      + `outweighs its extra ${weaker}`;
  }
  if (Math.min(winner.cost, loser.cost) > limit) reason += `; both are above the cost limit ${limitText}`;
  return `${reason}.`;
}

/** The same where there is a reward alone, or a cost alone: {name, score} of the first and the second. */
export function explainChoiceByOne(head, winner, loser) {
  const isReward = head === "reward";
  const decimals = isReward ? countDecimals(winner.score, loser.score) : countDecimals(winner.score, loser.score, 0);
  const text = ({ score }) => (isReward ? roundsTo(score, decimals) : signed(score, decimals));
  const [better, missing] = isReward ? ["more helpful", "cost"] : ["safer", "reward"];
  let reason = `${winner.name} is preferred: it is ${better} (${head} ${text(winner)} against ${text(loser)})`;
  if (winner.score === loser.score) {
    reason = `neither is preferred: both have ${head} ${text(winner)}`;
  } else if (Math.abs(winner.score - loser.score) <= TIE_TOLERANCE) {
    const [first, second] = winner.score > loser.score ? [winner, loser] : [loser, winner];
    reason = `neither is preferred: ${first.name} has ${head} ${text(first)}, ${second.name} has ${head} `
      + `${text(second)}, equal within the tolerance`;
  }
  return `${reason}; no ${missing} model says which is ${isReward ? "safer" : "more helpful"}.`;
}

// --- the lambda slider: 0, then 0.01 to 100 on a logarithmic scale ---------------------------------------------------

const LAST_PLACE = 401;
const PLACES_A_DECADE = 100;

export function lambdaOf(place) {
  return place <= 0 ? 0 : Number((10 ** (-2 + (place - 1) / PLACES_A_DECADE)).toPrecision(3));
}

export function placeOf(lambda) {
  if (lambda <= 0.01) return Math.max(0, lambda) / 0.01;
  return Math.min(LAST_PLACE, 1 + PLACES_A_DECADE * (Math.log10(lambda) + 2));
}

/** What the page says of lambda, by what it is the price of. */
const PRICES = {
  "lambda-price": { cost: "price of cost", p_unsafe: "price of P(unsafe)" },
  "lambda-help": {
    cost: "Lambda is how much reward a clip must bring for each unit of cost; at 0 the cost is ignored.",
    p_unsafe: "Lambda is how much reward a clip must bring for its risk: for P(unsafe), the probability of being unsafe "
      + "that follows from its cost; at 0 it is ignored.",
  },
  formula: {
    cost: "Score = (reward − lambda × (cost − limit)) / (1 + lambda).",
    p_unsafe: "Score = (reward − lambda × (P(unsafe) − P(unsafe) at the limit)) / (1 + lambda), "
      + "where P(unsafe) = 1 / (1 + exp(−cost)).",
  },
};

// --- the page --------------------------------------------------------------------------------------------------------

const NUM_COLOURS = 6;
const SVG = "http://www.w3.org/2000/svg";
const find = (id) => document.getElementById(id);
const state = {
  clips: [],
  numAdded: 0,
  key: null,
  defaults: { lambda: 1, limit: 0 },
  limits: {},
  weighed: "cost",
  hasZero: true,  // whether the cost was trained to be above 0 for unsafe clips
  deciding: ["reward", "cost"],  // of these two, what the server has
  lambda: 1,
  limit: 0,
  scoredPrompt: null,
  request: null,
  isWaitingForKey: false,
};

/** An element; texts of files and answers only ever become text nodes. */
function make(tag, attributes = {}, ...children) {
  const element = tag === "svg" || attributes.svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name !== "svg" && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const draw = (tag, attributes, ...children) => make(tag, { ...attributes, svg: true }, ...children);
const short = (value) => String(Number(value.toPrecision(3)));
const words = (head) => head.replaceAll("_", " ");
const own = (clip) => `own${clip.number % NUM_COLOURS}`;
const scored = () => state.clips.filter((clip) => clip.scores !== null);

function listed(texts) {
  return texts.length < 2 ? texts.join("") : `${texts.slice(0, -1).join(", ")} and ${texts[texts.length - 1]}`;
}

function letterOf(number) {
  const last = String.fromCharCode(65 + (number % 26));
  return number < 26 ? last : letterOf(Math.floor(number / 26) - 1) + last;
}

// Clips

function addFiles(files) {
  for (const file of files) {
    const number = state.numAdded;
    state.numAdded += 1;
    const clip = { number, name: letterOf(number), file, url: URL.createObjectURL(file), scores: null };
    state.clips.push(clip);
    find("clips").append(makeCard(clip));
  }
  render();
}

function makeCard(clip) {
  const video = make("video", { controls: "", loop: "", playsinline: "", preload: "auto",
    "aria-label": `Clip ${clip.name}, ${clip.file.name}` });
  video.muted = true;
  const screen = make("div", { class: "screen" }, video);
  const giveUp = () => screen.replaceChildren(
    make("p", {}, "This browser cannot play the file. The server may still be able to score it."));
  video.addEventListener("error", giveUp);
  video.addEventListener("loadedmetadata", () => {
    if (!video.videoWidth) giveUp();  // sound alone
    else screen.style.aspectRatio = Math.min(16 / 9, Math.max(3 / 4, video.videoWidth / video.videoHeight));
  });
  video.addEventListener("pause", renderPlay);
  video.addEventListener("play", renderPlay);
  video.src = clip.url;
  const remove = make("button", { type: "button", class: "remove",
    "aria-label": `Remove clip ${clip.name}, ${clip.file.name}` }, "×");
  remove.addEventListener("click", () => removeClip(clip));
  clip.parts = {
    tags: make("ul", { class: "tags" }),
    body: make("div"),
  };
  clip.card = make("li", { class: `clip ${own(clip)}`, "data-clip": clip.name },
    make("header", {}, make("span", { class: "letter" }, clip.name),
      make("h3", { class: "name", title: clip.file.name }, clip.file.name), remove),
    screen, clip.parts.tags, clip.parts.body);
  fillCard(clip);
  return clip.card;
}

function removeClip(clip) {
  const at = state.clips.indexOf(clip);
  state.clips.splice(at, 1);
  clip.card.remove();
  URL.revokeObjectURL(clip.url);
  const next = state.clips[Math.min(at, state.clips.length - 1)];
  (next ? next.card.querySelector(".remove") : find("choose")).focus();
  if (!state.clips.length) { state.scoredPrompt = null; state.numAdded = 0; }
  render();
}

/** What the server said of a clip; it changes with its scores and not with lambda. */
function fillCard(clip) {
  const { body } = clip.parts;
  if (clip.scores === null) {
    body.replaceChildren(make("p", { class: "dim" }, "Not scored yet."));
    return;
  }
  const { reward, cost, subScores, percentiles, harms } = clip.scores;
  const list = make("dl", { class: "scores" });
  const say = (head, name, text) => {
    list.append(make("dt", { class: "large" }, name), make("dd", { class: "large", "data-head": head }, text));
    if (percentiles[head] !== undefined) {
      const how = head === "cost" ? "more harmful" : "more helpful";
      list.append(make("dd", { class: "wide" }, `${how} than ${percentiles[head].toFixed(0)}% of the reference clips`));
    }
  };
  if (reward !== null) say("reward", "Reward", roundsTo(reward, 2));
  if (cost !== null) say("cost", "Cost", signed(cost, 2));
  if (reward !== null && cost !== null) list.append(make("dt", {}, "Score"), make("dd", { "data-head": "score" }));
  for (const [head, value] of Object.entries(subScores)) {
    const fill = make("span");
    fill.dataset.sub = head;
    list.append(make("dt", { class: "small" }, words(head)), make("dd", { class: "small" }, roundsTo(value, 2)),
      make("dd", { class: "bar", "aria-hidden": "true" }, fill));
  }
  body.replaceChildren(list, ...(harms ? [makeHarms(harms)] : []));
}

function makeHarms(harms) {
  const published = harms.flags.filter((flag) => flag !== "any");
  const nameOf = (flag) => (flag === "any" ? "any harm"
    : harms.names.length === published.length ? harms.names[published.indexOf(flag)] : words(flag));
  const percent = (label) => `${(100 * harms.probabilities[label]).toFixed(0)}%`;
  const flags = harms.flags.length
    ? [make("p", {}, "Harm flags"),
      make("ul", {}, ...harms.flags.map((flag) => make("li", {}, `⚑ ${nameOf(flag)} (${percent(flag)})`)))]
    : [make("p", {}, "No harm is flagged.")];
  const labels = Object.keys(harms.probabilities).sort((a, b) => harms.probabilities[b] - harms.probabilities[a]);
  const isCalibrated = labels.every((label) => harms.calibrated[label]);
  const list = make("dl", { class: "scores" });
  for (const label of labels) {
    list.append(make("dt", { class: "small" }, label === "any" ? "any harm" : words(label)),
      make("dd", { class: "small" }, percent(label)));
  }
  return make("div", { class: "harms" }, ...flags,
    make("details", {}, make("summary", {}, `All ${labels.length} labels${isCalibrated ? "" : ", not calibrated"}`),
      list));
}

// What the scores, lambda and the limit make

function render() {
  const clips = state.clips;
  const ranked = scored();
  find("empty").hidden = clips.length > 0;
  find("side-by-side").hidden = !clips.length;
  find("choice").hidden = !ranked.length;
  for (const id of ["settings", "figures"]) find(id).hidden = !ranked.length || state.deciding.length < 2;
  find("score").textContent = clips.length > 1 ? `Score ${clips.length} clips` : "Score the clips";
  renderPlay();
  if (ranked.length) {
    if (state.deciding.length === 2) renderDecision(ranked);
    else renderWithout(ranked);
    renderStale();
  }
  for (const clip of clips) if (clip.scores === null) renderTags(clip, []);
}

function renderDecision(clips) {
  const { lambda, limit, weighed } = state;
  const points = clips.map((clip) => ({ name: clip.name, reward: clip.scores.reward, cost: clip.scores.cost }));
  const order = rank(points, lambda, weighed);
  const scores = points.map((point) => lagrangianScore(point.reward, point.cost, lambda, limit, weighed));
  const net = points.map((point) => netReward(point.reward, point.cost, lambda, weighed));
  const tied = order.filter((at) => Math.max(...net) - net[at] <= TIE_TOLERANCE);
  const front = paretoFront(points);
  const decision = { clips, points, order, scores, tied, front, choices: findChoices(points, weighed) };
  renderSettings(decision);
  renderChoice(decision);
  renderCards(decision);
  renderTable(decision);
  renderPlot(decision);
}

/** Without a cost the reward orders the clips, without a reward the cost; with neither there are only scores. */
function renderWithout(clips) {
  const [head] = state.deciding;
  const points = clips.map((clip) => ({ name: clip.name, score: head ? clip.scores[head] : 0 }));
  const better = points.map(({ score }) => (head === "cost" ? -score : score));
  const order = points.map((_, at) => at).sort((a, b) => better[b] - better[a] || a - b);
  const [first, second] = order;
  const tied = order.filter((at) => better[first] - better[at] <= TIE_TOLERANCE);
  const isTie = tied.length > 1;
  setText("best", "");
  find("choice").className = !head || isTie ? "" : own(clips[first]);
  if (!head) {
    setText("chosen", "No order");
    setText("reason", "Neither a reward nor a cost model says which is better; the scores are those of other heads.");
  } else if (clips.length < 2) {
    setText("chosen", `${points[first].name} is the only scored clip`);
    setText("reason", "An order needs two: add another clip and score them.");
  } else {
    setText("chosen", isTie ? `Tie: ${listed(tied.map((at) => points[at].name))} have equal scores`
      : `${points[first].name} is chosen by ${head} alone`);
    const reason = explainChoiceByOne(head, points[first], points[second]);
    setText("reason", reason[0].toUpperCase() + reason.slice(1));
    setText("best", `By ${head}: ${order.map((at) => points[at].name).join(", ")}.`);
  }
  fillBars(clips);
  clips.forEach((clip, at) => {
    const isFirst = Boolean(head) && clips.length > 1 && tied.includes(at);
    clip.card.classList.toggle("is-chosen", isFirst);
    clip.card.classList.remove("is-over");
    renderTags(clip, isFirst ? [["won", isTie ? "tie" : "chosen"]] : []);
  });
}

/** Text is set only where it differs, so that a live region speaks when the choice flips and not at every step. */
function setText(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

function renderChoice({ clips, points, order, tied, choices }) {
  const { lambda, limit } = state;
  const [first, second] = order;
  const isTie = tied.length > 1;
  const isOver = points[first].cost > limit;
  find("choice").className = isTie ? "" : own(clips[first]);
  if (clips.length < 2) {
    setText("chosen", `${points[first].name} is the only scored clip`);
    setText("reason", "A choice needs two: add another clip and score them.");
  } else {
    setText("chosen", isTie ? `Tie: ${listed(tied.map((at) => points[at].name))} have equal scores`
      : `${points[first].name} is chosen${isOver ? ", above the limit" : ""}`);
    const reason = explainChoice(points[first], points[second], lambda, limit, state.weighed, state.hasZero);
    const next = clips.length > 2 && !isTie ? ` The runner-up is ${points[second].name}.` : "";
    setText("reason", reason[0].toUpperCase() + reason.slice(1) + next);
  }

  const within = points.map((_, at) => at).filter((at) => points[at].cost <= limit);
  let text = "";
  if (!within.length) {
    const least = points.reduce((a, b) => (b.cost < a.cost ? b : a));
    text = `No clip is within the limit: the least harmful is ${least.name} (cost ${signed(least.cost, 2)}).`;
  } else if (clips.length > 1) {
    const best = within.reduce((a, b) => (points[b].reward > points[a].reward
      || (points[b].reward === points[a].reward && points[b].cost < points[a].cost) ? b : a));
    const range = choices.findIndex((choice) => choice.at === best);
    if (tied.includes(best)) {
      text = `Of the clips within the limit, ${points[best].name} is the most helpful.`;
    } else if (range < 0) {
      text = `The most helpful clip within the limit is ${points[best].name}; no lambda chooses it.`;
    } else {
      const { from } = choices[range];
      const to = choices[range + 1]?.from;
      const when = to === undefined ? `above ${short(from)}` : from === 0 ? `below ${short(to)}`
        : `between ${short(from)} and ${short(to)}`;
      text = `The most helpful clip within the limit is ${points[best].name}; a lambda ${when} chooses it.`;
    }
  }
  setText("best", text);
}

function renderStale() {
  const isStale = find("prompt").value.trim() !== state.scoredPrompt;
  find("stale").hidden = !isStale;
  setText("stale", isStale
    ? `These scores are for the prompt “${state.scoredPrompt}”; score again for the new one.` : "");
}

function renderSettings({ clips, points, choices }) {
  const { lambda, limit } = state;
  const isEqual = (one, other) => one.reward === other.reward && one.cost === other.cost;
  const names = (choice) => points.filter((point) => isEqual(point, points[choice.at])).map((point) => point.name);
  const name = (choice) => listed(names(choice));
  setNumber("lambda", lambda);
  find("lambda-slider").value = placeOf(lambda);
  const current = choices.filter((choice) => choice.from <= lambda).pop();
  find("lambda-slider").setAttribute("aria-valuetext", `lambda ${short(lambda)}, chooses ${name(current)}`);
  const flips = choices.slice(1).map((choice, at) => `${short(choice.from)} (${name(choices[at])} to ${name(choice)})`);
  const only = names(choices[0]).length > 1 ? "tie" : "is best";
  setText("flips", flips.length ? `The choice flips at lambda = ${listed(flips)}.`
    : clips.length > 1 ? `No lambda flips the choice: ${name(choices[0])} ${only} at all of them.` : "");
  find("lambda-strip").replaceChildren(...choices.map((choice, at) => {
    const left = (100 * placeOf(choice.from)) / LAST_PLACE;
    const right = at + 1 < choices.length ? (100 * placeOf(choices[at + 1].from)) / LAST_PLACE : 100;
    const part = make("span", { class: `part ${own(clips[choice.at])}` }, right - left > 5 ? names(choice).join(" ") : "");
    part.style.left = `${left}%`;
    part.style.width = `${right - left}%`;
    return part;
  }));

  const slider = find("limit-slider");
  const values = [...points.map((point) => point.cost), 0, state.defaults.limit, limit];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(high - low || 1)));
  const pad = 0.15 * (high - low || 1);
  // Set only when the range of costs changes: the thumb must not run away while it is held.
  if (slider.dataset.for !== points.map((point) => point.cost).join() || limit < +slider.min || limit > +slider.max) {
    slider.dataset.for = points.map((point) => point.cost).join();
    slider.step = (10 ** -decimals).toFixed(decimals);
    slider.min = (low - pad).toFixed(decimals);
    slider.max = (high + pad).toFixed(decimals);
  }
  setNumber("limit", limit);
  slider.value = limit;
  const share = (cost) => `${Math.min(100, Math.max(0, (100 * (cost - slider.min)) / (slider.max - slider.min)))}%`;
  const allowed = make("span", { class: "allowed" });
  allowed.style.width = share(limit);
  find("limit-strip").replaceChildren(allowed, ...clips.map((clip, at) => {
    const mark = make("span", { class: `mark ${own(clip)}` }, clip.name);
    mark.style.left = share(points[at].cost);
    return mark;
  }));
  const within = points.filter((point) => point.cost <= limit).map((point) => point.name);
  setText("within", within.length ? `Within the limit: ${listed(within)}.` : "No clip is within the limit.");
}

/** A field that is being typed in is left alone, as is what it was refused for. */
function setNumber(id, value) {
  const field = find(id);
  if (document.activeElement === field) return;
  field.value = value;
  refuse(id, "");
}

function renderCards({ clips, points, scores, tied, front }) {
  const { limit } = state;
  fillBars(clips);
  clips.forEach((clip, at) => {
    const isOver = points[at].cost > limit;
    const isFirst = tied.includes(at);
    clip.card.classList.toggle("is-chosen", isFirst && clips.length > 1);
    clip.card.classList.toggle("is-over", isOver);
    const tags = [];
    if (isFirst && clips.length > 1) tags.push(["won", tied.length > 1 ? "tie" : "chosen"]);
    tags.push(isOver ? ["bad", "above limit"] : ["fine", "within limit"]);
    if (!front.includes(at)) tags.push(["", "beaten"]);
    renderTags(clip, tags);
    clip.card.querySelector("[data-head=score]").textContent = roundsTo(scores[at], 2);
  });
}

/** The bars of the sub-dimensions, each on the scale of its largest score. */
function fillBars(clips) {
  const spans = {};
  for (const { scores: { subScores } } of clips) {
    for (const [head, value] of Object.entries(subScores)) {
      spans[head] = Math.max(spans[head] ?? 0, Math.abs(value));
    }
  }
  for (const clip of clips) {
    for (const fill of clip.card.querySelectorAll("[data-sub]")) {
      const share = (50 * clip.scores.subScores[fill.dataset.sub]) / (spans[fill.dataset.sub] || 1);
      fill.style.left = `${50 + Math.min(0, share)}%`;
      fill.style.width = `${Math.abs(share)}%`;
    }
  }
}

function renderTags(clip, tags) {
  clip.parts.tags.replaceChildren(...tags.map(([kind, text]) => make("li", { class: kind }, text)));
  clip.parts.tags.hidden = !tags.length;
  if (clip.scores === null) clip.card.classList.remove("is-chosen", "is-over");
}

function renderTable({ clips, points, order, scores, front }) {
  find("numbers").replaceChildren(...order.map((at) => make("tr", { class: own(clips[at]) },
    make("th", { scope: "row" }, make("span", { class: "letter" }, clips[at].name),
      make("span", { class: "file" }, clips[at].file.name)),
    make("td", {}, roundsTo(scores[at], 3)), make("td", {}, roundsTo(points[at].reward, 3)),
    make("td", {}, signed(points[at].cost, 3)), make("td", {}, points[at].cost <= state.limit ? "yes" : "no"),
    make("td", {}, front.includes(at) ? "yes" : "no"))));
}

// The plot

/** Round numbers within [low, high], about `count` of them. */
function ticksOf(low, high, count) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push([k * step, roundsTo(k * step, decimals)]);
  return found;
}

function renderPlot({ clips, points, order, tied, front }) {
  const { lambda, limit, weighed } = state;
  const width = Math.max(260, Math.round(find("plot").clientWidth));
  const height = Math.round(Math.min(420, Math.max(270, 0.5 * width)));
  const box = { left: 48, right: width - 14, top: 28, bottom: height - 44 };
  const stretch = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.14 * (high - low || 1);
    return [low - pad, high + pad];
  };
  const [x0, x1] = stretch([...points.map((point) => point.cost), limit]);
  const [y0, y1] = stretch(points.map((point) => point.reward));
  const x = (cost) => box.left + ((cost - x0) / (x1 - x0)) * (box.right - box.left);
  const y = (reward) => box.bottom - ((reward - y0) / (y1 - y0)) * (box.bottom - box.top);
  const line = (kind, ax, ay, bx, by) => draw("line", { class: kind, x1: ax, y1: ay, x2: bx, y2: by });
  const write = (text, attributes) => draw("text", attributes, text);

  const parts = [draw("rect", { class: "safe", x: box.left, y: box.top, width: x(limit) - box.left,
    height: box.bottom - box.top })];
  for (const [value, text] of ticksOf(x0, x1, width / 90)) {
    parts.push(write(text, { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }));
  }
  for (const [value, text] of ticksOf(y0, y1, height / 60)) {
    parts.push(line("grid", box.left, y(value), box.right, y(value)),
      write(text, { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }));
  }
  parts.push(draw("path", { class: "axis", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }),
    write("cost (higher: more harmful)", { x: box.right, y: height - 6, "text-anchor": "end" }),
    write("reward (higher: more helpful)", { x: box.left, y: 14 }),
    line("limit", x(limit), box.top, x(limit), box.bottom));
  const isLeft = x(limit) > (box.left + box.right) / 2;
  parts.push(write(`limit ${short(limit)}`, { class: "note-text", x: x(limit) + (isLeft ? -6 : 6), y: box.bottom - 8,
    "text-anchor": isLeft ? "end" : "start" }));

  // Scores are the same all along this line; it is straight where lambda is a price on the cost.
  const best = points[order[0]];
  const inner = draw("g", { "clip-path": "url(#inner)" });
  const along = (cost) => best.reward + lambda * (weigh(cost, weighed) - weigh(best.cost, weighed));
  const steps = Array.from({ length: 101 }, (_, step) => x0 + (step / 100) * (x1 - x0));
  inner.append(draw("polyline", { class: "equal", points: steps.map((cost) => `${x(cost)},${y(along(cost))}`).join(" ") }));
  inner.append(draw("polyline", { class: "front",
    points: front.map((at) => `${x(points[at].cost)},${y(points[at].reward)}`).join(" ") }));
  parts.push(draw("defs", {}, draw("clipPath", { id: "inner" }, draw("rect", { x: box.left, y: box.top,
    width: box.right - box.left, height: box.bottom - box.top }))), inner);

  const taken = [];
  points.forEach((point, at) => {
    const [px, py] = [x(point.cost), y(point.reward)];
    const group = draw("g", { class: own(clips[at]), "data-point": point.name });
    group.append(draw("circle", { class: front.includes(at) ? "dot" : "dot beaten", cx: px, cy: py, r: 6 }));
    if (tied.includes(at)) group.append(draw("circle", { class: "ring", cx: px, cy: py, r: 10 }));
    // The lines rise to the right, so the first two corners are clear of them; a letter never covers another one.
    const corners = [[-13, -9], [13, 18], [13, -9], [-13, 18], [-28, -9], [28, 18]];
    const free = corners.find(([dx, dy]) => taken.every(([a, b]) => Math.hypot(px + dx - a, py + dy - b) > 15));
    const [dx, dy] = free ?? corners[0];
    taken.push([px + dx, py + dy]);
    group.append(write(point.name, { class: "point", x: px + dx, y: py + dy, "text-anchor": "middle" }));
    parts.push(group);
  });

  const title = `Reward against cost of ${points.length} clips: ${points.map((point) =>
    `${point.name} reward ${roundsTo(point.reward, 2)}, cost ${signed(point.cost, 2)}`).join("; ")}. `
    + `Pareto front: ${listed(front.map((at) => points[at].name))}. The table below has the numbers.`;
  find("plot").replaceChildren(make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    ...parts));
}

function makeLegend() {
  const item = (text, ...parts) => make("li", {}, make("svg", { class: "key", viewBox: "0 0 26 12",
    "aria-hidden": "true" }, ...parts), text);
  const across = { x1: 0, x2: 26, y1: 6, y2: 6 };
  find("legend").append(
    item("within the limit", draw("rect", { class: "safe", width: 26, height: 12 })),
    item("limit", draw("line", { class: "limit", x1: 13, x2: 13, y1: 0, y2: 12 })),
    item("Pareto front", draw("polyline", { class: "front", points: "0,6 26,6" })),
    item("equal scores", draw("line", { class: "equal", ...across })),
    item("chosen", draw("circle", { class: "ring", cx: 13, cy: 6, r: 5 }), draw("circle", { class: "dot", cx: 13, cy: 6,
      r: 3 })),
    item("beaten", draw("circle", { class: "dot beaten", cx: 13, cy: 6, r: 4 })));
}

// Playing

const videos = () => [...find("clips").querySelectorAll("video")];

function renderPlay() {
  const isPlaying = videos().some((video) => !video.paused);
  find("play").textContent = isPlaying ? "Pause all" : "Play all";
  find("play").hidden = videos().length < 2;
}

function togglePlay() {
  const isPlaying = videos().some((video) => !video.paused);
  for (const video of videos()) {
    if (isPlaying) {
      video.pause();
    } else {
      video.currentTime = 0;
      video.play().catch(() => {});  // it was removed, or turned out to be unplayable
    }
  }
}

// The server

const headers = () => (state.key === null ? {} : { Authorization: `Bearer ${state.key}` });

function askForKey() {
  const wasAsked = state.key !== null;
  state.key = null;
  find("key-form").hidden = false;
  find("key-problem").textContent = wasAsked ? "The server does not accept this key." : "";
  find("key").value = "";
  find("key").focus();
}

async function loadModel() {
  const line = find("model");
  let answer;
  try {
    answer = await fetch("model", { headers: headers(), cache: "no-store" });
  } catch {
    line.textContent = "The server does not answer: start scripts/serve.py, then load this page again.";
    line.className = "problem";
    return false;
  }
  if (answer.status === 401) {
    line.textContent = "This server asks for a key.";
    askForKey();
    return false;
  }
  const model = await answer.json().catch(() => null);
  if (!answer.ok || model === null) {
    line.textContent = model?.error ?? `The server answered ${answer.status}.`;
    line.className = "problem";
    return false;
  }
  find("key-form").hidden = true;
  state.limits = model.limits ?? {};
  const missing = ["reward", "cost"].filter((head) => !model.heads.includes(head));
  const backbone = model.backbone.startsWith("/") ? model.backbone.split("/").pop() : model.backbone;
  const harms = model.heads.filter((head) => head.includes("harm_"));
  const heads = model.heads.filter((head) => !harms.includes(head)).map(words);
  if (harms.length) heads.push(`${harms.length} harm ${harms.length === 1 ? "label" : "labels"}`);
  const name = `Model ${model.fingerprint.slice(0, 12)} on ${backbone}, with heads for ${listed(heads)}.`
    + (model.no_zero ? ` Nothing is called safe or unsafe: ${model.no_zero}.` : "");
  state.hasZero = !model.no_zero;
  line.className = "dim";
  state.deciding = ["reward", "cost"].filter((head) => !missing.includes(head));
  if (missing.length) {
    line.textContent = `${name} ${state.deciding.length ? `There is no ${missing[0]} model: clips are put in order by `
      + `${state.deciding[0]} alone.` : "There is neither a reward nor a cost model: clips get scores and no order."}`;
    return true;
  }
  line.textContent = name;
  if (state.scoredPrompt === null) useDefaults(model);
  return true;
}

/** Lambda and the limit begin where the server would choose: for each number of clips there may be another lambda. */
function useDefaults(answer) {
  const { lambda, limit } = state.defaults;
  const isUntouched = state.lambda === lambda && state.limit === limit;
  setText("defaults-source", `Lambda begins at ${short(answer.lagrange_multiplier)} (${answer.multiplier_source}), `
    + `the cost limit at ${short(answer.cost_limit)}.`);
  state.defaults = { lambda: answer.lagrange_multiplier, limit: answer.cost_limit };
  const isSamePrice = state.weighed === answer.weighed;
  state.weighed = answer.weighed;
  for (const [id, texts] of Object.entries(PRICES)) find(id).textContent = texts[state.weighed];
  if (isUntouched || !isSamePrice) resetSettings();
}

/** Say what went wrong; `field` has to be changed and gets the focus, and what `canPass` may be tried again. */
function fail(message, field = null, canPass = false) {
  find("failure").hidden = false;
  find("problem").textContent = message[0].toUpperCase() + message.slice(1);
  find("retry").hidden = !canPass;
  find("prompt").setAttribute("aria-invalid", String(field === "prompt"));
  if (field !== null) find(field).focus();
}

function score() {
  if (state.request !== null) return;
  const prompt = find("prompt").value.trim();
  const clips = [...state.clips];
  find("failure").hidden = true;
  find("prompt").removeAttribute("aria-invalid");
  if (!prompt) { fail("Write the prompt that the clips were generated from.", "prompt"); return; }
  if (clips.length < 2) {
    fail(clips.length ? "Add one more clip: a choice needs two." : "Add two or more clips.", "choose");
    return;
  }
  const { max_videos: most = Infinity, max_body_mb: largest = Infinity } = state.limits;
  const size = clips.reduce((sum, clip) => sum + clip.file.size, 0) / 1e6;
  if (clips.length > most || size > largest) {
    fail(clips.length > most ? `This server takes ${most} clips at once: remove ${clips.length - most}.`
      : `The clips have ${size.toFixed(1)} MB together, and this server takes ${largest} MB at once: remove some.`,
    "choose");
    return;
  }
  const form = new FormData();
  form.append("prompt", prompt);
  for (const clip of clips) form.append("videos", clip.file, clip.file.name);

  const request = new XMLHttpRequest();  // unlike fetch, it tells how much is sent
  state.request = request;
  renderBusy("Uploading …", 0);
  request.upload.addEventListener("progress", (event) => {
    if (event.lengthComputable) renderBusy("Uploading …", event.loaded / event.total);
  });
  request.upload.addEventListener("load", () => renderBusy(`Scoring ${clips.length} clips …`, null));
  request.addEventListener("loadend", () => { state.request = null; renderBusy(null); });
  request.addEventListener("error", () => fail(
    "No answer from the server: it is not running, or it refused clips that are too large.", null, true));
  request.addEventListener("load", () => receive(request, prompt, clips));
  request.open("POST", "rank");
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.send(form);
}

function receive(request, prompt, clips) {
  if (request.status === 401) {
    state.isWaitingForKey = true;
    fail("The server asks for a key: enter it above.");
    askForKey();
    return;
  }
  let answer = null;
  try { answer = JSON.parse(request.responseText); } catch { /* told below */ }
  const isWhole = state.deciding.every((head) => answer?.[`${head}s`]?.length === clips.length);
  if (request.status !== 200 || answer?.reason === undefined || !isWhole) {
    // The server counts the clips; here they have letters.
    const name = (text, at) => (clips[at] ? `clip ${clips[at].name} (${clips[at].file.name})` : text);
    fail(answer?.error?.replace(/videos\[(\d+)\]/g, name)
      ?? `The server answered ${request.status}, and not with a ranking.`, null,
    request.status === 429 || request.status >= 500);
    return;
  }
  const pick = (table, at) => Object.fromEntries(
    Object.entries(table ?? {}).map(([head, values]) => [head, values[at]]));
  clips.forEach((clip, at) => {
    clip.scores = { reward: answer.rewards?.[at] ?? null, cost: answer.costs?.[at] ?? null, subScores: pick(answer.sub_scores, at),
      percentiles: pick(answer.percentiles, at), harms: answer.harms?.[at] ?? null };
    fillCard(clip);
  });
  state.scoredPrompt = prompt;
  if (state.deciding.length === 2) useDefaults(answer);
  render();
}

function renderBusy(text, share) {
  find("busy").hidden = text === null;
  find("score").setAttribute("aria-disabled", String(text !== null));
  if (text === null) return;
  setText("busy-text", text);
  if (share === null) find("progress").removeAttribute("value");
  else find("progress").value = share;
}

// Settings

function resetSettings() {
  state.lambda = state.defaults.lambda;
  state.limit = state.defaults.limit;
  render();
}

function refuse(id, message) {
  setText(`${id}-problem`, message);
  if (message) find(id).setAttribute("aria-invalid", "true");
  else find(id).removeAttribute("aria-invalid");
}

function readNumber(id, isAllowed, message) {
  const value = find(id).valueAsNumber;
  if (!Number.isFinite(value) || !isAllowed(value)) {
    refuse(id, message);
    return;
  }
  refuse(id, "");
  state[id] = value;
  render();
}

function listen() {
  find("form").addEventListener("submit", (event) => { event.preventDefault(); score(); });
  find("retry").addEventListener("click", score);
  find("stop").addEventListener("click", () => { state.request?.abort(); find("score").focus(); });
  find("play").addEventListener("click", togglePlay);
  find("defaults").addEventListener("click", resetSettings);
  find("prompt").addEventListener("input", render);
  find("choose").addEventListener("click", () => find("files").click());
  find("files").addEventListener("change", (event) => {
    addFiles(event.target.files);
    event.target.value = "";  // the same file can be chosen again
  });
  find("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    state.key = find("key").value;
    if (!(await loadModel())) return;
    find("prompt").focus();
    if (state.isWaitingForKey) { state.isWaitingForKey = false; score(); }
  });
  find("lambda-slider").addEventListener("input", (event) => {
    state.lambda = lambdaOf(event.target.valueAsNumber);
    render();
  });
  find("limit-slider").addEventListener("input", (event) => {
    state.limit = event.target.valueAsNumber;
    render();
  });
  find("lambda").addEventListener("input", () => readNumber("lambda", (value) => value >= 0 && value <= MOST,
    "Lambda is a number from 0 to a million."));
  find("limit").addEventListener("input", () => readNumber("limit", (value) => Math.abs(value) <= MOST,
    "The limit is a number up to a million, above or below 0."));

  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => { if (event.relatedTarget === null) mark(false); });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(false);
    addFiles(event.dataTransfer.files);
  });
  new ResizeObserver(() => { if (scored().length) render(); }).observe(find("plot"));
}

makeLegend();
listen();
render();
loadModel();
