import { Canvas } from "./annotate-canvas.js";
import { ModelPanel } from "./annotate-model.js";
import { State, isRejected } from "./annotate-state.js";
import { Tools } from "./annotate-tools.js";

const part = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
// Fewer objects give a rough model.
const FEW = 30;
const TOOLS = { v: "move", b: "box", p: "point", g: "polygon", k: "brush" };

function viewerOf(info) {
  return OpenSeadragon({
    element: part("stage"),
    tileSources: sourceOf(info, "image", ""),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: false,
    maxZoomPixelRatio: 16,
    minZoomImageRatio: 0.7,
    visibilityRatio: 0.4,
    animationTime: 0.4,
    imageLoaderLimit: 6,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false, flickEnabled: false },
    gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
  });
}

function sourceOf(info, layer, version) {
  const closer = layer === "image" ? 0 : info.closer;
  return {
    width: info.width * 2 ** closer,
    height: info.height * 2 ** closer,
    tileSize: info.tile,
    tileOverlap: info.overlap,
    minLevel: 0,
    maxLevel: info.lastLevel + closer,
    getTileUrl: (level, x, y) => `tiles/${layer}/${level}/${y}/${x}?v=${version}`,
  };
}

class Classes {
  constructor(info, changed) {
    this.names = [];
    this.colours = new Map();
    this.current = null;
    this.changed = changed;
    this.special = info.special;
    this.start = Promise.all([...info.classes, ...info.special].map((name) => this.add(name)));
  }

  async add(name) {
    if (this.names.includes(name)) return;
    this.names.push(name);
    // Places that are annotated or ignored are no objects: white and grey.
    const own = { [this.special[0]]: [150, 150, 150], [this.special[1]]: [235, 235, 235] }[name];
    this.colours.set(name, own || [128, 128, 128]);
    if (!own) this.colours.set(name, (await (await fetch(`colour.json?label=${encodeURIComponent(name)}`)).json()).colour);
  }

  get objects() {
    return this.names.filter((name) => !this.special.includes(name));
  }

  // Lighter than on paper, so that dark classes show on a dark image.
  css(name) {
    return (this.colours.get(name) || [128, 128, 128]).map((v) => Math.round(v + (255 - v) * 0.25)).join(" ");
  }

  properties(name) {
    return { objectType: "annotation", classification: { name, color: this.colours.get(name) } };
  }

  choose(name) {
    this.current = name;
    this.changed();
  }

  draw(counts) {
    const rows = [...this.objects, ...this.special].map((name) => {
      const row = document.createElement("button");
      const key = this.objects.indexOf(name);
      const short = { [this.special[0]]: "leave out", [this.special[1]]: "all drawn here" }[name];
      row.setAttribute("role", "radio");
      row.setAttribute("aria-checked", name === this.current);
      const cells = [["swatch", ""], ["label", short ? `${name} (${short})` : name], ["count", number(counts.get(name) || 0)]];
      if (key >= 0 && key < 9) cells.push(["key", String(key + 1)]);
      for (const [kind, text] of cells) {
        const cell = document.createElement("span");
        cell.className = kind;
        cell.textContent = text;
        row.append(cell);
      }
      row.firstChild.style.background = `rgb(${this.css(name)})`;
      row.addEventListener("click", () => this.choose(name));
      return row;
    });
    part("classes").replaceChildren(...rows);
  }
}

function showScale(viewer, info) {
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const pixels = item.viewportToImageZoom(viewer.viewport.getZoom(true));
  const [unit, size] = info.mpp ? ["\u00b5m", info.mpp] : ["px", 1];
  const most = (110 / pixels) * size;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((step) => step <= most);
  part("bar").style.width = `${(length / size) * pixels}px`;
  part("scale").textContent = `${number(length)} ${unit}, ${pixels >= 0.995 ? pixels.toFixed(1) : pixels.toPrecision(2)}x`;
}

