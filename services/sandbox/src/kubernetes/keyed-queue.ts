import { backoffMs } from './backoff.ts';

export interface KeyedQueueOptions {
  /** Does the work of a key. Returns after how many ms to look again, or null; an error is tried again. */
  readonly run: (key: string) => Promise<number | null>;
  /** Every error of `run`, with the number of failures in a row and the wait before the next try. */
  readonly onError: (error: unknown, key: string, failures: number, retryMs: number) => void;
  /** Keys that are worked on at once. */
  readonly concurrency: number;
  /** @default 100 */
  readonly baseMs?: number;
  /** @default 60_000 */
  readonly maxMs?: number;
  readonly random?: () => number;
}

/** Timers cannot wait for a month; what is later is looked at in between. */
const MAX_WAIT_MS = 24 * 60 * 60_000;

interface Entry {
  state: 'waiting' | 'ready' | 'running' | 'running-again';
  /** When it is to run, while it waits, or again, while it runs. */
  dueAtMs: number;
  timer: NodeJS.Timeout | null;
  failures: number;
}

/**
 * Work by key: never two runs of one key at once, and whatever is added while a key runs is worked on after that. What
 * is added many times runs once, at the earliest of the times asked for. A failed key waits longer each time; adding it
 * again ends the wait, since something may have changed. Order between keys is kept only among those that are due.
 */
export class KeyedQueue {
  readonly #options: KeyedQueueOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #ready: string[] = [];
  #running = 0;
  #closed = false;
  #idle: (() => void) | null = null;

  constructor(options: KeyedQueueOptions) {
    this.#options = options;
  }

  /** Keys that wait, are due or run. */
  get size(): number {
    return this.#entries.size;
  }

  add(key: string, afterMs = 0): void {
    if (this.#closed) return;
    const dueAtMs = Date.now() + afterMs;
    const entry = this.#entries.get(key);
    if (entry === undefined) {
      const made: Entry = { state: 'waiting', dueAtMs, timer: null, failures: 0 };
      this.#entries.set(key, made);
      this.#wait(key, made, dueAtMs);
    } else if (entry.state === 'running') {
      entry.state = 'running-again';
      entry.dueAtMs = dueAtMs;
    } else if (entry.state !== 'ready' && dueAtMs < entry.dueAtMs) {
      if (entry.state === 'waiting') this.#wait(key, entry, dueAtMs);
      else entry.dueAtMs = dueAtMs;
    }
  }

  /** Takes nothing more and drops what waits; resolves when what runs has ended. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const [key, entry] of this.#entries) {
      if (entry.timer !== null) clearTimeout(entry.timer);
      if (entry.state === 'waiting' || entry.state === 'ready') this.#entries.delete(key);
    }
    this.#ready.length = 0;
    if (this.#running > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
  }

  #wait(key: string, entry: Entry, dueAtMs: number): void {
    if (entry.timer !== null) clearTimeout(entry.timer);
    entry.timer = null;
    entry.state = 'waiting';
    entry.dueAtMs = dueAtMs;
    const ms = dueAtMs - Date.now();
    if (ms > 0) entry.timer = setTimeout(() => this.#makeReady(key, entry), Math.min(ms, MAX_WAIT_MS));
    else this.#makeReady(key, entry);
  }

  #makeReady(key: string, entry: Entry): void {
    entry.timer = null;
    entry.state = 'ready';
    this.#ready.push(key);
    this.#next();
  }

  #next(): void {
    while (this.#running < this.#options.concurrency) {
      const key = this.#ready.shift();
      const entry = key === undefined ? undefined : this.#entries.get(key);
      if (key === undefined || entry === undefined) return;
      entry.state = 'running';
      this.#running += 1;
      void this.#run(key, entry);
    }
  }

  async #run(key: string, entry: Entry): Promise<void> {
    let afterMs: number | null;
    try {
      afterMs = await this.#options.run(key);
      entry.failures = 0;
    } catch (error) {
      entry.failures += 1;
      const { baseMs = 100, maxMs = 60_000, random } = this.#options;
      afterMs = backoffMs(entry.failures, baseMs, maxMs, random);
      this.#options.onError(error, key, entry.failures, afterMs);
    }
    this.#running -= 1;
    const own = afterMs === null ? Number.POSITIVE_INFINITY : Date.now() + afterMs;
    const dueAtMs = entry.state === 'running-again' ? Math.min(entry.dueAtMs, own) : own;
    if (this.#closed || dueAtMs === Number.POSITIVE_INFINITY) this.#entries.delete(key);
    else this.#wait(key, entry, dueAtMs);
    if (this.#closed && this.#running === 0) this.#idle?.();
    this.#next();
  }
}
