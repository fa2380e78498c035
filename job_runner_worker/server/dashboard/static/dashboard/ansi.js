// Terminal output as lines of the page: colours, and lines that are written anew.
//
// Everything becomes text nodes: what a script prints is never HTML.

const SEQUENCE = /\x1b\[([0-9;:]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]|\r\n|\r|\n|\x08/g;
const UNFINISHED = /\x1b(?:\[[0-9;:]*|\][^\x07\x1b]*)?$|\r$/;
const CLASSES = { 1: "b", 2: "d", 3: "i", 4: "u", 7: "r", 9: "s" };
const ENDS = { 22: ["b", "d"], 23: ["i"], 24: ["u"], 27: ["r"], 29: ["s"] };
const LEVELS = [0, 95, 135, 175, 215, 255];
const MAX_SEQUENCE = 4096;

export function stripped(text) {
  return text.replace(SEQUENCE, (found) => {
    if (found === "\r\n") return "\n";
    return found === "\n" || found === "\r" ? found : "";
  });
}

export class Terminal {
  constructor(place) {
    this.place = place;
    this.reset();
  }

  reset() {
    this.place.replaceChildren();
    this.rest = "";
    this.style = blank();
    this.line = null;
    this.starts = false;
  }

  // Shows more output; what ends in the middle of a sequence waits for the rest.
  write(text) {
    let all = this.rest + text;
    const open = UNFINISHED.exec(all);
    const isOpen = open && all.length - open.index < MAX_SEQUENCE;
    this.rest = isOpen ? all.slice(open.index) : "";
    if (isOpen) all = all.slice(0, open.index);
    let from = 0;
    for (const found of all.matchAll(SEQUENCE)) {
      this.print(all.slice(from, found.index));
      from = found.index + found[0].length;
      if (found[0] === "\n" || found[0] === "\r\n") {
        if (!this.line) this.begin();
        this.line = null;
        this.starts = false;
      } else if (found[0] === "\r") {
        this.starts = true;
      } else if (found[2] === "m") {
        this.style = changed(this.style, found[1]);
      }
    }
    this.print(all.slice(from));
  }

  begin() {
    this.line = document.createElement("div");
    this.line.className = "line";
    this.place.append(this.line);
  }

  print(text) {
    if (!text) return;
    if (!this.line) this.begin();
    if (this.starts) {
      // A progress bar: what is printed now stands in place of what was.
      this.line.replaceChildren();
      this.starts = false;
    }
    const { classes, front, back } = this.style;
    const names = [...classes];
    if (typeof front === "number") names.push(`f${front}`);
    if (typeof back === "number") names.push(`g${back % 8}`);
    if (!names.length && !front && !back) {
      this.line.append(text);
      return;
    }
    const span = document.createElement("span");
    span.className = names.join(" ");
    if (typeof front === "string") span.style.color = front;
    if (typeof back === "string") span.style.backgroundColor = back;
    span.textContent = text;
    this.line.append(span);
  }
}

function blank() {
  return { classes: new Set(), front: null, back: null };
}

function changed(style, words) {
  const codes = words.split(/[;:]/).map(Number);
  let found = { ...style, classes: new Set(style.classes) };
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) found = blank();
    else if (CLASSES[code]) found.classes.add(CLASSES[code]);
    else if (ENDS[code]) ENDS[code].forEach((name) => found.classes.delete(name));
    else if (code >= 30 && code <= 37) found.front = code - 30;
    else if (code >= 90 && code <= 97) found.front = code - 82;
    else if (code >= 40 && code <= 47) found.back = code - 40;
    else if (code >= 100 && code <= 107) found.back = code - 100;
    else if (code === 39) found.front = null;
    else if (code === 49) found.back = null;
    else if (code === 38 || code === 48) {
      const [colour, used] = long(codes.slice(at + 1));
      at += used;
      found[code === 38 ? "front" : "back"] = colour;
    }
  }
  return found;
}

function long(codes) {
  if (codes[0] === 5) {
    const number = codes[1] & 255;
    if (number < 16) return [number, 2];
    if (number > 231) return [rgb(...Array(3).fill(8 + 10 * (number - 232))), 2];
    const cube = number - 16;
    const parts = [Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6];
    return [rgb(...parts.map((each) => LEVELS[each])), 2];
  }
  if (codes[0] === 2) return [rgb(...codes.slice(1, 4)), 4];
  return [null, 1];
}

function rgb(red, green, blue) {
  return `rgb(${red & 255} ${green & 255} ${blue & 255})`;
}
