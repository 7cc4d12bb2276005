import { DEAD_LETTER_STREAM, DEAD_LETTER_SUBJECTS, EVENTS_STREAM, EVENTS_SUBJECTS } from '@holdfast/contracts';
import {
  DiscardPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
  type StreamInfo,
} from '@nats-io/jetstream';
import type { Bus } from './bus.ts';

const DAY_NS = 24 * 3_600 * 1_000_000_000;

export interface StreamLimits {
  /** Older events are read from Postgres. */
  readonly maxAgeDays: number;
  readonly maxBytes: number;
}
export const DEFAULT_STREAM_LIMITS: StreamLimits = { maxAgeDays: 7, maxBytes: 4 * 1024 ** 3 };

/** The stream's state, or null when it does not exist. */
export async function streamInfo(manager: JetStreamManager, name: string): Promise<StreamInfo | null> {
  try {
    return await manager.streams.info(name);
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound) return null;
    throw error;
  }
}

/** Creates the streams that are missing; existing ones are left as they are. */
export async function ensureStreams(bus: Bus, limits: StreamLimits = DEFAULT_STREAM_LIMITS): Promise<void> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  const wanted = [
    { name: EVENTS_STREAM, subjects: [EVENTS_SUBJECTS], max_age: limits.maxAgeDays * DAY_NS },
    { name: DEAD_LETTER_STREAM, subjects: [DEAD_LETTER_SUBJECTS], max_age: 30 * DAY_NS },
  ];
  for (const stream of wanted) {
    if ((await streamInfo(manager, stream.name)) !== null) continue;
    await manager.streams.add({
      ...stream,
      retention: RetentionPolicy.Limits,
      storage: StorageType.File,
      discard: DiscardPolicy.Old,
      max_bytes: limits.maxBytes,
      duplicate_window: 120 * 1_000_000_000,
      allow_direct: true,
    });
  }
}

/** Deletes EVENTS, so that a refill is not swallowed by the dedupe window of the old one (B1). */
export async function deleteEventsStream(bus: Bus): Promise<void> {
  const manager = await jetstreamManager(bus.connection, { checkAPI: false });
  if ((await streamInfo(manager, EVENTS_STREAM)) !== null) await manager.streams.delete(EVENTS_STREAM);
}
