// A receiver for Attesto's events. Node.js 18 or newer, without dependencies.
//
//     ATTESTO_WEBHOOK_SECRET=whsec_... node receiver.mjs
//
// Settings, from the environment:
//     ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
//     ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
//     EVENTS_DIR                       where events are stored for your own code (./events)
//     STATES_DIR                       where the newest state of each purchase is kept (./states)
//     HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS

import { createHash, createHmac, randomUUID, timingSafeEqual } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { link, mkdir, open, unlink } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";

const PATH = "/hooks/attesto";
const WINDOW_SECONDS = 300;
const MAX_BODY_BYTES = 4 * 1024 * 1024;

/** Whether one of our secrets signed these bytes, within the last five minutes. `body` is a Buffer, not parsed. */
export function isFromAttesto(secrets, header, body, now = Date.now() / 1000) {
  let timestamp;
  const given = [];
  for (const part of header.split(",")) {
    const at = part.indexOf("=");
    const [name, value] = [part.slice(0, at).trim(), part.slice(at + 1).trim()];
    if (name === "t") timestamp = value;
    else if (name === "v1" && /^[0-9a-f]{64}$/.test(value)) given.push(Buffer.from(value, "hex"));
  }
  if (!/^[0-9]{1,12}$/.test(timestamp ?? "")) return false;
  if (Math.abs(now - Number(timestamp)) > WINDOW_SECONDS) return false;
  let fits = false;
  for (const secret of secrets) {
    const expected = createHmac("sha256", secret).update(`${timestamp}.`).update(body).digest();
    for (const value of given) fits = timingSafeEqual(value, expected) || fits;
  }
  return fits;
}

/**
 * Stores an event for your own code. False if it is already stored.
 *
 * Here an event is a file that is created atomically. In your application, use a table with the event's id as its
 * primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
 */
async function keep(folder, eventId, body) {
  const draft = join(folder, `.draft-${randomUUID()}`);
  const file = await open(draft, "wx", 0o600);
  try {
    await file.writeFile(body);
    await file.sync();
    await link(draft, join(folder, `${eventId}.json`));
    return true;
  } catch (problem) {
    if (problem.code === "EEXIST") return false;
    throw problem;
  } finally {
    await file.close();
    await unlink(draft);
  }
}

/**
 * Keeps the newest state of the event's purchase, and returns what is kept; undefined if nothing is known yet.
 *
 * Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
 * state is a file, read and written without a pause in between. In your application it is a row, and all of this is one
 * `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
 */
export function keepState(folder, { source, subject, sequence, state }) {
  if (!subject) return undefined;
  const name = createHash("sha256").update(`${source} ${subject.key}`).digest("hex");
  const path = join(folder, `${name}.json`);
  const kept = existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
  if (!state) return kept?.state;
  // Every time has the same form, so that their order is that of the text.
  const isNewer =
    !kept || state.asOf > kept.state.asOf || (state.asOf === kept.state.asOf && sequence > kept.sequence);
  if (!isNewer) return kept.state;
  writeFileSync(`${path}.draft`, JSON.stringify({ sequence, state }));
  renameSync(`${path}.draft`, path);
  return state;
}

/** The gate: may the customer use the product now? */
export function isEntitled({ entitled, entitledUntil }, now = Date.now()) {
  return entitled && (entitledUntil === null || now < Date.parse(entitledUntil));
}

/** The body's bytes, or undefined when there are too many. */
async function read(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function eventOf(body) {
  try {
    const event = JSON.parse(body.toString("utf8"));
    const id = event?.eventId;
    return typeof id === "string" && /^evt_[0-9A-Z]{26}$/.test(id) ? event : undefined;
  } catch {
    return undefined;
  }
}

async function receive(request, secrets, folder, states) {
  if (request.method !== "POST" || request.url.split("?")[0] !== PATH) return [404, { error: "not here" }];
  const body = await read(request);
  if (body === undefined) return [413, { error: "too long" }];
  // The exact bytes that arrived, before parsing.
  if (!isFromAttesto(secrets, request.headers["x-attesto-signature"] ?? "", body)) {
    return [401, { error: "not signed by Attesto" }];
  }
  const event = eventOf(body);
  if (event === undefined) return [400, { error: "no event" }];
  const { eventId } = event;
  const isNew = await keep(folder, eventId, body);
  const state = keepState(states, event);
  return [200, { eventId, isNew, entitled: state ? isEntitled(state) : null }];
}

const { ATTESTO_WEBHOOK_SECRET, ATTESTO_WEBHOOK_SECRET_PREVIOUS, EVENTS_DIR, STATES_DIR, HOST, PORT } = process.env;
const secrets = [ATTESTO_WEBHOOK_SECRET, ATTESTO_WEBHOOK_SECRET_PREVIOUS].filter(Boolean);
if (secrets.length === 0) {
  console.error("set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed");
  process.exit(1);
}
const folder = EVENTS_DIR ?? "events";
const states = STATES_DIR ?? "states";
await mkdir(folder, { recursive: true });
await mkdir(states, { recursive: true });

const server = createServer(async (request, response) => {
  let answer;
  try {
    answer = await receive(request, secrets, folder, states);
  } catch (problem) {
    // Attesto will send it again.
    console.error("cannot keep an event:", problem.message);
    answer = [500, { error: "cannot keep it" }];
  }
  const [status, content] = answer;
  // After an unread body the connection cannot be used again.
  const manners = status === 413 || status === 404 ? { Connection: "close" } : {};
  response.writeHead(status, { "Content-Type": "application/json", ...manners });
  response.end(JSON.stringify(content));
});
server.requestTimeout = 10_000;
server.listen(Number(PORT ?? 3000), HOST ?? "127.0.0.1", () => {
  const { address, port } = server.address();
  console.log(`listening on http://${address}:${port}${PATH}`);
});
