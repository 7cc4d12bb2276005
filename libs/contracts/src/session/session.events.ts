import { z } from 'zod';
import { type DraftOf, durableEvent, type EventOf, type StoredEvent } from '../event-declaration.ts';
import { jsonObject } from '../json-schema.ts';
import type { AgentSnapshot } from '../wire/agents.ts';
import {
  type ForkedFrom,
  modelUsage,
  refusal,
  sessionError,
  stopReason,
  storedBlock,
  type ThinkingBlock,
  textBlock,
  thinkingBlock,
  type WireEvent,
} from '../wire/events.ts';
import { mountedFile } from '../wire/session-resources.ts';

const agentSnapshot = z.custom<AgentSnapshot>((value) => typeof value === 'object' && value !== null && 'id' in value);
const metadataMap = z.record(z.string(), z.string());
const blocks = z.array(storedBlock);
/** How a tool call ended. `unknown`: it may or may not have had its effect, and is never repeated. */
export const TOOL_OUTCOMES = ['completed', 'denied', 'cancelled', 'unknown', 'unavailable'] as const;
export const limitName = z.enum(['model_steps', 'tool_time', 'wall_time', 'output_tokens']);
export type TurnLimit = z.infer<typeof limitName>;

/** A client event inside the log: what the client sent, without id and time. */
export const userMessageData = z.object({ content: blocks, steer: z.boolean().optional() });
export const systemMessageData = z.object({ content: z.array(textBlock) });

function shown(event: StoredEvent<string, unknown>, fields: object): WireEvent {
  return { id: event.id, type: event.type, processed_at: event.recordedAt, ...fields };
}
/** The place in a fork's log as the wire shows it. */
export function forkedFromOf({ checkpoint, missing_call_ids: missing = [], ...place }: ForkPoint): ForkedFrom {
  return {
    ...place,
    checkpoint: checkpoint === undefined ? null : { id: checkpoint.id, version: checkpoint.through_version },
    missing_tool_use_ids: [...missing],
  };
}
/** The inverse of {@link forkedFromOf}. */
export function forkPointOf({ checkpoint, missing_tool_use_ids: missing, ...place }: ForkedFrom): ForkPoint {
  return {
    ...place,
    ...(checkpoint === null ? {} : { checkpoint: { id: checkpoint.id, through_version: checkpoint.version } }),
    ...(missing.length === 0 ? {} : { missing_call_ids: missing }),
  };
}
function queued(event: StoredEvent<string, unknown>, fields: object): WireEvent {
  return { id: event.id, type: event.type, processed_at: null, ...fields };
}

/** What a model showed of its thinking. */
function thinkingText(thoughts: readonly ThinkingBlock[]): string {
  return thoughts
    .map((block) => (block.type === 'thinking' ? block.thinking : ''))
    .join('\n\n')
    .trim();
}

/** The policy that an evaluated permission comes from; a call that no policy was asked about has none. */
function evaluationOf(permission: 'allow' | 'ask' | 'deny'): object {
  return permission === 'deny' ? {} : { evaluation: { type: `always_${permission}` } };
}

const aggregate = 'session' as const;
const schemaVersion = 1;

