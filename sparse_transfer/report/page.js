"use strict";
// Tables are complete without this script; it adds sorting by column and filtering of rows.
for (const figure of document.querySelectorAll("figure.table")) {
  const body = figure.querySelector("tbody");
  const heads = [...figure.querySelectorAll("thead th")];
  const original = [...body.rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  const sort = (column, rising) => {
    const rows = [...original];
    rows.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      const empty = (x === "") - (y === "");  // empty cells last, whatever the direction
      if (empty) return empty;
      const order = typeof x === "number" && typeof y === "number"
        ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return rising ? order : -order;
    });
    body.append(...rows);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sort(column, rising);
    });
  });
  const form = figure.querySelector("form.filter");
  if (!form) continue;
  form.hidden = false;
  const search = form.querySelector("input");
  const choices = [...form.querySelectorAll("select")];
  for (const choice of choices) {
    const seen = new Set(original.map((row) => row.cells[choice.dataset.column].textContent.trim()));
    for (const text of seen) if (text) choice.append(new Option(text, text));
    if (seen.size < 2) choice.remove();
  }
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of original) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && choices.every((choice) =>
        !choice.value || row.cells[choice.dataset.column].textContent.trim() === choice.value);
      row.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent =
      shown === original.length ? "" : `${shown} of ${original.length} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}
