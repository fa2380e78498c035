// The log of a run: as it grows, following its end; search, copy.

import { Terminal, stripped } from "./ansi.js";
import { hear, onConnected } from "./live.js";

const POLL_MS = 2000;
const QUIET_MS = 10000; // where the server tells of changes
const GATHER_MS = 100;
const MAX_HITS = 5000;

export function showLog(place) {
  new Log(place).start();
}

class Log {
  constructor(place) {
    this.place = place;
    this.terminal = new Terminal(place);
    this.run = document.getElementById("main").dataset.run;
    this.next = 0;
    this.check = "";
    this.raw = "";
    this.all = false;
    this.hasEnded = false;
    this.isTold = false;
    this.isFetching = false;
    this.isWanted = false;
    this.hits = [];
    this.hit = -1;
  }

  start() {
    const by = (name) => document.getElementById(`log-${name}`);
    this.status = by("status");
    this.skipped = by("skipped");
    this.follow = by("follow");
    this.find = by("find");
    this.count = by("hits");
    this.arrows = [by("previous"), by("next")];
    this.follow.addEventListener("change", () => this.toEnd());
    this.place.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.find.addEventListener("input", () => this.search());
    this.find.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.step(event.shiftKey ? -1 : 1);
      }
    });
    this.arrows[0].addEventListener("click", () => this.step(-1));
    this.arrows[1].addEventListener("click", () => this.step(1));
    by("copy").addEventListener("click", (event) => this.copy(event.currentTarget));
    this.skipped.querySelector("button").addEventListener("click", () => {
      this.all = true;
      this.next = 0;
      this.fetch();
    });
    hear((event) => {
      if (String(event.run_id) !== this.run) return;
      if (event.kind === "run_log") this.isTold = true;
      setTimeout(() => this.fetch(), GATHER_MS);
    });
    onConnected(() => this.fetch());
    this.fetch();
  }

  async fetch() {
    clearTimeout(this.timer);
    if (this.isFetching) {
      this.isWanted = true;
      return;
    }
    this.isFetching = true;
    this.isWanted = false;
    try {
      const url = new URL(this.place.dataset.url, location.href);
      url.searchParams.set("start", this.next);
      url.searchParams.set("check", this.check);
      if (this.all) url.searchParams.set("all", "1");
      const answer = await fetch(url, { credentials: "same-origin" });
      if (answer.ok) this.take(await answer.json());
    } catch {
      // Live.js says that the connection is lost; here it is tried again.
    }
    this.isFetching = false;
    if (this.isWanted) this.fetch();
    else if (!this.hasEnded) {
      this.timer = setTimeout(() => this.fetch(), this.isTold ? QUIET_MS : POLL_MS);
    }
  }

  take(part) {
    if (part.start !== this.next || part.start === 0) {
      if (part.start === 0 && this.next === 0 && part.text === this.raw) {
        this.ended(part);
        return;
      }
      this.terminal.reset();
      this.raw = "";
      this.skipped.hidden = part.start === 0;
      this.skipped.querySelector("span").textContent =
        `The first ${part.start.toLocaleString("en")} characters are left out here.`;
    }
    this.next = part.next;
    this.check = part.check;
    if (part.text) {
      this.raw += part.text;
      this.terminal.write(part.text);
      if (this.find.value) this.search(true);
      if (this.follow.checked) this.toEnd();
    }
    this.ended(part);
  }

  ended(part) {
    this.hasEnded = part.has_ended;
    this.status.textContent = this.hasEnded ? "" : "live";
    this.place.dataset.empty = this.hasEnded
      ? "It has printed nothing."
      : "Nothing has been printed yet.";
  }

  toEnd() {
    if (!this.follow.checked) return;
    this.place.scrollTop = this.place.scrollHeight;
  }

  // Who scrolls up wants to read; who comes back to the end follows it again.
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.place;
    this.follow.checked = scrollTop + clientHeight > scrollHeight - 24;
  }

  search(isGrown = false) {
    const wanted = this.find.value.toLowerCase();
    for (const each of this.hits) each.classList.remove("hit", "now");
    this.hits = [];
    const ranges = [];
    if (wanted) {
      for (const line of this.place.children) {
        if (!line.textContent.toLowerCase().includes(wanted)) continue;
        line.classList.add("hit");
        this.hits.push(line);
        if (CSS.highlights) ranges.push(...rangesIn(line, wanted));
        if (this.hits.length === MAX_HITS) break;
      }
    }
    CSS.highlights?.set("found", new Highlight(...ranges));
    this.hit = isGrown ? Math.min(this.hit, this.hits.length - 1) : -1;
    for (const each of this.arrows) each.hidden = !this.hits.length;
    if (wanted && !isGrown && this.hits.length) this.step(1);
    else this.tell();
  }

  step(by) {
    if (!this.hits.length) return;
    this.hits[this.hit]?.classList.remove("now");
    this.hit = (this.hit + by + this.hits.length) % this.hits.length;
    const line = this.hits[this.hit];
    line.classList.add("now");
    this.follow.checked = false;
    line.scrollIntoView({ block: "nearest" });
    this.tell();
  }

  tell() {
    const number = this.hits.length;
    if (!this.find.value) this.count.textContent = "";
    else if (!number) this.count.textContent = "not found";
    else this.count.textContent = `${this.hit + 1} of ${number} lines`;
  }

  async copy(button) {
    const words = button.textContent;
    const text = stripped(this.raw);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without https a page has no clipboard: select it for Ctrl-C.
      getSelection().selectAllChildren(this.place);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = words; }, 1500);
  }
}

function rangesIn(line, wanted) {
  const found = [];
  const walker = document.createTreeWalker(line, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + 1)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, Math.min(at + wanted.length, node.length));
      found.push(range);
    }
  }
  return found;
}
