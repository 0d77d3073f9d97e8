"use strict";

begin(window.RECORD, "record_data.js", (data) => {
  document.title = `First record: ${data.id}`;
  byId("title").textContent = `First record: ${data.id}`;
  byId("counts").textContent = `of ${plural(data.records, "record")}, as ${data.model} will see it`;
  byId("record").replaceChildren(texts(data), how(data), ...data.rows.map((row, place) => shown(row, place, data)), tensors(data));
});

function texts(data) {
  const one = (name) => element("div", {}, element("h3", {}, name), element("p", {}, data.texts[name]));
  return element("section", {},
    element("h2", {}, element("a", { href: data.link, target: "_blank", rel: "noreferrer" }, data.path)),
    element("div", { className: "texts" }, ["prompt", "chosen", "rejected"].map(one)));
}

function how(data) {
  const layout = data.ragged
    ? "ragged: behind one another in one sequence, without padding"
    : "unpacked: one below the other, padded to the longest";
  const weights = data.weights.map(([name, weight]) => `${name} ${weight}`).join(", ");
  const both = data.both_ways
    ? " The model's own code reads token types too, and may let tokens of a prompt or an image see each other both ways."
    : "";
  return element("section", {}, element("p", {}, `${plural(data.rows.length, "row")}, ${layout}; ` +
    `${plural(data.tokens, "token")}, of which ${number(data.scored)} are scored: those of the completions, each from the token before it. ` +
    `Loss terms and their weights: ${weights}.${both}`));
}

function shown(row, place, data) {
  const drawn = data.images[row.image];
  const completions = row.segments.filter(({ kind }) => kind === "chosen" || kind === "rejected");
  const masked = drawn.masked === null ? "" : `, ${drawn.masked} % of the box masked`;
  const figures = [figure([drawn.file], `image ${row.image + 1}, ${drawn.width} x ${drawn.height} pixels${masked}`, "")];
  if (row.made) {
    const more = row.made.more ? `, and ${number(row.made.more)} more` : "";
    figures.push(figure(row.made.files, `what the model gets, ${row.made.width} x ${row.made.height} pixels${more}`, "made"));
  }
  return element("section", {},
    element("h2", {}, `Row ${place + 1}: image ${row.image + 1}, ${completions.map(({ kind }) => kind).join(" and ")}`),
    element("div", { className: "images" }, figures),
    row.segments.map(segment), sees(row));
}

function figure(files, caption, className) {
  return element("figure", { className },
    element("div", { className: "images" }, files.map((file) => element("img", { src: file, alt: caption }))),
    element("figcaption", {}, caption));
}

function segment({ kind, count, positions, tokens }) {
  const where = positions ? `, positions ${positions}` : "";
  return element("div", { className: `segment ${kind}` },
    element("h3", {}, `${kind}: ${plural(count, "token")}${where}`),
    element("p", { className: "tokens" }, tokens.map(([text, times, special]) =>
      element("span", { className: special ? "special" : "" }, visible(text),
        times > 1 ? element("small", {}, `×${number(times)}`) : null))));
}

// Blanks are a part of tokens, and would not be seen.
function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

function sees(row) {
  const names = row.segments.map(({ kind }) => kind);
  const words = { all: "all of it", causal: "up to itself", none: "nothing" };
  return element("table", { className: "sees" }, tableHead(["a token of", ...names.map((name) => `sees of ${name}`)]),
    element("tbody", {}, row.sees.map((line, place) => element("tr", {},
      element("th", { scope: "row" }, names[place]),
      line.map((relation) => element("td", { className: relation }, words[relation]))))));
}

function tensors(data) {
  return element("section", {}, element("h2", {}, "Tensors of the batch"),
    element("table", { className: "tensors" }, tableHead(["name", "shape", "dtype"]),
      element("tbody", {}, data.tensors.map((line) => element("tr", {}, line.map((cell) => element("td", {}, cell)))))));
}
