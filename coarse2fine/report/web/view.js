"use strict";
const part = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
// As many decimals as tell a score from 1.
const scored = (score) => [2, 3, 4, 5].map((digits) => score.toFixed(digits)).find((text) => Number(text) < 1) ?? score.toFixed(2);
const made = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

async function start() {
  const info = await (await fetch("info.json")).json();
  document.title = `${info.name} - coarse2fine`;
  part("name").textContent = info.name;
  part("summary").textContent = info.summary.join("\n");
  part("windowCount").textContent = number(info.windows);
  part("regionCount").textContent = number(info.labels.reduce((sum, label) => sum + label.count, 0));
  const hidden = new Set();

  // Overlays have a finer resolution than the image: their lines stay thin when its pixels are enlarged.
  const closer = (layer) => (layer === "image" ? 0 : info.closer);
  const source = (layer) => ({
    width: info.width * 2 ** closer(layer),
    height: info.height * 2 ** closer(layer),
    tileSize: info.tile,
    tileOverlap: info.overlap,
    minLevel: 0,
    maxLevel: info.lastLevel + closer(layer),
    getTileUrl: (level, x, y) =>
      `tiles/${layer}/${level}/${y}/${x}?v=${info.version}` +
      (layer === "regions" && hidden.size ? `&hidden=${[...hidden].join(",")}` : ""),
  });
  const viewer = OpenSeadragon({
    element: part("stage"),
    tileSources: source("image"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: false,
    maxZoomPixelRatio: 12,
    minZoomImageRatio: 0.7,
    visibilityRatio: 0.4,
    animationTime: 0.5,
    imageLoaderLimit: 6,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
  });

  const layers = {};
  const opacity = (layer) =>
    !part(layer).checked ? 0 : layer === "interest" ? part("opacity").value / 100 : 1;
  const show = (layer) => {
    if (layers[layer]) layers[layer].setOpacity(opacity(layer));
    else if (part(layer).checked) add(layer);
  };
  const order = ["interest", "windows", "regions"];
  const add = (layer) => {
    const old = layers[layer];
    layers[layer] = undefined;
    viewer.addTiledImage({
      tileSource: source(layer),
      x: 0,
      y: 0,
      width: 1,
      opacity: opacity(layer),
      success: ({ item }) => {
        if (old) viewer.world.removeItem(old);
        layers[layer] = item;
        item.setOpacity(opacity(layer));
        order.map((name) => layers[name]).filter(Boolean).forEach((each, index) => viewer.world.setItemIndex(each, index + 1));
      },
    });
  };
  part("heat").hidden = !info.scanned;
  part("interest").closest("label").hidden = !info.scanned;
  for (const layer of order) part(layer).addEventListener("change", () => show(layer));
  part("opacity").addEventListener("input", () => show("interest"));
  viewer.addOnceHandler("open", () => order.forEach(show));

  info.labels.forEach((label, index) => {
    const line = made("label", "switch");
    const box = made("input");
    box.type = "checkbox";
    box.checked = true;
    const swatch = made("span", "swatch");
    swatch.style.background = label.colour;
    line.append(box, swatch, made("span", "label", label.name), made("span", "count", number(label.count)));
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(index);
      else hidden.add(index);
      add("regions");
    });
    part("classes").append(line);
  });

  const seen = (box, margin) => {
    const [x0, y0, x1, y1] = box;
    const side = Math.max(x1 - x0, y1 - y0) * margin;
    const around = new OpenSeadragon.Rect((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side);
    viewer.viewport.fitBounds(viewer.world.getItemAt(0).imageToViewportRectangle(around));
  };
  let current = -1;
  const goTo = (index) => {
    if (!info.best.length) return;
    current = (index + info.best.length) % info.best.length;
    [...part("best").children].forEach((row, i) => row.firstChild.setAttribute("aria-current", i === current));
    part("best").children[current].scrollIntoView({ block: "nearest" });
    seen(info.best[current].box, 8);
  };
  info.best.forEach((window, index) => {
    const row = made("li");
    const button = made("button");
    button.append(made("span", "", number(index + 1)), made("span", "fired", window.fired || "no feature"), made("span", "count", window.score.toFixed(2)));
    button.title = `${window.finds} found; ${window.score.toFixed(2)} expected; ${window.fired}`;
    button.addEventListener("click", () => goTo(index));
    row.append(button);
    part("best").append(row);
  });

  for (const name of info.files) {
    const row = made("li");
    const link = made("a", "", name);
    link.href = `files/${encodeURIComponent(name)}`;
    link.download = name;
    row.append(link);
    part("files").append(row);
  }

  const pointOf = (position) => viewer.world.getItemAt(0).viewportToImageCoordinates(viewer.viewport.pointFromPixel(position));
  const tell = async (point) => {
    const found = await (await fetch(`at.json?y=${point.y}&x=${point.x}`)).json();
    const rows = found.regions.map((region) => {
      const row = made("div");
      const more = [`score ${scored(region.score)}`, region.fired, region.route.length ? `route ${region.route.join(" \u2192 ")}` : ""];
      row.append(made("b", "", region.label), made("br"), made("span", "", more.filter(Boolean).join("; ")));
      return row;
    });
    for (const window of found.windows) {
      const row = made("div");
      row.append(made("b", "", `Window ${number(window.rank)}`), made("br"), made("span", "", `${window.score.toFixed(2)} expected, ${window.finds} found; ${window.fired}`));
      rows.push(row);
    }
    part("told").replaceChildren(...rows);
    part("told").hidden = !rows.length;
  };
  viewer.addHandler("canvas-click", (event) => {
    if (event.quick) tell(pointOf(event.position));
  });
  new OpenSeadragon.MouseTracker({
    element: part("stage"),
    moveHandler: (event) => {
      if (!viewer.world.getItemCount()) return;
      const { x, y } = pointOf(event.position);
      const inside = x >= 0 && y >= 0 && x < info.width && y < info.height;
      part("where").textContent = inside ? `x ${number(Math.floor(x))}, y ${number(Math.floor(y))}` : "";
    },
  });

  const measure = () => {
    if (!viewer.world.getItemCount()) return;
    const pixels = viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom(true));
    const [unit, size] = info.mpp ? ["\u00b5m", info.mpp] : ["px", 1];
    const most = (110 / pixels) * size;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((step) => step * power).find((step) => step <= most);
    part("bar").style.width = `${(length / size) * pixels}px`;
    const shown = unit === "\u00b5m" && length >= 1000 ? `${number(length / 1000)} mm` : `${number(length)} ${unit}`;
    part("scale").textContent = `${shown}, ${pixels >= 0.995 ? pixels.toFixed(1) : pixels.toPrecision(2)}x`;
  };
  for (const event of ["animation", "open", "resize", "update-viewport"]) viewer.addHandler(event, measure);

  part("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6));
  part("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6));
  part("home").addEventListener("click", () => viewer.viewport.goHome());
  part("full").addEventListener("click", () => viewer.viewport.zoomTo(viewer.world.getItemAt(0).imageToViewportZoom(1)));
  part("fold").addEventListener("click", () => {
    part("fold").setAttribute("aria-expanded", !document.body.classList.toggle("folded"));
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=range]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") goTo(current + 1);
    if (event.key === "p") goTo(current - 1);
  });
  if (location.hash.startsWith("#window=")) {
    viewer.addOnceHandler("open", () => goTo(Number(location.hash.slice(8)) - 1));
  }
}
start();
