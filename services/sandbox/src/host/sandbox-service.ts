import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import type { Server } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Bus, connectBus } from '@holdfast/bus';
import {
  AppError,
  type DestroySandboxBody,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  type StoredEvent,
} from '@holdfast/contracts';
import { createLogPool, DirectoryBlobStore, EventLog } from '@holdfast/event-store';
import type { Logger } from '@holdfast/platform';
import { blobFolder, Health, startBeats, startHealthServer } from '@holdfast/platform';
import type pg from 'pg';
import type { SandboxConfig } from '../config.ts';
import { LocalProvider } from '../local/local-provider.ts';
import { type SandboxRow, SandboxStore } from '../store/sandbox.store.ts';
import { type ServedParts, ServedSandbox } from './served-sandbox.ts';

const RENEW_MS = 2_000;
const TIDY_MS = 5_000;
const POLL_MS = 200;
export const DESTROY_CONSUMER = 'sandbox-destroy';

interface Running extends ServedParts {
  readonly pool: pg.Pool;
  readonly log: EventLog;
  readonly server: Server | null;
  readonly timers: readonly NodeJS.Timeout[];
  readonly stopBeats: () => void;
}

/** Serves sandboxes: starts them on demand, holds their links, ends them. Any number run side by side. */
export class SandboxService {
  readonly #config: SandboxConfig;
  readonly #logger: Logger;
  readonly #env: Readonly<Record<string, string>>;
  readonly #health = new Health();
  readonly #served = new Map<string, ServedSandbox>();
  /** Work on one session is done one after another. */
  readonly #queues = new Map<string, Promise<unknown>>();
  #parts: Running | null = null;

  constructor(config: SandboxConfig, env: Readonly<Record<string, string>>, logger: Logger) {
    this.#config = config;
    this.#env = env;
    this.#logger = logger;
  }

  get bus(): Bus {
    return this.#need().bus;
  }

