// ---- descend ----

const MODES = { one: [1, "one example"], mini: [100, "a mini-batch of 100"], all: [1000, "all thousand"], three: [100, "all three, from the start"] };
const WALKS = { one: "one example a step", mini: "100 a step", all: "all thousand a step" };
const BEGINNING = { steps: 0, shown: 0, costs: [], evaluated: [], path: [], every: 1, plane: null, surface: null, lost: false, walks: null, batch: [] };
const descent = { mode: "mini", only: null, timer: 0, token: 0, kept: null, again: null, ...structuredClone(BEGINNING) };
const rate = () => Number((10 ** Number(byId("rate").value)).toPrecision(2));

/** A random order of n things that is the same each time: Fisher and Yates, with a linear congruence. */
function shuffled(n, seed) {
  const order = [...Array(n).keys()];
  let random = seed + 1;
  for (let k = n - 1; k > 0; k--) {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    const other = Math.floor((random / 2 ** 32) * (k + 1));
    [order[k], order[other]] = [order[other], order[k]];
  }
  return order;
}

const labels = DATA.images.training.labels;
const listened = (only) => [...labels.keys()].filter((n) => only === null || labels[n] === only);

/** The images at `at`, at + 1, … of the shuffled ones; when all were seen, they are shuffled anew. */
function nextImages(only, at, count) {
  const images = listened(only);
  let [round, order] = [-1, []];
  return Array.from({ length: count }, (_, n) => {
    const here = Math.floor((at + n) / images.length);
    if (here !== round) [round, order] = [here, shuffled(images.length, here)];
    return images[order[(at + n) % images.length]];
  });
}

function fillBatch(recording, images) {
  const x = recording.tensors.x.data;
  images.forEach((image, n) => {
    for (let k = 0; k < 784; k++) x[784 * n + k] = pixels.training[784 * image + k] / 255;
  });
  recording.write("y", images.flatMap((image) => oneHot(labels[image])));
}

/** One step from `from`, on the next images after those `shown`. Returns θ after it, or null if the cost is not finite. */
function stepFrom(from, shown, count, only, speed) {
  const recording = recordings[`step${count}`];
  descent.batch = nextImages(only, shown, count);
  fillBatch(recording, descent.batch);
  recording.run({ parameters: from, rate: [speed] });
  const after = recording.tensors.parameters.data;
  return [recording.number("cost"), ...after].every(Number.isFinite) ? after : null;
}

function lose() {
  descent.lost = true;
  stopDescent();
}

function stepDown(mode, only, speed) {
  if (mode === "three") return stepThree(only, speed);
  const [count] = MODES[mode];
  descent.walks = null;
  if (!descent.path.length) keepPoint();
  const after = stepFrom(theta, descent.shown, count, only, speed);
  if (!after) return lose();
  theta.set(after);
  descent.steps += 1;
  descent.shown += count;
  descent.costs.push(recordings[`step${count}`].number("cost"));
  remember(mode, only, speed);
  keepPoint();
}

/** From one start, one step of each of the three. */
function stepThree(only, speed) {
  if (!descent.walks) {
    if (descent.steps) restart();
    const begin = () => ({ theta: theta.slice(), path: [theta.slice()], costs: [], lost: false });
    descent.walks = { one: begin(), mini: begin(), all: begin() };
    measureThree();
  }
  for (const [mode, walk] of Object.entries(descent.walks)) {
    const [count] = MODES[mode];
    const after = walk.lost ? null : stepFrom(walk.theta, descent.steps * count, count, only, speed);
    walk.lost = !after;
    if (after) walk.theta.set(after);
    if (after) walk.path.push(walk.theta.slice());
    if (walk.path.length > 128) walk.path = walk.path.filter((_, n) => n % 2 === 0);
  }
  theta.set(descent.walks.mini.theta);
  descent.steps += 1;
  descent.shown += 100;
  descent.costs.push(recordings.step100.number("cost"));
  remember("three", only, speed);
}

/** The cost of all thousand images where each of the three is. */
function measureThree() {
  for (const walk of Object.values(descent.walks)) {
    if (!walk.lost && walk.costs.at(-1)?.step !== descent.steps) walk.costs.push({ step: descent.steps, cost: costAt(walk.theta) });
  }
}

