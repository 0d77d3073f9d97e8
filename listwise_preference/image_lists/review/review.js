"use strict";

// lists.js, written beside this file, has set window.REVIEW = {key, title, records}. Text of records reaches the page
// as text nodes and attributes only, never as HTML.

const PAGE_SIZE = 50;
const VERDICTS = new Map([["no_object", "no object"], ["not_hideable", "not hideable"]]);

const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// What is shown: `view` holds indices of records in the order shown, `place` is the current one's place in it.

let view = [];
let place = 0;

const records = window.REVIEW?.records ?? [];

function searchText(record) {
  const texts = [nameOf(record), record.prompt, record.chosen, record.rejected, record.phrase, record.surface,
    record.reason];
  return texts.filter((text) => text !== null).join("\n").toLowerCase();
}

// An id travels as JSON text, because a JavaScript number would round a long one.
function nameOf(record) {
  return record.id.startsWith('"') ? JSON.parse(record.id) : record.id;
}

const searchTexts = records.map(searchText);

const ORDERS = [
  ["Input order", null, 1],
  ["Score, highest first", "score", -1],
  ["Score, lowest first", "score", 1],
  ["Box, largest first", "share", -1],
  ["Box, smallest first", "share", 1],
];

function sorted(indices, key, sign) {
  if (key === null) return indices;
  const has = (index) => typeof records[index][key] === "number";
  const known = indices.filter(has).sort((a, b) => sign * (records[a][key] - records[b][key]));
  return known.concat(indices.filter((index) => !has(index)));
}

function applyControls() {
  const search = byId("search").value.trim().toLowerCase();
  const verdict = byId("verdict").value;
  const source = byId("source").value;
  const decision = byId("decision").value;
  const indices = [...records.keys()].filter((index) =>
    (verdict === "" || JSON.stringify(records[index].verdict) === verdict) &&
    (source === "" || JSON.stringify(records[index].source) === source) &&
    (decision === "" || (decisions.get(index) ?? "open") === decision) &&
    (search === "" || searchTexts[index].includes(search)));
  const [, key, sign] = ORDERS[byId("order").value];
  view = sorted(indices, key, sign);
  place = 0;
  showPage();
  window.scrollTo(0, 0);
}

// Decisions: a log of [index, "accepted" | "rejected" | "open"], kept in the browser. Undo takes the last one back.
// Records that the lists leave out already begin as rejected.

const storageKey = `ranked-image-lists/${window.REVIEW?.key}`;
let log = [];
let decisions = new Map();
const excluded = [...records.keys()].filter((index) => records[index].verdict === "excluded")
  .map((index) => [index, "rejected"]);

function readLog() {
  decisions = new Map([...excluded, ...log]);
}

function loadLog() {
  try {
    log = JSON.parse(localStorage.getItem(storageKey)) ?? [];
  } catch {
    log = [];
  }
  readLog();
}

function saveLog() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(log));
  } catch {
    say("This browser does not keep the decisions: download them before you close the page.", true);
  }
}

function decide(index, decision) {
  if ((decisions.get(index) ?? "open") !== decision) {
    log.push([index, decision]);
    decisions.set(index, decision);
    saveLog();
    showDecision(index);
  }
  say(`${nameOf(records[index])}: ${decision}`);
}

function undo() {
  if (log.length === 0) {
    say("Nothing to undo");
    return;
  }
  const [index] = log.pop();
  readLog();
  saveLog();
  const found = view.indexOf(index);
  if (found >= 0) moveTo(found);
  showDecision(index);
  say(`${nameOf(records[index])}: ${decisions.get(index) ?? "open"} again`);
}

function download() {
  // Ids are JSON text already, so the file has them exactly as the pairs do.
  const ids = records.flatMap((record, index) => decisions.get(index) === "rejected" ? [record.id] : []);
  const text = ids.length === 0 ? '{"rejected": []}\n' : `{"rejected": [\n${ids.join(",\n")}\n]}\n`;
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: address, download: "rejected.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function say(text, visible = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("unseen", !visible);
}

// Moving

const pageOf = (somePlace) => Math.floor(somePlace / PAGE_SIZE);
const articleAt = (somePlace) => byId("lists").children[somePlace - pageOf(place) * PAGE_SIZE];

function moveTo(target) {
  if (target < 0 || target >= view.length) return;
  const otherPage = pageOf(target) !== pageOf(place);
  setCurrent(target, otherPage);
  const article = articleAt(target);
  article.focus({ preventScroll: true });
  article.scrollIntoView({ block: "nearest" });
}

function setCurrent(target, newPage = false) {
  if (!newPage) markCurrent(place, false);
  place = target;
  if (newPage) showPage();
  else markCurrent(place, true);
}

function markCurrent(somePlace, current) {
  const article = articleAt(somePlace);
  article.tabIndex = current ? 0 : -1;
  if (current) article.setAttribute("aria-current", "true");
  else article.removeAttribute("aria-current");
}

function turnPage(step) {
  const first = (pageOf(place) + step) * PAGE_SIZE;
  if (first < 0 || first >= view.length) return;
  place = first;
  showPage();
  window.scrollTo(0, 0);
}

