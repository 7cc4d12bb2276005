import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  ApiextensionsV1Api,
  CoreV1Api,
  Health,
  KubeConfig,
  type KubernetesObject,
  KubernetesObjectApi,
  loadAllYaml,
  PatchStrategy,
  type RbacV1Subject,
  type V1CustomResourceDefinition,
  type V1Node,
} from '@kubernetes/client-node';
import { until } from './commands.ts';
import { AGENT_SANDBOX_USER, SERVICE_USER } from './control-plane.ts';
import { PROVISIONER, STORAGE_CLASS } from './provisioner.ts';

const FIELD_MANAGER = 'holdfast-testbed';
const VERSION = 'v1beta1';
/** Of upstream's manifests the ones that a controller outside of the cluster needs. */
const KINDS = new Set(['Namespace', 'ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding']);
export const CRDS = [
  'sandboxes.agents.x-k8s.io',
  'sandboxclaims.extensions.agents.x-k8s.io',
  'sandboxtemplates.extensions.agents.x-k8s.io',
  'sandboxwarmpools.extensions.agents.x-k8s.io',
];

/** The chart's own files: specs run with the rights that an installation has. */
const SERVICE_RIGHTS = fileURLToPath(new URL('../../chart/files', import.meta.url));
const SERVICE_BINDING = {
  apiVersion: 'rbac.authorization.k8s.io/v1',
  kind: 'ClusterRoleBinding',
  metadata: { name: 'holdfast-sandbox' },
  roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'holdfast-sandbox' },
};

/** What the bed asks of the cluster's API, as the owner of a kubeconfig. */
export class Cluster {
  readonly #config = new KubeConfig();
  readonly #objects: KubernetesObjectApi;
  readonly #core: CoreV1Api;

  constructor(kubeconfig: string) {
    this.#config.loadFromFile(kubeconfig);
    this.#objects = KubernetesObjectApi.makeApiClient(this.#config);
    this.#core = this.#config.makeApiClient(CoreV1Api);
  }

  get server(): string {
    return this.#config.getCurrentCluster()?.server ?? '';
  }

  async isReady(): Promise<boolean> {
    return new Health(this.#config).readyz({});
  }

  async nodes(): Promise<readonly V1Node[]> {
    return (await this.#core.listNode()).items;
  }

  /** Whether the node has said at or after that time (ms since 1970) that it is ready. */
  async isNodeReady(name: string, since: number): Promise<boolean> {
    const node = (await this.nodes()).find(({ metadata }) => metadata?.name === name);
    const heartbeat = readiness(node)?.lastHeartbeatTime?.getTime() ?? 0;
    // It counts in seconds.
    return isReady(node) && heartbeat >= Math.trunc(since / 1000) * 1000;
  }

  async deleteNode(name: string): Promise<void> {
    await this.#core.deleteNode({ name });
  }

  /** Deletes the namespaces of an installation of the platform, with all that is in them, and waits until they are gone. */
  async sweep(installation: string): Promise<void> {
    const labelSelector = `app.kubernetes.io/managed-by=holdfast,holdfast.dev/installation=${installation}`;
    const left = async () => (await this.#core.listNamespace({ labelSelector })).items;
    for (const { metadata } of await left()) await this.#core.deleteNamespace({ name: metadata?.name ?? '' });
    await until(`the namespaces of ${installation} are gone`, async () => (await left()).length === 0);
  }

  async podCount(): Promise<number> {
    return (await this.#core.listPodForAllNamespaces()).items.length;
  }

  /** The sandbox project's kinds that this cluster does not serve in the version that is used. */
  async missingKinds(): Promise<readonly string[]> {
    const { items } = await this.#config.makeApiClient(ApiextensionsV1Api).listCustomResourceDefinition();
    return CRDS.filter((name) => !items.some((crd) => crd.metadata?.name === name && serves(crd)));
  }

  /** Kinds, rights and the storage class; nothing changes where they are the same. */
  async install(manifests: string): Promise<void> {
    const crds = readManifests(join(manifests, 'crds')) as V1CustomResourceDefinition[];
    await Promise.all(crds.map((crd) => this.#apply(withoutConversion(crd))));
    for (const object of readManifests(manifests))
      if (KINDS.has(object.kind ?? ''))
        await this.#apply('subjects' in object ? withSubjects(object, AGENT_SANDBOX_USER) : object);
    await this.#apply({
      apiVersion: 'storage.k8s.io/v1',
      kind: 'StorageClass',
      metadata: { name: STORAGE_CLASS, annotations: { 'storageclass.kubernetes.io/is-default-class': 'true' } },
      provisioner: PROVISIONER,
      reclaimPolicy: 'Delete',
    } as KubernetesObject);
    for (const object of readManifests(SERVICE_RIGHTS)) await this.#apply(object);
    await this.#apply(withSubjects(SERVICE_BINDING, SERVICE_USER));
    await until(
      `${CRDS.length} kinds of agent-sandbox are served`,
      async () => (await this.missingKinds()).length === 0,
    );
  }

  async #apply(object: KubernetesObject): Promise<void> {
    const options = [undefined, undefined, FIELD_MANAGER, true, PatchStrategy.ServerSideApply] as const;
    await this.#objects.patch(object as Parameters<KubernetesObjectApi['patch']>[0], ...options);
  }
}

const readiness = (node: V1Node | undefined) => node?.status?.conditions?.find(({ type }) => type === 'Ready');

export function isReady(node: V1Node | undefined): boolean {
  return readiness(node)?.status === 'True';
}

function serves(crd: V1CustomResourceDefinition): boolean {
  return (
    crd.spec.versions.some(({ name, served }) => name === VERSION && served) &&
    crd.status?.conditions?.some(({ type, status }) => type === 'Established' && status === 'True') === true
  );
}

/** Its webhook converts between versions; without it only one may be served. */
function withoutConversion(crd: V1CustomResourceDefinition): V1CustomResourceDefinition {
  crd.spec.conversion = { strategy: 'None' };
  for (const version of crd.spec.versions) version.served = version.name === VERSION;
  return crd;
}

function withSubjects(binding: KubernetesObject, name: string): KubernetesObject {
  const subject: RbacV1Subject = { apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name };
  return Object.assign(binding, { subjects: [subject] });
}

function readManifests(folder: string): KubernetesObject[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.yaml'))
    .flatMap((file) => loadAllYaml(readFileSync(join(folder, file), 'utf8')) as (KubernetesObject | null)[])
    .filter((object) => object !== null);
}
