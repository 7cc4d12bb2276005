import { z } from 'zod';
import { idSchema } from '../ids.ts';
import { jsonObject } from '../json-schema.ts';
import { SANDBOX_REASONS } from '../sandbox/sandbox.messages.ts';
import { agentSnapshot } from './agents.ts';
import { naming, text, timestamp } from './common.ts';
import { LIMITS } from './limits.ts';

/** A body that was moved to the blob store because it is above {@link LIMITS.inlineBytes}; never shown on the wire. */
export const blobReference = z.strictObject({
  type: z.literal('x_blob'),
  digest: z.string().regex(/^[0-9a-f]{64}$/),
  size_bytes: z.int().min(0),
});

export const textBlock = z.strictObject({ type: z.literal('text'), text: text(LIMITS.textChars, 1) });
const mediaType = z.string().regex(/^[\w.+-]{1,64}\/[\w.+-]{1,64}$/);
const base64Source = z.strictObject({
  type: z.literal('base64'),
  media_type: mediaType,
  data: z
    .string()
    .max(LIMITS.contentBodyBytes)
    .regex(/^[A-Za-z0-9+/_-]*={0,2}$/, 'must be base64'),
});
const urlSource = z.strictObject({ type: z.literal('url'), url: z.url({ protocol: /^https?$/ }).max(8_192) });
const textSource = z.strictObject({
  type: z.literal('text'),
  media_type: z.literal('text/plain'),
  data: text(LIMITS.textChars),
});
const imageBlock = z.strictObject({
  type: z.literal('image'),
  source: z.discriminatedUnion('type', [base64Source, urlSource], { error: naming('file') }),
});
const documentBlock = z.strictObject({
  type: z.literal('document'),
  source: z.discriminatedUnion('type', [base64Source, urlSource, textSource], { error: naming('file') }),
  title: text(LIMITS.nameChars).nullish(),
  context: text(LIMITS.descriptionChars).nullish(),
});
export const contentBlock = z.discriminatedUnion('type', [textBlock, imageBlock, documentBlock], {
  error: naming('search_result', 'redacted'),
});
export type ContentBlock = z.infer<typeof contentBlock>;
/** A content block as the log stores it: the wire's own, or a digest of one (the blob is the block's JSON). */
export const storedBlock = z.union([contentBlock, blobReference]);
export type StoredBlock = z.infer<typeof storedBlock>;
/**
 * A block of thinking as the model gave it and wants it back: without its signature it is worth nothing to the model.
 * Only its text is shown on the wire.
 */
export const thinkingBlock = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('thinking'), thinking: z.string(), signature: z.string().nullable() }),
  z.strictObject({ type: z.literal('redacted_thinking'), data: z.string() }),
]);
export type ThinkingBlock = z.infer<typeof thinkingBlock>;
const content = z.array(contentBlock).min(1).max(LIMITS.contentBlocks);

/** Only a session's primary thread exists so far; its id is checked where the session is known. */
const threadId = z.string().max(128).nullish();

export const clientEventParam = z.discriminatedUnion(
  'type',
  [
    z.strictObject({
      type: z.literal('user.message'),
      content,
      /** Additive: `true` hands the message to the running turn before its next model request (steering). */
      x_steer: z.boolean().optional(),
    }),
    z.strictObject({ type: z.literal('user.interrupt'), session_thread_id: threadId }),
    z.strictObject({
      type: z.literal('user.tool_confirmation'),
      tool_use_id: idSchema('event'),
      result: z.enum(['allow', 'deny']),
      deny_message: text(LIMITS.descriptionChars).nullish(),
      session_thread_id: threadId,
    }),
    z.strictObject({
      type: z.literal('user.custom_tool_result'),
      custom_tool_use_id: idSchema('event'),
      content: z.array(contentBlock).max(LIMITS.contentBlocks).nullish(),
      is_error: z.boolean().nullish(),
      session_thread_id: threadId,
    }),
    z.strictObject({
      type: z.literal('user.tool_result'),
      tool_use_id: idSchema('event'),
      content: z.array(contentBlock).max(LIMITS.contentBlocks).nullish(),
      is_error: z.boolean().nullish(),
      session_thread_id: threadId,
    }),
    z.strictObject({
      type: z.literal('system.message'),
      content: z
        .array(textBlock)
        .min(1)
        .max(LIMITS.contentBlocks)
        .refine(
          (list) => list.reduce((sum, { text: { length } }) => sum + length, 0) <= LIMITS.systemChars,
          `a system.message must have at most ${LIMITS.systemChars} characters`,
        ),
    }),
  ],
  { error: naming('user.define_outcome') },
);
export type ClientEventParam = z.infer<typeof clientEventParam>;

