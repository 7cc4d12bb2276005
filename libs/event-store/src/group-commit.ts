import { AppError, eventVersions, type StoredEvent } from '@holdfast/contracts';
import type pg from 'pg';
import { type AppendRequest, type AppendResult, refusal, type StreamAppend } from './append.ts';
import { beginForks } from './fork.ts';
import { errorCode, isConnectionLoss, logUnavailable } from './pool.ts';
import { type Projection, project } from './projection.ts';
import { step } from './step.ts';
import { storableJson } from './storable.ts';

const MAX_BATCH_REQUESTS = 256;
const MAX_BATCH_CHARS = 1 << 20;
const DEFAULT_PATIENCE_MS = 5_000;
const RETRY_MS = 50;

interface PreparedEvent {
  /** As every reader will have it. */
  readonly event: StoredEvent;
  /** As it is stored: perhaps an older version. */
  readonly schemaVersion: number;
  readonly data: string;
  readonly metadata: string;
}
interface Waiting {
  readonly request: AppendRequest;
  readonly prepared: readonly (readonly PreparedEvent[])[];
  readonly chars: number;
  readonly deadlineAtMs: number;
  readonly resolve: (result: AppendResult) => void;
  readonly reject: (error: unknown) => void;
}
type Outcome = { readonly result: AppendResult } | { readonly refused: AppError };

export interface GroupCommitOptions {
  readonly pool: pg.Pool;
  readonly projections: readonly Projection<never>[];
  readonly onCommitted: ((events: readonly StoredEvent[]) => void) | undefined;
  readonly readable: (type: string) => number;
  readonly stored: (ids: readonly string[]) => Promise<StoredEvent[]>;
}

const APPEND = `select verdicts, versions, generations, recorded_at, positions from log_append(
  $1::integer[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::text[], $7::integer[], $8::boolean[], $9::integer[],
  $10::integer[], $11::integer[], $12::text[], $13::text[], $14::smallint[], $15::text[], $16::text[])`;

interface AppendRow {
  verdicts: string[];
  versions: number[];
  generations: number[];
  recorded_at: Date;
  positions: string[] | null;
}

/**
 * Group commit: an append is flushed at once when no commit is in flight, and gathered while one is. A batch holds one
 * append per stream. After any failure of a batch each of its appends is tried alone, so that one never fails another.
 */
export class GroupCommit {
  readonly #options: GroupCommitOptions;
  #waiting: Waiting[] = [];
  #inFlight: Promise<void> | null = null;
  #closed = false;

  constructor(options: GroupCommitOptions) {
    this.#options = options;
  }

  append(request: AppendRequest): Promise<AppendResult> {
    if (this.#closed)
      return Promise.reject(new AppError('unavailable', 'log.closed', 'The event log is shutting down.'));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ ...prepare(request, this.#options.readable), resolve, reject });
      this.#flush();
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    while (this.#inFlight !== null) await this.#inFlight;
  }

  #flush(): void {
    if (this.#inFlight !== null || this.#waiting.length === 0) return;
    this.#inFlight = this.#commit(this.#gather()).finally(() => {
      this.#inFlight = null;
      this.#flush();
    });
  }

  #gather(): Waiting[] {
    const batch: Waiting[] = [];
    const later: Waiting[] = [];
    const streams = new Set<string>();
    let chars = 0;
    for (const waiting of this.#waiting) {
      const fits =
        batch.length === 0 || (batch.length < MAX_BATCH_REQUESTS && chars + waiting.chars <= MAX_BATCH_CHARS);
      if (!fits || waiting.request.appends.some(({ streamId }) => streams.has(streamId))) {
        // What waits behind it in the same stream must not overtake it.
        for (const { streamId } of waiting.request.appends) streams.add(streamId);
        later.push(waiting);
        continue;
      }
      for (const { streamId } of waiting.request.appends) streams.add(streamId);
      chars += waiting.chars;
      batch.push(waiting);
    }
    this.#waiting = later;
    return batch;
  }

