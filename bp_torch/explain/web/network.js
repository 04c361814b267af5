// ---- the network: built once for each width and shape, then updated ----

const net = { slots: [], edges: [], fan: [], place: null };

/** Where everything stands: from left to right, or from top to bottom where there is little room. */
function layout() {
  const counts = SIZES.map((n) => Math.min(n, MOST));
  const fraction = (l) => (DEPTH === 1 ? 0.6 : (l - 1) / (DEPTH - 1));
  return narrow.matches && !state.lecture ? upright(counts) : sideways(counts, fraction);
}

function upright(counts) {
  const gap = 84;
  const spacing = (l) => Math.min(34, 344 / counts[l]);
  const radius = (l) => Math.min(10, spacing(l) * 0.4);
  const y = (l) => 232 + (DEPTH === 1 ? 60 : (l - 1) * gap);
  return {
    upright: true,
    size: [360, y(DEPTH) + 76],
    image: { x: 96, y: 4, size: 168 },
    at: (l, n) => [180 + (n - (counts[l] - 1) / 2) * spacing(l), y(l)],
    radius,
    spike: (l) => [0, radius(l) + 17, 22],
    title: (l) => [4, y(l) - 21],
    wish: (l) => (l === DEPTH ? [0, 46] : null),
    digit: [0, 66],
    type: { digit: 10.5, label: 12, wish: 9.5 },
  };
}

/** At a lecture it takes all the room there is, and its numbers are 18 pixels high. */
function sideways(counts, fraction) {
  const room = state.lecture ? lectureRoom() : { width: 860, height: 600, scale: 1.1 };
  const large = 18.2 / room.scale;
  const type = state.lecture ? { digit: Math.min(large, 20.4), label: Math.min(large, 20.4) } : { digit: 10.5, label: 12 };
  const spacing = (l) => Math.min(52, 544 / counts[l]);
  const radius = (l) => Math.min(state.lecture ? 19 : 14.5, spacing(l) * (state.lecture ? 0.47 : 0.42));
  const [image, first, last] = [240, 344, room.width - 40 - 13 * type.label];
  const x = (l) => first + fraction(l) * (last - first);
  const between = (last - first) / Math.max(1, DEPTH - 1);
  return {
    upright: false,
    size: [room.width, room.height],
    image: { x: 0, y: 40, size: image },
    at: (l, n) => [x(l), 326 + (n - (counts[l] - 1) / 2) * spacing(l)],
    radius,
    spike: (l) => [radius(l) + 11, 0, Math.min(36, spacing(l) * 0.86)],
    title: (l) => [x(l), 14],
    wish: (l) => (l === DEPTH || between > 5.5 * type.label + 40 ? [radius(l) + 20, type.label * 0.35] : null),
    digit: [radius(DEPTH) + 26 + 4.5 * type.label, 6],
    type,
  };
}

/** The viewBox that fills the window below the head, and how many pixels one of its units is. */
function lectureRoom() {
  const stage = byId("stage").getBoundingClientRect();
  const high = Math.max(420, innerHeight - stage.top - scrollY - 62);
  const width = Math.max(860, (600 * stage.width) / high);
  return { width, height: 600, scale: stage.width / width };
}

function buildNetwork() {
  const svg = byId("net");
  const place = layout();
  svg.replaceChildren();
  set(svg, { viewBox: `0 0 ${place.size.join(" ")}`, style: `--digit: ${place.type.digit}px; --label: ${place.type.label}px; --wish: ${place.type.wish ?? place.type.label}px` });
  Object.assign(net, { place, edges: [], fan: [], titles: [], slots: [[]] });
  const { x, y, size } = place.image;
  byId("stage").style.setProperty("--below-image", (y + size) / place.size[0]);
  byId("stage").style.setProperty("--image", size / place.size[0]);
  net.image = create("image", { x, y, width: size, height: size, preserveAspectRatio: "none" }, svg);
  net.paper = create("rect", { id: "pen", x, y, width: size, height: size, role: "application", tabindex: 0, "aria-label": PEN }, svg);
  const title = place.upright ? { x: 4, y: 16 } : { x: x + size / 2, y: y - 12, "text-anchor": "middle" };
  net.titles[0] = create("text", { ...title, class: "soft" }, svg);
  const lines = create("g", {}, svg);
  net.mark = create("path", { class: "mark" }, svg);
  for (let l = 1; l <= DEPTH; l++) buildLayer(svg, lines, l, place);
  net.canvas = create("canvas", { width: 28 * 16, height: 28 * 16 });
  penEvents(net.paper);
}

