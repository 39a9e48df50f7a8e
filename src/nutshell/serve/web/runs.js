// Trainings as they go: asks every two seconds what the metrics of the chosen runs have gained, and draws it.

import { $, button, element } from "./dom.js";
import { LivePlot } from "./liveplot.js";
import { settings } from "./options.js";
import { element as svg } from "./plot.js";
import { address, getJson } from "./sse.js";

const POLL_MS = 2000;
const PLOTS = [["loss", "Loss [nats per token]", true], ["val_bpb", "Validation [bits per byte]", false], ["reward", "Mean reward", true],
  ["lr", "Learning rate", false], ["tokens_per_second", "Tokens per second", true]];
const plots = PLOTS.map(([field, title, smooth]) => Object.assign(new LivePlot(title, smooth), { field }));
const runs = new Map(); // name -> Run
let colours = 0; // that are taken
if (settings.theme !== "auto") document.documentElement.dataset.theme = settings.theme;

class Run {
  constructor(name, colour, served) {
    Object.assign(this, { name, colour, offset: 0, version: "", stages: new Map(), samples: null, report: false });
    this.box = element("input");
    this.box.type = "checkbox";
    this.box.checked = served || colour === 0;
    this.box.addEventListener("change", () => update());
    const key = svg("svg", { viewBox: "0 0 20 8", "aria-hidden": "true", class: "plot" });
    key.append(svg("path", { class: `s${colour % 6}`, d: "M1 4h18" }));
    this.said = element("span", "said");
    this.link = element("span");
    this.item = element("li", "", element("label", "", this.box, key, name), this.said, this.link);
  }

  get url() { return `runs/report?run=${encodeURIComponent(this.name)}`; }

  listed({ report, idle_seconds: idle }) {
    this.idle = idle;
    if (report && !this.report) this.link.append(this.reportLink());
    this.report = report;
  }

  // A link cannot send a key: with one, the report is fetched and saved.
  reportLink() {
    if (settings.apiKey) return button("Save report", "", () => this.save());
    const link = element("a", "", "Report");
    link.href = address(this.url);
    return link;
  }

  async save() {
    const response = await fetch(address(this.url), { headers: { Authorization: `Bearer ${settings.apiKey}` } });
    const link = element("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = `${this.name}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  read() { // one at a time: two would read the same bytes
    this.reading ??= this.readOn().finally(() => { this.reading = null; });
    return this.reading;
  }

  async readOn() {
    let answer;
    do {
      const query = new URLSearchParams({ run: this.name, offset: this.offset, version: this.version });
      answer = await getJson(`runs/metrics?${query}`, settings.apiKey);
      if (answer.reset) Object.assign(this, { stages: new Map(), samples: null });
      Object.assign(this, { offset: answer.offset, version: answer.version });
      answer.records.forEach((record) => this.add(record));
    } while (answer.more);
  }

  add(record) {
    if (!this.stages.has(record.stage)) this.stages.set(record.stage, { steps: [], evals: [] });
    const stage = this.stages.get(record.stage);
    if (record.samples?.length) this.samples = { stage: record.stage, step: record.step, list: record.samples };
    const kept = stage[record.eval ? "evals" : "steps"];
    while (kept.length && kept.at(-1).step >= record.step) kept.pop(); // a run that was resumed from an earlier step
    kept.push(record);
  }

  say() {
    const [name, stage] = [...this.stages].at(-1) ?? [];
    const last = stage?.steps.at(-1);
    const where = last ? `${name}, step ${last.step}${last.steps ? ` of ${last.steps}` : ""}` : "";
    const minutes = Math.round(this.idle / 60);
    const quiet = minutes < 2 || this.report ? "" : `nothing new for ${minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`}`;
    this.said.textContent = [where, quiet].filter(Boolean).join(" · ");
  }

  // [[x, y]] of a field, the stages one after another.
  points(field, axis) {
    const found = [];
    let before = 0;
    for (const { steps, evals } of this.stages.values()) {
      let [x, step] = [0, 0];
      const at = new Map();
      for (const record of steps) {
        // Of a thinned file some steps are missing: their tokens are taken to be as many as this one's.
        x = axis === "tokens" ? x + (record.tokens ?? 0) * (record.step - step) : record[axis] ?? x;
        step = record.step;
        at.set(step, before + x);
        if (Number.isFinite(record[field])) found.push([before + x, record[field]]);
      }
      for (const record of field === "val_bpb" ? evals : []) {
        const place = at.get(record.step) ?? (axis === "step" ? before + record.step : null);
        if (place !== null && Number.isFinite(record.eval.val_bpb)) found.push([place, record.eval.val_bpb]);
      }
      before += x;
    }
    return found;
  }
}

function draw() { // lines and plots together, once all runs were read
  for (const run of runs.values()) run.say();
  const shown = [...runs.values()].filter((run) => run.box.checked);
  const axis = $("axis").value;
  for (const plot of plots) {
    plot.draw(shown.map((run) => ({ name: run.name, colour: run.colour, points: run.points(plot.field, axis) })), axis);
  }
  const written = shown.filter((run) => run.samples).map((run) => [run.name, run.samples.stage, run.samples.step].join(" "));
  if ($("samples").dataset.shown === written.join()) return; // nothing new: what is being read or selected stays
  $("samples").dataset.shown = written.join();
  $("samples").replaceChildren(...shown.filter((run) => run.samples).flatMap(({ name, samples }) => [
    element("h2", "", `${name}: samples after step ${samples.step} of ${samples.stage}`),
    ...samples.list.map((one) => element("div", "sample", element("p", "", one.question ?? one.prompt ?? ""),
      element("p", "", one.reply ?? "")))]));
}

function list(found) {
  for (const one of found) {
    if (!runs.has(one.name)) {
      runs.set(one.name, new Run(one.name, colours, one.served));
      colours += 1;
      $("runs").append(runs.get(one.name).item);
    }
    runs.get(one.name).listed(one);
  }
  for (const run of [...runs.values()].filter(({ name }) => !found.some((one) => one.name === name))) {
    runs.delete(run.name);
    run.item.remove();
  }
}

async function update() {
  try {
    list((await getJson("runs/list", settings.apiKey)).runs);
    await Promise.all([...runs.values()].filter((run) => run.box.checked).map((run) => run.read()));
    $("state").textContent = runs.size ? "" : "No training has begun yet: a run shows here with its first step.";
    draw();
  } catch (error) {
    $("state").textContent = error.status === 401 ? "This server asks for an API key: enter it in the settings of the chat."
      : `The server cannot be asked (${error.message}). Trying again …`;
  }
}

async function poll() {
  if (!document.hidden) await update();
  setTimeout(poll, POLL_MS);
}

$("plots").append(...plots.map((plot) => plot.figure));
$("axis").addEventListener("change", draw);
document.addEventListener("visibilitychange", () => document.hidden || update());
await poll();
document.documentElement.dataset.ready = "";
