import { type CommittedHint, committedSubject, RELAY_HINT, type StoredEvent, wireFrame } from '@holdfast/contracts';
import type { Bus } from './bus.ts';

/** A hint with larger frames than this leaves them out; the reader takes them from the log. */
const MAX_HINT_CHARS = 128 * 1024;

function holdsBlob(event: StoredEvent): boolean {
  const content: unknown =
    event.data['content'] ?? (event.data['message'] as { content?: unknown } | undefined)?.content;
  return Array.isArray(content) && content.some((block) => (block as { type?: unknown } | null)?.type === 'x_blob');
}

function framesOf(events: readonly StoredEvent[]): CommittedHint['frames'] | undefined {
  const frames: { version: number; type: string; data: string }[] = [];
  let chars = 0;
  for (const event of events) {
    if (holdsBlob(event)) return undefined;
    const frame = wireFrame(event);
    if (frame === undefined) continue;
    const data = JSON.stringify(frame);
    chars += data.length;
    if (chars > MAX_HINT_CHARS) return undefined;
    frames.push({ version: event.version, type: frame.type, data });
  }
  return frames;
}

/**
 * Tells streams, workers and the relay of a commit, over core NATS and never through the relay (S3). A lost hint costs
 * time, never an event.
 */
export class CommitHints {
  readonly #bus: Bus;
  #relayHinted = false;

  constructor(bus: Bus) {
    this.#bus = bus;
  }

  /** The events of one stream in one commit. */
  publish(events: readonly StoredEvent[]): void {
    const [first] = events;
    const last = events[events.length - 1];
    if (first === undefined || last === undefined) return;
    if (first.streamId.startsWith('session-')) {
      const frames = framesOf(events);
      const hint: CommittedHint = {
        fromVersion: first.version,
        toVersion: last.version,
        ...(last.type === 'session.deleted' ? { deleted: true } : {}),
        ...(frames === undefined ? {} : { frames }),
      };
      this.#bus.publishLive(committedSubject(first.streamId), hint);
    }
    if (this.#relayHinted) return;
    this.#relayHinted = true;
    setImmediate(() => {
      this.#relayHinted = false;
      this.#bus.publishLive(RELAY_HINT, null);
    });
  }
}
