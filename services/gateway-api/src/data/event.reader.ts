import {
  AppError,
  eventVersions,
  type Page,
  QUEUED_TYPES,
  type SessionView,
  type StoredBlock,
  type StoredEvent,
  streamOf,
  WIRE_LOG_TYPES,
  type WireEvent,
  wireFrame,
} from '@holdfast/contracts';
import type { BlobStore, EventLog } from '@holdfast/event-store';
import type pg from 'pg';
import { decodeEventPlace, type EventPlace, encodeCursor, type Order } from '../http/cursor.ts';
import type { Query } from '../http/query.ts';
import type { SseBatch, SseFrame } from '../stream/session-tail.ts';
import { durableFrame } from '../stream/sse-frame.ts';

const DEFAULT_PAGE = 100;
const STAMPED_TYPES = WIRE_LOG_TYPES.filter((type) => !QUEUED_TYPES.includes(type));
const BLOB_MARK = '"x_blob"';
const EVENT_COLUMNS = 'id, workspace_id, version, type, schema_version, data, recorded_at';

interface Row {
  id: string;
  workspace_id: string;
  version: number;
  type: string;
  schema_version: number;
  data: StoredEvent['data'];
  recorded_at: Date;
}

/** Reads a session's events as the wire shows them. */
export class EventReader {
  readonly #pool: pg.Pool;
  readonly #log: EventLog;
  readonly #blobs: BlobStore;

  constructor(pool: pg.Pool, log: EventLog, blobs: BlobStore) {
    this.#pool = pool;
    this.#log = log;
    this.#blobs = blobs;
  }

  /** Frames of the log after a version, ready to be written; `null` when there is nothing more now. */
  async frames(workspaceId: string, sessionId: string, afterVersion: number, limit: number): Promise<SseBatch | null> {
    const rows = await this.#log.readStreamRaw(streamOf('session', sessionId), { afterVersion, limit });
    const last = rows[rows.length - 1];
    if (last === undefined) return null;
    const frames: SseFrame[] = [];
    for (const row of rows) {
      const internal = !WIRE_TYPES.has(row.type);
      const stored = {
        ...row,
        data: internal ? {} : (JSON.parse(row.data) as StoredEvent['data']),
        workspaceId,
        streamId: '',
        position: '0',
        metadata: {},
      };
      const wire = readableFrame(stored);
      if (wire === undefined) continue;
      let json = JSON.stringify(wire);
      if (json.includes(BLOB_MARK)) json = JSON.stringify(await this.inline(workspaceId, wire));
      frames.push({
        version: row.version,
        type: wire.type,
        bytes: Buffer.from(durableFrame(row.version, wire.type, json)),
      });
    }
    return { fromVersion: afterVersion + 1, toVersion: last.version, frames };
  }

