import { Readable } from 'node:stream';
import { type Bus, connectBus, type Registration } from '@holdfast/bus';
import {
  ALL_SERVICE_BEATS,
  AppError,
  CREDENTIAL_REVOKED,
  type CredentialRevoked,
  DEAD_LETTER_STREAM,
  FILE_BLOBS,
  LIMITS,
  type ServiceBeat,
} from '@holdfast/contracts';
import { asLogError, createLogPool, EventLog, openBlobStore } from '@holdfast/event-store';
import { blobPlace, Health, invalidRequest, startBeats } from '@holdfast/platform';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type pg from 'pg';
import type { Logger } from 'pino';
import { z } from 'zod';
import { Authenticator, keyOf, type Principal } from '../auth/authenticator.ts';
import type { GatewayConfig } from '../config.ts';
import { CatalogueReader } from '../data/catalogue.reader.ts';
import { ContentBlobs } from '../data/content.blobs.ts';
import { EventReader } from '../data/event.reader.ts';
import { ModelCatalogue } from '../data/model.catalogue.ts';
import { Commands, Exchange } from '../http/exchange.ts';
import { openApiDocument } from '../http/openapi.ts';
import { RateLimit } from '../http/rate-limit.ts';
import { catalogueOperations } from '../operations/catalogue.operations.ts';
import { fileOperations } from '../operations/file.operations.ts';
import { NOT_BUILT } from '../operations/not-built.ts';
import { type Operation, requireCaller } from '../operations/operation.ts';
import { platformOperations } from '../operations/platform.operations.ts';
import { sandboxOperations } from '../operations/sandbox.operations.ts';
import { sessionOperations } from '../operations/session.operations.ts';
import { workOperations } from '../operations/work.operations.ts';
import { StreamHub } from '../stream/stream-hub.ts';

/** A service that has not been heard for so long is not shown as running. */
const BEAT_TTL_MS = 5_000;
const NOBODY: Principal = { id: 'anonymous', workspaceId: '', kind: 'link', parentId: null, bound: null };

/** The public API of one process: mapping, checks and streams. It writes nothing itself. */
export class GatewayService {
  readonly #config: GatewayConfig;
  readonly #logger: Logger;
  readonly health = new Health();
  readonly #draining = new AbortController();
  #parts: { bus: Bus; pool: pg.Pool; streams: StreamHub; stopBeats: () => void; registrations: Registration[] } | null =
    null;

  constructor(config: GatewayConfig, logger: Logger) {
    this.#config = config;
    this.#logger = logger;
  }

