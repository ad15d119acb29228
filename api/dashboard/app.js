// The read-only page: a plain client of the public API, authenticated by the session cookie.
// Everything that comes from the server is set as text, never as markup.

/** Every string people see, in one place: translations replace this object. */
const T = {
  title: "Haversack: jobs, GPUs and queues",
  live: "live",
  connecting: "connecting…",
  away: "no answer from the daemon; trying again",
  simulated: "SIMULATED GPUs",
  simulatedHint: "jobs placed on them get no real GPU",
  login: {
    title: "Open the dashboard",
    hint: "Run “haversack dashboard” for a one-time link, or paste a token. The browser gets a " +
      "read-only session of twelve hours; the token itself is not kept.",
    label: "Token",
    button: "Open",
    refused: "This token was not accepted.",
    failed: "The daemon did not answer. Is it running?",
  },
  tiles: {
    gpus: "GPUs in use", running: "Running", waiting: "Waiting", held: "Held", gap: "Proven gap",
  },
  of: (all) => ` of ${all}`,
  none: "–",
  gpus: {
    title: "GPUs by node",
    none: "No node offers GPUs; jobs without GPUs can still run.",
    used: "in use", free: "free", cordoned: "cordoned", unhealthy: "unhealthy",
    cell: (gpu, facts) => `GPU ${gpu.index}, ${gpu.model}: ${facts.join(", ")}`,
    usedBy: (job) => (job ? `in use by ${job}` : "in use by another tenant"),
    node: (node) => `${node.gpus_used}/${node.gpus} in use`,
    nodeCordoned: "cordoned", nodeUnhealthy: "unhealthy",
    grid: (node) => `GPUs of node ${node.name}`,
  },
  queues: {
    title: "Queues",
    head: ["Queue", "Tenant", "Waiting", "Running", "Held"],
    none: "No queues.",
  },
  decision: {
    title: "Last decision",
    none: "Nothing has been decided yet.",
    optimal: "Proven optimal",
    front: (skipped) => `, for the front of the queue (${skipped} jobs further back not looked at)`,
    gap: (percent) => `Within ${percent} of the best possible`,
    value: "Value", bound: "Proven bound", gapLabel: "Gap", when: "When",
    ago: (age, ms) => `${age} ago, in ${ms} ms`,
    effect: "Effect",
    placed: (d) => `${d.placed} placed, ${d.refused} refused`,
    policy: "Order", meter: "Value as a share of the proven bound",
  },
  jobs: {
    title: "Jobs",
    filter: "Show",
    filters: { active: "waiting and running", all: "all", ended: "ended" },
    head: ["State", "Name", "Queue", "Priority", "GPUs", "Nodes", "Age", "Reason"],
    none: "No jobs here. Submit one: haversack submit -f job.yaml",
    more: (n) => `The ${n} newest are shown; “haversack jobs” lists them all.`,
    simulated: "simulated",
  },
};

/** State → [sign, tone]: told apart by sign and word, never by colour alone. */
const STATES = {
  PENDING: ["◌", "soft"], HELD: ["‖", "warn"], QUARANTINED: ["⊘", "bad"],
  ASSIGNED: ["◔", "run"], LAUNCHING: ["◑", "run"], RUNNING: ["▶", "run"],
  SUSPECT: ["?", "warn"], LOST: ["✕", "bad"], STOPPING: ["◼", "warn"],
  SUCCEEDED: ["✓", "good"], FAILED: ["✕", "bad"], CANCELLED: ["–", "soft"],
};
const ENDED = ["SUCCEEDED", "FAILED", "CANCELLED"];
const ACTIVE = Object.keys(STATES).filter((state) => !ENDED.includes(state));
const WAITING = ["PENDING", "HELD", "QUARANTINED"];
const FILTERS = { active: ACTIVE, all: [], ended: ENDED };
const API = "/api/v1";
const JOBS_SHOWN = 100;
const CLASSES_EXPLAINED = 8;
const REFRESH_AT_MOST_EVERY_MS = 1000;
const REFRESH_AT_LEAST_EVERY_MS = 15000;

const at = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text nodes. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

class SignedOut extends Error {}

