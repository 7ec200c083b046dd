/* Exchanges the panes of the mail view instead of whole pages, and has its keys.
 *
 * Each state has an address, and every address answers with a whole page: without this script the
 * links simply lead there. A link marked data-go is fetched with the header X-Panes, which names the
 * parts that change; the answer's elements replace those of the same data-pane. No markup is made here.
 */
"use strict";

(() => {
  const root = document.querySelector("[data-mail]");
  const EVERYTHING = ["search", "places", "list", "message"];
  let under_way = null; // the AbortController of the latest request
  let awaited = []; // the panes that it asks for
  let loaded = new URL(window.location.href); // whose state the panes show

  const pane = (name) => document.querySelector(`[data-pane="${name}"]`);
  const rows = () => [...document.querySelectorAll("[data-rows] .mail-row")];
  const opened = () => pane("message").dataset.id;
  const current = () =>
    rows().find((row) => row === document.activeElement) ||
    rows().find((row) => row.getAttribute("aria-current") === "true");

  function say(text) {
    document.querySelector("[data-said]").textContent = text;
  }

  async function exchange(url, panes) {
    if (under_way) under_way.abort();
    under_way = new AbortController();
    const { signal } = under_way;
    awaited = panes;
    for (const name of panes) pane(name).setAttribute("aria-busy", "true");
    try {
      const headers = { "X-Panes": panes.join(" ") };
      const answer = await fetch(url, { credentials: "same-origin", headers, signal });
      if (!answer.ok || answer.redirected) throw new Error(`answered ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of fresh.querySelectorAll("[data-pane]")) {
        pane(part.dataset.pane).replaceWith(document.adoptNode(part));
      }
      return true;
    } catch (error) {
      if (error.name === "AbortError") { // somebody has gone on meanwhile
        const left = panes.filter((name) => !awaited.includes(name));
        for (const name of left) pane(name).removeAttribute("aria-busy");
        return false;
      }
      window.location.assign(url); // the page itself says what is wrong, or asks to sign in
      return false;
    }
  }

  const isMessage = (url) => /\/mail\/[0-9a-f-]{36}\/$/.test(url.pathname);

  /* Shows the state of an address. `panes`: what differs from the state before. */
  async function show(url, panes, { remember = true } = {}) {
    if (!(await exchange(url, panes))) return false;
    if (remember) window.history.pushState(null, "", url);
    loaded = new URL(url);
    document.querySelector("[data-messages]").replaceChildren(); // they were of the page before
    const reads = isMessage(url) ? "message" : "list";
    root.dataset.showing = url.searchParams.get("show") === "places" ? "places" : reads;
    mark();
    return true;
  }

  /* Marks the open message in the list, and says by the title what is open. */
  function mark() {
    const id = opened();
    for (const row of rows()) {
      if (id && row.dataset.id === id) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    rove(current() || rows()[0]);
    const title = pane("message").dataset.title || pane("list").dataset.title;
    if (title) document.title = `${title} | Mail`;
  }

  /* One row is reached by Tab, the others by j and k. */
  function rove(chosen) {
    for (const row of rows()) row.tabIndex = row === chosen ? 0 : -1;
  }

  function choose(row) {
    rove(row);
    row.focus();
    row.scrollIntoView({ block: "nearest" });
  }

  async function open(row) {
    rove(row);
    if (await show(new URL(row.href), ["message"])) {
      row.scrollIntoView({ block: "nearest" });
      pane("message").focus({ preventScroll: true });
    }
  }

  async function go(url) {
    if (await show(url, EVERYTHING)) {
      const unfolded = pane("list").querySelector("[aria-expanded=true]");
      if (unfolded) unfolded.focus();
      else if (rows()[0] && root.dataset.showing === "list") choose(rows()[0]);
      say(pane("list").querySelector("[data-count]").textContent);
    }
  }

  /* Goes to the row below (1) or above (-1), over the ends of the page. */
  async function step(by) {
    const all = rows();
    const now = current();
    const reading = Boolean(opened());
    let next = now ? all[all.indexOf(now) + by] : all[0];
    if (!next) {
      const page = pane("list").querySelector(by > 0 ? "[rel=next]" : "[rel=prev]");
      if (!page) {
        say(by > 0 ? "This is the last message." : "This is the first message.");
        return;
      }
      if (!(await show(new URL(page.href), ["search", "places", "list"]))) return;
      next = by > 0 ? rows()[0] : rows().at(-1);
      if (!next) return;
    }
    if (reading) await open(next);
    else choose(next);
  }

  async function back() {
    const link = pane("message").querySelector("[data-back]");
    if (!link) return;
    const id = opened();
    if (!(await show(new URL(link.href), ["message"]))) return;
    const row = rows().find((one) => one.dataset.id === id) || rows()[0];
    if (row) choose(row);
  }

  const KEYS = {
    j: () => step(1),
    k: () => step(-1),
    o: () => current() && open(current()),
    u: back,
    "/": () => pane("search").elements.q.select(),
    e: () => {
      const link = (opened() ? pane("message") : pane("list")).querySelector("[data-export]");
      if (link) link.click();
    },
    s: () => {
      const popover = document.getElementById("mail-save");
      if (popover) popover.showPopover();
    },
    "?": () => document.getElementById("mail-keys").togglePopover(),
  };

  /* Not while the cursor is in a message's HTML: its frame has no script of ours, and may have none. To
   * take the focus back would take Ctrl-C from whoever has selected something there. */
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const field = event.target.closest("input, textarea, select, [contenteditable]");
    if (field) {
      if (event.key === "Escape" && field.name === "q" && rows()[0]) choose(current() || rows()[0]);
      return;
    }
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function clicked(event) {
    const plain = !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (!plain || event.defaultPrevented) return;
    const key = event.target.closest("button[data-key]");
    if (key && !key.hasAttribute("popovertarget")) {
      KEYS[key.dataset.key]();
      return;
    }
    const link = event.target.closest("a[data-go], a[data-back]");
    if (!link) return;
    event.preventDefault();
    if (link.matches("[data-back]")) back();
    else if (link.dataset.go === "message") open(link);
    else go(new URL(link.href));
  }

  function submitted(event) {
    const form = event.target;
    if (!form.matches('[data-pane="search"]')) return;
    event.preventDefault();
    const url = new URL(form.action);
    for (const [name, value] of new FormData(form)) if (value) url.searchParams.set(name, value);
    go(url);
  }

  /* Back and forward: of two addresses that differ in the message alone, the list stays. */
  function wentBack() {
    const url = new URL(window.location.href);
    const sameList = url.search === loaded.search;
    show(url, sameList ? ["message"] : EVERYTHING, { remember: false });
  }

  if (!root) return;
  root.classList.add("mail-has-keys");
  document.addEventListener("keydown", pressed);
  document.addEventListener("click", clicked);
  document.addEventListener("submit", submitted);
  window.addEventListener("popstate", wentBack);
  mark();
})();
