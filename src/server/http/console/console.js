// The console of a Quorate node: asks it once a second what placement knows of the cluster, and shows it.
//
// All that is shown comes from users or from the network. It only ever becomes text (textContent, fillText),
// and never markup, a selector or a property name. Every part is built once and then updated in place, so
// that focus, selection and scroll positions outlive each answer. The history in the heat map is this page's
// own.

const POLL_INTERVAL_MS = 1_000;
const POLL_PAUSE_MIN_MS = 250;
const ANSWER_MAX_MS = 6_000;
const OLD_AFTER_MS = 5_000;
const EXPLAIN_DELAY_MS = 150;
const EXPLAIN_INTERVAL_MS = 5_000;
const BUSIEST_INTERVAL_MS = 5_000;
const BUSIEST_MAX = 5;

const SLOT_MS = 5_000;
const SLOTS = 120;
const HEAT_STEPS = 64;
const HEAT_STOPS = 7;
const HEAT_ROW_MIN_PX = 7;
const HEAT_AXIS_PX = 20;
const BRIEF_KEY_MAX = 18;

const MIB = 1024 * 1024;
const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

// The largest kind of cell with which the strip keeps within its height is taken. The small one with its gap
// is as large as a finger needs.
const CELLS = [
  { size: 'large', width: 148, height: 74, gap: 4, stripHeight: 480 },
  { size: 'medium', width: 72, height: 40, gap: 3, stripHeight: 480 },
  { size: 'small', width: 22, height: 22, gap: 2, stripHeight: 560 },
];

// What the load can be shown in. `ceiling` is the load with the strongest colour, `ticks` are the parts of it
// that the legend names.
const MEASURES = new Map([
  ['operations', {
    text: (load) => `${whole(load)}\u00a0ops/s`,
    tick: whole,
    unit: 'ops/s',
    ceiling: decimalCeiling,
    ticks: [100, 10, 1],
  }],
  ['bytes', {
    text: (load) => `${byteText(load)}/s`,
    tick: byteText,
    unit: 'a second',
    ceiling: binaryCeiling,
    ticks: [128, 8, 1],
  }],
]);

const HEALTHS = new Set(['up', 'slow', 'suspect', 'dead']);

const page = {
  picture: null,
  advancedAt: 0,
  failure: null,
  stateShown: null,
  selected: selectedByAddress(),
  explanation: null,
  markedNode: null,
  measure: 'operations',
  history: [],
  palette: null,
  cell: CELLS[0],
  columns: 1,
  part: 0,
  revealPending: true,
  focusedShard: null,
  hoveredShard: null,
  heatCursor: null,
  heatRows: 0,
  busiest: [],
  busiestAt: -Infinity,
  renderPending: false,
};

const parts = new Map();
for (const found of document.querySelectorAll('[id]')) parts.set(found.id, found);
const part = (id) => parts.get(id);

// ---------------------------------------------------------------- elements

function element(name, className = '', ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

function setStyle(node, property, value) {
  if (node.style.getPropertyValue(property) !== value) node.style.setProperty(property, value);
}

// Children of one parent, one for each item. A child stays the same element for as long as its key is there.
class KeyedList {
  constructor(parent, create) {
    this.parent = parent;
    this.create = create;
    this.entries = new Map();
  }

  update(items, keyOf, fill) {
    const keys = items.map(keyOf);
    this.removeAllBut(new Set(keys));
    items.forEach((item, place) => fill(this.entryAt(keys[place], place), item, place));
  }

  removeAllBut(keys) {
    for (const [key, entry] of this.entries) {
      if (keys.has(key)) continue;
      entry.root.remove();
      this.entries.delete(key);
    }
  }

  entryAt(key, place) {
    let entry = this.entries.get(key);
    if (!entry) {
      entry = this.create(key);
      this.entries.set(key, entry);
    }
    const there = this.parent.children[place];
    if (there !== entry.root) this.parent.insertBefore(entry.root, there ?? null);
    return entry;
  }
}

// For items without a name of their own.
function keyOfPlace(item, place) {
  return place;
}

// ---------------------------------------------------------------- words and numbers

const wholeFormat = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenthFormat = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clockFormat = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23',
});

function whole(value) {
  return wholeFormat.format(value);
}

function byteText(bytes) {
  const power = bytes < 1024 ? 0 : Math.floor(Math.log2(bytes) / 10);
  const unit = Math.min(power, BYTE_UNITS.length - 1);
  const value = bytes / 1024 ** unit;
  const format = unit > 0 && value < 10 ? tenthFormat : wholeFormat;
  return `${format.format(value)}\u00a0${BYTE_UNITS[unit]}`;
}

function latencyText(microseconds) {
  if (microseconds === null || microseconds === undefined) return '–';
  const milliseconds = microseconds / 1_000;
  const format = milliseconds < 10 ? tenthFormat : wholeFormat;
  return `${format.format(milliseconds)}\u00a0ms`;
}

function durationText(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1_000));
  const pair = (large, largeUnit, small, smallUnit) =>
    small === 0 ? `${large}\u00a0${largeUnit}` : `${large}\u00a0${largeUnit} ${small}\u00a0${smallUnit}`;
  if (seconds < 60) return `${seconds}\u00a0s`;
  if (seconds < 3_600) return pair(Math.floor(seconds / 60), 'min', seconds % 60, 's');
  if (seconds < 86_400) return pair(Math.floor(seconds / 3_600), 'h', Math.floor(seconds / 60) % 60, 'min');
  return pair(Math.floor(seconds / 86_400), 'd', Math.floor(seconds / 3_600) % 24, 'h');
}

function counted(count, one, many) {
  return `${whole(count)}\u00a0${count === 1 ? one : many}`;
}

// Characters that hide, or that turn the direction of what follows, are written out.
function plain(value) {
  const unseen = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  return String(value).replace(unseen, (found) => `\\u{${found.charCodeAt(0).toString(16)}}`);
}

function shortened(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}

// What all keys but the empty one begin with, if keys are so long that it stands in the way.
function sharedPrefixOf(shards) {
  const starts = shards.map((shard) => shard.start).filter((start) => start !== '');
  if (starts.length < 2 || starts.every((start) => start.length <= BRIEF_KEY_MAX)) return '';
  let length = Math.min(...starts.map((start) => start.length)) - 1;
  for (const start of starts) {
    while (!start.startsWith(starts[0].slice(0, length))) length -= 1;
  }
  // An escaped byte stays whole.
  return starts[0].slice(0, Math.max(0, length)).replace(/\\(x[0-9a-f]?)?$/, '');
}

// For where there is little room.
function briefStartText(start) {
  const { sharedPrefix } = page.picture;
  if (start === '' || sharedPrefix === '') return startText(start);
  return `…${plain(start.slice(sharedPrefix.length))}`;
}

function startText(start) {
  return start === '' ? 'first key' : plain(start);
}

function endText(end) {
  return end === null ? 'last key' : plain(end);
}

function nodeText(id) {
  return id === null ? 'nobody' : `n${id}`;
}