function remember(mode, only, speed) {
  const last = state.history.at(-1);
  if (last && last.mode === mode && last.only === only && last.speed === speed) last.steps += 1;
  else state.history.push({ mode, only, speed, steps: 1 });
}

/** Keep θ as a point of the path; of more than 200 points every other one. */
function keepPoint() {
  if (descent.steps % descent.every) return;
  descent.path.push(theta.slice());
  if (descent.path.length <= 200) return;
  descent.path = descent.path.filter((_, n) => n % 2 === 0);
  descent.every *= 2;
}

/** The mean cost of all thousand images at a point. */
function costAt(point) {
  if (!costAt.filled) fillBatch(recordings.evaluate, [...labels.keys()]);
  costAt.filled = true;
  return recordings.evaluate.run({ parameters: point }).number("cost");
}

function evaluate() {
  if (descent.walks) measureThree();
  costAt(theta);
  const [cost, right] = ["cost", "right"].map((name) => recordings.evaluate.number(name));
  const result = { step: descent.steps, cost, right, answers: recordings.evaluate.read("answers") };
  if (descent.evaluated.at(-1)?.step !== result.step) descent.evaluated.push(result);
}

/** Begin anew. A descent that is left is kept, so that one can go back to it. */
function restart(name = state.network) {
  stopDescent();
  const { steps, timer, token, kept, again, ...rest } = descent;
  if (steps) descent.kept = { ...rest, steps, network: state.network, theta: theta.slice(), history: state.history };
  theta.set(start[name]);
  Object.assign(state, { network: name, history: [] });
  Object.assign(descent, structuredClone(BEGINNING));
}

function goBack() {
  const { network, theta: point, history, ...rest } = descent.kept;
  stopDescent();
  Object.assign(descent, rest, { kept: null });
  Object.assign(state, { network, history });
  theta.set(point);
  parametersChanged();
  save();
}

function toggleDescent() {
  if (descent.timer) {
    stopDescent();
    return finishDescent();
  }
  let [drawn, planned] = [0, 0];
  const frame = (now) => {
    for (let n = 0; n < (descent.mode === "one" ? 4 : 1); n++) stepDown(descent.mode, descent.only, rate());
    if (descent.lost) return drawSettings();
    if (now > drawn) {
      evaluate();
      parametersChanged();
      drawn = performance.now() + (descent.walks ? 900 : 160);
    }
    if (now > planned) {
      fitPlane();
      planned = performance.now() + 1500 + 8 * (performance.now() - now);
    }
    descent.timer = requestAnimationFrame(frame);
  };
  descent.timer = requestAnimationFrame(frame);
  drawSettings();
}

function stopDescent() {
  cancelAnimationFrame(descent.timer);
  descent.timer = 0;
  descent.token += 1;
}

function finishDescent() {
  if (descent.lost) return drawSettings();
  evaluate();
  parametersChanged();
  fitPlane();
  drawSurface();
  save();
}

/** Make the steps of an address again, a few at a time, so that the page stays awake and says how far it is. */
async function descendAgain(history) {
  const { mode, only, speed } = history.at(-1);
  Object.assign(descent, { mode, only });
  byId("rate").value = Math.log10(speed);
  const [token, total] = [descent.token, history.reduce((sum, { steps }) => sum + steps, 0)];
  for (const { mode, only, speed, steps } of history) {
    for (let n = 0; n < steps && !descent.lost; n++) {
      stepDown(mode, only, speed);
      if (n % 5) continue;
      if (descent.walks) measureThree();
      descent.again = `Making ${total.toLocaleString("en")} steps again: ${Math.floor((100 * descent.steps) / total)} %.`;
      drawSettings();
      await new Promise((done) => setTimeout(done));
      if (token !== descent.token) break;
    }
    if (token !== descent.token) break;
  }
  descent.again = null;
  if (token === descent.token) finishDescent();
}

function parametersChanged() {
  scales.clear();
  resetAverage();
  drawEverything(!descent.timer);
  drawDescent();
}

