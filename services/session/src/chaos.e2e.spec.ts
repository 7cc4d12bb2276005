import { setTimeout as sleep } from 'node:timers/promises';
import { connectBus } from '@holdfast/bus';
import { checkLog, compareProjection, createLogPool, EventLog } from '@holdfast/event-store';
import {
  eventsInStream,
  expectSound,
  type Frame,
  ofType,
  sandboxesOf,
  spoilEventsStream,
  startPlatform,
  TestClient,
  type TestPlatform,
  textOf,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { sessionProjection } from './session/session.projection.ts';

const SESSIONS = 20;
/** Of those, the last ask for every tool call. */
const ASKING = 3;
const READERS = 6;
const CHAOS_MS = 60_000;
const SINGLE = ['session', 'session-2', 'gateway-api', 'sandbox', 'nats', 'postgres', 'runner'];
const ALL = ['supervisor', 'session', 'session-2', 'gateway-api', 'sandbox', 'nats', 'postgres', 'demo-gateway'];

let platform: TestPlatform;
let client: TestClient;
beforeAll(async () => {
  platform = await startPlatform({ SESSION_REPLICAS: '2' });
  client = new TestClient(platform);
}, 240_000);
/** Also when a test fails. */
const onTestEnd: (() => void)[] = [];
afterAll(async () => {
  for (const end of onTestEnd) end();
  await platform?.stop();
}, 60_000);

type Event = Frame['data'];
const pick = <T>(from: readonly T[]): T => from[Math.floor(Math.random() * from.length)] as T;

/** A process of some sandbox, as the host sees it: its runner, what is above it, or a tool. */
function sandboxPid(): number {
  return pick(pick(sandboxesOf(platform)).pids);
}

/** `kill -9`; false when it is just being started again. */
function kill(name: string): boolean {
  try {
    if (name === 'runner') process.kill(sandboxPid(), 'SIGKILL');
    else platform.kill(name);
    return true;
  } catch {
    return false;
  }
}

/** A client's life: sends, waits a little, sends again; answers what its session asks. Returns what was acknowledged. */
async function converse(id: string, s: number, until: number): Promise<string[]> {
  const sent: string[] = [];
  for (let n = 0; Date.now() < until; n++) {
    const mark = `s${s}n${n}`;
    const text = n % 3 === 2 ? `SLOW[5] ${mark}` : `RUN[echo ${mark} >> /workspace/lines.txt; sleep 0.2] ${mark}`;
    await client.insist(`/v1/sessions/${id}/events`, { events: [userMessage(text)] }, `${id}-${n}`, 60_000);
    sent.push(mark);
    await sleep(Math.random() * 2_000);
    if (s >= SESSIONS - ASKING) await answerGates(id);
  }
  return sent;
}

/** Allows the calls that a session waits with; false when it does not. */
async function answerGates(id: string): Promise<boolean> {
  const session = await client
    .json<{ x_stop_reason: { event_ids?: string[] } | null; status: string }>(`/v1/sessions/${id}`)
    .catch(() => null);
  const calls = session?.status === 'idle' ? (session.x_stop_reason?.event_ids ?? []) : [];
  for (const call of calls) {
    const allow = { type: 'user.tool_confirmation', tool_use_id: call, result: 'allow' };
    await client.insist(`/v1/sessions/${id}/events`, { events: [allow] }, `${id}-${call}`, 60_000);
  }
  return calls.length > 0;
}

describe('kill -9 at random', () => {
  it(`loses and doubles nothing in ${SESSIONS} busy sessions`, async () => {
    const asking = [
      {
        type: 'agent_toolset_20260401',
        configs: [{ name: 'bash', permission_policy: { type: 'always_ask' } }],
      },
    ];
    const ids = await Promise.all(
      Array.from({ length: SESSIONS }, (_, s) => client.session(s >= SESSIONS - ASKING ? asking : undefined)),
    );
    const end = Date.now() + CHAOS_MS;
    const following = new AbortController();
    onTestEnd.push(() => following.abort());
    const clients = ids.map((id, s) => converse(id, s, end));
    const cutMs = (): number => Math.floor(Math.random() * 3_000);
    const readers = ids.slice(0, READERS).map((id) => client.follow(id, following.signal, { cutMs }));
    const killed: Record<string, number> = {};
    let emptied = false;
    for (let n = 1; Date.now() < end; n++) {
      await sleep(800 + Math.random() * 1_500);
      if (n % 12 === 0) {
        for (const name of ALL) kill(name);
        killed['all'] = (killed['all'] ?? 0) + 1;
        await platform.up('--detach');
      } else {
        const name = pick(SINGLE);
        if (kill(name)) killed[name] = (killed[name] ?? 0) + 1;
      }
      if (!emptied && n > 6) emptied = await emptyJetStream();
    }
    const sent = await Promise.all(clients);
    await platform.up('--detach');
    expect(Object.values(killed).reduce((a, b) => a + b, 0)).toBeGreaterThan(15);
    expect([emptied, killed['all'] ?? 0]).toEqual([true, expect.any(Number)]);

    const executed = await Promise.all(
      ids.map(async (id, s) => {
        const marks = sent[s] ?? [];
        let events = await settled(id);
        expectSound(events);
        const messages = ofType(events, 'user.message').map((event) => textOf(event).split(' ').at(-1));
        // Every acknowledged message is in the log once, in order, and was taken up.
        expect(messages).toEqual(marks);
        expect(ofType(events, 'user.message').filter((event) => event.processed_at === null)).toEqual([]);

        await client.insist(
          `/v1/sessions/${id}/events`,
          { events: [userMessage('RUN[cat /workspace/lines.txt]')] },
          `${id}-cat`,
          30_000,
        );
        events = await settled(id);
        const lines = textOf(ofType(events, 'agent.tool_result').at(-1))
          .split('\n')
          .filter((line) => /^s\d+n\d+$/.test(line));
        expect(new Set(lines).size).toBe(lines.length);
        const results = new Map(ofType(events, 'agent.tool_result').map((event) => [event['tool_use_id'], event]));
        for (const use of ofType(events, 'agent.tool_use')) {
          const mark = /echo (s\d+n\d+)/.exec(JSON.stringify(use['input']))?.[1];
          if (mark === undefined || lines.includes(mark)) continue;
          // A line can be missing only where the call's result says that it failed.
          expect([mark, results.get(use.id)?.['is_error']]).toEqual([mark, true]);
        }
        return lines.length;
      }),
    );
    expect(executed.reduce((a, b) => a + b, 0)).toBeGreaterThan(SESSIONS);

    // What was read in pieces is what the log shows.
    const whole = await Promise.all(
      ids.slice(0, READERS).map(async (id) => {
        const idles = ofType(await client.events(id), 'session.status_idle').length;
        return client.frames(
          `/v1/sessions/${id}/events/stream?after=0`,
          (all) => all.filter((frame) => frame.event === 'session.status_idle').length === idles,
        );
      }),
    );
    await sleep(4_000);
    following.abort();
    for (const [s, seen] of (await Promise.all(readers)).entries())
      expect(seen).toEqual(whole[s]?.map(({ id, data }) => ({ id, json: JSON.stringify(data) })));

    const pool = createLogPool({ connectionString: platform.databaseUrl, applicationName: 'spec', max: 2 });
    try {
      const log = new EventLog({ pool });
      expect(await checkLog(pool)).toEqual([]);
      expect(await compareProjection(pool, log, sessionProjection)).toEqual([]);
      await expectRelayed(log);
    } finally {
      await pool.end();
    }
  }, 300_000);
});

/** A session that has nothing left to do: no call waits for an answer and it is idle. */
async function settled(id: string): Promise<Event[]> {
  for (const deadline = Date.now() + 120_000; ; ) {
    const left = Math.max(1, deadline - Date.now());
    const events = await client.untilIdle(id, Math.min(left, 2_000)).catch(() => []);
    if (!(await answerGates(id)) && events.length > 0) return events;
    if (Date.now() > deadline) throw new Error(`${id} did not settle`);
  }
}

const connect = () =>
  connectBus({
    servers: `nats://127.0.0.1:${platform.env['NATS_PORT']}`,
    user: 'session',
    password: platform.secret('nats-session'),
    name: 'spec',
  });

/** Empties the stream of events under everything else; false when NATS was away just then. */
async function emptyJetStream(): Promise<boolean> {
  const bus = await connect();
  try {
    await spoilEventsStream(bus, 'purge');
    return true;
  } catch {
    return false;
  } finally {
    await bus.close();
  }
}

/** JetStream holds every event of the log, once and in its order. */
async function expectRelayed(log: EventLog): Promise<void> {
  const logged: string[] = [];
  for (let after = { txid: '0', position: '0' }; ; ) {
    const page = await log.readAll({ after, limit: 5_000 });
    logged.push(...page.events.map(({ id }) => id));
    after = page.cursor;
    if (page.events.length === 0) break;
  }
  const bus = await connect();
  try {
    let found: string[] = [];
    for (
      const deadline = Date.now() + 30_000;
      found.length !== logged.length && Date.now() < deadline;
      await sleep(500)
    )
      found = await eventsInStream(bus);
    expect(found).toEqual(logged);
  } finally {
    await bus.close();
  }
}

describe('a turn worker that was stopped past its lease', () => {
  it('is fenced when it goes on: one answer, nothing doubled', async () => {
    const id = await client.session();
    await client.json(`/v1/sessions/${id}/events`, { json: { events: [userMessage('SLOW[40]')] } });
    await sleep(500);
    const started = async () =>
      (
        await client.json<{
          data: { type: string; data: { worker: string; takeover: boolean; generation: number } }[];
        }>(`/v1/sessions/${id}/x/timeline`)
      ).data
        .filter(({ type }) => type === 'session.turn_started')
        .map(({ data }) => data);
    const [first] = await started();
    const holder = first?.worker.split(':')[0] ?? '';
    const pid = platform.pid(holder);
    process.kill(pid, 'SIGSTOP');
    try {
      await sleep(7_000);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    const events = await client.untilIdle(id, 30_000);
    expectSound(events);
    expect(ofType(events, 'agent.message')).toHaveLength(1);
    const [before, after] = await started();
    expect([before?.takeover, after?.takeover]).toEqual([false, true]);
    expect(after?.worker).not.toBe(before?.worker);
    // It goes on living, and knows that the session is not its own any more.
    expect(platform.pid(holder)).toBe(pid);
    const fenced = (): boolean =>
      platform
        .log(holder)
        .split('\n')
        .some(
          (line) =>
            line.includes(id) && line.includes(`"generation":${before?.generation},`) && line.includes('fenced'),
        );
    for (const deadline = Date.now() + 5_000; !fenced() && Date.now() < deadline; ) await sleep(100);
    expect(fenced()).toBe(true);
    const pool = createLogPool({ connectionString: platform.databaseUrl, applicationName: 'spec', max: 1 });
    try {
      const head = await new EventLog({ pool }).streamHead(`session-${id}`);
      const late = new EventLog({ pool }).append({
        appends: [
          {
            streamId: `session-${id}`,
            workspaceId: head?.workspaceId ?? '',
            generation: before?.generation ?? 0,
            events: [{ id: `sevt_late_${id}`, type: 'user.interrupt', data: {} }],
          },
        ],
      });
      await expect(late).rejects.toMatchObject({ code: 'log.generation-fenced' });
    } finally {
      await pool.end();
    }
  }, 60_000);
});
