import { closeSync, read } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { HarnessEvent, HubMessage, RunnerMessage, RunnerOutcome } from '@holdfast/contracts';
import { WebSocket } from 'ws';
import type { HarnessHost } from './acp/harness-host.ts';
import { Checkpoints, type CheckpointsOptions } from './checkpoint/checkpoints.ts';
import { LinkPacks } from './checkpoint/link-packs.ts';
import { OverLimit } from './checkpoint/scan.ts';
import type { HubPlace } from './hub-place.ts';
import type { Journal } from './journal.ts';
import { MAX_WHOLE_BYTES } from './output.ts';
import type { Outputs } from './outputs.ts';
import type { Tools } from './tools.ts';
import type { Uploads } from './uploads.ts';

const readAt = promisify(read);

const FIRST_RETRY_MS = 50;
const MAX_RETRY_MS = 500;
const SILENCE_MS = 9_000;
/** What runs may end by itself within this time; killed, it has within the next; the hub answers a good-bye within the last. */
const FINISH_MS = 400;
const STOP_MS = 800;
const CLOSE_MS = 300;
/** {@link RUNNER_LEFT}, of which a runner imports no values. */
const LEFT = 4_000;
/** The last checkpoint is taken within this time, which is less than pods have to end. */
const LEAVE_MS = 7_000;
const OUTPUT_PIECE_BYTES = 512 * 1024;
/** Prompts whose events can be asked for again: the one that runs, and what may still be taken up of the one before. */
const KEPT_PROMPTS = 2;

export interface RunnerOptions {
  readonly hub: HubPlace;
  /** Without a hub for so long, and with nothing running, it leaves: nobody will ask for results any more. */
  readonly aloneMs: number;
  readonly journal: Journal;
  readonly tools: Tools;
  readonly uploads: Uploads;
  readonly outputs: Outputs;
  readonly harnesses: HarnessHost;
  /** What every call's environment has where the platform says nothing else. */
  readonly defaults: Readonly<Record<string, string>>;
  /** What every call's environment has whatever the platform says. */
  readonly fixed: Readonly<Record<string, string>>;
  readonly checkpoints: CheckpointsOptions;
  readonly leave: (code: number) => void;
}

/**
 * Runs tool calls for the hub, and prompts for the session's harness. A call is journalled, so it runs at most once however often it is asked for; a result
 * that could not be told is kept and told when the hub is back.
 */
