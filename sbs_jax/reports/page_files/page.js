"use strict";
(() => {
  const ROW = 44; // pixels, as in the style sheet
  const SPARE = 8; // rows drawn above and below what is seen
  const MOST_CELLS = 4e6; // of the table that finds differences
  const byId = (id) => document.getElementById(id);

  // ---- dark and light -------------------------------------------------------------------------
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = {
    get() { try { return localStorage.getItem("sbs_jax-theme"); } catch { return null; } },
    set(theme) { try { localStorage.setItem("sbs_jax-theme", theme); } catch { /* not kept */ } },
  };
  const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const other = () => (theme() === "dark" ? "light" : "dark");
  const themeButton = byId("theme");
  const nameTheme = () => { themeButton.textContent = `${other()} mode`; };
  function switchTheme() {
    root.dataset.theme = other();
    remembered.set(root.dataset.theme);
    nameTheme();
  }
  if (["dark", "light"].includes(remembered.get())) root.dataset.theme = remembered.get();
  themeButton.hidden = false;
  themeButton.addEventListener("click", switchTheme);
  system.addEventListener("change", nameTheme);
  nameTheme();

  // ---- texts ----------------------------------------------------------------------------------
  // Texts reach the page through textContent alone; what cannot be seen is shown as a sign.
  const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
  const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g;
  const HALVES = /[\ud800-\udfff]/gu; // With the flag u, only those that stand alone.
  const hex = (sign) => "⟨U+" + sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩";
  const visible = (text) => text
    .replace(CONTROLS, (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : hex(c)))
    .replace(DIRECTIONS, hex)
    .replace(HALVES, "\ufffd");

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = visible(text);
    return made;
  }

  // ---- differences ----------------------------------------------------------------------------
  /** Which words of two lists are not in their longest common subsequence: two lists of booleans. */
  function differences(a, b) {
    const onlyA = new Array(a.length).fill(false), onlyB = new Array(b.length).fill(false);
    let start = 0, endA = a.length, endB = b.length;
    while (start < endA && start < endB && a[start] === b[start]) start++;
    while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
    const n = endA - start, m = endB - start;
    if (n * m > MOST_CELLS) {
      onlyA.fill(true, start, endA);
      onlyB.fill(true, start, endB);
      return [onlyA, onlyB];
    }
    const width = m + 1;
    const longest = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        longest[i * width + j] = a[start + i] === b[start + j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < n && j < m) {
      if (a[start + i] === b[start + j]) { i++; j++; }
      else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) onlyA[start + i++] = true;
      else onlyB[start + j++] = true;
    }
    while (i < n) onlyA[start + i++] = true;
    while (j < m) onlyB[start + j++] = true;
    return [onlyA, onlyB];
  }

  // Words, signs and white space; a text is its pieces, joined.
  const pieces = (text) => text.match(/\s+|[\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_]/gu) || [];
  const words = (text) => pieces(text).filter((piece) => piece.trim());

  /** A box with a text whose words are marked where `only` says so; its white space is kept. */
  function markedText(text, only, className) {
    const box = element("div", "text-box");
    box.dir = "auto";
    let word = 0, plain = "", marked = "";
    const flush = () => {
      if (plain) box.append(visible(plain));
      // White space after the last marked word belongs to no mark.
      const ends = marked.trimEnd();
      if (ends) box.append(element("mark", className, ends));
      if (marked.length > ends.length) box.append(visible(marked.slice(ends.length)));
      plain = marked = "";
    };
    for (const piece of pieces(text)) {
      if (!piece.trim()) {
        if (marked) marked += piece; else plain += piece;
        continue;
      }
      if (only[word++]) {
        if (plain) flush();
        marked += piece;
      } else {
        if (marked) flush();
        plain += piece;
      }
    }
    flush();
    return box;
  }

  // ---- examples -------------------------------------------------------------------------------
  const browser = byId("browser");
  const sets = JSON.parse(byId("data").textContent);
  if (!browser || !sets.length) {
    document.addEventListener("keydown", (event) => {
      if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) switchTheme();
    });
    return;
  }
  browser.hidden = false;
  const list = byId("list"), rows = byId("rows"), detail = byId("detail"), count = byId("count");
  const setMenu = byId("set"), firstMenu = byId("first"), secondMenu = byId("second");
  const filterMenu = byId("filter"), search = byId("search");

  const has = (run, i) => run.labels[i] !== null;
  const both = (a, b, i) => has(a, i) && has(b, i);
  const FILTERS = [
    ["all", () => true],
    ["A right", (a, b, i) => has(a, i) && a.right[i]],
    ["A wrong", (a, b, i) => has(a, i) && !a.right[i]],
    ["B right", (a, b, i) => has(b, i) && b.right[i]],
    ["B wrong", (a, b, i) => has(b, i) && !b.right[i]],
    ["changed: only B right", (a, b, i) => both(a, b, i) && !a.right[i] && b.right[i]],
    ["changed: only A right", (a, b, i) => both(a, b, i) && a.right[i] && !b.right[i]],
    ["labels differ", (a, b, i) => both(a, b, i) && a.labels[i] !== b.labels[i]],
    ["both wrong", (a, b, i) => both(a, b, i) && !a.right[i] && !b.right[i]],
  ];
  let set, a, b;
  let shown = []; // indices of the examples that pass the filter
  let place = 0; // of the chosen one among them

  function fill(menu, names) {
    menu.replaceChildren(...names.map((name, value) => {
      const option = element("option", "", name);
      option.value = String(value);
      return option;
    }));
  }

  const searchable = new WeakMap(); // lower-case texts, made when first searched
  function lowerCase(owner, make) {
    if (!searchable.has(owner)) searchable.set(owner, make());
    return searchable.get(owner);
  }
  const textsOfSet = () => lowerCase(set, () => set.ids.map((id, i) =>
    [id, set.inputs[i], set.golds[i], set.teacher[i]].join("\n").toLowerCase()));
  const textsOfRun = (run) => lowerCase(run, () => run.labels.map((label, i) =>
    ((label || "") + "\n" + ((run.rationales && run.rationales[i]) || "")).toLowerCase()));

  function update(keep) {
    const wanted = keep === undefined ? shown[place] : keep;
    const passes = FILTERS[Number(filterMenu.value)][1];
    const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const common = sought.length ? textsOfSet() : null;
    const ofA = sought.length ? textsOfRun(a) : null, ofB = sought.length ? textsOfRun(b) : null;
    shown = [];
    for (let i = 0; i < set.ids.length; i++) {
      if (!passes(a, b, i)) continue;
      if (sought.every((word) =>
        common[i].includes(word) || ofA[i].includes(word) || ofB[i].includes(word))) shown.push(i);
    }
    place = Math.max(0, shown.indexOf(wanted));
    count.textContent = `${shown.length.toLocaleString("en")} of ${set.ids.length.toLocaleString("en")}`;
    rows.style.height = `${shown.length * ROW}px`;
    choose(place);
  }

  const markOf = (run, i) => (!has(run, i) ? ["–", "none"] : run.right[i] ? ["✓", "right"] : ["✗", "wrong"]);
  const said = { right: "right", wrong: "wrong", none: "no answer" };

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const made = [];
    for (let k = first; k < last; k++) {
      const i = shown[k];
      const row = element("div", "row");
      row.id = `example-${k}`;
      row.style.top = `${k * ROW}px`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(k === place));
      row.setAttribute("aria-posinset", String(k + 1));
      row.setAttribute("aria-setsize", String(shown.length));
      const marks = element("span", "marks");
      for (const [name, run] of [["A", a], ["B", b]]) {
        const [sign, kind] = markOf(run, i);
        const mark = element("span", kind, sign);
        mark.title = `${name} ${said[kind]}`;
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-label", `${name} ${said[kind]}`);
        marks.append(mark);
      }
      row.append(marks, element("span", "text", set.inputs[i].slice(0, 160).replace(/\s+/g, " ")));
      row.addEventListener("click", () => choose(k));
      made.push(row);
    }
    rows.replaceChildren(...made);
    if (shown.length) list.setAttribute("aria-activedescendant", `example-${place}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function choose(k) {
    place = Math.min(Math.max(0, k), Math.max(0, shown.length - 1));
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawRows();
    drawDetail();
  }

  function field(name, text) {
    const made = element("div", "field");
    made.append(element("div", "name", name), textBox(text));
    return made;
  }

  function textBox(text) {
    if (text === null || text === "") return element("div", "empty", text === "" ? "(empty)" : "(none)");
    const box = element("div", "text-box", text);
    box.dir = "auto";
    return box;
  }

  function answer(letter, run, i) {
    const made = element("div");
    const [sign, kind] = markOf(run, i);
    const name = element("div", "name", `${letter}: ${run.name} `);
    name.append(element("span", kind, `${sign} ${said[kind]}`));
    made.append(name, textBox(run.labels[i]));
    return made;
  }

  function rationales(letter, run, i) {
    const own = run.rationales && run.rationales[i];
    const teacher = set.teacher[i];
    const pair = element("div", "pair rationales");
    const left = element("div"), right = element("div");
    left.append(element("div", "name", `rationale of ${letter}`));
    right.append(element("div", "name", "rationale of the teacher"));
    if (own && teacher) {
      const [onlyOwn, onlyTeacher] = differences(words(own), words(teacher));
      left.append(markedText(own, onlyOwn, "student"));
      right.append(markedText(teacher, onlyTeacher, "teacher"));
    } else {
      left.append(own ? textBox(own) : element("div", "empty", "(wrote none)"));
      right.append(teacher ? textBox(teacher) : element("div", "empty", "(not recorded)"));
    }
    pair.append(left, right);
    return pair;
  }

  function drawDetail() {
    detail.scrollTop = 0;
    if (!shown.length) {
      detail.replaceChildren(element("p", "empty", "No example passes this filter and search."));
      return;
    }
    const i = shown[place];
    const answers = element("div", "pair answers");
    answers.append(answer("A", a, i));
    if (b !== a) answers.append(answer("B", b, i));
    const parts = [
      element("h3", "", set.ids[i]), field("input", set.inputs[i]), field("gold label", set.golds[i]), answers,
    ];
    const writes = (run) => run.rationales && run.rationales[i];
    const students = [["A", a], ["B", b]].filter(([letter, run]) => writes(run) && !(letter === "B" && a === b));
    if (students.length) parts.push(...students.map(([letter, run]) => rationales(letter, run, i)));
    else if (set.teacher[i]) parts.push(rationales("A", a, i));
    if (students.length && set.teacher[i]) {
      const legend = element("p", "name", "marked: words that ");
      legend.append(element("mark", "student", "only the student"), " or ", element("mark", "teacher", "only the teacher"), " has");
      parts.push(legend);
    }
    detail.replaceChildren(...parts);
  }

  function chooseRuns() {
    a = set.runs[Number(firstMenu.value)];
    b = set.runs[Number(secondMenu.value)];
  }

  function chooseSet() {
    set = sets[Number(setMenu.value)];
    const names = set.runs.map((run) => run.name);
    fill(firstMenu, names);
    fill(secondMenu, names);
    firstMenu.value = String(set.compare[0]);
    secondMenu.value = String(set.compare[1]);
    chooseRuns();
    list.scrollTop = 0;
    place = 0;
    shown = [];
    update();
  }

  function swap() {
    [firstMenu.value, secondMenu.value] = [secondMenu.value, firstMenu.value];
    chooseRuns();
    update();
  }

  function setFilter(number) {
    filterMenu.value = String(number);
    update();
  }

  fill(setMenu, sets.map((one) => one.name));
  fill(filterMenu, FILTERS.map(([name], number) => `${name} (${number + 1})`));
  byId("set-label").hidden = sets.length < 2;
  setMenu.addEventListener("change", chooseSet);
  for (const menu of [firstMenu, secondMenu]) {
    menu.addEventListener("change", () => { chooseRuns(); update(); });
  }
  filterMenu.addEventListener("change", () => update());
  byId("swap").addEventListener("click", swap);
  search.addEventListener("input", () => update());
  list.addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(list);

  const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const IN_LIST = {
    ArrowDown: () => place + 1, ArrowUp: () => place - 1, PageDown: () => place + page(),
    PageUp: () => place - page(), Home: () => 0, End: () => shown.length - 1,
  };
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      search.value = "";
      update();
      list.focus();
    } else if (event.key === "Enter" || event.key === "ArrowDown") list.focus();
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, select, textarea")) return;
    const key = event.key;
    if (document.activeElement === list && key in IN_LIST) choose(IN_LIST[key]());
    else if (key === "j" || key === "k") {
      list.focus({ preventScroll: true });
      browser.scrollIntoView({ block: "nearest" });
      choose(place + (key === "j" ? 1 : -1));
    } else if (key === "/") { search.focus(); search.select(); }
    else if (key >= "1" && key <= String(FILTERS.length)) setFilter(Number(key) - 1);
    else if (key === "x") swap();
    else if (key === "t") switchTheme();
    else if (key === "?") byId("keys").open = !byId("keys").open;
    else return;
    event.preventDefault();
  });
  chooseSet();
})();
