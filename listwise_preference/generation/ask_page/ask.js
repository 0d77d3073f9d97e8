"use strict";

// Strengths 0 to 5 are steps of a token's fall, as a share of the largest one, which counts as at least one nat.
const STEPS = 5;
let asked = 0; // answers to earlier boxes than the last are dropped

begin(window.ASK, "ask_data.js", (data) => {
  byId("title").textContent = data.question;
  byId("image").src = "image";
  if (data.width < 480) byId("image").style.width = "480px"; // small images need room to drag in
  byId("policies").replaceChildren(...data.policies.map((policy) => element("article", { id: `policy-${policy.name}` },
    element("h2", {}, policy.name, element("small", { className: "sum" })),
    element("p", {}, policy.tokens.map((text, at) => element("span", {
      className: "token", textContent: text, title: `log-probability ${policy.logps[at].toFixed(2)} nats` }))))));
  const form = byId("box");
  for (const [name, most] of [["left", data.width], ["right", data.width], ["top", data.height], ["bottom", data.height]])
    form.elements[name].max = most;
  form.addEventListener("submit", (event) => { event.preventDefault(); mask(data); });
  form.addEventListener("reset", () => { asked += 1; byId("region").hidden = true; clear(); });
  dragBoxes(data, () => mask(data));
});

function edges() {
  return ["left", "top", "right", "bottom"].map((name) => byId("box").elements[name].valueAsNumber);
}

// The region over the image, in shares of its sides, so that it stays in place when the window changes.
function drawRegion(data) {
  const [left, top, right, bottom] = edges();
  const share = (value, whole) => `${100 * value / whole}%`;
  Object.assign(byId("region").style, { left: share(left, data.width), top: share(top, data.height),
    width: share(right - left, data.width), height: share(bottom - top, data.height) });
  byId("region").hidden = false;
}

function dragBoxes(data, done) {
  const stage = byId("stage");
  let start = null;
  const place = (event) => {
    const frame = byId("image").getBoundingClientRect();
    const cut = (value, whole) => Math.min(whole, Math.max(0, Math.round(value * whole)));
    return [cut((event.clientX - frame.left) / frame.width, data.width),
      cut((event.clientY - frame.top) / frame.height, data.height)];
  };
  const stretch = (event) => {
    const end = place(event);
    const fields = byId("box").elements;
    [fields.left.value, fields.right.value] = [start[0], end[0]].sort((a, b) => a - b);
    [fields.top.value, fields.bottom.value] = [start[1], end[1]].sort((a, b) => a - b);
    drawRegion(data);
  };
  stage.addEventListener("pointerdown", (event) => {
    start = place(event);
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => { if (start) stretch(event); });
  stage.addEventListener("pointerup", (event) => {
    if (!start) return;
    stretch(event);
    start = null;
    const [left, top, right, bottom] = edges();
    if (right > left && bottom > top) done();
  });
  stage.addEventListener("pointercancel", () => { start = null; });
}

async function mask(data) {
  drawRegion(data);
  const mine = ++asked;
  document.body.classList.add("computing");
  say("");
  try {
    const answer = await fetch("falls", { method: "POST", body: JSON.stringify({ box: edges() }) });
    const falls = await answer.json();
    if (mine !== asked) return;
    if (!answer.ok) throw new Error(falls.error);
    colour(data, falls);
  } catch (error) {
    if (mine !== asked) return;
    clear();
    say(error.message);
  } finally {
    if (mine === asked) document.body.classList.remove("computing");
  }
}

function colour(data, falls) {
  const most = Math.max(1, ...data.policies.flatMap((policy) => falls[policy.name]));
  byId("most").textContent = most.toFixed(1);
  for (const policy of data.policies) {
    const article = byId(`policy-${policy.name}`);
    falls[policy.name].forEach((fall, at) => {
      const token = article.querySelectorAll(".token")[at];
      token.dataset.strength = Math.max(0, Math.round(STEPS * fall / most));
      token.dataset.fall = fall;
      token.title = `falls by ${fall.toFixed(2)} nats, from ${policy.logps[at].toFixed(2)}`;
    });
    const sum = falls[policy.name].reduce((a, b) => a + b, 0);
    article.querySelector(".sum").textContent = `the response falls by ${sum.toFixed(2)} nats`;
  }
}

function clear() {
  document.body.classList.remove("computing");
  byId("most").textContent = "";
  for (const token of document.querySelectorAll(".token")) {
    delete token.dataset.strength;
    delete token.dataset.fall;
  }
  for (const sum of document.querySelectorAll(".sum")) sum.textContent = "";
}

function say(text) {
  byId("status").textContent = text;
  byId("status").classList.toggle("unseen", text === "");
}
