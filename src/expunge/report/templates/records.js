"use strict";
(() => {
  const table = document.getElementById("records");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const wanted = document.getElementById("wanted");
  const set = document.getElementById("set");
  const told = document.getElementById("told");

  function value(row, column) {
    const text = row.cells[column].textContent.trim();
    if (!heads[column].classList.contains("num")) return text;
    return Number(text.replace("\u2212", "-"));
  }

  function compare(a, b) {
    if (typeof a === "string") return a < b ? -1 : Number(a > b);
    return a - b;
  }

  function sort(column) {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = rows.map((row, place) => ({ row, place, key: value(row, column) }));
    keyed.sort((a, b) => {
      const gone = Number(Number.isNaN(a.key)) - Number(Number.isNaN(b.key));
      if (gone || Number.isNaN(a.key)) return gone || a.place - b.place;
      return (up ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
    });
    body.replaceChildren(...keyed.map((one) => one.row));
  }

  function search() {
    const text = wanted.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const id = row.cells[1].textContent.toLowerCase();
      const hit = id.includes(text) && (!set.value || row.cells[0].textContent === set.value);
      row.hidden = !hit;
      count += Number(hit);
    }
    told.textContent = count + " of " + rows.length + " rows";
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  wanted.addEventListener("input", search);
  set.addEventListener("change", search);
  document.getElementById("controls").hidden = false;
  search();
})();
