import type { z } from 'zod';
import type { JsonObject } from './json.ts';
import type { Aggregate } from './subjects.ts';
import type { WireEvent } from './wire/events.ts';

/** A stored event as every reader gets it, already upcast. */
export interface StoredEvent<T extends string = string, D = JsonObject> {
  /** Global order of insertion, a decimal bigint; not the commit order (readers use the log's cursor). */
  readonly position: string;
  readonly id: string;
  readonly workspaceId: string;
  readonly streamId: string;
  /** Gap-free within the stream, starting at 1. */
  readonly version: number;
  readonly type: T;
  readonly schemaVersion: number;
  readonly data: D;
  readonly metadata: JsonObject;
  /** RFC 3339, Postgres' clock. */
  readonly recordedAt: string;
}

/** One durable event: its schema, its wire projection (0 or 1 frame, S1) and what the docs say of it. */
export interface EventDeclaration<T extends string = string, S extends z.ZodType = z.ZodType> {
  readonly type: T;
  readonly schemaVersion: number;
  readonly aggregate: Aggregate;
  readonly data: S;
  /** One sentence for `docs/events.md`. */
  readonly summary: string;
  /** The frame that the public stream shows for it; absent = internal. */
  readonly wire?: (event: StoredEvent<T, z.infer<S>>) => WireEvent;
}

export function durableEvent<const T extends string, S extends z.ZodType>(
  declaration: EventDeclaration<T, S>,
): EventDeclaration<T, S> {
  return Object.freeze(declaration);
}

/** The stored event that a declaration describes. */
export type EventOf<D> = D extends EventDeclaration<infer T, infer S> ? StoredEvent<T, z.infer<S>> : never;
/** Type and data of an event that is not stored yet. */
export type DraftOf<D> =
  D extends EventDeclaration<infer T, infer S> ? { readonly type: T; readonly data: z.infer<S> } : never;
