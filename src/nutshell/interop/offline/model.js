// The model, one token at a time, in plain loops over typed arrays: what `rust/src/decode` computes, from the same weights by the
// same names. Weights come as int8 with a scale for each row and are fp32 from here on; sums are double.
//
// Legend: C width, H query heads, K key/value heads, D head width, V vocabulary.

const SMEAR_CHANNELS = 24;
const VALUE_GATE_CHANNELS = 12;
const ROWS = 4; // of a matrix that are multiplied at once: each number of the vector is read once for all of them

const padded = (rows) => Math.ceil(rows / ROWS) * ROWS;
const vector = (size) => new Float32Array(padded(size));

// Tensors by name from the bytes of a page: all fp32 numbers come first, then all int8. `list` has [name, rows, columns] of each;
// with columns a matrix of int8 that has a scale for each row, without (0) a vector of fp32.
export function readTensors(bytes, list, floatCount) {
  const floats = new Float32Array(bytes.buffer, 0, floatCount);
  const steps = new Int8Array(bytes.buffer, 4 * floatCount);
  const tensors = {};
  let float = 0;
  let step = 0;
  for (const [name, rows, columns] of list) {
    const own = floats.subarray(float, float += rows);
    const numbers = columns ? new Float32Array(padded(rows) * columns) : own;
    for (let row = 0, at = 0; columns && row < rows; row += 1) {
      for (const end = at + columns; at < end; at += 1, step += 1) numbers[at] = steps[step] * own[row];
    }
    tensors[name] = { rows: padded(rows), columns, numbers };
  }
  return tensors;
}

// y = W x.
function multiply({ rows, columns, numbers }, x, y) {
  for (let row = 0; row < rows; row += ROWS) {
    const at = row * columns;
    const w0 = numbers.subarray(at, at + columns);
    const w1 = numbers.subarray(at + columns, at + 2 * columns);
    const w2 = numbers.subarray(at + 2 * columns, at + 3 * columns);
    const w3 = numbers.subarray(at + 3 * columns, at + 4 * columns);
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < columns; i += 1) {
      const v = x[i];
      a += w0[i] * v;
      b += w1[i] * v;
      c += w2[i] * v;
      d += w3[i] * v;
    }
    y[row] = a;
    y[row + 1] = b;
    y[row + 2] = c;
    y[row + 3] = d;
  }
}

