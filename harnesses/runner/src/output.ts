import { closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';

/** As `TOOL_OUTPUT_CHARS` of the contracts; a runner is a program of its own and shares only types with them. */
export const SHOWN_CHARS = 30_000;
const HEAD_CHARS = SHOWN_CHARS / 2 - 400;
const TAIL_CHARS = SHOWN_CHARS / 2;
export const MAX_WHOLE_BYTES = 64 * 1024 * 1024;
/** Whole outputs that are kept in the sandbox at a time; the platform has all of them. */
const KEPT_OUTPUTS = 16;

/**
 * A tool's output. What is shown is bounded: its beginning and its end, with a mark between them. From the moment it is
 * too long to be shown whole, all of it (up to 64 MiB) goes to a file that the agent can read on, where that can be had.
 */
export class Output {
  readonly #folder: string;
  readonly #path: string;
  #head = '';
  /** What came after the head. */
  #tail = '';
  #chars = 0;
  #file: number | null = null;
  #written = 0;
  #fault: string | null = null;

  constructor(folder: string, callId: string) {
    this.#folder = folder;
    this.#path = join(folder, `${callId}.txt`);
  }

  add(text: string): void {
    if (text === '') return;
    const spilled = this.#chars > SHOWN_CHARS;
    this.#chars += text.length;
    if (!spilled && this.#chars > SHOWN_CHARS) {
      this.#open();
      this.#write(this.#head + this.#tail);
    }
    if (this.#chars > SHOWN_CHARS) this.#write(text);
    const room = Math.max(0, HEAD_CHARS - this.#head.length);
    this.#head += text.slice(0, room);
    const rest = this.#tail + text.slice(room);
    this.#tail = this.#chars > SHOWN_CHARS ? rest.slice(-TAIL_CHARS) : rest;
  }

  /** What is shown, and the open file with the whole when that is more; whoever takes it closes it. */
  end(): { text: string; whole: number | null } {
    if (this.#chars <= SHOWN_CHARS) return { text: this.#head + this.#tail, whole: null };
    const cut = this.#chars - this.#head.length - this.#tail.length;
    const where = this.#fault ?? `the whole output is in ${this.#path}`;
    return { text: `${this.#head}\n[cut: ${cut} characters; ${where}]\n${this.#tail}`, whole: this.#file };
  }

  /** The agent owns the folder: nothing that it may have put there is opened, and no fault of it ends the runner. */
  #open(): void {
    try {
      mkdirSync(this.#folder, { recursive: true });
      const older = readdirSync(this.#folder)
        .map((name) => join(this.#folder, name))
        .map((path) => ({ path, changedMs: statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0 }))
        .sort((a, b) => b.changedMs - a.changedMs);
      for (const { path } of older.slice(KEPT_OUTPUTS - 1)) rmSync(path, { force: true });
      this.#file = openSync(this.#path, 'wx+', 0o600);
    } catch (error) {
      this.#fail(error);
    }
  }

  #write(text: string): void {
    if (this.#file === null || this.#written >= MAX_WHOLE_BYTES) return;
    try {
      this.#written += writeSync(this.#file, Buffer.from(text).subarray(0, MAX_WHOLE_BYTES - this.#written));
    } catch (error) {
      closeSync(this.#file);
      this.#file = null;
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    this.#fault = `the whole could not be kept: ${(error as Error).message}`;
  }
}