/** The list of client events of one request: bounded in number and in content blocks over all of them. */
export function clientEvents<E extends z.ZodType<ClientEventParam>>(event: E, maxEvents: number): z.ZodArray<E> {
  return z
    .array(event)
    .max(maxEvents)
    .refine(
      (events) =>
        events.reduce((sum, one) => sum + ('content' in one ? (one.content?.length ?? 0) : 0), 0) <=
        LIMITS.requestContentBlocks,
      `must have at most ${LIMITS.requestContentBlocks} content blocks over all events`,
    );
}

export const sendEventsBody = z.strictObject({
  events: clientEvents(clientEventParam, LIMITS.eventsPerRequest)
    .min(1)
    .superRefine((events, context) => {
      const systems = events.filter((event) => event.type === 'system.message');
      const before = events[events.length - 2];
      if (systems.length > 1 || (systems.length === 1 && events[events.length - 1]?.type !== 'system.message')) {
        context.addIssue({ code: 'custom', message: 'at most one system.message, as the last event' });
      } else if (
        systems.length === 1 &&
        before?.type !== 'user.message' &&
        before?.type !== 'user.custom_tool_result' &&
        before?.type !== 'user.tool_result'
      ) {
        context.addIssue({ code: 'custom', message: 'system.message must follow a user.message or a tool result' });
      }
    }),
});
export type SendEventsBody = z.infer<typeof sendEventsBody>;

/** An event as the wire shows it. */
export interface WireEvent {
  readonly id: string;
  readonly type: string;
  readonly processed_at: string | null;
  readonly [field: string]: unknown;
}

export const stopReason = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('end_turn') }),
  z.strictObject({ type: z.literal('requires_action'), event_ids: z.array(z.string()) }),
  z.strictObject({ type: z.literal('retries_exhausted') }),
  z.strictObject({ type: z.literal('refusal') }),
]);
export type StopReason = z.infer<typeof stopReason>;
/** What a model, or a guard before it, said of its refusal. */
export const refusal = z.strictObject({ category: z.string().nullable(), explanation: z.string().nullable() });
export type Refusal = z.infer<typeof refusal>;

export const modelUsage = z.strictObject({
  input_tokens: z.int().min(0),
  output_tokens: z.int().min(0),
  cache_creation_input_tokens: z.int().min(0),
  cache_read_input_tokens: z.int().min(0),
});
export type ModelUsage = z.infer<typeof modelUsage>;

export const SESSION_ERROR_TYPES = [
  'unknown_error',
  'model_overloaded_error',
  'model_rate_limited_error',
  'model_request_failed_error',
  'billing_error',
  'mcp_connection_failed_error',
  'mcp_authentication_failed_error',
  'tool_use_limit_reached_error',
  'compaction_limit_reached_error',
] as const;
export const sessionError = z.strictObject({
  type: z.enum(SESSION_ERROR_TYPES),
  message: z.string(),
  retry_status: z.strictObject({ type: z.enum(['retrying', 'exhausted', 'terminal']) }),
  /** Of the errors that an MCP server caused. */
  mcp_server_name: z.string().optional(),
  /** Our addition: what a session waits for, one of {@link SANDBOX_REASONS}. */
  x_reason: z.enum(SANDBOX_REASONS).optional(),
});
export type SessionError = z.infer<typeof sessionError>;

/**
 * Additive: where a forked session's log leaves another's; that one may be deleted since. The root is the
 * first ancestor, no fork itself. `checkpoint` is what the fork's
 * files were at first: those that were kept last at or before that place, with what calls had done up to its `version`;
 * null = none were, its workspace began empty. The calls in between, whose effects on files it does not have, are named.
 */
export const forkedFrom = z.strictObject({
  session_id: z.string(),
  root_session_id: z.string(),
  event_id: z.string(),
  version: z.int(),
  checkpoint: z.strictObject({ id: z.string(), version: z.int() }).nullable(),
  missing_tool_use_ids: z.array(z.string()),
});
export type ForkedFrom = z.infer<typeof forkedFrom>;

function frame<const T extends string, S extends z.ZodRawShape>(type: T, fields: S) {
  return z.strictObject({ id: z.string(), type: z.literal(type), processed_at: timestamp, ...fields });
}
function queuedFrame<const T extends string, S extends z.ZodRawShape>(type: T, fields: S) {
  return frame(type, fields).extend({ processed_at: timestamp.nullable() });
}
const costUsd = z.number().min(0);
const evaluation = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('always_allow') }),
  z.strictObject({ type: z.literal('always_ask') }),
]);

