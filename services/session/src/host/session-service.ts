import { randomUUID } from 'node:crypto';
import type { Server } from 'node:http';
import { type Bus, CommitHints, connectBus, Relay, type RequestContext } from '@holdfast/bus';
import {
  type Aggregate,
  AppError,
  type ClientEventParam,
  type Command,
  type CommandReply,
  CREDENTIAL_REVOKED,
  type CredentialRevoked,
  commandSubjects,
  FILE_BLOBS,
  isId,
  parseSubject,
} from '@holdfast/contracts';
import {
  asLogError,
  assertLogUsable,
  createLogPool,
  EventLog,
  forgetOldIdempotency,
  openBlobStore,
  step,
} from '@holdfast/event-store';
import { blobPlace, Health, ReadableVersions, startBeats, startHealthServer } from '@holdfast/platform';
import type pg from 'pg';
import type { Logger } from 'pino';
import type { DataSource } from 'typeorm';
import { CatalogueCommands } from '../catalogue/catalogue.commands.ts';
import { catalogueSource } from '../catalogue/catalogue.source.ts';
import { Catalogue } from '../catalogue/catalogue.ts';
import { CredentialCommands } from '../catalogue/credential.commands.ts';
import { Idempotent } from '../commands/idempotent.ts';
import type { SessionConfig } from '../config.ts';
import { FileCollector } from '../files/file.collector.ts';
import { FileCommands } from '../files/file.commands.ts';
import { OutputKeeper } from '../files/output-keeper.ts';
import { HttpModelGateway } from '../model/gateway.ts';
import { ModelInfo } from '../model/model-info.ts';
import { PostgresRelaySource } from '../relay/relay-source.ts';
import { SessionCommands } from '../session/session.commands.ts';
import { sessionProjection } from '../session/session.projection.ts';
import { SessionStore } from '../session/session.store.ts';
import { McpServers } from '../tools/mcp-servers.ts';
import { PublicNetwork, privateAllowList } from '../tools/public-network.ts';
import { WebFetch } from '../tools/web-fetch.ts';
import { inlineBlobs, outlineBlobs } from '../turn/inline-blobs.ts';
import { SandboxClient } from '../turn/sandbox-client.ts';
import { TurnWorker } from '../turn/turn-worker.ts';
import { WorkCommands } from '../work/work.commands.ts';

/** Answers may take this long less than the caller waits, so that a refusal still reaches it. */
const REPLY_MARGIN_MS = 250;
const KEY_TTL_MS = 24 * 3_600_000;
const CLEAN_EVERY_MS = 10 * 60_000;
/** Bytes that no file has any more stay so long; a backup has to be through with its copy within it. */
const BLOB_GRACE_MS = 24 * 3_600_000;
const QUEUE = 'session';

type Handler = (id: string, command: Command<never>, deadlineAtMs: number) => Promise<unknown>;

