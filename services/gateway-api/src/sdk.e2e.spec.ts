import { setTimeout as sleep } from 'node:timers/promises';
import Anthropic from '@anthropic-ai/sdk';
import {
  type Frame,
  type RequestOptions,
  startPlatform,
  TestClient,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import Anthropic0 from 'anthropic-sdk-0';

let platform: TestPlatform;
beforeAll(async () => {
  platform = await startPlatform({ SANDBOX_WAIT_MS: '2000' });
}, 240_000);
afterAll(async () => {
  await platform.stop();
}, 60_000);

const api: TestClient['api'] = (path, options) => new TestClient(platform).api(path, options);
const frames: TestClient['frames'] = (...args) => new TestClient(platform).frames(...args);

describe.each([
  ['@anthropic-ai/sdk 1.x', () => new Anthropic({ apiKey: platform.apiKey, baseURL: platform.apiUrl })],
  [
    '@anthropic-ai/sdk 0.137',
    () => new Anthropic0({ apiKey: platform.apiKey, baseURL: platform.apiUrl }) as unknown as Anthropic,
  ],
])('%s, unmodified', (_name, connect) => {
  it('creates, streams, confirms, answers custom tools, interrupts, lists, archives and deletes', async () => {
    const { beta } = connect();
    const agent = await beta.agents.create({
      name: 'spec',
      model: 'demo',
      tools: [
        { type: 'agent_toolset_20260401', configs: [{ name: 'bash', permission_policy: { type: 'always_ask' } }] },
        { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object', properties: {} } },
      ],
    });
    expect(agent).toMatchObject({ type: 'agent', version: 1, model: { id: 'demo' } });
    const environment = await beta.environments.create({ name: `env-${agent.id}` });
    const session = await beta.sessions.create({
      agent: agent.id,
      environment_id: environment.id,
      title: 't',
      metadata: { k: 'v' },
    });
    expect(session).toMatchObject({ status: 'idle', title: 't', metadata: { k: 'v' } });

    const seen: string[] = [];
    const deltas: string[] = [];
    const turn = async (text: string): Promise<Record<string, unknown>[]> => {
      const stream = await beta.sessions.events.stream(session.id, { event_deltas: ['agent.message'] });
      await beta.sessions.events.send(session.id, { events: [userMessage(text)] });
      const events: Record<string, unknown>[] = [];
      for await (const event of stream) {
        events.push(event as unknown as Record<string, unknown>);
        seen.push(event.type);
        if (event.type === 'event_delta') deltas.push((event.delta as { content: { text: string } }).content.text);
        if (event.type === 'session.status_idle') break;
      }
      return events;
    };
    const hello = await turn('SLOW[4]');
    expect(deltas.join('')).toBe('word1 word2 word3 word4');
    expect(hello.at(-1)).toMatchObject({ type: 'session.status_idle', stop_reason: { type: 'end_turn' } });
    expect(hello.filter(({ type }) => type === 'user.message')).toMatchObject([
      { processed_at: null },
      { processed_at: expect.any(String) },
    ]);

    const gated = await turn('RUN[echo hi]');
    const call = gated.find(({ type }) => type === 'agent.tool_use') as { id: string };
    expect(gated.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call.id] } });
    await beta.sessions.events.send(session.id, {
      events: [{ type: 'user.tool_confirmation', tool_use_id: call.id, result: 'deny', deny_message: 'not now' }],
    });
    await idle(beta, session.id);

    const asked = await turn('ASK[lookup]');
    const custom = asked.find(({ type }) => type === 'agent.custom_tool_use') as { id: string };
    await beta.sessions.events.send(session.id, {
      events: [
        {
          type: 'user.custom_tool_result',
          custom_tool_use_id: custom.id,
          content: [{ type: 'text', text: 'forty-two' }],
        },
      ],
    });
    await idle(beta, session.id);

    await beta.sessions.events.send(session.id, { events: [userMessage('SLOW[100]')] });
    await sleep(300);
    await beta.sessions.events.send(session.id, { events: [{ type: 'user.interrupt' }] });
    await idle(beta, session.id);

    const types: string[] = [];
    const ids = new Set<string>();
    for await (const event of beta.sessions.events.list(session.id, { limit: 7 })) {
      types.push(event.type);
      ids.add(event.id);
    }
    expect(ids.size).toBe(types.length);
    expect(types.filter((type) => type === 'user.message')).toHaveLength(4);
    expect(types.at(-1)).toBe('session.status_idle');
    const answers: unknown[] = [];
    for await (const event of beta.sessions.events.list(session.id, { types: ['agent.message'], order: 'desc' }))
      answers.push(event);
    expect(JSON.stringify(answers[0])).toMatch(/forty-two/);
    expect(JSON.stringify(answers)).toMatch(/not now/);

    const sessions: string[] = [];
    for await (const one of beta.sessions.list({ agent_id: agent.id, statuses: ['idle'], limit: 1 }))
      sessions.push(one.id);
    expect(sessions).toEqual([session.id]);
    expect(await beta.agents.update(agent.id, { version: 1, name: 'renamed' })).toMatchObject({ version: 2 });
    await expect(beta.agents.update(agent.id, { version: 1, name: 'x' })).rejects.toMatchObject({ status: 409 });
    expect(await beta.sessions.archive(session.id)).toMatchObject({ status: 'terminated' });
    expect(await beta.sessions.delete(session.id)).toEqual({ id: session.id, type: 'session_deleted' });
    await expect(beta.sessions.retrieve(session.id)).rejects.toMatchObject({ status: 404 });
    expect((await beta.agents.archive(agent.id)).archived_at).not.toBeNull();
    expect(await beta.environments.delete(environment.id)).toMatchObject({ type: 'environment_deleted' });
    const models: string[] = [];
    for await (const model of beta.models.list()) models.push(model.id);
    expect(models).toEqual(['demo']);
  }, 90_000);
});

