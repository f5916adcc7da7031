// The studio's face. Plain browser code: anywidget hands over `model` (the Python side) and `el` (the place).
// What is typed and clicked goes to Python as messages, each with all settings, so that none overtakes another;
// what is to be shown comes back as attributes of the model.

const SETTINGS = [
  "prompt", "mode", "steps", "count", "seed", "live", "picked", "strength", "new_mode", "new_steps",
  "new_prompt", "scale", "mask_strength", "mask_prompt", "only_masked",
];
const TYPING_PAUSE = 250; // ms without a key before a draft begins
const SHEET = 680; // pixels of the mask's longer side, as it is shown
const KERNEL_PATIENCE = 1500; // ms without an answer before that is said
const SCALES = [[1, "as it is"], [1.5, "1.5 × larger"], [2, "2 × larger"]];
const ICONS = {
  draw: "M3 13.5 10.8 5.7l-2.5-2.5L.5 11v2.5zM9.2 2.3l2.5 2.5 1.6-1.6a.9.9 0 0 0 0-1.2L12 .7a.9.9 0 0 0-1.2 0z",
  stop: "M2.5 2.5h9v9h-9z",
  dice: "M2.5.5h9a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2h-9a2 2 0 0 1-2-2v-9a2 2 0 0 1 2-2zM4 3a1 1 0 1 0 0 2 1 1 0 0 0 0-2zm6 0a1 1 0 1 0 0 2 1 1 0 0 0 0-2zM7 6a1 1 0 1 0 0 2 1 1 0 0 0 0-2zM4 9a1 1 0 1 0 0 2 1 1 0 0 0 0-2zm6 0a1 1 0 1 0 0 2 1 1 0 0 0 0-2z",
  check: "M5.2 12.2.9 7.9l1.7-1.7 2.6 2.6L11.4 2.6l1.7 1.7z",
  save: "M6 .5h2v6.2l2.3-2.3 1.4 1.4L7 10.5 2.3 5.8l1.4-1.4L6 6.7zM.8 11.5h12.4v2H.8z",
  copy: "M4.5.5h8v9h-8zM1.5 3.5h2v7h6v2h-8z",
  undo: "M5 1v3h3.5a4.5 4.5 0 0 1 0 9H3v-2h5.5a2.5 2.5 0 0 0 0-5H5v3L.8 5z",
};

