import { setTimeout as sleep } from 'node:timers/promises';
import { type Agent, type Environment, LIMITS, newId } from '@holdfast/contracts';
import { startMcpServer, type TestMcpServer } from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { z } from 'zod';
import type { SessionService } from '../host/session-service.ts';
import { idle, type ModelCall, ofType, say, texts, types, World } from '../test/world.ts';

let world: World;
let tracker: TestMcpServer;
let closed: TestMcpServer;
let gone: TestMcpServer;
let settings: Record<string, string | number>;
let service: SessionService;
/** How long `slow` takes. */
let slowMs = 0;

beforeAll(async () => {
  const inputSchema = z.object({ question: z.string() });
  [world, tracker, closed, gone] = await Promise.all([
    World.start(),
    startMcpServer((server) => {
      server.registerTool('find', { description: 'finds tickets', inputSchema }, ({ question }) => ({
        content: [{ type: 'text', text: `TICKET-7 for ${question}` }],
      }));
      server.registerTool('picture', { description: 'draws', inputSchema }, () => ({
        content: [{ type: 'image', mimeType: 'image/png', data: 'A'.repeat(LIMITS.inlineBytes) }],
      }));
      server.registerTool('slow', { description: 'takes its time', inputSchema }, async () => {
        await sleep(slowMs, undefined, { ref: false });
        return { content: [{ type: 'text', text: 'at last' }] };
      });
    }),
    startMcpServer(() => undefined, { refuse: 401 }),
    startMcpServer(() => undefined),
  ]);
  await gone.stop();
  settings = { MCP_ALLOW_PRIVATE: [tracker, closed, gone].map(({ host }) => host).join(',') };
  service = await world.service('session-1', settings);
}, 180_000);
afterAll(async () => {
  await world.stop();
  await Promise.all([tracker.stop(), closed.stop()]);
}, 60_000);
afterEach(() => {
  world.model.answer = () => false;
  slowMs = 0;
});

const toolset = (name: string, rest: object = {}) => ({ type: 'mcp_toolset', mcp_server_name: name, ...rest });
const allowed = { default_config: { permission_policy: { type: 'always_allow' } } };
const agent = (servers: Record<string, TestMcpServer>, tools: object[]): Promise<Agent> =>
  world.createAgent(tools, {
    mcp_servers: Object.entries(servers).map(([name, { url }]) => ({ type: 'url', name, url })),
  });
const offered = (call: ModelCall | undefined): string[] =>
  ((call?.body.tools ?? []) as { function: { name: string } }[]).map((tool) => tool.function.name);
const newCalls = async <T>(run: () => Promise<T>): Promise<{ calls: readonly string[]; of: T }> => {
  const before = tracker.calls.length;
  const of = await run();
  return { calls: tracker.calls.slice(before), of };
};

