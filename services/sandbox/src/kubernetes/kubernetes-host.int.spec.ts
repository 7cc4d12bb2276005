import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import {
  DEFAULT_SANDBOX,
  type EnsureSandboxBody,
  type ExecBody,
  type ExecReply,
  type HubMessage,
  newId,
  sandboxLinkSubject,
} from '@holdfast/contracts';
import { createLogPool, DirectoryBlobStore, EventLog } from '@holdfast/event-store';
import { createLogger } from '@holdfast/platform';
import { type NatsServer, startNats, type TestDatabase, testDatabase, testRunDir } from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import { GatewayConnections } from '../door/model-door.ts';
import { hubCertificate } from '../hub/certificate.ts';
import { SandboxStore } from '../store/sandbox.store.ts';
import { freePort, until } from '../test/cluster.ts';
import { Dialler, hello } from '../test/dialler.ts';
import { testKeeper } from '../test/keeper.ts';
import { MemoryCluster } from '../test/memory-cluster.ts';
import { migrateSandboxes } from '../test/migrations.ts';
import { KubernetesHost } from './kubernetes-host.ts';

const IDLE_MS = 60_000;
let database: TestDatabase;
let nats: NatsServer;
let pool: pg.Pool;
let log: EventLog;
let bus: Bus;
let tls: { cert: string; key: string };
beforeAll(async () => {
  [database, nats, tls] = await Promise.all([testDatabase(), startNats(), hubCertificate('a secret of sixteen')]);
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec', max: 20 });
  await migrateSandboxes(pool);
  log = new EventLog({ pool });
  bus = await nats.connect('sandbox');
}, 90_000);
afterAll(async () => {
  await bus.close();
  await log.close();
  await pool.end();
  await Promise.all([database.drop(), nats.stop()]);
});

interface Replica {
  readonly host: KubernetesHost;
  readonly store: SandboxStore;
  readonly port: number;
}
let cluster: MemoryCluster;
let replicas: Replica[] = [];
let runners: Dialler[] = [];
beforeEach(() => {
  cluster = new MemoryCluster();
});
afterEach(async () => {
  for (const { socket } of runners) socket.terminate();
  await Promise.all(replicas.map(({ host }) => host.close()));
  await pool.query(`update sandboxes set status = 'destroyed'`);
  [replicas, runners] = [[], []];
});

async function replica(idleMs = IDLE_MS): Promise<Replica> {
  const name = `sandbox-${replicas.length}`;
  const store = new SandboxStore(pool, log, name, `${name}:${newId('command')}`);
  const port = await freePort();
  const blobs = new DirectoryBlobStore(join(testRunDir(), database.name));
  const keeper = testKeeper(pool, store, blobs);
  const host = await KubernetesHost.start(
    {
      ...{ bus, pool, store, env: {}, blobs, fileBlobs: blobs, keeper },
      connections: new GatewayConnections({ url: '', apiKey: '', silenceMs: 1_000 }),
      logger: createLogger({ service: 'sandbox', instance: name, level: 'silent' }),
    },
    cluster.cluster,
    {
      settings: {
        ...{
          installation: 'i1',
          image: 'runner:1',
          imagePullPolicy: 'Never',
          hubUrl: 'wss://10.0.0.1:8081',
          hubCa: tls.cert,
        },
        ...{ hubCidrs: null, cpuMillis: 1_000, cpuRequestMillis: 50, memoryMib: 512, workspaceMib: 1_024, tmpMib: 64 },
        ...{ contextAccessMode: 'ReadWriteMany' },
        quota: { pods: 10, cpuMillis: 10_000, memoryMib: 10_240, storageMib: 10_240 },
      },
      door: { host: '127.0.0.1', port, tls },
      ...{ idleMs, nodeLostMs: 30_000, orphanMs: 3_600_000, workspaceBytes: 1024 ** 3 },
    },
  );
  const made = { host, store, port };
  replicas.push(made);
  return made;
}

const ensureBody = (sandbox: Partial<typeof DEFAULT_SANDBOX> = {}): EnsureSandboxBody =>
  ({
    ...{
      workspaceId: newId('workspace'),
      sessionId: newId('session'),
      environmentId: 'e1',
      contextKey: null,
      generation: 1,
    },
    environment: { x_sandbox: { ...DEFAULT_SANDBOX, ...sandbox }, networking: { type: 'unrestricted' } },
  }) as unknown as EnsureSandboxBody;
const ensure = ({ host }: Replica, body: EnsureSandboxBody, waitMs = 8_000) =>
  host.ensure(body, Date.now() + waitMs, () => undefined);

