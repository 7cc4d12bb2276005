import { z } from 'zod';
import { idSchema } from '../ids.ts';
import { jsonValue } from '../json-schema.ts';
import type { AgentSnapshot } from './agents.ts';
import { agentReference, tools } from './agents.ts';
import { metadata, metadataPatch, text } from './common.ts';
import { clientEventParam, clientEvents, type StopReason } from './events.ts';
import { LIMITS } from './limits.ts';

export const SESSION_STATUSES = ['idle', 'running', 'rescheduling', 'terminated'] as const;
export type SessionStatus = (typeof SESSION_STATUSES)[number];

const emptyOnly = (name: string) => z.array(jsonValue).max(0, `${name} is not supported yet; leave it empty`).nullish();
const contextKey = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/, 'must be 1 to 128 of A-Z a-z 0-9 . _ : / -');

export const createSessionBody = z.strictObject({
  agent: agentReference,
  environment_id: idSchema('environment'),
  title: text(LIMITS.nameChars).nullish(),
  metadata: metadata.nullish(),
  resources: emptyOnly('resources'),
  vault_ids: emptyOnly('vault_ids'),
  budget: z.null({ error: 'budget is not supported yet; leave it out' }).optional(),
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
  agent: z.strictObject({ tools: tools.optional(), mcp_servers: emptyOnly('mcp_servers') }).optional(),
  budget: z.null({ error: 'budget is not supported yet; leave it out' }).optional(),
  vault_ids: z.never({ error: 'vault_ids cannot be changed' }).optional(),
});
export type UpdateSessionBody = z.infer<typeof updateSessionBody>;

export interface SessionUsage {
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly cache_read_input_tokens: number;
  readonly cache_creation: { readonly ephemeral_5m_input_tokens: number; readonly ephemeral_1h_input_tokens: number };
  /** Additive: what the gateway said the calls cost, in US dollars; absent when it said nothing. */
  readonly x_cost_usd?: number;
}

/** The session resource as the wire has it. */
export interface Session {
  readonly id: string;
  readonly type: 'session';
  readonly status: SessionStatus;
  readonly agent: AgentSnapshot;
  readonly environment_id: string;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, string>>;
  readonly resources: readonly never[];
  readonly vault_ids: readonly never[];
  readonly outcome_evaluations: readonly never[];
  readonly budget: null;
  readonly stats: { readonly active_seconds: number; readonly duration_seconds: number };
  readonly usage: SessionUsage;
  readonly created_at: string;
  readonly updated_at: string;
  readonly archived_at: string | null;
  readonly x_context_key: string | null;
  readonly x_stop_reason: StopReason | null;
}
