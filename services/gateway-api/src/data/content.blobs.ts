import {
  type ClientEventParam,
  type ContentBlock,
  LIMITS,
  type StoredBlock,
  type WireEvent,
} from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';

/** A block that is no larger than the digest that would stand for it. */
const NOT_WORTH_BYTES = 256;
/** Blobs written at once for one request; each costs two fsyncs. */
const WRITERS = 8;

/** The events whose content may be stored as blobs; a `system.message` is short enough. */
type Blobbed = Extract<ClientEventParam, { type: 'user.message' | 'user.custom_tool_result' | 'user.tool_result' }>;

/**
 * Content blocks that are too large for a message on the bus and a row of the log: they travel and are stored as digests
 * of blobs, and callers see them whole (B4).
 */
export class ContentBlobs {
  readonly #blobs: BlobStore;

  constructor(blobs: BlobStore) {
    this.#blobs = blobs;
  }

  /**
   * The events with as many blocks left inline as an event and a command may hold; the largest go first. `before` runs
   * before anything is written, and not at all when everything stays inline: it refuses what would be refused anyway, so
   * that no blob is left behind.
   */
  async swap(
    workspaceId: string,
    events: readonly ClientEventParam[],
    before: () => Promise<unknown>,
  ): Promise<readonly object[]> {
    const budget = Math.min(LIMITS.inlineBytes, Math.floor(LIMITS.commandContentBytes / events.length));
    const waiting = events.flatMap((event) => (isBlobbed(event) ? largest(event.content ?? [], budget) : []));
    if (waiting.length === 0) return events;
    await before();
    const stored = new Map<ContentBlock, StoredBlock>();
    const queue = waiting.values();
    await Promise.all(
      Array.from({ length: WRITERS }, async () => {
        for (const { block, bytes } of queue) {
          const { digest, sizeBytes } = await this.#blobs.put(workspaceId, bytes);
          stored.set(block, { type: 'x_blob', digest, size_bytes: sizeBytes });
        }
      }),
    );
    return events.map((event) =>
      isBlobbed(event) && event.content != null
        ? { ...event, content: event.content.map((block) => stored.get(block) ?? block) }
        : event,
    );
  }

  /** Bytes of an event's content that {@link inline} would read. */
  sizeOf(event: WireEvent): number {
    return blobsOf(event).reduce((sum, block) => sum + block.size_bytes, 0);
  }

  /** The event as the caller sent it. */
  async inline(workspaceId: string, event: WireEvent): Promise<WireEvent> {
    if (blobsOf(event).length === 0) return event;
    const content = await Promise.all(
      (event['content'] as StoredBlock[]).map(async (block) =>
        block.type === 'x_blob'
          ? (JSON.parse((await this.#blobs.read(workspaceId, block.digest)).toString()) as ContentBlock)
          : block,
      ),
    );
    return { ...event, content };
  }
}

function isBlobbed(event: ClientEventParam): event is Blobbed {
  return event.type === 'user.message' || event.type === 'user.custom_tool_result' || event.type === 'user.tool_result';
}

/** The largest blocks, with the bytes to store, that must go for the rest to fit into `budget` bytes. */
function largest(content: readonly ContentBlock[], budget: number): { block: ContentBlock; bytes: Buffer }[] {
  const sized = content.map((block) => ({ block, bytes: Buffer.from(JSON.stringify(block)) }));
  let total = sized.reduce((sum, { bytes }) => sum + bytes.length, 0);
  sized.sort((a, b) => b.bytes.length - a.bytes.length);
  return sized.filter(({ bytes }) => {
    if (total <= budget || bytes.length <= NOT_WORTH_BYTES) return false;
    total -= bytes.length;
    return true;
  });
}

function blobsOf(event: WireEvent): Extract<StoredBlock, { type: 'x_blob' }>[] {
  const { content } = event;
  return Array.isArray(content) ? (content as StoredBlock[]).filter((block) => block.type === 'x_blob') : [];
}
