/** `GET /v1/x/status`: what a workspace uses, and how the platform is. */
export interface PlatformStatus {
  /** True when answers come from the scripted demo gateway. */
  readonly demo_gateway: boolean;
  /** Every process that reported within the last seconds. */
  readonly services: readonly {
    readonly service: string;
    readonly instance: string;
    readonly started_at: string;
    readonly memory_bytes: number;
    readonly figures: Readonly<Record<string, number | boolean | string>>;
  }[];
  /** Sessions by status, without archived ones. */
  readonly sessions: Readonly<Record<string, number>>;
  /** Idle sessions that wait for the client's word about a tool call. */
  readonly sessions_needing_action: number;
  /** Messages that wait behind running turns. */
  readonly queued_messages: number;
  /** Null while no process leads. */
  readonly relay: { readonly instance: string; readonly lag_ms: number | null } | null;
  /** Null when the broker could not be asked. */
  readonly dead_letters: number | null;
  /** Sandboxes by status, without destroyed ones. */
  readonly sandboxes: Readonly<Record<string, number>>;
}

/** `GET /v1/sessions/{id}/x/timeline`: a session's log as it is stored, internal events too. */
export interface TimelinePage {
  readonly data: readonly TimelineEntry[];
  /** The version to go on after; null at the end of the log. */
  readonly next_after: number | null;
}
export interface TimelineEntry {
  readonly id: string;
  readonly version: number;
  readonly type: string;
  readonly schema_version: number;
  readonly recorded_at: string;
  readonly data: unknown;
  readonly metadata: unknown;
}
