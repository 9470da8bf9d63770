// Numbers, times and text as the page writes them. Pure functions; `null` and `undefined` become an en dash.

export const NONE = '–';

const ESCAPES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

/** Text that is safe inside HTML and attribute values: reasons and names come from messages. */
export function esc(text) {
  return String(text ?? '').replace(/[&<>"']/g, (c) => ESCAPES[c]);
}

const missing = (x) => x === null || x === undefined || !Number.isFinite(x);

function fixed(x, digits) {
  return x.toLocaleString('en-GB', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A whole number with thousands separators. */
export const count = (x) => (missing(x) ? NONE : fixed(Math.round(x), 0));

/** A rate: three significant figures where they matter. */
export function rate(x) {
  if (missing(x)) return NONE;
  const size = Math.abs(x);
  return fixed(x, size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2);
}

/** Milliseconds; from ten seconds on in seconds. */
export function ms(x) {
  if (missing(x)) return NONE;
  if (x >= 10000) return `${fixed(x / 1000, 1)} s`;
  return `${fixed(x, x >= 100 || x === 0 ? 0 : 1)} ms`;
}

/** A share as a percentage; never rounded up to 100. */
export function percent(share, digits = 1) {
  if (missing(share)) return NONE;
  const scale = 10 ** digits;
  const floored = share < 1 ? Math.floor(share * 100 * scale + 1e-9) / scale : share * 100;
  return `${fixed(floored, digits)} %`;
}

/** US dollars, with enough decimals for the first minutes of a small fleet. */
export function usd(x) {
  if (missing(x)) return NONE;
  const size = Math.abs(x);
  const digits = size === 0 || size >= 100 ? 2 : size >= 1 ? 3 : size >= 0.01 ? 4 : 6;
  return `${x < 0 ? '−' : ''}$${fixed(size, digits)}`;
}

/** A price per hour. */
export const usdPerHour = (x) => (missing(x) ? NONE : `$${fixed(x, x >= 10 ? 2 : 4)}/h`);

/** A length of time: `42 s`, `3 min 05 s`, `2 h 10 min`. */
export function span(milliseconds) {
  if (missing(milliseconds)) return NONE;
  const s = Math.max(0, Math.round(milliseconds / 1000));
  if (s < 60) return `${s} s`;
  const two = (n) => String(n).padStart(2, '0');
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A length of time in its largest unit: `42 s`, `7 min`, `3 h`. */
export const coarse = (milliseconds) => span(milliseconds).replace(/^(\d+ (?:min|h|d)).*/, '$1');

/** A lead time: one decimal below ten seconds. */
export const lead = (milliseconds) =>
  milliseconds < 10000 ? `${fixed(milliseconds / 1000, milliseconds % 1000 ? 1 : 0)} s` : span(milliseconds);

/** How long ago, coarse. */
export const ago = (then, now) => (missing(then) ? 'never' : now - then < 1500 ? 'now' : `${span(now - then)} ago`);

const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const MINUTE = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' });
const ZONE = new Intl.DateTimeFormat('en-GB', { timeZoneName: 'short' });

/** Time of day with seconds, in the reader's zone. */
export const clock = (at) => (missing(at) ? NONE : CLOCK.format(at));

/** Time of day, in the reader's zone. */
export const minute = (at) => MINUTE.format(at);

/** Name of the reader's zone. */
export const zone = (at) => ZONE.formatToParts(at).find((p) => p.type === 'timeZoneName')?.value ?? '';

/** A `<time>` element: time of day to read, the full moment to hover. */
export const time = (at) =>
  missing(at) ? NONE : `<time datetime="${new Date(at).toISOString()}" title="${new Date(at).toISOString()}">${clock(at)}</time>`;

/** `1 node`, `3 nodes`. */
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
