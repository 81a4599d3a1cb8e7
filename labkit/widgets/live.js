// Draws the model's `figure` with plotly.js, and keeps an account of its numbers in a table.

// No button that would send the reader's chart to somebody's server (plotly.js shows one by default).
const CONFIG = { displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const PATIENCE_MS = 5000;
const WAITING = "The figure is being drawn.";
const NOT_DRAWN = "This figure could not be drawn yet: run this cell, or all cells, to see it.";
const NOT_LIVE = "As it was when the notebook was saved: run this cell, or all cells, to move it.";

function titleOf(figure) {
  const title = figure.layout?.title?.text ?? "";
  return title.replace(/<[^>]*>/g, " ").replace(/\s+/g, " ").trim() || "figure";
}

// To a screen reader plotly's many layers and icons are one picture; its buttons have names of their own.
function name(box, label) {
  const [picture, ...others] = box.querySelectorAll("svg");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", label);
  for (const other of others) other.setAttribute("aria-hidden", "true");
}

async function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "labkit-figure";
  box.setAttribute("role", "status");
  box.textContent = WAITING;
  const numbers = numbersOf(model);
  const saved = document.createElement("p");
  saved.className = "labkit-saved"; // shown, by live.css, where ipywidgets marks the widget as having no kernel
  saved.textContent = NOT_LIVE;
  el.append(saved, box, numbers.element);
  const endings = [nameControls(el), numbers.forget];
  const end = () => endings.forEach((ending) => ending());

  const busy = () => el.setAttribute("aria-busy", model.get("busy"));
  busy();
  model.on("change:busy", busy);
  endings.push(() => model.off("change:busy", busy));
  const giveUp = () => (box.textContent = NOT_DRAWN);
  const patience = setTimeout(giveUp, PATIENCE_MS);
  let Plotly;
  try {
    Plotly = await plotly(model);
  } catch {
    giveUp(); // the kernel went before it delivered plotly.js
    return end;
  } finally {
    clearTimeout(patience);
  }

  // The box owns the height: one left to plotly's layout collapses to 0 when the page is resized.
  const react = async () => {
    const { data, layout } = model.get("figure");
    if (!data) return;
    if (box.hasAttribute("role")) {
      box.removeAttribute("role");
      box.replaceChildren();
    }
    const color = getComputedStyle(box).getPropertyValue("--jp-ui-font-color1").trim();
    box.style.height = `${layout.height ?? 420}px`;
    const font = color ? { color, ...layout.font } : layout.font;
    await Plotly.react(box, data, { ...layout, font, height: undefined, autosize: true }, CONFIG);
    name(box, model.get("label") || titleOf(model.get("figure")));
  };

  // One drawing at a time, and always the newest figure: a slider may move faster than plotly draws.
  let wanted = false;
  let drawing = false;
  const draw = async () => {
    wanted = true;
    if (drawing) return;
    drawing = true;
    try {
      while (wanted) {
        wanted = false;
        await react();
      }
    } finally {
      drawing = false;
    }
  };

  model.on("change:figure", draw); // before the first drawing, during which the figure may change
  await draw();
  const sizes = new ResizeObserver(() => box.offsetWidth && box._fullLayout && Plotly.Plots.resize(box));
  sizes.observe(box);
  const theme = new MutationObserver(draw);
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-name"] });

  endings.push(() => {
    model.off("change:figure", draw);
    sizes.disconnect();
    theme.disconnect();
    Plotly.purge(box);
  });
  return end;
}

export default { render };
