// ---- the address holds the state ----

const INKS = "0123456789abcdef";
const packDrawing = (x) => Array.from(x, (each) => INKS[Math.round(each * LEVELS)]).join("");
const unpackDrawing = (text) => Float32Array.from(text, (letter) => INKS.indexOf(letter) / LEVELS);
const packDescent = ({ mode, only, speed, steps }) => `${mode}.${only ?? "-"}.${speed}x${steps}`;

function unpackDescent(text) {
  const [, mode, only, speed, steps] = /^(\w+)\.(\d|-)\.([\d.e-]+)x(\d+)$/.exec(text) ?? [];
  return mode in MODES ? [{ mode, only: only === "-" ? null : Number(only), speed: Number(speed), steps: Number(steps) }] : [];
}

function address() {
  const [neuron, weights] = [state.chosen.join("."), `${state.picked}.${state.compared}`];
  const parts = new URLSearchParams({ net: state.network, step: state.step, want: state.label ?? "", neuron, weights });
  if (state.image === null) parts.set("drawn", packDrawing(state.x));
  else parts.set("image", state.image);
  if (state.change) parts.set("change", state.change);
  if (state.lecture) parts.set("lecture", 1);
  if (asker() && added() < requests()) parts.set("added", added());
  if (state.history.length) parts.set("descent", state.history.map(packDescent).join("~"));
  return `#${parts}`;
}

/** Write the address, at most a few times a second. */
function save() {
  clearTimeout(save.timer);
  save.timer = setTimeout(() => !descent.timer && !player.timer && history.replaceState(null, "", address()), 200);
}

const isWithin = (text, low, high) => /^-?[\d.]+$/.test(text ?? "") && text >= low && text <= high;
const within = (text, low, high, otherwise) => (isWithin(text, low, high) ? Number(text) : otherwise);

function restore() {
  clearTimeout(save.timer);
  const parts = new URLSearchParams(location.hash.slice(1));
  restart(parts.get("net") in start ? parts.get("net") : Object.keys(start)[0]);
  state.image = within(parts.get("image"), 0, 29, 2);
  state.x = imageOf("shown", state.image);
  state.label = within(parts.get("want"), 0, 9, DATA.images.shown.labels[state.image]);
  if (parts.get("drawn")?.length === 784) Object.assign(state, { image: null, x: unpackDrawing(parts.get("drawn")) });
  if (state.image === null && !isWithin(parts.get("want"), 0, 9)) state.label = null;
  lecture(parts.has("lecture"));
  state.step = within(parts.get("step"), 0, DEPTH + 1, 0);
  state.added = within(parts.get("added"), 1, 784, Infinity);
  state.change = within(parts.get("change"), -SPAN, SPAN, 0);
  const [l, j] = (parts.get("neuron") ?? "").split(".");
  const layer = within(l, 1, DEPTH, DEPTH);
  state.chosen = [layer, within(j, 0, SIZES[layer] - 1, layer === DEPTH ? (state.label ?? 0) : 0)];
  const [p, q] = (parts.get("weights") ?? "").split(".");
  compute();
  pickDefaults();
  state.picked = within(p, 0, LAST, state.picked);
  state.compared = within(q, 0, GROUPS.weights - 1, state.compared);
  invite();
  parametersChanged();
  const descents = (parts.get("descent") ?? "").split("~").flatMap(unpackDescent);
  if (descents.length) descendAgain(descents);
  else if (state.step === 0) lightUp();
}

// ---- what one does ----

function choose(l, j) {
  if (state.chosen[0] === l && state.chosen[1] === j) return;
  stopGranting();
  Object.assign(state, { chosen: [l, j], change: 0 });
  whole.clear();
  pickDefaults();
  drawAll();
}

