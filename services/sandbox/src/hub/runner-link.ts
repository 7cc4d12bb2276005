import { randomBytes } from 'node:crypto';
import { PassThrough, type Readable } from 'node:stream';
import {
  AppError,
  type ExecBody,
  type HarnessEvent,
  type HubMessage,
  type KeptCheckpoint,
  LINK_SILENCE_MS,
  type OutputFile,
  type PermitBody,
  RUNNER_LEFT,
  type RunnerMessage,
  type RunnerOutcome,
  type ToolOutcome,
  type UploadedFile,
} from '@holdfast/contracts';
import type { WebSocket } from 'ws';
import { type Hello, readMessage } from './greeting.ts';
import { PackChannel, type Packs } from './pack-channel.ts';

const ANSWER_MS = 5_000;
/** A runner counts for a minute at most before it says that there is too much to count. */
const MEASURE_MS = 65_000;
/** A runner that takes longer to look at its files, or to get them, has too many for any use. */
const CHECKPOINT_MS = 10 * 60_000;
/** A runner keeps no more than this of one call's output. */
const MAX_WHOLE_BYTES = 64 * 1024 * 1024;
/** Of a file at a time, and how long the sandbox's disk may take for it. */
const UPLOAD_PIECE_BYTES = 1024 * 1024;
const UPLOAD_MS = 30_000;
/** Answers arrive in the order of what was asked: nothing is still under way for a call that came so long before. */
const MAX_GIVEN = 10_000;
const WATCH_MS = LINK_SILENCE_MS / 3;

/** Keeps a call's whole output as it comes; null when it cannot be kept. Never rejects. */
export type KeepOutput = (pieces: Readable) => Promise<ToolOutcome['fullOutput']>;

export interface LinkHandlers {
  /** Once, when the link has ended, whoever ended it. What was pending has been rejected. */
  onLost: () => void;
  /** At most once: the runner did what none of ours does, and the link was ended for it. */
  onFault: (reason: string) => void;
  /** Its sandbox is about to end, and it waits a few seconds to be dismissed. */
  onLeaving?: () => void;
}

/** What a harness is prompted with; its content as it is handed over. */
export type LinkPrompt = Omit<Extract<HubMessage, { type: 'prompt' }>, 'type'>;

interface Waiter {
  readonly generation: number;
  readonly onEvent?: (sequence: number, event: HarnessEvent) => void;
  readonly resolve: (outcome: ToolOutcome) => void;
  readonly reject: (error: unknown) => void;
}
interface PendingCall {
  readonly waiters: Waiter[];
  whole: { readonly pieces: PassThrough; readonly kept: Promise<ToolOutcome['fullOutput']>; bytes: number } | null;
}
type Reply = Extract<RunnerMessage, { id: string }>;
interface Question {
  readonly answer: (reply: Reply) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * The link to one runner that has proven itself, from its greeting to its end. It may wait unclaimed: calls are possible
 * once it is welcome. A runner that dials again gets a new link; what was pending on the old one is rejected with
 * `sandbox.link-lost` and can be asked for again there. Calls that a runner had not begun when it left in good order are
 * rejected with `sandbox.not-linked`: they were not sent.
 */
export class RunnerLink {
  readonly journalId: string;
  /** UID of the pod that it runs in; null on this machine. */
  readonly pod: string | null;
  /** Whether it takes checkpoints and restores them. */
  readonly keepsFiles: boolean;
  readonly handlers: LinkHandlers;
  readonly #socket: WebSocket;
  readonly #calls = new Map<string, PendingCall>();
  readonly #questions = new Map<string, Question>();
  /** Calls that this link was given, the newest last: only for those it may answer. */
  readonly #given = new Set<string>();
  #keep: KeepOutput | null = null;
  /** While a checkpoint is taken or restored. */
  #packs: PackChannel | null = null;
  #faulty = false;
  #silent = false;

