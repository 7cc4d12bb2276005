import { expect, it } from '@jest/globals';
import { ReadableVersions } from './index.ts';

function world() {
  let nowMs = 0;
  const versions = new ReadableVersions(() => nowMs);
  const live = new Map<string, Record<string, number>>([['own', { 'thing.made': 3 }]]);
  return {
    live,
    of: () => versions.of('thing.made'),
    pass: (seconds: number, replicas = live) => {
      for (let n = 0; n < seconds; n++) {
        nowMs += 1_000;
        for (const [instance, reads] of replicas) versions.hear({ instance, startedAt: '', reads });
      }
    },
  };
}

it('are what the replica that reads least reads, once all could be heard', () => {
  const { live, of, pass } = world();
  live.set('other', { 'thing.made': 2 });
  expect(of()).toBe(1);
  pass(5);
  expect(of()).toBe(1);
  pass(2);
  expect(of()).toBe(2);
  live.set('other', { 'thing.made': 3 });
  pass(1);
  expect(of()).toBe(3);
});

it('go down when an older release is started, and up when it was not heard for five seconds', () => {
  const { live, of, pass } = world();
  pass(7);
  expect(of()).toBe(3);
  live.set('old', {});
  pass(1);
  expect(of()).toBe(1);
  live.delete('old');
  pass(5);
  expect(of()).toBe(1);
  pass(1);
  expect(of()).toBe(3);
});

it('are not known to a process that was off the bus, until it has heard it again for five seconds', () => {
  const { of, pass } = world();
  pass(7);
  pass(6, new Map());
  expect(of()).toBe(1);
  pass(5);
  expect(of()).toBe(1);
  pass(1);
  expect(of()).toBe(3);
});
