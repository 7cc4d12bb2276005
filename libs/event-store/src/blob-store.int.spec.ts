import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { type S3Server, startS3 } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { type BlobStore, openBlobStore, type S3Place } from './index.ts';

const MIB = 1024 * 1024;

const folder = mkdtempSync(join(tmpdir(), 'holdfast-blobs-'));
let server: S3Server;
beforeAll(async () => {
  server = await startS3();
}, 300_000);
afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true });
});

const bucket = (change: Partial<S3Place> = {}): S3Place => ({
  bucket: server.settings.BLOB_S3_BUCKET,
  region: 'us-east-1',
  endpoint: server.settings.BLOB_S3_ENDPOINT,
  prefix: 'platform/one/',
  pathStyle: true,
  credentials: {
    accessKeyId: server.settings.BLOB_S3_ACCESS_KEY_ID,
    secretAccessKey: server.settings.BLOB_S3_SECRET_ACCESS_KEY,
  },
  ...change,
});

async function* pieces(count: number, bytes: number, brokenAfter = Infinity): AsyncGenerator<Buffer> {
  for (let n = 0; n < count; n++) {
    if (n === brokenAfter) throw new Error('the source broke');
    yield Buffer.alloc(bytes, n % 251);
  }
}

async function digestOf(bytes: AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of bytes) hash.update(piece);
  return hash.digest('hex');
}

describe.each([
  ['a folder', (): Promise<BlobStore> => openBlobStore({ folder }), (): string => folder],
  ['a bucket', (): Promise<BlobStore> => openBlobStore(bucket()), (): string => join(server.folder, 'platform/one')],
] as const)('a blob store in %s', (_name, open, place) => {
  let blobs: BlobStore;
  beforeAll(async () => {
    blobs = await open();
  });
  /** What has begun to arrive and is no blob. */
  const arriving = (workspace: string): string[] => {
    const inside = readdirSync(place(), { recursive: true }).map(String);
    return inside.filter((path) => path.startsWith(`${workspace}/incoming/`));
  };

  it('gives back what was put, by the digest of its content', async () => {
    const { digest, sizeBytes } = await blobs.put('wrkspc_one', Buffer.from('hello'));
    expect(digest).toBe('2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824');
    expect(sizeBytes).toBe(5);
    expect((await blobs.read('wrkspc_one', digest)).toString()).toBe('hello');
    await expect(blobs.size('wrkspc_one', digest)).resolves.toBe(5);
    await expect(blobs.put('wrkspc_one', Buffer.from('hello'))).resolves.toEqual({ digest, sizeBytes });
    expect(readdirSync(join(place(), 'wrkspc_one', '2c'))).toEqual([digest]);
  });

  it('takes a stream of any length, of nothing too', async () => {
    for (const [count, bytes] of [
      [0, 0],
      [3, 0],
      [2, 100],
      [8, MIB],
      [9, MIB],
      [1, 20 * MIB],
      [3_000, 10_007],
    ] as const) {
      const wanted = { digest: await digestOf(pieces(count, bytes)), sizeBytes: count * bytes };
      expect(await blobs.put('wrkspc_one', pieces(count, bytes))).toEqual(wanted);
      expect(await blobs.size('wrkspc_one', wanted.digest)).toBe(wanted.sizeBytes);
      expect(await digestOf(await blobs.get('wrkspc_one', wanted.digest))).toBe(wanted.digest);
    }
    expect(arriving('wrkspc_one')).toEqual([]);
  });

  it('takes several at once, of the same bytes too', async () => {
    const same = randomBytes(9 * MIB);
    const refs = await Promise.all(Array.from({ length: 4 }, () => blobs.put('wrkspc_many', same)));
    expect(new Set(refs.map(({ digest }) => digest)).size).toBe(1);
    expect((await blobs.read('wrkspc_many', refs[0]?.digest ?? '')).equals(same)).toBe(true);
  });

  it('leaves nothing behind when the source breaks off, at its beginning or late', async () => {
    for (const after of [0, 1, 15])
      await expect(blobs.put('wrkspc_broken', pieces(20, MIB, after))).rejects.toThrow('the source broke');
    expect(arriving('wrkspc_broken')).toEqual([]);
  });

  it('lets a reader stop in the middle', async () => {
    const { digest } = await blobs.put('wrkspc_one', pieces(20, MIB));
    for (let n = 0; n < 20; n++) {
      const stream = await blobs.get('wrkspc_one', digest);
      for await (const piece of stream) {
        expect((piece as Buffer).length).toBeGreaterThan(0);
        break;
      }
      // Its file or connection is let go.
      await finished(stream).catch(() => undefined);
      expect(stream.closed).toBe(true);
    }
    expect((await blobs.read('wrkspc_one', digest)).length).toBe(20 * MIB);
  });

  it('removes what is deleted, in its own workspace alone', async () => {
    const { digest } = await blobs.put('wrkspc_one', Buffer.from('away'));
    await blobs.put('wrkspc_two', Buffer.from('away'));
    await blobs.delete('wrkspc_one', digest);
    await blobs.delete('wrkspc_one', digest);
    await expect(blobs.get('wrkspc_one', digest)).rejects.toMatchObject({ code: 'blob.not-found' });
    expect((await blobs.read('wrkspc_two', digest)).toString()).toBe('away');
    await expect(blobs.delete('wrkspc_one', '../wrkspc_two')).rejects.toMatchObject({ code: 'blob.not-found' });
  });

  it('knows no blob of another workspace, and no path (C3)', async () => {
    const { digest } = await blobs.put('wrkspc_one', Buffer.from('secret'));
    for (const [workspace, asked] of [
      ['wrkspc_two', digest],
      ['wrkspc_one', `../wrkspc_one/${digest}`],
      ['wrkspc_one', digest.toUpperCase()],
    ] as const) {
      await expect(blobs.read(workspace, asked)).rejects.toMatchObject({ code: 'blob.not-found' });
      await expect(blobs.size(workspace, asked)).rejects.toMatchObject({ code: 'blob.not-found' });
    }
    await expect(blobs.put('../outside', Buffer.from('x'))).rejects.toMatchObject({ code: 'blob.workspace' });
  });
});

describe('a blob store in a bucket', () => {
  it('is unavailable, and loses nothing silently, where the server refuses or is not there', async () => {
    const digest = 'a'.repeat(64);
    for (const place of [
      bucket({ bucket: 'no-such-bucket' }),
      bucket({ credentials: { accessKeyId: 'spec-access', secretAccessKey: 'wrong' } }),
      bucket({ endpoint: 'http://127.0.0.1:9' }),
    ]) {
      const blobs = await openBlobStore(place);
      for (const ask of [
        () => blobs.put('wrkspc_one', Buffer.from('x')),
        () => blobs.put('wrkspc_one', pieces(10, MIB)),
        () => blobs.get('wrkspc_one', digest),
      ])
        await expect(ask()).rejects.toMatchObject({ code: 'blob.unavailable', kind: 'unavailable' });
    }
  });

  it('keeps what has one prefix from what has another', async () => {
    const [one, two] = await Promise.all([openBlobStore(bucket()), openBlobStore(bucket({ prefix: 'platform/two/' }))]);
    const { digest } = await one.put('wrkspc_one', Buffer.from('of the first'));
    await expect(two.read('wrkspc_one', digest)).rejects.toMatchObject({ code: 'blob.not-found' });
  });
});
