// ---- the three ways to change the chosen neuron ----

const LISTED = 6;
const whole = new Set(); // lists that are shown whole

function drawNeuronPanel() {
  const [l, j] = state.chosen;
  const width = SIZES[l - 1];
  const named = `${capital(neuronName(l, j))}`;
  byId("neuronName").textContent = named;
  byId("neuronWish").replaceChildren(...wishLines(l, j).map((line) => create("span", {}, null, line)));
  drawSum(l, j);
  drawGrants();
  const unknown = state.label === null;
  for (const part of document.querySelectorAll(".asking")) part.hidden = unknown;
  byId("threeWays").textContent = unknown ? "Say which digit this is, and it has a wish." : "There are three ways to change it.";
  const wish = value("wish");
  drawWays("biasWay", [{ k: null, size: wish[biasesAt(l) + j], name: "bias", p: biasesAt(l) + j }]);
  const name = l === 1 ? pixelName : (k) => `neuron ${k}`;
  const share = row(`requests${l}`, j, width);
  const ways = Array.from({ length: width }, (_, k) => ({ k, p: weightAt(l, j, k), name: name(k) }));
  const [a, w] = [(k) => `a ${inside(before(l)[k])}`, (p) => `w ${minus(theta[p].toFixed(2))}`];
  drawWays("weightWays", ways.map((way) => ({ ...way, size: wish[way.p], note: a(way.k) })));
  drawWays("activationWays", ways.map((way) => ({ ...way, size: share[way.k], note: w(way.p), p: activationAt(l - 1, way.k) })));
}

function drawGrants() {
  for (const button of document.querySelectorAll("[data-grant]")) {
    set(button, { "aria-pressed": state.change !== 0 && state.picked === granted(button.dataset.grant) });
  }
}

/** What the neuron wants, step by step: how far it is from its target, what is asked of it, and its own wish. */
function wishLines(l, j) {
  if (state.label === null) return [`Its activation is ${digits(value(`a${l}`)[j])}.`];
  const [a, slope, own] = [`a${l}`, `slope${l}`, `own${l}`].map((name) => value(name)[j]);
  const change = value(`asked${l}`)[j];
  const way = own > 0 ? "rise" : own < 0 ? "fall" : "stay as it is";
  const passed = DATA.absorbs && l === DEPTH ? "" : `, times φ′ = ${digits(slope)} is`;
  const asks = `${digits(change, true)}${passed} its own wish`;
  if (l < DEPTH) return [`It should ${way}.`, `Activation ${digits(a)}; it is asked to change by ${asks}, −δ = ${digits(own, true)}.`];
  const far = `target ${j === state.label ? 1 : 0} − activation ${digits(a)} = ${digits(value("distance")[j], true)}`;
  const doubled = DATA.cost === "quadratic" ? `${far}; twice that, ${asks}` : `${far}; it is asked to change by ${asks}`;
  return [`It should ${way}.`, `${capital(doubled)}, −δ = ${digits(own, true)}.`];
}

