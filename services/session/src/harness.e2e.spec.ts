import { readFileSync, rmSync } from 'node:fs';
import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
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

type Event = Frame['data'];

/** Every harness is held to this: the scripted model, through a real LiteLLM proxy, and for the coding ones the door. */
const { CLAUDE_CODE_DIR } = process.env;
const HARNESSES = ['native', 'scripted', 'opencode', 'codex'];
// Claude Code is the operator's to install.
if (CLAUDE_CODE_DIR !== undefined) HARNESSES.push('claude_code');
const CODING = HARNESSES.filter((name) => name !== 'native');
/** Codex runs what its model calls without asking. */
const ASKING = HARNESSES.filter((name) => name !== 'codex');
const PRICE = { input_cost_per_token: 0.000002, output_cost_per_token: 0.00001 };
const MODEL = 'spec/demo';
const RETRIES = 2;
/** A harness that is started first takes its time on a busy machine. */
const PATIENCE_MS = 60_000;
const CANARY = 'canary-gateway-key';

let demo: Server;
let upstream: Server;
/** The messages of each request that the model was asked, newest last. */
const asked: string[] = [];
let proxy: LiteLlmProxy;
let platform: TestPlatform;
let client: TestClient;
/** One session of each harness, to go on with: starting a harness is what takes long. */
const sessions = new Map<string, string>();