  /** Puts blobs' content back into an event. */
  async inline(workspaceId: string, event: WireEvent): Promise<WireEvent> {
    const { content } = event;
    if (!Array.isArray(content)) return event;
    const blocks = await Promise.all(
      (content as StoredBlock[]).map(async (block) =>
        block.type === 'x_blob'
          ? (JSON.parse((await this.#blobs.read(workspaceId, block.digest)).toString()) as object)
          : block,
      ),
    );
    return { ...event, content: blocks };
  }

  /**
   * One page of a session's events. A queued message stands at its stamp; the ones that still wait come after everything
   * in ascending order (S2).
   */
  async list(view: SessionView, query: Query): Promise<Page<WireEvent>> {
    const order: Order = query.choice('order', ['asc', 'desc']) ?? 'asc';
    const limit = query.limit(DEFAULT_PAGE, 1_000);
    const types = query.many('types');
    const range = query.range('created_at');
    const place = await this.#place(view.id, query.one('page'), order);
    const conditions: string[] = [];
    const values: unknown[] = [streamOf('session', view.id), STAMPED_TYPES];
    const operators = { gt: '>', gte: '>=', lt: '<', lte: '<=' } as const;
    for (const [bound, at] of Object.entries(range)) {
      values.push(at);
      conditions.push(`recorded_at ${operators[bound as keyof typeof operators]} $${values.length}::timestamptz`);
    }
    if (types.length > 0) {
      values.push(types);
      conditions.push(
        `case when type = 'session.message_processed' then data->'message'->>'type' else type end = any ($${values.length})`,
      );
    }
    const stamped = async (wanted: number): Promise<Row[]> => {
      const own = [...values];
      const where = ['stream_id = $1', 'type = any ($2)', ...conditions];
      if (place.s !== undefined) {
        own.push(place.s);
        where.push(`version ${order === 'asc' ? '>' : '<'} $${own.length}`);
      }
      own.push(wanted);
      const { rows } = await this.#pool.query<Row>(
        `select ${EVENT_COLUMNS} from events where ${where.join(' and ')} order by version ${order} limit $${own.length}`,
        own,
      );
      return rows;
    };
    const waiting = async (wanted: number): Promise<Row[]> => {
      if (view.pending.length === 0 || Object.keys(range).length > 0 || wanted === 0) return [];
      const { rows } = await this.#pool.query<Row>(
        `select ${EVENT_COLUMNS} from events where id = any ($1) and ($2::integer is null or version ${order === 'asc' ? '>' : '<'} $2)
           and (cardinality($3::text[]) = 0 or type = any ($3)) order by version ${order} limit $4`,
        [view.pending, place.p ?? null, types, wanted],
      );
      return rows;
    };
    const rows: Row[] = [];
    const next: Record<string, number> = {
      ...(place.s === undefined ? {} : { s: place.s }),
      ...(place.p === undefined ? {} : { p: place.p }),
    };
    const take = (found: Row[], which: 's' | 'p'): void => {
      for (const row of found.slice(0, limit - rows.length)) {
        rows.push(row);
        next[which] = row.version;
      }
    };
    let more: boolean;
    if (order === 'asc') {
      const found = place.p === undefined ? await stamped(limit + 1) : [];
      take(found, 's');
      const later = found.length > limit ? [] : await waiting(limit - rows.length + 1);
      more = found.length > limit || later.length > limit - rows.length;
      take(later, 'p');
    } else {
      const first = place.s === undefined ? await waiting(limit + 1) : [];
      take(first, 'p');
      const found = first.length > limit ? [] : await stamped(limit - rows.length + 1);
      more = first.length > limit || found.length > limit - rows.length;
      take(found, 's');
    }
    const data = await Promise.all(rows.map((row) => this.#wire(row)));
    return {
      data: data.filter((event) => event !== undefined),
      next_page: more ? encodeCursor('events', order, next) : null,
    };
  }

  /** A page token of ours, or the id of an event to go on after. */
  async #place(sessionId: string, page: string | undefined, order: Order): Promise<EventPlace> {
    if (page === undefined) return {};
    if (!page.startsWith('sevt_')) return decodeEventPlace(page, order);
    return { s: await this.versionOf(sessionId, page) };
  }

  /** The first version of one of this session's events. @throws AppError `event.not-in-session` */
  async versionOf(sessionId: string, eventId: string): Promise<number> {
    const { rows } = await this.#pool.query<{ version: number }>(
      'select version from events where id = $1 and stream_id = $2',
      [eventId, streamOf('session', sessionId)],
    );
    const version = rows[0]?.version;
    if (version === undefined)
      throw new AppError('invalid', 'event.not-in-session', `The session has no event ${eventId.slice(0, 100)}.`);
    return version;
  }

  /** The log as it is, internal events too. */
  async timeline(sessionId: string, afterVersion: number, limit: number): Promise<readonly StoredEvent[]> {
    return this.#log.readStream(streamOf('session', sessionId), { afterVersion, limit });
  }

  async #wire(row: Row): Promise<WireEvent | undefined> {
    const wire = readableFrame({
      id: row.id,
      version: row.version,
      type: row.type,
      schemaVersion: row.schema_version,
      data: row.data,
      recordedAt: row.recorded_at.toISOString(),
      workspaceId: row.workspace_id,
      streamId: '',
      position: '0',
      metadata: {},
    });
    if (wire === undefined) return undefined;
    const { content } = wire;
    return Array.isArray(content) && content.some((block: { type?: string }) => block.type === 'x_blob')
      ? this.inline(row.workspace_id, wire)
      : wire;
  }
}

/** @throws AppError `event.newer-version`: another gateway can show it (L7) */
function readableFrame(stored: StoredEvent): WireEvent | undefined {
  const event = eventVersions.upcast(stored);
  eventVersions.requireReadable(event);
  return wireFrame(event);
}

const WIRE_TYPES: ReadonlySet<string> = new Set(WIRE_LOG_TYPES);