/** The runner of the only pod, which answers every claim. */
async function runner({ port }: Replica, journalId = 'j1'): Promise<Dialler> {
  await until('a pod', () => cluster.find('Pod').length === 1);
  const uid = cluster.find('Pod')[0]?.metadata.uid ?? '';
  const keys = runners[0]?.keys;
  const dialler = new Dialler(
    `wss://127.0.0.1:${port}/runner-link`,
    hello({ pod: uid, token: uid, journalId }, runners.length > 0 && journalId === 'j1' ? keys : undefined),
    { ca: tls.cert, checkServerIdentity: () => false },
  );
  dialler.socket.on('message', (data) => {
    const message = JSON.parse(String(data as Buffer)) as HubMessage;
    if (message.type === 'claim') dialler.say({ type: 'answer', id: message.id, stale: false, result: null });
    dialler.answerAboutFiles(message);
    if (message.type === 'measure') dialler.say({ type: 'measured', id: message.id, bytes: 0 });
  });
  runners.push(dialler);
  return dialler;
}
async function running(at: Replica, body = ensureBody()) {
  const [reply] = await Promise.all([ensure(at, body), runner(at)]);
  return { body, id: reply.sandboxId };
}
const statusOf = async (id: string, { store } = replicas[0] as Replica) => (await store.byIds([id])).get(id)?.status;

describe('a sandbox that is made', () => {
  it('serves as soon as the controller has committed to it, before its claim says so', async () => {
    cluster.claimsSay = false;
    const one = await replica();
    const { id } = await running(one);
    await until('its record', () => one.host.figures()['linked'] === 1);
    expect(id).toBe(cluster.find('SandboxClaim')[0]?.metadata.annotations?.['holdfast.dev/sandbox-id']);
  }, 30_000);

  it('takes calls before it is recorded as ready, and is recorded when that failed at first', async () => {
    const one = await replica();
    const ready = one.store.ready.bind(one.store);
    const { promise: answered, resolve: answer } = Promise.withResolvers<void>();
    one.store.ready = async () => {
      one.store.ready = ready;
      await answered;
      throw new Error('the database was away');
    };
    const { id } = await running(one);
    expect(await statusOf(id)).toBe('starting');
    answer();
    for (const deadline = Date.now() + 5_000; (await statusOf(id)) !== 'ready'; await sleep(20))
      expect(Date.now()).toBeLessThan(deadline);
  }, 30_000);
});

describe('a sandbox that rests', () => {
  it('is free for whoever wants it next, also when the answer to its being recorded was lost', async () => {
    const only = await replica(500);
    const mark = only.store.mark.bind(only.store);
    only.store.mark = async (...args) => {
      only.store.mark = mark;
      await mark(...args);
      throw new Error('the connection was lost');
    };
    const { body, id } = await running(only);
    for (const deadline = Date.now() + 5_000; (await statusOf(id)) !== 'suspended'; await sleep(20))
      expect(Date.now()).toBeLessThan(deadline);
    await until('the end of its pod', () => cluster.find('Pod').length === 0, 8_000);
    runners = [];
    const [again] = await Promise.all([ensure(only, body), runner(only, 'j2')]);
    expect(again).toEqual({ sandboxId: id, journalId: 'j2' });
  }, 30_000);

  it('stays when somebody claims it in that moment', async () => {
    const only = await replica(500);
    const { body, id } = await running(only);
    const renew = only.store.renew.bind(only.store);
    let asked = 0;
    only.store.renew = async (ids) => {
      asked += 1;
      await ensure(only, body);
      return renew(ids);
    };
    await until('a rest that was begun', () => asked > 1);
    await sleep(300);
    expect(await statusOf(id)).toBe('ready');
    only.store.renew = renew;
  }, 30_000);
});

describe('a pod that goes', () => {
  it('is asked for nothing new, and what it had begun is still told', async () => {
    const only = await replica();
    const { id } = await running(only);
    const [dialler] = runners as [Dialler];
    const exec = (callId: string, journalId = 'j1') =>
      bus
        .requestMany<ExecReply>(
          sandboxLinkSubject(id, 'exec'),
          {
            sessionId: 's',
            callId,
            journalId,
            generation: 1,
            tool: 'bash',
            input: {},
            timeoutMs: 5_000,
          } satisfies ExecBody,
          { silenceMs: 3_000, deadlineAtMs: Date.now() + 5_000 },
        )
        .next();
    const notLinked = { code: 'sandbox.not-linked' };
    await expect(exec('c0', 'another')).rejects.toMatchObject(notLinked);
    const begun = exec('c1');
    await dialler.hears('exec');
    const [pod] = cluster.find('Pod') as [ReturnType<MemoryCluster['find']>[number]];
    cluster.put({ ...pod, metadata: { ...pod.metadata, deletionTimestamp: new Date().toISOString() } });
    await expect(exec('c2')).rejects.toMatchObject(notLinked);
    await expect(bus.request(sandboxLinkSubject(id, 'claim'), { generation: 1 })).rejects.toMatchObject(notLinked);
    const outcome = { outcome: 'completed', isError: false, text: 'told' } as const;
    dialler.say({ type: 'done', callId: 'c1', result: outcome });
    expect((await begun).value).toEqual({ kind: 'done', result: { ...outcome, fullOutput: null } });
    expect(dialler.heard.filter(({ type }) => type === 'exec')).toHaveLength(1);
  }, 30_000);
});