async function idle(beta: Anthropic['beta'], id: string): Promise<void> {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; await sleep(30)) {
    if ((await beta.sessions.retrieve(id)).status === 'idle') return;
  }
  throw new Error('not idle in time');
}

async function newSession(prompt?: string): Promise<string> {
  const agent = (await (await api('/v1/agents', { json: { name: 'raw', model: 'demo' } })).json()) as { id: string };
  const made = await api('/api/sessions', {
    json: { agent_id: agent.id, ...(prompt === undefined ? {} : { prompt }) },
  });
  expect(made.status).toBe(200);
  return ((await made.json()) as { id: string }).id;
}
const isIdle = (all: readonly Frame[]): boolean => all.at(-1)?.event === 'session.status_idle';

describe('streams', () => {
  it('replay from any cursor: the rest of the log’s wire projection, no gap, no double', async () => {
    const id = await newSession('SLOW[3]');
    const all = await frames(`/v1/sessions/${id}/events/stream?after=0`, isIdle);
    const versions = all.filter((frame) => frame.id !== null).map((frame) => frame.id as number);
    expect(versions).toEqual([...versions].sort((a, b) => a - b));
    expect(new Set(versions).size).toBe(versions.length);
    for (const cursor of versions.slice(0, -1)) {
      const rest = await frames(`/v1/sessions/${id}/events/stream`, isIdle, { 'last-event-id': String(cursor) });
      expect(rest).toEqual(all.filter((frame) => (frame.id ?? 0) > cursor));
    }
    const first = all[0]?.data.id ?? '';
    const after = await frames(`/v1/sessions/${id}/events/stream?after=${first}`, isIdle);
    expect(after).toEqual(all.slice(1));
    for (const bad of ['999999', 'abc', '-1', 'sevt_ffffffffffffffffffffffffffffffff']) {
      expect((await api(`/v1/sessions/${id}/events/stream?after=${bad}`)).status).toBe(400);
    }
  }, 60_000);

  it('send the open message’s text so far to whoever joins', async () => {
    const id = await newSession('SLOW[15]');
    await sleep(700);
    const late = await frames(`/v1/sessions/${id}/events/stream?after=0&event_deltas[]=agent.message`, isIdle);
    const text = late
      .filter((frame) => frame.event === 'event_delta')
      .map((frame) => (frame.data as unknown as { delta: { content: { text: string } } }).delta.content.text);
    const message = late.find((frame) => frame.event === 'agent.message');
    expect(text.length).toBeGreaterThan(2);
    expect(message?.data.content?.[0]?.text.startsWith(text.join(''))).toBe(true);
    expect(text.join('').startsWith('word1 word2')).toBe(true);
    expect(late.filter((frame) => frame.event === 'event_start')).toHaveLength(1);
  }, 60_000);

  it('go on after the gateway and the session service were killed', async () => {
    const id = await newSession('SLOW[20]');
    await sleep(500);
    platform.kill('session');
    await sleep(300);
    platform.kill('gateway-api');
    await waitReady();
    const all = await frames(`/v1/sessions/${id}/events/stream?after=0`, isIdle);
    expect(all.filter((frame) => frame.event === 'agent.message')).toHaveLength(1);
    expect(all.at(-1)?.data).toMatchObject({ stop_reason: { type: 'end_turn' } });
  }, 90_000);
});

