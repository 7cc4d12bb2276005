import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import {
  AppError,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  isAppError,
  type ServiceBeat,
} from '@holdfast/contracts';
import type { SandboxConfig } from '../config.ts';
import type { HostParts, SandboxHost } from '../host/sandbox-host.port.ts';
import type { SandboxRow } from '../store/sandbox.store.ts';
import { LocalProvider } from './local-provider.ts';
import { type ServedParts, ServedSandbox, specOf } from './served-sandbox.ts';

const RENEW_MS = 2_000;
const TIDY_MS = 5_000;
const SWEEP_MS = 60_000;
const MEASURE_MS = 1_000;
/** So much less on the disk, and everyone is measured, also who has no call running. */
const FILLING_BYTES = 128 * 1024 * 1024;
const POLL_MS = 200;

/**
 * Sandboxes as processes on this machine. Each is served by the replica that has its row leased: only that one listens on
 * its socket.
 */
export class LocalHost implements SandboxHost {
  readonly name = 'local';
  readonly #parts: ServedParts;
  readonly #idleMs: number;
  readonly #served = new Map<string, ServedSandbox>();
  /** Work on one session is done one after another. */
  readonly #queues = new Map<string, Promise<unknown>>();
  /** Free on the disk when all were measured last, or more that was free since. */
  #freeBytes = Number.POSITIVE_INFINITY;
  readonly #stopTimers: () => void;

  private constructor(parts: ServedParts, idleMs: number) {
    this.#parts = parts;
    this.#idleMs = idleMs;
    this.#stopTimers = this.#startTimers();
  }

  static async start(parts: HostParts, config: SandboxConfig): Promise<LocalHost> {
    const provider = await LocalProvider.create({
      stateDir: config.HOLDFAST_STATE_DIR,
      runnerFile: runnerFile(),
      harnessDir: config.HARNESS_DIR === '' ? null : config.HARNESS_DIR,
      bubblewrap: config.SANDBOX_BUBBLEWRAP,
      allowUnisolated: config.HOLDFAST_ALLOW_UNISOLATED,
      minFreeBytes: config.SANDBOX_MIN_FREE_BYTES,
      memoryBytes: config.SANDBOX_MEMORY_BYTES,
      maxProcesses: config.SANDBOX_MAX_PROCESSES,
      logger: parts.logger,
    });
    return new LocalHost(
      { ...parts, provider, startMs: config.SANDBOX_START_MS, workspaceBytes: config.SANDBOX_WORKSPACE_BYTES },
      config.SANDBOX_IDLE_MS,
    );
  }

  get isolation(): string {
    return this.#parts.provider.isolation;
  }

