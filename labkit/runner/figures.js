// Draws every figure of a page from the JSON in its box. Nothing is fetched: plotly.js is loaded before.
const CONFIG = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "" };
if (matchMedia("(hover: none)").matches) CONFIG.displayModeBar = false; // its buttons are too small for a finger
const NARROW_PIXELS = 560;

for (const box of document.querySelectorAll(".labkit-figure")) {
  const { data, layout, config } = JSON.parse(box.querySelector("script").textContent);
  if (!window.Plotly) {
    box.textContent = "This figure needs the file plotly.min.js beside the page.";
    continue;
  }
  const narrow = box.clientWidth < NARROW_PIXELS && !config.staticPlot && layout.legend?.orientation !== "h";
  const place = box.appendChild(document.createElement("div"));
  place.style.height = "100%";
  const fitted = { ...layout, width: undefined, autosize: true, ...(narrow && below(box, data, layout)) };
  Plotly.newPlot(place, data, fitted, { ...CONFIG, ...config });
}

// A phone has no room for a legend beside the plot: it goes below, and the box grows by its height.
function below(box, data, layout) {
  const rows = Math.ceil(data.filter(trace => trace.showlegend !== false).length / 2);
  const height = (layout.height ?? box.clientHeight) + 24 * rows;
  box.style.height = `${height}px`;
  return { height, legend: { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -0.18, yanchor: "top" } };
}
