import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DEFAULT_SANDBOX, HUB_AUDIENCE, resolveCloudConfig } from '@holdfast/contracts';
import { createLogger } from '@holdfast/platform';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { CoreV1Api, CustomObjectsApi, KubeConfig } from '@kubernetes/client-node';
import { type Crd, FILE, typesOf, withHash } from '../../../../bin/src/generate-kubernetes-types.ts';
import { existingCluster, loadBed } from '../../../../k8s/testbed/src/settings.ts';
import { contextIdOf } from '../store/sandbox.store.ts';
import { claimObject } from './claim.manifest.ts';
import { Cluster } from './cluster.ts';
import { ClusterView } from './cluster-view.ts';
import { contextObjects } from './context.manifest.ts';
import { environmentObjects } from './environment.manifest.ts';
import type { KubernetesObject, PersistentVolumeClaim, Pod, SandboxWarmPool } from './kinds.ts';
import { claimName, contextVolumeName, LABELS, SERVICE_ACCOUNT } from './names.ts';
import { namespaceObjects } from './namespace.manifest.ts';
import { Objects } from './objects.ts';
import type { ClusterSettings } from './settings.manifest.ts';
import { sandboxServiceAccount } from './test/service-account.ts';

const installation = `spec${randomBytes(3).toString('hex')}`;
/** A program that sleeps and reaps, in an image that every node of the bed has. */
const PAUSE = 'localhost/holdfast/pause:testbed';
const settings: ClusterSettings = {
  installation,
  image: PAUSE,
  imagePullPolicy: 'IfNotPresent',
  hubUrl: 'wss://192.0.2.1:7443',
  hubCa: '',
  hubCidrs: null,
  cpuMillis: 200,
  cpuRequestMillis: 10,
  memoryMib: 64,
  workspaceMib: 64,
  tmpMib: 16,
  contextAccessMode: 'ReadWriteMany',
  quota: { pods: 8, cpuMillis: 20_000, memoryMib: 4_096, storageMib: 4_096 },
};
const logger = createLogger({ service: 'spec', instance: 'spec', level: 'silent' });
const adminConfig = existingCluster() ?? loadBed().kubeconfig;
/** Makes what only others make, and takes away what this leaves. */
const admin = Cluster.connect({ kubeconfig: adminConfig, logger });
const account = await sandboxServiceAccount(adminConfig);
/** With the rights of the sandbox service and no others. */
const cluster = Cluster.connect({ kubeconfig: account.kubeconfig, logger });
const own = `${LABELS.installation}=${installation}`;
const workspaceId = 'wrkspc_cluster';
const [home, ...confinement] = namespaceObjects(settings, workspaceId);
const namespace = home?.metadata.name ?? '';
const environment = (changes: Partial<typeof DEFAULT_SANDBOX>) =>
  environmentObjects(settings, {
    workspaceId,
    environmentId: 'env_cluster',
    sandbox: { ...DEFAULT_SANDBOX, workspace: 'ephemeral', ...changes },
  });
const claimFrom = (pool: string, sandboxId: string, incarnation = 1) =>
  claimObject(settings, {
    workspaceId,
    environmentId: 'env_cluster',
    sandboxId,
    sessionId: 'sesn_cluster',
    incarnation,
    pool,
    deadline: new Date(Date.now() + 600_000),
  });
/** Of which nothing follows: the template that it names is not there. */
const bare = (name: string): SandboxWarmPool => ({
  apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
  kind: 'SandboxWarmPool',
  metadata: { name, namespace, labels: { [LABELS.installation]: installation } },
  spec: { replicas: 0, sandboxTemplateRef: { name: 'none-such' } },
});

async function until<T>(look: () => T | null | Promise<T | null>, what: string, ms = 60_000): Promise<T> {
  const deadline = Date.now() + ms;
  for (;;) {
    const found = await look();
    if (found !== null) return found;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
    await sleep(50);
  }
}

beforeAll(async () => {
  for (const object of home === undefined ? [] : [home, ...confinement]) await cluster.apply(object);
});
afterAll(async () => {
  for (const { metadata } of await admin.list('Namespace', { labelSelector: own })) {
    await admin.remove({ kind: 'Namespace', metadata });
  }
  await account.remove();
  cluster.close();
  admin.close();
});