async function get(path, signal) {
  const answer = await fetch(API + path, { credentials: "same-origin", signal });
  if (answer.status === 401) throw new SignedOut();
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

function age(from, to = Date.now()) {
  const seconds = Math.max(0, Math.round((to - Date.parse(from)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

const number = (value, digits = 2) =>
  value === null ? T.none : value.toLocaleString("en", { maximumFractionDigits: digits });
const percent = (ratio) => `${number(ratio * 100, 2)} %`;

// -- drawing ------------------------------------------------------------------------------------

function drawTiles({ gpus, queues, decision }) {
  const sum = (key) => queues.reduce((total, queue) => total + queue[key], 0);
  const tile = (label, value, small = "") =>
    el("div", { class: "tile" }, el("dt", {}, label), el("dd", {}, String(value), el("small", {}, small)));
  at("tiles").replaceChildren(
    tile(T.tiles.gpus, gpus.filter((gpu) => gpu.in_use).length, T.of(gpus.length)),
    tile(T.tiles.running, sum("running")),
    tile(T.tiles.waiting, sum("waiting")),
    tile(T.tiles.held, sum("held")),
    tile(T.tiles.gap, decision ? percent(decision.gap) : T.none),
  );
}

function flagOf(gpu, node) {
  if (gpu.health !== "healthy" || node?.health === "unhealthy") return "unhealthy";
  return gpu.cordoned || node?.cordoned ? "cordoned" : null;
}

function cell(gpu, node) {
  const flag = flagOf(gpu, node);
  const used = gpu.in_use;
  const facts = [used ? T.gpus.usedBy(gpu.job_name) : T.gpus.free];
  if (flag) facts.push(T.gpus[flag]);
  const label = T.gpus.cell(gpu, facts);
  return el(
    "li",
    { class: "cell", "data-use": used ? "used" : "free", "data-flag": flag, title: label },
    el("span", { "aria-hidden": "true" }, flag === "unhealthy" ? "!" : String(gpu.index)),
    el("span", { class: "unseen" }, label),
  );
}

function drawNodes({ nodes, gpus }) {
  const byNode = Map.groupBy ? Map.groupBy(gpus, (gpu) => gpu.node_id) : grouped(gpus);
  const cards = nodes
    .filter((node) => node.gpus > 0)
    .map((node) => {
      const warning =
        node.health !== "healthy" ? T.gpus.nodeUnhealthy : node.cordoned ? T.gpus.nodeCordoned : null;
      return el(
        "div",
        { class: "node" },
        el(
          "h3",
          {},
          node.name,
          el("span", {}, `${node.gpu_models.join(", ")} · ${T.gpus.node(node)}`),
          warning && el("b", {}, warning),
        ),
        el(
          "ul",
          { class: "grid", "aria-label": T.gpus.grid(node) },
          ...(byNode.get(node.id) ?? []).map((gpu) => cell(gpu, node)),
        ),
      );
    });
  at("nodes").replaceChildren(...(cards.length ? cards : [el("p", { class: "empty" }, T.gpus.none)]));
  at("simulated").hidden = !gpus.some((gpu) => gpu.simulated);
}

function grouped(gpus) {
  const groups = new Map();
  for (const gpu of gpus) groups.set(gpu.node_id, [...(groups.get(gpu.node_id) ?? []), gpu]);
  return groups;
}

function drawLegend() {
  const sample = (use, flag, sign, label) =>
    el("li", {}, el("span", { class: "cell", "data-use": use, "data-flag": flag, "aria-hidden": "true" }, sign), label);
  at("legend").replaceChildren(
    sample("used", null, "0", T.gpus.used),
    sample("free", null, "0", T.gpus.free),
    sample("free", "cordoned", "0", T.gpus.cordoned),
    sample("free", "unhealthy", "!", T.gpus.unhealthy),
  );
}

function table(target, caption, head, numeric, rows, none) {
  const column = (index) => (numeric.includes(index) ? "number" : null);
  at(target).replaceChildren(
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { scope: "col", class: column(i) }, text)))),
    el(
      "tbody",
      {},
      ...(rows.length ? rows : [el("tr", {}, el("td", { colspan: String(head.length) }, el("p", { class: "empty" }, none)))]),
    ),
  );
}

function drawQueues({ queues }) {
  const rows = queues.map((queue) =>
    el(
      "tr",
      {},
      el("td", { class: "name" }, queue.name),
      el("td", {}, queue.tenant),
      ...["waiting", "running", "held"].map((key) => el("td", { class: "number" }, String(queue[key]))),
    ),
  );
  table("queues", T.queues.title, T.queues.head, [2, 3, 4], rows, T.queues.none);
}

function drawDecision({ decision }) {
  if (!decision) {
    at("decision").replaceChildren(el("p", { class: "empty" }, T.decision.none));
    return;
  }
  const fact = (label, value) => [el("dt", {}, label), el("dd", {}, value)];
  const skipped = decision.document?.solver?.skipped ?? 0;
  const proof = decision.gap === 0 ? T.decision.optimal : T.decision.gap(percent(decision.gap));
  const share = decision.bound > 0 ? Math.min(1, decision.value / decision.bound) : 1;
  at("decision").replaceChildren(
    el("p", { class: "proof" }, skipped ? proof + T.decision.front(skipped) : proof),
    el("meter", { min: "0", max: "1", value: String(share), "aria-label": T.decision.meter }),
    el(
      "dl",
      { class: "facts" },
      ...fact(T.decision.value, number(decision.value)),
      ...fact(T.decision.bound, number(decision.bound)),
      ...fact(T.decision.gapLabel, percent(decision.gap)),
      ...fact(T.decision.effect, T.decision.placed(decision)),
      ...fact(T.decision.policy, decision.policy),
      ...fact(T.decision.when, T.decision.ago(age(decision.at), number(decision.duration_ms, 1))),
    ),
  );
}

function drawJobs({ jobs, more, gpus, reasons }) {
  const places = new Map();
  for (const gpu of gpus) {
    if (gpu.job_id === null) continue;
    places.set(gpu.job_id, (places.get(gpu.job_id) ?? new Set()).add(gpu.node_name));
  }
  const rows = jobs.map((job) => {
    const [sign, tone] = STATES[job.state] ?? ["?", "soft"];
    const nodes = [...(places.get(job.id) ?? [])].join(", ");
    const reason = WAITING.includes(job.state) ? reasons.get(reasonKey(job)) : job.message;
    const until = job.finished_at ? Date.parse(job.finished_at) : Date.now();
    return el(
      "tr",
      {},
      el("td", {}, el("span", { class: "state", "data-tone": tone }, el("i", { "aria-hidden": "true" }, sign), job.state.toLowerCase())),
      el(
        "td",
        { class: "name" },
        job.name,
        el("span", { class: "id" }, job.simulated ? `${job.id} · ${T.jobs.simulated}` : job.id),
      ),
      el("td", {}, job.queue),
      el("td", { class: "number" }, String(job.priority)),
      el("td", { class: "number" }, String(job.gpus)),
      el("td", { class: "where" }, nodes || T.none),
      el("td", { class: "age" }, age(job.submitted_at, until)),
      el("td", { class: "reason" }, reason || ""),
    );
  });
  table("jobs", T.jobs.title, T.jobs.head, [3, 4], rows, T.jobs.none);
  at("jobs-note").textContent = more ? T.jobs.more(jobs.length) : "";
}

// -- fetching -----------------------------------------------------------------------------------

const reasonKey = (job) => `${job.state} ${job.class_key}`;

/** Why the visible waiting jobs wait: one question for each class of equal jobs. */
async function explain(jobs) {
  const asked = new Map();
  for (const job of jobs) {
    if (WAITING.includes(job.state) && asked.size < CLASSES_EXPLAINED && !asked.has(reasonKey(job))) {
      asked.set(reasonKey(job), get(`/jobs/${encodeURIComponent(job.id)}/explain`).catch(() => null));
    }
  }
  const answers = new Map();
  for (const [key, pending] of asked) {
    const explanation = await pending;
    if (explanation) answers.set(key, explanation.reasons[0]?.message ?? explanation.summary);
  }
  return answers;
}

async function load() {
  const states = FILTERS[at("filter").value] ?? ACTIVE;
  const wanted = states.length ? `&state=${states.join(",")}` : "";
  const [page, gpus, nodes, queues, decisions] = await Promise.all([
    get(`/jobs?limit=${JOBS_SHOWN}${wanted}`), get("/gpus"), get("/nodes"), get("/queues"), get("/decisions?limit=1"),
  ]);
  return {
    jobs: page.items, more: page.next_cursor !== null, gpus: gpus.items, nodes: nodes.items,
    queues: queues.items, decision: decisions.items[0] ?? null, reasons: await explain(page.items),
  };
}

let stream = null; // AbortController of the open event stream
let refreshing = false;
let stale = false;
let lastAt = 0;
let timer = 0;

function say(text, on) {
  const line = at("live");
  if (line.textContent !== text) line.textContent = text;
  line.dataset.on = String(on);
}

async function refresh() {
  if (refreshing) {
    stale = true;
    return;
  }
  refreshing = true;
  stale = false;
  lastAt = Date.now();
  try {
    const world = await load();
    at("login").hidden = true;
    at("board").hidden = false;
    for (const draw of [drawTiles, drawNodes, drawQueues, drawDecision, drawJobs]) draw(world);
    say(T.live, true);
  } catch (error) {
    if (error instanceof SignedOut) signOut();
    else say(T.away, false);
  } finally {
    refreshing = false;
    if (stale) soon();
  }
}

/** Refresh once a burst of events is over, at most once a second. */
function soon() {
  if (timer) return;
  const wait = Math.max(150, lastAt + REFRESH_AT_MOST_EVERY_MS - Date.now());
  timer = setTimeout(() => {
    timer = 0;
    refresh();
  }, wait);
}

/** Follow the journal; any event means that something on this page may have changed. */
async function follow() {
  stream?.abort();
  const mine = (stream = new AbortController());
  while (!mine.signal.aborted) {
    try {
      const answer = await fetch(`${API}/events`, { credentials: "same-origin", signal: mine.signal });
      if (answer.status === 401) return signOut();
      if (answer.ok) await drain(answer.body.pipeThrough(new TextDecoderStream()).getReader());
    } catch {
      // the daemon went away, or we did: the line below says so and the loop tries again
    }
    if (mine.signal.aborted) return;
    say(T.away, false);
    await new Promise((done) => setTimeout(done, 2000));
    soon();
  }
}

async function drain(reader) {
  soon(); // what happened while no stream was open
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    if (value.includes("data:")) soon();
  }
}

