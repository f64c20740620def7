"use strict";
(() => {
  const root = document.documentElement;
  const KEY = "empir-leaderboard-theme";
  // Storage may be denied (private windows, sandboxed frames): the choice then lasts until the page closes.
  const remember = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* not stored */ } };
  const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };

  const stored = remembered();
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  root.classList.add("scripted");

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  function startTheme() {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      show();
    });
    dark.addEventListener("change", show);
    show();
  }

  const valueOf = (row, index) => row.cells[index].dataset.sort;

  function compare(a, b) {
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b, "en") : numbers[0] - numbers[1];
  }

  // Rows without a value stay last in both directions; equal rows stay ordered by rank.
  function sortRows(table, index, descending) {
    const body = table.tBodies[0];
    const rank = (row) => Number(valueOf(row, 0));
    const rows = [...body.rows].sort((one, other) => {
      const a = valueOf(one, index), b = valueOf(other, index);
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || rank(one) - rank(other);
      return (descending ? -1 : 1) * compare(a, b) || rank(one) - rank(other);
    });
    body.append(...rows);
  }

  function startSorting(table) {
    const heads = [...table.tHead.rows[0].cells];
    for (const [index, head] of heads.entries()) {
      const button = head.querySelector("button");
      if (!button) continue;
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = now ? (now === "descending" ? "ascending" : "descending") : button.dataset.first;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", next);
        sortRows(table, index, next === "descending");
      });
    }
  }

  function startFilter(board) {
    const input = board.querySelector("input[type=search]");
    const status = board.querySelector(".status");
    const rows = [...board.querySelectorAll(".ranking tbody tr")];
    const texts = new Map(rows.map((row) => [row.dataset.entry, row.textContent.toLowerCase()]));
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      const shown = new Set([...texts].filter(([, text]) => text.includes(wanted)).map(([entry]) => entry));
      for (const part of board.querySelectorAll("[data-entry]")) {
        part.toggleAttribute("hidden", !shown.has(part.dataset.entry));
      }
      for (const part of board.querySelectorAll(".compared")) {
        part.toggleAttribute("hidden", !part.querySelector("tbody tr:not([hidden])"));
      }
      status.textContent = wanted ? `${shown.size} of ${rows.length} shown` : "";
    });
  }

  function openTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const details = target.closest("details");
    if (!details) return;
    details.open = true;
    details.scrollIntoView();
    target.focus({ preventScroll: true });
  }

  // Browsers print closed details closed, so open them all for printing.
  function startPrinting() {
    const closed = new Set();
    addEventListener("beforeprint", () => {
      for (const part of document.querySelectorAll("details:not([open])")) { closed.add(part); part.open = true; }
    });
    addEventListener("afterprint", () => {
      for (const part of closed) part.open = false;
      closed.clear();
    });
  }

  addEventListener("DOMContentLoaded", () => {
    startTheme();
    document.querySelectorAll(".ranking").forEach(startSorting);
    document.querySelectorAll(".board").forEach(startFilter);
    startPrinting();
    addEventListener("hashchange", openTarget);
    openTarget();
  });
})();