/** The write side: commands, turn workers and the relay of one process. Any number run side by side. */
export class SessionService {
  readonly #config: SessionConfig;
  readonly #logger: Logger;
  readonly #health = new Health();
  #parts: {
    bus: Bus;
    pool: pg.Pool;
    source: DataSource;
    log: EventLog;
    turns: TurnWorker;
    work: WorkCommands;
    relay: Relay;
    model: HttpModelGateway;
    outward: { close(): Promise<void> }[];
    server: Server | null;
    stops: (() => void)[];
  } | null = null;

  constructor(config: SessionConfig, logger: Logger) {
    this.#config = config;
    this.#logger = logger;
  }

  /** Waits for Postgres and NATS, then answers. @throws AppError `log.needs-rebase` */
  async start(): Promise<void> {
    const config = this.#config;
    const logger = this.#logger;
    const instance = config.HOLDFAST_INSTANCE;
    const server = await startHealthServer(this.#health, config.HEALTH_PORT);
    this.#health.add('start', () => (this.#parts === null ? 'Postgres or NATS is not there yet' : undefined));
    const pool = createLogPool({
      connectionString: config.DATABASE_URL,
      applicationName: `holdfast-${instance}`,
      max: 12,
      onIdleError: (error) => logger.debug({ err: error }, 'a database connection ended'),
    });
    const source = await catalogueSource(config.DATABASE_URL, instance).initialize();
    await assertLogUsable(pool);
    const bus = await connectBus({
      servers: config.NATS_URL,
      user: config.NATS_USER,
      password: config.NATS_PASSWORD,
      name: instance,
      onStatus: (status, detail) => logger.info({ status, detail }, 'bus'),
    });
    bus.onDefect = (subject, error) => logger.error({ err: error, subject }, 'a command failed');
    const hints = new CommitHints(bus);
    const versions = new ReadableVersions();
    versions.listen(bus);
    const log = new EventLog({
      pool,
      projections: [sessionProjection as never],
      onCommitted: (events) => hints.publish(events),
      readable: (type) => versions.of(type),
    });
    const catalogue = new Catalogue(source);
    const idempotent = new Idempotent(pool, log);
    const store = new SessionStore(log);
    const blobs = await openBlobStore(blobPlace(config));
    const fileBlobs = await openBlobStore(blobPlace(config, FILE_BLOBS));
    const gateway = { baseUrl: config.LITELLM_GATEWAY_URL, apiKey: config.LITELLM_API_KEY };
    const modelInfo = new ModelInfo({
      ...gateway,
      messagesModels: config.MODEL_MESSAGES,
      onError: (error) => logger.warn({ err: error }, 'the gateway says nothing of its models; it is asked again'),
    });
    const model = new HttpModelGateway({
      ...gateway,
      silenceMs: config.MODEL_SILENCE_MS,
      mannerOf: (name) => modelInfo.mannerOf(name),
    });
    const webNetwork = new PublicNetwork(privateAllowList(config.WEB_FETCH_ALLOW_PRIVATE));
    const mcpNetwork = new PublicNetwork(privateAllowList(config.MCP_ALLOW_PRIVATE));
    const mcp = new McpServers(
      { connectMs: config.MCP_CONNECT_MS, maxBytes: config.MCP_MAX_BYTES, maxTools: config.MCP_MAX_TOOLS },
      mcpNetwork,
    );
    const files = new FileCommands({
      log,
      pool,
      catalogue,
      idempotent,
      blobs: fileBlobs,
      quotaBytes: config.FILE_QUOTA_BYTES,
    });
    const owner = `${instance}:${randomUUID()}`;
    const turns = new TurnWorker({
      owner,
      log,
      pool,
      bus,
      store,
      logger,
      tools: {
        outputs: new OutputKeeper(log, files, instance),
        model,
        sandboxes: new SandboxClient(bus),
        webFetch: new WebFetch(
          {
            timeoutMs: config.WEB_FETCH_TIMEOUT_MS,
            maxBytes: config.WEB_FETCH_MAX_BYTES,
            maxRedirects: 5,
            maxTextChars: 100_000,
          },
          webNetwork,
        ),
        mcp,
        outline: outlineBlobs(blobs),
        inline: inlineBlobs(blobs),
        environment: async (workspaceId, id) => {
          const environment = await catalogue.environment(workspaceId, id);
          if (environment.config.type === 'cloud') return environment.config;
          throw new AppError('defect', 'turn.no-sandbox', `The environment ${id} has no sandboxes.`);
        },
        settings: {
          maxRetries: config.MODEL_MAX_RETRIES,
          firstRetryMs: config.MODEL_RETRY_FIRST_MS,
          maxOutputTokens: config.MODEL_MAX_OUTPUT_TOKENS,
          sandboxWaitMs: config.SANDBOX_WAIT_MS,
          toolTimeoutMs: config.TOOL_TIMEOUT_MS,
          toolDefaultTimeoutMs: config.TOOL_DEFAULT_TIMEOUT_MS,
          outputMaxBytes: config.FILE_MAX_BYTES,
        },
      },
      bounds: {
        modelSteps: config.TURN_MAX_MODEL_STEPS,
        wallTimeMs: config.TURN_MAX_WALL_MS,
        outputTokens: config.TURN_MAX_OUTPUT_TOKENS,
        toolTimeMs: config.TURN_MAX_TOOL_MS,
      },
      contextLimitTokens: config.MODEL_CONTEXT_TOKENS,
      leaseMs: config.TURN_LEASE_MS,
      maxTurns: config.MAX_TURNS,
    });
    const relay = new Relay({
      bus,
      source: new PostgresRelaySource(pool, log, config.DATABASE_URL),
      onError: (error) => logger.warn({ err: error }, 'the relay tries again'),
    });
    const onRevoked = (id: string): void => bus.publishLive(CREDENTIAL_REVOKED, { id } satisfies CredentialRevoked);
    const sessions = new SessionCommands({
      store,
      log,
      pool,
      catalogue,
      idempotent,
      turns,
      harnesses: config.HARNESSES,
    });
    const leaseMs = config.WORK_LEASE_MS;
    const work = new WorkCommands({ pool, catalogue, sessions, onRevoked, leaseMs, owner, logger });
    const handlers = commandHandlers({
      catalogue: new CatalogueCommands(log, catalogue, idempotent, config.HARNESSES),
      credentials: new CredentialCommands(log, source, catalogue, idempotent, onRevoked),
      files,
      sessions,
      work,
    });
    for (const aggregate of ['session', 'agent', 'environment', 'file', 'api_key'] as const) {
      bus.reply<Command<never>, CommandReply>(commandSubjects(aggregate), { queue: QUEUE }, (command, context) =>
        dispatch(handlers, aggregate, command, context),
      );
    }
    turns.listen();
    work.listen();
    relay.start();
    // Ready means that a command is heard.
    await bus.flush();
    const collector = new FileCollector(pool, fileBlobs, BLOB_GRACE_MS);
    const cleaning = setInterval(() => {
      Promise.all([forgetOldIdempotency(pool, KEY_TTL_MS), work.clean()]).catch((error: unknown) =>
        logger.warn({ err: error }, 'old rows stay for now'),
      );
      collector.collect().catch((error: unknown) => logger.warn({ err: error }, 'bytes of deleted files stay for now'));
    }, CLEAN_EVERY_MS);
    const stopBeats = startBeats(bus, 'session', instance, () => ({
      ...turns.figures,
      ...prefixed('relay', relay.figures),
      harnesses: [...config.HARNESSES].map(([name, version]) => `${name}@${version}`).join(','),
    }));
    this.#health.add('postgres', async () => {
      await pool.query('select 1');
      return undefined;
    });
    this.#health.add('bus', () => (bus.connected ? undefined : 'not connected'));
    this.#parts = {
      bus,
      pool,
      source,
      log,
      turns,
      work,
      relay,
      model,
      outward: [mcp, mcpNetwork, webNetwork],
      server,
      stops: [stopBeats, () => clearInterval(cleaning)],
    };
    logger.info('ready');
  }

  /** Answers what it has begun, hands its turns to other workers, and leaves. */
  async stop(): Promise<void> {
    this.#health.drain();
    const parts = this.#parts;
    if (parts === null) return;
    for (const stop of parts.stops) stop();
    await parts.work.stop();
    await parts.turns.stop();
    await parts.relay.stop();
    await parts.bus.close();
    await parts.log.close();
    await parts.model.close();
    for (const one of parts.outward) await one.close();
    await parts.source.destroy();
    await parts.pool.end();
    parts.server?.close();
  }
}

