"use strict";

// What the pages share. Texts reach a page as text nodes and attributes only, never as HTML.

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const plural = (count, name) => `${number(count)} ${name}${count === 1 ? "" : "s"}`;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

function tableHead(names) {
  return element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col" }, name))));
}

const notice = (text) => element("p", { className: "notice" }, text);

// Show what `data`, set by the file beside the page, holds; where that is missing, say so.
function begin(data, file, show) {
  if (data) show(data);
  else document.querySelector("main").replaceChildren(
    notice(`${file} is missing beside this page: it was not finished. Run the command that makes it again.`));
}

// Images: small ones that are loaded when they come into sight, and links to whole ones

const noImage = (reason) => element("p", { className: "failure" }, `No image: ${reason}`);

// `replaced` gives the node that a reason takes the place of when the file cannot be shown.
function thumbnail(file, replaced, properties = {}) {
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", ...properties, src: file });
  image.addEventListener("error", () => replaced().replaceWith(noImage(`${file} cannot be shown`)));
  return image;
}

function wholeImage(link, ...children) {
  return element("a", { href: link, target: "_blank", rel: "noreferrer", title: "Open the image" }, ...children);
}

// Search, filters, pages of a long list, keys

function fillSelect(id, choices) {
  byId(id).replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
}

const searchable = (texts) => texts.filter((text) => text != null).join("\n").toLowerCase();
const searched = () => byId("search").value.trim().toLowerCase();

// `apply` is called for every change, `leave` when Enter is pressed in the search field.
function onControls(apply, leave = () => {}) {
  byId("controls").addEventListener("input", apply);
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("search").blur();
    leave();
  });
}

// The pagers at both ends of a list; `turn` is called with -1 or 1.
function fillPagers(turn) {
  const button = (className, name, text, step) => {
    const node = element("button", { type: "button", className }, text);
    node.setAttribute("aria-label", name);
    node.addEventListener("click", () => turn(step));
    return node;
  };
  for (const pager of document.querySelectorAll(".pager")) {
    pager.append(element("span", { className: "range" }),
      button("previous", "Previous page", "‹", -1), button("next", "Next page", "›", 1));
  }
}

function showRange(first, shown, total) {
  const last = first + shown;
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".range").textContent =
      shown === 0 ? "0" : `${number(first + 1)}–${number(last)} of ${number(total)}`;
    pager.querySelector(".previous").disabled = first === 0;
    pager.querySelector(".next").disabled = last >= total;
  }
}

// `keys` names what each key does; those in `once` do it once while they are held down.
function onKeys(keys, once = "") {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = keys[key];
    if (!action) return;
    event.preventDefault();
    if (!(event.repeat && once.includes(key))) action();
  });
}
