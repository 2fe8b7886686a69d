// Forms made from the descriptions of options: the same names and helps as on the command line.

import { element } from "./dom.js";

export const FILTERS = ["temperature", "top_k", "top_p", "min_p"]; // by which probabilities are changed
const FREE = ""; // the value of a field that is left as it is

export class Fields {
  constructor(prefix, descriptions) {
    this.descriptions = descriptions;
    this.inputs = new Map(descriptions.map((option) => [option.name, makeInput(prefix, option)]));
    const rows = descriptions.map((option) => makeRow(prefix, option, this.inputs.get(option.name)));
    this.node = element("div", { className: "fields" }, ...rows);
  }

  // The values that were given, by the names of the fields.
  values() {
    const given = {};
    for (const option of this.descriptions) {
      const text = this.inputs.get(option.name).value;
      if (text !== FREE) given[option.name] = typed(option, text);
    }
    return given;
  }

  // The same as options of the command line: pairs of name and value.
  words() {
    const given = this.values();
    return this.descriptions.filter(({ name }) => name in given).map(({ name, option }) => [option, given[name]]);
  }

  // Give fields values; those of `names` that are not given are left as they are by default.
  fill(names, values) {
    for (const name of names) this.inputs.get(name).value = values[name] ?? FREE;
  }

  // Show what a field has if it is left as it is.
  showDefault(name, text) {
    const input = this.inputs.get(name);
    if (input.tagName === "SELECT") input.options[0].textContent = text;
    else input.placeholder = text;
  }
}

function makeInput(prefix, option) {
  const properties = { id: `${prefix}-${option.name}`, name: option.name, "aria-describedby": `${prefix}-${option.name}-help` };
  const choices = option.type === "bool" ? ["true", "false"] : option.choices;
  if (choices.length) {
    const free = element("option", { value: FREE }, `${option.default}`);
    return element("select", properties, free, ...choices.map((value) => element("option", { value }, value)));
  }
  const isNumber = option.type !== "str";
  const kind = isNumber ? { type: "number", step: option.type === "int" ? "1" : "any" } : { type: "text" };
  return element("input", { ...properties, ...kind, placeholder: String(option.default), autocomplete: "off" });
}

function makeRow(prefix, option, input) {
  const unit = option.unit && !option.help.includes(option.unit) ? ` (${option.unit})` : "";
  return element("div", { className: "field" },
    element("label", { for: input.id }, option.option), // as on the command line
    input,
    element("small", { id: `${prefix}-${option.name}-help` }, option.help + unit));
}

function typed(option, text) {
  if (option.type === "bool") return text === "true";
  if (option.type === "str") return text.replaceAll("\\n", "\n");
  // a seed that a number would round is sent as it is, and refused
  const value = Number(text);
  return option.type === "int" && !Number.isSafeInteger(value) ? text : value;
}
