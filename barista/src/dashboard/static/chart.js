// Time charts and sparklines as SVG, by hand: no library, nothing loaded from elsewhere.
//
// A chart is a plain description, drawn anew for every snapshot:
//   { height, x: [from, to], unit, yMax, now, label, layers: [...], columns: [...] }
// Layers are drawn in order: band, line, step, rule, region. `columns` are what the tooltip shows at a time.

import { esc, minute, clock } from './format.js';

const MARGIN = { top: 18, right: 14, bottom: 24, left: 46 };

/** A round number at or above `x`, and the ticks below it. */
export function scale(x) {
  const top = x > 0 ? x : 1;
  const raw = top / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12);
  const ticks = [];
  for (let i = 0; i * step < top + step - 1e-9; i += 1) ticks.push(i * step);
  return { max: ticks[ticks.length - 1], ticks };
}

const TIME_STEPS = [10, 15, 30, 60, 120, 300, 600].map((s) => s * 1000);

function timeTicks([from, to], most) {
  const step = TIME_STEPS.find((s) => (to - from) / s <= most) ?? 900000;
  const ticks = [];
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) ticks.push(t);
  return { ticks, format: step < 60000 ? clock : minute };
}

const tickText = (v) => (v >= 1000 && v % 1000 !== 0 ? v.toLocaleString('en-GB') : v >= 1000 ? `${v / 1000}k` : `${+v.toFixed(3)}`);
const n = (x) => x.toFixed(1);

/** Splits points at missing values, so that a gap is a gap. */
function runs(points) {
  const out = [[]];
  for (const point of points) {
    if (point.slice(1).some((y) => y === null || y === undefined)) out.push([]);
    else out[out.length - 1].push(point);
  }
  return out.filter((run) => run.length > 0);
}

class Plot {
  constructor(spec, width) {
    const axis = scale(spec.yMax);
    Object.assign(this, { spec, width, height: spec.height, axis });
    this.inner = { w: width - MARGIN.left - MARGIN.right, h: spec.height - MARGIN.top - MARGIN.bottom };
  }

  px(t) {
    const [from, to] = this.spec.x;
    return MARGIN.left + ((t - from) / (to - from)) * this.inner.w;
  }

  /** Values above the scale are drawn at its edge; the caller says so in words. */
  py(v) {
    return MARGIN.top + this.inner.h * (1 - Math.max(0, Math.min(v / this.axis.max, 1)));
  }

  time(px) {
    const [from, to] = this.spec.x;
    return from + ((px - MARGIN.left) / this.inner.w) * (to - from);
  }

  path(run) {
    return run.map(([t, v], i) => `${i ? 'L' : 'M'}${n(this.px(t))} ${n(this.py(v))}`).join('');
  }

  line(layer) {
    return runs(layer.points)
      .map((run) =>
        run.length === 1
          ? `<circle class="${layer.style} dot" cx="${n(this.px(run[0][0]))}" cy="${n(this.py(run[0][1]))}" r="2"/>`
          : `<path class="${layer.style}" d="${this.path(run)}"/>`,
      )
      .join('');
  }

  step(layer) {
    let d = '';
    layer.points.forEach(([t, v], i) => {
      const x = n(this.px(Math.max(t, this.spec.x[0])));
      d += i === 0 ? `M${x} ${n(this.py(v))}` : `H${x}V${n(this.py(v))}`;
    });
    return d ? `<path class="${layer.style}" d="${d}H${n(this.px(layer.to))}"/>` : '';
  }

  band(layer) {
    return runs(layer.points)
      .filter((run) => run.length > 1)
      .map((run) => {
        const upper = run.map(([t, , hi]) => [t, hi]);
        const lower = run.map(([t, lo]) => [t, lo]).reverse();
        return `<path class="${layer.style}" d="${this.path(upper)}${this.path(lower).replace('M', 'L')}Z"/>`;
      })
      .join('');
  }

  rule(layer) {
    const y = n(this.py(layer.value));
    const right = this.width - MARGIN.right;
    return `<path class="${layer.style}" d="M${MARGIN.left} ${y}H${right}"/>
      <text class="rule-text" x="${right - 4}" y="${+y - 5}" text-anchor="end">${esc(layer.text)}</text>`;
  }

  region(layer) {
    const [a, b] = [this.px(Math.max(layer.from, this.spec.x[0])), this.px(Math.min(layer.to, this.spec.x[1]))];
    if (b - a < 2) return '';
    const words = [layer.text, layer.short].find((w) => b - a > 5.5 * w.length + 10);
    const text = words ? `<text class="region-text" x="${n(a + 6)}" y="${MARGIN.top + 12}">${esc(words)}</text>` : '';
    return `<rect class="${layer.style}" x="${n(a)}" y="${MARGIN.top}" width="${n(b - a)}" height="${this.inner.h}"/>${text}`;
  }

  grid() {
    const right = this.width - MARGIN.right;
    const bottom = MARGIN.top + this.inner.h;
    const rows = this.axis.ticks.map((v) => {
      const y = n(this.py(v));
      return `<path class="${v === 0 ? 'axis' : 'grid'}" d="M${MARGIN.left} ${y}H${right}"/>
        <text class="tick" x="${MARGIN.left - 7}" y="${+y + 4}" text-anchor="end">${tickText(v)}</text>`;
    });
    const { ticks, format } = timeTicks(this.spec.x, Math.max(2, Math.floor(this.inner.w / 84)));
    const columns = ticks
      .filter((t) => this.px(t) < right - 18 && this.px(t) > MARGIN.left + 30)
      .map((t) => {
        const x = n(this.px(t));
        return `<path class="grid" d="M${x} ${MARGIN.top}V${bottom}"/>
          <text class="tick" x="${x}" y="${bottom + 16}" text-anchor="middle">${format(t)}</text>`;
      });
    return `${columns.join('')}${rows.join('')}<text class="unit" x="${MARGIN.left - 7}" y="${bottom + 16}" text-anchor="end">${esc(this.spec.unit)}</text>`;
  }

