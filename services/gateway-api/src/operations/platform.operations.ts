import {
  type ApiKeyResource,
  AppError,
  apiKeyResource,
  type ChildCredential,
  CREDENTIAL_KINDS,
  childCredential,
  deleted,
  type EnvironmentKeyResource,
  environmentKeyResource,
  HARNESS_NATIVE,
  LIMITS,
  newId,
  type PlatformStatus,
  pageOf,
  platformStatus,
  type ServiceBeat,
} from '@holdfast/contracts';
import type pg from 'pg';
import { z } from 'zod';
import { type Authenticator, mintCredential } from '../auth/authenticator.ts';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import { type Commands, Exchange } from '../http/exchange.ts';
import { pathId } from './catalogue.operations.ts';
import { NOT_BUILT, NOT_BUILT_FIELDS } from './not-built.ts';
import { type Operation, operation } from './operation.ts';

const createKeyBody = z.strictObject({ name: z.string().trim().min(1).max(LIMITS.nameChars) });
const signInBody = z.strictObject({ link_token: z.string().max(64) }).optional();

const signIn = childCredential.extend({ token: z.string() });
const caller = z.strictObject({ credential_id: z.string(), kind: z.enum(CREDENTIAL_KINDS), workspace_id: z.string() });
const capabilities = z.strictObject({
  resume_by_cursor: z.boolean(),
  quick_sessions: z.boolean(),
  contexts: z.boolean(),
  steering: z.boolean(),
  /** What agents may have; the session services say so, and while none is heard it is the native one alone. */
  harnesses: z.array(z.strictObject({ type: z.string(), version: z.string().nullable() })),
  /** What one uploaded file may have. */
  file_max_bytes: z.int().min(1),
  not_supported_yet: z.array(z.string()),
});

function needsApiKey(exchange: Exchange): void {
  if (exchange.principal.kind !== 'api_key')
    throw new AppError('forbidden', 'auth.needs-api-key', 'This needs an API key, not a dashboard session.');
}

/** Every open page of the dashboard asks; of a hundred thousand sessions a count takes a tenth of a second. */
const COUNTS_TTL_MS = 1_000;