it('agent-sandbox has the kinds that the types were generated from', async () => {
  const config = new KubeConfig();
  config.loadFromFile(adminConfig);
  // Its typed API renames members of schemas.
  const { items } = (await config.makeApiClient(CustomObjectsApi).listClusterCustomObject({
    group: 'apiextensions.k8s.io',
    version: 'v1',
    plural: 'customresourcedefinitions',
  })) as { readonly items: readonly Crd[] };
  const served = items.filter(({ spec }) => spec.group.endsWith('agents.x-k8s.io'));
  expect(withHash(typesOf(served))).toBe(await readFile(FILE, 'utf8'));
});

describe('objects', () => {
  it('of every kind that the platform makes are accepted, and applied again change nothing', async () => {
    const { template, pool } = environment({});
    const context = contextObjects(settings, {
      workspaceId,
      environmentId: 'env_cluster',
      sandbox: DEFAULT_SANDBOX,
      contextId: 'c'.repeat(32),
    });
    expect(await cluster.create(context.volume)).toBe(true);
    const objects: readonly KubernetesObject[] = [...confinement, template, pool, context.template, context.pool];
    for (const object of objects) {
      const first = await cluster.apply(object);
      expect(first.metadata).not.toHaveProperty('managedFields');
      // The controller labels templates; what is ours has to stay as it is.
      const second = await cluster.apply(object);
      const specs = [first, second].map((stored) => (stored as { readonly spec?: unknown }).spec);
      expect(specs[1]).toEqual(specs[0]);
      // To the API server a policy's empty list of ways in is a change to the one that it keeps, which has none.
      if (object.kind !== 'NetworkPolicy') expect(second.metadata.generation).toBe(first.metadata.generation);
      expect(second.metadata.uid).toBe(first.metadata.uid);
    }
    expect(await cluster.get('SandboxWarmPool', pool.metadata.name, namespace)).toMatchObject({ spec: pool.spec });
    expect(await cluster.list('SandboxTemplate', { namespace, labelSelector: own })).toHaveLength(2);
  });

  it('that do not exist are null, false, or cluster.absent', async () => {
    expect(await cluster.get('Pod', 'none', namespace)).toBeNull();
    const ref = { kind: 'Pod', metadata: { name: 'none', namespace } } as const;
    expect(await cluster.remove(ref)).toBe(false);
    await expect(cluster.patch({ ...ref, kind: 'SandboxClaim' }, {})).rejects.toMatchObject({
      code: 'cluster.absent',
      kind: 'not-found',
    });
    await expect(
      cluster.apply({ ...bare('a'), metadata: { name: 'a', namespace: 'none-such' } }),
    ).rejects.toMatchObject({
      code: 'cluster.absent',
    });
  });

  it('are changed and removed only while they are the ones that are meant', async () => {
    const made = await cluster.apply(bare('meant'));
    const { uid } = made.metadata;
    const change = (of: string) => ({ metadata: { uid: of, annotations: { 'holdfast.dev/context': 'x' } } });
    expect((await cluster.patch(made, change(uid))).metadata.annotations).toMatchObject({
      'holdfast.dev/context': 'x',
    });
    await expect(cluster.patch(made, change('another'))).rejects.toMatchObject({ code: 'cluster.conflict' });
    expect(await cluster.remove(made, { uid: 'another' })).toBe(false);
    expect(await cluster.remove(made, { uid })).toBe(true);
    await until(
      async () => ((await cluster.get('SandboxWarmPool', 'meant', namespace)) === null ? true : null),
      'gone',
    );
    // What a person deleted must not come back by being renewed.
    await expect(
      cluster.apply({ ...bare('meant'), metadata: { ...bare('meant').metadata, uid } }),
    ).rejects.toMatchObject({ code: 'cluster.conflict' });
  });

  it('that policy, schema or rights forbid are cluster.refused, and say why', async () => {
    const { template } = environment({});
    const wrong = { ...template, spec: { ...template.spec, colour: 'red' } };
    await expect(cluster.apply(wrong)).rejects.toMatchObject({
      code: 'cluster.refused',
      message: expect.stringMatching(/spec\.colour/),
    });
    const onTheHost: Pod = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'on-the-host', namespace },
      spec: { hostNetwork: true, containers: [{ name: 'x', image: PAUSE }] },
    };
    await expect(admin.apply(onTheHost)).rejects.toMatchObject({
      code: 'cluster.refused',
      kind: 'rejected',
      message: expect.stringMatching(/violates PodSecurity "restricted/),
      details: { status: 403 },
    });
  });

  it('beyond the quota are cluster.quota-exceeded', async () => {
    const huge: PersistentVolumeClaim = {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name: 'huge', namespace },
      spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '1Ti' } } },
    };
    await expect(cluster.create(huge)).rejects.toMatchObject({
      code: 'cluster.quota-exceeded',
      kind: 'exhausted',
      message: expect.stringMatching(/exceeded quota: workspace/),
    });
  });

  it('in a namespace that goes away are a conflict, which passes', async () => {
    const [going] = namespaceObjects(settings, 'wrkspc_going');
    if (going === undefined) throw new Error('no namespace');
    await cluster.apply(going);
    const held = { ...bare('held'), metadata: { name: 'held', namespace: going.metadata.name } };
    await cluster.apply(held);
    await cluster.patch(held, { metadata: { finalizers: ['holdfast.dev/spec'] } });
    await admin.remove({ kind: 'Namespace', metadata: going.metadata });
    await expect(cluster.apply({ ...held, metadata: { ...held.metadata, name: 'late' } })).rejects.toMatchObject({
      code: 'cluster.conflict',
    });
    await cluster.patch(held, { metadata: { finalizers: null } });
  });

  it('are made once where that is asked for', async () => {
    const first = bare('once');
    expect(await cluster.create(first)).toBe(true);
    expect(await cluster.create({ ...first, spec: { ...first.spec, replicas: 1 } } as SandboxWarmPool)).toBe(false);
    expect(await cluster.get('SandboxWarmPool', 'once', namespace)).toMatchObject({ spec: { replicas: 0 } });
  });

  it('are made side by side: twenty take not much longer than a few', async () => {
    const time = async (names: readonly string[]): Promise<number> => {
      const before = performance.now();
      await Promise.all(names.map((name) => cluster.apply(bare(name))));
      return performance.now() - before;
    };
    await time(['warm-up']);
    const one = await time(['one']);
    const twenty = await time(Array.from({ length: 20 }, (_, n) => `many-${n}`));
    expect(twenty).toBeLessThan(Math.max(500, one * 15));
  });
});

