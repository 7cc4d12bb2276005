import type { StoredEvent } from '@holdfast/contracts';
import type pg from 'pg';
import type { EventLog } from './event-log.ts';
import type { Transaction } from './pool.ts';

/**
 * One row per stream, derived from the log by a pure fold and written in the append transaction. A fold that gives
 * undefined means that the stream has no row.
 */
export interface Projection<S> {
  readonly name: string;
  readonly tables: readonly string[];
  /** Streams start with this text, for example `session-`. */
  readonly streamPrefix: string;
  fold(state: S | undefined, event: StoredEvent): S | undefined;
  load(transaction: Transaction, streamIds: readonly string[]): Promise<ReadonlyMap<string, S>>;
  /** Inserts, replaces or (for undefined) removes the rows. */
  save(transaction: Transaction, states: ReadonlyMap<string, S | undefined>): Promise<void>;
}

/** A projection whose state type does not matter to the log. */
export type AnyProjection = Projection<never> | Projection<unknown>;

/** Folds new events, grouped by stream, into a projection's rows within the append transaction. */
export async function project<S>(
  transaction: Transaction,
  projection: Projection<S>,
  streams: readonly (readonly StoredEvent[])[],
): Promise<void> {
  const mine = streams.filter((events) => events[0]?.streamId.startsWith(projection.streamPrefix));
  if (mine.length === 0) return;
  const known = mine.filter((events) => events[0]?.version !== 1).map((events) => events[0]?.streamId ?? '');
  const loaded = known.length === 0 ? new Map<string, S>() : await projection.load(transaction, known);
  const states = new Map<string, S | undefined>();
  for (const events of mine) {
    const streamId = events[0]?.streamId ?? '';
    let state = loaded.get(streamId);
    for (const event of events) state = projection.fold(state, event);
    states.set(streamId, state);
  }
  await projection.save(transaction, states);
}

const FOLD_PAGE = 5_000;

/** Folds one stream from its start up to a version, or to its end; undefined where there is nothing to fold. */
export async function foldStream<S>(
  log: EventLog,
  fold: Projection<S>['fold'],
  streamId: string,
  throughVersion?: number,
): Promise<S | undefined> {
  let state: S | undefined;
  for (let afterVersion = 0; ; ) {
    const events = await log.readStream(streamId, { afterVersion, throughVersion, limit: FOLD_PAGE });
    for (const event of events) state = fold(state, event);
    afterVersion += events.length;
    if (events.length < FOLD_PAGE) return state;
  }
}

/**
 * Rebuilds a projection online, stream by stream. The fold reads without a lock; only its last page and the row are
 * written under the stream's lock, so appends to a stream wait for at most one page (L6). Returns how many streams it did.
 */
export async function rebuildProjection<S>(
  pool: pg.Pool,
  log: EventLog,
  projection: Projection<S>,
  options: { onlyStream?: string; onProgress?: (streams: number) => void } = {},
): Promise<number> {
  let done = 0;
  for (let after = ''; ; ) {
    const { rows } = await pool.query<{ stream_id: string }>(
      options.onlyStream === undefined
        ? 'select stream_id from streams where stream_id > $1 and starts_with(stream_id, $2) order by stream_id limit 500'
        : 'select stream_id from streams where stream_id > $1 and stream_id = $2',
      [after, options.onlyStream ?? projection.streamPrefix],
    );
    for (const { stream_id: streamId } of rows) {
      await rebuildStream(pool, log, projection, streamId);
      after = streamId;
      done += 1;
    }
    options.onProgress?.(done);
    if (rows.length === 0) return done;
  }
}

async function rebuildStream<S>(
  pool: pg.Pool,
  log: EventLog,
  projection: Projection<S>,
  streamId: string,
): Promise<void> {
  let state: S | undefined;
  let version = 0;
  const foldPage = async (reader?: pg.PoolClient): Promise<number> => {
    const events = await log.readStream(streamId, { afterVersion: version, limit: FOLD_PAGE }, reader);
    for (const event of events) state = projection.fold(state, event);
    version += events.length;
    return events.length;
  };
  while ((await foldPage()) === FOLD_PAGE);
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('select 1 from streams where stream_id = $1 for update', [streamId]);
    while ((await foldPage(client)) === FOLD_PAGE);
    await projection.save(client, new Map([[streamId, state]]));
    await client.query('commit');
    client.release();
  } catch (error) {
    client.release(true);
    throw error;
  }
}

/** What differs between a projection's rows and a fresh fold of the log; empty = equal. */
export async function compareProjection<S>(
  pool: pg.Pool,
  log: EventLog,
  projection: Projection<S>,
): Promise<readonly { streamId: string; live: S | undefined; rebuilt: S | undefined }[]> {
  const { rows } = await pool.query<{ stream_id: string }>(
    'select stream_id from streams where starts_with(stream_id, $1) order by stream_id',
    [projection.streamPrefix],
  );
  const different: { streamId: string; live: S | undefined; rebuilt: S | undefined }[] = [];
  for (const { stream_id: streamId } of rows) {
    const rebuilt = await foldStream<S>(log, (state, event) => projection.fold(state, event), streamId);
    const live = (await projection.load(pool, [streamId])).get(streamId);
    if (canonical(live) !== canonical(rebuilt)) different.push({ streamId, live, rebuilt });
  }
  return different;
}

function canonical(value: unknown): string {
  return (
    JSON.stringify(value, (_key, inner: unknown) =>
      inner !== null && typeof inner === 'object' && !Array.isArray(inner)
        ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
        : inner,
    ) ?? 'undefined'
  );
}