function signOut() {
  stream?.abort();
  at("board").hidden = true;
  at("login").hidden = false;
  say("", false);
  at("token").focus();
}

async function signIn(event) {
  event.preventDefault();
  const field = at("token");
  at("login-error").textContent = "";
  try {
    const answer = await fetch(`${API}/sessions?cookie=true`, {
      method: "POST",
      credentials: "same-origin",
      headers: { Authorization: `Bearer ${field.value.trim()}` },
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({}));
      at("login-error").textContent = problem.detail ?? T.login.refused;
      return;
    }
    field.value = "";
    await refresh();
    follow();
  } catch {
    at("login-error").textContent = T.login.failed;
  }
}

// -- start --------------------------------------------------------------------------------------

function dress() {
  const texts = {
    "login-title": T.login.title, "login-hint": T.login.hint, "token-label": T.login.label,
    "login-button": T.login.button, "board-title": T.title, "gpus-title": T.gpus.title,
    "queues-title": T.queues.title, "decision-title": T.decision.title, "jobs-title": T.jobs.title,
    "filter-label": T.jobs.filter, simulated: T.simulated,
  };
  for (const [id, text] of Object.entries(texts)) at(id).textContent = text;
  at("simulated").append(el("span", {}, T.simulatedHint));
  at("filter").replaceChildren(
    ...Object.entries(T.jobs.filters).map(([value, text]) => el("option", { value }, text)),
  );
  drawLegend();
}

dress();
say(T.connecting, false);
at("login-form").addEventListener("submit", signIn);
at("filter").addEventListener("change", refresh);
// A hidden tab holds no stream: browsers allow few connections to one host.
document.addEventListener("visibilitychange", () => {
  if (at("board").hidden) return;
  if (document.hidden) stream?.abort();
  else follow();
});
setInterval(() => {
  if (!document.hidden && !at("board").hidden) refresh();
}, REFRESH_AT_LEAST_EVERY_MS);
await refresh();
if (!at("board").hidden) follow();