  /** Connects and adds the routes. */
  async start(server: FastifyInstance): Promise<void> {
    const config = this.#config;
    const logger = this.#logger;
    const pool = createLogPool({
      connectionString: config.DATABASE_URL,
      applicationName: `holdfast-${config.HOLDFAST_INSTANCE}`,
      max: 10,
      onIdleError: (error) => logger.debug({ err: error }, 'a database connection ended'),
    });
    const bus = await connectBus({
      servers: config.NATS_URL,
      user: config.NATS_USER,
      password: config.NATS_PASSWORD,
      name: config.HOLDFAST_INSTANCE,
      onStatus: (status, detail) => logger.info({ status, detail }, 'bus'),
    });
    const blobs = await openBlobStore(blobPlace(config));
    const fileBlobs = await openBlobStore(blobPlace(config, FILE_BLOBS));
    const authenticator = new Authenticator(pool);
    const reader = new CatalogueReader(pool);
    const content = new ContentBlobs(blobs);
    const events = new EventReader(pool, new EventLog({ pool }), content);
    const commands = new Commands(bus, config.COMMAND_TIMEOUT_MS);
    const models = new ModelCatalogue({ baseUrl: config.LITELLM_GATEWAY_URL, apiKey: config.LITELLM_API_KEY });
    const streams = new StreamHub({
      bus,
      pool,
      events,
      authenticator,
      logger,
      pingMs: config.SSE_PING_MS,
      streamsPerKey: config.STREAMS_PER_KEY,
    });
    const beats = new Map<string, { beat: ServiceBeat; heardMs: number }>();
    const registrations = [
      bus.subscribeLive<CredentialRevoked>(CREDENTIAL_REVOKED, ({ id }) => {
        authenticator.forget(id);
        streams.revoke(id);
      }),
      bus.subscribeLive<ServiceBeat>(ALL_SERVICE_BEATS, (beat) =>
        beats.set(beat.instance, { beat, heardMs: Date.now() }),
      ),
    ];
    const alive = (): ServiceBeat[] => {
      for (const [instance, { heardMs }] of beats) if (heardMs < Date.now() - BEAT_TTL_MS) beats.delete(instance);
      return [...beats.values()].map(({ beat }) => beat).sort((a, b) => (a.instance < b.instance ? -1 : 1));
    };
    const operations = [
      ...catalogueOperations({ reader, commands, models }),
      ...sessionOperations({ reader, events, commands, models, streams, blobs: content }),
      ...fileOperations({ reader, commands, blobs: fileBlobs, maxBytes: config.FILE_MAX_BYTES }),
      ...sandboxOperations({ reader, events }),
      ...workOperations({ reader, commands }),
      ...platformOperations({
        reader,
        commands,
        authenticator,
        pool,
        beats: alive,
        deadLetters: () => deadLetters(bus),
        demoGateway: config.LITELLM_GATEWAY_URL !== '' && config.LITELLM_GATEWAY_URL === config.DEMO_GATEWAY_URL,
        fileMaxBytes: config.FILE_MAX_BYTES,
      }),
    ];
    const callers = new Callers(authenticator, new RateLimit(config.REQUESTS_PER_MINUTE));
    // A form is read by its operation as it arrives; to any other it is no body.
    server.addContentTypeParser('multipart/form-data', (_request, _body, done) => done(null));
    for (const one of operations) addRoute(server, one, callers, this.#draining.signal);
    for (const { name, paths } of NOT_BUILT) for (const path of paths) refuseRoute(server, name, path, callers);
    const document = openApiDocument(operations);
    server.get('/openapi.json', () => document);
    this.health.add('postgres', async () => {
      await pool.query('select 1 from api_keys limit 1');
      return undefined;
    });
    this.health.add('bus', () => (bus.connected ? undefined : 'not connected'));
    this.health.add('session', () =>
      alive().some((beat) => beat.service === 'session') ? undefined : 'no session service is running',
    );
    const stopBeats = startBeats(bus, 'gateway-api', config.HOLDFAST_INSTANCE, () => ({
      openStreams: streams.openStreams,
    }));
    this.#parts = { bus, pool, streams, stopBeats, registrations };
  }

  /** Ends the streams with an error frame and cuts exports; the server closes afterwards. */
  drain(): void {
    this.health.drain();
    this.#draining.abort();
    this.#parts?.streams.drain();
  }

  async stop(): Promise<void> {
    this.#parts?.stopBeats();
    await this.#parts?.bus.close();
    await this.#parts?.pool.end();
  }
}

/** Who calls, found out before the body is read: whoever may not call does not make the server read and parse one. */
class Callers {
  readonly #authenticator: Authenticator;
  readonly #rate: RateLimit;
  readonly #known = new WeakMap<FastifyRequest, Principal>();

  constructor(authenticator: Authenticator, rate: RateLimit) {
    this.#authenticator = authenticator;
    this.#rate = rate;
  }

  /**
   * @throws AppError `auth.missing`, `auth.invalid`, `auth.wrong-credential`, `auth.work-ended`, `request.too-many`,
   * `workspace.not-found`
   */
  async admit(
    request: FastifyRequest,
    reply: FastifyReply,
    { path, callers }: { path: string; callers?: Operation['callers'] },
  ): Promise<void> {
    const principal = await orUnavailable(this.#authenticator.authenticate(request.headers));
    this.#rate.take(keyOf(principal), Date.now());
    requireCaller(callers, path, principal, request.params as Record<string, string>);
    const asked = request.headers['anthropic-workspace-id'];
    if (typeof asked === 'string' && asked !== principal.workspaceId) {
      throw new AppError('not-found', 'workspace.not-found', 'There is no such workspace for this key.');
    }
    reply.header('anthropic-workspace-id', principal.workspaceId);
    this.#known.set(request, principal);
  }

  of(request: FastifyRequest): Principal {
    return this.#known.get(request) ?? NOBODY;
  }
}

/** A database that is away is no defect of ours: the caller is told to come again. */
function orUnavailable<T>(work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    throw asLogError(error);
  });
}