describe('a replica that ends', () => {
  it('leaves its sandboxes to the next one, and no connection to the cluster', async () => {
    const one = await replica();
    const { body, id } = await running(one);
    await one.host.close();
    replicas = [];
    expect(cluster.closed).toBe(1);
    const next = await replica();
    const [again] = await Promise.all([ensure(next, body), runner(next)]);
    expect(again).toEqual({ sandboxId: id, journalId: 'j1' });
  }, 30_000);
});

describe('a link that moves', () => {
  it('is answered for by nobody but its holder', async () => {
    const one = await replica();
    const { id } = await running(one);
    const subject = sandboxLinkSubject(id, 'claim');
    await expect(bus.request(subject, { generation: 1 })).resolves.toMatchObject({ sandboxId: id });
    runners[0]?.socket.terminate();
    await until('the end of the link', () => one.host.figures()['linked'] === 0);
    await expect(bus.request(subject, { generation: 1 })).rejects.toMatchObject({ code: 'bus.no-responders' });
  }, 30_000);

  it('is taken up where it landed, also when that failed at first', async () => {
    const one = await replica();
    const { id } = await running(one);
    const other = await replica();
    const takeOver = other.store.takeOver.bind(other.store);
    let failed = 0;
    other.store.takeOver = (sandboxId) => {
      if (failed++ > 0) return takeOver(sandboxId);
      return Promise.reject(new Error('the database was away'));
    };
    runners[0]?.socket.terminate();
    await (await runner(other)).hears('bound');
    await until('the link at the other replica', () => other.host.figures()['linked'] === 1, 8_000);
    expect(failed).toBeGreaterThan(1);
    expect(await statusOf(id)).toBe('ready');
  }, 30_000);

  it('has its time again when its container was started again', async () => {
    const asked = ensure(await replica(), ensureBody(), 20_000).catch(() => undefined);
    await until('a pod', () => cluster.find('Pod').length === 1);
    const pod = () => cluster.find('Pod')[0] as ReturnType<MemoryCluster['find']>[number];
    const { uid } = pod().metadata;
    cluster.container(pod(), null);
    await sleep(10_500);
    cluster.container(pod(), 'another');
    await sleep(1_000);
    expect(pod()?.metadata.uid).toBe(uid);
    await asked;
  }, 40_000);

  it('keeps its pod when its hub is away for a while, and says meanwhile why it does not answer', async () => {
    const one = await replica();
    const { id } = await running(one);
    const reason = async () => (await one.store.byIds([id])).get(id)?.reason?.code;
    const uid = cluster.find('Pod')[0]?.metadata.uid;
    runners[0]?.socket.terminate();
    await sleep(6_000);
    expect(await reason()).toBe('not-linked');
    await sleep(6_000);
    await runner(one);
    await until('the link', () => one.host.figures()['linked'] === 1);
    for (const deadline = Date.now() + 5_000; (await reason()) !== undefined; await sleep(20))
      expect(Date.now()).toBeLessThan(deadline);
    expect([cluster.find('Pod')[0]?.metadata.uid, await statusOf(id)]).toEqual([uid, 'ready']);
  }, 30_000);

  it('is that of a pod which the cluster has, and of no other', async () => {
    const one = await replica();
    await running(one);
    const [pod] = cluster.find('Pod') as [ReturnType<MemoryCluster['find']>[number]];
    const dialler = async () =>
      new Dialler(
        `wss://127.0.0.1:${one.port}/runner-link`,
        hello({ pod: pod.metadata.uid, token: null, journalId: 'j1' }, runners[0]?.keys),
        { ca: tls.cert, checkServerIdentity: () => false },
      );
    cluster.drop(pod);
    await until('the end of the link', () => runners[0]?.socket.readyState === 3);
    const again = await dialler();
    runners.push(again);
    await again.hears('bound');
    await until('the end of the other', () => again.socket.readyState === 3);
    expect(one.host.figures()['warm']).toBe(0);
  }, 30_000);

  it('does not lengthen the life of its sandbox', async () => {
    const one = await replica();
    const { id } = await running(one, ensureBody({ max_lifetime_seconds: 3_600 }));
    for (const deadline = Date.now() + 5_000; (await statusOf(id)) !== 'ready'; await sleep(20))
      expect(Date.now()).toBeLessThan(deadline);
    await pool.query(`update sandboxes set ready_at = ready_at - interval '1 hour' where id = $1`, [id]);
    const other = await replica();
    runners[0]?.socket.terminate();
    await runner(other);
    for (const deadline = Date.now() + 8_000; (await statusOf(id)) !== 'suspended'; await sleep(20))
      expect(Date.now()).toBeLessThan(deadline);
  }, 30_000);
});