/** The weighted sum, one product after another from the top, and below it the squash φ that makes the activation. */
function drawSum(l, j) {
  const [bias, pushed] = [theta[biasesAt(l) + j], thetaNow()[biasesAt(l) + j] - theta[biasesAt(l) + j]];
  const sums = runningSums([bias, ...row(`products${l}`, j, SIZES[l - 1], now), ...(pushed ? [pushed] : [])]);
  const [z, a] = [now(`z${l}`)[j], lit(l)[j]];
  const high = Math.max(2.5, 1.15 * largest(sums));
  const low = -high;
  const inner = SQUASH[l - 1].filter(([point]) => point >= low && point <= high);
  const heights = [...inner.map(([, y]) => y), a];
  const frame = chartFrame(byId("madeChart"), 190, [low, high], [Math.min(0, ...heights), Math.max(1, ...heights)], 90);
  frame.line(inner.map(([x]) => x), inner.map(([, y]) => y));
  const down = (n) => 12 + (64 * n) / sums.length;
  const path = sums.map((sum, n) => `H${frame.x(sum).toFixed(1)} V${down(n + 1).toFixed(1)}`);
  create("path", { class: "axis", d: `M${frame.x(0)} 8 V168` }, frame.svg);
  create("path", { class: "thin", d: `M${frame.x(0)} 12 ${path.join(" ")}` }, frame.svg);
  create("path", { class: "dashed", d: `M${frame.x(z)} ${down(sums.length)} V${frame.y(a)}` }, frame.svg);
  frame.dot(z, a, "dot");
  frame.ends();
  const rest = z - bias;
  byId("madeText").textContent =
    `z = b + Σ w·a = ${digits(bias)} ${rest < 0 ? "−" : "+"} ${digits(Math.abs(rest))} = ${digits(z)}; a = φ(z) = ${digits(a)}.`;
  set(frame.svg, { "aria-label": `The weighted sum ${digits(z)}, and the activation ${digits(a)} that is made of it` });
}

function drawWays(id, ways) {
  const list = byId(id);
  const ranked = ways.sort((p, q) => Math.abs(q.size) - Math.abs(p.size));
  const most = Math.abs(ranked[0].size) || 1;
  const count = whole.has(id) ? ranked.length : LISTED;
  list.replaceChildren(...ranked.slice(0, count).map((way) => wayButton(way, most)));
  if (ranked.length <= LISTED) return;
  const more = create("button", { class: "more" }, list, whole.has(id) ? "show fewer" : `show all ${ranked.length}`);
  more.addEventListener("click", () => {
    whole.has(id) ? whole.delete(id) : whole.add(id);
    drawWays(id, ways);
    list.querySelector(".more").focus();
  });
}

function wayButton({ k, size, name, note = "", p }, most) {
  const data = { "data-p": p, "data-place": k ?? "bias", "data-value": size };
  const button = create("button", { class: "way", "aria-pressed": p === state.picked, ...data });
  const label = create("span", {}, button, name);
  create("span", { class: "soft" }, label, note ? `  ${note}` : "");
  const width = (Math.abs(size) / most) * 50;
  create("b", { class: signOf(size), style: `width: ${width}%; min-width: ${size ? 1 : 0}px` }, create("i", {}, button));
  create("span", { class: "number" }, button, digits(size, true));
  return button;
}

/** Point at a row of a list, or focus it, to read of its edge; click it to wiggle its parameter. */
function listEvents(list) {
  const p = (event) => Number(event.target.closest(".way")?.dataset.p ?? -1);
  const tell = (event) => {
    if (p(event) < 0) return;
    const { kind, l, j, k } = partAt(p(event));
    if (kind === "weight") describe(l, j, k);
    else if (kind === "activation") describe(state.chosen[0], state.chosen[1], j);
    else invite();
  };
  for (const event of ["mouseover", "focusin"]) list.addEventListener(event, tell);
  list.addEventListener("click", (event) => p(event) >= 0 && pick(p(event)));
}

// ---- wiggle: the network as it would be, and the cost as measured and as foretold ----

const SPAN = 2;
const POINTS = 17;
const CHANGES = Array.from({ length: POINTS }, (_, n) => SPAN * ((2 * n) / (POINTS - 1) - 1));
const curves = { mine: [], other: [] };
const directions = new Map();

function partName(p) {
  const { kind, l, j, k, group } = partAt(p);
  if (kind === "weight") return `the weight from ${neuronName(l - 1, k)} to ${neuronName(l, j)}`;
  if (kind === "bias") return `the bias of ${neuronName(l, j)}`;
  if (kind === "activation") return `the activation of ${neuronName(l, j)}`;
  const [layer, neuron] = state.chosen;
  const named = { weights: `all weights of ${neuronName(layer, neuron)}`, before: `${layerName(layer - 1)}, as ${neuronName(layer, neuron)} asks` };
  return named[group] ?? `${layerName(asker() - 1)}, as all requests together ask`;
}

