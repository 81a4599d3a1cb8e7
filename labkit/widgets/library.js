// plotly.js, loaded once per page: JupyterLab's own copy (the plotly wheel ships one as an extension of JupyterLab),
// else plotly.py's, asked for by the first figure and delivered by the kernel.

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

async function load(model) {
  try {
    await loadFromJupyterLab();
  } catch {
    // Another front end, or another version of it. The kernel has a copy.
  }
  if (!globalThis.Plotly) await loadFromKernel(model);
}

// The extension is in the page already, but runs plotly.js only when it first draws: let it draw nothing.
async function loadFromJupyterLab() {
  const mimeType = "application/vnd.plotly.v1+json";
  const { rendererFactory } = (await globalThis._JUPYTERLAB["jupyterlab-plotly"].get("./mimeExtension"))();
  const renderer = rendererFactory.createRenderer({ mimeType });
  await renderer.renderModel({ data: { [mimeType]: { data: [], layout: {} } }, setData() {} });
  renderer.dispose();
}

function loadFromKernel(model) {
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
