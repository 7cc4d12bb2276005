import { DEFAULT_SANDBOX, type SandboxEnvironment } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
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

/** Objects of a cluster that writes down what it is asked for, and shows pools and templates or none. */
function objects({ shown }: { shown: boolean }) {
  const asked: string[] = [];
  const note = (verb: string) => (object: KubernetesObject) => {
    asked.push(`${verb} ${object.kind}`);
    return Promise.resolve(true);
  };
  const cluster = { apply: note('apply'), create: note('create') } as unknown as Cluster;
  const found = () => (shown ? {} : null);
  const view = {
    pool: found,
    template: found,
    isOurs: () => true,
    namespaceEnds: () => false,
  } as unknown as ClusterView;
  return { asked, objects: new Objects(cluster, view, settings) };
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
    expect(asked.filter((one) => one === 'apply SandboxClaim')).toHaveLength(2);
  });

  it('makes a pool that is not there and leaves the size of one that is to its environment', async () => {
    const without = objects({ shown: false });
    await without.objects.claim(row({ pool_size: 2 }), new Date());
    expect(without.asked).toContain('apply SandboxWarmPool');
    const withPool = objects({ shown: true });
    await withPool.objects.claim(row({ pool_size: 2 }), new Date());
    expect(withPool.asked).not.toContain('apply SandboxWarmPool');
    expect(withPool.asked).toContain('apply SandboxClaim');
  });
});
