import type { ServerResponse } from 'node:http';
import type { Bus, Registration } from '@holdfast/bus';
import {
  AppError,
  type CommittedHint,
  committedSubject,
  deltaSubject,
  type LiveDelta,
  type OpenPreview,
  openPreviewSubject,
  streamOf,
} from '@holdfast/contracts';
import type pg from 'pg';
import type { Logger } from 'pino';
import { type Authenticator, keyOf, type Principal } from '../auth/authenticator.ts';
import type { EventReader } from '../data/event.reader.ts';
import { type Previews, SessionTail, type SseBatch, type TailedStream } from './session-tail.ts';
import { durableFrame, errorFrame, PING_FRAME } from './sse-frame.ts';

/** A reader that has not taken this many bytes is slow: it leaves the live end and reads on from the log at its pace. */
const SLOW_BYTES = 256 * 1024;
const PAGE_EVENTS = 2_000;
/** Fallback for lost hints. */
const POLL_MS = 1_000;
const ENDS = new Set(['session.deleted', 'session.status_terminated']);

interface WatchedSession {
  readonly tail: SessionTail;
  readonly workspaceId: string;
  readonly registrations: Registration[];
  filling: boolean;
}

/** All open event streams of this process. */
export class StreamHub {
  readonly #bus: Bus;
  readonly #pool: pg.Pool;
  readonly #events: EventReader;
  readonly #authenticator: Authenticator;
  readonly #streamsPerKey: number;
  readonly #logger: Logger;
  readonly #sessions = new Map<string, WatchedSession>();
  readonly #streams = new Set<EventStream>();
  readonly #perKey = new Map<string, number>();
  readonly #timers: NodeJS.Timeout[];
  #draining = false;

