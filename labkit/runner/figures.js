// Draws every figure of a page from the JSON in its box. Nothing is fetched: plotly.js is loaded before.
const CONFIG = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "" };
if (matchMedia("(hover: none)").matches) CONFIG.displayModeBar = false; // its buttons are too small for a finger
const THEME = matchMedia("(prefers-color-scheme: dark)");
const isClear = ({ paper_bgcolor, template }) => (paper_bgcolor ?? template?.layout?.paper_bgcolor) === "rgba(0,0,0,0)";
const textColour = () => getComputedStyle(document.documentElement).getPropertyValue("--text").trim();

for (const box of document.querySelectorAll(".labkit-figure")) {
  const { data, layout, config } = JSON.parse(box.querySelector("script").textContent);
  if (!window.Plotly) {
    box.textContent = "This figure needs the file plotly.min.js beside the page.";
    continue;
  }
  const place = box.appendChild(document.createElement("div"));
  place.style.height = "100%";
  const isOnPage = isClear(layout) && !layout.font?.color; // then its text must be seen on the page's background
  const font = isOnPage ? { ...layout.font, color: textColour() } : layout.font;
  const fitted = { ...layout, font, width: undefined, autosize: true };
  Plotly.newPlot(place, data, fitted, { ...CONFIG, ...config });
  if (isOnPage) THEME.addEventListener("change", () => Plotly.relayout(place, "font.color", textColour()));
}
