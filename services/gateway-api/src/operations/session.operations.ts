import {
  AppError,
  addSessionResourceBody,
  createSessionBody,
  deleted,
  EVENT_DELTAS,
  eventDeltaFrame,
  eventStartFrame,
  exportLine,
  forkSessionBody,
  isId,
  LIMITS,
  newId,
  pageOf,
  primaryThread,
  primaryThreadId,
  quickSessionBody,
  SESSION_STATUSES,
  type SendEventsReply,
  type Session,
  type SessionFileResource,
  sendEventsBody,
  sessionEventResource,
  sessionFileResource,
  sessionResourceSchema,
  streamOf,
  threadResource,
  timelinePage,
  updateSessionBody,
} from '@holdfast/contracts';
import { z } from 'zod';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { ContentBlobs } from '../data/content.blobs.ts';
import type { EventReader } from '../data/event.reader.ts';
import type { ModelCatalogue } from '../data/model.catalogue.ts';
import { exportLines } from '../data/session-export.ts';
import type { Commands, Exchange } from '../http/exchange.ts';
import type { Query } from '../http/query.ts';
import type { StreamHub } from '../stream/stream-hub.ts';
import { pathId } from './catalogue.operations.ts';
import { type Operation, operation, WORKSPACE_CALLERS } from './operation.ts';

type ForkBody = z.infer<typeof forkSessionBody>;

const DEFAULT_ENVIRONMENT = 'default';
const CREATED_AT = ['created_at[gt]', 'created_at[gte]', 'created_at[lt]', 'created_at[lte]'];

/** A worker reads its session and answers its calls. */
const WITH_WORKER = [...WORKSPACE_CALLERS, 'work_token'] as const;
const RESULTS: ReadonlySet<string> = new Set(['user.tool_result', 'user.custom_tool_result']);

const sentEvents = z.strictObject({ data: z.array(sessionEventResource) });
const streamed = z.union([sessionEventResource, eventStartFrame, eventDeltaFrame]);

/** @throws AppError `thread.not-found` for any thread but the session's primary one. */
function requirePrimary(sessionId: string, threadId: string): void {
  if (threadId === primaryThreadId(sessionId)) return;
  throw new AppError('not-found', 'thread.not-found', `The session has no thread ${threadId.slice(0, 100)}.`);
}

function noResource(id: string): AppError {
  return new AppError('not-found', 'resource.not-found', `The session has no resource ${id.slice(0, 100)}.`);
}

/** They are few and all at hand: a page is named by the id of the one before it. */
function resourcePage(all: readonly SessionFileResource[], query: Query) {
  const after = query.one('page');
  const place = after === undefined ? -1 : all.findIndex(({ id }) => id === after);
  if (after !== undefined && place < 0)
    throw new AppError(
      'invalid',
      'request.invalid-page',
      'query parameter "page" names no resource; start again without it',
    );
  const limit = query.limit(LIMITS.sessionResources);
  const data = all.slice(place + 1, place + 1 + limit);
  return { data, next_page: place + 1 + limit < all.length ? (data.at(-1)?.id ?? null) : null };
}

