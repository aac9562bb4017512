// The picture with its divider, the box on it, and the crops that show the box's region of every source.

const ZOOMS = [2, 3, 4, 6, 8];
const GAP_PX = 12; // between crops, as in the style sheet
const CAPTION_PX = 32;
const LEAST_PX = 110; // of a crop
const WIDEST = 1.6; // width of a crop over its height
const BESIDE = "(min-width: 60rem)"; // as in the style sheet
const view = { left: 0, right: 0, zoom: 4, x: 0, y: 0, split: 50 };
const crops = []; // per source: figure, canvas, score
let shown = { image: 0, pictures: [] };
const region = { width: 64, height: 64 }; // in pixels of the image

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function buildCrops() {
  data.sources.forEach((source, number) => {
    const canvas = make("canvas", { role: "img" });
    const score = make("span", { className: "score" });
    const key = number < 9 ? make("kbd", {}, `${number + 1}`) : "";
    const name = make("span", { className: "name", title: source.label }, source.label);
    const figure = make("figure", {}, canvas, make("figcaption", {}, key, name, score));
    crops.push({ figure, canvas, score });
    byId("crops").append(figure);
  });
}

// Where there are too many pictures, the crops are those of lq, hq and the two that are looked at.
function showCrops() {
  const last = crops.length - 1;
  crops.forEach(({ figure }, number) => {
    figure.hidden = data.pairwise && ![view.left, view.right, last].includes(number) && !data.sources[number].isLq;
  });
  fit();
}

// Pixels of the image are shown 1:1 or as whole squares where there is room, and only shrunk where there is none.
function fit() {
  const { width, height } = data.images[shown.image];
  const look = byId("crops").parentElement;
  const beside = matchMedia(BESIDE).matches;
  const room = beside ? (look.clientWidth - 2 * GAP_PX) / 2 : look.clientWidth;
  const scale = Math.min(room / width, Math.max(320, innerHeight * 0.86) / height);
  const stageScale = scale >= 1 ? Math.floor(scale) : scale;
  const { style, classList } = byId("stage");
  [style.width, style.height] = [width, height].map((side) => `${side * stageScale}px`);
  classList.toggle("enlarged", scale >= 1);
  look.style.setProperty("--stage", style.width);
  fitCrops(beside ? Math.max(360, height * stageScale) : Infinity);
}

// As large as they can be in the room beside the picture; below it, two columns of squares.
function fitCrops(room) {
  const box = byId("crops");
  const { width, height } = data.images[shown.image];
  let best = { wide: 0, high: 0, columns: 1 };
  const number = crops.filter(({ figure }) => !figure.hidden).length;
  const counts = room === Infinity ? [Math.min(2, number)] : Array(number).keys();
  for (const count of counts) {
    const columns = room === Infinity ? count : count + 1;
    const rows = Math.ceil(number / columns);
    const across = (box.clientWidth - GAP_PX * (columns - 1)) / columns;
    const high = Math.min(across, Math.max(LEAST_PX, (room - GAP_PX * (rows - 1)) / rows - CAPTION_PX));
    const wide = Math.min(across, high * WIDEST);
    if (wide * high > best.wide * best.high) best = { wide, high, columns };
  }
  region.width = clamp(Math.floor(best.wide / view.zoom), 1, width);
  region.height = clamp(Math.floor(best.high / view.zoom), 1, height);
  for (const { canvas } of crops) {
    Object.assign(canvas, region);
    canvas.style.width = `${region.width * view.zoom}px`;
    canvas.style.height = `${region.height * view.zoom}px`;
  }
  box.style.gridTemplateColumns = `repeat(${best.columns}, ${region.width * view.zoom}px)`;
  draw();
}

// The region's left upper corner: the view's centre, held inside the image.
function corner() {
  const { width, height } = data.images[shown.image];
  return {
    left: clamp(view.x - Math.floor(region.width / 2), 0, width - region.width),
    top: clamp(view.y - Math.floor(region.height / 2), 0, height - region.height),
  };
}

