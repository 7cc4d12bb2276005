import {
  AppError,
  eventVersions,
  foldSessionView,
  isId,
  LIMITS,
  MessageProcessed,
  type Page,
  QUEUED_TYPES,
  type Session,
  type SessionView,
  type StoredEvent,
  sessionResource,
  streamOf,
  type TimelinePage,
  WIRE_LOG_TYPES,
  type WireEvent,
  wireFrame,
} from '@holdfast/contracts';
import { type EventLog, foldStream, type StreamPage, type StreamRange } from '@holdfast/event-store';
import type pg from 'pg';
import { decodeEventPlace, type EventPlace, encodeCursor, type Order } from '../http/cursor.ts';
import type { Query, TimeRange } from '../http/query.ts';
import type { SseBatch, SseFrame } from '../stream/session-tail.ts';
import { durableFrame } from '../stream/sse-frame.ts';
import type { ContentBlobs } from './content.blobs.ts';

const DEFAULT_PAGE = 100;
const TIMELINE_PAGE = 200;
/** Few, because a reader takes them at its own pace: 64 KiB of content inline each at most, and `pageBlobBytes` of blobs. */
const EXPORT_PAGE = 100;
const STAMP_PAGE = 100;
const OPERATORS = { gt: '>', gte: '>=', lt: '<', lte: '<=' } as const;
const WIRE_TYPES: ReadonlySet<string> = new Set(WIRE_LOG_TYPES);
const STAMPED_TYPES = WIRE_LOG_TYPES.filter((type) => !QUEUED_TYPES.includes(type));
const EVENT_COLUMNS = 'id, workspace_id, version, type, schema_version, data, recorded_at';

/** One durable frame of a session's stream; `json` is its data. */
export interface ShownEvent {
  readonly version: number;
  readonly type: string;
  readonly json: string;
}

interface Row {
  part: keyof EventPlace;
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
  readonly #blobs: ContentBlobs;

  constructor(pool: pg.Pool, log: EventLog, blobs: ContentBlobs) {
    this.#pool = pool;
    this.#log = log;
    this.#blobs = blobs;
  }

  /**
   * Frames of the log after a version, ready to be written; `null` when there is nothing more now. At most `limit`, and
   * fewer where blobs would take too much memory.
   */
  async frames(workspaceId: string, sessionId: string, afterVersion: number, limit: number): Promise<SseBatch | null> {
    const page = await this.#page(workspaceId, sessionId, { afterVersion, limit });
    if (page === null) return null;
    const frames = page.shown.map(({ version, type, json }): SseFrame => {
      return { version, type, bytes: Buffer.from(durableFrame(version, type, json)) };
    });
    return { fromVersion: afterVersion + 1, toVersion: page.toVersion, frames };
  }

  /** The whole log of a session up to a version as its stream shows it, oldest first, read as it is taken. */
  async *shown(workspaceId: string, sessionId: string, throughVersion: number): AsyncGenerator<ShownEvent, void> {
    for (let afterVersion = 0; ; ) {
      const asked = { afterVersion, throughVersion, limit: EXPORT_PAGE };
      const page = await this.#page(workspaceId, sessionId, asked);
      if (page === null) return;
      yield* page.shown;
      afterVersion = page.toVersion;
    }
  }

