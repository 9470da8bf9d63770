// The page: takes a snapshot a second from /api/stream and draws it. With `?once` it takes one from /api/state, with
// `?once=stream` one from the stream, and stops: for screenshots and tests.

import { Chart, sparkline, swatch } from './chart.js';
import * as f from './format.js';

const { esc } = f;
const $ = (id) => document.getElementById(id);

/** Last HTML of each panel: unchanged panels are left alone, so that selections and open details stay. */
const drawn = new Map();

function put(id, html) {
  if (drawn.get(id) === html) return;
  drawn.set(id, html);
  const open = new Set([...$(id).querySelectorAll('details[open]')].map((d) => d.dataset.key));
  $(id).innerHTML = html;
  for (const d of $(id).querySelectorAll('details')) if (open.has(d.dataset.key)) d.open = true;
}

const empty = (title, text) => `<div class="empty"><p>${esc(title)}</p><p>${esc(text)}</p></div>`;

// ---- header ----

function drawHeader(s) {
  const checks = s.health.map(
    (c) =>
      `<li title="${esc(c.detail)}"><i class="dot-${c.ready ? 'ok' : 'bad'}" aria-hidden="true"></i>${esc(c.name)}<span>${c.ready ? 'ok' : esc(c.detail)}</span></li>`,
  );
  put('health', checks.join(''));
  const modes = { apply: 'apply: plans are carried out', advise: 'advise: plans are only published' };
  const about = [
    ['Mode', s.mode ? `<span title="${esc(modes[s.mode])}">${esc(s.mode)}</span>` : 'no plan yet'],
    ['Plan', s.plan_id ? esc(s.plan_id) : f.NONE],
    ['Up', f.span(s.now_ms - s.started_at_ms)],
    [`Time (${esc(f.zone(s.now_ms))})`, f.clock(s.now_ms)],
  ];
  put('about', about.map(([name, value]) => `<div><dt>${name}</dt><dd>${value}</dd></div>`).join(''));
  $('banner').hidden = !s.banner;
  $('banner').textContent = s.banner ?? '';
}

/** A topic is fresh for three of its usual periods; loads and forecasts come once an interval. */
function freshness(feed, s) {
  if (feed.last_ms === null) return ['none', 'nothing yet'];
  const interval = Math.max(0, ...s.services.map((x) => x.load.interval_ms));
  const limit = { Load: 3 * interval + 5000, Forecast: 3 * interval + 5000, Plan: 60000 }[feed.name] ?? 10000;
  const age = s.now_ms - feed.last_ms;
  return [age <= limit ? 'ok' : 'bad', age <= limit ? f.ago(feed.last_ms, s.now_ms) : `silent for ${f.span(age)}`];
}

function drawFeeds(s) {
  const items = s.feeds
    .filter((feed) => feed.name !== 'Rejected')
    .map((feed) => {
      const [tone, text] = freshness(feed, s);
      const title = `${feed.topic}: ${f.plural(feed.records, 'record')} read`;
      return `<li title="${esc(title)}"><i class="dot-${tone}" aria-hidden="true"></i><b>${esc(feed.name)}</b><span>${esc(text)}</span><code>${esc(feed.topic)}</code></li>`;
    });
  put('feeds', items.join(''));
}

// ---- key figures ----

function tile({ key, title, value, unit, sub, extra = '', tone = '' }) {
  return `<article class="kpi ${tone}" data-kpi="${key}"><h3>${esc(title)}</h3>
    <p class="big"><span class="value">${value}</span>${unit ? ` <span class="unit">${unit}</span>` : ''}</p>
    <p class="sub">${sub}</p>${extra}</article>`;
}

function bar(share, tone) {
  const width = Math.max(0, Math.min(100, share * 100)).toFixed(1);
  return `<div class="bar ${tone}" aria-hidden="true"><i style="width:${width}%"></i></div>`;
}