beforeAll(async () => {
  demo = await startDemoGateway(0);
  // In front of it, for what its script does not do: a model that never answers.
  upstream = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => {
      const text = Buffer.concat(parts).toString();
      // The rest is the proxy looking whether it is there, and titles that a harness asks for.
      if (text.includes('"tools"')) asked.push(text);
      if (newestPrompt(text).includes('HANG')) return;
      const { port } = demo.address() as AddressInfo;
      const forwarded = httpRequest({ port, method: request.method, path: request.url, headers: request.headers });
      forwarded.on('response', (answer) => {
        response.writeHead(answer.statusCode ?? 500, answer.headers);
        answer.pipe(response);
      });
      forwarded.on('error', () => response.destroy());
      response.on('close', () => forwarded.destroy());
      forwarded.end(text);
    });
  });
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve));
  const api = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`;
  proxy = await startLiteLlm([
    {
      model_name: MODEL,
      // The upstream knows no `/responses`, which Codex speaks.
      litellm_params: { model: 'openai/demo', api_base: api, use_chat_completions_api: true },
      model_info: PRICE,
    },
  ]);
  [platform] = await Promise.all([
    startPlatform({
      HARNESSES: CODING.join(','),
      ...(CLAUDE_CODE_DIR === undefined ? {} : { CLAUDE_CODE_DIR }),
      LITELLM_GATEWAY_URL: proxy.url,
      LITELLM_API_KEY: proxy.apiKey,
      MODEL_MAX_RETRIES: String(RETRIES),
      MODEL_RETRY_FIRST_MS: '50',
      MODEL_SILENCE_MS: '2000',
      TURN_LEASE_MS: '1500',
      CONTAINER_ENV_CANARY: CANARY,
    }),
    proxy.untilReady(),
  ]);
  client = new TestClient(platform);
  // Side by side: the slowest start is waited for once.
  await Promise.all(
    HARNESSES.map(async (harness) => {
      const id = await newSession(harness);
      sessions.set(harness, id);
      await turn(id, 'hello');
    }),
  );
}, 900_000);
afterAll(async () => {
  await Promise.all([platform?.stop(), proxy?.stop()]);
  for (const server of [upstream, demo]) {
    server?.closeAllConnections();
    server?.close();
  }
}, 60_000);

const agentOf = (harness: string, policy = 'always_allow') => ({
  name: 'spec',
  model: MODEL,
  system: 'Answer in the words of the script.',
  tools: [{ type: 'agent_toolset_20260401', default_config: { permission_policy: { type: policy } } }],
  harness: { type: harness },
});
async function newSession(harness: string, policy?: string): Promise<string> {
  const agent = await client.json<{ id: string }>('/v1/agents', { json: agentOf(harness, policy) });
  return (await client.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id } })).id;
}
const sessionOf = (harness: string): string => sessions.get(harness) ?? '';
const send = (id: string, ...events: object[]): Promise<unknown> =>
  client.json(`/v1/sessions/${id}/events`, { json: { events } });
/** Sends a message; returns what follows once the session is idle again. */
async function turn(id: string, text: string): Promise<Event[]> {
  const before = (await client.events(id)).length;
  await send(id, userMessage(text));
  return (await client.untilIdle(id, PATIENCE_MS)).slice(before);
}
const ofType = (events: readonly Event[], type: string): Event[] => events.filter((event) => event.type === type);
const textOf = (event: Event | undefined): string => (event?.content ?? []).map((block) => block.text).join('');
const said = (events: readonly Event[]): string => ofType(events, 'agent.message').map(textOf).join('|');
const types = (events: readonly Event[]): string[] => events.map(({ type }) => type);
async function until(id: string, holds: (events: readonly Event[]) => boolean): Promise<Event[]> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(50)) {
    const events = await client.events(id);
    if (holds(events)) return events;
    if (Date.now() > deadline) throw new Error(`${id} did not come so far: ${types(events).join(' ')}`);
  }
}
function newestPrompt(body: string): string {
  if (body === '') return '';
  const { messages = [] } = JSON.parse(body) as { messages?: { role: string; content: unknown }[] };
  const content = messages.filter(({ role }) => role === 'user').at(-1)?.content ?? '';
  // After a failed turn a harness may send both messages as one.
  return JSON.stringify(Array.isArray(content) ? (content as unknown[]).at(-1) : content);
}
const MODEL_STEP = ['span.model_request_start', 'span.model_request_end'];

describe.each(HARNESSES)('an agent with the harness %s', (harness) => {
  it('answers, with its usage and cost, and remembers', async () => {
    const id = sessionOf(harness);
    const events = await turn(id, 'SLOW[3]');
    expect(said(events)).toBe('word1 word2 word3');
    const order = ['user.message', 'session.status_running', 'span.model_request_start', 'agent.message'];
    expect(types(events)).toEqual([...order, 'span.model_request_end', 'session.status_idle']);
    const end = ofType(events, 'span.model_request_end')[0];
    const usage = end?.['model_usage'] as Record<string, number>;
    expect(usage['output_tokens']).toBeGreaterThan(0);
    const cost =
      (usage['input_tokens'] ?? 0) * PRICE.input_cost_per_token +
      (usage['output_tokens'] ?? 0) * PRICE.output_cost_per_token;
    expect(end?.['x_cost_usd']).toBeCloseTo(cost, 9);
    await turn(id, 'and now?');
    expect(asked.at(-1)).toContain('word1 word2 word3');
    expect(asked.at(-1)).toContain('Answer in the words of the script.');
  });

  it('runs tools under the reference’s names, with input and output, between its model calls', async () => {
    const events = await turn(sessionOf(harness), 'RUN[echo one > f; cat f]RUN[echo two; exit 3]');
    const [use, failing] = ofType(events, 'agent.tool_use');
    expect(use).toMatchObject({
      name: 'bash',
      input: { command: 'echo one > f; cat f' },
      evaluated_permission: 'allow',
    });
    const [result, failure] = ofType(events, 'agent.tool_result');
    expect(result).toMatchObject({ tool_use_id: use?.id, is_error: false });
    expect(textOf(result)).toMatch(/^one\n?$/);
    expect(failure).toMatchObject({ tool_use_id: failing?.id, is_error: true });
    expect(textOf(failure)).toMatch(/^two\n/);
    const step = [...MODEL_STEP, 'agent.tool_use', 'agent.tool_result'];
    expect(types(events).filter((type) => !/^(user|session)\./.test(type) && type !== 'agent.thinking')).toEqual([
      ...step,
      ...step,
      ...['span.model_request_start', 'agent.message', 'span.model_request_end'],
    ]);
    expect(said(events)).toContain('two');
  });

  it('shows its text as it comes', async () => {
    const id = sessionOf(harness);
    const isIdle = (all: readonly Frame[]): boolean => all.at(-1)?.event === 'session.status_idle';
    let pieces: string[] = [];
    // A proxy that stalls hands a whole answer over at once, and then there is nothing to preview: deltas are best effort.
    for (let attempt = 0; attempt < 4 && pieces.length < 4; attempt++) {
      const stream = client.frames(`/v1/sessions/${id}/events/stream?event_deltas[]=agent.message`, isIdle);
      await sleep(200);
      await send(id, userMessage('SLOW[8]'));
      pieces = (await stream)
        .filter((frame) => frame.event === 'event_delta')
        .map((frame) => (frame.data as unknown as { delta: { content: { text: string } } }).delta.content.text);
    }
    expect(pieces.length).toBeGreaterThanOrEqual(4);
    expect(pieces.join('')).toBe('word1 word2 word3 word4 word5 word6 word7 word8');
    await client.untilIdle(id, PATIENCE_MS);
  });

  it.each([
    [400, 'model_request_failed_error', 1],
    [402, 'billing_error', 1],
    [429, 'model_rate_limited_error', RETRIES + 1],
    [500, 'model_request_failed_error', RETRIES + 1],
  ])('fails with the gateway’s %s, as often as the platform asks, and goes on', async (status, type, attempts) => {
    const id = sessionOf(harness);
    const mark = `ERR[${status}] ${harness} ${status}`;
    const events = await turn(id, mark);
    const errors = ofType(events, 'session.error').map((event) => event['error']);
    const statuses = [...Array<string>(attempts - 1).fill('retrying'), 'exhausted'];
    expect(errors).toMatchObject(statuses.map((retry) => ({ type, retry_status: { type: retry } })));
    expect(asked.filter((body) => newestPrompt(body).includes(mark))).toHaveLength(attempts);
    expect(events.at(-1)).toMatchObject({ stop_reason: { type: 'retries_exhausted' } });
    expect(said(await turn(id, 'hello again'))).toMatch(/^You said: hello again/);
  });

  it('gives a model up that never answers', async () => {
    const events = await turn(sessionOf(harness), `HANG ${harness}`);
    expect(ofType(events, 'session.error').at(-1)).toMatchObject({
      error: { type: 'model_request_failed_error', retry_status: { type: 'exhausted' } },
    });
    expect(events.at(-1)).toMatchObject({ stop_reason: { type: 'retries_exhausted' } });
  });

  it('is interrupted in the middle of a tool, and takes what waits', async () => {
    const id = sessionOf(harness);
    const before = (await client.events(id)).length;
    await send(id, userMessage('RUN[for n in $(seq 100); do sleep 0.3; done]'));
    await until(id, (events) => ofType(events.slice(before), 'agent.tool_use').length === 1);
    const at = Date.now();
    await send(id, { type: 'user.interrupt' }, userMessage('hello after'));
    const events = (await client.untilIdle(id, PATIENCE_MS)).slice(before);
    expect(Date.now() - at).toBeLessThan(15_000);
    expect(ofType(events, 'agent.tool_result')).toMatchObject([{ is_error: true }]);
    expect(said(events)).toMatch(/^You said: hello after/);
  });

  it('is prompted once, and each tool runs once, when the turn worker is killed in the middle', async () => {
    const id = sessionOf(harness);
    const before = (await client.events(id)).length;
    await send(id, userMessage('RUN[echo x >> once; sleep 3; cat once]'));
    await until(id, (events) => ofType(events.slice(before), 'agent.tool_use').length === 1);
    platform.kill('session');
    const events = (await untilIdleAgain(id)).slice(before);
    expect(ofType(events, 'agent.tool_result').map((result) => textOf(result).trimEnd())).toEqual(['x']);
    expect(ofType(events, 'session.error')).toEqual([]);
    expect(said(events)).toMatch(/^Done\. The last result was:\n(?:.*\n)*x\n?$/);
    expect(ofType(events, 'session.status_idle')).toHaveLength(1);
    const rows = await platform.query(
      "select count(*)::int as n from events where stream_id = $1 and type = 'session.turn_started' and (data->>'takeover')::boolean",
      [`session-${id}`],
    );
    expect(rows).toEqual([{ n: 1 }]);
  });
});

/** Whatever dies meanwhile. */
async function untilIdleAgain(id: string): Promise<Event[]> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(200)) {
    try {
      return await client.untilIdle(id, 5_000);
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
  }
}

describe.each(ASKING)('an agent with the harness %s', (harness) => {
  it('asks where its agent’s policy does, and heeds what the client says', async () => {
    const id = await newSession(harness, 'always_ask');
    for (const result of ['allow', 'deny']) {
      const before = (await client.events(id)).length;
      await send(id, userMessage(`RUN[echo ${result} >> asked; cat asked]`));
      const waiting = (await client.untilIdle(id, PATIENCE_MS)).slice(before);
      const [use] = ofType(waiting, 'agent.tool_use');
      expect(use).toMatchObject({ name: 'bash', evaluated_permission: 'ask' });
      expect(waiting.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [use?.id] } });
      const more = result === 'deny' ? { deny_message: 'not today' } : {};
      await send(id, { type: 'user.tool_confirmation', tool_use_id: use?.id, result, ...more });
      const events = (await client.untilIdle(id, PATIENCE_MS)).slice(before);
      const results = ofType(events, 'agent.tool_result');
      expect(results).toMatchObject([{ tool_use_id: use?.id, is_error: result === 'deny' }]);
      expect(textOf(results[0])).toContain(result === 'deny' ? 'not today' : 'allow');
      expect(events.at(-1)).toMatchObject({ stop_reason: { type: 'end_turn' } });
    }
    const files = await turn(id, 'hello');
    expect(said(files)).toMatch(/^You said: hello/);
  });
});

/** Its processes and its files. */
async function loseSandbox(id: string): Promise<void> {
  const [row] = await platform.query(
    'select id from sandboxes where session_id = $1 order by created_at desc limit 1',
    [id],
  );
  const root = join(platform.stateDir, 'sandboxes', String(row?.['id']));
  for (const line of readFileSync(join(root, 'runner.pid'), 'utf8').trim().split('\n')) {
    try {
      process.kill(Number(line.split(' ')[0]), 'SIGKILL');
    } catch {
      // The other one took it along.
    }
  }
  await sleep(200);
  rmSync(root, { recursive: true });
}

describe.each(CODING)('the process of %s', (harness) => {
  it('that is killed in the middle of a tool leaves an explicit result; the session goes on and remembers', async () => {
    const id = sessionOf(harness);
    const events = await turn(id, 'RUN[echo killing; sleep 1; kill -9 $PPID; sleep 5]');
    const results = ofType(events, 'agent.tool_result');
    expect(results).toMatchObject([{ is_error: true }]);
    expect(textOf(results[0])).toMatch(/^Outcome unknown/);
    expect(ofType(events, 'session.error')).toHaveLength(1);
    expect(events.at(-1)).toMatchObject({ stop_reason: { type: 'retries_exhausted' } });
    expect(said(await turn(id, 'are you there?'))).toMatch(/^You said: are you there/);
    expect(asked.at(-1)).toContain('killing');
  });

  // A pod's files are its volume's, which outlives it; `checkpoints.e2e` has those that do not.
  if (process.env['SANDBOX_PROVIDER'] !== 'kubernetes') {
    it('whose sandbox is lost with all its files goes on with its own session, which was kept with them', async () => {
      const id = sessionOf(harness);
      await turn(id, 'RUN[echo kept > kept] and remember the word swordfish');
      await loseSandbox(id);
      const events = await turn(id, 'RUN[cat kept]');
      expect(textOf(ofType(events, 'agent.tool_result')[0]).trimEnd()).toBe('kept');
      expect(asked.at(-1)).toContain('swordfish');
      const rows = await platform.query(
        "select data->>'continuity' as continuity from events where stream_id = $1 and type = 'session.harness_progressed' and data->>'continuity' is not null order by version desc limit 1",
        [`session-${id}`],
      );
      expect(rows).toEqual([{ continuity: 'native' }]);
    });
  }

  it('knows nothing of the gateway’s key', async () => {
    const id = sessionOf(harness);
    // A pattern that finds a text and is not found by itself.
    const hidden = (text: string): string =>
      `${text.slice(0, 6)}{${text.slice(6, 7)}}${text.slice(7)}`.replace(/\{(.)\}/, '($1|$1)');
    const look = `(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr "\\0" "\\n"; grep -rsa . /home/agent) > /tmp/seen 2>&1`;
    const count = (text: string): string => `grep -cE '${hidden(text)}' /tmp/seen`;
    const events = await turn(id, `RUN[${look}; ${count(CANARY)}; ${count(proxy.apiKey)}; true]`);
    const [canary, key] = textOf(ofType(events, 'agent.tool_result')[0]).split('\n').map(Number);
    expect(canary).toBeGreaterThan(0);
    expect(key).toBe(0);
  });
});

describe('an agent’s harness', () => {
  it('is in every answer, versioned with the agent, and may be named in the metadata', async () => {
    const plain = await client.json<{ harness: object }>('/v1/agents', { json: { name: 'spec', model: MODEL } });
    expect(plain.harness).toEqual({ type: 'native' });
    const named = await client.json<{ id: string; harness: object; version: number }>('/v1/agents', {
      json: { name: 'spec', model: MODEL, metadata: { harness: 'scripted' } },
    });
    expect(named).toMatchObject({ harness: { type: 'scripted' }, version: 1 });
    const changed = await client.json<object>(`/v1/agents/${named.id}`, {
      json: { harness: { type: 'opencode', version: '1.18.33' }, metadata: { harness: 'opencode' } },
    });
    expect(changed).toMatchObject({ harness: { type: 'opencode', version: '1.18.33' }, version: 2 });
  });

  it.each([
    [{ harness: { type: 'goose' } }, /"goose" is not enabled.*native, scripted, opencode, codex/],
    [{ harness: { type: 'opencode', version: '0.1' } }, /opencode 1\.18\.33, not 0\.1/],
    [{ harness: { type: 'native' }, metadata: { harness: 'opencode' } }, /name one of them/],
    [{ harness: { type: 'opencode', options: { a: 1 } } }, /options/],
    [
      {
        harness: { type: 'opencode' },
        tools: [{ type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } }],
      },
      /Custom tools and MCP servers/,
    ],
    [agentOf('codex', 'always_ask'), /"codex" cannot ask.*always_allow/],
  ])('is refused by name where the deployment cannot run it: %j', async (body, message) => {
    const refused = await client.api('/v1/agents', { json: { name: 'spec', model: MODEL, ...body } });
    expect(refused.status).toBe(400);
    expect(((await refused.json()) as { error: { message: string } }).error.message).toMatch(message);
  });
});