  /** What the stream shows of one page of the log; null where the log holds nothing more. */
  async #page(
    workspaceId: string,
    sessionId: string,
    asked: StreamPage,
  ): Promise<{ readonly toVersion: number; readonly shown: readonly ShownEvent[] } | null> {
    const rows = await this.#log.readStreamRaw(streamOf('session', sessionId), asked);
    if (rows.length === 0) return null;
    const shown: ShownEvent[] = [];
    let toVersion = asked.afterVersion;
    let blobBytes = 0;
    for (const row of rows) {
      const internal = !WIRE_TYPES.has(row.type);
      const wire = readableFrame({
        ...row,
        data: internal ? {} : (JSON.parse(row.data) as StoredEvent['data']),
        workspaceId,
        streamId: '',
        position: '0',
        metadata: {},
      });
      if (wire !== undefined) {
        blobBytes += this.#blobs.sizeOf(wire);
        if (blobBytes > LIMITS.pageBlobBytes && shown.length > 0) break;
        const json = JSON.stringify(await this.#blobs.inline(workspaceId, wire));
        shown.push({ version: row.version, type: wire.type, json });
      }
      toVersion = row.version;
    }
    return { toVersion, shown };
  }

  /** A session as it was right after a version of its log: the fold of the read model, over fewer events. */
  async sessionAt(sessionId: string, version: number): Promise<Session> {
    const view = await foldStream(this.#log, foldSessionView, streamOf('session', sessionId), version);
    if (view === undefined)
      throw new AppError('defect', 'session.no-view', `Nothing is known of the session at version ${version}.`);
    return sessionResource(view, view.updatedAt);
  }

  /**
   * The version that `at` names: a log version, or an event's place. A message stands where the agent took it, as in
   * {@link list}; one that waits, where it was accepted.
   *
   * @throws AppError `event.not-in-session`, `session.no-such-version`
   */
  async placeOf(sessionId: string, at: string, head: number): Promise<number> {
    if (isId('event', at)) {
      const accepted = await this.versionOf(sessionId, at);
      return (await this.#stampOf(sessionId, at, accepted)) ?? accepted;
    }
    const version = /^\d{1,10}$/.test(at) ? Number(at) : 0;
    if (version >= 1 && version <= head) return version;
    throw new AppError(
      'invalid',
      'session.no-such-version',
      `"at" must be a log version from 1 to ${head} or the id of one of the session's events.`,
    );
  }

  async #stampOf(sessionId: string, eventId: string, accepted: number): Promise<number | undefined> {
    const streamId = streamOf('session', sessionId);
    const [own] = await this.#log.readStream(streamId, { afterVersion: accepted - 1, limit: 1 });
    if (own === undefined || !QUEUED_TYPES.includes(own.type)) return undefined;
    for (let afterVersion = accepted; ; ) {
      const page = { afterVersion, limit: STAMP_PAGE, types: [MessageProcessed.type] };
      const stamps = await this.#log.readStream(streamId, page);
      const stamp = stamps.find(({ data }) => data['event_id'] === eventId);
      if (stamp !== undefined || stamps.length < STAMP_PAGE) return stamp?.version;
      afterVersion = stamps[stamps.length - 1]?.version ?? afterVersion;
    }
  }

  /**
   * One page of a session's events, at most `limit` and fewer where blobs would take too much memory. A queued message
   * stands at its stamp; the ones that still wait come after everything in ascending order (S2). Pages of one walk show
   * no message twice and miss none, also when it is stamped meanwhile.
   */
  async list(view: SessionView, query: Query): Promise<Page<WireEvent>> {
    const { id: sessionId, workspaceId } = view;
    const order: Order = query.choice('order', ['asc', 'desc']) ?? 'asc';
    const limit = query.limit(DEFAULT_PAGE, LIMITS.eventListLimitMax);
    const types = query.many('types');
    const range = Object.entries(query.range('created_at'));
    const place = await this.#place(sessionId, query.one('page'), order);

    const values: unknown[] = [];
    const bind = (value: unknown): string => `$${values.push(value)}`;
    const on = order === 'asc' ? '>' : '<';
    const from = await this.#source(view, bind);
    const stamped = [
      ...from.where,
      `type = any (${bind(STAMPED_TYPES)})`,
      ...range.map(([bound, at]) => `recorded_at ${OPERATORS[bound as keyof TimeRange]} ${bind(at)}::timestamptz`),
    ];
    const waiting = [
      `id in (select jsonb_array_elements_text(view->'pending') from sessions where id = ${bind(sessionId)})`,
    ];
    // What waits has no time, and in descending order it stands before everything that has one.
    if (range.length > 0 || (order === 'desc' && place.s !== undefined)) waiting.push('false');
    if (types.length > 0) {
      const wanted = bind(types);
      stamped.push(
        `case type when 'session.message_processed' then data->'message'->>'type'
          when 'session.forked' then 'session.updated' else type end = any (${wanted})`,
      );
      waiting.push(`type = any (${wanted})`);
    }
    if (place.s !== undefined) stamped.push(`version ${on} ${bind(place.s)}`);
    if (place.p !== undefined) {
      const last = bind(place.p);
      waiting.push(`version ${on} ${last}`);
      // Stamped since an earlier page showed it as waiting.
      stamped.push(
        `not exists (select 1 from events shown where shown.id = events.data->>'event_id' and not shown.version ${on} ${last})`,
      );
    }
    const part = (name: keyof EventPlace, where: string[]): string =>
      `select '${name}' as part, ${EVENT_COLUMNS} from events where ${where.join(' and ')}
        order by version ${order} limit ${limit + 1}`;
    // One statement, so that both parts see the same moment. 'p' sorts before 's'.
    const { rows } = await this.#pool.query<Row>(
      `select * from (${from.each(part('s', stamped))} union all (${part('p', waiting)})) as page
       order by part ${order === 'asc' ? 'desc' : 'asc'}, version ${order} limit ${limit + 1}`,
      values,
    );

    const next: Record<string, number> = { ...place };
    const shown: WireEvent[] = [];
    let taken = 0;
    let blobBytes = 0;
    for (const row of rows.slice(0, limit)) {
      const wire = frameOf(row);
      blobBytes += this.#blobs.sizeOf(wire);
      if (blobBytes > LIMITS.pageBlobBytes && taken > 0) break;
      shown.push(wire);
      next[row.part] = row.version;
      taken++;
    }
    return {
      data: await Promise.all(shown.map((wire) => this.#blobs.inline(workspaceId, wire))),
      next_page: taken < rows.length ? encodeCursor('events', order, next) : null,
    };
  }

  /**
   * What finds a session's events in SQL: a condition, and what a sorted and limited selection of them is to be wrapped in.
   * A fork's lie in several streams; of each so many are read as the whole may give.
   */
  async #source(
    view: SessionView,
    bind: (value: unknown) => string,
  ): Promise<{ readonly where: readonly string[]; each(selection: string): string }> {
    const streamId = streamOf('session', view.id);
    if (view.forkedFrom === undefined)
      return { where: [`stream_id = ${bind(streamId)}`], each: (selection) => `(${selection})` };
    const ranges = await this.#log.ranges(streamId);
    const column = (name: keyof StreamRange, type: string): string =>
      `${bind(ranges.map((range) => range[name]))}::${type}[]`;
    const parts = `unnest(${column('source', 'text')}, ${column('after', 'integer')}, ${column('through', 'integer')})`;
    return {
      where: [
        'stream_id = range.source',
        'events.version > range.after_version and events.version <= range.through_version',
      ],
      each: (selection) =>
        `(select shared.* from ${parts} as range (source, after_version, through_version) cross join lateral (${selection}) as shared)`,
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
    const version = await this.#log.versionOf(streamOf('session', sessionId), eventId);
    if (version === null)
      throw new AppError('invalid', 'event.not-in-session', `The session has no event ${eventId.slice(0, 100)}.`);
    return version;
  }

  /** One page of a stream's log as it is, internal events too. */
  async timeline(streamId: string, query: Query): Promise<TimelinePage> {
    const afterVersion = query.integer('after', { min: 0, max: 2 ** 31 - 1 }) ?? 0;
    const limit = query.limit(TIMELINE_PAGE, 1_000);
    const page = await this.#log.readStream(streamId, { afterVersion, limit: limit + 1 });
    const data = page.slice(0, limit).map(({ id, version, type, schemaVersion, recordedAt, data: body, metadata }) => ({
      id,
      version,
      type,
      schema_version: schemaVersion,
      recorded_at: recordedAt,
      data: body,
      metadata,
    }));
    return { data, next_after: page.length > limit ? (data[data.length - 1]?.version ?? null) : null };
  }
}

/** The frame of a row whose type is shown on the wire. */
function frameOf(row: Row): WireEvent {
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
  if (wire === undefined)
    throw new AppError('defect', 'event.not-on-wire', `Events of type ${row.type} are not shown on the wire.`);
  return wire;
}

/** @throws AppError `event.newer-version`: another gateway can show it (L7) */
function readableFrame(stored: StoredEvent): WireEvent | undefined {
  const event = eventVersions.upcast(stored);
  eventVersions.requireReadable(event);
  return wireFrame(event);
}
