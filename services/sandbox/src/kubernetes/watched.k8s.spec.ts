import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createLogger } from '@holdfast/platform';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { KubeConfig } from '@kubernetes/client-node';
import { existingCluster, loadBed } from '../../../../k8s/testbed/src/settings.ts';
import { Cluster } from './cluster.ts';
import type { SandboxTemplate, ServiceAccount } from './kinds.ts';
import { Watched, type WatchSource } from './watched.ts';

const namespace = `holdfast-watched-${randomBytes(4).toString('hex')}`;
const logger = createLogger({ service: 'spec', instance: 'spec', level: 'silent' });
const kubeconfig = existingCluster() ?? loadBed().kubeconfig;
const direct = Cluster.connect({ kubeconfig, logger });
const account = (name: string, mark = 'a'): ServiceAccount => ({
  apiVersion: 'v1',
  kind: 'ServiceAccount',
  metadata: { name, namespace, annotations: { mark } },
});

/** A road to the API server that can be closed, without hurting whoever else uses that. */
class Road {
  readonly #config = new KubeConfig();
  readonly #server: Server;
  readonly #open = new Set<Socket>();
  #port = 0;
  dir = '';
  opened = 0;

  constructor() {
    this.#config.loadFromFile(kubeconfig);
    const target = new URL(this.#config.getCurrentCluster()?.server ?? '');
    this.#server = createServer((near) => {
      this.opened += 1;
      const far = connect({ host: target.hostname, port: Number(target.port === '' ? 443 : target.port) });
      for (const [socket, other] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#open.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          this.#open.delete(socket);
          other.destroy();
        });
      }
      near.pipe(far).pipe(near);
    });
  }

  /** Opens it, at the same port each time; returns a kubeconfig that leads over it. */
  async open(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(this.#port, '127.0.0.1', resolve));
    this.#port = (this.#server.address() as AddressInfo).port;
    const [cluster, user] = [this.#config.getCurrentCluster(), this.#config.getCurrentUser()];
    if (cluster === null || user === null) throw new Error(`${kubeconfig} is not complete`);
    const { name } = cluster;
    const own = new KubeConfig();
    // The server's certificate is for its own address.
    own.loadFromClusterAndUser({ name, server: `https://127.0.0.1:${this.#port}`, skipTLSVerify: true }, user);
    this.dir ||= await mkdtemp(join(tmpdir(), 'holdfast-road-'));
    await writeFile(join(this.dir, 'kubeconfig'), own.exportConfig(), { mode: 0o600 });
    return join(this.dir, 'kubeconfig');
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#open) socket.destroy();
    await closed;
  }
}

async function until(holds: () => boolean, what: string, ms = 30_000): Promise<number> {
  const startedAt = performance.now();
  while (!holds()) {
    if (performance.now() - startedAt > ms) throw new Error(`not within ${ms} ms: ${what}`);
    await sleep(10);
  }
  return performance.now() - startedAt;
}

beforeAll(async () => {
  await direct.apply({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } });
});
afterAll(async () => {
  await direct.remove({ kind: 'Namespace', metadata: { name: namespace } });
  direct.close();
});

it('a server that cannot be reached for a while is found again, with all that happened meanwhile', async () => {
  const road = new Road();
  const cluster = Cluster.connect({ kubeconfig: await road.open(), logger });
  for (const name of ['stays', 'changes', 'goes', 'comes-anew']) await direct.apply(account(name));
  const watched = cluster.watch('ServiceAccount', { namespace });
  const told: string[] = [];
  await watched.synced();
  watched.onChange((object, _, kind) => told.push(`${kind} ${object.metadata.name}`));
  try {
    await direct.apply(account('before'));
    await until(() => told.includes('added before'), 'the watch works');
    await road.close();
    await until(() => !watched.healthy, 'the loss is noticed');
    await expect(cluster.get('ServiceAccount', 'stays', namespace)).rejects.toMatchObject({
      code: 'cluster.unreachable',
      details: { status: null },
    });
    await direct.apply(account('changes', 'b'));
    await direct.apply(account('comes'));
    for (const name of ['goes', 'comes-anew']) await direct.remove(account(name));
    await direct.apply(account('comes-anew', 'b'));
    await sleep(3_000);
    expect(told).toEqual(['added before']);
    await road.open();
    await until(() => told.length >= 6, 'all of it is seen');
    expect(watched.healthy).toBe(true);
    expect(told.slice(1).sort()).toEqual([
      'added comes',
      'added comes-anew',
      'changed changes',
      'removed comes-anew',
      'removed goes',
    ]);
    const listed = (await direct.list('ServiceAccount', { namespace })).map(({ metadata }) => metadata.uid);
    expect([...watched.list()].map(({ metadata }) => metadata.uid).sort()).toEqual([...listed].sort());
  } finally {
    await watched.stop();
    cluster.close();
    await road.close();
    await rm(road.dir, { recursive: true });
  }
});

it('requests that find their kept connections closed are asked again, and twenty share no connection while they run', async () => {
  const road = new Road();
  const cluster = Cluster.connect({ kubeconfig: await road.open(), logger });
  try {
    const ask = () => cluster.get('Namespace', namespace);
    for (let n = 0; n < 5; n++) await ask();
    expect(road.opened).toBe(1);
    await Promise.all(Array.from({ length: 20 }, ask));
    expect(road.opened).toBeGreaterThan(10);
    const { opened } = road;
    await road.close();
    await road.open();
    await Promise.all(Array.from({ length: 5 }, ask));
    expect(road.opened).toBeGreaterThan(opened);
  } finally {
    cluster.close();
    await road.close();
    await rm(road.dir, { recursive: true });
  }
});

it('a version that the server no longer keeps leads to a new list', async () => {
  // Of a kind that there was not yet at that version.
  const source = direct.source('SandboxTemplate');
  const versions: string[] = [];
  const forgetful: WatchSource<SandboxTemplate> = {
    list: async (signal) => {
      const listed = await source.list(signal);
      // The first of all versions has long been compacted.
      return versions.length === 0 ? { ...listed, resourceVersion: '1' } : listed;
    },
    watch: async (version, signal, on) => {
      versions.push(version);
      await source.watch(version, signal, on);
    },
  };
  const errors: unknown[] = [];
  const watched = new Watched(forgetful, { onError: (error) => errors.push(error) });
  try {
    await until(() => versions.length === 2 && watched.healthy, 'it watches from a new version');
    expect(versions[0]).toBe('1');
    expect(Number(versions[1])).toBeGreaterThan(1);
    expect(errors).toEqual([]);
  } finally {
    await watched.stop();
  }
});
