import { setTimeout as sleep } from 'node:timers/promises';
import {
  AppError,
  type Command,
  type HeartbeatWorkCommand,
  isAppError,
  LIMITS,
  MAX_LEASE_SECONDS,
  NO_HEARTBEAT,
  newId,
  type PollWorkCommand,
  patchMetadata,
  type StopWorkCommand,
  type UpdateWorkCommand,
  WORK_TOKEN_TTL_MS,
  type Work,
  type WorkCommand,
  type WorkHeartbeat,
  type WorkRow,
  type WorkState,
  workResourceOf,
} from '@holdfast/contracts';
import type { CompanionStatement } from '@holdfast/event-store';
import type pg from 'pg';
import type { Logger } from 'pino';
import type { Catalogue } from '../catalogue/catalogue.ts';
import type { SessionCommands } from '../session/session.commands.ts';
import { workerCommand } from '../session/session.store.ts';

/** How often a poll that waits looks again. Its worker sleeps 1 to 3 s between polls, so hints would gain nothing. */
const LOOK_MS = 200;
const SWEEP_MS = 500;
/** What was handed out and never acknowledged is taken back after so long, also where nobody polls. */
const UNACKNOWLEDGED_MS = 60_000;
/** Workers that have not polled for so long are forgotten. */
const POLLER_TTL_MS = 3_600_000;

type Row = WorkRow & {
  readonly workspace_id: string;
  readonly worker_id: string | null;
  readonly token_id: string;
  readonly ttl_seconds: number | null;
  readonly previous_heartbeat_at: Date | null;
};

/**
 * Work items: leases of environment workers on sessions. The rows are the lease, the session's log says who has it; both
 * change in one commit, so that a call is never open to two workers. An item whose worker is silent for the length of its
 * lease is ended here, by whichever replica looks first.
 */
