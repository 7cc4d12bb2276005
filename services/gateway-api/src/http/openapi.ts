import {
  agentResource,
  apiKeyResource,
  EVENT_DELTAS,
  environmentKeyResource,
  environmentResource,
  eventDeltaFrame,
  eventStartFrame,
  fileResource,
  jsonValue,
  LIMITS,
  MAX_LEASE_SECONDS,
  modelResource,
  POLL_BLOCK_MAX_MS,
  SANDBOX_STATUSES,
  SESSION_STATUSES,
  sandboxPoolResource,
  sandboxResource,
  sessionEventResource,
  sessionResourceSchema,
  threadResource,
  workResource,
} from '@holdfast/contracts';
import { z } from 'zod';
import type { Operation } from '../operations/operation.ts';

/** Schemas that more than one answer refers to, by their name in the document. */
const SHARED: Readonly<Record<string, z.ZodType>> = {
  Agent: agentResource,
  Environment: environmentResource,
  File: fileResource,
  Session: sessionResourceSchema,
  Thread: threadResource,
  Event: sessionEventResource,
  EventStart: eventStartFrame,
  EventDelta: eventDeltaFrame,
  Model: modelResource,
  ApiKey: apiKeyResource,
  Sandbox: sandboxResource,
  SandboxPool: sandboxPoolResource,
  EnvironmentKey: environmentKeyResource,
  Work: workResource,
};

const text = { type: 'string' };
const time = { type: 'string', format: 'date-time' };
const listOf = (...values: string[]) => ({ type: 'array', items: { type: 'string', enum: values } });
/** Query parameters; each means the same wherever it is taken. */
const QUERY: Readonly<Record<string, object>> = {
  limit: { type: 'integer', minimum: 1, maximum: LIMITS.modelListLimitMax },
  page: {
    ...text,
    description: '`next_page` or `prev_page` of an answer; of events also the id of one, to go on after it.',
  },
  order: { type: 'string', enum: ['asc', 'desc'] },
  include_archived: { type: 'boolean' },
  'created_at[gt]': time,
  'created_at[gte]': time,
  'created_at[lt]': time,
  'created_at[lte]': time,
  version: { type: 'integer', minimum: 1 },
  agent_id: text,
  agent_version: { type: 'integer', minimum: 1 },
  session_id: text,
  scope_id: { ...text, description: 'Only files of this session.' },
  'ids[]': {
    type: 'array',
    items: text,
    maxItems: LIMITS.fileIds,
    description: 'Only these; not with `page` or `limit`.',
  },
  environment_id: text,
  'status[]': listOf(...SANDBOX_STATUSES),
  'statuses[]': listOf(...SESSION_STATUSES),
  'types[]': { type: 'array', items: text },
  'event_deltas[]': listOf(...EVENT_DELTAS),
  after: { ...text, description: 'A log version or an event id; what follows is sent first. `0` is the start.' },
  at: { ...text, description: 'A log version or an event id: the session as it was right after it.' },
  x_family: {
    ...text,
    description: 'Only this session, what it was forked from, and whatever was forked from any of them.',
  },
  x_needs_action: { type: 'boolean', description: 'Only sessions that wait for the client.' },
  x_text: { ...text, description: 'Only sessions whose title or id holds this.' },
  block_ms: {
    type: 'integer',
    minimum: 1,
    maximum: POLL_BLOCK_MAX_MS,
    description: 'How long to wait for work; absent = not at all.',
  },
  reclaim_older_than_ms: {
    type: 'integer',
    minimum: 0,
    description: 'Items that were handed out so long ago and not acknowledged are handed out again.',
  },
  expected_last_heartbeat: {
    ...text,
    description: 'The newest answer’s `last_heartbeat`; `NO_HEARTBEAT` for the first.',
  },
  desired_ttl_seconds: { type: 'integer', minimum: 1, maximum: MAX_LEASE_SECONDS },
  lifecycle: { type: 'string', enum: ['active', 'deprecated', 'retired'] },
  after_id: text,
  before_id: text,
};

const header = (name: string, description: string) => ({ name, in: 'header', description, schema: text });
const IDEMPOTENCY = header('Idempotency-Key', 'The same request with the same key is stored once.');
const LAST_EVENT = header('Last-Event-ID', 'Like `after`, and counts before it.');

/** Statuses that carry the error envelope. */
const FAILURES: Readonly<Record<number, string>> = {
  400: 'The request is not valid, names what is not supported, or does not fit the state of the object.',
  401: 'The key is missing or not valid.',
  403: 'The credential may not do this.',
  404: 'There is no such object in the workspace of the key.',
  409: 'The request contradicts what is stored.',
  412: 'A worker’s lease is another’s by now.',
  413: 'The body is too large.',
  429: 'The key does too much at once.',
  503: 'A part of the platform is not there; try again.',
};

const errorSchema = {
  type: 'object',
  required: ['type', 'request_id', 'error'],
  properties: {
    type: { const: 'error' },
    request_id: text,
    error: {
      type: 'object',
      required: ['type', 'message', 'details'],
      properties: {
        type: text,
        message: text,
        details: { type: 'object', required: ['error_code'], properties: { error_code: text } },
      },
    },
  },
};

