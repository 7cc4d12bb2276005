import { createHash, createPublicKey, randomBytes, timingSafeEqual, verify } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import { PassThrough, type Readable } from 'node:stream';
import {
  AppError,
  type ExecBody,
  type HubMessage,
  LINK_MESSAGE_BYTES,
  LINK_SILENCE_MS,
  RUNNER_LINK_PATH,
  type RunnerMessage,
  type RunnerOutcome,
  runnerMessage,
  type ToolOutcome,
} from '@holdfast/contracts';
import { type WebSocket, WebSocketServer } from 'ws';
import { listenIn } from '../link-socket.ts';

const CANCEL_WAIT_MS = 5_000;
const GREET_MS = 5_000;
/** One link stands at a time; the rest is somebody knocking. */
const MAX_CONNECTIONS = 16;

/** What a sandbox's runner has to prove. */
export interface LinkProof {
  /** SHA-256 (hex) of the token that the newest incarnation was given. */
  readonly tokenHash: string;
  /** The key that this token was bound to; null until the first link. */
  publicKey: string | null;
}

export interface HubOptions {
  readonly linkDir: string;
  readonly proof: LinkProof;
  readonly env: Readonly<Record<string, string>>;
  /** Done before the runner is welcome: from then on its key is its only proof. */
  readonly record: (facts: { journalId: string; publicKey: string }) => Promise<void>;
  readonly onLinked: () => void;
  readonly onLost: () => void;
  /** Told once for each reason: whoever is inside may knock as often as it likes. */
  readonly onRefused: (reason: string) => void;
  /** Keeps a call's whole output as it comes; null when it cannot be kept. */
  readonly keep: (pieces: Readable) => Promise<ToolOutcome['fullOutput']>;
}

interface PendingCall {
  readonly waiters: { resolve: (outcome: ToolOutcome) => void; reject: (error: unknown) => void }[];
  whole: { readonly pieces: PassThrough; readonly kept: Promise<ToolOutcome['fullOutput']> } | null;
}

/**
 * One sandbox's end of the link in this process: a WebSocket server on a socket that only this sandbox can reach. At most
 * one link stands; a newer one that proves itself replaces it.
 */
export class Hub {
  readonly #options: HubOptions;
  #server: Server | null = null;
  #sockets: WebSocketServer | null = null;
  #link: WebSocket | null = null;
  readonly #calls = new Map<string, PendingCall>();
  readonly #questions = new Map<
    string,
    { resolve: (answer: Extract<RunnerMessage, { type: 'answer' }>) => void; reject: (error: unknown) => void }
  >();
  readonly #refusals = new Set<string>();
  journalId: string | null = null;

  constructor(options: HubOptions) {
    this.#options = options;
  }

  get linked(): boolean {
    return this.#link !== null;
  }
  get busy(): boolean {
    return this.#calls.size > 0;
  }