// ---- what the descent looks like ----

function drawSettings() {
  for (const button of document.querySelectorAll("#modes button")) set(button, { "aria-pressed": button.dataset.mode === descent.mode });
  byId("only").value = descent.only ?? "";
  byId("rateText").textContent = rate();
  byId("run").textContent = descent.timer ? "stop" : "descend";
  byId("back").hidden = !descent.kept;
  if (descent.kept) byId("back").textContent = `back to the ${inSteps(descent.kept.steps)} before`;
  const said = descent.steps ? soFar(descent.evaluated.at(-1)) : whatAStepDoes();
  const lost = "The cost is no longer finite; the step that led there was not taken. Start again with a smaller learning rate.";
  byId("descentText").textContent = descent.again ?? (descent.lost ? lost : said);
}

const inSteps = (steps) => `${steps.toLocaleString("en")} step${steps > 1 ? "s" : ""}`;

function soFar({ step, cost, right, answers }) {
  const so = `${inSteps(step)}: over all thousand images the cost is ${digits(cost)}, and ${Math.round(100 * right)} % of the answers are right.`;
  return descent.walks ? ofThree() : `${so}${stuck(answers)}`;
}

/** Whether every image gets the same answer, and why. */
function stuck(answers) {
  const [most, digit] = [Math.max(...answers), answers.indexOf(Math.max(...answers))];
  if (most < 985 || descent.steps < 3) return "";
  if (descent.only === digit) return ` Every answer is ${digit}: it listened only to images of a ${digit}.`;
  return ` Stuck: every answer is ${digit}. The steps were too long; start again with a smaller learning rate.`;
}

function ofThree() {
  const costs = Object.entries(descent.walks).map(([mode, { costs, lost }]) => {
    const images = (MODES[mode][0] * descent.steps).toLocaleString("en");
    return `${lost ? "no longer finite" : digits(costs.at(-1).cost)} with ${WALKS[mode]} (${images} images in all)`;
  });
  return `${inSteps(descent.steps)} each, from one start. The cost: ${costs.join(", ")}.`;
}

function whatAStepDoes() {
  const [[count, words], images] = [MODES[descent.mode], listened(descent.only).length];
  if (descent.mode === "three") return "No step yet. Three descents begin here, and each takes as many steps as the others.";
  const among = descent.only === null ? "the thousand images" : `the ${images} images of a ${descent.only}`;
  return `No step yet. Each step listens to ${words} of ${among}${count > images ? ", some of them again" : ""}.`;
}

function drawDescent() {
  if (!descent.evaluated.length) evaluate();
  drawSettings();
  drawCosts();
  drawPath();
  drawAnswers();
  drawBatch();
  drawAverage();
}

function drawCosts() {
  const { costs, evaluated, walks } = descent;
  if (walks) return drawThreeCosts(walks);
  const every = Math.max(1, Math.floor(costs.length / 300));
  const steps = [...costs.keys()].filter((n) => n % every === 0);
  const all = evaluated.map((each) => each.cost);
  const most = Math.max(...[...all, ...steps.map((n) => costs[n])].filter(Number.isFinite), 0) * 1.05 || 1;
  const frame = chartFrame(byId("costChart"), 220, [0, Math.max(10, descent.steps)], [0, most]);
  frame.line(steps, steps.map((n) => costs[n]), "thin");
  frame.line(evaluated.map((each) => each.step), all);
  frame.dot(evaluated.at(-1).step, all.at(-1), "dot");
  frame.ends();
  frame.label("steps");
  byId("costNote").textContent = "of each step's images (thin), and of all thousand (bold)";
  set(byId("costChart"), { "aria-label": `The cost over ${descent.steps} steps; now ${digits(all.at(-1))}` });
}

