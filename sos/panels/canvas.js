// The picture and the box on it. Coordinates of the box are pixels of the picture; `view` says where they lie on the canvas.
const GRAB_PX = 7; // on the screen, from an edge of the box
const ZOOM = 1.25; // a notch of the wheel
const FINEST = 12; // canvas pixels a picture's pixel, at most

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "sos-canvas";
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  const hint = document.createElement("div");
  hint.className = "sos-hint";
  hint.textContent = "drag: box, or one of its edges · wheel: magnify · shift and drag: move · right button and drag: window · " +
    "double click: whole image · keys: ← → 1–9 C Enter Esc, + − 0";
  root.append(canvas, hint);
  el.append(root);
  const paper = canvas.getContext("2d");
  const shown = document.createElement("canvas"); // the picture in its window
  let grey = null; // Uint8, one value a pixel
  let view = { scale: 1, x: 0, y: 0 };
  let fitted = true;
  let drag = null;

  const ratio = () => window.devicePixelRatio || 1;
  const at = (event) => { // position on the picture
    const place = canvas.getBoundingClientRect();
    const sx = (event.clientX - place.left) * ratio(), sy = (event.clientY - place.top) * ratio();
    return { sx, sy, x: (sx - view.x) / view.scale, y: (sy - view.y) / view.scale };
  };
  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  function fit() {
    fitted = true;
    if (!grey) return;
    view.scale = Math.min(canvas.width / shown.width, canvas.height / shown.height);
    view.x = (canvas.width - shown.width * view.scale) / 2;
    view.y = (canvas.height - shown.height * view.scale) / 2;
  }

  function magnify(factor, sx, sy) {
    const whole = Math.min(canvas.width / shown.width, canvas.height / shown.height);
    const scale = within(view.scale * factor, whole, Math.max(FINEST, whole));
    view.x = sx - (sx - view.x) * scale / view.scale;
    view.y = sy - (sy - view.y) * scale / view.scale;
    view.scale = scale;
    fitted = false;
    if (scale === whole) fit();
    draw();
  }

  function draw() {
    paper.setTransform(1, 0, 0, 1, 0, 0);
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, canvas.width, canvas.height);
    if (!grey) return;
    paper.imageSmoothingEnabled = view.scale < 4;
    paper.imageSmoothingQuality = "high";
    paper.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    paper.drawImage(shown, 0, 0);
    paper.setTransform(1, 0, 0, 1, 0, 0);
    const box = drag && drag.box ? drag.box : model.get("box");
    if (box.length !== 4) return;
    const [x0, y0, x1, y1] = box.map((edge, i) => edge * view.scale + (i % 2 ? view.y : view.x));
    const drafted = model.get("drafted") || (drag && drag.box);
    paper.lineWidth = 2 * ratio();
    paper.setLineDash(drafted ? [7 * ratio(), 5 * ratio()] : []);
    paper.strokeStyle = "rgba(0, 0, 0, 0.6)";
    paper.strokeRect(x0 - ratio(), y0 - ratio(), x1 - x0 + 2 * ratio(), y1 - y0 + 2 * ratio());
    paper.strokeStyle = drafted ? "#ffb300" : "#00e5ff";
    paper.strokeRect(x0, y0, x1 - x0, y1 - y0);
    paper.setLineDash([]);
  }

  function windowed() {
    if (!grey) return;
    const low = model.get("level") - model.get("width") / 2, width = Math.max(model.get("width"), 1e-3);
    const look = Uint8ClampedArray.from({ length: 256 }, (_, v) => 255 * (v / 255 - low) / width);
    const pixels = new ImageData(shown.width, shown.height);
    for (let i = 0; i < grey.length; i++) {
      pixels.data[4 * i] = pixels.data[4 * i + 1] = pixels.data[4 * i + 2] = look[grey[i]];
      pixels.data[4 * i + 3] = 255;
    }
    shown.getContext("2d").putImageData(pixels, 0, 0);
    draw();
  }

  let wanted = 0; // a slow picture must not replace a later one
  async function load() {
    const mine = ++wanted;
    const bytes = model.get("picture");
    canvas.setAttribute("aria-label", model.get("title"));
    delete canvas.dataset.shown;
    drag = null;
    if (!bytes || !bytes.byteLength) {
      grey = null;
      draw();
      return;
    }
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (mine !== wanted) return;
    shown.width = picture.width;
    shown.height = picture.height;
    const pen = shown.getContext("2d", { willReadFrequently: true });
    pen.drawImage(picture, 0, 0);
    const rgba = pen.getImageData(0, 0, picture.width, picture.height).data;
    grey = new Uint8Array(picture.width * picture.height);
    for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
    fit();
    windowed();
    canvas.dataset.shown = model.get("title");
  }

  // which edges of the box are near a point: [left, top, right, bottom]
  function grabbed(point) {
    const box = model.get("box");
    if (box.length !== 4) return null;
    const [x0, y0, x1, y1] = box, near = GRAB_PX * ratio() / view.scale;
    const along = (v, a, b) => v > a - near && v < b + near;
    const edges = [Math.abs(point.x - x0) < near && along(point.y, y0, y1), Math.abs(point.y - y0) < near && along(point.x, x0, x1),
      Math.abs(point.x - x1) < near && along(point.y, y0, y1), Math.abs(point.y - y1) < near && along(point.x, x0, x1)];
    return edges.some(Boolean) ? edges : null;
  }

  function cursor(point) {
    const edges = grabbed(point);
    if (!edges) return "crosshair";
    const across = edges[0] || edges[2], down = edges[1] || edges[3];
    if (across && down) return edges[0] === edges[1] ? "nwse-resize" : "nesw-resize";
    return across ? "ew-resize" : "ns-resize";
  }

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => { fit(); draw(); });
  canvas.addEventListener("wheel", (event) => {
    if (!grey) return;
    event.preventDefault();
    const point = at(event);
    magnify(event.deltaY < 0 ? ZOOM : 1 / ZOOM, point.sx, point.sy);
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (!grey) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    const point = at(event);
    if (event.button === 2) drag = { kind: "window", from: point, level: model.get("level"), width: model.get("width") };
    else if (event.button === 1 || event.shiftKey) drag = { kind: "move", from: point, view: { ...view } };
    else {
      const edges = grabbed(point);
      drag = edges ? { kind: "edge", edges, old: [...model.get("box")] } : { kind: "box", from: point };
    }
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!grey) return;
    const point = at(event);
    if (!drag) {
      canvas.style.cursor = cursor(point);
      return;
    }
    if (drag.kind === "move") {
      view.x = drag.view.x + point.sx - drag.from.sx;
      view.y = drag.view.y + point.sy - drag.from.sy;
      fitted = false;
    } else if (drag.kind === "window") {
      const share = 1.5 / canvas.height;
      model.set("level", within(drag.level + (point.sy - drag.from.sy) * share, 0, 1));
      model.set("width", within(drag.width + (point.sx - drag.from.sx) * share, 0.05, 1.5));
    } else {
      const x = within(point.x, 0, shown.width), y = within(point.y, 0, shown.height);
      const box = drag.kind === "box" ? [drag.from.x, drag.from.y, x, y] : drag.old.map((v, i) => (drag.edges[i] ? [x, y][i % 2] : v));
      drag.box = [Math.min(box[0], box[2]), Math.min(box[1], box[3]), Math.max(box[0], box[2]), Math.max(box[1], box[3])]
        .map((v, i) => within(v, 0, i % 2 ? shown.height : shown.width));
    }
    draw();
  });

  function drop(keep) {
    const done = drag;
    drag = null;
    if (!done) return;
    if (keep && done.box && done.box[2] - done.box[0] >= 1 && done.box[3] - done.box[1] >= 1) {
      model.set("box", done.box.map((edge) => Math.round(edge * 100) / 100));
      model.set("drafted", true);
    }
    model.save_changes();
    draw();
  }
  canvas.addEventListener("pointerup", () => drop(true));
  canvas.addEventListener("pointercancel", () => drop(false));

  // Keys work wherever the focus is in the tool, but for fields that use them themselves.
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inField = event.target.closest("input, textarea, select, [role=slider], .noUi-handle");
    if (inField) return;
    if (event.key === "Escape" && drag) {
      drop(false);
    } else if (["+", "-", "0"].includes(event.key) && event.target === canvas && !model.get("hotkeys").includes(event.key)) {
      if (event.key === "0") fit();
      magnify({ "+": ZOOM, "-": 1 / ZOOM, 0: 1 }[event.key], canvas.width / 2, canvas.height / 2);
    } else if (model.get("hotkeys").includes(event.key) && !(event.key === "Enter" && event.target.closest("button"))) {
      model.send({ key: event.key });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
  let tool = null;
  const settle = () => {
    tool = el.closest(".sos-tool") || root;
    tool.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's own one-letter commands would act on the cell
    tool.addEventListener("keydown", pressed);
  };
  const settling = requestAnimationFrame(settle);

  const seen = new ResizeObserver(() => {
    const width = Math.round(canvas.clientWidth * ratio()), height = Math.round(canvas.clientHeight * ratio());
    if (!width || !height || (width === canvas.width && height === canvas.height)) return;
    canvas.width = width;
    canvas.height = height;
    if (fitted) fit();
    draw();
  });
  seen.observe(canvas);

  const watched = { "change:picture": load, "change:box": draw, "change:drafted": draw, "change:level": windowed, "change:width": windowed };
  for (const [name, act] of Object.entries(watched)) model.on(name, act);
  load();
  return () => {
    cancelAnimationFrame(settling);
    seen.disconnect();
    for (const [name, act] of Object.entries(watched)) model.off(name, act);
    if (tool) tool.removeEventListener("keydown", pressed);
  };
}

export default { render };
