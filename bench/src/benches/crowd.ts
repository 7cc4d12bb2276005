import { setTimeout as sleep } from 'node:timers/promises';
import type { EventStream } from '../api-client.ts';
import { type Arena, type Bench, median, quantile } from '../bench.ts';
import { CORES, cpuSeconds } from '../processes.ts';

const SESSIONS = 64;

interface Member {
  readonly session: string;
  readonly stream: EventStream;
}

async function crowd({ api }: Arena): Promise<Member[]> {
  const members: Member[] = [];
  for (let n = 0; n < SESSIONS; n++) {
    const session = await api.setup.session();
    members.push({ session, stream: await api.stream(session) });
  }
  return members;
}

export const crowdBench: Bench = {
  name: 'crowd',
  about: '64 sessions at once on one session process, each answered after 1 s by the model',
  async run(stage) {
    const place = await stage.arena();
    const members = await crowd(place);
    const walls: number[] = [];
    for (let round = 0; round < 4; round++) {
      const startedAt = performance.now();
      const idleAt = await Promise.all(
        members.map(async ({ session, stream }) => {
          const idle = stream.next('session.status_idle');
          await place.api.send(session, { id: `${session}-crowd-${round}`, afterMs: 1_000 });
          return idle;
        }),
      );
      // The first round is the first turn of every session.
      if (round > 0) walls.push(Math.max(...idleAt) - startedAt);
      await sleep(500);
    }
    for (const { stream } of members) stream.close();
    return [
      {
        what: '64 sessions, 1 s answers: first message sent → last session.status_idle',
        value: median(walls) / 1_000,
        unit: 's',
        target: { atMost: 1.8 },
        detail: `median of ${walls.length} rounds (slowest ${(Math.max(...walls) / 1_000).toFixed(2)} s); one session process`,
      },
    ];
  },
};

const WARM_UP_MS = 3_000;
const MEASURE_MS = 8_000;

export const throughputBench: Bench = {
  name: 'throughput',
  about: 'turns per second with instant answers, 64 sessions, all services on this machine’s cores',
  async run(stage) {
    const place = await stage.arena();
    const members = await crowd(place);
    const names = ['postgres', 'nats', 'gateway-api', 'session', 'sandbox', 'dashboard'] as const;
    const pids: Record<string, number> = {
      ...Object.fromEntries(names.map((name) => [name, place.platform.pid(name)])),
      bench: process.pid,
    };
    let turns = 0;
    let counting = false;
    let over = false;
    const latencies: number[] = [];
    const loops = members.map(async ({ session, stream }) => {
      for (let n = 0; !over; n++) {
        const idle = stream.next('session.status_idle');
        const sentAt = performance.now();
        const id = `${session}-${n}`;
        const [, idleAt] = await Promise.all([place.api.send(session, { id }), idle, place.model.call(id)]);
        if (!counting) continue;
        turns += 1;
        latencies.push(idleAt - sentAt);
      }
    });
    await sleep(WARM_UP_MS);
    const before = cpuSeconds(pids);
    const startedAt = performance.now();
    counting = true;
    await sleep(MEASURE_MS);
    counting = false;
    const seconds = (performance.now() - startedAt) / 1_000;
    const after = cpuSeconds(pids);
    over = true;
    await Promise.all(loops);
    for (const { stream } of members) stream.close();
    const spent = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
    const perTurn = names.map((name) => `${name} ${((spent(name) / turns) * 1_000).toFixed(2)}`);
    return [
      {
        what: 'turns per second, 64 sessions, instant answers',
        value: turns / seconds,
        unit: 'turns/s',
        target: { atLeast: 100 },
        detail: `message sent → idle p50 ${median(latencies).toFixed(0)} ms, p95 ${quantile(latencies, 0.95).toFixed(0)} ms; ${CORES} cores, of which clients and model took ${(spent('bench') / seconds).toFixed(2)}; processor ms per turn: ${perTurn.join(', ')}`,
      },
    ];
  },
};