  figures(): ServiceBeat['figures'] {
    return {
      served: this.#served.size,
      linked: [...this.#served.values()].filter((one) => one.linked).length,
      isolation: this.isolation,
    };
  }

  async close(): Promise<void> {
    this.#stopTimers();
    const ids = [...this.#served.keys()];
    await Promise.all([...this.#served.values()].map((one) => one.close()));
    this.#served.clear();
    await this.#parts.store.disown(ids).catch(() => undefined);
  }

  destroy({ session_id: sessionId }: SandboxRow, recorded: () => Promise<void>): Promise<void> {
    return this.#inOrder(sessionId, async () => {
      const { store, provider } = this.#parts;
      const row = await store.ofSession(sessionId);
      if (row === null) return;
      await this.#served.get(row.id)?.close();
      this.#served.delete(row.id);
      await provider.destroy(specOf(row));
      await recorded();
    });
  }

  ensure(body: EnsureSandboxBody, deadlineAtMs: number): Promise<EnsureSandboxReply> {
    return this.#inOrder(body.sessionId, () => this.#ensure(body, deadlineAtMs));
  }

  async #ensure(body: EnsureSandboxBody, deadlineAtMs: number): Promise<EnsureSandboxReply> {
    const { store } = this.#parts;
    const { row } = await store.request(body, this.name);
    for (;;) {
      const mine = await store.own(row.id);
      if (mine !== null) return this.#serve(mine, body.generation);
      // Another replica serves it; when it dies its right runs out and this one takes over.
      const now = await store.ofSession(body.sessionId);
      if (now === null) throw new AppError('unavailable', 'sandbox.gone', 'The sandbox was destroyed meanwhile.');
      if (now.status === 'ready' && now.journal_id !== null) return { sandboxId: now.id, journalId: now.journal_id };
      if (Date.now() + POLL_MS > deadlineAtMs)
        throw new AppError('unavailable', 'sandbox.starting', 'The sandbox is still starting.');
      await sleep(POLL_MS);
    }
  }

  async #serve(row: SandboxRow, generation: number): Promise<EnsureSandboxReply> {
    const served = this.#served.get(row.id) ?? new ServedSandbox(row, this.#parts);
    this.#served.set(row.id, served);
    try {
      return await served.ensure(generation);
    } catch (error) {
      if (!served.linked) {
        this.#served.delete(row.id);
        await served.close();
        await this.#recordFailure(row, error).catch((cause: unknown) =>
          this.#parts.logger.warn({ err: cause, sandbox: row.id }, 'a failed start could not be recorded'),
        );
      }
      throw error;
    }
  }

  async #recordFailure(row: SandboxRow, error: unknown): Promise<void> {
    const { store } = this.#parts;
    // Tried again and again it is one failure.
    if (row.status !== 'failed')
      await store.mark(row, 'failed', 'sandbox.failed', {
        reason: isAppError(error) ? error.message : 'It could not be started; the log of the service says why.',
      });
    await store.disown([row.id]);
  }

  async #renew(): Promise<void> {
    if (this.#served.size === 0) return;
    const kept = await this.#parts.store.renew([...this.#served.keys()]);
    for (const [id, served] of this.#served) {
      if (kept.has(id)) continue;
      this.#served.delete(id);
      await served.close();
    }
  }

  /** Ends the processes of idle sandboxes, and notices those that ended by themselves. */
  async #tidy(): Promise<void> {
    const { store } = this.#parts;
    for (const row of await store.abandoned([...this.#served.keys()], this.name))
      await this.#inOrder(row.session_id, () => this.#adopt(row.id));
    await this.#each((served) => this.#inOrder(served.row.session_id, () => this.#rest(served)));
  }

  /** Serves a sandbox whose replica is gone: it is watched again, and ends when it is idle. */
  async #adopt(id: string): Promise<void> {
    if (this.#served.has(id)) return;
    const row = await this.#parts.store.own(id);
    if (row === null) return;
    const served = new ServedSandbox(row, this.#parts);
    this.#served.set(id, served);
    if ((await this.#parts.provider.observe(served.spec)) === 'running') await served.adopt();
    else await this.#rest(served);
  }

  async #rest(served: ServedSandbox): Promise<void> {
    const { provider, store, logger } = this.#parts;
    const { row, spec, incarnation } = served;
    if (served.busy || this.#served.get(row.id) !== served) return;
    const lost = (await provider.observe(spec)) !== 'running';
    if (!lost && Date.now() - served.lastUsedMs < this.#idleMs) return;
    // The files stay where they are as well, so what cannot be kept now is no reason to go on.
    if (served.linked)
      await served
        .keep()
        .catch((error: unknown) =>
          logger.warn({ err: error, sandbox: row.id }, 'a sandbox that is to rest could not be kept'),
        );
    if (served.busy) return;
    // After a stall it may be another replica's, or destroyed; then it is not ours to end.
    if (!(await store.renew([row.id])).has(row.id)) return;
    this.#served.delete(row.id);
    await served.close();
    await provider.suspend(spec);
    if (lost)
      await store.mark(row, 'suspended', 'sandbox.lost', { incarnation, reason: 'its processes ended by themselves' });
    else await store.mark(row, 'suspended', 'sandbox.suspended', { reason: 'idle' });
    await store.disown([row.id]);
  }

  /** Stops what fills its bound or the disk. Not waited for: one that takes long to measure holds up no other. */
  async #measure(): Promise<void> {
    if (this.#served.size === 0) return;
    const { freeBytes, lack } = await this.#parts.provider.room();
    const filling = freeBytes < this.#freeBytes - FILLING_BYTES;
    if (filling || freeBytes > this.#freeBytes) this.#freeBytes = freeBytes;
    void this.#each((served) => served.watchUsage({ filling, full: lack !== null }));
  }

  /** Files that a sandbox still has although it was destroyed: a crash, or a start that crossed its end, left them. */
  async #sweep(): Promise<void> {
    const { provider, store } = this.#parts;
    for (const row of await store.destroyed(await provider.kept()))
      await this.#inOrder(row.session_id, () => provider.destroy(specOf(row)));
  }

  async #each(look: (served: ServedSandbox) => Promise<void>): Promise<void> {
    await Promise.all(
      [...this.#served.values()].map((served) =>
        look(served).catch((error: unknown) =>
          this.#parts.logger.warn({ err: error, sandbox: served.row.id }, 'a sandbox could not be looked after'),
        ),
      ),
    );
  }

  /** Each again and again, a while after it ended. What fails is tried again. */
  #startTimers(): () => void {
    const over = new AbortController();
    const { signal } = over;
    const repeat = async (everyMs: number, work: () => Promise<void>): Promise<void> => {
      for (;;) {
        await sleep(everyMs, undefined, { signal }).catch(() => undefined);
        if (signal.aborted) return;
        await work().catch((error: unknown) =>
          this.#parts.logger.warn({ err: error }, 'sandboxes could not be looked after'),
        );
      }
    };
    void repeat(RENEW_MS, () => this.#renew());
    void repeat(TIDY_MS, () => this.#tidy());
    void repeat(MEASURE_MS, () => this.#measure());
    void repeat(SWEEP_MS, () => this.#sweep());
    return () => over.abort();
  }

  #inOrder<T>(key: string, work: () => Promise<T>): Promise<T> {
    const result = (this.#queues.get(key) ?? Promise.resolve()).then(work, work);
    const settled = result.then(
      () => undefined,
      () => undefined,
    );
    this.#queues.set(key, settled);
    void settled.then(() => {
      if (this.#queues.get(key) === settled) this.#queues.delete(key);
    });
    return result;
  }
}

/** The runner's bundle: beside the build, or in an image beside the service. */
function runnerFile(): string {
  const found = ['../../../../harnesses/runner/dist/runner.mjs', '../../runner.mjs']
    .map((path) => fileURLToPath(new URL(path, import.meta.url)))
    .find((path) => existsSync(path));
  if (found === undefined)
    throw new AppError('defect', 'sandbox.no-runner', 'The runner is not built: run the build first.');
  return found;
}