function buildLayer(svg, lines, l, place) {
  const count = Math.min(SIZES[l], MOST);
  const [x, y] = place.title(l);
  net.titles[l] = create("text", { x, y, class: "soft", "text-anchor": place.upright ? "start" : "middle" }, svg);
  net.slots[l] = Array.from({ length: count }, (_, n) => buildNeuron(svg, l, n, place));
  if (l === 1) net.fan = net.slots[1].map((_, n) => create("line", fanEnds(n, count, place), lines));
  else net.edges.push(...net.slots[l].flatMap((_, n) => net.slots[l - 1].map((__, m) => buildEdge(lines, l, n, m, place))));
}

function fanEnds(n, count, { image, at, upright }) {
  const [x2, y2] = at(1, n);
  const along = ((n + 0.5) / count) * image.size;
  return upright ? { x1: image.x + along, y1: image.y + image.size, x2, y2 } : { x1: image.x + image.size, y1: image.y + along, x2, y2 };
}

function buildEdge(lines, l, n, m, { at }) {
  const [[x1, y1], [x2, y2]] = [at(l - 1, m), at(l, n)];
  return { l, n, m, ends: [x1, y1, x2, y2], line: create("line", { x1, y1, x2, y2 }, lines) };
}

function buildNeuron(svg, l, n, place) {
  const [[x, y], radius, [right, down]] = [place.at(l, n), place.radius(l), place.spike(l)];
  const group = create("g", { class: "neuron", role: "button", tabindex: -1 }, svg);
  const words = create("g", { class: "words", "aria-hidden": true }, svg); // the name of the button says them
  const write = (place, attributes) => create("text", { x: x + place[0], y: y + place[1], ...attributes }, words);
  create("circle", { class: "ring", cx: x, cy: y, r: radius + 3.5 }, group);
  const circle = create("circle", { cx: x, cy: y, r: radius }, group);
  const text = radius > 11 ? write([0, place.type.digit * 0.36], { class: "inside" }) : null;
  const spike = create("path", { class: "spike", d: "M-6.5 .5 L0 -.5 L6.5 .5 Z" }, group);
  const slot = { l, n, j: n, group, words, circle, text, spike, wish: null, digit: null, note: null, foot: [x + right, y + down] };
  if (place.wish(l)) slot.wish = write(place.wish(l), { class: "wish", "text-anchor": place.upright ? "middle" : "start" });
  if (l === DEPTH) {
    slot.digit = write(place.digit, { class: "digit" });
    slot.digit.textContent = n;
    if (!place.upright) slot.note = write([place.digit[0] + 14, place.type.label * 0.36], { class: "soft note" });
  }
  group.addEventListener("click", () => choose(l, slot.j));
  group.addEventListener("focus", () => choose(l, slot.j));
  return slot;
}

/** The neurons of a layer that are drawn: all, or the most active and the chosen one. */
function shown(l) {
  const [a, count] = [value(`a${l}`), Math.min(SIZES[l], MOST)];
  const order = [...a.keys()];
  if (count === SIZES[l]) return order;
  const rank = (j) => (state.chosen[0] === l && state.chosen[1] === j ? Infinity : Math.abs(a[j]));
  return order.sort((p, q) => rank(q) - rank(p)).slice(0, count).sort((p, q) => p - q);
}

/** The activations of layer l as they are now; those of layer 0 are the pixels. */
function lit(l) {
  const a = l === 0 ? [...state.x] : now(`a${l}`);
  const pushed = state.change && l < DEPTH ? direction(state.picked).pushed : null;
  return pushed ? a.map((each, k) => each + state.change * pushed[activationsAt(l) + k]) : a;
}

/** What an arrow of full length stands for: at the outputs the most that one can want, or what the largest of all does. */
function fullLength(l, wishes) {
  if (l === DEPTH) return Math.max(DATA.farthest, largest(wishes));
  return Math.max(largest(wishes), l === asker() - 1 ? largest(now(`sums${asker()}`)) / 1.6 : 0);
}

function drawNetwork() {
  for (let l = 1; l <= DEPTH; l++) {
    const [wishes, a] = [asked(l), lit(l)];
    const scale = wishes ? fullLength(l, wishes) : 1;
    const bright = Math.max(1, largest(a));
    for (const [n, j] of shown(l).entries()) drawNeuron(net.slots[l][n], j, a[j], bright, wishes, scale);
    drawTitle(l, wishes && scale);
  }
  for (const edge of net.edges) drawEdge(edge);
  net.fan.forEach(drawFan);
  drawMark();
  drawImage();
  drawAdding();
}

