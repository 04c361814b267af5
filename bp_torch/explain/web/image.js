// ---- the image: chosen, or drawn with mouse, finger or keys ----

const LEVELS = 15; // of ink, so that an address can hold a drawing
const PEN = "Draw here. Keys: the arrows move the pen, space draws, backspace erases.";
const pen = { down: false, blank: false, from: null, at: [14, 14], last: null };

function chooseImage(n) {
  Object.assign(state, { image: n, x: imageOf("shown", n) });
  want(DATA.images.shown.labels[n]);
  pen.last = null;
  if (state.step === 0) lightUp();
}

/** Another output is wanted; if the one that was is chosen, so is the new one. */
function want(label) {
  const follows = state.chosen[0] === DEPTH && (state.label === null || state.chosen[1] === state.label);
  state.label = label;
  recompute();
  if (follows) Object.assign(state, { chosen: [DEPTH, label], change: 0 });
  if (follows) pickDefaults();
  drawEverything();
}

function imageChanged() {
  pen.last = null;
  drawEverything();
}

/** A new drawing has no label until somebody gives it one; meanwhile the network only goes forward. */
function drawn() {
  if (state.image !== null || pen.blank) Object.assign(state, { label: null, step: 0, change: 0 });
  pen.blank = false;
  if (state.image !== null) Object.assign(state, { image: null, x: state.x.map((v) => Math.round(v * LEVELS) / LEVELS) });
}

function ink(column, line, radius = 1.2) {
  drawn();
  state.x.forEach((old, n) => {
    const far = Math.hypot((n % 28) + 0.5 - column, Math.floor(n / 28) + 0.5 - line);
    const dark = Math.round(Math.min(1, Math.max(0, radius + 0.5 - far)) * LEVELS) / LEVELS;
    state.x[n] = Math.max(old, dark);
  });
}

/** Ink along the way from the last point, so that a quick stroke has no gaps. */
function stroke(column, line) {
  const [c, l] = pen.last ?? [column, line];
  const count = Math.max(1, Math.ceil(Math.hypot(column - c, line - l)));
  for (let n = 1; n <= count; n++) ink(c + ((column - c) * n) / count, l + ((line - l) * n) / count);
  pen.last = [column, line];
}

/** Draw by moving; a touch of one point picks the weight from that pixel. */
function penEvents(paper) {
  const place = (event) => inImage(inNetwork(event));
  paper.addEventListener("pointerdown", (event) => {
    paper.setPointerCapture(event.pointerId);
    Object.assign(pen, { from: place(event), last: null });
  });
  paper.addEventListener("pointermove", (event) => {
    if (!pen.from) return;
    const moved = Math.hypot(...place(event).map((v, n) => v - pen.from[n]));
    if (!pen.down && moved < 0.7) return;
    if (!pen.down) stroke(...pen.from);
    pen.down = true;
    for (const each of event.getCoalescedEvents?.() ?? [event]) stroke(...place(each));
    drawLive();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    paper.addEventListener(name, (event) => {
      const [down, from] = [pen.down, pen.from];
      Object.assign(pen, { down: false, from: null });
      if (down) imageChanged();
      else if (from && name === "pointerup" && under(event)) pick(weightAt(...under(event)));
    });
  }
  paper.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false }); // or the window scrolls
  paper.addEventListener("keydown", penKey);
  for (const name of ["focus", "blur"]) paper.addEventListener(name, drawImage);
}

function penKey(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const [column, line] = pen.at;
  if (moves[event.key]) pen.at = pen.at.map((v, n) => Math.min(27, Math.max(0, v + moves[event.key][n])));
  else if (event.key === " ") ink(column + 0.5, line + 0.5);
  else if (event.key === "Backspace") erase(column, line);
  else return;
  event.preventDefault();
  event.stopPropagation();
  moves[event.key] ? drawImage() : imageChanged();
}

function erase(column, line) {
  drawn();
  state.x = state.x.map((v, n) => (Math.hypot((n % 28) - column, Math.floor(n / 28) - line) < 1.5 ? 0 : v));
}

/** Fit the ink into 20×20 pixels and move its centre of mass to the middle, as the images of MNIST were made. */
function centre() {
  const inked = [...state.x.keys()].filter((n) => state.x[n] > 0.1);
  if (!inked.length) return;
  const [columns, lines] = [inked.map((n) => n % 28), inked.map((n) => Math.floor(n / 28))];
  const [left, top] = [Math.min(...columns), Math.min(...lines)];
  const [width, height] = [Math.max(...columns) - left + 1, Math.max(...lines) - top + 1];
  const scale = 20 / Math.max(width, height);
  const source = inked28(state.x);
  const fitted = (dx, dy) => {
    const context = create("canvas", { width: 28, height: 28 }).getContext("2d");
    context.drawImage(source, left, top, width, height, dx, dy, width * scale, height * scale);
    const bytes = context.getImageData(0, 0, 28, 28).data;
    return Float32Array.from({ length: 784 }, (_, n) => Math.round((bytes[4 * n + 3] / 255) * LEVELS) / LEVELS);
  };
  const first = fitted(4, 4);
  const mass = first.reduce((sum, v) => sum + v, 0);
  const mean = (coordinate) => first.reduce((sum, v, n) => sum + v * (coordinate(n) + 0.5), 0) / mass;
  const [dx, dy] = [mean((n) => n % 28), mean((n) => Math.floor(n / 28))].map((v) => Math.round(14 - v));
  Object.assign(state, { image: null, x: fitted(4 + dx, 4 + dy) });
  imageChanged();
}

/** A canvas that is as opaque as the image is dark. */
function inked28(x) {
  const canvas = create("canvas", { width: 28, height: 28 });
  const image = new ImageData(28, 28);
  for (const [n, each] of x.entries()) image.data[4 * n + 3] = 255 * each;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The keyboard's pen, as a frame around its pixel. */
function drawPen() {
  if (document.activeElement !== net.paper || !net.paper.matches(":focus-visible")) return;
  const [context, size] = [net.canvas.getContext("2d"), net.canvas.width / 28];
  context.strokeStyle = colour("focus");
  context.lineWidth = size / 4;
  context.strokeRect(pen.at[0] * size, pen.at[1] * size, size, size);
}

/** The question after a drawing, with the network's own answer as the first one offered. */
function drawQuestion() {
  const asks = state.label === null;
  byId("which").hidden = !asks;
  byId("sentence").hidden = asks;
  if (!asks) return;
  byId("guess").textContent = `The network says ${answer()}. What is it?`;
  for (const button of byId("which").querySelectorAll("button")) {
    button.classList.toggle("guessed", Number(button.dataset.digit) === answer());
  }
}

function buildDigits() {
  const labels = DATA.images.shown.labels;
  labels.forEach((label, n) => {
    if (n === 0) create("p", { class: "soft" }, byId("digits"), "Plain ones");
    if (n === 20) create("p", { class: "soft" }, byId("digits"), "Hard ones for the trained network");
    const button = create("button", { "aria-label": `image ${n + 1}: a ${label}` }, byId("digits"));
    create("canvas", { width: 28, height: 28 }, button);
    button.addEventListener("click", () => chooseImage(n));
  });
  for (let digit = 0; digit < 10; digit++) {
    const button = create("button", { "data-digit": digit }, byId("which"), digit);
    button.addEventListener("click", () => {
      want(digit);
      byId("pen").focus({ preventScroll: true });
    });
  }
  paintDigits();
}

function paintDigits() {
  for (const [n, canvas] of byId("digits").querySelectorAll("canvas").entries()) paint(canvas, imageOf("shown", n));
}
