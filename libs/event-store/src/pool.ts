import { AppError } from '@holdfast/contracts';
import pg from 'pg';

/** An open transaction that says nothing for so long is ended by Postgres, in milliseconds. */
const SILENT_TRANSACTION_MS = 3_000;

/**
 * A pool for the log: pipelined, so that BEGIN, the append and COMMIT do not wait for each other's answers. Idle clients
 * that lose their connection are dropped by the pool; the error is reported to `onIdleError` and nothing else. A process
 * that stops in the middle of a transaction holds its locks for {@link SILENT_TRANSACTION_MS} at most.
 */
export function createLogPool(options: {
  connectionString: string;
  max?: number;
  applicationName: string;
  onIdleError?: (error: Error) => void;
}): pg.Pool {
  const pool = new pg.Pool({
    connectionString: options.connectionString,
    max: options.max ?? 8,
    application_name: options.applicationName,
    connectionTimeoutMillis: 5_000,
    idleTimeoutMillis: 30_000,
    keepAlive: true,
    idle_in_transaction_session_timeout: SILENT_TRANSACTION_MS,
    pipeline: true,
  });
  pool.on('error', (error) => options.onIdleError?.(error));
  // A client that is in use reports its loss on the queries it runs; without a listener the event would end the process.
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

/** The part of pg that a transaction hands to companion statements and projections. */
export interface Transaction {
  query<R extends pg.QueryResultRow = pg.QueryResultRow>(text: string, values?: unknown[]): Promise<pg.QueryResult<R>>;
  query<R extends pg.QueryResultRow = pg.QueryResultRow>(query: pg.QueryConfig): Promise<pg.QueryResult<R>>;
}

const CONNECTION_STATES = /^(08|57P0|53300|25P03|XX000)/;
const CONNECTION_CODES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOENT',
  'EHOSTUNREACH',
  'ENOTFOUND',
]);

/** SQLSTATE of a Postgres error or code of a system error; empty when there is none. */
export function errorCode(error: unknown): string {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string'
    ? error.code
    : '';
}

/** True when the failure says nothing about whether the commit happened: the connection went away. */
export function isConnectionLoss(error: unknown): boolean {
  const code = errorCode(error);
  if (code !== '') return CONNECTION_STATES.test(code) || CONNECTION_CODES.has(code);
  // pg gives its own connection errors no code.
  return error instanceof Error && /terminated|timeout|not queryable|closed|connection/i.test(error.message);
}

/** What callers see when Postgres cannot be reached within their deadline. */
export function logUnavailable(cause: unknown): AppError {
  return new AppError('unavailable', 'log.unavailable', 'The event log cannot be reached; try again shortly.', {
    cause,
  });
}