const sloTone = (share) => (share > 1 ? 'bad' : share > 0.85 ? 'near' : 'good');
const sloWord = { bad: '▲ over the objective', near: '◆ near the objective', good: '● inside the objective' };

function latencyTile(worst) {
  if (!worst) {
    return tile({ key: 'p95', title: 'p95 latency, worst service', value: f.NONE, sub: 'no answers in the last minute' });
  }
  const share = worst.p95_ms / worst.slo_ms;
  const tone = sloTone(share);
  return tile({
    key: 'p95',
    title: 'p95 latency, worst service',
    value: f.ms(worst.p95_ms),
    unit: `of ${f.ms(worst.slo_ms)}`,
    sub: `${esc(worst.service)} · <span class="tone-${tone}">${sloWord[tone]}</span>`,
    extra: bar(share, tone),
  });
}

function attainmentTile(r) {
  const finished = r.outcomes.answered + r.outcomes.rejected;
  const missed = finished - r.outcomes.in_slo;
  const sub =
    finished === 0
      ? 'no requests finished in the last 5 min'
      : `${f.count(missed)} of ${f.plural(finished, 'request')} missed, last 5 min`;
  const value = r.attainment === null ? f.NONE : f.percent(r.attainment, 2).replace(' %', '');
  const extra = r.attainment === null ? '' : bar(r.attainment, 'plain');
  return tile({ key: 'attainment', title: 'Answered in time', value, unit: r.attainment === null ? '' : '%', sub, extra });
}

function nodesTile(c) {
  const parts = [`${c.booting + c.ordered} booting`, `${c.draining} draining`];
  if (c.silent > 0) parts.push(`<span class="tone-bad">▲ ${c.silent} silent</span>`);
  parts.push(f.plural(c.ready_cores, 'core'));
  return tile({ key: 'nodes', title: 'Nodes', value: f.count(c.ready), unit: 'ready', sub: parts.join(' · ') });
}

const SOURCES = {
  planner: "the planner's account",
  plans: 'summed over the plans seen here',
};

function costTile(c) {
  if (!c) return tile({ key: 'cost', title: 'Cost so far', value: f.NONE, sub: 'no plan yet' });
  const parts = [`now ${f.usdPerHour(c.usd_per_hour)}`];
  if (c.usd_static_peak !== null) parts.push(`static peak ${f.usd(c.usd_static_peak)}`);
  if (c.usd_reactive !== null) parts.push(`reactive ${f.usd(c.usd_reactive)}`);
  const saving =
    c.saving === null
      ? 'nothing to compare with yet'
      : c.saving >= 0
        ? `<span class="tone-good">▼ ${f.percent(c.saving, 0)} less than static peak</span>`
        : `<span class="tone-bad">▲ ${f.percent(-c.saving, 0)} more than static peak</span>`;
  // The owner's account may have begun at another time than the plans.
  const from = c.source === 'owner' ? c.note : `${SOURCES[c.source]}, since ${f.clock(c.since_ms)}`;
  return tile({
    key: 'cost',
    title: 'Cost so far',
    value: f.usd(c.usd),
    sub: `${saving}<br>${parts.join(' · ')}`,
    extra: `<p class="fine" title="${esc(from)}">${esc(from)}</p>`,
  });
}

function drawKpis(s) {
  const r = s.requests;
  const tiles = [
    tile({
      key: 'telemetry',
      title: 'Telemetry',
      value: f.rate(s.telemetry.per_s),
      unit: 'msg/s',
      sub: `${f.rate(s.rejected.per_s)} rejected/s · ${f.count(s.telemetry.total)} in all`,
      extra: sparkline(s.telemetry.series, 'Telemetry rate over the last five minutes'),
    }),
    tile({
      key: 'requests',
      title: 'Prediction requests',
      value: f.rate(r.rps),
      unit: r.rps === null ? '' : 'req/s',
      sub: `${f.count(r.totals.answered)} answered · ${f.count(r.totals.rejected)} rejected`,
      extra: sparkline(r.series, 'Request rate over the last fifteen minutes'),
    }),
    attainmentTile(r),
    latencyTile(r.worst),
    nodesTile(s.node_counts),
    costTile(s.cost),
  ];
  put('kpis', tiles.join(''));
}

