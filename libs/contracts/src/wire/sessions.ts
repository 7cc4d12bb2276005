import { z } from 'zod';
import { ID_PREFIXES, idSchema } from '../ids.ts';
import type { DeepReadonly } from '../json.ts';
import { agentReference, agentSnapshot, tools } from './agents.ts';
import { emptyYet, metadata, metadataPatch, notYet, text, timestamp } from './common.ts';
import { clientEventParam, clientEvents, stopReason } from './events.ts';
import { LIMITS } from './limits.ts';
import { sessionFileResource, sessionResourceParams } from './session-resources.ts';

export const SESSION_STATUSES = ['idle', 'running', 'rescheduling', 'terminated'] as const;
export type SessionStatus = (typeof SESSION_STATUSES)[number];

const contextKey = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/, 'must be 1 to 128 of A-Z a-z 0-9 . _ : / -');

export const createSessionBody = z.strictObject({
  agent: agentReference,
  environment_id: idSchema('environment'),
  title: text(LIMITS.nameChars).nullish(),
  metadata: metadata.nullish(),
  resources: sessionResourceParams.nullish(),
  vault_ids: emptyYet('vault_ids'),
  budget: notYet('budget'),
  initial_events: clientEvents(
    clientEventParam.refine((event) => event.type === 'user.message', 'initial_events takes only user.message'),
    LIMITS.initialEvents,
  ).nullish(),
  /** Additive: sessions of one workspace that name the same context share its workspace folder and nothing else. */
  x_context_key: contextKey.nullish(),
});
export type CreateSessionBody = z.infer<typeof createSessionBody>;

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
  agent: z.strictObject({ tools: tools.optional(), mcp_servers: emptyYet('mcp_servers') }).optional(),
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
  x_stop_reason: stopReason.nullable(),
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
