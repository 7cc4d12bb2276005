import { createHash } from 'node:crypto';
import { AppError, sandboxOf } from '@holdfast/contracts';
import { contextIdOf, type SandboxRow } from '../store/sandbox.store.ts';
import { claimObject, claimTime } from './claim.manifest.ts';
import type { Cluster } from './cluster.ts';
import type { ClusterView } from './cluster-view.ts';
import { contextObjects } from './context.manifest.ts';
import { type EnvironmentOf, environmentObjects } from './environment.manifest.ts';
import type { KubernetesObject, SandboxClaim, SandboxTemplate, SandboxWarmPool } from './kinds.ts';
import { namespaceName } from './names.ts';
import { type NamespaceObject, namespaceObjects } from './namespace.manifest.ts';
import { blueprint } from './pod.manifest.ts';
import type { ClusterSettings } from './settings.manifest.ts';

/** What was just applied may not be seen yet. */
const SEEN_MS = 5_000;

/** What is watched, and put back where it is not as it was applied. */
type AppliedObject = NamespaceObject | SandboxTemplate | SandboxWarmPool;

type Claimed = Pick<
  SandboxRow,
  'id' | 'workspace_id' | 'session_id' | 'environment_id' | 'context_key' | 'environment' | 'namespace' | 'claim'
>;

/** Brings objects to the cluster and takes them away. Everything is safe to repeat. */
export class Objects {
  readonly #cluster: Cluster;
  readonly #view: ClusterView;
  readonly #settings: ClusterSettings;
  /** What was applied, by a hash of it: when, and as what; and what is being applied now, so that a burst does it once. */
  readonly #applied = new Map<string, { readonly atMs: number; readonly as: string }>();
  readonly #applying = new Map<string, Promise<void>>();

  constructor(cluster: Cluster, view: ClusterView, settings: ClusterSettings) {
    this.#cluster = cluster;
    this.#view = view;
    this.#settings = settings;
  }

