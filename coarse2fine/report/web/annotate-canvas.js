// Shapes over the image, on a canvas; and which of them lies under a point.
import { isRejected } from "./annotate-state.js";

const HANDLE = 5;

export const ringsOf = (geometry) => {
  if (geometry.type === "Polygon") return geometry.coordinates;
  if (geometry.type === "MultiPolygon") return geometry.coordinates.flat();
  return [];
};

const bounds = new WeakMap();
export const boundsOf = (geometry) => {
  if (bounds.has(geometry)) return bounds.get(geometry);
  const points = geometry.type === "Point" ? [geometry.coordinates] : ringsOf(geometry).flat();
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of points) {
    x0 = Math.min(x0, x);
    y0 = Math.min(y0, y);
    x1 = Math.max(x1, x);
    y1 = Math.max(y1, y);
  }
  const box = [x0, y0, x1, y1];
  bounds.set(geometry, box);
  return box;
};

export const boxGeometry = ([x0, y0, x1, y1]) => ({
  type: "Polygon",
  coordinates: [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
});

export const isBox = (geometry) => {
  if (geometry.type !== "Polygon" || geometry.coordinates.length !== 1 || geometry.coordinates[0].length !== 5) return false;
  const [x0, y0, x1, y1] = boundsOf(geometry);
  return geometry.coordinates[0].every(([x, y]) => (x === x0 || x === x1) && (y === y0 || y === y1));
};

const inRing = (ring, x, y) => {
  let inside = false;
  for (let i = 0, j = ring.length - 1; i < ring.length; j = i, i += 1) {
    const [xi, yi] = ring[i];
    const [xj, yj] = ring[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
};
const contains = (geometry, x, y) => ringsOf(geometry).reduce((inside, ring) => inside !== inRing(ring, x, y), false);

export class Canvas {
  constructor(viewer, info) {
    this.viewer = viewer;
    this.info = info;
    this.element = document.createElement("canvas");
    this.element.className = "shapes";
    viewer.canvas.append(this.element);
    this.layers = () => [];
    this.over = () => {};
    this.wanted = false;
    for (const event of ["animation", "update-viewport", "resize", "open"]) viewer.addHandler(event, () => this.redraw());
  }

  redraw() {
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => {
      this.wanted = false;
      this.paint();
    });
  }

  // Image pixels to pixels of the element, as a scale and an offset: the view is never turned.
  view() {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return null;
    const at = (x, y) => this.viewer.viewport.pixelFromPoint(image.imageToViewportCoordinates(x, y, true), true);
    const origin = at(0, 0);
    const scale = (at(this.info.width, 0).x - origin.x) / this.info.width;
    return { scale, x: origin.x, y: origin.y };
  }

  toImage(position) {
    const { scale, x, y } = this.view();
    return [(position.x - x) / scale, (position.y - y) / scale];
  }

  paint() {
    const view = this.view();
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.viewer.canvas;
    if (this.element.width !== Math.round(width * ratio) || this.element.height !== Math.round(height * ratio)) {
      this.element.width = Math.round(width * ratio);
      this.element.height = Math.round(height * ratio);
    }
    const context = this.element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!view) return;
    const seen = [-view.x / view.scale, -view.y / view.scale, (width - view.x) / view.scale, (height - view.y) / view.scale];
    const margin = 12 / view.scale;
    for (const shape of this.layers()) {
      const [x0, y0, x1, y1] = boundsOf(shape.geometry);
      if (x1 < seen[0] - margin || y1 < seen[1] - margin || x0 > seen[2] + margin || y0 > seen[3] + margin) continue;
      this.shape(context, view, shape);
    }
    this.over(context, view);
  }

  path(context, view, geometry) {
    context.beginPath();
    for (const ring of ringsOf(geometry)) {
      ring.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * view.scale + view.x, y * view.scale + view.y));
      context.closePath();
    }
  }

  shape(context, view, { geometry, colour, selected, dashed, filled, open, name }) {
    const [x0, y0, x1, y1] = boundsOf(geometry).map((v, i) => v * view.scale + (i % 2 ? view.y : view.x));
    context.setLineDash([]);
    if (geometry.type === "Point") {
      context.beginPath();
      context.arc(x0, y0, selected ? 7 : 5, 0, 2 * Math.PI);
    } else {
      this.path(context, view, geometry);
      if (filled) {
        context.fillStyle = `rgb(${colour} / ${selected ? 0.3 : 0.16})`;
        context.fill("evenodd");
      }
    }
    // Dashes of a few pixels would hide the shape.
    const dashes = dashed && x1 - x0 > 24;
    // A dark line under the light one shows on any ground.
    context.lineJoin = "round";
    context.strokeStyle = "rgb(0 0 0 / 0.65)";
    context.lineWidth = selected ? 5 : 3.5;
    if (x1 - x0 > 8 || geometry.type === "Point") context.stroke();
    context.strokeStyle = selected && !dashed ? "#fff" : `rgb(${colour})`;
    context.lineWidth = selected ? 2.5 : x1 - x0 > 8 ? 1.8 : 1.2;
    if (dashes) context.setLineDash([6, 4]);
    context.stroke();
    context.setLineDash([]);
    if (geometry.type === "Point") {
      context.fillStyle = `rgb(${colour})`;
      context.fill();
    }
    if (selected && !dashed && !open) {
      context.fillStyle = "#fff";
      for (const { x, y } of this.handles(geometry)) {
        context.fillRect(x * view.scale + view.x - HANDLE + 1, y * view.scale + view.y - HANDLE + 1, 2 * HANDLE - 2, 2 * HANDLE - 2);
      }
    }
    if (name) this.name(context, name, x0, y0, colour);
  }

  name(context, text, x, y, colour) {
    context.font = "600 12px system-ui, sans-serif";
    const width = Math.min(context.measureText(text).width, 180) + 10;
    const left = Math.max(2, Math.min(x, this.viewer.canvas.clientWidth - width - 2));
    const top = Math.max(2, y - 22);
    context.fillStyle = "rgb(15 16 18 / 0.85)";
    context.fillRect(left, top, width, 18);
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(left, top, 3, 18);
    context.fillStyle = "#fff";
    context.fillText(text, left + 7, top + 13, 180);
  }

  // Corners by which a shape is changed; large areas have too many to be moved one by one.
  handles(geometry) {
    if (geometry.type !== "Polygon" || geometry.coordinates.length !== 1 || geometry.coordinates[0].length > 60) return [];
    return geometry.coordinates[0].slice(0, -1).map(([x, y], index) => ({ x, y, index }));
  }

  handleAt(geometry, [x, y], touch) {
    const reach = (touch ? 20 : HANDLE + 4) / this.view().scale;
    return this.handles(geometry).find((handle) => Math.hypot(handle.x - x, handle.y - y) <= reach);
  }

  // The smallest shape under a point; `items` are features.
  itemAt(items, [x, y], touch) {
    const reach = (touch ? 16 : 8) / this.view().scale;
    let best = null;
    let least = Infinity;
    for (const item of items) {
      if (isRejected(item)) continue;
      const [x0, y0, x1, y1] = boundsOf(item.geometry);
      if (x < x0 - reach || y < y0 - reach || x > x1 + reach || y > y1 + reach) continue;
      const point = item.geometry.type === "Point";
      const hit = point ? Math.hypot(x - x0, y - y0) <= reach : contains(item.geometry, x, y) || (x1 - x0 < 2 * reach && y1 - y0 < 2 * reach);
      const size = point ? 0 : (x1 - x0) * (y1 - y0);
      if (hit && size < least) [best, least] = [item, size];
    }
    return best;
  }
}
