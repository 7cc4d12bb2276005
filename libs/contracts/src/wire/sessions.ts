import { z } from 'zod';
import { ID_PREFIXES, idSchema } from '../ids.ts';
import type { DeepReadonly } from '../json.ts';
import { agentReference, agentSnapshot, mcpServers, tools } from './agents.ts';
import { emptyYet, metadata, metadataPatch, notYet, text, timestamp } from './common.ts';
import { type ClientEventParam, clientEventParam, clientEvents, forkedFrom, stopReason } from './events.ts';
import { LIMITS } from './limits.ts';
import { sessionFileResource, sessionResourceParams } from './session-resources.ts';

export const SESSION_STATUSES = ['idle', 'running', 'rescheduling', 'terminated'] as const;
export type SessionStatus = (typeof SESSION_STATUSES)[number];

const contextKey = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/, 'must be 1 to 128 of A-Z a-z 0-9 . _ : / -');

const initialEvents = clientEvents(
  clientEventParam.refine((event) => event.type === 'user.message', 'initial_events takes only user.message'),
  LIMITS.initialEvents,
);

/** The newest event that a fork has: by its id or its log version; neither = the newest that there is. */
const forkPlace = { at_event_id: idSchema('event').nullish(), at_version: z.int().min(1).nullish() };
const onePlace = [
  (place: { at_event_id?: unknown; at_version?: unknown }) => place.at_event_id == null || place.at_version == null,
  'takes at_event_id or at_version, not both',
] as const;

export const createSessionBody = z
  .strictObject({
    agent: agentReference,
    environment_id: idSchema('environment'),
    title: text(LIMITS.nameChars).nullish(),
    metadata: metadata.nullish(),
    resources: sessionResourceParams.nullish(),
    vault_ids: emptyYet('vault_ids'),
    budget: notYet('budget'),
    initial_events: initialEvents.nullish(),
    /** Additive: begins with another session's events; as `POST /v1/sessions/{id}/fork` does. */
    fork_from: z
      .strictObject({ session_id: idSchema('session'), ...forkPlace })
      .refine(...onePlace)
      .nullish(),
    /** Additive: sessions of one workspace that name the same context share its workspace folder and nothing else. */
    x_context_key: contextKey.nullish(),
  })
  .refine(
    (body) => body.fork_from == null || body.x_context_key == null,
    'x_context_key does not go with fork_from: a fork has a workspace of its own',
  )
  .refine(
    (body) => body.fork_from == null || (body.resources ?? []).length === 0,
    'resources do not go with fork_from: a fork has the files that the session has there; add others to it',
  );
export type CreateSessionBody = z.infer<typeof createSessionBody>;

/** `POST /v1/sessions/{id}/fork`. What is left out, or null, is as it was at that point. */
export const forkSessionBody = z
  .strictObject({
    ...forkPlace,
    title: text(LIMITS.nameChars).nullish(),
    agent: agentReference.nullish(),
    environment_id: idSchema('environment').nullish(),
    metadata: metadata.nullish(),
    initial_events: initialEvents.nullish(),
  })
  .refine(...onePlace)
  .default({});
/** The command that it becomes: the gateway has found the place. */
export interface ForkSession {
  readonly from: { readonly session_id: string; readonly version: number };
  readonly title?: string | null | undefined;
  readonly agent?: z.infer<typeof agentReference> | null | undefined;
  readonly environment_id?: string | null | undefined;
  readonly metadata?: Readonly<Record<string, string>> | null | undefined;
  readonly initial_events?: readonly ClientEventParam[] | null | undefined;
}

/** The short form on `POST /api/sessions`. */
export const quickSessionBody = z.strictObject({
  agent_id: idSchema('agent'),
  prompt: text(LIMITS.textChars, 1).optional(),
  environment_id: idSchema('environment').optional(),
  title: text(LIMITS.nameChars).optional(),
  context_key: contextKey.optional(),
});

export const updateSessionBody = z.strictObject({
  title: text(LIMITS.nameChars).nullish(),
  metadata: metadataPatch.nullish(),
  agent: z.strictObject({ tools: tools.optional(), mcp_servers: mcpServers.optional() }).optional(),
  budget: notYet('budget'),
  vault_ids: z.never({ error: 'vault_ids cannot be changed' }).optional(),
});
export type UpdateSessionBody = z.infer<typeof updateSessionBody>;

const sessionUsage = z.strictObject({
  input_tokens: z.int(),
  output_tokens: z.int(),
  cache_read_input_tokens: z.int(),
  cache_creation: z.strictObject({ ephemeral_5m_input_tokens: z.int(), ephemeral_1h_input_tokens: z.int() }),
  /** Additive: what the gateway said the calls cost, in US dollars; absent when it said nothing. */
  x_cost_usd: z.number().optional(),
});
export type SessionUsage = DeepReadonly<z.infer<typeof sessionUsage>>;
const sessionStats = z.strictObject({ active_seconds: z.number(), duration_seconds: z.number() });

/** The session resource as the wire has it. */
export const sessionResourceSchema = z.strictObject({
  id: z.string(),
  type: z.literal('session'),
  status: z.enum(SESSION_STATUSES),
  agent: agentSnapshot,
  environment_id: z.string(),
  title: z.string().nullable(),
  metadata: z.record(z.string(), z.string()),
  resources: z.array(sessionFileResource),
  vault_ids: z.array(z.never()),
  outcome_evaluations: z.array(z.never()),
  budget: z.null(),
  stats: sessionStats,
  usage: sessionUsage,
  created_at: timestamp,
  updated_at: timestamp,
  archived_at: timestamp.nullable(),
  x_context_key: z.string().nullable(),
  /** True when an environment worker runs the agent’s sandbox tools. */
  x_self_hosted: z.boolean(),
  /** Whom an idle session that requires action waits for. */
  x_waits_for: z.enum(['client', 'worker']).nullable(),
  x_stop_reason: stopReason.nullable(),
  /** Additive; null for a session that is no fork. */
  forked_from: forkedFrom.nullable(),
});
export type Session = DeepReadonly<z.infer<typeof sessionResourceSchema>>;

/** The thread resource as the wire has it. A session has its primary thread and, so far, no other. */
export const threadResource = z.strictObject({
  id: z.string(),
  type: z.literal('session_thread'),
  session_id: z.string(),
  parent_thread_id: z.null(),
  workflow_run_id: z.null(),
  agent: agentSnapshot.omit({ multiagent: true }),
  status: z.enum(SESSION_STATUSES),
  stats: sessionStats,
  usage: sessionUsage,
  created_at: timestamp,
  updated_at: timestamp,
  archived_at: timestamp.nullable(),
});
export type Thread = DeepReadonly<z.infer<typeof threadResource>>;

/** Id of a session's primary thread. */
export function primaryThreadId(sessionId: string): string {
  return sessionId.replace(`${ID_PREFIXES.session}_`, `${ID_PREFIXES.thread}_`);
}

export function primaryThread(session: Session): Thread {
  const { id, status, stats, usage, created_at, updated_at, archived_at } = session;
  const { multiagent: _multiagent, ...agent } = session.agent;
  return {
    id: primaryThreadId(id),
    type: 'session_thread',
    session_id: id,
    parent_thread_id: null,
    workflow_run_id: null,
    agent,
    status,
    stats,
    usage,
    created_at,
    updated_at,
    archived_at,
  };
}
