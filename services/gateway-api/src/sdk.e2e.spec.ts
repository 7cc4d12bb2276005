import { createReadStream, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import Anthropic from '@anthropic-ai/sdk';
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema';
import { accumulateManagedAgentsEvent as accumulate } from '@anthropic-ai/sdk/lib/sessions/accumulate';
import {
  type Frame,
  type RequestOptions,
  startMcpServer,
  startPlatform,
  TestClient,
  type TestMcpServer,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import Anthropic0 from 'anthropic-sdk-0';
import { accumulateManagedAgentsEvent as accumulate0 } from 'anthropic-sdk-0/lib/sessions/accumulate';
import { z } from 'zod';

let platform: TestPlatform;
let tracker: TestMcpServer;
beforeAll(async () => {
  tracker = await startMcpServer((server) => {
    const inputSchema = z.object({ question: z.string() });
    server.registerTool('find', { description: 'finds tickets', inputSchema }, () => ({
      content: [
        { type: 'text', text: 'TICKET-7' },
        { type: 'image', mimeType: 'image/png', data: 'A'.repeat(100_000) },
      ],
    }));
  });
  platform = await startPlatform({ MCP_ALLOW_PRIVATE: tracker.host });
}, 240_000);
afterAll(async () => {
  await platform.stop();
  await tracker.stop();
}, 60_000);

const api: TestClient['api'] = (path, options) => new TestClient(platform).api(path, options);
const frames: TestClient['frames'] = (...args) => new TestClient(platform).frames(...args);

const said = (text: string) => [{ type: 'text' as const, text }];
const words = (event: SdkEvent | undefined): string =>
  ((event as { content?: { text?: string }[] } | undefined)?.content ?? []).map((block) => block.text).join('');
type SdkEvent = Anthropic.Beta.Sessions.BetaManagedAgentsStreamSessionEvents;
const ofType = <T extends SdkEvent['type']>(events: readonly SdkEvent[], type: T) =>
  events.filter((event): event is Extract<SdkEvent, { type: T }> => event.type === type);

// The two majors speak different dialects; their types of this API agree.
describe.each<[string, typeof Anthropic, typeof accumulate]>([
  ['@anthropic-ai/sdk 1.x', Anthropic, accumulate],
  ['@anthropic-ai/sdk 0.137', Anthropic0 as unknown as typeof Anthropic, accumulate0 as typeof accumulate],
])('%s, unmodified,', (_name, Sdk, fold) => {
  let client: Anthropic;
  let beta: Anthropic['beta'];
  let agent: Anthropic.Beta.BetaManagedAgentsAgent;
  let environment: Anthropic.Beta.BetaEnvironment;
  let session: Anthropic.Beta.BetaManagedAgentsSession;
  beforeAll(async () => {
    client = new Sdk({ apiKey: platform.apiKey, baseURL: platform.apiUrl });
    beta = client.beta;
    agent = await beta.agents.create({
      name: 'spec',
      model: 'demo',
      tools: [
        { type: 'agent_toolset_20260401', configs: [{ name: 'bash', permission_policy: { type: 'always_ask' } }] },
        { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object', properties: {} } },
      ],
    });
    environment = await beta.environments.create({ name: `env-${agent.id}` });
    const ids = { agent: agent.id, environment_id: environment.id };
    session = await beta.sessions.create({ ...ids, title: 't', metadata: { k: 'v' } });
  });

  it('has an agent use a tool of an MCP server once it allowed that, and sees all of the result', async () => {
    const owner = await beta.agents.create({
      name: 'mcp',
      model: 'demo',
      mcp_servers: [{ type: 'url', name: 'tracker', url: tracker.url }],
      tools: [{ type: 'mcp_toolset', mcp_server_name: 'tracker' }],
    });
    expect(owner.tools).toMatchObject([{ default_config: { permission_policy: { type: 'always_ask' } }, configs: [] }]);
    const at = await beta.sessions.create({ agent: owner.id, environment_id: environment.id });
    const stream = await beta.sessions.events.stream(at.id);
    await beta.sessions.events.send(at.id, { events: [userMessage('ASK[mcp__tracker__find]')] });
    const [use] = ofType(await untilIdle(stream), 'agent.mcp_tool_use');
    expect(use).toMatchObject({ mcp_server_name: 'tracker', name: 'find', evaluated_permission: 'ask' });
    const rest = await beta.sessions.events.stream(at.id);
    await beta.sessions.events.send(at.id, {
      events: [{ type: 'user.tool_confirmation', tool_use_id: use?.id ?? '', result: 'allow' }],
    });
    const events = await untilIdle(rest);
    expect(ofType(events, 'agent.mcp_tool_result')).toMatchObject([
      {
        mcp_tool_use_id: use?.id,
        is_error: false,
        content: [{ text: 'TICKET-7' }, { source: { type: 'base64', data: expect.stringMatching(/^A{100000}$/) } }],
      },
    ]);
    // The demo model repeats what it is told last: the picture, which follows the result's text.
    expect(words(ofType(events, 'agent.message')[0])).toContain(`Part of the result of ${use?.id}`);
    const listed = await beta.sessions.events.list(at.id, { types: ['agent.mcp_tool_use', 'agent.mcp_tool_result'] });
    expect(listed.data.map((event) => event.type)).toEqual(['agent.mcp_tool_use', 'agent.mcp_tool_result']);
    await beta.sessions.delete(at.id);
  });

  it('sees that the model thinks, without a word of it where it did not ask for ours', async () => {
    const owner = await beta.agents.create({ name: 'thinker', model: 'demo-thinking' });
    const at = await beta.sessions.create({ agent: owner.id, environment_id: environment.id });
    const wanted: ('agent.message' | 'agent.thinking')[] = ['agent.message', 'agent.thinking'];
    const stream = await beta.sessions.events.stream(at.id, { event_deltas: wanted });
    await beta.sessions.events.send(at.id, { events: [userMessage('THINK[step by step] SLOW[3]')] });
    const events = await untilIdle(stream);
    const thought = ofType(events, 'agent.thinking')[0];
    const began = ofType(events, 'event_start').map(({ event }) => event);
    expect(began.find(({ type }) => type === 'agent.thinking')?.id).toBe(thought?.id);
    const told = ofType(events, 'event_delta').map((delta) => delta.event_id);
    expect(told).not.toContain(thought?.id);
    let folded: ReturnType<typeof fold>;
    for (const event of events) folded = fold(folded, event);
    expect(words(folded as SdkEvent)).toBe('word1 word2 word3');
  });

  const send = (...events: Anthropic.Beta.Sessions.EventSendParams['events']) =>
    beta.sessions.events.send(session.id, { events });
  const untilIdle = async (stream: AsyncIterable<SdkEvent>): Promise<SdkEvent[]> => {
    const events: SdkEvent[] = [];
    for await (const event of stream) {
      events.push(event);
      if (event.type === 'session.status_idle') return events;
    }
    throw new Error(`the stream ended after ${events.map((event) => event.type).join(', ')}`);
  };
  /** Sends events; what the stream shows until the session is idle again. */
  const turn = async (...events: Anthropic.Beta.Sessions.EventSendParams['events']): Promise<SdkEvent[]> => {
    const stream = await beta.sessions.events.stream(session.id, { event_deltas: ['agent.message'] });
    await send(...events);
    return untilIdle(stream);
  };
  async function all<T>(pages: AsyncIterable<T>): Promise<T[]> {
    const items: T[] = [];
    for await (const item of pages) items.push(item);
    return items;
  }

  it('lists models, page by page, and retrieves one', async () => {
    const models = await all(beta.models.list({ limit: 1 }));
    expect(models).toMatchObject(['demo', 'demo-thinking'].map((id) => ({ id, type: 'model', lifecycle: 'active' })));
    expect(await beta.models.retrieve('demo')).toEqual(models[0]);
  });

  it('creates, changes, lists and archives agents and their versions', async () => {
    const made = await beta.agents.create({ name: 'first', model: { id: 'demo' }, metadata: { team: 'blue' } });
    expect(made).toMatchObject({ type: 'agent', version: 1, model: { id: 'demo' }, execution_identity: {} });
    const changed = await beta.agents.update(made.id, { version: 1, name: 'second', tools: agent.tools });
    expect(changed).toMatchObject({ version: 2, name: 'second', tools: agent.tools, metadata: { team: 'blue' } });
    expect(await beta.agents.retrieve(made.id)).toEqual(changed);
    expect(await beta.agents.retrieve(made.id, { version: 1 })).toEqual(made);
    const versions = await all(beta.agents.versions.list(made.id, { limit: 1 }));
    expect(versions.map((one) => one.version)).toEqual([2, 1]);
    const listed = (await all(beta.agents.list({ limit: 1 }))).map((one) => one.id);
    expect(listed).toEqual(expect.arrayContaining([made.id, agent.id]));
    expect(new Set(listed).size).toBe(listed.length);
    expect((await beta.agents.archive(made.id)).archived_at).not.toBeNull();
    expect((await all(beta.agents.list())).map((one) => one.id)).not.toContain(made.id);
    expect((await all(beta.agents.list({ include_archived: true }))).map((one) => one.id)).toContain(made.id);
  });

  it('creates, changes, lists, archives and deletes environments', async () => {
    const networking = { type: 'limited' as const, allowed_hosts: ['example.com'] };
    const made = await beta.environments.create({ name: `more-${agent.id}`, config: { type: 'cloud', networking } });
    expect(made.config).toMatchObject({ type: 'cloud', networking });
    const changed = await beta.environments.update(made.id, { description: 'for a spec' });
    // What the contract does not know goes through the SDK and comes back, also when its own answer is sent again.
    const x_sandbox = { pool_size: 2, node_selector: { disk: 'ssd' } };
    const pooled = await beta.environments.update(made.id, { config: { type: 'cloud', x_sandbox } as never });
    expect(pooled.config).toMatchObject({ networking, x_sandbox: { ...x_sandbox, image: null, workspace: 'volume' } });
    expect(await beta.environments.update(made.id, { config: pooled.config as never })).toEqual(pooled);
    expect(await beta.environments.update(made.id, { config: { type: 'cloud', x_sandbox: null } as never })).toEqual({
      ...changed,
      updated_at: expect.any(String),
    });
    expect((await beta.environments.retrieve(made.id)).config).toEqual(changed.config);
    const listed = await all(beta.environments.list({ limit: 1 }));
    expect(listed.map((one) => one.id)).toEqual(expect.arrayContaining([made.id, environment.id]));
    expect((await beta.environments.archive(made.id)).archived_at).not.toBeNull();
    await expect(beta.environments.update(made.id, { name: 'late' })).rejects.toMatchObject({ status: 400 });
    expect(await beta.environments.delete(made.id)).toEqual({ id: made.id, type: 'environment_deleted' });
    await expect(beta.environments.retrieve(made.id)).rejects.toBeInstanceOf(Sdk.NotFoundError);
  });

  it('retrieves and changes a session', async () => {
    expect(session).toMatchObject({ status: 'idle', title: 't', metadata: { k: 'v' }, agent: { version: 1 } });
    const changed = await beta.sessions.update(session.id, { title: 'new', metadata: { k: null, l: 'w' } });
    expect(changed).toMatchObject({ title: 'new', metadata: { l: 'w' } });
    expect(await beta.sessions.retrieve(session.id)).toMatchObject({
      id: session.id,
      title: 'new',
      agent: session.agent,
    });
  });

  it('streams a turn; its deltas add up to the message', async () => {
    const events = await turn(userMessage('SLOW[4]'));
    expect(ofType(events, 'user.message')).toMatchObject([
      { processed_at: null },
      { processed_at: expect.any(String) },
    ]);
    const [message] = ofType(events, 'agent.message');
    expect(words(message)).toBe('word1 word2 word3 word4');
    let snapshot: ReturnType<typeof fold>;
    for (const event of events.slice(
      0,
      events.findIndex((one) => one.type === 'agent.message'),
    ))
      snapshot = fold(snapshot, event);
    expect(snapshot).toMatchObject({ id: message?.id, content: said('word1 word2 word3 word4') });
    expect(events.at(-1)).toMatchObject({ type: 'session.status_idle', stop_reason: { type: 'end_turn' } });
  });

  it('allows a call that must be asked for: it runs', async () => {
    const asked = await turn(userMessage('RUN[echo $((40 + 2))]'));
    const [call] = ofType(asked, 'agent.tool_use');
    expect(call).toMatchObject({ name: 'bash', input: { command: 'echo $((40 + 2))' }, evaluated_permission: 'ask' });
    expect(asked.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    const events = await turn({ type: 'user.tool_confirmation', tool_use_id: call?.id ?? '', result: 'allow' });
    expect(ofType(events, 'agent.tool_result')).toMatchObject([{ tool_use_id: call?.id, is_error: false }]);
    expect(words(ofType(events, 'agent.message')[0])).toMatch(/42/);
  });

  it('denies a call: it does not run, and the model is told why', async () => {
    const [call] = ofType(await turn(userMessage('RUN[echo hi]')), 'agent.tool_use');
    const id = call?.id ?? '';
    const deny = { type: 'user.tool_confirmation' as const, tool_use_id: id, result: 'deny' as const };
    const events = await turn({ ...deny, deny_message: 'not now' });
    expect(ofType(events, 'agent.tool_result')).toMatchObject([{ tool_use_id: id, is_error: true }]);
    expect(words(ofType(events, 'agent.message')[0])).toMatch(/not now/);
  });

  it('answers a custom tool', async () => {
    const asked = await turn(userMessage('ASK[lookup]'));
    const [call] = ofType(asked, 'agent.custom_tool_use');
    expect(asked.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    const content = said('forty-two');
    const events = await turn({ type: 'user.custom_tool_result', custom_tool_use_id: call?.id ?? '', content });
    expect(words(ofType(events, 'agent.message')[0])).toMatch(/forty-two/);
  });

  it('lets its tool runner answer custom tools', async () => {
    const asked: unknown[] = [];
    const lookup = betaTool({
      name: 'lookup',
      description: 'looks up',
      inputSchema: { type: 'object', properties: { question: { type: 'string' } }, required: ['question'] },
      run: (input) => {
        asked.push(input);
        return 'from the runner';
      },
    });
    await send(userMessage('ASK[lookup] and ASK[lookup]'));
    const calls = await all(beta.sessions.events.toolRunner(session.id, { tools: [lookup], maxIdleMs: 500 }));
    // It also shows the calls that the platform ran, as not its own.
    const own = calls.filter((call) => call.posted);
    expect(own).toMatchObject([
      { name: 'lookup', isError: false },
      { name: 'lookup', isError: false },
    ]);
    expect(asked).toEqual(Array(2).fill({ question: 'ASK[lookup] and ASK[lookup]' }));
    const [newest] = await all(beta.sessions.events.list(session.id, { types: ['agent.message'], order: 'desc' }));
    expect(words(newest)).toMatch(/from the runner/);
  });

  it('interrupts a turn; nothing follows its end', async () => {
    const stream = await beta.sessions.events.stream(session.id, { event_deltas: ['agent.message'] });
    await send(userMessage('SLOW[100]'));
    for await (const event of stream) {
      if (event.type !== 'event_delta') continue;
      await send({ type: 'user.interrupt' });
      break;
    }
    await idle(beta, session.id);
    await sleep(300);
    const newest = await beta.sessions.events.list(session.id, { order: 'desc', limit: 3 });
    expect(newest.data.map((event) => event.type)).toEqual([
      'session.status_idle',
      'span.model_request_end',
      'user.interrupt',
    ]);
    expect(newest.data[0]).toMatchObject({ stop_reason: { type: 'end_turn' } });
  });

  it('lists events page by page, either way round, and by type', async () => {
    const events = await all(beta.sessions.events.list(session.id, { limit: 7 }));
    const ids = events.map((event) => event.id);
    expect(ids.length).toBeGreaterThan(14);
    expect(new Set(ids).size).toBe(ids.length);
    const back = await all(beta.sessions.events.list(session.id, { limit: 50, order: 'desc' }));
    expect(back.map((event) => event.id)).toEqual([...ids].reverse());
    const messages = await all(beta.sessions.events.list(session.id, { types: ['user.message'], limit: 2 }));
    expect(messages).toEqual(events.filter((event) => event.type === 'user.message'));
  });

  it('lists sessions page by page, there and back, by agent and status', async () => {
    const ids = { agent: agent.id, environment_id: environment.id };
    const more = [await beta.sessions.create(ids), await beta.sessions.create(ids)].map((one) => one.id).reverse();
    const filter = { agent_id: agent.id, statuses: ['idle' as const], limit: 1 };
    expect((await all(beta.sessions.list(filter))).map((one) => one.id)).toEqual([...more, session.id]);
    expect(await all(beta.sessions.list({ ...filter, statuses: ['running'] }))).toEqual([]);
    const first = await beta.sessions.list(filter);
    const second = await first.getNextPage();
    expect(second.data.map((one) => one.id)).toEqual([more[1]]);
    const back = await beta.sessions.list({ ...filter, page: second.prev_page ?? '' });
    expect(back.data.map((one) => one.id)).toEqual([more[0]]);
    for (const id of more) expect(await beta.sessions.delete(id)).toEqual({ id, type: 'session_deleted' });
  });

  it('uploads, lists, reads, downloads and deletes files', async () => {
    const file = await beta.files.upload({
      file: await Sdk.toFile(Buffer.from('from the SDK: ü'), 'notes.txt', { type: 'text/plain' }),
      expires_in_seconds: 3_600,
    });
    expect(file).toMatchObject({ type: 'file', filename: 'notes.txt', mime_type: 'text/plain', size_bytes: 16 });
    expect(await beta.files.retrieveMetadata(file.id)).toEqual(file);
    const streamed = await beta.files.upload({ file: createReadStream('package.json') });
    expect(streamed).toMatchObject({ filename: 'package.json', expires_at: null, scope: null });
    const listed = (await all(beta.files.list({ limit: 1 }))).map(({ id }) => id);
    expect(listed.slice(0, 2)).toEqual([streamed.id, file.id]);
    expect(await all(beta.files.list({ ids: [file.id, 'file_none'] }))).toEqual([file]);
    expect(await all(beta.files.list({ scope_id: session.id }))).toEqual([]);
    expect(await (await beta.files.download(file.id)).text()).toBe('from the SDK: ü');
    expect(await (await beta.files.download(streamed.id)).text()).toBe(readFileSync('package.json', 'utf8'));
    for (const { id } of [file, streamed]) expect(await beta.files.delete(id)).toEqual({ id, type: 'file_deleted' });
    await expect(beta.files.download(file.id)).rejects.toBeInstanceOf(Sdk.NotFoundError);
    await expect(beta.files.upload({ file: await Sdk.toFile(Buffer.from('x'), 'a:b') })).rejects.toBeInstanceOf(
      Sdk.BadRequestError,
    );
  });

  it('gives files to a session, lists them and takes them away', async () => {
    const file = await beta.files.upload({ file: await Sdk.toFile(Buffer.from('a,b'), 'data.csv') });
    const made = await beta.sessions.create({
      agent: agent.id,
      environment_id: environment.id,
      resources: [{ type: 'file', file_id: file.id, mount_path: '/data.csv' }],
    });
    expect(made.resources).toMatchObject([{ type: 'file', mount_path: '/mnt/session/uploads/data.csv' }]);
    const added = await beta.sessions.resources.add(made.id, { type: 'file', file_id: file.id });
    expect(added).toMatchObject({ file_id: file.id, mount_path: `/mnt/session/uploads/${file.id}` });
    expect(await all(beta.sessions.resources.list(made.id, { limit: 1 }))).toEqual([...made.resources, added]);
    const place = { session_id: made.id };
    expect(await beta.sessions.resources.retrieve(added.id, place)).toEqual(added);
    await expect(
      beta.sessions.resources.update(added.id, { ...place, authorization_token: 'x' }),
    ).rejects.toBeInstanceOf(Sdk.BadRequestError);
    expect(await beta.sessions.resources.delete(added.id, place)).toEqual({
      id: added.id,
      type: 'session_resource_deleted',
    });
    expect((await beta.sessions.retrieve(made.id)).resources).toEqual(made.resources);
    await expect(beta.sessions.resources.retrieve(added.id, place)).rejects.toBeInstanceOf(Sdk.NotFoundError);
    await beta.sessions.delete(made.id);
  });

  it('raises its own errors', async () => {
    const cases: [() => Promise<unknown>, new (...args: never[]) => Error, number, RegExp][] = [
      [() => beta.sessions.retrieve('sesn_none'), Sdk.NotFoundError, 404, /sesn_none/],
      [() => beta.agents.create({ name: 'x', model: 'gpt-none' }), Sdk.BadRequestError, 400, /gpt-none.*demo/],
      [() => beta.sessions.events.send(session.id, { events: [] }), Sdk.BadRequestError, 400, /events/],
      [() => beta.agents.update(agent.id, { version: 7, name: 'x' }), Sdk.ConflictError, 409, /version/],
      [() => client.withOptions({ apiKey: 'hf_wrong' }).beta.agents.list(), Sdk.AuthenticationError, 401, /key/i],
    ];
    for (const [call, kind, status, message] of cases) {
      const error = (await call().catch((thrown: unknown) => thrown)) as InstanceType<typeof Sdk.APIError>;
      expect(error).toBeInstanceOf(kind);
      expect(error).toMatchObject({ status, requestID: expect.any(String), message: expect.stringMatching(message) });
    }
  });

  it('forks a session, looks at one as it was, and exports it', async () => {
    type Fork = Anthropic.Beta.BetaManagedAgentsSession & {
      forked_from: { session_id: string; version: number; checkpoint: unknown };
    };
    const before = await all(beta.sessions.events.list(session.id));
    const path = `/v1/sessions/${session.id}`;
    const answer = before.find(({ type }) => type === 'agent.message');
    const body = { at_event_id: answer?.id, title: 'another way', metadata: { from: 'sdk' } };
    const options = { body, headers: { 'idempotency-key': `fork-${session.id}` } };
    const fork = await client.post<Fork>(`${path}/fork`, options);
    expect(await client.post<Fork>(`${path}/fork`, options)).toMatchObject({ id: fork.id });
    expect(fork).toMatchObject({
      type: 'session',
      status: 'idle',
      title: 'another way',
      metadata: { from: 'sdk' },
      agent: { id: agent.id },
      forked_from: { session_id: session.id, event_id: answer?.id, checkpoint: null },
    });
    expect(await beta.sessions.retrieve(fork.id)).toMatchObject({ id: fork.id, forked_from: fork.forked_from });
    // What it shares comes first, under the same ids, in lists and streams alike.
    const at = before.findIndex(({ id }) => id === answer?.id);
    const shared = before.slice(0, at + 1);
    expect((await all(beta.sessions.events.list(fork.id, { limit: 2 }))).slice(0, at + 1)).toEqual(shared);
    const stream = await beta.sessions.events.stream(fork.id, {}, { headers: { 'Last-Event-ID': answer?.id ?? '' } });
    await beta.sessions.events.send(fork.id, { events: [userMessage('on my own')] });
    const seen: SdkEvent[] = [];
    for await (const event of stream) {
      seen.push(event);
      if (event.type === 'session.status_idle' && seen.some(({ type }) => type === 'agent.message')) break;
    }
    expect(seen[0]).toMatchObject({ type: 'session.updated', forked_from: fork.forked_from });
    expect(words(ofType(seen, 'agent.message').at(-1))).toMatch(/^You said: on my own/);
    expect(await all(beta.sessions.events.list(session.id))).toEqual(before);
    const then = await beta.sessions.retrieve(fork.id, {}, { query: { at: fork.forked_from.version } });
    expect(then).toMatchObject({ id: fork.id, title: 'new', forked_from: null });
    const exported = await client.get<Response>(`/v1/sessions/${fork.id}/events/export`, {
      __binaryResponse: true,
    });
    const lines = (await exported.text()).trimEnd().split('\n');
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ type: 'end', events: lines.length - 2 });
    await beta.sessions.delete(fork.id);
  });

  it('archives and deletes', async () => {
    const stream = await beta.sessions.events.stream(session.id);
    expect(await beta.sessions.archive(session.id)).toMatchObject({ status: 'terminated' });
    expect((await all(stream)).at(-1)?.type).toBe('session.status_terminated');
    await expect(send(userMessage('too late'))).rejects.toBeInstanceOf(Sdk.APIError);
    expect(await all(beta.sessions.list({ agent_id: agent.id }))).toEqual([]);
    expect(await all(beta.sessions.list({ agent_id: agent.id, include_archived: true }))).toHaveLength(1);
    expect(await beta.sessions.delete(session.id)).toEqual({ id: session.id, type: 'session_deleted' });
    await expect(beta.sessions.retrieve(session.id)).rejects.toBeInstanceOf(Sdk.NotFoundError);
    expect((await beta.agents.archive(agent.id)).archived_at).not.toBeNull();
    await expect(beta.sessions.create({ agent: agent.id, environment_id: environment.id })).rejects.toBeInstanceOf(
      Sdk.BadRequestError,
    );
    await expect(beta.environments.delete(environment.id)).rejects.toBeInstanceOf(Sdk.APIError);
    for (const { id, environment_id } of await all(beta.sessions.list()))
      if (environment_id === environment.id) await beta.sessions.delete(id);
    expect(await beta.environments.delete(environment.id)).toMatchObject({ type: 'environment_deleted' });
  });
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
