import { randomUUID } from 'node:crypto';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Bus } from '@holdfast/bus';
import {
  type Agent,
  type Aggregate,
  ALL_SESSION_DELTAS,
  type Command,
  type CommandReply,
  commandSubject,
  type EnsureSandboxBody,
  type ExecBody,
  type ExecReply,
  newId,
  type Session,
  type SessionEvent,
  type StoredEvent,
  streamOf,
} from '@holdfast/contracts';
import { checkLog, compareProjection, createLogPool, EventLog } from '@holdfast/event-store';
import { type NatsServer, startNats, type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import { pino } from 'pino';
import { startDemoGateway } from '../../../bin/src/demo-gateway/server.ts';
import { sessionConfig } from './config.ts';
import { SessionService } from './host/session-service.ts';
import { bootstrap, DEFAULT_WORKSPACE } from './migrations/bootstrap.ts';
import { runMigrations } from './migrations/run-migrations.ts';
import { sessionProjection } from './session/session.projection.ts';

const KEY = `hf_${'k'.repeat(43)}`;
let database: TestDatabase;
let nats: NatsServer;
let bus: Bus;
let sandbox: Bus;
let pool: pg.Pool;
let log: EventLog;
let model: Server;
let service: SessionService;
let requests: number[] = [];
/** Tool calls that the scripted sandbox was asked to run, by call id. */
const executed = new Map<string, number>();

async function startService(instance: string): Promise<SessionService> {
  const config = sessionConfig.parse({
    DATABASE_URL: database.url,
    NATS_URL: nats.url,
    NATS_USER: 'session',
    NATS_PASSWORD: 'pw-session',
    HOLDFAST_INSTANCE: instance,
    HOLDFAST_STATE_DIR: '/tmp/holdfast-spec',
    LITELLM_GATEWAY_URL: `http://127.0.0.1:${(model.address() as AddressInfo).port}`,
    TURN_LEASE_MS: 1_000,
    MODEL_RETRY_FIRST_MS: 20,
    MODEL_MAX_RETRIES: 2,
    SANDBOX_WAIT_MS: 3_000,
  });
  const started = new SessionService(config, pino({ level: 'silent' }));
  await started.start();
  return started;
}

beforeAll(async () => {
  [database, nats] = await Promise.all([testDatabase(), startNats()]);
  await runMigrations(database.url, fileURLToPath(new URL('../../sandbox/migrations', import.meta.url)));
  await bootstrap(database.url, KEY);
  await bootstrap(database.url, KEY);
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  log = new EventLog({ pool });
  model = await startDemoGateway(0, '127.0.0.1', () => requests.push(Date.now()));
  bus = await nats.connect('gateway-api');
  sandbox = await nats.connect('sandbox');
  sandbox.reply<EnsureSandboxBody, object>('cmd.sandbox.*.ensure', { queue: 'sandbox' }, (body) => ({
    sandboxId: `sbx_${body.sessionId}`,
    journalId: 'journal',
  }));
  sandbox.replyMany<ExecBody, ExecReply>('cmd.sandbox.*.link.exec', {}, async (body, _context, send) => {
    executed.set(body.callId, (executed.get(body.callId) ?? 0) + 1);
    send({ kind: 'alive' });
    const line = typeof body.input['command'] === 'string' ? body.input['command'] : '';
    if (line.startsWith('sleep')) await sleep(3_000);
    send({
      kind: 'done',
      result: { outcome: 'completed', isError: false, text: `ran ${body.tool} ${line}`, fullOutput: null },
    });
  });
  sandbox.reply('cmd.sandbox.*.link.cancel', {}, () => ({
    outcome: 'cancelled',
    isError: true,
    text: 'cancelled',
    fullOutput: null,
  }));
  service = await startService('session-1');
}, 180_000);

afterAll(async () => {
  await service.stop();
  await bus.close();
  await sandbox.close();
  model.close();
  model.closeAllConnections();
  await pool.end();
  await nats.stop();
  await database.drop();
}, 60_000);

async function command<R>(
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
  return (await bus.request<CommandReply>(commandSubject(aggregate, id, verb), message, { timeoutMs: 10_000 }))
    .body as R;
}

const toolset = (ask: string[] = []) => [
  { type: 'agent_toolset_20260401', configs: ask.map((name) => ({ name, permission_policy: { type: 'always_ask' } })) },
  { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } },
];
const createAgent = (tools = toolset()) =>
  command<Agent>('agent', newId('agent'), 'create', { name: 'spec', model: 'demo', tools });