function drawThreeCosts(walks) {
  const most = Math.max(...Object.values(walks).flatMap(({ costs }) => costs.map(({ cost }) => cost)));
  const frame = chartFrame(byId("costChart"), 220, [0, Math.log10(1000 * Math.max(10, descent.steps))], [0, most * 1.05]);
  const ends = Object.entries(walks).map(([mode, { costs }]) => {
    const images = (step) => Math.log10(Math.max(1, step * MODES[mode][0]));
    frame.line(costs.map(({ step }) => images(step)), costs.map(({ cost }) => cost), mode);
    return [mode, frame.x(images(costs.at(-1).step)) + 7, frame.y(costs.at(-1).cost) - 5];
  });
  nameWalks(frame, ends);
  frame.ends();
  frame.svg.querySelectorAll("text")[5].textContent = "1 image";
  frame.svg.querySelectorAll("text")[6].textContent = (1000 * Math.max(10, descent.steps)).toLocaleString("en");
  byId("costNote").textContent = "of all thousand images, by how many images each of the three has listened to, drawn by powers of ten";
  set(byId("costChart"), { "aria-label": ofThree() });
}

/** Write the names of the three beside their ends, one below another where they are close. */
function nameWalks(frame, ends) {
  let last = -Infinity;
  for (const [mode, x, y] of ends.toSorted((p, q) => p[2] - q[2])) {
    last = Math.max(y, last + 13);
    frame.text(x - 7, last, mode === "mini" ? "100" : mode, "end");
  }
}

/** The points of all paths, as many of each: [[mode, points], …]. */
function paths() {
  const count = recordings.plane.tensors.path.shape[1];
  const all = descent.walks ? Object.entries(descent.walks).map(([mode, { path }]) => [mode, path]) : [["", descent.path]];
  return all.map(([mode, path], n) => {
    const some = Math.floor(count / all.length) + (n < count % all.length ? 1 : 0);
    return [mode, Array.from({ length: some }, (_, k) => path[Math.round((k * (path.length - 1)) / (some - 1))])];
  });
}

/** The paths in the plane of their two main directions, as Python's recorded function finds it. */
function fitPlane() {
  if (!descent.walks && descent.path.length < 3) return;
  const all = paths();
  for (const [n, point] of all.flatMap(([, points]) => points).entries()) recordings.plane.tensors.path.data.set(point, n * theta.length);
  recordings.plane.run();
  const [xs, ys] = ["along_at", "across_at"].map((name) => recordings.plane.read(name));
  let at = 0;
  const lines = all.map(([mode, points]) => {
    at += points.length;
    return { mode, xs: xs.slice(at - points.length, at), ys: ys.slice(at - points.length, at) };
  });
  descent.plane = { lines, wide: span(xs), high: span(ys) };
  descent.surface = null;
  drawPath();
}

const GRID = 15;

/** The cost at the points of the plane, a few at a time. */
async function drawSurface() {
  if (!descent.plane) return;
  const [token, recording, { wide, high }] = [descent.token, recordings.surface, descent.plane];
  if (!drawSurface.filled) fillBatch(recording, [...labels.keys()]);
  drawSurface.filled = true;
  for (const name of ["origin", "along", "across"]) recording.write(name, recordings.plane.read(name));
  const costs = [];
  for (let n = 0; n < GRID * GRID; n++) {
    const [column, line] = [n % GRID, Math.floor(n / GRID)].map((each) => (each + 0.5) / GRID);
    const along_at = [wide[0] + column * (wide[1] - wide[0])];
    const across_at = [high[1] - line * (high[1] - high[0])];
    costs.push(recording.run({ along_at, across_at }).number("cost"));
    if (n % 3 === 0) await new Promise((done) => setTimeout(done));
    if (token !== descent.token) return;
  }
  descent.surface = { costs, low: Math.min(...costs), top: Math.max(...costs) };
  drawPath();
}

/** The ground as a picture: shaded where it costs more. */
function shaded({ costs, low, top }) {
  const canvas = create("canvas", { width: GRID, height: GRID });
  const context = canvas.getContext("2d");
  context.fillStyle = colour("soft");
  costs.forEach((cost, n) => {
    context.globalAlpha = (0.6 * (cost - low)) / (top - low || 1);
    context.fillRect(n % GRID, Math.floor(n / GRID), 1, 1);
  });
  return canvas.toDataURL();
}

