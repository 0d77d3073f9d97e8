"use strict";

// answers.js, written beside this file, has set window.REPORT = {result, notes, images}. All verdicts are the scorer's.

const PAGE_SIZE = 20;
const ATTRIBUTES = ["state", "number", "action"];
const KINDS = [
  ["", "All kinds"],
  ["generative", "Descriptions"],
  ["existence", "Existence"],
  ["attribute", "Attribute"],
  ["state", "– State"],
  ["number", "– Number"],
  ["action", "– Action"],
  ["relation", "Relation"],
];
const ERRORS = [
  ["", "All responses"],
  ["any", "Any error"],
  ["hallucinated", "Hallucinated words"],
  ["cognition", "Cognition words"],
  ["missing", "Missing objects"],
  ["false_yes", "Yes instead of No"],
  ["false_no", "No instead of Yes"],
  ["unreadable", "Unreadable responses"],
  ["none", "No error"],
];
const RIGHT = ["right", "✓ right"];
const WRONG = ["wrong", "✕ wrong"];
const OUTCOMES = { false_yes: WRONG, false_no: WRONG, unreadable: ["unreadable", "? unreadable"] };
const LEGEND = [
  ["true", false, "in the image"],
  ["hallucinated", false, "hallucinated"],
  ["hallucinated", true, "cognition: a likely hallucination"],
  ["safe", false, "counted, but never wrong"],
];

const images = window.REPORT?.images ?? [];

// What is searched: all of an answer that the page shows, and the image's name.
for (const image of images) {
  image.wrong = 0;
  image.hallucinated = 0;
  for (const answer of image.answers) {
    const objects = answer.kind === "generative" ? [...answer.covered, ...answer.missing, ...answer.likely] : [];
    answer.searched = searchable([image.name, `id ${answer.id}`, answer.question, answer.answer, ...objects]);
    if (answer.kind === "generative") image.hallucinated += answer.hallucinated;
    else image.wrong += answer.errors.length;
  }
}

const ORDERS = [
  ["Order of the file", null],
  ["Most hallucinated", (image) => image.hallucinated],
  ["Most wrong", (image) => image.wrong],
];

// What is shown: `view` holds [image, its answers that fit] in the order shown, `first` is where the page begins.

let view = [];
let first = 0;

const fitsKind = (answer, kind) =>
  kind === "" || answer.kind === kind || (kind === "attribute" && ATTRIBUTES.includes(answer.kind));

function fitsError(answer, error) {
  if (error === "") return true;
  if (error === "any") return answer.errors.length > 0;
  if (error === "none") return answer.errors.length === 0;
  return answer.errors.includes(error);
}

function applyControls() {
  const search = searched();
  const kind = byId("kind").value;
  const error = byId("error").value;
  const kindCounts = new Map(KINDS.map(([value]) => [value, 0]));
  const errorCounts = new Map(ERRORS.map(([value]) => [value, 0]));
  view = [];
  for (const image of images) {
    const found = image.answers.filter((answer) => search === "" || answer.searched.includes(search));
    // Each choice says how many answers it would leave with the others as they are.
    for (const answer of found) {
      if (fitsError(answer, error)) for (const [value] of KINDS) if (fitsKind(answer, value)) add(kindCounts, value);
      if (fitsKind(answer, kind)) for (const [value] of ERRORS) if (fitsError(answer, value)) add(errorCounts, value);
    }
    const shown = found.filter((answer) => fitsKind(answer, kind) && fitsError(answer, error));
    if (shown.length > 0) view.push([image, shown]);
  }
  const [, key] = ORDERS[byId("order").value];
  if (key !== null) view.sort(([a], [b]) => key(b) - key(a));
  label("kind", KINDS, kindCounts);
  label("error", ERRORS, errorCounts);
  const answers = view.reduce((sum, [, shown]) => sum + shown.length, 0);
  byId("found").textContent = view.length === 0 ? "" :
    `${plural(answers, "response")} on ${plural(view.length, "image")}`;
  showPage(0);
}

function add(counts, value) {
  counts.set(value, counts.get(value) + 1);
}

function label(id, choices, counts) {
  choices.forEach(([value, text], place) => {
    byId(id).options[place].textContent = `${text} (${number(counts.get(value))})`;
  });
}

function showPage(start) {
  first = start;
  const shown = view.slice(first, first + PAGE_SIZE);
  const none = notice("No response fits these filters.");
  const articles = shown.map(([image, answers]) => article(image, answers));
  byId("images").replaceChildren(...(shown.length === 0 ? [none] : articles));
  showRange(first, shown.length, view.length);
  toStart();
}

// Back to the first answer, but only for who has scrolled past it: the scores stay in view while filters change.
function toStart() {
  const list = document.querySelector(".found");
  if (list.getBoundingClientRect().top < 0) list.scrollIntoView();
}

