import { readFileSync } from 'node:fs';
import { describe, expect, it } from '@jest/globals';
import { decodeTree, type Entry, encodeTree } from './format.ts';

const digest = (letter: string): string => letter.repeat(64);
const place = (pack: string, at: number) => ({ pack, at, bytes: 10, digest: digest('d') });
const entries: Entry[] = [
  { type: 'file', name: 'a', changedUs: 1_764_000_000_000_001, mode: 0o644, size: 10, chunks: [place(digest('1'), 0)] },
  { type: 'file', name: 'b', changedUs: 2, mode: 0o4755, size: 2_097_152, chunks: [null, place(digest('2'), 7)] },
  { type: 'folder', name: 'c', changedUs: 3, mode: 0o700, tree: place('', 99) },
  { type: 'folder', name: 'd', changedUs: 4, mode: 0o755, tree: place(digest('1'), 5) },
  { type: 'link', name: '\u00c3\u00a4', changedUs: 5, target: '../\u00ff' },
];

describe('a tree', () => {
  it('of version 1 is read for ever', () => {
    const frozen = readFileSync(new URL('./fixtures/tree.v1.json', import.meta.url));
    const read = entries.map((entry) =>
      entry.type === 'folder' && entry.tree.pack === '' ? { ...entry, tree: place(digest('9'), 99) } : entry,
    );
    expect(decodeTree(frozen, digest('9'))).toEqual(read);
    expect(JSON.parse(encodeTree([...entries].reverse()).toString())).toEqual(JSON.parse(frozen.toString()));
  });

  it('of a version that is not known is refused, and so are places and parts that cannot be', () => {
    const tree = JSON.parse(encodeTree(entries).toString()) as {
      version: number;
      packs: unknown[];
      entries: unknown[][];
    };
    const read = (changes: object): unknown =>
      decodeTree(Buffer.from(JSON.stringify({ ...tree, ...changes })), digest('9'));
    expect(() => read({ version: 2 })).toThrow('version 2');
    expect(() => read({ packs: ['../../etc/passwd'] })).toThrow('a place that cannot be');
    expect(() => read({ entries: [['f', 'a', 1, 420, 10, [[0, -1, 10, digest('d')]]]] })).toThrow(
      'a place that cannot be',
    );
    expect(() => read({ entries: [['f', 'a', 1, 420, 3_000_000, [[0, 0, 10, digest('d')]]]] })).toThrow(
      'a file in part',
    );
    expect(() => read({ entries: [tree.entries[0], tree.entries[0]] })).toThrow('a file that cannot be');
  });
});