function drawPath() {
  const { plane, surface } = descent;
  const note = byId("pathNote");
  if (!plane) {
    chartFrame(byId("pathChart"), 220, [0, 1], [0, 1]);
    set(byId("pathChart"), { "aria-label": "No path yet" });
    note.textContent = "in the plane of its two main directions, once there are three points";
    return;
  }
  const frame = chartFrame(byId("pathChart"), 220, plane.wide, plane.high);
  const [[left, right], [low, high]] = [plane.wide.map(frame.x), plane.high.map(frame.y)];
  const ground = { x: left, y: high, width: right - left, height: low - high, preserveAspectRatio: "none" };
  if (surface) create("image", { ...ground, href: shaded(surface) }, frame.svg);
  for (const { mode, xs, ys } of plane.lines.toReversed()) {
    frame.line(xs, ys, mode);
    frame.dot(xs.at(-1), ys.at(-1), "dot");
  }
  if (descent.walks) nameWalks(frame, plane.lines.map(({ mode, xs, ys }) => [mode, frame.x(xs.at(-1)), frame.y(ys.at(-1)) + 4]));
  frame.dot(plane.lines[0].xs[0], plane.lines[0].ys[0], "hollow");
  frame.label("main direction");
  const upward = frame.text(0, 0, "second direction", "middle");
  set(upward, { transform: `translate(${left - 8} ${(low + high) / 2}) rotate(-90)` });
  const stretch = (plane.wide[1] - plane.wide[0]) / (plane.high[1] - plane.high[0]) / ((right - left) / (low - high));
  const costs = surface ? `; shaded ground costs more, ${digits(surface.low)} to ${digits(surface.top)}` : "";
  const thinned = !descent.walks && descent.steps > 63 ? ` 64 of ${(descent.steps + 1).toLocaleString("en")} points are drawn.` : "";
  note.textContent =
    `θ has ${PARAMETERS.toLocaleString("en")} dimensions; these are the two in which the path is longest, from ○ to ●, ` +
    `the second drawn ${stretch.toFixed(1)} times as large${costs}.${thinned}${descent.walks ? ` ${MEN}` : ""}`;
  set(byId("pathChart"), { "aria-label": `The path of ${descent.steps} steps. ${note.textContent}` });
}

const MEN = "One example a step: a drunk man who takes quick steps. All thousand: a careful man who takes slow ones.";

function drawAnswers() {
  const { answers } = descent.evaluated.at(-1);
  const truth = oneHot(-1).map((_, digit) => labels.filter((label) => label === digit).length);
  const frame = chartFrame(byId("answerChart"), 220, [-0.6, 9.6], [0, Math.max(...answers, ...truth) * 1.14]);
  answers.forEach((count, digit) => {
    const [left, right, top, bottom] = [frame.x(digit - 0.32), frame.x(digit + 0.32), frame.y(count), frame.y(0)];
    create("rect", { class: "bar", x: left, y: top, width: right - left, height: bottom - top }, frame.svg);
    create("path", { d: `M${left - 3} ${frame.y(truth[digit])} H${right + 3}` }, frame.svg);
    frame.text(frame.x(digit), 215, digit, "middle");
    if (count) frame.text(frame.x(digit), Math.min(top, frame.y(truth[digit])) - 5, Math.round(count), "middle");
  });
  const whose = descent.walks ? "with 100 a step: " : "";
  byId("answerNote").textContent = `${whose}how many of the thousand images get each answer; the lines are what is right`;
  set(byId("answerChart"), { "aria-label": `Answers 0 to 9: ${answers.join(", ")}` });
}

