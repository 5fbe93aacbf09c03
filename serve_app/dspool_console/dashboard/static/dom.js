// Elements from plain values. Strings only ever become text nodes or attributes: what a user wrote is never markup.

const SVG = "http://www.w3.org/2000/svg";

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    } else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

const flat = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);

export const svg = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);

export const fill = (element, ...children) => {
  element.replaceChildren(...flat(children));
  return element;
};

/** Writes only what differs: an unchanged node keeps its selection and costs no layout. */
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
  return element;
};

export const set = (element, name, value) => {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
};

/** A web address that may be followed; anything else, `javascript:` above all, is none. */
export const webAddress = (text) => (/^https?:\/\//i.test(text ?? "") ? text : null);

export const later = (wait, call) => {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
};
