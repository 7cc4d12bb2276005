import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, EVENTS_STREAM, eventSubject, type StoredEvent } from '@holdfast/contracts';
import { type NatsServer, startNats } from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import {
  type Bus,
  consumeEvents,
  deleteEventsStream,
  ensureStreams,
  Relay,
  type RelayCursor,
  type RelaySource,
  streamInfo,
} from './index.ts';

let nats: NatsServer & { dir: string };
let session: Bus;
let gateway: Bus;
let sandbox: Bus;
beforeAll(async () => {
  nats = await startNats();
  [session, gateway, sandbox] = await Promise.all([
    nats.connect('session'),
    nats.connect('gateway-api'),
    nats.connect('sandbox'),
  ]);
}, 120_000);
afterAll(async () => {
  await Promise.all([session.close(), gateway.close(), sandbox.close()]);
  await nats.stop();
});

async function eventually(what: () => Promise<boolean> | boolean, timeoutMs = 10_000): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(20)) if (await what()) return;
  throw new Error('did not happen in time');
}

describe('requests', () => {
  it('gets the answer, the deadline and the trace to the handler, and its error back', async () => {
    const seen: unknown[] = [];
    const stop = session.reply<{ n: number }, number>('cmd.session.>', { queue: 'session' }, (body, context) => {
      seen.push(context);
      if (body.n < 0)
        throw new AppError('invalid', 'spec.negative', 'n must not be negative', { details: { n: body.n } });
      return body.n * 2;
    });
    await session.flush();
    expect(
      await gateway.request('cmd.session.a.double', { n: 21 }, { timeoutMs: 2_000, traceparent: '00-ab-cd-01' }),
    ).toBe(42);
    expect(seen[0]).toMatchObject({ subject: 'cmd.session.a.double', traceparent: '00-ab-cd-01' });
    await expect(gateway.request('cmd.session.a.double', { n: -1 })).rejects.toMatchObject({
      kind: 'invalid',
      code: 'spec.negative',
      details: { n: -1 },
    });
    await stop.stop();
    await session.flush();
    await expect(gateway.request('cmd.session.a.double', { n: 1 })).rejects.toMatchObject({
      kind: 'unavailable',
      code: 'bus.no-responders',
    });
  });

  it('gives up at the deadline', async () => {
    const stop = session.reply('cmd.agent.>', {}, () => sleep(500));
    await session.flush();
    await expect(gateway.request('cmd.agent.x.slow', {}, { timeoutMs: 50 })).rejects.toMatchObject({
      code: 'bus.timeout',
    });
    await stop.stop();
  });

  it('streams several answers, ends on silence, an error or nobody', async () => {
    const stop = sandbox.replyMany<string, number>('cmd.sandbox.sbx_1.link.exec', {}, async (body, _context, send) => {
      send(1);
      send(2);
      if (body === 'fail') throw new AppError('rejected', 'spec.failed', 'failed');
    });
    await sandbox.flush();
    const ask = async (body: string): Promise<unknown[]> => {
      const got: unknown[] = [];
      try {
        for await (const answer of session.requestMany('cmd.sandbox.sbx_1.link.exec', body, {
          silenceMs: 150,
          deadlineAtMs: Date.now() + 5_000,
        }))
          got.push(answer);
      } catch (error) {
        got.push((error as AppError).code);
      }
      return got;
    };
    expect(await ask('quiet')).toEqual([1, 2, 'bus.timeout']);
    expect(await ask('fail')).toEqual([1, 2, 'spec.failed']);
    await stop.stop();
    await sandbox.flush();
    expect(await ask('gone')).toEqual(['bus.no-responders']);
  });

  it('comes back from a server that was killed, also when it refused the credentials for a while', async () => {
    const own = await startNats();
    const bus = await own.connect('session');
    bus.reply('cmd.session.>', {}, () => 'here');
    await own.kill();
    const other = { 'gateway-api': 'other', session: 'other', sandbox: 'other' };
    const changed = await startNats({ dir: own.dir, port: own.port, passwords: other });
    await sleep(1_500);
    await changed.kill();
    const again = await startNats({ dir: own.dir, port: own.port });
    const caller = await again.connect('gateway-api');
    const answers = async (): Promise<boolean> =>
      (await caller.request('cmd.session.a.b', {}, { timeoutMs: 500 }).catch(() => null)) === 'here';
    await eventually(answers);
    expect(await answers()).toBe(true);
    await Promise.all([bus.close(), caller.close()]);
    await again.stop();
  }, 30_000);

  it('lets no service but the session service publish events (B5)', async () => {
    await ensureStreams(session);
    const before = (await streamInfo(await jetstreamManager(session.connection), EVENTS_STREAM))?.state.messages;
    sandbox.connection.publish('evt.session.x.forged', '{}');
    gateway.connection.publish('evt.session.x.forged', '{}');
    await Promise.all([sandbox.flush(), gateway.flush()]);
    await sleep(100);
    expect((await streamInfo(await jetstreamManager(session.connection), EVENTS_STREAM))?.state.messages).toBe(before);
  });
});

