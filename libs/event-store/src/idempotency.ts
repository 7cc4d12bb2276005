import { AppError, type Idempotency } from '@holdfast/contracts';
import type pg from 'pg';
import type { CompanionStatement } from './append.ts';

/**
 * A retry without a key matches only an attempt that was answered within this time before it (T5). It covers the longest
 * that a gateway waits for a command and the SDKs' pause after it. What is still ambiguous: two equal messages within this
 * time, of which the second one's first attempt was lost before it was stored; its retry gets the first one's answer.
 */
export const RETRY_WINDOW_MS = 15_000;

/** Goes into the append of a command, so that its idempotency row commits together with its events. */
export function idempotencyStatement(
  workspaceId: string,
  idempotency: Idempotency,
  commandId: string,
): CompanionStatement {
  return {
    text: `insert into idempotency (workspace_id, key, path, fingerprint, attempt, command_id) values ($1, $2, $3, $4, $5, $6)`,
    values: [workspaceId, idempotency.key, idempotency.path, idempotency.fingerprint, idempotency.attempt, commandId],
  };
}

/** True when an append was refused because a command with the same key was stored first. */
export function isKeyConflict(error: unknown): boolean {
  return (
    error instanceof AppError &&
    error.code === 'log.statement-conflict' &&
    error.details.constraint === 'idempotency_key'
  );
}

/**
 * The command that this request is a repeat of, or null. With a key the key decides, for ever; without one a retry
 * (attempt n > 0) claims the newest row of the same fingerprint and a lower attempt, once: the attempt before it may have
 * died where nobody heard it, at a gateway that was down. `again`: this very retry may have claimed its row before.
 *
 * @throws AppError `idempotency.key-reused` when the key was used for another request.
 */
export async function findRepeated(
  pool: pg.Pool,
  workspaceId: string,
  idempotency: Idempotency,
  again = false,
): Promise<string | null> {
  if (idempotency.key !== null) {
    const { rows } = await pool.query<{ fingerprint: string; command_id: string }>(
      'select fingerprint, command_id from idempotency where workspace_id = $1 and key = $2',
      [workspaceId, idempotency.key],
    );
    const row = rows[0];
    if (row === undefined) return null;
    if (row.fingerprint === idempotency.fingerprint) return row.command_id;
    throw new AppError(
      'rejected',
      'idempotency.key-reused',
      'This Idempotency-Key was used for another request; use a new key.',
    );
  }
  if (idempotency.attempt === 0) return null;
  const { rows } = await pool.query<{ command_id: string }>(
    `update idempotency set attempt = $3, created_at = clock_timestamp() where id = (
       select id from idempotency
       where workspace_id = $1 and key is null and fingerprint = $2 and attempt < $5
         and created_at > clock_timestamp() - $4 * interval '1 millisecond'
       order by created_at desc, id desc limit 1 for update
     ) and attempt < $5 returning command_id`,
    [workspaceId, idempotency.fingerprint, idempotency.attempt, RETRY_WINDOW_MS, idempotency.attempt + (again ? 1 : 0)],
  );
  return rows[0]?.command_id ?? null;
}

/** Removes rows without a key that no retry can match any more, and keys older than `keyTtlMs`. */
export async function forgetOldIdempotency(pool: pg.Pool, keyTtlMs: number): Promise<void> {
  await pool.query(
    `delete from idempotency where id in (
       select id from idempotency
       where created_at < clock_timestamp() - case when key is null then $1::bigint else $2::bigint end * interval '1 millisecond' limit 10000)`,
    [RETRY_WINDOW_MS * 2, keyTtlMs],
  );
}
