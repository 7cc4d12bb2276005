import { setTimeout as sleep } from 'node:timers/promises';
import { type Bench, p50AndP95, within } from '../bench.ts';

const INTERRUPTS = 20;

export const interruptBench: Bench = {
  name: 'interrupt',
  about: 'interrupt while the model streams: accepted → model call aborted, and nothing after idle',
  async run(stage) {
    const { api, model } = await stage.arena();
    const session = await api.setup.session();
    const aborts: number[] = [];
    let idleSeen = false;
    let late = 0;
    const stream = await api.stream(
      session,
      ({ event }) => {
        if (event === 'session.status_idle') idleSeen = true;
        else if (idleSeen) late += 1;
      },
      '?event_deltas[]=agent.message',
    );
    for (let n = 0; n < INTERRUPTS; n++) {
      const id = `${session}-interrupt-${n}`;
      idleSeen = false;
      const idle = stream.next('session.status_idle');
      await api.send(session, { id, chunks: 2_000, everyMs: 5 });
      const call = await model.call(id);
      await sleep(100);
      const acceptedAt = await api.post(`/v1/sessions/${session}/events`, { events: [{ type: 'user.interrupt' }] });
      const over = await within(10_000, 'an interrupted model call', call.over);
      if (!over.aborted) throw new Error('the model call was not aborted');
      aborts.push(over.at - acceptedAt);
      await idle;
      await sleep(200);
    }
    stream.close();
    return [
      {
        what: 'interrupt accepted → model call aborted, slowest',
        value: Math.max(...aborts),
        unit: 'ms',
        target: { atMost: 100 },
        detail: `of ${INTERRUPTS}; the model streams a piece each 5 ms; below zero: aborted before the 200 is at the client`,
      },
      ...p50AndP95('interrupt accepted → model call aborted', aborts, {}),
      {
        what: 'frames on the stream after session.status_idle',
        value: late,
        unit: 'frames',
        target: { atMost: 0 },
        detail: `deltas included, within 200 ms after each of the ${INTERRUPTS} interrupts`,
      },
    ];
  },
};

const KILLS = 3;

export const killBench: Bench = {
  name: 'kill',
  about: 'the turn worker killed with -9 in the middle of a model call → next model request',
  async run(stage) {
    const { api, model, platform } = await stage.arena();
    const waits: number[] = [];
    for (let n = 0; n < KILLS; n++) {
      const session = await api.setup.session();
      const id = `${session}-kill`;
      const stream = await api.stream(session);
      const idle = stream.next('session.status_idle');
      await api.send(session, { id, chunks: 40, everyMs: 50 });
      await model.call(id);
      await sleep(1_000);
      const killedAt = performance.now();
      platform.kill('session');
      const next = await within(30_000, 'the next model request', model.call(id, 1));
      waits.push(next.requestedAt - killedAt);
      await within(30_000, 'the answer after the kill', idle);
      stream.close();
    }
    return [
      {
        what: 'kill -9 of the session service in a model call → next model request, slowest',
        value: Math.max(...waits) / 1_000,
        unit: 's',
        target: { atMost: 6 },
        detail: `${waits.map((ms) => (ms / 1_000).toFixed(2)).join(', ')} s; one session process, restarted by the supervisor; every turn was answered`,
      },
    ];
  },
};
