// Keeps a page as it is on the server: events over a WebSocket say when to look.
//
// What is shown is always the server's HTML: the page is fetched again, and each
// element with `data-live` that has changed takes the new content. Events may be lost,
// so the page is also fetched from time to time, and whenever the connection is back.

const GATHER_MS = 150;
const LEAST_MS = 1000;
const SLOW_MS = 15000;
const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 15000;
const ONLY_LATELY_MS = 1500; // so long a lost connection is not worth a word
const TOKEN = /(name="csrfmiddlewaretoken" value=")[^"]*/g;

const known = new Map();
let timer = 0;
let lastAt = 0;
let lastTook = 0;
let isFetching = false;
let isWanted = false;

const notice = document.getElementById("connection");
const problems = { socket: false, pages: false };
let lostAt = 0;
let noticeTimer = 0;
let retryNow = () => {};

// Calls back for every event of the server, as {kind, event, run_id, ...}.
export function hear(callback) {
  document.addEventListener("server-event", (event) => callback(event.detail));
}

// Calls back whenever the connection is there, again or for the first time.
export function onConnected(callback) {
  document.addEventListener("server-connected", callback);
}

export function watch(path) {
  for (const each of document.querySelectorAll("[data-live][id]")) {
    known.set(each.id, plain(each));
  }
  notice.querySelector("button").addEventListener("click", () => retryNow());
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) soon(0);
  });
  window.addEventListener("online", () => retryNow());
  hear((event) => {
    if (concerns(event)) soon(GATHER_MS);
  });
  setInterval(() => {
    if (Date.now() - lastAt > SLOW_MS - 500) soon(0);
  }, SLOW_MS);
  connect(path, FIRST_WAIT_MS);
}

function connect(path, wait) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  let next = wait;
  socket.addEventListener("open", () => {
    next = FIRST_WAIT_MS;
    note("socket", false);
    soon(0);
    document.dispatchEvent(new Event("server-connected"));
  });
  socket.addEventListener("message", (message) => {
    let detail;
    try {
      detail = JSON.parse(message.data);
    } catch {
      return;
    }
    document.dispatchEvent(new CustomEvent("server-event", { detail }));
  });
  socket.addEventListener("close", () => {
    note("socket", true);
    const seconds = next * (0.7 + 0.6 * Math.random());
    const again = setTimeout(start, seconds);
    retryNow = start;
    function start() {
      clearTimeout(again);
      retryNow = () => {};
      connect(path, Math.min(next * 2, MAX_WAIT_MS));
    }
  });
}

function concerns(event) {
  const run = document.getElementById("main").dataset.run;
  if (event.kind === "run_log") return false;
  return !run || event.run_id === undefined || String(event.run_id) === run;
}

function soon(delay) {
  isWanted = true;
  if (timer || isFetching || document.hidden) return;
  const pause = Math.max(LEAST_MS, 5 * lastTook);
  const wait = Math.max(delay, lastAt + pause - Date.now(), 0);
  timer = setTimeout(refresh, wait);
}

async function refresh() {
  timer = 0;
  isWanted = false;
  isFetching = true;
  const began = Date.now();
  try {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (answer.redirected && new URL(answer.url).pathname === "/login/") {
      location.assign(answer.url);
      return;
    }
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (document.title !== page.title) document.title = page.title;
      for (const each of page.querySelectorAll("[data-live][id]")) update(each);
      document.dispatchEvent(new Event("page-refreshed"));
    } else if (answer.status === 404) {
      location.reload();
    }
    note("pages", !answer.ok);
  } catch {
    note("pages", true);
  }
  isFetching = false;
  lastAt = Date.now();
  lastTook = lastAt - began;
  if (isWanted) soon(0);
}

function update(fresh) {
  const text = plain(fresh);
  const old = document.getElementById(fresh.id);
  if (!old || known.get(fresh.id) === text) return;
  known.set(fresh.id, text);
  const active = document.activeElement;
  const focused = old.contains(active) ? wayTo(active) : null;
  const open = [...old.querySelectorAll("details[open][id]")].map((each) => each.id);
  old.replaceChildren(...document.importNode(fresh, true).childNodes);
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) old.querySelector(focused)?.focus({ preventScroll: true });
}

function wayTo(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  const link = element.getAttribute("href");
  if (link) return `a[href="${CSS.escape(link)}"]`;
  const details = element.closest("details[id]");
  if (details) {
    const name = element.tagName.toLowerCase();
    return `#${CSS.escape(details.id)} ${name}`;
  }
  return null;
}

function plain(element) {
  return element.innerHTML.replace(TOKEN, "$1");
}

function note(what, isLost) {
  const before = problems.socket || problems.pages;
  problems[what] = isLost;
  const now = problems.socket || problems.pages;
  if (now && !before) lostAt = Date.now();
  clearTimeout(noticeTimer);
  if (!now) {
    notice.hidden = true;
    return;
  }
  noticeTimer = setTimeout(show, Math.max(lostAt + ONLY_LATELY_MS - Date.now(), 0));
}

function show() {
  const words = problems.pages
    ? "Connection lost. What you see may be out of date; this heals by itself."
    : "No live connection. This page looks for news every 15 seconds.";
  const place = notice.querySelector(".words");
  if (place.textContent !== words) place.textContent = words;
  notice.hidden = false;
}
