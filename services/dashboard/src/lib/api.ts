/** What the API refused, or that it could not be reached (`status` 0). */
export class ApiError extends Error {
  readonly status: number;
  readonly type: string;

  constructor(status: number, type: string, message: string) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.type = type;
  }
}

export interface Page<T> {
  readonly data: readonly T[];
  readonly next_page: string | null;
}

interface Options {
  readonly method?: 'GET' | 'POST' | 'DELETE';
  readonly body?: unknown;
  readonly signal?: AbortSignal;
  /** With it a repeated request is stored once, so that a lost answer may be asked for again. */
  readonly idempotencyKey?: string;
}

/** Asks the API through the dashboard's own server. @throws ApiError */
export async function api<T>(path: string, options: Options = {}): Promise<T> {
  const { method = options.body === undefined ? 'GET' : 'POST', body, signal, idempotencyKey } = options;
  let response: Response;
  try {
    response = await fetch(`/api${path}`, {
      method,
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (error) {
    if (signal?.aborted === true) throw error;
    throw new ApiError(0, 'connection_error', 'The server cannot be reached. Check that it runs, then try again.');
  }
  if (!response.ok) throw await toApiError(response);
  return (await response.json()) as T;
}

/** Repeats a request whose answer was lost or that found the platform busy; safe by its idempotency key. */
export async function apiPersistent<T>(path: string, body: unknown, idempotencyKey: string): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await api<T>(path, { body, idempotencyKey });
    } catch (error) {
      const passing = error instanceof ApiError && (error.status === 0 || error.status >= 500 || error.status === 429);
      if (!passing || attempt >= 4) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** attempt));
    }
  }
}

export async function toApiError(response: Response): Promise<ApiError> {
  const body: unknown = await response.json().catch(() => null);
  const error =
    typeof body === 'object' && body !== null && 'error' in body
      ? (body.error as { type?: string; message?: string } | null)
      : null;
  const failure = new ApiError(
    response.status,
    error?.type ?? 'api_error',
    error?.message ?? `The server answered ${response.status}.`,
  );
  if (response.status === 401) goToSignIn();
  return failure;
}

/** Signed out or expired: back to the sign-in page, and afterwards to here. */
export function goToSignIn(): void {
  if (location.pathname === '/sign-in') return;
  location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
