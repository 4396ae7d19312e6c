// The model of the page: fitting it, deciding on its finds, and places to annotate next.
import { boxGeometry } from "./annotate-canvas.js";
import { isRejected, uuid } from "./annotate-state.js";

const part = (id) => document.getElementById(id);
const FINDS = { find: "finds that the model is unsure of", skip: "cells that it nearly looked at", random: "a random place, to find what it does not know" };
const AHEAD = 12;

const time = (seconds) => (seconds >= 90 ? `about ${Math.round(seconds / 60)} min left` : `about ${Math.max(1, Math.round(seconds))} s left`);

export class ModelPanel {
  // `show(box, margin)` moves the view; `properties(label)` are those of a new annotation.
  constructor(state, canvas, options) {
    Object.assign(this, { state, canvas, options, version: null, finds: [], threshold: null, total: 0, current: -1, decided: new Map(), place: null, places: [], seed: 0, running: false, scanned: false, asked: false });
    part("fit").addEventListener("click", () => this.fit());
    part("cancel").addEventListener("click", () => this.state.post("cancel.json", {}).then(() => this.poll()));
    part("accept").addEventListener("click", () => this.decide(true));
    part("reject").addEventListener("click", () => this.decide(false));
    part("next").addEventListener("click", () => this.step(1));
    part("previous").addEventListener("click", () => this.step(-1));
    part("suggest").addEventListener("click", () => this.suggest());
    part("complete").addEventListener("click", () => this.complete());
    part("finds").addEventListener("change", () => canvas.redraw());
    state.addEventListener("change", () => this.tell());
    state.addEventListener("saved", () => {
      if (!state.unsaved) this.later();
    });
    this.watch();
  }

  // State of the server: often during a fit, rarely otherwise.
  async watch() {
    try {
      await this.poll();
    } catch {
      this.options.lost(true); // the next poll tells whether it still is
    }
    setTimeout(() => this.watch(), this.running ? 700 : 3000);
  }

  async poll() {
    let found;
    try {
      const answer = await fetch("state.json");
      found = await answer.json();
      if (!answer.ok) {
        this.state.fail(found.error); // the file of annotations was damaged by another program
        return;
      }
    } catch {
      this.options.lost(true);
      this.running = false; // a fit ends with its server
      this.tellFit();
      return;
    }
    this.options.lost(false);
    // Decisions made in another tab.
    if ((await this.state.follow(found.revision)) && this.version) await this.refresh();
    const { status, share, step, seconds_left: left, message } = found.fit;
    this.running = status === "running";
    this.tellFit();
    part("progress").firstElementChild.value = share;
    part("step").textContent = `${Math.round(share * 100)} %, ${step}${left === null ? "" : `, ${time(left)}`}`;
    if (!this.running) {
      const words = { failed: `The fit failed: ${message}`, cancelled: "The fit was cancelled.", done: message, idle: "" };
      part("fitMessage").textContent = words[status];
    } else part("fitMessage").textContent = "";
    part("results").hidden = !found.model;
    if (found.model && found.version !== this.version) {
      this.version = found.version;
      this.scanned = found.scanned;
      this.places = [];
      await this.refresh();
      this.options.fitted(found);
    }
  }

  tellFit() {
    part("fit").disabled = part("steps").hidden = this.running;
    part("cancel").hidden = part("progress").hidden = !this.running;
  }

