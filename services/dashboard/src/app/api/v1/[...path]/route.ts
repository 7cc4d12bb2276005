import { forward } from '../../../../server/gateway.ts';

type Context = { params: Promise<{ path: string[] }> };

async function handle(request: Request, { params }: Context): Promise<Response> {
  const { path } = await params;
  return forward(request, `/v1/${path.map(encodeURIComponent).join('/')}`);
}

export const dynamic = 'force-dynamic';
export { handle as DELETE, handle as GET, handle as POST };