export class Runner {
  readonly #options: RunnerOptions;
  readonly #running = new Map<string, AbortController>();
  readonly #asked = new Set<string>();
  /** What the harness did in each prompt, by call id, the newest last. */
  readonly #outbox = new Map<string, HarnessEvent[]>();
  /** The prompt that runs; another waits for its end. */
  #prompting: Promise<void> = Promise.resolve();
  #env: Readonly<Record<string, string>>;
  readonly #checkpoints: Checkpoints;
  /** Checkpoints and restores, one after another. */
  #keeping: Promise<void> = Promise.resolve();
  #socket: WebSocket | null = null;
  #packs: LinkPacks | null = null;
  #welcomed = false;
  /** Whether it is settled what files of the session there are: before that nothing runs. */
  #filesThere = false;
  #dismiss: () => void = () => undefined;
  readonly #dismissed = new Promise<void>((resolve) => (this.#dismiss = resolve));
  #aloneSince = Date.now();
  #stopped = false;
  #noted = '';

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#env = { ...options.defaults, ...options.fixed };
    this.#checkpoints = new Checkpoints(options.checkpoints);
  }

  start(): void {
    this.#dial(FIRST_RETRY_MS);
    setInterval(() => {
      if (!this.#welcomed && this.#running.size === 0 && Date.now() - this.#aloneSince > this.#options.aloneMs)
        void this.stop(0);
    }, 1_000);
  }

  /**
   * Begins nothing more, kills what does not end by itself at once, tells how that ended, waits for a last checkpoint, says
   * good-bye and leaves, within 9 seconds.
   */
  async stop(code: number): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    await this.#quiet(FINISH_MS);
    for (const controller of this.#running.values()) controller.abort('The sandbox is shutting down.');
    await this.#quiet(STOP_MS);
    const socket = this.#socket;
    if (socket?.readyState === WebSocket.OPEN) {
      if (this.#welcomed) {
        this.#send({ type: 'leaving' });
        await Promise.race([this.#dismissed, new Promise((resolve) => socket.once('close', resolve)), sleep(LEAVE_MS)]);
      }
      const closed = new Promise((resolve) => socket.once('close', resolve));
      socket.close(this.#running.size === 0 ? LEFT : 1001);
      await Promise.race([closed, sleep(CLOSE_MS)]);
    }
    this.#options.leave(code);
  }

  /** Waits until nothing runs, but no longer than that. */
  async #quiet(timeoutMs: number): Promise<void> {
    for (const deadline = Date.now() + timeoutMs; this.#running.size > 0 && Date.now() < deadline; ) await sleep(5);
  }

  #dial(retryMs: number): void {
    if (this.#stopped) return;
    const { hub } = this.#options;
    const socket = hub.dial();
    this.#socket = socket;
    let stood = false;
    let heardMs = Date.now();
    const watch = setInterval(() => {
      if (Date.now() - heardMs > SILENCE_MS) socket.terminate();
      else if (socket.readyState === WebSocket.OPEN) socket.ping();
    }, SILENCE_MS / 3);
    for (const event of ['ping', 'pong', 'message'] as const) socket.on(event, () => (heardMs = Date.now()));
    const packs = new LinkPacks(socket);
    this.#packs = packs;
    socket.on('message', (data, isBinary) => {
      if (isBinary) {
        packs.take(data as Buffer);
        return;
      }
      const message = JSON.parse(String(data as Buffer)) as HubMessage;
      if (message.type === 'bound' || message.type === 'welcome') {
        stood = hub.bound = true;
        this.#note('linked');
      }
      this.#onMessage(message);
    });
    socket.on('error', ({ message }) => this.#note(message));
    socket.on('close', () => {
      clearInterval(watch);
      // A hub that did not let it in may know its key no more.
      hub.bound = stood;
      const again = stood ? FIRST_RETRY_MS : Math.min(MAX_RETRY_MS, retryMs * 2);
      if (this.#welcomed) this.#aloneSince = Date.now();
      this.#welcomed = false;
      this.#asked.clear();
      // All of a hub's runners lose it at once.
      setTimeout(() => this.#dial(again), again * (0.5 + Math.random() / 2));
    });
  }

  /** To the sandbox's own log, once for each that follows another. */
  #note(text: string): void {
    if (text === this.#noted) return;
    this.#noted = text;
    process.stderr.write(`${new Date().toISOString()} hub: ${text}\n`);
  }

  #send(message: RunnerMessage): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #onMessage(message: HubMessage): void {
    const { journal } = this.#options;
    switch (message.type) {
      case 'challenge':
        this.#send(this.#options.hub.hello(message.nonce, 'calls'));
        return;
      case 'bound':
        return;
      case 'measure':
        void this.#options.tools.measure().then((bytes) => this.#send({ type: 'measured', id: message.id, bytes }));
        return;
      case 'welcome':
        this.#welcomed = true;
        this.#env = { ...this.#options.defaults, ...message.env, ...this.#options.fixed };
        return;
      case 'claim':
        this.#send({ type: 'answer', id: message.id, stale: !journal.admits(message.generation), result: null });
        // A call is about to come; the answer goes first.
        setImmediate(() => this.#prepare());
        return;
      case 'exec':
        this.#exec(message);
        return;
      case 'prompt':
        this.#prompt(message);
        return;
      case 'permit':
        if (journal.admits(message.generation) && this.#running.has(message.callId))
          this.#options.harnesses.permit(message.toolCallId, message.allow);
        return;
      case 'cancel':
        this.#cancel(message);
        return;
      case 'uploads':
        void this.#options.uploads
          .missing(message.files)
          .then((paths) => this.#send({ type: 'missing', id: message.id, paths }));
        return;
      case 'upload':
        void this.#options.uploads
          .take(message)
          .then((fault) => this.#send({ type: 'uploaded', id: message.id, fault }));
        return;
      case 'outputs':
        void this.#options.outputs
          .list(message.limit)
          .then((found) => this.#send({ type: 'outputs-found', id: message.id, ...found }));
        return;
      case 'read-output':
        void this.#options.outputs
          .read(message.file, message.at, message.bytes)
          .then((bytes) =>
            this.#send({ type: 'output-read', id: message.id, data: bytes?.toString('base64') ?? null }),
          );
        return;
      case 'over-limit':
        for (const controller of this.#running.values()) controller.abort(message.text);
        this.#options.harnesses.kill();
        this.#options.tools.killLeftovers();
        return;
      case 'checkpoint':
        this.#keep((packs) => this.#checkpoint(message, packs));
        return;
      case 'restore':
        this.#keep((packs) => this.#restore(message, packs));
        return;
      case 'dismissed':
        this.#dismiss();
        return;
      case 'settled':
        this.#checkpoints.settle(message.checkpointId);
        return;
      case 'pack':
      case 'pack-kept':
        this.#packs?.hear(message);
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
    // About to leave it begins nothing, which its good-bye tells; what it has begun it still tells.
    if (known !== undefined || this.#stopped) return;
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
      .then(({ result, whole }) => this.#finish(callId, result, whole));
  }

  async #finish(callId: string, result: RunnerOutcome, whole: number | null): Promise<void> {
    if (whole !== null) await this.#sendWhole(callId, whole);
    this.#options.journal.finish(callId, result);
    if (this.#asked.delete(callId)) this.#send({ type: 'done', callId, result });
    this.#running.delete(callId);
  }

  /**
   * Journalled like a tool call, so the harness gets it at most once (T3). Asked again, it tells what came after the event
   * that is named. A prompt before it that still runs was given up by the platform: it is cancelled first.
   */
  #prompt(message: Extract<HubMessage, { type: 'prompt' }>): void {
    const { journal, harnesses } = this.#options;
    const { callId, after } = message;
    if (!journal.admits(message.generation)) {
      this.#send({ type: 'refused', callId, code: 'stale-generation' });
      return;
    }
    const known = journal.find(callId);
    for (const [n, event] of (this.#outbox.get(callId) ?? []).entries())
      if (n >= after) this.#send({ type: 'progress', callId, sequence: n + 1, event });
    if (known?.state === 'finished') {
      this.#send({ type: 'done', callId, result: known.result });
      return;
    }
    this.#asked.add(callId);
    if (known !== undefined || this.#stopped) return;
    for (const earlier of this.#outbox.keys()) this.#running.get(earlier)?.abort('Another prompt came.');
    const controller = new AbortController();
    const events: HarnessEvent[] = [];
    this.#running.set(callId, controller);
    this.#outbox.set(callId, events);
    for (const oldest of this.#outbox.keys()) if (this.#outbox.size > KEPT_PROMPTS) this.#outbox.delete(oldest);
    journal.start(callId);
    const emit = (event: HarnessEvent): void => {
      events.push(event);
      if (this.#asked.has(callId)) this.#send({ type: 'progress', callId, sequence: events.length, event });
    };
    this.#prompting = this.#prompting.then(async () => {
      const { result, raw } = await harnesses.prompt(message, this.#env, emit, controller.signal);
      await this.#finish(callId, result, raw);
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

  /** One after another, over the link that asked. */
  #keep(work: (packs: LinkPacks) => Promise<RunnerMessage>): void {
    const [packs, socket] = [this.#packs, this.#socket];
    if (packs === null) return;
    this.#keeping = this.#keeping.then(async () => {
      const answer = await work(packs);
      if (this.#socket === socket) this.#send(answer);
    });
  }

  /** A shell takes up what the last one left, so the files come first. */
  #prepare(): void {
    if (this.#filesThere) this.#options.tools.prepare(this.#env);
  }

  async #checkpoint(
    { id, base, exclude, limits }: Extract<HubMessage, { type: 'checkpoint' }>,
    packs: LinkPacks,
  ): Promise<RunnerMessage> {
    try {
      return {
        type: 'checkpointed',
        id,
        taken: await this.#checkpoints.take({ base, exclude, limits }, packs),
        fault: null,
      };
    } catch (error) {
      const code = error instanceof OverLimit ? error.limit : 'failed';
      return { type: 'checkpointed', id, taken: null, fault: { code, message: textOf(error) } };
    }
  }

  async #restore(
    { id, checkpoint }: Extract<HubMessage, { type: 'restore' }>,
    packs: LinkPacks,
  ): Promise<RunnerMessage> {
    try {
      // What the session has removed since does not come back with the next link.
      const done = this.#filesThere
        ? { fresh: false, restored: false }
        : await this.#checkpoints.restore(checkpoint, packs);
      this.#filesThere = true;
      setImmediate(() => this.#prepare());
      return { type: 'restored', id, ...done, fault: null };
    } catch (error) {
      return { type: 'restored', id, fresh: true, restored: false, fault: textOf(error) };
    }
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
        if (!this.#asked.has(callId) || this.#socket !== socket || this.#stopped) return;
        this.#send({ type: 'output', callId, data: piece.toString('base64', 0, bytesRead) });
        sent += bytesRead;
      }
    } finally {
      closeSync(file);
    }
  }
}

function textOf(error: unknown): string {
  const { message, cause } = error as Error;
  return (cause instanceof Error ? `${message} ${cause.message}` : message).slice(0, 1_000);
}
