"use strict";
// Tables are complete without this script; it adds sorting by column and filtering of rows.
for (const figure of document.querySelectorAll("figure.table")) {
  const body = figure.querySelector("tbody");
  const heads = [...figure.querySelectorAll("thead th")];
  const original = [...body.rows];
  const form = figure.querySelector("form.filter");
  const text = (row, column) => row.cells[column].textContent.trim();
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const value = (row, column) => {
    const { sort } = row.cells[column].dataset;
    return sort === undefined ? text(row, column) : Number(sort);
  };

  // Every click goes on: rising, falling, as it was. Empty cells come last either way.
  const sort = (column, direction) => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (direction) heads[column].setAttribute("aria-sort", direction);
    const sign = direction === "descending" ? -1 : 1;
    const keyed = original.map((row) => [value(row, column), row]);
    if (direction) keyed.sort(([x], [y]) => {
      if (x === "" || y === "") return (x === "") - (y === "");
      const areNumbers = typeof x === "number" && typeof y === "number";
      return sign * (areNumbers ? (x > y) - (x < y) : compare(x, y));
    });
    body.append(...keyed.map(([, row]) => row));
    if (form) form.querySelector("button").hidden = !isChanged();
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const next = { ascending: "descending", descending: "" };
    button.addEventListener("click", () => {
      sort(column, next[head.getAttribute("aria-sort")] ?? "ascending");
    });
  });

  if (!form) continue;
  form.hidden = false;
  const search = form.querySelector("input");
  const reset = form.querySelector("button");
  const choices = [...form.querySelectorAll("select")].filter((choice) => {
    const seen = new Set(original.map((row) => text(row, choice.dataset.column)));
    const values = [...seen].filter(Boolean).sort(compare);
    choice.append(...values.map((one) => new Option(one, one)));
    if (seen.size < 2) choice.remove();
    return seen.size > 1;
  });
  const searched = new Map(original.map((row) => [row, row.textContent.toLowerCase()]));
  function isChanged() {
    return search.value !== "" || choices.some((choice) => choice.value)
      || heads.some((head) => head.hasAttribute("aria-sort"));
  }
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of original) {
      const fits = words.every((word) => searched.get(row).includes(word))
        && choices.every((one) => !one.value || text(row, one.dataset.column) === one.value);
      row.hidden = !fits;
      shown += fits;
    }
    const all = `${original.length} rows`;
    form.querySelector("output").textContent = shown < original.length ? `${shown} of ${all}` : all;
    reset.hidden = !isChanged();
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sort(0, ""); filter(); search.focus(); }));
  filter();
}
// What is folded on the screen is open on paper.
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
