// ---- what the export wrote ----

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIZES = DATA.sizes;
const DEPTH = SIZES.length - 1;

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return await new Response(stream).arrayBuffer();
}

const RECORDED = JSON.parse(new TextDecoder().decode(await unpack(DATA.recordings)));
const recordings = Object.fromEntries(Object.entries(RECORDED).map(([name, data]) => [name, new Recording(data)]));
const start = {};
for (const [name, text] of Object.entries(DATA.networks)) start[name] = new Float32Array(await unpack(text));
const SQUASH = []; // φ of each layer at 97 points from −12 to 12
for (const text of DATA.squash) SQUASH.push([...new Float32Array(await unpack(text))].map((a, n) => [n / 4 - 12, a]));
const pixels = {};
for (const [name, { x }] of Object.entries(DATA.images)) pixels[name] = new Uint8Array(await unpack(x));

const imageOf = (set, n) => Float32Array.from(pixels[set].subarray(784 * n, 784 * (n + 1)), (byte) => byte / 255);
const oneHot = (label) => Array.from({ length: 10 }, (_, digit) => Number(digit === label));

/** Where the weights and the biases of layer l = 1, 2, … begin in θ. */
const weightsAt = (l) => SIZES.slice(1, l).reduce((sum, n, k) => sum + n * (SIZES[k] + 1), 0);
const biasesAt = (l) => weightsAt(l) + SIZES[l] * SIZES[l - 1];
const weightAt = (l, j, k) => weightsAt(l) + j * SIZES[l - 1] + k;

/** After the parameters, p counts the activations of all layers but the last, and then three groups. */
const PARAMETERS = weightsAt(DEPTH + 1);
const activationsAt = (l) => SIZES.slice(0, l).reduce((sum, n) => sum + n, 0);
const activationAt = (l, k) => PARAMETERS + activationsAt(l) + k;
const ACTIVATIONS = activationsAt(DEPTH);
const GROUPS = { weights: PARAMETERS + ACTIVATIONS, before: PARAMETERS + ACTIVATIONS + 1, sum: PARAMETERS + ACTIVATIONS + 2 };
const LAST = GROUPS.sum;

/** What is at p: a weight (from k to j of layer l), a bias (k is null), an activation (l and j), or a group. */
function partAt(p) {
  if (p >= GROUPS.weights) return { kind: "group", group: Object.keys(GROUPS).find((name) => GROUPS[name] === p) };
  let l = 1;
  if (p >= PARAMETERS) {
    while (p >= activationAt(l, 0)) l++;
    return { kind: "activation", l: l - 1, j: p - activationAt(l - 1, 0) };
  }
  while (p >= biasesAt(l) + SIZES[l]) l++;
  if (p >= biasesAt(l)) return { kind: "bias", l, j: p - biasesAt(l), k: null };
  return { kind: "weight", l, j: Math.floor((p - weightsAt(l)) / SIZES[l - 1]), k: (p - weightsAt(l)) % SIZES[l - 1] };
}

// ---- the state, and what the recordings say of it ----

const MOST = 20; // neurons of a layer that are drawn
const byId = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 600px)");
const looks = ["(prefers-color-scheme: dark)", "(forced-colors: active)"].map((query) => matchMedia(query));
const touched = matchMedia("(pointer: coarse)").matches ? "tap" : "click";

const state = {
  network: "untrained",
  image: 2, // of those shown; null for a drawn one
  label: 2, // wanted; null for a drawing until its digit is told
  x: imageOf("shown", 2),
  step: 0,
  added: Infinity, // requests that are added up
  chosen: [DEPTH, 2], // layer and neuron
  picked: 0, // what is wiggled
  compared: 0, // and the one before it
  change: 0,
  lecture: false,
  history: [], // descents since the start: {mode, only, rate, steps}
};
const theta = new Float32Array(start.untrained);
const one = recordings.example;

/** What the recording of the example holds, read once after each run. */
const seen = new Map();
function value(name) {
  if (!seen.has(name)) seen.set(name, one.read(name));
  return seen.get(name);
}

/** The same image after the change that is being made: what the network shows. */
const changed = new Recording(RECORDED.example);
const seenChanged = new Map();
function now(name) {
  if (!state.change) return value(name);
  if (!seenChanged.has(name)) seenChanged.set(name, changed.read(name));
  return seenChanged.get(name);
}
const thetaNow = () => (state.change ? changed.tensors.parameters.data : theta);

const largest = (values) => values.reduce((most, each) => Math.max(most, Math.abs(each)), 0) || 1;
const answer = (a = now(`a${DEPTH}`)) => a.indexOf(Math.max(...a));
const before = (l) => (l === 1 ? state.x : value(`a${l - 1}`));
const row = (name, j, width, of = value) => of(name).slice(j * width, (j + 1) * width);

/** The layer whose neurons ask in this step; 0 where none does. */
const asker = () => (state.step < 2 ? 0 : DEPTH + 2 - state.step);
const requests = () => (asker() ? SIZES[asker()] : 0);
const added = () => Math.min(Math.max(state.added, 1), requests());

/** What layer l is asked to change in this step, or null before it is asked. */
function asked(l) {
  if (l === DEPTH) return state.step >= 1 ? now(`asked${l}`) : null;
  if (!asker() || l < asker() - 1) return null;
  const running = l === asker() - 1 && added() < requests();
  return running ? row(`sums${asker()}`, added() - 1, SIZES[l], now) : now(`asked${l}`);
}

