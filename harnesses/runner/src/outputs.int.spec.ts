import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from '@jest/globals';
import { Outputs } from './outputs.ts';

let folder: string;
let outputs: Outputs;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-outputs-'));
  outputs = new Outputs(folder);
});
afterEach(() => rm(folder, { recursive: true, force: true }));
const write = (path: string, content: string): void => writeFileSync(join(folder, path), content);
const paths = async (limit = 100): Promise<string[]> => (await outputs.list(limit)).files.map(({ path }) => path);

it('files are listed in order, also in folders, up to a limit', async () => {
  mkdirSync(join(folder, 'b/c'), { recursive: true });
  for (const path of ['z.txt', 'b/2', 'b/c/1', 'a.txt', 'ü 報告']) write(path, 'x');
  expect(await paths()).toEqual(['a.txt', 'b/2', 'b/c/1', 'z.txt', 'ü 報告']);
  expect(await outputs.list(5)).toMatchObject({ more: false });
  expect(await outputs.list(2)).toMatchObject({ files: [{ path: 'a.txt' }, { path: 'b/2' }], more: true });
  expect(await new Outputs(join(folder, 'none')).list(5)).toEqual({ files: [], more: false });
});

it('what is no regular file of the folder itself is not there', async () => {
  symlinkSync('/etc/passwd', join(folder, 'link'));
  symlinkSync('/etc', join(folder, 'folder'));
  execFileSync('mkfifo', [join(folder, 'pipe')]);
  expect(await paths()).toEqual([]);
  const file = { path: 'link', bytes: 1, stamp: '' };
  for (const path of ['link', 'folder/passwd', 'pipe', '../x', 'none'])
    expect(await outputs.read({ ...file, path }, 0, 10)).toBeNull();
});

it('a file is read in pieces, and no more when it is another one meanwhile', async () => {
  write('a', '0123456789');
  const [file] = (await outputs.list(1)).files;
  if (file === undefined) throw new Error('not listed');
  expect(file.bytes).toBe(10);
  expect(String(await outputs.read(file, 0, 4))).toBe('0123');
  expect(String(await outputs.read(file, 4, 100))).toBe('456789');
  expect(String(await outputs.read(file, 10, 100))).toBe('');
  write('a', '0123456780');
  expect(await outputs.read(file, 0, 4)).toBeNull();
  write('b', '0123456789');
  renameSync(join(folder, 'b'), join(folder, 'a'));
  expect(await outputs.read(file, 0, 4)).toBeNull();
});