describe('the rights of the sandbox service', () => {
  const foreign = `holdfast-foreign-${installation}`;
  const inForeign = { kind: 'Pod', metadata: { name: 'foreign', namespace: foreign } } as const;

  beforeAll(async () => {
    await admin.apply({
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name: foreign, labels: { [LABELS.installation]: installation } },
    });
    await admin.apply({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: inForeign.metadata,
      spec: { containers: [{ name: 'x', image: PAUSE, imagePullPolicy: 'IfNotPresent' }] },
    });
  });

  it('end at the namespaces that it made: nothing is written or removed elsewhere', async () => {
    const refused = expect.objectContaining({
      code: 'cluster.refused',
      message: expect.stringMatching(/writes only in namespaces of its own/),
    });
    await expect(cluster.remove(inForeign)).rejects.toEqual(refused);
    await expect(cluster.apply({ ...bare('v'), metadata: { name: 'v', namespace: foreign } })).rejects.toEqual(refused);
    const { template } = environment({});
    await expect(
      cluster.apply({ ...template, metadata: { ...template.metadata, namespace: foreign } }),
    ).rejects.toEqual(refused);
    expect((await cluster.get('Pod', 'foreign', foreign))?.metadata.deletionTimestamp).toBeUndefined();
  });

  it('do not take a namespace over, nor make one that confines nothing', async () => {
    if (home?.kind !== 'Namespace') throw new Error('no namespace');
    await expect(cluster.apply({ ...home, metadata: { ...home.metadata, name: foreign } })).rejects.toMatchObject({
      code: 'cluster.refused',
      message: expect.stringMatching(/takes no namespace over/),
    });
    const loose = { ...home.metadata.labels, 'pod-security.kubernetes.io/enforce': 'privileged' };
    const [next] = namespaceObjects(settings, 'wrkspc_loose');
    for (const metadata of [home.metadata, next?.metadata ?? home.metadata]) {
      await expect(cluster.apply({ ...home, metadata: { ...metadata, labels: loose } })).rejects.toMatchObject({
        code: 'cluster.refused',
        message: expect.stringMatching(/enforces Pod Security restricted/),
      });
    }
  });

  it.each<[string, () => Promise<unknown>]>([
    ['removing a namespace', () => cluster.remove({ kind: 'Namespace', metadata: { name: namespace } })],
    ['making a pod', () => cluster.create({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'x', namespace } })],
    ['changing a pod', () => cluster.patch(inForeign, { metadata: { labels: { a: 'b' } } })],
    ['removing a node', () => cluster.remove({ kind: 'Node', metadata: { name: 'node-1' } })],
    ['removing the quota', () => cluster.remove({ kind: 'ResourceQuota', metadata: { name: 'workspace', namespace } })],
    ['removing a volume', () => cluster.remove({ kind: 'PersistentVolumeClaim', metadata: { name: 'x', namespace } })],
    ['removing a policy', () => cluster.remove({ kind: 'NetworkPolicy', metadata: { name: 'hub-only', namespace } })],
    [
      'removing a sandbox under its claim',
      () => cluster.remove({ kind: 'Sandbox', metadata: { name: 'x', namespace } }),
    ],
  ])('do not reach to %s', async (_, forbidden) => {
    await expect(forbidden()).rejects.toMatchObject({
      code: 'cluster.refused',
      message: expect.stringMatching(/cannot/),
    });
  });
});

