import { DEFAULT_SANDBOX, type SandboxEnvironment } from '@holdfast/contracts';
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import type { SandboxRow } from '../store/sandbox.store.ts';
import type { Cluster } from './cluster.ts';
import type { ClusterView } from './cluster-view.ts';
import type { KubernetesObject } from './kinds.ts';
import { Objects } from './objects.ts';
import type { ClusterSettings } from './settings.manifest.ts';

const settings: ClusterSettings = {
  imagePullPolicy: 'IfNotPresent',
  ...{ installation: 'i1', image: 'runner:1', hubUrl: 'wss://10.0.0.1:8081', hubCa: 'ca' },
  ...{ hubCidrs: null, cpuMillis: 1_000, cpuRequestMillis: 50, memoryMib: 512, workspaceMib: 1_024, tmpMib: 64 },
  contextAccessMode: 'ReadWriteMany',
  quota: { pods: 10, cpuMillis: 10_000, memoryMib: 10_240, storageMib: 10_240 },
};

/** Objects of a cluster that writes down what it is asked for, keeps what it is given, and is seen at once or not at all. */
function objects({ shown }: { shown: boolean }) {
  const asked: string[] = [];
  const kept = new Map<string, KubernetesObject>();
  const keyOf = ({ kind, metadata: { name } }: KubernetesObject) => `${kind} ${name}`;
  const cluster = {
    apply: (object: KubernetesObject) => {
      asked.push(`apply ${object.kind}`);
      kept.set(keyOf(object), object);
      return Promise.resolve(object);
    },
    create: ({ kind }: KubernetesObject) => Promise.resolve(asked.push(`create ${kind}`) > 0),
  } as unknown as Cluster;
  const view = {
    find: (object: KubernetesObject) => (shown ? (kept.get(keyOf(object)) ?? null) : null),
    namespaceEnds: () => false,
  } as unknown as ClusterView;
  return { asked, kept, objects: new Objects(cluster, view, settings) };
}

const row = (sandbox: Partial<SandboxEnvironment>, contextKey: string | null = null) =>
  ({
    ...{ id: 's1', workspace_id: 'w1', session_id: 'n1', environment_id: 'e1', context_key: contextKey },
    ...{ namespace: 'holdfast-i1-x', claim: 'sbx-x-1' },
    environment: { x_sandbox: { ...DEFAULT_SANDBOX, ...sandbox } },
  }) as unknown as SandboxRow;

describe('a claim', () => {
  it('makes the volume of its context once and never changes it: most of it cannot be changed', async () => {
    const { asked, objects: made } = objects({ shown: false });
    await made.claim(row({ workspace_mib: 1_024 }, 'shared'), new Date());
    await made.claim(row({ workspace_mib: 2_048 }, 'shared'), new Date());
    expect(asked.filter((one) => one.endsWith('PersistentVolumeClaim'))).toEqual([
      'create PersistentVolumeClaim',
      'create PersistentVolumeClaim',
    ]);
    expect(asked.filter((one) => one === 'create SandboxClaim')).toHaveLength(2);
  });

  it('makes a pool that is not there and leaves the size of one that is to its environment', async () => {
    const { asked, kept, objects: made } = objects({ shown: true });
    await made.claim(row({ pool_size: 2 }), new Date());
    expect(asked).toContain('apply SandboxWarmPool');
    for (const [key, object] of kept)
      if (object.kind === 'SandboxWarmPool') kept.set(key, { ...object, spec: {} } as KubernetesObject);
    asked.length = 0;
    await made.claim(row({ pool_size: 2 }), new Date());
    expect(asked).toEqual(['create SandboxClaim']);
  });
});

describe('what was applied', () => {
  const ALL = ['Namespace', 'NetworkPolicy', 'ResourceQuota', 'LimitRange', 'ServiceAccount'];
  const later = () => jest.setSystemTime(Date.now() + 6_000);
  beforeEach(() => void jest.useFakeTimers());
  afterEach(() => void jest.useRealTimers());

  it('is not applied again while it stands, whatever others have added to it', async () => {
    const { asked, kept, objects: made } = objects({ shown: true });
    await made.namespace('w1');
    expect(asked).toEqual(ALL.map((kind) => `apply ${kind}`));
    for (const [key, object] of kept)
      kept.set(key, {
        ...object,
        imagePullSecrets: [],
        metadata: { ...object.metadata, labels: { ...object.metadata.labels, b: 'c' } },
      } as KubernetesObject);
    later();
    await made.namespace('w1');
    expect(asked).toHaveLength(ALL.length);
  });

  it.each(ALL)('%s is put back when it is gone, and when it was changed', async (kind) => {
    const { asked, kept, objects: made } = objects({ shown: true });
    await made.namespace('w1');
    const [key, object] = [...kept].find(([, { kind: one }]) => one === kind) ?? [];
    if (key === undefined || object === undefined) throw new Error('not applied');
    for (const change of [
      () => kept.delete(key),
      () => kept.set(key, { ...object, metadata: { ...object.metadata, labels: { a: 'changed' } } }),
    ]) {
      later();
      change();
      asked.length = 0;
      await made.namespace('w1');
      expect(asked).toEqual([`apply ${kind}`]);
      expect(kept.get(key)).toEqual(object);
    }
  });

  it('is given a moment to be seen', async () => {
    const { asked, objects: made } = objects({ shown: false });
    await made.namespace('w1');
    await made.namespace('w1');
    expect(asked).toHaveLength(ALL.length);
    later();
    await made.namespace('w1');
    expect(asked).toHaveLength(2 * ALL.length);
  });
});
