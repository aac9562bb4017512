// Pictures wait as base64 in inert elements behind this script, and are decoded when they are looked at.

const CACHED_IMAGES = 4; // the shown one, its neighbours, and one more
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const decoded = new Map(); // number of the image -> per source, a promise of its picture

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The table can be read before the last picture has been parsed, so a picture may not be there yet.
async function block(id) {
  for (;;) {
    const found = byId(id);
    if (found && (found.nextElementSibling || document.readyState !== "loading")) return found;
    if (document.readyState !== "loading") throw new Error(`${id} is missing: the file is incomplete`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function decode(image, source) {
  const found = await block(`picture-${image}-${source}`);
  const text = atob(found.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const picture = new Image();
  picture.src = URL.createObjectURL(new Blob([bytes], { type: found.dataset.type }));
  await picture.decode();
  return picture;
}

// All pictures of an image, one per source. Only a few images stay decoded.
function pictures(image) {
  const found = decoded.get(image) ?? data.sources.map((_, source) => decode(image, source));
  decoded.delete(image); // and to the end: the oldest is dropped first
  decoded.set(image, found);
  if (decoded.size > CACHED_IMAGES) {
    const [oldest, dropped] = decoded.entries().next().value;
    decoded.delete(oldest);
    for (const picture of dropped) picture.then(({ src }) => URL.revokeObjectURL(src), () => {});
  }
  return Promise.all(found);
}
