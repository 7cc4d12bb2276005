import { setTimeout as sleep } from 'node:timers/promises';
import { type Bus, ensureStreams } from '@holdfast/bus';
import {
  ALL_SERVICE_BEATS,
  AppError,
  DEAD_LETTER_STREAM,
  eventSubject,
  type ServiceBeat,
  type StoredEvent,
} from '@holdfast/contracts';
import { freePort, type NatsServer, startNats } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Controller, Module } from '@nestjs/common';
import { EventPattern } from '@nestjs/microservices';
import { pino } from 'pino';
import { defer, type Observable, timer } from 'rxjs';
import { createReactorApp, Health, startBeats, startHealthServer } from './index.ts';

const logger = pino({ level: 'silent' });
const calls: string[] = [];
const count = (name: string): number => calls.filter((call) => call === name).length;

@Controller()
class Reactors {
  @EventPattern<string>('evt.session.*.session.flaky', { durable: 'spec-flaky' })
  flaky(): void {
    calls.push('flaky');
    if (count('flaky') < 3) throw new AppError('unavailable', 'spec.flaky', 'not yet');
  }
  @EventPattern<string>('evt.session.*.session.hopeless', { durable: 'spec-hopeless' })
  async hopeless(event: StoredEvent): Promise<void> {
    await sleep(1);
    calls.push('hopeless');
    throw new AppError('invalid', 'spec.hopeless', `never ${event.id}`);
  }
  @EventPattern<string>('evt.session.*.session.lazy', { durable: 'spec-lazy' })
  lazy(): Observable<unknown> {
    return defer(() => {
      calls.push('lazy');
      return timer(50);
    });
  }
}
@Module({ controllers: [Reactors] })
class ReactorsModule {}

@Controller()
class Nameless {
  @EventPattern<string>('evt.session.*.session.nameless')
  nameless(): void {
    calls.push('nameless');
  }
}
@Module({ controllers: [Nameless] })
class NamelessModule {}

let nats: NatsServer;
let bus: Bus;
beforeAll(async () => {
  nats = await startNats();
  bus = await nats.connect('session');
  await ensureStreams(bus);
});
afterAll(async () => {
  await bus.close();
  await nats.stop();
});

function emit(type: string): void {
  bus.publishLive(eventSubject('session-sesn_1', type), { id: `sevt_${type}`, type });
}
async function eventually(what: () => Promise<boolean> | boolean): Promise<void> {
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; await sleep(20)) if (await what()) return;
  throw new Error('did not happen in time');
}
async function info(name: string): Promise<{ state?: { messages: number }; num_ack_pending?: number }> {
  return (await bus.connection.request(`$JS.API.${name}`, '')).json();
}

describe('reactors', () => {
  it('are judged by the error table: tried again, parked, or acknowledged once all is done', async () => {
    const app = await createReactorApp(ReactorsModule, { bus, logger });
    await app.listen();
    emit('session.flaky');
    emit('session.hopeless');
    emit('session.lazy');
    await eventually(() => count('flaky') === 3 && count('hopeless') === 1 && count('lazy') === 1);
    await eventually(async () => (await info(`STREAM.INFO.${DEAD_LETTER_STREAM}`)).state?.messages === 1);
    await eventually(async () => (await info('CONSUMER.INFO.EVENTS.spec-lazy')).num_ack_pending === 0);
    const parked = (await bus.connection.request(`$JS.API.STREAM.MSG.GET.${DEAD_LETTER_STREAM}`, '{"seq":1}')).json<{
      message: { data: string };
    }>();
    expect(JSON.parse(Buffer.from(parked.message.data, 'base64').toString())).toMatchObject({
      consumer: 'spec-hopeless',
      error: { code: 'spec.hopeless', kind: 'invalid' },
    });
    await app.close();
    expect([count('flaky'), count('hopeless'), count('lazy')]).toEqual([3, 1, 1]);
  });

  it('without a durable name are refused at the start', async () => {
    const app = await createReactorApp(NamelessModule, { bus, logger });
    await expect(app.listen()).rejects.toMatchObject({ code: 'internal.reactor' });
  });
});

describe('a service without HTTP', () => {
  it('says once a second that it lives, with its figures', async () => {
    const heard: ServiceBeat[] = [];
    const listening = bus.subscribeLive<ServiceBeat>(ALL_SERVICE_BEATS, (beat) => heard.push(beat));
    await bus.flush();
    const stop = startBeats(bus, 'session', 'session-1', () => ({ turns: 3 }));
    await eventually(() => heard.length >= 2);
    stop();
    await listening.stop();
    expect(heard[0]).toMatchObject({
      service: 'session',
      instance: 'session-1',
      pid: process.pid,
      figures: { turns: 3 },
    });
    expect(heard[0]?.memoryBytes).toBeGreaterThan(1_000_000);
  });

  it('answers health on a port of its own', async () => {
    const health = new Health();
    expect(await startHealthServer(health, 0)).toBeNull();
    health.add('bus', () => (bus.connected ? undefined : 'not connected'));
    const port = await freePort();
    const server = await startHealthServer(health, port);
    const status = async (path: string): Promise<number> => (await fetch(`http://127.0.0.1:${port}${path}`)).status;
    expect([await status('/healthz'), await status('/readyz'), await status('/else')]).toEqual([200, 200, 404]);
    health.drain();
    expect(await status('/readyz')).toBe(503);
    server?.close();
  });
});
