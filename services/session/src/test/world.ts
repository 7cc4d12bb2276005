import {
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Bus } from '@holdfast/bus';
import {
  type Agent,
  type Aggregate,
  AppError,
  type CancelBody,
  type CheckpointBody,
  type CheckpointReply,
  type CheckpointUpdate,
  type Command,
  type CommandReply,
  commandSubject,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  type EnsureSandboxUpdate,
  type ExecBody,
  type ExecReply,
  type FoundOutputs,
  type HarvestBody,
  type HarvestUpdate,
  newId,
  type Session,
  type SessionEvent,
  streamOf,
  type ToolOutcome,
} from '@holdfast/contracts';
import { createLogPool, EventLog } from '@holdfast/event-store';
import { type BlobConfig, blobSettings } from '@holdfast/platform';
import { type NatsServer, startNats, type TestDatabase, testDatabase, testRunDir } from '@holdfast/testing';
import type pg from 'pg';
import { pino } from 'pino';
import { z } from 'zod';
import { startDemoGateway } from '../../../../bin/src/demo-gateway/server.ts';
import { sessionConfig } from '../config.ts';
import { SessionService } from '../host/session-service.ts';
import { bootstrap, DEFAULT_WORKSPACE } from '../migrations/bootstrap.ts';
import { runMigrations } from '../migrations/run-migrations.ts';

const KEY = `hf_${'k'.repeat(43)}`;

export const say = (text: string, rest: object = {}) => ({
  type: 'user.message',
  content: [{ type: 'text', text }],
  ...rest,
});
export const toolset = (ask: string[] = []) => [
  { type: 'agent_toolset_20260401', configs: ask.map((name) => ({ name, permission_policy: { type: 'always_ask' } })) },
  { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } },
];
export const types = (all: readonly { readonly type: string }[]): string[] => all.map(({ type }) => type);
export const texts = (all: readonly SessionEvent[]): string[] =>
  all.flatMap((event) =>
    event.type === 'agent.message' ? event.data.content.map((block) => (block.type === 'text' ? block.text : '')) : [],
  );
export const ofType = <T extends SessionEvent['type']>(all: readonly SessionEvent[], type: T) =>
  all.filter((event): event is Extract<SessionEvent, { type: T }> => event.type === type);
/** True once the session went idle so many times. */
export const idle =
  (times = 1) =>
  (all: readonly SessionEvent[]): boolean =>
    ofType(all, 'session.status_idle').length >= times;

export interface ModelCall {
  readonly atMs: number;
  readonly body: {
    readonly messages: readonly { readonly role: string; readonly content: unknown }[];
    readonly tools?: unknown;
  };
  /** When the caller hung up before the answer was whole. */
  cutAtMs: number | null;
}

/** The demo gateway, with a script before it that may answer a call instead. */
export class ScriptedModel {
  readonly calls: ModelCall[] = [];
  /** Answers a call and returns true, or leaves it to the demo gateway. */
  answer: (call: ModelCall, response: ServerResponse) => boolean | Promise<boolean> = () => false;
  readonly #demo: Server;
  readonly #server: Server;

  private constructor(demo: Server) {
    this.#demo = demo;
    this.#server = createServer((request, response) => void this.#serve(request, response));
  }