/** What changes with the slider: θ, (P,), and the activations that are pushed, or null. Of a group the largest moves by 1. */
function direction(p) {
  const key = `${p} ${state.chosen} ${asker()}`;
  if (!directions.has(key)) directions.set(key, findDirection(p));
  return directions.get(key);
}

function findDirection(p) {
  const { kind, group } = partAt(p);
  const [l, j] = state.chosen;
  const change = new Float32Array(PARAMETERS);
  const scaled = (values) => values.map((each) => each / largest(values));
  if (p < PARAMETERS) change[p] = 1;
  if (group === "weights") change.set(scaled(value("wish").slice(weightAt(l, j, 0), weightAt(l, j + 1, 0))), weightAt(l, j, 0));
  if (p < PARAMETERS || group === "weights") return { change, pushed: null };
  const pushed = new Float32Array(ACTIVATIONS);
  if (kind === "activation") pushed[p - PARAMETERS] = 1;
  if (group === "before") pushed.set(scaled(row(`requests${l}`, j, SIZES[l - 1])), activationsAt(l - 1));
  if (group === "sum" && asker()) pushed.set(scaled(value(`asked${asker() - 1}`)), activationsAt(asker() - 1));
  recordings.push.run({ parameters: theta, pushed });
  return { change: Float32Array.from(recordings.push.read("change")), pushed };
}

/** The cost after a change of what is at p: {measured, foretold}, both by the recording. */
function measure(p, change) {
  recordings.wiggle.run({ change: direction(p).change.map((each) => each * change) });
  return Object.fromEntries(["measured", "foretold", "difference"].map((name) => [name, recordings.wiggle.number(name)]));
}

function prepareWiggle() {
  const given = { parameters: theta, x: state.x, y: oneHot(state.label), gradient: value("gradient"), before: value("cost") };
  for (const [name, contents] of Object.entries(given)) recordings.wiggle.write(name, contents);
}

/** Go forward and back with the change made. */
function makeChange() {
  seenChanged.clear();
  scales.clear();
  if (!state.change) return;
  measure(state.picked, state.change);
  changed.run({ parameters: recordings.wiggle.tensors.moved.data, x: state.x, y: oneHot(state.label) });
}

function drawCurves() {
  prepareWiggle();
  curves.mine = CHANGES.map((change) => measure(state.picked, change));
  curves.other = CHANGES.map((change) => measure(state.compared, change).measured);
  drawWiggle();
}

/** Move what is wiggled, and all that follows from it. */
function wiggleTo(change) {
  state.change = change;
  makeChange();
  drawNetwork();
  drawHead();
  drawWiggle();
  drawSum(...state.chosen);
  drawGrants();
  save();
}

function drawWiggle() {
  const { mine, other } = curves;
  const here = measure(state.picked, state.change);
  const high = span([...mine.map((each) => each.measured), ...other]);
  const frame = chartFrame(byId("wiggleChart"), 150, [-SPAN, SPAN], high);
  const drawn = [...CHANGES.keys()].filter((n) => mine[n].foretold >= high[0] && mine[n].foretold <= high[1]);
  frame.line(CHANGES, other, "thin");
  frame.line(drawn.map((n) => CHANGES[n]), drawn.map((n) => mine[n].foretold), "dashed");
  frame.line(CHANGES, mine.map((each) => each.measured));
  frame.dot(state.change, Math.min(high[1], Math.max(high[0], here.foretold)), "hollow");
  frame.dot(state.change, here.measured, "dot");
  frame.ends();
  frame.label("change");
  set(frame.svg, { "aria-label": "The cost of this image for changes of what is wiggled, as measured and as foretold" });
  byId("wiggleName").textContent = `Wiggle ${partName(state.picked)}`;
  byId("wiggle").value = state.change;
  set(byId("wiggle"), { "aria-valuetext": `${minus(state.change.toFixed(2))}: answer ${answer()}, cost ${digits(now("cost")[0])}` });
  byId("wiggleText").textContent = wiggled(here);
  byId("still").disabled = !state.change;
  drawRatio();
  drawSquares();
}

