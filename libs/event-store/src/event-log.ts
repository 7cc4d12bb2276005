import { AppError, eventVersions, type JsonObject, type StoredEvent } from '@holdfast/contracts';
import type pg from 'pg';
import type { AppendRequest, AppendResult } from './append.ts';
import { clipped, MAX_VERSION, type StreamRange, sharedRanges, withOwn } from './fork.ts';
import { GroupCommit } from './group-commit.ts';
import { isConnectionLoss, logUnavailable, type Transaction } from './pool.ts';
import type { Projection } from './projection.ts';

/** Where a reader of the whole log stands: commit order first (transaction id), then position. */
export interface LogCursor {
  readonly txid: string;
  readonly position: string;
}
export const LOG_START: LogCursor = { txid: '0', position: '0' };

/** A stored event whose bodies are still text, for readers that only pass them on. */
export interface RawEvent {
  readonly id: string;
  readonly version: number;
  readonly type: string;
  readonly schemaVersion: number;
  readonly data: string;
  readonly recordedAt: string;
}

export interface StreamHead {
  readonly workspaceId: string;
  readonly version: number;
  readonly generation: number;
  readonly leaseOwner: string | null;
  /** RFC 3339 by Postgres' clock; null when no lease was taken. */
  readonly leaseExpiresAt: string | null;
}

export interface EventLogOptions {
  /** Made by `createLogPool`. */
  readonly pool: pg.Pool;
  readonly projections?: readonly Projection<never>[];
  /** Called after a commit for each stream of it, in order, before the append resolves. Must not throw. */
  readonly onCommitted?: (events: readonly StoredEvent[]) => void;
  /** The newest version of a type that every reader knows (L7); asked only about types that have several. Default: the newest. */
  readonly readable?: (type: string) => number;
}

interface EventRow {
  position: string;
  id: string;
  workspace_id: string;
  stream_id: string;
  version: number;
  type: string;
  schema_version: number;
  data: JsonObject;
  metadata: JsonObject;
  recorded_at: Date;
  txid: string;
}
const COLUMNS = 'position, id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at';
const RAW_COLUMNS = 'id, version, type, schema_version, data::text as data, recorded_at';
type RawRow = Pick<EventRow, 'id' | 'version' | 'type' | 'schema_version' | 'recorded_at'> & { data: string };
const MAX_PAGE = 10_000;
/** Forked streams whose ranges are kept in memory. */
const MAX_FORKS_KNOWN = 10_000;

/** Which events of a stream: those after a version, up to one (absent = to the end), at most so many. */
export interface StreamPage {
  readonly afterVersion: number;
  readonly throughVersion?: number | undefined;
  readonly limit?: number;
}

/**
 * The append-only log. A resolved `append` is committed and durable; a rejected one with a refusal stored nothing.
 * Appends of one process share commits; order within a stream is the order of its versions.
 */
export class EventLog {
  readonly #pool: pg.Pool;
  readonly #commits: GroupCommit;
  readonly #forks = new Map<string, readonly StreamRange[]>();

