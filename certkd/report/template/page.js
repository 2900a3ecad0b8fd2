"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const WORDS = ["misclassified", "certified", "falsified", "open"], PAGE = 100;
  const el = (name, text, more = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
    return made;
  };
  const by = (id) => document.getElementById(id), count = data.index.length, nets = data.networks;
  const CHANGES = nets.length > 1 ? ["kept", "lost", "gained", "neither"] : [];
  const change = (net, row) => {
    const had = nets[0].outcome[row] === 1, has = net.outcome[row] === 1;
    return had ? (has ? "kept" : "lost") : has ? "gained" : "neither";
  };
  let order = Array.from({ length: count }, (_, i) => i), shown = order, start = 0, sorted = ["", 1], chosen = -1;

  const columns = [["picture", "image"], ["index", "index"], ["label", "class"],
    ...nets.map((net, i) => [`net${i}`, net.name])].filter(([key]) => key !== "picture" || Object.keys(data.pictures).length);
  const value = (key, row) => key === "index" ? data.index[row] : key === "label" ? data.label[row]
    : nets[+key.slice(3)].radius[row];
  const head = el("tr");
  for (const [key, title] of columns) {
    const cell = el("th", undefined, { scope: "col" });
    if (key === "picture") cell.textContent = title;
    else {
      const button = el("button", title, { type: "button", "data-key": key });
      button.addEventListener("click", () => sort(key));
      cell.append(button);
    }
    head.append(cell);
  }
  by("table").tHead.append(head);

  const sort = (key) => {
    sorted = [key, sorted[0] === key ? -sorted[1] : 1];
    const values = order.map((_, row) => value(key, row));
    order.sort((a, b) => (values[a] - values[b]) * sorted[1] || a - b);
    filter();
  };
  const filter = () => {
    const text = by("text").value.trim().toLowerCase(), outcome = by("outcome").value, net = nets[+by("network").value];
    shown = order.filter((row) => {
      if (text && String(data.index[row]) !== text && String(data.label[row]) !== text) return false;
      if (!outcome) return true;
      return CHANGES.includes(outcome) ? change(net, row) === outcome : WORDS[net.outcome[row]] === outcome;
    });
    start = 0;
    draw();
  };
  const draw = () => {
    const body = document.createDocumentFragment();
    for (const row of shown.slice(start, start + PAGE)) {
      const line = el("tr", undefined, { tabindex: "0", "data-row": row });
      if (row === chosen) line.className = "chosen";
      for (const [key] of columns) {
        const cell = el("td");
        if (key === "picture") {
          if (data.pictures[row]) cell.append(el("img", undefined, { src: data.pictures[row], class: "thumb", alt: `sample ${data.index[row]}` }));
        } else if (key.startsWith("net")) {
          const net = nets[+key.slice(3)];
          cell.append(String(net.radius[row]) + " ", el("span", WORDS[net.outcome[row]], { class: WORDS[net.outcome[row]] }));
        } else {
          cell.textContent = value(key, row);
          cell.className = "number";
        }
        line.append(cell);
      }
      body.append(line);
    }
    by("table").tBodies[0].replaceChildren(body);
    for (const cell of head.cells) {
      const button = cell.querySelector("button");
      cell.setAttribute("aria-sort", button && button.dataset.key === sorted[0] ? (sorted[1] > 0 ? "ascending" : "descending") : "none");
    }
    const last = Math.min(start + PAGE, shown.length);
    by("count").textContent = `${shown.length} of ${count} samples`;
    by("place").textContent = shown.length ? `${start + 1} to ${last} of ${shown.length}` : "no sample";
    by("back").disabled = start === 0;
    by("next").disabled = last >= shown.length;
  };
  const picture = (source, words) => {
    const made = el("figure");
    made.append(el("img", undefined, { src: source, alt: words }), el("figcaption", words));
    return made;
  };
  const detail = (row) => {
    chosen = row;
    const place = by("detail"), list = el("ul");
    place.replaceChildren(el("h3", `Sample ${data.index[row]}, class ${data.label[row]}`));
    nets.forEach((net, i) => {
      const moved = i && CHANGES.length ? `, ${change(net, row)} against ${nets[0].name}` : "";
      list.append(el("li", `${net.name}: radius ${net.radius[row]}, ${WORDS[net.outcome[row]]}${moved}`));
    });
    place.append(list);
    if (data.pictures[row]) place.append(picture(data.pictures[row], "image"));
    for (const one of data.attacks[row] || []) {
      place.append(picture(one.point, `counterexample of ${one.name}, distance ${one.distance}`));
      if (one.difference) place.append(picture(one.difference, "difference, amplified"));
    }
    document.querySelectorAll("tr.chosen").forEach((line) => line.classList.remove("chosen"));
    const line = document.querySelector(`tr[data-row="${row}"]`);
    if (line) line.classList.add("chosen");
  };
  const pick = (event) => {
    const line = event.target.closest("tr");
    if (line) detail(+line.dataset.row);
  };
  by("table").tBodies[0].addEventListener("click", pick);
  by("table").tBodies[0].addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(event); }
  });
  nets.forEach((net, i) => by("network").append(el("option", net.name, { value: i })));
  by("network").value = nets.length - 1;
  for (const word of ["", ...CHANGES, ...WORDS]) by("outcome").append(el("option", word || "all", { value: word }));
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  by("text").addEventListener("input", filter);
  for (const id of ["network", "outcome"]) by(id).addEventListener("change", filter);
  by("back").addEventListener("click", () => { start = Math.max(0, start - PAGE); draw(); });
  by("next").addEventListener("click", () => { start += PAGE; draw(); });
  sort("index");
  for (const item of JSON.parse(by("plots").textContent)) Bokeh.embed.embed_item(item);
})();
