import { z } from 'zod';
import type { DeepReadonly } from '../json.ts';
import { jsonObject } from '../json-schema.ts';
import { timestamp } from './common.ts';
import { sessionEventResource } from './events.ts';

const amounts = z.record(z.string(), z.int());

/** `GET /v1/x/status`: what a workspace uses, and how the platform is. */
export const platformStatus = z.strictObject({
  /** True when answers come from the scripted demo gateway. */
  demo_gateway: z.boolean(),
  /** Every process that reported within the last seconds. */
  services: z.array(
    z.strictObject({
      service: z.string(),
      instance: z.string(),
      started_at: timestamp,
      memory_bytes: z.int(),
      figures: z.record(z.string(), z.union([z.number(), z.boolean(), z.string()])),
    }),
  ),
  /** Sessions by status, without archived ones. */
  sessions: amounts,
  /** Idle sessions that wait for the client's word about a tool call. */
  sessions_needing_action: z.int(),
  /** Messages that wait behind running turns. */
  queued_messages: z.int(),
  /** Null while no process leads. */
  relay: z.strictObject({ instance: z.string(), lag_ms: z.number().nullable() }).nullable(),
  /** Null when the broker could not be asked. */
  dead_letters: z.int().nullable(),
  /** Sandboxes by status, without destroyed ones. */
  sandboxes: amounts,
});
export type PlatformStatus = DeepReadonly<z.infer<typeof platformStatus>>;

const timelineEntry = z.strictObject({
  id: z.string(),
  version: z.int(),
  type: z.string(),
  schema_version: z.int(),
  recorded_at: timestamp,
  data: jsonObject,
  metadata: jsonObject,
});
export type TimelineEntry = DeepReadonly<z.infer<typeof timelineEntry>>;

const hash = z.string().regex(/^[0-9a-f]{64}$/);
/** A line of `GET /v1/sessions/{id}/events/export`. The last one is the `end`. */
export const exportLine = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('export'), format: z.literal('holdfast-export-1'), session_id: z.string(), hash }),
  /** A durable frame of the event stream under the log version that the stream gives as its id. */
  z.strictObject({ type: z.literal('event'), version: z.int(), event: sessionEventResource, hash }),
  /** `head_hash` is that of the line before it. */
  z.strictObject({ type: z.literal('end'), events: z.int(), last_version: z.int(), head_hash: hash, hash }),
]);
export type ExportLine = DeepReadonly<z.infer<typeof exportLine>>;

/** `GET /v1/sessions/{id}/x/timeline` and of sandboxes: a log as it is stored, internal events too. */
export const timelinePage = z.strictObject({
  data: z.array(timelineEntry),
  /** The version to go on after; null at the end of the log. */
  next_after: z.int().nullable(),
});
export type TimelinePage = DeepReadonly<z.infer<typeof timelinePage>>;
