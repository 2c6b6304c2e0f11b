"use strict";
// Everything of a model's is put in by textContent or as an attribute's value: never as markup.
const found = JSON.parse(document.getElementById("found").textContent);
const WORDS = [["all", "any verdict"], ["passed", "passed"], ["failed", "not passed"]];
let shown = null;

function make(tag, fields, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(fields || {})) {
    if (name === "text") node.textContent = value;
    else if (name === "run") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function state(result) {
  if (!result) return "none";
  const count = result.samples.filter((sample) => sample.verdict === "passed").length;
  return count === 0 ? "failed" : count === result.samples.length ? "passed" : "some";
}

function choice(name, options) {
  const select = make("select", { name }, ...options.map(([value, text]) => make("option", { value, text })));
  select.addEventListener("change", list);
  return select;
}

function box(name, text) {
  const input = make("input", { type: "checkbox", name });
  input.addEventListener("change", list);
  return make("label", {}, input, text);
}

const verdicts = [...new Set(found.problems.flatMap((problem) => problem.results.flatMap(
  (result) => result ? result.samples.map((sample) => sample.verdict) : [])))].sort();
const tags = [...new Set(found.problems.flatMap((problem) => problem.tags))].sort();
const search = make("input", { type: "search", name: "search", placeholder: "id or words of the prompt" });
search.addEventListener("input", list);
const filters = make("form", {}, search,
  choice("verdict", [...WORDS, ...verdicts.filter((verdict) => verdict !== "passed").map((verdict) => [verdict, verdict])]),
  choice("model", [["-1", "of any model"], ...found.models.map((name, index) => [String(index), `of ${name}`])]));
if (tags.length) filters.append(choice("tag", [["", "any tag"], ...tags.map((tag) => [tag, tag])]));
if (found.models.length > 1) filters.append(box("differing", "models differ"));
filters.append(box("untrusted", "marked untrusted"));
filters.addEventListener("submit", (event) => event.preventDefault());
const count = make("small", {});
filters.append(count);
const names = make("nav", { "aria-label": "problems" });
const detail = make("article", {});
document.getElementById("browser").append(make("h2", { text: "Problems" }), filters,
  make("div", { class: "columns" }, names, detail));

function fits(problem) {
  const chosen = new FormData(filters);
  const words = chosen.get("search").toLowerCase();
  if (words && !`${problem.problem_id}\n${problem.prompt}`.toLowerCase().includes(words)) return false;
  if (chosen.get("tag") && !problem.tags.includes(chosen.get("tag"))) return false;
  if (chosen.get("differing") && new Set(problem.results.map(state)).size < 2) return false;
  const model = Number(chosen.get("model"));
  const results = (model < 0 ? problem.results : [problem.results[model]]).filter((result) => result);
  const verdict = chosen.get("verdict");
  const samples = results.flatMap((result) => result.samples);
  if (chosen.get("untrusted") && !samples.some((sample) => sample.untrusted)) return false;
  if (verdict === "all") return true;
  return samples.some((sample) => verdict === "failed" ? sample.verdict !== "passed" : sample.verdict === verdict);
}

function list() {
  const fitting = found.problems.filter(fits);
  const every = found.problems.length;
  count.textContent = `${fitting.length} of ${every} problem${every === 1 ? "" : "s"}`;
  names.replaceChildren(...fitting.map((problem) => {
    const squares = problem.results.map((result, index) => make("span",
      { class: `square ${state(result)}`, title: `${found.models[index]}: ${state(result)}` }));
    return make("button", { type: "button", "aria-current": String(problem === shown), run: () => show(problem) },
      make("span", { text: problem.problem_id }), make("span", { class: "squares" }, ...squares));
  }));
  if (!fitting.includes(shown)) show(fitting[0] || null);
}

function show(problem) {
  shown = problem;
  for (const button of names.children) {
    button.setAttribute("aria-current", String(problem !== null && button.firstChild.textContent === problem.problem_id));
  }
  detail.replaceChildren();
  if (!problem) return;
  detail.append(make("h2", { text: problem.problem_id }));
  if (problem.tags.length) detail.append(make("small", { text: problem.tags.join(", ") }));
  if (problem.prompt) detail.append(make("pre", { text: problem.prompt }));
  detail.append(make("div", { class: "models" }, ...problem.results.map((result, index) => column(index, result))));
}

function column(index, result) {
  const section = make("section", {}, make("h3", { text: found.models[index] }));
  if (!result) {
    section.append(make("p", { text: "not scored" }));
    return section;
  }
  const body = make("div", {});
  const buttons = result.samples.map((sample) => make("button", {
    type: "button", text: sample.sample_index, title: sample.verdict, "aria-pressed": "false",
    class: sample.verdict === "passed" ? "passed" : "failed", run: () => choose(sample),
  }));
  function choose(sample) {
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(result.samples[number] === sample)));
    body.replaceChildren(...sampleNodes(sample, result));
  }
  if (buttons.length > 1) section.append(make("div", { class: "samples" }, ...buttons));
  section.append(body);
  choose(result.samples.find((sample) => sample.verdict !== "passed") || result.samples[0]);
  return section;
}

function sampleNodes(sample, result) {
  const verdict = make("span", { class: `verdict ${sample.verdict === "passed" ? "good" : "bad"}`, text: sample.verdict });
  const nodes = [make("div", {}, verdict, sample.detail ? ` ${sample.detail}` : "")];
  const told = { untrusted: sample.untrusted, ...sample.told };
  if (result.mode === "inside") told["judged inside"] = result.reason;
  const rows = Object.entries(told).filter(([, text]) => text).flatMap(([name, text]) => [
    make("dt", { text: name }), make("dd", {}, make("pre", { text }))]);
  if (rows.length) nodes.push(make("dl", {}, ...rows));
  if (sample.program) {
    const code = make("code", {});
    for (let place = 0; place < sample.program.length; place += 2) {
      const [kind, text] = sample.program.slice(place, place + 2);
      code.append(kind ? make("span", { class: kind, text }) : text);
    }
    nodes.push(make("pre", {}, code));
  }
  return nodes;
}

list();
