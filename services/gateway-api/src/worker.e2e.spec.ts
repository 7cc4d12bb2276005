import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import Anthropic from '@anthropic-ai/sdk';
import type { EnvironmentKeyResource, SessionWorker, Work, WorkHeartbeat, WorkStats } from '@holdfast/contracts';
import {
  type Frame,
  pythonEnvironment,
  type RequestOptions,
  startPlatform,
  TestClient,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

const LEASE_MS = 3_000;
const PYTHON_WORKER = fileURLToPath(new URL('environment-worker.e2e.py', import.meta.url));
/** The JS SDKs' own environment worker, as an operator runs it. */
const JS_WORKER = `
const { SDK, API_URL, ENVIRONMENT_ID, ENVIRONMENT_KEY, WORKER_ID, MAX_IDLE_MS } = process.env;
const { default: Anthropic } = await import(SDK);
const controller = new AbortController();
process.on('SIGTERM', () => controller.abort());
await new Anthropic({ apiKey: 'unused', baseURL: API_URL }).beta.environments.work
  .worker({
    environmentId: ENVIRONMENT_ID,
    environmentKey: ENVIRONMENT_KEY,
    workdir: process.cwd(),
    workerId: WORKER_ID,
    maxIdleMs: Number(MAX_IDLE_MS),
  })
  .run(controller.signal)
  .catch((error) => {
    if (!controller.signal.aborted) throw error;
  });`;
const sdkAt = (name: string): string => pathToFileURL(createRequire(import.meta.url).resolve(name)).href;

type Event = Frame['data'];
type Key = EnvironmentKeyResource & { readonly key: string };
const ofType = (events: readonly Event[], type: string): Event[] => events.filter((event) => event.type === type);
const textOf = (event: Event | undefined): string => (event?.content ?? []).map(({ text }) => text).join('');
const bearer = (key: string): RequestOptions => ({ headers: { 'x-api-key': '', authorization: `Bearer ${key}` } });

let platform: TestPlatform;
let client: TestClient;
let dir: string;
let environmentId: string;
let environmentKey: string;
beforeAll(async () => {
  platform = await startPlatform({ WORK_LEASE_MS: String(LEASE_MS) });
  client = new TestClient(platform);
  dir = mkdtempSync(join(tmpdir(), 'holdfast-workers-'));
  ({ id: environmentId, key: environmentKey } = await newEnvironment());
}, 240_000);
afterAll(async () => {
  await platform?.stop();
  if (dir !== undefined) await rm(dir, { recursive: true, force: true });
}, 60_000);

let made = 0;
async function newEnvironment(): Promise<{ id: string; key: string }> {
  const { id } = await client.json<{ id: string }>('/v1/environments', {
    json: { name: `own-${++made}`, config: { type: 'self_hosted' } },
  });
  const { key } = await client.json<Key>(`/v1/x/environments/${id}/keys`, { json: { name: 'workers' } });
  return { id, key };
}

/** A worker process in a folder of its own. */
class Worker {
  static readonly #all = new Set<Worker>();
  readonly workdir = mkdtempSync(join(dir, 'worker-'));
  readonly id: string;
  readonly #process: ChildProcess;
  #said = '';

  constructor(
    id: string,
    { command = process.execPath, args = ['--input-type=module', '-e', JS_WORKER], sdk = '@anthropic-ai/sdk' } = {},
    [environment, key] = [environmentId, environmentKey],
  ) {
    this.id = id;
    this.#process = spawn(command, args, {
      cwd: this.workdir,
      env: {
        PATH: process.env.PATH,
        API_URL: platform.apiUrl,
        ENVIRONMENT_ID: environment,
        ENVIRONMENT_KEY: key,
        WORKER_ID: id,
        MAX_IDLE_MS: '1500',
        SDK: sdkAt(sdk),
      },
    });
    for (const stream of [this.#process.stdout, this.#process.stderr])
      stream?.on('data', (piece: Buffer) => (this.#said += piece.toString()));
    Worker.#all.add(this);
  }

  get said(): string {
    return this.#said;
  }

  file(name: string): string | null {
    const path = join(this.workdir, name);
    return existsSync(path) ? readFileSync(path, 'utf8') : null;
  }

  async untilFile(name: string): Promise<void> {
    for (const deadline = Date.now() + 20_000; this.file(name) === null; await sleep(50))
      if (Date.now() > deadline) throw new Error(`the worker made no ${name}: ${this.said}`);
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }

  static async stopAll(): Promise<void> {
    for (const worker of Worker.#all) worker.signal('SIGKILL');
    Worker.#all.clear();
    // What they held runs out, so that the next test begins with nothing.
    await until(async () => (await alive()) === 0);
  }
}
afterEach(() => Worker.stopAll(), 20_000);

async function until(what: () => Promise<boolean> | boolean, timeoutMs = 20_000): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; !(await what()); await sleep(100))
    if (Date.now() > deadline) throw new Error('it did not happen in time');
}
const alive = async (): Promise<number> =>
  Number(
    (
      await platform.query("select count(*)::integer as n from work_items where state not in ('queued', 'stopped')")
    )[0]?.['n'],
  );

async function newSession(
  text: string,
  tools: unknown[] = [{ type: 'agent_toolset_20260401' }],
  environment = environmentId,
): Promise<string> {
  const agent = await client.json<{ id: string }>('/v1/agents', { json: { name: 'spec', model: 'demo', tools } });
  const { id } = await client.json<{ id: string }>('/v1/sessions', {
    json: { agent: agent.id, environment_id: environment, initial_events: [userMessage(text)] },
  });
  return id;
}
const send = (id: string, ...events: object[]) =>
  client.json<{ data: Event[] }>(`/v1/sessions/${id}/events`, { json: { events } });
const workerOf = (id: string) => client.json<SessionWorker>(`/v1/sessions/${id}/x/worker`);
/** Waits until the session's turn is over. */
async function untilEnd(id: string, turns = 1): Promise<Event[]> {
  let events: Event[] = [];
  await until(async () => {
    events = await client.events(id);
    const ends = ofType(events, 'session.status_idle').filter(
      (event) => (event['stop_reason'] as { type: string }).type !== 'requires_action',
    );
    return ends.length >= turns;
  }, 40_000);
  return events;
}
async function waiting(id: string): Promise<Event> {
  let last: Event | undefined;
  await until(async () => {
    last = (await client.events(id)).at(-1);
    return last?.type === 'session.status_idle';
  });
  return last as Event;
}
/** Every call has one result, and nothing comes after the turn's end. */
function expectSound(events: readonly Event[]): void {
  const calls = ofType(events, 'agent.tool_use').map(({ id }) => id);
  const results = events.filter(({ type }) => type === 'user.tool_result' || type === 'agent.tool_result');
  expect(results.map((event) => event['tool_use_id'])).toEqual(calls);
  expect(events.at(-1)).toMatchObject({ type: 'session.status_idle' });
}
const rawWork = async (id = environmentId, key = environmentKey): Promise<{ work: Work; token: string }> => {
  const work = await client.json<Work | null>(`/v1/environments/${id}/work/poll?block_ms=999`, bearer(key));
  if (work?.secret == null) throw new Error('there is no work');
  const secret = JSON.parse(Buffer.from(work.secret, 'base64url').toString()) as { sessions_token: string };
  return { work, token: secret.sessions_token };
};
const workPath = (work: Work, verb: string): string => `/v1/environments/${work.environment_id}/work/${work.id}${verb}`;

describe.each<[string, () => Promise<ConstructorParameters<typeof Worker>[1]>]>([
  ['@anthropic-ai/sdk 1.x', async () => ({})],
  ['@anthropic-ai/sdk 0.137', async () => ({ sdk: 'anthropic-sdk-0' })],
  ['anthropic 1.13.0 for Python', () => python('anthropic-1')],
  ['anthropic 2.12.0 for Python', () => python('anthropic-2')],
])('the environment worker of %s, unmodified,', (_name, how) => {
  it('runs the tools of a turn in its own folder, each once', async () => {
    const worker = new Worker('alpha', await how());
    const id = await newSession('RUN[echo one >> ran; cat ran] WRITE[note.txt|hello] RUN[cat note.txt]');
    const events = await untilEnd(id).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${worker.said}`);
    });
    expectSound(events);
    expect([worker.file('ran'), worker.file('note.txt')]).toEqual(['one\n', 'hello']);
    const results = ofType(events, 'user.tool_result');
    expect(results.map((result) => result['is_error'])).toEqual([false, false, false]);
    expect(textOf(results[0]).trim()).toBe('one');
    expect(textOf(ofType(events, 'agent.message').at(-1))).toContain('hello');
    // The worker leaves a session that is idle, and is there for the next message.
    await until(async () => (await workerOf(id)).work === null);
    await send(id, userMessage('RUN[echo two >> ran; cat ran]'));
    const later = await untilEnd(id, 2);
    expectSound(later);
    expect(worker.file('ran')).toBe('one\ntwo\n');
    expect(await platform.query('select 1 from sandboxes where session_id = $1', [id])).toEqual([]);
    worker.signal('SIGTERM');
  }, 90_000);
});

describe('a call of a self-hosted session', () => {
  it('waits without any process until a worker comes, and says so', async () => {
    const id = await newSession('RUN[echo late > late; cat late]');
    const idle = await waiting(id);
    const [call] = ofType(await client.events(id), 'agent.tool_use');
    expect(call).toMatchObject({ name: 'bash', evaluated_permission: 'allow' });
    expect(idle).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    expect(await client.json(`/v1/sessions/${id}`)).toMatchObject({ status: 'idle', x_self_hosted: true });
    expect(await workerOf(id)).toMatchObject({ waiting_calls: [call?.id], work: null, worker_id: null });
    const stats = await client.json<WorkStats>(`/v1/environments/${environmentId}/work/stats`);
    expect(stats).toMatchObject({ depth: 1, pending: 0, oldest_queued_at: expect.any(String) });
    const worker = new Worker('beta');
    expectSound(await untilEnd(id));
    expect(worker.file('late')).toBe('late\n');
  }, 60_000);

  it('that a killed worker had begun is closed as unknown after the lease; the next worker does not run it again', async () => {
    const first = new Worker('first');
    const id = await newSession('RUN[echo ran >> once; echo x > begun; sleep 60] RUN[echo second > two; cat two]');
    await first.untilFile('begun');
    const second = new Worker('second');
    expect(await workerOf(id)).toMatchObject({ worker_id: 'first', work: { state: 'active' } });
    first.signal('SIGKILL');
    const killedAt = Date.now();
    const events = await untilEnd(id);
    expectSound(events);
    const [lost, next] = ofType(events, 'user.tool_result');
    expect(lost).toMatchObject({ is_error: true });
    expect(textOf(lost)).toContain('outcome is unknown');
    const closedAfterMs = Date.parse(lost?.processed_at ?? '') - killedAt;
    expect(closedAfterMs).toBeLessThan(LEASE_MS + 3_000);
    expect(next).toMatchObject({ is_error: false });
    expect([first.file('once'), second.file('once'), second.file('two')]).toEqual(['ran\n', null, 'second\n']);
    const log = await platform.query(
      "select type, data from events where stream_id = $1 and type like 'session.worker%' order by version",
      [`session-${id}`],
    );
    expect(log.map(({ type, data }) => [type, (data as Record<string, unknown>)['reason']])).toEqual([
      ['session.worker_attached', undefined],
      ['session.worker_detached', 'lost'],
      ['session.worker_attached', undefined],
    ]);
  }, 90_000);

  it('is taken by another worker when the first one stops before it came', async () => {
    const first = new Worker('first');
    const id = await newSession('RUN[echo 1]');
    await untilEnd(id);
    first.signal('SIGKILL');
    const second = new Worker('second');
    await sleep(LEASE_MS + 1_500);
    await send(id, userMessage('RUN[echo two > two]'));
    expectSound(await untilEnd(id, 2));
    expect(second.file('two')).toBe('two\n');
  }, 60_000);

  it('is answered once though every service is killed while it runs', async () => {
    const worker = new Worker('gamma');
    const id = await newSession('RUN[echo ran >> once; echo x > begun; sleep 4; echo done] RUN[cat once]');
    await worker.untilFile('begun');
    for (const name of ['session', 'gateway-api', 'nats', 'postgres', 'sandbox']) platform.kill(name);
    await until(async () => {
      try {
        return (await client.api('/readyz')).ok;
      } catch {
        return false;
      }
    }, 30_000);
    const events = await untilEnd(id);
    expectSound(events);
    expect(worker.file('once')).toBe('ran\n');
  }, 120_000);

  it('that asks is run after its confirmation and not before, and not at all when it is denied', async () => {
    const tools = [{ type: 'agent_toolset_20260401', default_config: { permission_policy: { type: 'always_ask' } } }];
    const worker = new Worker('delta');
    const id = await newSession('RUN[echo yes > allowed] RUN[echo no > denied]', tools);
    const asking = await waiting(id);
    const [call] = ofType(await client.events(id), 'agent.tool_use');
    expect(call).toMatchObject({ evaluated_permission: 'ask' });
    expect(asking).toMatchObject({ stop_reason: { event_ids: [call?.id] } });
    expect(await workerOf(id)).toMatchObject({ waiting_calls: [], work: null });
    await send(id, { type: 'user.tool_confirmation', tool_use_id: call?.id, result: 'allow' });
    await worker.untilFile('allowed');
    let denied: Event | undefined;
    await until(async () => (denied = ofType(await client.events(id), 'agent.tool_use')[1]) !== undefined);
    await waiting(id);
    await send(id, { type: 'user.tool_confirmation', tool_use_id: denied?.id, result: 'deny', deny_message: 'never' });
    const events = await untilEnd(id);
    expectSound(events);
    expect(textOf(ofType(events, 'agent.tool_result')[0])).toContain('never');
    expect(worker.file('denied')).toBeNull();
    // It has let go of the call that it held for a confirmation, and leaves.
    await until(async () => (await workerOf(id)).work === null);
  }, 60_000);

  it('is closed by an interrupt with a result that the worker knows, and is not run again when it reconnects', async () => {
    const worker = new Worker('epsilon');
    const id = await newSession('RUN[echo ran >> once; echo x > begun; sleep 3]');
    await worker.untilFile('begun');
    await send(id, { type: 'user.interrupt' });
    const events = await untilEnd(id);
    expectSound(events);
    expect(textOf(ofType(events, 'user.tool_result')[0])).toContain('outcome is unknown');
    platform.kill('gateway-api');
    await sleep(5_000);
    await send(id, userMessage('RUN[cat once]'));
    expectSound(await untilEnd(id, 2));
    expect(worker.file('once')).toBe('ran\n');
  }, 60_000);

  it('that asks and is interrupted does not keep its worker', async () => {
    const tools = [
      { type: 'agent_toolset_20260401', configs: [{ name: 'write', permission_policy: { type: 'always_ask' } }] },
    ];
    new Worker('zeta');
    const id = await newSession('RUN[echo 1] WRITE[x|y]', tools);
    await until(async () => ofType(await client.events(id), 'agent.tool_use').length === 2);
    await waiting(id);
    await send(id, { type: 'user.interrupt' });
    expectSound(await untilEnd(id));
    await until(async () => (await workerOf(id)).work === null);
  }, 60_000);

  it('takes its result from an API key too, once, and none in a cloud session', async () => {
    const id = await newSession('RUN[x]');
    await waiting(id);
    const [call] = ofType(await client.events(id), 'agent.tool_use');
    const result = { type: 'user.tool_result', tool_use_id: call?.id, content: userMessage('by hand').content };
    const { data } = await send(id, result);
    expect((await send(id, result)).data).toEqual(data);
    const other = await client.api(`/v1/sessions/${id}/events`, {
      json: { events: [{ ...result, is_error: true }] },
    });
    expect([other.status, await other.text()]).toEqual([400, expect.stringContaining('session.call-answered')]);
    expectSound(await untilEnd(id));
    const cloud = await client.session();
    const refused = await client.api(`/v1/sessions/${cloud}/events`, { json: { events: [result] } });
    expect([refused.status, await refused.text()]).toEqual([400, expect.stringContaining('session.not-self-hosted')]);
  }, 30_000);
});

describe('work items', () => {
  let own: { id: string; key: string };
  beforeAll(async () => {
    own = await newEnvironment();
  });

  it('are handed out once, kept by heartbeats that name the one before, and ended', async () => {
    const id = await newSession('RUN[x]', undefined, own.id);
    await waiting(id);
    const { work, token } = await rawWork(own.id, own.key);
    expect(work).toMatchObject({ type: 'work', state: 'queued', data: { type: 'session', id }, acknowledged_at: null });
    const empty = await client.api(`/v1/environments/${own.id}/work/poll`, bearer(own.key));
    expect([empty.status, empty.headers.get('content-type'), await empty.text()]).toEqual([
      200,
      expect.stringContaining('json'),
      'null',
    ]);
    // Before it is acknowledged its token opens nothing.
    expect((await client.api(`/v1/sessions/${id}`, bearer(token))).status).toBe(403);
    const post = <T>(verb: string, key = token) =>
      client.json<T>(workPath(work, verb), { method: 'POST', ...bearer(key) });
    expect(await post<Work>('/ack', own.key)).toMatchObject({ state: 'starting', acknowledged_at: expect.any(String) });
    expect(await post<Work>('/ack', own.key)).toMatchObject({ state: 'starting', secret: null });
    const beat = (expected: string, headers: Record<string, string> = {}) =>
      client.api(workPath(work, `/heartbeat?expected_last_heartbeat=${encodeURIComponent(expected)}`), {
        method: 'POST',
        headers: { ...bearer(token).headers, ...headers },
      });
    const first = (await (await beat('NO_HEARTBEAT')).json()) as WorkHeartbeat;
    expect(first).toMatchObject({ type: 'work_heartbeat', lease_extended: true, state: 'active', ttl_seconds: 3 });
    const second = (await (await beat(first.last_heartbeat)).json()) as WorkHeartbeat;
    // The SDK's repeat of a heartbeat whose answer was lost is no loss of the lease.
    const repeated = await beat(first.last_heartbeat, { 'x-stainless-retry-count': '1' });
    expect(await repeated.json()).toEqual(second);
    const stale = await beat(first.last_heartbeat);
    expect([stale.status, await stale.json()]).toEqual([
      412,
      expect.objectContaining({
        error: {
          type: 'invalid_request_error',
          message: expect.any(String),
          details: {
            error_code: 'heartbeat_precondition_failed',
            current_state: {
              last_heartbeat: second.last_heartbeat,
              lease_extended: false,
              state: 'active',
              ttl_seconds: 3,
            },
          },
        },
      }),
    ]);
    const sdk = new Anthropic({ apiKey: platform.apiKey, baseURL: platform.apiUrl });
    const works = sdk.beta.environments.work;
    const at = { environment_id: own.id };
    expect(await works.update(work.id, { ...at, metadata: { team: 'blue' } })).toMatchObject({
      metadata: { team: 'blue' },
    });
    expect(await works.retrieve(work.id, at)).toMatchObject({ id: work.id, state: 'active', secret: null });
    expect(await works.stop(work.id, at)).toMatchObject({ state: 'stopping', stop_requested_at: expect.any(String) });
    expect(await (await beat(second.last_heartbeat)).json()).toMatchObject({
      state: 'stopping',
      lease_extended: false,
    });
    expect(await post<Work>('/stop')).toMatchObject({ state: 'stopped', stopped_at: expect.any(String) });
    expect(await post<Work>('/stop')).toMatchObject({ state: 'stopped' });
    expect(await (await beat(second.last_heartbeat)).json()).toMatchObject({ state: 'stopped', lease_extended: false });
    expect((await client.api(`/v1/sessions/${id}`, bearer(token))).status).toBe(403);
    const environment = new Anthropic({ apiKey: null, authToken: own.key, baseURL: platform.apiUrl });
    const listed: string[] = [];
    for await (const one of environment.beta.environments.work.list(own.id, { limit: 1 })) listed.push(one.id);
    expect(listed).toEqual([work.id]);
    expect(await works.stats(own.id)).toMatchObject({ type: 'work_queue_stats', workers_polling: 0 });
  }, 30_000);

  it('that nobody acknowledges are handed out anew, and the old one is refused', async () => {
    const { id, key } = await newEnvironment();
    await waiting(await newSession('RUN[x]', undefined, id));
    const { work } = await rawWork(id, key);
    const again = await client.json<Work>(`/v1/environments/${id}/work/poll?reclaim_older_than_ms=0`, bearer(key));
    expect(again).toMatchObject({ data: work.data, state: 'queued' });
    expect(again.id).not.toBe(work.id);
    const late = await client.api(workPath(work, '/ack'), { method: 'POST', ...bearer(key) });
    expect([late.status, late.headers.get('x-should-retry')]).toEqual([409, 'false']);
    for (const block of ['0', '1000'])
      expect((await client.api(`/v1/environments/${id}/work/poll?block_ms=${block}`, bearer(key))).status).toBe(400);
  }, 30_000);

  it('of many workers at once are each of another session', async () => {
    const { id, key } = await newEnvironment();
    const sessions = await Promise.all(Array.from({ length: 8 }, () => newSession('RUN[x]', undefined, id)));
    await Promise.all(sessions.map(waiting));
    const taken = await Promise.all(sessions.map(() => rawWork(id, key)));
    expect(new Set(taken.map(({ work }) => work.data.id))).toEqual(new Set(sessions));
  }, 60_000);

  it('carry a token that opens its session, and nothing else, for as long as the lease stands', async () => {
    const { id, key } = await newEnvironment();
    const [session, other] = [await newSession('RUN[x]', undefined, id), await newSession('hello', undefined, id)];
    const message = await waiting(session);
    const { work, token } = await rawWork(id, key);
    await client.json(workPath(work, '/ack'), { method: 'POST', ...bearer(key) });
    const status = async (path: string, options: RequestOptions = {}, credential = token): Promise<number> =>
      (await client.api(path, { ...options, ...bearer(credential) })).status;
    expect(await status(`/v1/sessions/${session}`)).toBe(200);
    expect(await status(`/v1/sessions/${session}/events?limit=1000`)).toBe(200);
    const events = `/v1/sessions/${session}/events`;
    expect(await status(events, { json: { events: [userMessage('hi')] } })).toBe(403);
    expect(await status(events, { json: { events: [{ type: 'user.interrupt' }] } })).toBe(403);
    expect(await status(`/v1/sessions/${other}`)).toBe(404);
    expect(await status(`/v1/sessions/${other}/events`)).toBe(404);
    for (const path of [
      '/v1/sessions',
      '/v1/agents',
      '/v1/x/api_keys',
      '/v1/x/me',
      `/v1/environments/${id}`,
      '/v1/skills',
    ])
      expect([path, await status(path), await status(path, {}, key)]).toEqual([path, 403, 403]);
    expect(await status(`/v1/sessions/${session}/archive`, { method: 'POST' })).toBe(403);
    expect(await status(`/v1/sessions/${session}`, {}, key)).toBe(403);
    expect(await status(`/v1/environments/${environmentId}/work/poll`, {}, key)).toBe(404);
    expect(await status(`/v1/environments/${id}/work/poll`)).toBe(403);
    expect(await status(`/v1/environments/${id}/work/poll`, {}, platform.apiKey)).toBe(403);
    expect(await status(`/v1/environments/${id}/work`, {}, platform.apiKey)).toBe(403);
    const stored = await platform.query('select k::text as row from api_keys k');
    const logs = ['gateway-api', 'session'].map((name) => platform.log(name));
    for (const secret of [token, key, work.secret ?? '']) {
      expect(stored.some(({ row }) => String(row).includes(secret))).toBe(false);
      expect(logs.some((log) => log.includes(secret))).toBe(false);
    }
    // Its open stream ends with its lease, before the next worker could be shown what it would run.
    const frames = client.frames(
      `${events}/stream`,
      (all) => all.some(({ event }) => event === 'error'),
      bearer(token).headers,
    );
    const seen = await frames;
    expect(seen.at(-1)).toMatchObject({ event: 'error', data: { error: { type: 'authentication_error' } } });
    expect(await status(`/v1/sessions/${session}`)).toBe(403);
    expect(message).toMatchObject({ stop_reason: { type: 'requires_action' } });
  }, 60_000);

  it('end with their environment’s key', async () => {
    const { id, key } = await newEnvironment();
    const session = await newSession('RUN[x]', undefined, id);
    await waiting(session);
    const { work, token } = await rawWork(id, key);
    await client.json(workPath(work, '/ack'), { method: 'POST', ...bearer(key) });
    const keys = await client.json<{ data: EnvironmentKeyResource[] }>(`/v1/x/environments/${id}/keys`);
    expect(keys.data).toMatchObject([{ type: 'environment_key', environment_id: id, revoked_at: null }]);
    const revoked = await client.json(`/v1/x/api_keys/${keys.data[0]?.id}/revoke`, { method: 'POST' });
    expect(revoked).toMatchObject({ type: 'environment_key', revoked_at: expect.any(String) });
    for (const credential of [key, token])
      expect((await client.api(`/v1/environments/${id}/work/poll`, bearer(credential))).status).toBe(401);
    expect((await client.api(`/v1/sessions/${session}`, bearer(token))).status).toBe(401);
  }, 30_000);
});

describe('a self_hosted environment', () => {
  it('is that and nothing more, keeps its type, and has keys where a cloud one has none', async () => {
    const { id } = await newEnvironment();
    const environment = await client.json<{ config: object }>(`/v1/environments/${id}`);
    expect(environment.config).toEqual({ type: 'self_hosted' });
    const changed = await client.api(`/v1/environments/${id}`, { json: { config: { type: 'cloud' } } });
    expect([changed.status, await changed.text()]).toEqual([
      400,
      expect.stringContaining('invalid_config_type_change'),
    ]);
    expect(await client.json(`/v1/environments/${id}`, { json: { description: 'ours' } })).toMatchObject({
      config: { type: 'self_hosted' },
      description: 'ours',
    });
    const extra = { name: 'x', config: { type: 'self_hosted', x_sandbox: {} } };
    expect((await client.api('/v1/environments', { json: extra })).status).toBe(400);
    const { data } = await client.json<{ data: { id: string; config: { type: string } }[] }>('/v1/environments');
    const cloud = data.find(({ config }) => config.type === 'cloud');
    const refused = await client.api(`/v1/x/environments/${cloud?.id}/keys`, { json: { name: 'x' } });
    expect([refused.status, await refused.text()]).toEqual([
      400,
      expect.stringContaining('environment.not-self-hosted'),
    ]);
    const agent = await client.json<{ id: string }>('/v1/agents', { json: { name: 'spec', model: 'demo' } });
    const shared = { agent: agent.id, environment_id: id, x_context_key: 'k' };
    expect((await client.api('/v1/sessions', { json: shared })).status).toBe(400);
  }, 30_000);
});

async function python(environment: 'anthropic-1' | 'anthropic-2') {
  return { command: await pythonEnvironment(environment), args: ['-I', PYTHON_WORKER] };
}
