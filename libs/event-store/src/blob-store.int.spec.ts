import { mkdtempSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from '@jest/globals';
import { DirectoryBlobStore } from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'holdfast-blobs-'));
const blobs = new DirectoryBlobStore(folder);
afterAll(() => rm(folder, { recursive: true }));

it('gives back what was put, by the digest of its content', async () => {
  const { digest, sizeBytes } = await blobs.put('wrkspc_one', Buffer.from('hello'));
  expect(digest).toBe('2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824');
  expect(sizeBytes).toBe(5);
  expect((await blobs.read('wrkspc_one', digest)).toString()).toBe('hello');
  await expect(blobs.put('wrkspc_one', Buffer.from('hello'))).resolves.toEqual({ digest, sizeBytes });
});

it('takes a stream, and leaves nothing behind when it breaks off', async () => {
  async function* pieces(broken: boolean) {
    yield Buffer.from('one ');
    if (broken) throw new Error('the source broke');
    yield Buffer.from('two');
  }
  const { digest } = await blobs.put('wrkspc_one', pieces(false));
  expect((await blobs.read('wrkspc_one', digest)).toString()).toBe('one two');
  await expect(blobs.put('wrkspc_one', pieces(true))).rejects.toThrow('the source broke');
  expect(readdirSync(join(folder, 'wrkspc_one', 'incoming'))).toEqual([]);
});

it('knows no blob of another workspace, and no path (C3)', async () => {
  const { digest } = await blobs.put('wrkspc_one', Buffer.from('secret'));
  for (const [workspace, asked] of [
    ['wrkspc_two', digest],
    ['wrkspc_one', `../wrkspc_one/${digest}`],
    ['wrkspc_one', digest.toUpperCase()],
  ] as const)
    await expect(blobs.read(workspace, asked)).rejects.toMatchObject({ code: 'blob.not-found' });
  await expect(blobs.put('../outside', Buffer.from('x'))).rejects.toMatchObject({ code: 'blob.workspace' });
});
