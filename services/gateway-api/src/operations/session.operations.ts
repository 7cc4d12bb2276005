import {
  AppError,
  createSessionBody,
  isId,
  newId,
  quickSessionBody,
  type SendEventsReply,
  type Session,
  sendEventsBody,
  type TimelinePage,
  UNSUPPORTED_CLIENT_EVENTS,
  unsupportedToolFault,
  updateSessionBody,
} from '@holdfast/contracts';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { ContentBlobs } from '../data/content.blobs.ts';
import type { EventReader } from '../data/event.reader.ts';
import type { ModelCatalogue } from '../data/model.catalogue.ts';
import type { Commands, Exchange } from '../http/exchange.ts';
import type { StreamHub } from '../stream/stream-hub.ts';
import { pathId } from './catalogue.operations.ts';
import { type Operation, operation } from './operation.ts';

const DEFAULT_ENVIRONMENT = 'default';
const TIMELINE_PAGE = 200;

export function sessionOperations(parts: {
  reader: CatalogueReader;
  events: EventReader;
  commands: Commands;
  models: ModelCatalogue;
  streams: StreamHub;
  blobs: ContentBlobs;
}): Operation[] {
  const { reader, events, commands, models, streams, blobs } = parts;

  const create = async (exchange: Exchange, body: ReturnType<typeof createSessionBody.parse>): Promise<Session> => {
    const overrides = typeof body.agent === 'object' && body.agent.type === 'agent_with_overrides' ? body.agent : null;
    if (overrides !== null) {
      const fault = unsupportedToolFault(overrides.tools ?? []);
      if (fault !== undefined) throw new AppError('invalid', 'agent.unsupported-tool', fault);
      await models.require(typeof overrides.model === 'string' ? overrides.model : overrides.model?.id);
    }
    const { workspaceId } = exchange.principal;
    const agentId = typeof body.agent === 'string' ? body.agent : body.agent.id;
    const initial = await blobs.swap(workspaceId, body.initial_events ?? [], () =>
      Promise.all([reader.agent(workspaceId, agentId), reader.environment(workspaceId, body.environment_id)]),
    );
    return commands.send(
      'session',
      newId('session'),
      'create',
      exchange.command({ ...body, initial_events: initial }, exchange.idempotency),
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

  return [
    operation({
      method: 'POST',
      path: '/v1/sessions',
      id: 'createSession',
      summary: 'Create a session; with initial_events it starts to work at once.',
      body: createSessionBody,
      takesContent: true,
      handle: (exchange) => create(exchange, exchange.body),
    }),
    operation({
      method: 'POST',
      path: '/api/sessions',
      id: 'quickSession',
      summary: 'The short form: an agent and a prompt, in the default environment.',
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
      query: [
        'agent_id',
        'agent_version',
        'statuses[]',
        'include_archived',
        'order',
        'limit',
        'page',
        'created_at[gte]',
        'created_at[lte]',
        'created_at[gt]',
        'created_at[lt]',
        'x_needs_action',
        'x_text',
      ],
      handle: (exchange) => reader.sessions(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id',
      id: 'retrieveSession',
      summary: 'A session.',
      handle: (exchange) => reader.session(exchange.principal.workspaceId, pathId(exchange, 'session')),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id',
      id: 'updateSession',
      summary: 'Change title, metadata or, while idle, the tools.',
      body: updateSessionBody,
      handle: (exchange) => {
        const fault = unsupportedToolFault(exchange.body.agent?.tools ?? []);
        if (fault !== undefined) throw new AppError('invalid', 'agent.unsupported-tool', fault);
        return commands.send(
          'session',
          pathId(exchange, 'session'),
          'update',
          exchange.command(exchange.body, exchange.idempotency),
        );
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/archive',
      id: 'archiveSession',
      summary: 'Archive an idle session; its events stay.',
      handle: (exchange) =>
        commands.send('session', pathId(exchange, 'session'), 'archive', exchange.command({}, exchange.idempotency)),
    }),
    operation({
      method: 'DELETE',
      path: '/v1/sessions/:id',
      id: 'deleteSession',
      summary: 'Delete a session that is not running.',
      handle: (exchange) => commands.send('session', pathId(exchange, 'session'), 'delete', exchange.command({}, null)),
    }),
    operation({
      method: 'POST',
      path: '/v1/sessions/:id/events',
      id: 'sendEvents',
      summary: 'Send messages, interrupts, confirmations and tool results. Answered once they are stored.',
      body: sendEventsBody,
      takesContent: true,
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const { workspaceId } = exchange.principal;
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
      summary: 'Events of a session.',
      query: [
        'types[]',
        'order',
        'limit',
        'page',
        'created_at[gte]',
        'created_at[lte]',
        'created_at[gt]',
        'created_at[lt]',
      ],
      handle: async (exchange) => {
        const { workspaceId } = exchange.principal;
        const id = pathId(exchange, 'session');
        await reader.sessionView(workspaceId, id);
        return events.list(workspaceId, id, exchange.query);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/events/stream',
      id: 'streamEvents',
      summary: 'Events as they come (SSE). With a cursor everything after it first.',
      query: ['event_deltas[]', 'after'],
      streams: true,
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const { workspaceId } = exchange.principal;
        const view = await reader.sessionView(workspaceId, id);
        const deltas = exchange.query.choices('event_deltas', ['agent.message', 'agent.thinking']);
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
        await streams.serve(
          response,
          { id, workspaceId, ended: view.archivedAt !== null },
          exchange.principal,
          cursor,
          deltas.includes('agent.message'),
        );
        return undefined;
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/sessions/:id/x/timeline',
      id: 'sessionTimeline',
      summary: 'The session’s log as it is stored, internal events too.',
      query: ['after', 'limit'],
      handle: async (exchange): Promise<TimelinePage> => {
        const id = pathId(exchange, 'session');
        await reader.sessionView(exchange.principal.workspaceId, id);
        const after = exchange.query.integer('after', { min: 0, max: 2 ** 31 - 1 }) ?? 0;
        const limit = exchange.query.limit(TIMELINE_PAGE, 1_000);
        const page = await events.timeline(id, after, limit + 1);
        const data = page
          .slice(0, limit)
          .map(({ id: eventId, version, type, schemaVersion, recordedAt, data: body, metadata }) => ({
            id: eventId,
            version,
            type,
            schema_version: schemaVersion,
            recorded_at: recordedAt,
            data: body,
            metadata,
          }));
        return { data, next_after: page.length > limit ? (data[data.length - 1]?.version ?? null) : null };
      },
    }),
  ];
}

/** Names a client event type that is known and not built yet, before the schema calls it unknown. */
export function unsupportedEventFault(body: unknown): string | undefined {
  const list =
    typeof body === 'object' && body !== null && 'events' in body && Array.isArray(body.events)
      ? (body.events as unknown[])
      : [];
  for (const event of list) {
    const type: unknown = typeof event === 'object' && event !== null && 'type' in event ? event.type : undefined;
    const known = UNSUPPORTED_CLIENT_EVENTS.find((one) => one === type);
    if (known !== undefined) return `the event type "${known}" is not supported yet`;
  }
  return undefined;
}
