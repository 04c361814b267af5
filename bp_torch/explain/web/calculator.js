// ---- a tensor calculator: products, sums and functions of single numbers, and nothing of backpropagation ----

const NOTHING = { data: new Float32Array(1), offset: 0, shape: [1, 1, 1], stride: [0, 0, 0], rank: 0 };

/** Write f of the elements at the same place of up to three tensors into `out`; a size of 1 is repeated. */
function each(out, f, ...inputs) {
  const [a, b, c] = [0, 1, 2].map((n) => spread(inputs[n] ?? NOTHING, out.shape));
  const [I, J, K] = out.shape;
  for (let i = 0; i < I; i++) {
    for (let j = 0; j < J; j++) {
      let o = out.offset + i * out.stride[0] + j * out.stride[1];
      let p = a.offset + i * a.stride[0] + j * a.stride[1];
      let q = b.offset + i * b.stride[0] + j * b.stride[1];
      let r = c.offset + i * c.stride[0] + j * c.stride[1];
      for (let k = 0; k < K; k++) {
        out.data[o] = f(a.data[p], b.data[q], c.data[r]);
        o += out.stride[2];
        p += a.stride[2];
        q += b.stride[2];
        r += c.stride[2];
      }
    }
  }
}

/** A view in which sizes of 1 have no stride, as broadcasting repeats them. */
const spread = (view, shape) => ({
  ...view,
  stride: view.stride.map((stride, n) => (view.shape[n] === 1 && shape[n] !== 1 ? 0 : stride)),
});

/** out = beta * bias + alpha * a b, for one matrix or one after another. Sums are made in double precision. */
function product(out, a, b, bias = NOTHING, { alpha = 1, beta = 1 } = {}) {
  const [batches, rows, columns] = out.shape;
  const [x, y, start] = [a, b, bias].map((view) => spread(view, out.shape));
  const inner = a.shape[2];
  const row = new Float64Array(columns);
  for (let n = 0; n < batches; n++) {
    for (let i = 0; i < rows; i++) {
      row.fill(0);
      for (let k = 0; k < inner; k++) {
        const value = x.data[x.offset + n * x.stride[0] + i * a.stride[1] + k * a.stride[2]];
        if (value === 0) continue;
        let at = y.offset + n * y.stride[0] + k * b.stride[1];
        for (let j = 0; j < columns; j++, at += b.stride[2]) row[j] += value * y.data[at];
      }
      const [from, to] = [start, out].map((v) => v.offset + n * v.stride[0] + i * v.stride[1]);
      for (let j = 0; j < columns; j++) {
        out.data[to + j * out.stride[2]] = alpha * row[j] + beta * start.data[from + j * start.stride[2]];
      }
    }
  }
}

/** Fold `x` along `dims` (all of them if not given) with f, then finish(total, count). */
function reduce(out, x, dims, start, f, finish = (total) => total) {
  const named = dims === undefined || dims === null ? [...Array(x.rank).keys()] : [dims].flat();
  const gone = named.map((dim) => (dim < 0 ? 3 + dim : 3 - x.rank + dim));
  const kept = x.shape.map((size, n) => (gone.includes(n) ? 1 : size));
  const totals = new Float64Array(kept[0] * kept[1] * kept[2]).fill(start);
  const [, J, K] = kept;
  const [s, t, u] = [0, 1, 2].map((n) => (gone.includes(n) ? 0 : [J * K, K, 1][n]));
  visit(x, (value, i, j, k) => {
    totals[i * s + j * t + k * u] = f(totals[i * s + j * t + k * u], value);
  });
  const count = (x.shape[0] * x.shape[1] * x.shape[2]) / totals.length;
  fill(out, totals.map((total) => finish(total, count)));
}

function visit(view, f) {
  const [I, J, K] = view.shape;
  for (let i = 0; i < I; i++) {
    for (let j = 0; j < J; j++) {
      for (let k = 0; k < K; k++) {
        f(view.data[view.offset + i * view.stride[0] + j * view.stride[1] + k * view.stride[2]], i, j, k);
      }
    }
  }
}

function fill(view, values) {
  let n = 0;
  each(view, () => values[n++]);
}

function list(view) {
  const values = [];
  visit(view, (value) => values.push(value));
  return values;
}

/** Along one dimension of x: f(numbers) written into the same places of `out`. */
function along(out, x, dim, f) {
  const d = dim < 0 ? 3 + dim : 3 - x.rank + dim;
  const turn = (values) => [...values.filter((_, n) => n !== d), values[d]];
  const [from, to] = [x, out].map((view) => ({ ...view, shape: turn(view.shape), stride: turn(view.stride) }));
  const [values, width] = [list(from), x.shape[d]];
  fill(to, Array.from({ length: values.length / width }, (_, n) => f(values.slice(n * width, (n + 1) * width))).flat());
}

function logSumExp(values) {
  const most = Math.max(...values);
  return most + Math.log(values.reduce((total, value) => total + Math.exp(value - most), 0));
}

function runningSums(values) {
  let total = 0;
  return values.map((value) => {
    total += value;
    return total;
  });
}

const plus = (p, q) => p + q;