function turnPage(step) {
  const start = first + step * PAGE_SIZE;
  if (start < 0 || start >= view.length) return;
  showPage(start);
}

// One image

function article(image, shown) {
  const descriptions = shown.filter((answer) => answer.kind === "generative");
  const questions = shown.filter((answer) => answer.kind !== "generative");
  const hidden = image.answers.length - shown.length;
  const all = element("button", { type: "button", className: "all" }, `Show all ${image.answers.length} responses`);
  const node = element("article", { className: "image", tabIndex: -1 },
    image.image === undefined ? null : smallImage(image),
    element("div", { className: "body" },
      element("header", {},
        element("h2", {}, image.name), element("p", {}, summary(image)), hidden > 0 ? all : null),
      ...descriptions.map(description),
      questions.length > 0 ? questionTable(questions) : null));
  all.addEventListener("click", () => {
    const whole = article(image, image.answers);
    node.replaceWith(whole);
    whole.focus({ preventScroll: true });
  });
  node.setAttribute("aria-label", image.name);
  return node;
}

function summary(image) {
  const questions = image.answers.filter((answer) => answer.kind !== "generative").length;
  const parts = [];
  if (questions < image.answers.length) parts.push(plural(image.hallucinated, "hallucinated word"));
  if (questions > 0) parts.push(`${image.wrong} of ${plural(questions, "yes/no response")} wrong`);
  return parts.join(" · ");
}

function smallImage(image) {
  const { failure, file, link, width, height } = image.image;
  if (failure) return element("div", { className: "side" }, noImage(failure));
  const whole = wholeImage(link, thumbnail(file, () => whole, { width, height }));
  whole.setAttribute("aria-label", `Open ${image.name}`);
  return element("div", { className: "side" }, whole);
}

function description(answer) {
  const words = answer.parts.filter((part) => typeof part !== "string");
  const hallucinated = words.filter((word) => word.verdict === "hallucinated");
  const text = answer.parts.map((part) => typeof part === "string" ? part : marked(part));
  return element("section", { className: "description" },
    element("p", { className: "text" }, (text.length > 0 ? text : [element("i", {}, "empty response")])),
    answer.read === answer.answer ? null :
      element("p", { className: "note" }, `The response, read as above: ${answer.answer}`),
    element("dl", {},
      row("hallucinated", "Hallucinated", `${answer.hallucinated} of ${plural(answer.nouns, "noun")}`,
        counted(hallucinated.map((word) => word.noun))),
      row("cognition", "Cognition", `${answer.fallen_for.length} of ${answer.likely.length} likely`,
        answer.fallen_for),
      row("true", "Covered", `${answer.covered.length} of ${plural(answer.objects, "object")}`,
        answer.covered.map((name) => namedBy(name, words))),
      row("missing", "Missing", `${answer.missing.length} of ${plural(answer.objects, "object")}`, answer.missing)));
}

function marked(word) {
  const node = element("mark", { className: word.verdict, title: reason(word) }, word.word);
  node.classList.toggle("cognition", word.likely.length > 0);
  return node;
}

function reason(word) {
  const found = word.noun === word.truth ? "is in the image" : `counts as “${word.truth}”, which is in the image`;
  const verdicts = {
    true: found,
    hallucinated: "is not in the image",
    safe: "counts as a noun and is never a hallucination",
  };
  const likely = word.likely.map((object) => `“${object}”`).join(" and ");
  return `“${word.noun}” ${verdicts[word.verdict]}${likely ? `; falls for the likely hallucination ${likely}` : ""}`;
}

// Covered objects say which other noun stands for them.
function namedBy(name, words) {
  const nouns = words.filter((word) => word.truth === name).map((word) => word.noun);
  return nouns.includes(name) || nouns.length === 0 ? name : `${name} (${[...new Set(nouns)].join(", ")})`;
}

function counted(nouns) {
  const counts = new Map();
  for (const noun of nouns) counts.set(noun, (counts.get(noun) ?? 0) + 1);
  return [...counts].map(([noun, times]) => times > 1 ? `${noun} × ${times}` : noun);
}

function row(className, name, count, values) {
  return element("div", { className },
    element("dt", {}, name), element("dd", { className: "count" }, count),
    element("dd", {}, values.map((value) => element("span", {}, value))));
}

function questionTable(answers) {
  return element("table", { className: "questions" },
    tableHead(["Id", "Kind", "Question", "Expected", "Response", ""]),
    element("tbody", {}, answers.map(questionRow)));
}