/** Return an element. Lab's shortcuts ("a", "d d", the arrows) stay away from all that takes the focus. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), (event) => isOff(element) || value(event));
    else if (name === "text") element.textContent = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  if (["button", "input", "select", "textarea", "summary"].includes(tag) || "tabindex" in properties) {
    element.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const isOff = (element) => element.getAttribute("aria-disabled") === "true";

/** Switch a button on or off; it keeps the focus, which `disabled` would lose. */
function enable(element, on) {
  element.setAttribute("aria-disabled", String(!on));
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("fill-rule", "evenodd");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(label, iconName, onclick, properties = {}) {
  return h("button", { type: "button", onclick, ...properties }, icon(iconName), h("span", { text: label }));
}

let ids = 0;
/** Return a control with its label, and where `value` is a function, what it says beside it. */
function labelled(label, control, value = null) {
  control.id = `fewstep-${(ids += 1)}`;
  const output = value && h("output", { for: control.id });
  const row = h("div", { class: output ? "field" : "field bare" }, h("label", { for: control.id, text: label }), control, output);
  row.refresh = () => {
    if (output) output.textContent = value();
    if (control.type === "range") {
      const share = (control.value - control.min) / (control.max - control.min || 1);
      control.style.setProperty("--share", `${100 * share}%`);
      if (output) control.setAttribute("aria-valuetext", output.textContent);
    }
  };
  return row;
}

/** Show bytes as a picture, and let go of those shown before. */
function setPicture(image, bytes, type) {
  if (image.bytes === bytes) return;
  if (image.url) URL.revokeObjectURL(image.url);
  image.bytes = bytes;
  image.url = bytes ? URL.createObjectURL(new Blob([bytes], { type })) : "";
  if (bytes) image.src = image.url;
  else image.removeAttribute("src");
}

/** Return whether what lies behind an element is dark: Jupyter, VS Code and Colab each say it in their own way. */
function isDark(element) {
  for (let place = element; place; place = place.parentElement) {
    const [r, g, b, alpha = 1] = (getComputedStyle(place).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (r !== undefined && alpha > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** The mask: strokes over a picture, kept as what was done, so that all can be undone, and drawn at any size. */
class Mask {
  constructor(onchange) {
    this.strokes = [];
    this.onchange = onchange;
    this.canvas = h("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "mask",
      "aria-label": "Mask. Arrow keys move the brush, with Shift they paint. Space paints a dot, X erases or paints, "
        + "plus and minus change the brush, I inverts, Backspace clears, Control Z undoes, Enter inpaints.",
    });
    const stripes = Object.assign(document.createElement("canvas"), { width: 12, height: 12 });
    const context = stripes.getContext("2d");
    context.fillStyle = "#f97316";
    context.fillRect(0, 0, 12, 12);
    context.strokeStyle = "#fff";
    context.lineWidth = 2.5;
    for (const x of [-12, 0, 12]) context.stroke(new Path2D(`M${x} 12 L${x + 12} 0`));
    this.stripes = this.canvas.getContext("2d").createPattern(stripes, "repeat");
  }

  get empty() {
    const cleared = this.strokes.findLastIndex((stroke) => stroke.kind === "clear");
    return !this.strokes.slice(cleared + 1).some((stroke) => !stroke.erase);
  }

  add(stroke) {
    this.strokes.push(stroke);
    paint(this.canvas, stroke, this.stripes);
    this.onchange();
  }

  /** Clear it; that can be undone, what was before the last time it was cleared cannot. */
  clear() {
    if (this.empty) return;
    this.strokes = this.strokes.slice(this.strokes.findLastIndex((stroke) => stroke.kind === "clear") + 1);
    this.add({ kind: "clear" });
  }

  undo() {
    this.strokes.pop();
    this.draw();
  }

  /** Have the shape of a picture; the strokes stay where they are in it. */
  fit(width, height) {
    const scale = SHEET / Math.max(width, height);
    const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
    if (this.canvas.width === size.width && this.canvas.height === size.height) return;
    Object.assign(this.canvas, size);
    this.draw();
  }

  draw() {
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) paint(this.canvas, stroke, this.stripes);
    this.onchange();
  }

  /** Return it as a PNG of the picture's size: white where to paint anew, black elsewhere. */
  async png(width, height) {
    const sheet = Object.assign(document.createElement("canvas"), { width, height });
    for (const stroke of this.strokes) paint(sheet, stroke, "#fff");
    const context = sheet.getContext("2d");
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const blob = await new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
    return new DataView(await blob.arrayBuffer());
  }
}

/** Draw a stroke, whose points are in [0, 1] both ways and whose size is a share of the longer side. */
function paint(canvas, { kind, points, size, erase }, style) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = erase ? "destination-out" : kind === "invert" ? "xor" : "source-over";
  context.fillStyle = context.strokeStyle = style;
  if (kind === "clear") context.clearRect(0, 0, width, height);
  else if (kind === "invert") context.fillRect(0, 0, width, height);
  else {
    context.lineWidth = size * Math.max(width, height);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    const [[x, y], ...rest] = points;
    context.moveTo(x * width, y * height);
    for (const [right, down] of rest.length ? rest : [[x, y]]) context.lineTo(right * width, down * height);
    context.stroke();
  }
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const busy = () => get("status").state !== "idle";
  const steps = (mode) => get("modes").find((entry) => entry.name === mode)?.steps ?? [1];
  const modeHere = () => get("trail").find((entry) => entry.number === get("here"))?.mode ?? get("mode");
  let at = 0; // the picture that is large
  let waiting = 0; // timers
  let typing = 0;

  // What is sent.

  function send(action, extra = {}, buffers = []) {
    const settings = Object.fromEntries(SETTINGS.map((name) => [name, get(name)]));
    model.send({ do: action, settings, ...extra }, undefined, buffers);
    if (["draft", "refine", "vary", "inpaint"].includes(action)) {
      clearTimeout(typing);
      clearTimeout(waiting);
      waiting = setTimeout(() => (said.textContent = "Waiting for the kernel: is a cell running?"), KERNEL_PATIENCE);
    }
  }
  function change(name, value) {
    model.set(name, value);
    refresh();
  }
  const set = () => send("set");
  const draft = () => send("draft");
  /** Draft when the hand rests, where that is wanted. */
  function draftSoon() {
    clearTimeout(typing);
    if (get("live")) typing = setTimeout(() => send("draft", { passing: true }), TYPING_PAUSE);
    else typing = setTimeout(set, TYPING_PAUSE);
  }
  const numbers = () => (get("picked").length ? get("picked") : get("cells").length ? [at] : []);
  function improve(action) {
    if (!get("picked").length) change("picked", numbers());
    send(action);
  }
  async function inpaint() {
    if (mask.empty || busy() || !get("cells").length) return;
    const { width, height } = get("cells")[at];
    send("inpaint", { number: at }, [await mask.png(width, height)]);
  }
  function look(number) {
    at = number;
    refresh();
    if (!busy() && get("shown").number !== at) send("show", { number: at });
  }
  function pick(numbers) {
    if (busy()) return; // what is drawn has numbers of its own
    change("picked", numbers);
    set();
  }
  function togglePick(number) {
    const picked = get("picked");
    const rest = picked.filter((other) => other !== number);
    pick(rest.length < picked.length ? rest : [...rest, number].sort((a, b) => a - b));
  }

  // The prompt and how drafts are made.

  const prompt = h("textarea", {
    rows: 1, class: "prompt", placeholder: "Describe a picture, for example: a red heart, 3d style",
    "aria-label": "Prompt", spellcheck: "false",
    oninput: () => { change("prompt", prompt.value); draftSoon(); },
    onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draft(); }
    },
  });
  const draw = button("Draft", "draw", draft, { class: "primary", title: "Draw drafts (Enter)" });
  const stop = button("Stop", "stop", () => send("stop"), { class: "stop", title: "Stop drawing (Escape)" });

  const modeMenu = (name, onpick) => h("select", { onchange: (event) => { onpick(event.target.value); } });
  const mode = modeMenu("mode", (value) => {
    model.set("mode", value);
    model.set("steps", get("modes").find((entry) => entry.name === value).usual);
    refresh();
    draftSoon();
  });
  const slider = (oninput, properties) => h("input", { type: "range", oninput, onchange: set, ...properties });
  const stepsSlider = slider(() => { change("steps", steps(get("mode"))[stepsSlider.value]); draftSoon(); }, { min: 0 });
  const countSlider = slider(() => { change("count", Number(countSlider.value)); draftSoon(); }, { min: 1 });
  const seed = h("input", {
    type: "number", min: 0, class: "seed", title: "Picture 0 has this seed, picture 1 the next",
    onchange: () => { change("seed", Math.max(0, Math.trunc(Number(seed.value) || 0))); draftSoon(); },
  });
  const dice = button("New seeds", "dice", () => {
    change("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
    draft();
  }, { class: "quiet icon", title: "New seeds: other pictures of the same prompt" });
  const live = h("input", { type: "checkbox", role: "switch", onchange: () => { change("live", live.checked); set(); } });

  // The gallery, and the large picture with its mask.

  const gallery = h("div", {
    class: "gallery", role: "listbox", "aria-multiselectable": "true", "aria-label": "Pictures",
    onkeydown: (event) => {
      const cells = get("cells").length;
      const tops = [...gallery.children].map((cell) => cell.offsetTop);
      const across = Math.max(1, tops.filter((top) => top === tops[0]).length);
      const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: cells - 1 - at };
      if (event.key in moves) {
        const next = at + moves[event.key];
        if (next >= 0 && next < cells) { look(next); gallery.children[next].focus(); }
      } else if (event.key === " " || event.key === "Enter") togglePick(at);
      else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
        pick(get("cells").map((cell) => cell.number));
      } else return;
      event.preventDefault();
    },
  });
  const nothing = h("p", { class: "nothing", text: "Type a prompt. Drafts appear here, with the numbers that pick() counts." });
  const large = h("img", { class: "large", alt: "", draggable: "false" });
  const ring = h("div", { class: "ring", "aria-hidden": "true" });
  const mask = new Mask(() => refresh());
  const frame = h("div", { class: "frame" }, large, mask.canvas, ring);
  const caption = h("div", { class: "caption" });
  const save = h("a", { class: "quiet button icon", tabindex: "0", title: "Save this picture as PNG, with how it was made" }, icon("save"), h("span", { text: "Save as PNG" }));
  const brush = slider(() => refresh(), { min: 2, max: 50, value: 16 });
  const eraser = h("input", { type: "checkbox", role: "switch", onchange: () => refresh() });
  const undo = button("Undo", "undo", () => mask.undo(), { class: "quiet", title: "Undo the last stroke (Control Z)" });
  const invert = h("button", { type: "button", class: "quiet", text: "Invert", onclick: () => mask.add({ kind: "invert" }) });
  const clear = h("button", { type: "button", class: "quiet", text: "Clear", onclick: () => mask.clear() });
  wireBrush();

  /** Paint with the pointer, or with keys. */
  function wireBrush() {
    const { canvas } = mask;
    let stroke = null;
    const position = { x: 0.5, y: 0.5 };
    const size = () => brush.value / 100;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      Object.assign(position, { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
      showRing();
    };
    function showRing() {
      const { clientWidth, clientHeight } = canvas;
      const side = size() * Math.max(clientWidth, clientHeight);
      ring.style.cssText = `left:${position.x * clientWidth}px;top:${position.y * clientHeight}px;width:${side}px;height:${side}px`;
      ring.classList.toggle("erase", eraser.checked);
    }
    const begin = () => ({ points: [[position.x, position.y]], size: size(), erase: eraser.checked });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || busy()) return;
      canvas.setPointerCapture(event.pointerId);
      place(event);
      stroke = begin();
      mask.add(stroke);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.movementX && !event.movementY) return; // the page moved, not the hand
      place(event);
      if (!stroke) return;
      stroke.points.push([position.x, position.y]);
      paint(canvas, { ...stroke, points: stroke.points.slice(-2) }, mask.stripes);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { stroke = null; });
    canvas.addEventListener("focus", showRing);
    canvas.addEventListener("keydown", (event) => {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const keys = {
        " ": () => mask.add(begin()), Enter: inpaint, Backspace: () => mask.clear(), Delete: () => mask.clear(),
        x: () => { eraser.checked = !eraser.checked; }, i: () => mask.add({ kind: "invert" }),
        "+": () => { brush.value = Number(brush.value) + 2; }, "-": () => { brush.value -= 2; },
      };
      if (event.key === "z" && (event.ctrlKey || event.metaKey)) mask.undo();
      else if (event.key in arrows) {
        const from = begin();
        for (const [axis, way] of arrows[event.key].entries()) {
          const name = "xy"[axis];
          position[name] = Math.min(1, Math.max(0, position[name] + way * 0.04));
        }
        if (event.shiftKey) mask.add({ ...from, points: [...from.points, [position.x, position.y]] });
      } else if (event.key in keys && !event.ctrlKey && !event.metaKey) keys[event.key]();
      else return;
      event.preventDefault();
      showRing();
      refresh();
    });
  }

  // What is made of the picked ones.

  const strength = slider(() => change("strength", Number(strength.value)), { min: 0.05, max: 1, step: 0.05 });
  const newMode = modeMenu("new_mode", (value) => {
    const legal = steps(value || modeHere());
    model.set("new_mode", value);
    if (!legal.includes(get("new_steps"))) {
      const near = (a, b) => Math.abs(a - get("new_steps")) - Math.abs(b - get("new_steps"));
      model.set("new_steps", [...legal].sort(near)[0]);
    }
    refresh();
    set();
  });
  const newLegal = () => steps(get("new_mode") || modeHere());
  const newSteps = slider(() => change("new_steps", newLegal()[newSteps.value]), { min: 0 });
  const newPrompt = h("input", {
    type: "text", placeholder: "the same", spellcheck: "false",
    oninput: () => change("new_prompt", newPrompt.value), onchange: set,
  });
  const maskStrength = slider(() => change("mask_strength", Number(maskStrength.value)), { min: 0.05, max: 1, step: 0.05 });
  const maskPrompt = h("input", {
    type: "text", placeholder: "what is to be there", spellcheck: "false",
    oninput: () => change("mask_prompt", maskPrompt.value), onchange: set,
    onkeydown: (event) => { if (event.key === "Enter") inpaint(); },
  });
  const scale = h("select", { onchange: () => { change("scale", Number(scale.value)); set(); } },
    ...SCALES.map(([value, text]) => h("option", { value, text })));
  const onlyMasked = h("input", { type: "checkbox", role: "switch", onchange: () => { change("only_masked", onlyMasked.checked); set(); } });
  const refine = h("button", { type: "button", class: "primary", onclick: () => improve("refine"), title: "Image-to-image: the same picture, drawn better" });
  const vary = h("button", { type: "button", class: "second", onclick: () => improve("vary"), title: "The same picture with new seeds" });
  const repaint = h("button", { type: "button", class: "primary", onclick: inpaint, text: "Inpaint", title: "Draw what is masked anew, in the steps set under Improve" });

  // The frame.

  const fields = {
    mode: labelled("Mode", mode), steps: labelled("Steps", stepsSlider, () => get("steps")),
    count: labelled("Pictures", countSlider, () => get("count")), seed: labelled("Seed", seed),
    live: labelled("Draft while typing", live), brush: labelled("Brush", brush, () => `${brush.value} %`),
    eraser: labelled("Erase", eraser), strength: labelled("Strength", strength, () => get("strength").toFixed(2)),
    newSteps: labelled("Steps", newSteps, () => get("new_steps")), newMode: labelled("Mode", newMode),
    maskStrength: labelled("Strength", maskStrength, () => get("mask_strength").toFixed(2)),
    maskPrompt: labelled("Prompt", maskPrompt), scale: labelled("Size", scale), newPrompt: labelled("Prompt", newPrompt), onlyMasked: labelled("Only the masked area, at full size", onlyMasked),
  };
  fields.live.classList.add("switch");
  fields.eraser.classList.add("switch");
  fields.onlyMasked.classList.add("switch");
  fields.seed.append(dice);
  fields.onlyMasked.title = "Inpainting draws the area around the mask alone, at the model's full size, and pastes it back";
  const bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Steps drawn", "aria-valuemin": 0 }, h("i"));
  const problem = h("div", { class: "problem", role: "alert" });
  const notes = h("ul", { class: "notes", "aria-label": "Notes" });
  const trail = h("nav", { class: "trail", "aria-label": "What was done: go back to" });
  const said = h("div", { class: "said", role: "status", "aria-live": "polite" });
  const code = h("code");
  const copy = button("Copy", "copy", copyCode, { class: "quiet" });
  const program = h("details", { class: "code" }, h("summary", { text: "Code" }), h("pre", { tabindex: "0", "aria-label": "The code that draws these pictures" }, code), copy);
  const stage = h("div", { class: "stage" }, frame, h("div", { class: "under" }, caption, save),
    h("fieldset", { class: "tools" }, h("legend", { text: "Mask" }), fields.brush,
      h("div", { class: "row" }, fields.eraser, undo, invert, clear), fields.maskStrength, fields.maskPrompt,
      fields.onlyMasked, repaint));
  const improving = h("fieldset", { class: "improve" }, h("legend", { text: "Improve what is picked" }),
    fields.strength, fields.newSteps, fields.newMode, fields.scale, fields.newPrompt,
    h("div", { class: "actions" }, refine, vary));
  const root = h("section", {
    class: "fewstep", "aria-label": "fewstep studio",
    onkeydown: (event) => { if (event.key === "Escape" && busy()) { event.preventDefault(); send("stop"); } },
  },
  h("div", { class: "top" }, prompt, draw, stop),
  h("div", { class: "settings" }, fields.mode, fields.steps, fields.count, fields.seed, fields.live),
  bar, problem,
  h("div", { class: "body" }, h("div", { class: "left" }, nothing, gallery, improving, trail, notes), stage),
  h("div", { class: "foot" }, said, program));
  el.append(root);

  async function copyCode() {
    try {
      await navigator.clipboard.writeText(get("story"));
    } catch {
      getSelection().selectAllChildren(code); // where pages may not write to the clipboard
      document.execCommand("copy");
    }
    said.textContent = "Code copied.";
  }

  // What is shown.

  function menu(select, first) {
    const options = [...(first === null ? [] : [{ name: "", title: "", text: first }]), ...get("modes")];
    select.replaceChildren(...options.map((m) => h("option", { value: m.name, text: m.text ?? m.name, title: m.title })));
  }
  function makeCell(number) {
    const image = h("img", { draggable: "false", alt: "" });
    return h("div", {
      class: "cell", role: "option", tabindex: "-1",
      onclick: () => { if (number < get("cells").length) { look(number); togglePick(number); } },
      onfocus: () => { if (at !== number) look(number); },
    }, image, h("b", { text: number }), h("i", {}, icon("check")));
  }
  function refreshGallery() {
    const cells = get("cells");
    const expected = cells.length || (busy() ? get("status").pictures ?? 0 : 0);
    if (at >= cells.length) at = 0;
    while (gallery.children.length > expected) {
      setPicture(gallery.lastChild.firstChild, null);
      gallery.lastChild.remove();
    }
    while (gallery.children.length < expected) gallery.append(makeCell(gallery.children.length));
    gallery.classList.toggle("few", expected <= 3);
    gallery.classList.toggle("busy", busy());
    nothing.hidden = expected > 0;
    [...gallery.children].forEach((cell, number) => {
      const picked = get("picked").includes(number);
      const { picture, seed: cellSeed, width = 1, height = 1 } = cells[number] ?? {};
      setPicture(cell.firstChild, picture ?? null, "image/webp");
      cell.style.aspectRatio = `${width} / ${height}`;
      cell.classList.toggle("blank", !picture);
      cell.classList.toggle("at", number === at);
      cell.setAttribute("aria-selected", picked);
      cell.setAttribute("aria-label", `Picture ${number}${cellSeed === undefined ? "" : `, seed ${cellSeed}`}`);
      cell.tabIndex = number === at ? 0 : -1;
      cell.title = cellSeed === undefined ? "" : `seed ${cellSeed}`;
    });
  }
  function refreshStage() {
    const cell = get("cells")[at];
    stage.hidden = improving.hidden = !cell;
    if (!cell) return;
    const full = !busy() && get("shown").number === at ? get("shown") : null;
    setPicture(large, full ? full.png : cell.picture, full ? "image/png" : "image/webp");
    large.alt = `Picture ${at}: ${cell.prompt ?? get("prompt")}`;
    frame.style.aspectRatio = `${cell.width} / ${cell.height}`;
    if (!busy()) mask.fit(cell.width, cell.height);
    caption.textContent = cell.seed === undefined ? `Picture ${at}` : `Picture ${at} · seed ${cell.seed} · ${cell.width} × ${cell.height}`;
    save.hidden = !full;
    if (full) Object.assign(save, { href: large.url, download: full.name });
  }
  function fitPrompt() {
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
  }
  function refreshControls() {
    const [count, ready] = [numbers().length, !busy() && get("cells").length > 0];
    if (document.activeElement !== prompt) prompt.value = get("prompt");
    fitPrompt();
    mode.value = get("mode");
    Object.assign(stepsSlider, { max: steps(get("mode")).length - 1, value: steps(get("mode")).indexOf(get("steps")) });
    Object.assign(countSlider, { max: get("most"), value: get("count") });
    if (document.activeElement !== seed) seed.value = get("seed");
    live.checked = get("live");
    strength.value = get("strength");
    maskStrength.value = get("mask_strength");
    if (document.activeElement !== maskPrompt) maskPrompt.value = get("mask_prompt");
    newMode.value = get("new_mode");
    Object.assign(newSteps, { max: newLegal().length - 1, value: newLegal().indexOf(get("new_steps")) });
    if (document.activeElement !== newPrompt) newPrompt.value = get("new_prompt");
    scale.value = get("scale");
    onlyMasked.checked = get("only_masked");
    enable(stop, busy());
    refine.textContent = count > 1 ? `Refine ${count}` : "Refine";
    vary.textContent = count > 1 ? `Vary ${count}` : "Vary";
    enable(refine, ready);
    enable(vary, ready);
    enable(repaint, ready && !mask.empty);
    enable(undo, mask.strokes.length > 0);
    enable(clear, !mask.empty);
    Object.values(fields).forEach((field) => field.refresh());
  }
  function refreshTrail() {
    const focused = trail.contains(document.activeElement);
    trail.querySelectorAll("img").forEach((image) => setPicture(image, null));
    trail.replaceChildren(...get("trail").map(({ number, label, prompt: text, picture }) => {
      const image = h("img", { alt: "" });
      setPicture(image, picture, "image/webp");
      const here = number === get("here");
      const go = () => { send("back", { number }); };
      return h("button", { type: "button", title: text, onclick: go, ...(here ? { "aria-current": "step" } : {}) }, image, h("span", { text: label }));
    }));
    const current = trail.querySelector("[aria-current]");
    if (!current) return;
    trail.scrollLeft = current.offsetLeft - (trail.clientWidth - current.clientWidth) / 2;
    if (focused) current.focus({ preventScroll: true });
  }
  function refreshStatus() {
    clearTimeout(waiting);
    const { state, text, done, steps: all } = get("status");
    root.classList.toggle("busy", busy());
    bar.classList.toggle("endless", state === "preparing");
    bar.setAttribute("aria-valuemax", all || 1);
    bar.setAttribute("aria-valuenow", done);
    bar.firstChild.style.width = `${all ? (100 * done) / all : 0}%`;
    said.textContent = state === "preparing" ? "Preparing …" : state === "drawing" ? `Drawing: step ${done} of ${all}` : text;
    problem.textContent = get("problem");
    problem.hidden = !get("problem");
    notes.replaceChildren(...get("notes").map((text) => h("li", { text })));
    code.textContent = get("story");
    program.hidden = !get("story");
  }
  function refresh() {
    refreshGallery();
    refreshStage();
    refreshControls();
  }
  const rows = {
    modes: () => { menu(mode, null); menu(newMode, "the same"); refresh(); },
    trail: refreshTrail,
    here: () => { mask.clear(); refreshTrail(); },
    cells: () => {
      refresh();
      if (!busy() && get("cells").length && get("shown").number !== at) send("show", { number: at });
    },
  };
  for (const name of ["status", "problem", "notes", "story"]) rows[name] = () => { refreshStatus(); refresh(); };
  for (const name of [...SETTINGS, "shown"]) rows[name] ??= refresh;
  for (const [name, row] of Object.entries(rows)) model.on(`change:${name}`, row);
  const themes = new MutationObserver(theme);
  const colours = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    root.dataset.theme = isDark(el) ? "dark" : "light";
  }
  themes.observe(document.body, { attributes: true });
  colours.addEventListener("change", theme);
  const sizes = new ResizeObserver(fitPrompt);
  sizes.observe(el);
  requestAnimationFrame(theme);
  Object.values(rows).forEach((row) => row());

  return () => {
    for (const [name, row] of Object.entries(rows)) model.off(`change:${name}`, row);
    themes.disconnect();
    sizes.disconnect();
    colours.removeEventListener("change", theme);
    clearTimeout(typing);
    clearTimeout(waiting);
    root.querySelectorAll("img").forEach((image) => setPicture(image, null));
  };
}

export default { render };
