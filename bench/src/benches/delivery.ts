import { setTimeout as sleep } from 'node:timers/promises';
import { CommitHints, connectBus } from '@holdfast/bus';
import { newId, type StoredEvent, streamOf } from '@holdfast/contracts';
import type { EventLog } from '@holdfast/event-store';
import type { EventStream } from '../api-client.ts';
import { type Arena, type Bench, type Figure, median, quantile } from '../bench.ts';
import { withPlatformLog } from '../long-session.ts';
import { pssMib } from '../processes.ts';

interface Audience {
  readonly sessions: readonly string[];
  readonly streams: readonly EventStream[];
  /** Event id → when each client had its last byte. */
  readonly arrivals: Map<string, number[]>;
}

async function audience({ api }: Arena, sessions: number, clientsEach: number): Promise<Audience> {
  const arrivals = new Map<string, number[]>();
  const ids: string[] = [];
  const streams: EventStream[] = [];
  for (let s = 0; s < sessions; s++) {
    const id = await api.setup.session();
    ids.push(id);
    const opened = Array.from({ length: clientsEach }, () =>
      api.stream(id, ({ data }, at) => arrivals.get(data.id ?? '')?.push(at)),
    );
    streams.push(...(await Promise.all(opened)));
  }
  return { sessions: ids, streams, arrivals };
}

/**
 * Appends single events to the sessions in turns at a steady rate and tells of each commit as the session service does.
 * Returns, per client and event, the time from COMMIT's return to the last byte at the client. Open loop: a slow
 * platform does not slow the appends down.
 */
async function deliveries(
  arena: Arena,
  { sessions, streams, arrivals }: Audience,
  perSecond: number,
  seconds: number,
): Promise<number[]> {
  const { platform } = arena;
  const bus = await connectBus({
    servers: `nats://127.0.0.1:${platform.env['NATS_PORT']}`,
    user: 'session',
    password: platform.secret('nats-session'),
    name: 'bench',
  });
  const hints = new CommitHints(bus);
  const committedAt = new Map<string, number>();
  const onCommitted = (events: readonly StoredEvent[]): void => {
    const at = performance.now();
    for (const { id } of events) committedAt.set(id, at);
    hints.publish(events);
  };
  try {
    await withPlatformLog(arena, (log) => appends(log, sessions, arrivals, perSecond, seconds), onCommitted);
    const clientsEach = streams.length / sessions.length;
    const missing = (): number => [...arrivals.values()].filter((at) => at.length < clientsEach).length;
    for (const deadline = Date.now() + 10_000; missing() > 0 && Date.now() < deadline; ) await sleep(20);
    if (missing() > 0) throw new Error(`${missing()} of ${arrivals.size} events did not reach every client`);
    return [...arrivals].flatMap(([id, at]) => at.map((each) => each - (committedAt.get(id) ?? Number.NaN)));
  } finally {
    await bus.close();
  }
}

async function appends(
  log: EventLog,
  sessions: readonly string[],
  arrivals: Map<string, number[]>,
  perSecond: number,
  seconds: number,
): Promise<void> {
  const workspaceId = (await log.streamHead(streamOf('session', sessions[0] ?? '')))?.workspaceId ?? '';
  const pending: Promise<unknown>[] = [];
  const startedAt = performance.now();
  for (let n = 0; n < perSecond * seconds; n++) {
    const waitMs = startedAt + (n * 1_000) / perSecond - performance.now();
    if (waitMs > 0) await sleep(waitMs);
    const id = newId('event');
    arrivals.set(id, []);
    const data = { content: [{ type: 'text', text: 'The quick brown fox jumps over the lazy dog.' }] };
    const events = [{ id, type: 'agent.message', schemaVersion: 1, data }];
    const streamId = streamOf('session', sessions[n % sessions.length] ?? '');
    pending.push(log.append({ appends: [{ streamId, workspaceId, events }] }));
  }
  await Promise.all(pending);
}

function latencyFigures(what: string, samples: readonly number[], p99Target: boolean, detail: string): Figure[] {
  return [
    {
      what: `${what}, p99`,
      value: quantile(samples, 0.99),
      unit: 'ms',
      ...(p99Target ? { target: { atMost: 50 } } : {}),
      detail,
    },
    { what: `${what}, p50`, value: median(samples), unit: 'ms' },
  ];
}

export const deliveryBench: Bench = {
  name: 'delivery',
  about: 'log → SSE: from COMMIT’s return to the last byte at the client, 500 events per second',
  async run(stage) {
    const arena = await stage.arena();
    const crowd = await audience(arena, 50, 2);
    const samples = await deliveries(arena, crowd, 500, 8);
    for (const stream of crowd.streams) stream.close();
    return latencyFigures(
      'log → SSE at 500 events/s',
      samples,
      true,
      `${samples.length} deliveries; 50 sessions, 2 clients each, one event per append, at a steady rate for 8 s`,
    );
  },
};

const CLIENT_SESSIONS = 200;
const CLIENTS_EACH = 10;

export const clientsBench: Bench = {
  name: 'clients',
  about: '2,000 SSE clients on one gateway: memory of each, and delivery to them',
  async run(stage) {
    const arena = await stage.arena();
    const pid = arena.platform.pid('gateway-api');
    const before = pssMib(pid);
    const crowd = await audience(arena, CLIENT_SESSIONS, CLIENTS_EACH);
    await sleep(2_000);
    const open = pssMib(pid);
    const samples = await deliveries(arena, crowd, 100, 8);
    const busy = pssMib(pid);
    for (const stream of crowd.streams) stream.close();
    const clients = CLIENT_SESSIONS * CLIENTS_EACH;
    const sessions = `${clients} clients of ${CLIENT_SESSIONS} sessions on one gateway`;
    return [
      {
        what: 'gateway memory per open SSE client',
        value: ((open - before) * 1_024) / clients,
        unit: 'KiB',
        detail: `PSS ${before.toFixed(0)} MiB before, ${open.toFixed(0)} MiB with ${sessions}, ${busy.toFixed(0)} MiB after the deliveries`,
      },
      ...latencyFigures(
        'log → SSE with 2,000 clients',
        samples,
        false,
        `${samples.length} deliveries; ${sessions}; 100 events/s, so 1,000 deliveries/s, for 8 s`,
      ),
    ];
  },
};