describe('a token', () => {
  const tokenOf = async (audience: string, boundTo: { name: string; uid: string } | null): Promise<string> => {
    const config = new KubeConfig();
    config.loadFromFile(adminConfig);
    const { status } = await config.makeApiClient(CoreV1Api).createNamespacedServiceAccountToken({
      name: SERVICE_ACCOUNT,
      namespace,
      body: {
        spec: {
          audiences: [audience],
          ...(boundTo === null ? {} : { boundObjectRef: { apiVersion: 'v1', kind: 'Pod', ...boundTo } }),
        },
      },
    });
    return status?.token ?? '';
  };

  it('says whose pod it is, while that is there and the audience is the hub', async () => {
    const { template, pool } = environment({});
    await cluster.apply(template);
    await cluster.apply(pool);
    const claim = await cluster.apply(claimFrom(pool.metadata.name, 'sbx_token'));
    const pod = await until(async () => {
      const found = (await cluster.list('Pod', { namespace })).find(
        ({ metadata }) => metadata.name === claim.metadata.name,
      );
      return found?.status?.phase === 'Running' ? found : null;
    }, 'its pod runs');
    const token = await tokenOf(HUB_AUDIENCE, { name: pod.metadata.name, uid: pod.metadata.uid });
    expect(await cluster.reviewToken(token, HUB_AUDIENCE)).toEqual({
      namespace,
      serviceAccount: SERVICE_ACCOUNT,
      pod: pod.metadata.name,
      podUid: pod.metadata.uid,
    });
    const other = await tokenOf('another', { name: pod.metadata.name, uid: pod.metadata.uid });
    expect(await cluster.reviewToken(other, HUB_AUDIENCE)).toEqual({ refused: expect.stringMatching(/audience/) });
    await cluster.remove(claim);
    await until(
      async () => ((await cluster.get('Pod', pod.metadata.name, namespace)) === null ? true : null),
      'its pod is gone',
    );
    // The API server remembers a good answer for ten seconds.
    await until(async () => ('refused' in (await cluster.reviewToken(token, HUB_AUDIENCE)) ? true : null), 'refused');
  });

  it('without a pod, or made up, is refused', async () => {
    expect(await cluster.reviewToken(await tokenOf(HUB_AUDIENCE, null), HUB_AUDIENCE)).toEqual({
      refused: 'the token is not bound to a pod',
    });
    expect(await cluster.reviewToken('made.up.token', HUB_AUDIENCE)).toEqual({ refused: expect.any(String) });
  });
});

