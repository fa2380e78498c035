// Keys: "/" goes to the search of the page, Escape leaves it and closes what is open.

export function hearKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const active = document.activeElement;
    const writes = active && active.matches("input, textarea, select");
    if (event.key === "/" && !writes) {
      const field = document.querySelector("[data-search]");
      if (field) {
        event.preventDefault();
        field.focus();
        field.select();
      }
    } else if (event.key === "Escape") {
      if (writes && active.matches("[data-search]")) active.blur();
      const open = document.querySelector("details.confirm[open]");
      if (open) {
        open.removeAttribute("open");
        open.querySelector("summary").focus();
      }
    }
  });
  document.addEventListener("click", (event) => {
    for (const each of document.querySelectorAll("details.confirm[open]")) {
      if (!each.contains(event.target)) each.removeAttribute("open");
    }
  });
}