function wiggled({ measured, foretold }) {
  const { kind, l, j } = partAt(state.picked);
  const signed = `${state.change < 0 ? "−" : "+"} ${Math.abs(state.change).toFixed(2)}`;
  const begin = kind === "group" ? null : state.picked < PARAMETERS ? theta[state.picked] : l === 0 ? state.x[j] : value(`a${l}`)[j];
  const sum = begin === null ? `Change ${signed}` : `${digits(begin)} ${signed}`;
  const answers = [answer(value(`a${DEPTH}`)), answer()];
  const said = answers[0] === answers[1] ? `the answer stays ${answers[0]}` : `the answer goes from ${answers[0]} to ${answers[1]}`;
  if (state.label === null) return `${sum}: ${said}.`;
  return (
    `${sum}: ${said}, the cost is ${digits(measured, false, 5)} as measured (line, ●) ` +
    `and ${digits(foretold, false, 5)} as foretold by the gradient (dashes, ○).`
  );
}

/** The slope of the cost at p, which is no group. */
function slopeAt(p) {
  const { kind, l, j } = partAt(p);
  return kind === "activation" ? -value(`asked${l}`)[j] : value("gradient")[p];
}

function drawRatio() {
  const { kind, l } = partAt(state.picked);
  const only = "Only weights and biases can be changed; the layers before would have to bring this about.";
  const note = kind === "weight" || kind === "bias" || l === 0 || state.picked === GROUPS.weights ? "" : only;
  byId("times").textContent = note;
  if (kind === "group" || state.label === null) return;
  const [mine, other] = [state.picked, state.compared].map(slopeAt);
  const more = Math.abs(mine) >= Math.abs(other);
  const [first, second] = more ? [mine, other] : [other, mine];
  const times = recordings.ratio.run({ first: [first], second: [second] }).number("times");
  const said = Number.isFinite(times) ? `${digits(times)} times as sensitive to ${more ? "this one" : "the other"}` : "not sensitive to both";
  byId("times").textContent =
    `The gradient is ${digits(mine, true)} here and ${digits(other, true)} at ${partName(state.compared)} (thin line): ` +
    `the cost is ${said}. ${note}`;
}

/** Before anything is picked: the most sensitive weight of the chosen neuron, and the one nearest to 32 times less so. */
function pickDefaults() {
  const [l, j] = state.chosen;
  const gradient = value("gradient");
  const weights = Array.from({ length: SIZES[l - 1] }, (_, k) => weightAt(l, j, k));
  const ranked = weights.sort((p, q) => Math.abs(gradient[q]) - Math.abs(gradient[p]));
  state.picked = ranked[0];
  const far = (p) => Math.abs(Math.log(Math.abs(gradient[ranked[0]] / gradient[p]) / 32));
  state.compared = ranked[1];
  for (let layer = DEPTH; layer > 0; layer--) {
    for (let p = weightsAt(layer); p < biasesAt(layer); p++) if (far(p) < far(state.compared)) state.compared = p;
  }
}

function pick(p) {
  if (p !== state.picked) {
    if (state.picked < GROUPS.weights) state.compared = state.picked;
    Object.assign(state, { picked: p, change: 0 });
  }
  const { kind, l, j, k } = partAt(p);
  if (kind === "weight" || kind === "bias") state.chosen = [l, j];
  if (kind === "weight") describe(l, j, k);
  const id = document.activeElement?.closest?.(".ways")?.id;
  const place = [...document.querySelectorAll(`#${id} .way`)].indexOf(document.activeElement);
  drawAll();
  if (id) byId(id).children[place]?.focus();
}

const granted = (name) => (name === "bias" ? biasesAt(state.chosen[0]) + state.chosen[1] : GROUPS[name]);