/** Our own routes beside the wire contract: keys, sign-in and the status page. */
export function platformOperations(parts: {
  reader: CatalogueReader;
  commands: Commands;
  authenticator: Authenticator;
  pool: pg.Pool;
  beats: () => readonly ServiceBeat[];
  deadLetters: () => Promise<number | null>;
  demoGateway: boolean;
  fileMaxBytes: number;
}): Operation[] {
  const { reader, commands, authenticator, pool } = parts;

  const dashboardSession = async (
    exchange: Exchange,
    verb: 'create' | 'redeem',
    id: string,
  ): Promise<ChildCredential & { token: string }> => {
    const { text, hash, hint } = mintCredential('dashboard');
    const sessionId = newId('apiKey');
    const child =
      verb === 'create'
        ? await commands.send<ChildCredential>(
            'api_key',
            sessionId,
            'create-dashboard-session',
            exchange.command({ parent_id: id, hash, hint }, null),
          )
        : await commands.send<ChildCredential>(
            'api_key',
            id,
            'redeem-link',
            exchange.command({ session_id: sessionId, hash, hint }, null),
          );
    return { ...child, token: text };
  };

  const countsOf = shared(COUNTS_TTL_MS, async (workspaceId) => {
    const [sessions, needingAction, pending, sandboxes] = await Promise.all([
      pool.query<{ status: string; amount: number }>(
        'select status, count(*)::integer as amount from sessions where workspace_id = $1 and archived_at is null group by status',
        [workspaceId],
      ),
      pool.query<{ amount: number }>(
        'select count(*)::integer as amount from sessions where workspace_id = $1 and needs_action',
        [workspaceId],
      ),
      pool.query<{ amount: number }>(
        `select coalesce(sum(jsonb_array_length(view->'pending')), 0)::integer as amount from sessions where workspace_id = $1 and status in ('running', 'rescheduling')`,
        [workspaceId],
      ),
      pool.query<{ status: string; amount: number }>(
        `select status, count(*)::integer as amount from sandboxes where workspace_id = $1 and status <> 'destroyed' group by status`,
        [workspaceId],
      ),
    ]);
    return {
      sessions: Object.fromEntries(sessions.rows.map((row) => [row.status, row.amount])),
      sessions_needing_action: needingAction.rows[0]?.amount ?? 0,
      queued_messages: pending.rows[0]?.amount ?? 0,
      sandboxes: Object.fromEntries(sandboxes.rows.map((row) => [row.status, row.amount])),
    };
  });

  return [
    operation({
      method: 'GET',
      path: '/v1/x/me',
      id: 'whoAmI',
      summary: 'The caller’s credential and workspace.',
      answer: caller,
      handle: async ({ principal }) => ({
        credential_id: principal.id,
        kind: principal.kind,
        workspace_id: principal.workspaceId,
      }),
    }),
    operation({
      method: 'POST',
      path: '/v1/x/api_keys',
      id: 'createApiKey',
      summary: 'Create an API key. Its text is in this answer only.',
      answer: apiKeyResource.extend({ key: z.string() }),
      body: createKeyBody,
      handle: async (exchange) => {
        const { text, hash, hint } = mintCredential('api_key');
        const made = await commands.send<ApiKeyResource>(
          'api_key',
          newId('apiKey'),
          'create',
          exchange.command({ name: exchange.body.name, hash, hint }, exchange.idempotency),
        );
        return { ...made, key: text };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/x/api_keys',
      id: 'listApiKeys',
      summary: 'List API keys; no answer holds a key’s text.',
      answer: pageOf(apiKeyResource),
      query: ['limit', 'page'],
      handle: (exchange) => reader.apiKeys(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'POST',
      path: '/v1/x/api_keys/:id/revoke',
      id: 'revokeApiKey',
      summary:
        'Revoke an API key and the dashboard sessions that hang on it, or an environment key and its workers’ tokens; their streams close.',
      answer: z.union([apiKeyResource, environmentKeyResource]),
      handle: async (exchange) => {
        const revoked = await commands.send<ApiKeyResource | EnvironmentKeyResource>(
          'api_key',
          pathId(exchange, 'apiKey'),
          'revoke',
          exchange.command({}, null),
        );
        authenticator.forget(revoked.id);
        return revoked;
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/x/sign_in_links',
      id: 'createSignInLink',
      summary: 'A one-time sign-in token, good for ten minutes.',
      answer: signIn,
      handle: async (exchange) => {
        needsApiKey(exchange);
        const { text, hash, hint } = mintCredential('link');
        const link = await commands.send<ChildCredential>(
          'api_key',
          newId('apiKey'),
          'create-link',
          exchange.command({ parent_id: exchange.principal.id, hash, hint }, null),
        );
        return { ...link, token: text };
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/x/dashboard_sessions',
      id: 'createDashboardSession',
      summary: 'Sign in, with an API key or with a one-time link’s token.',
      answer: signIn,
      authenticated: false,
      body: signInBody,
      handle: async (exchange) => {
        if (exchange.body !== undefined) {
          const link = await authenticator.findLink(exchange.body.link_token);
          return dashboardSession(new Exchange(exchange.request, exchange.reply, link, undefined), 'redeem', link.id);
        }
        const principal = await authenticator.authenticate(exchange.request.headers);
        const signed = new Exchange(exchange.request, exchange.reply, principal, undefined);
        needsApiKey(signed);
        return dashboardSession(signed, 'create', principal.id);
      },
    }),
    operation({
      method: 'DELETE',
      path: '/v1/x/dashboard_sessions/current',
      id: 'deleteDashboardSession',
      summary: 'Sign out.',
      answer: deleted('dashboard_session_deleted'),
      handle: async (exchange) => {
        if (exchange.principal.kind !== 'dashboard')
          throw new AppError('invalid', 'auth.no-session', 'This is no dashboard session.');
        await commands.send('api_key', exchange.principal.id, 'revoke', exchange.command({}, null));
        authenticator.forget(exchange.principal.id);
        return { id: exchange.principal.id, type: 'dashboard_session_deleted' };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/x/status',
      id: 'platformStatus',
      summary: 'Services, queue depth, relay lag and sandboxes.',
      answer: platformStatus,
      handle: async (exchange): Promise<PlatformStatus> => {
        const { workspaceId } = exchange.principal;
        const [counts, deadLetters] = await Promise.all([countsOf(workspaceId), parts.deadLetters()]);
        const beats = parts.beats();
        const relay = beats.find((beat) => beat.service === 'session' && beat.figures['relay_leading'] === true);
        return {
          demo_gateway: parts.demoGateway,
          services: beats.map((beat) => ({
            service: beat.service,
            instance: beat.instance,
            started_at: beat.startedAt,
            memory_bytes: beat.memoryBytes,
            figures: beat.figures,
          })),
          ...counts,
          relay: relay === undefined ? null : { instance: relay.instance, lag_ms: lagOf(relay) },
          dead_letters: deadLetters,
        };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/x/capabilities',
      id: 'capabilities',
      summary: 'What this platform has beyond the wire contract, and what it has not yet.',
      answer: capabilities,
      handle: async () => ({
        resume_by_cursor: true,
        quick_sessions: true,
        contexts: true,
        steering: true,
        harnesses: [{ type: HARNESS_NATIVE, version: null }, ...harnessesOf(parts.beats())],
        file_max_bytes: parts.fileMaxBytes,
        not_supported_yet: [...NOT_BUILT.map(({ name }) => name), ...NOT_BUILT_FIELDS],
      }),
    }),
  ];
}

function lagOf(relay: ServiceBeat): number | null {
  const lagMs = relay.figures['relay_lagMs'];
  return typeof lagMs === 'number' ? lagMs : null;
}

/** Those that every session service has: an agent's turns are run by any of them. */
function harnessesOf(beats: readonly ServiceBeat[]): { type: string; version: string | null }[] {
  const named = beats
    .filter(({ service }) => service === 'session')
    .map(({ figures }) => String(figures['harnesses'] ?? '').split(','));
  const [first = [], ...others] = named;
  return first
    .filter((one) => one !== '' && others.every((names) => names.includes(one)))
    .map((one) => {
      const [type = '', version = ''] = one.split('@');
      return { type, version: version === '' ? null : version };
    });
}

/** Asks at most once per key in `ttlMs`; who asks in between shares the answer. */
function shared<T>(ttlMs: number, ask: (key: string) => Promise<T>): (key: string) => Promise<T> {
  const answers = new Map<string, Promise<T>>();
  return (key) => {
    const known = answers.get(key);
    if (known !== undefined) return known;
    const answer = ask(key);
    answers.set(key, answer);
    setTimeout(() => answers.delete(key), ttlMs).unref();
    return answer;
  };
}
