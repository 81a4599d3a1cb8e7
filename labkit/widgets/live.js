// Draws the model's `figure` with plotly.js, which is loaded once per page: what JupyterLab's own plotly renderer has
// already loaded, else plotly.py's copy, asked for by the first figure and delivered by the kernel.

// No button that would send the reader's chart to somebody's server (plotly.js shows one by default).
const CONFIG = { displaylogo: false, showSendToCloud: false };
const page = (globalThis.labkitLiveFigures ??= { loading: undefined, owner: undefined });

async function plotly(model) {
  while (!globalThis.Plotly) {
    if (!page.loading) {
      page.owner = model;
      page.loading = load(model).finally(() => (page.loading = undefined));
    }
    const owner = page.owner;
    try {
      await page.loading;
    } catch (error) {
      if (owner === model) throw error; // else its figure is gone: the next one asks
    }
  }
  return globalThis.Plotly;
}

function load(model) {
  return new Promise((resolve, reject) => {
    const received = (message, buffers) => {
      if (message?.kind !== "plotly.js") return;
      model.off("msg:custom", received);
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(buffers[0]);
      document.head.append(script);
      globalThis.Plotly ? resolve() : reject(new Error("plotly.js did not load"));
    };
    const lost = () => reject(new Error("the kernel is gone"));
    model.on("msg:custom", received);
    model.on("destroy", lost);
    model.on("comm_live_update", lost);
    model.send({ kind: "plotly.js wanted" });
  });
}

function describe(model) {
  const title = model.get("figure").layout?.title?.text ?? "";
  return model.get("label") || title.replace(/<[^>]*>/g, " ") || "figure";
}

async function render({ model, el }) {
  const box = document.createElement("div");
  box.style.width = "100%";
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", describe(model));
  box.textContent = "The figure appears when the kernel has time for it.";
  el.append(box);

  const Plotly = await plotly(model);
  box.replaceChildren();

  // The box owns the height: one left to plotly's layout collapses to 0 when the page is resized.
  const react = () => {
    const { data, layout } = model.get("figure");
    const color = getComputedStyle(box).getPropertyValue("--jp-ui-font-color1").trim();
    box.style.height = `${layout.height ?? 420}px`;
    box.setAttribute("aria-label", describe(model));
    const font = color ? { color, ...layout.font } : layout.font;
    return Plotly.react(box, data, { ...layout, font, height: undefined, autosize: true }, CONFIG);
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

  await draw();
  model.on("change:figure", draw);
  const sizes = new ResizeObserver(() => box.offsetWidth && Plotly.Plots.resize(box));
  sizes.observe(box);
  const theme = new MutationObserver(draw);
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-name"] });

  return () => {
    model.off("change:figure", draw);
    sizes.disconnect();
    theme.disconnect();
    Plotly.purge(box);
  };
}

export default { render };
