import { type EnsureSandboxBody, newId, streamOf } from '@holdfast/contracts';
import { type CompanionStatement, derivedEventId, type EventLog } from '@holdfast/event-store';
import type pg from 'pg';

export const OWNER_TTL_MS = 6_000;

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
}

const COLUMNS =
  'id, serial, workspace_id, session_id, environment_id, context_key, environment, status, incarnation, journal_id, token_hash, public_key';

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

  /** The session's sandbox, recorded on its first tool call. Of two at once one wins. */
  async request(body: EnsureSandboxBody, provider: string): Promise<SandboxRow> {
    const known = await this.ofSession(body.sessionId);
    if (known !== null) return known;
    const id = newId('sandbox');
    try {
      await this.record(
        { id, workspace_id: body.workspaceId },
        'sandbox.requested',
        { session_id: body.sessionId, environment_id: body.environmentId, context_key: body.contextKey, provider },
        [
          {
            text: `insert into sandboxes (id, workspace_id, session_id, environment_id, context_key, environment, status) values ($1, $2, $3, $4, $5, $6, 'starting')`,
            values: [
              id,
              body.workspaceId,
              body.sessionId,
              body.environmentId,
              body.contextKey,
              JSON.stringify(body.environment),
            ],
          },
        ],
      );
    } catch (error) {
      const raced = await this.ofSession(body.sessionId);
      if (raced === null) throw error;
      return raced;
    }
    const made = await this.ofSession(body.sessionId);
    if (made === null) throw new Error('a sandbox vanished while it was made');
    return made;
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
  async abandoned(served: readonly string[]): Promise<SandboxRow[]> {
    const { rows } = await this.#pool.query<SandboxRow>(
      `select ${COLUMNS} from sandboxes where status in ('starting', 'ready') and id <> all ($1)
         and (owner is null or split_part(owner, ':', 1) = $2 or owner_expires_at < clock_timestamp())`,
      [served, this.#instance],
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

  async ready(
    row: SandboxRow,
    facts: { journalId: string; publicKey: string; isolation: string; incarnation: number },
  ): Promise<void> {
    await this.record(
      row,
      'sandbox.ready',
      { incarnation: facts.incarnation, journal_id: facts.journalId, isolation: facts.isolation },
      [
        {
          text: `update sandboxes set status = 'ready', journal_id = $2, public_key = $3, isolation = $4, updated_at = clock_timestamp() where id = $1 and status <> 'destroyed'`,
          values: [row.id, facts.journalId, facts.publicKey, facts.isolation],
          rows: 1,
        },
      ],
    );
  }

  async mark(
    row: Pick<SandboxRow, 'id' | 'workspace_id'>,
    status: SandboxRow['status'],
    type: string,
    data: Record<string, string | number>,
    more: readonly CompanionStatement[] = [],
  ): Promise<void> {
    await this.record(row, type, data, [
      {
        text: `update sandboxes set status = $2, updated_at = clock_timestamp() where id = $1 and status <> 'destroyed'`,
        values: [row.id, status],
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
              schemaVersion: 1,
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