function dot(a, b, size, offset = 0) {
  let sum = 0;
  for (let i = 0; i < size; i += 1) sum += a[offset + i] * b[i];
  return sum;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// y = x / rms(x), times a weight for each channel where there is one. y may be x.
function norm(x, y, eps, weight) {
  const inverse = 1 / Math.sqrt(dot(x, x, x.length) / x.length + eps);
  for (let i = 0; i < x.length; i += 1) y[i] = x[i] * inverse * (weight ? weight[i] : 1);
}

// Scores -> weights that add up to 1.
function softmax(scores) {
  let largest = -Infinity;
  let sum = 0;
  for (let i = 0; i < scores.length; i += 1) largest = Math.max(largest, scores[i]);
  for (let i = 0; i < scores.length; i += 1) sum += scores[i] = Math.exp(scores[i] - largest);
  for (let i = 0; i < scores.length; i += 1) scores[i] /= sum;
}

export class Model {
  // `shape` is that of `infer/native.py`, with the sign and base of the rotation and the epsilon of norms.
  constructor(shape, tensors) {
    const { width, heads, kv_heads: kvHeads, head_dim: headDim, mlp_width: mlpWidth, context, vocab_size: vocabulary } = shape;
    Object.assign(this, { shape, tensors, tokens: [] }); // the tokens that are in the cache
    this.cache = shape.windows.map(() => ({
      keys: new Float32Array(context * kvHeads * headDim), values: new Float32Array(context * kvHeads * headDim),
    }));
    for (const name of ["x", "first", "middle", "normed", "before", "added"]) this[name] = new Float32Array(width);
    this.product = vector(width);
    this.qkv = vector((heads + 2 * kvHeads) * headDim);
    this.mixed = new Float32Array(heads * headDim);
    this.scores = new Float64Array(context);
    this.up = vector(mlpWidth);
    this.gate = vector(mlpWidth);
    this.logits = vector(vocabulary);
    this.cos = new Float32Array(headDim / 2);
    this.sin = new Float32Array(headDim / 2);
  }

  weight(layer, name) {
    return this.tensors[`${layer}.${name}`];
  }

  // How many of `ids` are in the cache already; the others are forgotten. The last one must be read again for its logits.
  keep(ids) {
    let same = 0;
    while (same < Math.min(this.tokens.length, ids.length - 1) && this.tokens[same] === ids[same]) same += 1;
    this.tokens.length = same;
    return same;
  }

  // Append one token to the cache. With `wanted` returns the logits (V) of the next; they are overwritten by the next call.
  read(id, wanted) {
    const { shape, tensors, x, first, middle, product } = this;
    this.embed(id);
    this.rotation(this.tokens.length);
    first.set(x);
    for (let layer = 0; layer < shape.windows.length; layer += 1) {
      const [keep, add] = this.weight(layer, "scales").numbers;
      for (let i = 0; i < x.length; i += 1) x[i] = keep * x[i] + add * first[i];
      this.attention(layer, id);
      this.mlp(layer);
      if (layer === shape.windows.length >> 1) middle.set(x);
    }
    this.tokens.push(id);
    if (!wanted) return null;
    const backout = shape.backout ? tensors.backout.numbers[0] : 0;
    for (let i = 0; backout && i < x.length; i += 1) x[i] -= backout * middle[i];
    norm(x, product.subarray(0, x.length), shape.eps, tensors.final_norm.numbers);
    multiply(tensors.head ?? tensors.embedding, product, this.logits);
    const logits = this.logits.subarray(0, shape.vocab_size);
    const cap = shape.softcap;
    for (let i = 0; cap && i < logits.length; i += 1) logits[i] = cap * Math.tanh(logits[i] / cap);
    return logits;
  }

  // The embedding, in `speed` normed and smeared with its predecessor's unless it starts a document.
  embed(id) {
    const { shape, tensors, x, before } = this;
    this.lookUp("embedding", id, x);
    if (shape.normed_embedding) norm(x, x, shape.eps);
    if (!shape.smear || id === shape.bos_id || !this.tokens.length) return;
    const gate = tensors.smear_lambda.numbers[0] * sigmoid(dot(tensors.smear_gate.numbers, x, SMEAR_CHANNELS));
    this.lookUp("embedding", this.tokens.at(-1), before);
    norm(before, before, shape.eps);
    for (let i = 0; i < x.length; i += 1) x[i] += gate * before[i];
  }

  lookUp(name, id, target) {
    const { numbers, columns } = this.tensors[name];
    target.set(numbers.subarray(id * columns, (id + 1) * columns));
  }

  rotation(position) {
    const { head_dim: headDim, rotary_base: base, rotary_sign: sign } = this.shape;
    for (let i = 0; i < headDim / 2; i += 1) {
      const angle = position * base ** (-2 * i / headDim);
      this.cos[i] = Math.cos(angle);
      this.sin[i] = sign * Math.sin(angle);
    }
  }

  // x += attention(norm(x)), over the window of this layer.
  attention(layer, id) {
    const { heads, kv_heads: kvHeads, head_dim: D, value_embeddings: valueEmbeddings, eps } = this.shape;
    const { x, normed, qkv } = this;
    norm(x, normed, eps, this.weight(layer, "attention_norm").numbers);
    multiply(this.weight(layer, "qkv"), normed, qkv);
    for (let head = 0; head < heads + kvHeads; head += 1) {
      const vectorOfHead = qkv.subarray(head * D, (head + 1) * D);
      norm(vectorOfHead, vectorOfHead, eps, this.weight(layer, head < heads ? "query_norm" : "key_norm").numbers);
      this.rotate(vectorOfHead);
    }
    const size = kvHeads * D;
    const values = qkv.subarray(heads * D + size, heads * D + 2 * size);
    if (valueEmbeddings[layer]) this.addValueEmbedding(layer, id, values);
    this.cache[layer].keys.set(qkv.subarray(heads * D, heads * D + size), this.tokens.length * size);
    this.cache[layer].values.set(values, this.tokens.length * size);
    for (let head = 0; head < heads; head += 1) this.attend(layer, head);
    multiply(this.weight(layer, "out"), this.mixed, this.product);
    for (let i = 0; i < x.length; i += 1) x[i] += this.product[i];
  }

  rotate(head) {
    const half = head.length / 2;
    for (let i = 0; i < half; i += 1) {
      const a = head[i];
      const b = head[half + i];
      head[i] = a * this.cos[i] + b * this.sin[i];
      head[half + i] = b * this.cos[i] - a * this.sin[i];
    }
  }

  // v += 3 sigmoid(gate) times the token's value embedding, a gate for each key/value head.
  addValueEmbedding(layer, id, values) {
    const { kv_heads: kvHeads, head_dim: D } = this.shape;
    const { numbers } = this.weight(layer, "value_embedding");
    const gates = this.weight(layer, "value_gate").numbers;
    for (let head = 0; head < kvHeads; head += 1) {
      const gate = 3 * sigmoid(dot(gates, this.normed, VALUE_GATE_CHANNELS, head * VALUE_GATE_CHANNELS));
      for (let i = head * D; i < (head + 1) * D; i += 1) values[i] += gate * numbers[id * kvHeads * D + i];
    }
  }

  // One head's query over the keys that its window reaches.
  attend(layer, head) {
    const { heads, kv_heads: kvHeads, head_dim: D, windows } = this.shape;
    const { keys, values } = this.cache[layer];
    const query = this.qkv.subarray(head * D, (head + 1) * D);
    const mixed = this.mixed.subarray(head * D, (head + 1) * D).fill(0);
    const end = this.tokens.length + 1;
    const begin = Math.max(0, end - windows[layer]);
    const scores = this.scores.subarray(0, end - begin);
    const place = (begin * kvHeads + Math.floor(head * kvHeads / heads)) * D;
    const stride = kvHeads * D;
    for (let i = 0; i < scores.length; i += 1) scores[i] = dot(keys, query, D, place + i * stride) / Math.sqrt(D);
    softmax(scores);
    for (let i = 0, at = place; i < scores.length; i += 1, at += stride) {
      for (let j = 0; j < D; j += 1) mixed[j] += scores[i] * values[at + j];
    }
  }

  // x += MLP(norm(x)): relu squared in `speed`, gated by SiLU in `portable`.
  mlp(layer) {
    const { x, normed, up, gate, shape } = this;
    norm(x, normed, shape.eps, this.weight(layer, "mlp_norm").numbers);
    multiply(this.weight(layer, "up"), normed, up);
    if (shape.gated_mlp) multiply(this.weight(layer, "gate"), normed, gate);
    for (let i = 0; i < shape.mlp_width; i += 1) {
      up[i] = shape.gated_mlp ? up[i] * gate[i] * sigmoid(gate[i]) : Math.max(0, up[i]) ** 2;
    }
    multiply(this.weight(layer, "down"), up, this.product);
    for (let i = 0; i < x.length; i += 1) x[i] += this.product[i];
  }
}
