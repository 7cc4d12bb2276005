import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, type EnsureSandboxReply } from '@holdfast/contracts';
import { ModelDoor } from '../door/model-door.ts';
import { EgressProxy } from '../egress/egress-proxy.ts';
import { LinkedSandbox } from '../host/linked-sandbox.ts';
import type { HostParts } from '../host/sandbox-host.port.ts';
import { LocalDoor } from '../hub/local-door.ts';
import { contextIdOf, type SandboxRow } from '../store/sandbox.store.ts';
import type { LocalProvider, SandboxSpec } from './local-provider.ts';

/** A runner that lives has dialled again within this time, whatever happened to its link. */
const RELINK_MS = 5_000;
const LOOK_MS = 100;
/** How often a sandbox is measured at most while calls run in it, and while none does. */
const MEASURE_MS = 1_000;
const MEASURE_QUIET_MS = 60_000;
/** Measuring takes at most this share of the time. */
const MEASURE_SHARE = 1 / 20;

export interface ServedParts extends HostParts {
  readonly provider: LocalProvider;
  readonly startMs: number;
  readonly workspaceBytes: number;
}

export function specOf(row: SandboxRow): SandboxSpec {
  return { id: row.id, contextId: contextIdOf(row), serial: row.serial };
}

/** A sandbox that this replica serves: its door, its link, its proxy, its model door and the subjects that lead to it. */
export class ServedSandbox {
  readonly row: SandboxRow;
  readonly spec: SandboxSpec;
  readonly #parts: ServedParts;
  readonly #linked: LinkedSandbox;
  #door: LocalDoor | null = null;
  #proxy: EgressProxy | null = null;
  #modelDoor: ModelDoor | null = null;
  #wakes: (() => void)[] = [];
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
    this.#linked = new LinkedSandbox(row, {
      ...parts,
      lack: async () => (await parts.provider.room()).lack,
      ending: () => false,
    });
  }

  /** As `LinkedSandbox.keep`. */
  async keep(): Promise<void> {
    await this.#linked.keep();
  }

  get busy(): boolean {
    return this.#linked.busy;
  }
  get linked(): boolean {
    return this.#linked.linked;
  }
  get lastUsedMs(): number {
    return this.#linked.lastUsedMs;
  }
  get incarnation(): number {
    return this.#incarnation;
  }

  /** Listens for a runner that runs already, without waiting for it. */
  adopt(): Promise<void> {
    return this.#open(true);
  }

  /** Listens, starts the runner unless it runs, waits for its link and claims it. */
  async ensure(generation: number): Promise<EnsureSandboxReply> {
    this.#linked.lastUsedMs = Date.now();
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
    return this.#linked.claim(generation);
  }

  async #open(running: boolean): Promise<void> {
    const { provider, store, logger } = this.#parts;
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
        link.handlers.onLost = () => {
          logger.info({ sandbox: this.row.id }, 'the link was lost');
          if (!this.linked) this.#linked.close();
        };
        this.#linked.attach(link);
        for (const wake of this.#wakes.splice(0)) wake();
      },
      onRefused: (reason) => {
        logger.warn({ sandbox: this.row.id, reason }, 'a link was refused');
        void store.record(this.row, 'sandbox.link_refused', { reason }).catch(() => undefined);
      },
    });
    const proxy = new EgressProxy(this.row.environment.networking, (decision) => {
      void store.record(this.row, 'sandbox.egress_decided', { ...decision }).catch(() => undefined);
    });
    const modelDoor = new ModelDoor(this.row.session_id, this.#parts);
    await provider.prepareLink(this.spec);
    await door.listen();
    await proxy.listen(linkDir);
    await modelDoor.listen(linkDir);
    this.#door = door;
    this.#proxy = proxy;
    this.#modelDoor = modelDoor;
    if (token !== null) await provider.ensure(this.spec, token);
  }

  /** Waits for the link; false when it does not come in time, or what would dial has ended. */
  async #linkedWithin(timeoutMs: number): Promise<boolean> {
    const over = new AbortController();
    const wait = (ms: number): Promise<void> => sleep(ms, undefined, { signal: over.signal }).catch(() => undefined);
    this.#wakes.push(() => over.abort());
    for (const deadline = Date.now() + timeoutMs; !this.linked && Date.now() < deadline; ) {
      await wait(LOOK_MS);
      if (!this.linked && (await this.#parts.provider.observe(this.spec)) !== 'running') break;
    }
    return this.linked;
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
    if (!this.linked || this.#measuring || beganMs - this.#measuredAtMs < patienceMs) return;
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
    if (this.#linked.boundedBy(workspaceBytes, this.#used) && full && before !== null && this.#used > before)
      this.#linked.stop('The disk of the platform is nearly full; what wrote to it was killed.');
  }

  async #closeLink(): Promise<void> {
    const served = [this.#door, this.#proxy, this.#modelDoor];
    this.#door = null;
    this.#proxy = null;
    this.#modelDoor = null;
    for (const one of served) await one?.close();
  }

  /** Lets go of it without touching its processes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#linked.close();
    await this.#closeLink();
  }
}
