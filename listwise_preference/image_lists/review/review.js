"use strict";

// lists.js, written beside this file, has set window.REVIEW = {key, title, records}.

const PAGE_SIZE = 50;
const VERDICTS = new Map([["no_object", "no object"], ["not_hideable", "not hideable"]]);

// What is shown: `view` holds indices of records in the order shown, `place` is the current one's place in it.

let view = [];
let place = 0;

const records = window.REVIEW?.records ?? [];

// An id travels as JSON text, because a JavaScript number would round a long one.
function nameOf(record) {
  return record.id.startsWith('"') ? JSON.parse(record.id) : record.id;
}

const searchTexts = records.map((record) => searchable([nameOf(record), record.prompt, record.chosen, record.rejected,
  record.phrase, record.surface, record.reason]));

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
  const search = searched();
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
  const none = notice(records.length === 0 ? "No lists." : "No list fits these filters.");
  byId("lists").replaceChildren(...(shown.length === 0 ? [none] : shown.map(article)));
  if (shown.length > 0) markCurrent(place, true);
  showRange(first, shown.length, view.length);
  showProgress();
}

function showProgress() {
  const counts = { accepted: 0, rejected: 0, open: 0 };
  for (const index of records.keys()) counts[decisions.get(index) ?? "open"] += 1;
  const words = Object.entries(counts).map(([name, count]) => `${number(count)} ${name}`);
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
      element("span", { className: "number" }, number(index + 1)),
      element("h2", {}, nameOf(record)),
      element("span", { className: "decide" },
        decisionButton(index, "accepted", "Accept"), decisionButton(index, "rejected", "Reject"))),
    element("div", { className: "images" }, images(record), facts(record)),
    element("div", { className: "texts" },
      text("prompt", "Prompt", record.prompt, phrase),
      element("div", { className: "responses" },
        text("chosen", "Chosen response", record.chosen, phrase),
        text("rejected", "Rejected response", record.rejected, phrase))));
  // Beside the images long responses would leave most of the page empty.
  node.classList.toggle("long", record.chosen.length + record.rejected.length > 600);
  node.setAttribute("aria-label", `List ${nameOf(record)}`);
  node.dataset.index = index;
  markDecision(node, index);
  return node;
}

function text(className, name, value, phrase) {
  return element("section", { className }, element("h3", {}, name), element("p", {}, marked(value, phrase)));
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
  if (!record.strip) return noImage(record.failure);
  const { file, images: count, width, height } = record.strip;
  const levels = [...Array(count).keys()];
  const shares = levels.map((level) => Math.round(100 * level / (count - 1)));
  const strip = element("div", { className: "strip" }, levels.map((level) => {
    // One file holds all images of the list side by side; each frame is a window on its own, half a percent smaller
    // on every side, so that scaling does not blend in the edge of the next.
    const image = thumbnail(file, () => strip, { draggable: false });
    image.style.width = `${101 * count}%`;
    image.style.height = "101%";
    image.style.margin = `-0.5% 0 0 ${-101 * level - 0.5}%`;
    const frame = element("span", { className: "frame" }, image);
    frame.style.aspectRatio = `${width} / ${height}`;
    return element("span", { className: "level" }, frame,
      count > 1 ? element("span", { className: "share" }, level === 0 ? "unmasked" : `${shares[level]} %`) : null);
  }));
  strip.style.setProperty("--shape", width / height);
  strip.setAttribute("role", "img");
  strip.setAttribute("aria-label", count > 1
    ? `${count} images, ${record.phrase ?? "the object"} masked by ${shares.join(", ")} percent`
    : "The image; nothing is masked");
  return strip;
}

function facts(record) {
  const verdict = element("dd", { className: "verdict" }, VERDICTS.get(record.verdict) ?? record.verdict);
  verdict.dataset.verdict = record.verdict;
  const path = record.link === null ? record.path
    : wholeImage(record.link, record.path);
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
    rows.filter(([, value]) => value !== null).map(([name, value]) => element("div", {}, element("dt", {}, name), value)));
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

function valuesOf(key, names) {
  const counts = new Map();
  for (const record of records) counts.set(record[key], (counts.get(record[key]) ?? 0) + 1);
  const ordered = [...counts].sort((a, b) => b[1] - a[1]);
  return ordered.map(([value, count]) =>
    [JSON.stringify(value), `${names.get(value) ?? (value || "none")} (${number(count)})`]);
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

function decideHere(decision) {
  if (view.length === 0) return;
  decide(view[place], decision);
  moveTo(place + 1);
}

// The list that is clicked or tabbed into is the current one.
function onEnter(event) {
  const node = event.target.closest("article");
  if (node) setCurrent(pageOf(place) * PAGE_SIZE + [...node.parentElement.children].indexOf(node));
}

function start({ title }) {
  document.title = title;
  byId("title").textContent = title;
  fillSelect("verdict", [["", "All verdicts"], ...valuesOf("verdict", VERDICTS)]);
  fillSelect("source", [["", "All sources"], ...valuesOf("source", new Map())]);
  fillSelect("decision", [["", "All decisions"], ["open", "Open"], ["accepted", "Accepted"], ["rejected", "Rejected"]]);
  fillSelect("order", ORDERS.map(([name], place) => [place, name]));
  onControls(applyControls, () => moveTo(place));
  fillPagers(turnPage);
  byId("large").addEventListener("click", toggleLarge);
  byId("download").addEventListener("click", download);
  byId("lists").addEventListener("focusin", onEnter);
  byId("lists").addEventListener("click", onEnter);
  onKeys(KEYS, "aru");  // a key held down moves on and on, but decides once
  // Another window on the same lists has decided something.
  window.addEventListener("storage", (event) => {
    if (event.key !== storageKey) return;
    loadLog();
    showPage();
  });
  loadLog();
  applyControls();
}

begin(window.REVIEW, "lists.js", start);
