import { setTimeout as sleep } from 'node:timers/promises';
import { checkLog } from '@holdfast/event-store';
import { type Frame, startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';

const SESSIONS = 20;
const CHAOS_MS = 60_000;
const SINGLE = ['session', 'session-2', 'gateway-api', 'sandbox', 'nats', 'postgres'];

let platform: TestPlatform;
let client: TestClient;
beforeAll(async () => {
  platform = await startPlatform({ SESSION_REPLICAS: '2' });
  client = new TestClient(platform);
}, 240_000);
afterAll(async () => {
  await platform?.stop();
}, 60_000);

type Event = Frame['data'];
const textOf = (event: Event): string => (event.content ?? []).map((block) => block.text).join('');

/** What must hold of a session's events, whatever was killed. */
function expectSound(events: readonly Event[]): void {
  const ids = events.map((event) => event.id);
  expect(new Set(ids).size).toBe(ids.length);
  const uses = events.filter((event) => event.type === 'agent.tool_use').map((event) => event.id);
  const results = events.filter((event) => event.type === 'agent.tool_result').map((event) => event['tool_use_id']);
  expect(results).toHaveLength(uses.length);
  expect(new Set(results)).toEqual(new Set(uses));
  const running = events
    .filter((event) => /session\.status_(running|idle)/.test(event.type))
    .map((event) => event.type);
  // Turns do not overlap: an end follows every begin.
  expect(running.filter((type, i) => type === 'session.status_idle' && running[i - 1] === type)).toEqual([]);
  expect(events.at(-1)?.type).toBe('session.status_idle');
}

async function kill(name: string): Promise<void> {
  try {
    platform.kill(name);
  } catch {
    // It is just being started again.
  }
}

describe('kill -9 at random', () => {
  it(`loses and doubles nothing in ${SESSIONS} busy sessions`, async () => {
    const ids = await Promise.all(Array.from({ length: SESSIONS }, () => client.session()));
    const sent = new Map<string, string[]>(ids.map((id) => [id, []]));
    const end = Date.now() + CHAOS_MS;
    const clients = ids.map(async (id, s) => {
      for (let n = 0; Date.now() < end; n++) {
        const mark = `s${s}n${n}`;
        const text = n % 3 === 2 ? `SLOW[5] ${mark}` : `RUN[echo ${mark} >> /workspace/lines.txt; sleep 0.2] ${mark}`;
        await client.insist(`/v1/sessions/${id}/events`, { events: [userMessage(text)] }, `${id}-${n}`, 60_000);
        sent.get(id)?.push(mark);
        await sleep(Math.random() * 2_000);
      }
    });
    const killed: Record<string, number> = {};
    for (let n = 1; Date.now() < end; n++) {
      await sleep(1_000 + Math.random() * 2_000);
      if (n % 12 === 0) {
        for (const name of ['supervisor', ...SINGLE, 'demo-gateway']) await kill(name);
        killed['all'] = (killed['all'] ?? 0) + 1;
        await platform.up('--detach');
        continue;
      }
      const name = SINGLE[Math.floor(Math.random() * SINGLE.length)] ?? 'session';
      await kill(name);
      killed[name] = (killed[name] ?? 0) + 1;
    }
    await Promise.all(clients);
    await platform.up('--detach');
    expect(Object.values(killed).reduce((a, b) => a + b, 0)).toBeGreaterThan(10);

    let executed = 0;
    for (const id of ids) {
      const marks = sent.get(id) ?? [];
      let events = await client.untilIdle(id, 120_000);
      expectSound(events);
      const messages = events
        .filter((event) => event.type === 'user.message')
        .map((event) => textOf(event).split(' ').at(-1));
      // Every acknowledged message is in the log once, in order, and was taken up.
      expect(messages).toEqual(marks);
      expect(events.filter((event) => event.type === 'user.message' && event.processed_at === null)).toEqual([]);

      await client.insist(
        `/v1/sessions/${id}/events`,
        { events: [userMessage('RUN[cat /workspace/lines.txt]')] },
        `${id}-cat`,
        30_000,
      );
      events = await client.untilIdle(id, 60_000);
      const listing = textOf(events.filter((event) => event.type === 'agent.tool_result').at(-1) as Event);
      const lines = listing.split('\n').filter((line) => /^s\d+n\d+$/.test(line));
      expect(new Set(lines).size).toBe(lines.length);
      executed += lines.length;
      const results = new Map(
        events.filter((event) => event.type === 'agent.tool_result').map((event) => [event['tool_use_id'], event]),
      );
      for (const use of events.filter((event) => event.type === 'agent.tool_use')) {
        const mark = /echo (s\d+n\d+)/.exec(JSON.stringify(use['input']))?.[1];
        if (mark === undefined || lines.includes(mark)) continue;
        // A line can be missing only where the call's result says that it failed.
        expect([mark, results.get(use.id)?.['is_error']]).toEqual([mark, true]);
      }
    }
    expect(executed).toBeGreaterThan(SESSIONS);

    const pool = new pg.Pool({ connectionString: platform.databaseUrl, max: 2 });
    try {
      expect(await checkLog(pool)).toEqual([]);
    } finally {
      await pool.end();
    }
  }, 300_000);
});

describe('a turn worker that was stopped past its lease', () => {
  it('is fenced when it goes on: one answer, nothing doubled', async () => {
    const id = await client.session();
    await client.json(`/v1/sessions/${id}/events`, { json: { events: [userMessage('SLOW[40]')] } });
    await sleep(500);
    const timeline = await client.json<{ data: { type: string; data: { worker?: string } }[] }>(
      `/v1/sessions/${id}/x/timeline`,
    );
    const worker = timeline.data.find((event) => event.type === 'session.turn_started')?.data.worker ?? '';
    const status = await client.json<{
      services: { service: string; instance: string; figures: Record<string, unknown> }[];
    }>('/v1/x/status');
    const holder = status.services.find(
      (one) => one.service === 'session' && one.figures['runningTurns'] === 1,
    )?.instance;
    expect([worker, holder]).toEqual([expect.any(String), expect.stringMatching(/^session/)]);
    const pid = platform.pid(holder as string);
    process.kill(pid, 'SIGSTOP');
    try {
      await sleep(7_000);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    const events = await client.untilIdle(id, 30_000);
    expectSound(events);
    expect(events.filter((event) => event.type === 'agent.message')).toHaveLength(1);
    const log = await client.json<{ data: { type: string; data: { takeover?: boolean; generation?: number } }[] }>(
      `/v1/sessions/${id}/x/timeline`,
    );
    const started = log.data.filter((event) => event.type === 'session.turn_started');
    expect(started.map((event) => event.data)).toMatchObject([{ takeover: false }, { takeover: true }]);
  }, 60_000);
});
