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
  'x-stainless-retry-count',
  'x-api-key',
  'authorization',
];
/** Answer headers that a browser or an SDK needs. */
const RETURNED = ['content-type', 'cache-control', 'request-id', 'retry-after', 'x-should-retry', 'x-accel-buffering'];

/** The wire contract's error envelope, for what the dashboard refuses itself. */
export function refusal(status: number, type: string, message: string): Response {
  return Response.json({ type: 'error', error: { type, message } }, { status });
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
    if (token === undefined) return refusal(401, 'authentication_error', 'You are not signed in.');
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
    const headers = new Headers({ 'x-content-type-options': 'nosniff' });
    for (const name of RETURNED) {
      const value = answer.headers.get(name);
      if (value !== null) headers.set(name, value);
    }
    return new Response(answer.body, { status: answer.status, headers });
  } catch (error) {
    if (init.signal?.aborted === true) throw error;
    return refusal(503, 'overloaded_error', 'The API cannot be reached right now.');
  }
}