  constructor(
    socket: WebSocket,
    { journalId, pod, keepsFiles }: Pick<Hello, 'journalId' | 'pod' | 'keepsFiles'>,
    handlers: LinkHandlers,
  ) {
    this.#socket = socket;
    this.journalId = journalId;
    this.pod = pod;
    this.keepsFiles = keepsFiles;
    this.handlers = handlers;
    let heardMs = Date.now();
    let lookedMs = heardMs;
    const watch = setInterval(() => {
      const nowMs = Date.now();
      // While it is held back by a slow store, or this process stands still, its signs of life are not read either.
      if (socket.isPaused || nowMs - lookedMs > 2 * WATCH_MS) heardMs = nowMs;
      lookedMs = nowMs;
      this.#silent = nowMs - heardMs > LINK_SILENCE_MS;
      if (this.#silent) socket.terminate();
      else socket.ping();
    }, WATCH_MS);
    for (const event of ['ping', 'pong', 'message'] as const) {
      socket.on(event, () => {
        heardMs = Date.now();
      });
    }
    socket.on('message', (data, isBinary) => this.#onMessage(data, isBinary));
    // What no WebSocket says: it ends the link by itself, and is told here.
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code?.startsWith('WS_ERR_') === true) this.#fault('it sent a message that cannot be read');
    });
    socket.on('close', (code) => {
      clearInterval(watch);
      this.#end(code === RUNNER_LEFT ? left() : lost());
    });
  }

  /** False from the moment at which its end is certain. */
  get open(): boolean {
    return this.#socket.readyState === this.#socket.OPEN;
  }
  /** Whether it ended because nothing was heard of the runner any more. */
  get silent(): boolean {
    return this.#silent;
  }
  /** Whether a call waits for its result. */
  get busy(): boolean {
    return this.#calls.size > 0;
  }

  /** Claims the runner: from now on it runs calls, with this environment. */
  welcome({ env, keep }: { env: Readonly<Record<string, string>>; keep: KeepOutput }): void {
    this.#keep = keep;
    this.#send({ type: 'welcome', env: { ...env } });
  }

  /**
   * Runs a call, or joins it when it runs already. @throws AppError `sandbox.link-lost`, `sandbox.not-linked` when the
   * runner left and had not begun it, `sandbox.stale-generation`
   */
  exec({ callId, generation, tool, input, timeoutMs }: ExecBody): Promise<ToolOutcome> {
    return this.#call(callId, generation, { type: 'exec', callId, generation, tool, input, timeoutMs });
  }

  /**
   * Hands a prompt to the session's harness, or joins it: `onEvent` is told what the harness does, also again what another
   * caller was told. Its outcome's whole output are the harness's own lines. @throws AppError as {@link exec}
   */
  prompt(prompt: LinkPrompt, onEvent: (sequence: number, event: HarnessEvent) => void): Promise<ToolOutcome> {
    return this.#call(prompt.callId, prompt.generation, { type: 'prompt', ...prompt }, onEvent);
  }

  /** Answers a harness's call that asks. @throws AppError `sandbox.link-lost` */
  permit({ callId, generation, toolCallId, allow }: PermitBody): void {
    this.#mustStand();
    this.#send({ type: 'permit', callId, generation, toolCallId, allow });
  }

