// The page works without this; it adds the choice of a bin, pages in long lists, light and dark, and, where it is served, news.
"use strict";
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light and dark: as the system has it, until the button is pressed.
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const remembered = (value) => {
    try { // a page opened from a file may have nowhere to remember
      if (value === undefined) return localStorage.getItem("keystep-theme");
      localStorage.setItem("keystep-theme", value);
    } catch { return null; }
  };
  const toggle = one("#theme");
  const say = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
  const before = remembered();
  if (before === "light" || before === "dark") root.dataset.theme = before;
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remembered(root.dataset.theme);
    say();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
  say();

  // Bins: a slider lies over the chart, so that arrow keys, Home and End choose one; a pointer chooses what it points at.
  const chosen = { first: null }; // the number of the first step of the bin: bins may grow wider while one looks
  let asked = 0;
  async function show(chart, number, quietly) {
    const bars = all("g[data-first]", chart);
    const bar = bars[number];
    const picked = one(".picked", chart);
    picked.setAttribute("x", number);
    picked.setAttribute("width", 1);
    chosen.first = Number(bar.dataset.first);
    const slider = one("input", chart);
    slider.value = number;
    slider.setAttribute("aria-valuetext", one("title", bar).textContent);
    const panel = one("#bin");
    const turn = ++asked;
    let content = one(`#bin-${number}`);
    if (content) content = content.content.cloneNode(true);
    else {
      const answer = await fetch(`${location.pathname}/bins/${bar.dataset.first}`).catch(() => null); // null: the server is away
      const text = answer?.ok ? await answer.text() : null;
      if (turn !== asked || text === null) return;
      content = document.createRange().createContextualFragment(text);
    }
    const open = openOnes(panel);
    panel.replaceChildren(content);
    reopen(panel, open);
    panel.hidden = false;
    pages(panel);
    all("[data-turn]", panel).forEach((button) => {
      const next = number + Number(button.dataset.turn);
      button.disabled = next < 0 || next >= bars.length;
      button.addEventListener("click", () => { show(chart, next).then(() => one(`[data-turn="${button.dataset.turn}"]`, panel)?.focus()); });
    });
    if (!quietly) panel.setAttribute("aria-live", "polite");
  }
  function charts(within) {
    const chart = one(".chart", within);
    if (!chart) return;
    const bars = all("g[data-first]", chart);
    const slider = one("input", chart);
    const plot = one(".plot", chart);
    const at = (event) => {
      const box = plot.getBoundingClientRect();
      return Math.max(0, Math.min(bars.length - 1, Math.floor((event.clientX - box.left) / box.width * bars.length)));
    };
    slider.disabled = false;
    slider.addEventListener("input", () => show(chart, Number(slider.value)));
    slider.addEventListener("focus", () => { if (chosen.first === null) show(chart, Number(slider.value)); });
    plot.addEventListener("click", (event) => { show(chart, at(event)); slider.focus({ preventScroll: true, focusVisible: false }); });
    plot.addEventListener("pointermove", (event) => { plot.title = one("title", bars[at(event)]).textContent; });
    if (chosen.first !== null) {
      const width = Number(chart.dataset.width);
      show(chart, Math.min(bars.length - 1, Math.floor(chosen.first / width)), true);
    }
  }

  // Long lists: so many entries at a time.
  const shownPage = {};
  function pages(within) {
    for (const list of all("[data-page]", within)) {
      const size = Number(list.dataset.page);
      const entries = [...list.children];
      const last = Math.ceil(entries.length / size) - 1;
      if (last < 1 || list.pager) continue;
      const pager = list.pager = document.createElement("div");
      pager.className = "pager";
      const where = document.createElement("span");
      const turn = (by) => {
        const at = shownPage[list.id] = Math.max(0, Math.min(last, (shownPage[list.id] || 0) + by));
        entries.forEach((entry, number) => { entry.hidden = Math.floor(number / size) !== at; });
        where.textContent = `${at * size + 1}–${Math.min(entries.length, (at + 1) * size)} of ${entries.length}`;
        back.disabled = at === 0;
        on.disabled = at === last;
      };
      const button = (text, by) => {
        const made = document.createElement("button");
        made.type = "button";
        made.textContent = text;
        made.id = `${list.id}${by}`;
        made.setAttribute("aria-label", `${text} entries of ${list.getAttribute("aria-label")}`);
        made.addEventListener("click", () => turn(by));
        return made;
      };
      const back = button("Previous", -1);
      const on = button("Next", 1);
      pager.append(where, back, on);
      (list.closest("table") || list).after(pager);
      turn(0);
    }
  }
  const openOnes = (within) => all("details[open][id]", within).map((each) => each.id);
  const reopen = (within, ids) => ids.forEach((id) => { const each = within.querySelector(`#${CSS.escape(id)}`); if (each) each.open = true; });

  const main = one("main");
  for (const section of main.children) section.source = section.outerHTML; // as it came
  charts(main);
  pages(main);

  // News: the server sends the whole inside of the page; sections that did not change are left as they are.
  const events = document.body.dataset.events;
  if (!events) return;
  const light = one("#live");
  const source = new EventSource(events);
  const state = (on, text) => { light.classList.toggle("off", !on); if (light.textContent !== text) light.textContent = text; };
  source.addEventListener("open", () => state(true, "live"));
  source.addEventListener("error", () => state(false, source.readyState === EventSource.CLOSED ? "ended" : "waiting for the server"));
  source.addEventListener("gone", () => { source.close(); state(false, "this run was deleted"); });
  source.addEventListener("page", (message) => {
    state(true, "live");
    const fresh = document.createElement("template");
    fresh.innerHTML = JSON.parse(message.data);
    const old = new Map([...main.children].map((each) => [each.id, each]));
    const focused = document.activeElement?.id;
    const open = openOnes(main);
    const now = [...fresh.content.children];
    for (const section of now) section.source = section.outerHTML;
    const changed = now.filter((section) => section.source !== old.get(section.id)?.source);
    const same = now.length === old.size && now.every((section) => old.has(section.id));
    if (same) for (const section of changed) old.get(section.id).replaceWith(section);
    else main.replaceChildren(...now.map((section) => changed.includes(section) ? section : old.get(section.id)));
    for (const section of changed) {
      reopen(section, open);
      charts(section);
      pages(section);
    }
    if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus({ preventScroll: true });
  });
})();
