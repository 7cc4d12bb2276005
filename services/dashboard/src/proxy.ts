import { type NextRequest, NextResponse } from 'next/server';
import { COOKIE, isAllowedHost } from './server/config.ts';

/** Every page: known hosts only, a content security policy with a nonce of its own, and signed-in people only. */
export function proxy(request: NextRequest): NextResponse {
  if (!isAllowedHost(request.headers.get('host'))) {
    return new NextResponse('This host name is not in DASHBOARD_ALLOWED_HOSTS.', { status: 403 });
  }
  const { pathname, search } = request.nextUrl;
  if (pathname !== '/sign-in' && !request.cookies.has(COOKIE)) {
    const scheme = request.headers.get('x-forwarded-proto') === 'https' ? 'https' : 'http';
    const target = new URL('/sign-in', `${scheme}://${request.headers.get('host') ?? ''}`);
    if (pathname !== '/') target.searchParams.set('next', pathname + search);
    return NextResponse.redirect(target);
  }
  const nonce = crypto.randomUUID().replaceAll('-', '');
  const policy = [
    "default-src 'none'",
    `script-src 'self' 'nonce-${nonce}' 'strict-dynamic'`,
    // Components place themselves with inline styles.
    "style-src 'self' 'unsafe-inline'",
    // Nothing from elsewhere: an image address in a message could carry data out.
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
    "frame-ancestors 'none'",
  ].join('; ');
  const headers = new Headers(request.headers);
  headers.set('content-security-policy', policy);
  const response = NextResponse.next({ request: { headers } });
  response.headers.set('content-security-policy', policy);
  response.headers.set('x-content-type-options', 'nosniff');
  response.headers.set('referrer-policy', 'no-referrer');
  response.headers.set('cache-control', 'no-store');
  return response;
}

export const config = { matcher: ['/((?!api/|_next/static|healthz|icon.svg).*)'] };
