import type { SandboxRow } from '../store/sandbox.store.ts';
import type { Cluster } from './cluster.ts';
import type {
  Event,
  KindName,
  Kinds,
  Node,
  Pod,
  Sandbox,
  SandboxClaim,
  SandboxTemplate,
  SandboxWarmPool,
  Stored,
} from './kinds.ts';
import { ANNOTATIONS, LABELS, MANAGED_BY } from './names.ts';
import { observePool, type PoolObservation } from './pool.observe.ts';
import { observeSandbox, ownerUid, type SandboxObservation } from './sandbox.observe.ts';
import type { Watched } from './watched.ts';

/** What the cluster shows of this installation's objects, from watches: never asked for, always a moment old. */
export class ClusterView {
  readonly #watched: { [K in Exclude<WatchedKind, 'Sandbox' | 'Pod' | 'Event'>]: Watched<Kinds[K]> } & {
    Sandbox: Watched<Sandbox, 'owner'>;
    Pod: Watched<Pod, 'uid' | 'owner' | 'address'>;
    Event: Watched<Event, 'pod'>;
  };
  #synced = false;
  readonly #sandboxListeners: ((sandboxId: string) => void)[] = [];
  readonly #podGone: ((uid: string) => void)[] = [];
  readonly #waiting = new Set<() => void>();

  constructor(cluster: Cluster, installation: string) {
    const own = `${LABELS.managedBy}=${MANAGED_BY},${LABELS.installation}=${installation}`;
    this.#watched = {
      Namespace: cluster.watch('Namespace', { labelSelector: own }),
      NetworkPolicy: cluster.watch('NetworkPolicy', { labelSelector: own }),
      ResourceQuota: cluster.watch('ResourceQuota', { labelSelector: own }),
      LimitRange: cluster.watch('LimitRange', { labelSelector: own }),
      ServiceAccount: cluster.watch('ServiceAccount', { labelSelector: own }),
      SandboxTemplate: cluster.watch('SandboxTemplate', { labelSelector: own }),
      SandboxWarmPool: cluster.watch('SandboxWarmPool', { labelSelector: own }),
      SandboxClaim: cluster.watch('SandboxClaim', { labelSelector: own }),
      // Made by the controller, which puts no label of ours on them.
      Sandbox: cluster.watch('Sandbox', { indexes: { owner: ownerUid } }),
      Pod: cluster.watch('Pod', {
        labelSelector: own,
        indexes: {
          uid: ({ metadata }) => metadata.uid,
          owner: ownerUid,
          address: ({ status }) => status?.podIP ?? null,
        },
      }),
      Node: cluster.watch('Node', {}),
      Event: cluster.watch('Event', {
        fieldSelector: 'type=Warning,involvedObject.kind=Pod',
        indexes: { pod: ({ involvedObject }) => involvedObject.uid ?? null },
      }),
    };
    Promise.all(Object.values(this.#watched).map((watched) => watched.synced())).then(
      () => {
        this.#synced = true;
      },
      // It was stopped before.
      () => undefined,
    );
    this.#watched.SandboxClaim.onChange((claim) => this.#tellClaim(claim));
    this.#watched.Sandbox.onChange((sandbox) => this.#tellSandbox(sandbox));
    this.#watched.Pod.onChange((pod, _previous, kind) => {
      if (kind === 'removed') for (const listener of this.#podGone) listener(pod.metadata.uid);
      this.#tellPod(pod);
    });
    this.#watched.Node.onChange((node) => this.#onNode(node));
    this.#watched.Event.onChange(({ involvedObject: { uid } }) => {
      const pod = uid === undefined ? null : this.pod(uid);
      if (pod !== null) this.#tellPod(pod);
    });
  }

  async stop(): Promise<void> {
    await Promise.all(Object.values(this.#watched).map((watched) => watched.stop()));
  }

  /** Whether everything was listed once; before that nothing that is not shown is known to be absent. */
  get synced(): boolean {
    return this.#synced;
  }
  /** False while the API server does not answer. */
  get healthy(): boolean {
    return Object.values(this.#watched).every((watched) => watched.healthy);
  }

  /** Called with a sandbox's id whenever something that it is made of changes. */
  onSandbox(listener: (sandboxId: string) => void): void {
    this.#sandboxListeners.push(listener);
  }
  onPodGone(listener: (uid: string) => void): void {
    this.#podGone.push(listener);
  }

  /** True as soon as `what` holds, looked at after every change; false when it does not in time. */
  until(what: () => boolean, timeoutMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (!what()) return;
        done(true);
      };
      const done = (result: boolean): void => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve(result);
      };
      const timer = setTimeout(() => done(what()), timeoutMs);
      this.#waiting.add(look);
      look();
    });
  }

  observe(row: Pick<SandboxRow, 'namespace' | 'claim'>): SandboxObservation {
    const claim = this.#claimOf(row);
    const sandbox = this.#sandboxOf(claim);
    const pod = sandbox === null ? null : this.#podOf(sandbox);
    const pool = claim === null ? null : this.pool(claim.metadata.namespace ?? '', claim.spec.warmPoolRef.name);
    const [node, events] = [this.#nodeOf(pod), this.#warnings(pod)];
    return observeSandbox({ claim, sandbox, pod, node, pool, events, now: new Date() });
  }

  /** The Sandbox that a row's claim is bound to. */
  sandboxOf(row: Pick<SandboxRow, 'namespace' | 'claim'>): Sandbox | null {
    return this.#sandboxOf(this.#claimOf(row));
  }

  claims(): Stored<SandboxClaim>[] {
    return [...this.#watched.SandboxClaim.list()];
  }
  pools(): Stored<SandboxWarmPool>[] {
    return [...this.#watched.SandboxWarmPool.list()];
  }
  pool(namespace: string, name: string): SandboxWarmPool | null {
    return this.#get('SandboxWarmPool', namespace, name);
  }
  template(namespace: string, name: string): SandboxTemplate | null {
    return this.#get('SandboxTemplate', namespace, name);
  }
  observePool(pool: SandboxWarmPool): PoolObservation {
    const members = this.#watched.Sandbox.by('owner', pool.metadata.uid ?? '').map((sandbox) => {
      const pod = this.#podOf(sandbox);
      return { sandbox, pod, node: this.#nodeOf(pod), events: this.#warnings(pod) };
    });
    return observePool(pool, members, new Date());
  }

  /** The pod that has this UID. */
  pod(uid: string): Stored<Pod> | null {
    return this.#watched.Pod.by('uid', uid)[0] ?? null;
  }
  /** How often the kubelet has restarted its container. */
  restartsOf(uid: string): number {
    return (this.pod(uid)?.status?.containerStatuses ?? []).reduce((sum, { restartCount }) => sum + restartCount, 0);
  }
  /** UID of the pod that has this address; null when none or several have. */
  podAt(address: string | null): string | null {
    const [pod, another] = address === null ? [] : this.#watched.Pod.by('address', address);
    return pod === undefined || another !== undefined ? null : pod.metadata.uid;
  }
  podUids(): string[] {
    return [...this.#watched.Pod.list()].map(({ metadata }) => metadata.uid);
  }

  /** An object of ours as the cluster has it. */
  find<K extends WatchedKind>({ kind, metadata }: Kinds[K]): Stored<Kinds[K]> | null {
    return this.#get(kind as K, metadata.namespace ?? '', metadata.name);
  }

  /** Workspaces that have a namespace which is not going. */
  workspaces(): string[] {
    return [...this.#watched.Namespace.list()]
      .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
      .flatMap(({ metadata }) => metadata.annotations?.[ANNOTATIONS.workspaceId] ?? []);
  }
  /** Whether a namespace is one of this installation's. */
  isOurs(namespace: string): boolean {
    return this.workspaceOf(namespace) !== null;
  }
  workspaceOf(namespace: string): string | null {
    const found = this.#get('Namespace', '', namespace);
    return found?.metadata.annotations?.[ANNOTATIONS.workspaceId] ?? null;
  }
  namespaceEnds(namespace: string): boolean {
    return this.#get('Namespace', '', namespace)?.metadata.deletionTimestamp !== undefined;
  }

  #claimOf({ namespace, claim }: Pick<SandboxRow, 'namespace' | 'claim'>): Stored<SandboxClaim> | null {
    return namespace === null || claim === null ? null : this.#get('SandboxClaim', namespace, claim);
  }
  /** By whom it belongs to, which a warm one says before its claim's status does. */
  #sandboxOf(claim: Stored<SandboxClaim> | null): Stored<Sandbox> | null {
    return claim === null ? null : (this.#watched.Sandbox.by('owner', claim.metadata.uid)[0] ?? null);
  }
  #podOf(sandbox: Stored<Sandbox>): Stored<Pod> | null {
    return this.#watched.Pod.by('owner', sandbox.metadata.uid)[0] ?? null;
  }
  #warnings(pod: Pod | null): readonly Event[] {
    return pod?.metadata.uid === undefined ? [] : this.#watched.Event.by('pod', pod.metadata.uid);
  }
  #nodeOf(pod: Pod | null): Node | null {
    return pod?.spec?.nodeName === undefined ? null : this.#get('Node', '', pod.spec.nodeName);
  }
  #get<K extends WatchedKind>(kind: K, namespace: string, name: string): Stored<Kinds[K]> | null {
    return (this.#watched[kind] as unknown as Watched<Kinds[K]>).get(namespace, name);
  }

  #tellClaim(claim: SandboxClaim): void {
    const id = claim.metadata.annotations?.[ANNOTATIONS.sandboxId];
    if (id !== undefined) for (const listener of this.#sandboxListeners) listener(id);
    for (const look of [...this.#waiting]) look();
  }
  #tellSandbox({ metadata }: Sandbox): void {
    const owner = metadata.ownerReferences?.find(({ kind }) => kind === 'SandboxClaim');
    const claim = owner === undefined ? null : this.#get('SandboxClaim', metadata.namespace ?? '', owner.name);
    if (claim !== null) this.#tellClaim(claim);
  }
  #tellPod({ metadata }: Pod): void {
    const owner = metadata.ownerReferences?.find(({ kind }) => kind === 'Sandbox');
    const sandbox = owner === undefined ? null : this.#get('Sandbox', metadata.namespace ?? '', owner.name);
    if (sandbox !== null) this.#tellSandbox(sandbox);
  }

  #onNode(node: Node): void {
    for (const pod of this.#watched.Pod.list()) if (pod.spec?.nodeName === node.metadata.name) this.#tellPod(pod);
  }
}

/** Volumes are the cluster's to keep. */
type WatchedKind = Exclude<KindName, 'PersistentVolumeClaim'>;