async function waitReady(): Promise<void> {
  for (const deadline = Date.now() + 30_000; Date.now() < deadline; await sleep(100)) {
    if ((await fetch(`${platform.apiUrl}/readyz`).catch(() => null))?.ok === true) return;
  }
  throw new Error('not ready in time');
}

describe('requests that are wrong', () => {
  it('get the envelope with a 4xx', async () => {
    const id = await newSession();
    const cases: [string, RequestOptions, number][] = [
      ['/v1/agents', { method: 'POST', body: '{"name":' }, 400],
      ['/v1/agents', { json: { name: 'x', model: 'demo', nonsense: 1 } }, 400],
      ['/v1/agents', { json: { name: 'x', model: 'gpt-none' } }, 400],
      ['/v1/agents', { json: { name: 'a\u0000b', model: 'demo' } }, 400],
      ['/v1/agents', { method: 'POST', body: '{"__proto__":{"name":"x"}}' }, 400],
      [
        '/v1/agents',
        {
          json: {
            name: 'x',
            model: 'demo',
            tools: [{ type: 'agent_toolset_20260401', configs: [{ name: 'web_search', enabled: true }] }],
          },
        },
        400,
      ],
      [`/v1/sessions/${id}/events`, { json: { events: [] } }, 400],
      [`/v1/sessions/${id}/events`, { json: { events: [{ type: 'user.define_outcome', description: 'x' }] } }, 400],
      ['/v1/sessions/sesn_none/events', { json: { events: [userMessage('x')] } }, 404],
      ['/v1/sessions?limit=1000', {}, 400],
      ['/v1/sessions?page=garbage', {}, 400],
      ['/v1/nothing', {}, 404],
      ['/v1/agents', { headers: { 'x-api-key': 'hf_wrong' } }, 401],
    ];
    for (const [path, init, status] of cases) {
      const response = await api(path, init);
      expect([path, response.status]).toEqual([path, status]);
      expect(await response.json()).toMatchObject({
        type: 'error',
        request_id: response.headers.get('request-id'),
        error: { type: expect.any(String), message: expect.any(String) },
      });
    }
    const unknown = await (await api('/v1/agents', { json: { name: 'x', model: 'gpt-none' } })).text();
    expect(unknown).toMatch(/demo/);
  }, 30_000);

  it('store a retried send once', async () => {
    const id = await newSession();
    const body = { events: [userMessage('only once')] };
    const post = (retry: number) =>
      api(`/v1/sessions/${id}/events`, { json: body, headers: { 'x-stainless-retry-count': String(retry) } }).then(
        (response) => response.json(),
      );
    const first = await post(0);
    expect(await post(1)).toEqual(first);
    const list = (await (await api(`/v1/sessions/${id}/events?types[]=user.message`)).json()) as { data: unknown[] };
    expect(list.data).toHaveLength(1);
  }, 30_000);
});

describe('keys', () => {
  it('are shown once, revoked for good, and close their streams', async () => {
    const made = (await (await api('/v1/x/api_keys', { json: { name: 'second' } })).json()) as {
      id: string;
      key: string;
    };
    const id = await newSession();
    const listed = await (await api('/v1/x/api_keys')).text();
    expect(listed).not.toContain(made.key);
    const stream = frames(`/v1/sessions/${id}/events/stream`, (all) => all.at(-1)?.event === 'error', {
      'x-api-key': made.key,
    });
    await sleep(300);
    expect((await api(`/v1/x/api_keys/${made.id}/revoke`, { method: 'POST' })).status).toBe(200);
    expect((await stream).at(-1)?.event).toBe('error');
    expect((await api('/v1/agents', { headers: { 'x-api-key': made.key } })).status).toBe(401);
  }, 30_000);

  it('sign in through a link once', async () => {
    const link = (await (await api('/v1/x/sign_in_links', { method: 'POST' })).json()) as { token: string };
    const redeem = () =>
      fetch(`${platform.apiUrl}/v1/x/dashboard_sessions`, {
        method: 'POST',
        body: JSON.stringify({ link_token: link.token }),
      });
    const answers = await Promise.all([redeem(), redeem()]);
    expect(answers.map((answer) => answer.status).sort((a, b) => a - b)).toEqual([200, 401]);
    const { token } = (await answers.find((answer) => answer.ok)?.json()) as { token: string };
    expect(await (await api('/v1/x/me', { headers: { 'x-api-key': token } })).json()).toMatchObject({
      kind: 'dashboard',
    });
    expect((await api('/v1/agents', { headers: { 'x-api-key': link.token } })).status).toBe(401);
    expect(JSON.stringify(await (await api('/v1/x/status')).json())).toMatch(/session/);
    expect(((await (await api('/openapi.json')).json()) as { openapi: string }).openapi).toBe('3.1.0');
  }, 30_000);
});
