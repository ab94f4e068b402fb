// The page of plot_results.py: DataTables (https://datatables.net) shows the tables; this file
// unpacks what is embedded, draws the pairs, and filters them. All texts are set as text.

function unpack(id) { // gzip in base64
  const letters = atob(document.getElementById(id).textContent);
  const packed = new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function escaped(text) {
  const holder = document.createElement("div");
  holder.textContent = text;
  return holder.innerHTML;
}

function element(name, text, kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
}

const blank = (value) => value === null || value === undefined;
const shortened = (text) => (text.length > 140 ? `${text.slice(0, 139)}…` : text);
const rounded = (value, { digits, significant }) => {
  if (typeof value !== "number") return "–";
  return significant ? String(Number(value.toPrecision(digits))) : value.toFixed(digits);
};

// what DataTables shows of a cell, sorts and searches by: it takes texts for HTML, hence escaped
function renderer(column) {
  const { key, digits } = column;
  return (value, purpose, pair) => {
    if (!blank(digits)) return purpose === "display" ? rounded(value, column) : (value ?? "");
    if (key !== "prompt") return escaped(blank(value) ? "–" : [value].flat().join(", "));
    if (purpose !== "display") return escaped(purpose === "filter" ? pair.everything : value);
    return `<button type="button" class="open" aria-expanded="false">${escaped(value)}</button>`;
  };
}

function passes(control, pair) {
  const { key, test } = control.dataset;
  const value = pair[key];
  if (control.value === "") return true;
  if (blank(value)) return false;
  if (test === "from") return value >= Number(control.value);
  if (test === "to") return value <= Number(control.value);
  return Array.isArray(value) ? value.includes(control.value) : value === control.value;
}

function turn(role, text) {
  const made = element("div", "", `turn ${role}`);
  made.append(element("b", role), element("p", text));
  return made;
}

function dialogue(pair, names) {
  const shown = document.getElementById("pair").content.cloneNode(true);
  shown.querySelector(".prompt").append(...pair.example.turns.map(([role, text]) => turn(role, text)));
  for (const side of ["chosen", "rejected"]) {
    const article = shown.querySelector(`.${side}`);
    const completion = pair[side];
    article.querySelector(".text").textContent = pair.example.texts[completion.place];
    for (const column of names) {
      if (blank(completion[column.key])) continue;
      const term = element("dt", column.title);
      term.title = column.definition;
      article.querySelector("dl").append(term, element("dd", rounded(completion[column.key], column)));
    }
  }
  return shown.firstElementChild;
}

// a completion's numbers that follow from its log-likelihood and its number of tokens
function complete(completion) {
  if (blank(completion.logp)) return;
  completion.per_token = completion.logp / completion.tokens;
  completion.percent = 100 * Math.exp(completion.per_token);
}

function showPairs(DataTable, data) {
  for (const pair of data.pairs) {
    pair.example = data.examples[pair.example];
    const said = pair.example.turns.map(([, text]) => text);
    Object.assign(pair, pair.example.columns, { prompt: shortened(said.at(-1).trim()) });
    pair.everything = [...said, ...pair.example.texts].join("\n");
    complete(pair.chosen);
    complete(pair.rejected);
  }
  const table = new DataTable("#pairs-table", {
    data: data.pairs,
    columns: data.columns.map((column) => ({
      title: column.title, data: column.key, visible: column.visible, defaultContent: "",
      className: column.key === "prompt" ? "of-prompt" : blank(column.digits) ? "" : "number",
      type: blank(column.digits) ? "string" : "num", render: renderer(column),
    })),
    order: [], autoWidth: false, pageLength: 10,
    layout: { topStart: ["pageLength", { buttons: [{ extend: "colvis", text: "columns" }] }] },
    language: { search: "search in all texts:", entries: { _: "pairs", 1: "pair" } },
  });
  table.columns().every(function () { this.header().title = data.columns[this.index()].definition; });

  const form = document.getElementById("filters");
  const controls = [...form.querySelectorAll("[data-key]")];
  table.search.fixed("filters", (_, pair) => controls.every((control) => passes(control, pair)));
  for (const kind of ["input", "change"]) form.addEventListener(kind, () => table.draw());
  form.addEventListener("reset", () => setTimeout(() => table.search("").draw()));
  form.addEventListener("submit", (event) => event.preventDefault());

  const share = (pairs, key) => rounded((100 * pairs.filter((p) => p[key] === "right").length) / pairs.length, { digits: 1 });
  const summarize = () => {
    const left = table.rows({ search: "applied" }).data().toArray();
    document.getElementById("of-filtered").textContent = left.length
      ? `Of these ${left.length} pairs the model ranks ${share(left, "ranked")} % right by R, `
        + `${share(left, "ranked_per_token")} % by R̃.` : "No pair passes the filters.";
  };
  table.on("draw", summarize);
  summarize();

  table.on("click", "button.open", (event) => {
    const row = table.row(event.target.closest("tr"));
    if (row.child.isShown()) row.child.hide();
    else row.child(dialogue(row.data(), data.completion), "opened").show();
    event.target.setAttribute("aria-expanded", row.child.isShown());
  });
}

// a shadow at each edge behind which a table goes on
function markEdges(box) {
  const mark = () => {
    const left = box.scrollLeft, hidden = box.scrollWidth - box.clientWidth;
    box.classList.toggle("more-left", left > 1);
    box.classList.toggle("more-right", left < hidden - 1);
  };
  const sizes = new ResizeObserver(mark);
  for (const part of [box, ...box.children]) sizes.observe(part);
  box.addEventListener("scroll", mark);
  mark();
}

const source = URL.createObjectURL(new Blob([await unpack("library")], { type: "text/javascript" }));
const { default: DataTable, set_or_remove_dark_class: followTheme } = await import(source);
followTheme();
DataTable.ext.errMode = "throw";
for (const table of document.querySelectorAll("table.sortable"))
  new DataTable(table, {
    order: [], autoWidth: false, pageLength: 25, lengthMenu: [25, 100, -1],
    layout: table.tBodies[0].rows.length > 25 ? {} : { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
  });
if (document.getElementById("pairs-table")) showPairs(DataTable, JSON.parse(await unpack("data")));
document.querySelectorAll(".dt-layout-full").forEach(markEdges);
document.documentElement.dataset.ready = "yes";
