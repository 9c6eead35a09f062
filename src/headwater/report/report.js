"use strict";
(function () {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => {
    // A page opened from a file may have no storage; the choice then lasts as long as the page.
    try {
      if (value === undefined) return localStorage.getItem("headwater-theme");
      localStorage.setItem("headwater-theme", value);
    } catch (error) {
      return null;
    }
  };
  const saved = remember();
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
  });

  // On paper nothing can be opened, except that the appendix would be longer than the report.
  const closed = [];
  addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("details:not(.stage):not([open])")) {
      closed.push(item);
      item.open = true;
    }
  });
  addEventListener("afterprint", () => {
    while (closed.length) closed.pop().open = false;
  });

  const links = new Map();
  for (const link of document.querySelectorAll("nav a")) links.set(link.hash.slice(1), link);
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
})();