// ---- services ----

const charts = new Map();

const LOAD_LEGEND = [
  ['line observed', 'observed'],
  ['line forecast', 'forecast, median'],
  ['band band-95', 'to p95'],
  ['band band-99', 'to p99'],
  ['line capacity', 'planned capacity'],
];
const LATENCY_LEGEND = [
  ['line p50', 'p50'],
  ['line p95', 'p95'],
  ['line p99', 'p99'],
  ['line slo', 'objective (p95)'],
];

const legend = (items, more = '') =>
  `<ul class="legend" aria-label="Legend">${items.map(([style, text]) => `<li>${swatch(style)}${esc(text)}</li>`).join('')}${more}</ul>`;

/** One panel a service; built once, so that charts keep the pointer. */
function servicePanels(services) {
  const names = services.map((x) => x.service).join('\n');
  if (drawn.get('services') === names) return;
  drawn.set('services', names);
  charts.clear();
  $('services').innerHTML =
    services.length === 0
      ? `<div class="panel">${empty('No services yet', 'A service appears with its first interval of load, plan or heartbeat.')}</div>`
      : services.map(panel).join('');
  services.forEach((x, i) => {
    charts.set(x.service, {
      load: new Chart($(`load-${i}`), `load-${i}`),
      latency: new Chart($(`latency-${i}`), `latency-${i}`),
    });
  });
}

const panel = (x, i) => `<article class="panel service" aria-labelledby="service-${i}">
  <div class="panel-head"><h3 id="service-${i}">${esc(x.service)}</h3><p class="hint" id="verdict-${i}"></p></div>
  <dl class="stats" id="stats-${i}"></dl>
  <div class="pair">
    <figure><figcaption><b>Load and forecast</b> <span class="hint">requests per second</span>${legend(LOAD_LEGEND, `<li id="simulated-${i}" hidden>${swatch('region simulated')}simulated history</li>`)}</figcaption>
      <div id="load-${i}" class="chart-box"></div><p class="fine" id="model-${i}"></p></figure>
    <figure><figcaption><b>Latency</b> <span class="hint">from arrival to answer, all nodes, every 5 s</span>${legend(LATENCY_LEGEND)}</figcaption>
      <div id="latency-${i}" class="chart-box"></div><p class="fine" id="tail-${i}"></p></figure>
  </div></article>`;

/** The time axis that all charts share: as much of the past as there is to see, and the horizon. */
function timeAxis(s) {
  const firsts = s.services.flatMap((x) => [
    x.load.observed.find((p) => !p.simulated)?.start_ms ?? Infinity,
    x.latency[0]?.start_ms ?? Infinity,
  ]);
  const real = s.now_ms - Math.min(...firsts, s.now_ms);
  const past = Math.max(180000, Math.min(900000, 1.15 * real));
  const ends = s.services.flatMap((x) => (x.load.forecast?.steps ?? []).slice(-1).map((p) => p.start_ms + x.load.interval_ms));
  const ahead = Math.min(Math.max(0, ...ends.map((t) => t - s.now_ms)), past / 2);
  return { from: s.now_ms - past, to: s.now_ms + ahead };
}

