import { z } from 'zod';
import { idSchema } from '../ids.ts';
import type { DeepReadonly } from '../json.ts';
import { metadataPatch, timestamp } from './common.ts';

/**
 * The lane of environment workers: a work item is one worker's lease on one session of a `self_hosted` environment. It
 * is made when a worker takes it, and ended by a stop or by silence; a session has one at a time.
 */
export const WORK_STATES = ['queued', 'starting', 'active', 'stopping', 'stopped'] as const;
export type WorkState = (typeof WORK_STATES)[number];

/** What a worker sends for a lease that has no heartbeat yet. */
export const NO_HEARTBEAT = 'NO_HEARTBEAT';
/** How long an item that was handed out may stay unacknowledged where the next poll does not say, in milliseconds. */
export const RECLAIM_AFTER_MS = 5_000;
/** Longest wait of one poll, in milliseconds. */
export const POLL_BLOCK_MAX_MS = 999;
export const MAX_LEASE_SECONDS = 300;

/** A work item as the wire has it. `secret` is there in the answer to a poll only. */
export const workResource = z.strictObject({
  id: z.string(),
  type: z.literal('work'),
  environment_id: z.string(),
  data: z.strictObject({ type: z.literal('session'), id: z.string() }),
  state: z.enum(WORK_STATES),
  secret: z.string().nullable(),
  metadata: z.record(z.string(), z.string()),
  created_at: timestamp,
  acknowledged_at: timestamp.nullable(),
  started_at: timestamp.nullable(),
  latest_heartbeat_at: timestamp.nullable(),
  stop_requested_at: timestamp.nullable(),
  stopped_at: timestamp.nullable(),
});
export type Work = DeepReadonly<z.infer<typeof workResource>>;

/** A row of the work items, as far as the wire shows it. */
export interface WorkRow {
  readonly id: string;
  readonly environment_id: string;
  readonly session_id: string;
  readonly state: WorkState;
  readonly metadata: Readonly<Record<string, string>>;
  readonly created_at: Date;
  readonly acknowledged_at: Date | null;
  readonly started_at: Date | null;
  readonly latest_heartbeat_at: Date | null;
  readonly stop_requested_at: Date | null;
  readonly stopped_at: Date | null;
}

export function workResourceOf(row: WorkRow): Work {
  return {
    id: row.id,
    type: 'work',
    environment_id: row.environment_id,
    data: { type: 'session', id: row.session_id },
    state: row.state,
    secret: null,
    metadata: row.metadata,
    created_at: row.created_at.toISOString(),
    acknowledged_at: row.acknowledged_at?.toISOString() ?? null,
    started_at: row.started_at?.toISOString() ?? null,
    latest_heartbeat_at: row.latest_heartbeat_at?.toISOString() ?? null,
    stop_requested_at: row.stop_requested_at?.toISOString() ?? null,
    stopped_at: row.stopped_at?.toISOString() ?? null,
  };
}

export const workHeartbeat = z.strictObject({
  type: z.literal('work_heartbeat'),
  last_heartbeat: z.string(),
  lease_extended: z.boolean(),
  state: z.enum(WORK_STATES),
  ttl_seconds: z.number(),
});
export type WorkHeartbeat = DeepReadonly<z.infer<typeof workHeartbeat>>;

export const workStats = z.strictObject({
  type: z.literal('work_queue_stats'),
  /** Sessions whose calls wait and that no worker has. */
  depth: z.int(),
  /** Items that were handed out and not acknowledged yet. */
  pending: z.int(),
  oldest_queued_at: timestamp.nullable(),
  /** Workers that asked for work in the last 30 seconds. */
  workers_polling: z.int(),
});
export type WorkStats = DeepReadonly<z.infer<typeof workStats>>;

export const stopWorkBody = z.strictObject({ force: z.boolean().nullish() }).optional();
export const updateWorkBody = z.strictObject({ metadata: metadataPatch });

/** Who runs a session's tools, as our own `/v1/sessions/{id}/x/worker` says. */
export const sessionWorker = z.strictObject({
  type: z.literal('session_worker'),
  environment_id: z.string(),
  /** Calls that wait for a worker's result. */
  waiting_calls: z.array(z.string()),
  /** The item that is alive, and the worker that has it. */
  work: workResource.nullable(),
  worker_id: z.string().nullable(),
  workers_polling: z.int(),
});
export type SessionWorker = DeepReadonly<z.infer<typeof sessionWorker>>;

/** `cmd.environment.<id>.poll-work` → {@link Work} or null; waits for one at most `block_ms`. */
export const pollWorkCommand = z.strictObject({
  worker_id: z.string().max(128).nullable(),
  block_ms: z.int().min(0).max(POLL_BLOCK_MAX_MS),
  reclaim_older_than_ms: z.int().min(0),
  /** The token that the item's session is served with: its id and hash; its parent is the environment key that asks. */
  token: z.strictObject({ id: idSchema('apiKey'), hash: z.string(), hint: z.string(), parent_id: idSchema('apiKey') }),
});
export type PollWorkCommand = z.infer<typeof pollWorkCommand>;

/** `cmd.environment.<id>.ack-work` → {@link Work}. */
export interface WorkCommand {
  readonly work_id: string;
}
/** `cmd.environment.<id>.heartbeat-work` → {@link WorkHeartbeat}. */
export interface HeartbeatWorkCommand extends WorkCommand {
  readonly expected: string | null;
  readonly ttl_seconds: number | null;
  /** True for a repeat, whose first attempt may have been done. */
  readonly repeated: boolean;
}
/** `cmd.environment.<id>.stop-work` → {@link Work}. */
export interface StopWorkCommand extends WorkCommand {
  /** False asks the worker to end by itself, at its next heartbeat. */
  readonly now: boolean;
}
/** `cmd.environment.<id>.update-work` → {@link Work}. */
export interface UpdateWorkCommand extends WorkCommand {
  readonly metadata: z.infer<typeof metadataPatch>;
}
