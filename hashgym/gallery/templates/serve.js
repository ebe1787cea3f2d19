// Sends the form as soon as a picture is chosen, and replaces the results. The form also works without this script.
"use strict";

const form = document.querySelector("form");
const results = document.getElementById("results");
const input = form.elements.namedItem("picture");
const limit = Number(form.dataset.maxBytes);
let picture = null; // the last one picked, dropped or pasted
let running = null;

function fail(message) {
  const line = document.createElement("p");
  line.className = "error";
  line.setAttribute("role", "alert");
  line.textContent = message;
  results.replaceChildren(line);
}

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  if (!form.reportValidity()) return;
  picture ??= input.files[0] ?? null; // kept by the browser when the page is loaded again
  const body = new FormData(form);
  body.delete("picture");
  if (picture) {
    body.append("picture", picture, picture.name);
    body.delete("id");
    if (location.search) history.pushState(null, "", "/");
  }
  results.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch("/", { method: "POST", body, signal: mine.signal });
    const text = await answer.text();
    const page = new DOMParser().parseFromString(text, "text/html");
    const found = page.getElementById("results");
    if (found) {
      results.replaceChildren(...found.childNodes);
      document.title = page.title;
      document.getElementById("status").textContent = results.querySelector("h2")?.textContent ?? "";
    } else if (answer.headers.get("Content-Type")?.startsWith("text/plain")) fail(text);
    else fail(`The search failed (${answer.status} ${answer.statusText}).`);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail("The server does not answer: is hashgym serve still running?");
  } finally {
    if (mine === running) results.removeAttribute("aria-busy");
  }
}

function take(file) {
  if (!file) return fail("This is not a file: drop or paste a picture.");
  if (file.size > limit) return fail(`The picture is too large: ${Math.round(limit / 2 ** 20)} MB at most.`);
  picture = file;
  search();
}

document.documentElement.classList.add("js");
input.addEventListener("change", () => input.files.length && take(input.files[0]));
form.elements.namedItem("k").addEventListener("change", () => (picture || form.elements.namedItem("id")) && search());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
addEventListener("popstate", () => location.reload());
addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
