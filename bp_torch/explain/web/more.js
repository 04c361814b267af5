// ---- fire together, wire together ----

/** The weights into the outputs as a table of squares: a row for each output, a column for each neuron before. */
function drawHebb() {
  byId("hebb").hidden = state.label === null;
  if (state.label === null) return;
  const [l, svg] = [DEPTH, byId("hebbChart")];
  const [wish, width] = [value("wish").slice(weightsAt(l), biasesAt(l)), SIZES[l - 1]];
  const columns = l === 1 ? [] : shown(l - 1);
  svg.replaceChildren();
  const [left, top, cell] = [86, 34, columns.length > 16 ? 17 : 20];
  set(svg, { viewBox: `0 0 ${left + cell * Math.max(16, columns.length) + 4} ${top + 10 * cell + 4}` });
  const [most, wanted, active] = [largest(wish), value(`own${l}`), before(l)];
  create("text", { class: "soft", x: left - 8, y: 22, "text-anchor": "end" }, svg, "active");
  columns.forEach((k, n) => {
    const ink = (100 * Math.min(1, Math.abs(active[k]) / Math.max(1, largest(active)))).toFixed(0);
    create("rect", { x: left + n * cell, y: 8, width: cell - 2, height: 18, class: "firing", style: `--lit: ${ink}%` }, svg);
  });
  for (const [j, own] of wanted.entries()) {
    const y = top + j * cell;
    create("text", { x: left - 40, y: y + cell * 0.72, "text-anchor": "end" }, svg, j);
    const long = (28 * Math.abs(own)) / largest(wanted);
    create("rect", { class: signOf(own), x: left - 34, y: y + 4, width: long, height: cell - 9 }, svg);
    columns.forEach((k, n) => {
      const part = wish[j * width + k] / most;
      const size = (cell - 3) * Math.sqrt(Math.abs(part));
      const [x, up] = [left + (n + 0.5) * cell - size / 2 - 1, y + (cell - size) / 2 - 1];
      create("rect", { class: signOf(part), x, y: up, width: size, height: size }, svg);
    });
  }
  const grows = wish.reduce((best, each, n) => (each > wish[best] ? n : best), 0);
  drawHebb.p = weightsAt(l) + grows;
  const [j, k] = [Math.floor(grows / width), grows % width];
  byId("hebbText").textContent = wish[grows] > 0
    ? `The weight that should grow most leads from ${neuronName(l - 1, k)}, which is active (${digits(active[k])}), to ` +
      `${neuronName(l, j)}, which should become more active (${digits(wanted[j], true)}): ` +
      `${digits(active[k])} × ${digits(wanted[j])} = ${digits(wish[grows], true)}.`
    : "No output should become more active.";
  set(svg, { "aria-label": `How much each weight into the outputs should change. ${byId("hebbText").textContent}` });
}

// ---- the lines of Python ----

/** The lines that compute this step are marked: forward; BP1; BP2 to BP4. */
function drawCode() {
  const marks = state.step === 0 ? ["forward"] : state.step === 1 ? ["BP1"] : state.step === DEPTH + 1 ? ["BP2", "BP3", "BP4"] : ["BP2"];
  for (const line of byId("code").children) {
    const marked = marks.some((mark) => line.dataset.of === mark || line.textContent.includes(`# ${mark}`));
    line.className = marked ? "marked" : "";
  }
}

function buildCode() {
  for (const [name, source] of Object.entries(DATA.code)) {
    const lines = source.split('"""')[2].trimEnd().split("\n").slice(1).map((line) => line.slice(4));
    for (const line of lines.filter((each) => !/^network\.check|^examples = /.test(each))) create("span", { "data-of": name }, byId("code"), `${line}\n`);
  }
}

// ---- the same network, learned from few images and from many ----

const learned = (DATA.learned ?? []).map((each) => ({ ...each, recording: new Recording(RECORDED.example) }));

/** Weights in 16 bits: the upper half of each float32. */
const widened = (buffer) => new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer);
for (const each of learned) each.theta = widened(await unpack(each.parameters));

function drawLearned() {
  byId("learned").hidden = !learned.length;
  for (const { count, right, own, theta: point, recording, chart, text } of learned) {
    const a = recording.run({ parameters: point, x: state.x, y: oneHot(state.label) }).read(`a${DEPTH}`);
    const said = answer(a);
    const frame = chartFrame(chart, 120, [-0.6, 9.6], [Math.min(0, ...a), Math.max(1, ...a)]);
    a.forEach((each, digit) => {
      const [from, to] = [frame.y(Math.max(0, each)), frame.y(Math.min(0, each))];
      create("rect", { class: digit === said ? "bar most" : "bar", x: frame.x(digit - 0.32), y: from, width: frame.x(0.64) - frame.x(0), height: to - from }, frame.svg);
      frame.text(frame.x(digit), 116, digit, "middle");
    });
    const judged = state.label === null ? "" : said === state.label ? ", which is right" : `, which is wrong: it is a ${state.label}`;
    text.textContent =
      `It says ${said}${judged}. It gets ${Math.round(100 * own)} % of its own ${count.toLocaleString("en")} images right, ` +
      `and ${(100 * right).toFixed(1)} % of ${DATA.unseen.toLocaleString("en")} that it never saw.`;
    set(chart, { "aria-label": `Outputs 0 to 9: ${a.map((each) => digits(each)).join(", ")}` });
  }
}

function buildLearned() {
  for (const each of learned) {
    const place = create("div", {}, byId("learnedCharts"));
    create("h3", {}, place, `from ${each.count.toLocaleString("en")} images`);
    each.chart = create("svg", { class: "chart", role: "img" }, place);
    each.text = create("p", { class: "number" }, place);
  }
}
