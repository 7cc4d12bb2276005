/** Where the gateway answers; the dashboard has no data of its own. */
export const GATEWAY_API_URL = (process.env.GATEWAY_API_URL ?? 'http://127.0.0.1:8080').replace(/\/+$/, '');
/** Cookies ignore ports, so two copies on one host need two names. */
export const COOKIE = `hf_session_${(process.env.DASHBOARD_COOKIE ?? 'default').replace(/[^A-Za-z0-9]/g, '')}`;
/** Host names that the dashboard answers to, against DNS rebinding; any port. */
const ALLOWED_HOSTS = new Set(
  `localhost,127.0.0.1,[::1],${process.env.DASHBOARD_ALLOWED_HOSTS ?? ''}`
    .split(',')
    .map((host) => host.trim().toLowerCase())
    .filter((host) => host !== ''),
);

export function isAllowedHost(host: string | null): boolean {
  return host !== null && ALLOWED_HOSTS.has(host.toLowerCase().replace(/:\d+$/, ''));
}
