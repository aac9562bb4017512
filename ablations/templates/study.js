// The ranking's table, which its script sorts, and the pictures that it leads to.

function sortRows(head) {
  const table = head.closest("table");
  const numeric = head.classList.contains("number");
  const descending = head.ariaSort === "none" ? numeric : head.ariaSort === "ascending";
  for (const other of head.parentElement.cells) other.ariaSort = "none";
  head.ariaSort = descending ? "descending" : "ascending";
  const value = (row) => row.cells[head.cellIndex].dataset.value;
  const compare = (a, b) => (numeric ? Number(a) - Number(b) : collator.compare(a, b)) * (descending ? -1 : 1);
  // What is unknown comes last in both directions.
  const ordered = (a, b) => (a === undefined) - (b === undefined) || (a === undefined ? 0 : compare(a, b));
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => ordered(value(a), value(b))));
}

for (const head of document.querySelectorAll("#rows thead th")) head.firstElementChild.addEventListener("click", () => sortRows(head));
for (const button of document.querySelectorAll("#rows .name")) {
  button.addEventListener("click", () => {
    choose("right", Number(button.dataset.source));
    byId("viewer").scrollIntoView({ block: "start" });
  });
}
byId("lossy").hidden = data.webpQuality === null || data.images.length === 0;
byId("lossy").textContent = `The pictures on this page are lossy (WebP, quality ${data.webpQuality}); the scores are those of the files themselves.`;
if (data.images.length) start(...data.start);