export class WorkCommands {
  readonly #pool: pg.Pool;
  readonly #catalogue: Catalogue;
  readonly #sessions: SessionCommands;
  readonly #onRevoked: (credentialId: string) => void;
  readonly #leaseMs: number;
  readonly #owner: string;
  readonly #logger: Logger;
  readonly #stopping = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(parts: {
    pool: pg.Pool;
    catalogue: Catalogue;
    sessions: SessionCommands;
    /** Told of tokens that open nothing any more. */
    onRevoked: (credentialId: string) => void;
    leaseMs: number;
    owner: string;
    logger: Logger;
  }) {
    this.#pool = parts.pool;
    this.#catalogue = parts.catalogue;
    this.#sessions = parts.sessions;
    this.#onRevoked = parts.onRevoked;
    this.#leaseMs = parts.leaseMs;
    this.#owner = parts.owner;
    this.#logger = parts.logger;
  }

  /** Begins to look for leases that ran out. */
  listen(): void {
    this.#loop = this.#sweepLoop();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#loop;
  }

  /** Hands the session that waits longest to a worker; null when none waits within `block_ms`. */
  async poll(environmentId: string, command: Command<PollWorkCommand>, deadlineAtMs: number): Promise<Work | null> {
    const { workspaceId, body } = command;
    const environment = await this.#catalogue.environment(workspaceId, environmentId);
    if (environment.config.type !== 'self_hosted') {
      throw new AppError(
        'invalid',
        'environment.not-self-hosted',
        `The environment ${environmentId} is not self_hosted; the platform runs its tools.`,
      );
    }
    if (command.again === true) {
      const first = await this.#find('token_id = $1', [body.token.id]);
      if (first !== null) return workResourceOf(first);
    }
    await this.#notePoll(environmentId, body);
    const endsAtMs = Math.min(deadlineAtMs, Date.now() + body.block_ms);
    for (;;) {
      const claimed = await this.#claim(environmentId, workspaceId, body);
      if (claimed !== null) return workResourceOf(claimed);
      if (Date.now() + LOOK_MS > endsAtMs || this.#stopping.signal.aborted) return null;
      await sleep(LOOK_MS);
    }
  }

  /** The worker has the session from now on. Safe to repeat. @throws AppError `work.not-found`, `work.stopped` */
  async acknowledge(environmentId: string, command: Command<WorkCommand>): Promise<Work> {
    const row = await this.#need(environmentId, command);
    if (row.state === 'queued') {
      const taking: CompanionStatement = {
        text: `update work_items set state = 'starting', acknowledged_at = clock_timestamp(), ttl_seconds = $2::integer,
                 lease_expires_at = clock_timestamp() + $2::integer * interval '1 second' where id = $1 and state = 'queued'`,
        values: [row.id, this.#ttlSeconds(null)],
        rows: 1,
      };
      await this.#sessions
        .attachWorker(row.session_id, command, { workId: row.id, workerId: row.worker_id }, taking)
        .catch(ignoreRace);
    }
    const now = await this.#need(environmentId, command);
    if (now.state === 'stopped')
      throw new AppError('rejected', 'work.stopped', `The work item ${now.id} ended; poll for another.`);
    return workResourceOf(now);
  }

  /**
   * Keeps the lease. Compared with the newest heartbeat unless the item is ending. @throws AppError
   * `work.lease-lost` (kind `precondition`), `work.not-found`, `work.not-acknowledged`
   */
  async heartbeat(environmentId: string, command: Command<HeartbeatWorkCommand>): Promise<WorkHeartbeat> {
    const { expected, ttl_seconds: asked } = command.body;
    const before = await this.#need(environmentId, command);
    const ttlSeconds = this.#ttlSeconds(asked ?? before.ttl_seconds);
    const { rows } = await this.#pool.query<Row>(
      `with beat as (
         update work_items set state = 'active', started_at = coalesce(started_at, clock_timestamp()),
           previous_heartbeat_at = latest_heartbeat_at, latest_heartbeat_at = date_trunc('milliseconds', clock_timestamp()),
           ttl_seconds = $2::integer, lease_expires_at = clock_timestamp() + $2::integer * interval '1 second'
         where id = $1 and state in ('starting', 'active') and ($3::text is null
           or case when $3 = '${NO_HEARTBEAT}' then latest_heartbeat_at is null else latest_heartbeat_at = $3::timestamptz end)
         returning *
       ), kept as (
         update api_keys k set expires_at = clock_timestamp() + $4 * interval '1 millisecond' from beat where k.id = beat.token_id
       ) select * from beat`,
      [before.id, ttlSeconds, expected, WORK_TOKEN_TTL_MS],
    );
    const beaten = rows[0];
    if (beaten !== undefined) return heartbeatOf(beaten, true);
    const now = await this.#need(environmentId, command);
    if (now.state === 'stopping' || now.state === 'stopped') return heartbeatOf(now, false);
    if (now.state === 'queued')
      throw new AppError('rejected', 'work.not-acknowledged', `Acknowledge the work item ${now.id} first.`);
    // The first attempt of this request was done, and its answer was lost.
    const previous = now.previous_heartbeat_at?.toISOString() ?? NO_HEARTBEAT;
    if (command.body.repeated && now.latest_heartbeat_at !== null && isSameBeat(expected, previous))
      return heartbeatOf(now, true);
    throw leaseLost(now);
  }

  /** Ends an item, or asks its worker to end it. An item that ended stays as it is. */
  async end(environmentId: string, command: Command<StopWorkCommand>): Promise<Work> {
    const row = await this.#need(environmentId, command);
    if (command.body.now || row.state === 'queued') {
      if (row.state !== 'stopped') await this.#end(row, command, 'stopped').catch(ignoreRace);
    } else {
      await this.#pool.query(
        `update work_items set state = 'stopping', stop_requested_at = clock_timestamp()
         where id = $1 and state in ('starting', 'active')`,
        [row.id],
      );
    }
    return workResourceOf(await this.#need(environmentId, command));
  }

  async update(environmentId: string, command: Command<UpdateWorkCommand>): Promise<Work> {
    for (;;) {
      const row = await this.#need(environmentId, command);
      const metadata = patchMetadata(row.metadata, command.body.metadata);
      if (Object.keys(metadata).length > LIMITS.metadataPairs) {
        throw new AppError('invalid', 'work.metadata', `metadata must have at most ${LIMITS.metadataPairs} pairs.`, {
          details: { errorCode: 'invalid_metadata' },
        });
      }
      const { rowCount } = await this.#pool.query(
        'update work_items set metadata = $2 where id = $1 and metadata = $3::jsonb',
        [row.id, JSON.stringify(metadata), JSON.stringify(row.metadata)],
      );
      if (rowCount === 1) return workResourceOf({ ...row, metadata });
    }
  }

  /** Forgets workers that left, and tokens that ran out. */
  async clean(): Promise<void> {
    await this.#pool.query(
      `delete from work_pollers where polled_at < clock_timestamp() - $1 * interval '1 millisecond'`,
      [POLLER_TTL_MS],
    );
    await this.#pool.query(
      `delete from api_keys where kind = 'work_token' and expires_at < clock_timestamp() - interval '1 day'`,
    );
  }

  #ttlSeconds(asked: number | null): number {
    return Math.min(MAX_LEASE_SECONDS, Math.max(1, asked ?? Math.ceil(this.#leaseMs / 1_000)));
  }

  /** Remembers who polls, and takes back what was handed out and never acknowledged. */
  async #notePoll(environmentId: string, body: PollWorkCommand): Promise<void> {
    await this.#pool.query(
      `with poller as (
         insert into work_pollers (environment_id, worker_id, polled_at) select $1, $2, clock_timestamp() where $2::text is not null
         on conflict (environment_id, worker_id) do update set polled_at = excluded.polled_at
       )
       update work_items set state = 'stopped', stopped_at = clock_timestamp()
       where environment_id = $1 and state = 'queued' and created_at < clock_timestamp() - $3 * interval '1 millisecond'`,
      [environmentId, body.worker_id, body.reclaim_older_than_ms],
    );
  }

  async #claim(environmentId: string, workspaceId: string, body: PollWorkCommand): Promise<Row | null> {
    for (;;) {
      const { token } = body;
      const { rows } = await this.#pool.query<Row & { readonly wanted: boolean }>(
        `with wanted as (
           select s.id from sessions s where s.environment_id = $1 and s.workspace_id = $2 and s.needs_worker
             and not exists (select 1 from work_items w where w.session_id = s.id and w.state <> 'stopped')
           order by s.view->'worker'->>'since' limit 1
         ), made as (
           insert into work_items (id, workspace_id, environment_id, session_id, state, worker_id, token_id, lease_expires_at)
           select $3, $2, $1, wanted.id, 'queued', $4, $5, clock_timestamp() + $10 * interval '1 millisecond' from wanted
           on conflict (session_id) where state <> 'stopped' do nothing returning *
         ), token as (
           insert into api_keys (id, workspace_id, name, kind, hash, hint, parent_id, environment_id, work_id, expires_at)
           select $5, $2, 'work token', 'work_token', decode($6, 'hex'), $7, $8, $1, made.id,
             clock_timestamp() + $9 * interval '1 millisecond' from made
         ) select true as wanted, made.* from wanted left join made on true`,
        [
          environmentId,
          workspaceId,
          newId('work'),
          body.worker_id,
          token.id,
          token.hash,
          token.hint,
          token.parent_id,
          WORK_TOKEN_TTL_MS,
          UNACKNOWLEDGED_MS,
        ],
      );
      const row = rows[0];
      if (row === undefined) return null;
      // Null where another worker took the same session in this moment: there may be a next one.
      if (row.id !== null) return row;
    }
  }

  async #end(row: Row, command: Command, reason: 'stopped' | 'lost'): Promise<void> {
    const ending: CompanionStatement = {
      text: `update work_items set state = 'stopped', stopped_at = clock_timestamp() where id = $1 and state <> 'stopped'
             ${reason === 'lost' ? 'and lease_expires_at < clock_timestamp()' : ''}`,
      values: [row.id],
      rows: 1,
    };
    await this.#sessions.detachWorker(row.session_id, command, { workId: row.id, reason }, ending);
    this.#onRevoked(row.token_id);
  }

  async #sweepLoop(): Promise<void> {
    while (!this.#stopping.signal.aborted) {
      const pause = SWEEP_MS * (0.75 + Math.random() / 2);
      await sleep(pause, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
      try {
        const { rows } = await this.#pool.query<Row>(
          `select * from work_items where state <> 'stopped' and lease_expires_at < clock_timestamp() limit 64`,
        );
        for (const row of rows) {
          const command: Command = {
            commandId: workerCommand(),
            workspaceId: row.workspace_id,
            actor: { type: 'service', id: this.#owner },
            idempotency: null,
            traceparent: null,
            body: {},
          };
          await this.#end(row, command, 'lost').catch(ignoreRace);
          this.#logger.info({ work: row.id, session: row.session_id }, 'a worker was not heard from; its work ended');
        }
      } catch (error) {
        this.#logger.warn({ err: error }, 'lost workers could not be looked for');
      }
    }
  }

  async #need(environmentId: string, command: Command<WorkCommand>): Promise<Row> {
    const { work_id: id } = command.body;
    const row = await this.#find('id = $1 and environment_id = $2 and workspace_id = $3', [
      id,
      environmentId,
      command.workspaceId,
    ]);
    if (row === null) throw new AppError('not-found', 'work.not-found', `There is no work item ${id}.`);
    return row;
  }

  async #find(where: string, values: readonly unknown[]): Promise<Row | null> {
    const { rows } = await this.#pool.query<Row>(`select * from work_items where ${where}`, [...values]);
    return rows[0] ?? null;
  }
}

