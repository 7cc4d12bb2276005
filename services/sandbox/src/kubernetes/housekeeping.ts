import { sandboxOf } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import type { EnvironmentRow, EnvironmentStore } from '../store/environment.store.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';
import type { ClusterStore } from './cluster.store.ts';
import type { ClusterView } from './cluster-view.ts';
import type { EnvironmentOf } from './environment.manifest.ts';
import type { SandboxClaim, SandboxWarmPool } from './kinds.ts';
import { ANNOTATIONS } from './names.ts';
import type { Objects } from './objects.ts';

export interface HousekeepingParts {
  readonly view: ClusterView;
  readonly objects: Objects;
  readonly rows: ClusterStore;
  readonly store: SandboxStore;
  readonly environments: EnvironmentStore;
  readonly orphanMs: number;
  readonly logger: Logger;
}

/**
 * What nobody in particular drives: claims that no row needs are removed and those of rows renewed, sandboxes that rest are
 * kept resting, pools follow their environments, keys follow their pods. One replica at a time does it; everything is safe
 * to repeat and to break off.
 */
export class Housekeeping {
  readonly #parts: HousekeepingParts;

  constructor(parts: HousekeepingParts) {
    this.#parts = parts;
  }

  async run(): Promise<void> {
    const { view, rows, objects } = this.#parts;
    if (!view.healthy || !view.synced) return;
    await rows.alone(async () => {
      // What bounds the sandboxes of a workspace is put back first.
      await this.#each(view.workspaces(), (workspaceId) => objects.namespace(workspaceId));
      await this.#claims();
      await this.#pools();
      await rows.forgetKeys(view.podUids());
    });
  }

  async #claims(): Promise<void> {
    const { view, store } = this.#parts;
    const claims = view.claims();
    const rows = await store.byIds(claims.map(sandboxIdOf));
    await this.#each(claims, async (claim) => this.#claim(claim, rows.get(sandboxIdOf(claim)) ?? null));
  }

  async #claim(claim: SandboxClaim, row: SandboxRow | null): Promise<void> {
    const { view, objects, orphanMs } = this.#parts;
    if (claim.metadata.deletionTimestamp !== undefined) return;
    if (row === null || row.status === 'destroyed' || row.claim !== claim.metadata.name) {
      await objects.remove(claim);
      return;
    }
    // Its pool or its template was tidied away in the moment between, or by somebody.
    const { namespace = '' } = claim.metadata;
    const { name } = claim.spec.warmPoolRef;
    if (row.status === 'starting' && (view.pool(namespace, name) === null || view.template(namespace, name) === null))
      await objects.claim(row, new Date(Date.now() + orphanMs));
    if (row.status === 'suspended' && view.sandboxOf(row)?.spec.operatingMode === 'Running') await this.#suspend(row);
    const endsAtMs = Date.parse(claim.spec.lifecycle?.shutdownTime ?? '');
    // Text that cannot be read counts as over.
    if (!(endsAtMs - Date.now() > orphanMs / 2)) await objects.renew(claim, new Date(Date.now() + orphanMs));
  }

  /** A process that died between the row and the cluster left it running; by now somebody may want it again. */
  async #suspend({ id }: SandboxRow): Promise<void> {
    const { objects, store } = this.#parts;
    const row = (await store.byIds([id])).get(id);
    if (row?.status === 'suspended') await objects.setMode(row, 'Suspended');
  }

  async #pools(): Promise<void> {
    const { view, objects, rows } = this.#parts;
    const all = await this.#parts.environments.all();
    const kept = all.filter(({ retired, config }) => !retired && sandboxOf(config).pool_size > 0);
    await rows.keepPools(kept.map(({ environment_id }) => environment_id));
    // Named before any is made: one that cannot be applied now is no old one.
    const current = new Map(
      kept.map((environment) => [objects.environmentPool(environmentOf(environment)), environment] as const),
    );
    await this.#each([...current], async ([name, environment]) => {
      await objects.environment(environmentOf(environment));
      await this.#recordPool(environment, name);
    });
    const claimed = new Set(
      view.claims().map(({ metadata, spec }) => `${metadata.namespace ?? ''}/${spec.warmPoolRef.name}`),
    );
    await this.#each(
      view.pools().filter(({ metadata }) => !current.has(metadata.name)),
      async (pool) => this.#oldPool(pool, claimed),
    );
  }

  async #recordPool(environment: EnvironmentRow, name: string): Promise<void> {
    const { view, rows } = this.#parts;
    const pool = view.pools().find(({ metadata }) => metadata.name === name);
    if (pool !== undefined) await rows.recordPool(environment, view.observePool(pool));
  }

  /** No environment asks for it any more. Its template goes with it, once no claim needs either. */
  async #oldPool(pool: SandboxWarmPool, claimed: ReadonlySet<string>): Promise<void> {
    const { view, objects } = this.#parts;
    const { namespace = '', name, creationTimestamp = '' } = pool.metadata;
    if (pool.metadata.deletionTimestamp !== undefined) return;
    if ((pool.spec.replicas ?? 1) > 0) await objects.emptyPool(pool);
    // A claim that is being made names it already.
    if (claimed.has(`${namespace}/${name}`) || Date.now() - Date.parse(creationTimestamp) < UNUSED_MS) return;
    const template = view.template(namespace, name);
    await objects.remove(pool);
    if (template !== null) await objects.remove(template);
  }

  async #each<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
    const { logger } = this.#parts;
    // A few at a time: the API server has other callers.
    for (let n = 0; n < all.length; n += AT_ONCE) {
      await Promise.all(
        all
          .slice(n, n + AT_ONCE)
          .map((one) =>
            work(one).catch((error: unknown) =>
              logger.warn({ err: error }, 'housekeeping on the cluster failed; again'),
            ),
          ),
      );
    }
  }
}

const AT_ONCE = 8;
const UNUSED_MS = 60_000;

function environmentOf({ workspace_id, environment_id, config }: EnvironmentRow): EnvironmentOf {
  return { workspaceId: workspace_id, environmentId: environment_id, sandbox: sandboxOf(config) };
}

function sandboxIdOf({ metadata }: SandboxClaim): string {
  return metadata.annotations?.[ANNOTATIONS.sandboxId] ?? '';
}
