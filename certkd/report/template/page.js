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
  const cells = {
    picture: (row) => {
      const cell = el("td");
      if (data.pictures[row]) cell.append(el("img", undefined, { src: data.pictures[row], class: "thumb", alt: `sample ${data.index[row]}` }));
      return cell;
    },
    index: (row) => {
      const cell = el("td", undefined, { class: "number" });
      cell.append(el("button", data.index[row], { type: "button", class: "row", tabindex: "-1", "aria-expanded": row === chosen }));
      return cell;
    },
    label: (row) => el("td", data.label[row], { class: "number" }),
    net: (row, net) => {
      const cell = el("td", `${net.radius[row]} `), word = WORDS[net.outcome[row]];
      cell.append(el("span", word, { class: word }));
      return cell;
    },
  };
  const draw = () => {
    const body = document.createDocumentFragment();
    for (const row of shown.slice(start, start + PAGE)) {
      const line = el("tr", undefined, { "data-row": row });
      for (const [key] of columns) line.append(key.startsWith("net") ? cells.net(row, nets[+key.slice(3)]) : cells[key](row));
      body.append(line);
      if (row === chosen) body.append(detail(row));
    }
    by("table").tBodies[0].replaceChildren(body);
    const first = by("table").querySelector(".row");
    if (first) first.tabIndex = 0;
    for (const cell of head.cells) {
      const button = cell.querySelector("button");
      cell.setAttribute("aria-sort", button && button.dataset.key === sorted[0] ? (sorted[1] > 0 ? "ascending" : "descending") : "none");
    }
    const last = Math.min(start + PAGE, shown.length), rest = shown.length < count ? `, filtered from ${count}` : "";
    by("count").textContent = `${shown.length} of ${count} samples`;
    by("place").textContent = shown.length ? `Samples ${start + 1} to ${last} of ${shown.length}${rest}` : `No sample${rest}`;
    by("back").disabled = start === 0;
    by("next").disabled = last >= shown.length;
  };
  const picture = (source, words) => {
    const made = el("figure");
    made.append(el("img", undefined, { src: source, alt: words }), el("figcaption", words));
    return made;
  };
  const detail = (row) => {
    const line = el("tr", undefined, { id: "detail" }), cell = el("td", undefined, { colspan: columns.length });
    const place = el("div"), list = el("ul");
    nets.forEach((net, i) => {
      const moved = i && CHANGES.length ? `, ${change(net, row)} against ${nets[0].name}` : "";
      list.append(el("li", `${net.name}: radius ${net.radius[row]}, ${WORDS[net.outcome[row]]}${moved}`));
    });
    place.append(el("h3", `Sample ${data.index[row]}, class ${data.label[row]}`), list);
    if (data.pictures[row]) place.append(picture(data.pictures[row], "image"));
    for (const one of data.attacks[row] || []) {
      place.append(picture(one.point, `counterexample of ${one.name}, distance ${one.distance}`));
      if (one.difference) place.append(picture(one.difference, "difference, amplified"));
    }
    cell.append(place);
    line.append(cell);
    return line;
  };
  const button = (row) => by("table").querySelector(`tr[data-row="${row}"] .row`);
  const choose = (row) => {
    const before = button(chosen);
    if (by("detail")) by("detail").remove();
    if (before) before.setAttribute("aria-expanded", false);
    chosen = chosen === row ? -1 : row;
    if (chosen >= 0) {
      button(row).setAttribute("aria-expanded", true);
      button(row).closest("tr").after(detail(row));
    }
    focus(button(row));
  };
  const focus = (target) => {
    for (const other of by("table").querySelectorAll('.row[tabindex="0"]')) other.tabIndex = -1;
    target.tabIndex = 0;
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "nearest" });
  };
  by("table").tBodies[0].addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-row]");
    if (line) choose(+line.dataset.row);
  });
  by("table").tBodies[0].addEventListener("keydown", (event) => {
    const rows = [...by("table").querySelectorAll(".row")], at = rows.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    if (rows[to]) focus(rows[to]);
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

  const tools = (plot, place) => {
    const made = el("details", undefined, { class: "tools" }), pan = plot.toolbar.tools.find((tool) => tool.type === "PanTool");
    made.append(el("summary", "Hide, show and zoom"));
    for (const legend of [...plot.center, ...plot.above].filter((one) => one.type === "Legend")) {
      for (const item of legend.items) {
        const label = el("label"), box = el("input", undefined, { type: "checkbox" });
        box.checked = true;
        box.addEventListener("change", () => item.renderers.forEach((one) => { one.visible = box.checked; }));
        label.append(box, ` ${item.label.value}`);
        made.append(label);
      }
    }
    const zoom = (factor) => {
      pan.active = true;
      for (const range of [plot.x_range, plot.y_range]) {
        const middle = (range.start + range.end) / 2, half = (range.end - range.start) / 2 * factor;
        range.setv({ start: middle - half, end: middle + half });
      }
    };
    const buttons = [["Zoom in", () => zoom(0.5)], ["Zoom out", () => zoom(2)], ["Reset", () => { pan.active = false; plot.reset.emit(); }]];
    for (const [words, act] of buttons) {
      const one = el("button", words, { type: "button" });
      one.addEventListener("click", act);
      made.append(one);
    }
    place.after(made);
  };
  for (const item of JSON.parse(by("plots").textContent)) {
    Bokeh.embed.embed_item(item).then((views) => tools([...views.roots][0].model, by(item.target_id)));
  }
  for (const place of document.querySelectorAll(".wide")) {
    new ResizeObserver(() => {
      if (place.scrollWidth > place.clientWidth || place.scrollHeight > place.clientHeight) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }).observe(place);
  }
})();
