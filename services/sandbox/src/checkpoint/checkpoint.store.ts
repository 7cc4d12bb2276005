import { type KeptCheckpoint, newId, streamOf, type TakenCheckpoint } from '@holdfast/contracts';
import type pg from 'pg';
import { contextIdOf, type SandboxRow, type SandboxStore } from '../store/sandbox.store.ts';

/** A checkpoint that a sandbox can go on from. */
export interface BaseCheckpoint extends KeptCheckpoint {
  /** The session's own newest one that it is, or is in part. Null when only others of the context have any. */
  readonly ownId: string | null;
  readonly throughVersion: number;
  /** Where its packs are kept. */
  readonly blobs: ReadonlyMap<string, PackRow>;
}
type Roots = NonNullable<TakenCheckpoint['roots']>;
interface Row {
  readonly id: string;
  readonly roots: Roots;
  readonly packs: string[];
  readonly through_version: string;
}
export interface PackRow {
  readonly digest: string;
  readonly bytes: number;
  readonly blob: string;
}
/** A pack that nobody refers to is spared for so long: a checkpoint that names it may be under way (C3). */
const SPARED = '24 hours';

/** Rows of checkpoints and of the packs that they are made of. */
export class CheckpointStore {
  readonly #pool: pg.Pool;
  readonly #sandboxes: SandboxStore;

  constructor(pool: pg.Pool, sandboxes: SandboxStore) {
    this.#pool = pool;
    this.#sandboxes = sandboxes;
  }