export function sessionOperations(parts: {
  reader: CatalogueReader;
  events: EventReader;
  commands: Commands;
  models: ModelCatalogue;
  streams: StreamHub;
  blobs: ContentBlobs;
}): Operation[] {
  const { reader, events, commands, models, streams, blobs } = parts;

  /** What a new session is made of: its model is offered, and its first messages are as the bus takes them. */
  const ingredients = async (
    workspaceId: string,
    { agent, environment_id, initial_events }: Pick<ForkBody, 'agent' | 'environment_id' | 'initial_events'>,
  ): Promise<readonly object[]> => {
    const overrides = typeof agent === 'object' && agent?.type === 'agent_with_overrides' ? agent : null;
    const model = overrides?.model;
    await models.require(typeof model === 'string' ? model : model?.id);
    const agentId = typeof agent === 'string' ? agent : agent?.id;
    return blobs.swap(workspaceId, initial_events ?? [], () =>
      Promise.all([
        agentId === undefined ? null : reader.agent(workspaceId, agentId),
        environment_id == null ? null : reader.environment(workspaceId, environment_id),
      ]),
    );
  };

  const create = async (exchange: Exchange, body: z.infer<typeof createSessionBody>): Promise<Session> => {
    const { fork_from, ...rest } = body;
    if (fork_from != null) {
      const { agent, environment_id, title, metadata, initial_events } = rest;
      const { session_id, ...place } = fork_from;
      return fork(exchange, session_id, { ...place, agent, environment_id, title, metadata, initial_events });
    }
    const initial = await ingredients(exchange.principal.workspaceId, body);
    return commands.send(
      'session',
      newId('session'),
      'create',
      exchange.command({ ...rest, initial_events: initial }, exchange.idempotency),
    );
  };

  const fork = async (
    exchange: Exchange,
    sessionId: string,
    { at_event_id, at_version, ...rest }: ForkBody,
  ): Promise<Session> => {
    const { workspaceId } = exchange.principal;
    const { version: head } = await reader.sessionView(workspaceId, sessionId);
    const at = at_event_id ?? at_version;
    const version = at == null ? head : await events.placeOf(sessionId, String(at), head);
    const initial = await ingredients(workspaceId, rest);
    return commands.send(
      'session',
      newId('session'),
      'fork',
      exchange.command(
        { ...rest, from: { session_id: sessionId, version }, initial_events: initial },
        exchange.idempotency,
      ),
    );
  };

  /** `Last-Event-ID` or `?after=`: a log version or an event id of this session; null = from now on. */
  const cursorOf = async (exchange: Exchange, sessionId: string, head: number): Promise<number | null> => {
    // The header first: an EventSource that reconnects repeats its first URL and says in the header how far it came.
    const given = exchange.header('last-event-id') || exchange.query.one('after');
    if (given === undefined) return null;
    if (isId('event', given)) return events.versionOf(sessionId, given);
    const version = /^\d{1,10}$/.test(given) ? Number(given) : Number.NaN;
    if (!(version <= head)) {
      throw new AppError(
        'invalid',
        'stream.cursor',
        `"after" must be a log version from 0 to ${head} or the id of one of the session's events.`,
      );
    }
    return version;
  };

  const listEvents = async (exchange: Exchange): Promise<unknown> => {
    const { workspaceId } = exchange.principal;
    const id = pathId(exchange, 'session');
    return events.list(await reader.sessionView(workspaceId, id), exchange.query);
  };

  const resourcesOf = async (exchange: Exchange): Promise<readonly SessionFileResource[]> =>
    (await reader.session(exchange.principal.workspaceId, pathId(exchange, 'session'))).resources;

  const streamEvents = async (exchange: Exchange): Promise<void> => {
    const id = pathId(exchange, 'session');
    const { workspaceId } = exchange.principal;
    const view = await reader.sessionView(workspaceId, id);
    const deltas = exchange.query.choices('event_deltas', EVENT_DELTAS);
    const cursor = await cursorOf(exchange, id, view.version);
    streams.admit(exchange.principal);
    exchange.reply.hijack();
    const response = exchange.reply.raw;
    for (const [name, value] of Object.entries(exchange.reply.getHeaders()))
      if (value !== undefined) response.setHeader(name, value);
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
      connection: 'keep-alive',
    });
    await streams.serve(response, { id, workspaceId, ended: view.archivedAt !== null }, exchange.principal, cursor, {
      ...(deltas.includes('agent.message') ? { 'agent.message': 'text' } : {}),
      // The contract shows no more than that thinking began, and its clients fail on more.
      ...(deltas.includes('agent.thinking') ? { 'agent.thinking': 'start' } : {}),
      ...(deltas.includes('x_agent.thinking') ? { 'agent.thinking': 'text' } : {}),
    });
  };

  return [
    operation({
      method: 'POST',
      path: '/v1/sessions',
      id: 'createSession',
      summary: 'Create a session; with initial_events it starts to work at once.',
      answer: sessionResourceSchema,
      body: createSessionBody,
      takesContent: true,
      handle: (exchange) => create(exchange, exchange.body),
    }),
    operation({
      method: 'POST',
      path: '/api/sessions',
      id: 'quickSession',
      summary: 'The short form: an agent and a prompt, in the default environment.',
      answer: sessionResourceSchema,
      body: quickSessionBody,
      takesContent: true,
      handle: async (exchange) => {
        const { agent_id, prompt, environment_id, title, context_key } = exchange.body;
        const environment =
          environment_id ?? (await reader.environmentNamed(exchange.principal.workspaceId, DEFAULT_ENVIRONMENT));
        return create(
          exchange,
          createSessionBody.parse({
            agent: agent_id,
            environment_id: environment,
            ...(title === undefined ? {} : { title }),
            ...(context_key === undefined ? {} : { x_context_key: context_key }),
            ...(prompt === undefined
              ? {}
              : { initial_events: [{ type: 'user.message', content: [{ type: 'text', text: prompt }] }] }),
          }),
        );
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions',
      id: 'listSessions',
      summary: 'List sessions, newest first.',
      answer: pageOf(sessionResourceSchema),
      query: [
        'agent_id',
        'agent_version',
        'statuses[]',
        'include_archived',
        'order',
        'limit',
        'page',
        ...CREATED_AT,
        'x_family',
        'x_needs_action',
        'x_text',
      ],
      handle: (exchange) => reader.sessions(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id',
      id: 'retrieveSession',
      callers: WITH_WORKER,
      summary: 'A session; with `at`, as it was then.',
      answer: sessionResourceSchema,
      query: ['at'],
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const at = exchange.query.one('at');
        if (at === undefined) return reader.session(exchange.principal.workspaceId, id);
        const { version } = await reader.sessionView(exchange.principal.workspaceId, id);
        return events.sessionAt(id, await events.placeOf(id, at, version));
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id',
      id: 'updateSession',
      summary: 'Change title, metadata or tools of an idle session.',
      answer: sessionResourceSchema,
      body: updateSessionBody,
      handle: (exchange) =>
        commands.send(
          'session',
          pathId(exchange, 'session'),
          'update',
          exchange.command(exchange.body, exchange.idempotency),
        ),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/archive',
      id: 'archiveSession',
      summary: 'Archive an idle session; its events stay.',
      answer: sessionResourceSchema,
      handle: (exchange) =>
        commands.send('session', pathId(exchange, 'session'), 'archive', exchange.command({}, exchange.idempotency)),
    }),
    operation({
      method: 'DELETE',
      path: '/v1/sessions/:id',
      id: 'deleteSession',
      summary: 'Delete a session that is not running.',
      answer: deleted('session_deleted'),
      handle: (exchange) =>
        commands.send('session', pathId(exchange, 'session'), 'delete', exchange.command({}, exchange.idempotency)),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/fork',
      id: 'forkSession',
      summary: 'A new session that begins with this one’s events up to a point; its workspace is new and empty.',
      answer: sessionResourceSchema,
      body: forkSessionBody,
      takesContent: true,
      handle: (exchange) => fork(exchange, pathId(exchange, 'session'), exchange.body),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/events',
      id: 'sendEvents',
      callers: WITH_WORKER,
      summary: 'Send messages, interrupts, confirmations and tool results. Answered once they are stored.',
      answer: sentEvents,
      body: sendEventsBody,
      takesContent: true,
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const { workspaceId } = exchange.principal;
        for (const event of exchange.body.events) {
          if (exchange.principal.bound !== null && !RESULTS.has(event.type)) {
            throw new AppError('forbidden', 'auth.results-only', `A worker sends results of calls, not ${event.type}.`);
          }
          if ('session_thread_id' in event && event.session_thread_id != null)
            requirePrimary(id, event.session_thread_id);
        }
        const swapped = await blobs.swap(workspaceId, exchange.body.events, () => reader.openSession(workspaceId, id));
        const reply = await commands.send<SendEventsReply>(
          'session',
          id,
          'send-events',
          exchange.command({ events: swapped }, exchange.idempotency),
        );
        return {
          data: await Promise.all(reply.data.map((event) => blobs.inline(workspaceId, event))),
        };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/events',
      id: 'listEvents',
      callers: WITH_WORKER,
      summary: 'Events of a session.',
      answer: pageOf(sessionEventResource),
      query: ['types[]', 'order', 'limit', 'page', ...CREATED_AT],
      handle: listEvents,
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/events/stream',
      id: 'streamEvents',
      callers: WITH_WORKER,
      summary: 'Events as they come (SSE). With a cursor everything after it first.',
      answer: streamed,
      query: ['event_deltas[]', 'after'],
      streams: true,
      handle: streamEvents,
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/events/export',
      id: 'exportEvents',
      summary: 'The whole log up to now as lines of JSON, chained by hashes. The last line says that it is whole.',
      answer: exportLine,
      lines: true,
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const { workspaceId } = exchange.principal;
        const { version } = await reader.sessionView(workspaceId, id);
        exchange.reply.header('content-disposition', `attachment; filename="${id}.ndjson"`);
        return exportLines(id, events.shown(workspaceId, id, version));
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/resources',
      id: 'listResources',
      summary: 'Resources of a session, oldest first.',
      answer: pageOf(sessionFileResource),
      query: ['limit', 'page'],
      handle: async (exchange) => resourcePage(await resourcesOf(exchange), exchange.query),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/resources',
      id: 'addResource',
      summary: 'Put a file into the session’s sandbox, before its next call.',
      answer: sessionFileResource,
      body: addSessionResourceBody,
      handle: (exchange) =>
        commands.send(
          'session',
          pathId(exchange, 'session'),
          'add-resource',
          exchange.command(exchange.body, exchange.idempotency),
        ),
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/resources/:resource',
      id: 'retrieveResource',
      summary: 'A resource of a session.',
      answer: sessionFileResource,
      handle: async (exchange) => {
        const id = exchange.param('resource');
        const found = (await resourcesOf(exchange)).find((one) => one.id === id);
        if (found === undefined) throw noResource(id);
        return found;
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/resources/:resource',
      id: 'updateResource',
      summary: 'Refused: of a file nothing can be changed.',
      answer: sessionFileResource,
      handle: async (exchange) => {
        const id = exchange.param('resource');
        if (!(await resourcesOf(exchange)).some((one) => one.id === id)) throw noResource(id);
        throw new AppError('invalid', 'resource.fixed', 'Of a file nothing can be changed; delete it and add another.');
      },
    }),
    operation({
      method: 'DELETE',
      path: '/v1/sessions/:id/resources/:resource',
      id: 'deleteResource',
      summary: 'Take a file away from a session; what is in its sandbox already stays.',
      answer: deleted('session_resource_deleted'),
      handle: (exchange) =>
        commands.send(
          'session',
          pathId(exchange, 'session'),
          'remove-resource',
          exchange.command({ resourceId: exchange.param('resource') }, exchange.idempotency),
        ),
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/threads',
      id: 'listThreads',
      summary: 'Threads of a session: the primary one.',
      answer: pageOf(threadResource),
      query: ['statuses[]', 'limit', 'page'],
      handle: async (exchange) => {
        const session = await reader.session(exchange.principal.workspaceId, pathId(exchange, 'session'));
        const statuses = exchange.query.choices('statuses', SESSION_STATUSES);
        const shown = statuses.length === 0 || statuses.includes(session.status);
        return { data: shown ? [primaryThread(session)] : [], next_page: null };
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/threads/:thread',
      id: 'retrieveThread',
      summary: 'The primary thread.',
      answer: threadResource,
      handle: async (exchange) => {
        const session = await reader.session(exchange.principal.workspaceId, pathId(exchange, 'session'));
        requirePrimary(session.id, exchange.param('thread'));
        return primaryThread(session);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/threads/:thread/events',
      id: 'listThreadEvents',
      summary: 'Events of the primary thread: those of the session.',
      answer: pageOf(sessionEventResource),
      query: ['limit', 'page'],
      handle: (exchange) => {
        requirePrimary(pathId(exchange, 'session'), exchange.param('thread'));
        return listEvents(exchange);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/threads/:thread/stream',
      id: 'streamThreadEvents',
      summary: 'Events of the primary thread as they come (SSE): those of the session.',
      answer: streamed,
      query: ['event_deltas[]', 'after'],
      streams: true,
      handle: (exchange) => {
        requirePrimary(pathId(exchange, 'session'), exchange.param('thread'));
        return streamEvents(exchange);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/x/timeline',
      id: 'sessionTimeline',
      summary: 'The session’s log as it is stored, internal events too.',
      answer: timelinePage,
      query: ['after', 'limit'],
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        await reader.sessionView(exchange.principal.workspaceId, id);
        return events.timeline(streamOf('session', id), exchange.query);
      },
    }),
  ];
}
