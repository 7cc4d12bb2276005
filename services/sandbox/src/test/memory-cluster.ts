import { randomUUID } from 'node:crypto';
import type { Cluster } from '../kubernetes/cluster.ts';
import type { KindName, KubernetesObject, Stored } from '../kubernetes/kinds.ts';
import { Watched, type WatchedOptions, type WatchFrame } from '../kubernetes/watched.ts';

type Any = Stored<KubernetesObject> & Record<string, unknown>;
type Frame = WatchFrame<KubernetesObject>['type'];

const RUNNING = { phase: 'Running', containerStatuses: [] };
const owner = ({ kind, metadata }: Any) => [
  { apiVersion: 'v1', kind, name: metadata.name, uid: metadata.uid, controller: true },
];

/**
 * A cluster in memory whose controller does at once what it is asked for, and whose watches are never late: for specs of
 * how replicas cross each other. What a cluster really does is the business of `*.k8s.spec.ts`.
 */
export class MemoryCluster {
  /** Whether claims say which sandbox they are bound to, which a controller writes last. */
  claimsSay = true;
  readonly #objects = new Map<string, Any>();
  readonly #watches = new Set<(type: Frame, object: Any) => void>();
  #version = 0;

  /** As the host takes it. */
  get cluster(): Cluster {
    return this as unknown as Cluster;
  }

  watch(kind: KindName, options: Partial<WatchedOptions<KubernetesObject, string>>) {
    const list = () => [...this.#objects.values()].filter((object) => object.kind === kind);
    return new Watched<KubernetesObject, string>(
      {
        list: () => Promise.resolve({ items: list(), resourceVersion: String(this.#version) }),
        watch: (_from, signal, on) =>
          new Promise((_resolve, reject) => {
            const tell = (type: Frame, object: Any): void => {
              if (object.kind === kind) on.frame({ type, object });
            };
            this.#watches.add(tell);
            signal.addEventListener('abort', () => {
              this.#watches.delete(tell);
              reject(new Error('aborted'));
            });
            on.connected();
          }),
      },
      { ...options, onError: () => undefined },
    );
  }

  /** How many hosts have let go of it. */
  closed = 0;
  close(): void {
    this.closed += 1;
  }

  find(kind: KindName): Any[] {
    return [...this.#objects.values()].filter((object) => object.kind === kind);
  }

  put(object: KubernetesObject & Record<string, unknown>): Any {
    const key = keyOf(object);
    const before = this.#objects.get(key);
    const metadata = {
      ...before?.metadata,
      ...object.metadata,
      uid: before?.metadata.uid ?? randomUUID(),
      resourceVersion: String(++this.#version),
      creationTimestamp: new Date().toISOString(),
    };
    const stored = { ...before, ...object, metadata } as Any;
    this.#objects.set(key, stored);
    for (const tell of this.#watches) tell(before === undefined ? 'ADDED' : 'MODIFIED', stored);
    return stored;
  }

  drop(object: KubernetesObject): void {
    const found = this.#objects.get(keyOf(object));
    if (found === undefined) return;
    this.#objects.delete(keyOf(object));
    for (const tell of this.#watches) tell('DELETED', found);
  }

  apply(object: KubernetesObject & Record<string, unknown>): Promise<Any> {
    const stored = this.put(object);
    if (object.kind === 'SandboxClaim' && stored['status'] === undefined) this.#bind(stored);
    return Promise.resolve(stored);
  }

  create(object: KubernetesObject & Record<string, unknown>): Promise<boolean> {
    if (this.#objects.has(keyOf(object))) return Promise.resolve(false);
    return this.apply(object).then(() => true);
  }

  get(kind: KindName, name: string, namespace: string): Promise<Any | null> {
    return Promise.resolve(this.#objects.get(`${kind}/${namespace}/${name}`) ?? null);
  }

  /** Of patches only what sets a sandbox's mode means anything here. */
  patch(ref: Any, { spec }: { spec: Record<string, unknown> }): Promise<Any> {
    const stored = this.put({ ...ref, spec: { ...(ref['spec'] as object), ...spec } });
    const { namespace = '', name } = ref.metadata;
    const pod = { apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace } } as const;
    if (spec['operatingMode'] === 'Suspended') {
      this.drop(pod);
      this.put({ ...stored, status: { conditions: [{ type: 'Suspended', status: 'True', observedGeneration: 9 }] } });
    }
    if (spec['operatingMode'] === 'Running') this.#makePod(stored);
    return Promise.resolve(stored);
  }

  remove(object: KubernetesObject): Promise<boolean> {
    const { name, namespace = '' } = object.metadata;
    for (const kind of object.kind === 'SandboxClaim' ? (['Pod', 'Sandbox', 'SandboxClaim'] as const) : [object.kind])
      this.drop({ apiVersion: 'v1', kind, metadata: { name, namespace } } as KubernetesObject);
    return Promise.resolve(true);
  }

  /** The UID of a pod is the token of whoever runs in it. */
  reviewToken(token: string) {
    const pod = this.find('Pod').find(({ metadata }) => metadata.uid === token);
    return Promise.resolve(
      pod === undefined
        ? { refused: 'no such pod' }
        : {
            namespace: pod.metadata.namespace ?? '',
            serviceAccount: 'holdfast-sandbox',
            pod: pod.metadata.name,
            podUid: pod.metadata.uid,
          },
    );
  }

  /** Starts the container of a pod anew, or ends it. */
  container(pod: Any, id: string | null): void {
    const state = id === null ? { waiting: { reason: 'Waiting' } } : { running: {} };
    const status = { name: 'runner', restartCount: 0, state, ...(id === null ? {} : { containerID: id }) };
    this.put({ ...pod, status: { ...RUNNING, containerStatuses: [status] } });
  }

  #bind(claim: Any): void {
    const { name, namespace = '' } = claim.metadata;
    const sandbox = this.put({
      ...{ apiVersion: 'agents.x-k8s.io/v1beta1', kind: 'Sandbox' },
      metadata: { name, namespace, ownerReferences: owner(claim) },
      spec: { operatingMode: 'Running', podTemplate: { spec: { containers: [] } } },
    } as unknown as KubernetesObject & Record<string, unknown>);
    this.#makePod(sandbox);
    if (this.claimsSay) this.put({ ...claim, status: { sandbox: { name } } });
  }

  #makePod(sandbox: Any): void {
    const { name, namespace = '' } = sandbox.metadata;
    const metadata = { name, namespace, ownerReferences: owner(sandbox) };
    const pod = this.put({ apiVersion: 'v1', kind: 'Pod', metadata } as unknown as KubernetesObject &
      Record<string, unknown>);
    this.container(pod, `container-of-${pod.metadata.uid}`);
  }
}

function keyOf({ kind, metadata }: KubernetesObject): string {
  return `${kind}/${metadata.namespace ?? ''}/${metadata.name}`;
}