function loadSpec(x, s, axis) {
  const { load } = x;
  const middle = (p) => p.start_ms + load.interval_ms / 2;
  const inside = (points) => points.filter(([t]) => t >= axis.from - load.interval_ms && t <= axis.to);
  const observed = inside(load.observed.map((p) => [middle(p), p.rps]));
  const last = observed.at(-1);
  const steps = (load.forecast?.steps ?? []).filter((p) => middle(p) <= axis.to && (!last || middle(p) > last[0]));
  const ahead = load.ahead.filter((p) => middle(p) >= axis.from && (!last || middle(p) <= last[0]));
  const join = last && steps.length > 0 ? [last] : [];
  const band = (points, lo, hi) => points.map((p) => [middle(p), p[lo], p[hi]]);
  const joined = (points) => [...join.map(([t, v]) => [t, v, v]), ...points];
  const capacity = load.capacity;
  const median = [...join, ...steps.map((p) => [middle(p), p.p50_rps])];
  const pastMedian = ahead.map((p) => [middle(p), p.p50_rps]);
  const tops = [...observed.map((p) => p[1]), ...steps.map((p) => p.p99_rps ?? p.p95_rps ?? p.p50_rps), ...ahead.map((p) => p.p95_rps ?? p.p50_rps)];
  const top = Math.max(...tops, 0);
  const visible = capacity.filter(([t], i) => (capacity[i + 1]?.[0] ?? Infinity) > axis.from).map(([, v]) => v);
  // A capacity far above the load must not flatten the load: then it is drawn at the edge and named in words.
  const yMax = Math.max(top * 1.1, Math.min(Math.max(...visible, 0) * 1.08, top > 0 ? top * 1.8 : Infinity), 1);
  const simulated = load.observed.filter((p) => p.simulated);
  const interval = load.interval_ms;
  const now = capacity.filter(([t]) => t <= s.now_ms).at(-1);
  return {
    height: 236,
    x: [axis.from, axis.to],
    unit: 'req/s',
    yMax,
    now: s.now_ms,
    label: `${x.service}: load ${f.rate(x.rps)} requests per second, forecast ${f.rate(steps[0]?.p50_rps)} with 95th percentile ${f.rate(steps[0]?.p95_rps)}, planned capacity ${f.rate(now?.[1])}`,
    layers: [
      ...(simulated.length > 0
        ? [{ kind: 'region', style: 'region simulated', from: simulated[0].start_ms, to: simulated.at(-1).start_ms + interval, text: 'simulated history', short: 'simulated' }]
        : []),
      { kind: 'band', style: 'band band-past', points: band(ahead, 'p50_rps', 'p95_rps') },
      { kind: 'band', style: 'band band-99', points: joined(band(steps, 'p95_rps', 'p99_rps')) },
      { kind: 'band', style: 'band band-95', points: joined(band(steps, 'p50_rps', 'p95_rps')) },
      { kind: 'line', style: 'line forecast past', points: pastMedian },
      { kind: 'step', style: 'line capacity', points: capacity, to: axis.to },
      { kind: 'line', style: 'line forecast', points: median },
      { kind: 'line', style: 'line observed', points: observed },
    ],
    columns: [
      { name: 'observed', style: 'line observed', points: observed, reach: interval, format: ([, v]) => `${f.rate(v)} req/s` },
      { name: 'forecast p50', style: 'line forecast', points: [...pastMedian, ...steps.map((p) => [middle(p), p.p50_rps])], reach: interval, format: ([, v]) => `${f.rate(v)} req/s` },
      { name: 'forecast p95', style: 'band band-95', points: [...ahead, ...steps].map((p) => [middle(p), p.p95_rps]), reach: interval, format: ([, v]) => `${f.rate(v)} req/s` },
      { name: 'planned capacity', style: 'line capacity', points: capacity, reach: 0, format: ([, v]) => `${f.rate(v)} req/s` },
    ],
    simulated: simulated.some((p) => p.start_ms + interval > axis.from),
    nothing: observed.length === 0 && steps.length === 0 && capacity.length === 0,
    over: Math.max(...visible, 0) > yMax * 1.05 ? Math.max(...visible) : null,
  };
}