describe('the tools of an agent’s MCP servers', () => {
  it('are offered beside its own, without those that are disabled, and ask before they run', async () => {
    const owner = await agent({ tracker }, [
      toolset('tracker', { configs: [{ name: 'slow', enabled: false }] }),
      { type: 'custom', name: 'lookup', description: '', input_schema: { type: 'object' } },
    ]);
    const session = await world.createSession({}, owner);
    const { calls } = await newCalls(async () => {
      await world.send(session.id, [say('ASK[mcp__tracker__find] slow pages')]);
      const asked = await world.until(session.id, idle());
      expect(offered(world.model.calls.at(-1))).toEqual(['mcp__tracker__find', 'mcp__tracker__picture', 'lookup']);
      const [use] = ofType(asked, 'agent.mcp_tool_use');
      expect(use?.data).toEqual({
        mcp_server_name: 'tracker',
        name: 'find',
        input: { question: 'ASK[mcp__tracker__find] slow pages' },
        evaluated_permission: 'ask',
      });
      expect(asked.at(-1)?.data).toEqual({ stop_reason: { type: 'requires_action', event_ids: [use?.id] } });
      expect(tracker.calls).not.toContain('find');
      await world.send(session.id, [{ type: 'user.tool_confirmation', tool_use_id: use?.id, result: 'allow' }]);
      const all = await world.until(session.id, idle(2));
      expect(ofType(all, 'agent.mcp_tool_result')[0]?.data).toMatchObject({
        mcp_tool_use_id: use?.id,
        is_error: false,
        outcome: 'completed',
        content: [{ type: 'text', text: expect.stringContaining('TICKET-7 for ASK[') }],
      });
      expect(texts(all)[0]).toContain('TICKET-7');
    });
    expect(calls).toEqual(['find']);
  });

  it('are not called when the client denies it', async () => {
    const session = await world.createSession({}, await agent({ tracker }, [toolset('tracker')]));
    const { calls } = await newCalls(async () => {
      await world.send(session.id, [say('ASK[mcp__tracker__find]')]);
      const id = ofType(await world.until(session.id, idle()), 'agent.mcp_tool_use')[0]?.id;
      await world.send(session.id, [{ type: 'user.tool_confirmation', tool_use_id: id, result: 'deny' }]);
      const all = await world.until(session.id, idle(2));
      expect(ofType(all, 'agent.mcp_tool_result')[0]?.data).toMatchObject({ is_error: true, outcome: 'denied' });
    });
    expect(calls).toEqual([]);
  });

  it('may give more than an event holds: it is stored as a blob, and the model sees it', async () => {
    const session = await world.createSession({}, await agent({ tracker }, [toolset('tracker', allowed)]));
    await world.send(session.id, [say('ASK[mcp__tracker__picture]')]);
    const all = await world.until(session.id, idle());
    expect(ofType(all, 'agent.mcp_tool_result')[0]?.data.content).toEqual([
      { type: 'x_blob', digest: expect.any(String), size_bytes: expect.any(Number) },
    ]);
    expect(JSON.stringify(world.model.calls.at(-1)?.body)).toContain('data:image/png;base64,AAAA');
  });

  it('of a server that cannot be used are left out of the turn, which says so once and goes on', async () => {
    const owner = await agent(
      { tracker, closed, gone },
      ['tracker', 'closed', 'gone'].map((name) => toolset(name, allowed)),
    );
    const session = await world.createSession({}, owner);
    await world.send(session.id, [say('ASK[mcp__tracker__find]')]);
    const first = await world.until(session.id, idle());
    const errors = (all: typeof first) => ofType(all, 'session.error').map(({ data }) => data.error);
    const told = [
      { type: 'mcp_authentication_failed_error', mcp_server_name: 'closed', retry_status: { type: 'retrying' } },
      { type: 'mcp_connection_failed_error', mcp_server_name: 'gone', retry_status: { type: 'retrying' } },
    ];
    expect(errors(first).toSorted((a, b) => a.type.localeCompare(b.type))).toMatchObject(told);
    expect(texts(first)[0]).toContain('TICKET-7');
    expect(first.at(-1)?.data).toEqual({ stop_reason: { type: 'end_turn' } });
    await world.send(session.id, [say('hello')]);
    expect(errors(await world.until(session.id, idle(2)))).toHaveLength(4);
  });

  it('are not reached from an environment that allows neither them nor their host', async () => {
    const limited = async (rest: object): Promise<string> => {
      const environment = await world.command<Environment>('environment', newId('environment'), 'create', {
        name: newId('environment'),
        config: { type: 'cloud', networking: { type: 'limited', ...rest } },
      });
      return environment.id;
    };
    const owner = await agent({ tracker }, [toolset('tracker', allowed)]);
    const errorsIn = async (environment: string): Promise<string[]> => {
      const session = await world.createSession({ environment_id: environment }, owner);
      await world.send(session.id, [say('hello')]);
      return ofType(await world.until(session.id, idle()), 'session.error').map(({ data }) => data.error.message);
    };
    expect(await errorsIn(await limited({}))).toEqual([
      expect.stringContaining('the environment allows neither MCP servers nor the host 127.0.0.1'),
    ]);
    expect(await errorsIn(await limited({ allow_mcp_servers: true }))).toEqual([]);
    expect(await errorsIn(await limited({ allowed_hosts: ['127.0.0.1'] }))).toEqual([]);
  });
});

describe('a call of an MCP tool that is under way', () => {
  const begin = async (): Promise<string> => {
    slowMs = 2_000;
    const before = tracker.calls.length;
    const session = await world.createSession({}, await agent({ tracker }, [toolset('tracker', allowed)]));
    await world.send(session.id, [say('ASK[mcp__tracker__slow]')]);
    while (tracker.calls.length === before) await sleep(5);
    return session.id;
  };

  it('when its worker is lost has an unknown outcome and is never made again (T4)', async () => {
    const { calls, of: all } = await newCalls(async () => {
      const id = await begin();
      const other = await world.service('session-2', settings);
      await world.stealLease(id);
      const events = await world.until(id, idle());
      await world.stopService(other);
      await sleep(2_100);
      expect(await world.events(id)).toHaveLength(events.length);
      return events;
    });
    expect(ofType(all, 'session.turn_started').at(-1)?.data.takeover).toBe(true);
    expect(ofType(all, 'agent.mcp_tool_result').map(({ data }) => data)).toMatchObject([
      { is_error: true, outcome: 'unknown', content: [{ text: expect.stringContaining('Outcome unknown') }] },
    ]);
    expect(calls).toEqual(['slow']);
  });

  it('when its worker leaves, too', async () => {
    const { calls } = await newCalls(async () => {
      const id = await begin();
      await world.stopService(service);
      service = await world.service('session-1', settings);
      const all = await world.until(id, idle());
      expect(ofType(all, 'agent.mcp_tool_result').map(({ data }) => data.outcome)).toEqual(['unknown']);
    });
    expect(calls).toEqual(['slow']);
  });

  it('is cut by an interrupt at once, its outcome unknown', async () => {
    const id = await begin();
    const began = performance.now();
    await world.send(id, [{ type: 'user.interrupt' }]);
    const all = await world.until(id, idle());
    expect(performance.now() - began).toBeLessThan(1_500);
    expect(types(all).slice(-2)).toEqual(['agent.mcp_tool_result', 'session.status_idle']);
    expect(ofType(all, 'agent.mcp_tool_result')[0]?.data.outcome).toBe('unknown');
  });
});
