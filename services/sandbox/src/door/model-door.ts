import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import { type DoorAnswer, type DoorQuestion, isAppError, modelDoorSubject } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import { createParser } from 'eventsource-parser';
import { Agent, type Dispatcher, request as httpRequest } from 'undici';
import { listenIn } from '../link-socket.ts';
import { allowed, DIALECTS, type Dialect, type Measured, named } from './dialects.ts';

const MAX_BODY_BYTES = 16 * 1024 * 1024;
const MAX_ERROR_BYTES = 64 * 1024;
const MAX_EVENT_CHARS = 16_000_000;
/** Calls of one sandbox at a time, and connections that they come over. */
const MAX_CALLS = 8;
const MAX_CONNECTIONS = 32;
const BODY_MS = 30_000;
/** A model call may take so long, retries and all. */
const CALL_MS = 30 * 60_000;
/** A turn that is being taken over answers within this time. */
const TAKEOVER_MS = 20_000;
const ASK_MS = 10_000;
const ASK_AGAIN_MS = 250;

/** Where the gateway is, and the key that no sandbox sees. */
export interface Gateway {
  readonly url: string;
  readonly apiKey: string;
  /** A gateway that is silent for so long is taken as gone. */
  readonly silenceMs: number;
}

/** The connections to the model gateway that all doors share. */
export class GatewayConnections {
  readonly gateway: Gateway;
  readonly dispatcher: Dispatcher;

  constructor(gateway: Gateway) {
    this.gateway = { ...gateway, url: gateway.url.replace(/\/+$/, '').replace(/\/v1$/, '') };
    this.dispatcher = new Agent({ connections: 512, pipelining: 1, connect: { timeout: 10_000 } });
  }

  close(): Promise<void> {
    return this.dispatcher.close();
  }
}

/** What the harness is answered in place of a model. */
class Refusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/**
 * The way from one session's sandbox to the model gateway, and the only one (M1). Listed routes, listed fields and the
 * agent's own model; the key is added here. Whether a model may be used at all, and what follows from a failure, says
 * the worker that runs the session's turn, which also gets what was measured: without an open turn nothing passes.
 */
export class ModelDoor {
  readonly #sessionId: string;
  readonly #bus: Bus;
  readonly #connections: GatewayConnections;
  readonly #logger: Logger;
  readonly #takeoverMs: number;
  readonly #server: Server;
  readonly #open = new Set<Duplex>();
  #calls = 0;

