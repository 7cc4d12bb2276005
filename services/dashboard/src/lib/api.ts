import type { FileResource } from '@holdfast/contracts';

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
    throw unreachable();
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

interface Upload {
  /** With it a repeated upload is one file. */
  readonly idempotencyKey: string;
  readonly signal: AbortSignal;
  /** How many bytes have left so far. */
  readonly onSent: (bytes: number) => void;
}

/** Uploads a file. @throws ApiError, or the signal's reason */
export function uploadFile(
  file: Blob,
  name: string,
  { idempotencyKey, signal, onSent }: Upload,
): Promise<FileResource> {
  // `fetch` does not tell how much has left.
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append('file', file, name);
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => request.abort(), { once: true });
    request.onabort = () => reject(signal.reason as Error);
    request.onerror = () => reject(unreachable());
    request.onload = () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText) as FileResource);
      else void toApiError(new Response(request.responseText, { status: request.status })).then(reject);
    };
    request.upload.onprogress = ({ loaded }) => onSent(Math.min(loaded, file.size));
    request.open('POST', '/api/v1/files');
    request.setRequestHeader('idempotency-key', idempotencyKey);
    request.send(form);
  });
}

/** Where a file's bytes are; the server sends them as an attachment. */
export const downloadHref = (fileId: string): string => `/api/v1/files/${fileId}/content`;

/** A file's bytes, for what needs them in the page. @throws ApiError */
export async function downloadFile(fileId: string): Promise<Blob> {
  const response = await fetch(downloadHref(fileId)).catch(() => {
    throw unreachable();
  });
  if (!response.ok) throw await toApiError(response);
  return response.blob();
}

function unreachable(): ApiError {
  return new ApiError(0, 'connection_error', 'The server cannot be reached. Check that it runs, then try again.');
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