function nodeNameText(id) {
  const node = page.picture.nodes.get(id);
  if (!node) return `${nodeText(id)} (no member)`;
  return node.name === nodeText(id) ? node.name : `${nodeText(id)} ${plain(node.name)}`;
}

function measure() {
  return MEASURES.get(page.measure);
}

function loadOf(shard) {
  return page.measure === 'operations' ? shard.operations : shard.loadBytes;
}

// ---------------------------------------------------------------- the picture

class Refusal extends Error {}

async function request(address) {
  const signal = AbortSignal.timeout(ANSWER_MAX_MS);
  const response = await fetch(address, { cache: 'no-store', signal });
  const answer = await response.json();
  if (!response.ok) throw new Refusal(plain(answer.error ?? `status ${response.status}`).replace(/\.$/, ''));
  return answer;
}

async function poll() {
  const began = performance.now();
  try {
    accept(await request('state.json'));
    page.failure = null;
  } catch (error) {
    page.failure = failureText(error);
  }
  try {
    if (document.hidden) page.renderPending = true;
    else render();
  } finally {
    const taken = performance.now() - began;
    setTimeout(poll, Math.max(POLL_PAUSE_MIN_MS, POLL_INTERVAL_MS - taken));
  }
}

function failureText(error) {
  if (error instanceof Refusal) return `This node cannot reach placement: ${error.message}`;
  if (error.name === 'TimeoutError') return 'This node does not answer in time';
  if (error instanceof SyntaxError) return 'This node answers with something that is no picture';
  return 'This node does not answer';
}

function accept(answer) {
  const picture = pictureOf(answer);
  if (picture.at !== page.picture?.at) page.advancedAt = performance.now();
  page.picture = picture;
  remember(picture);
}

function pictureOf(answer) {
  const operators = new Map(answer.operators.map((operator) => [operator.shard, operator]));
  const shards = answer.shards.map((shard) => shardOf(shard, answer, operators));
  const picture = {
    at: answer.at_ms,
    cluster: answer.cluster,
    answeredBy: answer.answered_by,
    placementLeader: answer.placement_leader,
    paused: answer.paused,
    policy: answer.policy,
    rules: answer.rules,
    events: answer.events,
    nodes: new Map(answer.nodes.map((node) => [node.id, node])),
    shards,
    places: new Map(shards.map((shard, place) => [shard.id, place])),
    operators,
    sharedPrefix: sharedPrefixOf(shards),
  };
  picture.shares = sharesOf(shards);
  return picture;
}

function shardOf(shard, answer, operators) {
  const replicas = shard.replicas.map(([id, node, lag, learner]) => {
    return { id, node, lag, learner: learner === 1 };
  });
  const leader = replicas.find((replica) => replica.id === shard.leader) ?? null;
  const rule = answer.rules[shard.rule];
  const voters = replicas.filter((replica) => !replica.learner).length;
  const cost = shard.operations + shard.load_bytes / Math.max(1, answer.policy.operation_bytes);
  return {
    ...shard,
    replicas,
    leader,
    rule,
    voters,
    loadBytes: shard.load_bytes,
    isThin: voters < rule.replicas,
    isHot: cost >= answer.policy.split_operations,
    operator: operators.get(shard.id) ?? null,
  };
}

// What each node has of the shards.
function sharesOf(shards) {
  const shares = new Map();
  const share = (node) => {
    if (!shares.has(node)) shares.set(node, { replicas: 0, leaders: 0, operations: 0, bytes: 0 });
    return shares.get(node);
  };
  for (const shard of shards) {
    for (const replica of shard.replicas) share(replica.node).replicas += 1;
    if (shard.leader === null) continue;
    const led = share(shard.leader.node);
    led.leaders += 1;
    led.operations += shard.operations;
    led.bytes += shard.loadBytes;
  }
  return shares;
}

function selectedShard() {
  const place = page.picture.places.get(page.selected);
  return place === undefined ? null : page.picture.shards[place];
}

// ---------------------------------------------------------------- history

// A slot of time has what each shard bore at most. Slots with the same shards in the same order share a
// layout.
function remember(picture) {
  const number = Math.floor(picture.at / SLOT_MS);
  const last = page.history.at(-1);
  if (last && number < last.number) return;
  const slot = slotOf(picture, number, last);
  if (last && number === last.number) page.history.pop();
  page.history.push(slot);
  while (page.history[0].number <= number - SLOTS) page.history.shift();
}

function slotOf(picture, number, last) {
  const isSame = last && isLayoutOf(last.layout, picture.shards);
  const layout = isSame ? last.layout : { places: picture.places, count: picture.shards.length };
  const slot = {
    number,
    layout,
    operations: Float64Array.from(picture.shards, (shard) => shard.operations),
    bytes: Float64Array.from(picture.shards, (shard) => shard.loadBytes),
    most: new Map(),
    rows: null,
  };
  if (isSame && last.number === number) keepGreater(slot, last);
  for (const name of MEASURES.keys()) {
    slot.most.set(name, slot[name].reduce((one, other) => Math.max(one, other), 0));
  }
  return slot;
}

function isLayoutOf(layout, shards) {
  if (layout.count !== shards.length) return false;
  return shards.every((shard, place) => layout.places.get(shard.id) === place);
}

function keepGreater(slot, earlier) {
  for (const name of MEASURES.keys()) {
    slot[name].forEach((value, place) => {
      slot[name][place] = Math.max(value, earlier[name][place]);
    });
  }
}

// The load of each row of the heat map in one slot; -1 where nothing is known. Within a row the busiest shard
// counts, so that the colours are those of the strip.
function rowsOf(slot, layout, count) {
  const key = slot.rows;
  if (key && key.layout === layout && key.count === count && key.measure === page.measure) return key.loads;
  const loads = new Float64Array(count).fill(-1);
  const places = placesIn(slot.layout);
  places.forEach((place, shard) => {
    const row = Math.floor((shard * count) / places.length);
    if (place >= 0) loads[row] = Math.max(loads[row], slot[page.measure][place]);
  });
  slot.rows = { layout, count, measure: page.measure, loads };
  return loads;
}

// Where each shard of today was in an earlier layout. One that was not there yet was split off from what is
// left of it, and bore that load.
function placesIn(layout) {
  let place = -1;
  return page.picture.shards.map((shard) => {
    place = layout.places.get(shard.id) ?? place;
    return place;
  });
}

// ---------------------------------------------------------------- colours

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const stops = Array.from({ length: HEAT_STOPS }, (_, stop) => channelsOf(color(`--heat-${stop}`)));
  const steps = Array.from({ length: HEAT_STEPS }, (_, step) => stepColor(stops, step / (HEAT_STEPS - 1)));
  page.palette = { steps, ink: color('--ink'), soft: color('--soft'), line: color('--line') };
}