  constructor(
    sessionId: string,
    parts: { bus: Bus; connections: GatewayConnections; logger: Logger },
    takeoverMs = TAKEOVER_MS,
  ) {
    this.#takeoverMs = takeoverMs;
    this.#sessionId = sessionId;
    this.#bus = parts.bus;
    this.#connections = parts.connections;
    this.#logger = parts.logger;
    this.#server = createServer(
      { maxHeaderSize: 32 * 1024, headersTimeout: BODY_MS, requestTimeout: BODY_MS, keepAliveTimeout: 120_000 },
      (request, response) => void this.#serve(request, response),
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('connection', (socket: Duplex) => this.#track(socket));
    this.#server.on('clientError', (_error, socket) => socket.destroy());
  }

  listen(linkDir: string): Promise<void> {
    return listenIn(linkDir, 'door.sock', this.#server);
  }

  /** Serves a connection that was carried here. */
  accept(connection: Duplex): void {
    if (this.#open.size >= MAX_CONNECTIONS) connection.destroy();
    else this.#server.emit('connection', connection);
  }

  async close(): Promise<void> {
    for (const socket of this.#open) socket.destroy();
    this.#server.closeAllConnections();
    if (this.#server.listening) await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #track(socket: Duplex): void {
    this.#open.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#open.delete(socket));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // As it stands: nothing that another server would take for another path is taken for this one.
    const [pathname = ''] = (request.url ?? '').split('?');
    const dialect = DIALECTS.find(({ path }) => path === pathname);
    const over = new AbortController();
    response.on('close', () => over.abort(new Error('the harness hung up')));
    const late = setTimeout(() => over.abort(new Error('the call took too long')), CALL_MS);
    this.#calls += 1;
    try {
      if (dialect === undefined || request.method !== 'POST')
        throw new Refusal(404, `The model door has no ${request.method ?? ''} ${pathname}.`);
      if (this.#calls > MAX_CALLS) throw new Refusal(429, `At most ${MAX_CALLS} model calls at a time.`);
      await this.#pass(dialect, request, response, over.signal);
    } catch (error) {
      if (!(error instanceof Refusal) && !over.signal.aborted)
        this.#logger.warn({ err: error, session: this.#sessionId }, 'a model call broke off');
      if (response.headersSent || response.destroyed) response.destroy();
      else refuse(response, dialect ?? DIALECTS[0], error);
    } finally {
      clearTimeout(late);
      this.#calls -= 1;
    }
  }

  async #pass(
    dialect: Dialect,
    request: IncomingMessage,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<void> {
    const body = allowed(dialect, await readBody(request));
    const { model } = body;
    if (typeof model !== 'string') throw new Refusal(400, 'The body names no model.');
    const elsewhere = named(body);
    if (elsewhere !== null) throw new Refusal(400, `${elsewhere} may not name what lies elsewhere: send it inline.`);
    const offersTools = dialect.metered && body['tools'] !== undefined;
    for (;;) {
      const begun = await this.#ask({ kind: 'begin', model, offersTools }, signal);
      if (begun.kind !== 'go') await settle(begun, signal);
      else {
        const failed = await this.#call(dialect, body, begun.spanId, request, response, signal);
        if (failed === null) return;
        await settle(failed, signal);
      }
    }
  }

  /** Asks the gateway and passes its answer on; null when that is done, else what the turn says of the failure. */
  async #call(
    dialect: Dialect,
    body: Record<string, unknown>,
    spanId: string | null,
    request: IncomingMessage,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<DoorAnswer | null> {
    const { gateway, dispatcher } = this.#connections;
    const failed = (status: number, text: string, retryAfter: string | null): Promise<DoorAnswer> =>
      this.#ask({ kind: 'failed', spanId, status, body: text, retryAfter }, signal);
    let answer: Dispatcher.ResponseData;
    try {
      answer = await httpRequest(gateway.url + dialect.path, {
        method: 'POST',
        dispatcher,
        signal,
        headersTimeout: gateway.silenceMs,
        bodyTimeout: gateway.silenceMs,
        headers: { ...passedOn(request), ...keyOf(gateway), 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
    } catch (error) {
      if (signal.aborted) {
        await this.#note(dialect, spanId, body, newMeasure(), false, null);
        throw error;
      }
      return failed(502, JSON.stringify({ error: { message: 'It could not be reached.' } }), null);
    }
    const header = (name: string): string | null => {
      const value = answer.headers[name];
      return (Array.isArray(value) ? value[0] : value) ?? null;
    };
    if (answer.statusCode !== 200) {
      const text = await beginningOf(answer.body);
      return failed(answer.statusCode, text, header('retry-after') ?? header('llm_provider-retry-after'));
    }
    const measured = newMeasure();
    const headerCost = Number(header('x-litellm-response-cost') ?? Number.NaN);
    if (headerCost > 0) measured.costUsd = headerCost;
    let complete = false;
    try {
      const type = header('content-type') ?? 'application/json';
      const take = type.startsWith('text/event-stream') ? streamed(dialect, measured) : whole(dialect, measured);
      response.writeHead(200, { 'content-type': type, 'cache-control': 'no-cache' });
      for await (const piece of answer.body as AsyncIterable<Buffer>) {
        take.piece(piece);
        if (!response.write(piece)) await drained(response, signal);
      }
      take.end();
      complete = !dialect.metered || (measured.ended && !measured.failed);
      const noted = this.#note(dialect, spanId, body, measured, complete, header('x-litellm-call-id'));
      if (complete) response.end();
      else response.destroy();
      await noted;
      return null;
    } catch (error) {
      answer.body.destroy();
      if (!complete) await this.#note(dialect, spanId, body, measured, false, header('x-litellm-call-id'));
      throw error;
    }
  }

  /** Tells the turn what a call came to. */
  async #note(
    dialect: Dialect,
    spanId: string | null,
    body: Record<string, unknown>,
    measured: Measured,
    complete: boolean,
    gatewayCallId: string | null,
  ): Promise<void> {
    if (!dialect.metered) return;
    const { usage, costUsd, finishReason, tools } = measured;
    await this.#ask({
      kind: 'end',
      spanId,
      model: String(body['model']),
      ...{ complete, usage, costUsd, finishReason, gatewayCallId, toolCalls: tools.size },
    }).catch((error: unknown) =>
      this.#logger.warn({ err: error, session: this.#sessionId, usage, costUsd }, 'the usage of a call is in no turn'),
    );
  }

  /** Asks the worker that runs the turn; while it is being taken over, again. @throws Refusal without an open turn */
  async #ask(question: DoorQuestion, signal?: AbortSignal): Promise<DoorAnswer> {
    for (const deadline = Date.now() + this.#takeoverMs; ; await sleep(ASK_AGAIN_MS, undefined, { signal })) {
      signal?.throwIfAborted();
      try {
        return await this.#bus.request<DoorAnswer>(modelDoorSubject(this.#sessionId), question, { timeoutMs: ASK_MS });
      } catch (error) {
        if (!isAppError(error)) throw error;
        if (Date.now() > deadline) throw new Refusal(403, 'The session has no open turn: models are not to be had.');
      }
    }
  }
}

/** Waits as the turn says. @throws Refusal when it says no */
async function settle(answer: DoorAnswer, signal: AbortSignal): Promise<void> {
  if (answer.kind === 'refuse') throw new Refusal(answer.status, answer.message);
  await sleep(answer.kind === 'retry' ? answer.afterMs : ASK_AGAIN_MS, undefined, { signal });
}

function refuse(response: ServerResponse, dialect: Dialect | undefined, error: unknown): void {
  const { status, message } =
    error instanceof Refusal ? error : new Refusal(502, 'The model door could not serve the call.');
  const body = dialect?.error(status, message) ?? { error: { message } };
  // What the SDKs of both vendors heed.
  response.writeHead(status, { 'content-type': 'application/json', 'x-should-retry': 'false' });
  response.end(JSON.stringify(body));
}

async function readBody(request: IncomingMessage): Promise<Record<string, unknown>> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > MAX_BODY_BYTES) throw new Refusal(413, `A request has at most ${MAX_BODY_BYTES} bytes.`);
    parts.push(part);
  }
  try {
    const body: unknown = JSON.parse(Buffer.concat(parts).toString('utf8'));
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw new Refusal(400, 'The body is not a JSON object.');
}

async function beginningOf(body: AsyncIterable<Buffer> & { destroy(): void }): Promise<string> {
  let text = '';
  for await (const piece of body) {
    text += piece.toString('utf8');
    if (text.length < MAX_ERROR_BYTES) continue;
    body.destroy();
    break;
  }
  return text.slice(0, MAX_ERROR_BYTES);
}

function drained(response: ServerResponse, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const settled = (): void => {
      response.off('drain', settled);
      signal.removeEventListener('abort', settled);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    response.on('drain', settled);
    signal.addEventListener('abort', settled);
    if (signal.aborted) settled();
  });
}

/** Of a harness's headers only those that say how the body is to be read. */
function passedOn({ headers }: IncomingMessage): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const name of ['accept', 'anthropic-version', 'anthropic-beta']) {
    const value = headers[name];
    if (typeof value === 'string') kept[name] = value;
  }
  return kept;
}

