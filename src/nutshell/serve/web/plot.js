// Zoom and values for the plots that report/svg.py and runs.js draw: drag over a part to enlarge it, double-click for the whole; with the
// keyboard + and - enlarge and shrink, the arrows move, 0 shows the whole. All it needs to know stands in the SVG.

export const FRAME = { left: 64, top: 12, width: 580, height: 240 };
const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// Round numbers between two values: multiples of 1, 2 or 5 times a power of ten.
export function ticks(low, high, count = 5) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const distance = (step) => Math.abs((high - low) / step - count);
  const step = [1, 2, 5, 10].map((factor) => factor * power).reduce((a, b) => (distance(b) < distance(a) ? b : a));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n += 1) found.push(n * step);
  return { step, found };
}

export function label(value, step) {
  for (const [unit, name] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= unit && step >= unit / 1000) return `${+(value / unit).toPrecision(6)}${name}`;
  }
  if (value && step < 1e-4) return value.toExponential(1);
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}

// Grid and numbers of a range [low, high] of x and y.
export function drawAxes(axes, x, y) {
  axes.replaceChildren();
  const across = ticks(...x);
  const down = ticks(...y, 4);
  const bottom = FRAME.top + FRAME.height;
  for (const value of across.found) {
    const at = FRAME.left + ((value - x[0]) / (x[1] - x[0])) * FRAME.width;
    axes.append(element("path", { class: "grid", d: `M${at.toFixed(1)} ${FRAME.top}v${FRAME.height}` }),
      element("text", { x: at.toFixed(1), y: bottom + 17, "text-anchor": "middle" }, label(value, across.step)));
  }
  for (const value of down.found) {
    const at = FRAME.top + ((y[1] - value) / (y[1] - y[0])) * FRAME.height;
    axes.append(element("path", { class: "grid", d: `M${FRAME.left} ${at.toFixed(1)}h${FRAME.width}` }),
      element("text", { x: FRAME.left - 8, y: (at + 4).toFixed(1), "text-anchor": "end" }, label(value, down.step)));
  }
}

// The point of each strong line that is nearest to a place in the frame.
function nearest(view, place) {
  const found = [];
  for (const group of view.querySelectorAll("g[data-name]:not([data-faint])")) {
    let best = null;
    for (const line of group.querySelectorAll("polyline")) {
      for (const point of line.points) {
        if (!best || Math.abs(point.x - place) < Math.abs(best.x - place)) best = { x: point.x, y: point.y };
      }
    }
    if (best) found.push({ name: group.dataset.name, ...best });
  }
  return found;
}