function channelsOf(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

function stepColor(stops, share) {
  const place = Math.min(share * (stops.length - 1), stops.length - 1.001);
  const left = Math.floor(place);
  const mixed = stops[left].map((channel, at) => {
    return Math.round(channel + (stops[left + 1][at] - channel) * (place - left));
  });
  // At this luminance black and white stand out alike, 4.5 to 1.
  const isLight = luminance(mixed) > 0.179;
  return { fill: `rgb(${mixed.join(' ')})`, ink: isLight ? '#000000' : '#ffffff' };
}

function luminance(channels) {
  const [red, green, blue] = channels.map((channel) => (channel / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// The load with the strongest colour: a round one above all that the history holds, so that colours do not
// change from one answer to the next.
function topLoad() {
  return measure().ceiling(Math.max(...page.history.map((slot) => slot.most.get(page.measure))));
}

function decimalCeiling(load) {
  const least = Math.max(100, load);
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= least);
}

function binaryCeiling(load) {
  return 2 ** Math.ceil(Math.log2(Math.max(MIB, load)));
}

// Logarithmic, since loads differ by orders of magnitude; nearly linear in the lowest thousandth.
function heatShare(load, top) {
  return Math.min(1, Math.log1p((1_000 * load) / top) / Math.log(1_001));
}

function heatStep(load, top) {
  return Math.round(heatShare(load, top) * (HEAT_STEPS - 1));
}

// ---------------------------------------------------------------- header

const totals = new KeyedList(part('totals'), () => {
  const [name, value, more] = [element('dt'), element('dd'), element('dd', 'soft')];
  return { root: element('div', 'total', name, value, more), name, value, more };
});

function renderHeader() {
  const { picture } = page;
  setText(part('cluster'), plain(picture.cluster));
  totals.update(totalsOf(picture), (total) => total.name, (entry, total) => {
    setText(entry.name, total.name);
    setText(entry.value, total.value);
    setText(entry.more, total.more);
    entry.root.toggleAttribute('data-amiss', total.amiss ?? false);
  });
}

function totalsOf(picture) {
  const { shards, nodes } = picture;
  const sum = (valueOf) => shards.reduce((total, shard) => total + valueOf(shard), 0);
  const up = [...nodes.values()].filter((node) => node.health === 'up').length;
  return [
    { name: 'Load', value: `${whole(sum((shard) => shard.operations))}\u00a0ops/s`,
      more: `${byteText(sum((shard) => shard.loadBytes))}/s` },
    { name: 'Keys', value: whole(sum((shard) => shard.keys)),
      more: `in ${counted(shards.length, 'shard', 'shards')}` },
    { name: 'Data', value: byteText(sum((shard) => shard.bytes)),
      more: 'each shard counted once' },
    { name: 'Nodes', value: `${up} of ${nodes.size}`, more: up === nodes.size ? 'all are up' : 'are up',
      amiss: up < nodes.size },
    { name: 'Placement', value: placementWord(picture), more: placementText(picture),
      amiss: placementWord(picture) !== 'running' },
  ];
}

function placementWord(picture) {
  return picture.paused ? 'paused' : 'running';
}

function placementText(picture) {
  return `led by ${nodeNameText(picture.placementLeader)}`;
}

function renderStatus() {
  const { kind, text } = statusOf();
  setAttribute(document.documentElement, 'data-state', kind);
  setText(part('status-text'), text);
  // Read aloud when it changes, but not each second while the picture gets older.
  if (page.stateShown !== kind) setText(part('announcement'), text);
  page.stateShown = kind;
}

function statusOf() {
  if (!page.picture) {
    const waiting = { kind: 'waiting', text: 'Waiting for the first answer of this node' };
    return page.failure ? { kind: 'lost', text: 'No picture yet' } : waiting;
  }
  const at = clockFormat.format(page.picture.at);
  const age = performance.now() - page.advancedAt;
  if (!page.failure && age <= OLD_AFTER_MS) {
    return { kind: 'live', text: `Live, answered by ${nodeNameText(page.picture.answeredBy)} at ${at}` };
  }
  const why = page.failure ?? 'Placement says nothing new';
  return { kind: 'old', text: `${why}. This picture is ${durationText(age)} old, of ${at}.` };
}

function renderNotice() {
  const isLost = !page.picture && page.failure !== null;
  setHidden(part('notice'), !isLost);
  setText(part('notice-text'), `${page.failure ?? ''}.`);
}

// ---------------------------------------------------------------- nodes

const nodeList = new KeyedList(part('nodes'), createNode);

function createNode(id) {
  const node = createNodeFields();
  node.sign.setAttribute('aria-hidden', 'true');
  node.meter.setAttribute('role', 'img');
  node.labelList = new KeyedList(node.labels, () => ({ root: element('bdi', 'chip') }));
  node.mark = element('button', 'mark-node', node.name, node.id);
  node.mark.type = 'button';
  node.mark.addEventListener('click', () => markNode(id));
  node.root = element('tr', '', ...nodeCells(node));
  node.root.setAttribute('role', 'row');
  return node;
}

function createNodeFields() {
  return {
    name: element('bdi'),
    id: element('span', 'soft'),
    address: element('bdi', 'key soft below'),
    leads: element('span', 'chip', 'leads placement'),
    sign: element('span', 'sign'),
    health: element('b'),
    duty: element('span', 'duty'),
    role: element('span'),
    silent: element('span', 'soft below'),
    labels: createTableCell('labels', 'Labels'),
    meter: element('span', 'meter', element('span', 'fill'), element('span', 'limit')),
    disk: element('span', 'soft below'),
    replicas: createNumber('Replicas'),
    leaders: createNumber('Leaders'),
    load: createNumber('Load led'),
    sync: createNumber('Log sync'),
    roundTrip: createNumber('Round trip'),
  };
}

function nodeCells(node) {
  const health = element('span', 'health', node.sign, node.health);
  const duty = element('span', 'below', node.duty, ' · ', node.role);
  const numbers = [node.replicas, node.leaders, node.load, node.sync, node.roundTrip];
  return [
    createTableCell('who', 'Node', node.mark, node.leads, node.address),
    createTableCell('state', 'State', health, duty, node.silent),
    node.labels,
    createTableCell('disk', 'Disk', node.meter, node.disk),
    ...numbers.map((number) => number.cell),
  ];
}

// The role is said, since a narrow window does not lay the table out as one.
function createTableCell(className, label, ...children) {
  const made = element('td', className, ...children);
  made.setAttribute('role', 'cell');
  made.dataset.label = label;
  return made;
}

function createNumber(label) {
  const [value, more] = [element('span'), element('span', 'soft below')];
  return { cell: createTableCell('number', label, value, more), value, more };
}

function markNode(id) {
  page.markedNode = page.markedNode === id ? null : id;
  render();
}

function renderNodes() {
  const { picture } = page;
  const nodes = [...picture.nodes.values()];
  nodeList.update(nodes, (node) => node.id, fillNode);
  setHidden(part('nodes-empty'), nodes.length > 0);
  const { markedNode } = page;
  const help = 'Choose one to mark its shards in the key space.';
  const marked = markedNode === null ? help : `${nodeNameText(markedNode)} is marked in the key space.`;
  setText(part('nodes-summary'), marked);
}

function fillNode(entry, node) {
  const share = page.picture.shares.get(node.id) ?? { replicas: 0, leaders: 0, operations: 0, bytes: 0 };
  setText(entry.name, plain(node.name));
  setText(entry.id, node.name === nodeText(node.id) ? '' : nodeText(node.id));
  setAttribute(entry.mark, 'aria-pressed', String(page.markedNode === node.id));
  setText(entry.address, plain(node.address));
  setHidden(entry.leads, page.picture.placementLeader !== node.id);
  fillNodeState(entry, node);
  const labels = Object.entries(node.labels);
  entry.labelList.update(labels, ([name]) => name, (label, [name, value]) => {
    setText(label.root, `${plain(name)}=${plain(value)}`);
  });
  fillDisk(entry, node);
  setText(entry.replicas.value, whole(share.replicas));
  setText(entry.leaders.value, whole(share.leaders));
  setText(entry.load.value, `${whole(share.operations)}\u00a0ops/s`);
  setText(entry.load.more, `${byteText(share.bytes)}/s`);
  setText(entry.sync.value, latencyText(node.sync_us));
  setText(entry.roundTrip.value, latencyText(node.round_trip_us));
}

function fillNodeState(entry, node) {
  const isUp = node.health === 'up';
  setAttribute(entry.sign, 'data-health', HEALTHS.has(node.health) ? node.health : 'unknown');
  setText(entry.health, plain(node.health));
  setText(entry.duty, plain(node.duty));
  setAttribute(entry.duty, 'data-away', node.duty === 'serve' ? null : '');
  setText(entry.role, plain(node.role));
  const isSilent = node.silent_ms === null || node.silent_ms >= OLD_AFTER_MS;
  setText(entry.silent, isUp || !isSilent ? '' : silenceText(node.silent_ms));
}

function silenceText(silent) {
  return silent === null ? 'has never reported' : `silent for ${durationText(silent)}`;
}

function fillDisk(entry, node) {
  const [fill, limit] = entry.meter.children;
  const isKnown = node.capacity_bytes > 0;
  const share = isKnown ? Math.min(1, node.used_bytes / node.capacity_bytes) : 0;
  const full = page.picture.policy.full_percent;
  const percent = Math.round(share * 100);
  const isFull = isKnown && share * 100 >= full;
  setStyle(fill, 'inline-size', `${(share * 100).toFixed(1)}%`);
  setStyle(limit, 'inset-inline-start', `${full}%`);
  setAttribute(entry.meter, 'data-full', isFull ? '' : null);
  setAttribute(entry.meter, 'aria-label', isKnown ? `${percent} % of the disk is used` : 'disk not known');
  const used = isKnown ? `${byteText(node.used_bytes)} of ${byteText(node.capacity_bytes)}` : 'not known yet';
  setText(entry.disk, isFull ? `${used}, full at ${full}\u00a0%` : used);
}

// ---------------------------------------------------------------- operators

const operatorList = new KeyedList(part('operators'), createOperator);

function createOperator(shard) {
  const operator = {
    shard: element('button', 'shard-link', `s${shard}`),
    action: element('bdi', 'strong'),
    reason: element('bdi'),
    step: element('span', 'soft'),
    time: element('span', 'soft'),
  };
  operator.shard.type = 'button';
  operator.shard.addEventListener('click', () => selectAndShow(shard));
  operator.root = element('li', 'operator',
    element('p', '', operator.shard, ' ', operator.action),
    element('p', 'reason', operator.reason),
    element('p', '', operator.step),
    element('p', '', operator.time));
  return operator;
}

function renderOperators() {
  const operators = [...page.picture.operators.values()];
  operatorList.update(operators, (operator) => operator.shard, fillOperator);
  setText(part('operators-summary'), operators.length === 0 ? '' : whole(operators.length));
  setHidden(part('operators-empty'), operators.length > 0);
  const paused = 'Nothing is under way. Placement is paused: it plans nothing until it is resumed.';
  setText(part('operators-empty'), page.picture.paused ? paused : 'Nothing is under way.');
}

function fillOperator(entry, operator) {
  setText(entry.action, plain(operator.action));
  setText(entry.reason, `${plain(operator.aim)}: ${plain(operator.reason)}`);
  setText(entry.step, stepText(operator));
  setText(entry.time, operatorTimeText(operator));
}

function stepText(operator) {
  if (operator.progress === 'done') return 'Done, to be struck off';
  if (operator.progress === 'stale') return 'The shard has become another one; this is given up';
  const bytes = operator.bytes > 0 ? `, ${byteText(operator.bytes)} to copy` : '';
  return `Step: ${plain(operator.step)}${bytes}`;
}

function operatorTimeText(operator) {
  const left = operator.expires_ms - page.picture.at;
  return left > 0 ? `expires in ${durationText(left)}` : 'has expired';
}

// ---------------------------------------------------------------- the strip of shards

const strip = new KeyedList(part('strip'), createCell);

function createCell(id) {
  const texts = ['id', 'from', 'size', 'leader', 'load'].map((name) => [name, element('span', name)]);
  const bar = element('i', 'bar');
  const root = element('div', 'cell', ...texts.map(([, made]) => made), bar);
  root.id = `shard-${id}`;
  root.setAttribute('role', 'option');
  root.addEventListener('click', () => select(id));
  root.addEventListener('focus', () => focusCell(id));
  root.addEventListener('pointerenter', () => hoverShard(id));
  root.addEventListener('pointerleave', () => hoverShard(null));
  return { root, bar, step: -1, palette: null, ...Object.fromEntries(texts) };
}

function focusCell(id) {
  page.focusedShard = id;
  renderTabStop();
  renderShardLine();
}

function hoverShard(id) {
  page.hoveredShard = id;
  renderShardLine();
}

function renderShards() {
  const { shards } = page.picture;
  chooseCell(shards.length);
  if (page.revealPending) revealSelected();
  const visible = visibleShards();
  const top = topLoad();
  const { size } = page.cell;
  strip.update(visible, (shard) => shard.id, (entry, shard) => fillCell(entry, shard, size, top));
  setText(part('strip-help'), stripHelp(visible.length));
  renderTabStop();
  setHidden(part('shards-empty'), shards.length > 0);
  setText(part('shards-summary'), counted(shards.length, 'shard', 'shards') + ', in key order');
  renderPager(visible, top);
  renderBusiest();
  renderShardLine();
}

function stripHelp(length) {
  const help = 'The arrow keys go from shard to shard and select; details follow below.';
  if (partCount() === 1) return help;
  return `${help} ${whole(length)} of them are in the list at once; the arrow keys go on to the others.`;
}

function chooseCell(count) {
  const width = part('strip').clientWidth;
  const columnsOf = (cell) => Math.max(1, Math.floor((width + cell.gap) / (cell.width + cell.gap)));
  const fits = (cell) => Math.ceil(count / columnsOf(cell)) * (cell.height + cell.gap) <= cell.stripHeight;
  page.cell = CELLS.find(fits) ?? CELLS.at(-1);
  const most = page.cell.size === 'small' ? Infinity : Math.max(1, count);
  page.columns = Math.min(columnsOf(page.cell), most);
  styleStrip(part('strip'));
}

function styleStrip(node) {
  const { size, height, gap } = page.cell;
  setAttribute(node, 'data-size', size);
  setStyle(node, '--columns', String(page.columns));
  setStyle(node, '--cell-height', `${height}px`);
  setStyle(node, '--cell-gap', `${gap}px`);
  // The last part has fewer shards, and what is below must not move.
  const least = partCount() > 1 ? rowsOfPart() * (height + gap) : 0;
  setStyle(node, 'min-block-size', `${least}px`);
}

function revealSelected() {
  const place = page.picture.places.get(page.selected);
  if (place !== undefined) page.part = Math.floor(place / shardsOfPart());
  page.revealPending = false;
}

function rowsOfPart() {
  return Math.floor(page.cell.stripHeight / (page.cell.height + page.cell.gap));
}

function shardsOfPart() {
  return rowsOfPart() * page.columns;
}

function partCount() {
  return Math.max(1, Math.ceil(page.picture.shards.length / shardsOfPart()));
}

function visibleShards() {
  page.part = Math.min(page.part, partCount() - 1);
  const from = page.part * shardsOfPart();
  return page.picture.shards.slice(from, from + shardsOfPart());
}

function fillCell(entry, shard, size, top) {
  const leader = shard.leader;
  const step = heatStep(loadOf(shard), top);
  if (entry.step !== step || entry.palette !== page.palette) paintCell(entry, step);
  setText(entry.leader, leaderText(leader, size));
  if (size !== 'small') {
    setText(entry.id, `s${shard.id}`);
    setText(entry.size, byteText(shard.bytes));
  }
  if (size === 'large') {
    setText(entry.from, briefStartText(shard.start));
    setText(entry.load, measure().text(loadOf(shard)));
  }
  const filled = Math.min(1, shard.bytes / page.picture.policy.split_bytes);
  setStyle(entry.bar, 'inline-size', `${Math.round(filled * 100)}%`);
  const { root } = entry;
  root.toggleAttribute('data-under-way', shard.operator !== null);
  root.toggleAttribute('data-thin', shard.isThin);
  root.toggleAttribute('data-hot', shard.isHot);
  root.toggleAttribute('data-led', leader !== null);
  root.toggleAttribute('data-faint', !isOnMarkedNode(shard));
  setAttribute(root, 'aria-selected', String(shard.id === page.selected));
  setAttribute(root, 'aria-label', shardText(shard));
}

function paintCell(entry, step) {
  const { fill, ink } = page.palette.steps[step];
  entry.root.style.backgroundColor = fill;
  entry.root.style.color = ink;
  entry.step = step;
  entry.palette = page.palette;
}

function leaderText(leader, size) {
  if (leader === null) return size === 'large' ? 'no leader' : '?';
  return size === 'small' ? String(leader.node) : nodeText(leader.node);
}

function isOnMarkedNode(shard) {
  return page.markedNode === null || shard.replicas.some((replica) => replica.node === page.markedNode);
}

function shardText(shard) {
  const leader = shard.leader === null ? 'no leader known' : `${nodeText(shard.leader.node)} leads`;
  const range = `${shortened(startText(shard.start), 40)} to ${shortened(endText(shard.end), 40)}`;
  const load = measure().text(loadOf(shard));
  return [`s${shard.id}`, range, byteText(shard.bytes), leader, load, ...signTexts(shard)].join(', ');
}

function signTexts(shard) {
  const signs = [
    [shard.operator !== null, 'an operator in progress'],
    [shard.isThin, `${shard.voters} of ${shard.rule.replicas} replicas`],
    [shard.isHot, 'busy enough to be split'],
  ];
  return signs.filter(([holds]) => holds).map(([, text]) => text);
}

// One cell can be reached by the tabulator key; the arrow keys go on from there.
function renderTabStop() {
  const { entries } = strip;
  const first = entries.keys().next().value;
  const wanted = [page.selected, page.focusedShard].find((id) => entries.has(id)) ?? first;
  for (const [id, entry] of entries) {
    const index = id === wanted ? 0 : -1;
    if (entry.root.tabIndex !== index) entry.root.tabIndex = index;
  }
}

function renderShardLine() {
  const id = page.hoveredShard ?? page.selected ?? page.focusedShard;
  const place = page.picture?.places.get(id);
  const help = 'Point at a shard, or go to it with the arrow keys.';
  setText(part('shard-line'), place === undefined ? help : shardText(page.picture.shards[place]));
}

function stripKey(event) {
  if (event.key === 'Escape') return select(null);
  const { shards, places } = page.picture;
  const here = places.get(page.focusedShard);
  const there = here === undefined ? undefined : placeAfterKey(event.key, here);
  if (there === undefined) return;
  event.preventDefault();
  const shard = shards[Math.max(0, Math.min(shards.length - 1, there))];
  select(shard.id);
  strip.entries.get(shard.id)?.root.focus();
}

function placeAfterKey(key, here) {
  switch (key) {
    case 'ArrowRight': return here + 1;
    case 'ArrowLeft': return here - 1;
    case 'ArrowDown': return here + page.columns;
    case 'ArrowUp': return here - page.columns;
    case 'PageDown': return here + shardsOfPart();
    case 'PageUp': return here - shardsOfPart();
    case 'Home': return 0;
    case 'End': return page.picture.shards.length - 1;
    case 'Enter': case ' ': return here;
    default: return undefined;
  }
}

function turnTo(number) {
  page.part = Math.max(0, Math.min(partCount() - 1, number));
  render();
}

function renderPager(visible, top) {
  const count = partCount();
  setHidden(part('pager'), count === 1);
  if (count === 1) return;
  const first = page.part * shardsOfPart();
  const [from, to] = [whole(first + 1), whole(first + visible.length)];
  setText(part('pager-text'), `${from} to ${to} of ${whole(page.picture.shards.length)}`);
  part('pager-back').disabled = page.part === 0;
  part('pager-on').disabled = page.part === count - 1;
  drawOverview(first, visible.length, top);
}

// All shards in one line, the busiest of those that share a point; the part shown below is framed.
function drawOverview(first, length, top) {
  const { context, width, height } = prepareCanvas(part('overview'), part('overview').clientWidth, 28);
  const { shards } = page.picture;
  const points = Math.min(shards.length, Math.floor(width / 3));
  const loads = new Float64Array(points);
  shards.forEach((shard, place) => {
    const point = Math.floor((place * points) / shards.length);
    loads[point] = Math.max(loads[point], loadOf(shard));
  });
  loads.forEach((load, point) => {
    context.fillStyle = page.palette.steps[heatStep(load, top)].fill;
    context.fillRect((point * width) / points, 4, width / points + 0.5, height - 8);
  });
  context.strokeStyle = page.palette.ink;
  context.lineWidth = 2;
  const shown = Math.max(4, (length * width) / shards.length - 2);
  context.strokeRect((first * width) / shards.length + 1, 1, shown, height - 2);
}

function overviewClick(event) {
  const box = part('overview').getBoundingClientRect();
  const place = Math.floor(((event.clientX - box.left) / box.width) * page.picture.shards.length);
  turnTo(Math.floor(place / shardsOfPart()));
}

const busiest = new KeyedList(part('busiest'), () => {
  const [id, load] = [element('b'), element('span')];
  const root = element('button', 'busy', id, ' ', load);
  root.type = 'button';
  root.addEventListener('click', () => selectAndShow(Number(root.dataset.shard)));
  return { root, id, load };
});

// Among few shards the busiest is seen anyway.
function renderBusiest() {
  const { shards } = page.picture;
  setHidden(part('busiest'), shards.length <= BUSIEST_MAX);
  if (shards.length <= BUSIEST_MAX) return;
  chooseBusiest(shards);
  busiest.update(page.busiest, keyOfPlace, fillBusy);
}

// The order is kept for some seconds, so that nobody chooses another than the one meant.
function chooseBusiest(shards) {
  if (performance.now() - page.busiestAt < BUSIEST_INTERVAL_MS) return;
  page.busiestAt = performance.now();
  const sorted = [...shards].sort((one, other) => loadOf(other) - loadOf(one));
  page.busiest = sorted.slice(0, BUSIEST_MAX).map((shard) => shard.id);
}

function fillBusy(entry, id) {
  const shard = page.picture.shards[page.picture.places.get(id)];
  setText(entry.id, `s${id}`);
  setText(entry.load, shard ? measure().text(loadOf(shard)) : 'gone');
  setAttribute(entry.root, 'data-shard', String(id));
}

// ---------------------------------------------------------------- selection and details

function selectedByAddress() {
  const found = /^#s(\d{1,20})$/.exec(location.hash);
  return found ? Number(found[1]) : null;
}

function select(id) {
  if (page.selected !== id) page.explanation = null;
  page.selected = id;
  if (id !== null) page.focusedShard = id;
  page.revealPending = true;
  history.replaceState(null, '', id === null ? location.pathname : `#s${id}`);
  renderIfReady();
  explainLater(EXPLAIN_DELAY_MS);
}

// From elsewhere than the strip, where the details may be out of sight.
function selectAndShow(id) {
  select(id);
  part('details-title').closest('section').scrollIntoView({ block: 'nearest' });
}

let explainTimer = 0;

function explainLater(delay) {
  clearTimeout(explainTimer);
  explainTimer = setTimeout(explain, delay);
}

async function explain() {
  const shard = page.selected;
  if (shard === null) return;
  let explanation;
  try {
    explanation = await request(`explain.json?shard=${shard}`);
  } catch (error) {
    explanation = { shard, failure: error instanceof Refusal ? error.message : failureText(error) };
  }
  if (page.selected !== shard) return;
  page.explanation = explanation;
  explainLater(EXPLAIN_INTERVAL_MS);
  if (page.picture && !document.hidden) renderDetails();
}

const FACTS = [
  ['From', 'key', (shard) => startText(wholeRange(shard).start)],
  ['To', 'key', (shard) => endText(wholeRange(shard).end)],
  ['Leader', '', (shard) => leadText(shard)],
  ['Load', '', (shard) => `${whole(shard.operations)}\u00a0ops/s, ${byteText(shard.loadBytes)}/s`],
  ['Size', '', (shard) => `${byteText(shard.bytes)}, split at ${byteText(page.picture.policy.split_bytes)}`],
  ['Keys', '', (shard) => whole(shard.keys)],
  ['Epoch', '', (shard) => plain(shard.epoch)],
  ['State', '', (shard) => stateText(shard)],
];

// Long keys come whole with the explanation alone.
function wholeRange(shard) {
  return page.explanation?.start === undefined ? shard : page.explanation;
}

const factList = new KeyedList(part('details-facts'), (name) => {
  const value = element('dd');
  return { root: element('div', 'fact', element('dt', '', name), value), value };
});

const replicaList = new KeyedList(part('details-replicas'), () => {
  const [sign, who, state] = [element('span', 'sign'), element('bdi'), element('span', 'soft')];
  sign.setAttribute('aria-hidden', 'true');
  return { root: element('li', 'replica', sign, who, state), sign, who, state };
});

const findingList = new KeyedList(part('details-findings'), () => {
  const [sign, aim, text] = [element('span', 'sign'), element('bdi', 'strong'), element('bdi')];
  sign.setAttribute('aria-hidden', 'true');
  return { root: element('li', 'finding', sign, element('p', '', aim, ' ', text)), sign, aim, text };
});

const ruleList = new KeyedList(part('rule-list'), () => ({ root: element('li', 'rule') }));

function renderDetails() {
  const shard = selectedShard();
  setText(part('details-title'), page.selected === null ? 'Shard' : `Shard s${page.selected}`);
  setHidden(part('details-close'), page.selected === null);
  setHidden(part('details'), shard === null);
  setHidden(part('details-empty'), shard !== null);
  const nothing = 'Select a shard to see its replicas, and what placement wants for it.';
  const gone = `s${page.selected} is not in the key space: it is not reported, or there is no such shard.`;
  setText(part('details-empty'), page.selected === null ? nothing : gone);
  setHidden(part('rules'), page.selected !== null);
  ruleList.update(page.picture.rules, keyOfPlace, (entry, rule) => setText(entry.root, ruleText(rule)));
  if (shard) fillDetails(shard);
}

function fillDetails(shard) {
  factList.update(FACTS, ([name]) => name, (entry, [, className, textOf]) => {
    setAttribute(entry.value, 'class', className);
    setText(entry.value, textOf(shard));
  });
  replicaList.update(shard.replicas, (replica) => replica.id, (entry, replica) => {
    fillReplica(entry, replica, shard);
  });
  setText(part('details-rule'), ruleText(shard.rule));
  renderFindings();
}

function leadText(shard) {
  if (shard.leader === null) return 'not known';
  return `${nodeNameText(shard.leader.node)} for ${durationText(shard.led_s * 1_000)}`;
}

function stateText(shard) {
  const busy = shard.busy_s > 0 ? [`busy for ${durationText(shard.busy_s * 1_000)}`] : [];
  const quiet = shard.quiet_s > 0 ? [`small and cold for ${durationText(shard.quiet_s * 1_000)}`] : [];
  const texts = [...signTexts(shard), ...busy, ...quiet, ...neighbourTexts(shard)];
  return texts.length === 0 ? 'nothing to note' : texts.join('; ');
}

// Reports come late, so that ranges may leave gaps or overlap for a while.
function neighbourTexts(shard) {
  const next = page.picture.shards[page.picture.places.get(shard.id) + 1];
  const nextStart = next ? next.start : null;
  return nextStart === shard.end ? [] : ['its range does not meet the next one: a report is late'];
}

function fillReplica(entry, replica, shard) {
  const health = page.picture.nodes.get(replica.node)?.health ?? 'dead';
  setAttribute(entry.sign, 'data-health', HEALTHS.has(health) ? health : 'unknown');
  setText(entry.who, `r${replica.id} on ${nodeNameText(replica.node)}`);
  setText(entry.state, replicaText(replica, shard, health));
}

function replicaText(replica, shard, health) {
  const follower = replica.learner ? 'learner' : 'voter';
  const role = shard.leader?.id === replica.id ? 'leader' : follower;
  const texts = [role, lagText(replica.lag)];
  if (health !== 'up') texts.push(`node ${plain(health)}`);
  return texts.join(', ');
}

function lagText(lag) {
  if (lag === null) return 'not heard of';
  return lag === 0 ? 'no lag' : `lacks ${counted(lag, 'entry', 'entries')}`;
}

function ruleText(rule) {
  const labels = (list, join) => list.map(plain).join(join);
  const texts = [`${counted(rule.replicas, 'replica', 'replicas')} spread over ${plain(rule.spread)}`];
  if (rule.required.length > 0) texts.push(`on nodes with ${labels(rule.required, ' and ')}`);
  if (rule.forbidden.length > 0) texts.push(`not on nodes with ${labels(rule.forbidden, ' or ')}`);
  const preferred = labels(rule.preferred_leaders, ' or ');
  if (preferred !== '') texts.push(`led on ${preferred} where possible`);
  const own = `Keys that begin with ${plain(rule.prefix)}`;
  const keys = rule.prefix === '' ? 'Keys without a rule of their own' : own;
  return `${keys}: ${texts.join(', ')}.`;
}

function renderFindings() {
  const findings = page.explanation?.findings ?? [];
  const open = findings.filter((finding) => finding.state !== 'in_order');
  findingList.update(open, keyOfPlace, (entry, finding) => {
    const state = finding.state === 'planned' ? 'planned' : 'held';
    setAttribute(entry.sign, 'data-finding', state);
    setText(entry.aim, plain(finding.aim));
    setText(entry.text, `${state}: ${plain(finding.text)}`);
  });
  setText(part('details-explain'), explainText(findings));
}

function explainText(findings) {
  if (!page.explanation) return 'Asking placement…';
  if (page.explanation.failure) return `Placement does not say: ${page.explanation.failure}.`;
  const inOrder = findings.filter((finding) => finding.state === 'in_order');
  const settled = inOrder.map((finding) => plain(finding.aim));
  return settled.length === 0 ? '' : `In order: ${settled.join(', ')}.`;
}

// ---------------------------------------------------------------- the heat map

function prepareCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  setStyle(canvas, 'block-size', `${height}px`);
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

// Where the heat map is within its canvas, and how it is divided.
function heatFrame() {
  const box = part('heat-frame');
  const labels = Math.min(180, Math.max(84, box.clientWidth * 0.16));
  const height = box.clientHeight - HEAT_AXIS_PX;
  const count = Math.min(page.picture.shards.length, Math.floor(height / HEAT_ROW_MIN_PX));
  return { left: labels, width: box.clientWidth - labels, height, count, rowHeight: height / count };
}

function renderHeat() {
  const frame = heatFrame();
  page.heatRows = frame.count;
  const canvas = part('heat');
  const { context } = prepareCanvas(canvas, part('heat-frame').clientWidth, part('heat-frame').clientHeight);
  if (frame.count > 0) {
    drawHeat(context, frame);
    drawHeatKeys(context, frame);
    drawHeatCursor(context, frame);
  }
  drawHeatTimes(context, frame);
  setText(part('heat-summary'), heatSummary(frame));
  renderHeatLine();
}

function heatSummary(frame) {
  const { length } = page.picture.shards;
  if (frame.count === length) return 'Each row is a shard.';
  return `Each row is ${whole(Math.ceil(length / frame.count))} shards or one less, coloured by the busiest.`;
}

function drawHeat(context, frame) {
  const top = topLoad();
  const layout = page.history.at(-1).layout;
  const last = page.history.at(-1).number;
  const gap = frame.rowHeight >= 6 ? 1 : 0;
  for (const slot of page.history) {
    const left = frame.left + ((SLOTS - 1 - (last - slot.number)) * frame.width) / SLOTS;
    rowsOf(slot, layout, frame.count).forEach((load, row) => {
      if (load < 0) return;
      context.fillStyle = page.palette.steps[heatStep(load, top)].fill;
      context.fillRect(left, row * frame.rowHeight, frame.width / SLOTS + 0.5, frame.rowHeight - gap);
    });
  }
  context.strokeStyle = page.palette.line;
  context.lineWidth = 1;
  context.strokeRect(frame.left + 0.5, 0.5, frame.width - 1, frame.height - 1);
}

function drawHeatKeys(context, frame) {
  context.font = '11px ui-monospace, monospace';
  context.fillStyle = page.palette.soft;
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  const most = Math.floor((frame.left - 10) / context.measureText('0').width);
  const every = Math.ceil(15 / frame.rowHeight);
  for (let row = 0; row < frame.count; row += every) {
    const shard = page.picture.shards[firstOfRow(row)];
    const text = shortened(briefStartText(shard.start), most);
    context.fillText(text, frame.left - 8, Math.max(6, (row + 0.5) * frame.rowHeight));
  }
}

function drawHeatTimes(context, frame) {
  context.font = '11px system-ui, sans-serif';
  context.fillStyle = page.palette.soft;
  context.textBaseline = 'alphabetic';
  const minutes = frame.width < 420 ? [10, 5, 0] : [10, 8, 6, 4, 2, 0];
  for (const minute of minutes) {
    const at = frame.left + frame.width * (1 - minute / 10);
    context.textAlign = minute === 10 ? 'left' : minute === 0 ? 'right' : 'center';
    const latest = page.failure ? 'last picture' : 'now';
    context.fillText(minute === 0 ? latest : `${minute} min ago`, at, frame.height + 15);
  }
}

function drawHeatCursor(context, frame) {
  const cursor = page.heatCursor;
  if (!cursor) return;
  const width = frame.width / SLOTS;
  const left = frame.left + (SLOTS - 1 - cursor.ago) * width;
  context.strokeStyle = page.palette.ink;
  context.lineWidth = 1;
  context.strokeRect(frame.left + 0.5, cursor.row * frame.rowHeight - 0.5, frame.width - 1, frame.rowHeight);
  context.lineWidth = 2;
  context.strokeRect(left - 1, cursor.row * frame.rowHeight - 2, width + 2, frame.rowHeight + 3);
}

function firstOfRow(row) {
  return Math.ceil((row * page.picture.shards.length) / page.heatRows);
}

function shardsOfRow(row) {
  return page.picture.shards.slice(firstOfRow(row), firstOfRow(row + 1));
}

function renderHeatLine() {
  const cursor = page.heatCursor;
  const watched = `This page has watched for ${durationText(watchedFor())}.`;
  setText(part('heat-line'), cursor && cursor.row < page.heatRows ? heatCursorText(cursor) : watched);
}

function watchedFor() {
  return (page.history.at(-1).number - page.history[0].number + 1) * SLOT_MS;
}

function heatCursorText(cursor) {
  const shards = shardsOfRow(cursor.row);
  const [from, to] = [startText(shards[0].start), endText(shards.at(-1).end)];
  const range = `${shortened(from, 32)} to ${shortened(to, 32)}`;
  const last = page.history.at(-1);
  const slot = page.history.find((candidate) => candidate.number === last.number - cursor.ago);
  const load = slot ? rowsOf(slot, last.layout, page.heatRows)[cursor.row] : -1;
  const when = cursor.ago === 0 ? 'now' : `${durationText(cursor.ago * SLOT_MS)} ago`;
  const most = shards.length > 1 ? 'the busiest shard had ' : '';
  return `${when}, ${range}: ${load < 0 ? 'nothing is known' : most + measure().text(load)}`;
}

function moveHeatCursor(row, ago) {
  if (page.heatRows === 0) return;
  page.heatCursor = {
    row: Math.max(0, Math.min(page.heatRows - 1, row)),
    ago: Math.max(0, Math.min(SLOTS - 1, ago)),
  };
  renderHeat();
}

function heatPoint(event) {
  const box = part('heat-frame').getBoundingClientRect();
  const frame = heatFrame();
  const row = Math.floor((event.clientY - box.top) / frame.rowHeight);
  const share = (event.clientX - box.left - frame.left) / frame.width;
  moveHeatCursor(row, SLOTS - 1 - Math.floor(share * SLOTS));
}

function heatClick(event) {
  heatPoint(event);
  selectBusiestOfRow();
}

function heatLeave() {
  page.heatCursor = null;
  renderHeat();
}

// A finger leaves as soon as it is lifted; what it pointed at is to be read then.
function heatPointerLeave(event) {
  if (event.pointerType === 'mouse') heatLeave();
}

function heatKey(event) {
  const { row, ago } = page.heatCursor ?? { row: 0, ago: 0 };
  const moves = new Map([
    ['ArrowUp', [row - 1, ago]], ['ArrowDown', [row + 1, ago]],
    ['ArrowLeft', [row, ago + 1]], ['ArrowRight', [row, ago - 1]],
    ['Home', [row, SLOTS - 1]], ['End', [row, 0]],
  ]);
  const move = moves.get(event.key);
  if (event.key === 'Enter') selectBusiestOfRow();
  else if (move) moveHeatCursor(...move);
  else return;
  setText(part('announcement'), part('heat-line').textContent);
  event.preventDefault();
}

function selectBusiestOfRow() {
  if (!page.heatCursor) return;
  const shards = shardsOfRow(page.heatCursor.row);
  selectAndShow(shards.reduce((most, shard) => (loadOf(shard) > loadOf(most) ? shard : most)).id);
}

// ---------------------------------------------------------------- legends

function sample(name, text) {
  const shown = element('span', `sample ${name}`);
  shown.setAttribute('aria-hidden', 'true');
  return element('span', 'legend-item', shown, text);
}

function createScale(parent) {
  const ticks = [element('span'), element('span'), element('span')];
  const ramp = element('span', 'ramp');
  const unit = element('span');
  ramp.setAttribute('aria-hidden', 'true');
  const scale = element('span', 'scale', ramp, element('span', 'ticks', element('span', '', '0'), ...ticks));
  parent.append(element('span', 'legend-item', scale, unit));
  return { ticks, unit };
}

const scales = [createScale(part('strip-legend')), createScale(part('heat-legend'))];
const sizeSample = sample('bar-sample', '');
const numberSample = sample('number-sample', 'node that leads');
numberSample.firstChild.textContent = '3';
part('strip-legend').append(
  numberSample,
  sizeSample,
  sample('under-way-sample', 'operator in progress'),
  sample('thin-sample', 'fewer replicas than wanted'),
  sample('hot-sample', 'busy enough to be split'),
  sample('leaderless-sample', 'no leader known'),
);
part('heat-legend').append(sample('blank-sample', 'not watched'));

function renderLegends() {
  const top = topLoad();
  const loads = measure().ticks.map((divisor) => top / divisor);
  for (const { ticks, unit } of scales) {
    setText(unit, measure().unit);
    ticks.forEach((tick, place) => fillTick(tick, loads[place], top));
  }
  setHidden(numberSample, page.cell.size !== 'small');
  setText(sizeSample.lastChild, `size, full at ${byteText(page.picture.policy.split_bytes)}`);
}

function fillTick(tick, load, top) {
  setText(tick, measure().tick(load));
  setStyle(tick, 'inset-inline-end', `${((1 - heatShare(load, top)) * 100).toFixed(1)}%`);
}

// ---------------------------------------------------------------- events

const eventList = new KeyedList(part('events'), () => {
  const [time, text] = [element('time', 'soft'), element('bdi')];
  return { root: element('li', 'event', time, text), time, text };
});

function renderEvents() {
  const seen = new Map();
  const keyOf = (event) => {
    const key = `${event.at_ms} ${event.text}`;
    seen.set(key, (seen.get(key) ?? 0) + 1);
    return `${key} ${seen.get(key)}`;
  };
  eventList.update(page.picture.events, keyOf, (entry, event) => {
    setText(entry.time, clockFormat.format(event.at_ms));
    setAttribute(entry.time, 'datetime', new Date(event.at_ms).toISOString());
    setText(entry.text, plain(event.text));
  });
  setHidden(part('events-empty'), page.picture.events.length > 0);
}

// ---------------------------------------------------------------- all of it

function render() {
  page.renderPending = false;
  renderStatus();
  renderNotice();
  if (!page.picture) return;
  setHidden(part('cluster-view'), false);
  renderHeader();
  renderNodes();
  renderOperators();
  renderShards();
  renderDetails();
  renderHeat();
  renderLegends();
  renderEvents();
}

function renderIfReady() {
  if (page.picture) render();
}

function changeColors() {
  readPalette();
  renderIfReady();
}

function createMeasures() {
  for (const name of MEASURES.keys()) {
    const input = element('input');
    Object.assign(input, { type: 'radio', name: 'measure', value: name, checked: name === page.measure });
    input.addEventListener('change', () => changeMeasure(name));
    part('measures').append(element('label', '', input, element('span', '', `${name}/s`)));
  }
}

function changeMeasure(name) {
  page.measure = name;
  page.busiestAt = -Infinity;
  renderIfReady();
}

function listen() {
  part('strip').addEventListener('keydown', stripKey);
  part('details-close').addEventListener('click', () => select(null));
  part('pager-back').addEventListener('click', () => turnTo(page.part - 1));
  part('pager-on').addEventListener('click', () => turnTo(page.part + 1));
  part('overview').addEventListener('click', overviewClick);
  part('heat-frame').addEventListener('pointermove', heatPoint);
  part('heat-frame').addEventListener('pointerleave', heatPointerLeave);
  part('heat-frame').addEventListener('blur', heatLeave);
  part('heat-frame').addEventListener('keydown', heatKey);
  part('heat-frame').addEventListener('click', heatClick);
  addEventListener('hashchange', () => select(selectedByAddress()));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changeColors);
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden && page.renderPending) render();
  });
  const observer = new ResizeObserver(() => requestAnimationFrame(renderIfReady));
  observer.observe(part('strip'));
  observer.observe(part('heat-frame'));
}

readPalette();
createMeasures();
listen();
explain();
poll();
