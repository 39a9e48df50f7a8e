// A plot whose lines grow: the same drawing as report/svg.py makes, kept zoomed where the reader zoomed it.

import { FRAME, element, zoomable } from "./plot.js";

const MOST_POINTS = 1000; // a frame has 580 pixels
const COLOURS = 6; // that plot.css has

// Debiased moving average over about 2% of the values, or 8 of them, or a fifth where there are few, as in the report.
export function smoothed(points) {
  const decay = 1 - 1 / Math.max(1, 0.02 * points.length, Math.min(8, points.length / 5));
  let [sum, weight] = [0, 0];
  return points.map(([x, y]) => {
    sum = decay * sum + (1 - decay) * y;
    weight = decay * weight + (1 - decay);
    return [x, sum / weight];
  });
}

// A constant gets room around it, also one whose average differs from it by rounding: ticks could not count such steps.
function range(values, margin) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (high - low <= 1e-9 * Math.abs(high)) [low, high] = [low - Math.abs(low) * 0.05 - (low ? 0 : 0.01), high + Math.abs(high) * 0.05 + (high ? 0 : 1)];
  return [low - margin * (high - low), high + margin * (high - low)];
}

function line(points, x, y, kind, name, faint) {
  const stride = Math.ceil(points.length / MOST_POINTS);
  const at = points.filter((_, n) => n % stride === 0 || n === points.length - 1).map((point) => [
    ((point[0] - x[0]) / (x[1] - x[0])) * FRAME.width,
    Math.max(-9999, Math.min(9999, ((y[1] - point[1]) / (y[1] - y[0])) * FRAME.height))].map((value) => value.toFixed(1)).join(","));
  const group = element("g", { "data-name": name, ...(faint && { "data-faint": "" }) });
  if (at.length < 20) group.append(element("path", { class: `${kind} dot`, d: at.map((point) => `M${point}h0`).join("") }));
  group.append(element("polyline", { class: faint ? `${kind} faint` : kind, points: at.join(" ") }));
  return group;
}

export class LivePlot {
  constructor(title, smooth) {
    Object.assign(this, { title, smooth });
    const { left, top, width, height } = FRAME;
    this.axes = element("g", { class: "axes" });
    this.view = element("svg", { class: "view", x: left, y: top, width, height, viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none" });
    this.svg = element("svg", { class: "plot", viewBox: `0 0 660 ${top + height + 26}`, role: "img", "data-x": "0 1", "data-y": "0 1" });
    this.svg.append(this.axes, this.view);
    this.zoom = zoomable(this.svg);
    this.figure = document.createElement("figure");
    const heading = document.createElement("h2");
    heading.textContent = title;
    this.figure.append(heading, this.svg);
    this.figure.hidden = true;
  }

  // `series` are { name, colour, points: [[x, y]] }; those without points are not drawn.
  draw(series, axis) {
    const shown = series.filter((one) => one.points.length);
    this.figure.hidden = !shown.length;
    if (!shown.length) return;
    const strong = shown.map((one) => (this.smooth && one.points.length >= 20 ? smoothed(one.points) : one.points));
    const x = range(shown.flatMap((one) => one.points.map((point) => point[0])), 0);
    const y = range(strong.flat().map((point) => point[1]), 0.06);
    this.svg.dataset.x = x.join(" ");
    this.svg.dataset.y = y.join(" ");
    const last = shown.map((one, n) => `${one.name} ${strong[n].at(-1)[1].toPrecision(4)}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title} over ${axis}. Last values: ${last}.`);
    this.view.replaceChildren(...shown.flatMap((one, n) => {
      const kind = `s${one.colour % COLOURS}`;
      const drawn = [line(strong[n], x, y, kind, one.name, false)];
      return strong[n] === one.points ? drawn : [line(one.points, x, y, kind, one.name, true), ...drawn];
    }));
    this.zoom.refresh();
  }
}
