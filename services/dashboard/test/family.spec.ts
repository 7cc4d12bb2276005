import type { Session } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { familyTree } from '../src/lib/family.ts';

const session = (id: string, from: [parent: string, version: number] | null, created = '2026-01-01'): Session =>
  ({
    id,
    created_at: created,
    forked_from:
      from === null ? null : { session_id: from[0], root_session_id: 'root', event_id: 'e', version: from[1] },
  }) as unknown as Session;
const lines = (all: readonly Session[]) =>
  familyTree(all).map(({ session: { id }, depth }) => `${'  '.repeat(depth)}${id}`);

describe('a family', () => {
  it('is a tree: each session under its parent, siblings by where they left it, then by age', () => {
    const all = [
      session('root', null),
      session('late', ['root', 9]),
      session('early', ['root', 2]),
      session('second', ['root', 9], '2026-01-02'),
      session('deep', ['early', 5]),
      session('deeper', ['deep', 7]),
    ];
    const wanted = ['root', '  early', '    deep', '      deeper', '  late', '  second'];
    expect(lines(all)).toEqual(wanted);
    expect(lines([...all].reverse())).toEqual(wanted);
  });

  it('shows whoever was forked from what is gone, at the top', () => {
    expect(lines([session('b', ['gone', 4]), session('c', ['b', 6]), session('a', ['gone', 2])])).toEqual([
      'a',
      'b',
      '  c',
    ]);
    expect(lines([])).toEqual([]);
  });
});
