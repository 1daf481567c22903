// Marks on the audit's page: checkboxes, a filter, keys, and a CSV for `train.py --exclude`. Nothing is sent anywhere.
"use strict";
const cards = [...document.querySelectorAll("article")];
const boxes = cards.map((card) => card.querySelector("input"));
const words = document.getElementById("words");
const which = document.getElementById("which");
const count = document.getElementById("count");
let current = -1;
let saved = true;

function shown() {
  return cards.filter((card) => !card.hidden);
}

function update() {
  const wanted = words.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  cards.forEach((card, n) => {
    const text = card.textContent.toLowerCase();
    const marked = which.value === "all" || boxes[n].checked === (which.value === "marked");
    card.hidden = !marked || !wanted.every((word) => text.includes(word));
    card.classList.toggle("marked", boxes[n].checked);
  });
  const marks = boxes.filter((box) => box.checked).length;
  count.textContent = `${marks} marked, ${shown().length} of ${cards.length} shown`;
}

function go(step) {
  const visible = shown();
  if (!visible.length) return;
  const at = visible.indexOf(cards[current]);
  const next = visible[at < 0 ? (step > 0 ? 0 : visible.length - 1) : Math.min(Math.max(at + step, 0), visible.length - 1)];
  current = cards.indexOf(next);
  cards.forEach((card) => card.classList.toggle("current", card === next));
  next.scrollIntoView({ block: "nearest" });
}

function mark() {
  if (current < 0 || cards[current].hidden) return;
  boxes[current].checked = !boxes[current].checked;
  changed();
}

function changed() {
  saved = false;
  update();
}

function cell(text) {
  return `"${text.replaceAll('"', '""')}"`;
}

function save() {
  const rows = cards.map((card, n) => [card.dataset.pair, boxes[n].checked ? "x" : "", card.dataset.image, card.dataset.caption]);
  const lines = [["pair", "exclude", "image", "caption"], ...rows].map((row) => row.map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`\ufeff${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
  saved = true;
}

const keys = { j: () => go(1), k: () => go(-1), ArrowDown: () => go(1), ArrowUp: () => go(-1), x: mark, s: save, "/": () => words.focus() };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement.blur();
  const typing = event.target === words || event.target === which;
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
words.addEventListener("input", update);
which.addEventListener("change", update);
boxes.forEach((box) => box.addEventListener("change", changed));
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => saved || event.preventDefault());
update();