// Drawing the page

function showPage() {
  const first = pageOf(place) * PAGE_SIZE;
  const shown = view.slice(first, first + PAGE_SIZE);
  const none = element("p", { className: "notice" }, records.length === 0 ? "No lists." : "No list fits these filters.");
  byId("lists").replaceChildren(...(shown.length === 0 ? [none] : shown.map(article)));
  if (shown.length > 0) markCurrent(place, true);
  const count = (number) => number.toLocaleString("en");
  const range = shown.length === 0 ? "0" : `${count(first + 1)}–${count(first + shown.length)} of ${count(view.length)}`;
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".range").textContent = range;
    pager.querySelector(".previous").disabled = first === 0;
    pager.querySelector(".next").disabled = first + PAGE_SIZE >= view.length;
  }
  showProgress();
}

function showProgress() {
  const counts = { accepted: 0, rejected: 0, open: 0 };
  for (const index of records.keys()) counts[decisions.get(index) ?? "open"] += 1;
  const words = Object.entries(counts).map(([name, number]) => `${number.toLocaleString("en")} ${name}`);
  byId("progress").textContent = words.join(" · ");
  byId("accepted-bar").style.flexGrow = counts.accepted;
  byId("rejected-bar").style.flexGrow = counts.rejected;
  byId("rejected-bar").parentElement.style.setProperty("--open", counts.open);
}

function showDecision(index) {
  const found = view.indexOf(index);
  if (found >= 0 && pageOf(found) === pageOf(place)) markDecision(articleAt(found), index);
  showProgress();
}

function markDecision(node, index) {
  const decision = decisions.get(index) ?? "open";
  node.dataset.decision = decision;
  for (const button of node.querySelectorAll("button[data-sets]")) {
    button.setAttribute("aria-pressed", String(button.dataset.sets === decision));
  }
}

function article(index) {
  const record = records[index];
  const phrase = phrasePattern(record);
  const node = element("article", { className: "list", tabIndex: -1 },
    element("header", {},
      element("span", { className: "number" }, (index + 1).toLocaleString("en")),
      element("h2", {}, nameOf(record)),
      element("span", { className: "decide" },
        decisionButton(index, "accepted", "Accept"), decisionButton(index, "rejected", "Reject"))),
    element("div", { className: "images" }, images(record), facts(record)),
    element("div", { className: "texts" },
      text("prompt", "Prompt", record.prompt, phrase),
      element("div", { className: "answers" },
        text("chosen", "Chosen answer", record.chosen, phrase),
        text("rejected", "Rejected answer", record.rejected, phrase))));
  // Beside the images long answers would leave most of the page empty.
  node.classList.toggle("long", record.chosen.length + record.rejected.length > 600);
  node.setAttribute("aria-label", `List ${nameOf(record)}`);
  node.dataset.index = index;
  markDecision(node, index);
  return node;
}

function text(className, name, value, phrase) {
  return element("section", { className }, element("h3", {}, name), element("p", {}, ...marked(value, phrase)));
}

function decisionButton(index, decision, text) {
  const button = element("button", { type: "button" }, text);
  button.dataset.sets = decision;
  button.addEventListener("click", () => {
    decide(index, button.getAttribute("aria-pressed") === "true" ? "open" : decision);
  });
  return button;
}

function images(record) {
  if (!record.strip) return element("p", { className: "failure" }, `No images: ${record.failure}`);
  const { file, images: number, width, height } = record.strip;
  const levels = [...Array(number).keys()];
  const shares = levels.map((level) => Math.round(100 * level / (number - 1)));
  const strip = element("div", { className: "strip" }, ...levels.map((level) => {
    // One file holds all images of the list side by side; each frame is a window on its own, half a percent smaller
    // on every side, so that scaling does not blend in the edge of the next.
    const image = element("img", { alt: "", loading: "lazy", decoding: "async", draggable: false, src: file });
    image.style.width = `${101 * number}%`;
    image.style.height = "101%";
    image.style.margin = `-0.5% 0 0 ${-101 * level - 0.5}%`;
    image.addEventListener("error", () => {
      strip.replaceWith(element("p", { className: "failure" }, `No images: ${file} cannot be shown`));
    });
    const frame = element("span", { className: "frame" }, image);
    frame.style.aspectRatio = `${width} / ${height}`;
    return element("span", { className: "level" }, frame,
      number > 1 ? element("span", { className: "share" }, level === 0 ? "untouched" : `${shares[level]} %`) : null);
  }));
  strip.style.setProperty("--shape", width / height);
  strip.style.setProperty("--levels", number);
  strip.setAttribute("role", "img");
  strip.setAttribute("aria-label", number > 1
    ? `${number} images, ${record.phrase ?? "the object"} hidden by ${shares.join(", ")} percent`
    : "The image; nothing is hidden");
  return strip;
}

