"use strict";

begin(window.PAIRS, "pairs.js", (data) => {
  document.title = data.title;
  byId("title").textContent = data.title;
  const some = data.pairs.length < data.all ? `the first ${number(data.pairs.length)} of ` : "";
  byId("counts").textContent = `${some}${plural(data.all, "pair")} from ${plural(data.records, "record")}: ` +
    data.forms.map(([form, count]) => `${form} ${number(count)}`).join("; ");
  byId("pairs").replaceChildren(...leftOut(data), ...data.pairs.map(shown));
});

function leftOut(data) {
  const lines = [
    ...data.bad.map(([reason, count, example]) => `${reason}: ${plural(count, "record")}, for example ${example}`),
    ...data.left_out.map(([what, count]) => `${what}: ${number(count)}`),
  ];
  if (lines.length === 0) return [];
  return [element("section", { className: "left-out" }, element("h2", {}, "Left out"),
    element("ul", {}, lines.map((line) => element("li", {}, line))))];
}

function shown(pair) {
  const image = pair.image.failure
    ? noImage(pair.image.failure)
    : wholeImage(pair.link, thumbnail(pair.image.file, () => image, { width: pair.image.width, height: pair.image.height }));
  const text = (name) => element("section", { className: name }, element("h3", {}, name), element("p", {}, pair[name]));
  return element("article", { className: "pair" },
    element("h2", {}, pair.id, " ", element("small", {}, pair.img_path)), image,
    element("div", { className: "texts" }, ["prompt", "chosen", "rejected"].map(text)));
}
