import { type ContentBlock, LIMITS, type StoredBlock } from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { ConversationItem } from './conversation.ts';

/** Puts the content of blobs back where their digests stand; items without one are returned as they are. */
export function inlineBlobs(blobs: BlobStore) {
  return async (workspaceId: string, items: readonly ConversationItem[]): Promise<readonly ConversationItem[]> => {
    const holds = (blocks: readonly StoredBlock[]): boolean => blocks.some((block) => block.type === 'x_blob');
    if (!items.some((item) => (item.role === 'user' || item.role === 'tool') && holds(item.content))) return items;
    const inline = async (block: StoredBlock): Promise<StoredBlock> =>
      block.type === 'x_blob'
        ? (JSON.parse((await blobs.read(workspaceId, block.digest)).toString()) as StoredBlock)
        : block;
    return Promise.all(
      items.map(async (item) =>
        item.role === 'user' || item.role === 'tool'
          ? { ...item, content: await Promise.all(item.content.map(inline)) }
          : item,
      ),
    );
  };
}

/** Moves the largest blocks into blobs until the rest fits into an event (B4). */
export function outlineBlobs(blobs: BlobStore) {
  return async (workspaceId: string, blocks: readonly ContentBlock[]): Promise<readonly StoredBlock[]> => {
    const sized = blocks.map((block) => ({ block, bytes: Buffer.from(JSON.stringify(block)) }));
    let size = sized.reduce((sum, { bytes }) => sum + bytes.length, 0);
    const stored = new Map<ContentBlock, StoredBlock>();
    for (const { block, bytes } of sized.toSorted((one, other) => other.bytes.length - one.bytes.length)) {
      if (size <= LIMITS.inlineBytes) break;
      const { digest, sizeBytes } = await blobs.put(workspaceId, bytes);
      stored.set(block, { type: 'x_blob', digest, size_bytes: sizeBytes });
      size -= bytes.length;
    }
    return blocks.map((block) => stored.get(block) ?? block);
  };
}
