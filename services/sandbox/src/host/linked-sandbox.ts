import type { Readable } from 'node:stream';
import type { Registration } from '@holdfast/bus';
import {
  AppError,
  type CancelBody,
  type CheckpointBody,
  type CheckpointReply,
  type CheckpointUpdate,
  type ClaimBody,
  type ContentBlock,
  type EnsureSandboxReply,
  EXEC_ALIVE_MS,
  type ExecBody,
  type ExecReply,
  type FoundOutput,
  type FoundOutputs,
  type HarnessEvent,
  type HarvestBody,
  type HarvestUpdate,
  isAppError,
  type LeftOutOutput,
  LIMITS,
  type PermitBody,
  type PromptBody,
  type PromptReply,
  type RestoredFiles,
  type StoredBlock,
  sandboxLinkSubject,
  TOOL_OUTPUT_CHARS,
  type ToolOutcome,
  type UploadedFile,
} from '@holdfast/contracts';
import type { LinkPrompt, RunnerLink } from '../hub/runner-link.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import type { HostParts } from './sandbox-host.port.ts';

export interface LinkedParts
  extends Pick<HostParts, 'bus' | 'blobs' | 'fileBlobs' | 'store' | 'keeper' | 'env' | 'logger'> {
  /** Why no tool may run now; null when it may. */
  readonly lack: () => Promise<string | null>;
  /** Whether it is about to end: then it is asked for nothing new, and what runs is still heard. */
  readonly ending: () => boolean;
}

/** While calls run, or what they left behind may, its files are kept at least so often (C1). */
const KEEP_MS = 30_000;
/** As often while nothing is known to run: what is left in the background may sleep for long. */
const KEEP_QUIET_MS = 300_000;

/**
 * A sandbox whose runner's link this replica holds: the subjects that lead to it, when it was used last, and its files, which
 * are there before the first call and kept while it is used.
 */
export class LinkedSandbox {
  readonly row: SandboxRow;
  lastUsedMs = Date.now();
  readonly #parts: LinkedParts;
  #link: RunnerLink | null = null;
  #registrations: Registration[] = [];
  #retired = false;
  /** Outputs that are in the blob store, by path and stamp. */
  #harvested: ReadonlyMap<string, FoundOutput> = new Map();
  /** Which files were put there over which link, and whoever waits for that. */
  #uploads: { readonly link: RunnerLink; readonly files: string; readonly done: Promise<string | null> } | null = null;
  /** The files that the sandbox of this link has; made anew with each link. */
  #files: { readonly link: RunnerLink; readonly given: Promise<void> } | null = null;
  #restored: RestoredFiles | null = null;
  /** Checkpoints, one after another. */
  #keeping: Promise<unknown> = Promise.resolve();
  #keptAtMs = Date.now();
  /** Whether files may have changed since they were kept last. */
  #dirty = false;
  #keepFailed = false;
  /** Whether anything may have run since it was given files. */
  #ran = true;
  #timer: NodeJS.Timeout | null = null;

  constructor(row: SandboxRow, parts: LinkedParts) {
    this.row = row;
    this.#parts = parts;
  }

  get busy(): boolean {
    return this.#link?.busy ?? false;
  }
  get linked(): boolean {
    return this.#link?.open ?? false;
  }

  /** Takes a link in place of the one before, and calls over it. */
  attach(link: RunnerLink): void {
    const before = this.#link;
    this.#link = link;
    if (before !== link) before?.close();
    const { blobs, env, logger } = this.#parts;
    link.welcome({
      env,
      keep: (pieces) =>
        blobs.put(this.row.workspace_id, pieces).catch((error: unknown) => {
          logger.warn({ err: error, sandbox: this.row.id }, 'a whole output could not be kept');
          return null;
        }),
    });
    link.handlers.onLeaving = () => {
      // Said again it means no more.
      link.handlers.onLeaving = () => undefined;
      void this.keep()
        .catch(() => undefined)
        .then(() => link.dismiss());
    };
    // Begun at once, waited for by whoever needs them.
    this.#withFiles(link).catch(() => undefined);
    this.#timer ??= setInterval(() => void this.#keepNowAndThen(), KEEP_MS / 6).unref();
    this.#subscribe();
  }

  /**
   * Keeps what the sandbox holds; resolves once that is durable. Null when nothing ran since it was given its files: then it
   * holds what is kept, and no more of what the log says. @throws AppError as `CheckpointKeeper.take`,
   * `sandbox.link-lost`, `sandbox.not-linked`
   */
  keep(): Promise<CheckpointReply | null> {
    const kept = this.#keeping.then(() => this.#keepNow());
    this.#keeping = kept.catch(() => undefined);
    return kept;
  }