  constructor(options: {
    bus: Bus;
    pool: pg.Pool;
    events: EventReader;
    authenticator: Authenticator;
    logger: Logger;
    pingMs: number;
    streamsPerKey: number;
  }) {
    this.#authenticator = options.authenticator;
    this.#streamsPerKey = options.streamsPerKey;
    this.#bus = options.bus;
    this.#pool = options.pool;
    this.#events = options.events;
    this.#logger = options.logger;
    this.#timers = [
      setInterval(() => void this.#ping(), options.pingMs),
      setInterval(() => void this.#poll(), POLL_MS),
    ];
  }

  get openStreams(): number {
    return this.#streams.size;
  }

  /** Refuses a stream above the key's bound. @throws AppError `stream.too-many` */
  admit(principal: Principal): void {
    if (this.#draining)
      throw new AppError('unavailable', 'stream.draining', 'The service is shutting down; connect again.');
    if ((this.#perKey.get(keyOf(principal)) ?? 0) >= this.#streamsPerKey) {
      throw new AppError(
        'exhausted',
        'stream.too-many',
        `This key has ${this.#streamsPerKey} streams open; close some.`,
      );
    }
  }

  /**
   * Serves one stream until its session ends or the client leaves: what the log holds after `cursor` (null = from now
   * on), then everything that comes, gap-free and without doubles.
   */
  async serve(
    response: ServerResponse,
    session: { id: string; workspaceId: string; ended: boolean },
    principal: Principal,
    cursor: number | null,
    previews: Previews,
  ): Promise<void> {
    const key = keyOf(principal);
    this.#perKey.set(key, (this.#perKey.get(key) ?? 0) + 1);
    const watched = this.#watch(session.id, session.workspaceId);
    const stream = new EventStream(response, principal, previews, cursor ?? 0);
    this.#streams.add(stream);
    watched.tail.hold(stream);
    response.on('close', () => stream.end());
    // A client that left before this line closes nothing any more.
    if (response.destroyed) stream.end();
    try {
      // The subscription must stand before the head is read, or an event between the two is seen by neither.
      await this.#bus.flush();
      if (cursor === null) stream.cursor = await this.#head(session.id);
      if (!stream.over) response.flushHeaders();
      while (!stream.over) {
        const batch = await this.#events.frames(session.workspaceId, session.id, stream.cursor, PAGE_EVENTS);
        if (batch !== null) {
          stream.deliver(batch);
          await stream.drained();
          continue;
        }
        if (stream.over) break;
        if (session.ended) {
          response.end();
          stream.end();
          break;
        }
        if (!watched.tail.attach(stream)) {
          // The log is known to hold more than was just read: read it.
          await new Promise((resolve) => setImmediate(resolve));
          continue;
        }
        if (watched.tail.preview.needsAnswer) void this.#askPreview(watched);
        await stream.detached(() => watched.tail.detach(stream));
        await stream.drained();
      }
    } catch (error) {
      if (!stream.over) {
        this.#logger.warn({ err: error, session: session.id }, 'a stream broke off');
        stream.fail('overloaded_error', 'The stream was interrupted; connect again with the last event id.');
      }
    } finally {
      watched.tail.release(stream);
      this.#streams.delete(stream);
      const left = (this.#perKey.get(key) ?? 1) - 1;
      if (left === 0) this.#perKey.delete(key);
      else this.#perKey.set(key, left);
      if (watched.tail.isUnused) this.#unwatch(session.id, watched);
    }
  }

  /** Closes the streams of a revoked credential and of those that hang on it. */
  revoke(credentialId: string): void {
    for (const stream of this.#streams) {
      if (stream.principal.id === credentialId || stream.principal.parentId === credentialId) {
        stream.fail('authentication_error', 'The API key is no longer valid.');
      }
    }
  }

  /** Ends every stream with an error frame, so that no client takes a drain for the end of a session. */
  drain(): void {
    this.#draining = true;
    for (const timer of this.#timers) clearInterval(timer);
    for (const stream of this.#streams)
      stream.fail('overloaded_error', 'The service is shutting down; connect again with the last event id.');
  }

  #watch(sessionId: string, workspaceId: string): WatchedSession {
    const known = this.#sessions.get(sessionId);
    if (known !== undefined) return known;
    const watched: WatchedSession = {
      tail: new SessionTail(sessionId),
      workspaceId,
      registrations: [],
      filling: false,
    };
    watched.registrations.push(
      this.#bus.subscribeLive<CommittedHint>(committedSubject(streamOf('session', sessionId)), (hint) =>
        this.#onHint(watched, hint),
      ),
      this.#bus.subscribeLive<LiveDelta>(deltaSubject(sessionId), (delta) => {
        watched.tail.delta(delta);
        if (watched.tail.wantsDeltas && watched.tail.isWatched && watched.tail.preview.needsAnswer)
          void this.#askPreview(watched);
      }),
    );
    this.#sessions.set(sessionId, watched);
    return watched;
  }

  #unwatch(sessionId: string, watched: WatchedSession): void {
    if (this.#sessions.get(sessionId) === watched) this.#sessions.delete(sessionId);
    for (const registration of watched.registrations) void registration.stop();
  }

  #onHint(watched: WatchedSession, hint: CommittedHint): void {
    if (hint.frames !== undefined) {
      const batch: SseBatch = {
        fromVersion: hint.fromVersion,
        toVersion: hint.toVersion,
        frames: hint.frames.map((frame) => ({
          version: frame.version,
          type: frame.type,
          bytes: Buffer.from(durableFrame(frame.version, frame.type, frame.data)),
        })),
      };
      if (watched.tail.deliver(batch)) {
        watched.tail.showPreviews();
        return;
      }
    }
    watched.tail.note(hint.toVersion);
    void this.#fill(watched);
  }

  /** Reads what the attached streams miss. */
  async #fill(watched: WatchedSession): Promise<void> {
    if (watched.filling) return;
    watched.filling = true;
    try {
      while (watched.tail.isBehind) {
        const batch = await this.#events.frames(
          watched.workspaceId,
          watched.tail.sessionId,
          watched.tail.deliveredVersion,
          PAGE_EVENTS,
        );
        if (batch === null) break;
        watched.tail.deliver(batch);
      }
      watched.tail.showPreviews();
    } catch (error) {
      this.#logger.warn({ err: error }, 'streams could not be filled; the next poll tries again');
    } finally {
      watched.filling = false;
    }
  }

  async #askPreview(watched: WatchedSession): Promise<void> {
    const epoch = watched.tail.preview.startAsking();
    let open: LiveDelta | null = null;
    try {
      open = (
        await this.#bus.request<OpenPreview>(openPreviewSubject(watched.tail.sessionId), null, { timeoutMs: 1_000 })
      ).open;
    } catch {
      // Nobody streams a message now, or nobody can say: previews begin with the next one.
    }
    if (watched.tail.preview.answered(epoch, open)) watched.tail.showPreviews();
  }

  async #head(sessionId: string): Promise<number> {
    const { rows } = await this.#pool.query<{ version: number }>('select version from streams where stream_id = $1', [
      streamOf('session', sessionId),
    ]);
    return rows[0]?.version ?? 0;
  }

  async #poll(): Promise<void> {
    // A worker that lost its session must not see the next one's calls, also where that was not heard.
    void this.#dropLapsed([...this.#streams].filter(({ principal }) => principal.bound !== null));
    const watched = [...this.#sessions.values()].filter(({ tail }) => tail.isWatched);
    if (watched.length === 0) return;
    try {
      const { rows } = await this.#pool.query<{ stream_id: string; version: number }>(
        'select stream_id, version from streams where stream_id = any ($1)',
        [watched.map(({ tail }) => streamOf('session', tail.sessionId))],
      );
      const versions = new Map(rows.map((row) => [row.stream_id, row.version]));
      for (const one of watched) {
        one.tail.note(versions.get(streamOf('session', one.tail.sessionId)) ?? 0);
        if (one.tail.isBehind) void this.#fill(one);
      }
    } catch (error) {
      this.#logger.debug({ err: error }, 'no poll');
    }
  }

  /** Also finds what the bus lost: a revocation that was not heard, and credentials that ran out. */
  async #ping(): Promise<void> {
    for (const stream of this.#streams) stream.ping();
    await this.#dropLapsed([...this.#streams]);
  }

  async #dropLapsed(streams: readonly EventStream[]): Promise<void> {
    if (streams.length === 0) return;
    try {
      const ids = new Set(streams.map(({ principal }) => principal.id));
      for (const id of await this.#authenticator.lapsed([...ids])) this.revoke(id);
    } catch (error) {
      this.#logger.debug({ err: error }, 'credentials could not be checked');
    }
  }
}

