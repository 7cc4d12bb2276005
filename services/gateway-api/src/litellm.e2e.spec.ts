import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Frame,
  type LiteLlmProxy,
  startLiteLlm,
  startPlatform,
  TestClient,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { startDemoGateway } from '../../../bin/src/demo-gateway/server.ts';
import { ModelCatalogue } from './data/model.catalogue.ts';

type Event = Frame['data'];

/** The first is spoken to in chat completions; the last can be asked to think. */
const MODELS = ['spec/openai', 'spec/anthropic', 'spec/claude'];
const PRICE = { input_cost_per_token: 0.000002, output_cost_per_token: 0.00001 };
const RETRIES = 2;

/** The scripted model; what it was asked, newest last, and which of its streams the other side cut. */
let upstream: Server;
const prompts: string[] = [];
let cut = 0;
let proxy: LiteLlmProxy;
/** Another proxy, whose one entry is a wildcard. */
let wildcard: LiteLlmProxy;
let platform: TestPlatform;
let client: TestClient;

beforeAll(async () => {
  upstream = await startDemoGateway(0, '127.0.0.1', (messages) => {
    prompts.push(JSON.stringify(messages.filter((message) => message.role === 'user').at(-1)?.content));
  });
  upstream.prependListener('request', (_request, response) => {
    response.on('close', () => {
      if (!response.writableFinished) cut += 1;
    });
  });
  const host = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}`;
  proxy = await startLiteLlm([
    { model_name: 'spec/openai', litellm_params: { model: 'openai/demo', api_base: `${host}/v1` }, model_info: PRICE },
    { model_name: 'spec/anthropic', litellm_params: { model: 'anthropic/demo', api_base: host }, model_info: PRICE },
    {
      model_name: 'spec/claude',
      litellm_params: { model: 'anthropic/claude-opus-5-5', api_base: host },
      model_info: PRICE,
    },
  ]);
  wildcard = await startLiteLlm([
    { model_name: 'any/*', litellm_params: { model: 'openai/*', api_base: `${host}/v1` } },
  ]);
  [platform] = await Promise.all([
    startPlatform({
      LITELLM_GATEWAY_URL: proxy.url,
      LITELLM_API_KEY: proxy.apiKey,
      MODEL_MAX_RETRIES: String(RETRIES),
      MODEL_RETRY_FIRST_MS: '50',
    }),
    proxy.untilReady().then(() => Promise.all(MODELS.map(warmUp))),
    wildcard.untilReady(),
  ]);
  client = new TestClient(platform);
}, 900_000);
afterAll(async () => {
  await Promise.all([platform?.stop(), proxy?.stop(), wildcard?.stop()]);
  upstream?.closeAllConnections();
  upstream?.close();
}, 60_000);

/** LiteLLM stands still for seconds while its first call of a kind loads what it needs. */
async function warmUp(model: string): Promise<void> {
  const route = model === 'spec/openai' ? 'chat/completions' : 'messages';
  const response = await fetch(`${proxy.url}/v1/${route}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${proxy.apiKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ model, stream: true, max_tokens: 9, messages: [{ role: 'user', content: 'hello' }] }),
  });
  expect(await response.text()).toContain('You said: hello');
}

async function newSession(model: string): Promise<string> {
  const lookup = { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } };
  const tools = [{ type: 'agent_toolset_20260401' }, lookup];
  const agent = await client.json<{ id: string }>('/v1/agents', { json: { name: 'spec', model, tools } });
  return (await client.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id } })).id;
}
const send = (id: string, event: object): Promise<unknown> =>
  client.json(`/v1/sessions/${id}/events`, { json: { events: [event] } });
/** Sends a message; returns the session's events once it is idle again. */
async function turn(id: string, text: string): Promise<Event[]> {
  await send(id, userMessage(text));
  return client.untilIdle(id, 30_000);
}
const ofType = (events: readonly Event[], type: string): Event[] => events.filter((event) => event.type === type);
const textOf = (event: Event | undefined): string => (event?.content ?? []).map((block) => block.text).join('');
const last = (events: readonly Event[], type: string): Event | undefined => ofType(events, type).at(-1);