/** A log in memory: what the relay sees of it is the same port that Postgres serves. */
class MemoryLog implements RelaySource {
  events: StoredEvent[] = [];
  checkpoint: RelayCursor | null = null;
  leader: object | null = null;
  add(count: number): void {
    for (let i = 0; i < count; i++) {
      const position = String(this.events.length + 1);
      this.events.push({
        position,
        id: `sevt_${position}_${nats.port}`,
        workspaceId: 'wrkspc_a',
        streamId: 'session-sesn_1',
        version: this.events.length + 1,
        type: 'user.message',
        schemaVersion: 1,
        data: {},
        metadata: {},
        recordedAt: new Date().toISOString(),
      });
    }
  }
  async readAll({ after, limit }: { after: RelayCursor; limit: number }) {
    const events = this.events.filter((event) => Number(event.position) > Number(after.position)).slice(0, limit);
    const cursors = events.map((event) => ({ txid: event.position, position: event.position }));
    return { events, cursors, cursor: cursors[cursors.length - 1] ?? after };
  }
  async locate(eventId: string) {
    const at = this.events.findIndex(({ id }) => id === eventId);
    if (at === -1) return null;
    const position = this.events[at]?.position ?? '';
    return { cursor: { txid: position, position }, previousAt: this.events[at - 1]?.recordedAt ?? null };
  }
  loadCheckpoint = async () => this.checkpoint;
  saveCheckpoint = async (cursor: RelayCursor) => {
    this.checkpoint = cursor;
  };
  async tryLead() {
    if (this.leader !== null) return null;
    const me = {};
    this.leader = me;
    return {
      lost: new Promise<void>(() => undefined),
      release: async () => void (this.leader === me && (this.leader = null)),
    };
  }
}

