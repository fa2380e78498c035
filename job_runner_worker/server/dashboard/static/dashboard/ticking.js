// Durations that count on, once a second, between two looks at the server.

const seen = new WeakMap();

export function tick() {
  step();
  setInterval(step, 1000);
}

function step() {
  const now = performance.now() / 1000;
  for (const each of document.querySelectorAll(".ticking")) {
    if (!seen.has(each)) seen.set(each, now - Number(each.dataset.seconds));
    const seconds = now - seen.get(each);
    each.textContent = inWords(seconds);
    const bar = each.closest("td, p")?.querySelector("progress");
    if (bar) bar.value = Math.min(seconds, bar.max);
  }
}

// As in_words() of run_words.py does it, in whole seconds.
export function inWords(seconds) {
  let rest = Math.round(seconds);
  const parts = [];
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    const number = Math.floor(rest / size);
    rest %= size;
    if (number || parts.length) parts.push([number, unit]);
  }
  const shown = parts.slice(0, 2).filter(([number]) => number);
  return shown.map((each) => each.join(" ")).join(" ") || "0 s";
}