describe('the models of a LiteLLM proxy', () => {
  it('are those it lists', async () => {
    const { data } = await client.json<{ data: { id: string }[] }>('/v1/models');
    expect(data.map((model) => model.id).sort()).toEqual(['spec/anthropic', 'spec/claude', 'spec/openai']);
    expect(await client.json('/v1/models/spec%2Fopenai')).toEqual(data.find((model) => model.id === 'spec/openai'));
  });

  it('are named where an agent asks for another', async () => {
    const refused = await client.api('/v1/agents', { json: { name: 'spec', model: 'gpt-none' } });
    expect(refused.status).toBe(400);
    expect(((await refused.json()) as { error: { message: string } }).error.message).toMatch(
      /"gpt-none".*It has: spec\/\w+, spec\/\w+, spec\/\w+\./,
    );
  });

  it('may be any where it has a wildcard, which is itself no model', async () => {
    const catalogue = new ModelCatalogue({ baseUrl: wildcard.url, apiKey: wildcard.apiKey });
    const listed = (await catalogue.list()).map((model) => model.id);
    expect(listed).toContain('any/gpt-4o');
    expect(listed.filter((id) => id.includes('*'))).toEqual([]);
    await catalogue.require('any/model-of-tomorrow');
  });
});

describe.each(MODELS)('a session through LiteLLM, %s', (model) => {
  it('streams text as it comes and closes it with the whole message, the usage and the cost that LiteLLM states', async () => {
    const isIdle = (all: readonly Frame[]): boolean => all.at(-1)?.event === 'session.status_idle';
    let id = '';
    let pieces: string[] = [];
    // A proxy that stalls hands a whole answer over at once, and then there is nothing to preview: deltas are best effort.
    for (let attempt = 0; attempt < 4 && pieces.length < 4; attempt++) {
      id = await newSession(model);
      const stream = client.frames(`/v1/sessions/${id}/events/stream?after=0&event_deltas[]=agent.message`, isIdle);
      await send(id, userMessage('SLOW[6]'));
      pieces = (await stream)
        .filter((frame) => frame.event === 'event_delta')
        .map((frame) => (frame.data as unknown as { delta: { content: { text: string } } }).delta.content.text);
    }
    expect(pieces.length).toBeGreaterThanOrEqual(4);
    expect(pieces.join('')).toBe('word1 word2 word3 word4 word5 word6');
    const events = await client.events(id);
    expect(textOf(last(events, 'agent.message'))).toBe('word1 word2 word3 word4 word5 word6');
    const usage = last(events, 'span.model_request_end')?.['model_usage'] as Record<string, number>;
    expect(usage['output_tokens']).toBe(9);
    const cached = (usage['cache_creation_input_tokens'] ?? 0) + (usage['cache_read_input_tokens'] ?? 0);
    expect(cached > 0).toBe(model !== 'spec/openai');
    expect((usage['input_tokens'] ?? 0) + cached).toBeGreaterThan(0);
    const cost = (usage['input_tokens'] ?? 0) * PRICE.input_cost_per_token + 9 * PRICE.output_cost_per_token;
    expect(last(events, 'span.model_request_end')?.['x_cost_usd']).toBeCloseTo(cost, 9);
  });

  it('runs tools with their arguments intact, step by step', async () => {
    const id = await newSession(model);
    const command = `printf '%s\\n' "ünï \\"quoted\\" {\\"a\\": [1]}" \\\\; cat /workspace/notes/a.txt`;
    const content = 'first line\nzweite Zeile: "{}" ✓';
    const events = await turn(id, `WRITE[/workspace/notes/a.txt|${content}] RUN[${command}]`);
    expect(ofType(events, 'agent.tool_use')).toMatchObject([
      { name: 'write', input: { file_path: '/workspace/notes/a.txt', content } },
      { name: 'bash', input: { command } },
    ]);
    expect(ofType(events, 'agent.tool_result').map((event) => event['is_error'] ?? false)).toEqual([false, false]);
    expect(textOf(last(events, 'agent.tool_result'))).toContain(`ünï "quoted" {"a": [1]}\n\\\n${content}`);
    expect(textOf(last(events, 'agent.message'))).toContain(content);
    expect(last(events, 'session.status_idle')).toMatchObject({ stop_reason: { type: 'end_turn' } });
  });

  it('asks the client for a custom tool and goes on with its answer', async () => {
    const id = await newSession(model);
    const asked = await turn(id, 'ASK[lookup] please');
    const call = last(asked, 'agent.custom_tool_use');
    expect(call).toMatchObject({ name: 'lookup', input: { question: 'ASK[lookup] please' } });
    expect(asked.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    await send(id, {
      type: 'user.custom_tool_result',
      custom_tool_use_id: call?.id,
      content: [{ type: 'text', text: 'forty-two' }],
    });
    expect(textOf(last(await client.untilIdle(id, 30_000), 'agent.message'))).toContain('forty-two');
  });

  it.each([
    [400, 'model_request_failed_error', 'final'],
    [402, 'billing_error', 'final'],
    [429, 'model_rate_limited_error', 'retried'],
    [500, 'model_request_failed_error', 'retried'],
    [503, 'model_overloaded_error', 'retried'],
  ] as const)(
    'answers an upstream’s %i with a %s, %s, and goes on with the next message',
    async (status, type, fate) => {
      const id = await newSession(model);
      const mark = `ERR[${status}] ${id}`;
      const events = await turn(id, mark);
      const errors = ofType(events, 'session.error').map((event) => event['error']);
      const statuses = fate === 'final' ? ['exhausted'] : [...Array<string>(RETRIES).fill('retrying'), 'exhausted'];
      expect(errors).toMatchObject(statuses.map((retry) => ({ type, retry_status: { type: retry } })));
      expect(JSON.stringify(errors[0])).toContain(`the script asked for HTTP ${status}`);
      expect(prompts.filter((prompt) => prompt.includes(mark))).toHaveLength(statuses.length);
      expect(ofType(events, 'session.status_rescheduled')).toHaveLength(statuses.length - 1);
      expect(events.at(-1)).toMatchObject({ stop_reason: { type: 'retries_exhausted' } });
      expect(textOf(last(await turn(id, 'hello again'), 'agent.message'))).toMatch(/^You said: hello again/);
    },
  );

  it('asks again where the upstream broke off in the middle of an answer', async () => {
    const id = await newSession(model);
    await send(id, userMessage('SLOW[8]'));
    await sleep(500);
    upstream.closeAllConnections();
    const events = await client.untilIdle(id, 30_000);
    expect(ofType(events, 'session.error')).toMatchObject([
      { error: { type: 'model_request_failed_error', retry_status: { type: 'retrying' } } },
    ]);
    expect(ofType(events, 'agent.message').map(textOf)).toEqual(['word1 word2 word3 word4 word5 word6 word7 word8']);
  });

  it('cuts the upstream’s answer on an interrupt, and nothing follows', async () => {
    const id = await newSession(model);
    await send(id, userMessage('SLOW[200]'));
    await sleep(800);
    const before = cut;
    await send(id, { type: 'user.interrupt' });
    const at = Date.now();
    const events = await client.untilIdle(id, 5_000);
    while (cut === before && Date.now() < at + 3_000) await sleep(5);
    expect({ cut: cut - before, withinMs: Date.now() - at < 1_000 }).toEqual({ cut: 1, withinMs: true });
    expect(ofType(events, 'agent.message')).toEqual([]);
    await sleep(500);
    expect(await client.events(id)).toEqual(events);
    expect(events.at(-1)).toMatchObject({ type: 'session.status_idle', stop_reason: { type: 'end_turn' } });
  });
});

describe('a session with a model that thinks', () => {
  it('shows what it thought, gives it back as it was signed, and reads the conversation from the cache', async () => {
    const id = await newSession('spec/claude');
    const isIdle = (all: readonly Frame[]): boolean => all.at(-1)?.event === 'session.status_idle';
    const stream = client.frames(`/v1/sessions/${id}/events/stream?after=0&event_deltas[]=x_agent.thinking`, isIdle);
    // The upstream refuses the second request unless the first one's thinking is in it, unchanged.
    await send(id, userMessage('THINK[a list of files might help] RUN[echo found]'));
    const frames = await stream;
    const events = await client.events(id);
    expect(ofType(events, 'session.error')).toEqual([]);
    const thought = last(events, 'agent.thinking');
    expect(thought).toMatchObject({ x_text: 'a list of files might help' });
    expect(events.map((event) => event.type).filter((type) => type.startsWith('agent.'))[0]).toBe('agent.thinking');
    const started = frames.filter((frame) => frame.event === 'event_start').map((frame) => frame.data['event']);
    expect(started).toEqual([{ type: 'agent.thinking', id: thought?.id }]);
    expect(textOf(last(events, 'agent.message'))).toContain('found');
    const [first, second] = ofType(events, 'span.model_request_end').map(
      (event) => event['model_usage'] as Record<string, number>,
    );
    expect(second?.['cache_read_input_tokens']).toBe(
      (first?.['cache_read_input_tokens'] ?? 0) + (first?.['cache_creation_input_tokens'] ?? 0),
    );
    expect(second?.['cache_creation_input_tokens']).toBeGreaterThan(0);
  });

  it('ends the turn where the model refuses, and says why', async () => {
    const id = await newSession('spec/claude');
    const events = await turn(id, 'REFUSE[not that]');
    expect(events.at(-1)).toMatchObject({
      stop_reason: { type: 'refusal' },
      stop_details: { type: 'refusal', category: 'general_harms', explanation: 'not that' },
    });
    expect(textOf(last(await turn(id, 'hello again'), 'agent.message'))).toMatch(/^You said: hello again/);
  });
});