/** The OpenAPI 3.1 document of the operations. Bodies and answers come from the schemas that check and type them. */
export function openApiDocument(operations: readonly Operation[]): object {
  const bodies = z.registry<{ id: string }>();
  const answers = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(SHARED)) answers.add(schema, { id });
  for (const registry of [bodies, answers]) registry.add(jsonValue, { id: 'JsonValue' });
  const nameOf = (registry: typeof bodies, schema: z.ZodType, id: string): string => {
    if (!registry.has(schema)) registry.add(schema, { id });
    return registry.get(schema)?.id ?? id;
  };
  const paths: Record<string, Record<string, object>> = {};
  for (const one of operations) {
    const title = one.id.charAt(0).toUpperCase() + one.id.slice(1);
    const path = one.path.replace(/:(\w+)/g, '{$1}');
    const answer = one.downloads === true ? {} : ref(nameOf(answers, one.answer, `${title}Answer`));
    paths[path] = {
      ...paths[path],
      [one.method.toLowerCase()]: {
        operationId: one.id,
        summary: one.summary,
        ...(one.authenticated === false ? { security: [] } : {}),
        parameters: [
          ...[...one.path.matchAll(/:(\w+)/g)].map(([, name]) => ({ name, in: 'path', required: true, schema: text })),
          ...(one.query ?? []).map((name) => ({ name, in: 'query', schema: QUERY[name] ?? text })),
          // Signing in twice is two sign-ins.
          ...(one.method === 'GET' || /sign_in|dashboard_sessions/.test(one.path) ? [] : [IDEMPOTENCY]),
          ...(one.streams === true ? [LAST_EVENT] : []),
        ],
        ...(one.body === undefined
          ? {}
          : {
              requestBody: {
                required: !one.body.safeParse(undefined).success,
                content: { 'application/json': { schema: ref(nameOf(bodies, one.body, `${title}Body`)) } },
              },
            }),
        ...(one.upload === undefined
          ? {}
          : { requestBody: { required: true, content: { 'multipart/form-data': { schema: formOf(one.upload) } } } }),
        responses: {
          200: {
            ...contentOf(one, answer),
            headers: { 'request-id': { schema: text } },
          },
          ...Object.fromEntries(
            Object.keys(FAILURES).map((status) => [status, { $ref: `#/components/responses/${status}` }]),
          ),
          default: { $ref: '#/components/responses/default' },
        },
      },
    };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Holdfast',
      version: '0.1.0',
      description: 'Sessions of AI agents as event logs. Wire-compatible with Claude Managed Agents.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    security: [{ apiKey: [] }, { bearer: [] }],
    paths,
    components: {
      securitySchemes: {
        apiKey: { type: 'apiKey', in: 'header', name: 'x-api-key' },
        bearer: { type: 'http', scheme: 'bearer' },
      },
      responses: Object.fromEntries(
        [...Object.entries(FAILURES), ['default', 'Anything else that went wrong.'] as const].map(
          ([status, description]) => [
            status,
            {
              description,
              headers: {
                'request-id': { schema: text },
                'x-should-retry': { schema: { type: 'string', enum: ['true', 'false'] } },
                'retry-after': { description: 'Seconds, where trying again can help.', schema: { type: 'integer' } },
              },
              content: { 'application/json': { schema: ref('Error') } },
            },
          ],
        ),
      ),
      schemas: { Error: errorSchema, ...schemasOf(bodies, 'input'), ...schemasOf(answers, 'output') },
    },
  };
}

function contentOf(one: Operation, schema: object): { description: string; content: object } {
  if (one.streams === true)
    return {
      description: 'Server-sent events; each has one of these as its data.',
      content: { 'text/event-stream': { schema } },
    };
  if (one.lines === true)
    return { description: 'Lines; each is one of these.', content: { 'application/x-ndjson': { schema } } };
  if (one.downloads === true) {
    const bytes = { type: 'string', contentMediaType: 'application/octet-stream' };
    return { description: 'The bytes.', content: { '*/*': { schema: bytes } } };
  }
  return { description: 'OK', content: { 'application/json': { schema } } };
}

/** A form's `file`, and its other fields, which are text on the wire. */
function formOf(fields: z.ZodType): object {
  const { properties } = z.toJSONSchema(fields, { io: 'input' });
  return {
    type: 'object',
    required: ['file'],
    properties: { file: { type: 'string', contentMediaType: 'application/octet-stream' }, ...properties },
    additionalProperties: false,
  };
}

const ref = (name: string): object => ({ $ref: `#/components/schemas/${name}` });

function schemasOf(registry: z.core.$ZodRegistry<{ id: string }>, io: 'input' | 'output'): Record<string, object> {
  const { schemas } = z.toJSONSchema(registry, {
    io,
    unrepresentable: 'any',
    uri: (id) => `#/components/schemas/${id}`,
  });
  return Object.fromEntries(
    Object.entries(schemas).map(([name, { $schema: _dialect, $id: _place, ...schema }]) => [name, schema]),
  );
}