/** Grant a request, or take it back: the largest part of it changes by 1, in small steps unless less motion is wanted. */
function grant(name) {
  const p = granted(name);
  const back = state.picked === p && state.change !== 0;
  stopGranting();
  pick(p);
  const to = back ? 0 : name === "bias" ? Math.sign(value(`own${state.chosen[0]}`)[state.chosen[1]]) : 1;
  if (calm.matches) return wiggleTo(to);
  const [from, begin] = [state.change, performance.now()];
  const frame = (time) => {
    const part = Math.min(1, Math.max(0, (time - begin) / 900));
    granting.timer = part < 1 ? requestAnimationFrame(frame) : 0;
    wiggleTo(Number((from + (to - from) * part).toFixed(2)));
  };
  granting.timer = requestAnimationFrame(frame);
}

const granting = { timer: 0 };
function stopGranting() {
  cancelAnimationFrame(granting.timer);
  granting.timer = 0;
}

// ---- the cost of the image: a square for each output ----

function drawSquares() {
  const svg = byId("squares");
  svg.replaceChildren();
  const hidden = state.label === null || DATA.cost !== "quadratic";
  byId("cost").hidden = hidden;
  if (hidden) return;
  const [distance, squares] = [now("distance"), now("parts")];
  const side = Math.min(64, 64 / largest(distance));
  set(svg, { viewBox: "0 0 720 122" });
  for (const [digit, far] of distance.entries()) {
    const [middle, size] = [36 + 72 * digit, side * Math.abs(far)];
    const write = (y, text, kind) => create("text", { class: kind, x: middle, y, "text-anchor": "middle" }, svg, text);
    create("rect", { class: signOf(far), x: middle - size / 2, y: 66 - size, width: size, height: size }, svg);
    write(83, digit, "name");
    write(101, brief(far).includes("·") ? `(${brief(far)})²` : `${brief(far)}²`, "soft");
    write(117, `= ${brief(squares[digit]).replace("+", "")}`, "soft");
  }
  const sum = digits(now("cost")[0]);
  byId("costSum").textContent = `The differences between target and output, squared and added up: ${sum}.`;
  set(svg, { "aria-label": `Ten squared differences: ${squares.map((each) => digits(each)).join(", ")}` });
}

// ---- charts ----

function span(values) {
  const finite = values.filter(Number.isFinite);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

/** An empty chart with the axes' ends in numbers, and functions that draw into it. */
function chartFrame(svg, height, [x0, x1], [y0, y1], top = 10) {
  const [left, right, bottom, width] = [54, 6, 22, 340];
  svg.replaceChildren();
  set(svg, { viewBox: `0 0 ${width} ${height}` });
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - top);
  create("path", { class: "axis", d: `M${left} ${top} V${height - bottom} H${width - right}` }, svg);
  const text = (px, py, content, anchor = "start") =>
    create("text", { x: px, y: py, class: "soft", "text-anchor": anchor }, svg, content);
  return {
    svg, x, y, text,
    line: (xs, ys, kind = "") => {
      const known = [...xs.keys()].filter((n) => Number.isFinite(ys[n]));
      const points = known.map((n) => `${x(xs[n]).toFixed(1)},${y(ys[n]).toFixed(1)}`);
      create("polyline", { class: kind, points: points.join(" ") }, svg);
    },
    dot: (px, py, kind) => create("circle", { class: kind, cx: x(px), cy: y(py), r: 4.5 }, svg),
    label: (content) => text((left + width - right) / 2, height - 5, content, "middle"),
    ends: () => {
      const count = [2, 3, 4, 5].find((each) => short(y0, each) !== short(y1, each)) ?? 6;
      text(left - 6, top + 8, short(y1, count), "end");
      text(left - 6, height - bottom, short(y0, count), "end");
      text(left, height - 5, short(x0));
      text(width - right, height - 5, short(x1), "end");
    },
  };
}

const short = (number, count = 2) => (Number.isInteger(number) ? minus(number.toLocaleString("en")) : digits(number, false, count));