function questionRow(answer) {
  const [outcome, words] = OUTCOMES[answer.errors[0]] ?? RIGHT;
  const read = answer.read === answer.answer ? null : element("small", {}, ` read as ${answer.read}`);
  return element("tr", { className: outcome },
    element("td", { className: "id" }, String(answer.id)),
    element("td", { className: "kind" }, answer.kind),
    element("td", { className: "question" }, answer.question ?? "question not known"),
    element("td", { className: "expected" }, answer.expected),
    element("td", { className: "answer" }, answer.answer === "" ? element("i", {}, "empty") : answer.answer, read),
    element("td", { className: "outcome" }, words));
}

// Scores

function scores() {
  const { result, notes } = window.REPORT;
  return [
    result.partial ? warning(result) : null,
    result.generative ? descriptionScores(result) : null,
    result.discriminative ? questionScores(result) : null,
    protocol(result),
    notes.length > 0 ? element("ul", { className: "notes" }, notes.map((note) => element("li", {}, note))) : null,
  ].filter((node) => node !== null);
}

function warning(result) {
  return element("div", { className: "warning" },
    element("p", {}, "Partial: not all of the benchmark was scored; do not compare these numbers with whole ones."),
    element("ul", {}, result.problems.map((problem) => element("li", {}, problem))));
}

function cell(result, group, name) {
  const value = result[group]?.[name];
  const edges = result.bootstrap?.intervals[`${group}.${name}`];
  return element("td", {}, typeof value === "number" ? value.toFixed(1) : "–",
    edges ? element("small", { title: "95 % interval" }, `${edges[0].toFixed(1)}–${edges[1].toFixed(1)}`) : null);
}

function table(caption, head, rows) {
  return element("table", {},
    element("caption", {}, caption),
    tableHead(head),
    element("tbody", {}, rows));
}

function descriptionScores(result) {
  const names = [["chair", "CHAIR", "lower is better"], ["cover", "Cover", "higher is better"],
    ["hal", "Hal", "lower is better"], ["cog", "Cog", "lower is better"]];
  const rows = names.map(([key, name, better]) => element("tr", {},
    element("th", { scope: "row" }, `${name} `, element("small", {}, better)), cell(result, "generative", key)));
  return element("div", { className: "card descriptions" },
    table(plural(result.counts.descriptions, "description"), ["", "%"], rows));
}

function legend() {
  return LEGEND.map(([verdict, cognition, text]) => {
    const mark = element("mark", { className: verdict }, "noun");
    mark.classList.toggle("cognition", cognition);
    return element("span", {}, mark, ` ${text}`);
  });
}

function questionScores(result) {
  const names = ["accuracy", "precision", "recall", "f1"];
  const kinds = ["discriminative", "existence", "attribute", ...ATTRIBUTES, "relation"].filter((kind) => result[kind]);
  const rows = kinds.map((kind) => {
    const name = kind === "discriminative" ? "all" : kind;
    const cells = names.map((one) => cell(result, kind, one));
    const node = element("tr", {}, element("th", { scope: "row" }, name), cells);
    node.classList.toggle("part", ATTRIBUTES.includes(kind));
    return node;
  });
  return element("div", { className: "card yes-no" },
    table(plural(result.counts.yes_no, "yes/no response"), ["", "Accuracy", "Precision", "Recall", "F1"], rows));
}

function protocol(result) {
  const { rules, yes_no, similarity, lemmas } = result.protocol;
  const versions = Object.entries(result.versions).map(([name, version]) => `${name} ${version}`);
  const rows = [
    ["Responses", result.answers.file],
    ["SHA-256", `${result.answers.sha256.slice(0, 16)}…`],
    ["Rules", rules],
    ["Yes and no", `read by the rule “${yes_no}”; ${number(result.counts.unreadable)} unreadable`],
    ["Similar words",
      `${similarity.source} (${similarity.from}), ${similarity.pairs} pairs above ${similarity.threshold}`],
    ["Lemmas", lemmas],
    ["Versions", versions.join(", ")],
  ];
  return element("div", { className: "card" },
    element("dl", { className: "protocol" }, rows.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
}

// Moving

function move(step) {
  const nodes = [...byId("images").querySelectorAll("article")];
  const at = nodes.indexOf(document.activeElement.closest("article"));
  const target = nodes[at < 0 ? 0 : at + step];
  if (!target) return;
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "start" });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  ArrowRight: () => turnPage(1),
  ArrowLeft: () => turnPage(-1),
  "/": () => byId("search").focus(),
};

function start({ result }) {
  document.title = `AMBER: ${result.answers.file}`;
  byId("title").textContent = document.title;
  byId("scores").replaceChildren(...scores());
  if (result.generative) byId("legend").replaceChildren(...legend());
  fillSelect("kind", KINDS);
  fillSelect("error", ERRORS);
  fillSelect("order", ORDERS.map(([text], place) => [place, text]));
  onControls(applyControls);
  fillPagers(turnPage);
  onKeys(KEYS);
  applyControls();
}

begin(window.REPORT, "answers.js", start);