async function environmentId(): Promise<string> {
  const { rows } = await pool.query<{ id: string }>('select id from environments limit 1');
  return rows[0]?.id ?? '';
}
async function createSession(body: object = {}, agent?: Agent): Promise<Session> {
  return command<Session>('session', newId('session'), 'create', {
    agent: (agent ?? (await createAgent())).id,
    environment_id: await environmentId(),
    ...body,
  });
}
const say = (text: string, rest: object = {}) => ({ type: 'user.message', content: [{ type: 'text', text }], ...rest });
const send = (id: string, events: object[], rest: Partial<Command> = {}) =>
  command<{ data: { id: string; type: string }[] }>('session', id, 'send-events', { events }, rest);
const events = (id: string) => log.readStream(streamOf('session', id), { afterVersion: 0 });
const types = (all: readonly StoredEvent[]) => all.map(({ type }) => type);

async function until(id: string, what: (all: SessionEvent[]) => boolean, timeoutMs = 15_000): Promise<SessionEvent[]> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(15)) {
    const all = (await events(id)) as unknown as SessionEvent[];
    if (what(all)) return all;
  }
  throw new Error(`did not happen: ${types(await events(id)).join(' ')}`);
}
const idle =
  (times = 1) =>
  (all: SessionEvent[]) =>
    all.filter(({ type }) => type === 'session.status_idle').length >= times;
const texts = (all: readonly SessionEvent[]) =>
  all.flatMap((event) =>
    event.type === 'agent.message' ? event.data.content.map((block) => (block.type === 'text' ? block.text : '')) : [],
  );

describe('a turn', () => {
  it('answers a message in order, and streams its text live', async () => {
    const session = await createSession();
    expect(session).toMatchObject({ type: 'session', status: 'idle', agent: { version: 1 }, x_context_key: null });
    const pieces: string[] = [];
    const listening = bus.subscribeLive<{ text: string }>(ALL_SESSION_DELTAS, (delta, subject) => {
      if (subject.includes(session.id)) pieces.push(delta.text);
    });
    await bus.flush();
    const sent = await send(session.id, [say('hello there')]);
    expect(sent.data).toMatchObject([{ type: 'user.message', processed_at: null }]);
    const all = await until(session.id, idle());
    expect(types(all as never)).toEqual([
      'session.created',
      'user.message',
      'session.turn_started',
      'session.message_processed',
      'session.status_running',
      'span.model_request_start',
      'agent.message',
      'span.model_request_end',
      'session.status_idle',
    ]);
    expect(texts(all)[0]).toMatch(/^You said: hello there/);
    await sleep(50);
    expect(pieces.join('')).toBe(texts(all)[0]);
    expect(all[6]?.id).toBe((all[5] as Extract<SessionEvent, { type: 'span.model_request_start' }>).data.message_id);
    await listening.stop();
    expect((await log.streamHead(streamOf('session', session.id)))?.leaseOwner).toBeNull();
  });

  it('starts with its initial events', async () => {
    const session = await createSession({ initial_events: [say('first')] });
    expect(session.status).toBe('running');
    expect(texts(await until(session.id, idle()))).toHaveLength(1);
  });

  it('runs tools one step each, each call once', async () => {
    const session = await createSession();
    await send(session.id, [say('RUN[echo one] WRITE[a.txt|b]')]);
    const all = await until(session.id, idle());
    const calls = all.filter(({ type }) => type === 'agent.tool_use');
    expect(calls).toHaveLength(2);
    for (const call of calls) expect(executed.get(call.id)).toBe(1);
    expect(types(all as never).filter((type) => type === 'session.sandbox_attached')).toHaveLength(1);
    expect(texts(all).at(-1)).toMatch(/ran write/);
  });

  it('asks the model once for each step, and never drops a request of its own', async () => {
    const session = await createSession();
    const steps = 12;
    const before = requests.length;
    await send(session.id, [say(Array.from({ length: steps }, (_, i) => `RUN[echo ${i}]`).join(' '))]);
    const all = await until(session.id, idle());
    const ends = all.filter((event) => event.type === 'span.model_request_end');
    expect(ends.map((event) => event.data.is_error)).toEqual(Array.from({ length: steps + 1 }, () => false));
    expect(requests.length - before).toBe(steps + 1);
  });

  it('gives every queued message its own answer without going idle between them', async () => {
    const session = await createSession();
    await send(session.id, [say('SLOW[3]')]);
    await send(session.id, [say('second'), say('third')]);
    const all = await until(session.id, idle());
    expect(texts(all).map((text) => text.split('\n')[0])).toEqual([
      'word1 word2 word3',
      'You said: second',
      'You said: third',
    ]);
    expect(types(all as never).filter((type) => type === 'session.status_idle')).toHaveLength(1);
    expect(all.at(-1)?.type).toBe('session.status_idle');
  });

  it('hands a steering message to the running turn', async () => {
    const session = await createSession();
    await send(session.id, [say('SLOW[3] RUN[echo x] RUN[echo never]')]);
    await send(session.id, [say('stop that', { x_steer: true })]);
    const all = await until(session.id, idle());
    expect(texts(all).at(-1)).toMatch(/^You said: stop that/);
    expect(all.filter(({ type }) => type === 'agent.tool_use')).toHaveLength(1);
  });
});