function draw() {
  const { width, height } = data.images[shown.image];
  const { left, top } = corner();
  crops.forEach(({ canvas }, number) => {
    const picture = shown.pictures[number];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    canvas.ariaLabel = `${data.sources[number].label}, ${region.width} by ${region.height} pixels at ${left}, ${top}`;
    if (!picture) return;
    const [across, down] = [picture.naturalWidth / width, picture.naturalHeight / height];
    const from = [left * across, top * down, region.width * across, region.height * down];
    context.drawImage(picture, ...from, 0, 0, region.width, region.height);
  });
  const { style } = byId("box");
  style.left = `${(100 * left) / width}%`;
  style.top = `${(100 * top) / height}%`;
  style.width = `${(100 * region.width) / width}%`;
  style.height = `${(100 * region.height) / height}%`;
}

function moveTo(x, y) {
  const { width, height } = data.images[shown.image];
  view.x = clamp(Math.round(x), 0, width);
  view.y = clamp(Math.round(y), 0, height);
  draw();
}

function split(percent) {
  view.split = clamp(percent, 0, 100);
  byId("stage").style.setProperty("--split", `${view.split}%`);
  byId("divider").ariaValueNow = `${Math.round(view.split)}`;
  byId("divider").ariaValueText = `${Math.round(view.split)} % ${data.sources[view.left].label}`;
}

function showSides() {
  [["over", "left"], ["under", "right"]].forEach(([id, side]) => {
    const source = data.sources[view[side]];
    const picture = shown.pictures[view[side]];
    if (picture) byId(id).src = picture.src;
    byId(id).alt = `${source.label} of ${data.images[shown.image].key}`;
    byId(id).classList.toggle("squares", source.isLq);
    byId(`${side}-name`).textContent = source.label;
    byId(side).value = `${view[side]}`;
  });
  split(view.split);
}

function showCropScores(metric) {
  const values = metric ? data.methods.map((method) => method.scores[metric.name][shown.image]) : [];
  const best = metric && bestOf(values, metric);
  crops.forEach(({ score }, number) => {
    const value = values[data.sources[number].method ?? -1];
    score.replaceChildren();
    if (value === undefined) return;
    score.append(value === best ? make("strong", {}, plain(value, metric)) : plain(value, metric));
    if (value === best) score.append(" ", make("span", { className: "best" }, "best"));
  });
}

// Where a pointer is, in pixels of the image.
function place(event) {
  const stage = byId("stage").getBoundingClientRect();
  const { width, height } = data.images[shown.image];
  return [((event.clientX - stage.left) / stage.width) * width, ((event.clientY - stage.top) / stage.height) * height];
}

const isHeld = () => byId("stage").classList.contains("held");

function hold(held) {
  byId("stage").classList.toggle("held", held);
  const touch = "Tap the picture, or drag the box, to choose the region of the crops.";
  const free = "The region of the crops follows the pointer; a click holds it.";
  const fixed = "The region of the crops is held; a click on the picture lets it follow the pointer again.";
  byId("hint").textContent = matchMedia("(hover: hover)").matches ? (held ? fixed : free) : touch;
}

// The region follows the mouse until a click holds it; a finger taps or drags it.
function followPointer(changed) {
  const stage = byId("stage");
  let pressed = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("#divider")) return;
    pressed = { x: event.clientX, y: event.clientY, dragged: false };
    stage.setPointerCapture(event.pointerId);
    moveTo(...place(event));
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.target.closest("#divider")) return;
    if (pressed && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) > 4) pressed.dragged = true;
    if (!pressed && (isHeld() || event.pointerType !== "mouse")) return;
    moveTo(...place(event));
    changed();
  });
  stage.addEventListener("pointerup", (event) => {
    if (!pressed) return;
    if (event.pointerType === "mouse") hold(pressed.dragged || !isHeld());
    pressed = null;
    changed();
  });
  stage.addEventListener("pointercancel", () => (pressed = null));
  byId("box").addEventListener("keydown", (event) => {
    const step = event.shiftKey ? Math.ceil(region.height / 2) : 1;
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (across === undefined) return;
    event.preventDefault();
    const { left, top } = corner();
    hold(true);
    moveTo(left + Math.floor(region.width / 2) + across * step, top + Math.floor(region.height / 2) + down * step);
    changed();
  });
}

function followDivider() {
  const divider = byId("divider");
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.stopPropagation();
  });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) split((100 * place(event)[0]) / data.images[shown.image].width);
  });
  divider.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: view.split - step, ArrowDown: view.split - step, ArrowRight: view.split + step,
                 ArrowUp: view.split + step, PageDown: view.split - 10, PageUp: view.split + 10, Home: 0, End: 100 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    split(to);
  });
}
