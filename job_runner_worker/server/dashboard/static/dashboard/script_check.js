// Says while a script is pasted whether a worker could start it; the server decides.

export function checkScript(field, place) {
  const look = () => {
    const text = field.value;
    place.hidden = text.trim() === "";
    if (place.hidden) return;
    const [first] = text.split("\n");
    const words = first.slice(2).trim();
    if (!first.startsWith("#!")) {
      say("failed", "The first line must start with #!, for example #!/bin/sh.");
    } else if (!words) {
      say("failed", "The first line names no interpreter, for example #!/bin/sh.");
    } else {
      say("succeeded", `It is run by ${words}.`);
    }
  };
  const say = (look, words) => {
    place.className = `check-line ${look}`;
    place.textContent = `${look === "failed" ? "✕" : "✓"} ${words}`;
  };
  field.addEventListener("input", look);
  look();
}