function drawTitle(l, scale) {
  const count = Math.min(SIZES[l], MOST);
  const title = net.titles[l];
  title.textContent = `${l === DEPTH ? "outputs" : `layer ${l}`}${count < SIZES[l] ? `: ${count} of ${SIZES[l]}` : ""}`;
  if (!scale) return;
  const where = net.place.upright ? { dx: 8 } : { x: title.getAttribute("x"), dy: "1.2em" };
  create("tspan", where, title, `${net.place.upright || !net.place.wish(l) ? "▲" : "full arrow"} ${brief(scale).replace("+", "")}`);
}

/** From which activation on the number in a neuron is written in the colour of the paper. */
function middle() {
  const [dark, forced] = looks.map((look) => look.matches);
  return forced ? (dark ? 0.46 : 0.54) : dark ? 0.44 : 0.6;
}

function drawNeuron(slot, j, a, bright, wishes, scale) {
  const { l, group, circle, text, spike, digit, note } = slot;
  slot.j = j;
  const wish = wishes ? wishes[j] : 0;
  const [chosen, ink] = [state.chosen[0] === l && state.chosen[1] === j, Math.min(1, Math.abs(a) / bright)];
  circle.style.fill = `color-mix(in srgb, var(--ink) ${(100 * ink).toFixed(1)}%, var(--paper))`;
  set(circle, { "stroke-dasharray": a < 0 ? "3 2" : null });
  if (text) {
    text.textContent = inside(a);
    set(text, { class: ink > middle() ? "inside on-ink" : "inside" });
  }
  const length = (wish / scale) * net.place.spike(l)[2];
  const turned = signOf(wish) !== spike.dataset.sign; // colour and direction change together
  spike.dataset.sign = signOf(wish);
  spike.style.transition = turned ? "none" : "";
  spike.style.transform = `translate(${slot.foot[0]}px, ${slot.foot[1]}px) scale(1, ${length})`;
  set(spike, { class: `spike ${signOf(wish)}`, visibility: Math.abs(length) < 0.4 ? "hidden" : null });
  if (slot.wish) slot.wish.textContent = wishes ? brief(wish) : "";
  set(group, { "aria-pressed": chosen, tabindex: chosen ? 0 : -1 });
  const asks = wish ? `, asked for ${digits(wish, true)}` : "";
  set(group, { "aria-label": `${neuronName(l, j)}: activation ${digits(a)}${asks}` });
  if (digit) digit.style.fontWeight = j === answer() ? 700 : 400;
  if (note) note.textContent = [j === state.label ? "wanted" : "", j === answer() ? "answer" : ""].filter(Boolean).join(", ");
}

function drawEdge({ l, n, m, line }) {
  const [j, k] = [net.slots[l][n].j, net.slots[l - 1][m].j];
  const [asks, ofChosen] = [asker() === l, state.chosen[0] === l && state.chosen[1] === j];
  const [name, width] = [`requests${l}`, SIZES[l - 1]];
  const each = asks ? now(name)[j * width + k] : thetaNow()[weightAt(l, j, k)];
  const size = Math.min(1, Math.abs(each) / (asks ? largestOf(name) : largestWeight(l)));
  const playing = asks && added() < requests();
  const strong = playing ? asks && j === added() - 1 : ofChosen && (asks || state.step === 0);
  const hidden = asks && j >= added();
  const faint = state.step > 0 && !asks ? 0.3 : 1;
  line.style.opacity = hidden ? 0 : strong ? 0.35 + 0.65 * size : (0.07 + 0.4 * size) * faint;
  line.style.strokeWidth = (strong ? 1 : 0.6) + (strong ? 3.4 : 1.6) * size;
  set(line, { class: signOf(each) });
}

const scales = new Map();
function largestOf(name) {
  if (!scales.has(name)) scales.set(name, largest(now(name)));
  return scales.get(name);
}
function largestWeight(l) {
  if (!scales.has(l)) scales.set(l, largest(theta.subarray(weightsAt(l), biasesAt(l))));
  return scales.get(l);
}

function drawFan(line, n) {
  const j = net.slots[1][n].j;
  const [asks, own] = [asker() === 1, now("own1")];
  const size = asks ? Math.abs(own[j]) / largest(own) : 0;
  line.style.opacity = asks ? (j < added() ? 0.15 + 0.85 * size : 0) : state.chosen[0] === 1 && state.chosen[1] === j ? 0.8 : 0.22;
  line.style.strokeWidth = 0.8 + 2.6 * size;
  set(line, { class: asks ? signOf(own[j]) : "" });
}

/** Where a neuron or a pixel is drawn, or null. */
function placeOf(l, j) {
  const { image, at } = net.place;
  if (l === 0) return [((j % 28) + 0.5) / 28, (Math.floor(j / 28) + 0.5) / 28].map((part, n) => [image.x, image.y][n] + part * image.size);
  const n = net.slots[l].findIndex((slot) => slot.j === j);
  return n < 0 ? null : at(l, n);
}