function isSameBeat(expected: string | null, known: string): boolean {
  if (expected === null || expected === NO_HEARTBEAT || known === NO_HEARTBEAT) return expected === known;
  return Date.parse(expected) === Date.parse(known);
}

/** Somebody else ended or took the item in this moment: what it is now is read again. */
function ignoreRace(error: unknown): void {
  if (!isAppError(error) || error.code !== 'log.statement-conflict') throw error;
}

function leaseOf(row: Row): { state: WorkState; ttl_seconds: number } {
  return { state: row.state, ttl_seconds: row.ttl_seconds ?? 0 };
}

function heartbeatOf(row: Row, extended: boolean): WorkHeartbeat {
  return {
    type: 'work_heartbeat',
    last_heartbeat: row.latest_heartbeat_at?.toISOString() ?? '',
    lease_extended: extended,
    ...leaseOf(row),
  };
}

function leaseLost(row: Row): AppError {
  return new AppError(
    'precondition',
    'work.lease-lost',
    `expected_last_heartbeat is not the newest heartbeat of ${row.id}: another worker may have it.`,
    {
      details: {
        errorCode: 'heartbeat_precondition_failed',
        current_state: {
          last_heartbeat: row.latest_heartbeat_at?.toISOString() ?? null,
          lease_extended: false,
          ...leaseOf(row),
        },
      },
    },
  );
}