function latencySpec(x, s, axis) {
  const points = x.latency.filter((p) => p.start_ms >= axis.from - 5000);
  const middle = (p) => p.start_ms + 2500;
  // A bucket that was never reported is a gap, like one without answers.
  const filled = [];
  points.forEach((p, i) => {
    if (i > 0 && p.start_ms - points[i - 1].start_ms > 10000) filled.push({ start_ms: points[i - 1].start_ms + 5000, latency: null });
    filled.push(p);
  });
  const line = (key) => filled.map((p) => [middle(p), p.latency ? p.latency[key] : null]);
  const tops = points.flatMap((p) => (p.latency ? [p.latency.p99_ms] : []));
  const top = Math.max(...tops, 0);
  const slo = x.slo_ms ?? 0;
  const yMax = Math.max(1.25 * slo, Math.min(1.08 * top, slo > 0 ? 4 * slo : Infinity), 1);
  const column = (name, style, key) => ({ name, style, points: line(key), reach: 5000, format: ([, v]) => f.ms(v) });
  return {
    height: 236,
    x: [axis.from, s.now_ms],
    unit: 'ms',
    yMax,
    label: `${x.service}: latency of the last minute, median ${f.ms(x.recent?.p50_ms)}, 95th percentile ${f.ms(x.recent?.p95_ms)}, 99th ${f.ms(x.recent?.p99_ms)}, objective ${f.ms(x.slo_ms)}`,
    layers: [
      { kind: 'line', style: 'line p99', points: line('p99_ms') },
      { kind: 'line', style: 'line p50', points: line('p50_ms') },
      { kind: 'line', style: 'line p95', points: line('p95_ms') },
      ...(slo > 0 ? [{ kind: 'rule', style: 'line slo', value: slo, text: `objective ${f.ms(slo)}` }] : []),
    ],
    columns: [column('p99', 'line p99', 'p99_ms'), column('p95', 'line p95', 'p95_ms'), column('p50', 'line p50', 'p50_ms')],
    nothing: tops.length === 0,
    over: top > yMax * 1.05 ? top : null,
  };
}

function stat(name, value, note = '') {
  return `<div><dt>${esc(name)}</dt><dd>${value}</dd><dd class="note">${note}</dd></div>`;
}

function stats(x) {
  const d = x.decision;
  const peak = Math.max(...(x.load.forecast?.steps ?? []).map((p) => p.p95_rps ?? p.p50_rps), -Infinity);
  const share = x.recent && x.slo_ms ? x.recent.p95_ms / x.slo_ms : null;
  const short = d && d.shortfall_rps > 0 ? `<span class="tone-bad">▲ short by ${f.rate(d.shortfall_rps)} req/s</span>` : '';
  return [
    stat('Load', `${f.rate(x.rps)} <small>req/s</small>`, `forecast peak p95 ${f.rate(Number.isFinite(peak) ? peak : null)} req/s`),
    stat('Planned capacity', `${f.rate(d?.capacity_rps)} <small>req/s</small>`, short || (d ? `${f.rate(d.demand_rps)} demand + ${f.rate(d.margin_rps)} queueing` : 'no plan yet')),
    stat('Instances', `${f.count(x.ready_instances)} <small>of ${f.count(d?.instances)} planned</small>`, `${f.plural(x.workers, 'worker')}${d?.chosen ? ` · ${esc(d.chosen)}` : ''}`),
    stat('p95, last minute', `${f.ms(x.recent?.p95_ms)} <small>of ${f.ms(x.slo_ms)}</small>`, share === null ? 'no answers yet' : `<span class="tone-${sloTone(share)}">${sloWord[sloTone(share)]}</span>`),
    stat('Answered in time', f.percent(x.attainment, 2), 'last 5 min'),
    stat('Answered', `${f.rate(x.answered_per_s)} <small>req/s</small>`, `${f.rate(x.rejected_per_s)} rejected/s`),
    stat('Queue', `${f.count(x.queue_depth)} <small>waiting</small>`, `oldest ${f.ms(x.queue_age_ms)}`),
  ].join('');
}

