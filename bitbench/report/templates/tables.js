"use strict";
// Sorting and filtering, on what the page already holds. Without script the page reads the same.
(() => {
  const key = (cell) => {
    const text = cell.dataset.v ?? cell.textContent.trim();
    const number = text === "inf" ? Infinity : Number(text);
    return text === "" || Number.isNaN(number) ? text.toLowerCase() : number;
  };
  // Figures before words; an absent figure is Infinity and stays last in both directions.
  const compare = (a, b, sign) => {
    if (a === b) return 0;
    if (a === Infinity) return 1;
    if (b === Infinity) return -1;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    heads.forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const sign = up ? 1 : -1;
        rows.sort((a, b) => compare(key(a.cells[column]), key(b.cells[column]), sign));
        body.append(...rows);
      });
    });
  }
  for (const input of document.querySelectorAll("input.filter")) {
    const rows = [...document.getElementById(input.dataset.for).tBodies[0].rows];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
  // A link into a folded section opens it.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && (target.closest("details") ?? target.querySelector(":scope > details"));
    if (fold && !fold.open) {
      fold.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  });
  reveal();
})();