  /** Never rejects: every waiting append is settled one way or the other. */
  async #commit(batch: readonly Waiting[]): Promise<void> {
    const now = Date.now();
    const due = batch.filter((waiting) => {
      if (waiting.deadlineAtMs > now) return true;
      waiting.reject(tooLate());
      return false;
    });
    if (due.length === 0) return;
    try {
      this.#settle(due, await this.#transaction(due));
    } catch (error) {
      // What one append of a batch did wrong says nothing of the others; a lost connection may have stored them all (L2).
      const shared = due.length === 1 || isConnectionLoss(error) ? error : null;
      for (const waiting of due) await this.#alone(waiting, shared);
    }
  }

  /** One append by itself, until it is stored, refused, or its deadline has passed. */
  async #alone(waiting: Waiting, firstError: unknown): Promise<void> {
    let error = firstError;
    let unsure = false;
    for (let attempt = 0; ; attempt++) {
      try {
        unsure ||= isConnectionLoss(error) || isDuplicateEvent(error);
        if (unsure) {
          // The commit may have happened although its answer was lost (L2).
          const found = await this.#lookUp(waiting);
          if (found !== null) return this.#settle([waiting], [{ result: found }]);
        }
        if (isDuplicateEvent(error)) {
          return waiting.reject(
            new AppError('defect', 'log.event-id-taken', 'An event id is in use by another append.'),
          );
        }
        if (error !== null && !isConnectionLoss(error) && !isTransient(error)) return waiting.reject(asRefusal(error));
        if (Date.now() >= waiting.deadlineAtMs)
          return waiting.reject(error === null ? tooLate() : logUnavailable(error));
        const outcomes = await this.#transaction([waiting]);
        // A lost connection's commit may have ended only now, and be the reason of the refusal.
        const late = unsure && outcomes.some((outcome) => 'refused' in outcome) ? await this.#lookUp(waiting) : null;
        return this.#settle([waiting], late === null ? outcomes : [{ result: late }]);
      } catch (caught) {
        error = caught;
        if (!isConnectionLoss(error) && !isTransient(error)) continue;
        if (Date.now() + RETRY_MS >= waiting.deadlineAtMs) return waiting.reject(logUnavailable(error));
        await new Promise((resolve) => setTimeout(resolve, Math.min(RETRY_MS * 2 ** Math.min(attempt, 3), 400)));
      }
    }
  }

  async #lookUp(waiting: Waiting): Promise<AppendResult | null> {
    const ids = waiting.request.appends.flatMap((append) => append.events.map((event) => event.id));
    if (ids.length === 0) return null;
    const found = await this.#options.stored(ids);
    if (found.length !== ids.length) return null;
    const streams = waiting.request.appends.map(({ streamId }) => found.filter((event) => event.streamId === streamId));
    if (streams.some((events, i) => events.length !== waiting.request.appends[i]?.events.length)) return null;
    return { streams: waiting.request.appends.map(({ streamId }, i) => resultOf(streamId, streams[i] ?? [], 0)) };
  }

  /** Whether anything else commits together with this append. */
  #hasCompany({ appends, statements = [] }: AppendRequest): boolean {
    const { projections } = this.#options;
    const projected = (streamId: string): boolean => projections.some((each) => streamId.startsWith(each.streamPrefix));
    return statements.length > 0 || appends.some(({ streamId, forkOf }) => projected(streamId) || forkOf !== undefined);
  }

  async #transaction(batch: readonly Waiting[]): Promise<Outcome[]> {
    const { pool, projections } = this.#options;
    const client = await pool.connect();
    let failed = true;
    try {
      // What commits with nothing else needs no transaction around its one statement.
      const alone = !batch.some(({ request }) => this.#hasCompany(request));
      step.publish('append.beginning');
      const begun = alone ? null : client.query('begin');
      const forks = batch.flatMap(({ request }) => request.appends).filter(({ forkOf }) => forkOf !== undefined);
      if (forks.length > 0) await beginForks(client, forks);
      const appended = client.query<AppendRow>({ name: 'log-append', text: APPEND, values: batchArrays(batch) });
      const [, { rows }] = await Promise.all([begun, appended]);
      const row = rows[0];
      if (row === undefined) throw new AppError('defect', 'log.no-answer', 'log_append answered nothing.');
      const outcomes = outcomesOf(batch, row);
      if (alone) {
        step.publish('append.committed');
        failed = false;
        return outcomes;
      }
      for (const [i, outcome] of outcomes.entries()) {
        if ('refused' in outcome) continue;
        for (const statement of batch[i]?.request.statements ?? []) {
          const { rowCount } = await client.query(statement.text, [...statement.values]);
          if (statement.rows !== undefined && rowCount !== statement.rows) {
            throw new AppError('rejected', 'log.statement-conflict', 'What the command relied on has changed.', {
              details: { constraint: 'row-count' },
            });
          }
        }
      }
      const streams = outcomes.flatMap((outcome) =>
        'result' in outcome ? outcome.result.streams.map((stream) => stream.events) : [],
      );
      const stored = streams.filter((events) => events.length > 0);
      for (const projection of projections) await project(client, projection, stored);
      step.publish('append.written');
      await client.query('commit');
      step.publish('append.committed');
      failed = false;
      return outcomes;
    } finally {
      // A client with an open or broken transaction is not used again.
      client.release(failed);
    }
  }

  #settle(batch: readonly Waiting[], outcomes: readonly Outcome[]): void {
    for (const [i, waiting] of batch.entries()) {
      const outcome = outcomes[i];
      if (outcome === undefined || 'refused' in outcome) {
        waiting.reject(outcome?.refused ?? new AppError('defect', 'log.no-outcome', 'An append got no outcome.'));
        continue;
      }
      for (const stream of outcome.result.streams) {
        if (stream.events.length > 0) this.#options.onCommitted?.(stream.events);
      }
      waiting.resolve(outcome.result);
    }
  }
}

