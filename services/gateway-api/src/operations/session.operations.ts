import {
  AppError,
  type ClientEventParam,
  type ContentBlock,
  createSessionBody,
  isId,
  LIMITS,
  newId,
  quickSessionBody,
  type Session,
  type StoredBlock,
  sendEventsBody,
  UNSUPPORTED_CLIENT_EVENTS,
  unsupportedToolFault,
  updateSessionBody,
} from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
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
  blobs: BlobStore;
}): Operation[] {
  const { reader, events, commands, models, streams, blobs } = parts;

  /** Content above the inline bound travels and is stored as a digest (B4). */
  const swapBlock = async (workspaceId: string, block: ContentBlock): Promise<StoredBlock> => {
    const json = JSON.stringify(block);
    if (json.length <= LIMITS.inlineBytes) return block;
    const { digest, sizeBytes } = await blobs.put(workspaceId, Buffer.from(json));
    return { type: 'x_blob', digest, size_bytes: sizeBytes };
  };
  const swapBlobs = (workspaceId: string, list: readonly ClientEventParam[]) =>
    Promise.all(
      list.map(async (event) =>
        (event.type === 'user.message' || event.type === 'user.custom_tool_result') && event.content != null
          ? { ...event, content: await Promise.all(event.content.map((block) => swapBlock(workspaceId, block))) }
          : event,
      ),
    );

  const create = async (exchange: Exchange, body: ReturnType<typeof createSessionBody.parse>): Promise<Session> => {
    const overrides = typeof body.agent === 'object' && body.agent.type === 'agent_with_overrides' ? body.agent : null;
    if (overrides !== null) {
      const fault = unsupportedToolFault(overrides.tools ?? []);
      if (fault !== undefined) throw new AppError('invalid', 'agent.unsupported-tool', fault);
      await models.require(typeof overrides.model === 'string' ? overrides.model : overrides.model?.id);
    }
    const initial = await swapBlobs(exchange.principal.workspaceId, body.initial_events ?? []);
    return commands.send(
      'session',
      newId('session'),
      'create',
      exchange.command({ ...body, initial_events: initial }, exchange.idempotency),
    );
  };

  /** `?after=` or `Last-Event-ID`: a log version or an event id of this session; null = from now on. */
  const cursorOf = async (exchange: Exchange, sessionId: string, head: number): Promise<number | null> => {
    const given = exchange.query.one('after') ?? exchange.header('last-event-id');
    if (given === undefined || given === '') return null;
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
      handle: (exchange) => create(exchange, exchange.body),
    }),
    operation({
      method: 'POST',
      path: '/api/sessions',
      id: 'quickSession',
      summary: 'The short form: an agent and a prompt, in the default environment.',
      body: quickSessionBody,
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
      handle: async (exchange) => {
        const id = pathId(exchange, 'session');
        const swapped = await swapBlobs(exchange.principal.workspaceId, exchange.body.events);
        const reply = await commands.send<{ data: Parameters<EventReader['inline']>[1][] }>(
          'session',
          id,
          'send-events',
          exchange.command({ events: swapped }, exchange.idempotency),
        );
        return {
          data: await Promise.all(reply.data.map((event) => events.inline(exchange.principal.workspaceId, event))),
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
      handle: async (exchange) =>
        events.list(
          await reader.sessionView(exchange.principal.workspaceId, pathId(exchange, 'session')),
          exchange.query,
        ),
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
        response.writeHead(200, {
          'content-type': 'text/event-stream; charset=utf-8',
          'cache-control': 'no-cache, no-transform',
          'x-accel-buffering': 'no',
          'x-content-type-options': 'nosniff',
          connection: 'keep-alive',
          'request-id': exchange.request.id,
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
      handle: async (exchange) => {
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
