// Drawing and changing shapes with mouse, pen or finger.
import { boundsOf, boxGeometry, isBox } from "./annotate-canvas.js";
import { uuid } from "./annotate-state.js";

const LEAST = 4; // screen pixels of a drag that draws a box

const round = (value) => Math.round(value * 100) / 100;

export class Tools extends EventTarget {
  // `options`: label() and properties(label) of the current class, brush() with radius and erase.
  constructor(viewer, canvas, state, options) {
    super();
    Object.assign(this, { viewer, canvas, state, options, tool: "move", selected: null, draft: null, mode: null, panning: false, pointer: null });
    viewer.addHandler("canvas-press", (event) => this.press(event));
    viewer.addHandler("canvas-drag", (event) => this.drag(event));
    viewer.addHandler("canvas-drag-end", (event) => {
      if (this.mode) event.preventDefaultAction = true;
    });
    viewer.addHandler("canvas-release", (event) => this.release(event));
    viewer.addHandler("canvas-click", (event) => this.click(event));
    viewer.addHandler("canvas-double-click", (event) => this.doubleClick(event));
    viewer.addHandler("canvas-pinch", () => this.cancel());
    viewer.canvas.addEventListener("pointermove", (event) => this.move(event));
    viewer.canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      canvas.redraw();
    });
    state.addEventListener("change", () => {
      if (this.selected && !state.items.has(this.selected)) this.select(null);
    });
  }

  use(tool) {
    this.finishPolygon();
    this.tool = tool;
    if (tool !== "move") this.select(null);
    this.dispatchEvent(new Event("tool"));
  }

  select(id) {
    this.selected = id;
    this.canvas.redraw();
    this.dispatchEvent(new Event("select"));
  }

  cancel() {
    this.draft = this.mode = null;
    this.canvas.redraw();
  }

  inside([x, y]) {
    const { width, height } = this.state.info;
    return [round(Math.min(Math.max(x, 0), width)), round(Math.min(Math.max(y, 0), height))];
  }

  at(event) {
    return this.canvas.toImage(event.position);
  }

  press(event) {
    if (this.panning) return;
    const point = this.at(event);
    const touch = event.pointerType === "touch";
    if (this.tool === "box") this.mode = { kind: "box", from: this.inside(point), start: event.position };
    if (this.tool === "brush") {
      this.mode = { kind: "brush", stroke: [point], ...this.options.brush(event.originalEvent.altKey, this.canvas.view().scale) };
      this.canvas.redraw();
    }
    const item = this.tool === "move" && this.state.items.get(this.selected);
    if (item) {
      const handle = this.canvas.handleAt(item.geometry, point, touch);
      if (handle) this.mode = { kind: "handle", handle, item };
      else if (this.canvas.itemAt([item], point, touch)) this.mode = { kind: "shift", from: point, item };
    }
  }

  drag(event) {
    if (!this.mode) return;
    event.preventDefaultAction = true;
    const point = this.at(event);
    const { kind, from, item } = this.mode;
    if (kind === "box") {
      const [x, y] = this.inside(point);
      this.draft = boxGeometry([Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)]);
    } else if (kind === "brush") {
      this.mode.stroke.push(point);
      this.canvas.redraw();
    } else {
      this.draft = kind === "handle" ? this.withHandle(item.geometry, this.mode.handle, this.inside(point)) : this.shifted(item.geometry, point[0] - from[0], point[1] - from[1]);
    }
    this.canvas.redraw();
  }

  async release(event) {
    const { mode, draft } = this;
    if (!mode || mode.kind === "polygon") return;
    setTimeout(() => {
      if (this.mode === mode) this.mode = null; // after the end of the drag was kept from moving the image
    });
    if (mode.kind === "brush") {
      await this.paint(mode);
      return;
    }
    this.draft = null;
    if (!draft) return;
    if (mode.kind === "box") {
      const far = Math.max(Math.abs(event.position.x - mode.start.x), Math.abs(event.position.y - mode.start.y));
      const [x0, y0, x1, y1] = boundsOf(draft);
      if (far >= LEAST && x1 > x0 && y1 > y0) this.add(draft);
    } else {
      this.state.change([{ ...mode.item, geometry: draft }]);
    }
    this.canvas.redraw();
  }

  click(event) {
    if (!event.quick || this.panning) return;
    const point = this.at(event);
    const touch = event.originalEvent.pointerType === "touch";
    if (this.tool === "polygon") {
      this.corner(this.inside(point), touch);
    } else if (this.tool === "point") {
      const [x, y] = point;
      if (x >= 0 && y >= 0 && x < this.state.info.width && y < this.state.info.height) this.add({ type: "Point", coordinates: this.inside(point) });
    } else if (this.tool !== "brush") {
      const item = this.canvas.itemAt(this.options.shown(), point, touch);
      this.select(item ? item.id : null);
    }
  }

  doubleClick(event) {
    if (this.tool === "move") return;
    event.preventDefaultAction = true;
    if (this.tool === "polygon") this.finishPolygon();
  }

  move(event) {
    const { left, top } = this.viewer.canvas.getBoundingClientRect();
    this.pointer = { x: event.clientX - left, y: event.clientY - top };
    if (this.tool === "brush" || this.mode?.kind === "polygon") this.canvas.redraw();
  }

  corner(point, touch) {
    if (this.mode?.kind !== "polygon") this.mode = { kind: "polygon", ring: [] };
    const { ring } = this.mode;
    const reach = (touch ? 20 : 10) / this.canvas.view().scale;
    if (ring.length > 2 && Math.hypot(point[0] - ring[0][0], point[1] - ring[0][1]) < reach) {
      this.finishPolygon();
      return;
    }
    const last = ring.at(-1);
    if (!last || last[0] !== point[0] || last[1] !== point[1]) ring.push(point);
    this.canvas.redraw();
  }

  finishPolygon() {
    if (this.mode?.kind !== "polygon") return;
    const { ring } = this.mode;
    this.cancel();
    // A double click sets its corner twice, a few pixels apart.
    const near = 3 / this.canvas.view().scale;
    const kept = ring.filter((p, i) => !i || Math.hypot(p[0] - ring[i - 1][0], p[1] - ring[i - 1][1]) > near);
    if (kept.length > 2) this.add({ type: "Polygon", coordinates: [[...kept, kept[0]]] });
  }

  add(geometry) {
    const feature = { type: "Feature", id: uuid(), geometry, properties: this.options.properties(this.options.label()) };
    this.state.change([feature]);
  }

  withHandle(geometry, handle, [x, y]) {
    const ring = geometry.coordinates[0].slice(0, -1);
    if (isBox(geometry)) {
      const opposite = ring[(handle.index + 2) % 4];
      const box = [Math.min(x, opposite[0]), Math.min(y, opposite[1]), Math.max(x, opposite[0]), Math.max(y, opposite[1])];
      return box[2] > box[0] && box[3] > box[1] ? boxGeometry(box) : geometry;
    }
    ring[handle.index] = [x, y];
    return { ...geometry, coordinates: [[...ring, ring[0]]] };
  }

  shifted(geometry, dx, dy) {
    const [x0, y0, x1, y1] = boundsOf(geometry);
    const { width, height } = this.state.info;
    const sx = Math.min(Math.max(dx, -x0), width - x1);
    const sy = Math.min(Math.max(dy, -y0), height - y1);
    const deep = (value) => (typeof value[0] === "number" ? [round(value[0] + sx), round(value[1] + sy)] : value.map(deep));
    return { ...geometry, coordinates: deep(geometry.coordinates) };
  }

  async paint({ stroke, radius, erase }) {
    const label = this.options.label();
    const xs = stroke.map((p) => p[0]);
    const ys = stroke.map((p) => p[1]);
    const around = [Math.min(...xs) - radius, Math.min(...ys) - radius, Math.max(...xs) + radius, Math.max(...ys) + radius];
    const areas = this.options.shown().filter((item) => {
      const [x0, y0, x1, y1] = boundsOf(item.geometry);
      return item.geometry.type !== "Point" && !isBox(item.geometry) && this.state.labelOf(item) === label && x0 < around[2] && x1 > around[0] && y0 < around[3] && y1 > around[1];
    });
    const put = [];
    const remove = [];
    // New paint joins the area that it touches first; erasing changes all of them.
    for (const area of erase ? areas : [areas.find((item) => this.touches(item, stroke, radius))]) {
      const answer = await this.state.post("brush.json", { stroke, radius, erase, geometry: area ? area.geometry : null });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      if (found.geometry && area) put.push({ ...area, geometry: found.geometry });
      else if (found.geometry) put.push({ type: "Feature", id: uuid(), geometry: found.geometry, properties: this.options.properties(label) });
      else if (area) remove.push(area.id);
    }
    if (put.length || remove.length) this.state.change(put, remove);
    this.canvas.redraw();
  }

  touches(item, stroke, radius) {
    const steps = Math.max(1, Math.floor(stroke.length / 200));
    const ring = Array.from({ length: 12 }, (_, i) => [Math.cos((i * Math.PI) / 6) * radius, Math.sin((i * Math.PI) / 6) * radius]);
    return stroke.some(([x, y], i) => i % steps === 0 && [[0, 0], ...ring].some(([dx, dy]) => this.canvas.itemAt([item], [x + dx, y + dy], false)));
  }

  // What is being drawn, over all shapes.
  paintDraft(context, view) {
    const point = ([x, y]) => [x * view.scale + view.x, y * view.scale + view.y];
    context.lineJoin = context.lineCap = "round";
    if (this.mode?.kind === "brush") {
      context.strokeStyle = this.mode.erase ? "rgb(255 255 255 / 0.45)" : `rgb(${this.options.colour(this.options.label())} / 0.55)`;
      context.lineWidth = 2 * this.mode.radius * view.scale;
      context.beginPath();
      this.mode.stroke.forEach((each, i) => context[i ? "lineTo" : "moveTo"](...point(each)));
      if (this.mode.stroke.length === 1) context.lineTo(...point(this.mode.stroke[0]));
      context.stroke();
    }
    if (this.tool === "brush" && this.pointer) {
      context.beginPath();
      context.arc(this.pointer.x, this.pointer.y, this.options.brush(false, view.scale).radius * view.scale, 0, 2 * Math.PI);
      context.strokeStyle = "#fff";
      context.lineWidth = 1.2;
      context.stroke();
    }
    if (this.mode?.kind === "polygon") {
      context.beginPath();
      this.mode.ring.forEach((each, i) => context[i ? "lineTo" : "moveTo"](...point(each)));
      if (this.pointer) context.lineTo(this.pointer.x, this.pointer.y);
      for (const [style, width] of [["rgb(0 0 0 / 0.65)", 4], ["#fff", 2]]) {
        context.strokeStyle = style;
        context.lineWidth = width;
        context.stroke();
      }
      context.fillStyle = "#fff";
      for (const each of this.mode.ring) {
        const [x, y] = point(each);
        context.fillRect(x - 3, y - 3, 6, 6);
      }
    }
  }
}