  nowLine() {
    const { now } = this.spec;
    if (!now || now > this.spec.x[1]) return '';
    const x = this.px(now);
    const anchor = this.width - MARGIN.right - x < 16 ? 'end' : 'middle';
    return `<path class="now" d="M${n(x)} ${MARGIN.top - 4}V${MARGIN.top + this.inner.h}"/>
      <text class="now-text" x="${n(anchor === 'end' ? x - 4 : x)}" y="${MARGIN.top - 6}" text-anchor="${anchor}">now</text>`;
  }

  svg(id) {
    const clip = `clip-${id}`;
    const layers = this.spec.layers.map((layer) => this[layer.kind](layer)).join('');
    return `<svg viewBox="0 0 ${this.width} ${this.height}" width="${this.width}" height="${this.height}" role="img" aria-label="${esc(this.spec.label)}">
      <defs><clipPath id="${clip}"><rect x="${MARGIN.left}" y="${MARGIN.top - 2}" width="${this.inner.w}" height="${this.inner.h + 4}"/></clipPath></defs>
      ${this.grid()}<g clip-path="url(#${clip})">${layers}</g>${this.nowLine()}
      <path class="cursor" d="" /></svg>`;
  }
}

/** A chart inside `element` that is redrawn by `draw(spec)` and shows values under the pointer. */
export class Chart {
  constructor(element, id) {
    this.element = element;
    this.id = id;
    this.pointer = null;
    element.classList.add('chart');
    element.innerHTML = '<div class="plot"></div><div class="tooltip" hidden></div>';
    [this.plotElement, this.tooltip] = element.children;
    element.addEventListener('pointermove', (event) => {
      this.pointer = event.clientX - element.getBoundingClientRect().left;
      this.hover();
    });
    element.addEventListener('pointerleave', () => {
      this.pointer = null;
      this.hover();
    });
  }

  draw(spec) {
    const width = Math.max(240, Math.floor(this.element.clientWidth));
    this.plot = new Plot(spec, width);
    this.plotElement.innerHTML = this.plot.svg(this.id);
    this.hover();
  }

  hover() {
    const { plot } = this;
    if (!plot) return;
    const at = this.pointer === null ? null : plot.time(this.pointer);
    const inside = at !== null && at >= plot.spec.x[0] && at <= plot.spec.x[1];
    const rows = inside ? plot.spec.columns.map((c) => ({ ...c, hit: nearest(c.points, at, c.reach) })).filter((c) => c.hit) : [];
    const cursor = this.plotElement.querySelector('.cursor');
    this.tooltip.hidden = rows.length === 0;
    cursor.setAttribute('d', '');
    if (rows.length === 0) return;
    const t = rows[0].hit[0];
    const x = plot.px(t);
    cursor.setAttribute('d', `M${n(x)} ${MARGIN.top}V${MARGIN.top + plot.inner.h}`);
    const lines = rows.map((r) => `<li>${swatch(r.style)}<span>${esc(r.name)}</span><b>${esc(r.format(r.hit))}</b></li>`);
    this.tooltip.innerHTML = `<p>${clock(t)}</p><ul>${lines.join('')}</ul>`;
    const left = x + 14 + this.tooltip.offsetWidth > plot.width ? x - 14 - this.tooltip.offsetWidth : x + 14;
    this.tooltip.style.left = `${Math.max(0, left)}px`;
  }
}

/** The point nearest to `at`, unless it is farther than `reach`; with `reach` 0 the last one at or before. */
function nearest(points, at, reach) {
  if (reach === 0) return points.filter(([t]) => t <= at).at(-1) ?? null;
  let best = null;
  for (const point of points) {
    if (point[1] !== null && (best === null || Math.abs(point[0] - at) < Math.abs(best[0] - at))) best = point;
  }
  return best !== null && Math.abs(best[0] - at) <= reach ? best : null;
}

/** How a line or band looks, for legends and tooltips. */
export function swatch(style) {
  const shape = style.startsWith('band') || style.startsWith('region') ? `<rect class="${style}" x="0" y="1" width="22" height="10" rx="2"/>` : `<path class="${style}" d="M1 6H21"/>`;
  return `<svg class="swatch" viewBox="0 0 22 12" width="22" height="12" aria-hidden="true">${shape}</svg>`;
}

/** A small line without axes; its figures stand beside it. */
export function sparkline(points, label) {
  const values = points.map(([, v]) => v);
  if (values.length < 2) return '<div class="spark" aria-hidden="true"></div>';
  const max = Math.max(...values, 1e-9);
  const [t0, t1] = [points[0][0], points[points.length - 1][0]];
  const d = points
    .map(([t, v], i) => `${i ? 'L' : 'M'}${n(((t - t0) / (t1 - t0)) * 200)} ${n(33 - (v / max) * 30)}`)
    .join('');
  return `<svg class="spark" viewBox="0 0 200 36" preserveAspectRatio="none" role="img" aria-label="${esc(label)}">
    <path class="spark-area" d="${d}L200 36L0 36Z"/><path class="spark-line" d="${d}"/></svg>`;
}
