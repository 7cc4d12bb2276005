import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import { KeyedQueue, type KeyedQueueOptions } from './keyed-queue.ts';

beforeEach(() => {
  jest.useFakeTimers();
});
afterEach(() => {
  jest.useRealTimers();
});

/** A queue whose runs are ended by hand, in any order. */
function queueOf(options: Partial<KeyedQueueOptions> = {}) {
  const started: string[] = [];
  const open = new Map<string, { resolve: (again: number | null) => void; reject: (error: Error) => void }>();
  const errors: unknown[][] = [];
  const queue = new KeyedQueue({
    concurrency: 10,
    random: () => 1,
    run: (key) => {
      started.push(key);
      return new Promise<number | null>((resolve, reject) => open.set(key, { resolve, reject }));
    },
    onError: (error, key, failures, retryMs) => errors.push([(error as Error).message, key, failures, retryMs]),
    ...options,
  });
  const settle = () => jest.advanceTimersByTimeAsync(0);
  return {
    queue,
    started,
    errors,
    end: async (key: string, again: number | null = null) => {
      open.get(key)?.resolve(again);
      await settle();
    },
    fail: async (key: string) => {
      open.get(key)?.reject(new Error('no'));
      await settle();
    },
    pass: (ms: number) => jest.advanceTimersByTimeAsync(ms),
  };
}

describe('a key', () => {
  it('runs once however often it was added', () => {
    const { queue, started } = queueOf({ concurrency: 1 });
    queue.add('other');
    for (let n = 0; n < 5; n++) queue.add('a');
    expect(started).toEqual(['other']);
    expect(queue.size).toBe(2);
  });

  it('never runs twice at once, and runs again when it was added meanwhile', async () => {
    const { queue, started, end } = queueOf();
    queue.add('a');
    queue.add('a');
    queue.add('a');
    expect(started).toEqual(['a']);
    await end('a');
    expect(started).toEqual(['a', 'a']);
    await end('a');
    expect(started).toEqual(['a', 'a']);
    expect(queue.size).toBe(0);
  });

  it('runs at the earliest of the times that it was asked for', async () => {
    const { queue, started, pass } = queueOf();
    queue.add('a', 1_000);
    queue.add('a', 200);
    queue.add('a', 500);
    await pass(199);
    expect(started).toEqual([]);
    await pass(1);
    expect(started).toEqual(['a']);
    await pass(10_000);
    expect(started).toEqual(['a']);
  });

  it('runs again when its run asks for that, or sooner when somebody does', async () => {
    const { queue, started, end, pass } = queueOf();
    queue.add('a');
    await end('a', 1_000);
    await pass(999);
    expect(started).toHaveLength(1);
    await pass(1);
    expect(started).toHaveLength(2);
    queue.add('a', 100);
    await end('a', 1_000);
    await pass(100);
    expect(started).toHaveLength(3);
  });

  it('may ask for a time that no timer can wait for', async () => {
    const { queue, started, end, pass } = queueOf();
    queue.add('a');
    await end('a', 365 * 24 * 60 * 60_000);
    await pass(60_000);
    expect(started).toEqual(['a']);
  });

  it('waits longer after each failure in a row, up to a bound', async () => {
    const { queue, started, errors, end, fail, pass } = queueOf({ baseMs: 100, maxMs: 350 });
    queue.add('a');
    for (const wait of [100, 200, 350, 350]) {
      await fail('a');
      const before = started.length;
      await pass(wait - 1);
      expect(started).toHaveLength(before);
      await pass(1);
      expect(started).toHaveLength(before + 1);
    }
    expect(errors.map(([, , failures, wait]) => [failures, wait])).toEqual([
      [1, 100],
      [2, 200],
      [3, 350],
      [4, 350],
    ]);
    await end('a');
    queue.add('a');
    await fail('a');
    expect(errors.at(-1)).toEqual(['no', 'a', 1, 100]);
  });

  it('does not wait for its backoff when it is added again', async () => {
    const { queue, started, fail } = queueOf();
    queue.add('a');
    await fail('a');
    queue.add('a');
    expect(started).toEqual(['a', 'a']);
  });

  it('takes a random half off each wait', async () => {
    const { queue, errors, fail } = queueOf({ random: () => 0 });
    queue.add('a');
    await fail('a');
    expect(errors).toEqual([['no', 'a', 1, 50]]);
  });
});

describe('many keys', () => {
  it('run side by side up to the bound, in the order in which they were due', async () => {
    const { queue, started, end } = queueOf({ concurrency: 2 });
    for (const key of ['a', 'b', 'c', 'd']) queue.add(key);
    expect(started).toEqual(['a', 'b']);
    await end('b');
    expect(started).toEqual(['a', 'b', 'c']);
    queue.add('c');
    await end('c');
    expect(started).toEqual(['a', 'b', 'c', 'd']);
    await end('a');
    expect(started).toEqual(['a', 'b', 'c', 'd', 'c']);
  });
});

describe('a closed queue', () => {
  it('waits for what runs and starts nothing more', async () => {
    const { queue, started, end, pass } = queueOf({ concurrency: 1 });
    queue.add('a');
    queue.add('a');
    queue.add('b');
    queue.add('c', 100);
    let closed = false;
    const closing = queue.close().then(() => (closed = true));
    await pass(0);
    expect(closed).toBe(false);
    queue.add('d');
    await end('a');
    await closing;
    await pass(1_000);
    expect(started).toEqual(['a']);
    expect(queue.size).toBe(0);
  });
});
