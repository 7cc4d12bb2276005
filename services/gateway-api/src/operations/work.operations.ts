import {
  AppError,
  type EnvironmentKeyResource,
  environmentKeyResource,
  isId,
  LIMITS,
  MAX_LEASE_SECONDS,
  NO_HEARTBEAT,
  newId,
  POLL_BLOCK_MAX_MS,
  pageOf,
  RECLAIM_AFTER_MS,
  sessionWorker,
  stopWorkBody,
  updateWorkBody,
  type Work,
  workHeartbeat,
  workResource,
  workStats,
} from '@holdfast/contracts';
import { z } from 'zod';
import { keyOf, mintCredential } from '../auth/authenticator.ts';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { Commands, Exchange } from '../http/exchange.ts';
import { pathId } from './catalogue.operations.ts';
import { type Operation, operation } from './operation.ts';

const createKeyBody = z.strictObject({ name: z.string().trim().min(1).max(LIMITS.nameChars) });
const WORKER_ID = /^[\x21-\x7e]{1,128}$/;
const RECLAIM_MAX_MS = 24 * 3_600_000;

function workId(exchange: Exchange): string {
  const id = exchange.param('work');
  if (!isId('work', id))
    throw new AppError('not-found', 'work.not-found', `There is no work item ${id.slice(0, 100)}.`);
  return id;
}

/** What its worker reads the token out of. */
function secretOf(token: string): string {
  return Buffer.from(JSON.stringify({ sessions_token: token })).toString('base64url');
}

function workerId(exchange: Exchange): string | null {
  const id = exchange.header('anthropic-worker-id');
  if (id === undefined || WORKER_ID.test(id)) return id ?? null;
  throw new AppError('invalid', 'request.worker-id', 'Anthropic-Worker-ID must be 1 to 128 printable characters.');
}

/** The lane of environment workers: their keys, and the work that they poll for, keep and end. */
export function workOperations({ reader, commands }: { reader: CatalogueReader; commands: Commands }): Operation[] {
  const send = <R>(exchange: Exchange, verb: string, body: object): Promise<R> =>
    commands.send('environment', pathId(exchange, 'environment'), verb, exchange.command(body, null));

  return [
    operation({
      method: 'POST',
      path: '/v1/x/environments/:id/keys',
      id: 'createEnvironmentKey',
      summary: 'Create a key for the workers of a self_hosted environment. Its text is in this answer only.',
      answer: environmentKeyResource.extend({ key: z.string() }),
      body: createKeyBody,
      handle: async (exchange) => {
        const { text, hash, hint } = mintCredential('environment_key');
        const made = await commands.send<EnvironmentKeyResource>(
          'api_key',
          newId('apiKey'),
          'create',
          exchange.command(
            { name: exchange.body.name, hash, hint, environment_id: pathId(exchange, 'environment') },
            exchange.idempotency,
          ),
        );
        return { ...made, key: text };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/x/environments/:id/keys',
      id: 'listEnvironmentKeys',
      summary: 'List the keys of an environment’s workers; no answer holds a key’s text.',
      answer: pageOf(environmentKeyResource),
      query: ['limit', 'page'],
      handle: (exchange) =>
        reader.environmentKeys(exchange.principal.workspaceId, pathId(exchange, 'environment'), exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments/:id/work/poll',
      id: 'pollWork',
      summary: 'The session that waits longest for a worker, as a work item with its secret; null when none waits.',
      answer: workResource.nullable(),
      callers: ['environment_key'],
      query: ['block_ms', 'reclaim_older_than_ms'],
      handle: async (exchange) => {
        const { text, hash, hint } = mintCredential('work_token');
        const work = await send<Work | null>(exchange, 'poll-work', {
          worker_id: workerId(exchange),
          block_ms: exchange.query.integer('block_ms', { min: 1, max: POLL_BLOCK_MAX_MS }) ?? 0,
          reclaim_older_than_ms:
            exchange.query.integer('reclaim_older_than_ms', { min: 0, max: RECLAIM_MAX_MS }) ?? RECLAIM_AFTER_MS,
          token: { id: newId('apiKey'), hash, hint, parent_id: keyOf(exchange.principal) },
        });
        if (work !== null) return { ...work, secret: secretOf(text) };
        // Fastify would answer a null with nothing at all.
        exchange.reply.type('application/json; charset=utf-8');
        return 'null';
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id/work/:work/ack',
      id: 'acknowledgeWork',
      summary: 'The worker has the session from now on.',
      answer: workResource,
      callers: ['environment_key', 'work_token'],
      handle: (exchange) => send(exchange, 'ack-work', { work_id: workId(exchange) }),
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id/work/:work/heartbeat',
      id: 'heartbeatWork',
      summary: 'Keep the lease; 412 when it is another’s by now.',
      answer: workHeartbeat,
      callers: ['environment_key', 'work_token'],
      query: ['expected_last_heartbeat', 'desired_ttl_seconds'],
      handle: (exchange) => {
        const { query } = exchange;
        const expected = query.one('expected_last_heartbeat');
        return send(exchange, 'heartbeat-work', {
          work_id: workId(exchange),
          expected: expected === NO_HEARTBEAT ? NO_HEARTBEAT : (query.time('expected_last_heartbeat') ?? null),
          ttl_seconds: query.integer('desired_ttl_seconds', { min: 1, max: MAX_LEASE_SECONDS }) ?? null,
          repeated: exchange.idempotency.attempt > 0,
        });
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id/work/:work/stop',
      id: 'stopWork',
      summary: 'End a work item. From an API key without force: ask its worker to end it.',
      answer: workResource,
      body: stopWorkBody,
      callers: ['api_key', 'dashboard', 'environment_key', 'work_token'],
      handle: (exchange) =>
        send(exchange, 'stop-work', {
          work_id: workId(exchange),
          // Its own worker says so when it has ended by itself.
          now: exchange.body?.force === true || exchange.principal.bound !== null,
        }),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments/:id/work/stats',
      id: 'workStats',
      summary: 'How many sessions wait for a worker, and how many workers ask for work.',
      answer: workStats,
      handle: (exchange) => reader.workStats(exchange.principal.workspaceId, pathId(exchange, 'environment')),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments/:id/work',
      id: 'listWork',
      summary: 'List work items, newest first.',
      answer: pageOf(workResource),
      callers: ['environment_key', 'dashboard'],
      query: ['limit', 'page'],
      handle: (exchange) =>
        reader.works(exchange.principal.workspaceId, pathId(exchange, 'environment'), exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments/:id/work/:work',
      id: 'retrieveWork',
      summary: 'A work item.',
      answer: workResource,
      handle: (exchange) =>
        reader.work(exchange.principal.workspaceId, pathId(exchange, 'environment'), workId(exchange)),
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id/work/:work',
      id: 'updateWork',
      summary: 'Change a work item’s metadata.',
      answer: workResource,
      body: updateWorkBody,
      handle: (exchange) =>
        send(exchange, 'update-work', { work_id: workId(exchange), metadata: exchange.body.metadata }),
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/x/worker',
      id: 'sessionWorker',
      summary: 'Who runs a self-hosted session’s tools, and what waits for a worker.',
      answer: sessionWorker,
      handle: (exchange) => reader.sessionWorker(exchange.principal.workspaceId, pathId(exchange, 'session')),
    }),
  ];
}
