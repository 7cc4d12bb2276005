import { setTimeout as sleep } from 'node:timers/promises';
import { type Arena, type Bench, type Figure, p50AndP95 } from '../bench.ts';
import type { Script } from '../scripted-model.ts';

const SESSIONS = 4;
const PAUSE_MS = 10;

interface TurnTimes {
  readonly sentAt: number;
  readonly acceptedAt: number;
  readonly requestedAt: number;
  readonly idleAt: number;
}

/** Turns one after another, spread over a few sessions; the first of each session is not counted. */
async function turns(
  { api, model }: Arena,
  perSession: number,
  warmups: number,
  script: Omit<Script, 'id'>,
): Promise<TurnTimes[]> {
  const times: TurnTimes[] = [];
  for (let s = 0; s < SESSIONS; s++) {
    const session = await api.setup.session();
    const stream = await api.stream(session);
    for (let n = -warmups; n < perSession; n++) {
      const id = `${session}-${n}`;
      const idle = stream.next('session.status_idle');
      const sentAt = performance.now();
      const acceptedAt = await api.send(session, { id, ...script });
      const idleAt = await idle;
      const { requestedAt } = await model.call(id);
      if (n >= 0) times.push({ sentAt, acceptedAt, requestedAt, idleAt });
      await sleep(PAUSE_MS);
    }
    stream.close();
  }
  return times;
}

export const turnBench: Bench = {
  name: 'turn',
  about: 'what a turn costs beside the model: accepted → model request, accepted → idle on SSE',
  async run(stage) {
    const times = await turns(await stage.arena(), 50, 10, {});
    const of = `${times.length} turns one after another in ${SESSIONS} sessions; the model answers at once`;
    return [
      ...p50AndP95(
        'message accepted → model request received',
        times.map(({ acceptedAt, requestedAt }) => requestedAt - acceptedAt),
        { p50: 12, p95: 25 },
        `${of}; below zero: the model is asked before the 200 is at the client`,
      ),
      ...p50AndP95(
        'message accepted → session.status_idle on SSE',
        times.map(({ acceptedAt, idleAt }) => idleAt - acceptedAt),
        { p50: 22, p95: 40 },
      ),
      ...p50AndP95(
        'message sent → accepted',
        times.map(({ sentAt, acceptedAt }) => acceptedAt - sentAt),
        {},
      ),
      ...p50AndP95(
        'message sent → session.status_idle on SSE',
        times.map(({ sentAt, idleAt }) => idleAt - sentAt),
        {},
      ),
    ];
  },
};

export const toolBench: Bench = {
  name: 'tool',
  about: 'a turn that calls bash once, its sandbox already there',
  async run(stage): Promise<readonly Figure[]> {
    const times = await turns(await stage.arena(), 25, 3, { bash: 'true' });
    return p50AndP95(
      'tool turn: message accepted → session.status_idle on SSE',
      times.map(({ acceptedAt, idleAt }) => idleAt - acceptedAt),
      { p50: 60 },
      `${times.length} turns in ${SESSIONS} sessions; the first model step calls bash \`true\`, the second answers`,
    );
  },
};
