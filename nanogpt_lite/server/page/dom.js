// Elements of the page. A text becomes a text node, so HTML in it stays text.

export const DARK = matchMedia("(prefers-color-scheme: dark)");

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key === "className" ? "class" : key, value);
  }
  made.append(...children);
  return made;
}

export function svg(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A token in a table or a label: what cannot be seen gets a sign.
export function visible(token) {
  return token === "" ? "(part)" : token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

export function number(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

export function percent(value) {
  return value >= 0.0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toFixed(1)} %`;
}

// A probability; a small one as one in so many.
export function chance(p) {
  if (p === 0 || p >= 0.0005) return percent(p);
  return p < 1e-6 ? "under 1 in a million" : `1 in ${Number((1 / p).toPrecision(2)).toLocaleString("en")}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A button that copies what `text` returns.
export function copyButton(label, text) {
  const button = element("button", { type: "button", className: "small" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "This browser does not let the page copy";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

// A select with these options; the chosen one stays, if it is still there.
export function fillSelect(select, values, label = (value) => value) {
  const chosen = select.value;
  const same = values.length === select.options.length && values.every((v, i) => select.options[i].value === v);
  if (same) return;
  select.replaceChildren(...values.map((value) => element("option", { value }, label(value))));
  if (values.includes(chosen)) select.value = chosen;
}

// Show a message in a place for it, or nothing.
export function say(node, message, isError = false) {
  node.textContent = message;
  node.classList.toggle("error", isError);
}

// A wide table scrolls by itself, also with the keyboard.
export function scroller(label, content) {
  return element("div", { className: "scroller", tabindex: "0", role: "region", "aria-label": label }, content);
}
