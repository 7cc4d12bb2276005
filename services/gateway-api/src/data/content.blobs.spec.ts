import { mkdtempSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ClientEventParam, LIMITS, type WireEvent } from '@holdfast/contracts';
import { DirectoryBlobStore } from '@holdfast/event-store';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { ContentBlobs } from './content.blobs.ts';

const WORKSPACE = 'wrkspc_blobs';
let folder: string;
let content: ContentBlobs;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-content-'));
  content = new ContentBlobs(new DirectoryBlobStore(folder));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const message = (...sizes: number[]): ClientEventParam => ({
  type: 'user.message',
  content: sizes.map((size, n) => ({ type: 'text', text: String(n % 10).repeat(size) })),
});
const types = (event: object): string[] => (event as { content: { type: string }[] }).content.map(({ type }) => type);
const accept = async (): Promise<void> => undefined;

describe('content of client events', () => {
  it('stays inline while an event holds no more than an event may', async () => {
    const events = [message(10, 20), message(LIMITS.inlineBytes - 1_000)];
    expect(await content.swap(WORKSPACE, events, () => Promise.reject(new Error('asked')))).toEqual(events);
  });

  it('gives its largest blocks to the blob store, and is whole again afterwards', async () => {
    const events = [message(100, 70_000, 100, 5_000)];
    const [swapped] = await content.swap(WORKSPACE, events, accept);
    expect(types(swapped as object)).toEqual(['text', 'x_blob', 'text', 'text']);
    expect(content.sizeOf(swapped as WireEvent)).toBeGreaterThan(70_000);
    expect(await content.inline(WORKSPACE, swapped as WireEvent)).toEqual(events[0]);
  });

  it('fits into one command whatever was sent: bytes are counted, and all blocks of all events together', async () => {
    for (const events of [
      Array.from({ length: LIMITS.eventsPerRequest }, () => message(...Array.from({ length: 20 }, () => 60_000))),
      [message(...Array.from({ length: LIMITS.contentBlocks }, () => 60_000))],
      [{ ...message(), content: [{ type: 'text' as const, text: '漢'.repeat(60_000) }] }] as ClientEventParam[],
      Array.from({ length: 5 }, () => message(...Array.from({ length: LIMITS.contentBlocks }, () => 250))),
    ]) {
      const swapped = await content.swap(WORKSPACE, events, accept);
      expect(Buffer.byteLength(JSON.stringify(swapped))).toBeLessThan(900 * 1_024);
    }
  });

  it('is not written for a request that is refused', async () => {
    const before = readdirSync(folder, { recursive: true }).length;
    const unique = message(80_000, 90_001);
    const refused = content.swap(WORKSPACE, [unique], () => Promise.reject(new Error('no such session')));
    await expect(refused).rejects.toThrow('no such session');
    expect(readdirSync(folder, { recursive: true })).toHaveLength(before);
  });
});
