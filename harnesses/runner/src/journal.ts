import { randomUUID } from 'node:crypto';
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import type { RunnerOutcome } from '@holdfast/contracts';

type Line =
  | { readonly journal: string }
  | { readonly generation: number }
  | { readonly started: string }
  | { readonly finished: string; readonly result: RunnerOutcome }
  | { readonly tombstone: string };

export type Entry = { readonly state: 'started' } | { readonly state: 'finished'; readonly result: RunnerOutcome };

const CANCELLED: RunnerOutcome = { outcome: 'cancelled', isError: true, text: 'Cancelled before it ran.' };
const UNKNOWN: RunnerOutcome = {
  outcome: 'unknown',
  isError: true,
  text: 'Outcome unknown: the sandbox was interrupted while this ran. It may or may not have had its effect; check before doing it again.',
};

/**
 * What this sandbox has run (T1, T2). Every line is on disk before the next step: `started` before a call's first
 * effect, `finished` before its result is told. A call without `finished` after a restart is closed as unknown.
 */
export class Journal {
  readonly id: string;
  generation = 0;
  readonly #file: number;
  readonly #entries = new Map<string, Entry>();

  constructor(path: string) {
    mkdirSync(dirname(path), { recursive: true });
    const lines = existsSync(path) ? readLines(path) : [];
    this.#file = openSync(path, 'a', 0o600);
    let id: string | undefined;
    for (const line of lines) {
      if ('journal' in line) id ??= line.journal;
      else if ('generation' in line) this.generation = line.generation;
      else if ('started' in line) this.#entries.set(line.started, { state: 'started' });
      else if ('finished' in line) this.#entries.set(line.finished, { state: 'finished', result: line.result });
      else this.#entries.set(line.tombstone, { state: 'finished', result: CANCELLED });
    }
    this.id = id ?? randomUUID();
    if (id === undefined) this.#append({ journal: this.id });
    for (const [callId, entry] of this.#entries) if (entry.state === 'started') this.finish(callId, UNKNOWN);
  }

  find(callId: string): Entry | undefined {
    return this.#entries.get(callId);
  }

  /** False when a newer worker has claimed the sandbox. */
  admits(generation: number): boolean {
    if (generation < this.generation) return false;
    if (generation > this.generation) {
      this.#append({ generation });
      this.generation = generation;
    }
    return true;
  }

  start(callId: string): void {
    this.#append({ started: callId });
    this.#entries.set(callId, { state: 'started' });
  }

  finish(callId: string, result: RunnerOutcome): void {
    this.#append({ finished: callId, result });
    this.#entries.set(callId, { state: 'finished', result });
  }

  /** Makes sure that a call which was never seen never runs. */
  bury(callId: string): RunnerOutcome {
    this.#append({ tombstone: callId });
    this.#entries.set(callId, { state: 'finished', result: CANCELLED });
    return CANCELLED;
  }

  close(): void {
    closeSync(this.#file);
  }

  #append(line: Line): void {
    writeSync(this.#file, `${JSON.stringify(line)}\n`);
    fsyncSync(this.#file);
  }
}

/** A last line that was cut by a crash was never acted on. */
function readLines(path: string): Line[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .flatMap((line) => {
      try {
        return [JSON.parse(line) as Line];
      } catch {
        return [];
      }
    });
}