  async start(): Promise<void> {
    const config = this.#config;
    const logger = this.#logger;
    const instance = config.HOLDFAST_INSTANCE;
    const server = await startHealthServer(this.#health, config.HEALTH_PORT);
    this.#health.add('start', () => (this.#parts === null ? 'Postgres or NATS is not there yet' : undefined));
    const pool = createLogPool({
      connectionString: config.DATABASE_URL,
      applicationName: `holdfast-${instance}`,
      max: 6,
      onIdleError: (error) => logger.debug({ err: error }, 'a database connection ended'),
    });
    const bus = await connectBus({
      servers: config.NATS_URL,
      user: config.NATS_USER,
      password: config.NATS_PASSWORD,
      name: instance,
      onStatus: (status, detail) => logger.info({ status, detail }, 'bus'),
    });
    bus.onDefect = (subject, error) => logger.error({ err: error, subject }, 'a command failed');
    const log = new EventLog({ pool });
    const provider = await LocalProvider.create({
      stateDir: config.HOLDFAST_STATE_DIR,
      runnerFile: runnerFile(),
      allowUnisolated: config.HOLDFAST_ALLOW_UNISOLATED,
      minFreeBytes: config.SANDBOX_MIN_FREE_BYTES,
      memoryBytes: config.SANDBOX_MEMORY_BYTES,
      maxProcesses: config.SANDBOX_MAX_PROCESSES,
      logger,
    });
    const store = new SandboxStore(pool, log, instance, `${instance}:${randomUUID()}`);
    bus.reply<EnsureSandboxBody, EnsureSandboxReply>('cmd.sandbox.*.ensure', { queue: 'sandbox' }, (body, context) =>
      this.#inOrder(body.sessionId, () => this.#ensure(body, context.deadlineAtMs)),
    );
    bus.reply<DestroySandboxBody, object>('cmd.sandbox.*.destroy', { queue: 'sandbox' }, async (body) => {
      await this.destroy(body.sessionId, body.reason, null);
      return {};
    });
    const timers = [setInterval(() => void this.#renew(), RENEW_MS), setInterval(() => void this.#tidy(), TIDY_MS)];
    this.#health.add('postgres', async () => {
      await pool.query('select 1 from sandboxes limit 1');
      return undefined;
    });
    this.#health.add('bus', () => (bus.connected ? undefined : 'not connected'));
    const stopBeats = startBeats(bus, 'sandbox', instance, () => ({
      served: this.#served.size,
      linked: [...this.#served.values()].filter((one) => one.linked).length,
      isolation: provider.isolation,
    }));
    const blobs = new DirectoryBlobStore(blobFolder(config));
    this.#parts = {
      bus,
      store,
      provider,
      blobs,
      env: this.#env,
      logger,
      startMs: config.SANDBOX_START_MS,
      workspaceBytes: config.SANDBOX_WORKSPACE_BYTES,
      pool,
      log,
      server,
      timers,
      stopBeats,
    };
    logger.info({ isolation: provider.isolation }, 'ready');
  }

  /** Lets go of the sandboxes; their processes go on and are adopted by whoever serves them next. */
  async stop(): Promise<void> {
    this.#health.drain();
    const parts = this.#parts;
    if (parts === null) return;
    for (const timer of parts.timers) clearInterval(timer);
    parts.stopBeats();
    const ids = [...this.#served.keys()];
    await Promise.all([...this.#served.values()].map((one) => one.close()));
    this.#served.clear();
    await parts.bus.close();
    await parts.store.disown(ids).catch(() => undefined);
    await parts.log.close();
    await parts.pool.end();
    parts.server?.close();
  }

  /** Removes a session's sandbox and its files. `handled` is the event that asked for it, if one did (B3). */
  destroy(sessionId: string, reason: string, handled: StoredEvent | null): Promise<void> {
    return this.#inOrder(sessionId, async () => {
      const { store, pool } = this.#need();
      if (handled !== null) {
        const { rowCount } = await pool.query('select 1 from consumer_handled where consumer = $1 and event_id = $2', [
          DESTROY_CONSUMER,
          handled.id,
        ]);
        if (rowCount !== 0) return;
      }
      const row = await store.ofSession(sessionId);
      if (row === null) return;
      await this.#served.get(row.id)?.close();
      this.#served.delete(row.id);
      await this.#need().provider.destroy(new ServedSandbox(row, this.#need()).spec);
      await store.mark(
        row,
        'destroyed',
        'sandbox.destroyed',
        { reason },
        handled === null
          ? []
          : [
              {
                text: 'insert into consumer_handled (consumer, event_id, workspace_id) values ($1, $2, $3) on conflict do nothing',
                values: [DESTROY_CONSUMER, handled.id, handled.workspaceId],
              },
            ],
      );
    });
  }

  async #ensure(body: EnsureSandboxBody, deadlineAtMs: number): Promise<EnsureSandboxReply> {
    const { store, provider } = this.#need();
    const row = await store.request(body, provider.name);
    for (;;) {
      const mine = await store.own(row.id);
      if (mine !== null) return { sandboxId: row.id, journalId: await this.#serve(mine, body.generation) };
      // Another replica serves it; when it dies its right runs out and this one takes over.
      const now = await store.ofSession(body.sessionId);
      if (now === null) throw new AppError('unavailable', 'sandbox.gone', 'The sandbox was destroyed meanwhile.');
      if (now.status === 'ready' && now.journal_id !== null) return { sandboxId: now.id, journalId: now.journal_id };
      if (Date.now() + POLL_MS > deadlineAtMs)
        throw new AppError('unavailable', 'sandbox.starting', 'The sandbox is still starting.');
      await sleep(POLL_MS);
    }
  }

  async #serve(row: SandboxRow, generation: number): Promise<string> {
    const served = this.#served.get(row.id) ?? new ServedSandbox(row, this.#need());
    this.#served.set(row.id, served);
    try {
      return await served.ensure(generation);
    } catch (error) {
      if (!served.linked) {
        this.#served.delete(row.id);
        await served.close();
      }
      throw error;
    }
  }

  async #renew(): Promise<void> {
    if (this.#served.size === 0) return;
    try {
      const kept = await this.#need().store.renew([...this.#served.keys()]);
      for (const [id, served] of this.#served) {
        if (kept.has(id)) continue;
        this.#served.delete(id);
        await served.close();
      }
    } catch (error) {
      this.#logger.warn({ err: error }, 'sandboxes could not be renewed');
    }
  }

  /** Ends the processes of idle sandboxes, and stops what fills its workspace. */
  async #tidy(): Promise<void> {
    const { provider, store } = this.#need();
    for (const [id, served] of this.#served) {
      try {
        await served.watchUsage();
        if (served.busy || Date.now() - served.lastUsedMs < this.#config.SANDBOX_IDLE_MS) continue;
        await this.#inOrder(served.row.session_id, async () => {
          if (served.busy || this.#served.get(id) !== served) return;
          this.#served.delete(id);
          await served.close();
          await provider.suspend(served.spec);
          await store.mark(served.row, 'suspended', 'sandbox.suspended', { reason: 'idle' });
          await store.disown([id]);
        });
      } catch (error) {
        this.#logger.warn({ err: error, sandbox: id }, 'a sandbox could not be tidied');
      }
    }
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

  #need(): Running {
    if (this.#parts === null)
      throw new AppError('unavailable', 'sandbox.not-ready', 'The sandbox service is starting.');
    return this.#parts;
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