function keyOf({ apiKey }: Gateway): Record<string, string> {
  return apiKey === '' ? {} : { authorization: `Bearer ${apiKey}` };
}

function newMeasure(): Measured {
  return {
    usage: { input_tokens: 0, output_tokens: 0, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 },
    costUsd: null,
    finishReason: null,
    tools: new Set(),
    failed: false,
    ended: false,
  };
}

interface Taker {
  readonly piece: (piece: Buffer) => void;
  readonly end: () => void;
}

/** Measures a stream of events as it passes. */
function streamed(dialect: Dialect, measured: Measured): Taker {
  const decoder = new TextDecoder();
  const parser = createParser({
    maxBufferSize: MAX_EVENT_CHARS,
    onEvent: ({ data }) => {
      if (data === '[DONE]') measured.ended = true;
      else measure(dialect, data, measured);
    },
  });
  return { piece: (piece) => parser.feed(decoder.decode(piece, { stream: true })), end: () => undefined };
}

/** Measures an answer in one piece. */
function whole(dialect: Dialect, measured: Measured): Taker {
  const pieces: Buffer[] = [];
  let bytes = 0;
  return {
    piece: (piece) => {
      bytes += piece.length;
      if (bytes <= MAX_BODY_BYTES) pieces.push(piece);
    },
    end: () => measure(dialect, Buffer.concat(pieces).toString('utf8'), measured),
  };
}

function measure(dialect: Dialect, text: string, measured: Measured): void {
  try {
    const part: unknown = JSON.parse(text);
    if (typeof part === 'object' && part !== null) dialect.measure(part as Record<string, unknown>, measured);
  } catch {
    // The gateway sent no JSON: nothing of it is known, and it does not count as whole.
  }
}
