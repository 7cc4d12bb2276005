import { cookies } from 'next/headers';
import { COOKIE } from '../../../server/config.ts';
import { guard, refusal, toGateway } from '../../../server/gateway.ts';

const MAX_BODY_CHARS = 1_000;

/** Signs in with `{api_key}` or `{link_token}`: the credential that the gateway answers goes into a cookie. */
export async function POST(request: Request): Promise<Response> {
  const refused = guard(request);
  if (refused !== undefined) return refused;
  const given = await readBody(request);
  if (given === null) return refusal(400, 'invalid_request_error', 'Send api_key or link_token.');
  const byKey = 'apiKey' in given;
  const answer = await toGateway('/v1/x/dashboard_sessions', {
    method: 'POST',
    headers: byKey ? { 'x-api-key': given.apiKey } : { 'content-type': 'application/json' },
    ...(byKey ? {} : { body: JSON.stringify({ link_token: given.linkToken }) }),
  });
  if (!answer.ok) return answer;
  const { token, expires_at } = (await answer.json()) as { token: string; expires_at: string };
  (await cookies()).set(COOKIE, token, {
    httpOnly: true,
    sameSite: 'strict',
    secure: request.headers.get('x-forwarded-proto') === 'https',
    path: '/',
    expires: new Date(expires_at),
  });
  return Response.json({ signed_in: true });
}

async function readBody(request: Request): Promise<{ apiKey: string } | { linkToken: string } | null> {
  const text = await request.text();
  if (text.length > MAX_BODY_CHARS) return null;
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body !== 'object' || body === null) return null;
    if ('api_key' in body && typeof body.api_key === 'string' && /^[\x21-\x7e]+$/.test(body.api_key))
      return { apiKey: body.api_key };
    if ('link_token' in body && typeof body.link_token === 'string') return { linkToken: body.link_token };
  } catch {
    // Not JSON: the same answer as to JSON of another shape.
  }
  return null;
}