  /** The version of the session's log now. */
  async sessionVersion(sessionId: string): Promise<number> {
    const { rows } = await this.#pool.query<{ version: string }>('select version from streams where stream_id = $1', [
      streamOf('session', sessionId),
    ]);
    return Number(rows[0]?.version ?? 0);
  }

  /**
   * What a session's sandbox holds when it has everything that is kept: the session's newest checkpoint, and in a context
   * the newest workspace of any of its sessions.
   */
  async newest(row: SandboxRow): Promise<BaseCheckpoint | null> {
    const contextId = contextIdOf(row);
    const [own, shared] = await Promise.all([
      this.#one('session_id = $1', row.session_id, row.workspace_id),
      contextId === null ? null : this.#one('context_id = $1', contextId, row.workspace_id),
    ]);
    const newest = shared ?? own;
    if (newest === null) return null;
    const digests = [...new Set([...newest.packs, ...(own?.packs ?? [])])];
    const blobs = await this.#packs(row.workspace_id, digests);
    return {
      id: own === null || own.id === newest.id ? newest.id : `${own.id}+${newest.id}`,
      ownId: own?.id ?? null,
      // Of somebody else's home nothing is taken over.
      roots: { workspace: newest.roots.workspace, ...(own === null ? {} : { home: own.roots.home }) },
      packs: [...blobs.values()].map(({ digest, bytes }) => ({ digest, bytes })),
      blobs,
      throughVersion: Number(own?.through_version ?? 0),
    };
  }

  async #one(where: string, value: string, workspaceId: string): Promise<Row | null> {
    const { rows } = await this.#pool.query<Row>(
      `select id, roots, packs, through_version from checkpoints where ${where} and workspace_id = $2 order by created_at desc limit 1`,
      [value, workspaceId],
    );
    return rows[0] ?? null;
  }

  async #packs(workspaceId: string, digests: readonly string[]): Promise<Map<string, PackRow>> {
    const { rows } = await this.#pool.query<{ digest: string; bytes: string; blob: string }>(
      'select digest, bytes, blob from checkpoint_packs where workspace_id = $1 and digest = any ($2)',
      [workspaceId, digests],
    );
    return new Map(rows.map((one) => [one.digest, { ...one, bytes: Number(one.bytes) }]));
  }

  /** Whether the workspace has a pack already; then it is as young as a new one. */
  async refresh(workspaceId: string, digest: string): Promise<boolean> {
    const { rowCount } = await this.#pool.query(
      'update checkpoint_packs set put_at = clock_timestamp() where workspace_id = $1 and digest = $2',
      [workspaceId, digest],
    );
    return rowCount === 1;
  }

  async putPack(workspaceId: string, pack: PackRow): Promise<void> {
    await this.#pool.query(
      `insert into checkpoint_packs (workspace_id, digest, bytes, blob) values ($1, $2, $3, $4)
       on conflict (workspace_id, digest) do update set put_at = clock_timestamp()`,
      [workspaceId, pack.digest, pack.bytes, pack.blob],
    );
  }

  /**
   * Records a checkpoint and its event. Its packs are as young as it is where that matters, so that no collection that runs
   * meanwhile takes one away. @throws AppError `log.statement-conflict` when one is not there
   */
  async record(
    row: SandboxRow,
    roots: Roots,
    { packs, figures }: Pick<TakenCheckpoint, 'packs' | 'figures'>,
    version: number,
  ): Promise<string> {
    const id = newId('checkpoint');
    const digests = [...new Set(packs.map(({ digest }) => digest))];
    await this.#sandboxes.record(
      row,
      'sandbox.checkpointed',
      {
        checkpoint_id: id,
        session_version: version,
        entries: figures.entries,
        bytes: figures.bytes,
        new_bytes: figures.new_bytes,
        took_ms: figures.took_ms,
        stopped_ms: figures.stopped_ms,
        skipped: figures.skipped,
        unreadable: figures.unreadable,
        torn: figures.torn,
      },
      [
        {
          text: `update checkpoint_packs set put_at = clock_timestamp()
                 where workspace_id = $1 and digest = any ($2) and put_at < clock_timestamp() - interval '12 hours'`,
          values: [row.workspace_id, digests],
        },
        {
          text: 'select 1 from checkpoint_packs where workspace_id = $1 and digest = any ($2)',
          values: [row.workspace_id, digests],
          rows: digests.length,
        },
        {
          text: `insert into checkpoints (id, workspace_id, session_id, sandbox_id, context_id, version, through_version, roots, packs, figures)
                 values ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9)`,
          values: [
            id,
            row.workspace_id,
            row.session_id,
            row.id,
            contextIdOf(row),
            version,
            JSON.stringify(roots),
            digests,
            JSON.stringify(figures),
          ],
        },
      ],
    );
    return id;
  }

  /** The files of a checkpoint were found as they are in it. */
  async stillHolds(id: string, version: number): Promise<void> {
    await this.#pool.query('update checkpoints set through_version = greatest(through_version, $2) where id = $1', [
      id,
      version,
    ]);
  }

  /** A deleted session's checkpoints are nobody's any more; what they are made of goes with the next collection. */
  async forget(sessionId: string): Promise<void> {
    await this.#pool.query('delete from checkpoints where session_id = $1', [sessionId]);
  }

  /** Forgets packs that no checkpoint needs and that are not young; their blobs are the caller's to remove. */
  async collect(limit: number): Promise<{ workspaceId: string; blob: string }[]> {
    const { rows } = await this.#pool.query<{ workspace_id: string; blob: string }>(
      `with needed as (select distinct c.workspace_id, p.digest from checkpoints c cross join lateral unnest(c.packs) as p (digest)),
            old as (
              select workspace_id, digest from checkpoint_packs o
              where put_at < clock_timestamp() - interval '${SPARED}'
                and not exists (select 1 from needed n where n.workspace_id = o.workspace_id and n.digest = o.digest)
              order by put_at limit $1 for update skip locked)
       delete from checkpoint_packs d using old
       where d.workspace_id = old.workspace_id and d.digest = old.digest and d.put_at < clock_timestamp() - interval '${SPARED}'
       returning d.workspace_id, d.blob`,
      [limit],
    );
    return rows.map(({ workspace_id, blob }) => ({ workspaceId: workspace_id, blob }));
  }
}
