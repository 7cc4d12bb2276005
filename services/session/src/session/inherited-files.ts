import { newId, streamOf } from '@holdfast/contracts';
import type { CompanionStatement } from '@holdfast/event-store';
import type pg from 'pg';

/** The files that a fork begins with. */
export interface InheritedFiles {
  /** The fork's own checkpoint, which names the same packs. */
  readonly id: string;
  /** What calls had done to files up to this version is in them. */
  readonly throughVersion: number;
  /** Makes the fork's checkpoint, in the fork's own commit: what the other session keeps may go from then on. */
  readonly keep: CompanionStatement;
}

/**
 * The nearest checkpoint at or before a version of a session, its own or one of an ancestor that it shares that version
 * with. Null when none is kept. Checkpoints are the sandbox service's rows, and nothing but this reads or makes any here.
 */
export async function inheritedFiles(
  pool: pg.Pool,
  from: { readonly workspaceId: string; readonly sessionId: string; readonly version: number },
  forkId: string,
): Promise<InheritedFiles | null> {
  const { rows } = await pool.query<{ id: string; through_version: string }>(
    `with shared as (
       select source_id, least(through_version, $3) as version from stream_prefixes where stream_id = $2
       union all select $2, $3::bigint)
     select c.id, least(c.through_version, s.version) as through_version
     from shared s cross join lateral (
       select id, version, through_version, created_at from checkpoints
       where session_id = split_part(s.source_id, '-', 2) and workspace_id = $1 and version <= s.version
       order by version desc, created_at desc limit 1) c
     order by c.version desc, c.created_at desc limit 1`,
    [from.workspaceId, streamOf('session', from.sessionId), from.version],
  );
  const [nearest] = rows;
  if (nearest === undefined) return null;
  const id = newId('checkpoint');
  const throughVersion = Number(nearest.through_version);
  return {
    id,
    throughVersion,
    keep: {
      text: `insert into checkpoints (id, workspace_id, session_id, sandbox_id, version, through_version, roots, packs, figures)
             select $1, workspace_id, $2, sandbox_id, version, $3, roots, packs, figures from checkpoints where id = $4`,
      values: [id, forkId, throughVersion, nearest.id],
      rows: 1,
    },
  };
}
