// The numbers of a figure as tables, for who cannot see it, or wants to copy them: made from the figure's own traces
// when the reader opens them, and again whenever the figure changes, so that they are never out of date.

const LARGEST_TABLE = 200; // rows
const ARRAYS = {
  f8: Float64Array, f4: Float32Array, i4: Int32Array, u4: Uint32Array, i2: Int16Array, u2: Uint16Array,
  i1: Int8Array, u1: Uint8Array,
};

// A trace's array: a list, or plotly's { dtype, bdata, shape } with base64 inside.
function listOf(values) {
  if (!values?.bdata) return Array.from(values ?? []);
  const bytes = Uint8Array.from(atob(values.bdata), (letter) => letter.charCodeAt(0));
  return Array.from(new ARRAYS[values.dtype](bytes.buffer));
}

function matrixOf(values) {
  if (!values.bdata) return values.map(listOf);
  const [all, [count, width]] = [listOf(values), values.shape.split(",").map(Number)];
  return Array.from({ length: count }, (_, row) => all.slice(row * width, (row + 1) * width));
}

function shown(value) {
  if (typeof value !== "number") return plain(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
}

const plain = (text) => String(text ?? "").replace(/<[^>]*>/g, " ").trim();

function axisTitle(layout, letter, trace) {
  const axis = layout[`${letter}axis${(trace[`${letter}axis`] ?? letter).slice(1)}`];
  return plain(axis?.title?.text);
}

// One table per pair of axes: a row for each x, a column for each trace. An x used twice in a trace gets two rows.
function tablesOf({ data = [], layout = {} }) {
  const tables = new Map();
  for (const trace of data) {
    const key = trace.z ? trace : `${trace.xaxis ?? "x"} ${trace.yaxis ?? "y"} ${trace.orientation ?? "v"}`;
    const [along, up] = trace.orientation === "h" || trace.z ? ["y", "x"] : ["x", "y"];
    const titles = { along: axisTitle(layout, along, trace), up: axisTitle(layout, up, trace) };
    if (!tables.has(key)) tables.set(key, { ...titles, traces: [], rows: new Map() });
    (trace.z ? addMatrix : addColumn)(tables.get(key), trace, along, up);
  }
  return [...tables.values()];
}

function addColumn(table, trace, along, up) {
  const [places, values] = [listOf(trace[along]), listOf(trace[up])];
  const times = new Map();
  values.forEach((value, index) => {
    const place = places.length ? places[index] : index;
    times.set(place, (times.get(place) ?? 0) + 1);
    const key = JSON.stringify([place, times.get(place)]);
    if (!table.rows.has(key)) table.rows.set(key, { place, values: [] });
    table.rows.get(key).values[table.traces.length] = value;
  });
  table.traces.push(trace.name ?? table.up);
}

// A heatmap: a row for each y, a column for each x.
function addMatrix(table, trace) {
  const lines = matrixOf(trace.z);
  const [columns, names] = [listOf(trace.x), listOf(trace.y)];
  lines.forEach((values, index) => table.rows.set(index, { place: names[index] ?? index, values }));
  table.traces = (lines[0] ?? []).map((_, index) => columns[index] ?? index);
  table.up = plain(trace.colorbar?.title?.text) || trace.name || table.up;
}

function cell(kind, text, scope) {
  const element = document.createElement(kind);
  element.textContent = shown(text);
  if (scope) element.scope = scope;
  return element;
}

function drawTable({ along, up, traces, rows }) {
  const table = document.createElement("table");
  const head = document.createElement("tr");
  head.append(cell("th", along, "col"), ...traces.map((name) => cell("th", name, "col")));
  table.append(head);
  for (const { place, values } of [...rows.values()].slice(0, LARGEST_TABLE)) {
    const row = document.createElement("tr");
    row.append(cell("th", place, "row"), ...traces.map((_, index) => cell("td", values[index])));
    table.append(row);
  }
  const left = rows.size > LARGEST_TABLE ? `, the first ${LARGEST_TABLE} of ${rows.size} rows` : "";
  table.createCaption().textContent = `${up}${along && ` by ${along}`}${left}`;
  return table;
}

function numbersOf(model) {
  const element = document.createElement("details");
  element.className = "labkit-numbers";
  const summary = document.createElement("summary");
  summary.textContent = "The numbers in this figure";
  const tables = document.createElement("div");
  const update = () => {
    if (element.open) tables.replaceChildren(...tablesOf(model.get("figure")).map(drawTable));
  };
  element.append(summary, tables);
  element.addEventListener("toggle", update);
  model.on("change:figure", update);
  return { element, forget: () => model.off("change:figure", update) };
}