function tooLate(): AppError {
  return new AppError('unavailable', 'log.deadline', 'The append could not be begun before its deadline.');
}

function prepare(
  request: AppendRequest,
  readable: (type: string) => number,
): Pick<Waiting, 'request' | 'prepared' | 'chars' | 'deadlineAtMs'> {
  let chars = 0;
  const prepared = request.appends.map((append) =>
    append.events.map((event): PreparedEvent => {
      const { type, data: newest } = event;
      const schemaVersion = eventVersions.newest(type);
      const stored =
        schemaVersion === 1
          ? { type, schemaVersion, data: newest }
          : eventVersions.downcast({ type, schemaVersion, data: newest }, readable(type));
      const data = storableJson(stored.data);
      const metadata = storableJson(event.metadata ?? {});
      chars += data.text.length + metadata.text.length;
      return {
        data: data.text,
        metadata: metadata.text,
        schemaVersion: stored.schemaVersion,
        event: eventVersions.upcast({
          position: '0',
          id: event.id,
          workspaceId: append.workspaceId,
          streamId: append.streamId,
          version: 0,
          type,
          schemaVersion: stored.schemaVersion,
          data: data.value,
          metadata: metadata.value,
          recordedAt: '',
        }),
      };
    }),
  );
  return { request, prepared, chars, deadlineAtMs: request.deadlineAtMs ?? Date.now() + DEFAULT_PATIENCE_MS };
}

function batchArrays(batch: readonly Waiting[]): unknown[] {
  const appends: StreamAppend[] = [];
  const requests: number[] = [];
  for (const [i, waiting] of batch.entries()) {
    for (const append of waiting.request.appends) {
      appends.push(append);
      requests.push(i);
    }
  }
  const events = batch.flatMap((waiting) => waiting.prepared.flat());
  return [
    requests,
    appends.map((append) => append.streamId),
    appends.map((append) => append.workspaceId),
    appends.map((append) => append.expectedVersion ?? null),
    appends.map((append) => append.generation ?? null),
    appends.map((append) => append.lease?.owner ?? null),
    appends.map((append) => append.lease?.ttlMs ?? null),
    appends.map((append) => append.releaseLease ?? false),
    appends.map((append) => append.events.length),
    // Of each event the append that it belongs to and its place in it; SQL counts from 1.
    appends.flatMap((append, n) => append.events.map(() => n + 1)),
    appends.flatMap((append) => append.events.map((_, n) => n + 1)),
    events.map(({ event }) => event.id),
    events.map(({ event }) => event.type),
    events.map(({ schemaVersion }) => schemaVersion),
    events.map(({ data }) => data),
    events.map(({ metadata }) => metadata),
  ];
}

function outcomesOf(batch: readonly Waiting[], row: AppendRow): Outcome[] {
  const recordedAt = row.recorded_at.toISOString();
  let at = 0;
  let position = 0;
  return batch.map((waiting): Outcome => {
    let refused: AppError | undefined;
    const streams: AppendResult['streams'][number][] = [];
    for (const [i, append] of waiting.request.appends.entries()) {
      const verdict = row.verdicts[at] ?? 'no-verdict';
      const version = row.versions[at] ?? 0;
      const generation = row.generations[at] ?? 0;
      at += 1;
      if (verdict !== 'ok') {
        if (verdict !== 'neighbour') refused = refusal(verdict, append.streamId, version, generation);
        continue;
      }
      const events = (waiting.prepared[i] ?? []).map(
        ({ event }, n): StoredEvent => ({
          ...event,
          version: version + n + 1,
          recordedAt,
          position: row.positions?.[position++] ?? '0',
        }),
      );
      streams.push(resultOf(append.streamId, events, version));
    }
    return refused === undefined ? { result: { streams } } : { refused };
  });
}

function resultOf(
  streamId: string,
  events: readonly StoredEvent[],
  versionBefore: number,
): AppendResult['streams'][number] {
  const first = events[0];
  const last = events[events.length - 1];
  return {
    streamId,
    fromVersion: (first?.version ?? versionBefore + 1) - 1,
    toVersion: last?.version ?? versionBefore,
    events,
  };
}

function constraintOf(error: unknown): string {
  return typeof error === 'object' && error !== null && 'constraint' in error && typeof error.constraint === 'string'
    ? error.constraint
    : '';
}
function isDuplicateEvent(error: unknown): boolean {
  return errorCode(error) === '23505' && constraintOf(error) === 'events_id_key';
}
/** Deadlock or serialization failure: nothing was stored and trying again can help. */
function isTransient(error: unknown): boolean {
  return ['40P01', '40001', '55P03'].includes(errorCode(error));
}
function asRefusal(error: unknown): unknown {
  if (errorCode(error).startsWith('23')) {
    return new AppError('rejected', 'log.statement-conflict', 'The command contradicts what is stored.', {
      details: { constraint: constraintOf(error) },
      cause: error,
    });
  }
  return error;
}