function compute() {
  one.run({ parameters: theta, x: state.x, y: oneHot(state.label) });
  seen.clear();
  scales.clear();
  directions.clear();
}

// ---- words ----

const layerName = (l) => (l === 0 ? "the pixels" : l === DEPTH ? "the outputs" : `layer ${l}`);
const pixelName = (k) => `pixel ${k % 28}, ${Math.floor(k / 28)}`;
const neuronName = (l, j) => (l === 0 ? pixelName(j) : l === DEPTH ? `output ${j}` : `neuron ${j} of layer ${l}`);
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const minus = (text) => text.replace("-", "−");

/** A number with its leading digits; very small and very large ones as powers of ten. */
function digits(number, sign = false, count = 3) {
  const size = Math.abs(number);
  const plus = sign && number > 0 ? "+" : "";
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) {
    const [factor, power] = number.toExponential(Math.max(1, count - 2)).split("e");
    return minus(`${plus}${factor}·10`) + superscript(Number(power));
  }
  return minus(plus + number.toFixed(Math.max(0, count - 1 - Math.floor(Math.log10(size)))));
}

const superscript = (power) => [...String(power)].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]).join("");
const inside = (a) => minus(Math.abs(a) < 9.95 ? a.toFixed(2).replace(/^(-?)0\./, "$1.").slice(0, a < 0 ? 4 : 3) : a.toFixed(0));

/** A number as it stands beside an arrow. */
function brief(number) {
  const size = Math.abs(number);
  if (size === 0) return "0";
  if (size < 1e-3) {
    const [factor, power] = number.toExponential(0).split("e");
    return minus(`${number > 0 ? "+" : ""}${factor}·10`) + superscript(Number(power));
  }
  return minus(`${number > 0 ? "+" : ""}${size < 0.0995 ? number.toFixed(size < 0.00995 ? 3 : 2) : number.toFixed(size < 10 ? 2 : 0)}`);
}

function sentence() {
  const l = asker();
  const cost = state.label === null ? "" : `, and the cost is ${digits(now("cost")[0])}`;
  if (state.step === 0) {
    const way = SIZES.slice(1, -1).map((_, n) => `layer ${n + 1}`);
    const lit = [...way, "the outputs"].join(", which lights up ");
    return `The pixels light up ${lit}: the brightest is the answer, ${answer()}${cost}.`;
  }
  if (state.step === 1) {
    return `The image wants output ${state.label} to rise and all others to fall, each in proportion to how far it is from its target.`;
  }
  if (l === 1) {
    const asks = l === DEPTH ? "The outputs ask" : "Layer 1 asks";
    return `${asks} the pixels: with more ink where it is blue and less where it is orange, the cost would fall.`;
  }
  if (l === DEPTH) {
    return `Each output asks layer ${l - 1} for changes, in proportion to its weights and its own wish, and all requests are added up.`;
  }
  return `Each neuron of layer ${l} asks layer ${l - 1} in the same way, and again all requests are added up.`;
}

const askedNames = Array.from({ length: DEPTH }, (_, n) => (n === DEPTH - 1 ? "pixels" : `layer ${DEPTH - 1 - n}`));
const STEPS = ["forward", "outputs", ...askedNames];

function stepTitle(s) {
  if (s === 0) return "Forward: from the pixels to the outputs";
  if (s === 1) return "What the image wants of the outputs";
  return `What ${layerName(DEPTH + 2 - s)} ask${s === 2 ? "" : "s"} of ${layerName(DEPTH + 1 - s)}`;
}

// ---- elements ----

function create(name, attributes = {}, parent = null, text = null) {
  const svg = ["svg", "g", "line", "circle", "text", "tspan", "path", "image", "rect", "polyline"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  set(element, attributes);
  if (text !== null) element.textContent = text;
  parent?.append(element);
  return element;
}

function set(element, attributes) {
  for (const [name, content] of Object.entries(attributes)) {
    if (content === null) element.removeAttribute(name);
    else element.setAttribute(name, content);
  }
}

const signOf = (number) => (number > 0 ? "raise" : number < 0 ? "lower" : "");

/** A colour of the style sheet, as a canvas takes it. */
const colours = new Map();
function colour(name) {
  if (!colours.has(name)) {
    byId("probe").style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(byId("probe")).color);
  }
  return colours.get(name);
}

/** 28×28 values as ink, or as wishes: a full square asks for more, a striped one for less. */
function paint(canvas, values, wishes = false) {
  const [size, most] = [canvas.width / 28, largest(values)];
  const [paper, ink, raise, lower] = ["paper", "ink", "raise", "lower"].map(colour);
  const context = canvas.getContext("2d");
  context.fillStyle = paper;
  context.fillRect(0, 0, canvas.width, canvas.width);
  for (const [n, each] of values.entries()) {
    if (each === 0) continue;
    const [left, top] = [(n % 28) * size, Math.floor(n / 28) * size];
    context.globalAlpha = Math.min(1, wishes ? Math.abs(each) / most : Math.max(0, each));
    context.fillStyle = !wishes ? ink : each > 0 ? raise : lower;
    const stripes = wishes && each < 0 ? 3 : 1;
    for (let n = 0; n < stripes; n++) context.fillRect(left, top + (n * size) / 3, size, stripes > 1 ? size / 4.5 : size);
  }
  context.globalAlpha = 1;
}
