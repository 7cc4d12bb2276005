import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connectBus } from '@holdfast/bus';
import { checkLog, compareProjection, createLogPool, EventLog } from '@holdfast/event-store';
import {
  eventsInStream,
  type Frame,
  startMcpServer,
  startPlatform,
  TestClient,
  type TestMcpServer,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import { z } from 'zod';
import { sessionProjection } from './session/session.projection.ts';

const CRASH = fileURLToPath(new URL('../../../libs/testing/src/crash.mjs', import.meta.url));
/** Above this a context is compacted; only one scenario gets there. */
const CONTEXT_TOKENS = 4_000;

let platform: TestPlatform;
let client: TestClient;
let pool: pg.Pool;
let tracker: TestMcpServer;
beforeAll(async () => {
  tracker = await startMcpServer((server) => {
    server.registerTool('open', { description: 'opens a ticket', inputSchema: z.object({}) }, () => ({
      content: [{ type: 'text', text: 'TICKET-7' }],
    }));
  });
  platform = await startPlatform({
    NODE_OPTIONS: `--import=${CRASH}`,
    TURN_LEASE_MS: '1000',
    MCP_ALLOW_PRIVATE: tracker.host,
    MODEL_CONTEXT_TOKENS: String(CONTEXT_TOKENS),
  });
  client = new TestClient(platform);
  pool = createLogPool({
    connectionString: platform.databaseUrl,
    applicationName: 'spec',
    max: 2,
    onIdleError: () => undefined,
  });
}, 240_000);
afterAll(async () => {
  await pool?.end();
  await platform?.stop();
  await tracker?.stop();
}, 60_000);

type Event = Frame['data'];
const textOf = (event: Event | undefined): string => (event?.content ?? []).map((block) => block.text).join('');
const ofType = (events: readonly Event[], type: string): Event[] => events.filter((event) => event.type === type);
const file = (): string => join(platform.stateDir, 'crash-at');

/** The next process that comes to this step dies there. */
function arm(step: string): void {
  rmSync(`${file()}.reached`, { force: true });
  writeFileSync(file(), step);
}
async function expectReached(step: string): Promise<void> {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline && !existsSync(`${file()}.reached`); )
    await sleep(20);
  expect([step, existsSync(`${file()}.reached`)]).toEqual([step, true]);
}

let count = 0;
/** Sends a message and waits for the end; whatever dies meanwhile, it is stored once and answered once. */
async function converse(id: string, text: string): Promise<Event[]> {
  const before = (await client.events(id)).length;
  await client.insist(`/v1/sessions/${id}/events`, { events: [userMessage(text)] }, `${id}-${count++}`, 30_000);
  const events = (await client.untilIdle(id, 30_000)).slice(before);
  expect(ofType(events, 'user.message').map((event) => [textOf(event), event.processed_at === null])).toEqual([
    [text, false],
  ]);
  expect(ofType(events, 'session.status_idle')).toHaveLength(1);
  expect(ofType(events, 'session.error')).toEqual([]);
  const uses = ofType(events, 'agent.tool_use').map((event) => event.id);
  expect(ofType(events, 'agent.tool_result').map((event) => event['tool_use_id'])).toEqual(uses);
  return events;
}

