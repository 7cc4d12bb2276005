import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectBus } from '@holdfast/bus';
import { startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import pg from 'pg';

let first: TestPlatform;
let second: TestPlatform;
beforeAll(async () => {
  first = await startPlatform();
}, 240_000);
afterAll(async () => {
  await first?.stop();
  await second?.stop();
}, 120_000);

async function sql<R extends pg.QueryResultRow>(platform: TestPlatform, text: string): Promise<R[]> {
  const client = new pg.Client({ connectionString: platform.databaseUrl });
  await client.connect();
  try {
    return (await client.query<R>(text)).rows;
  } finally {
    await client.end();
  }
}

/** How many messages JetStream's EVENTS holds. */
async function published(platform: TestPlatform): Promise<number> {
  const bus = await connectBus({
    servers: `nats://127.0.0.1:${platform.env['NATS_PORT']}`,
    user: 'session',
    password: platform.secret('nats-session'),
    name: 'spec',
  });
  try {
    const answer = await bus.connection.request('$JS.API.STREAM.INFO.EVENTS');
    return answer.json<{ state: { messages: number } }>().state.messages;
  } finally {
    await bus.close();
  }
}

async function chat(client: TestClient, text: string, id?: string) {
  const session = id ?? (await client.session());
  await client.json(`/v1/sessions/${session}/events`, { json: { events: [userMessage(text)] } });
  return { session, events: await client.untilIdle(session, 30_000) };
}

it('finds a row that its events do not give, and rebuilds it while services run', async () => {
  const { session } = await chat(new TestClient(first), 'hello');
  await expect(first.maintain('check')).resolves.toMatch(/^the log is whole/);
  await sql(
    first,
    `update sessions set view = jsonb_set(view, '{title}', '"wrong"'), title = 'wrong' where id = '${session}'`,
  );
  await expect(first.maintain('check')).rejects.toMatchObject({
    stdout: expect.stringContaining(`session-${session}: its row in sessions is not what its events say`),
  });
  await expect(first.maintain('rebuild', 'sessions')).resolves.toMatch(/rebuilt \d+ streams/);
  await expect(first.maintain('check')).resolves.toMatch(/^the log is whole/);
}, 120_000);

it('refuses what makes no sense', async () => {
  await expect(first.maintain('rebuild', 'nothing')).rejects.toMatchObject({
    stderr: expect.stringContaining('There is no projection nothing; there is: sessions.'),
  });
  await expect(first.maintain('rebase')).rejects.toMatchObject({ stderr: expect.stringContaining('bin/down first') });
  await expect(first.maintain('backup', first.stateDir)).rejects.toMatchObject({
    stderr: expect.stringContaining('is not empty'),
  });
  await expect(first.maintain('dance')).rejects.toMatchObject({ stdout: expect.stringContaining('usage: bin/log') });
}, 60_000);

it('fills an emptied EVENTS from Postgres, each event once', async () => {
  const [{ count } = { count: '0' }] = await sql<{ count: string }>(first, 'select count(*) from events');
  await first.maintain('refill');
  await expect(published(first)).resolves.toBe(Number(count));
}, 60_000);

it('backs up a running platform and restores it into a fresh cluster, which goes on from there (L5)', async () => {
  const client = new TestClient(first);
  const big = await chat(client, 'RUN[seq 1 20000]');
  const { session, events } = await chat(client, 'before the backup');
  const folder = join(first.stateDir, 'backup');
  await first.maintain('backup', folder);
  await chat(client, 'after the backup', session);

  // A cluster of its own, whose transaction ids are far below the first one's.
  second = await startPlatform({ HOLDFAST_API_KEY: first.apiKey });
  await expect(second.maintain('restore', folder)).rejects.toMatchObject({
    stderr: expect.stringContaining('bin/down'),
  });
  await second.up('--down');
  await expect(second.maintain('restore', folder)).rejects.toMatchObject({
    stderr: expect.stringContaining('The database holds events'),
  });
  await rm(join(second.stateDir, 'data'), { recursive: true });
  await expect(second.maintain('restore', folder)).resolves.toMatch(/restored .*\d+ events/);
  await second.up('--detach');

  const restored = new TestClient(second);
  expect(await restored.events(session)).toEqual(events);
  expect(await restored.events(big.session)).toEqual(big.events);
  const { events: more } = await chat(restored, 'go on', session);
  expect(more.slice(0, events.length)).toEqual(events);
  expect(more.length).toBeGreaterThan(events.length);
  await expect(second.maintain('check')).resolves.toMatch(/^the log is whole/);
  // The relay goes on too: everything reaches the bus.
  const [{ count } = { count: '0' }] = await sql<{ count: string }>(second, 'select count(*) from events');
  for (const deadline = Date.now() + 15_000; ; await sleep(200)) {
    const messages = await published(second);
    if (messages === Number(count)) break;
    if (Date.now() > deadline) throw new Error(`EVENTS holds ${messages} of ${count} events`);
  }
}, 240_000);