function modelNote(x, over) {
  const { forecast, ahead_score: score, lead_ms: leadMs } = x.load;
  const parts = [];
  if (over !== null) parts.push(`Planned capacity reaches ${f.rate(over)} req/s, above this scale.`);
  if (forecast?.cold_start) parts.push('The series is still too short for seasonal experts.');
  if (score) {
    parts.push(`Behind the line: what was forecast ${f.lead(leadMs)} ahead. Load stayed below that p95 in ${f.percent(score.below_p95, 0)} of ${f.plural(score.intervals, 'interval')}; median off by ${f.rate(score.mae_rps)} req/s on average.`);
  }
  const weights = (forecast?.weights ?? []).filter(([, w]) => w >= 0.01).slice(0, 4);
  if (weights.length > 0) parts.push(`Weights: ${weights.map(([name, w]) => `${esc(name)} ${f.percent(w, 0)}`).join(', ')}.`);
  return parts.join(' ');
}

function drawServices(s) {
  servicePanels(s.services);
  const axis = timeAxis(s);
  s.services.forEach((x, i) => {
    const pair = charts.get(x.service);
    put(`verdict-${i}`, x.decision ? esc(x.decision.reason) : 'not in a plan yet');
    put(`stats-${i}`, stats(x));
    const load = loadSpec(x, s, axis);
    const latency = latencySpec(x, s, axis);
    pair.load.draw(load);
    pair.latency.draw(latency);
    $(`simulated-${i}`).hidden = !load.simulated;
    veil(`load-${i}`, load.nothing ? 'No load observed yet' : '');
    veil(`latency-${i}`, latency.nothing ? 'No answers yet' : '');
    put(`model-${i}`, modelNote(x, load.over));
    const notes = [`${f.count(x.totals.answered)} answered, ${f.count(x.totals.rejected)} rejected so far.`];
    if (latency.over !== null) notes.push(`The highest p99, ${f.ms(latency.over)}, is above this scale.`);
    put(`tail-${i}`, notes.join(' '));
  });
}

/** Says over an empty chart why it is empty. */
function veil(id, text) {
  const box = $(id);
  box.dataset.veil = text;
  box.classList.toggle('veiled', text !== '');
}

// ---- fleet ----

const CONDITIONS = {
  ordered: ['○', 'ordered'],
  booting: ['◔', 'booting'],
  ready: ['●', 'ready'],
  draining: ['◑', 'draining'],
  stopped: ['■', 'stopped'],
  silent: ['▲', 'silent'],
};
const ACTIONS = { start: 'start', keep: 'keep', renew: 'renew lease', lapse: 'let lease lapse', stop: 'stop' };

function pips(x) {
  const most = 24;
  const planned = Math.min(x.workers, x.planned_workers);
  const borrowed = Math.max(0, x.workers - x.planned_workers);
  const absent = Math.max(0, x.planned_workers - x.workers);
  const text = `${f.plural(x.workers, 'worker')} of ${x.planned_workers} planned${borrowed ? `, ${borrowed} borrowed` : ''}`;
  const marks = [...Array(planned).fill('planned'), ...Array(borrowed).fill('borrowed'), ...Array(absent).fill('missing')];
  const shown = marks.slice(0, most).map((m) => `<i class="pip pip-${m}"></i>`).join('');
  const rest = marks.length > most ? `<span>+${marks.length - most}</span>` : '';
  return `<span class="pips" role="img" aria-label="${text}" title="${text}">${shown}${rest}</span><span class="pip-text">${x.workers}/${x.planned_workers}${borrowed ? ` <em>+${borrowed}</em>` : ''}</span>`;
}

function instance(x) {
  const state = x.state ?? 'planned';
  const detail = x.error ? `<p class="tone-bad">▲ ${esc(x.error)}</p>` : '';
  const load = x.load_ms !== null ? `, loaded in ${f.ms(x.load_ms)}` : '';
  return `<li title="version ${esc(x.version)}, ${esc(x.backend)}${load}"><span class="name">${esc(x.service)}</span><span class="state state-${state}">${state}</span>${pips(x)}${detail}</li>`;
}

function lease(node, s) {
  if (node.lease_end_ms === null) return '<span>not in the plan</span>';
  const left = node.lease_end_ms - s.now_ms;
  return left > 0 ? `<span>lease ends in <b>${f.span(left)}</b></span>` : '<span>lease has ended</span>';
}

