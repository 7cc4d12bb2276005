import { cookies } from 'next/headers';
import { COOKIE } from '../../../server/config.ts';
import { guard, toGateway } from '../../../server/gateway.ts';

/** Ends the credential and forgets it; the browser is signed out even when the gateway cannot be reached. */
export async function POST(request: Request): Promise<Response> {
  const refused = guard(request);
  if (refused !== undefined) return refused;
  const jar = await cookies();
  const token = jar.get(COOKIE)?.value;
  jar.delete(COOKIE);
  if (token !== undefined)
    await toGateway('/v1/x/dashboard_sessions/current', { method: 'DELETE', headers: { 'x-api-key': token } });
  return Response.json({ signed_in: false });
}
