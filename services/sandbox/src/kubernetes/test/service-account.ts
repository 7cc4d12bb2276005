import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  CoreV1Api,
  KubeConfig,
  type KubernetesObject,
  KubernetesObjectApi,
  loadAllYaml,
  PatchStrategy,
} from '@kubernetes/client-node';

const RIGHTS = ['sandbox-clusterrole.yaml', 'sandbox-own-namespaces.yaml'].map(
  (file) => new URL(`../../../../../k8s/chart/files/${file}`, import.meta.url),
);
const POLICY_MS = 30_000;
const TOKEN_SECONDS = 4 * 60 * 60;

export interface ServiceAccount {
  /** With its rights and no others; it holds for four hours. */
  readonly kubeconfig: string;
  remove(): Promise<void>;
}

/** An account as the chart gives the sandbox service one, on the cluster of an administrator's kubeconfig. */
export async function sandboxServiceAccount(admin: string): Promise<ServiceAccount> {
  const name = `holdfast-sandbox-${randomBytes(4).toString('hex')}`;
  const config = new KubeConfig();
  config.loadFromFile(admin);
  const objects = KubernetesObjectApi.makeApiClient(config);
  const texts = await Promise.all(RIGHTS.map((file) => readFile(file, 'utf8')));
  const made: KubernetesObject[] = [
    { apiVersion: 'v1', kind: 'Namespace', metadata: { name } },
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace: name } },
    ...texts.flatMap(
      (text) =>
        loadAllYaml(
          text.replaceAll('holdfast-sandbox', name).replaceAll('serviceaccount:holdfast:', `serviceaccount:${name}:`),
        ) as KubernetesObject[],
    ),
    {
      apiVersion: 'rbac.authorization.k8s.io/v1',
      kind: 'ClusterRoleBinding',
      metadata: { name },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name },
      subjects: [{ kind: 'ServiceAccount', name, namespace: name }],
    } as KubernetesObject,
  ];
  for (const object of made) {
    await objects.patch(object, undefined, undefined, 'holdfast-spec', true, PatchStrategy.ServerSideApply);
  }
  const { status } = await config.makeApiClient(CoreV1Api).createNamespacedServiceAccountToken({
    name,
    namespace: name,
    body: { spec: { audiences: [], expirationSeconds: TOKEN_SECONDS } },
  });
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-account-'));
  const kubeconfig = join(dir, 'kubeconfig');
  const own = new KubeConfig();
  const cluster = config.getCurrentCluster();
  if (cluster === null) throw new Error(`${admin} names no cluster`);
  own.loadFromClusterAndUser(cluster, { name, token: status?.token ?? '' });
  await writeFile(kubeconfig, own.exportConfig(), { mode: 0o600 });
  await policyHolds(own, name);
  return {
    kubeconfig,
    remove: async () => {
      for (const object of made.reverse()) {
        if (object.kind !== 'ServiceAccount') await objects.delete(object);
      }
      await rm(dir, { recursive: true });
    },
  };
}

/** A policy is taken up a while after it was made. */
async function policyHolds(config: KubeConfig, foreign: string): Promise<void> {
  const objects = KubernetesObjectApi.makeApiClient(config);
  const tried = { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'tried', namespace: foreign } };
  for (const deadline = Date.now() + POLICY_MS; Date.now() < deadline; await sleep(100)) {
    const made = objects.patch(tried, undefined, 'All', 'holdfast-spec', true, PatchStrategy.ServerSideApply);
    const refusal = await made.then(() => '', String);
    if (refusal.includes('writes only in namespaces of its own')) return;
  }
  throw new Error(`the policy is not in force after ${POLICY_MS} ms`);
}
