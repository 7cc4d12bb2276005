import { setTimeout as sleep } from 'node:timers/promises';
import type { SandboxEnvironment } from '@holdfast/contracts';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { PatchStrategy, setHeaderOptions } from '@kubernetes/client-node';
import type { KindName, KubernetesObject, Pod, SandboxClaim, Stored } from './kinds.ts';
import { ANNOTATIONS, LABELS, MANAGED_BY, SERVICE_ACCOUNT } from './names.ts';
import { type ClusteredPlatform, startOnCluster, type Tenant, until } from './test/clustered-platform.ts';

/** The shortest that an environment can ask for. */
const IDLE_SECONDS = 5;
const LIFETIME_SECONDS = 60;
/** Housekeeping looks every five seconds. */
const REPAIR_MS = 12_000;

let platform: ClusteredPlatform;
let tenant: Tenant;
let namespace: string;
const figures: string[] = [];
beforeAll(async () => {
  platform = await startOnCluster({
    SANDBOX_MEMORY_BYTES: String(200 * 1024 ** 2),
    SANDBOX_CPU_MILLIS: '500',
    TOOL_DEFAULT_TIMEOUT_MS: '120000',
  });
  tenant = platform.first;
  namespace = platform.namespaceOf('wrkspc_default');
}, 240_000);
afterAll(async () => {
  process.stdout.write(`${figures.join('\n')}\n`);
  await platform.stop();
}, 120_000);

let names = 0;
const environment = (sandbox: Partial<SandboxEnvironment>) =>
  tenant.environment(`upkeep-${++names}`, { workspace: 'ephemeral', ...sandbox });
const rowOf = async (session: string) => {
  const [row] = await platform.query(`select * from sandboxes where session_id = $1 and status <> 'destroyed'`, [
    session,
  ]);
  return row as {
    claim: string | null;
    pod: string | null;
    pod_uid: string | null;
    status: string;
    incarnation: number;
  };
};
/** When the log last said it of the session's sandbox, in ms since 1970. */
const saidAt = async (session: string, type: string): Promise<number> => {
  const [row] = await platform.query(
    `select e.recorded_at from events e join sandboxes s on e.stream_id = 'sandbox-' || s.id
     where s.session_id = $1 and e.type = $2 order by e.version desc limit 1`,
    [session, type],
  );
  return (row?.['recorded_at'] as Date | undefined)?.getTime() ?? 0;
};
const p50 = (all: readonly number[]) => all.toSorted((a, b) => a - b)[Math.floor(all.length / 2)] ?? 0;
const isReady = ({ status }: { status?: { conditions?: readonly { type: string; status: string }[] } }) =>
  status?.conditions?.some((one) => one.type === 'Ready' && one.status === 'True') === true;

/** What `cat file` says in a new sandbox that was given the session's files. */
const RESTORED = /^\[The sandbox was started anew with its files .*\]\n\nkept\n$/;

/** Started with the file, looked at near its end: it takes a minute. */
let lifetimes: Promise<{ idle: string; busy: string; busyResult: string }>;
beforeAll(() => {
  lifetimes = (async () => {
    const id = await environment({ max_lifetime_seconds: LIFETIME_SECONDS, idle_seconds: 3_600 });
    const [idle, busy] = [await tenant.session({ environment_id: id }), await tenant.session({ environment_id: id })];
    const [, { text }] = await Promise.all([
      tenant.run(idle, 'echo here'),
      tenant.run(busy, `sleep ${LIFETIME_SECONDS + 8}; echo done`, 110_000),
    ]);
    return { idle, busy, busyResult: text };
  })();
  lifetimes.catch(() => undefined);
});

