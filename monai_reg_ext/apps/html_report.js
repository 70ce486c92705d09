"use strict";
// The address says how the table is sorted: #sort=dice from the smallest value, #sort=-dice from the largest.
(() => {
  const table = document.getElementById("pairs-table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const status = document.getElementById("sort-status");
  const collator = new Intl.Collator(undefined, { numeric: true });

  function compare(a, b) {
    return typeof a === "number" ? a - b : collator.compare(a, b);
  }

  function valueOf(row, column) {
    const value = row.cells[column].dataset.value;
    if (headers[column].dataset.kind === "text") return value;
    return value === "" ? null : Number(value);
  }

  function sorted(column, sign) {
    const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
    const known = rows.filter((row) => values.get(row) !== null);
    const unknown = rows.filter((row) => values.get(row) === null);
    return [...known.sort((a, b) => sign * compare(values.get(a), values.get(b))), ...unknown];
  }

  function sortAsAddressed() {
    const order = new URLSearchParams(location.hash.slice(1)).get("sort");
    if (order === null) return;
    const sign = order.startsWith("-") ? -1 : 1;
    const column = headers.findIndex((header) => header.dataset.key === order.replace(/^-/, ""));
    const direction = sign > 0 ? "ascending" : "descending";
    headers.forEach((header, index) => header.setAttribute("aria-sort", index === column ? direction : "none"));
    body.append(...(column < 0 ? rows : sorted(column, sign)));
    status.textContent = column < 0 ? "in the order of the run" : `sorted by ${headers[column].textContent.trim().replace(/\s+/g, " ")}, ${direction}`;
  }

  function nextOrder(header) {
    const key = header.dataset.key;
    return { none: key, ascending: `-${key}`, descending: "" }[header.getAttribute("aria-sort")];
  }

  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      location.replace(`#sort=${encodeURIComponent(nextOrder(header))}`);
    });
  }
  window.addEventListener("hashchange", sortAsAddressed);
  sortAsAddressed();
})();
