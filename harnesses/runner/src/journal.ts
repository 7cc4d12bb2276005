import { randomUUID } from 'node:crypto';
import { closeSync, fsyncSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import type { RunnerOutcome } from '@holdfast/contracts';

type Line =
  | { readonly journal: string }
  | { readonly generation: number }
  | { readonly started: string }
  | { readonly finished: string; readonly result: RunnerOutcome }
  | { readonly tombstone: string };

export type Entry = { readonly state: 'started' } | { readonly state: 'finished'; readonly result: RunnerOutcome };

/** Where a line lies in the file; results are read from there when they are asked for again. */
interface Place {
  readonly at: number;
  readonly bytes: number;
}

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
  readonly #lasting: boolean;
  readonly #calls = new Map<string, 'started' | Place>();
  #size = 0;

  /**
   * @param file open for reading at its start and for appending; it may be empty
   * @param lasting whether the file outlives the sandbox's processes; one that does not need not be on disk
   */
  constructor(file: number, lasting = true) {
    this.#file = file;
    this.#lasting = lasting;
    const bytes = readFileSync(file);
    let id: string | undefined;
    for (let end = bytes.indexOf(10); end !== -1; end = bytes.indexOf(10, this.#size)) {
      const place = { at: this.#size, bytes: end - this.#size };
      this.#size = end + 1;
      const line = parsed(bytes.subarray(place.at, end));
      if (line === null) continue;
      if ('journal' in line) id ??= line.journal;
      else if ('generation' in line) this.generation = line.generation;
      else if ('started' in line) this.#calls.set(line.started, 'started');
      else this.#calls.set('finished' in line ? line.finished : line.tombstone, place);
    }
    if (this.#size < bytes.length) {
      // A last line that was cut by a crash was never acted on; what follows must not grow onto it.
      writeFileSync(file, '\n');
      this.#size = bytes.length + 1;
    }
    this.id = id ?? randomUUID();
    if (id === undefined) this.#append({ journal: this.id });
    for (const [callId, call] of this.#calls) if (call === 'started') this.finish(callId, UNKNOWN);
  }

  find(callId: string): Entry | undefined {
    const call = this.#calls.get(callId);
    if (call === undefined || call === 'started') return call && { state: call };
    const bytes = Buffer.alloc(call.bytes);
    readSync(this.#file, bytes, 0, call.bytes, call.at);
    const line = parsed(bytes);
    return { state: 'finished', result: line !== null && 'result' in line ? line.result : CANCELLED };
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
    this.#calls.set(callId, 'started');
  }

  finish(callId: string, result: RunnerOutcome): void {
    this.#calls.set(callId, this.#append({ finished: callId, result }));
  }

  /** Makes sure that a call which was never seen never runs. */
  bury(callId: string): RunnerOutcome {
    this.#calls.set(callId, this.#append({ tombstone: callId }));
    return CANCELLED;
  }

  close(): void {
    closeSync(this.#file);
  }

  #append(line: Line): Place {
    const text = Buffer.from(`${JSON.stringify(line)}\n`);
    const place = { at: this.#size, bytes: text.length - 1 };
    writeFileSync(this.#file, text);
    if (this.#lasting) fsyncSync(this.#file);
    this.#size += text.length;
    return place;
  }
}

function parsed(bytes: Buffer): Line | null {
  try {
    return JSON.parse(bytes.toString()) as Line;
  } catch {
    return null;
  }
}
