import { appendFileSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { Journal } from './journal.ts';

let folder: string;
let path: string;
const open = (): Journal => new Journal(openSync(path, 'a+', 0o600));
const done = { outcome: 'completed', isError: false, text: 'grün 🌱' } as const;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-journal-'));
  path = join(folder, 'journal.jsonl');
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('the journal', () => {
  it('keeps its id, the generation, results and tombstones over a restart', () => {
    const before = open();
    expect(before.admits(3)).toBe(true);
    before.start('a');
    before.finish('a', done);
    before.bury('b');
    before.close();
    const after = open();
    expect([after.id, after.generation, after.admits(2)]).toEqual([before.id, 3, false]);
    expect(after.find('a')).toEqual({ state: 'finished', result: done });
    expect(after.find('b')).toMatchObject({ result: { outcome: 'cancelled' } });
    expect(after.find('c')).toBeUndefined();
    after.close();
  });

  it('closes a call without an end as unknown, durably', () => {
    const before = open();
    before.start('a');
    expect(before.find('a')).toEqual({ state: 'started' });
    before.close();
    for (const journal of [open(), open()]) {
      expect(journal.find('a')).toMatchObject({ state: 'finished', result: { outcome: 'unknown' } });
      journal.close();
    }
  });

  it('loses nothing that follows a line which a crash cut', () => {
    open().close();
    appendFileSync(path, '{"started":"cut');
    const second = open();
    second.start('next');
    second.close();
    const third = open();
    expect(third.find('cut')).toBeUndefined();
    expect(third.find('next')).toMatchObject({ result: { outcome: 'unknown' } });
    third.close();
  });

  it('skips what is no line of its own', () => {
    writeFileSync(path, 'nonsense\n{"journal":"j"}\n');
    const journal = open();
    expect(journal.id).toBe('j');
    journal.start('a');
    journal.finish('a', done);
    expect(journal.find('a')).toEqual({ state: 'finished', result: done });
    expect(readFileSync(path, 'utf8').split('\n').length).toBe(5);
    journal.close();
  });
});
