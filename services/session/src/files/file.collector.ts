import type { BlobStore } from '@holdfast/event-store';
import type pg from 'pg';

/** Blobs that one sweep looks at; the next one goes on. */
const SWEEP = 200;

/** No file and no session that may go on has it, or only files that have expired; nor was it put or let go of just now. */
const UNUSED = `b.held_at < clock_timestamp() - $1 * interval '1 millisecond'
  and not exists (
    select 1 from files f where f.workspace_id = b.workspace_id and f.digest = b.digest
    and (f.expires_at is null or f.expires_at > clock_timestamp() - $1 * interval '1 millisecond'))
  and not exists (
    select 1 from sessions s where s.workspace_id = b.workspace_id and s.archived_at is null
    and s.resources <> '[]' and s.resources @> jsonb_build_array(jsonb_build_object('digest', b.digest)))`;

/**
 * Removes the bytes of files that are gone. Safe in several processes at once, and beside uploads: whoever makes a file
 * holds its blob's row first, and looks only then whether the blob is there.
 */
export class FileCollector {
  readonly #pool: pg.Pool;
  readonly #blobs: BlobStore;
  readonly #graceMs: number;

  constructor(pool: pg.Pool, blobs: BlobStore, graceMs: number) {
    this.#pool = pool;
    this.#blobs = blobs;
    this.#graceMs = graceMs;
  }

  /** One sweep; how many blobs it removed. */
  async collect(): Promise<number> {
    const { rows } = await this.#pool.query<{ workspace_id: string; digest: string }>(
      `select workspace_id, digest from file_blobs b where ${UNUSED} order by held_at limit ${SWEEP}`,
      [this.#graceMs],
    );
    let removed = 0;
    for (const { workspace_id, digest } of rows) if (await this.#remove(workspace_id, digest)) removed += 1;
    return removed;
  }

  async #remove(workspaceId: string, digest: string): Promise<boolean> {
    const client = await this.#pool.connect();
    try {
      await client.query('begin');
      const { rowCount } = await client.query(
        `select 1 from file_blobs b where workspace_id = $2 and digest = $3 and ${UNUSED} for update skip locked`,
        [this.#graceMs, workspaceId, digest],
      );
      // Under the row's lock: a file of the same bytes that is made now waits, and finds them gone.
      if (rowCount === 1) {
        await this.#blobs.delete(workspaceId, digest);
        await client.query('delete from file_blobs where workspace_id = $1 and digest = $2', [workspaceId, digest]);
      }
      await client.query('commit');
      return rowCount === 1;
    } catch (error) {
      await client.query('rollback');
      throw error;
    } finally {
      client.release();
    }
  }
}
