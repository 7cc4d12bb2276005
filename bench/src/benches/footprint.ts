import { setTimeout as sleep } from 'node:timers/promises';
import { type Bench, type Figure, median } from '../bench.ts';
import { pssMib } from '../processes.ts';

const STARTS = 3;

export const startUpBench: Bench = {
  name: 'startup',
  about: '`bin/up --detach`, warm: built, with its data, nothing running',
  async run(stage) {
    const { platform } = await stage.arena();
    const walls: number[] = [];
    for (let n = 0; n < STARTS; n++) {
      await platform.up('--down');
      const startedAt = performance.now();
      await platform.up('--detach');
      walls.push(performance.now() - startedAt);
    }
    return [
      {
        what: 'warm start: bin/up --detach',
        value: median(walls) / 1_000,
        unit: 's',
        target: { atMost: 10 },
        detail: `median of ${STARTS}: ${walls.map((ms) => (ms / 1_000).toFixed(2)).join(', ')} s; dashboard included`,
      },
    ];
  },
};

const COUNTED = ['supervisor', 'nats', 'gateway-api', 'session', 'sandbox'];
const TURNS = 50;
const SETTLE_MS = 5_000;

export const memoryBench: Bench = {
  name: 'memory',
  about: 'memory of each service, idle after turns that touch no sandbox (PSS)',
  async run(stage) {
    const { api, platform } = await stage.arena();
    const session = await api.setup.session();
    const stream = await api.stream(session);
    for (let n = 0; n < TURNS; n++) {
      const idle = stream.next('session.status_idle');
      await api.send(session, { id: `${session}-${n}` });
      await idle;
    }
    stream.close();
    await sleep(SETTLE_MS);
    const sizes = COUNTED.map((name) => ({ name, mib: pssMib(platform.pid(name)) }));
    return [
      {
        what: 'memory of supervisor, nats, gateway-api, session and sandbox together',
        value: sizes.reduce((sum, { mib }) => sum + mib, 0),
        unit: 'MiB',
        target: { atMost: 450 },
        detail: `PSS, ${SETTLE_MS / 1_000} s after ${TURNS} turns; without Postgres and the dashboard`,
      },
      ...[...sizes, { name: 'dashboard, not counted', mib: pssMib(platform.pid('dashboard')) }].map(
        ({ name, mib }): Figure => ({ what: `memory of ${name}`, value: mib, unit: 'MiB' }),
      ),
    ];
  },
};