/** The layers light up one after another. */
function lightUp() {
  if (calm.matches) return;
  const late = (element, l) => element.animate([{ opacity: 0, offset: 0 }], { duration: 700, delay: 450 * (l - 1), fill: "backwards" });
  for (const { group, words, l } of net.slots.flat()) {
    late(group, l);
    late(words, l);
  }
  for (const { line, l } of net.edges) late(line, l);
  for (const line of net.fan) late(line, 1);
}

function goTo(step) {
  stopPlaying();
  if (step > 0 && state.label === null) want(answer());
  if (partAt(state.picked).kind === "group") {
    state.change = 0;
    pickDefaults();
  }
  state.step = Math.min(DEPTH + 1, Math.max(0, step));
  state.added = Infinity;
  if (asker() && !calm.matches) {
    state.added = 0;
    play();
  }
  drawAll();
  if (state.step === 0) lightUp();
}

/** The network alone, at full width, with everything else folded; or all of it again. */
function lecture(on) {
  state.lecture = on;
  set(byId("lecture"), { "aria-pressed": on });
  document.body.classList.toggle("lecture", on);
  for (const panel of document.querySelectorAll("details")) panel.open = !on;
  buildNetwork();
}

function drawAll() {
  makeChange();
  drawHead();
  drawNetwork();
  drawNeuronPanel();
  drawCurves();
  drawHebb();
  drawCode();
  save();
}

function drawHead() {
  byId("bright").textContent = looks[0].matches ? "A bright neuron" : "A dark neuron";
  byId("title").textContent = state.label === null ? "Which digit is this?" : `What does this ${state.label} want?`;
  set(byId("sentence"), { "aria-live": state.change ? "off" : "polite" });
  byId("sentence").textContent = sentence();
  drawQuestion();
  for (const [n, button] of [...byId("steps").children].entries()) set(button, { "aria-current": n === state.step ? "step" : null });
  for (const button of byId("networks").children) set(button, { "aria-pressed": button.dataset.network === state.network });
  byId("wanted").value = state.label ?? "";
  for (const [n, button] of byId("digits").querySelectorAll("button").entries()) set(button, { "aria-pressed": n === state.image });
}

/** Only what a moving pen changes. */
function drawLive() {
  recompute();
  drawHead();
  drawNetwork();
}

function recompute() {
  compute();
  prepareWiggle();
  makeChange();
}

function drawEverything(panels = true) {
  recompute();
  if (panels) {
    drawLearned();
    return drawAll();
  }
  drawHead();
  drawNetwork();
}

/** In another light everything is drawn with other colours. */
function drawAgain() {
  colours.clear();
  paintDigits();
  drawEverything();
  drawDescent();
}

/** In the network: up and down choose a neuron, with shift a layer. */
function networkKey(event) {
  const way = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const [l, j] = state.chosen;
  const position = net.slots[l].findIndex((slot) => slot.j === j);
  const layer = event.shiftKey ? Math.min(DEPTH, Math.max(1, l + way)) : l;
  const count = net.slots[layer].length;
  const slot = net.slots[layer][event.shiftKey ? Math.min(position, count - 1) : (position + way + count) % count];
  choose(layer, slot.j);
  net.slots[layer].find((each) => each.j === state.chosen[1]).group.focus();
}

function stepKey(event) {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select, #pen")) return;
  event.preventDefault();
  goTo(state.step + way);
}

