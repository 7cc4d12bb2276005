import { AppError } from '@holdfast/contracts';
import type pg from 'pg';

/** The transaction id that rebased events carry: below every id that a running cluster can still give out. */
const FROZEN_TXID = '3';

/**
 * Refuses to work on a log whose transaction ids lie at or above this cluster's horizon (L5): after a restore into a new
 * cluster its rows would be invisible to readers and new rows would sort below their cursors.
 *
 * @throws AppError `log.needs-rebase`, which says how to mend it.
 */
export async function assertLogUsable(pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query<{ usable: boolean }>(
    `select coalesce((select txid < pg_snapshot_xmax(pg_current_snapshot()) from events order by txid desc limit 1), true) as usable`,
  );
  if (rows[0]?.usable !== true) {
    throw new AppError(
      'rejected',
      'log.needs-rebase',
      'The log was restored from another cluster: its transaction ids lie above this one’s. Stop every service and run `bin/log rebase`.',
    );
  }
}

/**
 * Gives every event the frozen transaction id and moves the relay's cursors to the same place by position. Only while no
 * service runs. Positions keep their order, so readers see the same sequence.
 */
export async function rebaseLog(pool: pg.Pool): Promise<{ events: number }> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('lock table events in access exclusive mode');
    const { rowCount } = await client.query('update events set txid = $1::xid8 where txid <> $1::xid8', [FROZEN_TXID]);
    await client.query('update relay_checkpoint set txid = $1::xid8', [FROZEN_TXID]);
    await client.query('commit');
    client.release();
    return { events: rowCount ?? 0 };
  } catch (error) {
    client.release(true);
    throw error;
  }
}

/** What {@link checkLog} found wrong; empty = the log is whole. */
export interface LogFault {
  readonly streamId: string;
  readonly fault: string;
}

/**
 * Checks that every stream is gap-free up to the version its row says, within one workspace: from 1, or, where it was
 * forked, from the end of what it shares, all of which is there.
 */
export async function checkLog(pool: pg.Pool): Promise<LogFault[]> {
  const { rows } = await pool.query<{ stream_id: string; fault: string }>(
    `with shared as (
       select stream_id, max(through_version) as through, sum(through_version - after_version) as amount
       from stream_prefixes group by stream_id)
     select coalesce(s.stream_id, e.stream_id) as stream_id,
       case when s.stream_id is null then 'events without a stream row'
            when e.stream_id is null then 'a stream row without events'
            when e.last <> s.version then format('row says version %s, last event is %s', s.version, e.last)
            when e.amount <> e.last - coalesce(p.through, 0)
              then format('%s events of its own from version %s to %s', e.amount, coalesce(p.through, 0) + 1, e.last)
            when p.amount <> p.through then 'a gap in what it shares'
            else 'events of another workspace' end as fault
     from streams s full join (
       select stream_id, max(version) as last, count(*) as amount, min(workspace_id) as lowest, max(workspace_id) as highest
       from events group by stream_id) e using (stream_id) left join shared p using (stream_id)
     where s.stream_id is null or e.stream_id is null or e.last <> s.version or e.amount <> e.last - coalesce(p.through, 0)
       or p.amount <> p.through or e.lowest <> s.workspace_id or e.highest <> s.workspace_id
     union all
     select p.stream_id, format('shares %s up to version %s, which it has not', p.source_id, p.through_version)
     from stream_prefixes p left join streams s on s.stream_id = p.source_id
     where s.stream_id is null or s.version < p.through_version or s.workspace_id <> p.workspace_id
     order by 1 limit 100`,
  );
  return rows.map((row) => ({ streamId: row.stream_id, fault: row.fault }));
}