  static async start(): Promise<ScriptedModel> {
    const model = new ScriptedModel(await startDemoGateway(0, '127.0.0.1'));
    await new Promise<void>((resolve) => model.#server.listen(0, '127.0.0.1', resolve));
    return model;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  stop(): void {
    for (const server of [this.#server, this.#demo]) {
      server.close();
      server.closeAllConnections();
    }
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const parts: Buffer[] = [];
    for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
    const text = Buffer.concat(parts);
    if (request.method !== 'POST') return this.#ask(request, response, text);
    const call: ModelCall = { atMs: Date.now(), body: JSON.parse(text.toString()) as ModelCall['body'], cutAtMs: null };
    this.calls.push(call);
    response.on('close', () => {
      if (!response.writableEnded) call.cutAtMs = Date.now();
    });
    if (await this.answer(call, response)) return;
    this.#ask(request, response, text);
  }

  #ask({ method, url, headers }: IncomingMessage, response: ServerResponse, text: Buffer): void {
    const demo = httpRequest(
      { port: (this.#demo.address() as AddressInfo).port, method, path: url, headers },
      (answer) => {
        response.writeHead(answer.statusCode ?? 500, answer.headers);
        answer.pipe(response);
      },
    );
    demo.on('error', () => response.destroy());
    response.on('close', () => demo.destroy());
    demo.end(text);
  }
}

/** A whole streamed answer: text, tool calls, usage. */
export function streamAnswer(
  response: ServerResponse,
  answer: {
    text?: string;
    calls?: readonly { name: string; input: object }[];
    usage?: { prompt_tokens: number; completion_tokens: number };
  },
): true {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  const chunk = (delta: object, rest: object = {}): void => {
    response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta, ...rest }] })}\n\n`);
  };
  if (answer.text !== undefined) chunk({ content: answer.text });
  for (const [index, { name, input }] of (answer.calls ?? []).entries())
    chunk({ tool_calls: [{ index, id: `c${index}`, function: { name, arguments: JSON.stringify(input) } }] });
  chunk({}, { finish_reason: answer.calls === undefined ? 'stop' : 'tool_calls' });
  const usage = answer.usage ?? { prompt_tokens: 10, completion_tokens: 5 };
  response.end(`data: ${JSON.stringify({ choices: [], usage })}\n\ndata: [DONE]\n\n`);
  return true;
}

/** Stands for the sandbox service: counts what it is asked to run and answers by script. */
export class ScriptedSandbox {
  /** How often each call was asked for. */
  readonly executed = new Map<string, number>();
  readonly cancelled: string[] = [];
  /** Whether cancels reach it. */
  reachable = true;
  ensure: (body: EnsureSandboxBody) => EnsureSandboxReply | Promise<EnsureSandboxReply> = (body) => ({
    sandboxId: `sbx_${body.sessionId}`,
    journalId: 'journal',
  });
  /** What lies in its outputs folder; null = it cannot be reached for that. */
  outputs: FoundOutputs | null = { files: [], leftOut: [] };
  /** How often it was asked for its outputs. */
  harvests = 0;
  /** Keeps everything by default. */
  keep: (body: CheckpointBody) => CheckpointReply | Promise<CheckpointReply> = () => ({
    checkpointId: 'ckpt_1',
    throughVersion: 1_000_000,
  });
  /** How often files were to be kept. */
  checkpoints = 0;
  run: (body: ExecBody) => Promise<string> = async (body) => {
    const line = typeof body.input['command'] === 'string' ? body.input['command'] : '';
    if (line.startsWith('sleep')) await sleep(3_000);
    return `ran ${body.tool} ${line}`;
  };

  constructor(bus: Bus) {
    bus.reply<EnsureSandboxBody, EnsureSandboxUpdate>('cmd.sandbox.*.ensure', { queue: 'sandbox' }, async (body) => ({
      kind: 'ready',
      ...(await this.ensure(body)),
    }));
    bus.replyMany<ExecBody, ExecReply>('cmd.sandbox.*.link.exec', {}, async (body, _context, send) => {
      this.executed.set(body.callId, (this.executed.get(body.callId) ?? 0) + 1);
      send({ kind: 'alive' });
      const text = await this.run(body);
      send({ kind: 'done', result: { outcome: 'completed', isError: false, text, fullOutput: null } });
    });
    bus.replyMany<HarvestBody, HarvestUpdate>('cmd.sandbox.*.link.harvest', {}, async (_body, _context, send) => {
      this.harvests += 1;
      if (this.outputs === null) throw new AppError('unavailable', 'sandbox.link-lost', 'The link was lost.');
      send({ kind: 'alive' });
      send({ kind: 'found', ...this.outputs });
    });
    bus.replyMany<CheckpointBody, CheckpointUpdate>(
      'cmd.sandbox.*.link.checkpoint',
      {},
      async (body, _context, send) => {
        this.checkpoints += 1;
        send({ kind: 'kept', checkpoint: await this.keep(body) });
      },
    );
    bus.reply<CancelBody, ToolOutcome>('cmd.sandbox.*.link.cancel', {}, ({ callId }) => {
      if (!this.reachable) throw new AppError('unavailable', 'sandbox.link-lost', 'The link was lost.');
      this.cancelled.push(callId);
      return { outcome: 'cancelled', isError: true, text: 'cancelled', fullOutput: null };
    });
  }
}

/** Session services in this process on real Postgres and NATS, with a scripted model and sandbox. */
export class World {
  readonly database: TestDatabase;
  nats: NatsServer & { readonly dir: string };
  readonly bus: Bus;
  readonly pool: pg.Pool;
  readonly log: EventLog;
  readonly model: ScriptedModel;
  readonly sandbox: ScriptedSandbox;
  readonly #sandboxBus: Bus;
  readonly #services = new Set<SessionService>();

  private constructor(parts: {
    database: TestDatabase;
    nats: World['nats'];
    model: ScriptedModel;
    bus: Bus;
    sandboxBus: Bus;
  }) {
    this.database = parts.database;
    this.nats = parts.nats;
    this.model = parts.model;
    this.bus = parts.bus;
    this.#sandboxBus = parts.sandboxBus;
    this.sandbox = new ScriptedSandbox(parts.sandboxBus);
    this.pool = createLogPool({
      connectionString: parts.database.url,
      applicationName: 'spec',
      onIdleError: () => undefined,
    });
    this.log = new EventLog({ pool: this.pool });
  }

  /** `given`: a database of the spec's own instead of one on the run's server. */
  static async start(given?: TestDatabase): Promise<World> {
    const [database, nats, model] = await Promise.all([given ?? testDatabase(), startNats(), ScriptedModel.start()]);
    await runMigrations(database.url, fileURLToPath(new URL('../../../sandbox/migrations', import.meta.url)));
    await bootstrap(database.url, KEY);
    await bootstrap(database.url, KEY);
    const [bus, sandboxBus] = await Promise.all([nats.connect('gateway-api'), nats.connect('sandbox')]);
    return new World({ database, nats, model, bus, sandboxBus });
  }

  /** Where its services have their blobs. */
  get blobs(): BlobConfig {
    return z.object(blobSettings).parse({ HOLDFAST_STATE_DIR: join(testRunDir(), this.database.name) });
  }

  /** One more replica. */
  async service(instance: string, settings: Record<string, number | string> = {}): Promise<SessionService> {
    const config = sessionConfig.parse({
      DATABASE_URL: this.database.url,
      NATS_URL: this.nats.url,
      NATS_USER: 'session',
      NATS_PASSWORD: 'pw-session',
      HOLDFAST_INSTANCE: instance,
      HOLDFAST_STATE_DIR: join(testRunDir(), this.database.name),
      LITELLM_GATEWAY_URL: this.model.url,
      TURN_LEASE_MS: 1_000,
      MODEL_RETRY_FIRST_MS: 20,
      MODEL_MAX_RETRIES: 2,
      SANDBOX_WAIT_MS: 3_000,
      ...settings,
    });
    const service = new SessionService(config, pino({ level: 'silent' }));
    this.#services.add(service);
    await service.start();
    return service;
  }

  async stopService(service: SessionService): Promise<void> {
    this.#services.delete(service);
    await service.stop();
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#services].map((service) => service.stop()));
    await this.bus.close();
    await this.#sandboxBus.close();
    this.model.stop();
    await this.pool.end();
    await this.nats.stop();
    await this.database.drop();
  }

  async command<R>(
    aggregate: Aggregate,
    id: string,
    verb: string,
    body: unknown,
    rest: Partial<Command> = {},
  ): Promise<R> {
    const message: Command = {
      commandId: newId('command'),
      workspaceId: DEFAULT_WORKSPACE,
      actor: { type: 'api_key', id: 'apikey_spec' },
      idempotency: null,
      traceparent: null,
      body,
      ...rest,
    };
    const reply = await this.bus.request<CommandReply>(commandSubject(aggregate, id, verb), message, {
      timeoutMs: 10_000,
    });
    return reply.body as R;
  }

  createAgent(tools: object[] = toolset(), rest: object = {}): Promise<Agent> {
    return this.command<Agent>('agent', newId('agent'), 'create', { name: 'spec', model: 'demo', tools, ...rest });
  }

  async environmentId(): Promise<string> {
    const { rows } = await this.pool.query<{ id: string }>('select id from environments limit 1');
    return rows[0]?.id ?? '';
  }

  async createSession(body: object = {}, agent?: Agent): Promise<Session> {
    return this.command<Session>('session', newId('session'), 'create', {
      agent: (agent ?? (await this.createAgent())).id,
      environment_id: await this.environmentId(),
      ...body,
    });
  }

  send(id: string, events: object[], rest: Partial<Command> = {}) {
    return this.command<{ data: { id: string; type: string }[] }>('session', id, 'send-events', { events }, rest);
  }

  async events(id: string): Promise<SessionEvent[]> {
    return (await this.log.readStream(streamOf('session', id), { afterVersion: 0 })) as unknown as SessionEvent[];
  }

  async until(id: string, what: (all: SessionEvent[]) => boolean, timeoutMs = 15_000): Promise<SessionEvent[]> {
    for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(15)) {
      const all = await this.events(id);
      if (what(all)) return all;
    }
    throw new Error(`did not happen: ${types(await this.events(id)).join(' ')}`);
  }

  /** Starts the broker again after `nats.kill()`, with the same folder and port. */
  async restartNats(): Promise<void> {
    this.nats = await startNats({ dir: this.nats.dir, port: this.nats.port });
  }

  /** Makes a session's lease another's that ran out: as if its worker had been stopped for too long. */
  async stealLease(id: string): Promise<void> {
    await this.pool.query(
      `update streams set lease_owner = 'gone', lease_expires_at = clock_timestamp() where stream_id = $1`,
      [streamOf('session', id)],
    );
  }
}