function nodeCard(node, s) {
  const [mark, word] = CONDITIONS[node.condition];
  const silent = node.condition === 'silent' ? ` for ${f.span(s.now_ms - node.last_seen_ms)}` : '';
  const instances = node.instances.length > 0 ? node.instances.map((x) => instance(x)).join('') : '<li class="hint">no instances</li>';
  const facts = [
    node.cores !== null ? f.plural(node.cores, 'core') : null,
    node.usd_per_hour !== null ? f.usdPerHour(node.usd_per_hour) : null,
    node.started_at_ms !== null && node.condition !== 'stopped' ? `up ${f.coarse(s.now_ms - node.started_at_ms)}` : null,
  ].filter((x) => x !== null);
  return `<article class="node node-${node.condition}"><header><h3>${esc(node.node)}</h3><span class="chip chip-${node.condition}"><span aria-hidden="true">${mark}</span> ${word}${silent}</span></header>
    <p class="facts"><b>${esc(node.flavor)}</b> · ${facts.join(' · ')}</p>
    <ul class="instances">${instances}</ul>
    <footer>${lease(node, s)}${node.action ? `<span class="action" title="${esc(node.reason)}">plan: ${ACTIONS[node.action]}</span>` : ''}</footer></article>`;
}

function drawNodes(s) {
  const most = 60;
  const rest = s.nodes.length > most ? `<p class="fine">and ${f.plural(s.nodes.length - most, 'more node')}; all are in /api/state</p>` : '';
  const cards = s.nodes.slice(0, most).map((node) => nodeCard(node, s)).join('');
  put('nodes', s.nodes.length === 0 ? empty('No nodes yet', 'A node appears when a plan orders it or with its first heartbeat.') : `<div class="cards">${cards}</div>${rest}`);
}

// ---- plans and events ----

const SIGNS = { start: '+', keep: '=', renew: '↻', lapse: '↓', stop: '−' };

const sample = (load) =>
  load ? ` <span class="sample">${esc(load.service)} at ${f.clock(load.start_ms)}: observed ${f.rate(load.observed_rps)}, planned for ${f.rate(load.forecast_rps)} req/s</span>` : '';

function change(c) {
  const who = `${ACTIONS[c.action]} ${c.node}${c.service ? ` for ${c.service}` : ''}`;
  return `<li><span class="sign sign-${c.action}" aria-hidden="true">${SIGNS[c.action]}</span><div><b>${esc(who)}</b> ${esc(c.reason)}${sample(c.load)}</div></li>`;
}

function decision(d) {
  const short = d.shortfall_rps > 0 ? ` <span class="tone-bad">▲ short by ${f.rate(d.shortfall_rps)} req/s</span>` : '';
  return `<li><b>${esc(d.service)}</b> ${esc(d.reason)} <span class="sample">observed ${f.rate(d.load.observed_rps)}, ${f.percent(d.quantile, 0)} forecast ${f.rate(d.load.forecast_rps)}, capacity ${f.rate(d.capacity_rps)} req/s; ${f.plural(d.instances, 'instance')}${d.chosen ? ` on ${esc(d.chosen)}` : ''}; bound by ${esc(d.bound_by)}</span>${short}</li>`;
}

