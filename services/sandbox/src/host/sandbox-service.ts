import { randomUUID } from 'node:crypto';
import type { Server } from 'node:http';
import { type Bus, connectBus } from '@holdfast/bus';
import {
  AppError,
  type CloudConfig,
  ENSURE_ALIVE_MS,
  type EnsureSandboxBody,
  type EnsureSandboxUpdate,
  FILE_BLOBS,
  parseStream,
  type StoredEvent,
} from '@holdfast/contracts';
import { createLogPool, EventLog, openBlobStore } from '@holdfast/event-store';
import type { Logger } from '@holdfast/platform';
import { blobPlace, Health, ReadableVersions, startBeats, startHealthServer } from '@holdfast/platform';
import type pg from 'pg';
import { CheckpointStore } from '../checkpoint/checkpoint.store.ts';
import { CheckpointKeeper } from '../checkpoint/checkpoint-keeper.ts';
import { Seal } from '../checkpoint/seal.ts';
import type { SandboxConfig } from '../config.ts';
import { GatewayConnections } from '../door/model-door.ts';
import { LocalHost } from '../local/local-host.ts';
import { EnvironmentStore } from '../store/environment.store.ts';
import { SandboxStore } from '../store/sandbox.store.ts';
import type { HostParts, SandboxHost } from './sandbox-host.port.ts';

/** What no checkpoint needs is removed so often. */
const COLLECT_MS = 60 * 60_000;
export const DESTROY_CONSUMER = 'sandbox-destroy';

interface Running {
  readonly bus: Bus;
  readonly pool: pg.Pool;
  readonly log: EventLog;
  readonly store: SandboxStore;
  readonly checkpoints: CheckpointStore;
  readonly environments: EnvironmentStore;
  readonly connections: GatewayConnections;
  readonly host: SandboxHost;
  readonly server: Server | null;
  readonly stopBeats: () => void;
  readonly collecting: NodeJS.Timeout;
}

/** Serves sandboxes: starts them on demand, holds their links, ends them. Any number run side by side. */
export class SandboxService {
  readonly #config: SandboxConfig;
  readonly #logger: Logger;
  readonly #env: Readonly<Record<string, string>>;
  readonly #health = new Health();
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
    const versions = new ReadableVersions();
    versions.listen(bus);
    const log = new EventLog({ pool, readable: (type) => versions.of(type) });
    const store = new SandboxStore(pool, log, instance, `${instance}:${randomUUID()}`);
    const connections = new GatewayConnections({
      url: config.LITELLM_GATEWAY_URL,
      apiKey: config.LITELLM_API_KEY,
      silenceMs: config.MODEL_SILENCE_MS,
    });
    const blobs = await openBlobStore(blobPlace(config));
    const checkpoints = new CheckpointStore(pool, store);
    const hostParts: HostParts = {
      bus,
      connections,
      pool,
      store,
      blobs,
      fileBlobs: await openBlobStore(blobPlace(config, FILE_BLOBS)),
      keeper: new CheckpointKeeper({
        blobs,
        store: checkpoints,
        sandboxes: store,
        seal: new Seal(config.CHECKPOINT_KEY),
        limits: { entries: config.CHECKPOINT_MAX_FILES, bytes: config.CHECKPOINT_MAX_BYTES },
        exclude: config.CHECKPOINT_EXCLUDE,
      }),
      env: this.#env,
      logger,
    };
    const host: SandboxHost =
      config.SANDBOX_PROVIDER === 'kubernetes'
        ? // Its client takes memory and half a second, which local sandboxes need not pay.
          await (await import('../kubernetes/start-kubernetes-host.ts')).startKubernetesHost(hostParts, config)
        : await LocalHost.start(hostParts, config);
    bus.replyMany<EnsureSandboxBody, EnsureSandboxUpdate>(
      'cmd.sandbox.*.ensure',
      { queue: 'sandbox' },
      async (body, { deadlineAtMs }, send) => {
        const alive = setInterval(() => send({ kind: 'waiting', reason: null }), ENSURE_ALIVE_MS);
        try {
          const reply = await host.ensure(body, deadlineAtMs, (reason) => send({ kind: 'waiting', reason }));
          send({ kind: 'ready', ...reply });
        } finally {
          clearInterval(alive);
        }
      },
    );
    this.#health.add('postgres', async () => {
      await pool.query('select 1 from sandboxes limit 1');
      return undefined;
    });
    this.#health.add('bus', () => (bus.connected ? undefined : 'not connected'));
    const collecting = setInterval(() => {
      hostParts.keeper
        .collect()
        .catch((error: unknown) => logger.warn({ err: error }, 'parts of old checkpoints stay for now'));
    }, COLLECT_MS);
    const stopBeats = startBeats(bus, 'sandbox', instance, () => host.figures());
    const environments = new EnvironmentStore(pool);
    this.#parts = {
      bus,
      pool,
      log,
      store,
      checkpoints,
      environments,
      connections,
      host,
      server,
      stopBeats,
      collecting,
    };
    logger.info({ provider: host.name, isolation: host.isolation }, 'ready');
  }

  /** Lets go of the sandboxes; they go on and are taken up by whoever serves them next. */
  async stop(): Promise<void> {
    this.#health.drain();
    const parts = this.#parts;
    if (parts === null) return;
    parts.stopBeats();
    clearInterval(parts.collecting);
    await parts.host.close();
    await parts.connections.close();
    await parts.bus.close();
    await parts.log.close();
    await parts.pool.end();
    parts.server?.close();
  }

  /** What is kept of a session's files is nobody's any more. */
  async forgetFiles(sessionId: string): Promise<void> {
    await this.#need().checkpoints.forget(sessionId);
  }

  /** Removes a session's sandbox and its files, once for each event that asks for it (B3). */
  async destroy(sessionId: string, reason: string, handled: StoredEvent): Promise<void> {
    const { store, pool, host } = this.#need();
    const { rowCount } = await pool.query('select 1 from consumer_handled where consumer = $1 and event_id = $2', [
      DESTROY_CONSUMER,
      handled.id,
    ]);
    if (rowCount !== 0) return;
    await store.endSession(sessionId, handled.workspaceId);
    const row = await store.ofSession(sessionId);
    if (row === null) return;
    await host.destroy(row, () =>
      store.mark(row, 'destroyed', 'sandbox.destroyed', { reason }, [
        {
          text: 'insert into consumer_handled (consumer, event_id, workspace_id) values ($1, $2, $3) on conflict do nothing',
          values: [DESTROY_CONSUMER, handled.id, handled.workspaceId],
        },
      ]),
    );
  }

  /** Takes an environment's state in; null = it needs no sandboxes (any more). */
  environmentChanged(event: StoredEvent, config: CloudConfig | null): Promise<void> {
    return this.#need().environments.takeIn(event, parseStream(event.streamId).id, config);
  }

  #need(): Running {
    if (this.#parts === null)
      throw new AppError('unavailable', 'sandbox.not-ready', 'The sandbox service is starting.');
    return this.#parts;
  }
}