export function zoomable(svg) {
  const view = svg.querySelector(".view");
  const axes = svg.querySelector(".axes");
  const over = element("g", { "aria-hidden": "true" });
  svg.append(over);
  svg.setAttribute("tabindex", "0");
  let box = { x: 0, y: 0, width: FRAME.width, height: FRAME.height };
  let from = null;

  const range = (name) => svg.dataset[name].split(" ").map(Number);
  const valueAt = (name, part) => range(name)[0] + part * (range(name)[1] - range(name)[0]);

  function show(wanted) {
    const width = Math.min(FRAME.width, Math.max(FRAME.width / 1e4, wanted.width));
    const height = Math.min(FRAME.height, Math.max(FRAME.height / 1e4, wanted.height));
    box = { x: Math.max(0, Math.min(FRAME.width - width, wanted.x)), width, height };
    box.y = Math.max(0, Math.min(FRAME.height - height, wanted.y));
    view.setAttribute("viewBox", `${box.x} ${box.y} ${box.width} ${box.height}`);
    drawAxes(axes, [valueAt("x", box.x / FRAME.width), valueAt("x", (box.x + box.width) / FRAME.width)],
      [valueAt("y", 1 - (box.y + box.height) / FRAME.height), valueAt("y", 1 - box.y / FRAME.height)]);
  }

  // A place of the mouse in units of the frame, before zoom.
  function place(event) {
    const matrix = svg.getScreenCTM();
    const x = (event.clientX - matrix.e) / matrix.a - FRAME.left;
    const y = (event.clientY - matrix.f) / matrix.d - FRAME.top;
    const inside = x >= 0 && y >= 0 && x <= FRAME.width && y <= FRAME.height;
    return { x: Math.max(0, Math.min(FRAME.width, x)), y: Math.max(0, Math.min(FRAME.height, y)), inside };
  }

  function readOut(at) {
    over.replaceChildren();
    const points = nearest(view, box.x + (at.x / FRAME.width) * box.width);
    if (!points.length) return;
    const steps = { x: (valueAt("x", box.width / FRAME.width) - valueAt("x", 0)) / 500,
      y: (valueAt("y", box.height / FRAME.height) - valueAt("y", 0)) / 500 };
    const lines = [label(valueAt("x", points[0].x / FRAME.width), steps.x),
      ...points.map((point) => `${point.name} ${label(valueAt("y", 1 - point.y / FRAME.height), steps.y)}`)];
    const width = 16 + 6.8 * Math.max(...lines.map((line) => line.length));
    const left = FRAME.left + (at.x > FRAME.width / 2 ? at.x - width - 12 : at.x + 12);
    over.append(element("path", { class: "cursor", d: `M${FRAME.left + at.x} ${FRAME.top}v${FRAME.height}` }),
      element("rect", { class: "back", x: left, y: FRAME.top + 6, width, height: 8 + 16 * lines.length, rx: 6 }));
    lines.forEach((line, n) => over.append(element("text", { class: "readout", x: left + 8, y: FRAME.top + 22 + 16 * n }, line)));
  }

  function drawChoice(at) {
    const [x, y] = [Math.min(from.x, at.x), Math.min(from.y, at.y)];
    over.replaceChildren(element("path", { class: "cursor",
      d: `M${FRAME.left + x} ${FRAME.top + y}h${Math.abs(at.x - from.x)}v${Math.abs(at.y - from.y)}h${-Math.abs(at.x - from.x)}z` }));
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button) return; // touch scrolls the page
    const at = place(event);
    if (at.inside) from = at;
  });
  svg.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (from) drawChoice(at);
    else if (at.inside) readOut(at);
    else over.replaceChildren();
  });
  svg.addEventListener("pointerup", (event) => {
    const [start, end] = [from, place(event)];
    from = null;
    if (!start || Math.abs(end.x - start.x) < 8 || Math.abs(end.y - start.y) < 8) return;
    over.replaceChildren();
    show({ x: box.x + (Math.min(start.x, end.x) / FRAME.width) * box.width,
      y: box.y + (Math.min(start.y, end.y) / FRAME.height) * box.height,
      width: (Math.abs(end.x - start.x) / FRAME.width) * box.width,
      height: (Math.abs(end.y - start.y) / FRAME.height) * box.height });
  });
  svg.addEventListener("pointerleave", () => { from = null; over.replaceChildren(); });
  const whole = () => show({ x: 0, y: 0, width: FRAME.width, height: FRAME.height });
  svg.addEventListener("dblclick", whole);
  svg.addEventListener("keydown", (event) => {
    const scaled = (by) => show({ width: box.width * by, height: box.height * by,
      x: box.x + (box.width * (1 - by)) / 2, y: box.y + (box.height * (1 - by)) / 2 });
    const moved = (x, y) => show({ ...box, x: box.x + x * box.width, y: box.y + y * box.height });
    const keys = { "+": () => scaled(0.5), "=": () => scaled(0.5), "-": () => scaled(2), 0: whole,
      ArrowLeft: () => moved(-0.2, 0), ArrowRight: () => moved(0.2, 0), ArrowUp: () => moved(0, -0.2), ArrowDown: () => moved(0, 0.2) };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  return { refresh: () => show(box) };
}