function addRoute(server: FastifyInstance, one: Operation, callers: Callers, draining: AbortSignal): void {
  server.route({
    method: one.method,
    url: one.path,
    ...(one.takesContent === true ? { bodyLimit: LIMITS.contentBodyBytes } : {}),
    config: { atItsPace: one.upload !== undefined },
    // A HEAD of a stream would never end, and one of lines or a file would make all of it.
    exposeHeadRoute: one.streams !== true && one.lines !== true && one.downloads !== true,
    ...(one.authenticated === false
      ? {}
      : { onRequest: (request: FastifyRequest, reply: FastifyReply) => callers.admit(request, reply, one) }),
    handler: async (request: FastifyRequest, reply: FastifyReply) => {
      const body = parseBody(one, request.body) as never;
      const result = await orUnavailable(one.handle(new Exchange(request, reply, callers.of(request), body)));
      if (one.lines === true) return sendLines(reply, result as AsyncIterable<string>, draining);
      return one.streams === true ? reply : result;
    },
  });
}

/**
 * Takes lines as fast as the caller does. One that cannot be made cuts the connection, and so does a drain, which waits for
 * no slow reader: what is whole has its last line.
 */
function sendLines(reply: FastifyReply, lines: AsyncIterable<string>, draining: AbortSignal): FastifyReply {
  reply.type('application/x-ndjson; charset=utf-8').header('cache-control', 'no-cache, no-transform');
  // Counted in bytes: as objects it would hold sixteen lines, which may be large.
  return reply.send(Readable.from(lines, { objectMode: false, signal: draining }));
}

function refuseRoute(server: FastifyInstance, name: string, path: string, callers: Callers): void {
  server.all(path, {
    onRequest: async (request, reply) => {
      await callers.admit(request, reply, { path });
      throw new AppError('invalid', 'request.not-supported', `${name}: not supported yet; see /v1/x/capabilities.`);
    },
    handler: async () => undefined,
  });
}

function parseBody(one: Operation, body: unknown): unknown {
  if (one.body === undefined) return undefined;
  const parsed = one.body.safeParse(body);
  if (parsed.success) return parsed.data;
  const fault = invalidRequest(parsed.error.issues.map((issue) => ({ path: issue.path, message: faultOf(issue) })));
  // The one fault of a body that the contract has a code for.
  if (!parsed.error.issues.every(({ path }) => path[0] === 'metadata')) throw fault;
  throw new AppError('invalid', fault.code, fault.message, { details: { errorCode: 'invalid_metadata' } });
}

/** Of a union's alternatives the one that came furthest says most; of a key what is wrong with it. */
function faultOf(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_key') return issue.issues[0]?.message ?? issue.message;
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return issue.message;
  const best = [...issue.errors].sort((a, b) => depth(b) - depth(a))[0]?.[0];
  return best === undefined
    ? issue.message
    : `${best.path.length === 0 ? '' : `${best.path.map(String).join('.')}: `}${faultOf(best)}`;
}
function depth(issues: readonly z.core.$ZodIssue[]): number {
  return Math.max(0, ...issues.map((issue) => issue.path.length));
}

async function deadLetters(bus: Bus): Promise<number | null> {
  try {
    const message = await bus.connection.request(`$JS.API.STREAM.INFO.${DEAD_LETTER_STREAM}`, '', { timeout: 1_000 });
    const parsed = z.object({ state: z.object({ messages: z.number() }) }).safeParse(message.json());
    return parsed.success ? parsed.data.state.messages : null;
  } catch {
    return null;
  }
}