function planRow(p) {
  const run = p.plans > 1 ? `${f.plural(p.plans, 'plan')} without change, to ${f.clock(p.last_at_ms)}` : 'no change';
  const left = p.changes_left_out > 0 ? `<li class="hint">and ${f.plural(p.changes_left_out, 'more change')}</li>` : '';
  const what = p.changes.length > 0 ? `<ul class="changes">${p.changes.map(change).join('')}${left}</ul>` : `<p class="quiet">${run}</p>`;
  const why =
    p.services.length > 0
      ? `<details data-key="${p.created_at_ms}"><summary>why, by service</summary><ul class="decisions">${p.services.map(decision).join('')}</ul></details>`
      : '';
  const short = p.shortfall_rps > 0 ? `<span class="tone-bad">▲ short by ${f.rate(p.shortfall_rps)} req/s</span>` : '';
  const advise = p.mode === 'advise' ? '<span class="chip">advice only</span>' : '';
  return `<li class="plan ${p.changes.length > 0 ? '' : 'plan-quiet'}"><div class="when">${f.time(p.created_at_ms)}<code>${esc(p.plan_id)}</code>${advise}</div>
    <div class="what">${what}${why}</div><div class="price"><b>${f.usdPerHour(p.cost_usd_per_hour)}</b><span>${f.plural(p.nodes, 'node')}</span>${short}</div></li>`;
}

function drawPlans(s) {
  put('plans', s.plans.length === 0 ? empty('No plan yet', 'The planner publishes its first plan once it has a forecast and profiles.') : `<ol class="rows">${s.plans.map(planRow).join('')}</ol>`);
}

const KINDS = { vertical: ['↕', 'vertical', 'worker'], horizontal: ['↔', 'horizontal', 'instance'] };

function eventRow(e) {
  const [mark, word, unit] = KINDS[e.kind];
  const plan = e.plan_id ? ` <span class="sample">plan ${esc(e.plan_id)}</span>` : '';
  return `<li class="event"><div class="when">${f.time(e.at_ms)}<span class="chip"><span aria-hidden="true">${mark}</span> ${word}</span></div>
    <div class="what"><b>${esc(e.service)}</b> on <b>${esc(e.node)}</b>: ${e.from} → ${f.plural(e.to, unit)}<br>${esc(e.reason)}${sample(e.load)}${plan}</div></li>`;
}

function drawEvents(s) {
  put('events', s.events.length === 0 ? empty('No scaling events yet', 'Nodes report here when they add or take away workers and instances.') : `<ol class="rows">${s.events.map(eventRow).join('')}</ol>`);
}

// ---- everything ----

let newest = null;

function draw(s) {
  drawHeader(s);
  drawFeeds(s);
  drawKpis(s);
  drawServices(s);
  drawNodes(s);
  drawPlans(s);
  drawEvents(s);
  const bad = s.unreadable > 0 ? `${f.plural(s.unreadable, 'record')} could not be read and ${s.unreadable === 1 ? 'is' : 'are'} not shown. ` : '';
  $('foot').innerHTML = `${bad}Figures as <a href="/api/state">JSON</a> · <a href="/metrics">metrics</a> · <a href="/readyz">readiness</a>`;
}

function take(json) {
  newest = JSON.parse(json);
  draw(newest);
}

/** The stream is lost when nothing came for this long; snapshots come once a second. */
const LOST_MS = 4000;
let lastAt = performance.now();

function watch() {
  const lost = performance.now() - lastAt > LOST_MS;
  document.body.classList.toggle('stale', lost);
  $('lost').hidden = !lost;
  if (lost) {
    const as = newest ? ` What you see is as of ${f.clock(newest.now_ms)}.` : '';
    const text = `▲ No connection to Barista.${as} Trying again every second.`;
    if ($('lost').textContent !== text) $('lost').textContent = text;
  }
}

const once = new URLSearchParams(location.search).get('once');

function connect() {
  const source = new EventSource('/api/stream');
  source.onmessage = (event) => {
    lastAt = performance.now();
    take(event.data);
    watch();
    if (once === 'stream') {
      source.close();
      done();
    }
  };
  // The browser connects again by itself, unless the answer was no stream at all.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  };
}

/** Says to a test that the one snapshot is drawn. */
function done() {
  document.documentElement.dataset.drawn = 'once';
}

if (once === null) {
  connect();
  setInterval(watch, 1000);
} else if (once === 'stream') {
  connect();
} else {
  fetch('/api/state').then((response) => response.text()).then(take).then(done);
}

let resizing = 0;
addEventListener('resize', () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => newest && drawServices(newest));
});