/** Every event of a session as lists and streams show it: what {@link wireFrame} makes. */
export const sessionEventResource = z.discriminatedUnion('type', [
  queuedFrame('user.message', { content: z.array(contentBlock) }),
  queuedFrame('system.message', { content: z.array(textBlock) }),
  frame('user.interrupt', {}),
  frame('user.tool_confirmation', {
    tool_use_id: z.string(),
    result: z.enum(['allow', 'deny']),
    deny_message: z.string().optional(),
  }),
  frame('user.custom_tool_result', {
    custom_tool_use_id: z.string(),
    content: z.array(contentBlock),
    is_error: z.boolean(),
  }),
  frame('user.tool_result', { tool_use_id: z.string(), content: z.array(contentBlock), is_error: z.boolean() }),
  frame('agent.message', { content: z.array(textBlock) }),
  /** `x_text` is our addition: what the model showed of its thinking; absent when it showed none. */
  frame('agent.thinking', { x_text: z.string().optional() }),
  frame('agent.tool_use', {
    name: z.string(),
    input: jsonObject,
    evaluated_permission: z.enum(['allow', 'ask', 'deny']),
    evaluation: evaluation.optional(),
  }),
  frame('agent.tool_result', { tool_use_id: z.string(), content: z.array(contentBlock), is_error: z.boolean() }),
  frame('agent.mcp_tool_use', {
    mcp_server_name: z.string(),
    name: z.string(),
    input: jsonObject,
    evaluated_permission: z.enum(['allow', 'ask', 'deny']),
    evaluation: evaluation.optional(),
  }),
  frame('agent.mcp_tool_result', {
    mcp_tool_use_id: z.string(),
    content: z.array(contentBlock),
    is_error: z.boolean(),
  }),
  frame('agent.custom_tool_use', { name: z.string(), input: jsonObject }),
  frame('agent.thread_context_compacted', { x_model_usage: modelUsage, x_cost_usd: costUsd.optional() }),
  frame('session.status_running', {}),
  frame('session.status_rescheduled', {}),
  frame('session.status_idle', {
    stop_reason: stopReason,
    stop_details: refusal.extend({ type: z.literal('refusal') }).nullable(),
  }),
  frame('session.status_terminated', {}),
  frame('session.deleted', {}),
  frame('session.error', { error: sessionError }),
  frame('session.updated', {
    title: z.string().nullable().optional(),
    metadata: z.record(z.string(), z.string()).optional(),
    agent: agentSnapshot.optional(),
    forked_from: forkedFrom.optional(),
    x_dropped_event_ids: z.array(z.string()).optional(),
  }),
  frame('span.model_request_start', {}),
  frame('span.model_request_end', {
    model_request_start_id: z.string(),
    is_error: z.boolean(),
    model_usage: modelUsage,
    x_cost_usd: costUsd.optional(),
  }),
]);

/** What a stream may preview. `x_agent.thinking` is our addition: thinking with its text, not its beginning alone. */
export const EVENT_DELTAS = ['agent.message', 'agent.thinking', 'x_agent.thinking'] as const;
/** Stream-only frames; they never persist and carry no id of their own. */
export const eventStartFrame = z.strictObject({
  type: z.literal('event_start'),
  event: z.strictObject({ type: z.enum(['agent.message', 'agent.thinking']), id: z.string() }),
});
export const eventDeltaFrame = z.strictObject({
  type: z.literal('event_delta'),
  event_id: z.string(),
  delta: z.strictObject({
    type: z.literal('content_delta'),
    index: z.int(),
    content: z.strictObject({ type: z.literal('text'), text: z.string() }),
  }),
});
export type EventStartFrame = z.infer<typeof eventStartFrame>;
export type EventDeltaFrame = z.infer<typeof eventDeltaFrame>;

/** A token delta on the bus (S3): dropped by the gateway once its event is closed or its sequence has a gap. */
export interface LiveDelta {
  readonly eventId: string;
  readonly eventType: 'agent.message' | 'agent.thinking';
  readonly sequence: number;
  readonly generation: number;
  readonly text: string;
}
/** The lease owner's answer about the message that is open now; `text` is everything up to and including `sequence`. */
export interface OpenPreview {
  readonly open: null | LiveDelta;
}
