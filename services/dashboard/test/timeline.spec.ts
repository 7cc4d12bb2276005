import type { TimelineEntry } from '@holdfast/contracts';
import { expect, it } from '@jest/globals';
import { mergeLogs, milestone } from '../src/lib/timeline.ts';

const entry = (id: string, second: number, type = 'x', data: TimelineEntry['data'] = {}): TimelineEntry => ({
  ...{ id, version: 1, type, schema_version: 1, data, metadata: {} },
  recorded_at: `2026-01-01T00:00:0${second}.000Z`,
});

it('two logs are one by time, each in its own order; what may still come between is not shown yet', () => {
  const session = [entry('a', 1), entry('b', 3), entry('c', 3), entry('d', 5)];
  const sandbox = [entry('k', 2), entry('l', 3), entry('m', 4), entry('n', 9)];
  const ids = (isAtEnd: boolean) => mergeLogs(session, sandbox, isAtEnd).map(({ id }) => id);
  expect(ids(true)).toEqual(['a', 'k', 'b', 'c', 'l', 'm', 'd', 'n']);
  expect(ids(false)).toEqual(['a', 'k', 'b', 'c', 'l', 'm', 'd']);
  expect(mergeLogs([], sandbox, false)).toEqual([]);
  expect(
    mergeLogs(session, sandbox, true)
      .filter(({ of }) => of === 'sandbox')
      .map(({ id }) => id),
  ).toEqual(['k', 'l', 'm', 'n']);
});

it('what became of files and sandboxes is told in words, whatever an older event lacks', () => {
  const told = (type: string, data: TimelineEntry['data']) => milestone(entry('a', 1, type, data));
  expect(
    told('session.sandbox_restored', { checkpoint_id: 'ckpt_1', through_version: 1_200, missing_call_ids: ['x'] }),
  ).toBe('A new sandbox was given the files as of event 1,200; what 1 call did to files since is lost');
  expect(told('session.sandbox_restored', { checkpoint_id: null, through_version: 0, missing_call_ids: [] })).toBe(
    'A new sandbox began empty',
  );
  expect(told('sandbox.ready', {})).toBe('Ready');
  expect(told('agent.message', {})).toBeNull();
});