  constructor(options: EventLogOptions) {
    this.#pool = options.pool;
    this.#commits = new GroupCommit({
      pool: options.pool,
      projections: options.projections ?? [],
      onCommitted: options.onCommitted,
      readable: options.readable ?? ((type) => eventVersions.newest(type)),
      stored: (ids) => this.#byIds(ids),
    });
  }

  /**
   * Stores events, all of a request or nothing. Safe to repeat with the same event ids: what is stored already is
   * returned as it is (L2). Waits for a lost connection until the deadline (5 s where none is given).
   *
   * @throws AppError `log.version-conflict`, `log.generation-fenced`, `log.lease-held`, `log.statement-conflict`
   * (details.constraint), `log.unavailable`.
   */
  append(request: AppendRequest): Promise<AppendResult> {
    return this.#commits.append(request);
  }

  /**
   * Events of one stream after a version, oldest first, at most `limit` (default and bound 10,000). What a forked stream
   * shares with others comes as its own: under its id and its versions.
   */
  async readStream(
    streamId: string,
    options: StreamPage & { types?: readonly string[] },
    reader: Transaction = this.#pool,
  ): Promise<StoredEvent[]> {
    const rows = await this.#page<EventRow>('log-read', COLUMNS, streamId, options, reader);
    return rows.map((row) => eventVersions.upcast(stored({ ...row, stream_id: streamId })));
  }

  /** Like {@link readStream} with bodies left as text; not upcast, so callers check `schemaVersion`. */
  async readStreamRaw(streamId: string, options: StreamPage): Promise<RawEvent[]> {
    const rows = await this.#page<RawRow>('log-read-raw', RAW_COLUMNS, streamId, options, this.#pool);
    return rows.map((row) => ({
      id: row.id,
      version: row.version,
      type: row.type,
      schemaVersion: row.schema_version,
      data: row.data,
      recordedAt: row.recorded_at.toISOString(),
    }));
  }

  /**
   * Where the events of a stream lie, oldest first: one range for a stream of its own, several for a forked one. They
   * never change.
   */
  async ranges(streamId: string): Promise<readonly StreamRange[]> {
    return withOwn(streamId, await this.#shared(streamId, this.#pool));
  }

  /** The version that an event has in a stream, be it shared or the stream's own; null when it is in another. */
  async versionOf(streamId: string, eventId: string): Promise<number | null> {
    const { rows } = await this.#pool.query<{ stream_id: string; version: number }>(
      'select stream_id, version from events where id = $1',
      [eventId],
    );
    const [row] = rows;
    if (row === undefined) return null;
    if (row.stream_id === streamId) return row.version;
    const shared = await this.#shared(streamId, this.#pool);
    const holds = ({ source, after, through }: StreamRange): boolean =>
      source === row.stream_id && row.version > after && row.version <= through;
    return shared.some(holds) ? row.version : null;
  }

  /**
   * Rows of a stream, in its order. They are asked for as if all were its own, which costs a stream that shares nothing
   * nothing: versions have no gaps, so a first row that does not follow on says that those before it lie elsewhere.
   */
  async #page<R extends { version: number }>(
    name: string,
    columns: string,
    streamId: string,
    options: StreamPage & { types?: readonly string[] },
    reader: Transaction,
  ): Promise<R[]> {
    const { afterVersion, throughVersion = MAX_VERSION, types = null } = options;
    const limit = Math.min(options.limit ?? MAX_PAGE, MAX_PAGE);
    let shared = this.#forks.get(streamId);
    if (shared === undefined || afterVersion >= (shared.at(-1)?.through ?? 0)) {
      const { rows } = await reader.query<R>({
        name,
        text: `select ${columns} from events where stream_id = $1 and version > $2 and version <= $3
                 and ($4::text[] is null or type = any ($4)) order by version limit $5`,
        values: [streamId, afterVersion, throughVersion, types, limit],
      });
      const [first] = rows;
      const isWhole = first === undefined ? throughVersion === MAX_VERSION : first.version === afterVersion + 1;
      if (shared !== undefined || (isWhole && types === null)) return rows;
      shared = await this.#shared(streamId, reader);
      if (afterVersion >= (shared.at(-1)?.through ?? 0)) return rows;
    }
    // Without a filter a page is known by its versions, so that no range reads on for rows that another one has.
    const end = types === null ? Math.min(throughVersion, afterVersion + limit) : throughVersion;
    const parts = clipped(withOwn(streamId, shared), afterVersion, end);
    const { rows } = await reader.query<R>(
      `select shared.* from unnest($1::text[], $2::integer[], $3::integer[]) as part (source, after_version, through_version)
       cross join lateral (
         select ${columns} from events
         where stream_id = part.source and version > part.after_version and version <= part.through_version
           and ($4::text[] is null or type = any ($4)) order by version limit $5
       ) as shared order by version limit $5`,
      [
        parts.map(({ source }) => source),
        parts.map(({ after }) => after),
        parts.map(({ through }) => through),
        types,
        limit,
      ],
    );
    return rows;
  }

  /** What a stream shares with others. Remembered where it is something: it never changes. */
  async #shared(streamId: string, reader: Transaction): Promise<readonly StreamRange[]> {
    const known = this.#forks.get(streamId);
    if (known !== undefined) return known;
    const shared = await sharedRanges(reader, streamId);
    if (shared.length === 0) return shared;
    const [oldest] = this.#forks.keys();
    if (this.#forks.size >= MAX_FORKS_KNOWN && oldest !== undefined) this.#forks.delete(oldest);
    this.#forks.set(streamId, shared);
    return shared;
  }

  /** Version and lease of a stream; null when it does not exist. */
  async streamHead(streamId: string): Promise<StreamHead | null> {
    const { rows } = await this.#pool.query<{
      workspace_id: string;
      version: number;
      lease_generation: number;
      lease_owner: string | null;
      lease_expires_at: Date | null;
    }>(
      'select workspace_id, version, lease_generation, lease_owner, lease_expires_at from streams where stream_id = $1',
      [streamId],
    );
    const row = rows[0];
    if (row === undefined) return null;
    return {
      workspaceId: row.workspace_id,
      version: row.version,
      generation: row.lease_generation,
      leaseOwner: row.lease_owner,
      leaseExpiresAt: row.lease_expires_at?.toISOString() ?? null,
    };
  }

  /**
   * Events of the whole log as they are stored (not upcast: who is given them may know fewer versions than this process),
   * in commit order after a cursor. Never skips one: it stops before the oldest transaction that
   * is still open, whose events would sort before others that are visible already.
   */
  async readAll(options: {
    after: LogCursor;
    limit: number;
  }): Promise<{ events: StoredEvent[]; cursors: LogCursor[]; cursor: LogCursor }> {
    const { rows } = await this.#pool.query<EventRow>(
      // The table's name in the order: a bare `txid` would be the text of the output column, and "1000" sorts before "999".
      `select ${COLUMNS}, txid::text as txid from events
       where (txid, position) > ($1::xid8, $2::bigint) and txid < pg_snapshot_xmin(pg_current_snapshot())
       order by events.txid, events.position limit $3`,
      [options.after.txid, options.after.position, Math.min(options.limit, MAX_PAGE)],
    );
    const cursors = rows.map((row) => ({ txid: row.txid, position: row.position }));
    return {
      events: rows.map(stored),
      cursors,
      cursor: cursors[cursors.length - 1] ?? options.after,
    };
  }

  /** One event by its id; null when there is none. */
  async findEvent(id: string): Promise<StoredEvent | null> {
    return (await this.#byIds([id]))[0] ?? null;
  }

  /** Events with these ids, in log order. */
  findEvents(ids: readonly string[]): Promise<StoredEvent[]> {
    return this.#byIds(ids);
  }

  /** Takes the leases' time again; returns the streams that this owner and generation still hold, with their versions. */
  async renewLeases(
    owner: string,
    leases: readonly { streamId: string; generation: number }[],
    ttlMs: number,
  ): Promise<Map<string, number>> {
    if (leases.length === 0) return new Map();
    const { rows } = await this.#pool.query<{ stream_id: string; version: number }>(
      `with mine as (
         select s.stream_id from streams s join unnest($2::text[], $3::integer[]) as l(stream_id, generation)
           on s.stream_id = l.stream_id and s.lease_generation = l.generation
         where s.lease_owner = $1 order by s.stream_id for update of s
       )
       update streams s set lease_expires_at = clock_timestamp() + $4 * interval '1 millisecond'
       from mine where s.stream_id = mine.stream_id returning s.stream_id, s.version`,
      [owner, leases.map((lease) => lease.streamId), leases.map((lease) => lease.generation), ttlMs],
    );
    return new Map(rows.map((row) => [row.stream_id, row.version]));
  }

  /** Frees a lease without an event; nothing happens when it is no longer held by that owner and generation. */
  async releaseLease(owner: string, streamId: string, generation: number): Promise<void> {
    await this.#pool.query(
      `update streams set lease_owner = null, lease_expires_at = null
       where stream_id = $1 and lease_owner = $2 and lease_generation = $3`,
      [streamId, owner, generation],
    );
  }

  /** Waits for the appends in flight; later ones are refused. */
  close(): Promise<void> {
    return this.#commits.close();
  }

  async #byIds(ids: readonly string[]): Promise<StoredEvent[]> {
    const { rows } = await this.#pool.query<EventRow>(
      `select ${COLUMNS} from events where id = any ($1) order by position`,
      [ids],
    );
    return rows.map((row) => eventVersions.upcast(stored(row)));
  }
}

function stored(row: EventRow): StoredEvent {
  return {
    position: row.position,
    id: row.id,
    workspaceId: row.workspace_id,
    streamId: row.stream_id,
    version: row.version,
    type: row.type,
    schemaVersion: row.schema_version,
    data: row.data,
    metadata: row.metadata,
    recordedAt: row.recorded_at.toISOString(),
  };
}

/** Maps what pg throws on a plain read or write to an error that callers can act on. */
export function asLogError(error: unknown): unknown {
  if (error instanceof AppError) return error;
  return isConnectionLoss(error) ? logUnavailable(error) : error;
}
