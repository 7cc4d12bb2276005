import type { BlobStore } from '@holdfast/event-store';
import type pg from 'pg';
import { CheckpointStore } from '../checkpoint/checkpoint.store.ts';
import { CheckpointKeeper } from '../checkpoint/checkpoint-keeper.ts';
import { Seal } from '../checkpoint/seal.ts';
import type { SandboxStore } from '../store/sandbox.store.ts';

export const TEST_KEY = 'a key of a spec, long enough to be one';

/** Keeps files in a store of the spec's. */
export function testKeeper(pool: pg.Pool, sandboxes: SandboxStore, blobs: BlobStore, exclude: string[] = []) {
  return new CheckpointKeeper({
    ...{ blobs, sandboxes, exclude },
    store: new CheckpointStore(pool, sandboxes),
    seal: new Seal(TEST_KEY),
    limits: { entries: 1_000, bytes: 100 * 1024 ** 2 },
  });
}