  async listen(): Promise<void> {
    const server = createServer(
      { headersTimeout: GREET_MS, connectionsCheckingInterval: GREET_MS },
      (_request, response) => response.writeHead(404).end(),
    );
    server.maxConnections = MAX_CONNECTIONS;
    this.#sockets = new WebSocketServer({
      server,
      path: RUNNER_LINK_PATH,
      maxPayload: LINK_MESSAGE_BYTES,
      perMessageDeflate: false,
    });
    this.#sockets.on('connection', (socket) => this.#greet(socket));
    await listenIn(this.#options.linkDir, 'hub.sock', server);
    this.#server = server;
  }

  async close(): Promise<void> {
    this.#link?.terminate();
    for (const client of this.#sockets?.clients ?? []) client.terminate();
    this.#server?.closeAllConnections();
    await new Promise<void>((resolve) => {
      if (this.#server === null) resolve();
      else this.#server.close(() => resolve());
    });
  }

  /** Runs a call, or joins it when it runs already. @throws AppError `sandbox.link-lost`, `sandbox.stale-generation` */
  exec(body: ExecBody): Promise<ToolOutcome> {
    return new Promise((resolve, reject) => {
      if (this.#link === null) {
        reject(lost());
        return;
      }
      const pending = this.#calls.get(body.callId) ?? { waiters: [], whole: null };
      pending.waiters.push({ resolve, reject });
      this.#calls.set(body.callId, pending);
      const { callId, generation, tool, input, timeoutMs } = body;
      this.#send({ type: 'exec', callId, generation, tool, input, timeoutMs });
    });
  }

  /** Refuses lower generations from now on (T1). */
  async claim(generation: number): Promise<void> {
    const answer = await this.#ask((id) => ({ type: 'claim', id, generation }));
    if (answer.stale) throw stale();
  }

  async cancel(callId: string, generation: number): Promise<RunnerOutcome> {
    const answer = await this.#ask((id) => ({ type: 'cancel', id, callId, generation }));
    if (answer.stale || answer.result === null) throw stale();
    return answer.result;
  }

  overLimit(text: string): void {
    this.#send({ type: 'over-limit', text });
  }

  #ask(question: (id: string) => HubMessage): Promise<Extract<RunnerMessage, { type: 'answer' }>> {
    if (this.#link === null) return Promise.reject(lost());
    const id = randomBytes(8).toString('hex');
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#questions.delete(id);
        reject(lost());
      }, CANCEL_WAIT_MS);
      const settle =
        <T>(how: (value: T) => void) =>
        (value: T): void => {
          clearTimeout(timer);
          this.#questions.delete(id);
          how(value);
        };
      this.#questions.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.#send(question(id));
    });
  }

  #send(message: HubMessage): void {
    this.#link?.send(JSON.stringify(message));
  }

  #greet(socket: WebSocket): void {
    const nonce = randomBytes(24).toString('base64');
    const late = setTimeout(() => socket.terminate(), GREET_MS);
    socket.on('error', () => undefined);
    socket.once('message', (data) => {
      clearTimeout(late);
      const parsed = runnerMessage.safeParse(parseJson(data));
      const reason =
        parsed.success && parsed.data.type === 'hello' ? this.#fault(parsed.data, nonce) : 'it did not say hello';
      if (reason !== null) {
        this.#refuse(socket, reason);
        return;
      }
      if (parsed.success && parsed.data.type === 'hello') void this.#accept(socket, parsed.data);
    });
    socket.send(JSON.stringify({ type: 'challenge', nonce } satisfies HubMessage));
  }

  #refuse(socket: WebSocket, reason: string): void {
    socket.terminate();
    if (this.#refusals.has(reason)) return;
    this.#refusals.add(reason);
    this.#options.onRefused(reason);
  }

  /** Why a hello does not prove that this is the sandbox's runner; null when it does. */
  #fault(hello: Extract<RunnerMessage, { type: 'hello' }>, nonce: string): string | null {
    const { proof } = this.#options;
    try {
      const key = createPublicKey({ key: Buffer.from(hello.publicKey, 'base64'), format: 'der', type: 'spki' });
      if (
        key.asymmetricKeyType !== 'ed25519' ||
        !verify(null, Buffer.from(nonce), key, Buffer.from(hello.signature, 'base64'))
      )
        return 'its signature is wrong';
    } catch {
      return 'its key cannot be read';
    }
    if (proof.publicKey !== null)
      return proof.publicKey === hello.publicKey ? null : 'another key is bound to this sandbox';
    const given = createHash('sha256')
      .update(hello.token ?? '')
      .digest();
    return timingSafeEqual(given, Buffer.from(proof.tokenHash, 'hex')) ? null : 'its token is wrong';
  }

  async #accept(socket: WebSocket, hello: Extract<RunnerMessage, { type: 'hello' }>): Promise<void> {
    this.#options.proof.publicKey = hello.publicKey;
    try {
      await this.#options.record({ journalId: hello.journalId, publicKey: hello.publicKey });
    } catch {
      // It could not be recorded; the runner dials again.
      socket.terminate();
    }
    if (socket.readyState !== socket.OPEN) return;
    this.journalId = hello.journalId;
    let heardMs = Date.now();
    const watch = setInterval(() => {
      if (Date.now() - heardMs > LINK_SILENCE_MS) socket.terminate();
      else socket.ping();
    }, LINK_SILENCE_MS / 3);
    for (const event of ['ping', 'pong', 'message'] as const) {
      socket.on(event, () => {
        heardMs = Date.now();
      });
    }
    socket.on('message', (data) => this.#onMessage(socket, data));
    socket.on('close', () => {
      clearInterval(watch);
      if (this.#link !== socket) return;
      this.#link = null;
      for (const { waiters, whole } of this.#calls.values()) {
        whole?.pieces.destroy(lost());
        for (const waiter of waiters) waiter.reject(lost());
      }
      this.#calls.clear();
      for (const question of [...this.#questions.values()]) question.reject(lost());
      this.#options.onLost();
    });
    const before = this.#link;
    this.#link = socket;
    before?.terminate();
    this.#send({ type: 'welcome', env: { ...this.#options.env } });
    this.#options.onLinked();
  }

  #onMessage(socket: WebSocket, data: unknown): void {
    const parsed = runnerMessage.safeParse(parseJson(data));
    if (!parsed.success) {
      this.#refuse(socket, 'it sent a message that cannot be read');
      return;
    }
    const message = parsed.data;
    if (message.type === 'answer') {
      this.#questions.get(message.id)?.resolve(message);
      return;
    }
    if (message.type === 'hello' || message.type === 'measured') return;
    const pending = this.#calls.get(message.callId);
    if (pending === undefined) return;
    if (message.type === 'output') {
      pending.whole ??= this.#keep();
      pending.whole.pieces.write(Buffer.from(message.data, 'base64'));
      return;
    }
    this.#calls.delete(message.callId);
    if (message.type === 'refused') for (const waiter of pending.waiters) waiter.reject(stale());
    else void this.#finish(pending, message.result);
  }

  #keep(): NonNullable<PendingCall['whole']> {
    const pieces = new PassThrough();
    // Whoever keeps it says what went wrong.
    pieces.on('error', () => undefined);
    return { pieces, kept: this.#options.keep(pieces) };
  }

  async #finish({ waiters, whole }: PendingCall, result: RunnerOutcome): Promise<void> {
    whole?.pieces.end();
    const outcome = { ...result, fullOutput: whole === null ? null : await whole.kept };
    for (const waiter of waiters) waiter.resolve(outcome);
  }
}

function parseJson(data: unknown): unknown {
  try {
    return JSON.parse(String(data as Buffer));
  } catch {
    return undefined;
  }
}

function lost(): AppError {
  return new AppError('unavailable', 'sandbox.link-lost', 'The link to the sandbox was lost; it is dialled again.');
}
function stale(): AppError {
  return new AppError('rejected', 'sandbox.stale-generation', 'A newer worker holds this session.');
}