describe('the relay', () => {
  const relays: Relay[] = [];
  const relay = (source: RelaySource): Relay => {
    const made = new Relay({ bus: session, source, pollMs: 50 });
    relays.push(made);
    made.start();
    return made;
  };
  afterEach(async () => {
    await Promise.all(relays.splice(0).map((one) => one.stop()));
    await deleteEventsStream(session);
  });
  const stored = async (): Promise<string[]> => {
    const manager = await jetstreamManager(session.connection);
    const info = await streamInfo(manager, EVENTS_STREAM);
    const ids: string[] = [];
    if (info?.state.messages === 0) return ids;
    for (let seq = info?.state.first_seq ?? 1; seq <= (info?.state.last_seq ?? 0); seq++) {
      ids.push((await manager.streams.getMessage(EVENTS_STREAM, { seq }))?.json<StoredEvent>().id ?? 'missing');
    }
    return ids;
  };

  it('publishes in log order, and only one of two leads', async () => {
    const log = new MemoryLog();
    log.add(1_200);
    const [a, b] = [relay(log), relay(log)];
    await eventually(() => log.checkpoint?.position === '1200');
    log.add(3);
    a.hint();
    b.hint();
    await eventually(() => log.checkpoint?.position === '1203');
    expect([a.figures.leading, b.figures.leading].filter(Boolean)).toHaveLength(1);
    expect(await stored()).toEqual(log.events.map(({ id }) => id));
    await a.stop();
    log.add(2);
    await eventually(() => log.checkpoint?.position === '1205', 15_000);
    expect(await stored()).toEqual(log.events.map(({ id }) => id));
  }, 40_000);

  it('resumes after what the stream holds, also when the checkpoint was not moved (B2)', async () => {
    const log = new MemoryLog();
    log.add(10);
    const first = relay(log);
    await eventually(() => log.checkpoint?.position === '10');
    await first.stop();
    log.checkpoint = { txid: '4', position: '4' };
    log.add(5);
    relay(log);
    await eventually(() => log.checkpoint?.position === '15');
    expect(await stored()).toEqual(log.events.map(({ id }) => id));
  }, 20_000);

  it.each(['purged', 'deleted'])(
    'refills a stream that was %s, inside the dedupe window too (B1)',
    async (how) => {
      const log = new MemoryLog();
      log.add(20);
      relay(log);
      await eventually(() => log.checkpoint?.position === '20');
      const manager = await jetstreamManager(session.connection);
      if (how === 'purged') await manager.streams.purge(EVENTS_STREAM);
      else await manager.streams.delete(EVENTS_STREAM);
      await eventually(async () => (await stored()).length === 20, 15_000);
      expect(await stored()).toEqual(log.events.map(({ id }) => id));
    },
    30_000,
  );

  it.each(['purged', 'a message removed', 'filled by another log'])(
    'finds a hole although the stream goes on being written (%s)',
    async (how) => {
      const manager = await jetstreamManager(session.connection);
      const log = new MemoryLog();
      log.add(20);
      if (how === 'filled by another log') {
        await ensureStreams(session);
        await jetstream(session.connection).publish('evt.session.x.y', '{"id":"sevt_foreign"}', {
          msgID: 'sevt_foreign',
        });
      }
      relay(log);
      await eventually(() => log.checkpoint?.position === '20');
      if (how === 'purged') await manager.streams.purge(EVENTS_STREAM);
      if (how === 'a message removed') await manager.streams.deleteMessage(EVENTS_STREAM, 7);
      for (let n = 0; n < 20; n++) {
        log.add(1);
        await sleep(30);
      }
      const whole = (): string => log.events.map(({ id }) => id).join();
      await eventually(async () => (await stored().catch(() => [])).join() === whole(), 15_000);
      expect((await stored()).join()).toBe(whole());
    },
    30_000,
  );

  it('leaves a stream alone whose oldest messages its limits dropped', async () => {
    const manager = await jetstreamManager(session.connection);
    const second = 1_000_000_000;
    const limits = { max_age: second, duplicate_window: second / 2 };
    await manager.streams.add({ name: EVENTS_STREAM, subjects: ['evt.>'], ...limits });
    const log = new MemoryLog();
    log.add(10);
    const one = relay(log);
    await eventually(() => log.checkpoint?.position === '10');
    await eventually(async () => (await streamInfo(manager, EVENTS_STREAM))?.state.messages === 0);
    log.add(3);
    one.hint();
    await eventually(() => log.checkpoint?.position === '13');
    expect(await stored()).toEqual(log.events.slice(10).map(({ id }) => id));
    await one.stop();
    // A new leader, and a stream that is empty and one that is not.
    log.add(2);
    relay(log);
    await eventually(() => log.checkpoint?.position === '15');
    expect((await streamInfo(manager, EVENTS_STREAM))?.state.last_seq).toBe(15);
  }, 30_000);

  it('two leaders at once neither double an event nor destroy the stream (B2)', async () => {
    const log = new MemoryLog();
    log.tryLead = async () => ({ lost: new Promise<void>(() => undefined), release: async () => undefined });
    await ensureStreams(session);
    const manager = await jetstreamManager(session.connection);
    const { created } = await manager.streams.info(EVENTS_STREAM);
    const both = [relay(log), relay(log)];
    for (let n = 0; n < 20; n++) {
      log.add(25);
      for (const one of both) one.hint();
      await sleep(20);
    }
    await eventually(async () => (await stored()).length >= 500, 15_000);
    expect(await stored()).toEqual(log.events.map(({ id }) => id));
    expect((await manager.streams.info(EVENTS_STREAM)).created).toBe(created);
  }, 30_000);

  it('carries an event that is too large for NATS without its data', async () => {
    const log = new MemoryLog();
    log.add(1);
    log.events = log.events.map((event) => ({ ...event, data: { text: '\u{1F600}'.repeat(200_000) } }));
    relay(log);
    await eventually(() => log.checkpoint?.position === '1');
    const manager = await jetstreamManager(session.connection);
    const message = await manager.streams.getMessage(EVENTS_STREAM, { seq: 1 });
    expect(message?.header.get('Holdfast-Data')).toBe('in-log');
    expect(message?.json()).toMatchObject({ id: log.events[0]?.id, data: {} });
  });

  it('stops a leader whose expected sequence is not the stream’s (B2)', async () => {
    await ensureStreams(session);
    const client = jetstream(session.connection);
    await client.publish('evt.session.x.y', '{}', { msgID: 'a' });
    await expect(client.publish('evt.session.x.y', '{}', { msgID: 'b', expect: { lastSequence: 0 } })).rejects.toThrow(
      /sequence/,
    );
  });

  it('survives kill -9 of the broker', async () => {
    const own = await startNats();
    const bus = await own.connect('session');
    const log = new MemoryLog();
    const one = new Relay({ bus, source: log, pollMs: 50 });
    one.start();
    log.add(300);
    await eventually(() => log.checkpoint?.position === '300');
    await own.kill();
    log.add(300);
    const again = await startNats({ dir: own.dir, port: own.port });
    await eventually(() => log.checkpoint?.position === '600', 20_000);
    const info = await streamInfo(await jetstreamManager(bus.connection), EVENTS_STREAM);
    expect(info?.state.messages).toBe(600);
    await one.stop();
    await bus.close();
    await again.stop();
  }, 60_000);
});

