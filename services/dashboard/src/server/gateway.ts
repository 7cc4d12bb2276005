import { newId } from '@holdfast/contracts';
import { cookies } from 'next/headers';
import { COOKIE, GATEWAY_API_URL, isAllowedHost } from './config.ts';

/** Request headers that the gateway needs. */
const FORWARDED = [
  'accept',
  'content-type',
  'idempotency-key',
  'last-event-id',
  'anthropic-version',
  'anthropic-beta',
  'anthropic-worker-id',
  'x-stainless-retry-count',
  'x-api-key',
  'authorization',
];
/** Answer headers that a browser or an SDK needs. */
const RETURNED = [
  'content-type',
  'content-disposition',
  'cache-control',
  'request-id',
  'retry-after',
  'x-should-retry',
  'x-accel-buffering',
];

const NO_CREDENTIAL = 'Send an API key, as "x-api-key" or as "Authorization: Bearer", or sign in.';
/** The browser opens nothing that comes from the API as a page of this origin. */
const API_HEADERS = {
  'x-content-type-options': 'nosniff',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'; sandbox",
};
/** An SSE comment: every parser skips it. */
const OPENING = new TextEncoder().encode(':\n\n');

/** The wire contract's error envelope, for what the dashboard refuses itself. */
export function refusal(status: number, type: string, message: string): Response {
  const request_id = newId('request');
  return Response.json(
    { type: 'error', request_id, error: { type, message } },
    { status, headers: { 'request-id': request_id } },
  );
}

/**
 * Refuses foreign hosts, and changes that another site's page asked for: a browser states the origin of every change.
 * Returns undefined when the request may go on.
 */
export function guard(request: Request): Response | undefined {
  const host = request.headers.get('host');
  if (!isAllowedHost(host)) {
    return refusal(403, 'permission_error', 'This host name is not in DASHBOARD_ALLOWED_HOSTS.');
  }
  const origin = request.headers.get('origin');
  const sameOrigin = origin === null ? !fromOtherSite(request) : URL.parse(origin)?.host === host;
  const changes = request.method !== 'GET' && request.method !== 'HEAD';
  return changes && !sameOrigin
    ? refusal(403, 'permission_error', 'Changes must come from the dashboard’s own pages.')
    : undefined;
}

function fromOtherSite(request: Request): boolean {
  const site = request.headers.get('sec-fetch-site');
  return site !== null && site !== 'same-origin' && site !== 'none';
}

/**
 * Passes a request on to the gateway and streams the answer back. The caller's own key is used when it sent one, else
 * the signed-in credential.
 */
export async function forward(request: Request, path: string): Promise<Response> {
  const refused = guard(request);
  if (refused !== undefined) return refused;
  const headers = new Headers();
  for (const name of FORWARDED) {
    const value = request.headers.get(name);
    if (value !== null) headers.set(name, value);
  }
  if (!headers.has('x-api-key') && !headers.has('authorization')) {
    const token = (await cookies()).get(COOKIE)?.value;
    if (token === undefined) return refusal(401, 'authentication_error', NO_CREDENTIAL);
    headers.set('x-api-key', token);
  }
  const { search } = new URL(request.url);
  return toGateway(path + search, {
    method: request.method,
    headers,
    signal: request.signal,
    ...(request.body === null ? {} : { body: request.body, duplex: 'half' }),
  });
}

/** One request to the gateway; a gateway that cannot be reached is a 503 with the usual envelope. */
export async function toGateway(path: string, init: RequestInit & { duplex?: 'half' }): Promise<Response> {
  try {
    const answer = await fetch(GATEWAY_API_URL + path, { ...init, redirect: 'manual', cache: 'no-store' });
    const headers = new Headers(API_HEADERS);
    for (const name of RETURNED) {
      const value = answer.headers.get(name);
      if (value !== null) headers.set(name, value);
    }
    return new Response(opened(answer), { status: answer.status, headers });
  } catch (error) {
    if (init.signal?.aborted === true) throw error;
    return refusal(503, 'overloaded_error', 'The API cannot be reached right now.');
  }
}

/** Headers leave with the first bytes, so an event stream that has nothing to say yet begins with a comment. */
function opened(answer: Response): ReadableStream<Uint8Array> | null {
  if (answer.headers.get('content-type')?.startsWith('text/event-stream') !== true) return answer.body;
  return (
    answer.body?.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({ start: (controller) => controller.enqueue(OPENING) }),
    ) ?? null
  );
}
