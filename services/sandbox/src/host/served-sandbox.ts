import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus, Registration } from '@holdfast/bus';
import {
  AppError,
  type CancelBody,
  EXEC_ALIVE_MS,
  type ExecBody,
  type ExecReply,
  sandboxLinkSubject,
  TOOL_OUTPUT_CHARS,
  type ToolOutcome,
} from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { Logger } from '@holdfast/platform';
import { EgressProxy } from '../egress/egress-proxy.ts';
import { LocalDoor } from '../hub/local-door.ts';
import type { RunnerLink } from '../hub/runner-link.ts';
import type { SandboxProvider, SandboxSpec } from '../provider/sandbox-provider.port.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';

/** A runner that lives has dialled again within this time, whatever happened to its link. */
const RELINK_MS = 5_000;
const LOOK_MS = 100;
/** How often a sandbox is measured at most while calls run in it, and while none does. */
const MEASURE_MS = 1_000;
const MEASURE_QUIET_MS = 60_000;
/** Measuring takes at most this share of the time. */
const MEASURE_SHARE = 1 / 20;

export interface ServedParts {
  readonly bus: Bus;
  readonly store: SandboxStore;
  readonly provider: SandboxProvider;
  readonly blobs: BlobStore;
  readonly env: Readonly<Record<string, string>>;
  readonly logger: Logger;
  readonly startMs: number;
  readonly workspaceBytes: number;
}

export function specOf(row: SandboxRow): SandboxSpec {
  return {
    id: row.id,
    workspaceId: row.workspace_id,
    sessionId: row.session_id,
    contextId: contextId(row),
    serial: row.serial,
  };
}

/** The folder name of a context: nothing of the key itself reaches a path. */
function contextId(row: SandboxRow): string | null {
  if (row.context_key === null) return null;
  return createHash('sha256')
    .update(JSON.stringify([row.workspace_id, row.environment_id, row.context_key]))
    .digest('hex')
    .slice(0, 32);
}

/** A sandbox that this replica serves: its door, its link, its proxy and the subjects that lead to it. */
export class ServedSandbox {
  readonly row: SandboxRow;
  readonly spec: SandboxSpec;
  lastUsedMs = Date.now();
  readonly #parts: ServedParts;
  #door: LocalDoor | null = null;
  #link: RunnerLink | null = null;
  #proxy: EgressProxy | null = null;
  #registrations: Registration[] = [];
  #linked: (() => void)[] = [];
  #incarnation: number;
  #closed = false;
  /** Bytes at the last measuring; null before the first. */
  #used: number | null = null;
  #measuredAtMs = 0;
  #measuringMs = 0;
  #measuring = false;

  constructor(row: SandboxRow, parts: ServedParts) {
    this.row = row;
    this.#parts = parts;
    this.#incarnation = row.incarnation;
    this.spec = specOf(row);
  }

  get busy(): boolean {
    return this.#link?.busy ?? false;
  }
  get linked(): boolean {
    return this.#link?.open ?? false;
  }

  get incarnation(): number {
    return this.#incarnation;
  }

  /** Listens for a runner that runs already, without waiting for it. */
  adopt(): Promise<void> {
    return this.#open(true);
  }

