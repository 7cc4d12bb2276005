import { forward } from '../../../server/gateway.ts';

/** The short form of starting a session, for curl with a key as well as for the dashboard. */
export function POST(request: Request): Promise<Response> {
  return forward(request, '/api/sessions');
}