  /**
   * The link. @throws AppError `sandbox.not-linked` while there is none, which nobody else has either; `sandbox.link-lost`
   * when it has just ended: by now another replica may have the next one, and hear what is asked here.
   */
  get link(): RunnerLink {
    if (this.#link === null || this.#retired)
      throw new AppError('unavailable', 'sandbox.not-linked', 'The sandbox is not linked; it is dialled again.');
    if (!this.#link.open)
      throw new AppError('unavailable', 'sandbox.link-lost', 'The link to the sandbox was lost; it is dialled again.');
    return this.#link;
  }

  /** For what begins now. @throws AppError as {@link link}, and `sandbox.not-linked` when it is about to end */
  get #lasting(): RunnerLink {
    if (this.#parts.ending())
      throw new AppError(
        'unavailable',
        'sandbox.not-linked',
        'The sandbox is about to end; the next one takes the call.',
      );
    return this.link;
  }

  /** Takes no calls any more, because it is about to rest. False when one runs: then it goes on as before. */
  retire(): boolean {
    this.#retired = !this.busy;
    return this.#retired;
  }

  async claim(generation: number): Promise<EnsureSandboxReply> {
    this.lastUsedMs = Date.now();
    const link = this.#lasting;
    await link.claim(generation);
    return { sandboxId: this.row.id, journalId: link.journalId };
  }

  #subscribe(): void {
    if (this.#registrations.length > 0) return;
    const { bus } = this.#parts;
    const { id } = this.row;
    this.#registrations = [
      bus.replyMany<ExecBody, ExecReply>(sandboxLinkSubject(id, 'exec'), {}, (body, _context, send) =>
        this.#exec(body, send),
      ),
      bus.replyMany<HarvestBody, HarvestUpdate>(sandboxLinkSubject(id, 'harvest'), {}, (body, _context, send) =>
        this.#harvest(body, send),
      ),
      bus.replyMany<PromptBody, PromptReply>(sandboxLinkSubject(id, 'prompt'), {}, (body, _context, send) =>
        this.#prompt(body, send),
      ),
      bus.reply<PermitBody, null>(sandboxLinkSubject(id, 'permit'), {}, (body) => {
        this.link.permit(body);
        return null;
      }),
      bus.reply<CancelBody, ToolOutcome>(sandboxLinkSubject(id, 'cancel'), {}, async ({ callId, generation }) => ({
        ...(await this.link.cancel(callId, generation)),
        fullOutput: null,
      })),
      bus.replyMany<CheckpointBody, CheckpointUpdate>(
        sandboxLinkSubject(id, 'checkpoint'),
        {},
        async ({ generation, journalId }, _context, send) => {
          const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
          try {
            const { link } = this;
            await link.claim(generation);
            await this.#withFiles(link);
            const hasThem = journalId === link.journalId || this.#restored === null;
            const kept = hasThem ? await this.keep() : null;
            if (kept === null)
              throw new AppError('rejected', 'sandbox.started-anew', 'the sandbox was lost and started anew.');
            send({ kind: 'kept', checkpoint: kept });
          } finally {
            clearInterval(alive);
          }
        },
      ),
      bus.reply<ClaimBody, EnsureSandboxReply>(sandboxLinkSubject(id, 'claim'), {}, ({ generation }) =>
        this.claim(generation),
      ),
    ];
  }

  async #prompt(body: PromptBody, send: (reply: PromptReply) => void): Promise<void> {
    this.lastUsedMs = Date.now();
    const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
    try {
      const link = this.#lasting;
      requireJournal(link, body);
      await this.#withFiles(link);
      if (this.#restored !== null) send({ kind: 'restored', files: this.#restored });
      this.#begun();
      const { files, content, journalId: _journal, ...prompt } = body;
      const tell = (sequence: number, event: HarnessEvent): void => send({ kind: 'event', sequence, event });
      // What has begun is not held up any more.
      const lack = body.after > 0 ? null : ((await this.#parts.lack()) ?? (await this.#upload(link, files)));
      if (lack !== null) {
        await link.cancel(body.callId, body.generation);
        tell(1, { type: 'turn.finished', reason: 'error', error: { code: 'failed', message: lack } });
        send({ kind: 'done', outcome: 'completed', raw: null });
        return;
      }
      const { outcome, fullOutput } = await link.prompt({ ...prompt, content: await this.#handedOver(content) }, tell);
      send({ kind: 'done', outcome, raw: fullOutput });
    } finally {
      clearInterval(alive);
      this.#dirty = true;
      this.lastUsedMs = Date.now();
    }
  }

  /** Blocks as harnesses take them: text, and images; what is too large for the bus comes from the blob store. */
  #handedOver(content: readonly StoredBlock[]): Promise<LinkPrompt['content']> {
    return Promise.all(
      content.map(async (stored): Promise<LinkPrompt['content'][number]> => {
        const block =
          stored.type === 'x_blob'
            ? (JSON.parse(
                (await this.#parts.blobs.read(this.row.workspace_id, stored.digest)).toString(),
              ) as ContentBlock)
            : stored;
        const text = (said: string) => ({ type: 'text' as const, text: said });
        if (block.type === 'text') return text(block.text);
        const { source } = block;
        if (source.type === 'url') return text(`[${block.type}: ${source.url}]`);
        if (source.type === 'text')
          return text(`${block.type === 'document' ? (block.title ?? '') : ''}\n${source.data}`);
        return block.type === 'image'
          ? { type: 'image', mimeType: source.media_type, data: source.data }
          : text(`[a document that cannot be handed to a coding harness: ${block.title ?? source.media_type}]`);
      }),
    );
  }

  async #exec(body: ExecBody, send: (reply: ExecReply) => void): Promise<void> {
    this.lastUsedMs = Date.now();
    const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
    try {
      const link = this.#lasting;
      requireJournal(link, body);
      await this.#withFiles(link);
      if (this.#restored !== null) send({ kind: 'restored', files: this.#restored });
      this.#begun();
      const lack = (await this.#parts.lack()) ?? (await this.#upload(link, body.files ?? []));
      send({ kind: 'done', result: shown(lack === null ? await link.exec(body) : await refused(link, body, lack)) });
    } finally {
      clearInterval(alive);
      this.#dirty = true;
      this.lastUsedMs = Date.now();
    }
  }

  #begun(): void {
    this.#dirty = true;
    this.#ran = true;
  }

  async #harvest({ generation, maxFileBytes }: HarvestBody, send: (reply: HarvestUpdate) => void): Promise<void> {
    const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
    try {
      await this.claim(generation);
      send({ kind: 'found', ...(await this.#outputs(maxFileBytes)) });
    } finally {
      clearInterval(alive);
      this.lastUsedMs = Date.now();
    }
  }

  /** Puts what lies in the outputs folder into the blob store, unless it was there before. */
  async #outputs(maxFileBytes: number): Promise<FoundOutputs> {
    const { link } = this;
    const found = await link.outputs(LIMITS.sessionOutputs);
    const files: FoundOutput[] = [];
    const leftOut: LeftOutOutput[] = found.more
      ? [{ path: '', reason: `only ${LIMITS.sessionOutputs} files are kept` }]
      : [];
    const known = new Map<string, FoundOutput>();
    for (const file of found.files) {
      const key = `${file.path} ${file.stamp}`;
      const before = this.#harvested.get(key);
      if (before === undefined && file.bytes > maxFileBytes) {
        leftOut.push({ path: file.path, reason: `it is larger than ${maxFileBytes} bytes` });
        continue;
      }
      try {
        const { fileBlobs } = this.#parts;
        const kept = before ?? {
          path: file.path,
          ...(await fileBlobs.put(this.row.workspace_id, link.readOutput(file))),
        };
        known.set(key, kept);
        files.push(kept);
      } catch (error) {
        if (!isAppError(error) || error.code !== 'sandbox.output-changed') throw error;
        leftOut.push({ path: file.path, reason: 'it was being written' });
      }
    }
    this.#harvested = known;
    return { files, leftOut };
  }

  /** Puts the session's files there, once for each link; why that cannot be done, else null. */
  #upload(link: RunnerLink, files: readonly UploadedFile[]): Promise<string | null> {
    if (files.length === 0) return Promise.resolve(null);
    const asked = JSON.stringify(files);
    const before = this.#uploads;
    if (before?.link === link && before.files === asked) return before.done;
    const { fileBlobs, logger } = this.#parts;
    const { workspace_id, id } = this.row;
    const bytesOf = async ({ path, digest }: UploadedFile): Promise<Readable | null> => {
      try {
        return await fileBlobs.get(workspace_id, digest);
      } catch (error) {
        if (!isAppError(error) || error.code !== 'blob.not-found') throw error;
        logger.warn({ sandbox: id, path }, 'a file of a session has expired and is left out');
        return null;
      }
    };
    const own = { link, files: asked, done: Promise.resolve<string | null>(null) };
    // One list after another: a runner takes one file at a time.
    const turn = before?.done.catch(() => null) ?? Promise.resolve();
    own.done = turn
      .then(() => link.upload(files, bytesOf))
      .then(
        () => null,
        (error: unknown) => {
          // The next call tries again.
          if (this.#uploads === own) this.#uploads = null;
          if (isAppError(error) && error.code === 'sandbox.upload') return error.message;
          throw error;
        },
      );
    this.#uploads = own;
    return own.done;
  }

  /** The session's files are there before anything runs. One that could not get them is given them again. */
  #withFiles(link: RunnerLink): Promise<void> {
    if (this.#files?.link === link) return this.#files.given;
    const given = this.#parts.keeper.restore(this.row, link).then(
      (restored) => {
        // A runner that links again has its files; what it was given stays to be told.
        if (restored === null && this.#restored?.journalId === link.journalId) return;
        this.#restored = restored;
        this.#ran = restored === null;
      },
      (error: unknown) => {
        if (this.#files?.link === link) this.#files = null;
        throw error;
      },
    );
    this.#files = { link, given };
    return given;
  }

  async #keepNow(): Promise<CheckpointReply | null> {
    const { keeper, store, logger } = this.#parts;
    const { link } = this;
    try {
      await this.#withFiles(link);
      if (!this.#ran) return null;
      this.#dirty = this.busy;
      this.#keptAtMs = Date.now();
      const { changed, ...reply } = await keeper.take(this.row, link);
      // What changes once may go on changing, without any call.
      this.#dirty ||= changed;
      this.#keepFailed = false;
      return reply;
    } catch (error) {
      this.#dirty = true;
      const known = isAppError(error);
      if (this.#keepFailed || (known && error.code === 'sandbox.link-lost')) throw error;
      this.#keepFailed = true;
      const code = known ? error.code : 'checkpoint.failed';
      const reason = known ? error.message : 'The files could not be kept; the log of the service says why.';
      logger.warn({ err: error, sandbox: this.row.id }, 'a checkpoint failed');
      await store
        .record(this.row, 'sandbox.checkpoint_failed', { code, reason })
        .catch((cause: unknown) => logger.warn({ err: cause, sandbox: this.row.id }, 'it could not be recorded'));
      throw error;
    }
  }

  /** What fails is told, and tried again a while later. */
  async #keepNowAndThen(): Promise<void> {
    if (!this.linked || this.#retired || this.#files === null) return;
    const sinceMs = Date.now() - this.#keptAtMs;
    if (sinceMs < (this.#dirty || this.busy ? KEEP_MS - KEEP_MS / 6 : KEEP_QUIET_MS)) return;
    this.#keptAtMs = Date.now();
    await this.keep().catch((error: unknown) =>
      this.#parts.logger.debug({ err: error, sandbox: this.row.id }, 'no checkpoint'),
    );
  }

  /** False when it holds more than its bound in bytes; then what runs is killed. Infinity = too many files to count. */
  boundedBy(boundBytes: number, usedBytes: number): boolean {
    if (usedBytes <= boundBytes) return true;
    const held = Number.isFinite(usedBytes) ? `${usedBytes} bytes` : 'more files than can be counted in a minute';
    this.stop(
      `The sandbox holds ${held}, above its bound of ${boundBytes} bytes; what ran was killed. Remove files first.`,
    );
    return false;
  }

  /** Kills what runs, and says why. */
  stop(why: string): void {
    if (this.linked) this.link.overLimit(why);
  }

  /** Ends the link, if it stands, and is heard no more until {@link attach}: what is asked meanwhile was sent to nobody. */
  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
    for (const registration of this.#registrations.splice(0)) void registration.stop();
    this.#link?.close();
    this.#link = null;
  }
}

/**
 * What was sent elsewhere is known there alone, and whoever sends this must have recorded where it goes.
 * @throws AppError `sandbox.not-linked`
 */
function requireJournal(link: RunnerLink, { journalId }: { readonly journalId?: string | undefined }): void {
  if (journalId !== undefined && journalId !== link.journalId)
    throw new AppError('unavailable', 'sandbox.not-linked', 'The sandbox was started anew meanwhile.');
}

/** Makes sure that a call does not run, or no longer, for lack of room on the disk; what it had already come to counts. */
async function refused(link: RunnerLink, { callId, generation }: ExecBody, lack: string): Promise<ToolOutcome> {
  const outcome = await link.cancel(callId, generation);
  return { ...outcome, text: outcome.outcome === 'cancelled' ? lack : outcome.text, fullOutput: null };
}

function shown(outcome: ToolOutcome): ToolOutcome {
  // A little more than the bound: the mark of the cut comes on top.
  const { text } = outcome;
  return text.length > TOOL_OUTPUT_CHARS + 500 ? { ...outcome, text: text.slice(0, TOOL_OUTPUT_CHARS) } : outcome;
}