describe('rest and wake', () => {
  const ROUNDS = 3;
  it.each<['volume' | 'ephemeral', RegExp]>([
    ['volume', /^kept\n$/],
    ['ephemeral', RESTORED],
  ])(
    '%s: idle, its pod goes, and the next message finds what is kept',
    async (workspace, found) => {
      const id = await environment({ workspace, idle_seconds: IDLE_SECONDS });
      const session = await tenant.session({ environment_id: id });
      await tenant.run(session, 'echo kept > file; echo here');
      const goneMs: number[] = [];
      const readyMs: number[] = [];
      const answerMs: number[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        const { pod_uid } = await rowOf(session);
        await until('it rests', async () => ((await rowOf(session)).status === 'suspended' ? true : null));
        const restedAtMs = await saidAt(session, 'sandbox.suspended');
        await until('its pod is gone', async () =>
          (await platform.admin.list('Pod', { namespace })).some(({ metadata }) => metadata.uid === pod_uid)
            ? null
            : true,
        );
        goneMs.push(Date.now() - restedAtMs);
        if (workspace === 'ephemeral') expect((await rowOf(session)).claim).toBeNull();
        else expect(await tenant.sandbox(session)).toMatchObject({ status: 'suspended', reason: null });
        const wakeAtMs = Date.now();
        const result = await tenant.run(session, 'cat file 2>/dev/null; true');
        answerMs.push(Date.now() - wakeAtMs);
        readyMs.push((await saidAt(session, 'sandbox.ready')) - wakeAtMs);
        expect(result).toEqual({ text: expect.stringMatching(found), isError: false });
        expect((await rowOf(session)).pod_uid).not.toBe(pod_uid);
        expect(await tenant.sandbox(session)).toMatchObject({ launch: workspace === 'volume' ? 'resumed' : 'cold' });
      }
      const raw = workspace === 'volume' ? await rawResume(session, ROUNDS) : await rawClaim(session, ROUNDS);
      figures.push(
        `${workspace}: pod gone ${goneMs.join(', ')} ms after the rest; woken by a message: ready p50 ${p50(readyMs)} ms, answer p50 ${p50(answerMs)} ms (${answerMs.join(', ')}); the controller alone p50 ${p50(raw)} ms (${raw.join(', ')})`,
      );
      expect(Math.max(...goneMs)).toBeLessThanOrEqual(5_000);
    },
    120_000,
  );

  /** The same claim by the administrator: how long the controller takes until it is ready. */
  async function rawClaim(session: string, rounds: number): Promise<number[]> {
    const { claim: name } = await rowOf(session);
    const own = await platform.admin.get('SandboxClaim', name ?? '', namespace);
    const all: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const claim: SandboxClaim = {
        apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
        kind: 'SandboxClaim',
        metadata: { name: `raw-${round}`, namespace },
        spec: { warmPoolRef: own?.spec.warmPoolRef ?? { name: '' } },
      };
      const beganMs = Date.now();
      await platform.admin.apply(claim);
      await until('the raw claim is ready', async () => {
        const now = await platform.admin.get('SandboxClaim', claim.metadata.name, namespace);
        return now !== null && isReady(now) ? true : null;
      });
      all.push(Date.now() - beganMs);
      await platform.admin.remove(claim);
    }
    return all;
  }
  /** The same through `operatingMode` by the administrator, on a claim that is not the platform's. */
  async function rawResume(session: string, rounds: number): Promise<number[]> {
    const { claim } = await rowOf(session);
    const pool = (await platform.admin.get('SandboxClaim', claim ?? '', namespace))?.spec.warmPoolRef ?? { name: '' };
    const own: SandboxClaim = {
      apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
      kind: 'SandboxClaim',
      metadata: { name: 'raw-resume', namespace },
      spec: { warmPoolRef: pool },
    };
    await platform.admin.apply(own);
    const sandbox = { kind: 'Sandbox', metadata: { name: 'raw-resume', namespace } } as const;
    const podUid = async () => {
      const [now, pod] = await Promise.all([
        platform.admin.get('Sandbox', 'raw-resume', namespace),
        platform.admin.get('Pod', 'raw-resume', namespace),
      ]);
      return now !== null && isReady(now) && pod !== null && isReady(pod) ? pod.metadata.uid : null;
    };
    const all: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const before = await until('the raw sandbox is ready', podUid);
      await platform.admin.patch(sandbox, { spec: { operatingMode: 'Suspended' } });
      await until('its pod is gone', async () =>
        (await platform.admin.get('Pod', 'raw-resume', namespace)) === null ? true : null,
      );
      const beganMs = Date.now();
      await platform.admin.patch(sandbox, { spec: { operatingMode: 'Running' } });
      await until('it is ready again', async () => {
        const now = await podUid();
        return now === null || now === before ? null : true;
      });
      all.push(Date.now() - beganMs);
    }
    await platform.admin.remove(own);
    return all;
  }

  it('a message at the very moment of the rest is served', async () => {
    const ids = [
      await environment({ idle_seconds: IDLE_SECONDS }),
      await environment({ workspace: 'volume', idle_seconds: IDLE_SECONDS }),
    ];
    const offsetsMs = [-150, 0, 30, 90, 200, 600];
    const served = await Promise.all(
      offsetsMs.map(async (offsetMs, n) => {
        const session = await tenant.session({ environment_id: ids[n % 2] });
        await tenant.run(session, 'echo first');
        await sleep(IDLE_SECONDS * 1_000 + offsetMs);
        const result = await tenant.run(session, 'echo late');
        figures.push(`a message ${offsetMs} ms after the idle time: incarnation ${(await rowOf(session)).incarnation}`);
        return result;
      }),
    );
    for (const { text, isError } of served) {
      expect(text).toMatch(/(^|\n)late\n$/);
      expect(isError).toBe(false);
    }
  }, 120_000);
});

