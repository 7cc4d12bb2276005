import { generateKeyPairSync, sign } from 'node:crypto';
import { closeSync, read, readFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { promisify } from 'node:util';
import type { HubMessage, RunnerMessage, RunnerOutcome } from '@holdfast/contracts';
import { WebSocket } from 'ws';
import type { Journal } from './journal.ts';
import { MAX_WHOLE_BYTES } from './output.ts';
import type { Tools } from './tools.ts';

const readAt = promisify(read);

const FIRST_RETRY_MS = 50;
const MAX_RETRY_MS = 500;
const SILENCE_MS = 9_000;
/** Without a hub for so long nobody will ask for results any more. */
const ALONE_MS = 120_000;
const OUTPUT_PIECE_BYTES = 512 * 1024;

export interface RunnerOptions {
  readonly hubSocket: string;
  readonly token: string | null;
  readonly journal: Journal;
  readonly tools: Tools;
  /** What every call's environment has where the platform says nothing else. */
  readonly defaults: Readonly<Record<string, string>>;
  /** What every call's environment has whatever the platform says. */
  readonly fixed: Readonly<Record<string, string>>;
  readonly leave: (code: number) => void;
}

/**
 * Runs tool calls for the hub. A call is journalled, so it runs at most once however often it is asked for; a result
 * that could not be told is kept and told when the hub is back.
 */
export class Runner {
  readonly #options: RunnerOptions;
  readonly #keys = generateKeyPairSync('ed25519');
  readonly #running = new Map<string, AbortController>();
  readonly #asked = new Set<string>();
  #env: Readonly<Record<string, string>>;
  #token: string | null;
  #socket: WebSocket | null = null;
  #welcomed = false;
  #aloneSince = Date.now();
  #stopped = false;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#env = { ...options.defaults, ...options.fixed };
    this.#token = options.token;
  }

  start(): void {
    this.#dial(FIRST_RETRY_MS);
    setInterval(() => {
      if (!this.#welcomed && this.#running.size === 0 && Date.now() - this.#aloneSince > ALONE_MS) this.stop(0);
    }, 1_000);
  }

  /** Kills what runs and leaves. */
  stop(code: number): void {
    if (this.#stopped) return;
    this.#stopped = true;
    for (const controller of this.#running.values()) controller.abort('The sandbox is shutting down.');
    setTimeout(() => this.#options.leave(code), 50);
  }

  #dial(retryMs: number): void {
    if (this.#stopped) return;
    const socket = new WebSocket(`ws+unix:${this.#options.hubSocket}:/runner-link`, {
      handshakeTimeout: 5_000,
      maxPayload: 16 * 1024 * 1024,
      perMessageDeflate: false,
    });
    this.#socket = socket;
    let heardMs = Date.now();
    const watch = setInterval(() => {
      if (Date.now() - heardMs > SILENCE_MS) socket.terminate();
      else if (socket.readyState === WebSocket.OPEN) socket.ping();
    }, SILENCE_MS / 3);
    for (const event of ['ping', 'pong', 'message'] as const) socket.on(event, () => (heardMs = Date.now()));
    socket.on('message', (data) => this.#onMessage(JSON.parse(String(data as Buffer)) as HubMessage));
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearInterval(watch);
      const again = this.#welcomed ? FIRST_RETRY_MS : Math.min(MAX_RETRY_MS, retryMs * 2);
      if (this.#welcomed) this.#aloneSince = Date.now();
      this.#welcomed = false;
      this.#asked.clear();
      setTimeout(() => this.#dial(again), again);
    });
  }

  #send(message: RunnerMessage): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #onMessage(message: HubMessage): void {
    const { journal } = this.#options;
    switch (message.type) {
      case 'challenge':
        this.#send({
          type: 'hello',
          publicKey: this.#keys.publicKey.export({ type: 'spki', format: 'der' }).toString('base64'),
          signature: sign(null, Buffer.from(message.nonce), this.#keys.privateKey).toString('base64'),
          token: this.#token,
          journalId: journal.id,
          pod: null,
          channel: 'calls',
        });
        return;
      case 'bound':
        this.#token = null;
        return;
      case 'measure':
        this.#send({ type: 'measured', id: message.id, bytes: null });
        return;
      case 'welcome':
        this.#welcomed = true;
        this.#token = null;
        this.#env = { ...this.#options.defaults, ...message.env, ...this.#options.fixed };
        return;
      case 'claim':
        this.#send({ type: 'answer', id: message.id, stale: !journal.admits(message.generation), result: null });
        return;
      case 'exec':
        this.#exec(message);
        return;
      case 'cancel':
        this.#cancel(message);
        return;
      case 'over-limit':
        for (const controller of this.#running.values()) controller.abort(message.text);
        this.#options.tools.killLeftovers();
    }
  }

  #exec(message: Extract<HubMessage, { type: 'exec' }>): void {
    const { journal, tools } = this.#options;
    const { callId } = message;
    if (!journal.admits(message.generation)) {
      this.#send({ type: 'refused', callId, code: 'stale-generation' });
      return;
    }
    const known = journal.find(callId);
    if (known?.state === 'finished') {
      this.#send({ type: 'done', callId, result: known.result });
      return;
    }
    this.#asked.add(callId);
    if (known !== undefined) return;
    const controller = new AbortController();
    this.#running.set(callId, controller);
    journal.start(callId);
    void tools
      .run({
        callId,
        tool: message.tool,
        input: message.input,
        timeoutMs: message.timeoutMs,
        env: this.#env,
        signal: controller.signal,
      })
      .catch((error: unknown) => ({
        result: { outcome: 'completed' as const, isError: true, text: `Failed: ${String(error)}` },
        whole: null,
      }))
      .then(async ({ result, whole }) => {
        this.#running.delete(callId);
        if (whole !== null) await this.#sendWhole(callId, whole);
        journal.finish(callId, result);
        if (this.#asked.delete(callId)) this.#send({ type: 'done', callId, result });
      });
  }

  #cancel(message: Extract<HubMessage, { type: 'cancel' }>): void {
    const { journal } = this.#options;
    const { id, callId } = message;
    const answer = (result: RunnerOutcome | null, stale = false): void =>
      this.#send({ type: 'answer', id, stale, result });
    if (!journal.admits(message.generation)) {
      answer(null, true);
      return;
    }
    const known = journal.find(callId);
    if (known === undefined) {
      answer(journal.bury(callId));
      return;
    }
    if (known.state === 'finished') {
      answer(known.result);
      return;
    }
    this.#running.get(callId)?.abort('Cancelled.');
    const waitUntilMs = Date.now() + 4_000;
    const poll = (): void => {
      const now = journal.find(callId);
      if (now?.state === 'finished') answer(now.result);
      else if (Date.now() < waitUntilMs) setTimeout(poll, 10);
      else answer({ outcome: 'unknown', isError: true, text: 'It did not end when it was cancelled.' });
    };
    poll();
  }

  /** Hands the whole output to the hub that asked for it, which keeps it; best effort, the file stays in the sandbox. */
  async #sendWhole(callId: string, file: number): Promise<void> {
    const socket = this.#socket;
    const piece = Buffer.alloc(OUTPUT_PIECE_BYTES);
    try {
      for (let sent = 0; sent < MAX_WHOLE_BYTES; ) {
        const { bytesRead } = await readAt(file, piece, 0, piece.length, sent);
        if (bytesRead === 0) return;
        while ((socket?.bufferedAmount ?? 0) > 4 * OUTPUT_PIECE_BYTES && socket?.readyState === WebSocket.OPEN)
          await new Promise((resolve) => setTimeout(resolve, 5));
        // Another link knows nothing of this call's output.
        if (!this.#asked.has(callId) || this.#socket !== socket) return;
        this.#send({ type: 'output', callId, data: piece.toString('base64', 0, bytesRead) });
        sent += bytesRead;
      }
    } finally {
      closeSync(file);
    }
  }
}

/** The only way out of a sandbox: a port on its own loopback that leads to the platform's proxy. */
export function startEgressRelay(egressSocket: string, port: number): void {
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const upstream = createConnection({ path: egressSocket, allowHalfOpen: true });
    client.pipe(upstream).pipe(client);
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      one.on('error', () => other.destroy());
      // What it had sent already still arrives.
      one.on('close', () => other.destroySoon());
    }
  });
  server.on('error', () => undefined);
  server.listen(port, '127.0.0.1');
}

/** The token that the provider wrote to a file descriptor; null when there is none. */
export function readToken(fd: number): string | null {
  try {
    return readFileSync(fd, 'utf8').trim() || null;
  } catch {
    return null;
  }
}
