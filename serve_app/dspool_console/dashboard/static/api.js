// What the page asks the service: the API that programs use. The login is a cookie that no script can read; changes
// carry the word against forgery.

export class Problem extends Error {
  constructor(status, code, detail, retryAfter = 0, details = {}) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
    this.details = details;
  }

  get temporary() {
    return this.status === 0 || this.status === 503 || this.status === 429 || this.status === 504;
  }
}

// From this file's own address: a proxy may offer the service below any path.
const ROOT = new URL("../../../", import.meta.url).pathname;
/** The service's whole address, as programs elsewhere name it. */
export const SERVICE = location.origin + ROOT.slice(0, -1);
const API = `${ROOT}v1`;
const LOGIN = `${ROOT}dashboard/login`;
let csrf = "login";
const listeners = new Set();

/** Called when the service says that nobody is logged in any more. */
export const onSignedOut = (call) => listeners.add(call);

export const query = (values) => {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
};

export const poolPath = (pool, ...rest) =>
  [`${API}/pools`, pool, ...rest].map((part, index) => (index ? encodeURIComponent(part) : part)).join("/");

export const liveAddress = (pool, topics) => `${poolPath(pool, "live")}?topics=${topics.join(",")}`;

/** What `early.js` has asked before this was here, once. */
function early(path) {
  const answer = globalThis.askedEarly?.get(path);
  globalThis.askedEarly?.delete(path);
  return answer;
}

async function answer(path, options = {}) {
  let response;
  try {
    response = await (early(path) ?? fetch(path, { credentials: "same-origin", ...options }));
  } catch (failed) {
    if (failed.name === "AbortError") throw failed;
    throw new Problem(0, "no_connection", "The service does not answer.");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy in front may answer with anything; the status is then all there is to tell.
  }
  const problem = new Problem(
    response.status,
    said.code ?? "",
    said.detail ?? said.title ?? `The service answered ${response.status}.`,
    Number(response.headers.get("retry-after")) || 0,
    { ...said.details, operation_id: said.operation_id },
  );
  if (response.status === 401 && path !== LOGIN) { for (const call of listeners) call(problem); }
  throw problem;
}

const json = (response) => (response.status === 204 ? null : response.json());

export const get = async (path, signal) => json(await answer(path, { signal }));

export const pools = async () => (await get(`${API}/pools`)).pools.map((pool) => pool.name);

export const auditRecords = async (limit) => (await get(`${API}/audit${query({ limit })}`)).records;

const change = (method, path, body, signal, accept = "application/json") =>
  answer(path, {
    method,
    headers: { "content-type": "application/json", "x-dspool-csrf": csrf, accept },
    body: method === "DELETE" ? undefined : JSON.stringify(body),
    signal,
  });

export const send = async (method, path, body = {}) => json(await change(method, path, body));

/** Asks for something that takes its time, and is told by a stream: returns when it has begun. It goes on by itself. */
export async function begin(path, body) {
  const response = await change("POST", path, body);
  await response.body.cancel();
}

/** Sends `body` and gives each event of the answer to `take(name, data)`; an `error` event is thrown. */
export async function follow(path, body, signal, take) {
  const response = await change("POST", path, body, signal, "text/event-stream");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const part = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length);
      const name = part("event: ");
      if (name === undefined) continue; // a comment, so that no proxy gives the stream up
      const data = JSON.parse(part("data: "));
      if (name === "error") {
        throw new Problem(data.status, data.code, data.detail ?? data.title, 0, {
          ...data.details,
          operation_id: data.operation_id,
        });
      }
      take(name, data);
    }
  }
}

export async function me() {
  return remember(await get(`${ROOT}dashboard/me`));
}

export async function login(token) {
  csrf = "login";
  const answer = remember(await send("POST", LOGIN, { token }));
  // The service has to know the path for the browser to send it the login.
  if (ROOT !== "/" && (await me()).login_needed) {
    throw new Problem(0, "login_not_kept", `Behind ${ROOT} the service needs service.root_path: ${ROOT.slice(0, -1)}`);
  }
  return answer;
}

export async function logout() {
  await send("POST", `${ROOT}dashboard/logout`);
  csrf = "login";
}

function remember(answer) {
  csrf = answer.csrf ?? "login";
  return answer;
}