/** The images of the last step, at most a hundred of them; before the first, those of the one to come. */
function drawBatch() {
  const [count] = MODES[descent.mode];
  const images = descent.batch.length ? descent.batch : nextImages(descent.only, descent.shown, count);
  const columns = images.length === 1 ? 1 : 10;
  const canvas = byId("batch");
  Object.assign(canvas, { width: 28 * columns, height: 28 * Math.ceil(Math.min(100, images.length) / columns) });
  const picture = new ImageData(canvas.width, canvas.height);
  const ink = colour("ink").match(/[\d.]+/g);
  images.slice(0, 100).forEach((image, n) => {
    for (let k = 0; k < 784; k++) {
      const line = 28 * Math.floor(n / columns) + Math.floor(k / 28);
      picture.data.set([...ink, pixels.training[784 * image + k]], 4 * (line * canvas.width + 28 * (n % columns) + (k % 28)));
    }
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const which = descent.batch.length ? "the last step" : "the next step";
  const some = images.length > 100 ? ", the first hundred" : images.length > 1 ? ", shuffled" : "";
  byId("batchNote").textContent = `what ${which} listens to${some}: a label was given to each by hand`;
  set(canvas, { "aria-label": `${images.length} image${images.length > 1 ? "s" : ""}` });
}

// ---- the average wish ----

const gathered = { count: 0, distances: [], ready: false };

function resetAverage() {
  Object.assign(gathered, { count: 0, distances: [], ready: false });
}

/** −∇C over all thousand images: a step with the learning rate 0. */
function prepareAverage() {
  const recording = recordings.step1000;
  fillBatch(recording, [...labels.keys()]);
  recording.run({ parameters: theta, rate: [0] });
  const zeros = new Float32Array(theta.length);
  const given = { parameters: theta, total: zeros, count: [0], whole: recording.read("gradient") };
  for (const [name, contents] of Object.entries(given)) recordings.average.write(name, contents);
  gathered.ready = true;
}

function gather(count) {
  if (!gathered.ready) prepareAverage();
  const most = Math.min(count, 1000 - gathered.count);
  for (const image of nextImages(descent.only, gathered.count, most)) {
    fillBatch(recordings.average, [image]);
    gathered.distances.push(recordings.average.run().number("distance"));
    gathered.count += 1;
  }
  drawAverage();
}

function drawAverage() {
  const { count, distances } = gathered;
  const of = descent.only === null ? "" : ` of a ${descent.only}`;
  byId("averageNote").textContent = count
    ? `of ${count} image${count > 1 ? "s" : ""}${of}: its distance from −∇C over all thousand is ${digits(distances.at(-1))} times the length of that`
    : "add images one by one, and see how the average of their wishes settles at −∇C";
  const most = Math.max(10, count);
  const frame = chartFrame(byId("averageChart"), 130, [0, Math.log10(most)], [0, Math.max(1, ...distances) * 1.05]);
  const drawn = distances.map((_, n) => n).filter((n) => n < 100 || n % 10 === 0 || n === count - 1);
  frame.line(drawn.map((n) => Math.log10(n + 1)), drawn.map((n) => distances[n]));
  frame.ends();
  frame.svg.querySelectorAll("text")[2].textContent = "1 image";
  frame.svg.querySelectorAll("text")[3].textContent = most;
  set(frame.svg, { "aria-label": "How far the average wish is from that of all images" });
  drawBiasWishes(count);
}

/** The average wish for the ten biases of the outputs, beside that of all images. */
function drawBiasWishes(count) {
  const part = (name) => (count ? recordings.average.read(name).slice(biasesAt(DEPTH)) : oneHot(-1));
  const [wish, all] = [part("wish"), part("whole_wish")];
  const most = largest([...wish, ...all]);
  const frame = chartFrame(byId("biasChart"), 112, [-0.6, 9.6], [-most, most]);
  frame.svg.firstChild.remove();
  create("path", { class: "axis", d: `M${frame.x(-0.6)} ${frame.y(0)} H${frame.x(9.6)}` }, frame.svg);
  wish.forEach((each, digit) => {
    const [middle, tip, foot] = [frame.x(digit), frame.y(each), frame.y(0)];
    create("path", { class: `filled ${signOf(each)}`, d: `M${middle - 7} ${foot} L${middle} ${tip} L${middle + 7} ${foot} Z` }, frame.svg);
    if (count) create("path", { d: `M${middle - 11} ${frame.y(all[digit])} H${middle + 11}` }, frame.svg);
    frame.text(middle, 109, digit, "middle");
  });
  frame.text(frame.x(-0.6), 8, "of the outputs' biases; lines: all thousand");
  set(frame.svg, { "aria-label": `Average wish for the outputs' biases: ${wish.map((each) => digits(each, true)).join(", ")}` });
}
