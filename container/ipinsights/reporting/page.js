"use strict";
// Draws the figures of the page's data, moves the threshold, and makes the page ready for print.
const data = JSON.parse(document.getElementById("page-data").textContent);
const narrow = window.matchMedia("(max-width: 600px)").matches;

for (const [name, figure] of Object.entries(data.figures)) {
  if (narrow) {
    figure.layout.margin = { l: 44, r: 8, t: 8, b: 44 };
    figure.layout.font.size = 12;
    figure.layout.legend.font.size = 12;
  }
  Plotly.newPlot(name, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}

if (data.slider) {
  const input = document.getElementById("slider");
  const rows = document.querySelectorAll("#slider-caught tbody tr");
  const show = () => {
    const step = data.slider.steps[Number(input.value)];
    document.getElementById("slider-shown").textContent = step.shown;
    input.setAttribute("aria-valuetext", step.shown);
    step.overall.forEach((text, place) => (document.getElementById(`slider-overall-${place}`).textContent = text));
    step.rows.forEach((cells, row) => cells.forEach((text, place) => (rows[row].cells[place].textContent = text)));
    Plotly.relayout(data.slider.plot, { "shapes[0].x0": step.threshold, "shapes[0].x1": step.threshold });
  };
  input.addEventListener("input", show);
}

const PAGE_WIDTH = 660; // of a sheet of A4 or Letter between its margins, in CSS pixels
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((details) => (details.open = true));
  for (const name of Object.keys(data.figures)) {
    const wide = document.getElementById(name).closest(".columns") === null;
    Plotly.relayout(name, { width: wide ? PAGE_WIDTH : PAGE_WIDTH / 2 - 12 });
  }
});
window.addEventListener("afterprint", () => {
  opened.forEach((details) => (details.open = false));
  for (const name of Object.keys(data.figures)) Plotly.relayout(name, { width: null, autosize: true });
});
