// One session, two servers: server A writes it, server B reads it and receives its events.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Cause, EventType, SessionService, SessionView } from "@sessiond/client";
import type { Session, SessionEvent, WatchResponse } from "@sessiond/client";

const namespace = process.env["SESSIOND_NAMESPACE"] || "quickstart";
const content = `user_id=1 cart=["item1","item2"]`;
const end = Date.now() + 10_000;

async function quickstart(): Promise<void> {
  const a = connect("SESSIOND_A");
  const b = connect("SESSIOND_B");
  const watcher = connect("SESSIOND_B"); // A separate transport: an unread watch blocks other calls on its connection.
  const labels = { quickstart: randomUUID() };

  const responses = watcher.watch({ namespace, wholeNamespace: true, labels, view: SessionView.FULL }, withTimeout());
  const watch = responses[Symbol.asyncIterator]();
  await watch.next(); // The first bookmark: the watch is open.

  const attributes = {
    user_id: { kind: { case: "intValue", value: 1n } },
    cart: { kind: { case: "jsonValue", value: `["item1","item2"]` } },
  } as const;
  const created = await a.createSession({ namespace, subject: "1", labels, attributes }, withTimeout());
  const id = created.session?.id;
  const key = { key: { case: "token", value: created.token } } as const;
  console.log(`server A created the session of user ${created.session?.subject}`);

  const createdEvent = await waitFor(watch, EventType.CREATED, id);
  check("server B received CREATED", describe(createdEvent.session), content);

  const read = await b.getSession({ namespace, key }, withTimeout());
  check("server B read", describe(read.session), content);

  await a.deleteSession({ namespace, key }, withTimeout());
  const ended = await waitFor(watch, EventType.ENDED, id);
  check("server B received ENDED", Cause[ended.cause], "LOGOUT");

  const code = await a.getSession({ namespace, key }, withTimeout()).then(() => "OK", nameOfCode);
  check("server A returned", code, "NOT_FOUND");
  console.log("done");
}

function connect(variable: string): Client<typeof SessionService> {
  const address = process.env[variable];
  if (!address) throw new Error(`${variable} is not set: host:port of a server`);
  const { SESSIOND_CA: ca, SESSIOND_API_KEY_FILE: keyFile } = process.env;
  if (keyFile && !ca) throw new Error("SESSIOND_API_KEY_FILE needs SESSIOND_CA");
  const transport = createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${address}`,
    nodeOptions: ca ? { ca: readFileSync(ca) } : {},
    interceptors: keyFile ? [bearer(readFileSync(keyFile, "utf8").trim())] : [],
  });
  return createClient(SessionService, transport);
}

// Adds the API key to every call.
function bearer(key: string): Interceptor {
  // Headers.set would print such a key in its error.
  if (!/^[!-~]+$/.test(key)) throw new Error("the file of SESSIOND_API_KEY_FILE is not one line with a key");
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
}

function withTimeout(): { timeoutMs: number } {
  return { timeoutMs: Math.max(1, end - Date.now()) };
}

async function waitFor(watch: AsyncIterator<WatchResponse>, type: EventType, id?: string): Promise<SessionEvent> {
  for (let next = await watch.next(); !next.done; next = await watch.next()) {
    const found = next.value.events.find((event) => event.type === type && event.id === id);
    if (found) return found;
  }
  throw new Error(`the watch ended before ${EventType[type]}`);
}

function describe(session?: Session): string {
  return `user_id=${session?.attributes["user_id"]?.kind.value} cart=${session?.attributes["cart"]?.kind.value}`;
}

function nameOfCode(error: unknown): string {
  return Code[ConnectError.from(error).code].replace(/\B[A-Z]/g, "_$&").toUpperCase();
}

function check(what: string, actual: string | undefined, expected: string): void {
  if (actual !== expected) throw new Error(`${what}: ${actual}, expected ${expected}`);
  console.log(`${what}: ${actual}`);
}

quickstart().then(
  () => process.exit(0),
  (error) => {
    console.error(`quickstart: ${error instanceof Error ? error.message : error}`);
    process.exit(1);
  },
);
