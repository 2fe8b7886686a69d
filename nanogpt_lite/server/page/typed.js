// What was typed and chosen stays in this tab when the page is loaded again. Written texts do not: the same prompt, seed
// and options write them again.

const KEY = "nanogpt_lite typed", RUNS = "nanogpt_lite runs";
const MAX_LENGTH = 100_000; // characters of a field; the browser keeps a few million

// The fields of the views and the choice of the network, but for files, their texts, and the runs that are shown.
const fields = () => [...document.querySelectorAll("#model, main :is(textarea, select, input):not([type=file], [type=range])")]
  .filter((field) => field.id && !("ofFile" in field.dataset) && !field.closest(".run-list, .buttons"));

const isToggle = (field) => field.type === "checkbox";

export function keep() {
  const typed = fields().map((field) => [field.id, isToggle(field) ? field.checked : field.value])
    .filter(([, value]) => value && String(value).length <= MAX_LENGTH);
  sessionStorage.setItem(KEY, JSON.stringify(Object.fromEntries(typed)));
}

// The runs that are shown in Train.
export const keepRuns = (names) => sessionStorage.setItem(RUNS, JSON.stringify(names));
export function keptRuns() {
  const names = read(RUNS);
  return Array.isArray(names) ? names : [];
}

// Call it when all fields are there, with the options of selects. What a closed part has is shown.
export function restore() {
  for (const [id, value] of Object.entries(read(KEY) ?? {})) {
    const field = fields().find((candidate) => candidate.id === id);
    if (!field) continue;
    if (isToggle(field)) field.checked = value;
    else if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
    field.closest("details")?.setAttribute("open", "");
    if (field.tagName === "SELECT") field.dispatchEvent(new Event("change"));
  }
}

// What was kept; null if it is not there, or not as this page writes it.
function read(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}