describe('a process that dies', () => {
  const steps = [
    'append.beginning',
    'append.written',
    'append.committed',
    'command.done',
    'model.streaming',
    'model.answered',
    'tool.opened',
    'tool.attached',
    'tool.done',
    'relay.published',
    'relay.checkpointed',
  ];

  it.each(steps)(
    'at %s loses nothing and does nothing twice',
    async (step) => {
      const id = await client.session();
      // The sandbox stands, so that only what is asked for happens after the crash is armed.
      await converse(id, 'RUN[true]');
      arm(step);
      const events = await converse(id, `SLOW[2] RUN[echo line >> lines.txt]`);
      await expectReached(step);
      expect(ofType(events, 'agent.message').map(textOf).at(-1)).toMatch(/^Done/);
      const counted = textOf(ofType(await converse(id, 'RUN[wc -l < lines.txt]'), 'agent.tool_result')[0]);
      const [result] = ofType(events, 'agent.tool_result');
      expect([step, counted.trim(), result?.['is_error']]).toEqual([step, '1', false]);
    },
    90_000,
  );

  it.each(['append.committed', 'turn.taken-over', 'model.streaming'])(
    'at %s of a takeover leaves the turn to the next one',
    async (step) => {
      const id = await client.session();
      await client.insist(`/v1/sessions/${id}/events`, { events: [userMessage('SLOW[8]')] }, `${id}-slow`, 30_000);
      await sleep(300);
      arm(step);
      platform.kill('session');
      await expectReached(step);
      const events = await client.untilIdle(id, 30_000);
      expect(ofType(events, 'agent.message')).toHaveLength(1);
    },
    60_000,
  );

  it.each(['outputs.found', 'outputs.kept'])(
    'at %s makes one file of what a session left, and the turn ends',
    async (step) => {
      const id = await client.session();
      await converse(id, 'RUN[true]');
      arm(step);
      await converse(id, 'RUN[echo out > /mnt/session/outputs/out.txt]');
      await expectReached(step);
      const { data } = await client.json<{ data: object[] }>(`/v1/files?scope_id=${id}`);
      expect(data).toMatchObject([{ filename: 'out.txt', size_bytes: 4 }]);
    },
    90_000,
  );

  it('at the first tool call, between the sandbox that was made and the call', async () => {
    const id = await client.session();
    arm('tool.attached');
    const events = await converse(id, 'RUN[echo line >> lines.txt; wc -l < lines.txt]');
    await expectReached('tool.attached');
    expect(textOf(ofType(events, 'agent.tool_result')[0]).trim()).toBe('1');
  }, 60_000);

  it.each([
    ['tool.opened', 0],
    ['tool.sent', 0],
    ['tool.done', 1],
  ] as const)(
    'at %s of a call to an MCP server, which was made %i times, makes none after it, and its outcome is unknown (T4)',
    async (step, made) => {
      const agent = await client.json<{ id: string }>('/v1/agents', {
        json: {
          name: 'mcp',
          model: 'demo',
          mcp_servers: [{ type: 'url', name: 'tracker', url: tracker.url }],
          tools: [
            {
              type: 'mcp_toolset',
              mcp_server_name: 'tracker',
              default_config: { permission_policy: { type: 'always_allow' } },
            },
          ],
        },
      });
      const { id } = await client.json<{ id: string }>('/api/sessions', { json: { agent_id: agent.id } });
      const before = tracker.calls.length;
      arm(step);
      const events = await converse(id, 'ASK[mcp__tracker__open]');
      await expectReached(step);
      const results = ofType(events, 'agent.mcp_tool_result');
      expect(results.map((event) => [event['is_error'], textOf(event).slice(0, 16)])).toEqual([
        [true, 'Outcome unknown:'],
      ]);
      expect(textOf(ofType(events, 'agent.message').at(-1))).toContain('Outcome unknown');
      expect(tracker.calls.length - before).toBe(made);
    },
    60_000,
  );

  it('in the middle of a compaction makes it again, and the turn goes on', async () => {
    const id = await client.session();
    await converse(id, 'y'.repeat(CONTEXT_TOKENS * 5));
    arm('compaction.answered');
    const events = await converse(id, 'SLOW[2]');
    await expectReached('compaction.answered');
    expect(ofType(events, 'agent.thread_context_compacted')).toHaveLength(1);
    expect(ofType(events, 'agent.message').map(textOf)).toEqual(['word1 word2']);
  }, 60_000);

  it('in a consumer, before or after it handled its event: it is handled once', async () => {
    for (const step of ['event.received', 'event.handled']) {
      const id = await client.session();
      await converse(id, 'RUN[true]');
      arm(step);
      await client.insist(`/v1/sessions/${id}/archive`, {}, `${id}-archive`, 30_000);
      await expectReached(step);
      const gone = async (): Promise<number> => {
        const { rows } = await pool.query<{ gone: number }>(
          `select count(*)::integer as gone from events e join sandboxes s on e.stream_id = 'sandbox-' || s.id
           where s.session_id = $1 and e.type = 'sandbox.destroyed'`,
          [id],
        );
        return rows[0]?.gone ?? 0;
      };
      // What a dead consumer had in hand comes again when the broker's patience ends.
      for (const deadline = Date.now() + 45_000; Date.now() < deadline && (await gone()) === 0; ) await sleep(250);
      expect([step, await gone()]).toEqual([step, 1]);
    }
  }, 150_000);
});

it('after all of that the log is whole, the read model equals it, and JetStream holds every event once', async () => {
  expect(await checkLog(pool)).toEqual([]);
  const log = new EventLog({ pool });
  expect(await compareProjection(pool, log, sessionProjection)).toEqual([]);
  const bus = await connectBus({
    servers: `nats://127.0.0.1:${platform.env['NATS_PORT']}`,
    user: 'session',
    password: platform.secret('nats-session'),
    name: 'spec',
  });
  try {
    let found: string[] = [];
    let logged: string[] = [];
    for (const deadline = Date.now() + 20_000; Date.now() < deadline; await sleep(200)) {
      logged = (await log.readAll({ after: { txid: '0', position: '0' }, limit: 10_000 })).events.map(({ id }) => id);
      found = await eventsInStream(bus);
      if (found.length === logged.length) break;
    }
    expect(found).toEqual(logged);
  } finally {
    await bus.close();
  }
}, 60_000);