describe('durable consumers', () => {
  it('deliver again after a failure, park what can never succeed, and outlive the stream', async () => {
    await ensureStreams(session);
    const client = jetstream(session.connection);
    const publish = (id: string) =>
      client.publish(
        eventSubject('session-sesn_9', 'session.deleted'),
        JSON.stringify({ id, streamId: 'session-sesn_9' }),
        { msgID: id },
      );
    const seen: string[] = [];
    const consumer = consumeEvents(sandbox, {
      durable: 'sandbox-spec',
      filterSubject: 'evt.session.*.session.deleted',
      verdict: (error) => (error.kind === 'rejected' ? 'term' : 'nak'),
      handle: async (event, { deliveries }) => {
        seen.push(`${event.id}:${deliveries}`);
        if (event.id === 'poison') throw new AppError('rejected', 'spec.poison', 'never');
        if (event.id === 'flaky' && deliveries === 1) throw new AppError('unavailable', 'spec.flaky', 'later');
      },
    });
    for (const id of ['good', 'flaky', 'poison']) await publish(id);
    await eventually(() => seen.length === 4);
    expect(seen.sort()).toEqual(['flaky:1', 'flaky:2', 'good:1', 'poison:1']);
    const manager = await jetstreamManager(session.connection);
    await eventually(async () => (await manager.streams.info('DEAD')).state.messages === 1);
    await deleteEventsStream(session);
    await ensureStreams(session);
    await publish('after');
    await eventually(() => seen.includes('after:1'), 20_000);
    await consumer.stop();
  }, 40_000);
});
