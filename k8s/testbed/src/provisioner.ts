import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import {
  CoreV1Api,
  KubeConfig,
  makeInformer,
  type V1PersistentVolume,
  type V1PersistentVolumeClaim,
} from '@kubernetes/client-node';

/**
 * Gives claims of the bed's storage class a folder on this machine's disk, which every node sees. They are `local`
 * volumes: the kubelet hands them to a pod's `fsGroup`, as it does with disks of a cloud. Sizes are not enforced.
 */
export const STORAGE_CLASS = 'standard';
export const PROVISIONER = 'testbed.holdfast/folder';
const PROVISIONED_BY = 'pv.kubernetes.io/provisioned-by';
const RETRY_MS = 1_000;

async function provision(config: KubeConfig, folder: string): Promise<void> {
  const core = config.makeApiClient(CoreV1Api);
  const claims = makeInformer<V1PersistentVolumeClaim>(config, '/api/v1/persistentvolumeclaims', () =>
    core.listPersistentVolumeClaimForAllNamespaces(),
  );
  const volumes = makeInformer<V1PersistentVolume>(config, '/api/v1/persistentvolumes', () =>
    core.listPersistentVolume(),
  );

  const bind = async (claim: V1PersistentVolumeClaim): Promise<void> => {
    const { metadata: { uid = '', namespace = '', name: claimName = '', deletionTimestamp } = {}, spec } = claim;
    if (spec?.storageClassName !== STORAGE_CLASS || spec.volumeName !== undefined) return;
    if (deletionTimestamp !== undefined) return;
    const name = `pvc-${uid}`;
    const path = join(folder, name);
    mkdirSync(path, { recursive: true });
    await core.createPersistentVolume({
      body: {
        metadata: { name, annotations: { [PROVISIONED_BY]: PROVISIONER } },
        spec: {
          capacity: { storage: spec.resources?.requests?.storage ?? '1Gi' },
          accessModes: spec.accessModes ?? ['ReadWriteOnce'],
          claimRef: { apiVersion: 'v1', kind: 'PersistentVolumeClaim', name: claimName, namespace, uid },
          persistentVolumeReclaimPolicy: 'Delete',
          storageClassName: STORAGE_CLASS,
          local: { path },
          nodeAffinity: {
            required: {
              nodeSelectorTerms: [
                { matchExpressions: [{ key: 'kubernetes.io/os', operator: 'In', values: ['linux'] }] },
              ],
            },
          },
        },
      },
    });
  };

  const reclaim = async (volume: V1PersistentVolume): Promise<void> => {
    if (volume.metadata?.annotations?.[PROVISIONED_BY] !== PROVISIONER || volume.status?.phase !== 'Released') return;
    const name = volume.metadata.name ?? '';
    if (/^pvc-[\w-]+$/.test(name)) rmSync(join(folder, name), { recursive: true, force: true });
    await core.deletePersistentVolume({ name });
  };

  /** Done already is as good as done. */
  const settled = new Set([404, 409]);
  const attempt = (what: string, work: Promise<void>): void => {
    work.catch((error: unknown) => {
      const { code } = error as { code?: number };
      if (code === undefined || !settled.has(code)) console.error(what, String(error));
    });
  };
  claims.on('change', (claim) => attempt('bind', bind(claim)));
  volumes.on('change', (volume) => attempt('reclaim', reclaim(volume)));
  for (const informer of [claims, volumes]) {
    const again = (): void => void informer.start().catch(() => setTimeout(again, RETRY_MS));
    informer.on('error', (error: unknown) => {
      console.error('watch', String(error));
      setTimeout(again, RETRY_MS);
    });
    again();
  }
  // What an error has left undone.
  setInterval(() => {
    for (const claim of claims.list()) attempt('bind', bind(claim));
    for (const volume of volumes.list()) attempt('reclaim', reclaim(volume));
  }, 10_000);
}

if (import.meta.main) {
  const [, , kubeconfig = '', folder = ''] = process.argv;
  const config = new KubeConfig();
  config.loadFromFile(kubeconfig);
  await provision(config, folder);
}
