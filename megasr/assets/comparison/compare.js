// Where the numbers come from, and the two pictures that are shown first.

function showHeader() {
  const { methods, images, protocol, facts, skipped, webpQuality } = data;
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  byId("title").textContent = methods.map((method) => method.label).join(", ");
  document.title = `${byId("title").textContent} \u2014 megasr compare`;
  const measured = data.metrics.length + data.setMetrics.length > 0;
  const how = measured ? [["protocol", `${protocol.name} (${protocol.fingerprint})`]] : [];
  const pairs = [["images", images.length], ["methods", methods.length], ...how, ...facts];
  for (const [name, value] of pairs) byId("facts").append(make("div", {}, make("dt", {}, name), make("dd", {}, `${value}`)));
  byId("lossy").hidden = webpQuality === null;
  byId("lossy").textContent = `The pictures on this page are lossy (WebP, quality ${webpQuality})${measured ? "; the scores are those of the files themselves" : ""}.`;
  byId("skipped").hidden = skipped.length === 0;
  byId("skipped").firstElementChild.textContent = `${count(skipped.length, "metric")} not taken`;
  for (const [name, why] of skipped) byId("skipped").lastElementChild.append(make("li", {}, make("b", {}, name), `: ${why}`));
  const notes = [`Over ${count(images.length, "image")}.`];
  if (methods.length > 1) notes.push("Bold: best.");
  if (methods.some((method) => Object.keys(method.intervals).length)) notes.push("Brackets: 95 % bootstrap interval over photographs.");
  if (methods.length > 1) notes.push("Colour: the interval of a difference excludes zero, and p < 0.05.");
  byId("summary-note").textContent = notes.join(" ");
}

// Where metrics disagree on a method, and how far they rank the images alike.

function showAgreement() {
  const { conflicts, correlations, methods } = data;
  byId("conflicts").hidden = conflicts.length === 0;
  for (const [label, note] of conflicts) {
    byId("conflicts").append(make("li", {}, make("b", {}, `${label} against ${methods[0].label}`), `: ${note}.`));
  }
  byId("correlations").hidden = correlations === null;
  if (correlations === null) return;
  const { caption, metrics, rows } = correlations;
  byId("correlations").firstElementChild.textContent = caption;
  const head = make("tr", {}, make("th"), ...metrics.map((name) => make("th", {}, name)));
  const body = rows.map((row, index) => make("tr", {}, make("th", {}, metrics[index]), ...row.map((cell) => make("td", {}, cell))));
  byId("correlations").querySelector("table").append(make("thead", {}, head), make("tbody", {}, ...body));
}

showHeader();
showMeans();
showAgreement();
const firstMethod = data.sources.findIndex(({ method }) => method === 0);
if (firstMethod < data.sources.length - 1) start(firstMethod, firstMethod + 1);
else start(0, firstMethod);
