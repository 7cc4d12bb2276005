import type { ErrorBody } from './errors.ts';
import type { WireEvent } from './wire/events.ts';

/** Who does it: stored in every event's metadata and shown by the audit trail. */
export interface Actor {
  readonly type: 'api_key' | 'dashboard' | 'environment_key' | 'service';
  readonly id: string;
}

/**
 * How a retried POST is recognised (T5). With an `Idempotency-Key` the key decides; without, a request whose
 * `X-Stainless-Retry-Count` is n > 0 matches attempt n−1 with the same fingerprint, once, within a short window.
 */
export interface Idempotency {
  readonly key: string | null;
  /** Retry count of the SDK, 0 for a first attempt. */
  readonly attempt: number;
  /** Method and path, for example `POST /v1/sessions`. */
  readonly path: string;
  /** SHA-256 (hex) over credential id, path and body. */
  readonly fingerprint: string;
}

/** A command from the gateway to the session service: `cmd.<aggregate>.<id>.<verb>`. */
export interface Command<B = unknown> {
  readonly commandId: string;
  readonly workspaceId: string;
  readonly actor: Actor;
  readonly idempotency: Idempotency | null;
  /** W3C trace context, passed on into event metadata. */
  readonly traceparent: string | null;
  /** The same command was asked for before and not answered: it may have been done, or still be. */
  readonly again?: boolean;
  readonly body: B;
}

/** The session service's answer: `status` and `body` are what the HTTP caller gets (and a retry gets again). */
export interface CommandReply {
  readonly body: unknown;
}

export interface SendEventsReply {
  readonly data: readonly WireEvent[];
}

/** Post-commit hint of one stream (S3: never through the relay). Frames are there when they are small. */
export interface CommittedHint {
  readonly fromVersion: number;
  readonly toVersion: number;
  readonly deleted?: boolean;
  /** SSE-ready frames of the wire events among those versions; absent = read the log. */
  readonly frames?: readonly { readonly version: number; readonly type: string; readonly data: string }[];
}

export interface ServiceBeat {
  readonly service: string;
  readonly instance: string;
  readonly pid: number;
  readonly startedAt: string;
  readonly memoryBytes: number;
  /** The newest version that it reads of each event type, where that is above 1 (L7). Absent = of none. */
  readonly reads?: Readonly<Record<string, number>>;
  /** Figures of the service, for the status page (relay lag, running turns, …). */
  readonly figures: Readonly<Record<string, number | string | boolean>>;
}

export type { ErrorBody };
