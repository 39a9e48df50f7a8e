// The calculator that a model may call: `infer/calculator.py` in exact fractions of BigInt. Powers take whole exponents only, as
// roots would depend on how a machine rounds them; all else has the same value, or none, there and here.

const MAX_CHARACTERS = 256;
const MAX_DEPTH = 40;
const MAX_BITS = 1 << 14; // of any numerator or denominator
const MAX_RESULT = 10n ** 64n;
const MIN_RESULT = 10n ** 20n; // its inverse
const DECIMALS = 10; // significant decimals of a result that is no integer

const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*"; // what Python calls so
const TOKEN = new RegExp(
  `${SPACE}(?:((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\\.[0-9]*)?|\\.[0-9]+)|(\\*\\*|//|[-+*/%()]))`, "y");

class Invalid extends Error {}

function check(fine) {
  if (!fine) throw new Invalid();
}

const size = (number) => (number < 0n ? -number : number);
const bits = (number) => (number ? size(number).toString(2).length : 0);

function floorDivide(a, b) { // b > 0n
  return a >= 0n ? a / b : -((b - 1n - a) / b);
}

// A fraction [numerator, denominator] in lowest terms, the denominator above zero.
function fraction(numerator, denominator) {
  check(denominator !== 0n);
  let [a, b] = [size(numerator), size(denominator)];
  while (b) [a, b] = [b, a % b];
  const divisor = denominator < 0n ? -a : a;
  const value = [numerator / divisor, denominator / divisor];
  check(Math.max(...value.map(bits)) <= MAX_BITS);
  return value;
}

function combine([a, b], operator, [c, d]) {
  if (operator === "+") return fraction(a * d + c * b, b * d);
  if (operator === "-") return fraction(a * d - c * b, b * d);
  if (operator === "*") return fraction(a * c, b * d);
  check(c !== 0n);
  if (operator === "/") return fraction(a * d, b * c);
  const whole = c < 0n ? floorDivide(-a * d, b * -c) : floorDivide(a * d, b * c);
  return operator === "//" ? fraction(whole, 1n) : fraction(a * d - whole * c * b, b * d);
}

function power([a, b], [exponent, whole]) {
  check(whole === 1n && (a !== 0n || exponent >= 0n));
  const trivial = b === 1n && size(a) <= 1n;
  check(trivial || BigInt(Math.max(bits(a), bits(b)) - 1) * size(exponent) <= BigInt(MAX_BITS)); // before it is computed
  if (trivial) return [exponent === 0n ? 1n : exponent % 2n ? a : size(a), 1n];
  return exponent < 0n ? fraction(b ** -exponent, a ** -exponent) : fraction(a ** exponent, b ** exponent);
}

function tokenize(expression) {
  const text = expression.replace(new RegExp(`${SPACE}$`), "");
  check(text && text.length <= MAX_CHARACTERS);
  const tokens = [];
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < text.length;) {
    const found = TOKEN.exec(text);
    check(found);
    const [whole, decimals = ""] = (found[1] ?? "").replaceAll(",", "").split(".");
    tokens.push(found[2] ?? fraction(BigInt(whole + decimals), 10n ** BigInt(decimals.length)));
  }
  return tokens;
}

// Recursive descent, one function a level of precedence, loosest first.
function parse(tokens) {
  let at = 0;
  const sum = (depth) => {
    let value = product(depth);
    while (["+", "-"].includes(tokens[at])) value = combine(value, tokens[at++], product(depth));
    return value;
  };
  const product = (depth) => {
    let value = unary(depth);
    while (["*", "/", "//", "%"].includes(tokens[at])) value = combine(value, tokens[at++], unary(depth));
    return value;
  };
  const unary = (depth) => {
    check(depth <= MAX_DEPTH);
    if (tokens[at] === "-" || tokens[at] === "+") {
      const sign = tokens[at++] === "-" ? -1n : 1n;
      const [a, b] = unary(depth + 1);
      return [sign * a, b];
    }
    const base = atom(depth);
    if (tokens[at] !== "**") return base;
    at += 1;
    return power(base, unary(depth + 1));
  };
  const atom = (depth) => {
    const token = tokens[at++];
    if (Array.isArray(token)) return token;
    check(token === "(");
    const value = sum(depth + 1);
    check(tokens[at++] === ")");
    return value;
  };
  const value = sum(0);
  check(at === tokens.length);
  return value;
}

// An integer as it is; else DECIMALS decimals (significant ones below 1), without trailing zeros. Halves go to the even digit.
function format([a, b]) {
  const top = size(a);
  check(top < MAX_RESULT * b);
  if (b === 1n) return String(a);
  check(top * MIN_RESULT >= b);
  let decimals = DECIMALS;
  while (top * 10n ** BigInt(decimals - DECIMALS + 1) < b) decimals += 1;
  const unit = 10n ** BigInt(decimals);
  let scaled = (2n * top * unit + b) / (2n * b);
  if ((2n * top * unit + b) % (2n * b) === 0n && scaled % 2n) scaled -= 1n;
  const digits = String(scaled % unit).padStart(decimals, "0").replace(/0+$/, "");
  return `${a < 0n ? "-" : ""}${scaled / unit}${digits && "."}${digits}`;
}

// The value of an expression as text, null where it has none.
export function calculate(expression) {
  try {
    return format(parse(tokenize(expression)));
  } catch (error) {
    if (error instanceof Invalid) return null;
    throw error;
  }
}
