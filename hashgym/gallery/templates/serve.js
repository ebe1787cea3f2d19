// Sends the form as soon as a picture is chosen or words are typed, and replaces the results. The form also works
// without this script.
"use strict";

const form = document.querySelector("form");
const results = document.getElementById("results");
const input = form.elements.namedItem("picture");
const words = form.elements.namedItem("text"); // null where the index takes no words
const pause = 300; // milliseconds without a key, after which words are searched for
const limit = Number(form.dataset.maxBytes);
let picture = null; // the last one picked, dropped or pasted
let running = null;
let typing = 0; // the timer of the pause
let shown = 1; // the page of results

function fail(message) {
  const line = document.createElement("p");
  line.className = "error";
  line.setAttribute("role", "alert");
  line.textContent = message;
  results.replaceChildren(line);
}

async function search(number = 1) {
  running?.abort();
  const mine = (running = new AbortController());
  if (!form.reportValidity()) return;
  picture ??= input.files[0] ?? null; // kept by the browser when the page is loaded again
  const body = new FormData(form);
  body.delete("picture");
  body.append("page", number);
  if (picture) {
    body.append("picture", picture, picture.name);
    body.delete("id");
    if (location.search) history.pushState(null, "", "/");
  } else if (words?.value.trim()) {
    const address = `/?${new URLSearchParams({ text: words.value.trim(), k: body.get("k") })}`;
    if (new URLSearchParams(location.search).has("text")) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
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
      if (number !== shown) results.scrollIntoView();
      shown = number;
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
  clearTimeout(typing);
  picture = file;
  if (words) words.value = "";
  search();
}

document.documentElement.classList.add("js");
input.addEventListener("change", () => input.files.length && take(input.files[0]));
words?.addEventListener("input", () => {
  clearTimeout(typing);
  if (!words.value.trim()) return;
  picture = null;
  input.value = "";
  typing = setTimeout(search, pause);
});
form.elements.namedItem("k").addEventListener("change", () => {
  if (picture || words?.value.trim() || form.elements.namedItem("id")) search();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  search(Number(event.submitter?.name === "page" ? event.submitter.value : 1));
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
