// What a screen reader hears of the controls around a figure. ipywidgets gives its sliders neither a name nor, where a
// slider moves over a list of values, the value it stands on; and its toggle buttons do not say which one is pressed.

function set(element, name, value) {
  if (element && element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function nameControl(control) {
  const label = control.querySelector(".widget-label")?.textContent;
  const readout = control.querySelector(".widget-readout");
  for (const handle of control.querySelectorAll(".noUi-handle")) {
    set(handle, "aria-label", label);
    set(handle, "aria-valuetext", readout?.textContent ?? handle.getAttribute("aria-valuenow"));
  }
  if (readout && control.classList.contains("labkit-fixed")) {
    readout.contentEditable = "false"; // a list's value can be overwritten there, but nothing would follow it
  } else if (readout) {
    set(readout, "role", "textbox");
    set(readout, "aria-label", `${label}, typed`);
  }
  if (control.classList.contains("widget-toggle-buttons")) {
    set(control, "role", "group");
    set(control, "aria-label", label);
    for (const button of control.querySelectorAll("button")) {
      set(button, "aria-pressed", String(button.classList.contains("mod-active")));
    }
  }
}

// Follows the controls of the panel that `el` is, or will be, part of. Returns the function that stops it.
function nameControls(el) {
  const observer = new MutationObserver(nameAll);
  const placed = new ResizeObserver(() => {
    const controls = el.closest(".labkit-panel")?.querySelector(".labkit-controls");
    if (!controls) return;
    placed.disconnect();
    const attributeFilter = ["class", "aria-valuetext"];
    observer.observe(controls, { subtree: true, childList: true, characterData: true, attributeFilter });
    nameAll();
  });
  function nameAll() {
    el.closest(".labkit-panel")?.querySelectorAll(".labkit-controls > *").forEach(nameControl);
  }
  placed.observe(el);
  return () => {
    placed.disconnect();
    observer.disconnect();
  };
}