/** One client's stream. */
class EventStream implements TailedStream {
  cursor: number;
  readonly previews: Previews;
  readonly principal: Principal;
  previewId: string | null = null;
  previewChars = 0;
  over = false;
  readonly #response: ServerResponse;
  #onDetach: () => void = () => undefined;
  #onDrain: () => void = () => undefined;

  constructor(response: ServerResponse, principal: Principal, previews: Previews, cursor: number) {
    this.#response = response;
    this.principal = principal;
    this.previews = previews;
    this.cursor = cursor;
    response.on('drain', () => this.#onDrain());
  }

  deliver(batch: SseBatch): void {
    if (this.over) return;
    const fresh = batch.frames.filter((frame) => frame.version > this.cursor);
    this.cursor = Math.max(this.cursor, batch.toVersion);
    const last = fresh[fresh.length - 1];
    if (last === undefined) return;
    this.#response.write(fresh.length === 1 ? last.bytes : Buffer.concat(fresh.map((frame) => frame.bytes)));
    if (fresh.some((frame) => ENDS.has(frame.type))) {
      this.#response.end();
      this.end();
    } else if (this.#response.writableLength > SLOW_BYTES) this.#onDetach();
  }

  writePreview(bytes: Buffer): boolean {
    if (this.over || this.#response.writableLength > SLOW_BYTES / 4) return false;
    this.#response.write(bytes);
    return true;
  }

  ping(): void {
    if (!this.over && this.#response.writableLength === 0) this.#response.write(PING_FRAME);
  }

  /** Waits until the stream leaves the live end: because it is slow or over. */
  detached(leave: () => void): Promise<void> {
    if (this.over) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onDetach = () => {
        this.#onDetach = () => undefined;
        leave();
        resolve();
      };
      if (this.#response.writableLength > SLOW_BYTES) this.#onDetach();
    });
  }

  /** Waits until the client has taken most of what was written. */
  async drained(): Promise<void> {
    while (!this.over && this.#response.writableNeedDrain) {
      await new Promise<void>((resolve) => {
        this.#onDrain = resolve;
      });
    }
  }

  fail(type: string, message: string): void {
    if (this.over) return;
    this.#response.write(errorFrame(type, message));
    this.#response.end();
    this.end();
  }

  end(): void {
    if (this.over) return;
    this.over = true;
    this.#onDetach();
    this.#onDrain();
  }
}