/** The functions of torch that recordings may call: (out, arguments, options). The export reads this table. */
const OPERATIONS = {
  abs: (out, [x]) => each(out, Math.abs, x),
  add: (out, [x, y], { alpha = 1 }) => each(out, (p, q) => p + alpha * q, x, y),
  addcmul: (out, [x, y, z], { value = 1 }) => each(out, (p, q, r) => p + value * q * r, x, y, z),
  addmm: (out, [bias, a, b], options) => product(out, a, b, bias, options),
  amax: (out, [x, dims], { dim }) => reduce(out, x, dims ?? dim, -Infinity, Math.max),
  clone: (out, [x]) => each(out, (p) => p, x),
  copy: (out, [_, x]) => each(out, (p) => p, x),
  cumsum: (out, [x, at], { dim }) => along(out, x, at ?? dim, runningSums),
  div: (out, [x, y]) => each(out, (p, q) => p / q, x, y),
  exp: (out, [x]) => each(out, Math.exp, x),
  fill: (out, [_, x]) => each(out, (p) => p, x),
  log: (out, [x]) => each(out, Math.log, x),
  log_softmax: (out, [x, at], { dim }) => along(out, x, at ?? dim, (row) => row.map((p) => p - logSumExp(row))),
  logaddexp: (out, [x, y]) => each(out, (p, q) => logSumExp([p, q]), x, y),
  maximum: (out, [x, y]) => each(out, (p, q) => Math.max(p, q), x, y),
  minimum: (out, [x, y]) => each(out, (p, q) => Math.min(p, q), x, y),
  matmul: (out, [a, b]) => product(out, a, b),
  mean: (out, [x, dims], { dim }) => reduce(out, x, dims ?? dim, 0, plus, (total, n) => total / n),
  mm: (out, [a, b]) => product(out, a, b),
  mul: (out, [x, y]) => each(out, (p, q) => p * q, x, y),
  neg: (out, [x]) => each(out, (p) => -p, x),
  ones_like: (out) => each(out, () => 1),
  pow: (out, [x, y]) => each(out, (p, q) => p ** q, x, y),
  reciprocal: (out, [x]) => each(out, (p) => 1 / p, x),
  relu: (out, [x]) => each(out, (p) => Math.max(p, 0), x),
  rdiv: (out, [x, y]) => each(out, (p, q) => q / p, x, y),
  rpow: (out, [x, y]) => each(out, (p, q) => q ** p, x, y),
  rsub: (out, [x, y], { alpha = 1 }) => each(out, (p, q) => q - alpha * p, x, y),
  sigmoid: (out, [x]) => each(out, (p) => 1 / (1 + Math.exp(-p)), x),
  sign: (out, [x]) => each(out, Math.sign, x),
  softmax: (out, [x, at], { dim }) => along(out, x, at ?? dim, (row) => row.map((p) => Math.exp(p - logSumExp(row)))),
  sqrt: (out, [x]) => each(out, Math.sqrt, x),
  square: (out, [x]) => each(out, (p) => p * p, x),
  sub: (out, [x, y], { alpha = 1 }) => each(out, (p, q) => p - alpha * q, x, y),
  sum: (out, [x, dims], { dim }) => reduce(out, x, dims ?? dim, 0, plus),
  tanh: (out, [x]) => each(out, Math.tanh, x),
  zeros_like: (out) => each(out, () => 0),
};

/** Operations whose numbers are dimensions. */
const ALONG = new Set(["amax", "cumsum", "log_softmax", "mean", "softmax", "sum"]);

/** What Python recorded, to be run again with other contents. */
class Recording {
  constructor({ buffers, calls, tensors }) {
    this.buffers = buffers.map(({ bytes, value }) => new Float32Array(bytes / 4).fill(value ?? 0));
    this.tensors = Object.fromEntries(Object.entries(tensors).map(([name, place]) => [name, this.view(place)]));
    this.calls = calls.map((call) => ({
      operation: OPERATIONS[call.operation],
      out: this.view(call.out),
      inputs: call.arguments.map((value) => this.argument(value, call.operation)),
      options: call.options,
    }));
  }

  /** A view of three dimensions: those that are missing in front have size 1. */
  view({ buffer, offset, shape, stride }) {
    const missing = Array(3 - shape.length);
    return {
      data: this.buffers[buffer],
      offset,
      shape: [...missing.fill(1), ...shape],
      stride: [...missing.fill(0), ...stride],
      rank: shape.length,
    };
  }

  /** A tensor, a number as a tensor, or the dimensions of an operation that has some. */
  argument(value, operation) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return this.view(value);
    return ALONG.has(operation) ? value : { ...NOTHING, data: new Float32Array([value]) };
  }

  run(contents = {}) {
    for (const [name, values] of Object.entries(contents)) this.write(name, values);
    for (const { operation, out, inputs, options } of this.calls) operation(out, inputs, options);
    return this;
  }

  write(name, values) {
    const view = this.tensors[name];
    if (view.rank > 0 && values.length === view.data.length) view.data.set(values);
    else fill(view, values);
  }

  read(name) {
    return list(this.tensors[name]);
  }

  number(name) {
    return this.read(name)[0];
  }
}
