import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Bus, connectBus, natsServerConfig } from '@holdfast/bus';
import { EVENTS_STREAM, type StoredEvent } from '@holdfast/contracts';
import { jetstreamManager } from '@nats-io/jetstream';
import { findNatsServer } from '../../../bin/src/nats-server.ts';
import { freePort } from './postgres.ts';
import { testRunDir } from './shared-server.ts';

export type NatsUser = 'gateway-api' | 'session' | 'sandbox';

export interface NatsServer {
  readonly port: number;
  readonly url: string;
  readonly process: ChildProcess;
  connect(user: NatsUser): Promise<Bus>;
  /** `kill -9`. */
  kill(): Promise<void>;
  stop(): Promise<void>;
}

/** What JetStream holds: the ids of its durable events, in its order. */
export async function eventsInStream(bus: Bus): Promise<string[]> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  const { state } = await manager.streams.info(EVENTS_STREAM);
  const ids: string[] = [];
  for (let seq = state.first_seq; state.messages > 0 && seq <= state.last_seq; seq++)
    ids.push((await manager.streams.getMessage(EVENTS_STREAM, { seq }))?.json<StoredEvent>().id ?? 'missing');
  return ids;
}

/** Empties the stream of durable events, or removes it, as an operator's mistake would. */
export async function spoilEventsStream(bus: Bus, how: 'purge' | 'delete'): Promise<void> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  await manager.streams[how](EVENTS_STREAM);
}

/** A nats-server with the platform's own configuration. With an existing folder it starts again where it was. */
export async function startNats(
  options: { dir?: string; port?: number; passwords?: Record<NatsUser, string> } = {},
): Promise<NatsServer & { dir: string }> {
  const dir = options.dir ?? (await mkdtemp(join(testRunDir(), 'nats-')));
  const port = options.port ?? (await freePort());
  await mkdir(dir, { recursive: true });
  const passwords = options.passwords ?? {
    'gateway-api': 'pw-gateway',
    session: 'pw-session',
    sandbox: 'pw-sandbox',
  };
  const config = join(dir, 'nats.conf');
  await writeFile(config, natsServerConfig({ host: '127.0.0.1', port, storeDir: join(dir, 'store'), passwords }));
  const child = spawn(await findNatsServer(() => undefined), ['-c', config, '-l', join(dir, 'nats.log')], {
    stdio: 'ignore',
  });
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const url = `nats://127.0.0.1:${port}`;
  const connect = (user: NatsUser): Promise<Bus> =>
    connectBus({ servers: url, user, password: passwords[user], name: `spec-${user}` });
  // Whoever else answers on that port is not this server.
  const probe = await Promise.race([
    connect('session'),
    exited.then(() => Promise.reject(new Error(`nats-server ended at once; see ${join(dir, 'nats.log')}`))),
  ]);
  await probe.close();
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    child.kill(signal);
    await exited;
  };
  return { dir, port, url, process: child, connect, kill: () => end('SIGKILL'), stop: () => end('SIGTERM') };
}
