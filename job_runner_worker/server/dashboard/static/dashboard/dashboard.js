// What a page needs besides its HTML. Everything works without, but for the live log.
import { watch } from "./live.js";
import { tick } from "./ticking.js";
import { showLog } from "./log.js";
import { checkScript } from "./script_check.js";
import { hearKeys } from "./keys.js";

hearKeys();
tick();
const log = document.getElementById("log");
if (log) showLog(log);
const script = document.querySelector("textarea[data-script]");
if (script) checkScript(script, document.getElementById("script-check"));
document.getElementById("errors")?.focus();
if (document.body.dataset.events) watch(document.body.dataset.events);