describe('interrupt', () => {
  it('cuts the model call at once; nothing follows idle', async () => {
    const session = await createSession();
    await send(session.id, [say('SLOW[100]')]);
    await sleep(250);
    const at = Date.now();
    await send(session.id, [{ type: 'user.interrupt' }]);
    const all = await until(session.id, idle());
    expect(Date.now() - at).toBeLessThan(1_000);
    expect(texts(all)).toEqual([]);
    expect(types(all as never).slice(-3)).toEqual(['user.interrupt', 'span.model_request_end', 'session.status_idle']);
    await sleep(200);
    expect((await events(session.id)).length).toBe(all.length);
  });

  it('closes a running tool call with an error and goes on with what is queued', async () => {
    const session = await createSession();
    await send(session.id, [say('RUN[sleep 60]')]);
    await until(session.id, (all) => all.some(({ type }) => type === 'session.sandbox_attached'));
    await send(session.id, [{ type: 'user.interrupt' }, say('and now?')]);
    const all = await until(session.id, idle());
    expect(all.find(({ type }) => type === 'agent.tool_result')?.data).toMatchObject({
      is_error: true,
      outcome: 'cancelled',
    });
    expect(texts(all).at(-1)).toMatch(/^You said: and now/);
  });
});

describe('calls that wait for the client', () => {
  it('asks, runs on allow, tells the model on deny', async () => {
    const session = await createSession({}, await createAgent(toolset(['bash'])));
    await send(session.id, [say('RUN[echo one] RUN[echo two]')]);
    let all = await until(session.id, idle());
    const first = all.find(({ type }) => type === 'agent.tool_use');
    expect(all.at(-1)?.data).toEqual({ stop_reason: { type: 'requires_action', event_ids: [first?.id] } });
    expect(executed.has(first?.id ?? '')).toBe(false);
    const allow = { type: 'user.tool_confirmation', tool_use_id: first?.id, result: 'allow' };
    const confirmed = await send(session.id, [allow]);
    all = await until(session.id, idle(2));
    expect(executed.get(first?.id ?? '')).toBe(1);
    const again = await send(session.id, [allow]);
    expect(again.data[0]?.id).toBe(confirmed.data[0]?.id);
    await expect(send(session.id, [{ ...allow, result: 'deny' }])).rejects.toMatchObject({ kind: 'invalid' });
    const second = all.filter(({ type }) => type === 'agent.tool_use')[1];
    await send(session.id, [
      { type: 'user.tool_confirmation', tool_use_id: second?.id, result: 'deny', deny_message: 'no' },
    ]);
    all = await until(session.id, idle(3));
    expect(executed.has(second?.id ?? '')).toBe(false);
    expect(all.filter(({ type }) => type === 'agent.tool_result')[1]?.data).toMatchObject({
      outcome: 'denied',
      is_error: true,
    });
  });

  it('takes the result of a custom tool from the client', async () => {
    const session = await createSession();
    await send(session.id, [say('ASK[lookup]')]);
    const all = await until(session.id, idle());
    const call = all.find(({ type }) => type === 'agent.custom_tool_use');
    await expect(
      send(session.id, [{ type: 'user.custom_tool_result', custom_tool_use_id: 'sevt_other', content: [] }]),
    ).rejects.toMatchObject({ kind: 'invalid' });
    await send(session.id, [
      { type: 'user.custom_tool_result', custom_tool_use_id: call?.id, content: [{ type: 'text', text: '42' }] },
    ]);
    expect(texts(await until(session.id, idle(2))).at(-1)).toMatch(/42$/);
  });
});

