import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isAppError, newId } from '@holdfast/contracts';
import { checkLog } from '@holdfast/event-store';
import { eventsInStream, spoilEventsStream, startPostgres, testRunDir } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { idle, ofType, say, texts, types, World } from './test/world.ts';

let postgres: Awaited<ReturnType<typeof startPostgres>>;
let world: World;
const dir = (): string => join(testRunDir(), 'faults-postgres');
beforeAll(async () => {
  postgres = await startPostgres(dir());
  const url = `postgres://postgres@127.0.0.1:${postgres.port}/postgres`;
  world = await World.start({ url, name: 'faults', drop: () => Promise.resolve() });
  await world.service('session-1', { SANDBOX_WAIT_MS: 20_000 });
  await world.service('session-2', { SANDBOX_WAIT_MS: 20_000 });
}, 180_000);
afterAll(async () => {
  await world.stop();
  process.kill(postgres.pid, 'SIGKILL');
}, 60_000);

async function killPostgres(): Promise<void> {
  const died = new Promise((resolve) => postgres.process.once('exit', resolve));
  process.kill(postgres.pid, 'SIGKILL');
  await died;
}

/** Sends one command until it is stored, as a client does that is told to try again. */
async function insist(sessionId: string, text: string): Promise<void> {
  const commandId = newId('command');
  for (const deadline = Date.now() + 30_000; ; await sleep(200)) {
    try {
      await world.send(sessionId, [say(text)], { commandId });
      return;
    } catch (error) {
      if (!isAppError(error) || error.kind !== 'unavailable' || Date.now() > deadline) throw error;
    }
  }
}

/** Every event of the log is in JetStream once, in order. */
async function expectRelayed(): Promise<void> {
  let logged: string[] = [];
  let found: string[] = [];
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; await sleep(200)) {
    logged = (await world.log.readAll({ after: { txid: '0', position: '0' }, limit: 10_000 })).events.map(
      ({ id }) => id,
    );
    found = await eventsInStream(world.bus).catch(() => []);
    if (found.length === logged.length) break;
  }
  expect(found).toEqual(logged);
}

describe('Postgres killed', () => {
  it('turns wait for it and go on; commands say that it is unavailable', async () => {
    const sessions = await Promise.all(Array.from({ length: 8 }, () => world.createSession()));
    const untouched = newId('session');
    await Promise.all(
      sessions.map(({ id }, n) => world.send(id, [say(n % 2 === 0 ? 'SLOW[8]' : 'RUN[sleep 1] RUN[echo x]')])),
    );
    await sleep(200);
    await killPostgres();
    const refused = world.command('session', untouched, 'archive', {});
    await expect(refused).rejects.toMatchObject({ kind: 'unavailable', code: 'log.unavailable' });
    const [first] = sessions;
    // A service that has the session folded waits; one that has to read it says that it is unavailable, and is asked again.
    const waiting = insist(first?.id ?? '', 'are you there?');
    await sleep(1_500);
    postgres = await startPostgres(dir(), { port: postgres.port });
    await waiting;
    for (const { id } of sessions) {
      const all = await world.until(id, (now) => idle()(now) && now.at(-1)?.type === 'session.status_idle', 30_000);
      for (const use of ofType(all, 'agent.tool_use'))
        expect(ofType(all, 'agent.tool_result').filter(({ data }) => data.tool_use_id === use.id)).toHaveLength(1);
      expect(texts(all).length).toBeGreaterThanOrEqual(1);
    }
    expect(texts(await world.events(first?.id ?? '')).at(-1)).toMatch(/^You said: are you there/);
    expect(await checkLog(world.pool)).toEqual([]);
    await expectRelayed();
  }, 90_000);
});

describe('NATS killed', () => {
  it('turns go on without it, and every event reaches JetStream once, in order', async () => {
    const sessions = await Promise.all(Array.from({ length: 4 }, () => world.createSession()));
    await Promise.all(sessions.map(({ id }) => world.send(id, [say('SLOW[10]')])));
    await world.nats.kill();
    for (const { id } of sessions) await world.until(id, idle());
    await world.restartNats();
    for (const deadline = Date.now() + 10_000; ; await sleep(100)) {
      const sent = await world.send(sessions[0]?.id ?? '', [say('back?')]).catch(() => null);
      if (sent !== null) break;
      expect(Date.now()).toBeLessThan(deadline);
    }
    await world.until(sessions[0]?.id ?? '', idle(2));
    await expectRelayed();
  }, 60_000);

  it('a tool call whose answer was lost with it is asked for again, under its own id', async () => {
    const session = await world.createSession();
    world.sandbox.run = () => sleep(1_500).then(() => 'done at last');
    await world.send(session.id, [say('RUN[x]')]);
    const [use] = ofType(
      await world.until(session.id, (all) =>
        ofType(all, 'agent.tool_use').some(({ id }) => world.sandbox.executed.has(id)),
      ),
      'agent.tool_use',
    );
    await world.nats.kill();
    await sleep(2_000);
    await world.restartNats();
    const all = await world.until(session.id, idle(), 30_000);
    expect(world.sandbox.executed.get(use?.id ?? '')).toBe(2);
    expect(ofType(all, 'agent.tool_result').map(({ data }) => [data.tool_use_id, data.outcome])).toEqual([
      [use?.id, 'completed'],
    ]);
    expect(types(all).filter((type) => type === 'session.turn_started')).toHaveLength(1);
  }, 60_000);
});

describe('JetStream emptied under traffic', () => {
  it.each(['purge', 'delete'] as const)(
    'is filled again after a %s and goes on being written at once',
    async (how) => {
      await expectRelayed();
      const operator = await world.nats.connect('session');
      const session = await world.createSession();
      await world.send(session.id, [say('SLOW[30]')]);
      await spoilEventsStream(operator, how);
      for (let n = 0; n < 20; n++) {
        await world.send(session.id, [say(`m${n}`)]);
        await sleep(100);
      }
      await world.until(session.id, idle());
      await expectRelayed();
      await operator.close();
    },
    60_000,
  );
});
