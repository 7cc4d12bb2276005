import { AppError, type ErrorKind } from '@holdfast/contracts';

/** What the API server answers instead of an object. */
export interface Status {
  readonly message?: string;
  readonly reason?: string;
  readonly code?: number;
  readonly details?: {
    readonly retryAfterSeconds?: number;
    readonly causes?: readonly { readonly reason?: string; readonly field?: string }[];
  };
}

/**
 * A failed request. Codes: `cluster.absent` (what it is about is not there), `cluster.conflict` (another writer, an object
 * of that name that is another, a namespace that is going: try again), `cluster.quota-exceeded`, `cluster.refused` (by
 * rights, policy or schema), `cluster.gone` (the version asked for is not kept any more), `cluster.unreachable` (no
 * answer, or one that says: later). `details` has the HTTP status, Kubernetes' reason, and how long to wait when it says
 * so. The text is the API server's and holds no credential.
 */
export function requestError(what: string, status: number, body: Status, retryAfter: string | undefined): AppError {
  const message = body.message ?? `HTTP ${status}`;
  const seconds = body.details?.retryAfterSeconds ?? Number(retryAfter ?? Number.NaN);
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1_000 : null;
  const [kind, code] = judged(status, message, body.details?.causes ?? []);
  return new AppError(kind, code, `${what}: ${message}`, {
    details: { status, reason: body.reason ?? null, retryAfterMs },
  });
}

type Causes = NonNullable<NonNullable<Status['details']>['causes']>;

function judged(status: number, message: string, causes: Causes): readonly [ErrorKind, string] {
  if (status === 404) return ['not-found', 'cluster.absent'];
  if (status === 410) return ['conflict', 'cluster.gone'];
  // A namespace that is going answers 403, and an object that is another than was meant 422.
  const passes = causes.some(({ reason, field }) => reason === 'NamespaceTerminating' || field === 'metadata.uid');
  if (status === 409 || passes) return ['conflict', 'cluster.conflict'];
  if (status === 403 && message.includes('exceeded quota')) return ['exhausted', 'cluster.quota-exceeded'];
  // Server-side apply calls a member that the schema does not have an error of its own.
  const unknown = message.includes('field not declared in schema');
  if (status === 429 || (status >= 500 && !unknown)) return ['unavailable', 'cluster.unreachable'];
  return ['rejected', 'cluster.refused'];
}

/** No answer at all: `details.status` is null. */
export function unreachable(what: string, error: unknown): AppError {
  return new AppError('unavailable', 'cluster.unreachable', `${what}: no answer (${whyOf(error)})`, {
    details: { status: null, reason: null, retryAfterMs: null },
    cause: error,
  });
}

function whyOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === 'AbortError' || error.name === 'TimeoutError') return 'in time';
  return 'code' in error ? String(error.code) : error.message;
}