/** Dots along the weight that is wiggled, or around the bias or the activation. */
function drawMark() {
  const { kind, l, j, k } = partAt(state.picked);
  const ends = kind === "group" ? [] : kind === "weight" ? [placeOf(l - 1, k), placeOf(l, j)] : [placeOf(l, j)];
  const circle = ([x, y], r) => `M${x - r} ${y} a${r} ${r} 0 1 0 ${2 * r} 0 a${r} ${r} 0 1 0 ${-2 * r} 0`;
  const round = () => circle(ends[0], l === 0 ? 5 : net.place.radius(l) + 7);
  const known = ends.length && ends.every(Boolean);
  set(net.mark, { d: !known ? "" : kind === "weight" ? `M${ends[0].join(" ")} L${ends[1].join(" ")}` : round() });
}

function drawImage() {
  const wishes = pen.down ? null : asked(0);
  paint(net.canvas, wishes ?? lit(0), wishes !== null);
  drawPen();
  set(net.image, { href: net.canvas.toDataURL() });
  net.titles[0].textContent = wishes ? `784 wishes, to ${brief(largest(wishes)).replace("+", "±")}` : "784 pixels";
}

function drawAdding() {
  const [l, n] = [asker(), requests()];
  byId("adding").hidden = !l;
  if (!l) return;
  set(byId("sum"), { max: n });
  byId("sum").value = added();
  byId("play").textContent = player.timer ? "pause" : "play one by one";
  const name = capital(neuronName(l, added() - 1));
  byId("sumText").textContent = added() < n ? `${name} asks; sum of ${added()}` : `all ${n} requests added up`;
}

// ---- playing the requests one after another ----

const player = { timer: 0 };

function play() {
  stopPlaying();
  if (!asker()) return;
  if (added() >= requests()) state.added = 0;
  const pause = Math.max(90, 4800 / requests());
  const next = () => {
    state.added = Math.min(requests(), Math.max(0, state.added) + 1);
    player.timer = state.added < requests() ? setTimeout(next, pause) : 0;
    drawNetwork();
    if (!player.timer) save();
  };
  next();
}

function stopPlaying() {
  clearTimeout(player.timer);
  player.timer = 0;
}

// ---- one edge in words ----

function describe(l, j, k) {
  const [weight, a, delta] = [theta[weightAt(l, j, k)], before(l)[k], value(`delta${l}`)[j]];
  byId("edge").textContent =
    `From ${neuronName(l - 1, k)} to ${neuronName(l, j)}: weight ${digits(weight)}, activation a = ${digits(a)}, δ = ${digits(delta)}. ` +
    `Their product δ·a = ${digits(value("gradient")[weightAt(l, j, k)])} is the slope of the cost at this weight; ` +
    `−δ·weight = ${digits(row(`requests${l}`, j, SIZES[l - 1])[k])} is what is asked of the activation.`;
}

function invite() {
  const [point, click] = touched === "tap" ? ["Tap", "the slider below then wiggles the weight"] : ["Point at", "click to wiggle the weight"];
  byId("edge").textContent = `${point} an edge or a pixel to read its weight, activation, δ and their product; ${click}.`;
}

/** The edge, or the pixel's edge to the chosen neuron of layer 1, under the pointer: [l, j, k], or null. */
function under(event) {
  const point = inNetwork(event);
  const [column, line] = inImage(point).map(Math.floor);
  if (column >= 0 && column < 28 && line >= 0 && line < 28) {
    return [1, state.chosen[0] === 1 ? state.chosen[1] : net.slots[1][0].j, line * 28 + column];
  }
  const distance = ({ ends: [x1, y1, x2, y2] }) => {
    const [dx, dy] = [x2 - x1, y2 - y1];
    const part = ((point.x - x1) * dx + (point.y - y1) * dy) / (dx * dx + dy * dy);
    const near = Math.min(1, Math.max(0, part));
    return Math.hypot(point.x - x1 - near * dx, point.y - y1 - near * dy);
  };
  const near = net.edges.map((edge) => ({ edge, far: distance(edge) })).sort((p, q) => p.far - q.far)[0];
  if (!near || near.far > (event.pointerType === "touch" ? 9 : 4)) return null;
  return [near.edge.l, net.slots[near.edge.l][near.edge.n].j, net.slots[near.edge.l - 1][near.edge.m].j];
}

const inNetwork = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(byId("net").getScreenCTM().inverse());

/** A point of the network as column and line of the image. */
function inImage(point) {
  const { x, y, size } = net.place.image;
  return [point.x - x, point.y - y].map((offset) => (offset / size) * 28);
}