  /** Makes the sandbox's claim, and what it needs before it. */
  async claim(row: Claimed, deadline: Date): Promise<void> {
    if (row.claim === null) throw new AppError('defect', 'sandbox.no-claim', 'The sandbox has no claim to make.');
    const of = this.#environmentOf(row);
    await this.namespace(row.workspace_id);
    const contextId = contextIdOf(row);
    const context = contextId === null ? null : contextObjects(this.#settings, { ...of, contextId });
    const { pool, template } = context ?? environmentObjects(this.#settings, of);
    // Most of a volume can never be changed, whatever becomes of the environment.
    if (context !== null) await this.#cluster.create(context.volume);
    await this.#apply(template);
    // How many are kept warm now says the environment, not one of its sandboxes.
    if (this.#view.find(pool) === null) await this.#apply(pool);
    const incarnation = Number(row.claim.slice(row.claim.lastIndexOf('-') + 1));
    await this.#cluster.create(
      claimObject(this.#settings, {
        workspaceId: row.workspace_id,
        environmentId: row.environment_id,
        sandboxId: row.id,
        sessionId: row.session_id,
        incarnation,
        pool: pool.metadata.name,
        deadline,
      }),
    );
  }

  /** Makes the workspace's namespace and what holds for all of it. */
  async namespace(workspaceId: string): Promise<void> {
    const name = namespaceName(this.#settings.installation, workspaceId);
    if (this.#view.namespaceEnds(name))
      throw new AppError('unavailable', 'cluster.refused', `The namespace ${name} is being deleted.`);
    const [namespace, ...rest] = namespaceObjects(this.#settings, workspaceId);
    if (namespace !== undefined) await this.#apply(namespace);
    await Promise.all(rest.map((object) => this.#apply(object)));
  }

  /** The name of an environment's pool and template as it is now. */
  environmentPool(of: EnvironmentOf): string {
    return environmentObjects(this.#settings, of).pool.metadata.name;
  }

  /** Makes an environment's template and pool. */
  async environment(of: EnvironmentOf): Promise<void> {
    await this.namespace(of.workspaceId);
    const { template, pool } = environmentObjects(this.#settings, of);
    await this.#apply(template);
    await this.#apply(pool);
  }

  /** An old pool empties; what was claimed from it stays. */
  async emptyPool(pool: SandboxWarmPool): Promise<void> {
    await this.#cluster.patch(pool, { spec: { replicas: 0 } });
  }

  async remove(object: KubernetesObject): Promise<void> {
    await this.#cluster.remove(object);
  }

  async renew(claim: SandboxClaim, deadline: Date): Promise<void> {
    await this.#cluster.patch(claim, { spec: { lifecycle: { shutdownTime: claimTime(deadline) } } });
  }

  async removeClaim(row: Pick<SandboxRow, 'namespace' | 'claim'>): Promise<void> {
    if (row.namespace === null || row.claim === null) return;
    await this.#cluster.remove({ kind: 'SandboxClaim', metadata: { namespace: row.namespace, name: row.claim } });
  }

  /** Asks the API server itself. */
  async hasClaim(row: Pick<SandboxRow, 'namespace' | 'claim'>): Promise<boolean> {
    if (row.namespace === null || row.claim === null) return false;
    return (await this.#cluster.get('SandboxClaim', row.claim, row.namespace)) !== null;
  }

  /**
   * Lets the next pod of a claimed sandbox dial the hub where it is now, with the platform's present image: what it was
   * made from says where the hub was then. The sandbox's own settings stay as they were claimed.
   */
  async refreshRunner(row: Claimed): Promise<void> {
    const sandbox = this.#view.sandboxOf(row);
    const [runner] = blueprint(this.#settings, sandboxOf(row.environment), {}).spec.containers;
    const { containers } = sandbox?.spec.podTemplate.spec ?? {};
    const now = containers?.find(({ name }) => name === runner.name);
    if (sandbox === null || now === undefined) return;
    if (now.image === runner.image && JSON.stringify(now.env) === JSON.stringify(runner.env)) return;
    const changed = { ...now, image: runner.image, env: runner.env };
    await this.#cluster.patch(sandbox, { spec: { podTemplate: { spec: { containers: [changed] } } } });
  }

  async setMode(row: Pick<SandboxRow, 'namespace' | 'claim'>, operatingMode: 'Running' | 'Suspended'): Promise<void> {
    const sandbox = this.#view.sandboxOf(row);
    if (sandbox !== null && sandbox.spec.operatingMode !== operatingMode)
      await this.#cluster.patch(sandbox, { spec: { operatingMode } });
  }

  async removePod(
    row: Pick<SandboxRow, 'namespace' | 'pod'>,
    how: { uid: string; graceSeconds: number },
  ): Promise<void> {
    const name = this.#view.pod(how.uid)?.metadata.name ?? row.pod;
    if (row.namespace === null || name === null) return;
    await this.#cluster.remove({ kind: 'Pod', metadata: { namespace: row.namespace, name } }, how);
  }

  #environmentOf(row: Claimed): EnvironmentOf {
    return {
      workspaceId: row.workspace_id,
      environmentId: row.environment_id,
      sandbox: sandboxOf(row.environment),
    };
  }

  /** Brings it to the cluster unless it is there as it was applied; what others have added beside it is theirs. */
  async #apply(object: AppliedObject): Promise<void> {
    const key = hashOf(object);
    const applied = this.#applied.get(key);
    if (applied !== undefined && (Date.now() - applied.atMs < SEEN_MS || this.#shows(object, applied.as))) return;
    const running = this.#applying.get(key);
    if (running !== undefined) return running;
    const applying = (async () => {
      const stored = await this.#cluster.apply(object);
      this.#applied.set(key, { atMs: Date.now(), as: hashOf(sharedWith(stored, object)) });
    })().finally(() => this.#applying.delete(key));
    this.#applying.set(key, applying);
    return applying;
  }

  #shows(object: AppliedObject, as: string): boolean {
    const seen = this.#view.find(object);
    return seen !== null && hashOf(sharedWith(seen, object)) === as;
  }
}

/** The members that the object has, with the values that they have on the cluster; lists are taken whole. */
function sharedWith(found: unknown, object: unknown): unknown {
  if (!isMap(found) || !isMap(object)) return found;
  return Object.fromEntries(Object.keys(object).map((name) => [name, sharedWith(found[name], object[name])]));
}

function isMap(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function hashOf(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('base64');
}