function buildControls() {
  STEPS.forEach((name, s) => {
    const text = `${s + 1} ${s < 2 ? "" : "← "}${name}`;
    const button = create("button", { title: stepTitle(s), "aria-label": `${text}: ${stepTitle(s)}` }, byId("steps"), text);
    button.addEventListener("click", () => goTo(s));
  });
  for (const name of Object.keys(start)) {
    const button = create("button", { "data-network": name }, byId("networks"), name);
    button.addEventListener("click", () => {
      restart(name);
      parametersChanged();
    });
  }
  for (let digit = 0; digit < 10; digit++) create("option", { value: digit }, byId("wanted"), digit);
  for (const [mode, [, words]] of Object.entries(MODES)) {
    const button = create("button", { "data-mode": mode }, byId("modes"), words);
    button.addEventListener("click", () => {
      descent.mode = mode;
      drawSettings();
      drawBatch();
    });
  }
  create("option", { value: "" }, byId("only"), "all digits");
  for (const digit of [...new Set(labels)].sort()) create("option", { value: digit }, byId("only"), `only ${digit}s`);
  byId("rate").value = Math.log10(DATA.learningRate);
  if (Math.max(...SIZES.slice(1)) > MOST) byId("most").textContent = ` Of a large layer the ${MOST} most active neurons are drawn.`;
  byId("invitation").textContent = touched === "tap" ? "Draw in the image with a finger, or tap a digit." : "Draw in the image, or choose a digit.";
  const source = "Every number on this page comes from a recording of the project's own Python functions, repeated here.";
  byId("caption").textContent = `${DATA.caption}. ${source}`;
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("wanted", "change", () => want(Number(byId("wanted").value)));
  on("clear", "click", () => {
    Object.assign(state, { image: null, x: new Float32Array(784) });
    pen.blank = true;
    imageChanged();
  });
  on("centre", "click", centre);
  on("play", "click", () => {
    if (player.timer) stopPlaying();
    else play();
    drawNetwork();
  });
  on("sum", "input", () => {
    stopPlaying();
    state.added = Number(byId("sum").value);
    drawNetwork();
    save();
  });
  on("wiggle", "input", () => {
    stopGranting();
    wiggleTo(Number(byId("wiggle").value));
  });
  on("still", "click", () => {
    stopGranting();
    wiggleTo(0);
    byId("wiggle").focus();
  });
  for (const button of document.querySelectorAll("[data-grant]")) button.addEventListener("click", () => grant(button.dataset.grant));
  on("hebbShow", "click", () => {
    goTo(0);
    pick(drawHebb.p);
    byId("stage").scrollIntoView({ block: "center" });
  });
  on("lecture", "click", () => {
    lecture(!state.lecture);
    drawAll();
  });
  on("net", "pointermove", (event) => {
    if (pen.down) return;
    const neuron = event.target.closest(".neuron");
    const edge = neuron ? null : under(event);
    if (neuron) byId("edge").textContent = `${capital(neuron.getAttribute("aria-label"))}. ${capital(touched)} it to see three ways to change it.`;
    else if (edge) describe(...edge);
  });
  on("net", "click", (event) => {
    const edge = event.target.closest(".neuron, #pen") ? null : under(event);
    if (edge) pick(weightAt(...edge));
  });
  on("net", "keydown", networkKey);
  on("rate", "input", drawSettings);
  on("only", "change", () => {
    descent.only = byId("only").value === "" ? null : Number(byId("only").value);
    resetAverage();
    drawDescent();
  });
  on("run", "click", toggleDescent);
  on("back", "click", goBack);
  on("once", "click", () => {
    stopDescent();
    stepDown(descent.mode, descent.only, rate());
    finishDescent();
  });
  on("again", "click", () => {
    restart();
    parametersChanged();
  });
  for (const button of document.querySelectorAll("[data-add]")) {
    button.addEventListener("click", () => gather(Number(button.dataset.add)));
  }
  addEventListener("keydown", stepKey);
  addEventListener("hashchange", restore);
  narrow.addEventListener("change", () => {
    buildNetwork();
    drawNetwork();
  });
  for (const list of document.querySelectorAll(".ways")) listEvents(list);
  for (const look of looks) look.addEventListener("change", drawAgain);
  addEventListener("resize", () => {
    if (!state.lecture) return;
    buildNetwork();
    drawNetwork();
  });
}

buildControls();
buildDigits();
buildCode();
buildLearned();
listen();
restore();
globalThis.lesson = { DATA, Recording, recordings, state, theta, descent, measure, address, now, lit, GROUPS, activationAt };
