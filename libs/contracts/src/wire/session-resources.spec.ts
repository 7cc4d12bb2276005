import { expect, it } from '@jest/globals';
import { newId } from '../ids.ts';
import { addSessionResourceBody } from './session-resources.ts';

const placeOf = (mount_path: string): string | null | undefined =>
  addSessionResourceBody.safeParse({ type: 'file', file_id: newId('file'), mount_path }).data?.mount_path;

it('a file lies below the uploads folder, however its place is written', () => {
  for (const path of ['a/b.csv', '/a/b.csv', '/mnt/session/uploads/a/b.csv', './a//b.csv'])
    expect(placeOf(path)).toBe('/mnt/session/uploads/a/b.csv');
  for (const path of ['', '/', '../b.csv', 'a/../../b', 'a\nb']) expect(placeOf(path)).toBeUndefined();
});

it('a name has at most the 255 bytes that a file system takes', () => {
  expect(placeOf('n'.repeat(255))).toMatch(/n$/);
  expect(placeOf('é'.repeat(127))).toMatch(/é$/);
  expect(placeOf('é'.repeat(128))).toBeUndefined();
});