export const SessionCreated = durableEvent({
  type: 'session.created',
  schemaVersion,
  aggregate,
  summary: 'The session exists, with a snapshot of its agent.',
  data: z.object({
    agent: agentSnapshot,
    environment_id: z.string(),
    title: z.string().nullable(),
    metadata: metadataMap,
    context_key: z.string().nullable(),
    resources: z.array(mountedFile).optional(),
    /** True when an environment worker runs the sandbox tools; absent = the platform does. */
    self_hosted: z.boolean().optional(),
  }),
});
export const UserMessage = durableEvent({
  type: 'user.message',
  schemaVersion,
  aggregate,
  summary: 'A message was accepted and waits for the agent (`processed_at` is null).',
  data: userMessageData,
  wire: (event) => queued(event, { content: event.data.content }),
});
export const SystemMessage = durableEvent({
  type: 'system.message',
  schemaVersion,
  aggregate,
  summary: 'Operator instructions were accepted with the message before them (`processed_at` is null).',
  data: systemMessageData,
  wire: (event) => queued(event, { content: event.data.content }),
});
export const MessageProcessed = durableEvent({
  type: 'session.message_processed',
  schemaVersion,
  aggregate,
  summary: 'A queued message reached the agent; shown again under its own id with its time stamp.',
  data: z.object({
    event_id: z.string(),
    message: z.discriminatedUnion('type', [
      userMessageData.extend({ type: z.literal('user.message') }),
      systemMessageData.extend({ type: z.literal('system.message') }),
    ]),
  }),
  wire: (event) => ({
    id: event.data.event_id,
    type: event.data.message.type,
    processed_at: event.recordedAt,
    content: event.data.message.content,
  }),
});
export const UserInterrupt = durableEvent({
  type: 'user.interrupt',
  schemaVersion,
  aggregate,
  summary: 'The client asked to stop the running turn.',
  data: z.object({}),
  wire: (event) => shown(event, {}),
});
export const UserToolConfirmation = durableEvent({
  type: 'user.tool_confirmation',
  schemaVersion,
  aggregate,
  summary: 'The client allowed or denied a tool call.',
  data: z.object({ tool_use_id: z.string(), result: z.enum(['allow', 'deny']), deny_message: z.string().nullable() }),
  wire: (event) =>
    shown(event, {
      tool_use_id: event.data.tool_use_id,
      result: event.data.result,
      ...(event.data.deny_message === null ? {} : { deny_message: event.data.deny_message }),
    }),
});
export const UserCustomToolResult = durableEvent({
  type: 'user.custom_tool_result',
  schemaVersion,
  aggregate,
  summary: 'The result of a custom tool, from the client or, after an interrupt, from the platform in its place.',
  data: z.object({ custom_tool_use_id: z.string(), content: blocks, is_error: z.boolean() }),
  wire: (event) =>
    shown(event, {
      custom_tool_use_id: event.data.custom_tool_use_id,
      content: event.data.content,
      is_error: event.data.is_error,
    }),
});
export const UserToolResult = durableEvent({
  type: 'user.tool_result',
  schemaVersion,
  aggregate,
  summary:
    'The result of a tool that an environment worker ran, from the worker or from the platform in its place, which then says how the call ended (`outcome`).',
  data: z.object({
    tool_use_id: z.string(),
    content: blocks,
    is_error: z.boolean(),
    outcome: z.enum(TOOL_OUTCOMES).optional(),
  }),
  wire: (event) =>
    shown(event, { tool_use_id: event.data.tool_use_id, content: event.data.content, is_error: event.data.is_error }),
});
export const TurnStarted = durableEvent({
  type: 'session.turn_started',
  schemaVersion,
  aggregate,
  summary: 'A turn worker took the session, with its lease generation; the first of a turn or a takeover.',
  data: z.object({ turn_id: z.string(), generation: z.int(), worker: z.string(), takeover: z.boolean() }),
});
export const StatusRunning = durableEvent({
  type: 'session.status_running',
  schemaVersion,
  aggregate,
  summary: 'The session runs.',
  data: z.object({}),
  wire: (event) => shown(event, {}),
});
export const StatusRescheduled = durableEvent({
  type: 'session.status_rescheduled',
  schemaVersion,
  aggregate,
  summary: 'A transient failure; the platform tries again by itself.',
  data: z.object({ attempt: z.int(), retry_at: z.string() }),
  wire: (event) => shown(event, {}),
});
export const StatusIdle = durableEvent({
  type: 'session.status_idle',
  schemaVersion,
  aggregate,
  summary: 'The turn ended; always the last event of a turn.',
  data: z.object({ stop_reason: stopReason, refusal: refusal.optional() }),
  wire: (event) =>
    shown(event, {
      stop_reason: event.data.stop_reason,
      stop_details: event.data.refusal === undefined ? null : { type: 'refusal', ...event.data.refusal },
    }),
});
export const StatusTerminated = durableEvent({
  type: 'session.status_terminated',
  schemaVersion,
  aggregate,
  summary: 'The session was archived; it accepts nothing more.',
  data: z.object({}),
  wire: (event) => shown(event, {}),
});
export const SessionFailed = durableEvent({
  type: 'session.error',
  schemaVersion,
  aggregate,
  summary: 'Something failed; `retry_status` says what follows. Reaching a bound of the turn is one of them.',
  data: z.object({ error: sessionError, limit: limitName.optional() }),
  wire: (event) => shown(event, { error: event.data.error }),
});
export const SessionUpdated = durableEvent({
  type: 'session.updated',
  schemaVersion,
  aggregate,
  summary: 'Title, metadata or the agent’s tools were changed; holds only what changed.',
  data: z.object({
    title: z.string().nullable().optional(),
    metadata: metadataMap.optional(),
    agent: agentSnapshot.optional(),
  }),
  wire: (event) => shown(event, event.data),
});
export const SessionResourcesChanged = durableEvent({
  type: 'session.resources_changed',
  schemaVersion,
  aggregate,
  summary: 'Files were added or taken away; holds all that the session has now.',
  data: z.object({ resources: z.array(mountedFile) }),
});
export const SessionDeleted = durableEvent({
  type: 'session.deleted',
  schemaVersion,
  aggregate,
  summary: 'The session was deleted; every open stream ends.',
  data: z.object({}),
  wire: (event) => shown(event, {}),
});
export const ModelRequestStart = durableEvent({
  type: 'span.model_request_start',
  schemaVersion,
  aggregate,
  summary: 'A model call begins; `message_id` is the id its text will have.',
  data: z.object({ model: z.string(), message_id: z.string() }),
  wire: (event) => shown(event, {}),
});
export const ModelRequestEnd = durableEvent({
  type: 'span.model_request_end',
  schemaVersion,
  aggregate,
  summary: 'A model call ended, with its token usage and the cost that the gateway stated.',
  data: z.object({
    model_request_start_id: z.string(),
    is_error: z.boolean(),
    model_usage: modelUsage,
    cost_usd: z.number().min(0).nullable(),
    finish_reason: z.string().nullable(),
    refusal: refusal.optional(),
    gateway_call_id: z.string().nullable(),
  }),
  wire: (event) =>
    shown(event, {
      model_request_start_id: event.data.model_request_start_id,
      is_error: event.data.is_error,
      model_usage: event.data.model_usage,
      ...(event.data.cost_usd === null ? {} : { x_cost_usd: event.data.cost_usd }),
    }),
});
export const AgentMessage = durableEvent({
  type: 'agent.message',
  schemaVersion,
  aggregate,
  summary: 'The agent’s text of one model step.',
  data: z.object({ content: blocks }),
  wire: (event) => shown(event, { content: event.data.content }),
});
export const AgentThinking = durableEvent({
  type: 'agent.thinking',
  schemaVersion,
  aggregate,
  summary: 'The model thought; `blocks` is what it gets back with its next request.',
  data: z.object({ blocks: z.array(thinkingBlock).optional() }),
  wire: (event) => {
    const text = thinkingText(event.data.blocks ?? []);
    return shown(event, text === '' ? {} : { x_text: text });
  },
});
export const AgentToolUse = durableEvent({
  type: 'agent.tool_use',
  schemaVersion,
  aggregate,
  summary: 'The agent calls a built-in tool; the event’s id is the call’s id everywhere.',
  data: z.object({
    name: z.string(),
    input: jsonObject,
    evaluated_permission: z.enum(['allow', 'ask', 'deny']),
    /** The call as the session's coding harness has it. */
    harness: z.object({ call_id: z.string(), name: z.string(), input: jsonObject }).optional(),
  }),
  wire: (event) =>
    shown(event, {
      name: event.data.name,
      input: event.data.input,
      evaluated_permission: event.data.evaluated_permission,
      ...evaluationOf(event.data.evaluated_permission),
    }),
});
export const AgentToolResult = durableEvent({
  type: 'agent.tool_result',
  schemaVersion,
  aggregate,
  summary: 'The result of a tool call; `full_output` names the blob when the content was cut.',
  data: z.object({
    tool_use_id: z.string(),
    content: blocks,
    is_error: z.boolean(),
    outcome: z.enum(TOOL_OUTCOMES),
    full_output: z.object({ digest: z.string(), size_bytes: z.int() }).nullable(),
  }),
  wire: (event) =>
    shown(event, { tool_use_id: event.data.tool_use_id, content: event.data.content, is_error: event.data.is_error }),
});
export const AgentMcpToolUse = durableEvent({
  type: 'agent.mcp_tool_use',
  schemaVersion,
  aggregate,
  summary: 'The agent calls a tool of an MCP server, which the platform does for it.',
  data: z.object({
    mcp_server_name: z.string(),
    name: z.string(),
    input: jsonObject,
    evaluated_permission: z.enum(['allow', 'ask', 'deny']),
  }),
  wire: (event) => shown(event, { ...event.data, ...evaluationOf(event.data.evaluated_permission) }),
});
export const AgentMcpToolResult = durableEvent({
  type: 'agent.mcp_tool_result',
  schemaVersion,
  aggregate,
  summary: 'The result of a call to an MCP server. One that a lost worker may have begun is `unknown`, never repeated.',
  data: z.object({
    mcp_tool_use_id: z.string(),
    content: blocks,
    is_error: z.boolean(),
    outcome: z.enum(TOOL_OUTCOMES),
  }),
  wire: (event) =>
    shown(event, {
      mcp_tool_use_id: event.data.mcp_tool_use_id,
      content: event.data.content,
      is_error: event.data.is_error,
    }),
});
export const AgentCustomToolUse = durableEvent({
  type: 'agent.custom_tool_use',
  schemaVersion,
  aggregate,
  summary: 'The agent calls a tool that the client runs.',
  data: z.object({ name: z.string(), input: jsonObject }),
  wire: (event) => shown(event, { name: event.data.name, input: event.data.input }),
});
export const ContextCompacted = durableEvent({
  type: 'agent.thread_context_compacted',
  schemaVersion,
  aggregate,
  summary: 'The conversation up to a version was replaced by a summary for the model; the log keeps all of it.',
  data: z.object({
    summary: z.string(),
    through_version: z.int(),
    model_usage: modelUsage,
    cost_usd: z.number().min(0).nullable(),
  }),
  wire: (event) =>
    shown(event, {
      x_model_usage: event.data.model_usage,
      ...(event.data.cost_usd === null ? {} : { x_cost_usd: event.data.cost_usd }),
    }),
});
export const SandboxAttached = durableEvent({
  type: 'session.sandbox_attached',
  schemaVersion,
  aggregate,
  summary: 'The session’s tool calls go to this sandbox and this journal from now on.',
  data: z.object({ sandbox_id: z.string(), journal_id: z.string() }),
});