  /** Listens, starts the runner unless it runs, and waits for its link. Returns the journal's id. */
  async ensure(generation: number): Promise<string> {
    this.lastUsedMs = Date.now();
    const { provider, startMs, logger } = this.#parts;
    let running = (await provider.observe(this.spec)) === 'running';
    if (running) {
      if (this.#door === null) await this.#open(true);
      if (!(await this.#linkedWithin(RELINK_MS))) {
        // It hangs, was stopped, or cannot prove itself: the journal says what it was doing.
        logger.warn({ sandbox: this.row.id }, 'a runner did not dial; its sandbox is started anew');
        await provider.suspend(this.spec);
        running = false;
      }
    }
    if (!running) {
      await this.#open(false);
      if (!(await this.#linkedWithin(startMs)))
        throw new AppError(
          'unavailable',
          'sandbox.start-failed',
          'The sandbox was started and its runner did not link.',
        );
    }
    const link = this.#live();
    await link.claim(generation);
    return link.journalId;
  }

  async #open(running: boolean): Promise<void> {
    const { provider, store, blobs, env, logger } = this.#parts;
    await this.#closeLink();
    let { token_hash: tokenHash, public_key: publicKey } = this.row;
    let token: string | null = null;
    if (!running || tokenHash === null) {
      token = randomBytes(32).toString('base64url');
      tokenHash = createHash('sha256').update(token).digest('hex');
      publicKey = null;
      await store.begin(this.row.id, tokenHash);
      this.#incarnation += 1;
    }
    const linkDir = provider.linkDir(this.spec);
    // The folder is made by the provider before the runner starts; sockets must stand before it dials.
    const door = new LocalDoor({
      linkDir,
      proof: { tokenHash, publicKey },
      record: ({ journalId, publicKey: key }) =>
        store.ready(this.row, {
          journalId,
          publicKey: key,
          isolation: provider.isolation,
          incarnation: this.#incarnation,
        }),
      onLink: (link) => {
        this.#link = link;
        link.handlers.onLost = () => logger.info({ sandbox: this.row.id }, 'the link was lost');
        link.welcome({
          env,
          keep: (pieces) =>
            blobs.put(this.row.workspace_id, pieces).catch((error: unknown) => {
              logger.warn({ err: error, sandbox: this.row.id }, 'a whole output could not be kept');
              return null;
            }),
        });
        for (const wake of this.#linked.splice(0)) wake();
      },
      onRefused: (reason) => {
        logger.warn({ sandbox: this.row.id, reason }, 'a link was refused');
        void store.record(this.row, 'sandbox.link_refused', { reason }).catch(() => undefined);
      },
    });
    const proxy = new EgressProxy(this.row.environment.networking, (decision) => {
      void store.record(this.row, 'sandbox.egress_decided', { ...decision }).catch(() => undefined);
    });
    await provider.prepareLink(this.spec);
    await door.listen();
    await proxy.listen(linkDir);
    this.#door = door;
    this.#proxy = proxy;
    this.#subscribe();
    if (token !== null) await provider.ensure(this.spec, token);
  }

  /** Waits for the link; false when it does not come in time, or what would dial has ended. */
  async #linkedWithin(timeoutMs: number): Promise<boolean> {
    const over = new AbortController();
    const wait = (ms: number): Promise<void> => sleep(ms, undefined, { signal: over.signal }).catch(() => undefined);
    this.#linked.push(() => over.abort());
    for (const deadline = Date.now() + timeoutMs; !this.linked && Date.now() < deadline; ) {
      await wait(LOOK_MS);
      if (!this.linked && (await this.#parts.provider.observe(this.spec)) !== 'running') break;
    }
    return this.linked;
  }

  #subscribe(): void {
    if (this.#registrations.length > 0) return;
    const { bus } = this.#parts;
    const { id } = this.row;
    this.#registrations = [
      bus.replyMany<ExecBody, ExecReply>(sandboxLinkSubject(id, 'exec'), {}, (body, _context, send) =>
        this.#exec(body, send),
      ),
      bus.reply<CancelBody, ToolOutcome>(sandboxLinkSubject(id, 'cancel'), {}, async ({ callId, generation }) => ({
        ...(await this.#live().cancel(callId, generation)),
        fullOutput: null,
      })),
    ];
  }

  #live(): RunnerLink {
    if (this.#link === null) throw new AppError('unavailable', 'sandbox.link-lost', 'The sandbox is not running.');
    return this.#link;
  }

  async #exec(body: ExecBody, send: (reply: ExecReply) => void): Promise<void> {
    this.lastUsedMs = Date.now();
    const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
    try {
      const link = this.#live();
      const { lack } = await this.#parts.provider.room();
      send({ kind: 'done', result: shown(lack === null ? await link.exec(body) : await refused(link, body, lack)) });
    } finally {
      clearInterval(alive);
      this.lastUsedMs = Date.now();
    }
  }

  /**
   * Kills what writes when the sandbox holds more than its bound, or when it has grown while the disk is `full`. Does
   * nothing when it was measured a short while ago; a quiet one is measured only when the disk is `filling`.
   */
  async watchUsage({ filling, full }: { filling: boolean; full: boolean }): Promise<void> {
    const patienceMs = Math.max(
      this.busy || filling || full ? MEASURE_MS : MEASURE_QUIET_MS,
      this.#measuringMs / MEASURE_SHARE,
    );
    const beganMs = Date.now();
    if (this.#link === null || this.#measuring || beganMs - this.#measuredAtMs < patienceMs) return;
    const { provider, workspaceBytes } = this.#parts;
    const before = this.#used;
    this.#measuring = true;
    try {
      this.#used = await provider.usage(this.spec);
    } finally {
      this.#measuring = false;
      this.#measuredAtMs = Date.now();
      this.#measuringMs = this.#measuredAtMs - beganMs;
    }
    const held = Number.isFinite(this.#used) ? `${this.#used} bytes` : 'more files than can be counted in a minute';
    if (this.#used > workspaceBytes)
      this.#link?.overLimit(
        `The sandbox holds ${held}, above its bound of ${workspaceBytes} bytes; what ran was killed. Remove files first.`,
      );
    else if (full && before !== null && this.#used > before)
      this.#link?.overLimit('The disk of the platform is nearly full; what wrote to it was killed.');
  }

  async #closeLink(): Promise<void> {
    const door = this.#door;
    const proxy = this.#proxy;
    this.#door = null;
    this.#link = null;
    this.#proxy = null;
    await door?.close();
    await proxy?.close();
  }

  /** Lets go of it without touching its processes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const registration of this.#registrations.splice(0)) void registration.stop();
    await this.#closeLink();
  }
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