function prefixed(prefix: string, figures: object): Record<string, number | boolean> {
  return Object.fromEntries(
    Object.entries(figures).map(([name, value]) => [`${prefix}_${name}`, value as number | boolean]),
  );
}

function commandHandlers(commands: {
  catalogue: CatalogueCommands;
  credentials: CredentialCommands;
  files: FileCommands;
  sessions: SessionCommands;
  work: WorkCommands;
}): Record<string, Handler> {
  const { catalogue, credentials, files, sessions, work } = commands;
  return {
    'session.create': (id, command, deadline) => sessions.create(id, command, deadline),
    'session.fork': (id, command, deadline) => sessions.fork(id, command, deadline),
    'session.send-events': (id, command, deadline) =>
      sessions.sendEvents(id, command as Command<{ events: readonly ClientEventParam[] }>, deadline),
    'session.update': (id, command, deadline) => sessions.update(id, command, deadline),
    'session.archive': (id, command, deadline) => sessions.archive(id, command, deadline),
    'session.delete': (id, command, deadline) => sessions.delete(id, command, deadline),
    'session.add-resource': (id, command, deadline) => sessions.addResource(id, command, deadline),
    'session.remove-resource': (id, command, deadline) => sessions.removeResource(id, command, deadline),
    'agent.create': (id, command) => catalogue.createAgent(id, command),
    'agent.update': (id, command) => catalogue.updateAgent(id, command),
    'agent.archive': (id, command) => catalogue.archiveAgent(id, command),
    'environment.create': (id, command) => catalogue.createEnvironment(id, command),
    'environment.update': (id, command) => catalogue.updateEnvironment(id, command),
    'environment.archive': (id, command) => catalogue.archiveEnvironment(id, command),
    'environment.delete': (id, command) => catalogue.deleteEnvironment(id, command),
    'file.create': (id, command) => files.create(id, command),
    'file.delete': (id, command) => files.delete(id, command),
    'environment.poll-work': (id, command, deadline) => work.poll(id, command, deadline),
    'environment.ack-work': (id, command) => work.acknowledge(id, command),
    'environment.heartbeat-work': (id, command) => work.heartbeat(id, command),
    'environment.stop-work': (id, command) => work.end(id, command),
    'environment.update-work': (id, command) => work.update(id, command),
    'api_key.create': (id, command) => credentials.createApiKey(id, command),
    'api_key.revoke': (id, command) => credentials.revoke(id, command),
    'api_key.create-link': (id, command) => credentials.createLink(id, command),
    'api_key.create-dashboard-session': (id, command) => credentials.createDashboardSession(id, command),
    'api_key.redeem-link': (id, command) => credentials.redeemLink(id, command),
  };
}

async function dispatch(
  handlers: Record<string, Handler>,
  aggregate: Aggregate,
  command: Command<never>,
  context: RequestContext,
): Promise<CommandReply> {
  const { id, verb } = parseSubject(context.subject);
  const handler = handlers[`${aggregate}.${verb}`];
  if (handler === undefined || !isId('workspace', command.workspaceId)) {
    throw new AppError('invalid', 'command.unknown', `There is no command ${aggregate}.${verb}.`);
  }
  const deadlineAtMs = context.deadlineAtMs - REPLY_MARGIN_MS;
  // Its caller was told that it failed: whoever still wants it has sent it again.
  if (Date.now() > deadlineAtMs) throw new AppError('unavailable', 'command.late', 'The command came too late.');
  try {
    const body = await handler(id, command, deadlineAtMs);
    step.publish('command.done');
    return { body };
  } catch (error) {
    throw asLogError(error);
  }
}
