import { z } from 'zod';
import { durableEvent } from '../event-declaration.ts';
import { SANDBOX_REASONS } from './sandbox.messages.ts';

const base = { schemaVersion: 1, aggregate: 'sandbox' } as const;
const reason = z.object({ reason: z.string() });

export const SandboxRequested = durableEvent({
  ...base,
  type: 'sandbox.requested',
  summary: 'A session needs a sandbox; the provider starts one.',
  data: z.object({
    session_id: z.string(),
    environment_id: z.string(),
    context_key: z.string().nullable(),
    provider: z.string(),
  }),
});
export const SandboxReady = durableEvent({
  ...base,
  type: 'sandbox.ready',
  summary: 'The runner of this incarnation linked to the hub and proved itself.',
  data: z.object({
    incarnation: z.int(),
    journal_id: z.string(),
    isolation: z.string(),
    /** Where it runs on a cluster, and whether it was taken from the pool. */
    node: z.string().optional(),
    pod: z.string().optional(),
    launch: z.enum(['warm', 'cold', 'resumed']).optional(),
  }),
});
export const SandboxWaiting = durableEvent({
  ...base,
  type: 'sandbox.waiting',
  summary: 'The sandbox cannot be had yet, for this reason; told once for each reason of an incarnation.',
  data: z.object({ incarnation: z.int(), reason: z.enum(SANDBOX_REASONS), message: z.string() }),
});
export const SandboxLost = durableEvent({
  ...base,
  type: 'sandbox.lost',
  summary: 'The incarnation ended without being asked to.',
  data: reason.extend({ incarnation: z.int() }),
});
export const SandboxFailed = durableEvent({
  ...base,
  type: 'sandbox.failed',
  summary: 'The sandbox could not be started; the reason says what to do.',
  data: reason,
});
export const SandboxSuspended = durableEvent({
  ...base,
  type: 'sandbox.suspended',
  summary: 'Idle: the processes are gone, the files are kept.',
  data: reason,
});
export const SandboxDestroyed = durableEvent({
  ...base,
  type: 'sandbox.destroyed',
  summary: 'The sandbox and its files are gone for good.',
  data: reason,
});
export const SandboxLinkRefused = durableEvent({
  ...base,
  type: 'sandbox.link_refused',
  summary: 'Somebody tried to link as this sandbox’s runner and could not prove it.',
  data: reason,
});
export const SandboxEgressDecided = durableEvent({
  ...base,
  type: 'sandbox.egress_decided',
  summary: 'The proxy allowed or refused a host (once per host and decision in an incarnation).',
  data: z.object({ host: z.string(), port: z.int(), allowed: z.boolean(), reason: z.string() }),
});

export const SandboxCheckpointed = durableEvent({
  ...base,
  type: 'sandbox.checkpointed',
  summary: 'Workspace and home are kept as they were after everything that the session’s log had up to a version.',
  data: z.object({
    checkpoint_id: z.string(),
    session_version: z.int(),
    entries: z.int(),
    bytes: z.int(),
    new_bytes: z.int(),
    took_ms: z.int(),
    stopped_ms: z.int(),
    skipped: z.int(),
    unreadable: z.int(),
    torn: z.int(),
  }),
});
export const SandboxCheckpointFailed = durableEvent({
  ...base,
  type: 'sandbox.checkpoint_failed',
  summary: 'Workspace and home could not be kept; told once until it succeeds again.',
  data: reason.extend({ code: z.string() }),
});
export const SandboxRestored = durableEvent({
  ...base,
  type: 'sandbox.restored',
  summary: 'The files of a checkpoint were put into this incarnation before its first call.',
  data: z.object({ incarnation: z.int(), checkpoint_id: z.string(), took_ms: z.int() }),
});

export const sandboxEvents = Object.freeze([
  SandboxRequested,
  SandboxReady,
  SandboxWaiting,
  SandboxLost,
  SandboxFailed,
  SandboxSuspended,
  SandboxDestroyed,
  SandboxLinkRefused,
  SandboxEgressDecided,
  SandboxCheckpointed,
  SandboxCheckpointFailed,
  SandboxRestored,
] as const);