/** Where a fork's log leaves the other's: the newest event that both have. The root is the first ancestor, no fork itself. */
export const forkPoint = z.object({
  session_id: z.string(),
  root_session_id: z.string(),
  event_id: z.string(),
  version: z.int(),
  /** The files that the fork began with: they have what calls had done up to that version. Absent = none. */
  checkpoint: z.object({ id: z.string(), through_version: z.int() }).optional(),
  /** Calls of the events that both have, whose effects on files the fork does not have. Absent = none. */
  missing_call_ids: z.array(z.string()).optional(),
});
export type ForkPoint = z.infer<typeof forkPoint>;
export const SessionForked = durableEvent({
  type: 'session.forked',
  schemaVersion,
  aggregate,
  summary:
    'The session’s own log begins: the events before this one are another session’s. What was open or queued there is not here; shown as `session.updated`.',
  data: z.object({
    from: forkPoint,
    agent: agentSnapshot,
    environment_id: z.string(),
    title: z.string().nullable(),
    metadata: metadataMap,
    resources: z.array(mountedFile).optional(),
    self_hosted: z.boolean().optional(),
    /** Messages that waited there and that nobody will take here. */
    dropped_event_ids: z.array(z.string()),
  }),
  wire: (event) => ({
    id: event.id,
    // Clients drop, or mistake, a type that they do not know.
    type: SessionUpdated.type,
    processed_at: event.recordedAt,
    title: event.data.title,
    metadata: event.data.metadata,
    agent: event.data.agent,
    forked_from: forkedFromOf(event.data.from),
    x_dropped_event_ids: event.data.dropped_event_ids,
  }),
});
export const ForkCreated = durableEvent({
  type: 'session.fork_created',
  schemaVersion,
  aggregate,
  summary: 'Another session was forked from this one; it has the events up to `version`.',
  data: z.object({ fork_session_id: z.string(), event_id: z.string(), version: z.int() }),
});
export const WorkerAttached = durableEvent({
  type: 'session.worker_attached',
  schemaVersion,
  aggregate,
  summary: 'An environment worker took the session’s work item: calls that wait may begin there from now on.',
  data: z.object({ work_id: z.string(), worker_id: z.string().nullable() }),
});
export const WorkerDetached = durableEvent({
  type: 'session.worker_detached',
  schemaVersion,
  aggregate,
  summary:
    'The work item ended: stopped, or its worker was not heard from for the length of its lease. Open calls that may have begun are closed after it.',
  data: z.object({ work_id: z.string(), reason: z.enum(['stopped', 'lost']) }),
});
export const HarnessPrompted = durableEvent({
  type: 'session.harness_prompted',
  schemaVersion,
  aggregate,
  summary: 'The messages that were processed and no prompt held yet go to the coding harness, once, under this id.',
  data: z.object({ prompt_id: z.string() }),
});
export const HarnessProgressed = durableEvent({
  type: 'session.harness_progressed',
  schemaVersion,
  aggregate,
  summary:
    'What the harness did up to `sequence` is in the log; with the harness’s own session once that is known, and how it got it: it still ran, read its own files, began, or began with the conversation told as text.',
  data: z.object({
    prompt_id: z.string(),
    sequence: z.int(),
    harness_session_id: z.string().optional(),
    continuity: z.enum(['live', 'native', 'new', 'told']).optional(),
  }),
});
export const HarnessFinished = durableEvent({
  type: 'session.harness_finished',
  schemaVersion,
  aggregate,
  summary: 'A prompt is over: the harness answered it or failed, or it was cut; `raw` is the blob of its own lines.',
  data: z.object({
    prompt_id: z.string(),
    outcome: z.enum(['answered', 'failed', 'unknown', 'cut', 'session-lost']),
    raw: z.object({ digest: z.string(), size_bytes: z.int() }).nullable(),
  }),
});
export const ModelSideCall = durableEvent({
  type: 'session.model_side_call',
  schemaVersion,
  aggregate,
  summary: 'A harness called the model beside its steps, for a title for instance: its usage counts, it is not shown.',
  data: z.object({
    model: z.string(),
    is_error: z.boolean(),
    model_usage: modelUsage,
    cost_usd: z.number().min(0).nullable(),
    gateway_call_id: z.string().nullable(),
  }),
});
export const SessionCheckpointed = durableEvent({
  type: 'session.checkpointed',
  schemaVersion,
  aggregate,
  summary: 'The files are kept as they were after everything that the log had up to `through_version`.',
  data: z.object({ checkpoint_id: z.string(), through_version: z.int() }),
});
export const SessionCheckpointFailed = durableEvent({
  type: 'session.checkpoint_failed',
  schemaVersion,
  aggregate,
  summary: 'The files that calls up to `through_version` left could not be kept; they live in the sandbox alone.',
  data: z.object({ through_version: z.int(), code: z.string(), message: z.string() }),
  wire: (event) =>
    shown(
      { ...event, type: 'session.error' },
      {
        error: {
          type: 'unknown_error',
          message: event.data.message,
          retry_status: { type: 'retrying' },
        },
      },
    ),
});
export const SessionRestored = durableEvent({
  type: 'session.sandbox_restored',
  schemaVersion,
  aggregate,
  summary:
    'A new sandbox was given the files of a checkpoint, or began empty; `missing_call_ids` are calls whose effects on files are not in them.',
  data: z.object({
    journal_id: z.string(),
    checkpoint_id: z.string().nullable(),
    through_version: z.int(),
    missing_call_ids: z.array(z.string()),
  }),
});