describe('model failures', () => {
  it('are tried again, then end the turn and say so', async () => {
    const session = await createSession();
    await send(session.id, [say('ERR[500]')]);
    const all = await until(session.id, idle());
    const found = types(all as never);
    expect(found.filter((type) => type === 'span.model_request_start')).toHaveLength(3);
    expect(found.filter((type) => type === 'session.status_rescheduled')).toHaveLength(2);
    expect(all.at(-1)?.data).toEqual({ stop_reason: { type: 'retries_exhausted' } });
    await send(session.id, [say('still there?')]);
    expect(texts(await until(session.id, idle(2))).at(-1)).toMatch(/^You said: still there/);
  });

  it('are not tried again when trying cannot help', async () => {
    const session = await createSession();
    await send(session.id, [say('ERR[400]')]);
    const all = await until(session.id, idle());
    expect(types(all as never).filter((type) => type === 'span.model_request_start')).toHaveLength(1);
    expect(all.find(({ type }) => type === 'session.error')?.data).toMatchObject({
      error: { retry_status: { type: 'terminal' } },
    });
  });
});

describe('idempotency (T5)', () => {
  const idempotency = (key: string | null, attempt: number, fingerprint: string) => ({
    key,
    attempt,
    path: 'POST /v1/sessions',
    fingerprint,
  });

  it('stores a retried create and a retried send once', async () => {
    const agent = await createAgent();
    const body = { agent: agent.id, environment_id: await environmentId(), title: randomUUID() };
    const fingerprint = randomUUID();
    const create = (attempt: number) =>
      command<Session>('session', newId('session'), 'create', body, {
        idempotency: idempotency(null, attempt, fingerprint),
      });
    const first = await create(0);
    expect((await create(1)).id).toBe(first.id);
    expect((await create(1)).id).not.toBe(first.id);
    const key = randomUUID();
    const post = () => send(first.id, [say('once')], { idempotency: idempotency(key, 0, 'a') });
    const [one, two] = await Promise.all([post(), post()]);
    expect(two).toEqual(one);
    const all = await until(first.id, idle());
    expect(all.filter(({ type }) => type === 'user.message')).toHaveLength(1);
    await expect(send(first.id, [say('other')], { idempotency: idempotency(key, 0, 'b') })).rejects.toMatchObject({
      code: 'idempotency.key-reused',
    });
  });
});

