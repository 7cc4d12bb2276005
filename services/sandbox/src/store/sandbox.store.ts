import { createHash } from 'node:crypto';
import { AppError, type EnsureSandboxBody, newId, type SandboxReason, streamOf } from '@holdfast/contracts';
import { type CompanionStatement, derivedEventId, type EventLog } from '@holdfast/event-store';
import type pg from 'pg';

export const OWNER_TTL_MS = 6_000;

/** Postgres' clock as the wire writes times. */
const NOW_TEXT = `to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;
/** Ends whose reason stays to be seen. */
const FAULTS: readonly string[] = ['sandbox.failed', 'sandbox.lost'];

/** A sandbox as it is recorded. */
export interface SandboxRow {
  readonly id: string;
  readonly serial: number;
  readonly workspace_id: string;
  readonly session_id: string;
  readonly environment_id: string;
  readonly context_key: string | null;
  readonly environment: EnsureSandboxBody['environment'];
  readonly status: 'starting' | 'ready' | 'suspended' | 'failed' | 'destroyed';
  readonly incarnation: number;
  readonly journal_id: string | null;
  readonly token_hash: string | null;
  readonly public_key: string | null;
  readonly provider: string;
  /** On a cluster: its claim, and the pod of its present or last incarnation. */
  readonly namespace: string | null;
  readonly claim: string | null;
  readonly pod: string | null;
  readonly pod_uid: string | null;
  readonly node: string | null;
  readonly launch: Launch | null;
  readonly reason: {
    readonly code: SandboxReason['code'] | null;
    readonly message: string;
    readonly since: string;
  } | null;
  /** By Postgres' clock when it was read: since somebody asked for it last, which is noted now and then, in milliseconds. */
  readonly unused_ms: number | null;
  /** Since its incarnation became ready, likewise; null while it is not. */
  readonly lived_ms: number | null;
  readonly updated_at: Date;
}
export type Launch = 'warm' | 'cold' | 'resumed';

const sinceMs = (column: string): string => `(extract(epoch from clock_timestamp() - ${column}) * 1000)::float8`;
const COLUMNS = `id, serial, workspace_id, session_id, environment_id, context_key, environment, status, incarnation, journal_id, token_hash, public_key, provider, namespace, claim, pod, pod_uid, node, launch, reason, ${sinceMs('used_at')} as unused_ms, ${sinceMs('ready_at')} as lived_ms, updated_at`;

/** Names a context where names must be short and tell nothing of the key. */
export function contextIdOf(row: Pick<SandboxRow, 'workspace_id' | 'environment_id' | 'context_key'>): string | null {
  if (row.context_key === null) return null;
  return createHash('sha256')
    .update(JSON.stringify([row.workspace_id, row.environment_id, row.context_key]))
    .digest('hex')
    .slice(0, 32);
}

/** Rows of sandboxes and their events, written together. */
export class SandboxStore {
  readonly #pool: pg.Pool;
  readonly #log: EventLog;
  readonly #owner: string;
  /** The same replica after a restart: its old lease is its own. */
  readonly #instance: string;

  constructor(pool: pg.Pool, log: EventLog, instance: string, owner: string) {
    this.#pool = pool;
    this.#log = log;
    this.#instance = instance;
    this.#owner = owner;
  }

  async ofSession(sessionId: string): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where session_id = $1 and status <> 'destroyed'`,
      [sessionId],
    );
    return rows[0] ?? null;
  }

  /**
   * The session's sandbox, recorded on its first tool call; of two at once one wins. One that is made is this replica's to
   * serve, and with a `claim` its first incarnation begins on that. `made` is false for one that was there.
   * @throws AppError `sandbox.session-over` for a session that has ended, also when that comes at the same time: a request
   * and an end both write first and then look for the other
   */
  async request(
    body: EnsureSandboxBody,
    provider: string,
    claim: ((id: string) => { namespace: string; claim: string }) | null = null,
  ): Promise<{ row: SandboxRow; made: boolean }> {
    const known = await this.#lookFor(body.sessionId);
    if (known.row !== null) return { row: known.row, made: false };
    if (known.over) throw sessionOver();
    const id = newId('sandbox');
    const on = claim?.(id) ?? null;
    try {
      await this.record(
        { id, workspace_id: body.workspaceId },
        'sandbox.requested',
        { session_id: body.sessionId, environment_id: body.environmentId, context_key: body.contextKey, provider },
        [
          {
            text: `insert into sandboxes (id, workspace_id, session_id, environment_id, context_key, environment, status, provider, used_at,
                     owner, owner_expires_at, incarnation, namespace, claim, claimed_at)
                   values ($1, $2, $3, $4, $5, $6, 'starting', $7, clock_timestamp(),
                     $8, clock_timestamp() + $9 * interval '1 millisecond', $10, $11, $12::text, case when $12::text is not null then clock_timestamp() end)`,
            values: [
              id,
              body.workspaceId,
              body.sessionId,
              body.environmentId,
              body.contextKey,
              JSON.stringify(body.environment),
              provider,
              this.#owner,
              OWNER_TTL_MS,
              on === null ? 0 : 1,
              on?.namespace ?? null,
              on?.claim ?? null,
            ],
          },
        ],
      );
    } catch (error) {
      const raced = await this.ofSession(body.sessionId);
      if (raced === null) throw error;
      return { row: raced, made: false };
    }
    const { row, over } = await this.#lookFor(body.sessionId);
    if (over) {
      if (row?.id === id) await this.mark(row, 'destroyed', 'sandbox.destroyed', { reason: 'the session had ended' });
      throw sessionOver();
    }
    if (row === null) throw new Error('a sandbox vanished while it was made');
    return { row, made: row.id === id };
  }

  /** Lets a session have no new sandbox. One that it has is to be destroyed after this. */
  async endSession(sessionId: string, workspaceId: string): Promise<void> {
    await this.#pool.query(`delete from ended_sessions where ended_at < clock_timestamp() - interval '1 day'`);
    await this.#pool.query(
      'insert into ended_sessions (session_id, workspace_id) values ($1, $2) on conflict do nothing',
      [sessionId, workspaceId],
    );
  }

  async #lookFor(sessionId: string): Promise<{ row: SandboxRow | null; over: boolean }> {
    const { rows } = await this.#pool.query<Omit<SandboxRow, 'id'> & { id: string | null; over: boolean }>(
      `select exists (select from ended_sessions e where e.session_id = asked.id) as over, found.*
       from (values ($1::text)) as asked (id)
         left join lateral (select ${COLUMNS} from sandboxes where session_id = asked.id and status <> 'destroyed') as found on true`,
      [sessionId],
    );
    const [found] = rows;
    if (found === undefined) throw new Error('a join with one row on its left has none');
    const { id, over, ...rest } = found;
    return { row: id === null ? null : { id, ...rest }, over };
  }

  /** Takes or renews the right to serve it; null when another replica lives and serves it. */
  async own(id: string): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `update sandboxes set owner = $2, owner_expires_at = clock_timestamp() + $4 * interval '1 millisecond', updated_at = clock_timestamp()
       where id = $1 and status <> 'destroyed'
         and (owner is null or owner = $2 or split_part(owner, ':', 1) = $3 or owner_expires_at < clock_timestamp())
       returning ${COLUMNS}`,
      [id, this.#owner, this.#instance, OWNER_TTL_MS],
    );
    return rows[0] ?? null;
  }

  /** Renews what this replica serves; returns the ids it still owns. */
  async renew(ids: readonly string[]): Promise<Set<string>> {
    const { rows } = await this.#pool.query<{ id: string }>(
      `update sandboxes set owner_expires_at = clock_timestamp() + $3 * interval '1 millisecond'
       where id = any ($1) and owner = $2 and status <> 'destroyed' returning id`,
      [ids, this.#owner, OWNER_TTL_MS],
    );
    return new Set(rows.map((row) => row.id));
  }

  /** Sandboxes that should run and that nobody serves, or that this replica served before it was started anew. */
  async abandoned(served: readonly string[], provider: string): Promise<SandboxRow[]> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where status in ('starting', 'ready') and provider = $3 and id <> all ($1)
         and (owner is null or split_part(owner, ':', 1) = $2 or owner_expires_at < clock_timestamp())`,
      [served, this.#instance, provider],
    );
    return rows;
  }

  /** Those of the ids whose sandbox was destroyed. */
  async destroyed(ids: readonly string[]): Promise<SandboxRow[]> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where status = 'destroyed' and id = any ($1)`,
      [ids],
    );
    return rows;
  }

  async disown(ids: readonly string[]): Promise<void> {
    await this.#pool.query(
      'update sandboxes set owner = null, owner_expires_at = null where id = any ($1) and owner = $2',
      [ids, this.#owner],
    );
  }

  /** A new incarnation begins with this token. */
  async begin(id: string, tokenHash: string): Promise<void> {
    await this.#pool.query(
      `update sandboxes set status = 'starting', incarnation = incarnation + 1, token_hash = $2, public_key = null, updated_at = clock_timestamp() where id = $1`,
      [id, tokenHash],
    );
  }

  /**
   * The incarnation after this one begins on the cluster, on this claim, which is made from the environment as it is now.
   * Null when it did already: of several at once one wins.
   */
  async beginClaim(
    { id, incarnation }: Pick<SandboxRow, 'id' | 'incarnation'>,
    on: { namespace: string; claim: string; environment: SandboxRow['environment'] },
  ): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `update sandboxes set status = 'starting', incarnation = incarnation + 1, namespace = $2, claim = $3, environment = $4,
         provider = 'kubernetes', node = null, launch = null, reason = null, ready_at = null, claimed_at = clock_timestamp(), updated_at = clock_timestamp()
       where id = $1 and incarnation = $5 and status <> 'destroyed' returning ${COLUMNS}`,
      [id, on.namespace, on.claim, JSON.stringify(on.environment), incarnation],
    );
    return rows[0] ?? null;
  }

  /**
   * Another pod of the same claim is the incarnation after this one: it was resumed, or its pod was replaced. Null when it
   * began already.
   */
  async beginAgain({ id, incarnation }: Pick<SandboxRow, 'id' | 'incarnation'>): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `update sandboxes set status = 'starting', incarnation = incarnation + 1, node = null, launch = null, ready_at = null,
         used_at = clock_timestamp(), updated_at = clock_timestamp()
       where id = $1 and incarnation = $2 and status <> 'destroyed' returning ${COLUMNS}`,
      [id, incarnation],
    );
    return rows[0] ?? null;
  }

  /** Its claim is gone, and with it what the claim kept. */
  async forgetClaim(id: string): Promise<void> {
    await this.#pool.query('update sandboxes set claim = null, pod = null, pod_uid = null, node = null where id = $1', [
      id,
    ]);
  }

  /** The pod that this incarnation runs in. A pod belongs to one sandbox. Null when another replica serves it by now. */
  async place(
    id: string,
    at: { pod: string; podUid: string; node: string | null; launch: Launch },
  ): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `update sandboxes set pod = $2, pod_uid = $3, node = $4, launch = $5, updated_at = clock_timestamp(),
         owner_expires_at = clock_timestamp() + $7 * interval '1 millisecond'
       where id = $1 and owner = $6 and status in ('starting', 'ready') returning ${COLUMNS}`,
      [id, at.pod, at.podUid, at.node, at.launch, this.#owner, OWNER_TTL_MS],
    );
    return rows[0] ?? null;
  }

  /** The sandbox that is being started, or runs, in a pod. */
  async ofPod(podUid: string): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where pod_uid = $1 and status in ('starting', 'ready')`,
      [podUid],
    );
    return rows[0] ?? null;
  }

  /** Takes the right to serve it from whoever had it: this replica holds its runner's link. */
  async takeOver(id: string): Promise<SandboxRow | null> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `update sandboxes set owner = $2, owner_expires_at = clock_timestamp() + $3 * interval '1 millisecond'
       where id = $1 and status in ('starting', 'ready') returning ${COLUMNS}`,
      [id, this.#owner, OWNER_TTL_MS],
    );
    return rows[0] ?? null;
  }

  /** Why it is not ready; told as an event once for each reason of an incarnation. */
  async wait(row: SandboxRow, reason: SandboxReason): Promise<void> {
    await this.record(
      row,
      'sandbox.waiting',
      { incarnation: row.incarnation, reason: reason.code, message: reason.message },
      [
        {
          text: `update sandboxes set reason = $2::jsonb || jsonb_build_object('since', ${NOW_TEXT}), updated_at = clock_timestamp() where id = $1 and status <> 'destroyed'`,
          values: [row.id, JSON.stringify(reason)],
          rows: 1,
        },
      ],
    );
  }

  /** One that was cut off while it was ready is linked again: there is nothing to wait for. */
  async answers(id: string): Promise<void> {
    await this.#pool.query(
      `update sandboxes set reason = null, updated_at = clock_timestamp() where id = $1 and status = 'ready'`,
      [id],
    );
  }

  /** Somebody asked for it. */
  async touch(id: string): Promise<void> {
    await this.#pool.query('update sandboxes set used_at = clock_timestamp() where id = $1', [id]);
  }

  async byIds(ids: readonly string[]): Promise<Map<string, SandboxRow>> {
    const { rows } = await this.#pool.query<SandboxRow>(`select ${COLUMNS} from sandboxes where id = any ($1)`, [ids]);
    return new Map(rows.map((row) => [row.id, row]));
  }

  /** Those of a provider whose processes should run. */
  async wanted(provider: string): Promise<SandboxRow[]> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where provider = $1 and status in ('starting', 'ready')`,
      [provider],
    );
    return rows;
  }

  /** Its runner is linked here. @throws AppError `log.statement-conflict` when another replica serves it by now */
  async ready(
    row: SandboxRow,
    facts: { journalId: string; publicKey: string | null; isolation: string; incarnation: number },
  ): Promise<void> {
    const { pod, node, launch } = row;
    await this.record(
      row,
      'sandbox.ready',
      {
        incarnation: facts.incarnation,
        journal_id: facts.journalId,
        isolation: facts.isolation,
        ...(pod === null ? {} : { pod }),
        ...(node === null ? {} : { node }),
        ...(launch === null ? {} : { launch }),
      },
      [
        {
          text: `update sandboxes set status = 'ready', journal_id = $2, public_key = $3, isolation = $4, reason = null, ready_at = clock_timestamp(), updated_at = clock_timestamp()
                 where id = $1 and status <> 'destroyed' and owner = $5`,
          values: [row.id, facts.journalId, facts.publicKey, facts.isolation, this.#owner],
          rows: 1,
        },
      ],
    );
  }

  /** What becomes of it says whoever serves it, its end anybody. @throws AppError as {@link ready} */
  async mark(
    row: Pick<SandboxRow, 'id' | 'workspace_id'>,
    status: SandboxRow['status'],
    type: string,
    data: Record<string, string | number>,
    more: readonly CompanionStatement[] = [],
  ): Promise<void> {
    await this.record(row, type, data, [
      {
        text: `update sandboxes set status = $2, ready_at = null, updated_at = clock_timestamp(),
                 reason = $3::jsonb || jsonb_build_object('since', ${NOW_TEXT})
               where id = $1 and status <> 'destroyed' and ($2 = 'destroyed' or owner = $4)`,
        values: [
          row.id,
          status,
          FAULTS.includes(type) ? JSON.stringify({ code: null, message: data['reason'] }) : null,
          this.#owner,
        ],
        rows: 1,
      },
      ...more,
    ]);
  }

  async record(
    row: Pick<SandboxRow, 'id' | 'workspace_id'>,
    type: string,
    data: Record<string, string | number | boolean | null>,
    statements: readonly CompanionStatement[] = [],
  ): Promise<void> {
    await this.#log.append({
      appends: [
        {
          streamId: streamOf('sandbox', row.id),
          workspaceId: row.workspace_id,
          events: [
            {
              id: derivedEventId(newId('command'), 0),
              type,
              data,
              metadata: { actor: { type: 'service', id: this.#owner } },
            },
          ],
        },
      ],
      statements,
    });
  }
}

function sessionOver(): AppError {
  return new AppError('rejected', 'sandbox.session-over', 'The session is over; it gets no sandbox any more.');
}