  #call(callId: string, generation: number, message: HubMessage, onEvent?: Waiter['onEvent']): Promise<ToolOutcome> {
    return new Promise((resolve, reject) => {
      this.#mustStand();
      const pending = this.#calls.get(callId) ?? { waiters: [], whole: null };
      pending.waiters.push({ generation, resolve, reject, ...(onEvent === undefined ? {} : { onEvent }) });
      this.#calls.set(callId, pending);
      this.#give(callId);
      this.#send(message);
    });
  }

  /** Makes the runner refuse lower generations from now on (T1). @throws AppError as {@link exec} */
  async claim(generation: number): Promise<void> {
    this.#mustStand();
    const { stale } = await this.#ask('answer', ANSWER_MS, (id) => ({ type: 'claim', id, generation }));
    if (stale) throw staleGeneration();
  }

  /** Ends a call, or makes sure that it never starts; what it had already come to counts. @throws AppError as {@link exec} */
  async cancel(callId: string, generation: number): Promise<RunnerOutcome> {
    this.#mustStand();
    const { stale, result } = await this.#ask('answer', ANSWER_MS, (id) => ({
      ...{ type: 'cancel', id, callId, generation },
    }));
    if (stale || result === null) throw staleGeneration();
    return result;
  }

  /** Bytes of workspace and home; Infinity when there is more than can be counted. @throws AppError `sandbox.link-lost` */
  async measure(): Promise<number> {
    const { bytes } = await this.#ask('measured', MEASURE_MS, (id) => ({ type: 'measure', id }));
    return bytes ?? Number.POSITIVE_INFINITY;
  }

  /**
   * Puts files of the session where they are not as they were put before. `open` gives a file's bytes; null = they are
   * gone for good, and it is left out. @throws AppError `sandbox.link-lost`, `sandbox.upload` when one cannot be put there
   */
  async upload(
    files: readonly UploadedFile[],
    open: (file: UploadedFile) => Promise<AsyncIterable<Uint8Array> | null>,
  ): Promise<void> {
    const { paths } = await this.#ask('missing', ANSWER_MS, (id) => ({ type: 'uploads', id, files: [...files] }));
    for (const file of files.filter(({ path }) => paths.includes(path))) {
      const bytes = await open(file);
      if (bytes === null) continue;
      let at = 0;
      // One piece ahead: the last one is told as such.
      for await (const { piece, last } of inPieces(bytes, UPLOAD_PIECE_BYTES)) {
        const { fault } = await this.#ask('uploaded', UPLOAD_MS, (id) => ({
          ...{ type: 'upload', id, file, at, last },
          data: piece.toString('base64'),
        }));
        if (fault !== null)
          throw new AppError('exhausted', 'sandbox.upload', `The file ${file.path} cannot be put there: ${fault}`);
        at += piece.length;
      }
    }
  }

  /** What lies in the outputs folder, at most `limit` files. @throws AppError `sandbox.link-lost` */
  async outputs(limit: number): Promise<{ readonly files: readonly OutputFile[]; readonly more: boolean }> {
    return this.#ask('outputs-found', UPLOAD_MS, (id) => ({ type: 'outputs', id, limit }));
  }

  /** The bytes of one of them. @throws AppError `sandbox.link-lost`, `sandbox.output-changed` */
  async *readOutput(file: OutputFile): AsyncGenerator<Buffer, void> {
    for (let at = 0; at < file.bytes; ) {
      const { data } = await this.#ask('output-read', UPLOAD_MS, (id) => ({
        ...{ type: 'read-output', id, file, at, bytes: UPLOAD_PIECE_BYTES },
      }));
      const piece = Buffer.from(data ?? '', 'base64');
      if (data === null || piece.length === 0 || piece.length > file.bytes - at)
        throw new AppError('conflict', 'sandbox.output-changed', 'It was changed while it was read.');
      yield piece;
      at += piece.length;
    }
  }

  /**
   * Has the runner look at its files and hand over what is new. One at a time, and none beside a restore; what was taken
   * is to be settled. @throws AppError `sandbox.link-lost`
   */
  async checkpoint(
    ask: Omit<Extract<HubMessage, { type: 'checkpoint' }>, 'type' | 'id'>,
    packs: Packs,
  ): Promise<Pick<Extract<RunnerMessage, { type: 'checkpointed' }>, 'taken' | 'fault'>> {
    this.#mustStand();
    return this.#withPacks(packs, () =>
      this.#ask('checkpointed', CHECKPOINT_MS, (id) => ({ type: 'checkpoint', id, ...ask })),
    );
  }

  /** Tells the runner whether what it took last is kept. */
  settle(checkpointId: string | null): void {
    this.#send({ type: 'settled', checkpointId });
  }

  /** Nothing more is wanted of a runner that is leaving. */
  dismiss(): void {
    this.#send({ type: 'dismissed' });
  }

  /** Gives the runner files where it has none of a session. As {@link checkpoint}. @throws AppError `sandbox.link-lost` */
  async restore(
    checkpoint: KeptCheckpoint | null,
    give: Packs['give'],
  ): Promise<Pick<Extract<RunnerMessage, { type: 'restored' }>, 'fresh' | 'restored' | 'fault'>> {
    this.#mustStand();
    const take: Packs['take'] = () => Promise.reject(new Error('nothing is taken while files are given'));
    return this.#withPacks({ give, take }, () =>
      this.#ask('restored', CHECKPOINT_MS, (id) => ({ type: 'restore', id, checkpoint })),
    );
  }

  async #withPacks<T>(packs: Packs, work: () => Promise<T>): Promise<T> {
    if (this.#packs !== null)
      throw new AppError('defect', 'sandbox.packs-busy', 'A checkpoint is taken or restored over this link already.');
    this.#packs = new PackChannel(this.#socket, packs, (message) => this.#send(message));
    try {
      return await work();
    } catch (error) {
      // One that did not answer in time would be taken to task for what it sends late.
      this.close();
      throw error;
    } finally {
      this.#packs = null;
    }
  }

  /** Kills everything that may write, and says why. */
  overLimit(text: string): void {
    this.#send({ type: 'over-limit', text });
  }

  close(): void {
    this.#socket.terminate();
  }

  #mustStand(): void {
    if (!this.open) throw lost();
    if (this.#keep === null) throw new AppError('defect', 'sandbox.unclaimed', 'The runner was not welcomed yet.');
  }

  #give(callId: string): void {
    this.#given.delete(callId);
    this.#given.add(callId);
    for (const oldest of this.#given) {
      if (this.#given.size <= MAX_GIVEN) break;
      this.#given.delete(oldest);
    }
  }

  #ask<Kind extends Reply['type']>(
    kind: Kind,
    waitMs: number,
    question: (id: string) => HubMessage,
  ): Promise<Extract<Reply, { type: Kind }>> {
    if (!this.open) return Promise.reject(lost());
    const id = randomBytes(8).toString('hex');
    return new Promise((resolve, reject) => {
      const forget = (): void => {
        clearTimeout(timer);
        this.#questions.delete(id);
      };
      const fail = (error: unknown): void => {
        forget();
        reject(error);
      };
      const timer = setTimeout(() => fail(lost()), waitMs);
      this.#questions.set(id, {
        answer: (reply) => {
          if (reply.type !== kind) return;
          forget();
          resolve(reply as Extract<Reply, { type: Kind }>);
        },
        reject: fail,
      });
      this.#send(question(id));
    });
  }

  #send(message: HubMessage): void {
    if (this.open) this.#socket.send(JSON.stringify(message));
  }

  #fault(reason: string): void {
    this.#socket.terminate();
    if (this.#faulty) return;
    this.#faulty = true;
    this.handlers.onFault(reason);
  }

  #end(untold: AppError): void {
    for (const { waiters, whole } of this.#calls.values()) {
      whole?.pieces.destroy(untold);
      for (const waiter of waiters) waiter.reject(untold);
    }
    this.#calls.clear();
    for (const question of [...this.#questions.values()]) question.reject(lost());
    this.handlers.onLost();
  }

  #onMessage(data: unknown, isBinary: boolean): void {
    if (!this.open) return;
    if (isBinary) {
      this.#onPack((packs) => packs.bytes(data as Buffer));
      return;
    }
    const message = readMessage(data);
    switch (message?.type) {
      case 'leaving':
        if (this.handlers.onLeaving === undefined) this.dismiss();
        else this.handlers.onLeaving();
        return;
      case 'pack':
      case 'want':
        this.#onPack((packs) => packs.hear(message));
        return;
      case 'answer':
      case 'measured':
      case 'missing':
      case 'uploaded':
      case 'outputs-found':
      case 'output-read':
      case 'checkpointed':
      case 'restored':
        // One that nobody waits for any more came too late.
        this.#questions.get(message.id)?.answer(message);
        return;
      case 'progress':
      case 'output':
      case 'done':
      case 'refused':
        if (this.#given.has(message.callId)) this.#onCall(message);
        else this.#fault('it answered for a call that it was not given');
        return;
      default:
        this.#fault('it sent a message that cannot be read');
    }
  }

  #onPack(hear: (packs: PackChannel) => string | null): void {
    const wrong = this.#packs === null ? 'it sent a pack that it was not asked for' : hear(this.#packs);
    if (wrong !== null) this.#fault(wrong);
  }

  /** A call that is not pending was asked for twice and answered once already, or nobody waits for it any more. */
  #onCall(message: Extract<RunnerMessage, { callId: string }>): void {
    const pending = this.#calls.get(message.callId);
    if (pending === undefined) return;
    if (message.type === 'progress') {
      try {
        for (const { onEvent } of pending.waiters) onEvent?.(message.sequence, message.event);
      } catch {
        // Whatever a runner says must not end more than its own link.
        this.#fault('it told what cannot be passed on');
      }
    } else if (message.type === 'output') {
      this.#take(pending, Buffer.from(message.data, 'base64'));
    } else if (message.type === 'done') {
      this.#calls.delete(message.callId);
      void this.#finish(pending, message.result);
    } else {
      this.#refuse(message.callId, pending);
    }
  }

  #take(pending: PendingCall, piece: Buffer): void {
    const whole = (pending.whole ??= this.#keepWhole());
    whole.bytes += piece.length;
    if (whole.bytes > MAX_WHOLE_BYTES) {
      this.#fault('it sent more output than a call may have');
      return;
    }
    if (whole.pieces.write(piece)) return;
    const socket = this.#socket;
    if (socket.isPaused) return;
    socket.pause();
    const goOn = (): void => {
      whole.pieces.off('drain', goOn).off('close', goOn);
      socket.resume();
    };
    whole.pieces.on('drain', goOn).on('close', goOn);
  }

  #keepWhole(): NonNullable<PendingCall['whole']> {
    const pieces = new PassThrough();
    // Whoever keeps it says what went wrong.
    pieces.on('error', () => undefined);
    const kept = this.#keep?.(pieces) ?? Promise.resolve(null);
    // A store that gave up holds nobody back.
    void kept.then(() => pieces.resume());
    return { pieces, kept, bytes: 0 };
  }

  async #finish({ waiters, whole }: PendingCall, result: RunnerOutcome): Promise<void> {
    whole?.pieces.end();
    const outcome = { ...result, fullOutput: whole === null ? null : await whole.kept };
    for (const waiter of waiters) waiter.resolve(outcome);
  }

  /** One exec was refused: of those who wait for the call, the one with the lowest generation asked for that. */
  #refuse(callId: string, pending: PendingCall): void {
    const { waiters, whole } = pending;
    const oldest = waiters.reduce((one, other) => (other.generation < one.generation ? other : one));
    waiters.splice(waiters.indexOf(oldest), 1);
    oldest.reject(staleGeneration());
    if (waiters.length > 0) return;
    this.#calls.delete(callId);
    whole?.pieces.destroy(staleGeneration());
  }
}

/** The bytes in pieces of one size, the last of which may be shorter, or empty when there are none. */
async function* inPieces(
  bytes: AsyncIterable<Uint8Array>,
  size: number,
): AsyncGenerator<{ piece: Buffer; last: boolean }, void> {
  let held: Buffer[] = [];
  let length = 0;
  for await (const part of bytes) {
    held.push(Buffer.from(part.buffer, part.byteOffset, part.byteLength));
    length += part.length;
    if (length <= size) continue;
    const all = Buffer.concat(held);
    let from = 0;
    for (; length - from > size; from += size) yield { piece: all.subarray(from, from + size), last: false };
    held = [all.subarray(from)];
    length -= from;
  }
  yield { piece: Buffer.concat(held), last: true };
}

function lost(): AppError {
  return new AppError('unavailable', 'sandbox.link-lost', 'The link to the sandbox was lost; it is dialled again.');
}
function left(): AppError {
  return new AppError('unavailable', 'sandbox.not-linked', 'The sandbox ended before the call began.');
}
function staleGeneration(): AppError {
  return new AppError('rejected', 'sandbox.stale-generation', 'A newer worker holds this session.');
}