export const OutputsKept = durableEvent({
  type: 'session.outputs_kept',
  schemaVersion,
  aggregate,
  summary:
    'Of the outputs folder these became files since the last time; `left_out` is all that could not, and is told once as an error.',
  data: z.object({
    files: z.array(z.object({ file_id: z.string(), path: z.string(), digest: z.string(), size_bytes: z.int() })),
    left_out: z.array(z.object({ path: z.string(), reason: z.string() })),
  }),
});

/** Every event of a session, in one frozen list; everything else about them is derived from it. */
export const sessionEvents = Object.freeze([
  SessionCreated,
  UserMessage,
  SystemMessage,
  MessageProcessed,
  UserInterrupt,
  UserToolConfirmation,
  UserCustomToolResult,
  UserToolResult,
  TurnStarted,
  StatusRunning,
  StatusRescheduled,
  StatusIdle,
  StatusTerminated,
  SessionFailed,
  SessionUpdated,
  SessionResourcesChanged,
  SessionDeleted,
  ModelRequestStart,
  ModelRequestEnd,
  AgentMessage,
  AgentThinking,
  AgentToolUse,
  AgentToolResult,
  AgentMcpToolUse,
  AgentMcpToolResult,
  AgentCustomToolUse,
  ContextCompacted,
  SandboxAttached,
  SessionForked,
  ForkCreated,
  OutputsKept,
  WorkerAttached,
  WorkerDetached,
  HarnessPrompted,
  HarnessProgressed,
  HarnessFinished,
  ModelSideCall,
  SessionCheckpointed,
  SessionCheckpointFailed,
  SessionRestored,
] as const);

/** A stored session event, discriminated by `type`. */
export type SessionEvent = EventOf<(typeof sessionEvents)[number]>;
/** A session event before it is stored. */
export type SessionDraft = DraftOf<(typeof sessionEvents)[number]>;

const byType = new Map<string, (typeof sessionEvents)[number]>(sessionEvents.map((event) => [event.type, event]));

/** The frame that the public stream shows for a stored event; undefined for internal events. */
export function wireFrame(event: StoredEvent<string, unknown>): WireEvent | undefined {
  const declaration = byType.get(event.type);
  return declaration?.wire?.(event as never);
}

/** Log types whose first showing has no time stamp; lists show them at their stamp instead (S2). */
export const QUEUED_TYPES: readonly string[] = [UserMessage.type, SystemMessage.type];
/** Log types that are shown on the public stream. */
export const WIRE_LOG_TYPES: readonly string[] = sessionEvents
  .filter((event) => 'wire' in event)
  .map((event) => event.type);
