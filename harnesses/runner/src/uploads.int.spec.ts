import { mkdtempSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from '@jest/globals';
import { Uploads } from './uploads.ts';

let folder: string;
let uploads: Uploads;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-uploads-'));
  uploads = new Uploads(folder);
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const at = '/mnt/session/uploads';
const file = (path: string, digest = 'one') => ({ path: `${at}/${path}`, digest });
/** Hands a file over in pieces; what each was answered. */
async function put(one: { path: string; digest: string }, ...pieces: string[]): Promise<(string | null)[]> {
  const answers: (string | null)[] = [];
  let from = 0;
  for (const [n, piece] of pieces.entries()) {
    const last = n === pieces.length - 1;
    const data = Buffer.from(piece).toString('base64');
    answers.push(await uploads.take({ type: 'upload', id: 'q', file: one, at: from, data, last }));
    from += piece.length;
  }
  return answers;
}
const content = (path: string): string => readFileSync(join(folder, 'uploads', path), 'utf8');

it('a file is there in whole, once; what the agent does to it afterwards stays', async () => {
  const one = file('data/a.csv');
  expect(await uploads.missing([one])).toEqual([one.path]);
  expect(await put(one, 'a,b\n', '', '1,2\n')).toEqual([null, null, null]);
  expect(content('data/a.csv')).toBe('a,b\n1,2\n');
  await writeFile(join(folder, 'uploads/data/a.csv'), 'changed');
  expect(await uploads.missing([one])).toEqual([]);
  await rm(join(folder, 'uploads/data/a.csv'));
  expect(await new Uploads(folder).missing([one])).toEqual([]);
});

it('another file for its place replaces it, and one without bytes is a file too', async () => {
  await put(file('a'), 'first');
  expect(await uploads.missing([file('a', 'two'), file('b')])).toEqual([`${at}/a`, `${at}/b`]);
  expect(await put(file('a', 'two'), 'second')).toEqual([null]);
  expect(await put(file('b'), '')).toEqual([null]);
  expect([content('a'), content('b')]).toEqual(['second', '']);
  expect(await uploads.missing([file('a', 'two'), file('b')])).toEqual([]);
});

it('a name may be as long as the file system lets it be', async () => {
  const one = file(`${'n'.repeat(251)}.csv`);
  expect(await put(one, 'a')).toEqual([null]);
  expect(readdirSync(join(folder, 'uploads'))).toEqual([`${'n'.repeat(251)}.csv`]);
});

it('one that breaks off is not there, and begins anew', async () => {
  await put(file('a'), 'kept');
  const two = file('a', 'two');
  await uploads.take({ type: 'upload', id: 'q', file: two, at: 0, data: 'bmV3', last: false });
  expect(content('a')).toBe('kept');
  expect(await uploads.take({ type: 'upload', id: 'q', file: two, at: 7, data: 'bmV3', last: true })).toMatch(
    /missing/,
  );
  expect(await uploads.missing([two])).toEqual([two.path]);
  expect(await put(two, 'new')).toEqual([null]);
  expect(content('a')).toBe('new');
  expect(readdirSync(join(folder, 'uploads'))).toEqual(['a']);
});

it('no place outside of its folder is written, and what is in the way is told', async () => {
  for (const path of ['/etc/passwd', `${at}/../outputs/x`, '/mnt/session/outputs/x'])
    expect(await put({ path, digest: 'one' }, 'x')).toEqual([expect.stringContaining('no place')]);
  await mkdir(join(folder, 'uploads', 'a'), { recursive: true });
  expect(await put(file('a'), 'x')).toEqual([expect.stringMatching(/EISDIR|directory/)]);
  expect(await uploads.missing([file('a')])).toEqual([`${at}/a`]);
});

it('notes that the agent has spoiled make it be put there again, and nothing else', async () => {
  await put(file('a'), 'x');
  for (const spoiled of ['no json', '[]', 'null', '{"other":1}']) {
    await writeFile(join(folder, '.uploaded.json'), spoiled);
    expect(await uploads.missing([file('a')])).toEqual([`${at}/a`]);
    expect(await put(file('a'), 'x')).toEqual([null]);
    expect(await uploads.missing([file('a')])).toEqual([]);
  }
  await rm(join(folder, '.uploaded.json'));
  symlinkSync('/dev/zero', join(folder, '.uploaded.json'));
  expect(await uploads.missing([file('a')])).toEqual([`${at}/a`]);
});