async function start() {
  const info = await (await fetch("info.json")).json();
  document.title = `${info.name} - coarse2fine`;
  part("name").textContent = info.name;
  const viewer = viewerOf(info);
  const state = new State(info);
  const canvas = new Canvas(viewer, info);
  const shown = () => (part("shapes").checked ? [...state.items.values()].filter((item) => !isRejected(item)) : []);
  const classes = new Classes(info, () => {
    const item = state.items.get(tools.selected);
    if (item && state.labelOf(item) !== classes.current) {
      const { objectType } = item.properties;
      const made = { ...item.properties, ...classes.properties(classes.current), ...(objectType && { objectType }) };
      state.change([{ ...item, properties: made }]);
    }
    draw();
  });
  const tools = new Tools(viewer, canvas, state, {
    shown,
    label: () => classes.current,
    colour: (name) => classes.css(name),
    properties: (name) => classes.properties(name),
    brush: (alt, scale) => ({ radius: Number(part("radius").value) / scale, erase: alt || part("erase").checked }),
  });
  let lost = false;
  const layer = { item: null, version: null };
  const interest = () => {
    const opacity = part("interest").checked ? part("opacity").value / 100 : 0;
    if (layer.item) layer.item.setOpacity(opacity);
    else if (opacity && layer.version) {
      viewer.addTiledImage({ tileSource: sourceOf(info, "interest", layer.version), x: 0, y: 0, width: 1, opacity, success: ({ item }) => (layer.item = item) });
    }
  };
  const panel = new ModelPanel(state, canvas, {
    properties: (name) => classes.properties(name),
    colour: (name) => classes.css(name),
    lost: (isLost) => {
      if (lost === isLost) return;
      lost = isLost;
      tellSaved();
    },
    fitted: ({ version, scanned }) => {
      if (layer.item) viewer.world.removeItem(layer.item);
      Object.assign(layer, { item: null, version });
      part("interest").closest("label").hidden = part("heat").hidden = !scanned;
      interest();
    },
    show: ([x0, y0, x1, y1], margin) => {
      const side = Math.max(Math.max(x1 - x0, y1 - y0) * margin, 120);
      const around = new OpenSeadragon.Rect((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side);
      viewer.viewport.fitBounds(viewer.world.getItemAt(0).imageToViewportRectangle(around));
    },
  });

  const tellSaved = () => {
    const kept = state.pending.size ? ` ${number(state.pending.size)} ${state.pending.size === 1 ? "change is" : "changes are"} not saved.` : "";
    const text = lost ? `The server does not answer: start it again, then load its new address.${kept}` : state.problem && `Cannot be saved: ${state.problem}`;
    part("saved").textContent = text || (state.unsaved ? "Saving" : `Saved in ${info.file}`);
    part("saved").classList.toggle("bad", Boolean(text));
  };
  const draw = () => {
    const counts = new Map();
    let regions = 0;
    let objects = 0;
    for (const item of state.items.values()) {
      if (isRejected(item)) continue;
      const name = state.labelOf(item);
      counts.set(name, (counts.get(name) || 0) + 1);
      regions += name === info.special[1];
      objects += !info.special.includes(name);
      if (name && !classes.names.includes(name)) classes.add(name).then(draw);
    }
    classes.draw(counts);
    const rejected = [...state.items.values()].filter(isRejected).length;
    part("itemCount").textContent = `${number(state.items.size - rejected)} drawn, ${number(rejected)} rejected`;
    const few = objects && objects < FEW ? ` Only ${number(objects)} ${objects === 1 ? "object" : "objects"} so far: expect a rough model, and correct its finds.` : "";
    const scope = regions
      ? `Learns from ${number(regions)} ${regions === 1 ? "place" : "places"} where all is drawn, and from each object and decision elsewhere.`
      : "Learns from the whole image: what is not drawn counts as background. If only a part is annotated, mark it as \u201call drawn here\u201d.";
    part("scope").textContent = scope + few;
    part("undo").disabled = !state.done.length;
    part("redo").disabled = !state.undone.length;
    part("remove").disabled = !tools.selected;
    canvas.redraw();
  };
  canvas.layers = () => {
    const shapes = shown().map((item) => {
      const name = state.labelOf(item);
      const selected = item.id === tools.selected;
      const changing = selected && tools.draft && ["handle", "shift"].includes(tools.mode?.kind);
      const area = item.geometry.type !== "Point" && !info.special.includes(name);
      return { geometry: changing ? tools.draft : item.geometry, colour: classes.css(name), selected, filled: area, name: selected ? name || "no class" : "", order: selected ? 2 : info.special.includes(name) ? 0 : 1 };
    });
    if (tools.draft && tools.mode?.kind === "box") shapes.push({ geometry: tools.draft, colour: classes.css(classes.current), selected: true, open: true, order: 3 });
    return [...shapes.sort((a, b) => a.order - b.order), ...panel.shapes()];
  };
  canvas.over = (context, view) => tools.paintDraft(context, view);

  state.addEventListener("change", draw);
  state.addEventListener("change", tellSaved);
  state.addEventListener("saved", tellSaved);
  tools.addEventListener("select", () => {
    const item = state.items.get(tools.selected);
    if (item && state.labelOf(item)) classes.current = state.labelOf(item);
    draw();
  });
  tools.addEventListener("tool", () => {
    for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tools.tool);
    part("brushRow").hidden = tools.tool !== "brush";
    part("stage").dataset.tool = tools.tool;
    canvas.redraw();
  });
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => tools.use(button.dataset.tool));
  const remove = () => tools.selected && state.change([], [tools.selected]);
  part("undo").addEventListener("click", () => state.undo());
  part("redo").addEventListener("click", () => state.redo());
  part("remove").addEventListener("click", remove);
  part("shapes").addEventListener("change", () => canvas.redraw());
  part("interest").addEventListener("change", interest);
  part("opacity").addEventListener("input", interest);
  part("add").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = part("newClass").value.trim();
    if (!name) return;
    part("newClass").value = "";
    await classes.add(name);
    classes.choose(name);
  });
  const closer = () => viewer.viewport.zoomBy(1.6).applyConstraints();
  const farther = () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints();
  const whole = () => viewer.viewport.goHome();
  part("in").addEventListener("click", closer);
  part("out").addEventListener("click", farther);
  part("home").addEventListener("click", whole);
  part("full").addEventListener("click", () => viewer.viewport.zoomTo(viewer.world.getItemAt(0).imageToViewportZoom(1)));
  part("fold").addEventListener("click", () => {
    part("fold").setAttribute("aria-expanded", !document.body.classList.toggle("folded"));
  });
  for (const event of ["animation", "open", "resize", "update-viewport"]) viewer.addHandler(event, () => showScale(viewer, info));
  // Other keys work wherever the focus is, see below; here they would act twice, or move or turn the image.
  viewer.addHandler("canvas-key", (event) => {
    event.preventDefaultAction = !event.originalEvent.key.startsWith("Arrow");
  });
  viewer.canvas.addEventListener("pointermove", (event) => {
    const { left, top } = viewer.canvas.getBoundingClientRect();
    if (!viewer.world.getItemCount()) return;
    const [x, y] = canvas.toImage({ x: event.clientX - left, y: event.clientY - top }).map(Math.floor);
    part("where").textContent = x >= 0 && y >= 0 && x < info.width && y < info.height ? `x ${number(x)}, y ${number(y)}` : "";
  });

  const keys = {
    a: () => panel.decide(true),
    x: () => panel.decide(false),
    n: () => panel.step(1),
    N: () => panel.step(-1),
    s: () => panel.suggest(),
    d: () => panel.complete(),
    0: whole,
    "+": closer,
    "=": closer,
    "-": farther,
    Delete: remove,
    Backspace: remove,
    Enter: () => tools.finishPolygon(),
    Escape: () => (tools.mode ? tools.cancel() : tools.select(null)),
    "[": () => (part("radius").value = Number(part("radius").value) / 1.25),
    "]": () => (part("radius").value = Number(part("radius").value) * 1.25 + 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input:not([type=checkbox]):not([type=range]), select")) return;
    const letter = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (letter === "z" || letter === "y") {
        event.preventDefault();
        if (letter === "y" || event.shiftKey) state.redo();
        else state.undo();
      }
      return;
    }
    if (event.altKey) return;
    if (event.key === " " && !event.target.matches("button")) {
      event.preventDefault();
      tools.panning = true;
    } else if (/^[1-9]$/.test(event.key)) {
      const name = classes.objects[Number(event.key) - 1];
      if (name) classes.choose(name);
    } else if (TOOLS[letter]) tools.use(TOOLS[letter]);
    else if (keys[event.key]) {
      if (event.key !== "Enter") event.preventDefault();
      keys[event.key]();
      canvas.redraw();
    }
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") tools.panning = false;
  });
  window.addEventListener("beforeunload", (event) => {
    if (state.unsaved) event.preventDefault();
  });

  await classes.start;
  classes.current = info.classes[0];
  await state.load();
  tellSaved();
  tools.use(state.items.size ? "move" : "box");
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  part("saved").textContent = `This page cannot be shown: ${error.message}`;
  part("saved").classList.add("bad");
});