describe('what somebody removes or changes', () => {
  let pooled: string;
  beforeAll(async () => {
    pooled = await environment({ pool_size: 1 });
    await until('the pool is full', async () => ((await poolOf(pooled))?.ready === 1 ? true : null));
  }, 60_000);
  const poolOf = async (id: string) =>
    (
      await tenant.client.json<{ data: { environment_id: string; size: number; ready: number }[] }>(
        '/v1/x/sandbox_pools',
      )
    ).data.find(({ environment_id }) => environment_id === id);
  const objectsOf = async <K extends 'SandboxWarmPool' | 'SandboxTemplate'>(kind: K, id: string) =>
    (await platform.admin.list<K>(kind, { namespace })).filter(
      ({ metadata }) =>
        metadata.annotations?.[ANNOTATIONS.environmentId] === id && metadata.deletionTimestamp === undefined,
    );

  it('what bounds a namespace is made again, as it was', async () => {
    const bounds: readonly [KindName, string][] = [
      ['NetworkPolicy', 'hub-only'],
      ['ResourceQuota', 'workspace'],
      ['LimitRange', 'workspace'],
      ['ServiceAccount', SERVICE_ACCOUNT],
    ];
    const found = () => Promise.all(bounds.map(([kind, name]) => platform.admin.get(kind, name, namespace)));
    const shown = (objects: readonly (KubernetesObject | null)[]) =>
      objects.map((object) => ({ ...object, metadata: object?.metadata.labels, status: null }));
    const before = await found();
    const beganMs = Date.now();
    for (const [kind, name] of bounds)
      expect(await platform.admin.remove({ kind, metadata: { name, namespace } })).toBe(true);
    const after = await until(
      'all are there again',
      async () => {
        const now = await found();
        return now.every((object, n) => object !== null && object.metadata.uid !== before[n]?.metadata.uid)
          ? now
          : null;
      },
      REPAIR_MS,
    );
    figures.push(`the bounds of a namespace were there again after ${Date.now() - beganMs} ms`);
    expect(shown(after)).toEqual(shown(before));
  }, 30_000);

  it('an opened policy, a raised quota and a loosened namespace become what they were', async () => {
    const policy = { kind: 'NetworkPolicy', metadata: { name: 'hub-only', namespace } } as const;
    const quota = { kind: 'ResourceQuota', metadata: { name: 'workspace', namespace } } as const;
    const home = { kind: 'Namespace', metadata: { name: namespace } } as const;
    const state = async () => [
      (await platform.admin.get('NetworkPolicy', 'hub-only', namespace))?.spec,
      (await platform.admin.get('ResourceQuota', 'workspace', namespace))?.spec,
      (await platform.admin.get('Namespace', namespace))?.metadata.labels,
    ];
    const before = await state();
    expect(before).toEqual([expect.anything(), expect.anything(), expect.anything()]);
    await platform.admin.patch(policy, { spec: { egress: [{}], ingress: [{}] } });
    await platform.admin.patch(quota, { spec: { hard: { pods: '100000' } } });
    await platform.admin.patch(home, { metadata: { labels: { 'pod-security.kubernetes.io/enforce': 'privileged' } } });
    await until(
      'all is as it was',
      async () => (JSON.stringify(await state()) === JSON.stringify(before) ? true : null),
      REPAIR_MS,
    );
  }, 30_000);

  it('a pool and its template are made again, a scaled pool has its size again', async () => {
    const [pool] = await objectsOf('SandboxWarmPool', pooled);
    const [template] = await objectsOf('SandboxTemplate', pooled);
    if (pool === undefined || template === undefined) throw new Error('no pool');
    expect(pool.spec.replicas).toBe(1);
    await platform.admin.patch(pool, { spec: { replicas: 3 } });
    await until(
      'it has its size',
      async () =>
        (await platform.admin.get('SandboxWarmPool', pool.metadata.name, namespace))?.spec.replicas === 1 ? true : null,
      REPAIR_MS,
    );
    await platform.admin.remove(template);
    await platform.admin.remove(pool);
    await until(
      'both are there again',
      async () => {
        const [[again], [templateAgain]] = [
          await objectsOf('SandboxWarmPool', pooled),
          await objectsOf('SandboxTemplate', pooled),
        ];
        return again?.metadata.name === pool.metadata.name && templateAgain?.metadata.name === template.metadata.name;
      },
      REPAIR_MS,
    );
    await until('it fills', async () => ((await poolOf(pooled))?.ready === 1 ? true : null), 30_000);
  }, 90_000);

  it.each<['ready' | 'suspended', Partial<SandboxEnvironment>]>([
    ['ready', { workspace: 'volume' }],
    ['suspended', { workspace: 'volume', idle_seconds: IDLE_SECONDS }],
  ])(
    'the claim of one that is %s: final, told, and the next message has another',
    async (status, sandbox) => {
      const session = await tenant.session({ environment_id: await environment(sandbox) });
      await tenant.run(session, 'echo kept > file');
      const { claim, pod_uid } = await until('its state', async () => {
        const row = await rowOf(session);
        return row.status === status ? row : null;
      });
      await platform.admin.remove({ kind: 'SandboxClaim', metadata: { name: claim ?? '', namespace } });
      if (status === 'ready')
        await until('the loss is told', async () =>
          (await tenant.sandboxEvents(session, 'sandbox.lost')).length === 1 ? true : null,
        );
      else await sleep(1_000);
      expect(await tenant.run(session, 'cat file')).toEqual({
        text: expect.stringMatching(RESTORED),
        isError: false,
      });
      const now = await rowOf(session);
      expect(now.claim).not.toBe(claim);
      expect(now.pod_uid).not.toBe(pod_uid);
      expect(await tenant.sandboxEvents(session, 'sandbox.lost')).toEqual([
        expect.objectContaining({ reason: expect.stringMatching(/claim was deleted/) }),
      ]);
      expect(await platform.admin.get('SandboxClaim', claim ?? '', namespace)).toBeNull();
    },
    90_000,
  );

  it('a suspended sandbox that is set to run rests again, and wakes with its files', async () => {
    const id = await environment({ workspace: 'volume', idle_seconds: IDLE_SECONDS });
    const session = await tenant.session({ environment_id: id });
    await tenant.run(session, 'echo kept > file');
    const { claim } = await until('it rests', async () => {
      const row = await rowOf(session);
      return row.status === 'suspended' ? row : null;
    });
    const name = await until('its pod is gone', async () => {
      const of = (await platform.admin.get('SandboxClaim', claim ?? '', namespace))?.status?.sandbox?.name ?? '';
      return (await platform.admin.get('Pod', of, namespace)) === null ? of : null;
    });
    await platform.admin.patch(
      { kind: 'Sandbox', metadata: { name, namespace } },
      { spec: { operatingMode: 'Running' } },
    );
    await until(
      'it rests again',
      async () => {
        const mode = (await platform.admin.get('Sandbox', name, namespace))?.spec.operatingMode;
        return mode === 'Suspended' && (await platform.admin.get('Pod', name, namespace)) === null ? true : null;
      },
      30_000,
    );
    expect((await rowOf(session)).status).toBe('suspended');
    expect((await tenant.run(session, 'cat file')).text).toBe('kept\n');
  }, 90_000);

  it('a claim of ours that no sandbox has is removed, one of somebody else’s is left alone', async () => {
    const [pool] = await objectsOf('SandboxWarmPool', pooled);
    const claim = (name: string, labels: Record<string, string>): SandboxClaim => ({
      apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
      kind: 'SandboxClaim',
      metadata: { name, namespace, labels, annotations: { [ANNOTATIONS.sandboxId]: 'sbx_nobody' } },
      spec: { warmPoolRef: { name: pool?.metadata.name ?? '' } },
    });
    const ours = { [LABELS.managedBy]: MANAGED_BY, [LABELS.installation]: platform.installation };
    await platform.admin.apply(claim('nobodys', ours));
    await platform.admin.apply(claim('somebodys', { ...ours, [LABELS.installation]: 'another' }));
    await until(
      'the orphan is gone',
      async () => ((await platform.admin.get('SandboxClaim', 'nobodys', namespace)) === null ? true : null),
      REPAIR_MS,
    );
    expect(await platform.admin.get('SandboxClaim', 'somebodys', namespace)).not.toBeNull();
    await platform.admin.remove({ kind: 'SandboxClaim', metadata: { name: 'somebodys', namespace } });
  }, 30_000);

  it('a pod that has failed is replaced, and the session goes on', async () => {
    const session = await tenant.session({ environment_id: await environment({ workspace: 'volume' }) });
    await tenant.run(session, 'echo kept > file');
    const { pod, pod_uid } = await rowOf(session);
    await platform.core.patchNamespacedPodStatus(
      {
        name: pod ?? '',
        namespace,
        body: { status: { phase: 'Failed', reason: 'Evicted', message: 'The node was low on a spec.' } },
      },
      setHeaderOptions('Content-Type', PatchStrategy.MergePatch),
    );
    await until('another pod serves it', async () => {
      const row = await rowOf(session);
      return row.status === 'ready' && row.pod_uid !== pod_uid ? true : null;
    });
    expect((await tenant.run(session, 'cat file')).text).toBe('kept\n');
    // Its kubelet, which knows better, may say in between that it runs.
    const losses = await tenant.sandboxEvents(session, 'sandbox.lost');
    expect(losses.length).toBeGreaterThan(0);
    for (const loss of losses)
      expect(loss).toMatchObject({ reason: expect.stringMatching(/^Its pod is over \(Evicted/) });
  }, 90_000);

  it('a changed environment rolls its pool and leaves a claimed sandbox alone; archived, its pool goes', async () => {
    const session = await tenant.session({ environment_id: pooled });
    await tenant.run(session, 'echo mine > file');
    const [old] = await objectsOf('SandboxWarmPool', pooled);
    const { pod_uid, claim } = await rowOf(session);
    await tenant.change(pooled, { cpu_millis: 400 });
    const rolled = await until(
      'another pool is full and the old one empty',
      async () => {
        const pools = await objectsOf('SandboxWarmPool', pooled);
        const next = pools.find(({ metadata }) => metadata.name !== old?.metadata.name);
        const before = pools.find(({ metadata }) => metadata.name === old?.metadata.name);
        return next?.status?.readyReplicas === 1 && (before?.spec.replicas ?? 0) === 0 ? next : null;
      },
      30_000,
    );
    const warm = (await platform.admin.list('Pod', { namespace })).find(({ metadata }) =>
      metadata.name.startsWith(`${rolled.metadata.name}-`),
    ) as Stored<Pod>;
    expect(warm.spec?.containers[0]?.resources?.limits?.['cpu']).toBe('400m');
    expect(await rowOf(session)).toMatchObject({ pod_uid, claim, status: 'ready' });
    expect((await tenant.run(session, 'cat file')).text).toBe('mine\n');
    await tenant.client.json(`/v1/environments/${pooled}/archive`, { method: 'POST', json: {} });
    await until(
      'nothing is kept warm',
      async () => {
        const pools = await objectsOf('SandboxWarmPool', pooled);
        return pools.every(({ spec }) => spec.replicas === 0) && (await poolOf(pooled)) === undefined ? true : null;
      },
      REPAIR_MS,
    );
    // The claimed one goes on, and its template stays with it.
    expect((await tenant.run(session, 'cat file')).text).toBe('mine\n');
    expect((await objectsOf('SandboxTemplate', pooled)).map(({ metadata }) => metadata.name)).toContain(
      old?.metadata.name,
    );
  }, 120_000);
});

describe('a maximum lifetime', () => {
  it('ends a sandbox that is not busy, and one that is when its call is done', async () => {
    const { idle, busy, busyResult } = await lifetimes;
    expect(busyResult).toBe('done\n');
    for (const session of [idle, busy]) {
      await until('it rests', async () => ((await rowOf(session)).status === 'suspended' ? true : null), 20_000);
      expect(await tenant.sandboxEvents(session, 'sandbox.suspended')).toEqual([
        expect.objectContaining({ reason: 'it reached its maximum lifetime' }),
      ]);
    }
    const livedMs = (await saidAt(idle, 'sandbox.suspended')) - (await saidAt(idle, 'sandbox.ready'));
    // The life is counted from the row; each event is recorded some milliseconds after what it tells.
    expect(livedMs).toBeGreaterThan((LIFETIME_SECONDS - 1) * 1_000);
    expect(livedMs).toBeLessThan((LIFETIME_SECONDS + 5) * 1_000);
  }, 120_000);
});
