"use strict";

// demo_data.js, written beside this file, has set window.DEMO.

const PAGE_SIZE = 20;
const MEANS = {
  CHAIR: "of the objects named, how many are not there",
  Cover: "of the objects there, how many are named",
  F: "harmonic mean of 100 − CHAIR and Cover",
  Hal: "descriptions that name anything absent",
  Cog: "of the usual but absent objects, how many are named",
  "yes/no accuracy": "of answers to “Is there a …?”",
  "yes/no F1": "of the answer No, as AMBER counts",
};
const WHICH = [
  ["All", () => true],
  ["Base hallucinates", (scene) => scene.base.hallucinated > 0],
  ["Trained hallucinates", (scene) => scene.trained.hallucinated > 0],
  ["Corrected by training", (scene) => scene.base.hallucinated > 0 && scene.trained.hallucinated === 0],
  ["Hallucinated only after training", (scene) => scene.base.hallucinated === 0 && scene.trained.hallucinated > 0],
  ["Trained leaves out more", (scene) => scene.trained.missing.length > scene.base.missing.length],
];

function listed(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

function image(source, text, side = 128) {
  return element("img", { src: source, alt: text, width: side, height: side, className: "scene" });
}

function marked(parts) {
  return parts.map((part) => (typeof part === "string" ? part : element("mark", { className: part[1] }, part[0])));
}

// Sections

function lead(demo) {
  byId("made").textContent = `${demo.model}: ${demo.architecture} with ${number(demo.parameters)} parameters. ` +
    `${plural(demo.counts.training, "scene")} to train on, ${number(demo.counts.unseen)} unseen ones to score on.`;
  byId("outcome").textContent = demo.outcome;
  byId("size").textContent = `${plural(demo.counts.unseen, "unseen scene")} with ` +
    `${plural(demo.counts.questions, "yes/no question")}`;
}

function table(demo) {
  const cell = (one, between = "–") => element("td", {}, one.value,
    element("small", { title: "95 % interval over images" }, `${one.interval[0]} ${between} ${one.interval[1]}`));
  const rows = demo.table.map((row) => element("tr", {},
    element("th", { scope: "row" }, row.metric, element("span", { className: "better" },
      row.better === "lower" ? " ↓" : " ↑"), element("small", {}, MEANS[row.metric] ?? "")),
    cell(row.base), cell(row.trained), cell(row.change, "to")));
  byId("table").append(element("table", {},
    element("caption", {}, "Unseen scenes, % with 95 % intervals"),
    tableHead(["", "base", "trained", "change"]),
    element("tbody", {}, rows)),
    element("p", { className: "hint" }, "Read CHAIR beside Cover, and F1 beside accuracy: a model that says less hallucinates less, " +
      "and one that always says No misses no No."));
}

function scenes(demo) {
  byId("scenes-text").textContent = `The first ${demo.scenes.length} of ${number(demo.counts.training)}.`;
  byId("scenes-shown").append(...demo.scenes.map((scene) => element("figure", {},
    image(scene.image, `${scene.place} with ${listed(scene.objects)}`),
    element("figcaption", {}, `${scene.place}: ${scene.objects.join(", ")}`))));
}

function pairs(demo) {
  byId("responses").textContent = number(demo.counts.responses);
  byId("pairs-text").textContent = `${plural(demo.counts.pairs, "pair")}; the first ${demo.pairs.length}:`;
  byId("pairs-shown").append(...demo.pairs.map((pair) => element("article", { className: "pair" },
    image(pair.image, "", 96),
    element("dl", {},
      element("dt", {}, "chosen"), element("dd", {}, marked(pair.chosen)),
      element("dt", {}, "rejected"), element("dd", {}, marked(pair.rejected)),
      element("dt", {}, "reason"), element("dd", {}, pair.reason)))));
}

function lists(demo) {
  const verdicts = Object.entries(demo.verdicts).map(([verdict, count]) => `${number(count)} ${verdict.replace("_", " ")}`);
  byId("lists-text").textContent = `${verdicts.join(", ")}. The first ${demo.lists.length}:`;
  byId("lists-shown").append(...demo.lists.map((list) => element("article", { className: "list" },
    element("div", { className: "levels" }, list.images.map((source, level) => element("figure", {},
      image(source, `${list.phrase}, ${demo.shares[level]} % masked`, 112),
      element("figcaption", {}, `${demo.shares[level]} %`)))),
    element("p", {}, list.chosen, element("small", {}, `masked: ${list.phrase}` + (typeof list.p_yes === "number"
      ? `; P(“yes, still right”) with it masked ${list.p_yes.toFixed(2)}` : ""))))));
}

function training(demo) {
  const { steps, batch, learning_rate: rate, loss, list_weight: weight, fill } = demo.training;
  byId("training-text").textContent = `LPOI's three terms, DPO, anchor and list, with weights 1, 1 and ${weight}, the mask's ` +
    `fill ${fill}, on ${plural(demo.counts.lists, "list")}, ` +
    `${steps} steps of ${batch}, learning rate ${rate}: the loss falls from ${loss[0].toFixed(2)}, which is ` +
    `ln 2 + ln 2 + ${weight} ln ${demo.shares.length}! while the policy equals its reference, to ${loss[1].toFixed(2)}. ` +
    "The paper's weights are 1, 1, 1 and its masks black; these were chosen on other scenes, for fewer hallucinations at " +
    "about the same Cover (docs/log.md).";
}

function ranking(demo) {
  byId("ranking-text").textContent = "How likely the right description is as more and more of its object is masked, on " +
    `${plural(demo.counts.ranked, "unseen scene")} that the base model described wrongly; means with 95 % intervals. ` +
    "A model that looks at the object falls to the right, and so does one that has only learned to dislike masks: " +
    "score.py awareness tells them apart. The left panel also shows what training costs on the unmasked image.";
}

function figures(demo) {
  for (const place of document.querySelectorAll("[data-figure]")) {
    const { name, width, height, text } = demo.figures[place.dataset.figure];
    place.append(element("picture", {},
      element("source", { srcset: `${name}-dark.png`, media: "(prefers-color-scheme: dark)" }),
      element("img", { src: `${name}.png`, alt: text, width, height })));
  }
}

// An option and its value stay on one line.
function command(text) {
  const parts = text.split(/ (?=--)/);
  return element("code", {}, parts.flatMap((part, place) => [place ? " " : null, element("span", {}, part)]));
}

function commands(demo) {
  for (const place of document.querySelectorAll("[data-step]")) {
    const step = demo.steps[place.dataset.step];
    place.append(element("pre", {}, step.commands.map(command)), element("small", {}, `${step.seconds.toFixed(1)} s`));
  }
}

// Answers

let shown = PAGE_SIZE;

function described(name, one) {
  return element("div", { className: name },
    element("h3", {}, name),
    element("p", {}, marked(one.parts)),
    one.missing.length ? element("small", {}, `leaves out ${listed(one.missing)}`) : null);
}

function answered(questions) {
  const cell = (response, truth) => {
    const right = response.toLowerCase() === truth;
    return element("td", { className: right ? "right" : "wrong" }, `${response} ${right ? "✓" : "✕"}`);
  };
  return element("table", { className: "questions" },
    tableHead(["is there …", "base", "trained"]),
    element("tbody", {}, questions.map((one) => element("tr", {},
      element("th", { scope: "row" }, `${one.kind}?`, element("small", {}, ` ${one.truth}`)),
      cell(one.base, one.truth), cell(one.trained, one.truth)))));
}

function answers() {
  const [, test] = WHICH[byId("which").value];
  const found = window.DEMO.answers.filter(test);
  byId("found").textContent = `${plural(found.length, "scene")} of ${number(window.DEMO.answers.length)}`;
  byId("answers-shown").replaceChildren(...found.slice(0, shown).map((scene) => element("article", { className: "answer" },
    image(scene.image, listed(scene.objects), 128),
    described("base", scene.base), described("trained", scene.trained), answered(scene.questions))));
  byId("more").hidden = found.length <= shown;
}

function start(demo) {
  for (const part of [lead, table, scenes, pairs, lists, training, ranking, figures, commands]) part(demo);
  byId("on-8b").textContent = demo.on_8b;
  fillSelect("which", WHICH.map(([text], place) => [place, text]));
  byId("which").addEventListener("change", () => {
    shown = PAGE_SIZE;
    answers();
  });
  byId("more").addEventListener("click", () => {
    shown += PAGE_SIZE;
    answers();
  });
  answers();
  byId("page").hidden = false;
  if (location.hash) document.querySelector(location.hash)?.scrollIntoView();  // the sections were empty until now
}

begin(window.DEMO, "demo_data.js", start);
