import type { SandboxReason } from '@holdfast/contracts';
import type pg from 'pg';
import type { PodIdentity } from '../hub/cluster-door.ts';
import type { EnvironmentRow } from '../store/environment.store.ts';

/** What the cluster's side keeps beside the sandboxes themselves: runners' keys and how full pools are. */
export class ClusterStore {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /** Tells this installation's objects on a cluster from those of others. */
  async installation(): Promise<string> {
    const { rows } = await this.#pool.query<{ id: string }>('select id from sandbox_installation');
    const id = rows[0]?.id;
    if (id === undefined) throw new Error('the installation has no id: the migrations did not run');
    return id;
  }

  async keyOf(podUid: string): Promise<(PodIdentity & { publicKey: string; restarts: number }) | null> {
    const { rows } = await this.#pool.query<{ namespace: string; pod: string; public_key: string; restarts: number }>(
      'select namespace, pod, public_key, restarts from runner_keys where pod_uid = $1',
      [podUid],
    );
    const [row] = rows;
    return row === undefined
      ? null
      : {
          uid: podUid,
          name: row.pod,
          namespace: row.namespace,
          node: null,
          publicKey: row.public_key,
          restarts: row.restarts,
        };
  }

  /** Binds a pod to a key; one that was bound gives way only when the container was restarted since. False when it does not. */
  async bindKey(pod: PodIdentity, workspaceId: string, publicKey: string, restarts: number): Promise<boolean> {
    const { rowCount } = await this.#pool.query(
      `insert into runner_keys (pod_uid, workspace_id, namespace, pod, public_key, restarts) values ($1, $2, $3, $4, $5, $6)
       on conflict (pod_uid) do update set public_key = excluded.public_key,
         restarts = greatest(runner_keys.restarts, excluded.restarts), bound_at = clock_timestamp()
         where runner_keys.public_key = excluded.public_key or runner_keys.restarts < excluded.restarts`,
      [pod.uid, workspaceId, pod.namespace, pod.name, publicKey, restarts],
    );
    return rowCount === 1;
  }

  /** Forgets the keys of pods that are gone; a key younger than a minute may be of a pod that is not seen yet. */
  async forgetKeys(livePods: readonly string[]): Promise<void> {
    await this.#pool.query(
      `delete from runner_keys where pod_uid <> all ($1) and bound_at < clock_timestamp() - interval '1 minute'`,
      [livePods],
    );
  }

  async recordPool(
    environment: Pick<EnvironmentRow, 'environment_id' | 'workspace_id'>,
    pool: { size: number; ready: number; reason: SandboxReason | null },
  ): Promise<void> {
    await this.#pool.query(
      `insert into sandbox_pools (environment_id, workspace_id, size, ready, reason) values ($1, $2, $3, $4, $5)
       on conflict (environment_id) do update set size = excluded.size, ready = excluded.ready, reason = excluded.reason, observed_at = clock_timestamp()`,
      [
        environment.environment_id,
        environment.workspace_id,
        pool.size,
        pool.ready,
        pool.reason === null ? null : JSON.stringify(pool.reason),
      ],
    );
  }

  /** Forgets the pools of all other environments. */
  async keepPools(environmentIds: readonly string[]): Promise<void> {
    await this.#pool.query('delete from sandbox_pools where environment_id <> all ($1)', [environmentIds]);
  }

  /** Does the work unless another replica does it now. Returns whether it was done here. */
  async alone(work: () => Promise<void>): Promise<boolean> {
    const client = await this.#pool.connect();
    // A transaction that is silent for 3 s is ended, and the lock with it; its loss is met at the end.
    const speaks = setInterval(() => void client.query('select 1').catch(() => undefined), SPEAK_MS);
    try {
      await client.query('begin');
      const { rows } = await client.query<{ mine: boolean }>('select pg_try_advisory_xact_lock($1) as mine', [
        HOUSEKEEPING_LOCK,
      ]);
      if (rows[0]?.mine !== true) return false;
      await work();
      return true;
    } finally {
      clearInterval(speaks);
      await client.query('rollback').catch(() => undefined);
      client.release();
    }
  }
}

const SPEAK_MS = 1_000;
/** Advisory lock of whoever tidies the cluster. */
const HOUSEKEEPING_LOCK = 4_711_170_020;