  async fit() {
    part("fit").disabled = true;
    const answer = await this.state.post("fit.json", { steps: Number(part("steps").value) });
    await this.poll();
    if (!answer.ok) part("fitMessage").textContent = (await answer.json()).error;
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.version) this.refresh();
    }, 1200);
  }

  async refresh() {
    const key = this.current >= 0 && this.finds[this.current]?.key;
    const found = await (await fetch("finds.json")).json();
    this.threshold = found.threshold;
    this.total = found.total;
    this.finds = found.finds.map((find) => ({ ...find, key: `${find.label} ${find.box}`, geometry: find.outline ? { type: "Polygon", coordinates: [[...find.outline, find.outline[0]]] } : boxGeometry(find.box) }));
    this.current = key ? this.finds.findIndex((find) => find.key === key) : -1;
    this.tell();
  }

  get open() {
    return this.finds.filter((find) => this.isOpen(find));
  }

  isOpen(find) {
    return !this.state.items.has(this.decided.get(find.key));
  }

  // Finds in the suggested place that D accepts: those that the model reports.
  get here() {
    return this.place ? this.open.filter((find) => find.score >= this.threshold && this.isHere(find) && !this.isDrawn(find)) : [];
  }

  // Whether the person has drawn something over a find; the server tells only after the next save.
  isDrawn(find) {
    const within = ([x, y], [x0, y0, x1, y1]) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
    const middle = ([x0, y0, x1, y1]) => [(x0 + x1) / 2, (y0 + y1) / 2];
    return [...this.state.items.values()].some((item) => {
      if (this.state.info.special.includes(this.state.labelOf(item)) || isRejected(item)) return false;
      const points = item.geometry.coordinates.flat(Infinity);
      const xs = points.filter((_, i) => i % 2 === 0);
      const ys = points.filter((_, i) => i % 2 === 1);
      const box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
      return within(middle(find.box), box) || within(middle(box), find.box);
    });
  }

  isHere(find) {
    const [x0, y0, x1, y1] = this.place.box;
    const [x, y] = [(find.box[0] + find.box[2]) / 2, (find.box[1] + find.box[3]) / 2];
    return x >= x0 && x < x1 && y >= y0 && y < y1;
  }

  // The next find without a decision; one in the suggested place, if there is any.
  step(direction) {
    const count = this.finds.length;
    const wanted = this.here.length ? (find) => this.isHere(find) : () => true;
    let index = this.current;
    for (let i = 0; i < count; i += 1) {
      index = index < 0 && direction < 0 ? count - 1 : (index + direction + count) % count;
      if (this.isOpen(this.finds[index]) && wanted(this.finds[index])) {
        this.current = index;
        this.options.show(this.finds[index].box, 9);
        part("accept").parentElement.scrollIntoView({ block: "nearest" });
        break;
      }
      this.current = -1;
    }
    this.tell();
  }

  decide(accepted) {
    const find = this.finds[this.current];
    if (!find || !this.isOpen(find)) {
      this.step(1);
      return;
    }
    this.state.change([this.decision(find, accepted)]);
    this.step(1);
  }

  decision(find, accepted) {
    const id = uuid();
    this.decided.set(find.key, id);
    const properties = { ...this.options.properties(find.label), measurements: { score: find.score } };
    properties.coarse2fine = accepted ? { accepted: true } : { rejected: true };
    return { type: "Feature", id, geometry: find.geometry, properties };
  }

  async suggest() {
    part("suggest").disabled = true;
    this.asked = false;
    if (!this.places.length) {
      const found = await (await fetch(`places.json?count=${AHEAD}&seed=${this.seed}`)).json();
      this.seed += 1;
      this.places = found.places || [];
    }
    this.place = this.places.shift() || null;
    this.asked = true;
    part("suggest").disabled = false;
    part("complete").disabled = !this.place;
    this.tell();
    if (this.place) this.options.show(this.place.box, 1.6);
    part("complete").parentElement.scrollIntoView({ block: "nearest" });
  }

  tellPlace() {
    const done = [...this.state.items.values()].filter((item) => this.state.labelOf(item) === this.state.info.special[1]).length;
    const count = done ? `${done.toLocaleString("en")} ${done === 1 ? "place" : "places"} done. ` : "";
    const finds = this.here.length;
    const task = finds
      ? `Reject (N, X) what is wrong and draw what is missing in the square; D accepts the other ${finds === 1 ? "find" : `${finds} finds`} in it.`
      : "Draw all objects in the square, then press D.";
    part("suggestion").textContent = this.place ? `${count}Here: ${FINDS[this.place.kind]}. ${task}` : `${count}Nothing is left: all places are annotated.`;
  }

  // All in the place is drawn: its finds are accepted, in one change that can be undone.
  complete() {
    if (!this.place) return;
    const accepted = this.here.map((find) => this.decision(find, true));
    const place = { type: "Feature", id: uuid(), geometry: boxGeometry(this.place.box), properties: this.options.properties(this.state.info.special[1]) };
    this.state.change([...accepted, place]);
    this.place = null;
    this.suggest();
  }

  tell() {
    const open = this.open.length;
    part("findCount").textContent = open.toLocaleString("en");
    const find = this.finds[this.current];
    const shown = find && this.isOpen(find);
    part("accept").disabled = part("reject").disabled = !shown;
    part("next").disabled = part("previous").disabled = !open;
    if (shown) part("find").textContent = `${find.label}, score ${find.score.toFixed(2)} (reported from ${this.threshold.toFixed(2)})`;
    else if (open) part("find").textContent = "Press N for the find that is least certain.";
    else part("find").textContent = this.total || !this.version ? "All finds are decided." : "The model finds nothing yet: draw more objects, or mark places in which all are drawn (S, then D).";
    if (this.asked) this.tellPlace();
    this.canvas.redraw();
  }

  shapes() {
    const shapes = [];
    const current = this.finds[this.current];
    if (part("finds").checked && !part("results").hidden) {
      for (const find of this.open) {
        if (find !== current) shapes.push({ geometry: find.geometry, colour: this.options.colour(find.label), dashed: true });
      }
      if (current && this.isOpen(current)) {
        shapes.push({ geometry: current.geometry, colour: this.options.colour(current.label), dashed: true, selected: true, name: `${current.label}?` });
      }
    }
    if (this.place) shapes.push({ geometry: boxGeometry(this.place.box), colour: "255 255 255", dashed: true });
    return shapes;
  }
}