describe('a server that is not there', () => {
  it('is cluster.unreachable, and nothing of the credentials is told', async () => {
    const nowhere = Cluster.connect({ kubeconfig: await kubeconfigFor('https://127.0.0.1:1', 'secret-token'), logger });
    const failed = await nowhere.get('Node', 'x').catch((error: unknown) => error);
    expect(failed).toMatchObject({ code: 'cluster.unreachable', kind: 'unavailable' });
    expect(JSON.stringify([failed, String(failed)])).not.toContain('secret-token');
    nowhere.close();
  });

  it('is cluster.not-configured where no configuration says where it is', () => {
    expect(() => Cluster.connect({ kubeconfig: '/none/such', logger })).toThrow(
      expect.objectContaining({ code: 'cluster.not-configured' }),
    );
    expect(() => Cluster.connect({ kubeconfig: null, logger })).toThrow(
      expect.objectContaining({ code: 'cluster.not-configured' }),
    );
  });
});

describe('sandboxes', () => {
  const view = new ClusterView(cluster, installation);
  const objects = new Objects(cluster, view, settings);
  beforeAll(() => until(() => (view.synced ? true : null), 'everything was listed'));
  afterAll(() => view.stop());
  const row = (
    id: string,
    contextKey: string | null,
    sandbox: { pool_size?: number; storage_class?: string; workspace_mib?: number },
  ) => ({
    id,
    workspace_id: workspaceId,
    session_id: 'sesn_cluster',
    environment_id: 'env_cluster',
    context_key: contextKey,
    environment: resolveCloudConfig({ type: 'cloud', x_sandbox: { workspace: 'ephemeral', ...sandbox } }),
    namespace,
    claim: claimName(id, 1),
  });
  const deadline = () => new Date(Date.now() + 600_000);

  it('are claimed warm, seen to run, and to run in another pod when theirs is deleted, and gone when they are given back', async () => {
    const sandbox = { pool_size: 1 };
    const pool = environment(sandbox).pool.metadata.name;
    await objects.environment({
      workspaceId,
      environmentId: 'env_cluster',
      sandbox: { ...DEFAULT_SANDBOX, workspace: 'ephemeral', ...sandbox },
    });
    await until(() => (view.pool(namespace, pool)?.status?.readyReplicas === 1 ? true : null), 'the pool is warm');
    const warm = row('sbx_warm', null, sandbox);
    await objects.claim(warm, deadline());
    const running = (not: string | null) => () => {
      const seen = view.observe(warm);
      return seen.phase === 'running' && seen.podUid !== not ? seen : null;
    };
    const first = await until(running(null), 'it runs');
    expect(first).toMatchObject({ launch: 'warm', reason: null, pod: expect.stringMatching(`^${pool}-`) });
    await objects.removePod({ namespace, pod: first.pod }, { uid: first.podUid ?? '', graceSeconds: 0 });
    const second = await until(running(first.podUid), 'another pod runs');
    expect(second.pod).toBe(first.pod);
    await objects.removeClaim(warm);
    await until(() => (view.observe(warm).phase === 'absent' ? true : null), 'it is given back');
    await until(() => (view.pod(second.podUid ?? '') === null ? true : null), 'its pod is gone');
  });

  it('of a context keep its volume when the environment asks for another', async () => {
    await objects.claim(row('sbx_context_1', 'shared', {}), deadline());
    await objects.claim(row('sbx_context_2', 'shared', { storage_class: 'none-such', workspace_mib: 32 }), deadline());
    const volumes = (await admin.list('PersistentVolumeClaim', { namespace, labelSelector: LABELS.context })).filter(
      ({ metadata }) => metadata.name === contextVolumeName(contextIdOf(row('', 'shared', {})) ?? ''),
    );
    expect(volumes).toHaveLength(1);
    expect(volumes[0]?.spec).toMatchObject({
      resources: { requests: { storage: '64Mi' } },
      accessModes: ['ReadWriteMany'],
    });
  });
});

async function kubeconfigFor(server: string, token: string): Promise<string> {
  const file = join(await mkdtemp(join(tmpdir(), 'holdfast-spec-')), 'kubeconfig');
  await writeFile(
    file,
    JSON.stringify({
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'c', cluster: { server, 'insecure-skip-tls-verify': true } }],
      users: [{ name: 'u', user: { token } }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    }),
  );
  return file;
}
