import { forward } from '../../../server/gateway.ts';

type Context = { params: Promise<{ path: string[] }> };

/** `/api/v1/…` is the public API; what else lies under `/api/` keeps its path, as `POST /api/sessions` does. */
async function handle(request: Request, { params }: Context): Promise<Response> {
  const { path } = await params;
  const prefix = path[0] === 'v1' ? '/' : '/api/';
  return forward(request, prefix + path.map(encodeURIComponent).join('/'));
}

export const dynamic = 'force-dynamic';
export { handle as DELETE, handle as GET, handle as PATCH, handle as POST, handle as PUT };
