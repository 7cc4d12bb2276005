import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import { AppError, type Command } from '@holdfast/contracts';
import { type NatsServer, startNats } from '@holdfast/testing';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { Commands } from './exchange.ts';

let nats: NatsServer;
let gateway: Bus;
let session: Bus;
beforeAll(async () => {
  nats = await startNats();
  [gateway, session] = await Promise.all([nats.connect('gateway-api'), nats.connect('session')]);
}, 60_000);
afterAll(async () => {
  await Promise.all([gateway.close(), session.close()]);
  await nats.stop();
});

const command: Command = {
  commandId: 'cmd_1',
  workspaceId: 'wrkspc_a',
  actor: { type: 'service', id: 'spec' },
  idempotency: null,
  traceparent: null,
  body: {},
};

it('asks again when a process took a command and died, saying so, and gets the answer of the next one', async () => {
  const asked: Command[] = [];
  const service = session.reply<Command, { body: string }>('cmd.session.>', { queue: 'session' }, async (body) => {
    asked.push(body);
    // The first one never answers: its process is gone.
    if (asked.length === 1) await sleep(6_000);
    return { body: `answer ${asked.length}` };
  });
  await session.flush();
  const atMs = Date.now();
  await expect(new Commands(gateway, 10_000).send('session', 'a', 'create', command)).resolves.toBe('answer 2');
  expect(Date.now() - atMs).toBeLessThan(4_000);
  expect(asked).toEqual([command, { ...command, again: true }]);
  await service.stop();
}, 20_000);

it('waits for a service that is being started, and for a log that is away, until the time is up', async () => {
  const sending = new Commands(gateway, 10_000).send('agent', 'a', 'create', command);
  await sleep(500);
  let tries = 0;
  const service = session.reply<Command, { body: unknown }>('cmd.agent.>', { queue: 'session' }, (body) => {
    if (++tries < 3) throw new AppError('unavailable', 'log.unavailable', 'The log is away.');
    return { body: body.again };
  });
  await expect(sending).resolves.toBe(true);
  await service.stop();
  await session.flush();
  await expect(new Commands(gateway, 400).send('agent', 'a', 'create', command)).rejects.toMatchObject({
    code: 'bus.no-responders',
  });
}, 20_000);

it('takes a refusal for an answer', async () => {
  let tries = 0;
  const service = session.reply('cmd.environment.>', { queue: 'session' }, () => {
    tries++;
    throw new AppError('unavailable', 'sandbox.gone', 'Not today.');
  });
  await session.flush();
  await expect(new Commands(gateway, 5_000).send('environment', 'a', 'create', command)).rejects.toMatchObject({
    code: 'sandbox.gone',
  });
  expect(tries).toBe(1);
  await service.stop();
});

it('asks again when a process of an older release cannot do it, until a newer one is met or the time is up', async () => {
  const asked: Command[] = [];
  const service = session.reply<Command, { body: string }>('cmd.file.>', { queue: 'session' }, (body) => {
    asked.push(body);
    if (asked.length !== 3) throw new AppError('unavailable', 'event.newer-version', 'Not by this release.');
    return { body: 'done' };
  });
  await session.flush();
  await expect(new Commands(gateway, 5_000).send('file', 'a', 'create', command)).resolves.toBe('done');
  expect(asked).toEqual([command, command, command]);
  const atMs = Date.now();
  await expect(new Commands(gateway, 1_000).send('file', 'a', 'create', command)).rejects.toMatchObject({
    code: 'event.newer-version',
  });
  expect(Date.now() - atMs).toBeLessThan(2_000);
  await service.stop();
});