function facts(record) {
  const verdict = element("dd", { className: "verdict" }, VERDICTS.get(record.verdict) ?? record.verdict);
  verdict.dataset.verdict = record.verdict;
  const path = record.link === null ? record.path
    : element("a", { href: record.link, target: "_blank", rel: "noreferrer", title: "Open the image" }, record.path);
  const rows = [
    ["Phrase", record.phrase === null ? null : element("dd", {}, element("mark", {}, record.phrase))],
    ["Verdict", verdict],
    ["Reason", record.reason === null ? null : element("dd", { className: "reason" }, record.reason)],
    ["Box", typeof record.share === "number" ? element("dd", {}, shareText(record.share)) : null],
    ["Score", record.score === null ? null : element("dd", {}, record.score.toFixed(2))],
    ["Source", element("dd", {}, record.source || "none")],
    ["Image", element("dd", { className: "path" }, path)],
  ];
  return element("dl", { className: "facts" },
    ...rows.filter(([, value]) => value !== null).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), value)));
}

function shareText(share) {
  const percent = 100 * share;
  return `${percent < 9.95 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

// The phrase as whole words, as the text has it or with a regular plural's ending; null when there is none. Scripts
// that set no spaces between words are matched anywhere.
function phrasePattern(record) {
  const words = [record.surface, record.phrase].filter((text) => text?.trim())
    .map((text) => text.trim())
    .sort((a, b) => b.length - a.length);
  if (words.length === 0) return null;
  const forms = words.map((text) => {
    const literal = text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&").replace(/\s+/g, "[\\s\\-]+");
    if (/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]/u.test(text)) return literal;
    const plural = /[^aeiou]y$/i.test(text) ? `(?:${literal.slice(0, -1)}ies|${literal})` : `${literal}(?:e?s)?`;
    return `(?<![\\p{L}\\p{M}\\p{N}])${plural}(?![\\p{L}\\p{M}\\p{N}])`;
  });
  return new RegExp(`(${forms.join("|")})`, "giu");
}

function marked(text, pattern) {
  if (pattern === null) return [text];
  return text.split(pattern).map((part, place) => place % 2 === 1 ? element("mark", {}, part) : part);
}

// Controls

function fillSelect(id, options) {
  byId(id).replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
}

function valuesOf(key, names) {
  const counts = new Map();
  for (const record of records) counts.set(record[key], (counts.get(record[key]) ?? 0) + 1);
  const ordered = [...counts].sort((a, b) => b[1] - a[1]);
  return ordered.map(([value, number]) =>
    [JSON.stringify(value), `${names.get(value) ?? (value || "none")} (${number.toLocaleString("en")})`]);
}

function toggleLarge() {
  const large = document.body.classList.toggle("large");
  byId("large").setAttribute("aria-pressed", String(large));
  articleAt(place)?.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => moveTo(place + 1),
  ArrowDown: () => moveTo(place + 1),
  k: () => moveTo(place - 1),
  ArrowUp: () => moveTo(place - 1),
  ArrowRight: () => turnPage(1),
  ArrowLeft: () => turnPage(-1),
  a: () => decideHere("accepted"),
  r: () => decideHere("rejected"),
  u: undo,
  z: toggleLarge,
  "/": () => byId("search").focus(),
};

// A key held down moves on and on, but decides once.
const ONCE = "aru";

function decideHere(decision) {
  if (view.length === 0) return;
  decide(view[place], decision);
  moveTo(place + 1);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = KEYS[key];
  if (!action) return;
  event.preventDefault();
  if (!(event.repeat && ONCE.includes(key))) action();
}

// The list that is clicked or tabbed into is the current one.
function onEnter(event) {
  const node = event.target.closest("article");
  if (node) setCurrent(pageOf(place) * PAGE_SIZE + [...node.parentElement.children].indexOf(node));
}

function start() {
  if (!window.REVIEW) {
    byId("lists").replaceChildren(element("p", { className: "notice" },
      "lists.js is missing beside this page: it was not finished. Run the command that makes it again."));
    return;
  }
  document.title = window.REVIEW.title;
  byId("title").textContent = window.REVIEW.title;
  fillSelect("verdict", [["", "All verdicts"], ...valuesOf("verdict", VERDICTS)]);
  fillSelect("source", [["", "All sources"], ...valuesOf("source", new Map())]);
  fillSelect("decision", [["", "All decisions"], ["open", "Open"], ["accepted", "Accepted"], ["rejected", "Rejected"]]);
  fillSelect("order", ORDERS.map(([name], place) => [place, name]));
  byId("controls").addEventListener("input", applyControls);
  byId("controls").addEventListener("submit", (event) => {  // Enter in the search field
    event.preventDefault();
    byId("search").blur();
    moveTo(place);
  });
  byId("large").addEventListener("click", toggleLarge);
  byId("download").addEventListener("click", download);
  for (const button of document.querySelectorAll(".previous")) button.addEventListener("click", () => turnPage(-1));
  for (const button of document.querySelectorAll(".next")) button.addEventListener("click", () => turnPage(1));
  byId("lists").addEventListener("focusin", onEnter);
  byId("lists").addEventListener("click", onEnter);
  document.addEventListener("keydown", onKey);
  // Another window on the same lists has decided something.
  window.addEventListener("storage", (event) => {
    if (event.key !== storageKey) return;
    loadLog();
    showPage();
  });
  loadLog();
  applyControls();
}

start();
