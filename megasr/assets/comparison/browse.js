// What is looked at (image, left, right, zoom, region, score), the keys that change it, and the link that holds it.

const HASH_DELAY_MS = 200; // browsers refuse a page that rewrites its address with every move of the mouse
let metric = data.metrics[0];
let wanted = 0; // image that was asked for last; it is shown when its pictures are decoded
let turn = 0;
let hashTimer = 0;

function fillSelects() {
  for (const side of ["left", "right"]) {
    byId(side).append(...data.sources.map((source, number) => new Option(source.label, number)));
    byId(side).addEventListener("change", () => choose(side, Number(byId(side).value)));
  }
  for (const select of document.querySelectorAll("select.metric")) {
    select.append(...data.metrics.map((one) => new Option(`${one.name} ${arrow(one)}`, one.name)));
    select.addEventListener("change", () => measure(metricNamed(select.value)));
  }
}

async function show(image) {
  const mine = ++turn;
  wanted = image;
  byId("viewer").ariaBusy = "true";
  byId("image-name").textContent = byId("image-name").title = data.images[image].key;
  markRow(image);
  showPosition();
  let found;
  try {
    found = await pictures(image);
  } catch (error) {
    byId("hint").textContent = `This picture cannot be shown: ${error.message}`;
    return;
  }
  if (mine !== turn) return; // another image was asked for meanwhile
  shown = { image, pictures: found };
  showCrops();
  showSides();
  showCropScores(metric);
  await Promise.all([byId("under").decode(), byId("over").decode()]).catch(() => {});
  if (mine !== turn) return;
  byId("viewer").ariaBusy = "false";
  remember();
  const next = neighbour(1);
  if (next !== undefined) pictures(next).catch(() => {}); // it says so itself when it is shown
}

function neighbour(step) {
  const images = order(metric);
  const at = images.indexOf(wanted);
  return at < 0 ? images[0] : images[at + step];
}

function showPosition() {
  const images = order(metric);
  const at = images.indexOf(wanted);
  byId("position").textContent = `${at < 0 ? "\u2013" : at + 1} / ${images.length}`;
  byId("previous").disabled = neighbour(-1) === undefined;
  byId("next").disabled = neighbour(1) === undefined;
}

function walk(step) {
  const image = neighbour(step);
  if (image !== undefined) show(image);
}

function choose(side, source) {
  if (source >= data.sources.length) return;
  view[side] = source;
  turnSides();
}

function swap() {
  [view.left, view.right] = [view.right, view.left];
  turnSides();
}

function turnSides() {
  showSides();
  showCrops();
  if (data.pairwise) list(); // its columns are the two sides
  remember();
}

function zoomTo(zoom) {
  view.zoom = ZOOMS.includes(zoom) ? zoom : view.zoom;
  byId("zoom").textContent = `${view.zoom}\u00d7`;
  byId("zoom-out").disabled = view.zoom === ZOOMS[0];
  byId("zoom-in").disabled = view.zoom === ZOOMS.at(-1);
  fit();
  remember();
}

const zoomBy = (step) => zoomTo(ZOOMS[ZOOMS.indexOf(view.zoom) + step]);

function measure(chosen) {
  metric = chosen;
  for (const select of document.querySelectorAll("select.metric")) select.value = metric?.name ?? "";
  list();
  showCropScores(metric);
  remember();
}

function list() {
  showScores(metric, wanted, open, (column) => {
    sortBy(column);
    list();
  });
  showPosition();
}

function open(image) {
  show(image);
  byId("viewer").scrollIntoView({ block: "nearest" });
}

function remember() {
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => {
    const { left, right, zoom, x, y } = view;
    const parts = { image: data.images[shown.image].key, left: data.sources[left].label, right: data.sources[right].label, zoom, x, y };
    if (metric) parts.score = metric.name;
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  }, HASH_DELAY_MS);
}

// What a link asks for; whatever it does not name, or names wrongly, stays as it is.
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const image = data.images.findIndex(({ key }) => key === asked.get("image"));
  for (const side of ["left", "right"]) {
    const source = data.sources.findIndex(({ label }) => label === asked.get(side));
    if (source >= 0) view[side] = source;
  }
  hold(asked.has("x"));
  for (const axis of ["x", "y"]) if (/^\d+$/.test(asked.get(axis))) view[axis] = Number(asked.get(axis));
  if (image >= 0) wanted = image;
  measure(metricNamed(asked.get("score")) ?? metric);
  zoomTo(Number(asked.get("zoom")));
  show(wanted);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("keys").open) return;
  if (event.target.closest("input, select")) return;
  const digit = /^Digit([1-9])$/.exec(event.code); // with Shift, event.key is another sign on every keyboard
  const inTable = event.target.closest(".scroll") && event.key.startsWith("Arrow");
  const action = digit
    ? () => choose(event.shiftKey ? "right" : "left", Number(digit[1]) - 1)
    : { j: () => walk(1), k: () => walk(-1), ArrowRight: () => walk(1), ArrowLeft: () => walk(-1), x: swap,
        "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1), "?": () => byId("keys").showModal() }[event.key];
  if (!action || inTable) return;
  event.preventDefault();
  action();
}

function start(left, right) {
  const { width, height } = data.images[0];
  Object.assign(view, { left, right, x: Math.round(width / 2), y: Math.round(height / 2) });
  for (const element of document.querySelectorAll(".with-metrics")) element.hidden = data.metrics.length === 0;
  fillSelects();
  buildCrops();
  followPointer(remember);
  followDivider();
  for (const [id, action] of [["previous", () => walk(-1)], ["next", () => walk(1)], ["swap", swap], ["zoom-in", () => zoomBy(1)],
                              ["zoom-out", () => zoomBy(-1)], ["help", () => byId("keys").showModal()]]) byId(id).addEventListener("click", action);
  byId("filter").addEventListener("input", list);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", recall);
  addEventListener("resize", fit);
  recall();
}
