// The table of means and the sortable table of images.

const collator = new Intl.Collator("en", { numeric: true });
const MINUS = "\u2212";
const sorting = { column: 0, descending: false };

// As papers print them: PSNR 28.03, SSIM 0.7967. All numbers of one metric have the same digits.
function digits(metric) {
  const sizes = data.methods.map((m) => Math.abs(m.means[metric.name] ?? m.setValues[metric.name]));
  return Math.max(...sizes) >= 10 ? 2 : 4;
}

const plain = (value, metric) => value.toFixed(digits(metric)).replace("-", MINUS);

function signed(value, metric) {
  const text = plain(Math.abs(value), metric);
  return Number(text) === 0 ? text : (value < 0 ? MINUS : "+") + text;
}
const arrow = (metric) => (metric.higher ? "\u2191" : "\u2193");
const direction = (metric) => (metric.higher ? "higher is better" : "lower is better");
const metricNamed = (name) => data.metrics.find((metric) => metric.name === name);

function bestOf(values, metric) {
  return values.length < 2 ? undefined : metric.higher ? Math.max(...values) : Math.min(...values);
}

function metricHead(metric) {
  const head = make("th", { scope: "col", className: "number", title: direction(metric) }, `${metric.name} `);
  head.append(make("span", { ariaHidden: "true" }, arrow(metric)), make("span", { className: "unseen" }, direction(metric)));
  return head;
}

function interval([low, high], text) {
  return make("span", { className: "interval" }, `[${text(low)}, ${text(high)}]`);
}

function showMeans() {
  const { metrics, setMetrics, methods } = data;
  byId("summary").hidden = metrics.length + setMetrics.length === 0;
  const head = make("tr", {}, make("th", { scope: "col" }, "Mean"), ...[...metrics, ...setMetrics].map(metricHead));
  const body = make("tbody");
  for (const method of methods) {
    const row = make("tr", {}, make("th", { scope: "row" }, method.label));
    for (const metric of metrics) row.append(meanCell(method, metric));
    for (const metric of setMetrics) row.append(scoreCell(method.setValues[metric.name], methods.map((m) => m.setValues[metric.name]), metric));
    body.append(row);
  }
  byId("means").append(make("thead", {}, head), body);
  if (methods.length > 1 && metrics.length) byId("means").append(differenceBody());
}

function meanCell(method, metric) {
  const cell = scoreCell(method.means[metric.name], data.methods.map((m) => m.means[metric.name]), metric);
  const ends = method.intervals[metric.name];
  if (ends) cell.append(interval(ends, (value) => plain(value, metric)));
  return cell;
}

function scoreCell(value, all, metric) {
  const text = plain(value, metric);
  return make("td", { className: "number" }, value === bestOf(all, metric) ? make("strong", {}, text) : text);
}

function differenceBody() {
  const title = `Difference to ${data.methods[0].label}, image by image`;
  const width = 1 + data.metrics.length + data.setMetrics.length;
  const body = make("tbody", {}, make("tr", { className: "group" }, make("th", { scope: "rowgroup", colSpan: width }, title)));
  for (const method of data.methods.slice(1)) {
    const row = make("tr", {}, make("th", { scope: "row" }, method.label));
    for (const metric of data.metrics) {
      const { mean, ends, verdict } = method.differences[metric.name];
      const cell = make("td", { className: `number ${verdict}` }, signed(mean, metric));
      if (ends.length) cell.append(interval(ends, (value) => signed(value, metric)));
      row.append(cell);
    }
    row.append(...data.setMetrics.map(() => make("td")));
    body.append(row);
  }
  return body;
}

const judged = (difference, metric) => (difference === 0 ? "" : difference > 0 === metric.higher ? "better" : "worse");

// The methods in the table of images: all, or where there are too many of them those that are looked at.
function tabled() {
  if (!data.pairwise) return [...data.methods.keys()];
  const looked = [view.left, view.right].map((side) => data.sources[side].method);
  return [...new Set(looked)].filter((method) => method !== null);
}

// Columns of the table of images: how each is headed, sorted and filled.
function columns(metric) {
  const name = { label: "Image", text: true, value: (image) => data.images[image].key };
  if (!metric) return [name];
  const scores = data.methods.map((m) => m.scores[metric.name]);
  const [first, ...others] = tabled();
  const score = (m) => ({ label: data.methods[m].label, value: (image) => scores[m][image], cell: (image) => scoreCell(scores[m][image], tabled().map((n) => scores[n][image]), metric) });
  const difference = (m) => ({
    label: `\u0394 ${data.methods[m].label}`,
    title: `${data.methods[m].label} ${MINUS} ${data.methods[first].label}`,
    value: (image) => scores[m][image] - scores[first][image],
    cell(image) {
      const value = this.value(image);
      return make("td", { className: `number ${judged(value, metric)}` }, signed(value, metric));
    },
  });
  return [name, ...tabled().map(score), ...others.map(difference)];
}

// Numbers of the images as the table shows them: this is also the order in which one walks through them.
function order(metric) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const all = columns(metric);
  const { value, text } = all[sorting.column] ?? all[0]; // a column goes with its side
  const compare = text ? (a, b) => collator.compare(value(a), value(b)) : (a, b) => value(a) - value(b);
  const sign = sorting.descending ? -1 : 1;
  return [...data.images.keys()]
    .filter((image) => data.images[image].key.toLowerCase().includes(wanted))
    .sort((a, b) => sign * compare(a, b) || a - b);
}

function sortBy(column) {
  sorting.descending = sorting.column === column && !sorting.descending;
  sorting.column = column;
}

function showScores(metric, current, open, resort) {
  const all = columns(metric);
  const head = make("tr");
  all.forEach((column, number) => {
    const button = make("button", { type: "button", title: column.title ?? column.label }, make("span", {}, column.label));
    button.addEventListener("click", () => {
      resort(number);
      byId("scores").tHead.querySelectorAll("button")[number].focus(); // the head is a new one
    });
    const sorted = sorting.column === number ? (sorting.descending ? "descending" : "ascending") : "none";
    head.append(make("th", { scope: "col", ariaSort: sorted, className: column.text ? "" : "number" }, button));
  });
  const body = make("tbody");
  const images = order(metric);
  for (const image of images) {
    const link = make("button", { type: "button", className: "name", title: data.images[image].key }, data.images[image].key);
    const row = make("tr", {}, make("th", { scope: "row" }, link), ...all.slice(1).map((column) => column.cell(image)));
    row.dataset.image = image;
    row.addEventListener("click", () => open(image));
    body.append(row);
  }
  byId("scores").replaceChildren(make("thead", {}, head), body);
  const [first, ...others] = tabled();
  const legend = metric && others.length ? `\u0394: difference to ${data.methods[first].label}. Bold: best of the image.` : "";
  byId("images-note").textContent = images.length ? legend : "No image has a name like this.";
  markRow(current);
}

function markRow(image) {
  for (const row of byId("scores").tBodies[0].rows) {
    const current = Number(row.dataset.image) === image;
    row.ariaCurrent = current ? "true" : null;
    if (current) reveal(row);
  }
}

// Scrolls the table's own box; scrollIntoView would move the page away from the picture.
function reveal(row) {
  const box = byId("scores").parentElement;
  const top = row.offsetTop - byId("scores").tHead.offsetHeight;
  const bottom = row.offsetTop + row.offsetHeight - box.clientHeight;
  box.scrollTop = Math.max(Math.min(box.scrollTop, top), bottom);
}
