"use strict";
for (const box of document.querySelectorAll("input[data-layer]")) {
  const show = () => {
    for (const part of document.querySelectorAll(`[data-part="${box.dataset.layer}"]`)) {
      part.style.display = box.checked ? "" : "none";
    }
  };
  box.addEventListener("change", show);
  show();
}
for (const head of document.querySelectorAll("th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement;
    const column = [...cell.parentElement.children].indexOf(cell);
    const up = cell.getAttribute("aria-sort") !== "ascending";
    const body = cell.closest("table").tBodies[0];
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      const numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
      return numbers ? x - y : x.localeCompare(y);
    };
    const rows = [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
    for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
}