describe('life cycle', () => {
  it('archives and deletes idle sessions only, and only within the workspace', async () => {
    const session = await createSession();
    await send(session.id, [say('SLOW[4]')]);
    await expect(command('session', session.id, 'archive', {})).rejects.toMatchObject({ code: 'session.running' });
    await until(session.id, idle());
    await expect(command('session', session.id, 'archive', {}, { workspaceId: 'wrkspc_other' })).rejects.toMatchObject({
      kind: 'not-found',
    });
    expect(await command<Session>('session', session.id, 'archive', {})).toMatchObject({ status: 'terminated' });
    await expect(send(session.id, [say('hi')])).rejects.toMatchObject({ code: 'session.archived' });
    expect(await command('session', session.id, 'delete', {})).toEqual({ id: session.id, type: 'session_deleted' });
    await expect(send(session.id, [say('hi')])).rejects.toMatchObject({ kind: 'not-found' });
  });

  it('keeps agent versions and refuses a stale one', async () => {
    const agent = await createAgent();
    const next = await command<Agent>('agent', agent.id, 'update', { version: 1, name: 'renamed' });
    expect(next).toMatchObject({ version: 2, name: 'renamed' });
    await expect(command('agent', agent.id, 'update', { version: 1, name: 'x' })).rejects.toMatchObject({
      code: 'agent.version-conflict',
    });
    expect(await command<Agent>('agent', agent.id, 'update', { name: 'renamed' })).toMatchObject({ version: 2 });
    const pinned = await createSession({ agent: { type: 'agent', id: agent.id, version: 1 } });
    expect(pinned.agent).toMatchObject({ version: 1, name: 'spec' });
    await expect(command('environment', newId('environment'), 'create', { name: 'default' })).rejects.toMatchObject({
      code: 'environment.name-taken',
    });
    await expect(command('environment', await environmentId(), 'delete', {})).rejects.toMatchObject({
      code: 'environment.in-use',
    });
  });
});

describe('events of a newer release (L7)', () => {
  it('park their session, and only it, until a release that reads them acts on it', async () => {
    const session = await createSession();
    const streamId = streamOf('session', session.id);
    const { streams } = await log.append({
      appends: [
        {
          streamId,
          workspaceId: DEFAULT_WORKSPACE,
          events: [{ id: `sevt_newer_${session.id}`, type: 'session.paused', schemaVersion: 1, data: {} }],
        },
      ],
    });
    await expect(send(session.id, [say('hello')])).rejects.toMatchObject({
      kind: 'unavailable',
      code: 'event.newer-version',
    });
    expect((await log.streamHead(streamId))?.version).toBe(streams[0]?.toVersion);
    await pool.query('delete from events where stream_id = $1 and version = $2', [streamId, streams[0]?.toVersion]);
    await pool.query('update streams set version = version - 1 where stream_id = $1', [streamId]);
    await send(session.id, [say('hello')]);
    expect(texts(await until(session.id, idle()))[0]).toMatch(/^You said: hello/);
  });
});

describe('takeover', () => {
  it('continues the turn of a worker that stopped renewing, within its lease and a second', async () => {
    const session = await createSession();
    await send(session.id, [say('SLOW[15] RUN[echo after]')]);
    await sleep(200);
    // A second replica; the first one freezes: its lease is stolen as if it had run out.
    const other = await startService('session-2');
    requests = [];
    await pool.query(
      `update streams set lease_owner = 'gone', lease_expires_at = clock_timestamp() where stream_id = $1`,
      [streamOf('session', session.id)],
    );
    const all = await until(session.id, idle(), 30_000);
    const started = all.filter(({ type }) => type === 'session.turn_started');
    expect(started.at(-1)?.data).toMatchObject({ takeover: true, generation: 2 });
    const calls = all.filter(({ type }) => type === 'agent.tool_use');
    for (const call of calls) expect(executed.get(call.id)).toBe(1);
    expect(all.at(-1)?.type).toBe('session.status_idle');
    expect(all.map(({ version }) => version)).toEqual(all.map((_, i) => i + 1));
    await other.stop();
  }, 60_000);

  it('hands turns over on shutdown', async () => {
    const leaving = await startService('session-3');
    const sessions = await Promise.all(
      Array.from({ length: 8 }, () => createSession({ initial_events: [say('SLOW[8] RUN[echo x]')] })),
    );
    await sleep(150);
    await leaving.stop();
    for (const session of sessions) {
      const all = await until(session.id, idle(), 30_000);
      expect(texts(all).at(-1)).toMatch(/^Done/);
    }
  }, 60_000);
});

describe('afterwards', () => {
  it('the log is whole and the read model equals a fresh fold', async () => {
    expect(await checkLog(pool)).toEqual([]);
    expect(await compareProjection(pool, log, sessionProjection)).toEqual([]);
  });
});
