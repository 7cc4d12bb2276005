import { z } from 'zod';
import { durableEvent } from '../event-declaration.ts';

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
  data: z.object({ incarnation: z.int(), journal_id: z.string(), isolation: z.string() }),
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

export const sandboxEvents = Object.freeze([
  SandboxRequested,
  SandboxReady,
  SandboxLost,
  SandboxFailed,
  SandboxSuspended,
  SandboxDestroyed,
  SandboxLinkRefused,
  SandboxEgressDecided,
] as const);
